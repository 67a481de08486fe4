"""OpenTelemetry's conventions until 1.36, as its own instrumentation writes them: an event for each message.

They are log records there; here each is put where a span keeps its events, as bridges from logs to spans do.
"""

# needs: opentelemetry-instrumentation-openai-v2==2.1b0
# needs: opentelemetry-instrumentation==0.55b1
# needs: opentelemetry-semantic-conventions==0.55b1
# needs: openai<2
# needs: wrapt<2
# needs: opentelemetry-sdk==1.34.1

import os

os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "true"

from common import FakeVLLM, _span, converse, provider, save
from openai import OpenAI
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor

try:
    from opentelemetry.sdk._logs.export import InMemoryLogExporter as InMemoryLogs
except ImportError:
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter as InMemoryLogs

tracing, exporter = provider()
logs = InMemoryLogs()
logging = LoggerProvider()
logging.add_log_record_processor(SimpleLogRecordProcessor(logs))
try:
    from opentelemetry.sdk._events import EventLoggerProvider

    events = {"event_logger_provider": EventLoggerProvider(logging)}
except ImportError:
    events = {"logger_provider": logging}
OpenAIInstrumentor().instrument(tracer_provider=tracing, **events)
with FakeVLLM() as engine, tracing.get_tracer("test").start_as_current_span("run"):
    converse(OpenAI(base_url=engine.base_url, api_key="none"))
spans = [_span(span, at) for at, span in enumerate(exporter.get_finished_spans(), 1)]
for record in logs.get_finished_logs():
    record = record.log_record
    name = getattr(record, "event_name", None) or record.attributes["event.name"]
    (span,) = [span for span in spans if span["span_id"] == f"{record.span_id:016x}"]
    event = {"name": name, "attributes": {"body": record.body}, "timestamp": record.timestamp / 1e9}
    span["events"].append(event)
save("genai_events", spans, "opentelemetry-instrumentation-openai-v2", "openai")
