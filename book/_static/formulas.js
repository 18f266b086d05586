/* MathJax makes every formula a stop of the Tab key, a hundred and more on some pages. Only those stay one that
   have to be scrolled sideways; the menu still opens on any of them by the mouse. */
document.addEventListener("DOMContentLoaded", async () => {
  if (!window.MathJax?.startup) return;
  await window.MathJax.startup.promise;
  const formulas = document.querySelectorAll("mjx-container");
  const setStops = () => formulas.forEach((formula) => {
    formula.tabIndex = formula.scrollWidth > formula.clientWidth ? 0 : -1;
  });
  setStops();
  window.addEventListener("resize", setStops);
  document.addEventListener("toggle", setStops, true);
});
