// Calls models at a base URL with the SDKs of OpenAI and Anthropic: node call.mjs BASE_URL MODEL
//
// Prints one line of JSON: what came back.

import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL, apiKey: "none", maxRetries: 0 });
const ask = (content) => [{ role: "user", content }];
const said = {};

const chat = await openai.chat.completions.create({ model, messages: ask("a b c") });
said.chat = chat.choices[0].message.content;

said.stream = "";
for await (const chunk of await openai.chat.completions.create({ model, messages: ask("d e"), stream: true })) {
  said.stream += chunk.choices[0]?.delta.content ?? "";
}

const runner = openai.chat.completions.runTools({
  model,
  messages: ask("f g"),
  tools: [
    {
      type: "function",
      function: {
        name: "add",
        parameters: { type: "object", properties: { x: { type: "number" } } },
        parse: JSON.parse,
        function: ({ x }) => `${x} more`,
      },
    },
  ],
});
said.tools = await runner.finalContent();

const first = await openai.responses.create({ model, input: "h i" });
const second = openai.responses.stream({ model, input: "j k", previous_response_id: first.id });
said.responses = [first.output_text, (await second.finalResponse()).output_text];

said.completion = (await openai.completions.create({ model, prompt: "l m" })).choices[0].text;
said.embedding = (await openai.embeddings.create({ model, input: "n" })).data[0].embedding;
said.models = (await openai.models.list()).data.map((each) => each.id);
said.error = await openai.chat.completions.create({ model: "other", messages: ask("o") }).catch((error) => error.status);

const messages = ask("p q");
said.message = (await anthropic.messages.create({ model, max_tokens: 20, messages })).content;
said.counted = (await anthropic.messages.countTokens({ model, messages })).input_tokens;
const tools = [{ name: "add", input_schema: { type: "object" } }];
const asked = await anthropic.messages.stream({ model, max_tokens: 20, messages, tools }).finalMessage();
const results = asked.content.map(({ id }) => ({ type: "tool_result", tool_use_id: id, content: "r s" }));
const answered = anthropic.messages.stream({
  model,
  max_tokens: 20,
  tools,
  messages: [...messages, { role: "assistant", content: asked.content }, { role: "user", content: results }],
});
said.messages = [asked.stop_reason, asked.content[0].input, (await answered.finalMessage()).content];

console.log(JSON.stringify(said));
