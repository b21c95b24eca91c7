// Comfort only; every page works without it. Arrow keys and the wheel step through images.
"use strict";
(() => {
  const picture = document.getElementById("picture");
  if (!picture) return;
  const step = (id) => {
    const link = document.getElementById(id);
    if (link && link.href) location.replace(link.href);
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowUp" || event.key === "ArrowLeft" || event.key === "PageUp") step("previous");
    else if (event.key === "ArrowDown" || event.key === "ArrowRight" || event.key === "PageDown") step("following");
    else return;
    event.preventDefault();
  });
  let travelled = 0;
  picture.addEventListener("wheel", (event) => {
    event.preventDefault();
    travelled += event.deltaY;
    if (Math.abs(travelled) < 60) return;
    step(travelled > 0 ? "following" : "previous");
    travelled = 0;
  }, { passive: false });
  picture.addEventListener("error", () => {
    const told = document.createElement("p");
    told.className = "note bad";
    told.textContent = "This image cannot be shown here. The original can still be retrieved.";
    picture.replaceWith(told);
  });
})();
