"""Lets threads that an agent starts belong to the trace that they were started in.

A context variable does not reach a new thread by itself. Only our own variables and OpenTelemetry's are
taken along, and only out of a trace; everything else about threads stays as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from opentelemetry import context as otel_context

from agentlightning.litagent.litagent import running_runner
from agentlightning.tracer import base, otel
from agentlightning.tracer.resources import active_resources

_MARK = "_agentlightning_original"


def _carried(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, made to run in the trace that is open now; itself if none is."""
    session = otel.current_session()
    if session is None:
        return function
    taken = [
        (variable, variable.get())
        for variable in (
            otel._session,
            otel._last_session,
            base._active_tracer,
            running_runner,
            active_resources,
        )
    ]
    context = otel_context.get_current()

    def run(*args: Any, **kwargs: Any) -> Any:
        before = [(variable, variable.get()) for variable, _ in taken]
        for variable, value in taken:
            variable.set(value)  # type: ignore[arg-type]
        token = otel_context.attach(context)
        try:
            return function(*args, **kwargs)
        finally:
            otel_context.detach(token)
            # A pool's thread goes on to other work.
            for variable, value in before:
                variable.set(value)  # type: ignore[arg-type]

    return run


def instrument() -> None:
    """Patches `Thread.start` and `ThreadPoolExecutor.submit`."""
    if hasattr(threading.Thread.start, _MARK):
        return
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit

    def traced_start(self: threading.Thread) -> None:
        if otel.current_session() is not None:
            self.run = _carried(self.run)  # type: ignore[method-assign]
        start(self)

    def traced_submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return submit(self, _carried(fn), *args, **kwargs)

    setattr(traced_start, _MARK, start)
    setattr(traced_submit, _MARK, submit)
    threading.Thread.start = traced_start  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = traced_submit  # type: ignore[method-assign,assignment]


def uninstrument() -> None:
    """Undoes `instrument`, unless somebody else has patched on top of it since."""
    start = getattr(threading.Thread.start, _MARK, None)
    if start is not None:
        threading.Thread.start = start  # type: ignore[method-assign]
    submit = getattr(ThreadPoolExecutor.submit, _MARK, None)
    if submit is not None:
        ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
