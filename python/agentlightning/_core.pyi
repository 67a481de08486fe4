"""The Rust side: stores, the server, the readers of traces and the command, mostly as bytes of JSON."""

import os
from collections.abc import Iterable
from typing import Any, TypeAlias, final

from agentlightning.types import Span

__all__ = [
    "Column",
    "CompletionQueue",
    "CoreError",
    "GatewayHandle",
    "ServerHandle",
    "Store",
    "Subscription",
    "Task",
    "advantages",
    "agent_of_span",
    "atif",
    "attempt_token",
    "auto_triplets",
    "batches",
    "call_as_chat",
    "calls_of_tree",
    "chat_attributes",
    "cli_main",
    "conversations",
    "find_final_reward",
    "get_reward_value",
    "get_rewards_from_span",
    "otlp_refusal",
    "otlp_rejected",
    "otlp_request",
    "pack",
    "preference_pairs",
    "python_value",
    "read_calls",
    "repaired_children",
    "serve_gateway",
    "serve_store",
    "store_arrays",
    "tool_call_attributes",
    "trace_arrays",
    "trace_to_messages",
    "training_data",
    "tree_of_spans",
    "triplet_of_span",
    "triplets_of_spans",
]

_Failure: TypeAlias = tuple[str, str, str | None]
_Node: TypeAlias = tuple[int | None, tuple[str, str, float | None, float | None] | None, list[int]]

class CoreError(Exception):
    """A call failed; its arguments are kind, message and field."""

@final
class Column:
    """A column of numbers, for `numpy.asarray`."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Where the numbers are, and of which kind."""

@final
class CompletionQueue:
    """Finished calls, and a descriptor that is readable while there are any."""

    def __new__(cls) -> CompletionQueue: ...
    def fileno(self) -> int:
        """The descriptor to watch."""

    def drain(self) -> list[tuple[int, bytes | _Failure]]:
        """Takes the finished calls out: ticket, and JSON or the failure's kind, message and field."""

@final
class Task:
    """A call that is under way."""

    def cancel(self) -> None:
        """Ends the call, if it is not done yet."""

