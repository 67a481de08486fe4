// Asks one question in three dialects: node ask.mjs BASE_URL MODEL QUESTION
//
// Prints one line of JSON: the answers.

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [baseURL, model, content] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content }];
const sampling = { model, temperature: 0 };

let chat = "";
for await (const chunk of await openai.chat.completions.create({ ...sampling, messages, max_tokens: 12, stream: true })) {
  chat += chunk.choices[0]?.delta.content ?? "";
}
const response = await openai.responses
  .stream({ ...sampling, input: content, max_output_tokens: 12 })
  .finalResponse();
const message = await anthropic.messages.stream({ ...sampling, messages, max_tokens: 12 }).finalMessage();

console.log(JSON.stringify([chat, response.output_text, message.content[0].text]));
