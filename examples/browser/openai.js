// The browser's side with the `openai` package: streams, tools and all.

import OpenAI from "openai";

const openai = new OpenAI({
  baseURL: `${location.origin}/api/wattfare`,
  apiKey: "none", // the user's cookie says who pays; no key is in the page
  dangerouslyAllowBrowser: true, // so there is nothing in it to be stolen
});

export async function chat(messages, show) {
  const stream = await openai.chat.completions.create({
    model: "wattfare/echo",
    messages,
    stream: true,
  });
  for await (const chunk of stream) show(chunk.choices[0]?.delta?.content ?? "");
}
