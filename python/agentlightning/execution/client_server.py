"""The algorithm in this process, which serves the store, and runners in processes of their own."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, cast

from agentlightning.env_var import (
    LightningEnvVar,
    resolve_bool_env_var,
    resolve_int_env_var,
    resolve_str_env_var,
)
from agentlightning.execution._signals import terminated_like_interrupted
from agentlightning.execution.base import DESERTED, ExecutionStrategy, desertion
from agentlightning.execution.events import ThreadingEvent

if TYPE_CHECKING:
    from agentlightning.execution.base import AlgorithmBundle, RunnerBundle
    from agentlightning.execution.events import ExecutionEvent
    from agentlightning.store.base import LightningStore

logger = logging.getLogger(__name__)

Role = Literal["algorithm", "runner", "both"]

DEFAULT_PORT = 4747
"""Where algorithm and runners meet when they are started on their own and nobody says otherwise."""
_POLL_SECONDS = 0.05
_HURRY_SECONDS = 1.0
# The worker's program. Its module path is this process's own, before anything else is imported. Until it has
# its work, Ctrl+C is not its business: whoever started it will tell.
_BOOTSTRAP = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); import sys; sys.path[:] = {path!r}; "
    "from agentlightning.runner._worker import main; sys.exit(main({fd}))"
)


class _Worker:
    """A runner in a process of its own, on a pipe that tells it what to do and when to stop."""

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.name = f"runner-{worker_id}"
        read_end, self._write_end = os.pipe()
        try:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _BOOTSTRAP.format(path=sys.path, fd=read_end),
                    f"agentlightning-{self.name}",
                ],
                pass_fds=(read_end,),
            )
        except BaseException:
            os.close(self._write_end)
            raise
        finally:
            os.close(read_end)
        # A pipe is short, so whoever writes waits for the process to read; several threads do.
        self._lock = threading.Lock()

    def send(self, data: bytes) -> None:
        """Hands the process its work. A process that has died does not mind."""
        with self._lock:
            if self._write_end < 0:
                return
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._write_end, view) :]
            except BrokenPipeError:
                logger.debug("%s has ended before it was told what to do.", self.name)

    def hang_up(self) -> None:
        """Closes the pipe; a process that is still there takes it for our end, and ends."""
        with self._lock:
            if self._write_end >= 0:
                os.close(self._write_end)
                self._write_end = -1

    @property
    def exitcode(self) -> int | None:
        """Its exit status; the negative signal number if a signal has ended it; None while it runs."""
        return self.process.poll()


def _log_settings() -> dict[str, Any]:
    """How this process logs, as far as it can be told to another one."""
    ours = logging.getLogger("agentlightning")
    configured = bool(ours.handlers or logging.getLogger().handlers)
    return {"configured": configured, "level": ours.getEffectiveLevel()}


class ClientServerExecutionStrategy(ExecutionStrategy):
    """The algorithm here, the store behind a server, and each runner in a fresh process.

    Runner processes are new interpreters, never forks of this one: a script needs no `__main__` guard, and
    threads or accelerators that it has in use stay its own. What they run is pickled; what can't be (a model
    client in an attribute, say) runs in threads of this process instead, with a log line. A runner ends when
    this process does.

    With role `algorithm` or `runner`, only that side is run, and the other is expected elsewhere.
    """

    alias: str = "cs"

    def __init__(
        self,
        role: Role | None = None,
        server_host: str | None = None,
        server_port: int | None = None,
        n_runners: int = 1,
        graceful_timeout: float = 10.0,
        terminate_timeout: float = 10.0,
        main_process: Literal["algorithm", "runner"] = "algorithm",
        managed_store: bool | None = None,
        allowed_exit_codes: tuple[int, ...] = (0, -15),
    ) -> None:
        """Makes a strategy.

        Args:
            role: Which side to run; `AGL_CURRENT_ROLE`, or both, by default.
            server_host: Where the store is served; `AGL_SERVER_HOST`, or localhost, by default.
            server_port: On which port; `AGL_SERVER_PORT` by default. Without either, a free one is taken
                when both sides are run here, and 4747 otherwise.
            n_runners: How many runners to run.
            graceful_timeout: Seconds that runners get to end by themselves.
            terminate_timeout: Seconds that they get after each further request.
            main_process: Which side has this process's main thread. With `runner`, the one runner does, and
                the algorithm has a thread.
            managed_store: Whether the store is served and reached here; if not, both sides use the one given.
                `AGL_MANAGED_STORE`, or true, by default.
            allowed_exit_codes: Which ends of a runner process are no failure.

        Raises:
            ValueError: for a role or main process that there is not, a port in the environment that is no
                number, or main process `runner` with another role or several runners.
        """
        resolved_role = resolve_str_env_var(LightningEnvVar.AGL_CURRENT_ROLE, override=role, fallback="both")
        if resolved_role not in ("algorithm", "runner", "both"):
            raise ValueError(f"role must be one of 'algorithm', 'runner' or 'both', got {resolved_role!r}")
        self.role = cast("Role", resolved_role)
        self.server_host = resolve_str_env_var(
            LightningEnvVar.AGL_SERVER_HOST, override=server_host, fallback="localhost"
        )
        port = resolve_int_env_var(LightningEnvVar.AGL_SERVER_PORT, override=server_port, fallback=-1)
        self._port_given = port != -1
        self._server_port = port if self._port_given else DEFAULT_PORT
        self.n_runners = n_runners
        self.graceful_timeout = graceful_timeout
        self.terminate_timeout = terminate_timeout
        if main_process not in ("algorithm", "runner"):
            raise ValueError(f"main_process must be 'algorithm' or 'runner', got {main_process!r}")
        if main_process == "runner" and (self.role != "both" or n_runners != 1):
            raise ValueError("main_process='runner' is for debugging: it needs role 'both' and n_runners=1")
        self.main_process = main_process
        self.managed_store = resolve_bool_env_var(
            LightningEnvVar.AGL_MANAGED_STORE, override=managed_store, fallback=True
        )
        self.allowed_exit_codes = allowed_exit_codes
        self._event: ExecutionEvent | None = None
        self.stop_requested = False

    @property
    def server_port(self) -> int:
        """The port that was asked for."""
        return self._server_port

    @server_port.setter
    def server_port(self, port: int) -> None:
        self._server_port = port
        self._port_given = True

    def request_stop(self) -> None:
        """Sets the stop event of a running `execute`, and calls its algorithm off."""
        self.stop_requested = True
        if self._event is not None:
            self._event.set()

    @terminated_like_interrupted()
    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore) -> Any:
        """Runs the side or sides of this strategy's role to the end.

        Returns:
            What the algorithm's bundle returned; None after Ctrl+C, which ends everything in order.

        Raises:
            Exception: what either side raises.
            SystemExit: after SIGTERM, which is otherwise like Ctrl+C, on the main thread.
            RuntimeError: if a runner process ends with an exit code that is not allowed, or all have ended
                before what the algorithm waits for.
        """
        event = self._event = ThreadingEvent()
        self.stop_requested = False
        try:
            if self.role == "algorithm":
                return asyncio.run(self._algorithm_only(algorithm, store, event))
            if self.role == "runner":
                return self._runners_only(runner, store, event)
            if self.main_process == "runner":
                return self._runner_in_main(algorithm, runner, store, event)
            return asyncio.run(self._both(algorithm, runner, store, event))
        except KeyboardInterrupt:
            event.set()
            logger.warning("Interrupted; everything has been wound down.")
            return None
        finally:
            self._event = None

    # The sides

    async def _algorithm_only(
        self, algorithm: AlgorithmBundle, store: LightningStore, event: ExecutionEvent
    ) -> Any:
        async with _Served(self, store) as served:
            return await _run_side(algorithm(served.store, event), event)

    async def _both(
        self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore, event: ExecutionEvent
    ) -> Any:
        async with _Served(self, store) as served:
            crew = _Crew(self, runner, served.address, store, event)
            failed = True
            try:
                task = asyncio.ensure_future(_run_side(algorithm(served.store, event), event))
                crew.start(self.n_runners)
                crew.watch(asyncio.get_running_loop(), task)
                deserted = asyncio.ensure_future(crew.watch_for_desertion(served.store, task))
                try:
                    result = await _until_done(task, lambda: crew.interrupt(deserted))
                except asyncio.CancelledError:
                    crew.in_a_hurry = True
                    if crew.interrupted or not crew.gave_up:
                        raise
                    # Called off, by the runners' failure (which `check` raises) or by `request_stop`.
                    result = None
                    if crew.deserted and not crew.failures():
                        raise RuntimeError(DESERTED) from None
                finally:
                    deserted.cancel()
                failed = False
            finally:
                event.set()
                await crew.dismiss()
                crew.check(quiet=failed)
            return result

    def _runners_only(self, runner: RunnerBundle, store: LightningStore, event: ExecutionEvent) -> None:
        address = f"http://{self.server_host}:{self.server_port}"
        if self.n_runners == 1:
            asyncio.run(_run_side(self._runner_side(runner, address, store, 0, event), event))
            return
        asyncio.run(self._several_runners(runner, address, store, event))

    async def _several_runners(
        self, runner: RunnerBundle, address: str, store: LightningStore, event: ExecutionEvent
    ) -> None:
        crew = _Crew(self, runner, address, store, event)
        failed = True
        try:
            crew.start(self.n_runners)
            while not crew.all_ended() and not event.is_set():
                if crew.failures():
                    break
                await asyncio.sleep(_POLL_SECONDS)
            failed = False
        except asyncio.CancelledError:
            crew.in_a_hurry = True
            raise
        finally:
            event.set()
            await crew.dismiss()
            crew.check(quiet=failed)

    def _runner_in_main(
        self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore, event: ExecutionEvent
    ) -> Any:
        """The runner on this thread, where a debugger is at home, and the algorithm with the server on
        another."""
        ready, runner_ended = threading.Event(), threading.Event()
        outcome: dict[str, Any] = {}

        async def algorithm_side() -> Any:
            async with _Served(self, store) as served:
                outcome["address"] = served.address
                ready.set()
                try:
                    return await algorithm(served.store, event)
                finally:
                    # Without an algorithm nothing more will be asked of the runner, which needs the server
                    # until it has ended.
                    event.set()
                    while not runner_ended.is_set():  # noqa: ASYNC110 - set on another thread
                        await asyncio.sleep(_POLL_SECONDS)

        def run() -> None:
            try:
                outcome["result"] = asyncio.run(algorithm_side())
            except BaseException as exc:
                outcome["error"] = exc
            finally:
                event.set()
                ready.set()

        thread = threading.Thread(target=run, name="algorithm", daemon=True)
        thread.start()
        ready.wait()
        try:
            if "address" in outcome:
                asyncio.run(_run_side(self._runner_side(runner, outcome["address"], store, 0, event), event))
        finally:
            runner_ended.set()
            thread.join()
        if "error" in outcome:
            raise outcome["error"]
        return outcome.get("result")

    async def _runner_side(
        self, runner: RunnerBundle, address: str, store: LightningStore, worker_id: int, event: ExecutionEvent
    ) -> None:
        if not self.managed_store:
            await runner(store, worker_id, event)
            return
        from agentlightning.store import LightningStoreClient

        client = LightningStoreClient(address)
        try:
            await runner(client, worker_id, event)
        finally:
            await client.close()


async def _run_side(side: Coroutine[Any, Any, Any], event: ExecutionEvent) -> Any:
    """Runs one side; whatever goes wrong in it stops the other."""
    try:
        return await side
    except BaseException:
        event.set()
        raise


async def _until_done(task: asyncio.Future[Any], on_cancel: Callable[[], None]) -> Any:
    """Awaits a task; when this one is cancelled, that is told, the task is cancelled, too, and is given the
    time to end."""
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        on_cancel()
        task.cancel()
        await asyncio.wait([task])
        raise
    return task.result()


class _Served:
    """The store behind a server for as long as the block lasts, or as it is where it is not managed."""

    def __init__(self, strategy: ClientServerExecutionStrategy, store: LightningStore) -> None:
        self._strategy = strategy
        self.store = store
        self.address = f"http://{strategy.server_host}:{strategy.server_port}"
        self._server: Any = None

    async def __aenter__(self) -> _Served:
        strategy = self._strategy
        if strategy.managed_store:
            from agentlightning.store import LightningStoreServer

            # Two runs on one machine should not meet by accident, and nobody else needs to know the port.
            private = strategy.role == "both" and not strategy._port_given
            port = 0 if private else strategy.server_port
            self._server = LightningStoreServer(self.store, strategy.server_host, port)
            await self._server.start()
            self.address = self._server.endpoint
            self.store = self._server
        return self

    async def __aexit__(self, *args: Any) -> None:
        if self._server is not None:
            await self._server.stop()


class _Crew:
    """The runners of one execution: processes, or threads where what they run can't be pickled."""

    def __init__(
        self,
        strategy: ClientServerExecutionStrategy,
        runner: RunnerBundle,
        address: str,
        store: LightningStore,
        event: ExecutionEvent,
    ) -> None:
        self._strategy = strategy
        self._runner = runner
        self._address = address
        self._store = store
        self._event = event
        self._workers: list[_Worker] = []
        self._threads: list[threading.Thread] = []
        self._thread_errors: list[tuple[str, BaseException]] = []
        self.gave_up = False
        self.deserted = False
        self.interrupted = False
        self.in_a_hurry = False

    def start(self, count: int) -> None:
        """Starts that many runners."""
        payload = self._pickled()
        if payload is None:
            self._start_threads(count)
            return
        # All of them first, then their work: they start up side by side.
        for worker_id in range(count):
            self._workers.append(_Worker(worker_id))
        for worker in self._workers:
            header = {
                "worker_id": worker.worker_id,
                "argv": sys.argv,
                "log": _log_settings(),
            }
            data = pickle.dumps(header) + payload
            threading.Thread(
                target=worker.send, args=(data,), name=f"{worker.name}-send", daemon=True
            ).start()

    def _pickled(self) -> bytes | None:
        """What the processes run, or None if it can't leave this one."""
        strategy = self._strategy
        if os.name != "posix":
            logger.warning("Runners run in threads of this process: pipes to others are not to be had here.")
            return None
        work = {
            "runner": self._runner,
            "address": self._address if strategy.managed_store else None,
            "store": None if strategy.managed_store else self._store,
            "grace": strategy.graceful_timeout + strategy.terminate_timeout,
        }
        try:
            import cloudpickle  # type: ignore[import-untyped, unused-ignore]

            return pickle.dumps(cloudpickle.dumps(work))
        except Exception as exc:
            logger.warning("Runners run in threads of this process, since they can't be pickled: %s", exc)
            return None

    def _start_threads(self, count: int) -> None:
        def run(worker_id: int) -> None:
            try:
                asyncio.run(
                    self._strategy._runner_side(
                        self._runner, self._address, self._store, worker_id, self._event
                    )
                )
            except BaseException as exc:
                logger.exception("Runner %d has failed.", worker_id)
                self._thread_errors.append((f"runner-{worker_id}", exc))
                self._event.set()

        for worker_id in range(count):
            thread = threading.Thread(target=run, args=(worker_id,), name=f"runner-{worker_id}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def all_ended(self) -> bool:
        """Whether no runner is left."""
        return all(worker.exitcode is not None for worker in self._workers) and not any(
            thread.is_alive() for thread in self._threads
        )

    def failures(self) -> list[str]:
        """Runners that have ended as they should not, each with its exit code."""
        # One that Ctrl+C has hit before it could look out for it has ended as it should.
        allowed = {*self._strategy.allowed_exit_codes, None}
        if self._event.is_set():
            allowed.add(-signal.SIGINT)
        failed = [
            f"{worker.name} (exitcode={worker.exitcode})"
            for worker in self._workers
            if worker.exitcode not in allowed
        ]
        return failed + [f"{name} ({error!r})" for name, error in self._thread_errors]

    def watch(self, loop: asyncio.AbstractEventLoop, algorithm: asyncio.Future[Any]) -> None:
        """Calls the algorithm off when a runner has failed or the stop event is set, if it does not end by
        itself.

        From a thread, since an algorithm that is not async keeps the loop to itself.
        """

        def cancel() -> None:
            if not (algorithm.done() or self.interrupted):
                self.gave_up = True
                algorithm.cancel()

        def look() -> None:
            while not (self._event.is_set() or algorithm.done()):
                if self.failures():
                    logger.error("Runners have failed: %s. Stopping.", ", ".join(self.failures()))
                    self._event.set()
                time.sleep(_POLL_SECONDS)
            end = time.monotonic() + self._strategy.graceful_timeout
            while time.monotonic() < end and not (algorithm.done() or self._strategy.stop_requested):
                time.sleep(_POLL_SECONDS)
            if not algorithm.done():
                try:
                    loop.call_soon_threadsafe(cancel)
                except RuntimeError:
                    logger.debug("The algorithm had ended already.")

        threading.Thread(target=look, name="runner-watch", daemon=True).start()

    def interrupt(self, watch: asyncio.Future[None]) -> None:
        """Notes that everything is called off from outside. Runners that have ended by then, for Ctrl+C may
        have reached them first, are no reason to give up."""
        self.interrupted = True
        watch.cancel()

    async def watch_for_desertion(self, store: LightningStore, algorithm: asyncio.Future[Any]) -> None:
        """Calls the algorithm off when no runner is left for what it waits for."""
        grace = self._strategy.graceful_timeout
        if await desertion(store, self._event, all_ended=self.all_ended, grace=grace):
            self.deserted = self.gave_up = True
            self._event.set()
            algorithm.cancel()

    async def dismiss(self) -> None:
        """Ends the runners: by the stop event, then by signals of growing insistence."""
        strategy = self._strategy
        for worker in self._workers:
            threading.Thread(target=worker.send, args=(b"stop",), daemon=True).start()
        grace = strategy.graceful_timeout
        if self.in_a_hurry or strategy.stop_requested or self.failures():
            # Nobody waits for what they have under way. Ctrl+C in a terminal reaches them, too, though, and
            # a second interrupt would keep them from reporting.
            grace = min(grace, _HURRY_SECONDS)
        if not await self._ended_within(grace):
            requests: list[tuple[str, Callable[[_Worker], None]]] = [
                ("interrupting", lambda worker: worker.process.send_signal(signal.SIGINT)),
                ("terminating", lambda worker: worker.process.terminate()),
                ("killing", lambda worker: worker.process.kill()),
            ]
            for what, request in requests:
                for worker in self._workers:
                    if worker.exitcode is None:
                        logger.warning("%s is still running; %s it.", worker.name, what)
                        request(worker)
                if await self._ended_within(strategy.terminate_timeout):
                    break
        for worker in self._workers:
            worker.hang_up()
            if worker.exitcode is None:
                logger.error("%s could not be ended.", worker.name)
        for thread in self._threads:
            if thread.is_alive():
                logger.error("%s could not be ended; its thread is left behind.", thread.name)

    async def _ended_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self.all_ended():
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    def check(self, *, quiet: bool) -> None:
        """Looks at how the runners have ended.

        Args:
            quiet: Only log failures, since another exception is on its way.

        Raises:
            RuntimeError: if a runner has failed.
        """
        failed = self.failures()
        if not failed:
            return
        message = f"Subprocesses failed with unexpected exit codes: {', '.join(failed)}"
        if quiet:
            logger.warning(message)
            return
        raise RuntimeError(message) from (self._thread_errors[0][1] if self._thread_errors else None)
