// The browser's side of an app whose sign-in is a bearer token, and not a cookie.
import { createWattfare } from "/wattfare.js";

const { key, service } = document.body.dataset;
const signedIn = () => ({ Authorization: `Bearer ${localStorage.getItem("access_token")}` });

export const wattfare = createWattfare({
  publishableKey: key,
  baseURL: service,
  async session() {
    const answer = await fetch("/api/wattfare-token", { method: "POST", headers: signedIn() });
    if (!answer.ok) throw new Error("Sign in first.");
    return await answer.json(); // {token}
  },
});

export async function ask(text) {
  const answer = await wattfare.fetch("/api/wattfare/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...signedIn() },
    body: JSON.stringify({
      model: "wattfare/echo",
      messages: [{ role: "user", content: text }],
    }),
  });
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.error.message), body.error);
  return body.choices[0].message.content;
}
