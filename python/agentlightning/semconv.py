"""Names of spans and attributes, and the two structures that several attributes together stand for."""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel

AGL_ANNOTATION = "agentlightning.annotation"
"""Name of a span that annotates; rewards are annotations."""
AGL_MESSAGE = "agentlightning.message"
"""Name of a span that carries a message."""
AGL_OBJECT = "agentlightning.object"
"""Name of a span that carries an object."""
AGL_EXCEPTION = "agentlightning.exception"
"""Name of a span that carries an exception."""
AGL_OPERATION = "agentlightning.operation"
"""Name of a span that wraps an operation."""
AGL_REWARD = "agentlightning.reward"
"""Name under which an operation counts as the computation of a reward."""
AGL_STATE = "agentlightning.state"
"""Name of a span that says that an attempt, or a part of one, has started, finished or failed."""
AGL_VIRTUAL = "agentlightning.virtual"
"""Name of a span that stands for a missing one."""

GEN_AI_EXECUTE_TOOL = "execute_tool"
"""OpenTelemetry's GenAI operation of a tool call. Its span is named `execute_tool {tool}`."""


class LightningResourceAttributes(Enum):
    """Resource attributes that say where a span belongs."""

    ROLLOUT_ID = "agentlightning.rollout_id"
    ATTEMPT_ID = "agentlightning.attempt_id"
    SPAN_SEQUENCE_ID = "agentlightning.span_sequence_id"
    TRACER_NAME = "agentlightning.tracer.name"


class LightningSpanAttributes(Enum):
    """Attributes of our own spans; the first three are prefixes."""

    REWARD = "agentlightning.reward"
    """Followed by `.{i}.name` and `.{i}.value`; index 0 is the primary dimension."""
    LINK = "agentlightning.link"
    """Followed by `.{i}.key_match` and `.{i}.value_match`."""
    TAG = "agentlightning.tag"
    """Followed by `.{i}`."""
    MESSAGE_BODY = "agentlightning.message.body"
    OBJECT_TYPE = "agentlightning.object.type"
    OBJECT_LITERAL = "agentlightning.object.literal"
    OBJECT_JSON = "agentlightning.object.json"
    OPERATION_NAME = "agentlightning.operation.name"
    OPERATION_INPUT = "agentlightning.operation.input"
    OPERATION_OUTPUT = "agentlightning.operation.output"
    STATE_EVENT = "agentlightning.state.event"
    """One of `StateEvent`."""
    STATE_NAME = "agentlightning.state.name"
    """What part of the attempt it is about; absent when it is about the attempt itself."""
    STATE_REASON = "agentlightning.state.reason"
    """Why it failed: `error`, `timeout`, `cancelled`, or a word of one's own. Details are in the attributes
    `exception.*` and in the span's status."""


class StateEvent(str, Enum):
    """Values of the attribute `agentlightning.state.event`."""

    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"


class ToolAttributes(Enum):
    """Attributes of a tool call, by OpenTelemetry's GenAI conventions."""

    OPERATION_NAME = "gen_ai.operation.name"
    """Always `execute_tool`."""
    NAME = "gen_ai.tool.name"
    TYPE = "gen_ai.tool.type"
    """`function`, `extension` or `datastore`."""
    DESCRIPTION = "gen_ai.tool.description"
    CALL_ID = "gen_ai.tool.call.id"
    """The id that the model gave to the call."""
    CALL_ARGUMENTS = "gen_ai.tool.call.arguments"
    """JSON text."""
    CALL_RESULT = "gen_ai.tool.call.result"
    """JSON text, or the text itself where the result is a string."""
    ERROR_TYPE = "error.type"
    """Class of the exception with which the tool failed."""


class RewardAttributes(Enum):
    """Last part of a reward attribute's key."""

    REWARD_NAME = "name"
    REWARD_VALUE = "value"


class LinkAttributes(Enum):
    """Last part of a link attribute's key."""

    KEY_MATCH = "key_match"
    VALUE_MATCH = "value_match"


class RewardPydanticModel(BaseModel):
    """One dimension of a reward."""

    name: str
    value: float


class LinkPydanticModel(BaseModel):
    """A link to the spans that have this value under this key."""

    key_match: str
    value_match: str
