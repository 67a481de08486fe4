"""LangChain: chat models, chains, `create_agent`, and the older `initialize_agent` of langchain-classic."""

from typing import Any

from check import Case
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def add(x: int) -> int:
    """Adds one."""
    return int(x) + 1


class Library(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [Document("two three")]


def model(url: str, **kwargs: Any) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=url, **kwargs)


QUESTION: Any = {"messages": [{"role": "user", "content": "one two three"}]}


def chain(url: str) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "say {what}"), ("user", "{question}")])
    made = prompt | model(url) | StrOutputParser()
    made.invoke({"what": "it", "question": "one two three"})
    for _ in made.stream({"what": "it", "question": "one two three"}):
        pass


async def chain_async(url: str) -> None:
    made = ChatPromptTemplate.from_template("{question}") | model(url) | StrOutputParser()
    await made.ainvoke({"question": "one two three"})
    async for _ in made.astream({"question": "one two three"}):
        pass


def retrieval(url: str) -> None:
    found = {"context": Library(), "question": lambda question: question}
    made = found | ChatPromptTemplate.from_template("{context} {question}") | model(url)
    made.invoke("one two three")


def agent(url: str) -> None:
    create_agent(model(url), [add]).invoke(QUESTION)


def agent_streamed(url: str) -> None:
    for _ in create_agent(model(url), [add]).stream(QUESTION, stream_mode="messages"):
        pass


async def agent_async(url: str) -> None:
    await create_agent(model(url), [add]).ainvoke(QUESTION)


def agent_by_responses(url: str) -> None:
    create_agent(model(url, use_responses_api=True), [add]).invoke(QUESTION)


def initialize(url: str) -> None:
    from langchain_classic.agents import AgentType, initialize_agent

    made = initialize_agent([add], model(url), agent=AgentType.ZERO_SHOT_REACT_DESCRIPTION)
    made.invoke({"input": "one two three"})


CASES = {
    "chain": Case(chain, 2, ("RunnableSequence",), ("chain",)),
    "chain, async": Case(chain_async, 2, ("RunnableSequence",), ("chain",)),
    "retrieval": Case(retrieval, 1, ("RunnableSequence",), ("chain", "retriever")),
    "create_agent": Case(agent, 2, ("model",), ("chain", "tool"), tools=True),
    "create_agent, streamed": Case(agent_streamed, 2, ("model",), ("chain", "tool"), tools=True),
    "create_agent, async": Case(agent_async, 2, ("model",), ("chain", "tool"), tools=True),
    "create_agent, responses": Case(agent_by_responses, 2, ("model",), ("chain", "tool"), tools=True),
    "initialize_agent": Case(initialize, 2, ("LLMChain",), ("chain", "tool")),
}
