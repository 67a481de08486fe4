"""The bridge between event loops and the Rust core: any loop, any thread, forks, and a clean end."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import agentlightning as agl
from agentlightning import _native

INTERPRETERS = 200
AT_ONCE = 4

# The interpreter ends while calls are under way, have just ended, or wait; in threads, too. Most of them go
# without the models, which take longer to import than all the rest.
BARE = """
import asyncio, json
from agentlightning import _core
from agentlightning._native import call, encode
def do(store, method, **fields):
    return call(store, method, encode(fields))
"""
ENDINGS = [
    BARE
    + """
async def main():
    store = _core.Store.memory()
    started = json.loads(await do(store, "start_rollout", input=1))["rollout_id"]
    waits = [asyncio.ensure_future(do(store, "wait_for_rollouts", rollout_ids=[started])) for _ in range(3)]
    await asyncio.sleep(0)
    await do(store, "update_rollout", rollout_id=started, update={"status": "succeeded"})
    await asyncio.gather(*waits)
asyncio.run(main())
""",
    BARE
    + """
async def main():
    store = _core.Store.sqlite(path, "normal")
    await asyncio.gather(*(do(store, "enqueue_rollout", input=n) for n in range(20)))
    asyncio.ensure_future(do(store, "enqueue_rollout", input="left behind"))
    await asyncio.sleep(0)
asyncio.run(main())
""",
    BARE
    + """
async def main():
    server = _core.serve_store(_core.Store.memory(), "127.0.0.1", 0, [])
    client = _core.Store.client(server.url, 60.0, 5.0, 30.0, 4)
    await asyncio.gather(*(do(client, "enqueue_rollout", input=n) for n in range(5)))
    asyncio.ensure_future(do(client, "wait_for_rollouts", rollout_ids=["ro-x"], timeout=60))
    await asyncio.sleep(0)
asyncio.run(main())
""",
    BARE
    + """
import threading
store = _core.Store.memory()
started = json.loads(asyncio.run(do(store, "start_rollout", input=1)))["rollout_id"]
def wait():
    asyncio.run(do(store, "wait_for_rollouts", rollout_ids=[started]))
threading.Thread(target=wait, daemon=True).start()
for n in range(20):
    asyncio.run(do(store, "wait_for_rollouts", rollout_ids=["ro-x", started], timeout=0.0001 * n))
asyncio.run(do(store, "update_rollout", rollout_id=started, update={"status": "failed"}))
""",
    """
import agentlightning as agl
async def main():
    store = agl.SqliteLightningStore(path)
    await asyncio.gather(*(store.enqueue_rollout(n) for n in range(20)))
    asyncio.ensure_future(store.enqueue_rollout("left behind"))
    await asyncio.sleep(0)
asyncio.run(main())
""",
    """
import agentlightning as agl
async def main():
    store = agl.InMemoryLightningStore()
    server = agl.LightningStoreServer(store, "127.0.0.1", 0)
    await server.start()
    client = agl.LightningStoreClient(server.endpoint)
    await asyncio.gather(*(client.enqueue_rollout(n) for n in range(5)))
    asyncio.ensure_future(client.wait_for_rollouts(rollout_ids=["ro-x"], timeout=60))
    await asyncio.sleep(0)
asyncio.run(main())
""",
]
# How often each of them is taken out of ten times.
SHARES = [0, 0, 1, 1, 2, 2, 3, 3, 4, 5]


def test_the_interpreter_always_ends_with_0(tmp_path: Path) -> None:
    def end(number: int) -> tuple[int, int, bytes]:
        path = str(tmp_path / f"{number}.db")
        script = f"import asyncio\npath = {path!r}\n{ENDINGS[SHARES[number % len(SHARES)]]}"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
        return number, done.returncode, done.stderr

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ends = list(pool.map(end, range(INTERPRETERS)))
    assert [each for each in ends if each[1] != 0 or b"Traceback" in each[2]] == []


def test_forked_children_end_with_0_too(tmp_path: Path) -> None:
    script = f"""{BARE}
