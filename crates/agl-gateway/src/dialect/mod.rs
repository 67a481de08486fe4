//! What agents speak, and how it is said in chat completions where a model server speaks nothing else.

pub(crate) mod chat;
pub(crate) mod messages;
pub(crate) mod responses;

use serde_json::{Map, Value};

use crate::refusal::{Form, Refusal};

/// What a call is spoken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// OpenAI's chat completions, completions and embeddings.
    OpenAi,
    /// Anthropic's messages.
    Messages,
    /// OpenAI's responses.
    Responses,
}

impl Dialect {
    /// In whose form errors are told.
    pub(crate) fn form(self) -> Form {
        match self {
            Self::OpenAi | Self::Responses => Form::OpenAi,
            Self::Messages => Form::Anthropic,
        }
    }

    /// Its name in spans.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai.chat",
            Self::Messages => "anthropic.messages",
            Self::Responses => "openai.responses",
        }
    }

    /// The path of it below the base URL, for those that are not a kind of chat completions.
    pub(crate) fn endpoint(self) -> &'static str {
        match self {
            Self::OpenAi => "chat/completions",
            Self::Messages => "messages",
            Self::Responses => "responses",
        }
    }
}

/// The items of a list; none when it is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The text of a member; empty when there is none.
pub(crate) fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

/// 400: what cannot be said in chat completions.
pub(crate) fn untranslatable(param: &'static str, what: &str) -> Refusal {
    Refusal::bad(
        param,
        format!(
            "{what} cannot be translated for the model server, which speaks chat completions only: have the agent do \
             without"
        ),
    )
}

/// The tools that a vendor's servers run themselves, by the beginnings of their types: a date may follow.
const HOSTED: &[&str] = &[
    "web_search",
    "web_fetch",
    "file_search",
    "code_interpreter",
    "code_execution",
    "image_generation",
    "mcp",
];

/// Whether only a vendor's own servers have a tool of this type.
fn is_hosted(kind: &str) -> bool {
    let begins = |hosted: &&str| {
        kind.strip_prefix(*hosted).is_some_and(|version| version.is_empty() || version.starts_with('_'))
    };
    HOSTED.iter().any(begins)
}

/// 400: a tool that chat completions have no word for.
fn unknown_tool(kind: &str) -> Refusal {
    if !is_hosted(kind) {
        return untranslatable("tools", &format!("a tool of the type {kind:?}"));
    }
    let mut refusal = untranslatable("tools", &format!("the hosted tool {kind:?}"));
    refusal.message.push_str(", or set drop_hosted_tools = true for the model in the gateway's list");
    refusal
}

/// A request without its hosted tools, and their types; none when it has none. A choice that is about them goes too.
pub(crate) fn without_hosted_tools(request: &Value) -> Option<(Value, Vec<String>)> {
    let (hosted, kept): (Vec<&Value>, Vec<&Value>) =
        list(&request["tools"]).iter().partition(|tool| is_hosted(text(tool, "type")));
    if hosted.is_empty() {
        return None;
    }
    let chosen = &request["tool_choice"];
    // Anthropic's are chosen by name, OpenAI's by type.
    let is_chosen = |tool: &&Value| {
        text(chosen, "type") == text(tool, "type")
            || !text(chosen, "name").is_empty() && text(chosen, "name") == text(tool, "name")
    };
    let is_moot = kept.is_empty() || hosted.iter().any(is_chosen);
    let fields = request.as_object()?.iter().filter(|(key, _)| !(is_moot && *key == "tool_choice"));
    let mut without: Map<String, Value> = fields.map(|(key, value)| (key.clone(), value.clone())).collect();
    without.insert("tools".to_owned(), kept.into_iter().cloned().collect());
    Some((without.into(), hosted.iter().map(|tool| text(tool, "type").to_owned()).collect()))
}

/// A server-sent event with a name.
pub(crate) fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

/// Puts thoughts into a message to a server, under both names: vLLM reads `reasoning` alone, older servers and others
/// `reasoning_content`.
pub(crate) fn put_reasoning(message: &mut Value, thought: &str) {
    if !thought.is_empty() {
        message["reasoning_content"] = thought.into();
        message["reasoning"] = thought.into();
    }
}

/// The text of the thoughts in a message or a delta, under whichever name a server has for them.
pub(crate) fn reasoning(message: &Value) -> &str {
    let named = text(message, "reasoning_content");
    if named.is_empty() { text(message, "reasoning") } else { named }
}
