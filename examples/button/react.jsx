// npm install react react-dom esbuild
// npx esbuild react.jsx --bundle --format=esm --jsx=automatic --external:/wattfare.js \
//   --define:process.env.NODE_ENV='"production"' --outfile=vendor/react.js
import { useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { createWattfare } from "/wattfare.js";

const { key, service } = document.body.dataset;
const wattfare = createWattfare({
  publishableKey: key,
  session: "/api/wattfare-token",
  baseURL: service,
});

// The status of the connection, updated after each change.
function useBudget() {
  const [status, setStatus] = useState();
  useEffect(() => wattfare.watch((seen) => seen && setStatus(seen)), []);
  return status;
}

function App() {
  const status = useBudget();
  const [answer, setAnswer] = useState("");

  async function ask(event) {
    event.preventDefault();
    const response = await wattfare.fetch("/api/wattfare/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        model: "wattfare/echo",
        messages: [{ role: "user", content: event.target.elements.question.value }],
      }),
    });
    const body = await response.json();
    setAnswer(response.ok ? body.choices[0].message.content : body.error.message);
  }

  return (
    <>
      <h1>React</h1>
      <wattfare-button />
      <wattfare-budget />
      <form onSubmit={ask}>
        <label>Question <input name="question" /></label>{" "}
        <button disabled={!status?.connected}>Ask</button>
      </form>
      <p role="status" id="answer">{answer}</p>
    </>
  );
}

createRoot(document.querySelector("main")).render(<App />);
