"""The interface of a store, against every kind of store there is."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import ValidationError

import agentlightning as agl
from agentlightning.store.base import INTERFACE, LightningStore
from agentlightning.types import Resource
from agentlightning.types.tracer import STORED


def span(attempted: agl.AttemptedRollout, sequence_id: int = 1, **fields: Any) -> agl.Span:
    return agl.Span.from_attributes(
        attributes=fields.pop("attributes", {}),
        rollout_id=attempted.rollout_id,
        attempt_id=attempted.attempt.attempt_id,
        sequence_id=sequence_id,
        **fields,
    )


# Rollouts and attempts


async def test_a_rollout_from_queue_to_end(store: agl.LightningStore) -> None:
    resources = await store.add_resources({"llm": agl.LLM(endpoint="http://h", model="m")})
    config = agl.RolloutConfig(max_attempts=2, retry_condition=["failed"], timeout_seconds=60.0)
    queued = await store.enqueue_rollout({"q": [1, None, "ä"]}, "train", config=config, metadata={"k": "v"})
    assert type(queued) is agl.Rollout
    assert (queued.status, queued.mode, queued.resources_id) == ("queuing", "train", resources.resources_id)
    assert queued.rollout_id.startswith("ro-")
    assert queued.input == {"q": [1, None, "ä"]}
    assert queued.config == config
    assert queued.metadata == {"k": "v"}

    claimed = await store.dequeue_rollout(worker_id="w1")
    assert type(claimed) is agl.AttemptedRollout
    assert claimed.rollout_id == queued.rollout_id
    assert claimed.status == "preparing"
    assert (claimed.attempt.sequence_id, claimed.attempt.worker_id) == (1, "w1")
    assert await store.dequeue_rollout() is None

    await store.add_span(span(claimed))
    running = await store.get_rollout_by_id(queued.rollout_id)
    assert type(running) is agl.AttemptedRollout
    assert (running.status, running.attempt.status) == ("running", "running")
    worker = await store.get_worker_by_id("w1")
    assert worker is not None
    assert (worker.status, worker.current_rollout_id) == ("busy", queued.rollout_id)

    failed = await store.update_attempt(queued.rollout_id, claimed.attempt.attempt_id, status="failed")
    assert type(failed) is agl.Attempt
    assert failed.end_time is not None
    again = await store.dequeue_rollout("w2")
    assert again is not None
    assert again.attempt.sequence_id == 2
    await store.update_attempt(queued.rollout_id, "latest", status="succeeded")
    [ended] = await store.wait_for_rollouts(rollout_ids=[queued.rollout_id], timeout=5)
    assert type(ended) is agl.Rollout
    assert ended.status == "succeeded"
    assert ended.end_time is not None

    attempts = await store.query_attempts(queued.rollout_id)
    assert [(each.sequence_id, each.status) for each in attempts] == [(1, "failed"), (2, "succeeded")]
    latest = await store.get_latest_attempt(queued.rollout_id)
    assert latest == attempts[1]


async def test_a_deleted_rollout_leaves_nothing(store: agl.LightningStore) -> None:
    await store.enqueue_rollout("task")
    claimed = await store.dequeue_rollout("w")
    assert claimed is not None
    await store.add_span(span(claimed))
    await store.delete_rollout(claimed.rollout_id)
    assert await store.get_rollout_by_id(claimed.rollout_id) is None
    assert list(await store.query_spans(claimed.rollout_id)) == []
    worker = await store.get_worker_by_id("w")
    assert worker is not None
    assert (worker.status, worker.current_rollout_id) == ("idle", None)
    assert await store.wait_for_rollouts(rollout_ids=[claimed.rollout_id], timeout=5) == []
    with pytest.raises(ValueError, match="not found"):
        await store.delete_rollout(claimed.rollout_id)


async def test_start_rollout_and_start_attempt(store: agl.LightningStore) -> None:
    started = await store.start_rollout(1, mode="val", worker_id="w")
    assert (started.status, started.attempt.status, started.metadata) == ("preparing", "preparing", {})
    assert started.attempt.start_time == started.start_time
    assert await store.dequeue_rollout() is None
    again = await store.start_attempt(started.rollout_id)
    assert again.attempt.sequence_id == 2
    assert again.attempt.attempt_id != started.attempt.attempt_id


async def test_many_at_once_keep_their_order(store: agl.LightningStore) -> None:
    requests = [agl.EnqueueRolloutRequest(input=n, metadata={"n": n}) for n in range(5)]
    queued = await store.enqueue_many_rollouts(requests)
    assert [each.input for each in queued] == [0, 1, 2, 3, 4]
    claimed = await store.dequeue_many_rollouts(limit=3, worker_id="w")
    assert [each.rollout_id for each in claimed] == [each.rollout_id for each in queued[:3]]
    assert {each.attempt.worker_id for each in claimed} == {"w"}
    assert [each.input for each in await store.dequeue_many_rollouts(limit=9)] == [3, 4]
    assert await store.dequeue_many_rollouts(limit=0) == []
    assert await store.enqueue_many_rollouts([]) == []


async def test_concurrent_claims_are_distinct(store: agl.LightningStore) -> None:
    await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in range(20)])
    claims = await asyncio.gather(*(store.dequeue_rollout(f"w{n}") for n in range(30)))
    claimed = [claim.rollout_id for claim in claims if claim is not None]
    assert len(claimed) == len(set(claimed)) == 20


async def test_updates_change_exactly_what_is_given(store: agl.LightningStore) -> None:
    rollout = await store.enqueue_rollout("before", mode="train", metadata={"a": 1})
    updated = await store.update_rollout(rollout.rollout_id, input="after")
    assert type(updated) is agl.Rollout
    assert (updated.input, updated.mode, updated.metadata) == ("after", "train", {"a": 1})
    updated = await store.update_rollout(rollout.rollout_id, mode=None, metadata={"b": 2})
    assert (updated.input, updated.mode, updated.metadata) == ("after", None, {"b": 2})
    cancelled = await store.update_rollout(rollout.rollout_id, status="cancelled")
    assert cancelled.status == "cancelled"
    assert cancelled.end_time is not None


async def test_update_attempt(store: agl.LightningStore) -> None:
    started = await store.start_rollout(1)
    ids = (started.rollout_id, started.attempt.attempt_id)
    attempt = await store.update_attempt(*ids, worker_id="w", last_heartbeat_time=5.0, metadata={"m": [1]})
    assert (attempt.worker_id, attempt.last_heartbeat_time, attempt.metadata) == ("w", 5.0, {"m": [1]})
    assert (await store.update_attempt(*ids, status="running")).metadata == {"m": [1]}


async def test_query_rollouts(store: agl.LightningStore) -> None:
    modes: list[agl.RolloutMode | None] = ["train", "val", None, "val"]
    rollouts = await store.enqueue_many_rollouts(
        [agl.EnqueueRolloutRequest(input=n, mode=mode) for n, mode in enumerate(modes)]
    )
    ids = [each.rollout_id for each in rollouts]
    await store.dequeue_rollout()
    everything = await store.query_rollouts()
    assert [type(each) for each in everything] == [agl.AttemptedRollout, *[agl.Rollout] * 3]
    assert [each.rollout_id for each in everything] == ids
    assert [each.rollout_id for each in await store.query_rollouts(status_in=["preparing"])] == ids[:1]
    assert (await store.query_rollouts(status_in=[])).total == 0
    assert [each.rollout_id for each in await store.query_rollouts(mode_in=["val"])] == [ids[1], ids[3]]
    page = await store.query_rollouts(rollout_id_in=ids[1:], limit=2, offset=1, sort_by="start_time")
    assert (page.limit, page.offset, page.total, len(page)) == (2, 1, 3, 2)
    either = await store.query_rollouts(
        status_in=["preparing"], rollout_id_contains=ids[3], filter_logic="or"
    )
    assert [each.rollout_id for each in either] == [ids[0], ids[3]]


async def test_old_names_of_filters_still_work(memory: agl.InMemoryLightningStore) -> None:
    first, second = await memory.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in "ab"])
    with pytest.warns(DeprecationWarning, match="rollout_id_in"):
        found = await memory.query_rollouts(rollout_ids=[first.rollout_id])
    assert [each.input for each in found] == ["a"]
    with pytest.warns(DeprecationWarning, match="status_in"):
        found = await memory.query_rollouts(
            rollout_id_in=[second.rollout_id], status=["failed"], status_in=["queuing"]
        )
    assert [each.input for each in found] == ["b"]


async def test_waiting_ends_with_the_rollout_or_the_time(store: agl.LightningStore) -> None:
    first = await store.start_rollout(1)
    second = await store.start_rollout(2)
    ids = [second.rollout_id, "ro-unknown", first.rollout_id]
    waiting = asyncio.ensure_future(store.wait_for_rollouts(rollout_ids=ids[:1], timeout=30))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await store.update_rollout(second.rollout_id, status="failed")
    assert [each.rollout_id for each in await waiting] == [second.rollout_id]
    assert [each.rollout_id for each in await store.wait_for_rollouts(rollout_ids=ids, timeout=0)] == ids[:1]
    assert await store.wait_for_rollouts(rollout_ids=ids[2:], timeout=0.1) == []


async def test_a_wait_can_be_cancelled(store: agl.LightningStore) -> None:
    started = await store.start_rollout(1)
    waiting = asyncio.ensure_future(store.wait_for_rollouts(rollout_ids=[started.rollout_id]))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await store.statistics())["total_rollouts"] == 1


# Spans


async def test_the_very_span_comes_back(store: agl.LightningStore, caplog: pytest.LogCaptureFixture) -> None:
    started = await store.start_rollout(1)
    given = span(started, attributes={"ids": [1, 2], "text": "x", "score": 0.5, "flag": True}, name="n")
    assert await store.add_span(given) is given
    with caplog.at_level(logging.ERROR):
        assert await store.add_span(given) is None
    assert "Duplicated span added" in caplog.text
    [stored] = await store.query_spans(started.rollout_id)
    assert stored == given
    assert stored is not given


async def test_a_store_keeps_attributes_that_only_others_can_make(store: agl.LightningStore) -> None:
    started = await store.start_rollout(1)
    odd = {"null": None, "map": {"a": [1, None]}, "mixed": ["1", 2], "bytes": {"bytesValue": "3q0="}}
    given = span(started).model_dump() | {"attributes": odd}
    given = agl.Span.model_validate(given, context=STORED)
    assert await store.add_span(given) is given
    [stored] = await store.query_spans(started.rollout_id)
    assert stored == given
    assert stored.attributes == odd
    # Whoever works on spans has to live with it.
    agl.TracerTraceToTriplet().adapt([stored])


async def test_many_spans_return_those_that_were_new(store: agl.LightningStore) -> None:
    first, second = await store.start_rollout(1), await store.start_rollout(2)
    old = span(first)
    await store.add_span(old)
    new = [span(first, 2), span(second, 1), span(first, 3)]
    added = await store.add_many_spans([new[0], old, new[1], new[2], new[0]])
    assert [id(each) for each in added] == [id(each) for each in (new[0], new[2], new[1])]
    assert (await store.query_spans(first.rollout_id)).total == 3
    assert await store.add_many_spans([]) == []


async def test_query_spans(store: agl.LightningStore) -> None:
    started = await store.start_rollout(1)
    names = ["llm.call", "tool.call", "reward"]
    spans = [span(started, n + 1, name=name) for n, name in enumerate(names)]
    await store.add_many_spans(spans[::-1])
    rollout_id = started.rollout_id
    assert [each.name for each in await store.query_spans(rollout_id)] == names
    assert [each.name for each in await store.query_spans(rollout_id, "latest", name="reward")] == ["reward"]
    calls = await store.query_spans(rollout_id, name_contains="call", sort_order="desc", limit=1)
    assert ([each.name for each in calls], calls.total) == (["tool.call"], 2)
    either = await store.query_spans(rollout_id, name="reward", span_id=spans[0].span_id, filter_logic="or")
    assert [each.name for each in either] == ["llm.call", "reward"]
    assert (await store.query_spans("ro-unknown")).total == 0
    assert (await store.query_spans(rollout_id, "at-unknown")).total == 0


async def test_sequence_ids_belong_to_the_rollout(store: agl.LightningStore) -> None:
    pairs = [("A", "1"), ("B", "1"), ("A", "2"), ("A", "1")]
    assert list(await store.get_many_span_sequence_ids(pairs)) == [1, 1, 2, 3]
    assert await store.get_next_span_sequence_id("A", "latest") == 4
    started = await store.start_rollout(1)
    await store.add_span(span(started, 100))
    ids = (started.rollout_id, started.attempt.attempt_id)
    assert await store.get_next_span_sequence_id(*ids) == 101


async def test_otel_spans_get_their_place(store: agl.LightningStore) -> None:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

    started = await store.start_rollout(1)
    ids = (started.rollout_id, started.attempt.attempt_id)
    provider = TracerProvider()
    made: list[ReadableSpan] = []
    for n in range(3):
        with provider.get_tracer("t").start_as_current_span(f"s{n}", attributes={"n": n}) as current:
            pass
        assert isinstance(current, ReadableSpan)
        made.append(current)
    first = await store.add_otel_span(*ids, made[0])
    assert await store.get_next_span_sequence_id(*ids) == 2
    second = await store.add_otel_span(*ids, made[1])
    third = await store.add_otel_span(*ids, made[2], 10)
    assert await store.add_otel_span(*ids, made[2]) is None
    assert first is not None
    assert second is not None
    assert third is not None
    assert [each.sequence_id for each in (first, second, third)] == [1, 3, 10]
    stored = await store.query_spans(started.rollout_id)
    assert [(each.name, each.sequence_id) for each in stored] == [("s0", 1), ("s1", 3), ("s2", 10)]
    assert stored[0] == first
    provider.shutdown()


# Resources and workers


class Weights(Resource):
    """A resource type of the user's own."""

    resource_type: Literal["test-weights"] = "test-weights"
    shards: list[str]


