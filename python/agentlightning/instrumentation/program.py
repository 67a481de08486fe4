"""What `agl run --instrument` has every Python interpreter of a program do: record what happens inside of it.

A `sitecustomize` that `agl run` puts on PYTHONPATH calls `record` before the program begins. Spans go to the
attempt that the environment names, over OTLP, while the program runs.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from agentlightning import _core
from agentlightning.store.base import LightningStore
from agentlightning.store.native import encode_spans
from agentlightning.tracer.otel import OtelTracer, current_session
from agentlightning.types import Span

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT_SECONDS = 10.0
"""How long the end of a program waits for a store that can't be reached."""
_PATIENCE_SECONDS = 10.0
_AGAIN = (408, 429, 502, 503, 504)
"""Answers after which it may go well a moment later."""


def record(environment: Mapping[str, str] = os.environ) -> bool:
    """Records what this process does until it ends, if the environment names an attempt; says whether it
    does."""
    names = ("AGL_ROLLOUT_ID", "AGL_ATTEMPT_ID", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "AGL_KEY")
    rollout_id, attempt_id, endpoint, key = (environment.get(name, "") for name in names)
    if not rollout_id or not attempt_id or not endpoint:
        return False
    tracer = OtelTracer(flush_timeout=FLUSH_TIMEOUT_SECONDS)
    tracer.init()
    tracer.init_worker(0, ProgramSpans(endpoint, key))
    context = tracer._trace_context_sync(rollout_id=rollout_id, attempt_id=attempt_id)
    context.__enter__()
    atexit.register(context.__exit__, None, None, None)
    _go_on_in_workers(tracer)
    return True


def _go_on_in_workers(tracer: OtelTracer) -> None:
    """Sees to it that processes which `multiprocessing` forks record as well, which end without `atexit`."""
    session, processor = current_session(), tracer._lightning_span_processor
    assert session is not None
    assert processor is not None

    def flush() -> None:
        processor.flush_sync(session, FLUSH_TIMEOUT_SECONDS)

    def forked() -> None:
        session.after_fork()
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.register_after_fork(flush, lambda flush: util.Finalize(None, flush, exitpriority=0))

    os.register_at_fork(after_in_child=forked)


class ProgramSpans(LightningStore):
    """As much of a store as a program has of one: its own spans, and those it can only add to."""

    def __init__(self, endpoint: str, key: str) -> None:
        """`endpoint` is where OTLP traces go, `key` what is sent along."""
        self._endpoint = urlsplit(endpoint)
        self._headers = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {key}"}

    async def append_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Sends spans, in the places that the store gives them. Nobody else runs on the loop that this is
        called on, and a program that ends starts no threads any more, so it blocks."""
        status, answer = self._post(_core.otlp_request(encode_spans(spans)))
        if status == 200:
            rejected, reason = _core.otlp_rejected(answer)
            if rejected:
                logger.warning("%d of %d spans were not kept: %s", rejected, len(spans), reason)
            return spans
        if status in _AGAIN:
            raise ConnectionError(f"the store answers {status}")
        # What is wrong may be wrong with one of them.
        raise ValueError(f"the store answers {status}: {_core.otlp_refusal(answer)}")

    def _post(self, body: bytes) -> tuple[int, bytes]:
        to = self._endpoint
        kind = HTTPSConnection if to.scheme == "https" else HTTPConnection
        connection = kind(to.hostname or "", to.port, timeout=_PATIENCE_SECONDS)
        try:
            connection.request("POST", to.path, body, self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        except HTTPException as error:
            raise ConnectionError(f"the store's answer broke off: {error!r}") from error
        finally:
            connection.close()
