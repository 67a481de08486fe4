"""The package as a whole: what it exports, what importing it costs, and the command that comes with it."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import agentlightning as agl
from agentlightning._exports import MODULE_OF, SUBMODULES

IMPORT_CPU_SECONDS = 0.35
HEAVY = ("pydantic", "opentelemetry", "openai", "aiohttp", "asyncio", "agentlightning.types")


def python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_light() -> None:
    script = """
import json, resource, sys
before = resource.getrusage(resource.RUSAGE_SELF)
import agentlightning
after = resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps([cpu, sorted(sys.modules)]))
"""
    cpu, modules = json.loads(python(script))
    assert cpu <= IMPORT_CPU_SECONDS
    assert [name for name in HEAVY if name in modules] == []


def test_using_a_store_pulls_in_no_framework() -> None:
    script = """
import asyncio, json, sys
import agentlightning as agl
asyncio.run(agl.InMemoryLightningStore().enqueue_rollout(1))
print(json.dumps(sorted(sys.modules)))
"""
    modules = json.loads(python(script))
    assert [name for name in ("opentelemetry", "openai", "aiohttp", "rich") if name in modules] == []


@pytest.mark.parametrize("name", sorted(MODULE_OF))
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(agl, name)
    assert value is getattr(importlib.import_module(MODULE_OF[name]), name)
    assert name in dir(agl)


@pytest.mark.parametrize("name", sorted(SUBMODULES))
def test_submodules_are_attributes(name: str) -> None:
    assert name in dir(agl)
    assert python(f"import agentlightning as agl; print(agl.{name}.__name__)") == f"agentlightning.{name}\n"


def test_names_that_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        agl.Nonsense  # noqa: B018
    assert isinstance(agl.tracer, ModuleType)
    from agentlightning import store

    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        store.Nonsense  # noqa: B018


def test_type_checkers_see_every_public_name(tmp_path: Path) -> None:
    script = tmp_path / "use.py"
    script.write_text("import agentlightning as agl\n" + "".join(f"agl.{name}\n" for name in MODULE_OF))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--follow-imports=silent", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout


def test_type_checkers_accept_agents_as_users_write_them(tmp_path: Path) -> None:
    script = Path(__file__).parent / "typed" / "agents.py"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--strict", "--follow-imports=silent", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout


def agl_command(*args: str) -> list[str]:
    return [sys.executable, "-m", "agentlightning.cli", *args]


def test_the_command_is_there() -> None:
    done = subprocess.run(agl_command("--help"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "store" in done.stdout
    assert subprocess.run(agl_command("nonsense"), capture_output=True, timeout=60).returncode == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(how: signal.Signals, tmp_path: Path) -> None:
    command = agl_command("store", "--backend", "sqlite", "--path", str(tmp_path / "a.db"), "--port", "0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http://"))
        check = "import asyncio, sys, agentlightning as agl\n"
        check += "asyncio.run(agl.LightningStoreClient(sys.argv[1]).enqueue_rollout(1))"
        assert subprocess.run([sys.executable, "-c", check, address], timeout=60).returncode == 0
        server.send_signal(how)
        assert server.wait(60) == 0
    with agl.SqliteLightningStore(tmp_path / "a.db") as store:
        import asyncio

        assert asyncio.run(store.statistics())["total_rollouts"] == 1
