// Browser code in plain JavaScript. Your session cookie identifies the user.

// Returns the user's budget.
export async function budget() {
  const answer = await fetch("/api/wattfare/status");
  return await answer.json(); // {connected, limits, usage, remainingUsd}
}

// Sends one question and returns the answer.
export async function ask(text) {
  const answer = await fetch("/api/wattfare/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      model: "wattfare/echo",
      messages: [{ role: "user", content: text }],
    }),
  });
  const body = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(body.error.message), body.error);
  return body.choices[0].message.content;
}

// Connects a budget without a consent window. Only for a test app.
export async function connectTest(serviceUrl, monthlyUsd) {
  const session = await fetch("/api/wattfare-token", { method: "POST" });
  const { token } = await session.json();
  const answer = await fetch(`${serviceUrl}/api/v1/connections`, {
    method: "POST",
    headers: { "Authorization": `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify({ monthlyUsd }),
  });
  return await answer.json();
}
