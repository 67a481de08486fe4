"""What OpenTelemetry's own exporters send to a store, over every protocol and compression that they know."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import zstandard
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.trace import Link, SpanContext, Status, StatusCode
from store_server import StoreServer

import agentlightning as agl
from agentlightning.semconv import LightningResourceAttributes as Ids

NODE = Path(__file__).parents[2] / "tests/node"

ATTRIBUTES: dict[str, Any] = {
    "text": "grüße 🌍",
    "whole": 42,
    "half": 0.5,
    "yes": True,
    "texts": ["a", "b"],
    "ids": [1, 2, 3],
}


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    server = StoreServer("--backend", "memory", "--otlp-grpc", "0")
    server.start()
    yield server
    assert server.stop(signal.SIGTERM) == 0


@pytest_asyncio.fixture
async def store(server: StoreServer) -> AsyncIterator[agl.LightningStore]:
    client = agl.LightningStoreClient(server.url)
    yield client
    await client.close()


@pytest_asyncio.fixture
async def attempt(store: agl.LightningStore) -> agl.Attempt:
    return (await store.start_rollout("task")).attempt


def ids_of(attempt: agl.Attempt) -> dict[str, str]:
    return {Ids.ROLLOUT_ID.value: attempt.rollout_id, Ids.ATTEMPT_ID.value: attempt.attempt_id}


async def spans_of(store: agl.LightningStore, attempt: agl.Attempt) -> list[agl.Span]:
    return list(await store.query_spans(attempt.rollout_id))


class Watched(SpanExporter):
    """Remembers how the exports of another exporter went."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.results: list[SpanExportResult] = []

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        self.results.append(self._exporter.export(spans))
        return self.results[-1]

    def shutdown(self) -> None:
        self._exporter.shutdown()


def http(server: StoreServer, compression: Compression) -> SpanExporter:
    return HttpExporter(endpoint=f"{server.url}/v1/traces", compression=compression)


def over_grpc(server: StoreServer, compression: grpc.Compression) -> SpanExporter:
    endpoint = f"127.0.0.1:{server.grpc_port}"
    return GrpcExporter(endpoint=endpoint, insecure=True, compression=compression)


EXPORTERS = {
    "http": partial(http, compression=Compression.NoCompression),
    "http-gzip": partial(http, compression=Compression.Gzip),
    "http-deflate": partial(http, compression=Compression.Deflate),
    "grpc": partial(over_grpc, compression=grpc.Compression.NoCompression),
    "grpc-gzip": partial(over_grpc, compression=grpc.Compression.Gzip),
    "grpc-deflate": partial(over_grpc, compression=grpc.Compression.Deflate),
}


