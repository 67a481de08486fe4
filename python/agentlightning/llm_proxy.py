"""The gateway to models: agents call through it, and every call is kept as a span with its token ids."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, TypedDict, cast

from agentlightning import _core
from agentlightning._native import as_exception, encode
from agentlightning.former import FormerPart, FormerPartError
from agentlightning.store.client_server import access_host, is_loopback, servable
from agentlightning.types.resources import LLM, ProxyLLM

if TYPE_CHECKING:
    from agentlightning.store.base import LightningStore

__all__ = [
    "AddLogprobs",
    "AddReturnTokenIds",
    "LLMProxy",
    "LightningOpenTelemetry",
    "LightningSpanExporter",
    "MessageInspectionMiddleware",
    "ModelConfig",
    "RolloutAttemptMiddleware",
    "StreamConversionMiddleware",
    "get_active_llm_proxy",
    "initialize_llm_callbacks",
    "set_active_llm_proxy",
]

logger = logging.getLogger("agentlightning.llm_proxy")

_MIDDLEWARES = ("rollout_attempt", "stream_conversion", "message_inspection")
_CALLBACKS = ("return_token_ids", "opentelemetry", "logprobs")
_LAUNCH_MODES = ("asyncio", "thread", "mp")

_active: LLMProxy | None = None


class ModelConfig(TypedDict):
    """One way to a model, in LiteLLM's form."""

    model_name: str
    """What agents ask for; one `*` stands for anything."""
    litellm_params: dict[str, Any]
    """`model` is `hosted_vllm/NAME`, `openai/NAME`, `anthropic/NAME`, …; `api_base` is the server's URL,
    `api_key` its key, or `os.environ/VARIABLE`. With `drop_hosted_tools` set to True, tools that only a
    vendor's own servers have (Codex's `web_search`) are left out of requests that are translated; with
    `restore_tool_calls` set to False, chats go up with the agent's spelling of what tools were called with.
    Anything else is a parameter for requests that have none of the name."""


class RolloutAttemptMiddleware(FormerPart):
    """`rollout_attempt`: the gateway reads by itself, from a call's path, which attempt it belongs to."""

    instead: ClassVar[str] = "the gateway reads the rollout and attempt from a call's path by itself"


class StreamConversionMiddleware(FormerPart):
    """`stream_conversion`: the gateway passes streams on as they are, token ids included."""

    instead: ClassVar[str] = "streams pass through the gateway as they are, and are recorded with token ids"


class MessageInspectionMiddleware(FormerPart):
    """`message_inspection`: each call is a span `litellm_request`, which has the messages."""

    instead: ClassVar[str] = (
        "each call is a span litellm_request with its messages, which query_spans of the store gives you"
    )


class AddReturnTokenIds(FormerPart):
    """`return_token_ids`: the gateway asks for token ids by itself, of servers that have them."""

    instead: ClassVar[str] = (
        'the gateway asks for token ids by itself; name it, LLMProxy(callbacks=["return_token_ids"])'
    )


class AddLogprobs(FormerPart):
    """`logprobs`: the gateway asks every server for log-probs."""

    instead: ClassVar[str] = 'the gateway asks for them by itself; name it, LLMProxy(callbacks=["logprobs"])'


class LightningOpenTelemetry(FormerPart):
    """`opentelemetry`: the gateway records calls by itself."""

    instead: ClassVar[str] = "the gateway records each call as a span of its store by itself"


class LightningSpanExporter(FormerPart):
    """What sent LiteLLM's spans to the store: the gateway writes there by itself."""

    instead: ClassVar[str] = (
        "the gateway writes its spans to its store by itself; to export spans of your own to a store, use "
        "agentlightning.utils.otlp.LightningStoreOTLPExporter"
    )


_ALIASES: dict[type, str] = {
    RolloutAttemptMiddleware: "rollout_attempt",
    StreamConversionMiddleware: "stream_conversion",
    MessageInspectionMiddleware: "message_inspection",
    AddReturnTokenIds: "return_token_ids",
    AddLogprobs: "logprobs",
    LightningOpenTelemetry: "opentelemetry",
}


class ServerLauncher:
    """Where a gateway is."""

    def __init__(self, host: str, port: int, advertised: str | None) -> None:
        self._host = host
        self._port = port
        self._access_host = advertised or access_host(host)

    @property
    def endpoint(self) -> str:
        """What it listens on."""
        return _url(self._host, self._port)

    @property
    def access_endpoint(self) -> str:
        """Where others reach it."""
        return _url(self._access_host, self._port)

    @property
    def health_url(self) -> str:
        """What answers 200 while it runs."""
        return f"{self.access_endpoint}/health"


