"""SIGTERM, made to end an execution in order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Lets SIGTERM do inside of the block or decorated function what Ctrl+C does, and then ends the process.

    Only on the main thread, which alone gets signals, and only where nobody else handles SIGTERM.

    Raises:
        SystemExit: with status 143, as shells have it, after a SIGTERM.
    """
    on_main = threading.current_thread() is threading.main_thread()
    if not on_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    terminated = False

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        # asyncio.run() has a handler of its own; a process that was started to ignore Ctrl+C has none.
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if terminated:
            raise SystemExit(128 + signal.SIGTERM)
