"""What a runner process does: read its work from a pipe, run it, and end when told to or when its parent has
gone."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, BinaryIO

from agentlightning.execution.events import ThreadingEvent

logger = logging.getLogger(__name__)

_ORPHAN_SECONDS = 5.0
"""How long what is under way may go on without a parent, which has taken the store's server with it."""


def main(descriptor: int) -> int:
    """Runs the work that comes through a pipe, and returns the process's exit code."""
    try:
        return _main(os.fdopen(descriptor, "rb"))
    except (KeyboardInterrupt, EOFError):
        # Ctrl+C, or a parent that has gone before it could say what to do.
        return 0


def _main(pipe: BinaryIO) -> int:
    header: dict[str, Any] = pickle.load(pipe)
    sys.argv = header["argv"]
    if header["log"]["configured"]:
        from agentlightning.logging import setup

        setup(header["log"]["level"])
    work: dict[str, Any] = pickle.loads(pickle.load(pipe))

    event = ThreadingEvent()
    threading.Thread(
        target=_listen, args=(pipe, event, work["grace"]), name="parent-watch", daemon=True
    ).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _end_in_order)
    try:
        asyncio.run(_run(work, header["worker_id"], event))
    except KeyboardInterrupt:
        return 0
    return 0


def _end_in_order(signum: int, frame: FrameType | None) -> None:
    """Has SIGTERM do what Ctrl+C does, so that what is under way is reported; a second one ends the
    process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    interrupt = signal.getsignal(signal.SIGINT)
    if not callable(interrupt):
        raise KeyboardInterrupt
    interrupt(signal.SIGINT, frame)


async def _run(work: dict[str, Any], worker_id: int, event: ThreadingEvent) -> None:
    if work["address"] is None:
        await work["runner"](work["store"], worker_id, event)
        return
    from agentlightning.store import LightningStoreClient

    client = LightningStoreClient(work["address"])
    try:
        await work["runner"](client, worker_id, event)
    finally:
        await client.close()


def _listen(pipe: BinaryIO, event: ThreadingEvent, grace: float) -> None:
    """Waits for a word from the parent, or for its end, which must be this process's, too."""
    told = pipe.read(4)
    event.set()
    if told == b"stop" and pipe.read(1) == b"":
        # The parent hangs up when it has seen this process end, or has given up on it.
        told = b""
    if told != b"stop":
        time.sleep(min(grace, _ORPHAN_SECONDS))
        logger.error("The parent process has gone.")
        os._exit(1)
