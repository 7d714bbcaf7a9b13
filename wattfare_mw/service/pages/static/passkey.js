"use strict";
// Creates a passkey or signs in with one: asks the service for a challenge, the browser for its
// answer, and sends the answer as a form.
(() => {
  const form = document.getElementById("passkey");
  const box = document.getElementById("passkey-buttons");
  const alert = document.getElementById("passkey-error");
  const buttons = [...box.querySelectorAll("button")];
  // Submitting another form of this page, such as Deny, cancels a running sign-in.
  const other = new AbortController();
  let sent = false;

  const bytes = (text) =>
    Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const text = (buffer) =>
    btoa(String.fromCharCode(...new Uint8Array(buffer)))
      .replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  const withId = (each) => ({ ...each, id: bytes(each.id) });

  async function challenge(kind) {
    const body = new URLSearchParams({ csrf: form.elements.csrf.value, kind });
    const answer = await fetch("/sign-in/challenge", { method: "POST", body });
    if (!answer.ok || !/json/.test(answer.headers.get("content-type"))) {
      throw new Error(answer.status === 429 ? "Too many attempts. Wait a minute." : "Reload this page, and try again.");
    }
    return answer.json();
  }

  async function credential(kind, options) {
    const publicKey = { ...options, challenge: bytes(options.challenge) };
    const { signal } = other;
    if (kind === "create") {
      publicKey.user = withId(options.user);
      publicKey.excludeCredentials = (options.excludeCredentials || []).map(withId);
      return navigator.credentials.create({ publicKey, signal });
    }
    publicKey.allowCredentials = (options.allowCredentials || []).map(withId);
    return navigator.credentials.get({ publicKey, signal });
  }

  function json(made) {
    const response = { clientDataJSON: text(made.response.clientDataJSON) };
    for (const name of ["attestationObject", "authenticatorData", "signature", "userHandle"]) {
      if (made.response[name]) response[name] = text(made.response[name]);
    }
    return JSON.stringify({ id: made.id, rawId: text(made.rawId), type: made.type, response });
  }

  async function run(kind) {
    alert.textContent = "";
    for (const each of buttons) each.disabled = true;
    try {
      if (!window.PublicKeyCredential) throw new Error("This browser has no passkeys. Use a recovery code.");
      const { id, options } = await challenge(kind);
      const made = await credential(kind, options);
      if (other.signal.aborted) return;
      form.elements.challenge.value = id;
      form.elements.credential.value = json(made);
      form.requestSubmit();
    } catch (error) {
      if (other.signal.aborted) return;
      for (const each of buttons) each.disabled = false;
      alert.textContent = error instanceof DOMException
        ? "Your browser did not give a passkey. Try again, or use a recovery code."
        : error.message;
    }
  }

  document.addEventListener("submit", (event) => {
    if (sent) event.preventDefault(); // a second submit would have an outdated form token
    else if (event.target === form) sent = true;
    else other.abort();
  });
  for (const each of buttons) each.addEventListener("click", () => run(each.dataset.kind));
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  box.hidden = false;
})();
