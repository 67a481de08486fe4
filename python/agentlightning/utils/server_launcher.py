"""Serving an ASGI application of one's own: in this event loop, in a thread, or in processes.

Needs the package `uvicorn`. The store's server is no such application and does not go through here;
`PythonServerLauncherArgs` may say where it listens, though.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agentlightning.store.client_server import access_host

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

__all__ = ["LaunchMode", "PythonServerLauncher", "PythonServerLauncherArgs"]

logger = logging.getLogger(__name__)

LaunchMode = Literal["asyncio", "thread", "mp"]

_HEALTH_SECONDS = 0.1
_DRAIN_SECONDS = 5


@dataclass
class PythonServerLauncherArgs:
    """Where a server listens, and how it is run."""

    port: int | None = None
    """A free one by default."""
    host: str | None = None
    """The address to listen on; all of this machine's by default."""
    access_host: str | None = None
    """The name under which others reach it; found out by default."""
    launch_mode: LaunchMode = "asyncio"
    n_workers: int = 1
    """How many processes serve, with the mode `mp`."""
    healthcheck_url: str | None = None
    """A path that answers 200 once the server is well; `start` waits for that."""
    log_level: int = logging.INFO
    access_log: bool = False
    startup_timeout: float = 60.0
    """Seconds until the server has to be there, and well."""
    kill_unhealthy_server: bool = True
    """Whether one that is not well in time is stopped."""
    thread_join_timeout: float = 10.0
    process_join_timeout: float = 10.0
    timeout_keep_alive: int = 30
    """Seconds that an idle connection stays open."""


class PythonServerLauncher:
    """Runs an ASGI application as a server.

    With the mode `mp` it runs in fresh processes, which end with this one; application and context have to
    pickle (with cloudpickle), and scripts need no `__main__` guard.
    """

    def __init__(
        self,
        app: Any,
        args: PythonServerLauncherArgs,
        serve_context: AbstractAsyncContextManager[Any] | AbstractContextManager[Any] | None = None,
    ) -> None:
        """Makes a launcher; host and port are settled here.

        Args:
            app: The ASGI application.
            args: Where and how to serve it.
            serve_context: A context that is open while it is served.

        Raises:
            ValueError: for an unknown launch mode, or several workers in another mode than `mp`.
            ImportError: without `uvicorn`.
        """
        if args.launch_mode not in ("asyncio", "thread", "mp"):
            raise ValueError(f"launch_mode must be asyncio, thread or mp, not {args.launch_mode!r}")
        if args.n_workers < 1 or (args.n_workers > 1 and args.launch_mode != "mp"):
            raise ValueError(f"n_workers={args.n_workers} needs launch_mode='mp', and has to be 1 at least")
        _uvicorn()
        self.app = app
        self.args = args
        self.serve_context = serve_context
        self._host = args.host or "0.0.0.0"
        self._port = args.port or _free_port(self._host)
        self._access_host = args.access_host or access_host(self._host)
        self._running: _InLoop | _InThread | _InProcesses | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_running": None}

    @property
    def endpoint(self) -> str:
        """The URL of the address that it listens on."""
        return f"http://{self._host}:{self._port}"

    @property
    def access_endpoint(self) -> str:
        """The URL under which others reach it."""
        return f"http://{self._access_host}:{self._port}"

    @property
    def health_url(self) -> str | None:
        """The URL that answers 200 once the server is well, if there is one."""
        path = self.args.healthcheck_url
        return None if path is None else f"{self.access_endpoint}/{path.lstrip('/')}"

    def is_running(self) -> bool:
        """Whether the server is running."""
        return self._running is not None and self._running.is_alive()

    async def start(self) -> None:
        """Starts the server; it can be reached, and is well, when this returns.

        Raises:
            RuntimeError: if it is running already, or is not there or not well in time.
        """
        if self.is_running():
            raise RuntimeError(f"the server is running already, at {self.endpoint}")
        begin = time.monotonic()
        kinds: dict[str, type[_InLoop | _InThread | _InProcesses]] = {
            "asyncio": _InLoop,
            "thread": _InThread,
            "mp": _InProcesses,
        }
        running = kinds[self.args.launch_mode](self)
        try:
            await asyncio.wait_for(running.start(_listen(self._host, self._port)), self.args.startup_timeout)
        except Exception as error:
            await running.stop()
            waited = time.monotonic() - begin
            raise RuntimeError(f"Server did not start up within {waited:.2f} seconds: {error}") from error
        self._running = running
        await self._until_well(begin)

    async def _until_well(self, begin: float) -> None:
        url = self.health_url
        if url is None:
            return
        while not await asyncio.to_thread(_is_well, url):
            waited = time.monotonic() - begin
            if waited < self.args.startup_timeout and self.is_running():
                await asyncio.sleep(_HEALTH_SECONDS)
                continue
            message = f"Server is not healthy at {url} after {waited:.2f} seconds."
            if not self.args.kill_unhealthy_server:
                logger.error("%s It has been left running.", message)
                return
            await self.stop()
            raise RuntimeError(f"{message} It has been killed.")

    async def stop(self) -> None:
        """Stops the server when the requests in flight are done.

        Raises:
            RuntimeError: if its thread does not end.
        """
        running, self._running = self._running, None
        if running is None:
            logger.warning("The server is not running.")
            return
        await running.stop()

    async def reload(self) -> None:
        """Starts the server anew, on the same port."""
        if self._running is not None:
            await self.stop()
        await self.start()

    async def run_forever(self) -> None:
        """Serves until it is cancelled, or ends by itself; then stops."""
        await self.start()
        try:
            while self.is_running():  # noqa: ASYNC110 - threads and processes can't be awaited
                await asyncio.sleep(_HEALTH_SECONDS)
        finally:
            await self.stop()


