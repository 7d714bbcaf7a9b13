// Browser code with the `openai` package. Streams and tools work.

import OpenAI from "openai";

const openai = new OpenAI({
  baseURL: `${location.origin}/api/wattfare`,
  apiKey: "none", // the cookie identifies the user; the page has no key
  dangerouslyAllowBrowser: true, // safe, because the page has no key
});

export async function chat(messages, show) {
  const stream = await openai.chat.completions.create({
    model: "wattfare/echo",
    messages,
    stream: true,
  });
  for await (const chunk of stream) show(chunk.choices[0]?.delta?.content ?? "");
}
