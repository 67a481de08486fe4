// Exports two spans of one attempt through OpenTelemetry's SDK: node export.mjs json|protobuf URL ROLLOUT ATTEMPT [gzip]
//
// Prints one line of JSON: how the export went, and the ids of the spans.

import { ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } from "@opentelemetry/api";
import { OTLPTraceExporter as JsonExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { OTLPTraceExporter as ProtobufExporter } from "@opentelemetry/exporter-trace-otlp-proto";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BasicTracerProvider, BatchSpanProcessor } from "@opentelemetry/sdk-trace-base";

const [format, url, rolloutId, attemptId, compression = "none"] = process.argv.slice(2);
const Exporter = { json: JsonExporter, protobuf: ProtobufExporter }[format];
const exporter = new Exporter({ url, compression });

const results = [];
const send = exporter.export.bind(exporter);
exporter.export = (spans, done) =>
  send(spans, (result) => {
    results.push({ code: result.code, error: result.error?.message });
    done(result);
  });

const provider = new BasicTracerProvider({
  resource: resourceFromAttributes({
    "service.name": "node agent",
    "agentlightning.rollout_id": rolloutId,
    "agentlightning.attempt_id": attemptId,
  }),
  spanProcessors: [new BatchSpanProcessor(exporter)],
});
const tracer = provider.getTracer("test");

const inner = tracer.startSpan("inner", {
  kind: SpanKind.CLIENT,
  startTime: [1_700_000_000, 500_000_000],
  attributes: {
    text: "grüße 🌍",
    whole: 42,
    large: Number.MAX_SAFE_INTEGER,
    half: 0.5,
    yes: true,
    texts: ["a", "b"],
    ids: [1, 2, 3],
    mixed: [1, 0.5],
    none: [],
  },
  links: [{ context: { traceId: "0d".repeat(16), spanId: "0e".repeat(8), traceFlags: 1 }, attributes: { why: "x" } }],
});
inner.addEvent("token", { index: 7 }, [1_700_000_001, 0]);
inner.setStatus({ code: SpanStatusCode.ERROR, message: "went wrong" });
inner.end([1_700_000_002, 250_000_000]);

const outer = tracer.startSpan("outer", {}, trace.setSpan(ROOT_CONTEXT, inner));
outer.end();

await provider.forceFlush();
await provider.shutdown();
const ids = [inner, outer].map((span) => span.spanContext());
console.log(JSON.stringify({ results, ids }));
