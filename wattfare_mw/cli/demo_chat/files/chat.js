// The chat: sends a message to the app's own path, and shows the answer as it comes.
import { createWattfare } from "/api/wattfare/wattfare.js";

const { key, service, model } = document.body.dataset;
const wattfare = createWattfare({
  publishableKey: key,
  session: "/api/wattfare-token",
  baseURL: service,
});
for (const element of document.querySelectorAll("wattfare-button, wattfare-budget")) {
  element.wattfare = wattfare;
}

// A bar that falls with each word, as far as this page can reckon. What the service says of the
// budget at the end of each answer puts it right.
const USD_PER_WORD = 0.000002;
const left = document.querySelector("#left");
wattfare.watch((status) => {
  if (status) {
    const cap = status.limits?.monthlyUsd;
    left.hidden = !cap;
    left.max = cap || 1;
    left.value = status.remainingUsd ?? 0;
  }
});

const form = document.querySelector("#ask");
const field = document.querySelector("#message");
const log = document.querySelector("#log");
const notice = document.querySelector("#notice");
const halt = document.querySelector("#halt");
const messages = [];

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = field.value.trim();
  if (text && form.ariaBusy !== "true") {
    field.value = "";
    ask(text);
  }
});
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
document.querySelector("#long").addEventListener("click", () => {
  field.value = "Each of these words costs a little, and you can watch the bar fall. ".repeat(4);
  field.focus();
});

async function ask(text) {
  const abort = new AbortController();
  halt.onclick = () => abort.abort();
  busy(true);
  say("");
  messages.push({ role: "user", content: text });
  const question = show("user", text);
  const answer = show("assistant", "");
  try {
    // `wattfare.fetch` is the browser's fetch; the bar follows when the answer has ended.
    const response = await wattfare.fetch("/api/wattfare/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        model,
        messages,
        stream: true,
        stream_options: { include_usage: true },
      }),
      signal: abort.signal,
    });
    if (!response.ok) {
      throw (await response.json()).error;
    }
    for await (const event of events(response.body)) {
      if (event.error) {
        throw event.error;
      }
      const words = event.choices?.[0]?.delta?.content ?? "";
      answer.firstChild.data += words;
      left.value -= words ? USD_PER_WORD : 0;
      if (event.usage) {
        answer.append(small(`$${event.usage.cost.toFixed(6)}`));
      }
    }
  } catch (error) {
    explain(error, answer);
  }
  const words = answer.firstChild.data;
  if (words) {
    messages.push({ role: "assistant", content: words });
  } else {
    // Nothing came: the message goes back to its field, to be sent again.
    messages.pop();
    answer.remove();
    question.remove();
    field.value ||= text;
  }
  busy(false);
}

// The events of a stream, each as an object.
async function* events(body) {
  let rest = "";
  for await (const piece of body.pipeThrough(new TextDecoderStream())) {
    const blocks = (rest + piece).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (block.startsWith("data: ") && data !== "[DONE]") {
        yield JSON.parse(data);
      }
    }
  }
}

function explain(error, answer) {
  const begun = answer.firstChild.data !== "";
  if (error.name === "AbortError") {
    say("You stopped this answer.");
  } else if (error.code === "budget_exceeded") {
    say("The cap is reached. ", "Raise the cap");
  } else if (error.code === "not_connected" && begun) {
    say("The answer was stopped, because you stopped this app. ", "Connect again");
  } else if (error.code === "not_connected") {
    say("Connect your AI budget first.");
  } else {
    say(error.message || "That did not work. Try again.");
  }
}

// Say it, with a button that opens the approval.
function say(text, action) {
  notice.textContent = text;
  if (action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = action;
    button.addEventListener("click", async () => {
      const status = await wattfare.connect();
      if (status.connected) {
        say("");
        field.focus();
      }
    });
    notice.append(button);
  }
}

function show(role, text) {
  const entry = document.createElement("p");
  entry.dataset.role = role;
  entry.append(document.createTextNode(text));
  log.append(entry);
  entry.scrollIntoView({ block: "nearest" });
  return entry;
}

function small(text) {
  const element = document.createElement("small");
  element.textContent = text;
  return element;
}

function busy(value) {
  form.ariaBusy = String(value);
  halt.hidden = !value;
}
busy(false);
// Before this script has run, the browser would send the form itself.
document.querySelector("#send").disabled = false;
