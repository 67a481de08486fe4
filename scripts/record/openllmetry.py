"""Traceloop's OpenLLMetry."""

# needs: opentelemetry-instrumentation-openai
# needs: openai
# needs: opentelemetry-sdk

from common import FakeVLLM, converse, provider, save
from openai import OpenAI
from opentelemetry.instrumentation.openai import OpenAIInstrumentor

tracing, exporter = provider()
OpenAIInstrumentor().instrument(tracer_provider=tracing)
with FakeVLLM() as engine, tracing.get_tracer("test").start_as_current_span("run"):
    converse(OpenAI(base_url=engine.base_url, api_key="none"))
save("openllmetry", exporter.get_finished_spans(), "opentelemetry-instrumentation-openai", "openai")
