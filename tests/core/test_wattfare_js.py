"""``wattfare.js`` in Node: its size, its tokens and its errors. ``tests/browsers`` tests the
rest."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path

import pytest
from support.node import node_and_npm, npm_install
from support.patience import PATIENCE

import wattfare_mw

MODULE = Path(wattfare_mw.__file__).parent / "browser" / "wattfare.js"
TYPES = MODULE.with_name("wattfare.d.ts")

SETUP = """
import assert from "node:assert/strict";
const { createWattfare, stateOf, labels, WattfareError } = await import(MODULE);
globalThis.location = new URL("https://app.example/page");
globalThis.window = new EventTarget();
const part = (claims) => Buffer.from(JSON.stringify(claims)).toString("base64url");
const jwt = (exp, more) => `h.${part({ exp, ...more })}.s`;
const now = () => Date.now() / 1000;
const CONNECTED = {
  connected: true, limits: { monthlyUsd: 5 }, usage: { monthlyUsd: 1 }, remainingUsd: 4,
};
const asked = [];
// The app's token route and the service; `answer` says what each gives.
const serve = (answer) => {
  asked.length = 0;
  globalThis.fetch = async (url, init = {}) => {
    const path = new URL(url, location).href;
    asked.push([init.method ?? "GET", path, init.headers?.authorization]);
    const [status, body, headers] = await answer(path, init, asked.length);
    return new Response(status === 204 ? null : JSON.stringify(body), { status, headers });
  };
};
const client = (session, more) => createWattfare({
  publishableKey: "pk_1", session, baseURL: "https://pay.example/", ...more,
});
const TOKENS = "https://app.example/token";
const CONNECTIONS = "https://pay.example/api/v1/connections";
const tokens = () => asked.filter(([, path]) => path === TOKENS).length;
const rejection = (promise) => promise.then(() => assert.fail("no error"), (error) => error);
"""


def test_module_is_small() -> None:
    assert len(gzip.compress(MODULE.read_bytes(), 9)) <= 6000


SCRIPTS = {
    "one token for many callers": """
serve(async (path) => {
  await new Promise((next) => setTimeout(next, 20));
  return path === TOKENS ? [200, { token: jwt(now() + 600) }] : [200, CONNECTED];
});
const wattfare = client("/token");
const all = await Promise.all([1, 2, 3].map(() => wattfare.status()));
assert.deepEqual(all, [CONNECTED, CONNECTED, CONNECTED]);
await wattfare.status();
await wattfare.disconnect();
assert.equal(tokens(), 1);
assert.deepEqual(asked[0], ["POST", TOKENS, undefined]);
assert.equal(asked.at(-1)[0], "DELETE");
""",
    "a token is dropped with the connection": """
let connected = true;
serve((path, init) => {
  if (path === TOKENS) return [200, { token: jwt(now() + 600) }];
  return init.method === "DELETE" ? [204] : [200, { ...CONNECTED, connected }];
});
const wattfare = client("/token");
await wattfare.status();
await wattfare.disconnect();
await wattfare.status();
assert.equal(tokens(), 2);
connected = false; // stopped on the service's page
await wattfare.status();
await wattfare.status();
assert.equal(tokens(), 3);
""",
    "a token is replaced shortly before its end": """
for (const [lives, expected] of [[31.5, 1], [29, 2], [-5, 2]]) {
  for (const own of [true, false]) { // told by the route, or by the token alone
    const exp = Math.floor(now() + lives);
    serve((path) => path === TOKENS
      ? [200, own ? { token: "opaque", expiresAt: exp } : { token: jwt(exp) }]
      : [200, CONNECTED]);
    const wattfare = client("/token");
    await wattfare.status();
    await wattfare.status();
    assert.equal(tokens(), expected, `${lives} ${own}`);
  }
}
""",
    "a stale token is replaced once": """
let count = 0;
serve((path, init) => {
  if (path === TOKENS) return [200, { token: jwt(now() + 600, { count: ++count }) }];
  return count < 2 ? [401, { error: { code: "auth", message: "Stale." } }] : [200, CONNECTED];
});
const wattfare = client("/token");
assert.deepEqual(await wattfare.status(), CONNECTED);
assert.equal(tokens(), 2);
serve((path) => path === TOKENS
  ? [200, { token: jwt(now() + 600, { count: ++count }) }]
  : [401, { error: { code: "auth", message: "No." } }]);
