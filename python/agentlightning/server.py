"""The legacy server: hands out tasks over HTTP, as before there was a store. Deprecated.

It is four routes over a store in memory, which has the queue, the deadlines and the counts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import warnings
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError

from agentlightning.store.memory import InMemoryLightningStore
from agentlightning.types import (
    AttemptedRollout,
    GenericResponse,
    NamedResources,
    ResourcesUpdate,
    RolloutConfig,
    RolloutLegacy,
    Task,
    TaskIfAny,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["AgentLightningServer"]

logger = logging.getLogger(__name__)

_MAX_BODY = 256 * 1024 * 1024
_IDLE_SECONDS = 60.0
"""How long a connection stays open that nobody uses."""
_NO_LIMIT = 1_000_000
"""Tasks are handed out again as often as it takes."""
# Resources that were not pinned when a task was made are those that are the latest when it is run; the store
# pins them at once.
_PINNED = "agentlightning.legacy.resources_id"


class AgentLightningServer:
    """Hands out tasks and resources to `AgentLightningClient`s, and takes in their results. Deprecated: use a
    store, `LightningStoreServer`.

    A task that is claimed and not answered within `task_timeout_seconds` is handed out again. Its first
    result counts, whoever brings it. A task tells when it was made, last claimed and last put back, and how
    often.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 8000, task_timeout_seconds: float = 300.0
    ) -> None:
        """Makes a server.

        Args:
            host: The address to listen on.
            port: The port to listen on; 0 takes a free one, which `endpoint` has after `start`.
            task_timeout_seconds: How long a claimed task may take.
        """
        warnings.warn(
            "AgentLightningServer is deprecated. Use LightningStoreServer and Trainer.",
            DeprecationWarning,
            stacklevel=2,
        )
        self.host = host
        self.port = port
        self.task_timeout_seconds = task_timeout_seconds
        self._store = InMemoryLightningStore()
        self._completed: dict[str, RolloutLegacy] = {}
        self._answered: set[str] = set()
        self._lock = threading.Lock()
        self._http: _HttpServer | None = None

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return f"http://{self.host}:{self.port}"

    async def start(self) -> None:
        """Starts the server; it can be reached when this returns.

        Raises:
            RuntimeError: if it is running already, or can't listen.
        """
        if self._http is not None:
            raise RuntimeError(f"the server is running already, at {self.endpoint}")
        try:
            server = _HttpServer((self.host, self.port), self)
        except OSError as error:
            raise RuntimeError(f"the server can't listen on {self.host}:{self.port}: {error}") from error
        self._http = server
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.05,), name="legacy-server", daemon=True).start()
        logger.info("Handing out tasks at %s.", self.endpoint)

    async def stop(self) -> None:
        """Stops the server. Its tasks and results stay."""
        server, self._http = self._http, None
        if server is not None:
            await asyncio.to_thread(server.end)

    async def run_forever(self) -> None:
        """Serves until it is cancelled, then stops."""
        await self.start()
        try:
            await asyncio.Event().wait()
        finally:
            await self.stop()

    # For algorithms

    async def queue_task(
        self,
        sample: Any,
        mode: Literal["train", "val", "test"] | None = None,
        resources_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Puts a task into the queue and returns its rollout's id.

        Args:
            sample: What the agent gets.
            mode: What the task is for.
            resources_id: The resources to run it with; those that are the latest then by default.
            metadata: Goes along with the task.
        """
        kept = dict(metadata or {})
        if resources_id is not None:
            kept[_PINNED] = resources_id
        rollout = await self._store.enqueue_rollout(
            sample,
            mode=mode,
            config=RolloutConfig(
                timeout_seconds=self.task_timeout_seconds,
                max_attempts=_NO_LIMIT,
                retry_condition=["timeout"],
            ),
            metadata=kept,
        )
        return rollout.rollout_id

    async def update_resources(self, resources: NamedResources) -> str:
        """Makes these the latest resources and returns their id."""
        return (await self._store.add_resources(resources)).resources_id

    async def get_completed_rollout(self, rollout_id: str) -> RolloutLegacy | None:
        """Takes out the result of a task; None if there is none yet."""
        with self._lock:
            return self._completed.pop(rollout_id, None)

    async def poll_completed_rollout(
        self, rollout_id: str, timeout: float | None = None
    ) -> RolloutLegacy | None:
        """Waits for the result of a task and takes it out; None when the time (in seconds) is up.

        Returns the moment that there is one. None as `timeout` waits for ever.
        """
        await self._store.wait_for_rollouts(rollout_ids=[rollout_id], timeout=timeout)
        return await self.get_completed_rollout(rollout_id)

    async def retrieve_completed_rollouts(self) -> list[RolloutLegacy]:
        """Takes out all results that there are, in the order in which they came."""
        with self._lock:
            completed, self._completed = self._completed, {}
        return list(completed.values())

    # For clients

    async def _claim(self) -> TaskIfAny:
        claimed = await self._store.dequeue_rollout()
        if claimed is None:
            return TaskIfAny(is_available=False)
        return TaskIfAny(is_available=True, task=await self._task(claimed))

    async def _task(self, claimed: AttemptedRollout) -> Task:
        """A rollout as clients know it."""
        attempt = claimed.attempt
        put_back = None
        if attempt.sequence_id > 1:
            earlier = await self._store.query_attempts(claimed.rollout_id, sort_by="sequence_id")
            put_back = max((one.end_time or 0.0 for one in list(earlier)[:-1]), default=None)
        metadata = dict(claimed.metadata or {})
        return Task(
            rollout_id=claimed.rollout_id,
            input=claimed.input,
            mode=claimed.mode,
            resources_id=metadata.pop(_PINNED, None),
            create_time=claimed.start_time,
            last_claim_time=attempt.start_time,
            num_claims=attempt.sequence_id,
            last_requeue_time=put_back,
            num_requeues=attempt.sequence_id - 1,
            metadata=metadata,
        )

    async def _resources(self, name: str) -> ResourcesUpdate | None:
        if name == "latest":
            return await self._store.get_latest_resources()
        return await self._store.get_resources_by_id(name)

    async def _complete(self, result: RolloutLegacy) -> GenericResponse:
        rollout_id = result.rollout_id
        with self._lock:
            # A result that comes twice, from a client that had no answer or was given up, counts once.
            is_first = rollout_id not in self._answered
            if is_first:
                self._answered.add(rollout_id)
        if is_first:
            rollout = await self._store.get_rollout_by_id(rollout_id)
            if result.task is None and isinstance(rollout, AttemptedRollout):
                # 0.3's runner does not send it along.
                result.task = await self._task(rollout)
            with self._lock:
                self._completed[rollout_id] = result
            if isinstance(rollout, AttemptedRollout) and rollout.attempt.end_time is None:
                await self._store.update_attempt(rollout_id, rollout.attempt.attempt_id, status="succeeded")
            if rollout is not None:
                # The attempt may have been given up meanwhile; its result still counts.
                await self._store.update_rollout(rollout_id, status="succeeded")
        message = f"Rollout {rollout_id} received and stored."
        return GenericResponse(status="ok", message=message if is_first else f"{message} It was already.")

    async def _answer(self, method: str, path: str, body: bytes) -> tuple[HTTPStatus, BaseModel | str]:
        """What a request gets: a status, and a model or what is wrong."""
        known: BaseModel | None
        match method, path.strip("/").split("/"):
            case "GET", ["task"]:
                return HTTPStatus.OK, await self._claim()
            case "GET", ["resources", name]:
                known = await self._resources(name)
                missing = "There are no resources yet." if name == "latest" else f"No resources {name!r}."
            case "POST", ["rollout"]:
                try:
                    result = RolloutLegacy.model_validate_json(body)
                except ValidationError as error:
                    return HTTPStatus.UNPROCESSABLE_ENTITY, str(error)
                return HTTPStatus.OK, await self._complete(result)
            case _:
                known = None
                missing = (
                    f"There is no {method} {path}; there are GET /task, GET /resources/ID, POST /rollout."
                )
        return (HTTPStatus.NOT_FOUND, missing) if known is None else (HTTPStatus.OK, known)


class _HttpServer(ThreadingHTTPServer):
    """One thread for each connection, and an event loop of its own for the store's answers."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], legacy: AgentLightningServer) -> None:
        super().__init__(address, _Handler)
        self._legacy = legacy
        self.ending = False
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="legacy-server-loop", daemon=True).start()

    def answer(self, method: str, path: str, body: bytes) -> tuple[HTTPStatus, BaseModel | str]:
        answer: Coroutine[Any, Any, tuple[HTTPStatus, BaseModel | str]] = self._legacy._answer(
            method, path, body
        )
        return asyncio.run_coroutine_threadsafe(answer, self._loop).result()

    def end(self) -> None:
        """Closes the door, and what is open to it."""
        self.ending = True
        self.shutdown()
        self.server_close()
        self._loop.call_soon_threadsafe(self._loop.stop)


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    # Head and body are two writes, of which the second would wait for an acknowledgement of the first.
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal():
            self._reply(HTTPStatus.LENGTH_REQUIRED, "A body needs a Content-Length.", close=True)
        elif int(length) > _MAX_BODY:
            self._reply(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A body has at most {_MAX_BODY} bytes.", close=True
            )
        elif self.server.ending:
            self._reply(HTTPStatus.SERVICE_UNAVAILABLE, "The server is stopping.", close=True)
        else:
            body = self.rfile.read(int(length))
            try:
                status, content = self.server.answer(self.command, self.path.partition("?")[0], body)
            except Exception:
                logger.exception("Could not answer %s %s.", self.command, self.path)
                status, content = HTTPStatus.INTERNAL_SERVER_ERROR, "The server's log says what happened."
            self._reply(status, content)

    do_GET = do_POST = _serve

    def _reply(self, status: HTTPStatus, content: BaseModel | str, *, close: bool = False) -> None:
        text = json.dumps({"detail": content}) if isinstance(content, str) else content.model_dump_json()
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests go to the log, not to standard error."""
        logger.debug(format, *args)
