// The Vercel AI SDK, told by lines of JSON what to do; each line that it answers names its job.
//
//   in:  {"job", "do": "generate" | "stream" | "abort", "baseURL", "headers", "model", "prompt"},
//        or "messages" for "prompt"; {"tool": true} gives it a tool, "schema" asks for an object
//   out: {"job", "event": "text" | "error" | "end" | "failed", …}

import { createInterface } from "node:readline";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";

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
    body: error.responseBody,
    headers: error.responseHeaders,
  };
}

const weather = tool({
  description: "The weather in a city.",
  inputSchema: jsonSchema({
    type: "object",
    properties: { city: { type: "string" } },
    required: ["city"],
    additionalProperties: false,
  }),
  strict: true,
  execute: async ({ city }) => `It is sunny in ${city}.`,
});

function options(request, abort) {
  const { baseURL, headers, model, prompt, messages, maxOutputTokens, schema } = request;
  const provider = createOpenAICompatible({
    name: "app",
    baseURL,
    headers,
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
  return {
    model: provider(model),
    prompt,
    messages,
    maxOutputTokens,
    tools: request.tool ? { weather } : undefined,
    stopWhen: stepCountIs(3),
    output: schema ? Output.object({ schema: jsonSchema(schema) }) : undefined,
    maxRetries: 0,
    abortSignal: abort.signal,
  };
}

async function generate(job, request, abort) {
  const result = await generateText(options(request, abort));
  const { text, usage, finishReason } = result;
  const output = request.schema ? result.output : undefined;
  tell(job, "end", { text, usage, finishReason, output, messages: result.response.messages });
}

async function stream(job, request, abort) {
  const result = streamText({ ...options(request, abort), onError: () => {} });
  let text = "";
  let finish;
  let step;
  for await (const part of result.fullStream) {
    if (part.type === "text-delta") {
      text += part.text;
      tell(job, "text", { text: part.text });
    } else if (part.type === "error") {
      tell(job, "error", told(part.error));
    } else if (part.type === "finish-step") {
      step = part;
    } else if (part.type === "finish") {
      finish = part;
    }
  }
  const messages = finish && (await result.response).messages;
  tell(job, "end", {
    text,
    usage: finish?.totalUsage,
    raw: step?.usage.raw,
    finishReason: finish?.finishReason,
    messages,
  });
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
