// Browser code with the AI SDK (`ai`, `@ai-sdk/openai-compatible`).

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const wattfare = createOpenAICompatible({
  name: "wattfare",
  baseURL: `${location.origin}/api/wattfare`,
});

export async function chat(messages, show) {
  const { textStream } = streamText({ model: wattfare("wattfare/echo"), messages });
  for await (const text of textStream) show(text);
}
