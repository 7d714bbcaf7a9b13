// The Vercel AI SDK, told by lines of JSON what to do; each line that it answers names its job.
//
//   in:  {"job", "do": "generate" | "stream" | "abort", "baseURL", "headers", "model", "prompt"}
//   out: {"job", "event": "text" | "error" | "end" | "failed", …}

import { createInterface } from "node:readline";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const running = new Map();

function tell(job, event, more = {}) {
  process.stdout.write(JSON.stringify({ job, event, ...more }) + "\n");
}

function told(error) {
  if (typeof error !== "object" || error === null) return { message: String(error) };
  return {
    name: error.name,
    message: error.message,
    status: error.statusCode,
    code: error.data?.error?.code ?? error.code,
  };
}

function options({ baseURL, headers, model, prompt, maxOutputTokens }, abort) {
  const provider = createOpenAICompatible({
    name: "app",
    baseURL,
    headers,
    includeUsage: true,
  });
  return {
    model: provider(model),
    prompt,
    maxOutputTokens,
    maxRetries: 0,
    abortSignal: abort.signal,
  };
}

async function generate(job, request, abort) {
  const { text, usage, finishReason } = await generateText(options(request, abort));
  tell(job, "end", { text, usage, finishReason });
}

async function stream(job, request, abort) {
  const result = streamText({ ...options(request, abort), onError: () => {} });
  let text = "";
  let finish;
  for await (const part of result.fullStream) {
    if (part.type === "text-delta") {
      text += part.text;
      tell(job, "text", { text: part.text });
    } else if (part.type === "error") {
      tell(job, "error", told(part.error));
    } else if (part.type === "finish") {
      finish = part;
    }
  }
  tell(job, "end", { text, usage: finish?.totalUsage, finishReason: finish?.finishReason });
}

for await (const line of createInterface({ input: process.stdin })) {
  const { job, do: what, ...request } = JSON.parse(line);
  if (what === "abort") {
    running.get(job).abort();
    continue;
  }
  const abort = new AbortController();
  running.set(job, abort);
  const run = what === "generate" ? generate : stream;
  run(job, request, abort).catch((error) => tell(job, "failed", told(error)));
}
