"""Waiting for work, following events, and removing spans, with every kind of store."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.store.errors import SpansGoneError
from agentlightning.utils.id import generate_id

SOON = 20.0


async def _until_known(store: agl.LightningStore, worker_id: str) -> None:
    """A worker is known once it has found the queue empty."""
    while await store.get_worker_by_id(worker_id) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def test_waiting_for_work_ends_with_the_work(store: agl.LightningStore) -> None:
    waiting = asyncio.ensure_future(store.dequeue_rollout("w", wait=600))
    await asyncio.wait_for(_until_known(store, "w"), SOON)
    rollout = await store.enqueue_rollout("task")
    claimed = await asyncio.wait_for(waiting, SOON)
    assert claimed is not None
    assert claimed.rollout_id == rollout.rollout_id
    assert await store.dequeue_many_rollouts(limit=3, wait=0.05) == []


async def test_waiting_for_work_from_another_thread(store: agl.LightningStore) -> None:
    claimed: list[agl.AttemptedRollout | None] = []
    thread = threading.Thread(
        target=lambda: claimed.append(asyncio.run(store.dequeue_rollout("w", wait=600)))
    )
    thread.start()
    await asyncio.wait_for(_until_known(store, "w"), SOON)
    rollout = await store.enqueue_rollout("task")
    await asyncio.to_thread(thread.join, SOON)
    assert [one.rollout_id for one in claimed if one is not None] == [rollout.rollout_id]


@pytest.mark.parametrize("store", ["server"], indirect=True)
async def test_a_forked_child_waits_for_work(store: agl.LightningStore) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        exit_code = 1
        try:
            claimed = asyncio.run(store.dequeue_rollout("child", wait=60))
            os.write(write_end, (claimed.rollout_id if claimed else "none").encode())
            exit_code = 0
        finally:
            os._exit(exit_code)
    await asyncio.wait_for(_until_known(store, "child"), SOON)
    rollout = await store.enqueue_rollout("task")
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert os.read(read_end, 100).decode() == rollout.rollout_id
    os.close(read_end)
    os.close(write_end)


async def _next(events: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    return await asyncio.wait_for(anext(events), SOON)


async def test_events_are_followed_and_resumed(store: agl.LightningStore) -> None:
    events = store.subscribe(kind_in=["rollout", "attempt"])
    start = await _next(events)
    assert start["kind"] == "start"
    rollout = await store.start_rollout("task", mode="val")
    seen = [await _next(events) for _ in range(3)]
    assert [(one["kind"], one["status"]) for one in seen] == [
        ("rollout", "queuing"),
        ("rollout", "preparing"),
        ("attempt", "preparing"),
    ]
    assert {one["rollout_id"] for one in seen} == {rollout.rollout_id}
    await events.aclose()
    again = store.subscribe(rollout_id_in=[rollout.rollout_id], after=seen[0]["id"])
    assert [await _next(again), await _next(again)] == seen[1:]
    await again.aclose()
    with pytest.raises(ValueError, match="after must be the id of an event"):
        await anext(store.subscribe(after="yesterday"))


async def test_following_events_can_be_given_up(store: agl.LightningStore) -> None:
    events = store.subscribe(span_name="special")
    await _next(events)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(events), 0.05)


async def test_purged_spans_are_gone(store: agl.LightningStore) -> None:
    rollout = await store.start_rollout("task")
    span = agl.Span.from_attributes(
        attributes={},
        rollout_id=rollout.rollout_id,
        attempt_id=rollout.attempt.attempt_id,
        sequence_id=1,
        span_id=generate_id(16),
    )
    await store.add_span(span)
    ids = [rollout.rollout_id]
    assert await store.purge(rollout_id_in=ids) == {"rollouts": 0, "spans": 0}
    await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    assert await store.purge(ended_before=time.time() - 60) == {"rollouts": 0, "spans": 0}
    assert await store.purge(rollout_id_in=ids) == {"rollouts": 1, "spans": 1}
    with pytest.raises(SpansGoneError, match="have been evicted"):
        await store.query_spans(rollout.rollout_id)
    with pytest.raises(RuntimeError, match="have been evicted"):
        await store.query_spans(rollout.rollout_id, "latest")
    with pytest.raises(ValueError, match="rollout_id_in or ended_before"):
        await store.purge()
