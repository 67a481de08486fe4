"""Both ways of running algorithm and runners side by side, with real processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.execution import (
    ClientServerExecutionStrategy,
    MultiprocessingEvent,
    SharedMemoryExecutionStrategy,
    ThreadingEvent,
)
from agentlightning.store import InMemoryLightningStore

MARK = "set when this module is imported"


def _strategy(**kwargs: Any) -> ClientServerExecutionStrategy:
    return ClientServerExecutionStrategy(**{"graceful_timeout": 5.0, "terminate_timeout": 5.0, **kwargs})


async def _enqueue_and_wait(store: Any, count: int, timeout: float = 30.0) -> list[Any]:
    ids = [(await store.enqueue_rollout(input=number)).rollout_id for number in range(count)]
    return list(await store.wait_for_rollouts(rollout_ids=ids, timeout=timeout))


async def _work(store: Any, worker_id: int, event: Any) -> None:
    """A runner that notes its process in the metadata of what it claims."""
    while not event.is_set():
        claimed = await store.dequeue_rollout(worker_id=f"Worker-{worker_id}")
        if claimed is None:
            await asyncio.sleep(0.02)
            continue
        await store.update_attempt(
            claimed.rollout_id,
            claimed.attempt.attempt_id,
            status="succeeded",
            metadata={
                "pid": os.getpid(),
                "ppid": os.getppid(),
                "mark": MARK,
                "threads": threading.active_count(),
            },
        )


async def _metadata(store: Any) -> list[dict[str, Any]]:
    return [rollout.attempt.metadata for rollout in await store.query_rollouts()]


def test_runners_are_fresh_processes() -> None:
    global MARK
    store = InMemoryLightningStore()
    strategy = _strategy(n_runners=2)
    before, MARK = MARK, "changed in the parent"
    try:

        async def algorithm(served: Any, event: Any) -> str:
            assert not event.is_set()
            # The address is this process's own.
            assert served.endpoint.startswith("http://")
            await _enqueue_and_wait(served, 20)
            return "done"

        assert strategy.execute(algorithm, _work, store) == "done"
    finally:
        MARK = before
    notes = asyncio.run(_metadata(store))
    assert len(notes) == 20
    assert os.getpid() not in {note["pid"] for note in notes}
    assert {note["ppid"] for note in notes} == {os.getpid()}
    # Nothing was forked: the module was imported anew.
    assert {note["mark"] for note in notes} == {before}


def test_two_executions_at_once_do_not_meet() -> None:
    results: list[Any] = []

    def run(number: int) -> None:
        store = InMemoryLightningStore()

        async def algorithm(served: Any, event: Any) -> int:
            return len(await _enqueue_and_wait(served, number))

        results.append((number, _strategy().execute(algorithm, _work, store)))

    threads = [threading.Thread(target=run, args=(number,)) for number in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == [(2, 2), (3, 3)]


def test_what_can_t_be_pickled_runs_in_threads(caplog: pytest.LogCaptureFixture) -> None:
    store = InMemoryLightningStore()
    lock = threading.Lock()

    async def runner(client: Any, worker_id: int, event: Any) -> None:
        with lock:
            pass
        await _work(client, worker_id, event)

    async def algorithm(served: Any, event: Any) -> int:
        return len(await _enqueue_and_wait(served, 4))

    assert _strategy(n_runners=2).execute(algorithm, runner, store) == 4
    assert "can't be pickled" in caplog.text
    assert {note["pid"] for note in asyncio.run(_metadata(store))} == {os.getpid()}


async def _killed(store: Any, worker_id: int, event: Any) -> None:
    await store.dequeue_rollout(worker_id="Worker-0")
    os.kill(os.getpid(), signal.SIGKILL)


async def _crashing(store: Any, worker_id: int, event: Any) -> None:
    raise ValueError("runner")


async def _cancelling(store: Any, worker_id: int, event: Any) -> None:
    raise asyncio.CancelledError


async def _interrupted(store: Any, worker_id: int, event: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("runner", "code"), [(_killed, "exitcode=-9"), (_crashing, "exitcode=1"), (_cancelling, "exitcode=1")]
)
def test_a_runner_that_dies_fails_the_execution(runner: Any, code: str) -> None:
    async def algorithm(store: Any, event: Any) -> None:
        # Would wait for ever for what nobody will ever run.
        await _enqueue_and_wait(store, 1, timeout=300)

    with pytest.raises(RuntimeError, match=f"unexpected exit codes.*{code}"):
        _strategy(graceful_timeout=0.3).execute(algorithm, runner, InMemoryLightningStore())


def test_a_runner_that_ends_in_order_is_no_failure() -> None:
    async def algorithm(store: Any, event: Any) -> str:
        await asyncio.sleep(1.0)
        return "went on"

    assert _strategy().execute(algorithm, _interrupted, InMemoryLightningStore()) == "went on"


async def _one_only(store: Any, worker_id: int, event: Any) -> None:
    while (claimed := await store.dequeue_rollout()) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")


async def _terminated(store: Any, worker_id: int, event: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("kind", "runner"),
    [("cs", _one_only), ("cs", _terminated), ("algorithm", _one_only), ("runner", _one_only)],
)
def test_an_algorithm_is_not_left_waiting_when_all_runners_have_gone(kind: Any, runner: Any) -> None:
    ended: list[bool] = []

    async def algorithm(store: Any, event: Any) -> None:
        try:
            # Waits for ever, in turns, as algorithms do.
            while True:
                await _enqueue_and_wait(store, 2, timeout=1.0)
        finally:
            ended.append(True)

    strategy: Any = _strategy(graceful_timeout=0.3) if kind == "cs" else _threads(main_thread=kind)
    with pytest.raises(RuntimeError, match="all runners have ended before the algorithm"):
        strategy.execute(algorithm, runner, InMemoryLightningStore())
    assert ended == [True]


@pytest.mark.parametrize("kind", ["cs", "runner"])
def test_an_algorithm_may_go_on_with_what_the_runners_have_done(kind: Any) -> None:
    async def algorithm(store: Any, event: Any) -> str:
        await _enqueue_and_wait(store, 1)
        await asyncio.sleep(1.5)
        return "went on"

    strategy: Any = _strategy(graceful_timeout=0.1) if kind == "cs" else _threads(graceful_delay=0.1)
    assert strategy.execute(algorithm, _one_only, InMemoryLightningStore()) == "went on"


def test_an_algorithm_that_fails_ends_the_runners(tmp_path: Path) -> None:
    async def algorithm(store: Any, event: Any) -> None:
        (done,) = await _enqueue_and_wait(store, 1)
        attempt = await store.get_latest_attempt(done.rollout_id)
        (tmp_path / "pid").write_text(str(attempt.metadata["pid"]))
        raise KeyError("algorithm")

    with pytest.raises(KeyError, match="algorithm"):
        _strategy().execute(algorithm, _work, InMemoryLightningStore())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def _deaf(store: Any, worker_id: int, event: Any) -> None:
    """Neither looks at the event nor lets go of the loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    await store.enqueue_rollout(input="ready")
    time.sleep(120)  # noqa: ASYNC251


