"""LangGraph: a graph of one's own, with nodes that call a model, a sub-graph and a tool."""

from typing import Annotated, Any, TypedDict

from check import Case
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


@tool
def add(x: int) -> int:
    """Adds one."""
    return x + 1


def graph(url: str) -> Any:
    model = ChatOpenAI(model="m", base_url=url)

    def ask(state: State) -> Any:
        return {"messages": [model.bind_tools([add]).invoke([HumanMessage("one two three")])]}

    def answer(state: State) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    inner = StateGraph(State)
    inner.add_node("answer", answer)
    inner.add_edge(START, "answer")
    inner.add_edge("answer", END)
    made = StateGraph(State)
    made.add_node("ask", ask)
    made.add_node("tools", ToolNode([add]))
    made.add_node("inner", inner.compile())
    made.add_edge(START, "ask")
    made.add_edge("ask", "tools")
    made.add_edge("tools", "inner")
    return made.compile()


def parallel(url: str) -> Any:
    model = ChatOpenAI(model="m", base_url=url)

    def node(name: str) -> Any:
        async def run(state: State) -> Any:
            return {"messages": [await model.ainvoke([HumanMessage(name)])]}

        return run

    made = StateGraph(State)
    for name in ("left", "right"):
        made.add_node(name, node(name))
        made.add_edge(START, name)
    return made.compile()


def invoke(url: str) -> None:
    graph(url).invoke({"messages": []})


async def stream(url: str) -> None:
    async for _ in graph(url).astream({"messages": []}):
        pass


async def branches(url: str) -> None:
    await parallel(url).ainvoke({"messages": []})


CASES = {
    "graph": Case(invoke, 2, ("ask", "answer"), ("chain", "tool"), tools=True),
    "graph, streamed": Case(stream, 2, ("ask", "answer"), ("chain", "tool"), tools=True),
    "parallel nodes": Case(branches, 2, (), ("chain",)),
}
