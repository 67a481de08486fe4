"""LlamaIndex: an agent with a tool, several agents, a query engine."""

from typing import Any

from check import Case
from llama_index.core import Document, SummaryIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.llms.openai_like import OpenAILike

QUESTION = "one two three"


def add(x: int) -> int:
    """Adds one."""
    return x + 1


def llm(url: str) -> OpenAILike:
    return OpenAILike("m", api_base=url, api_key="k", is_chat_model=True, is_function_calling_model=True)


def writer(url: str, **kwargs: Any) -> FunctionAgent:
    return FunctionAgent(name="writer", description="writes", llm=llm(url), tools=[add], **kwargs)


async def agent(url: str) -> None:
    await writer(url, streaming=False).run(QUESTION)


async def streamed(url: str) -> None:
    handler = writer(url).run(QUESTION)
    async for _ in handler.stream_events():
        pass
    await handler


async def several(url: str) -> None:
    other = FunctionAgent(name="critic", description="judges", llm=llm(url))
    await AgentWorkflow(agents=[writer(url), other], root_agent="writer").run(QUESTION)


def query(url: str) -> None:
    index = SummaryIndex.from_documents([Document(text="two three")])
    index.as_query_engine(llm=llm(url)).query("one two three")


CASES = {
    "FunctionAgent": Case(agent, 2, ("writer",), ("agent", "turn", "tool"), tools=True),
    "FunctionAgent, streamed": Case(streamed, 2, ("writer",), ("agent", "turn", "tool"), tools=True),
    "AgentWorkflow": Case(several, 2, ("writer",), ("team", "turn", "tool"), tools=True),
    "query engine": Case(query, 1, (), ("chain", "retriever")),
}