class LLMProxy:
    """Passes calls of models on, byte for byte, streams included, and keeps each as a span in the store.

    It takes what 0.3's takes and runs in threads of this process, in Rust; there is no LiteLLM, several may
    run in one process, and `launch_mode` and `num_workers` have no effect. `store` is any of this package's
    own (also as `LightningStoreServer`); a class of your own cannot be called from there.

    Agents are told where to call by `as_resource()`: the base URL alone says whose call it is, in any
    language. Where a `key` is asked for, they are given a token for their attempt. Token ids and log-probs
    are asked for where the server returns them (`hosted_vllm/…`, or when its `/models` says that it is vLLM
    or ours), unless `callbacks` is given without `return_token_ids`.
    """

    def __init__(
        self,
        port: int | None = None,
        model_list: Sequence[ModelConfig] | None = None,
        store: LightningStore | None = None,
        host: str | None = None,
        litellm_config: dict[str, Any] | None = None,
        num_retries: int = 0,
        num_workers: int = 1,
        launch_mode: Literal["asyncio", "thread", "mp"] = "mp",
        launcher_args: Any = None,
        middlewares: Sequence[str | type] | None = None,
        callbacks: Sequence[str | type] | None = None,
        *,
        capture: Literal["durable", "async"] = "durable",
        key: str | None = None,
        insecure: bool = False,
    ) -> None:
        """Makes a gateway, which does not run yet.

        Args:
            port: The port; a free one by default.
            model_list: Who answers for which model.
            store: What calls are recorded in; it may be set later.
            host: What to listen on, 127.0.0.1 by default.
            litellm_config: Of this, `litellm_settings.num_retries` counts.
            num_retries: How often a call is tried again, where its model says nothing about it.
            num_workers: Without effect.
            launch_mode: Without effect.
            launcher_args: An object with `port`, `host` and `access_host`, in place of those here.
            middlewares: Names that 0.3 has, or its classes; all of them are built in.
            callbacks: Which of `return_token_ids`, `logprobs` and `opentelemetry` there are, or 0.3's classes
                for them.
            capture: Whether a call is recorded before its last byte leaves, or after.
            key: What calls have to bring along; without one everybody on this machine may call.
            insecure: Whether a gateway without a key may listen where other machines reach it.
        """
        given = port is not None or host is not None or launch_mode != "mp" or num_workers != 1
        if launcher_args is not None and given:
            raise ValueError(
                "port, host, launch_mode, and num_workers cannot be set when launcher_args is provided."
            )
        if launch_mode not in _LAUNCH_MODES:
            raise ValueError(f"launch_mode must be one of {', '.join(_LAUNCH_MODES)}, not {launch_mode!r}")
        if capture not in ("durable", "async"):
            raise ValueError(f"capture must be durable or async, not {capture!r}")
        if launcher_args is not None:
            port, host = getattr(launcher_args, "port", None), getattr(launcher_args, "host", None)
        self._host = host or "127.0.0.1"
        self._port = port or _free_port(self._host)
        self._capture = capture
        self._key = key
        self._insecure = insecure
        self.store = store
        self.model_list: list[ModelConfig] = list(model_list or ())
        self.litellm_config: dict[str, Any] = dict(litellm_config or {})
        settings = dict(self.litellm_config.get("litellm_settings") or {})
        settings.setdefault("num_retries", num_retries)
        self.litellm_config["litellm_settings"] = settings
        self.middlewares = _known(middlewares, _MIDDLEWARES[:2], _MIDDLEWARES, "middlewares")
        self.callbacks = _known(callbacks, _CALLBACKS[:2], _CALLBACKS, "callbacks")
        self.server_launcher_args = launcher_args
        advertised = getattr(launcher_args, "access_host", None)
        self.server_launcher = ServerLauncher(self._host, self._port, advertised)
        self._handle: _core.GatewayHandle | None = None
        self._owner_pid = os.getpid()

    def get_store(self) -> LightningStore | None:
        """What calls are recorded in."""
        return self.store

    def set_store(self, store: LightningStore) -> None:
        """Says what calls are recorded in, from the next start on."""
        self.store = store

    def update_model_list(self, model_list: Sequence[ModelConfig]) -> None:
        """Says who answers for which model, at once. Calls under way keep the former list."""
        self.model_list = list(model_list)
        if self._handle is not None:
            try:
                self._handle.set_models(self._setup())
            except _core.CoreError as error:
                raise as_exception(*error.args) from None

    def is_running(self) -> bool:
        """Whether calls are taken."""
        return self._handle is not None

    def initialize(self) -> None:
        """Makes this the active gateway of the process. `ValueError` without a store."""
        if self.store is None:
            raise ValueError("Store is not set. Please set the store before initializing the LLMProxy.")
        set_active_llm_proxy(self)

    async def start(self) -> None:
        """Starts it; it can be reached when this returns.

        Raises:
            ValueError: without a store, for a model list that makes no sense, or where other machines would
                reach a gateway without a key.
            TypeError: for a store that is none of this package's own.
            RuntimeError: if the port is taken, or it runs already.
        """
        if self.store is None:
            raise ValueError("Store is not set. Please set the store before starting the LLMProxy.")
        if self._handle is not None:
            raise RuntimeError(f"the gateway is running already, at {self.server_launcher.access_endpoint}")
        if self._key is None and not self._insecure and not is_loopback(self._host):
            raise ValueError(
                f"{self._host} can be reached from other machines: have them send a key, LLMProxy(key=…), or "
                "let everybody in with insecure=True"
            )
        core = servable(self.store)._core()
        begin = time.monotonic()
        try:
            self._handle = await asyncio.to_thread(
                _core.serve_gateway, core, self._host, self._port, self._setup(), self._key
            )
        except _core.CoreError as error:
            raise as_exception(*error.args) from None
        except OSError as error:
            elapsed = time.monotonic() - begin
            raise RuntimeError(f"Server did not start up within {elapsed:.2f} seconds: {error}") from error
        self._owner_pid = os.getpid()
        self.initialize()
        logger.info("The gateway runs at %s.", self.server_launcher.access_endpoint)

    async def stop(self) -> None:
        """Stops it when the calls under way are done and recorded."""
        handle, self._handle = self._handle, None
        if handle is None:
            logger.warning("The gateway is not running; there is nothing to stop.")
            return
        await asyncio.to_thread(handle.stop)

    async def restart(self, *, _port: int | None = None) -> None:
        """Stops it if it runs, and starts it with the store and models of now."""
        if self.is_running():
            await self.stop()
        if _port is not None:
            self._port = _port
            advertised = getattr(self.server_launcher_args, "access_host", None)
            self.server_launcher = ServerLauncher(self._host, _port, advertised)
        await self.start()

    async def pause(
        self, *, drain: float = 0.0, retry_after: int = 5, reason: str | None = None
    ) -> dict[str, Any]:
        """Holds new calls back and waits up to `drain` seconds for those under way.

        Returns how things stand then: `paused`, `inflight`, `parked` and `waiting_for`, the calls left.
        """
        state = await asyncio.to_thread(self._running().pause, retry_after, reason, drain)
        return _parsed(state)

    def resume(self) -> None:
        """Lets calls through again, those first that came first."""
        self._running().resume()

    def state(self) -> dict[str, Any]:
        """How things stand between pause and resume."""
        return _parsed(self._running().state())

    def as_resource(
        self,
        rollout_id: str | None = None,
        attempt_id: str | None = None,
        model: str | None = None,
        sampling_parameters: Mapping[str, Any] | None = None,
    ) -> LLM:
        """What agents are to call.

        With both ids, the calls of one attempt; without, a `ProxyLLM` that makes such a one for each attempt.

        Raises:
            ValueError: for one id without the other, or without `model` where the list has not exactly one.
        """
        if model is None:
            names = {entry["model_name"] for entry in self.model_list}
            if not names:
                raise ValueError("there is no model on the list: give model, or a model list")
            if len(names) > 1:
                raise ValueError(f"there are several models, {', '.join(sorted(names))}: give model")
            model = names.pop()
        endpoint = self.server_launcher.access_endpoint
        parameters = dict(sampling_parameters or {})
        proxy = ProxyLLM(endpoint=endpoint, model=model, sampling_parameters=parameters)
        if self._key is not None:
            proxy = proxy.model_copy(update={ProxyLLM.KEY: self._key})
        if rollout_id is None and attempt_id is None:
            return proxy
        if rollout_id is None or attempt_id is None:
            raise ValueError("rollout_id and attempt_id go together: give both or neither")
        return proxy.for_attempt(rollout_id, attempt_id)

    def _running(self) -> _core.GatewayHandle:
        if self._handle is None:
            raise RuntimeError("the gateway is not running: start it first")
        return self._handle

    def _setup(self) -> bytes:
        return encode(
            {
                "model_list": self.model_list,
                "num_retries": self.litellm_config["litellm_settings"]["num_retries"],
                "return_token_ids": None if "return_token_ids" in self.callbacks else False,
                "logprobs": True if "logprobs" in self.callbacks else None,
                "is_async": self._capture == "async",
            }
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy elsewhere does not run.
        return {**self.__dict__, "_handle": None}

    def __repr__(self) -> str:
        return f"LLMProxy({self.server_launcher.access_endpoint!r}, running={self.is_running()})"


def get_active_llm_proxy() -> LLMProxy:
    """The gateway that was started last in this process. `ValueError` if there has been none."""
    if _active is None:
        raise ValueError("Active LLMProxy is not set. Please start one first.")
    return _active


def set_active_llm_proxy(proxy: LLMProxy) -> None:
    """Says which gateway `get_active_llm_proxy` returns."""
    global _active
    _active = proxy


def initialize_llm_callbacks(callback_classes: Sequence[type]) -> NoReturn:
    """Refuses, by a `FormerPartError`: there are no callbacks of LiteLLM to set up."""
    raise FormerPartError("initialize_llm_callbacks", "name callbacks instead, LLMProxy(callbacks=[…])")


def _known(
    given: Sequence[str | type] | None, default: Sequence[str], names: Sequence[str], what: str
) -> list[str]:
    known: list[str] = []
    for one in given if given is not None else default:
        name = one if isinstance(one, str) else _ALIASES.get(one)
        if name is None:
            raise TypeError(
                f"{what} cannot be classes of your own, for the gateway never calls into Python: "
                f"use {', '.join(names)}"
            )
        if name not in names:
            raise ValueError(f"{name!r} is not among the {what}: use {', '.join(names)}")
        known.append(name)
    return known


def _parsed(state: bytes) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(state))


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