const error = await rejection(client("/token").status());
assert.deepEqual([error.code, error.status, tokens()], ["auth", 401, 2]);
""",
    "what a session can be": """
const good = jwt(now() + 600);
serve(() => [200, CONNECTED]);
let calls = 0;
const counted = () => { calls += 1; return good; };
for (const session of [good, () => good, async () => ({ token: good }), counted]) {
  const wattfare = client(session);
  await wattfare.status();
  await wattfare.status();
  assert.equal(asked.at(-1)[2], `Bearer ${good}`);
}
assert.equal(calls, 1);
assert.equal(tokens(), 0);
for (const session of [() => undefined, () => ({}), () => ""]) {
  const error = await rejection(client(session).status());
  assert.equal(error.code, "auth", String(session));
}
serve(() => [401, { error: { code: "auth", message: "Stale." } }]);
assert.equal((await rejection(client(good).status())).code, "auth");
assert.equal(asked.length, 1); // a token that is given cannot be replaced
""",
    "errors have a type and a code": """
const told = {
  code: "budget_exceeded", message: "Used up.", neededUsd: 2, manageUrl: "https://pay.example/budget",
};
serve((path) => path === TOKENS ? [200, { token: jwt(now() + 600) }] : [402, { error: told }]);
const error = await rejection(client("/token").status());
assert.ok(error instanceof WattfareError && error instanceof Error);
assert.deepEqual({ ...error }, {
  name: "WattfareError", status: 402, code: "budget_exceeded", neededUsd: 2,
  manageUrl: "https://pay.example/budget",
});
assert.equal(error.message, "Used up.");
serve(() => [401, { error: { code: "auth", message: "Nobody is signed in." } }]);
assert.equal((await rejection(client("/token").status())).code, "auth");
assert.equal(tokens(), 1);
serve(() => [502, "<html>"]);
const odd = await rejection(client("/token").status());
assert.deepEqual([odd.code, odd.status, odd.message], ["unknown", 502, "The answer was 502"]);
globalThis.fetch = async () => { throw new TypeError("Failed to fetch"); };
const gone = await rejection(client("/token").status());
assert.deepEqual([gone.code, gone.status], ["network", 0]);
assert.equal(gone.message, "No answer from app.example");
// After a failure the next call asks again.
serve((path) => path === TOKENS ? [200, { token: jwt(now() + 600) }] : [200, CONNECTED]);
""",
    "addresses": """
const good = jwt(now() + 600);
for (const baseURL of ["https://pay.example", "https://pay.example/", "https://pay.example/api/v1",
                       "https://pay.example/api/v1/"]) {
  serve(() => [200, CONNECTED]);
  await client(good, { baseURL }).status();
  assert.equal(asked[0][1], CONNECTIONS);
}
""",
    "a blocked popup": """
window.open = () => null;
const error = await rejection(client(jwt(now() + 600)).connect());
assert.equal(error.code, "popup_blocked");
const grant = await rejection(client("/token").requestGrant({ requests: 1 }));
assert.equal(grant.code, "popup_blocked");
""",
    "the pages of an approval": """
globalThis.location = new URL("https://app.example/page?x=1&code=of-another-flow#part");
const opened = [];
const popup = { closed: false, location: { replace: (url) => opened.push(url) }, close() {} };
window.open = () => popup;
const line = new BroadcastChannel("wattfare");
const approval = { id: "a1", secret: "s1", url: "https://pay.example/approve/a1" };
const ours = "https://app.example/page?x=1";
for (const [more, page, returnUrl] of [
  [{}, approval.url, ours],
  [{ consentURL: "https://ask.example/please" }, "https://ask.example/please/a1", ours],
  [{ returnURL: "/back?y=2" }, approval.url, "https://app.example/back?y=2"],
]) {
  const sent = [];
  serve((path, init) => {
    sent.push(JSON.parse(init.body));
    return [200, path.endsWith("/redeem") ? CONNECTED : { ...approval, expiresAt: now() + 600 }];
  });
  const connecting = client(jwt(now() + 600), more).connect();
  while (!opened.length) await new Promise((next) => setTimeout(next, 1));
  line.postMessage({ approval: "another", code: "c0" });
  line.postMessage({ approval: "a1", code: "c1" });
  assert.deepEqual(await connecting, CONNECTED);
  assert.deepEqual(opened.splice(0), [page]);
  assert.deepEqual(sent, [{ returnUrl }, { code: "c1", secret: "s1" }]);
}
process.exit(); // the channels are open
""",
    "states": """