async def test_resources_and_their_versions(store: agl.LightningStore) -> None:
    assert await store.get_latest_resources() is None
    first = await store.add_resources(
        {"w": Weights(shards=["a"]), "p": agl.PromptTemplate(template="{x}", engine="f-string")}
    )
    assert (first.version, len(first.resources_id)) == (1, 15)
    assert isinstance(first.resources["w"], Weights)
    second = await store.update_resources(first.resources_id, {"w": Weights(shards=["b"])})
    assert second.version == 2
    assert await store.get_latest_resources() == second
    assert await store.get_resources_by_id(first.resources_id) == second
    assert await store.get_resources_by_id(first.resources_id, version=1) == first
    assert await store.get_resources_by_id("rs-unknown") is None
    third = await store.update_resources("mine", {})
    page = await store.query_resources()
    assert [each.resources_id for each in page] == [first.resources_id, "mine"]
    assert [each.version for each in await store.query_resources(all_versions=True)] == [1, 2, 1]
    assert list(await store.query_resources(resources_id_contains="min")) == [third]


async def test_workers(store: agl.LightningStore) -> None:
    assert await store.get_worker_by_id("w") is None
    worker = await store.update_worker("w", {"cpu": 0.5})
    assert (worker.status, worker.heartbeat_stats) == ("unknown", {"cpu": 0.5})
    assert (await store.update_worker("w")).heartbeat_stats == {"cpu": 0.5}
    await store.dequeue_rollout("v")
    assert [each.worker_id for each in await store.query_workers(status_in=["idle"])] == ["v"]
    page = await store.query_workers(sort_by="worker_id", limit=1)
    assert ([each.worker_id for each in page], page.total) == (["v"], 2)


