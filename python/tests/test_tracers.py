"""What is special about each tracer, and what they have in common. Those that need a package are tested where
it is."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest

from agentlightning.emitter import emit_message, emit_reward, operation
from agentlightning.store import InMemoryLightningStore
from agentlightning.tracer import (
    AgentOpsTracer,
    DummyTracer,
    OtelTracer,
    Tracer,
    WeaveTracer,
    get_active_tracer,
)


async def _ids(store: InMemoryLightningStore) -> dict[str, str]:
    rollout = await store.start_rollout(input="x")
    return {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}


@pytest.mark.parametrize(("tracer", "package"), [(AgentOpsTracer, "agentops"), (WeaveTracer, "weave")])
def test_a_tracer_without_its_package_says_so(
    tracer: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        tracer()


def _run(script: str, *, package: str | None = None) -> str:
    if package is not None:
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, "-c", _OFFLINE + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Nobody is looked up, and nobody is called but on this machine.
_OFFLINE = """
import asyncio, socket, sys
import agentlightning as agl
from agentlightning.tracer import *

looked_up, connect = [], socket.socket.connect

def getaddrinfo(host, *args, **kwargs):
    if host not in ("127.0.0.1", "localhost"):
        looked_up.append(host)
        raise OSError("nobody is looked up here")
    return resolve(host, *args, **kwargs)

resolve, socket.getaddrinfo = socket.getaddrinfo, getaddrinfo

def names(spans):
    return [span.name for span in spans]
