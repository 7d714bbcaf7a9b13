// The Vercel AI SDK, through an app's middleware.
//
// APP_URL=https://app.example node examples/libraries/ai_sdk.mjs

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText } from "ai";

const app = createOpenAICompatible({
  name: "app",
  baseURL: `${process.env.APP_URL ?? ""}/api/wattfare`,
  includeUsage: true,
});
const { text, usage } = await generateText({
  model: app("wattfare/echo"),
  prompt: "Say hello.",
});
console.log(text);
console.log(`${usage.totalTokens} tokens, ${usage.raw.cost.toFixed(6)} USD`);