async def test_statistics_and_capabilities(store: agl.LightningStore) -> None:
    await store.start_rollout(1)
    statistics = await store.statistics()
    assert statistics["total_rollouts"] == statistics["total_attempts"] == 1
    assert statistics["total_spans"] == 0
    assert statistics["uptime"] >= 0
    assert store.capabilities["async_safe"]
    assert store.capabilities["thread_safe"]


# Bad input


NOT_FOUND: list[tuple[str, Callable[[agl.LightningStore, agl.AttemptedRollout], Any]]] = [
    ("Item.*does not exist", lambda s, r: s.update_rollout("ro-x", status="failed")),
    ("Rollout ro-x not found", lambda s, r: s.update_rollout("ro-x", status="failed")),
    ("Rollout ro-x not found", lambda s, r: s.start_attempt("ro-x")),
    ("Rollout ro-x not found", lambda s, r: s.update_attempt("ro-x", "at-x", status="failed")),
    ("Attempt at-x not found", lambda s, r: s.update_attempt(r.rollout_id, "at-x", status="failed")),
    (
        "Rollout ro-x not found",
        lambda s, r: s.add_span(agl.Span.from_attributes(attributes={}, rollout_id="ro-x", attempt_id="a")),
    ),
    (
        "Attempt at-x not found",
        lambda s, r: s.add_span(
            agl.Span.from_attributes(attributes={}, rollout_id=r.rollout_id, attempt_id="at-x")
        ),
    ),
]


