"""A store that is not made for threads, behind the wrapper that is."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import pytest

import agentlightning as agl


class Fragile(agl.LightningStore):
    """A store that notices two calls at once, from whatever thread, and that waits in the middle of each."""

    def __init__(self) -> None:
        self.inside = 0
        self.most_inside = 0
        self.calls = 0
        self.fails = False
        self.ended = False
        # Where there is one, calls do not go on before it is set.
        self.gate: asyncio.Event | None = None

    async def get_rollout_by_id(self, rollout_id: str) -> agl.Rollout | None:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            await asyncio.sleep(0.001)
            if self.gate is not None:
                await self.gate.wait()
            if self.fails:
                raise RuntimeError("broken")
            self.calls += 1
        finally:
            self.inside -= 1
        return None

    async def wait_for_rollouts(
        self, *, rollout_ids: list[str], timeout: float | None = None
    ) -> list[agl.Rollout]:
        while True:
            await asyncio.sleep(0.001)
            if self.ended:
                return []

    async def update_worker(self, worker_id: str, heartbeat_stats: Any = None) -> Any:
        self.ended = True


async def _hammer(store: agl.LightningStore, times: int) -> None:
    await asyncio.gather(*(store.get_rollout_by_id("r") for _ in range(times)))


async def test_calls_of_several_tasks_threads_and_loops_take_turns() -> None:
    inner = Fragile()
    store = agl.LightningStoreThreaded(inner)
    assert store.capabilities["thread_safe"]
    assert store.capabilities["async_safe"]
    threads = [threading.Thread(target=lambda: asyncio.run(_hammer(store, 20))) for _ in range(4)]
    for thread in threads:
        thread.start()
    await _hammer(store, 20)
    await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
    assert (inner.calls, inner.most_inside) == (100, 1)


async def test_waiting_for_rollouts_keeps_nobody_out() -> None:
    store = agl.LightningStoreThreaded(Fragile())
    waiting = asyncio.create_task(store.wait_for_rollouts(rollout_ids=["r"]))
    await asyncio.sleep(0.01)
    await asyncio.wait_for(store.update_worker("w"), 30)
    assert await asyncio.wait_for(waiting, 30) == []


async def test_failures_and_cancellations_pass_the_turn_on() -> None:
    inner = Fragile()
    store = agl.LightningStoreThreaded(inner)
    for steps in range(6):
        # The steps decide whether a task is cancelled in the queue, on its way out of it, or in the call.
        tasks = [asyncio.create_task(store.get_rollout_by_id("r")) for _ in range(6)]
        for _ in range(steps):
            await asyncio.sleep(0.0007)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
    inner.fails = True
    with pytest.raises(RuntimeError, match="broken"):
        await store.get_rollout_by_id("r")
    inner.fails = False
    await asyncio.wait_for(store.get_rollout_by_id("r"), 30)
    assert inner.most_inside == 1


async def test_a_task_cancelled_with_the_turn_on_its_way_passes_it_on() -> None:
    inner = Fragile()
    store = agl.LightningStoreThreaded(inner)
    first, second = (asyncio.create_task(store.get_rollout_by_id("r")) for _ in range(2))
    # Called when the first has ended, before the loop comes to tell the second of its turn.
    first.add_done_callback(lambda _: second.cancel())
    await asyncio.wait([first, second], timeout=30)
    assert second.cancelled()
    await asyncio.wait_for(store.get_rollout_by_id("r"), 30)


async def test_a_loop_that_was_closed_in_the_queue_keeps_nobody_out() -> None:
    inner = Fragile()
    inner.gate = asyncio.Event()
    store = agl.LightningStoreThreaded(inner)
    first = asyncio.create_task(store.get_rollout_by_id("r"))
    await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    call = store.get_rollout_by_id("r")

    def queue_up() -> None:
        # One step of the call, as a task of the other loop.
        async def start() -> None:
            call.send(None)

        loop.run_until_complete(start())
        loop.close()

    await asyncio.to_thread(queue_up)
    inner.gate.set()
    await first
    await asyncio.wait_for(store.get_rollout_by_id("r"), 30)
    assert inner.calls == 2
    call.close()


async def test_copies_have_a_lock_of_their_own() -> None:
    store = agl.LightningStoreThreaded(Fragile())
    running = asyncio.create_task(store.get_rollout_by_id("r"))
    await asyncio.sleep(0)
    copy = pickle.loads(pickle.dumps(store))
    await running
    await asyncio.wait_for(copy.get_rollout_by_id("r"), 30)
    assert copy.store.calls == 1
