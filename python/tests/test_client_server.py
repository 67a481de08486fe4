"""Serving a store, and reaching it."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import re
import socket
import urllib.request
from pathlib import Path

import pytest

import agentlightning as agl


async def test_the_server_speaks_http_from_start_to_stop(memory: agl.InMemoryLightningStore) -> None:
    server = agl.LightningStoreServer(memory, "127.0.0.1", 0, cors_allow_origins="http://page")
    await server.start()
    address = f"{server.endpoint}/v1/agl/statistics"

    def get() -> tuple[str | None, dict[str, object]]:
        request = urllib.request.Request(address, headers={"Origin": "http://page"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.headers["access-control-allow-origin"], json.load(answer)

    await memory.enqueue_rollout(1)
    origin, statistics = await asyncio.to_thread(get)
    assert origin == "http://page"
    assert statistics["total_rollouts"] == 1
    assert server.otlp_traces_endpoint() == f"{server.endpoint}/v1/traces"
    assert all(server.capabilities.values())
    with pytest.raises(RuntimeError, match="running already"):
        await server.start()
    await server.stop()
    await server.stop()
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(get)
    # It can be started again, at the same place.
    await server.start()
    assert (await asyncio.to_thread(get))[1]["total_rollouts"] == 1
    await server.stop()


async def test_a_taken_port(memory: agl.InMemoryLightningStore, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with caplog.at_level(logging.ERROR):
            for start in ("start", "run_forever"):
                server = agl.LightningStoreServer(memory, "127.0.0.1", port)
                with pytest.raises(RuntimeError, match="did not start up within"):
                    await getattr(server, start)()
        assert "address already in use" in caplog.text.lower()


async def test_run_forever_ends_when_cancelled(memory: agl.InMemoryLightningStore) -> None:
    server = agl.LightningStoreServer(memory, "127.0.0.1", 0)
    serving = asyncio.ensure_future(server.run_forever())
    await asyncio.sleep(0.05)
    client = agl.LightningStoreClient(server.endpoint, retry_delays=())
    assert await client.dequeue_rollout() is None
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    with pytest.raises(agl.StoreUnavailableError):
        await client.dequeue_rollout()


def test_options_of_the_server(memory: agl.InMemoryLightningStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert agl.LightningStoreServer(memory).endpoint == "http://127.0.0.1:4747"
    assert "4747" in caplog.text

    class LauncherArgs:
        host = "0.0.0.0"
        port = 5000
        launch_mode = "asyncio"
        access_host = "example.org"

    args = LauncherArgs()
    server = agl.LightningStoreServer(memory, launcher_args=args)
    assert server.launcher_args is args
    assert server.endpoint == "http://example.org:5000"
    with pytest.raises(ValueError, match="launcher_args"):
        agl.LightningStoreServer(memory, port=1, launcher_args=args)
    with pytest.raises(ValueError, match="does not support zero-copy"):
        agl.LightningStoreServer(memory, port=1, launch_mode="mp")
    with pytest.raises(ValueError, match="launch_mode"):
        agl.LightningStoreServer(memory, port=1, launch_mode="rocket")  # type: ignore[arg-type]
    assert agl.LightningStoreServer(memory, "::1", 5000).endpoint == "http://[::1]:5000"


async def test_bad_origins_and_hosts(memory: agl.InMemoryLightningStore) -> None:
    with pytest.raises(ValueError, match="origin"):
        await agl.LightningStoreServer(memory, "127.0.0.1", 0, cors_allow_origins=["a\nb"]).start()
    with pytest.raises(RuntimeError, match="did not start up within"):
        await agl.LightningStoreServer(memory, "no such host", 0).start()


def test_what_cannot_be_served_says_why(memory: agl.InMemoryLightningStore) -> None:
    class Own(agl.LightningStore):
        pass

    class Changed(agl.InMemoryLightningStore):
        async def dequeue_rollout(self, worker_id: str | None = None) -> agl.AttemptedRollout | None:
            return None

    class Renamed(agl.InMemoryLightningStore):
        pass

    way_out = re.escape('Trainer(strategy={"type": "shm", "main_thread": "algorithm"})')
    with pytest.raises(TypeError, match=f"Own cannot be served.*{way_out}"):
        agl.LightningStoreServer(Own(), port=1)
    with pytest.raises(TypeError, match=f"own dequeue_rollout would not be called.*{way_out}"):
        agl.LightningStoreServer(Changed(), port=1)
    agl.LightningStoreServer(Renamed(), port=1)
    agl.LightningStoreServer(agl.LightningStoreThreaded(memory), port=1)


async def test_what_was_acknowledged_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with agl.SqliteLightningStore(path, sync="full") as store:
        started = await store.start_rollout({"q": 1})
        with pytest.raises(ValueError, match="open in another store"):
            agl.SqliteLightningStore(path)
    with pytest.raises(agl.StoreError, match="closed"):
        await store.statistics()
    with agl.SqliteLightningStore(path) as store:
        found = await store.get_rollout_by_id(started.rollout_id)
        assert found == started
        assert store.path == path


def test_what_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but quite long enough to look like one" * 100)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        agl.SqliteLightningStore(path)
    with pytest.raises(ValueError, match="normal or full"):
        agl.SqliteLightningStore(tmp_path / "x.db", sync="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not exist"):
        agl.SqliteLightningStore(tmp_path / "no" / "such" / "folder.db")


async def test_the_client_rides_out_an_outage(memory: agl.InMemoryLightningStore) -> None:
    server = agl.LightningStoreServer(memory, "127.0.0.1", 0)
    await server.start()
    client = agl.LightningStoreClient(server.endpoint)
    await client.enqueue_rollout(1)
    await server.stop()
    claiming = asyncio.ensure_future(client.dequeue_rollout("w"))
    await asyncio.sleep(0.3)
    assert not claiming.done()
    await server.start()
    claimed = await claiming
    assert claimed is not None
    await client.close()
    assert await client.dequeue_rollout() is None
    await server.stop()


async def test_the_client_tells_an_outage_from_an_empty_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    client = agl.LightningStoreClient(f"http://127.0.0.1:{port}/", retry_delays=(), connection_timeout=1.0)
    assert client.server_address_root == f"http://127.0.0.1:{port}"
    assert client.server_address == f"http://127.0.0.1:{port}/v1/agl"
    assert client.otlp_traces_endpoint() == f"http://127.0.0.1:{port}/v1/traces"
    assert all(client.capabilities.values())
    for call in (client.dequeue_rollout(), client.get_latest_resources(), client.enqueue_rollout(1)):
        with pytest.raises(ConnectionError, match="did not answer"):
            await call


def test_addresses_are_checked() -> None:
    for address in ("localhost:4747", "ftp://h"):
        with pytest.raises(ValueError, match="address"):
            agl.LightningStoreClient(address).capabilities  # noqa: B018
    with pytest.raises(ValueError, match="request_timeout"):
        agl.LightningStoreClient("http://h:1", request_timeout=-1.0).capabilities  # noqa: B018


async def test_a_client_can_be_served_on(memory: agl.InMemoryLightningStore) -> None:
    first = agl.LightningStoreServer(memory, "127.0.0.1", 0)
    await first.start()
    second = agl.LightningStoreServer(agl.LightningStoreClient(first.endpoint), "127.0.0.1", 0)
    await second.start()
    client = agl.LightningStoreClient(second.endpoint)
    await client.enqueue_rollout("through both")
    assert [each.input for each in await memory.query_rollouts()] == ["through both"]
    await client.close()
    await second.stop()
    await first.stop()


async def test_a_key_is_asked_for(
    memory: agl.InMemoryLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGL_KEY", raising=False)
    server = agl.LightningStoreServer(memory, "127.0.0.1", 0, key="s3cret")
    assert "s3cret" not in repr(server)
    await server.start()
    for wrong in (None, "other"):
        with pytest.raises(agl.StoreUnauthorizedError, match="AGL_KEY") as refused:
            await agl.LightningStoreClient(server.endpoint, key=wrong).enqueue_rollout(1)
        assert "other" not in str(refused.value)
    await agl.LightningStoreClient(server.endpoint, key="s3cret").enqueue_rollout(1)
    # Whoever is handed the server has its key.
    await pickle.loads(pickle.dumps(server)).enqueue_rollout(2)
    monkeypatch.setenv("AGL_KEY", "s3cret")
    assert len(await agl.LightningStoreClient(server.endpoint).query_rollouts()) == 2
    await server.stop()

    by_variable = agl.LightningStoreServer(memory, "127.0.0.1", 0)
    await by_variable.start()
    await agl.LightningStoreClient(by_variable.endpoint).query_rollouts()
    monkeypatch.delenv("AGL_KEY")
    with pytest.raises(PermissionError):
        await agl.LightningStoreClient(by_variable.endpoint).query_rollouts()
    await by_variable.stop()

    with pytest.raises(agl.InvalidArgumentError, match="empty"):
        await agl.LightningStoreClient(server.endpoint, key="").query_rollouts()
    with pytest.raises(agl.InvalidArgumentError, match=r"missing\.pem"):
        await agl.LightningStoreClient("https://127.0.0.1:1", ca_file="missing.pem").query_rollouts()


async def test_a_server_for_everybody_warns(
    memory: agl.InMemoryLightningStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGL_KEY", raising=False)
    for host, key, warns in (
        ("0.0.0.0", None, True),
        ("0.0.0.0", "s3cret", False),
        ("localhost", None, False),
    ):
        caplog.clear()
        server = agl.LightningStoreServer(memory, host, 0, key=key)
        with caplog.at_level(logging.WARNING):
            await server.start()
        await server.stop()
        assert ("asked for a key" in caplog.text) == warns