@pytest.mark.parametrize(("words", "call"), NOT_FOUND)
async def test_what_is_not_there(
    store: agl.LightningStore,
    words: str,
    call: Callable[[agl.LightningStore, agl.AttemptedRollout], Any],
) -> None:
    started = await store.start_rollout(1)
    with pytest.raises(ValueError, match=words) as caught:
        await call(store, started)
    assert type(caught.value).__name__ == "NotFoundError"


async def test_no_attempts_yet(store: agl.LightningStore) -> None:
    queued = await store.enqueue_rollout(1)
    with pytest.raises(ValueError, match="No attempts found"):
        await store.update_attempt(queued.rollout_id, "at-x", status="failed")
    assert await store.get_latest_attempt(queued.rollout_id) is None
    assert await store.get_rollout_by_id("ro-unknown") is None
    assert (await store.query_attempts("ro-unknown")).total == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda s, r: s.enqueue_rollout(1, mode="bogus"),
        lambda s, r: s.update_rollout(r.rollout_id, status="bogus"),
        lambda s, r: s.update_rollout(r.rollout_id, config=None),
        lambda s, r: s.update_attempt(r.rollout_id, "latest", status="bogus"),
        lambda s, r: s.query_rollouts(sort_by="bogus"),
        lambda s, r: s.query_rollouts(status_in=["bogus"]),
        lambda s, r: s.query_rollouts(filter_logic="xor", rollout_id_contains="r"),
        lambda s, r: s.add_resources({"x": {"no": "type"}}),
    ],
)
async def test_arguments_that_make_no_sense(
    store: agl.LightningStore, call: Callable[[agl.LightningStore, agl.AttemptedRollout], Any]
) -> None:
    started = await store.start_rollout(1)
    with pytest.raises(ValueError, match=r"bogus|config|xor|resource_type"):
        await call(store, started)


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ((1, 2), [1, 2]),
        (Point(3), {"x": 3}),
        (agl.Triplet(prompt=1, response=2), {"prompt": 1, "response": 2, "reward": None, "metadata": {}}),
        (math.nan, "NaN"),
        ({"deep": [math.inf]}, {"deep": ["Infinity"]}),
        ({1: "a"}, {"1": "a"}),
        (2**63, 2**63),
        ([2**64 - 1, -(2**63), "9" * 30], [2**64 - 1, -(2**63), "9" * 30]),
        (1e-320, 1e-320),
        ("\u0000\U0001f600", "\u0000\U0001f600"),
    ],
)
async def test_inputs_become_json(memory: agl.InMemoryLightningStore, given: Any, stored: Any) -> None:
    rollout = await memory.enqueue_rollout(given)
    assert rollout.input == stored


