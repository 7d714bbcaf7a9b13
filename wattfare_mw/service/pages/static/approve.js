"use strict";
// Activates the Allow button half a second after the page gets the focus, so that a click meant for
// another page cannot hit it. Also shows what the typed cap buys.
(() => {
  const WAIT = 500;
  const form = document.getElementById("allow");
  const button = form.querySelector("button");
  const cap = document.getElementById("cap");
  const unlimited = document.getElementById("unlimited");
  const buys = document.getElementById("buys");
  let timer = 0;
  let sent = false;

  function wait() {
    clearTimeout(timer);
    button.disabled = true;
    if (document.hasFocus() && !document.hidden) {
      timer = setTimeout(() => { button.disabled = false; }, WAIT);
    }
  }

  const ready = document.createElement("input");
  ready.type = "hidden";
  ready.name = "ready";
  ready.value = "1";
  form.append(ready);
  for (const name of ["focus", "blur"]) window.addEventListener(name, wait);
  document.addEventListener("visibilitychange", wait);
  form.addEventListener("submit", (event) => {
    if (sent || button.disabled) event.preventDefault();
    else sent = true;
  });
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  wait();

  function estimate() {
    const usd = Number(cap.value.replace("$", ""));
    const count = Math.floor((usd * 1e9) / Number(buys.dataset.answer));
    buys.hidden = unlimited.checked || !(count >= 0);
    const unit = 10 ** Math.max(String(count).length - 2, 0);
    const about = (Math.floor(count / unit) * unit).toLocaleString("en-US");
    buys.firstElementChild.textContent = count < 1
      ? "less than one answer" : `about ${about} ${count === 1 ? "answer" : "answers"}`;
  }
  if (buys) {
    cap.addEventListener("input", estimate);
    unlimited.addEventListener("change", estimate);
  }
})();
