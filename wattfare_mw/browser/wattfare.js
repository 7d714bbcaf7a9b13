// Wattfare in the browser: a person connects their own AI budget to this app.
// docs/browser.md says how to use it. wattfare.d.ts describes each part.

const REFRESH = "wattfare:refresh";
const ANSWER = ["approval", "code", "denied"]; // what the service adds to a return URL
const ELEMENTS = "wattfare-button, wattfare-budget";
const inBrowser = typeof document !== "undefined";

export const labels = {
  connect: "Connect AI budget",
  connected: "AI budget: {left}",
  low: "AI budget low: {left}",
  used_up: "AI budget used up: raise the cap",
  reconnect: "Reconnect AI budget",
  none: "No AI budget is connected.",
  spent: "{spent} spent this month, {left}",
  left: "{left} left",
  unlimited: "no cap",
  change: "Change",
  stop: "Stop",
};

export class WattfareError extends Error {
  constructor(code, message, fields) {
    super(message);
    Object.assign(this, { name: "WattfareError", code, status: 0 }, fields);
  }
}

export function stateOf({ connected, remainingUsd: left, limits }) {
  if (!connected) return "connect";
  if (left === null) return "connected";
  if (left <= 0) return "used_up";
  return left < 1 || left < limits.monthlyUsd / 5 ? "low" : "connected";
}

async function send(url, init) {
  const answer = await fetch(url, init).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new WattfareError("network", `No answer from ${new URL(url, location).host}`);
  });
  if (answer.status === 204) return;
  const body = await answer.json().catch(() => null);
  if (answer.ok && body) return body;
  const { status } = answer;
  const { code = "unknown", message, ...more } = body?.error ?? {};
  throw new WattfareError(code, message ?? `The answer was ${status}`, { status, ...more });
}

