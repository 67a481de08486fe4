"""Fixtures: every kind of store behind the one interface."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from fake_vllm import FakeVLLM
from llm_calls import models

import agentlightning as agl
from agentlightning.llm_proxy import LLMProxy

# A shell has what it runs in the background ignore Ctrl+C, and so would all processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

STORES = ["memory", "sqlite", "client", "server", "threaded"]


@pytest_asyncio.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[agl.LightningStore]:
    """An empty store, of each kind in turn."""
    async with AsyncExitStack() as cleanup:
        match request.param:
            case "memory":
                yield agl.InMemoryLightningStore()
            case "sqlite":
                yield cleanup.enter_context(agl.SqliteLightningStore(tmp_path / "store.db"))
            case "threaded":
                yield agl.LightningStoreThreaded(agl.InMemoryLightningStore())
            case _:
                server = agl.LightningStoreServer(agl.InMemoryLightningStore(), "127.0.0.1", 0)
                await server.start()
                cleanup.push_async_callback(server.stop)
                if request.param == "server":
                    yield server
                else:
                    client = agl.LightningStoreClient(server.endpoint)
                    cleanup.push_async_callback(client.close)
                    yield client


@pytest.fixture
def memory() -> agl.InMemoryLightningStore:
    """An empty store in memory."""
    return agl.InMemoryLightningStore()


@pytest.fixture
def engine() -> Iterator[FakeVLLM]:
    """A model server."""
    with FakeVLLM() as engine:
        yield engine


@pytest_asyncio.fixture
async def proxy(engine: FakeVLLM, memory: agl.InMemoryLightningStore) -> AsyncIterator[LLMProxy]:
    """A gateway in front of it, with the model `m`."""
    proxy = LLMProxy(model_list=models(engine, "m"), store=memory)
    await proxy.start()
    yield proxy
    if proxy.is_running():
        await proxy.stop()