import os, sys
memory = _core.Store.memory()
sqlite = _core.Store.sqlite({str(tmp_path / "parent.db")!r}, "normal")
server = _core.serve_store(memory, "127.0.0.1", 0, [])
client = _core.Store.client(server.url, 60.0, 5.0, 30.0, 4)
async def use(store, times):
    await asyncio.gather(*(do(store, "enqueue_rollout", input=n) for n in range(times)))
    asyncio.ensure_future(do(store, "wait_for_rollouts", rollout_ids=["ro-x"]))
    await asyncio.sleep(0)
for store in (memory, sqlite, client):
    asyncio.run(use(store, 20))
children = []
for number in range(10):
    child = os.fork()
    if child == 0:
        # Ends like any interpreter: everything of the parent's that this process holds is dropped.
        asyncio.run(use(_core.Store.client(server.url, 60.0, 5.0, 30.0, 4), 5))
        asyncio.run(use(_core.Store.memory(), 5))
        sys.exit(0)
    children.append(child)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
asyncio.run(use(client, 5))
print(json.loads(asyncio.run(do(memory, "statistics")))["total_rollouts"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str([0] * 10), str(20 + 20 + 10 * 5 + 5)]


def test_one_store_serves_several_loops_and_threads() -> None:
    store = agl.InMemoryLightningStore()

    async def enqueue(count: int) -> None:
        await asyncio.gather(*(store.enqueue_rollout(n) for n in range(count)))
        await store.wait_for_rollouts(rollout_ids=["ro-x"], timeout=0.01)

    threads = [threading.Thread(target=lambda: asyncio.run(enqueue(25))) for _ in range(4)]
    for thread in threads:
        thread.start()
    asyncio.run(enqueue(10))
    asyncio.run(enqueue(10))
    for thread in threads:
        thread.join()
    assert asyncio.run(store.statistics())["total_rollouts"] == 120


def test_a_result_reaches_the_loop_that_waits_for_it() -> None:
    store = agl.InMemoryLightningStore()
    started = asyncio.run(store.start_rollout(1))
    ready = threading.Barrier(4)
    results: list[list[agl.Rollout]] = []

    async def wait() -> None:
        waiting = asyncio.ensure_future(store.wait_for_rollouts(rollout_ids=[started.rollout_id], timeout=60))
        await asyncio.sleep(0.01)
        await asyncio.to_thread(ready.wait)
        results.append(await waiting)

    threads = [threading.Thread(target=lambda: asyncio.run(wait())) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait()
    asyncio.run(store.update_rollout(started.rollout_id, status="succeeded"))
    for thread in threads:
        thread.join()
    assert [[each.status for each in result] for result in results] == [["succeeded"]] * 3


def test_uvloop_works_too() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> list[agl.Rollout]:
        store = agl.InMemoryLightningStore()
        started = await store.start_rollout(1)
        waiting = asyncio.ensure_future(store.wait_for_rollouts(rollout_ids=[started.rollout_id]))
        await asyncio.sleep(0.01)
        await store.update_rollout(started.rollout_id, status="failed")
        return await waiting

    loop = uvloop.new_event_loop()
    try:
        assert [each.status for each in loop.run_until_complete(main())] == ["failed"]
    finally:
        loop.close()


def test_a_closed_loop_is_forgotten() -> None:
    store = agl.InMemoryLightningStore()

    async def main() -> weakref.ref[asyncio.AbstractEventLoop]:
        await store.wait_for_rollouts(rollout_ids=["ro-x"], timeout=0.01)
        return weakref.ref(asyncio.get_running_loop())

    before = len(os.listdir("/proc/self/fd"))
    loops = [asyncio.run(main()) for _ in range(10)]
    gc.collect()
    assert [loop() for loop in loops] == [None] * 10
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert len(_native._waiters) <= 1


async def test_cancelling_ends_the_call_on_the_other_side(memory: agl.InMemoryLightningStore) -> None:
    started = await memory.start_rollout(1)
    waits = [
        asyncio.ensure_future(memory.wait_for_rollouts(rollout_ids=[started.rollout_id])) for _ in range(50)
    ]
    await asyncio.sleep(0.01)
    for wait in waits:
        wait.cancel()
    assert all(
        isinstance(end, asyncio.CancelledError)
        for end in await asyncio.gather(*waits, return_exceptions=True)
    )
    waiters = _native._waiters_of(asyncio.get_running_loop())
    assert waiters.futures == {}
    # What was cancelled reports to a queue that nobody waits at any more; the next call still gets its own.
    assert await memory.wait_for_rollouts(rollout_ids=[started.rollout_id], timeout=0.01) == []


async def test_a_store_that_answers_at_once_lets_others_run(memory: agl.InMemoryLightningStore) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    for _ in range(10):
        await memory.dequeue_rollout()
    counting.cancel()
    assert turns >= 10


async def in_child(action: Callable[..., None], *args: object, start: str = "fork") -> int | None:
    process = multiprocessing.get_context(start).Process(target=action, args=args)
    process.start()
    await asyncio.to_thread(process.join, 60)
    return process.exitcode


parent_store: agl.InMemoryLightningStore
parent_server: agl.LightningStoreServer


def use_parents_memory() -> None:
    with pytest.raises(RuntimeError, match="LightningStoreServer"):
        asyncio.run(parent_store.enqueue_rollout(1))


def use_own_store_and_parents_server() -> None:
    async def main() -> None:
        own = agl.InMemoryLightningStore()
        started = await own.start_rollout(1)
        assert await own.wait_for_rollouts(rollout_ids=[started.rollout_id], timeout=0.01) == []
        await parent_server.enqueue_rollout("from the child")
        with pytest.raises(RuntimeError, match="only the process"):
            await parent_server.stop()

    asyncio.run(main())


async def test_a_forked_child_has_a_runtime_of_its_own(memory: agl.InMemoryLightningStore) -> None:
    global parent_store, parent_server
    parent_store = memory
    await memory.wait_for_rollouts(rollout_ids=["ro-x"], timeout=0.01)
    parent_server = agl.LightningStoreServer(memory, "127.0.0.1", 0)
    await parent_server.start()
    for _ in range(5):
        assert await in_child(use_own_store_and_parents_server) == 0
    assert await in_child(use_parents_memory) == 0
    assert [each.input for each in await memory.query_rollouts()] == ["from the child"] * 5
    # The parent's own loop is none the worse for it.
    assert await memory.wait_for_rollouts(rollout_ids=["ro-x"], timeout=0.01) == []
    await parent_server.stop()


def enqueue_through(store: agl.LightningStore) -> None:
    asyncio.run(store.enqueue_rollout("from the child"))


@pytest.mark.parametrize("start", ["fork", "spawn"])
async def test_a_server_can_be_handed_to_another_process(
    memory: agl.InMemoryLightningStore, start: str
) -> None:
    server = agl.LightningStoreServer(memory, "127.0.0.1", 0)
    await server.start()
    for handed in (server, agl.LightningStoreClient(server.endpoint)):
        assert await in_child(enqueue_through, handed, start=start) == 0
    assert (await memory.query_rollouts()).total == 2
    await server.stop()


def test_what_lives_in_one_process_says_so_when_pickled(
    memory: agl.InMemoryLightningStore, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match="LightningStoreServer"):
        pickle.dumps(memory)
    with (
        agl.SqliteLightningStore(tmp_path / "store.db") as sqlite,
        pytest.raises(TypeError, match="LightningStoreServer"),
    ):
        pickle.dumps(sqlite)
    with pytest.raises(RuntimeError, match="start it first"):
        pickle.dumps(agl.LightningStoreServer(memory, port=0))


def test_ctrl_c_ends_a_blocking_wait() -> None:
    script = """
import agentlightning as agl
from agentlightning._native import call_blocking, encode
store = agl.InMemoryLightningStore()
import asyncio
started = asyncio.run(store.start_rollout(1))
print("waiting", flush=True)
try:
    call_blocking(store._core(), "wait_for_rollouts", encode({"rollout_ids": [started.rollout_id]}))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "interrupted\n"
    assert process.returncode == 0
