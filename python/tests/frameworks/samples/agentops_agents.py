"""AgentOps: an agent with its decorators, and AgentOps recording the OpenAI SDK, too."""

from typing import Any

import agentops
import openai
from agentops.sdk.decorators import agent, operation, tool
from check import Case

_is_set_up = False


def set_up() -> None:
    """As a script of AgentOps' users does, with nobody at the other end."""
    global _is_set_up
    if not _is_set_up:
        _is_set_up = True
        nowhere = "http://127.0.0.1:9"
        agentops.init(auto_start_session=False, endpoint=nowhere, exporter_endpoint=f"{nowhere}/v1/traces")


@agent(name="writer")
class Writer:
    def __init__(self, url: str) -> None:
        self.client = openai.OpenAI(base_url=url)

    @tool(name="add")
    def add(self, x: int) -> int:
        return x + 1

    @operation(name="write")
    def write(self) -> None:
        messages: Any = [{"role": "user", "content": f"one two {self.add(2)}"}]
        self.client.chat.completions.create(model="m", messages=messages)
        for _ in self.client.chat.completions.create(model="m", messages=messages, stream=True):
            pass


def decorated(url: str) -> None:
    set_up()
    trace = agentops.start_trace("mine")
    Writer(url).write()
    agentops.end_trace(trace, "Success")


CASES = {"decorators": Case(decorated, 2, ("writer",), ("agent", "tool"))}
