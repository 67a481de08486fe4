// Vercel's AI SDK. Needs, in a folder of its own: npm i ai @ai-sdk/openai-compatible @opentelemetry/sdk-trace-base
// @opentelemetry/sdk-trace-node zod; run with the address of the fake engine and the file to write:
//   node vercel.mjs http://127.0.0.1:PORT/v1 crates/agl-trace/tests/fixtures/vercel.json
import { readFileSync, writeFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { InMemorySpanExporter, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-base";
import { NodeTracerProvider } from "@opentelemetry/sdk-trace-node";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [, , baseURL, out] = process.argv;
const exporter = new InMemorySpanExporter();
const provider = new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
provider.register();

const model = createOpenAICompatible({ name: "fake", baseURL, apiKey: "none" })("fake");
const experimental_telemetry = { isEnabled: true, functionId: "helper" };
await generateText({
  model, experimental_telemetry, temperature: 0.5, system: "be brief", prompt: "hello there friend",
});
const add = tool({
  description: "Adds.",
  inputSchema: z.object({ x: z.number() }),
  execute: async ({ x }) => `${x} and one is two`,
});
await generateText({
  model, experimental_telemetry, prompt: "add one", tools: { add }, stopWhen: stepCountIs(2),
});
const { textStream } = streamText({ model, experimental_telemetry, prompt: "hello there friend" });
for await (const _ of textStream);

const seconds = ([whole, nanos]) => whole + nanos / 1e9;
const version = (name) => JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version;
const spans = exporter.getFinishedSpans().map((span, at) => ({
  rollout_id: "ro",
  attempt_id: "at",
  sequence_id: at + 1,
  trace_id: span.spanContext().traceId,
  span_id: span.spanContext().spanId,
  parent_id: (span.parentSpanContext?.spanId ?? span.parentSpanId) || null,
  name: span.name,
  status: { status_code: ["UNSET", "OK", "ERROR"][span.status.code], description: null },
  attributes: span.attributes,
  events: span.events.map((event) => ({
    name: event.name, attributes: event.attributes ?? {}, timestamp: seconds(event.time),
  })),
  links: [],
  start_time: seconds(span.startTime),
  end_time: seconds(span.endTime),
  context: null,
  parent: null,
  resource: { attributes: {}, schema_url: "" },
}));
const recorded = { recorded_with: { ai: version("ai") }, spans };
writeFileSync(out, JSON.stringify(recorded, null, 1) + "\n");
console.log(`${out}: ${spans.length} spans`);
