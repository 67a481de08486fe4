//! Rendering a chat into the text that the model continues.

use crate::tokenizer::Tokenizer;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value as Jinja, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use serde_json::{Map, Value, json};
use std::io;

/// Used where the model brings no template but knows ChatML's marks.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Used where the model knows no marks at all.
const PLAIN: &str = "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";

/// The marks that a tool call stands between.
pub(crate) const TOOL_CALL_START: &str = "<tool_call>";
/// See [`TOOL_CALL_START`].
pub(crate) const TOOL_CALL_END: &str = "</tool_call>";

/// A model's chat template, or ours if it has none.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    renders_tools: bool,
}

impl ChatTemplate {
    /// Compiles the template.
    ///
    /// # Errors
    /// In words, if it has a syntax error.
    pub(crate) fn new(
        source: Option<&str>,
        bos_token: &str,
        eos_token: &str,
        tokenizer: &Tokenizer,
    ) -> Result<Self, String> {
        let fallback = if tokenizer.special_id("<|im_start|>").is_some() { CHATML } else { PLAIN };
        let source = source.unwrap_or(fallback);
        let mut environment = Environment::new();
        let whitespace = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(whitespace.map_err(|e| e.to_string())?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|e| format!("the chat template does not compile: {e:#}"))?;
        Ok(Self {
            environment,
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            renders_tools: source.contains("tools"),
        })
    }

    /// The text of a chat up to where the assistant's answer begins. Messages are OpenAI's: text
    /// content may be a list of parts or null. What the model's own template can't show (tools,
    /// tool calls and their results) is written into the messages first.
    ///
    /// # Errors
    /// In words, if the template refuses the messages.
    pub fn render(&self, messages: &[Value], tools: &[Value]) -> Result<String, String> {
        let mut messages: Vec<Map<String, Value>> =
            messages.iter().map(plain_message).collect::<Result<_, _>>()?;
        if !self.renders_tools {
            messages = flatten_tools(messages, tools);
        }
        let tools = (self.renders_tools && !tools.is_empty()).then_some(tools);
        let template = self.environment.get_template("chat").map_err(|e| e.to_string())?;
        template
            .render(context! {
                messages => Jinja::from(Serde(&messages)), tools => Jinja::from(Serde(tools)),
                add_generation_prompt => true,
                bos_token => self.bos_token.as_str(), eos_token => self.eos_token.as_str(),
            })
            .map_err(|e| format!("the chat template refused the messages: {e}"))
    }
}

/// A message with its content as one string, and tool arguments as objects, which is what
/// templates expect.
fn plain_message(message: &Value) -> Result<Map<String, Value>, String> {
    let mut message = message.as_object().cloned().ok_or("a message is not an object")?;
    let content = match message.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
            texts.join("\n")
        }
        Some(_) => return Err("a message's content is neither text nor a list of parts".into()),
    };
    message.insert("content".into(), content.into());
    if message.get("role").and_then(Value::as_str) == Some("developer") {
        message.insert("role".into(), "system".into());
    }
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        for call in calls {
            let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
            if let Some(text) = arguments.as_str()
                && let Ok(parsed) = serde_json::from_str::<Value>(text)
            {
                *arguments = parsed;
            }
        }
    } else {
        message.remove("tool_calls");
    }
    Ok(message)
}

/// Writes tools into the system message, tool calls into the assistant's text and tool results
/// into user messages, so that any template can show them.
fn flatten_tools(messages: Vec<Map<String, Value>>, tools: &[Value]) -> Vec<Map<String, Value>> {
    let mut flat: Vec<Map<String, Value>> = Vec::new();
    let role_of = |message: &Map<String, Value>| {
        message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let text_of = |message: &Map<String, Value>| {
        message.get("content").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut results_open = false;
    for mut message in messages {
        let role = role_of(&message);
        let text = text_of(&message);
        if role == "tool" || role == "function" {
            let result = format!("<tool_response>\n{text}\n</tool_response>");
            // The results of parallel calls are one turn.
            if let (true, Some(last)) = (results_open, flat.last_mut()) {
                let joined = format!("{}\n{result}", text_of(last));
                last.insert("content".into(), joined.into());
            } else {
                flat.push(Map::from_iter([
                    ("role".into(), "user".into()),
                    ("content".into(), result.into()),
                ]));
            }
            results_open = true;
            continue;
        }
        results_open = false;
        if let Some(Value::Array(calls)) = message.remove("tool_calls") {
            let calls = calls.iter().filter_map(|call| call.get("function")).map(|function| {
                let call = json!({"name": function.get("name"), "arguments": function.get("arguments")});
                format!("{TOOL_CALL_START}\n{}\n{TOOL_CALL_END}", python_json(&call))
            });
            let lines: Vec<String> = (!text.is_empty()).then_some(text).into_iter().chain(calls).collect();
            message.insert("content".into(), lines.join("\n").into());
        }
        flat.push(message);
    }
    if !tools.is_empty() {
        let list: Vec<String> = tools.iter().map(python_json).collect();
        let advice = format!(
            "You can call these functions, described as JSON between <tools> marks:\n<tools>\n{}\n</tools>\nTo call one, answer with its name and arguments as JSON:\n{TOOL_CALL_START}\n{{\"name\": \"the function's name\", \"arguments\": {{\"a parameter\": \"its value\"}}}}\n{TOOL_CALL_END}",
            list.join("\n")
        );
        match flat.first_mut() {
            Some(first) if role_of(first) == "system" => {
                let joined = format!("{}\n\n{advice}", text_of(first));
                first.insert("content".into(), joined.into());
            }
            _ => flat.insert(
                0,
                Map::from_iter([("role".into(), "system".into()), ("content".into(), advice.into())]),
            ),
        }
    }
    flat
}

/// `tojson` as Hugging Face's templates expect it: Python's separators, nothing escaped for HTML,
/// and an optional `indent`.
#[expect(clippy::needless_pass_by_value, reason = "a filter's arguments come by value")]
fn to_json(value: Jinja, arguments: minijinja::value::Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let failed = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let value = serde_json::to_value(&value).map_err(failed)?;
    let Some(indent) = indent else { return Ok(python_json(&value)) };
    let mut out = Vec::new();
    let spaces = " ".repeat(indent);
    value
        .serialize(&mut Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(spaces.as_bytes())))
        .map_err(failed)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// JSON with a space after commas and colons, as Python writes it.
fn python_json(value: &Value) -> String {
    struct Spaced;
    impl Formatter for Spaced {
        fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { out.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { out.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
            out.write_all(b": ")
        }
    }
    let mut out = Vec::new();
    match value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        Err(_) => value.to_string(),
    }
}
