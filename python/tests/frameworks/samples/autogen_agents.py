"""The older API of AutoGen: an assistant and a user's proxy that runs its tools, and a group."""

from typing import Any

from autogen import AssistantAgent, GroupChat, GroupChatManager, UserProxyAgent
from check import Case

MESSAGE = "one two three"


def config(url: str) -> Any:
    entry = {"model": "m", "base_url": url, "api_key": "k", "price": [0, 0]}
    return {"config_list": [entry], "cache_seed": None}


def proxy(**kwargs: Any) -> UserProxyAgent:
    return UserProxyAgent("user", human_input_mode="NEVER", code_execution_config=False, **kwargs)


def pair(url: str) -> tuple[UserProxyAgent, AssistantAgent]:
    writer = AssistantAgent("writer", llm_config=config(url))
    user = proxy(is_termination_msg=lambda message: not message.get("tool_calls"))

    @user.register_for_execution()
    @writer.register_for_llm(description="Adds one.", name="add")
    def add(x: int) -> int:
        return x + 1

    return user, writer


def chat(url: str) -> None:
    user, writer = pair(url)
    user.initiate_chat(writer, message=MESSAGE)


async def chat_async(url: str) -> None:
    user, writer = pair(url)
    await user.a_initiate_chat(writer, message=MESSAGE)


def group(url: str) -> None:
    agents: Any = [AssistantAgent(name, llm_config=config(url)) for name in ("primary", "critic")]
    members = GroupChat(agents, [], max_round=3, speaker_selection_method="round_robin")
    manager = GroupChatManager(members, llm_config=config(url))
    proxy(max_consecutive_auto_reply=0).initiate_chat(manager, message=MESSAGE)


CASES = {
    "tools": Case(chat, 2, ("writer",), ("workflow", "agent", "tool"), tools=True),
    "tools, async": Case(chat_async, 2, ("writer",), ("workflow", "agent", "tool"), tools=True),
    "group chat": Case(group, 2, ("primary", "critic"), ("workflow", "team", "agent")),
}
