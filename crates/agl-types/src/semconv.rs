//! Names of spans and attributes: ours, and those of OpenTelemetry's GenAI conventions that we read and write.

/// Name of a span that annotates (rewards are annotations).
pub const AGL_ANNOTATION: &str = "agentlightning.annotation";
/// Name of a span that carries a message.
pub const AGL_MESSAGE: &str = "agentlightning.message";
/// Name of a span that carries an object.
pub const AGL_OBJECT: &str = "agentlightning.object";
/// Name of a span that carries an exception.
pub const AGL_EXCEPTION: &str = "agentlightning.exception";
/// Name of a span that wraps an operation.
pub const AGL_OPERATION: &str = "agentlightning.operation";
/// Name under which an operation counts as a reward computation.
pub const AGL_REWARD: &str = "agentlightning.reward";
/// Name of a span that is an event of the 1.0 contract, unless it is a reward.
pub const AGL_EVENT: &str = "agentlightning.event";
/// Name of a span that says that an attempt, or a part of one, has started, finished or failed.
pub const AGL_STATE: &str = "agentlightning.state";
/// Name of a span that never happened: it stands for a missing parent.
pub const AGL_VIRTUAL: &str = "agentlightning.virtual";

/// Resource attribute: the rollout that a span belongs to.
pub const ROLLOUT_ID: &str = "agentlightning.rollout_id";
/// Resource attribute: the attempt that a span belongs to.
pub const ATTEMPT_ID: &str = "agentlightning.attempt_id";
/// Resource attribute: the place of a span in its rollout.
pub const SPAN_SEQUENCE_ID: &str = "agentlightning.span_sequence_id";
/// Resource attribute: which tracer made a span.
pub const TRACER_NAME: &str = "agentlightning.tracer.name";

/// Prefix of reward dimensions: `agentlightning.reward.{i}.name` and `.value`; index 0 is the primary one.
pub const REWARD: &str = "agentlightning.reward";
/// Prefix of links: `agentlightning.link.{i}.key_match` and `.value_match`.
pub const LINK: &str = "agentlightning.link";
/// Prefix of tags: `agentlightning.tag.{i}`.
pub const TAG: &str = "agentlightning.tag";
/// Body of a message span.
pub const MESSAGE_BODY: &str = "agentlightning.message.body";
/// Type name of an object span.
pub const OBJECT_TYPE: &str = "agentlightning.object.type";
/// Literal of an object span.
pub const OBJECT_LITERAL: &str = "agentlightning.object.literal";
/// JSON of an object span.
pub const OBJECT_JSON: &str = "agentlightning.object.json";
/// Type of an event.
pub const EVENT_TYPE: &str = "agentlightning.event.type";
/// JSON text of an event's data.
pub const EVENT_DATA: &str = "agentlightning.event.data";
/// Name of an operation.
pub const OPERATION_NAME: &str = "agentlightning.operation.name";
/// Prefix of an operation's inputs.
pub const OPERATION_INPUT: &str = "agentlightning.operation.input";
/// Prefix of an operation's output.
pub const OPERATION_OUTPUT: &str = "agentlightning.operation.output";
/// What a state span tells: [`STATE_STARTED`], [`STATE_FINISHED`] or [`STATE_FAILED`].
pub const STATE_EVENT: &str = "agentlightning.state.event";
/// Value of [`STATE_EVENT`]: it has started.
pub const STATE_STARTED: &str = "started";
/// Value of [`STATE_EVENT`]: it has finished well.
pub const STATE_FINISHED: &str = "finished";
/// Value of [`STATE_EVENT`]: it has failed.
pub const STATE_FAILED: &str = "failed";
/// What part of the attempt a state span is about; absent when it is about the attempt itself.
pub const STATE_NAME: &str = "agentlightning.state.name";
/// Why it failed: `error`, `timeout`, `cancelled`, or a word of one's own.
pub const STATE_REASON: &str = "agentlightning.state.reason";

/// Token ids of the prompt, as the engine saw them.
pub const PROMPT_TOKEN_IDS: &str = "prompt_token_ids";
/// Token ids of the response, as the engine sampled them.
pub const RESPONSE_TOKEN_IDS: &str = "response_token_ids";
/// JSON text of the log-probs of the response's tokens.
pub const LOGPROBS_CONTENT: &str = "logprobs.content";
/// Name of the span of a call through the gateway, which is the one that 0.3's `LlmProxyTraceToTriplet` reads token
/// ids from.
pub const GATEWAY_CALL: &str = "litellm_request";
/// Prefix of what the gateway knows of a call: `dialect`, `outcome` (`answered`, `failed`, `broken_off`,
/// `disconnected`), `tries`, `latency` and `time_to_first_token` (seconds), `http_status`, `backend`, `model_version`, and for every choice
/// `choices.{i}.token_ids` and `choices.{i}.logprobs` (numbers).
pub const GATEWAY: &str = "agentlightning.gateway";
/// Why no training data can be made of a call; absent when it can.
pub const UNTRAINABLE: &str = "agentlightning.gateway.untrainable";
/// Name of the span that has the bytes of an image or a file which calls only refer to, and prefix of its attributes: `sha256`
/// (of the bytes, in hexadecimal), `media_type`, `size` (bytes) and `data` (base64).
pub const BLOB: &str = "agentlightning.blob";
/// OpenTelemetry's GenAI operation of a tool call; its span is named `execute_tool {tool}`.
pub const GEN_AI_EXECUTE_TOOL: &str = "execute_tool";
/// The GenAI operation that a span stands for.
pub const GEN_AI_OPERATION_NAME: &str = "gen_ai.operation.name";
/// Name of a tool.
pub const GEN_AI_TOOL_NAME: &str = "gen_ai.tool.name";
/// Kind of a tool: `function`, `extension` or `datastore`.
pub const GEN_AI_TOOL_TYPE: &str = "gen_ai.tool.type";
/// What a tool was called with, JSON text.
pub const GEN_AI_TOOL_ARGUMENTS: &str = "gen_ai.tool.call.arguments";
/// What a tool has returned: JSON text, or the text itself.
pub const GEN_AI_TOOL_RESULT: &str = "gen_ai.tool.call.result";
/// Prefix of the prompt's messages.
pub const GEN_AI_PROMPT: &str = "gen_ai.prompt";
/// Prefix of the completion's choices.
pub const GEN_AI_COMPLETION: &str = "gen_ai.completion";
/// Prefix of request parameters.
pub const GEN_AI_REQUEST: &str = "gen_ai.request";
/// Prefix of response fields.
pub const GEN_AI_RESPONSE: &str = "gen_ai.response";
/// The id that the engine gave to a response.
pub const GEN_AI_RESPONSE_ID: &str = "gen_ai.response.id";