const status = (left, cap) => ({
  connected: true, limits: { monthlyUsd: cap }, usage: { monthlyUsd: 0 }, remainingUsd: left,
});
for (const [left, cap, state] of [
  [null, null, "connected"], [5, 20, "connected"], [4, 20, "connected"], [3.99, 20, "low"],
  [1, 5, "connected"], [0.999, 1, "low"], [0, 20, "used_up"], [0, 0, "used_up"],
]) {
  assert.equal(stateOf(status(left, cap)), state, `${left} of ${cap}`);
}
assert.equal(stateOf({ connected: false, limits: null, usage: { monthlyUsd: 0 }, remainingUsd: 0 }),
  "connect");
assert.equal(labels.connect, "Connect AI budget");
""",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_module_in_node(name: str, tmp_path: Path) -> None:
    module = tmp_path / "wattfare.mjs"
    module.write_bytes(MODULE.read_bytes())
    main = SCRIPTS[name]
    run_module(main, module, tmp_path)


def run_module(script: str, module: Path, folder: Path) -> None:
    main = folder / "main.mjs"
    main.write_text(f"const MODULE = {json.dumps(module.as_uri())};{SETUP}{script}")
    node, _ = node_and_npm()
    run = subprocess.run(
        [*node, str(main)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert run.returncode == 0, run.stderr


SAMPLE = """
import {
  createWattfare, labels, stateOf, WattfareError,
  type ConnectionStatus, type GrantResult, type WattfareState,
} from "./wattfare.js";

const wattfare = createWattfare({ publishableKey: "pk_1", session: "/token" });
createWattfare({ publishableKey: "pk_1", session: async () => ({ token: "t" }), baseURL: "x" });
const returnURL = new URL("https://x.example");
createWattfare({ publishableKey: "pk_1", session: () => "t", returnURL });

export async function all(): Promise<WattfareState> {
  const status: ConnectionStatus = await wattfare.connect({ mode: "redirect" });
  const cap: number | null | undefined = status.limits?.monthlyUsd;
  const grant: GrantResult | null = await wattfare.requestGrant({ requests: 2, maxUsd: 1 });
  if (grant) console.log(grant.grantToken, cap);
  const answer: Response = await wattfare.fetch("/x", { method: "POST" });
  console.log(answer.ok, await wattfare.returned);
  const end: () => void = wattfare.watch((seen, error) => {
    console.log(seen?.remainingUsd, error?.code);
  });
  end();
  try {
    await wattfare.disconnect();
  } catch (error) {
    if (error instanceof WattfareError && error.code === "popup_blocked") labels.connect = "Go";
  }
  const element = document.querySelector("wattfare-button");
  if (element) {
    element.wattfare = wattfare;
    element.addEventListener("wattfare:status", (event) => console.log(event.detail.connected));
  }
  return stateOf(await wattfare.status());
}
// @ts-expect-error: a key is needed
createWattfare({ session: "/token" });
// @ts-expect-error: no such mode
void wattfare.connect({ mode: "tab" });
"""


@pytest.mark.long
def test_typescript_types(tmp_path: Path) -> None:
    npm_install(tmp_path, "typescript@5.9.3")
    (tmp_path / "wattfare.d.ts").write_bytes(TYPES.read_bytes())
    (tmp_path / "sample.ts").write_text(SAMPLE)
    node, _ = node_and_npm()
    check = [
        *(*node, "node_modules/typescript/bin/tsc", "--strict", "--noEmit"),
        *("--target", "es2022", "--module", "es2022", "--moduleResolution", "bundler", "sample.ts"),
    ]
    run = subprocess.run(
        check, cwd=tmp_path, capture_output=True, text=True, timeout=3 * PATIENCE, check=False
    )
    assert run.returncode == 0, run.stdout