@pytest.mark.parametrize("kind", EXPORTERS)
async def test_python_exporters(
    kind: str, server: StoreServer, store: agl.LightningStore, attempt: agl.Attempt
) -> None:
    exporter = Watched(EXPORTERS[kind](server))
    provider = TracerProvider(resource=Resource({"service.name": "python agent", **ids_of(attempt)}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    other = SpanContext(trace_id=0xD, span_id=0xE, is_remote=False)
    with tracer.start_as_current_span("outer") as outer:
        links = [Link(other, {"why": "x"})]
        with tracer.start_as_current_span("inner", attributes=ATTRIBUTES, links=links) as inner:
            inner.add_event("token", {"index": 7}, timestamp=1_700_000_001_000_000_000)
            inner.set_status(Status(StatusCode.ERROR, "went wrong"))
    # More than one batch; the names say in which order they ended.
    for number in range(600):
        tracer.start_span(f"step {number}", attributes={"n": number}).end()
    provider.shutdown()
    assert set(exporter.results) == {SpanExportResult.SUCCESS}

    spans = await spans_of(store, attempt)
    assert [span.name for span in spans] == ["inner", "outer", *(f"step {number}" for number in range(600))]
    assert [span.sequence_id for span in spans] == list(range(1, 603))
    assert [span.attributes.get("n") for span in spans[2:]] == list(range(600))
    got = spans[0]
    assert got.attributes == ATTRIBUTES
    ids = inner.get_span_context()
    assert (got.trace_id, got.span_id) == (f"{ids.trace_id:032x}", f"{ids.span_id:016x}")
    assert got.parent_id == f"{outer.get_span_context().span_id:016x}" == spans[1].span_id
    assert got.status == agl.TraceStatus(status_code="ERROR", description="went wrong")
    assert [(event.name, event.attributes, event.timestamp) for event in got.events] == [
        ("token", {"index": 7}, 1_700_000_001.0)
    ]
    assert [(link.context.span_id, link.attributes) for link in got.links] == [("0" * 15 + "e", {"why": "x"})]
    assert got.resource.attributes == {"service.name": "python agent", **ids_of(attempt)}
    assert got.start_time is not None
    assert got.end_time is not None
    assert 1.7e9 < got.start_time <= got.end_time


def text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


def odd_request(attempt: agl.Attempt) -> ExportTraceServiceRequest:
    """A span with values that 0.3's models know nothing of, and another of an unknown rollout."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for rollout_id in (attempt.rollout_id, "ro-nowhere"):
        span = spans.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, name="odd")
        for key, value in {**ids_of(attempt), Ids.ROLLOUT_ID.value: rollout_id}.items():
            span.attributes.add(key=key, value=text(value))
        values = [AnyValue(int_value=1), text("a"), AnyValue()]
        span.attributes.add(key="null")
        span.attributes.add(key="bytes", value=AnyValue(bytes_value=b"\xde\xad"))
        span.attributes.add(key="mixed", value=AnyValue(array_value=ArrayValue(values=values)))
        inner = KeyValue(key="list", value=AnyValue(array_value=ArrayValue(values=values)))
        span.attributes.add(key="map", value=AnyValue(kvlist_value=KeyValueList(values=[inner])))
    return request


ODD: dict[str, Any] = {
    "null": None,
    "bytes": {"bytesValue": "3q0="},
    "mixed": [1, "a", None],
    "map": {"list": [1, "a", None]},
}


async def check_odd(store: agl.LightningStore, attempt: agl.Attempt) -> None:
    [span] = await spans_of(store, attempt)
    assert span.attributes == {**ids_of(attempt), **ODD}


async def test_grpc_tells_what_it_did_not_take(
    server: StoreServer, store: agl.LightningStore, attempt: agl.Attempt
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        service = TraceServiceStub(channel)
        answer = service.Export(odd_request(attempt), timeout=20)
        assert answer.partial_success.rejected_spans == 1
        assert answer.partial_success.error_message == "1 span: Rollout ro-nowhere not found"
        await check_odd(store, attempt)

        raw = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        with pytest.raises(grpc.RpcError) as refused:
            raw(b"\x0a\xff", timeout=20)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith("Unable to parse OTLP traces payload: ")
        metrics = channel.unary_unary("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export")
        with pytest.raises(grpc.RpcError) as unknown:
            metrics(b"", timeout=20)
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


def post(url: str, body: bytes, content_type: str, encoding: str = "identity") -> tuple[int, bytes]:
    headers = {"content-type": content_type, "content-encoding": encoding}
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


async def test_zstd_as_facebooks_library_writes_it(
    server: StoreServer, store: agl.LightningStore, attempt: agl.Attempt
) -> None:
    body = zstandard.ZstdCompressor(level=19).compress(odd_request(attempt).SerializeToString())
    status, answer = post(f"{server.url}/v1/traces", body, "application/x-protobuf", "zstd")
    assert status == 200
    assert ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans == 1
    await check_odd(store, attempt)
    status, _ = post(f"{server.url}/v1/traces", body[:-8], "application/x-protobuf", "zstd")
    assert status == 400


def test_clients_of_old_get_text(server: StoreServer, attempt: agl.Attempt) -> None:
    """Whoever does not say that it is a client of ours gets what 0.3's models can read."""
    post(f"{server.url}/v1/traces", odd_request(attempt).SerializeToString(), "application/x-protobuf")
    url = f"{server.url}/v1/agl/spans?rollout_id={attempt.rollout_id}"
    with urllib.request.urlopen(url, timeout=20) as response:
        [span] = json.load(response)["items"]
    assert {key: span["attributes"][key] for key in ODD} == {
        "null": "null",
        "bytes": "dead",
        "mixed": '[1,"a",null]',
        "map": '{"list":[1,"a",null]}',
    }
    # What was refused before now passes the models that refuse it.
    assert agl.Span.model_validate(span).attributes == span["attributes"]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("format", ["json", "protobuf"])
async def test_node_exporters(
    format: str, compression: str, server: StoreServer, store: agl.LightningStore, attempt: agl.Attempt
) -> None:
    url = f"{server.url}/v1/traces"
    command = ["node", "export.mjs", format, url, attempt.rollout_id, attempt.attempt_id, compression]
    run = await asyncio.to_thread(
        subprocess.run, command, cwd=NODE, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert [result["code"] for result in report["results"]] == [0], report

    inner, outer = await spans_of(store, attempt)
    assert [(span.trace_id, span.span_id) for span in (inner, outer)] == [
        (ids["traceId"], ids["spanId"]) for ids in report["ids"]
    ]
    assert (inner.parent_id, outer.parent_id) == (None, inner.span_id)
    assert (inner.sequence_id, outer.sequence_id) == (1, 2)
    assert inner.attributes == {
        **ATTRIBUTES,
        "large": 2**53 - 1,
        "mixed": [1, 0.5],
        "none": [],
    }
    assert [type(inner.attributes[key]) for key in ("whole", "half", "yes")] == [int, float, bool]
    assert (inner.start_time, inner.end_time) == (1_700_000_000.5, 1_700_000_002.25)
    assert inner.status == agl.TraceStatus(status_code="ERROR", description="went wrong")
    assert [(event.name, event.attributes, event.timestamp) for event in inner.events] == [
        ("token", {"index": 7}, 1_700_000_001.0)
    ]
    assert [(link.context.trace_id, link.attributes) for link in inner.links] == [("0d" * 16, {"why": "x"})]
    assert inner.resource.attributes["service.name"] == "node agent"


async def test_the_exporter_that_is_told_its_rollout(store: agl.LightningStore) -> None:
    from agentlightning.utils.otlp import LightningStoreOTLPExporter

    attempts = [(await store.start_rollout(number)).attempt for number in range(2)]
    exporter = LightningStoreOTLPExporter()
    provider = TracerProvider(resource=Resource({"service.name": "agent"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    tracer.start_span("before").end()
    for attempt in attempts:
        exporter.enable_store_otlp(store.otlp_traces_endpoint(), attempt.rollout_id, attempt.attempt_id)
        tracer.start_span("within", attributes={"k": "v"}).end()
    exporter.disable_store_otlp()
    tracer.start_span("after").end()
    provider.shutdown()
    for attempt in attempts:
        (span,) = await spans_of(store, attempt)
        assert (span.name, span.attributes) == ("within", {"k": "v"})
        assert span.resource.attributes["service.name"] == "agent"
        assert span.resource.attributes.items() >= ids_of(attempt).items()


async def test_a_request_is_read_as_a_store_reads_it(memory: agl.InMemoryLightningStore) -> None:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from agentlightning.utils.otlp import spans_from_proto

    server = agl.LightningStoreServer(memory, "127.0.0.1", 0)
    await server.start()
    try:
        rollout = await memory.start_rollout("task")
        ids = {
            "agentlightning.rollout_id": rollout.rollout_id,
            "agentlightning.attempt_id": rollout.attempt.attempt_id,
        }
        exporter = InMemorySpanExporter()
        provider = TracerProvider(resource=Resource(ids, "https://schema"))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        with tracer.start_as_current_span("outer", attributes={"text": "a", "list": [1, 2]}) as outer:
            outer.add_event("event", {"flag": True})
            link = Link(outer.get_span_context(), {"why": "so"})
            with tracer.start_as_current_span("inner", links=[link]) as inner:
                inner.set_attribute("number", 0.5)
                inner.record_exception(ValueError("broken"))
                inner.set_status(Status(StatusCode.ERROR, "broken"))
        request = encode_spans(exporter.get_finished_spans())
        sent = request.resource_spans[0].scope_spans[0].spans
        # What an SDK can't send.
        sent[0].attributes.add(key="bytes").value.bytes_value = b"\x01\xff"
        sent[0].attributes.add(key="none")
        pair = sent[0].attributes.add(key="object").value.kvlist_value.values.add(key="k")
        pair.value.int_value = 1

        issued: list[Any] = []

        async def issue(pairs: Any) -> list[int]:
            issued.append(list(pairs))
            return [number + 1 for number in range(len(pairs))]

        read = await spans_from_proto(request, issue)
        assert issued == [[(rollout.rollout_id, rollout.attempt.attempt_id)] * 2]
        post = urllib.request.Request(
            f"{server.endpoint}/v1/traces",
            request.SerializeToString(),
            {"Content-Type": "application/x-protobuf"},
        )
        (await asyncio.to_thread(urllib.request.urlopen, post)).close()
        stored = await memory.query_spans(rollout.rollout_id)
        assert [span.name for span in read] == [span.name for span in stored] == ["inner", "outer"]
        for mine, theirs in zip(read, stored, strict=True):
            for name in ("sequence_id", "trace_id", "span_id", "parent_id", "status", "links"):
                assert getattr(mine, name) == getattr(theirs, name), name
            # Nanoseconds become seconds by way of other roundings.
            for event, other in zip(mine.events, theirs.events, strict=True):
                assert (event.name, event.attributes) == (other.name, other.attributes)
                assert event.timestamp == pytest.approx(other.timestamp, rel=0, abs=1e-6)
            assert mine.start_time == pytest.approx(theirs.start_time, rel=0, abs=1e-6)
            assert mine.end_time == pytest.approx(theirs.end_time, rel=0, abs=1e-6)
            assert mine.resource == theirs.resource
        assert read[1].attributes == stored[1].attributes
        assert read[0].attributes == {"number": 0.5, "bytes": "01ff", "none": "null", "object": '{"k": 1}'}

        # Its own attributes come first; what names no rollout, or a place that is none, is seen to.
        for key, value in (("rollout_id", "r"), ("attempt_id", "a"), ("span_sequence_id", "7")):
            sent[0].attributes.add(key=f"agentlightning.{key}").value.string_value = value
        sent[1].attributes.add(key="agentlightning.span_sequence_id").value.int_value = -1
        first, second = await spans_from_proto(request, issue)
        assert (first.rollout_id, first.attempt_id, first.sequence_id) == ("r", "a", 7)
        assert (second.sequence_id, len(issued[-1])) == (1, 1)
        del request.resource_spans[0].resource.attributes[:]
        assert [span.name for span in await spans_from_proto(request, issue)] == ["inner"]
    finally:
        await server.stop()


@pytest_asyncio.fixture
async def own_server() -> AsyncIterator[tuple[str, list[Any]]]:
    """A server of one's own that takes OTLP: its address, and the requests that it has been sent."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from agentlightning.utils.otlp import handle_otlp_export
    from agentlightning.utils.server_launcher import PythonServerLauncher, PythonServerLauncherArgs

    taken: list[Any] = []

    async def take(message: Any) -> None:
        taken.append(message)

    async def traces(request: Request) -> Response:
        classes = ExportTraceServiceRequest, ExportTraceServiceResponse
        return await handle_otlp_export(request, *classes, take, "traces")

    async def metrics(request: Request) -> Response:
        classes = ExportMetricsServiceRequest, ExportMetricsServiceResponse
        return await handle_otlp_export(request, *classes, take, "metrics")

    async def ignored(request: Request) -> Response:
        classes = ExportTraceServiceRequest, ExportTraceServiceResponse
        return await handle_otlp_export(request, *classes, None, "traces")

    paths = {"/v1/traces": traces, "/v1/metrics": metrics, "/ignored": ignored}
    app = Starlette(routes=[Route(path, endpoint, methods=["POST"]) for path, endpoint in paths.items()])
    launcher = PythonServerLauncher(
        app, PythonServerLauncherArgs(host="127.0.0.1", launch_mode="thread", n_workers=1)
    )
    await launcher.start()
    try:
        yield launcher.endpoint, taken
    finally:
        await launcher.stop()


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
async def test_a_server_of_ones_own_takes_spans_into_a_store(
    own_server: tuple[str, list[Any]], memory: agl.InMemoryLightningStore, compression: Compression
) -> None:
    from agentlightning.utils.otlp import spans_from_proto

    url, taken = own_server
    attempt = (await memory.start_rollout("task")).attempt
    provider = TracerProvider(resource=Resource(ids_of(attempt)))
    exporter = HttpExporter(f"{url}/v1/traces", compression=compression)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("test").start_span("sent", attributes={"k": "v"}).end()
    provider.shutdown()
    (request,) = taken
    await memory.add_many_spans(await spans_from_proto(request, memory.get_many_span_sequence_ids))
    (span,) = await spans_of(memory, attempt)
    assert (span.name, span.attributes, span.sequence_id) == ("sent", {"k": "v"}, 1)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "words"),
    [
        ("/ignored", b"", {}, 200, ""),
        ("/v1/traces", b"", {"Content-Type": "Application/X-Protobuf; v=1"}, 200, ""),
        ("/v1/traces", b"{}", {"Content-Type": "application/json"}, 400, "'application/x-protobuf'"),
        ("/v1/metrics", b"\xff", {}, 400, "Unable to parse OTLP metrics payload: "),
        ("/v1/traces", b"?", {"Content-Encoding": "gzip"}, 400, "Unable to decompress the gzip payload: "),
        ("/v1/traces", gzip.compress(b"")[:-3], {"Content-Encoding": "gzip"}, 400, "Unable to decompress"),
        ("/v1/traces", b"", {"Content-Encoding": "br"}, 415, "expected one of identity, gzip"),
    ],
)
@pytest.mark.parametrize("accepted", ["identity", "gzip, br", "gzip;q=0"])
async def test_a_server_of_ones_own_says_what_is_wrong(
    own_server: tuple[str, list[Any]],
    path: str,
    body: bytes,
    headers: dict[str, str],
    status: int,
    words: str,
    accepted: str,
) -> None:
    from google.rpc.status_pb2 import Status as RpcStatus

    url, taken = own_server
    every = {"Content-Type": "application/x-protobuf", "Accept-Encoding": accepted, **headers}
    request = urllib.request.Request(f"{url}{path}", body, every)
    try:
        answer: Any = await asyncio.to_thread(urllib.request.urlopen, request, timeout=20)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        content = answer.read()
    assert (answer.status, answer.headers["content-type"]) == (status, "application/x-protobuf")
    compressed = bool(content) and accepted == "gzip, br"
    assert answer.headers["content-encoding"] == ("gzip" if compressed else None)
    said = RpcStatus.FromString(gzip.decompress(content) if compressed else content).message
    assert words in said if words else content == b""
    assert len(taken) == (status == 200 and path == "/v1/traces")


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_server_of_ones_own_bounds_what_it_takes(
    own_server: tuple[str, list[Any]], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentlightning.utils import otlp

    url, taken = own_server
    request = ExportTraceServiceRequest()
    request.resource_spans.add(schema_url="x" * 2000)
    body = request.SerializeToString()
    body = gzip.compress(body) if encoding == "gzip" else body
    content_type = "application/x-protobuf"
    status, _ = await asyncio.to_thread(post, f"{url}/v1/traces", body, content_type, encoding)
    assert (status, len(taken)) == (200, 1)
    monkeypatch.setattr(otlp, "_BODY_LIMIT", 1000)
    status, said = await asyncio.to_thread(post, f"{url}/v1/traces", body, content_type, encoding)
    assert status == 413
    assert b"more than 1000 bytes" in said
    assert len(taken) == 1


async def test_a_server_of_ones_own_needs_starlette(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentlightning.utils.otlp import handle_otlp_export

    monkeypatch.setitem(sys.modules, "starlette.responses", None)
    request: Any = None
    classes = ExportTraceServiceRequest, ExportTraceServiceResponse
    with pytest.raises(ImportError, match="pip install starlette"):
        await handle_otlp_export(request, *classes, None, "traces")


async def test_what_agentops_would_export_goes_nowhere_unless_told(
    own_server: tuple[str, list[Any]],
) -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    from agentlightning.instrumentation import agentops
    from agentlightning.instrumentation.agentops import (
        BypassableOTLPMetricExporter,
        BypassableOTLPSpanExporter,
    )

    url, taken = own_server
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(BypassableOTLPSpanExporter(f"{url}/v1/traces")))
    metric_exporter = BypassableOTLPMetricExporter(f"{url}/v1/metrics")
    reader = PeriodicExportingMetricReader(metric_exporter, export_interval_millis=float("inf"))
    meters = MeterProvider([reader])
    counter = meters.get_meter("test").create_counter("calls")
    try:
        for enabled in (False, True, False):
            agentops.enable_agentops_service(enabled)
            provider.get_tracer("test").start_span("span").end()
            counter.add(1)
            assert meters.force_flush()
    finally:
        agentops.enable_agentops_service(False)
        provider.shutdown()
        meters.shutdown()
    assert [type(message) for message in taken] == [ExportTraceServiceRequest, ExportMetricsServiceRequest]
