/* Formulas and figures grow while a page loads, and push away the place that a link into the page leads to.
   Stay with that place until nothing has grown for a while, or the reader begins to move. */
(() => {
  if (!location.hash) return;
  const moves = ["wheel", "touchstart", "keydown", "pointerdown"];
  let timer;
  const leave = () => {
    clearTimeout(timer);
    grown.disconnect();
    removeEventListener("load", stay);
    moves.forEach((move) => removeEventListener(move, leave));
  };
  const stay = () => {
    document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView({ behavior: "instant" });
    clearTimeout(timer);
    if (document.readyState === "complete") timer = setTimeout(leave, 2000);
  };
  const grown = new ResizeObserver(stay);
  moves.forEach((move) => addEventListener(move, leave, { passive: true }));
  document.addEventListener("DOMContentLoaded", () => grown.observe(document.querySelector("main")));
  addEventListener("load", stay);
})();
