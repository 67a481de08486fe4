"""What an agent calls to record rewards, messages, objects, exceptions, operations, tool calls and states."""

from agentlightning.emitter.annotation import OperationContext, emit_annotation, operation
from agentlightning.emitter.exception import emit_exception
from agentlightning.emitter.message import emit_message, get_message_value
from agentlightning.emitter.object import emit_object, encode_object, get_object_value
from agentlightning.emitter.reward import (
    emit_reward,
    find_final_reward,
    find_reward_spans,
    get_reward_value,
    get_rewards_from_span,
    get_step_rewards,
    is_reward_span,
    reward,
)
from agentlightning.emitter.state import (
    emit_failed,
    emit_finished,
    emit_started,
    failure_reason,
    get_state_event,
)
from agentlightning.emitter.tool import emit_tool_call

__all__ = [
    "OperationContext",
    "emit_annotation",
    "emit_exception",
    "emit_failed",
    "emit_finished",
    "emit_message",
    "emit_object",
    "emit_reward",
    "emit_started",
    "emit_tool_call",
    "encode_object",
    "failure_reason",
    "find_final_reward",
    "find_reward_spans",
    "get_message_value",
    "get_object_value",
    "get_reward_value",
    "get_rewards_from_span",
    "get_state_event",
    "get_step_rewards",
    "is_reward_span",
    "operation",
    "reward",
]