async def test_arrays_are_taken_by_their_lists(memory: agl.InMemoryLightningStore) -> None:
    class Array:
        def tolist(self) -> list[int]:
            return [1, 2]

    assert (await memory.enqueue_rollout({"ids": Array()})).input == {"ids": [1, 2]}


async def test_what_has_no_json_is_named(memory: agl.InMemoryLightningStore) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match=r"^input\.rows\[1\] must be JSON: .*object"):
        await memory.enqueue_rollout({"rows": [1, object()]})
    with pytest.raises(TypeError, match=r"^metadata\.callback must be JSON"):
        await memory.enqueue_rollout(1, metadata={"callback": print})
    with pytest.raises(TypeError, match=r"^rollouts\[1\]\.input must be JSON"):
        await memory.enqueue_many_rollouts(
            [agl.EnqueueRolloutRequest(input=1), agl.EnqueueRolloutRequest(input=object())]
        )
    with pytest.raises(TypeError, match=r"^input\.loop must be JSON: .*[Cc]irc"):
        await memory.enqueue_rollout({"loop": loop})
    with pytest.raises(TypeError, match=r"^input must be JSON, which bytes are not"):
        await memory.enqueue_rollout(b"abc")
    with pytest.raises(TypeError, match=r"^input\.a\[1\] must be JSON, which bytes are not"):
        await memory.enqueue_rollout({"a": [1, b"abc"]})
    with pytest.raises(TypeError, match=r"^input\.a must have strings as keys"):
        await memory.enqueue_rollout({"a": {b"b": 1}})
    for number in (2**64, -(2**63) - 1):
        with pytest.raises(TypeError, match=r"^input\.a\[1\] must be an integer of at most 64 bits"):
            await memory.enqueue_rollout({"a": [1, number]})
        with pytest.raises(TypeError, match=r"^metadata\.n must be an integer of at most 64 bits"):
            await memory.enqueue_rollout(1, metadata={"n": number})
        span = agl.Span.from_attributes(
            attributes={"n": number}, rollout_id="r", attempt_id="a", sequence_id=1
        )
        with pytest.raises(TypeError, match=r"^attributes\.n must be an integer of at most 64 bits"):
            await memory.add_span(span)
    with pytest.raises(TypeError, match="heartbeat_stats"):
        await memory.update_worker("w", None)  # type: ignore[arg-type]
    assert (await memory.statistics())["total_rollouts"] == 0


