"use strict";
// Tells the service when a person closes the page of an approval. The app's page then does not wait
// until the approval expires. On a reload, this script reports first that the old page was closed.
// So a reloaded page reports that it is open.
(() => {
  const { approval } = document.currentScript.dataset;
  const csrf = document.querySelector("[name=csrf]").value;
  let goesOn = false; // to another page of the service, or back to the app
  const tell = (more) =>
    navigator.sendBeacon(`/approve/${approval}/left`, new URLSearchParams({ csrf, ...more }));

  document.addEventListener("submit", (event) => { goesOn ||= !event.defaultPrevented; });
  document.addEventListener("click", ({ target }) => {
    goesOn ||= Boolean(target.closest("a[href]:not([target])"));
  });
  window.addEventListener("pagehide", () => {
    if (!goesOn) tell();
  });
  if (performance.getEntriesByType("navigation")[0]?.type === "reload") tell({ open: "1" });
})();