// The token: kept until 30 seconds before it expires, fetched once at a time.
function tokenSource(session) {
  let kept, end, loading;
  async function load() {
    let got = session;
    end = undefined;
    if (typeof session === "function") got = await session();
    else if (!/^[\w-]+\.[\w-]+\.[\w-]+$/.test(session)) {
      got = await send(session, { method: "POST", credentials: "include" });
    }
    const fresh = got?.token ?? got;
    if (typeof fresh !== "string" || !fresh) throw new WattfareError("auth", "No session token");
    try {
      end = JSON.parse(atob(fresh.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"))).exp;
    } catch { /* not a JWT: a 401 shows that it expired */ }
    end = (got.expiresAt ?? end ?? Infinity) * 1000 - 30_000;
    return (kept = fresh);
  }
  const token = (refused) => {
    if (kept && kept !== refused && Date.now() < end) return kept;
    return (loading ??= load().finally(() => { loading = undefined; }));
  };
  token.drop = () => { end = 0; };
  return token;
}

// -- back from the service's page

const waiting = new Map(); // approvals that this page asked for, by id
const storageKey = (id) => `wattfare:${id}`;
let channel, arrived, latest;

// Takes the answer out of a URL.
const takeOut = ({ searchParams }) => ANSWER.map((name) => {
  const value = searchParams.get(name);
  searchParams.delete(name);
  return value;
});

function listen() {
  if (channel) return;
  channel = new BroadcastChannel("wattfare");
  channel.onmessage = async ({ data }) => {
    const ok = await waiting.get(data.approval)?.(data);
    if (ok !== undefined) channel.postMessage({ ack: data.approval, ok });
  };
}

function arrive() {
  const place = document.querySelector("[data-wattfare-return]");
  const say = (text) => place && (place.textContent = text);
  const url = new URL(location);
  const [approval, code, denied] = takeOut(url);
  if (!approval || !(code || denied)) return;
  history.replaceState(history.state, "", url);
  const key = storageKey(approval);
  const kept = JSON.parse(sessionStorage.getItem(key));
  if (kept) {
    sessionStorage.removeItem(key);
    arrived = { approval, code, denied, ...kept };
    return;
  }
  // Another page of this origin asked. It may be paused: repeat until it answers.
  const line = new BroadcastChannel("wattfare");
  const tell = () => line.postMessage({ approval, code, denied });
  const repeat = setInterval(tell, 500);
  const late = setTimeout(say, 5000, place?.dataset.wattfareReturn);
  line.onmessage = ({ data }) => {
    if (data.ack !== approval) return;
    clearInterval(repeat);
    if (!data.ok) return;
    clearTimeout(late);
    window.close();
  };
  tell();
}

// -- the client

export function createWattfare({
  publishableKey, session, baseURL = "https://wattfare.com", consentURL, returnURL,
}) {
  const api = `${baseURL.replace(/\/(api\/v1\/?)?$/, "")}/api/v1`;
  const token = tokenSource(session);
  const watchers = new Set();
  const flows = {};
  let asking, current, invalid, manageUrl;

  const call = (method, path, credential, body) => send(api + path, {
    method,
    headers: {
      authorization: `Bearer ${credential}`,
      ...(body && { "content-type": "application/json" }),
    },
    body: body && JSON.stringify(body),
  });

  // As this user, or for a grant as this app. A stale token is replaced once.
  async function request(method, path, body, isGrant) {
    if (isGrant) return call(method, path, publishableKey, body);
    const first = await token();
    try {
      return await call(method, path, first, body);
    } catch (error) {
      const second = error.status === 401 ? await token(first) : first;
      if (second === first) throw error;
      return call(method, path, second, body);
    }
  }

  function show(status, error) {
    if (current?.connected && status && !status.connected) token.drop(); // it cannot connect again
    current = status ?? current;
    for (const watcher of watchers) watcher(status, error);
    return status;
  }
  const fail = (error) => show(undefined, error);
  const status = () => (asking ??= request("GET", "/connections").then(show)
    .finally(() => { asking = undefined; }));
  const refresh = () => status().catch(fail);
  if (inBrowser) window.addEventListener(REFRESH, () => watchers.size && refresh(), true);

  // After a denial, or a closed window.
  const declined = (isGrant) => (isGrant ? null : status().catch(
    () => ({ connected: false, limits: null, usage: { monthlyUsd: 0 }, remainingUsd: 0 })));

  async function redeem({ isGrant, approval, code, denied, secret }) {
    if (denied) return declined(isGrant);
    const path = `/approvals/${approval}/redeem`;
    const result = await request("POST", path, { code, secret }, isGrant);
    if (isGrant) return result;
    invalid = false;
    return show(result);
  }

  async function begin(isGrant, wish, back) {
    const url = new URL(back, location);
    url.hash = "";
    takeOut(url);
    const approval = await request("POST", "/approvals", { ...wish, returnUrl: url.href }, isGrant);
    if (consentURL) approval.url = `${consentURL}/${approval.id}`;
    return approval;
  }

  async function redirect(isGrant, wish) {
    const { id, secret, url } = await begin(isGrant, wish, location);
    sessionStorage.setItem(storageKey(id), JSON.stringify({ isGrant, secret, publishableKey }));
    location.assign(url);
    // The browser leaves this page. Resolve if the person comes back.
    return new Promise((resolve) => {
      window.addEventListener("pageshow", () => resolve(declined(isGrant)), { once: true });
    });
  }

  // Await nothing before this: a browser opens a window only during a click.
  function openPopup(flow) {
    const popup = window.open("about:blank", "", "popup,width=480,height=760");
    if (!popup) throw new WattfareError("popup_blocked", "The browser blocked the window");
    Object.assign(flow, { popup, opened: Date.now() });
    if (flow.url) popup.location.replace(flow.url);
  }

  async function ask(isGrant, wish, mode) {
    if (mode === "redirect") return redirect(isGrant, wish);
    const flow = (flows[isGrant] ??= {});
    if (!flow.popup || Date.now() - flow.opened > 1000) { // ignore a double click
      if (flow.popup?.closed === false) flow.popup.focus();
      else openPopup(flow);
    }
    flow.result ??= run(flow, isGrant, wish).finally(() => { delete flows[isGrant]; });
    return flow.result;
  }

  async function run(flow, isGrant, wish) {
    listen();
    let approval;
    try {
      const own = new URL("wattfare-return", import.meta.url);
      const back = returnURL ?? (own.origin === location.origin ? own : location);
      approval = await begin(isGrant, wish, back);
    } catch (error) {
      flow.popup.close();
      throw error;
    }
    const { id, secret, url, expiresAt } = approval;
    flow.popup.location.replace(flow.url = url);
    let over, failure, stop;
    return new Promise((resolve, reject) => {
      const gone = () => (failure ? reject(failure) : resolve(declined(isGrant)));
      const state = () => request("POST", `/approvals/${id}/state`, { secret }, isGrant);
      stop = watchPopup(flow, expiresAt, state, gone);
      // Keep listening after `gone`: the person may still allow.
      waiting.set(id, async (answer) => {
        if (over || flow.busy) return over;
        flow.busy = true;
        try {
          resolve(await redeem({ ...answer, isGrant, secret }));
          over = true;
        } catch (error) {
          // The code may be forged. The real one may still come.
          if (/^(invalid_request|rate_limited)$/.test(error.code)) failure = error;
          else reject(error);
        }
        flow.busy = false;
        return Boolean(over);
      });
    }).finally(() => stop());
  }

  // `closed` is also true for an open window if a page has a Cross-Origin-Opener-Policy. The
  // service knows whether its page is open. A person who comes back to this page has left the
  // window.
  function watchPopup(flow, expiresAt, state, gone) {
    let back, asked = 0, left = 0;
    const look = ({ type, target }) => {
      if ((type === "blur" && target === window) || document.hidden) back = undefined;
      else if (Date.now() - flow.opened > 1000) back ??= Date.now();
    };
    const timer = setInterval(() => {
      if (flow.popup.closed && Date.now() - asked > (left ? 800 : 2500)) {
        asked = Date.now();
        state().then(({ open }) => {
          left = open ? 0 : left + 1;
          if (left > 1) gone(); // a reload also looks like this for a moment
        }, () => {});
      }
      if (!flow.busy && (Date.now() - back > 1500 || Date.now() > expiresAt * 1000)) gone();
    }, 200);
    const events = ["focus", "blur", "visibilitychange", "pointerdown", "keydown"];
    for (const name of events) window.addEventListener(name, look, true);
    return () => {
      clearInterval(timer);
      for (const name of events) window.removeEventListener(name, look, true);
    };
  }

  async function fetchAndRefresh(input, init) {
    const answer = await fetch(input, init);
    if (answer.status === 402) {
      const { error } = await answer.clone().json().catch(() => ({}));
      manageUrl = error?.manageUrl ?? manageUrl;
      invalid ||= error?.code === "funding_invalid";
    }
    if (!answer.body) {
      refreshAll();
      return answer;
    }
    const { readable, writable } = new TransformStream();
    answer.body.pipeTo(writable).catch(() => {}).finally(refreshAll);
    return Object.defineProperty(new Response(readable, answer), "url", { value: answer.url });
  }

  let returned = Promise.resolve(null);
  if (arrived?.publishableKey === publishableKey) {
    returned = redeem(arrived);
    arrived = undefined;
    returned.catch(fail);
  }

  if (inBrowser) queueMicrotask(() => {
    for (const element of document.querySelectorAll(ELEMENTS)) element.begin();
  });
  return (latest = {
    connect: ({ mode } = {}) => ask(false, {}, mode),
    requestGrant: ({ requests, maxUsd }, { mode } = {}) => ask(true, { requests, maxUsd }, mode),
    status,
    disconnect: () => request("DELETE", "/connections").then(token.drop).then(refreshAll),
    fetch: fetchAndRefresh,
    returned,
    get state() { return invalid ? "reconnect" : current && stateOf(current); },
    get manageUrl() { return manageUrl; },
    watch(watcher) {
      watchers.add(watcher);
      if (current) watcher(current);
      else refresh();
      return () => watchers.delete(watcher);
    },
  });
}

const refreshAll = () => { window.dispatchEvent(new Event(REFRESH)); };

// -- the elements

const CSS = `:host { display: inline-block; font: inherit }
[hidden] { display: none }
button { font: inherit; color: var(--wattfare-color, inherit); cursor: pointer;
background: var(--wattfare-background, none); padding: var(--wattfare-padding, .5em .9em);
border: var(--wattfare-border, 1px solid); border-radius: var(--wattfare-radius, .5em);
margin-inline-end: .5em }
:focus-visible { outline: 3px solid var(--wattfare-focus, Highlight); outline-offset: 2px }
p { margin: 0 }
meter { display: block; width: 100% }`;
let sheet;
const clients = {};
const add = (parent, tag, fields) =>
  parent.appendChild(Object.assign(document.createElement(tag), fields));
const usd = (amount) =>
  `$${amount > 0 && amount < 0.1 ? amount.toFixed(6).replace(/0{1,4}$/, "") : amount.toFixed(2)}`;

class WattfareElement extends (globalThis.HTMLElement ?? Object) {
  connectedCallback() {
    if (!this.shadowRoot) {
      this.root = this.attachShadow({ mode: "open", delegatesFocus: true });
      if (!sheet) (sheet = new CSSStyleSheet()).replaceSync(CSS);
      this.root.adoptedStyleSheets = [sheet];
      this.build(add(this.root, "p", { role: "status", part: "text" }));
      this.alert = add(this.root, "p", { role: "alert", part: "error" });
    }
    this.begin();
  }

  disconnectedCallback() {
    this.end?.();
    this.end = undefined;
  }

  get wattfare() { return this.client; }

  set wattfare(client) {
    this.disconnectedCallback();
    this.client = client;
    this.begin();
  }

  begin() {
    this.client ??= this.fromAttributes() ?? latest;
    if (!this.client || !this.isConnected || !this.root || this.end) return;
    this.end = this.client.watch((status, error) => {
      if (error) return this.fail(error);
      this.alert.textContent = "";
      const { limits, usage, remainingUsd: left } = status;
      const state = this.dataset.state = this.client.state;
      const values = {
        spent: usd(usage.monthlyUsd),
        left: left === null ? labels.unlimited : labels.left.replace("{left}", usd(left)),
      };
      this.show(status.connected && limits.monthlyUsd, usage.monthlyUsd, (name) =>
        labels[name].replace(/{(\w+)}/g, (_, key) => values[key]), state);
      this.tell("status", status);
    });
  }

  fromAttributes() {
    const [publishableKey, session, baseURL] = ["publishable-key", "session", "base-url"]
      .map((name) => this.getAttribute(name) ?? undefined);
    return publishableKey && (clients[[publishableKey, session, baseURL]] ??=
      createWattfare({ publishableKey, session: session ?? "/api/wattfare-token", baseURL }));
  }

  fail(error) {
    if (error.code !== "auth") this.alert.textContent = error.message;
    this.tell("error", error);
  }

  tell(name, detail) {
    this.dispatchEvent(new CustomEvent(`wattfare:${name}`, { bubbles: true, detail }));
  }

  button(parent, part, act) {
    const onclick = () => this.client && act(this.client).catch((error) => this.fail(error));
    return add(parent, "button", { type: "button", part, onclick, textContent: labels[part] });
  }
}

const connect = (client) => client.connect().catch((error) => {
  if (error.code !== "popup_blocked") throw error;
  return client.connect({ mode: "redirect" });
});

class WattfareButton extends WattfareElement {
  build(place) { this.main = this.button(place, "connect", connect); }

  show(_cap, _spent, text, state) { this.main.textContent = text(state); }
}

class WattfareBudget extends WattfareElement {
  build(place) {
    this.place = place;
    this.meter = add(this.root, "meter", { part: "meter" });
    this.more = [
      this.button(this.root, "change", connect),
      this.button(this.root, "stop", (client) => client.disconnect()),
    ];
    this.show(false);
  }

  show(cap, spent, text) {
    const ariaLabel = this.place.textContent = text?.(cap === false ? "none" : "spent") ?? "";
    Object.assign(this.meter, { hidden: !cap, max: cap || 1, value: spent ?? 0, ariaLabel });
    if (cap === false && this.root.activeElement) { // which would lose the focus
      this.place.tabIndex = -1;
      this.place.focus();
    }
    for (const button of this.more) button.hidden = cap === false;
  }
}

if (inBrowser && !customElements.get("wattfare-button")) {
  arrive();
  customElements.define("wattfare-button", WattfareButton);
  customElements.define("wattfare-budget", WattfareBudget);
}