"""


def test_agentops_session_is_around_everything() -> None:
    _run(
        """
        from agentlightning.emitter import emit_reward, operation

        async def main():
            store = agl.InMemoryLightningStore()
            tracer = AgentOpsTracer()
            with tracer.lifespan(store):
                rollout = await store.start_rollout(input="x")
                ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
                async with tracer.trace_context(**ids):
                    assert agl.get_active_tracer() is tracer
                    with operation(name="step"):
                        emit_reward(1.0)
                spans = await store.query_spans(**ids)
                *inner, root = spans
                assert root.name == f"{rollout.rollout_id}.session", root.name
                assert root.attributes["agentops.span.kind"] == "session"
                assert root.parent_id is None
                assert names(inner) == ["agentlightning.annotation", "agentlightning.operation"]
                assert inner[1].parent_id == root.span_id
                try:
                    async with tracer.trace_context("named"):
                        raise KeyError("mine")
                except KeyError:
                    pass
                (failed,) = tracer.get_last_trace()
                assert failed.name == "named.session"
                assert "ERROR" in str(failed.attributes.get("agentops.session.end_state", "ERROR"))
                assert tracer.trace_run(lambda: 7) == 7
                assert names(tracer.get_last_trace()) == ["<lambda>.session"]
        asyncio.run(main())
        assert looked_up == [], looked_up
        """,
        package="agentops",
    )


def test_weave_ops_are_spans() -> None:
    _run(
        """
        import weave

        @weave.op
        def add(x):
            return {"sum": x + 1}

        async def main():
            store = agl.InMemoryLightningStore()
            tracer = WeaveTracer(project_name="mine")
            with tracer.lifespan(store):
                rollout = await store.start_rollout(input="x")
                ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
                async with tracer.trace_context("whole", **ids):
                    assert add(1) == {"sum": 2}
                    agl.emit_reward(1.0)
                    try:
                        add("x")
                    except TypeError:
                        pass
                good, reward, bad, root = await store.query_spans(**ids)
                assert names([good, reward, bad, root]) == [
                    "add", "agentlightning.annotation", "add", "whole"
                ]
                assert {good.parent_id, reward.parent_id, bad.parent_id} == {root.span_id}
                assert good.attributes["agentlightning.operation.name"] == "add"
                assert good.attributes["agentlightning.operation.input.x"] == 1
                assert good.attributes["agentlightning.operation.output.sum"] == 2
                assert not [key for key in good.attributes if key.startswith("weave.")]
                assert (good.status.status_code, bad.status.status_code) == ("OK", "ERROR")
                assert root.attributes["agentlightning.operation.input.agentlightning.rollout_id"]
            # Outside of traces, and afterwards, ops are plain functions.
            assert add(1) == {"sum": 2}
        asyncio.run(main())
        assert looked_up == [], looked_up
        """,
        package="weave",
    )


def test_weave_ops_are_spans_of_other_tracers_once_instrumented() -> None:
    _run(
        """
        from agentlightning.instrumentation.weave import instrument_weave, uninstrument_weave
        import weave

        @weave.op
        def add(x):
            return x + 1

        async def main():
            tracer = OtelTracer()
            with tracer.lifespan():
                for instrumented in (True, False):
                    if instrumented:
                        instrument_weave()
                    async with tracer.trace_context("whole"):
                        assert add(1) == 2
                    assert names(tracer.get_last_trace()) == (["add"] if instrumented else [])
                    if instrumented:
                        uninstrument_weave()
        asyncio.run(main())
        assert looked_up == [], looked_up
        """,
        package="weave",
    )


def test_a_provider_that_the_user_sets_later_is_the_global_one() -> None:
    _run(
        """
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        tracer = OtelTracer()

        async def main():
            with tracer.lifespan():
                async with tracer.trace_context():
                    with trace.get_tracer("early").start_as_current_span("before"):
                        pass
                    # The agent sets its own up in the middle of its work.
                    mine, exporter = TracerProvider(), InMemorySpanExporter()
                    mine.add_span_processor(SimpleSpanProcessor(exporter))
                    trace.set_tracer_provider(mine)
                    assert trace.get_tracer_provider() is mine
                    with trace.get_tracer("late").start_as_current_span("after"):
                        agl.emit_message("inside")
                with trace.get_tracer("late").start_as_current_span("outside"):
                    pass
            assert names(exporter.get_finished_spans()) == ["after", "outside"]
            before, inside, after = tracer.get_last_trace()
            assert (before.name, after.name) == ("before", "after")
            assert inside.parent_id == after.span_id
            # There is one set-up in a process, and it was the user's.
            trace.set_tracer_provider(TracerProvider())
            assert trace.get_tracer_provider() is mine
        asyncio.run(main())
        """
    )


async def test_traces_may_be_nested() -> None:
    store = InMemoryLightningStore()
    tracer = OtelTracer()
    with tracer.lifespan(store):
        outer, inner = await _ids(store), await _ids(store)
        async with tracer.trace_context(**outer):
            with operation(name="around"):
                emit_message("before")
                async with tracer.trace_context(**inner):
                    emit_message("inside")
                assert get_active_tracer() is tracer
                emit_message("after")
    names = ["agentlightning.message", "agentlightning.message", "agentlightning.operation"]
    assert [span.name for span in await store.query_spans(**outer)] == names
    (span,) = await store.query_spans(**inner)
    assert span.parent_id is None


def test_traces_without_async() -> None:
    tracer = OtelTracer()

    def agent(x: int) -> int:
        emit_reward(1.0)
        return x + 1

    with tracer.lifespan():
        assert tracer.trace_run(agent, 1) == 2
        assert [span.name for span in tracer.get_last_trace()] == ["agentlightning.annotation"]
    assert get_active_tracer() is None


@pytest.mark.parametrize("make", [OtelTracer, DummyTracer, Tracer])
def test_every_tracer_has_langchain_s_handler(make: type[Tracer]) -> None:
    pytest.importorskip("langchain_core")
    handler = make().get_langchain_handler()
    assert handler is OtelTracer().get_langchain_handler(tags=["x"])
    assert handler is OtelTracer().get_langchain_callback_handler()


def test_without_langchain_there_is_no_handler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "agentlightning.instrumentation.langchain", raising=False)
    monkeypatch.setitem(sys.modules, "langchain_core.callbacks.base", None)
    assert OtelTracer().get_langchain_handler() is None
    assert "without langchain-core" in caplog.text
