"""A store served to other processes, and the client that they use."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, Literal

from agentlightning import _core
from agentlightning._native import as_exception

from .base import INTERFACE, LightningStore, LightningStoreCapabilities
from .delegate import DelegatingStore
from .native import NativeStore
from .threaded import LightningStoreThreaded

__all__ = ["LightningStoreClient", "LightningStoreServer"]

logger = logging.getLogger("agentlightning.store.server")

_DEFAULT_HOST = "127.0.0.1"
_DEFAULT_PORT = 4747
_RETRY_DELAYS = (1.0, 2.0, 5.0)
_MAX_OUTAGE = 60.0
_WAY_OUT = (
    ", or train in one process, where nothing is served: "
    'Trainer(strategy={"type": "shm", "main_thread": "algorithm"})'
)
_LAUNCH_MODES = ("asyncio", "thread", "mp")


class LightningStoreClient(NativeStore):
    """A store that a server keeps. It pickles, and it works in a forked child.

    While the server cannot be reached or does not answer, a call is tried again, ever more slowly, for
    `max_outage` seconds: by default for a minute, or, with `retry_delays` of your own, for as long as these
    last together. A call that the server answers with an error of its own (HTTP 500) is tried once more than
    there are `retry_delays`. An empty `retry_delays` means a single try. `health_retry_delays` has no
    effect.

    `key` is what the server asks for, by default the variable `AGL_KEY`; if it does not take it, calls raise
    `StoreUnauthorizedError`. An `https://` address is trusted if one of the system's authorities vouches for
    it, or one in the PEM file `ca_file`, by default the variable `AGL_CA_FILE`.

    Other than 0.3's, it tells an outage from an empty answer: where that returned None or an empty list after
    the last attempt (`dequeue_rollout`, `get_rollout_by_id`, `get_latest_attempt`, `get_resources_by_id`,
    `get_latest_resources`), this raises `StoreUnavailableError`. `wait_for_rollouts` takes any timeout.
    """

    def __init__(
        self,
        server_address: str,
        *,
        retry_delays: Sequence[float] = _RETRY_DELAYS,
        health_retry_delays: Sequence[float] = (0.1, 0.2, 0.5),
        request_timeout: float = 30.0,
        connection_timeout: float = 5.0,
        max_outage: float | None = None,
        key: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.server_address_root = server_address.rstrip("/")
        self.server_address = f"{self.server_address_root}/v1/agl"
        if max_outage is None:
            max_outage = _MAX_OUTAGE if tuple(retry_delays) == _RETRY_DELAYS else float(sum(retry_delays))
        self._options = (max_outage, connection_timeout, request_timeout, 1 + len(retry_delays), key, ca_file)
        self._native: tuple[int, _core.Store] | None = None

    def _core(self) -> _core.Store:
        # Connections belong to the process that made them.
        pid = os.getpid()
        if self._native is None or self._native[0] != pid:
            try:
                store = _core.Store.client(self.server_address_root, *self._options)
            except _core.CoreError as error:
                raise as_exception(*error.args) from None
            self._native = (pid, store)
        return self._native[1]

    async def close(self) -> None:
        """Closes the connections. The client may be used again afterwards."""
        self._native = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_native": None}

    def __repr__(self) -> str:
        return f"LightningStoreClient({self.server_address_root!r})"


class LightningStoreServer(DelegatingStore):
    """Serves a store to other processes over HTTP.

    It is a store itself: in the process that made it, calls go straight to `store`; in any other, be it
    forked or given a pickled copy, they go through the server. So it can be handed to workers as it is.

    It runs in background threads of this process, whatever `launch_mode` says; `n_workers` and `tracker`
    have no effect. Without a `host` only this machine can reach it (0.3 listened on all interfaces): say
    `0.0.0.0` to be reached from others. Port 0 takes a free one, which `endpoint` has after `start`. Clients
    have to send the `key`, by default the variable `AGL_KEY`, if there is one.

    Only the stores of this package can be served, for the server never calls into Python.
    """

    def __init__(
        self,
        store: LightningStore,
        host: str | None = None,
        port: int | None = None,
        cors_allow_origins: str | Sequence[str] | None = None,
        launch_mode: Literal["asyncio", "thread", "mp"] = "thread",
        launcher_args: Any = None,
        n_workers: int = 1,
        tracker: Any = None,
        *,
        key: str | None = None,
    ) -> None:
        if launch_mode not in _LAUNCH_MODES:
            raise ValueError(f"launch_mode must be one of {', '.join(_LAUNCH_MODES)}, not {launch_mode!r}")
        if launcher_args is not None:
            if host is not None or port is not None or launch_mode != "thread":
                raise ValueError("launcher_args stand for host, port and launch_mode: give one or the other")
            host, port, launch_mode = launcher_args.host, launcher_args.port, launcher_args.launch_mode
        if launch_mode == "mp" and not store.capabilities.get("zero_copy"):
            raise ValueError("The store does not support zero-copy. Use the launch mode 'thread'.")
        if port is None:
            logger.warning("No port is given: using %d.", _DEFAULT_PORT)
            port = _DEFAULT_PORT
        self.store: LightningStore | None = store
        self.launcher_args = launcher_args
        self._servable = servable(store)
        self._host = host or _DEFAULT_HOST
        self._port = port
        if isinstance(cors_allow_origins, str):
            cors_allow_origins = [cors_allow_origins]
        self._cors_origins = list(cors_allow_origins or ())
        self._key = key if key is not None else os.environ.get("AGL_KEY") or None
        self._access_host = getattr(launcher_args, "access_host", None) or access_host(self._host)
        self._owner_pid = os.getpid()
        self._handle: _core.ServerHandle | None = None
        self._client: LightningStoreClient | None = None

    @property
    def endpoint(self) -> str:
        """Where the server is, without a trailing slash."""
        if self._port == 0:
            raise RuntimeError("the server has no port yet: start it first")
        host = f"[{self._access_host}]" if ":" in self._access_host else self._access_host
        return f"http://{host}:{self._port}"

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """What a served store can do: everything."""
        return LightningStoreCapabilities(thread_safe=True, async_safe=True, zero_copy=True, otlp_traces=True)

    def otlp_traces_endpoint(self) -> str:
        """The URL that OTLP traces go to."""
        return f"{self.endpoint}/v1/traces"

    def _target(self) -> LightningStore:
        if self.store is not None and os.getpid() == self._owner_pid:
            return self.store
        if self._client is None:
            self._client = LightningStoreClient(self.endpoint, key=self._key)
        return self._client

    async def start(self) -> None:
        """Starts the server; it can be reached when this returns. `RuntimeError` if the port is taken."""
        self._require_owner()
        if self._handle is not None:
            raise RuntimeError(f"the server is running already, at {self.endpoint}")
        if self._key is None and not is_loopback(self._host):
            logger.warning(
                "Others can reach %s, and nobody is asked for a key: set key or AGL_KEY.",
                self._host,
            )
        begin = time.monotonic()
        try:
            handle = _core.serve_store(
                self._servable._core(), self._host, self._port, self._cors_origins, self._key
            )
        except _core.CoreError as error:
            raise as_exception(*error.args) from None
        except OSError as error:
            logger.error("%s", error)
            elapsed = time.monotonic() - begin
            raise RuntimeError(f"Server did not start up within {elapsed:.2f} seconds: {error}") from error
        self._handle = handle
        self._port = handle.port
        logger.info("Serving the store at %s.", self.endpoint)

    async def stop(self) -> None:
        """Stops the server when the requests in flight are done."""
        self._require_owner()
        handle, self._handle = self._handle, None
        if handle is not None:
            await asyncio.to_thread(handle.stop)

    async def run_forever(self) -> None:
        """Serves until it is cancelled, then stops."""
        await self.start()
        try:
            await asyncio.Event().wait()
        finally:
            await self.stop()

    def _require_owner(self) -> None:
        if self.store is None or os.getpid() != self._owner_pid:
            raise RuntimeError(
                f"only the process that made the server, {self._owner_pid}, can start and stop it"
            )

    def __getstate__(self) -> dict[str, Any]:
        # Raises unless the port is known.
        _ = self.endpoint
        return {
            **self.__dict__,
            "store": None,
            "_servable": None,
            "_handle": None,
            "_client": None,
        }

    def __repr__(self) -> str:
        return f"LightningStoreServer({self.store!r}, {self._host!r}, {self._port})"


def servable(store: LightningStore) -> NativeStore:
    """The store of the Rust core that stands behind `store`; `TypeError` if there is none."""
    inner = store
    while isinstance(inner, (LightningStoreThreaded, LightningStoreServer)):
        inner = inner.store if isinstance(inner, LightningStoreThreaded) else inner._target()
    if not isinstance(inner, NativeStore):
        raise TypeError(
            f"{type(inner).__name__} cannot be served, for the server never calls into Python: serve "
            f"InMemoryLightningStore, SqliteLightningStore or LightningStoreClient{_WAY_OUT}"
        )
    overridden = [name for name in INTERFACE if getattr(type(inner), name) is not getattr(NativeStore, name)]
    if overridden:
        raise TypeError(
            f"{type(inner).__name__} cannot be served: its own {', '.join(overridden)} would not be called"
            f"{_WAY_OUT}"
        )
    return inner


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def access_host(host: str) -> str:
    """Under which name others reach what listens on `host`."""
    if host not in ("0.0.0.0", "::"):
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing; it only asks which address would be used.
            probe.connect(("8.8.8.8", 80))
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address