async def test_statuses_that_there_are_not(store: agl.LightningStore) -> None:
    rollout = await store.start_rollout(1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"status": None}, "^status cannot be None: leave it out to keep it$"),
        ({"status": "foo"}, "^status must be one of queuing, preparing, .*, got 'foo'$"),
        ({"mode": "foo"}, "^mode must be one of train, val, test, got 'foo'$"),
        ({"config": None}, "^config cannot be None: leave it out to keep it$"),
    ]
    for update, message in cases:
        with pytest.raises(agl.InvalidArgumentError, match=message):
            await store.update_rollout(rollout.rollout_id, **update)
    for update, message in cases[:2]:
        with pytest.raises(agl.InvalidArgumentError, match=message.replace("queuing, ", "")):
            await store.update_attempt(rollout.rollout_id, "latest", **update)
    assert (await store.update_rollout(rollout.rollout_id, mode=None)).status == "preparing"


async def test_what_is_returned_is_the_callers_own(memory: agl.InMemoryLightningStore) -> None:
    rollout = await memory.enqueue_rollout({"a": [1]})
    rollout.input["a"].append(2)
    rollout.status = "failed"
    again = await memory.get_rollout_by_id(rollout.rollout_id)
    assert again is not None
    assert (again.input, again.status) == ({"a": [1]}, "queuing")