@final
class Store:
    """A store in this process, or a client of one elsewhere."""

    @staticmethod
    def memory() -> Store:
        """A store in this process's memory."""

    @staticmethod
    def sqlite(path: str | os.PathLike[str], sync: str) -> Store:
        """A store in a file; `sync` is `normal` or `full`."""

    @staticmethod
    def client(
        address: str,
        max_outage: float,
        connect_timeout: float,
        request_timeout: float,
        server_error_tries: int,
        key: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> Store:
        """A store that is served at `address`. Times are in seconds. A key or file of authorities that is not
        given is taken from the environment."""

    def close(self) -> None:
        """Finishes what was begun and closes the file, where there is one; later calls fail."""

    def capabilities(self) -> bytes:
        """What the store can do, as JSON."""

    def otlp_traces_endpoint(self) -> str:
        """The URL that OTLP traces go to."""

    def submit(self, method: str, payload: bytes, queue: CompletionQueue, ticket: int) -> bytes | Task:
        """Starts a call: its answer if it is there at once, else a task whose outcome the queue will have."""

    def subscribe(self, payload: bytes) -> Subscription:
        """Follows the store's events; `payload` is an `EventQuery`."""

    def call(self, method: str, payload: bytes) -> bytes:
        """Makes a call and waits for its answer, JSON. Ctrl+C ends the wait."""

@final
class Subscription:
    """The events of a store, one after the other."""

    def next(self, queue: CompletionQueue, ticket: int) -> Task:
        """Starts to wait for the next event, JSON, which the queue will have; null when there are no more."""

@final
class ServerHandle:
    """A server that runs in the background until it is stopped or this handle is dropped."""

    @property
    def port(self) -> int:
        """The port that it listens on."""

    @property
    def url(self) -> str:
        """Where this machine reaches it, without a trailing slash."""

    def stop(self) -> None:
        """Stops it and waits until requests in flight are done. Does nothing the second time."""

def cli_main(args: list[str]) -> int:
    """Does what a command line says, the program's name first, and returns the exit code."""

@final
class GatewayHandle:
    """A gateway that runs in the background until it is stopped or this handle is dropped."""

    @property
    def port(self) -> int:
        """The port that it listens on."""

    @property
    def url(self) -> str:
        """Where this machine reaches it, without a trailing slash."""

    def set_models(self, setup: bytes) -> None:
        """Puts another list of models in place, JSON as in `serve_gateway`; calls under way keep theirs."""

    def pause(self, retry_after: int, reason: str | None, drain: float) -> bytes:
        """Holds new calls back, waits up to `drain` seconds for those under way, and returns the state."""

    def resume(self) -> None:
        """Lets calls through again."""

    def state(self) -> bytes:
        """Where it stands between pause and resume, JSON."""

    def stop(self) -> None:
        """Stops it and waits until calls under way are done and recorded. Does nothing the second time, or
        after a fork."""

def attempt_token(key: str, rollout_id: str, attempt_id: str) -> str:
    """What an agent gets in place of a gateway's key: a token that is good for one attempt, and sets no
    reward."""

def serve_gateway(store: Store, host: str, port: int, setup: bytes, key: str | None = None) -> GatewayHandle:
    """Serves a gateway that records in `store`; port 0 takes a free one. `setup` is JSON: `model_list` in
    LiteLLM's form, `num_retries`, `return_token_ids`, `logprobs`, `is_async`. `OSError` when the port cannot
    be had."""

def serve_store(
    store: Store, host: str, port: int, cors_origins: list[str], key: str | None = None
) -> ServerHandle:
    """Serves a store over HTTP, to those who have the key if there is one; port 0 takes a free one. `OSError`
    when the port cannot be had."""

def triplets_of_spans(spans: list[Span], options: bytes) -> list[dict[str, Any]]:
    """The triplets of a trace; lists of token ids are those of the spans themselves."""

def triplet_of_span(span: Span, agent: str) -> dict[str, Any]:
    """The triplet of one call, without a reward."""

def tree_of_spans(spans: Iterable[Span]) -> tuple[int, list[_Node]]:
    """The tree of a trace as its root and its nodes."""

def repaired_children(spans: Iterable[Span], parents: list[int | None]) -> list[list[int]]:
    """The children of each node of a tree of this shape, once it is repaired."""

def calls_of_tree(
    spans: Iterable[Span], parents: list[int | None], options: bytes
) -> list[tuple[int, str, float | None]]:
    """Place, agent and reward of every call that counts in a tree of this shape."""

def agent_of_span(span: Span) -> str | None:
    """The name of the agent that a span stands for."""

def auto_triplets(spans: bytes, options: bytes) -> bytes:
    """Triplets of any trace, and how they were found."""

def call_as_chat(span: bytes) -> bytes:
    """The call that one span records, as request and response of OpenAI's chat API."""

def read_calls(spans: bytes) -> bytes:
    """Every call of a trace, whoever recorded it."""

def trace_to_messages(spans: bytes) -> bytes:
    """The messages and tools of every call of a trace."""

def training_data(traces: bytes, options: bytes) -> bytes:
    """Rows and a report of attempts."""

def conversations(traces: bytes, options: bytes) -> bytes:
    """Conversations of attempts, to fine-tune on."""

def preference_pairs(traces: bytes, options: bytes, margin: float) -> bytes:
    """Pairs of conversations, of which the first earned more."""

def atif(traces: bytes, options: bytes) -> bytes:
    """Attempts in the Agent Trajectory Interchange Format."""

def advantages(estimator: str, groups: list[str], rewards: list[float | None]) -> list[float | None]:
    """The advantage of each rollout."""

def python_value(text: str) -> bytes:
    """What a text says that is a Python literal or JSON, as JSON."""

def store_arrays(store: Store, request: bytes) -> tuple[dict[str, Column | list[Any]], bytes]:
    """Training data of a store's rollouts as flat arrays."""

def trace_arrays(traces: bytes, options: bytes) -> tuple[dict[str, Column | list[Any]], bytes]:
    """Training data of attempts as flat arrays."""

def batches(groups: list[str], size: int) -> list[tuple[int, int]]:
    """Rows cut into batches without parting groups: first and last row of each, exclusive."""

def pack(
    lengths: list[int], batches: list[tuple[int, int]], capacity: int
) -> list[tuple[list[int], list[int]]]:
    """Rows packed into buffers."""

def find_final_reward(spans: bytes) -> bytes:
    """The primary value of the last reward of a list of spans; null without one."""

def get_rewards_from_span(span: bytes) -> bytes:
    """The dimensions of the reward that a span holds, the primary one first; an empty list without one."""

def get_reward_value(span: bytes) -> bytes:
    """The primary value of the reward that a span holds; null without one."""

def otlp_request(spans: bytes) -> bytes:
    """An export request in protobuf with these spans, JSON, in places that are the store's to give."""

def otlp_rejected(answer: bytes) -> tuple[int, str]:
    """How many spans the answer to an export request says that were not kept, and why."""

def otlp_refusal(answer: bytes) -> str:
    """Why an export request was refused, by its answer; empty where that says nothing."""

def chat_attributes(request: bytes, response: bytes) -> bytes:
    """The attributes of an OpenAI chat call's span, from its request and response."""

def tool_call_attributes(response: bytes) -> bytes:
    """Pairs of name and attributes, one for each tool call in an OpenAI chat response."""