def test_runners_that_will_not_end_are_made_to(caplog: pytest.LogCaptureFixture) -> None:
    async def algorithm(store: Any, event: Any) -> str:
        while not len(await store.query_rollouts()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return "done"

    begin = time.monotonic()
    # SIGTERM is what ends it, and an end that is allowed; on a busy machine the next signal may overtake it.
    assert _strategy().allowed_exit_codes == (0, -signal.SIGTERM)
    allowed = (0, -signal.SIGTERM, -signal.SIGKILL)
    strategy = _strategy(graceful_timeout=0.2, terminate_timeout=0.5, allowed_exit_codes=allowed)
    assert strategy.execute(algorithm, _deaf, InMemoryLightningStore()) == "done"
    assert "terminating it" in caplog.text
    assert time.monotonic() - begin < 60


def test_stop_requests_reach_a_running_execution() -> None:
    strategy = _strategy(graceful_timeout=0.2)

    async def algorithm(store: Any, event: Any) -> None:
        strategy.request_stop()
        await asyncio.sleep(300)

    assert strategy.execute(algorithm, _work, InMemoryLightningStore()) is None


def test_the_runner_on_the_main_thread() -> None:
    seen: list[threading.Thread] = []

    async def runner(store: Any, worker_id: int, event: Any) -> None:
        seen.append(threading.current_thread())
        await _work(store, worker_id, event)

    async def algorithm(store: Any, event: Any) -> int:
        return len(await _enqueue_and_wait(store, 3))

    # Ends when the algorithm does.
    assert _strategy(main_process="runner").execute(algorithm, runner, InMemoryLightningStore()) == 3
    assert seen == [threading.main_thread()]


def test_an_algorithm_that_fails_beside_a_runner_on_the_main_thread() -> None:
    async def algorithm(store: Any, event: Any) -> None:
        raise KeyError("algorithm")

    with pytest.raises(KeyError, match="algorithm"):
        _strategy(main_process="runner").execute(algorithm, _work, InMemoryLightningStore())


_SIDE = """
import asyncio, sys
import agentlightning as agl
from agentlightning.execution import ClientServerExecutionStrategy
from test_execution import _enqueue_and_wait, _work

async def algorithm(store, event):
    print(len(await _enqueue_and_wait(store, 6)), flush=True)

role, port = sys.argv[1], int(sys.argv[2])
strategy = ClientServerExecutionStrategy(role=role, server_port=port, n_runners=2, graceful_timeout=3.0)
strategy.execute(algorithm, _work, agl.InMemoryLightningStore())
"""


def _environment() -> dict[str, str]:
    paths = [str(Path(__file__).parent), str(Path(agl.__file__).parents[1])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def test_sides_that_are_started_on_their_own() -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [sys.executable, "-c", _SIDE]
    # The runners first: they wait for the server.
    runners = subprocess.Popen([*arguments, "runner", str(port)], env=_environment())
    try:
        time.sleep(0.5)
        algorithm = subprocess.run(
            [*arguments, "algorithm", str(port)],
            env=_environment(),
            stdout=subprocess.PIPE,
            timeout=60,
            check=True,
        )
        assert algorithm.stdout == b"6\n"
    finally:
        runners.send_signal(signal.SIGINT)
        assert runners.wait(60) == 0


_SCRIPT = """
import agentlightning as agl

class MyAgent(agl.LitAgent):
    async def rollout(self, task, resources, rollout):
        agl.emit_message("begin")
        import asyncio, os
        # In one piece: runners that are threads print side by side.
        os.write(1, f"pid {os.getpid()}\\n".encode())
        await asyncio.sleep(task)
        return 1.0

trainer = agl.Trainer(n_runners=2, initial_resources={})
summary = trainer.fit(MyAgent(), TASKS)
print("summary", summary.succeeded if summary else None, flush=True)
"""


# The same, inside of an event loop.
_ASYNC_SCRIPT = _SCRIPT.replace(
    "summary = trainer.fit(MyAgent(), TASKS)",
    "import asyncio; trainer.add_agent(MyAgent()); summary = asyncio.run(trainer.run(TASKS))",
)


def _script(tmp_path: Path, tasks: str, script: str = _SCRIPT) -> subprocess.Popen[str]:
    # Without `if __name__ == "__main__"`, and in a group of its own, as a shell starts it.
    path = tmp_path / "script.py"
    path.write_text(script.replace("TASKS", tasks))
    return subprocess.Popen(
        [sys.executable, str(path)],
        env=_environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _pids(script: subprocess.Popen[str], count: int) -> list[int]:
    assert script.stdout is not None
    return [int(script.stdout.readline().split()[1]) for _ in range(count)]


def _gone(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            # A zombie that nobody has waited for is gone, too.
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_script_without_a_main_guard(tmp_path: Path) -> None:
    script = _script(tmp_path, "[0.0, 0.0, 0.0]")
    output, _ = script.communicate(timeout=60)
    assert script.returncode == 0
    assert output.splitlines()[-1] == "summary 3"


def test_ctrl_c_ends_a_script_in_order(tmp_path: Path) -> None:
    script = _script(tmp_path, "[300, 300]")
    pids = _pids(script, 2)
    os.killpg(script.pid, signal.SIGINT)
    output, _ = script.communicate(timeout=60)
    assert script.returncode == 0
    assert output.splitlines()[-1] == "summary None"
    assert all(_gone(pid, 10) for pid in pids)


def test_ctrl_c_inside_of_an_event_loop(tmp_path: Path) -> None:
    script = _script(tmp_path, "[300, 300]", _ASYNC_SCRIPT)
    pids = _pids(script, 2)
    os.killpg(script.pid, signal.SIGINT)
    script.communicate(timeout=60)
    # asyncio.run() raises KeyboardInterrupt once everything has been wound down, and the script lets it.
    assert script.returncode == -signal.SIGINT
    assert all(_gone(pid, 10) for pid in pids)


_STORED = _SCRIPT.replace("initial_resources={}", "initial_resources={}, store=STORE, strategy=STRATEGY")


# Agents are cancelled, and fail, when the grace is over; the call-off has to come first.
_SHM = "{'type': 'shm', 'main_thread': 'algorithm', 'graceful_delay': 3.0, 'n_runners': 2}"
_FIT = "summary = trainer.fit(MyAgent(), TASKS)"
_RUN = "import asyncio; trainer.add_agent(MyAgent()); summary = asyncio.run(trainer.run(TASKS))"
_FIT_INSIDE = (
    "import asyncio\nasync def main(): return trainer.fit(MyAgent(), TASKS)\nsummary = asyncio.run(main())"
)


@pytest.mark.parametrize("strategy", ["cs", _SHM])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_to_all_processes_leave_no_attempt_half_written(
    tmp_path: Path, strategy: str, name: str
) -> None:
    path = tmp_path / "store.sqlite"
    text = _STORED.replace("STORE", f"agl.SqliteLightningStore({str(path)!r})")
    text = text.replace("STRATEGY", strategy if strategy.startswith("{") else repr(strategy))
    script = _script(tmp_path, "[300, 300, 300]", text)
    pids = _pids(script, 2)
    # As Ctrl+C in a terminal does, or a service manager.
    os.killpg(script.pid, getattr(signal, name))
    script.communicate(timeout=60)
    assert script.returncode == (0 if name == "SIGINT" else 128 + signal.SIGTERM)
    assert all(_gone(pid, 10) for pid in pids)
    with agl.SqliteLightningStore(str(path)) as store:
        rollouts = asyncio.run(_rollouts_of(store))
    assert {rollout.status for rollout in rollouts} <= {"cancelled", "failed"}
    attempts = [rollout.attempt for rollout in rollouts if hasattr(rollout, "attempt")]
    assert len(attempts) >= 2
    assert {(attempt.status, attempt.metadata["reason"]) for attempt in attempts} == {("failed", "cancelled")}


async def _leaves(store: Any, worker_id: int, event: Any) -> None:
    await store.enqueue_rollout(input="left behind")


def test_ctrl_c_is_none_of_the_runners_fault(caplog: pytest.LogCaptureFixture) -> None:
    # It reaches them, too, and they may be gone long before the algorithm has wound up.
    async def algorithm(store: Any, event: Any) -> None:
        while not len(await store.query_rollouts()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(300)
        finally:
            await asyncio.sleep(1.5)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert _strategy(graceful_timeout=0.0).execute(algorithm, _leaves, InMemoryLightningStore()) is None
    finally:
        signal.signal(signal.SIGINT, previous)
    assert "Giving up" not in caplog.text


async def _rollouts_of(store: Any) -> list[Any]:
    return list(await store.query_rollouts())


@pytest.mark.parametrize(("strategy", "how"), [("cs", _FIT), (_SHM, _FIT), ("cs", _RUN), ("cs", _FIT_INSIDE)])
def test_sigterm_calls_the_run_off(tmp_path: Path, strategy: str, how: str) -> None:
    path = tmp_path / "store.sqlite"
    text = _STORED.replace(_FIT, how).replace("STORE", f"agl.SqliteLightningStore({str(path)!r})")
    text = text.replace("STRATEGY", strategy if strategy.startswith("{") else repr(strategy))
    script = _script(tmp_path, "[300, 300, 300]", text)
    pids = _pids(script, 2)
    script.terminate()
    output, _ = script.communicate(timeout=60)
    assert script.returncode == 128 + signal.SIGTERM
    assert "summary" not in output
    assert all(_gone(pid, 10) for pid in pids)
    rollouts = asyncio.run(agl.SqliteLightningStore(str(path)).query_rollouts())
    # An agent that is cancelled may report its failure before its rollout is called off.
    assert {rollout.status for rollout in rollouts} <= {"cancelled", "failed"}
    assert rollouts[-1].status == "cancelled"


async def _busy(store: Any, worker_id: int, event: Any) -> None:
    """Does not look at the event."""
    await store.enqueue_rollout(input="ready")
    await asyncio.sleep(300)


async def _busy_or_crashing(store: Any, worker_id: int, event: Any) -> None:
    if worker_id == 1:
        while not len(await store.query_rollouts()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        raise ValueError("runner")
    await _busy(store, worker_id, event)


@pytest.mark.parametrize("why", ["a request", "a crash"])
def test_nobody_waits_for_work_that_is_called_off(why: str, caplog: pytest.LogCaptureFixture) -> None:
    # Without hurry, this would take the grace, which is longer than a test may take.
    strategy = _strategy(graceful_timeout=1000.0, n_runners=2)

    async def algorithm(store: Any, event: Any) -> None:
        count = 2 if why == "a request" else 1
        while len(await store.query_rollouts()) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if why == "a request":
            strategy.request_stop()
        while not event.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    if why == "a request":
        strategy.execute(algorithm, _busy, InMemoryLightningStore())
    else:
        with pytest.raises(RuntimeError, match="runner-1"):
            strategy.execute(algorithm, _busy_or_crashing, InMemoryLightningStore())
    assert "interrupting it" in caplog.text
    assert "terminating it" not in caplog.text


def test_runners_do_not_outlive_a_parent_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = _script(tmp_path, "[300, 300]")
    pids = _pids(script, 2)
    script.kill()
    script.wait(10)
    assert script.stdout is not None
    script.stdout.close()
    # The stop event does not end the agent's sleep; after the grace they are ended.
    assert all(_gone(pid, 60) for pid in pids)


# Threads


def _threads(**kwargs: Any) -> SharedMemoryExecutionStrategy:
    return SharedMemoryExecutionStrategy(**{"graceful_delay": 0.3, "join_timeout": 5.0, **kwargs})


@pytest.mark.parametrize("main_thread", ["algorithm", "runner"])
def test_threads(main_thread: Any) -> None:
    async def algorithm(store: Any, event: Any) -> int:
        on_main = threading.current_thread() is threading.main_thread()
        assert on_main is (main_thread == "algorithm")
        return len(await _enqueue_and_wait(store, 3))

    assert _threads(main_thread=main_thread).execute(algorithm, _work, InMemoryLightningStore()) == 3


@pytest.mark.parametrize("main_thread", ["algorithm", "runner"])
def test_failures_in_threads(main_thread: Any) -> None:
    async def waiting(store: Any, event: Any) -> None:
        await asyncio.sleep(300)

    async def failing(store: Any, event: Any) -> None:
        raise KeyError("algorithm")

    strategy = _threads(main_thread=main_thread)
    with pytest.raises(ValueError, match="runner"):
        strategy.execute(waiting, _crashing, InMemoryLightningStore())
    with pytest.raises(KeyError, match="algorithm"):
        strategy.execute(failing, _work, InMemoryLightningStore())


def test_a_runner_on_the_main_thread_that_has_had_enough() -> None:
    async def runner(store: Any, worker_id: int, event: Any) -> None:
        while await store.dequeue_rollout() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def algorithm(store: Any, event: Any) -> str:
        await store.enqueue_rollout(input=1)
        await asyncio.sleep(0.3)
        assert not event.is_set()
        return "waited for"

    assert _threads().execute(algorithm, runner, InMemoryLightningStore()) == "waited for"


def test_threads_that_will_not_end_are_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    cancelled = threading.Event()

    async def deaf(store: Any, worker_id: int, event: Any) -> None:
        try:
            await asyncio.sleep(300)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def algorithm(store: Any, event: Any) -> str:
        return "done"

    with caplog.at_level(logging.WARNING):
        assert _threads(main_thread="algorithm").execute(algorithm, deaf, InMemoryLightningStore()) == "done"
    assert cancelled.is_set()
    assert "was cancelled" in caplog.text


def test_misuse_of_threads() -> None:
    with pytest.raises(ValueError, match="n_runners=1"):
        SharedMemoryExecutionStrategy(n_runners=2, main_thread="runner")
    assert SharedMemoryExecutionStrategy(n_runners=2).main_thread == "algorithm"
    with pytest.raises(ValueError, match="main_thread"):
        SharedMemoryExecutionStrategy(main_thread="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [ThreadingEvent, MultiprocessingEvent])
def test_events(kind: Any) -> None:
    event = kind()
    assert not event.is_set()
    assert not event.wait(0.01)
    event.set()
    assert event.is_set()
    assert event.wait(0.01)
    event.clear()
    assert not event.is_set()
