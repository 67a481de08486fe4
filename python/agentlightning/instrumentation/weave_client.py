"""Weave: a client that records the calls of its ops into the trace that is open, and sends nothing
anywhere."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_jsonable_python
from weave.trace import settings
from weave.trace.call import Call
from weave.trace.context import call_context, weave_client_context
from weave.trace.weave_client import WeaveClient

from agentlightning.instrumentation.structure import Described, Step
from agentlightning.semconv import LightningSpanAttributes
from agentlightning.tracer.otel import current_session
from agentlightning.utils.id import generate_id
from agentlightning.utils.otel import flatten_attributes, sanitize_attributes

logger = logging.getLogger(__name__)

_users = 0


def initialize(project_name: str, user_settings: Any = None) -> None:
    """Gives Weave our client, unless the user has given it one."""
    global _users
    _users += 1
    if user_settings is not None:
        # The name that it had, and the one that it has.
        apply = getattr(settings, "parse_and_apply_settings", None) or settings.replace_settings
        apply(user_settings)
    if weave_client_context.get_weave_client() is None:
        weave_client_context.set_weave_client_global(LightningWeaveClient(project_name))


def forget() -> None:
    """Takes our client away again, when the last tracer that wanted it is torn down."""
    global _users
    _users = max(0, _users - 1)
    if _users == 0 and isinstance(weave_client_context.get_weave_client(), LightningWeaveClient):
        weave_client_context.set_weave_client_global(None)


def begin(name: str, inputs: Mapping[str, Any]) -> Any:
    """Begins a call by hand; None without our client."""
    client = weave_client_context.get_weave_client()
    if not isinstance(client, LightningWeaveClient):
        return None
    return client.create_call(name, dict(inputs))


def end(call: Any, exception: BaseException | None) -> None:
    """Ends a call that `begin` has begun."""
    client = weave_client_context.get_weave_client()
    if call is not None and isinstance(client, LightningWeaveClient):
        client.finish_call(call, exception=exception)


class LightningWeaveClient(WeaveClient):
    """What Weave's ops tell of their calls, without a server behind it."""

    def __init__(self, project_name: str) -> None:
        # Not the parent's, which asks its server.
        entity, _, project = project_name.rpartition("/")
        self.entity = entity or "agl"
        self.project = project
        self.attributes: dict[str, Any] = {}
        self.ensure_project_exists = False
        self._steps: dict[str, Step] = {}

    @property
    def project_id(self) -> str:
        """The project's name, with the entity's."""
        return f"{self.entity}/{self.project}"

    def create_call(
        self,
        op: Any,
        inputs: dict[str, Any],
        parent: Call | None = None,
        attributes: dict[str, Any] | None = None,
        display_name: Any = None,
        *,
        use_stack: bool = True,
        **kwargs: Any,
    ) -> Call:
        """Begins a call, and its span where a trace is open."""
        name = op if isinstance(op, str) else str(op.name)
        parent = parent or (call_context.get_current_call() if use_stack else None)
        call_id = generate_id(32)
        call = Call(
            _op_name=name,
            project_id=self.project_id,
            trace_id=parent.trace_id if parent is not None else call_id,
            parent_id=parent.id if parent is not None else None,
            id=call_id,
            inputs=inputs,
            attributes=attributes or {},
        )
        call.display_name = display_name(call) if callable(display_name) else display_name
        call.started_at = datetime.datetime.now(tz=datetime.timezone.utc)
        self._start(call, name, inputs, attributes or {}, parent)
        if use_stack:
            call_context.push_call(call)
        return call

    def finish_call(
        self,
        call: Call,
        output: Any = None,
        exception: BaseException | None = None,
        **kwargs: Any,
    ) -> None:
        """Ends a call and its span."""
        call.ended_at = datetime.datetime.now(tz=datetime.timezone.utc)
        call.output = output
        call.exception = None if exception is None else str(exception)
        call_context.pop_call(call.id)
        step = self._steps.pop(str(call.id), None)
        if step is not None:
            step.leave()
            written = _written(LightningSpanAttributes.OPERATION_OUTPUT.value, output)
            step.end(error=exception, attributes=written)

    def fail_call(self, call: Call, exception: BaseException) -> None:
        """Ends a call with the exception that it raised."""
        self.finish_call(call, exception=exception)

    def flush(self) -> None:
        """Nothing is waiting."""

    def finish(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is waiting."""

    def _start(
        self,
        call: Call,
        name: str,
        inputs: dict[str, Any],
        attributes: dict[str, Any],
        parent: Call | None,
    ) -> None:
        session = current_session()
        if session is None:
            return
        try:
            # What Weave notes for itself is of no use to anybody else.
            noted = {key: value for key, value in attributes.items() if key != "weave"}
            written = {
                **_written("", noted),
                LightningSpanAttributes.OPERATION_NAME.value: name,
                **_written(LightningSpanAttributes.OPERATION_INPUT.value, inputs),
            }
            step = Step(session, Described("chain", name.rpartition("/")[2], None, None, written))
        except Exception:
            logger.exception("A call of Weave's could not be recorded.")
            return
        self._steps[str(call.id)] = step
        step.enter()


def _written(prefix: str, value: Any) -> dict[str, Any]:
    """A value as attributes below a prefix."""
    if value is None:
        return {}
    try:
        plain = to_jsonable_python(value, fallback=str, serialize_unknown=True)
        nested = {prefix: plain} if prefix else plain
        return sanitize_attributes(flatten_attributes(nested)) if isinstance(nested, dict) else {}
    except Exception:
        logger.exception("A value of Weave's could not be recorded.")
        return {}