class _Serving:
    """An application that is served in an event loop of this process."""

    def __init__(self, app: Any, args: PythonServerLauncherArgs, context: Any) -> None:
        uvicorn = _uvicorn()

        class Server(uvicorn.Server):  # type: ignore[name-defined, misc]
            """One that leaves the process's signals alone."""

            @contextlib.contextmanager
            def capture_signals(self) -> Any:
                yield

        config = uvicorn.Config(
            app,
            log_level=args.log_level,
            access_log=args.access_log,
            timeout_keep_alive=args.timeout_keep_alive,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
            # The log is the user's to set up.
            log_config=None,
        )
        self.server = Server(config)
        self.context = context

    async def run(self, listener: socket.socket, started: asyncio.Event) -> None:
        async with _entered(self.context):
            serving = asyncio.ensure_future(self.server.serve(sockets=[listener]))
            try:
                # uvicorn only has a flag for it.
                while not self.server.started and not serving.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                if self.server.started:
                    started.set()
                # An application whose start fails makes uvicorn end the process.
                await serving
            except SystemExit as error:
                raise RuntimeError(f"the application did not start: {error}") from error
            except asyncio.CancelledError:
                self.server.should_exit = True
                await serving
                raise
        if not started.is_set():
            raise RuntimeError("the application did not start; the log says why")


@contextlib.asynccontextmanager
async def _entered(context: Any) -> AsyncIterator[None]:
    if context is None:
        yield
    elif hasattr(context, "__aenter__"):
        async with context:
            yield
    else:
        with context:
            yield


