"""Applications of one's own, served in this loop, in a thread and in processes."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import socket
import urllib.request
from typing import Any

import pytest
from launched_app import app

import agentlightning as agl
from agentlightning.utils.server_launcher import PythonServerLauncher, PythonServerLauncherArgs

pytest.importorskip("uvicorn")

MODES: list[tuple[Any, int]] = [("asyncio", 1), ("thread", 1), ("mp", 1), ("mp", 2)]


class Entered:
    """A context that leaves a trace in the environment, and can go to another process."""

    def __enter__(self) -> None:
        os.environ["AGL_TEST_ENTERED"] = "yes"

    def __exit__(self, *error: object) -> None:
        os.environ.pop("AGL_TEST_ENTERED")


async def get(url: str) -> Any:
    def fetch() -> Any:
        with urllib.request.urlopen(url, timeout=20) as response:
            return json.load(response)

    return await asyncio.to_thread(fetch)


def args(mode: Any, workers: int = 1, **more: Any) -> PythonServerLauncherArgs:
    return PythonServerLauncherArgs(host="127.0.0.1", launch_mode=mode, n_workers=workers, **more)


@pytest.mark.parametrize(("mode", "workers"), MODES)
async def test_it_serves_starts_anew_and_stops(mode: Any, workers: int) -> None:
    launcher = PythonServerLauncher(
        app, args(mode, workers, healthcheck_url="health"), serve_context=Entered()
    )
    assert not launcher.is_running()
    endpoint = launcher.endpoint
    for start in (launcher.start, launcher.reload):
        await start()
        assert launcher.is_running()
        with pytest.raises(RuntimeError, match="running already"):
            await launcher.start()
        answers = [await get(endpoint) for _ in range(4)]
        assert all(answer["entered"] == "yes" for answer in answers)
        assert all((answer["pid"] == os.getpid()) == (mode != "mp") for answer in answers)
    await launcher.stop()
    assert not launcher.is_running()
    assert "AGL_TEST_ENTERED" not in os.environ
    with pytest.raises(OSError):  # noqa: PT011
        await get(endpoint)


@pytest.mark.parametrize(("mode", "workers"), MODES)
async def test_a_port_that_is_taken(mode: Any, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        launcher = PythonServerLauncher(app, args(mode, workers, port=taken.getsockname()[1]))
        with pytest.raises(RuntimeError, match=r"did not start up within .*in use"):
            await launcher.start()
    assert not launcher.is_running()


async def test_one_that_is_not_well_is_stopped() -> None:
    unwell = args("thread", healthcheck_url="/sick", startup_timeout=2.0)
    launcher = PythonServerLauncher(app, unwell)
    with pytest.raises(RuntimeError, match=r"not healthy at http://127.0.0.1:\d+/sick"):
        await launcher.start()
    assert not launcher.is_running()


class Failing:
    def __enter__(self) -> None:
        raise LookupError("the context fails")

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("mode", ["asyncio", "thread", "mp"])
async def test_a_start_that_fails_says_why(mode: Any) -> None:
    launcher = PythonServerLauncher(app, args(mode), serve_context=Failing())
    with pytest.raises(RuntimeError, match=r"did not start up within .*the context fails"):
        await launcher.start()
    assert not launcher.is_running()


async def test_serving_until_cancelled() -> None:
    launcher = PythonServerLauncher(app, args("thread"))
    serving = asyncio.ensure_future(launcher.run_forever())
    while not launcher.is_running():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await get(launcher.endpoint)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not launcher.is_running()


def test_arguments() -> None:
    with pytest.raises(ValueError, match="launch_mode must be"):
        PythonServerLauncher(app, PythonServerLauncherArgs(launch_mode="fork"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs launch_mode='mp'"):
        PythonServerLauncher(app, PythonServerLauncherArgs(n_workers=2))
    launcher = PythonServerLauncher(app, PythonServerLauncherArgs(healthcheck_url="health"))
    assert launcher.endpoint.startswith("http://0.0.0.0:")
    assert launcher.health_url == f"{launcher.access_endpoint}/health"
    copy = pickle.loads(pickle.dumps(launcher))
    assert copy.endpoint == launcher.endpoint


async def test_a_store_takes_its_address_from_launcher_args() -> None:
    arguments = PythonServerLauncherArgs(port=0, host="127.0.0.1", launch_mode="thread")
    server = agl.LightningStoreServer(agl.InMemoryLightningStore(), launcher_args=arguments)
    await server.start()
    client = agl.LightningStoreClient(server.endpoint)
    assert (await client.enqueue_rollout(1)).input == 1
    await client.close()
    await server.stop()
