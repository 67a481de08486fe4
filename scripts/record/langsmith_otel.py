"""LangSmith's export over OpenTelemetry, of LangChain."""

# needs: langsmith[otel]
# needs: langchain-openai
# needs: opentelemetry-sdk

import os

os.environ |= {
    "LANGSMITH_OTEL_ENABLED": "true",
    "LANGSMITH_OTEL_ONLY": "true",
    "LANGSMITH_TRACING": "true",
    "LANGSMITH_API_KEY": "none",
    "LANGSMITH_ENDPOINT": "http://127.0.0.1:9",
}

from common import ASK, EXTRA, TOOLS, FakeVLLM, asked_for_tools, provider, save

tracing, exporter = provider()

from langchain_core.tracers.langchain import wait_for_all_tracers
from langchain_openai import ChatOpenAI
from langsmith import traceable


@traceable(name="run")
def run(base_url: str) -> None:
    """Holds the conversation."""
    model = ChatOpenAI(
        model="fake", base_url=base_url, api_key="none", temperature=0.5, extra_body=EXTRA, logprobs=True
    )
    model.invoke(ASK)
    model.bind_tools(TOOLS).invoke([{"role": "user", "content": "add one"}])
    model.bind_tools(TOOLS).invoke(asked_for_tools("call-1"))


with FakeVLLM() as engine:
    run(engine.base_url)
    wait_for_all_tracers()
    from langsmith.run_trees import get_cached_client

    get_cached_client().flush()
save("langsmith", exporter.get_finished_spans(), "langsmith", "langchain-openai")
