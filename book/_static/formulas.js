/* A formula wider than its column scrolls inside itself; this lets the keyboard scroll it, too. */
document.addEventListener("DOMContentLoaded", async () => {
  if (!window.MathJax?.startup) return;
  await window.MathJax.startup.promise;
  const formulas = [...document.querySelectorAll("mjx-container[display]")];
  const setStops = () => formulas.forEach((formula) => {
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
    else formula.removeAttribute("tabindex");
  });
  setStops();
  window.addEventListener("resize", setStops);
  document.addEventListener("toggle", setStops, true); // a fold that opens shows its formulas
});