async def test_a_paused_queue_gives_out_nothing(store: agl.LightningStore) -> None:
    rollout = await store.enqueue_rollout(1)
    assert not await store.is_paused()
    await store.pause()
    assert await store.is_paused()
    assert await store.dequeue_rollout() is None
    waiting = asyncio.create_task(store.dequeue_rollout(wait=60))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await store.resume()
    assert not await store.is_paused()
    claimed = await asyncio.wait_for(waiting, 30)
    assert claimed is not None
    assert claimed.rollout_id == rollout.rollout_id


async def test_appended_spans_are_numbered_in_their_order(store: agl.LightningStore) -> None:
    attempted = await store.start_rollout(1)
    assert await store.get_next_span_sequence_id(attempted.rollout_id, "latest") == 1

    def span(name: str, span_id: str) -> agl.Span:
        return agl.Span.from_attributes(
            attributes={},
            rollout_id=attempted.rollout_id,
            attempt_id=attempted.attempt.attempt_id,
            name=name,
            span_id=span_id,
        )

    spans = [span("a", "1" * 16), span("b", "2" * 16), span("again", "1" * 16)]
    added = await store.append_spans(spans)
    assert [(item.name, item.sequence_id) for item in added] == [("a", 2), ("b", 3)]
    assert added[0] is spans[0]
    stored = await store.query_spans(attempted.rollout_id)
    assert [(item.name, item.sequence_id) for item in stored] == [("a", 2), ("b", 3)]
    assert await store.append_spans([]) == []
    with pytest.raises(ValueError, match="nowhere"):
        await store.append_spans([agl.Span.from_attributes(attributes={}, rollout_id="nowhere")])


# The interface itself


async def test_the_base_class_has_it_all_and_does_nothing() -> None:
    base = LightningStore()
    assert not any(base.capabilities.values())
    assert await base.statistics() == {"name": "LightningStore"}
    assert len(INTERFACE) == 36
    with pytest.raises(NotImplementedError, match=r"dequeue_rollout\(\)"):
        await base.dequeue_rollout()
    with pytest.raises(NotImplementedError, match="otlp_traces_endpoint"):
        base.otlp_traces_endpoint()


async def test_deadlines_fire_by_themselves(memory: agl.InMemoryLightningStore) -> None:
    rollout = await memory.enqueue_rollout(1, config=agl.RolloutConfig(timeout_seconds=0.1))
    await memory.dequeue_rollout()
    [ended] = await memory.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=30)
    assert ended.status == "failed"
    attempt = await memory.get_latest_attempt(rollout.rollout_id)
    assert attempt is not None
    assert attempt.status == "timeout"


@pytest.mark.parametrize(
    "options",
    [
        {"eviction_memory_threshold": 0.0},
        {"eviction_memory_threshold": 1.5},
        {"eviction_memory_threshold": 0},
        {"safe_memory_threshold": -1},
        {"eviction_memory_threshold": 0.5, "safe_memory_threshold": 0.5},
        {"eviction_memory_threshold": 100, "safe_memory_threshold": 0.5},
    ],
)
def test_memory_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="memory_threshold"):
        agl.InMemoryLightningStore(**options)


def test_memory_options_are_accepted() -> None:
    agl.InMemoryLightningStore(
        thread_safe=True,
        eviction_memory_threshold=0.7,
        safe_memory_threshold=0.5,
        span_size_estimator=lambda span: 1,
        tracker=None,
        scan_debounce_seconds=0,
    )


def test_the_wire_is_json_all_the_way(memory: agl.InMemoryLightningStore) -> None:
    from agentlightning._native import call_blocking, encode

    answer = call_blocking(memory._core(), "enqueue_rollout", encode({"input": 1}))
    assert json.loads(answer)["status"] == "queuing"
    with pytest.raises(ValueError, match="no method"):
        call_blocking(memory._core(), "drop_everything", b"{}")
    with pytest.raises(ValidationError):
        agl.EnqueueRolloutRequest.model_validate({})
