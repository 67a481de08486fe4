"""What is instrumented when, what is said of it, and that it is taken back."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx2
import openai
import pytest
import requests

import agentlightning as agl
from agentlightning import instrumentation
from agentlightning.instrumentation import patching
from agentlightning.tracer import OtelTracer


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_everything_is_taken_back() -> None:
    originals = [
        (owner, name, owner.__dict__.get(name))
        for owner, name in (
            (httpx2.Client, "send"),
            (httpx2.AsyncClient, "send"),
            (requests.adapters.HTTPAdapter, "send"),
            (openai.OpenAI, "request"),
        )
    ]
    first, second = OtelTracer(), OtelTracer()
    with first.lifespan():
        with second.lifespan():
            assert all(owner.__dict__.get(name) is not original for owner, name, original in originals)
        assert all(owner.__dict__.get(name) is not original for owner, name, original in originals)
    assert all(owner.__dict__.get(name) is original for owner, name, original in originals)
    assert not [finder for finder in sys.meta_path if type(finder).__name__ == "ImportWatch"]


@pytest.mark.parametrize("name", ["agentops", "agentops_langchain", "litellm"])
def test_names_of_0_3_have_everything_recorded_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    if name == "agentops":
        pytest.importorskip(name)
    module = importlib.import_module(f"agentlightning.instrumentation.{name}")
    instrument, uninstrument = (getattr(module, f"{how}_{name}") for how in ("instrument", "uninstrument"))
    original = httpx2.Client.send
    uninstrument()
    instrument()
    assert httpx2.Client.send is not original
    assert not caplog.records
    instrument()
    assert [record.message for record in caplog.records] == [
        f"instrument_{name}() has been called already; this call does nothing."
    ]
    with OtelTracer().lifespan():
        pass
    assert httpx2.Client.send is not original
    uninstrument()
    assert httpx2.Client.send is original
    uninstrument()
    assert httpx2.Client.send is original


def test_flags_of_0_3_say_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentlightning.instrumentation import agentops, vllm, weave

    for package in ("agentops", "litellm", "vllm", "weave"):
        there = importlib.util.find_spec(package) is not None
        assert getattr(instrumentation, f"{package.upper()}_INSTALLED") is there
        monkeypatch.setitem(sys.modules, package, None)
        assert getattr(instrumentation, f"{package.upper()}_INSTALLED") is False
    assert instrumentation.AGENTOPS_LANGCHAIN_INSTALLED is False
    assert agentops.instrument_agentops() is False
    agentops.uninstrument_agentops()
    with pytest.raises(ImportError, match="the package vllm"):
        vllm.instrument_vllm()
    with pytest.raises(ImportError, match="pip install weave"):
        weave.instrument_weave()
    with pytest.raises(TypeError, match="server must be left out, not object"):
        weave.instrument_weave(object())


def test_what_others_have_patched_since_stays() -> None:
    class Client:
        def send(self) -> str:
            return "sent"

    class Special(Client):
        pass

    patches = patching.Patches()
    assert patches.replace(Special, "send", lambda original: lambda self: f"seen {original(self)}")
    assert not patches.replace(Special, "send", lambda original: original)
    assert not patches.replace(Special, "missing", lambda original: original)
    assert Special().send() == "seen sent"
    ours = Special.send
    Special.send = lambda self: f"again {ours(self)}"  # type: ignore[method-assign]
    patches.undo()
    assert Special().send() == "again seen sent"
    assert Client().send() == "sent"


def test_findings_say_what_is_here() -> None:
    found = {finding.name: finding for finding in instrumentation.findings()}
    assert found["OpenAI SDK"].version == openai.__version__
    assert found["OpenAI SDK"].status == "off"
    assert found["CrewAI"].version is None or found["CrewAI"].status == "off"
    with OtelTracer().lifespan():
        assert {f.name: f.status for f in instrumentation.findings()}["OpenAI SDK"] == "recorded"


def test_instrument_says_so_too() -> None:
    said = _run(
        """
        import agentlightning as agl
        print(agl.instrument())
        import openai
        statuses = {finding.name: finding.status for finding in agl.instrument()}
        assert statuses["OpenAI SDK"] == "recorded", statuses
        """
    )
    assert "OpenAI SDK" in said
    assert "waits for its import" in said
    assert agl.instrument is instrumentation.instrument


@pytest.mark.parametrize("imports", [False, True])
def test_the_doctor(imports: bool) -> None:
    said = _run(
        "import sys; from agentlightning.cli import main; sys.exit(main(sys.argv[1:]))",
        "doctor",
        *(["--import"] if imports else []),
    )
    (line,) = [line for line in said.splitlines() if line.startswith("OpenAI SDK")]
    assert openai.__version__ in line
    assert ("recorded" in line) == imports
    assert "failed" not in said


def test_a_package_of_the_same_name_is_none_of_ours(tmp_path: Path) -> None:
    # Many a project has a package `agents`.
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("mine = True")
    said = _run(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import agentlightning as agl
        agl.setup_logging("INFO")
        agl.instrument()
        import agents
        assert agents.mine
        """,
        str(tmp_path),
    )
    assert "can't be recorded" not in said


def test_an_instrumentation_that_fails_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "crewai.py").write_text("unlike = 'what we know'")
    said = _run(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import agentlightning as agl
        agl.setup_logging("INFO")
        agl.instrument()
        import crewai
        assert crewai.unlike
        statuses = {library.name: agl.instrumentation._status[library.name] for library in
                    agl.instrumentation.LIBRARIES}
        assert statuses["CrewAI"].startswith("failed"), statuses
        assert statuses["httpx2"] == "waits for its import", statuses
        """,
        str(tmp_path),
    )
    assert "CrewAI can't be recorded" in said


def test_instrumentations_that_others_keep(tmp_path: Path) -> None:
    info = tmp_path / "openinference_instrumentation_agno-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: openinference-instrumentation-agno\nVersion: 1.2.3\n"
    )
    (info / "entry_points.txt").write_text("[openinference_instrumentor]\nagno = their_agno:Instrumentor\n")
    (tmp_path / "agno.py").write_text("def think(): return 'thought'")
    (tmp_path / "their_agno.py").write_text(
        textwrap.dedent(
            """
            import agno

            class Instrumentor:
                is_instrumented_by_opentelemetry = False

                def instrument(self, tracer_provider):
                    self.think, tracer = agno.think, tracer_provider.get_tracer("theirs")
                    def think():
                        with tracer.start_as_current_span("agno.think"):
                            return self.think()
                    agno.think = think

                def uninstrument(self):
                    agno.think = self.think
            """
        )
    )
    said = _run(
        """
        import asyncio, sys
        sys.path.insert(0, sys.argv[1])
        from agentlightning import instrumentation
        from agentlightning.tracer import OtelTracer
        tracer = OtelTracer()

        async def main():
            with tracer.lifespan():
                async with tracer.trace_context():
                    import agno
                    assert agno.think() == "thought"
                print(instrumentation.findings())
                return [span.name for span in tracer.get_last_trace()], agno.think

        names, patched = asyncio.run(main())
        assert names == ["agno.think"], names
        import agno
        assert agno.think is not patched
        """,
        str(tmp_path),
    )
    assert "openinference-instrumentation-agno" in said
    assert "1.2.3" in said
