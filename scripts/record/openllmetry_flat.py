"""Traceloop's OpenLLMetry before it took OpenTelemetry's conventions over."""

# needs: opentelemetry-instrumentation-openai==0.40.14
# needs: openai<2
# needs: opentelemetry-sdk
# needs: setuptools<81

from common import FakeVLLM, converse, provider, save
from openai import OpenAI
from opentelemetry.instrumentation.openai import OpenAIInstrumentor

tracing, exporter = provider()
OpenAIInstrumentor().instrument(tracer_provider=tracing)
with FakeVLLM() as engine, tracing.get_tracer("test").start_as_current_span("run"):
    converse(OpenAI(base_url=engine.base_url, api_key="none"))
save("openllmetry_flat", exporter.get_finished_spans(), "opentelemetry-instrumentation-openai", "openai")