class _InLoop:
    def __init__(self, launcher: PythonServerLauncher) -> None:
        self._serving = _Serving(launcher.app, launcher.args, launcher.serve_context)
        self._task: asyncio.Task[None] | None = None

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.done()

    async def start(self, listener: socket.socket) -> None:
        started = asyncio.Event()
        self._task = asyncio.create_task(self._serving.run(listener, started))
        waiting = asyncio.ensure_future(started.wait())
        await asyncio.wait([self._task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not started.is_set():
            self._task.result()

    async def stop(self) -> None:
        if self._task is not None:
            self._serving.server.should_exit = True
            await asyncio.wait([self._task])
            if not self._task.cancelled() and self._task.exception() is not None:
                logger.debug("The server has ended with %r.", self._task.exception())


class _InThread:
    def __init__(self, launcher: PythonServerLauncher) -> None:
        self._in_loop = _InLoop(launcher)
        self._timeout = launcher.args.thread_join_timeout
        self._thread: threading.Thread | None = None

    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    async def start(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if started.done():
                return
            if error is None:
                started.set_result(None)
            else:
                started.set_exception(error)

        async def serve() -> None:
            try:
                await self._in_loop.start(listener)
            except BaseException as error:
                loop.call_soon_threadsafe(settle, error)
                return
            loop.call_soon_threadsafe(settle, None)
            task = self._in_loop._task
            assert task is not None
            await asyncio.wait([task])

        self._thread = threading.Thread(
            target=lambda: asyncio.run(serve()), name="server-launcher", daemon=True
        )
        self._thread.start()
        await started

    async def stop(self) -> None:
        if self._thread is None:
            return
        self._in_loop._serving.server.should_exit = True
        await asyncio.to_thread(self._thread.join, self._timeout)
        if self._thread.is_alive():
            raise RuntimeError("Threaded server refused to shut down.")


class _InProcesses:
    """Fresh processes that accept connections of one socket. Each reads its work from its standard input, and
    ends when that does, be it that it was told to or that its parent has gone."""

    def __init__(self, launcher: PythonServerLauncher) -> None:
        self._launcher = launcher
        self._processes: list[subprocess.Popen[bytes]] = []

    def is_alive(self) -> bool:
        return bool(self._processes) and all(process.poll() is None for process in self._processes)

    async def start(self, listener: socket.socket) -> None:
        import cloudpickle  # type: ignore[import-untyped, unused-ignore]

        launcher = self._launcher
        work = cloudpickle.dumps((launcher.app, launcher.args, launcher.serve_context))
        header = pickle.dumps((sys.path, listener.fileno()))
        code = f"from {__name__} import _child; _child()"
        with listener:
            for _ in range(launcher.args.n_workers):
                self._processes.append(
                    subprocess.Popen(  # noqa: ASYNC220 - it takes a moment only
                        [sys.executable, "-c", code],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        pass_fds=[listener.fileno()],
                        # Ctrl+C is the parent's to heed.
                        start_new_session=True,
                    )
                )
        await asyncio.gather(
            *(asyncio.to_thread(_hand_over, process, header + work) for process in self._processes)
        )

    async def stop(self) -> None:
        for process in self._processes:
            with contextlib.suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
        end = time.monotonic() + self._launcher.args.process_join_timeout
        for request in ("terminate", "kill"):
            while any(one.poll() is None for one in self._processes) and time.monotonic() < end:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            for process in self._processes:
                if process.poll() is None:
                    logger.warning("A server process does not end; its %s is next.", request)
                    getattr(process, request)()
            end = time.monotonic() + _DRAIN_SECONDS
        for process in self._processes:
            await asyncio.to_thread(process.wait)
            assert process.stdout is not None
            process.stdout.close()


def _hand_over(process: subprocess.Popen[bytes], work: bytes) -> None:
    """Gives a process its work, and waits until it says that it serves."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(work)
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"a server process has ended with exit code {process.wait()}")
    said = json.loads(answer)
    if said is not None:
        raise RuntimeError(said)


def _child() -> None:
    """What a server process does."""
    sys.path, descriptor = pickle.load(sys.stdin.buffer)
    # Whatever the application prints goes to standard error; this is the line to the parent.
    line = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(error: str | None) -> None:
        line.write(json.dumps(error) + "\n")
        line.flush()

    async def serve() -> None:
        app, args, context = pickle.load(sys.stdin.buffer)
        serving = _Serving(app, args, context)
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end() -> None:
            serving.server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        task = asyncio.create_task(serving.run(socket.socket(fileno=descriptor), started))
        waiting = asyncio.ensure_future(started.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if started.is_set():
            say(None)

            def listen() -> None:
                sys.stdin.buffer.read()
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(end)

            threading.Thread(target=listen, daemon=True).start()
        await task

    try:
        asyncio.run(serve())
    except Exception as error:
        logger.exception("The server has failed.")
        say(f"{type(error).__name__}: {error}")
        sys.exit(1)
    finally:
        # A thread that still reads from it would have the interpreter wait for its lock.
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _free_port(host: str) -> int:
    with _listen(host, 0) as listener:
        port: int = listener.getsockname()[1]
        return port


def _is_well(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _uvicorn() -> Any:
    try:
        import uvicorn  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ImportError("serving an application needs the package uvicorn: pip install uvicorn") from None
    return uvicorn
