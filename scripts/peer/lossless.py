#!/usr/bin/env python3
"""Spans with attributes of every type, as 0.3's own client reads them: lossless.py SERVER_URL.

Runs where agentlightning 0.3 is installed. 0.3's models take strings, booleans, numbers and lists of one of
these, and refuse a whole page of spans for one attribute that is something else. So the server tells their
client the rest as text.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from typing import Any

from checks import Checks
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from agentlightning import LightningStoreClient

# The attribute as it is sent over OTLP, as it is kept, and as 0.3 reads it.
CASES: dict[str, tuple[Any, Any, Any]] = {
    "text": ("x", "x", "x"),
    "number": (1, 1, 1),
    "share": (0.5, 0.5, 0.5),
    "flag": (True, True, True),
    "texts": (["a", "b"], ["a", "b"], ["a", "b"]),
    "numbers": ([1, 0.5], [1, 0.5], [1.0, 0.5]),
    "nothing in it": ([], [], []),
    "null": (None, None, "null"),
    "bytes": (b"\xde\xad", {"bytesValue": "3q0="}, "dead"),
    "many bytes": ([b"\x01", b""], [{"bytesValue": "AQ=="}, {"bytesValue": ""}], ["01", ""]),
    "mixed": (["a", 1], ["a", 1], '["a",1]'),
    "digits": (["1", 2], ["1", 2], '["1",2]'),
    "flags and numbers": ([True, 1], [True, 1], "[true,1]"),
    "nested": ([[1], []], [[1], []], "[[1],[]]"),
    "map": ({"a": {"b": [None]}}, {"a": {"b": [None]}}, '{"a":{"b":[null]}}'),
    "empty map": ({}, {}, "{}"),
}


def any_value(value: Any) -> AnyValue:
    match value:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
        case dict():
            return AnyValue(kvlist_value=KeyValueList(values=pairs(value)))
    raise TypeError(value)


def pairs(attributes: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]


def export(url: str, rollout_id: str, attempt_id: str) -> None:
    """Sends one span with the attributes wherever a span has some."""
    sent = {key: case[0] for key, case in CASES.items()}
    ids = {"agentlightning.rollout_id": rollout_id, "agentlightning.attempt_id": attempt_id}
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.extend(pairs(sent | ids))
    span = group.scope_spans.add().spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, name="odd")
    span.attributes.extend(pairs(sent))
    span.events.add(name="event").attributes.extend(pairs(sent))
    span.links.add(trace_id=b"\3" * 16, span_id=b"\4" * 8).attributes.extend(pairs(sent))
    headers = {"content-type": "application/x-protobuf"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/v1/traces", request.SerializeToString(), headers), timeout=20
    ) as response:
        assert response.read() == b"", "the server took the whole export"


def kept(url: str, rollout_id: str) -> dict[str, Any]:
    """What the server tells a client that can read it."""
    url = f"{url}/v1/agl/spans?rollout_id={rollout_id}"
    request = urllib.request.Request(url, headers={"x-agl-client": "test"})
    with urllib.request.urlopen(request, timeout=20) as response:
        attributes: dict[str, Any] = json.load(response)["items"][0]["attributes"]
        return attributes


async def main(url: str) -> Checks:
    client = LightningStoreClient(url)
    try:
        attempt = (await client.start_rollout("task")).attempt
        await asyncio.to_thread(export, url, attempt.rollout_id, attempt.attempt_id)
        [span] = await client.query_spans(attempt.rollout_id)
    finally:
        await client.close()
    stored = await asyncio.to_thread(kept, url, attempt.rollout_id)
    told = {
        "span": span.attributes,
        "event": span.events[0].attributes,
        "link": span.links[0].attributes or {},
        "resource": span.resource.attributes,
    }
    checks = Checks("lossless")
    for key, (_, as_kept, as_told) in CASES.items():
        # With their types: True equals 1.
        checks.equal(f"{key}, kept", repr(stored.get(key)), repr(as_kept))
        for place, attributes in told.items():
            checks.equal(f"{key} of the {place}", repr(attributes.get(key)), repr(as_told))
    return checks


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1].rstrip("/"))).exit()
