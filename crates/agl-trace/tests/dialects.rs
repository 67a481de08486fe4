//! Spans that real libraries recorded (see `scripts/record`), read into calls.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use agl_trace::{Dialect, LlmCall, Message, read_calls};
use agl_types::Span;
use serde_json::{Value, json};

/// The calls of a recorded conversation.
fn calls(name: &str) -> Vec<LlmCall> {
    let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let spans: Vec<Span> = serde_json::from_value(recorded["spans"].clone()).unwrap();
    let calls = read_calls(&spans);
    let mut backwards = spans;
    backwards.reverse();
    assert_eq!(read_calls(&backwards), calls, "the order of the spans does not matter");
    calls
}

/// What the scripts asked for, in order.
struct Asked {
    dialect: Dialect,
    /// Whether the engine's token ids are in the spans.
    ids: bool,
    /// Whether the calls of tools are in the answers.
    answers_call_tools: bool,
    /// Whether a streamed call was asked for, and recorded, at last.
    streams: bool,
}

impl Asked {
    fn of(dialect: Dialect) -> Self {
        Self { dialect, ids: false, answers_call_tools: true, streams: true }
    }
}

/// Checks the conversation that all scripts hold.
fn check(name: &str, asked: &Asked) {
    let calls = calls(name);
    let count = if asked.streams { 4 } else { 3 };
    assert_eq!(
        calls.len(),
        count,
        "{name}: {:?}",
        calls.iter().map(|call| &call.span_id).collect::<Vec<_>>()
    );
    for call in &calls {
        assert_eq!(call.dialect, asked.dialect, "{name}");
        assert_eq!(call.error, None, "{name}");
        assert!(call.start_time.is_some() && call.end_time.is_some(), "{name}");
        assert!(
            call.model.as_deref().is_some_and(|model| model.ends_with("fake")),
            "{name}: {:?}",
            call.model
        );
        assert!(
            call.response_id.as_deref().is_some_and(|id| id.starts_with("chatcmpl-")),
            "{name}: {:?}",
            call.response_id
        );
    }
    let said = |call: &LlmCall| -> Vec<(String, String)> {
        call.messages.iter().map(|message| (message.role.clone(), message.words())).collect()
    };
    let pair = |role: &str, text: &str| (role.to_owned(), text.to_owned());

    let plain = &calls[0];
    assert_eq!(said(plain), [pair("system", "be brief"), pair("user", "hello there friend")], "{name}");
    assert_eq!(plain.choices.len(), 1, "{name}");
    assert_eq!(plain.choices[0].message.words(), "friend there hello", "{name}");
    assert_eq!(plain.choices[0].message.role, "assistant", "{name}");
    assert_eq!(plain.choices[0].finish_reason.as_deref(), Some("stop"), "{name}");
    assert_eq!((plain.usage.prompt_tokens, plain.usage.completion_tokens), (Some(5), Some(3)), "{name}");
    let temperature = plain.parameters.get("temperature").and_then(Value::as_f64);
    assert_eq!(temperature, Some(0.5), "{name}: {:?}", plain.parameters);
    if asked.ids {
        assert_eq!((plain.prompt_token_ids.len(), plain.response_token_ids().len()), (5, 3), "{name}");
        // "hello" goes in and comes out as one token.
        assert_eq!(plain.prompt_token_ids[2], plain.response_token_ids()[2], "{name}");
    } else {
        assert!(!plain.has_token_ids(), "{name} has token ids: say so");
    }

    let calling = &calls[1];
    assert_eq!(said(calling), [pair("user", "add one")], "{name}");
    let [tool] = calling.tools.as_slice() else { panic!("{name}: {:?}", calling.tools) };
    assert_eq!((tool.name.as_str(), tool.description.as_deref()), ("add", Some("Adds.")), "{name}");
    assert_eq!(tool.parameters.as_ref().unwrap()["type"], "object", "{name}");
    if asked.answers_call_tools {
        let [called] = calling.choices[0].message.tool_calls.as_slice() else {
            panic!("{name}: {:?}", calling.choices)
        };
        assert_eq!((called.name.as_str(), called.id.as_deref()), ("add", Some("call-1")), "{name}");
        assert_eq!(serde_json::from_str::<Value>(&called.arguments).unwrap(), json!({"x": 1}), "{name}");
    }

    let answered = &calls[2];
    let roles: Vec<&str> = answered.messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "tool"], "{name}");
    let [called] = answered.messages[1].tool_calls.as_slice() else {
        panic!("{name}: {:?}", answered.messages)
    };
    assert_eq!((called.name.as_str(), called.id.as_deref()), ("add", Some("call-1")), "{name}");
    assert_eq!(answered.messages[2].tool_call_id.as_deref(), Some("call-1"), "{name}");
    assert!(!answered.choices[0].message.words().is_empty(), "{name}");

    if asked.streams {
        assert_eq!(calls[3].choices[0].message.words(), "friend there hello", "{name}");
    }
}

#[test]
fn openllmetry_writes_the_conventions_of_opentelemetry_now() {
    check("openllmetry", &Asked::of(Dialect::GenAi));
}

#[test]
fn openllmetry_wrote_numbered_groups_before() {
    check("openllmetry_flat", &Asked::of(Dialect::OpenLlmetry));
}

#[test]
fn openinference_has_the_engine_s_tokens_in_the_bodies() {
    check("openinference", &Asked { ids: true, ..Asked::of(Dialect::OpenInference) });
}

#[test]
fn opentelemetry_s_events_are_read() {
    let calls = calls("genai_events");
    assert_eq!(calls.len(), 4);
    let words: Vec<String> = calls[0].messages.iter().map(Message::words).collect();
    assert_eq!(words, ["be brief", "hello there friend"]);
    let roles: Vec<&str> = calls[2].messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "tool"]);
    assert_eq!(calls[2].messages[1].tool_calls[0].id.as_deref(), Some("call-1"));
    assert_eq!(calls[2].messages[2].tool_call_id.as_deref(), Some("call-1"));
    assert_eq!(calls[1].choices[0].message.tool_calls[0].arguments, r#"{"x": 1}"#);
    assert_eq!(calls[3].choices[0].message.words(), "friend there hello");
    for call in &calls {
        assert_eq!(call.dialect, Dialect::GenAi);
        assert_eq!(call.choices[0].message.role, "assistant");
    }
}

#[test]
fn an_agent_s_calls_are_read_as_pydantic_ai_writes_them() {
    let calls = calls("genai");
    assert_eq!(calls.len(), 2, "the agent's own span repeats them");
    for call in &calls {
        assert_eq!((call.dialect, call.agent.as_deref()), (Dialect::GenAi, Some("adder")));
        assert_eq!(call.tools[0].name, "add");
        assert_eq!(call.parameters["temperature"], 0.5);
    }
    assert_eq!(calls[0].choices[0].message.tool_calls[0].name, "add");
    let roles: Vec<&str> = calls[1].messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool"]);
    assert_eq!(calls[1].messages[3].words(), "1 and one is two");
    assert_eq!(calls[1].choices[0].message.words(), "two is one and 1");
}

#[test]
fn vercel_s_steps_are_read_and_its_runs_are_not() {
    let calls = calls("vercel");
    assert_eq!(calls.len(), 4);
    for call in &calls {
        assert_eq!((call.dialect, call.agent.as_deref()), (Dialect::Vercel, Some("helper")));
        assert!(call.response_id.as_deref().is_some_and(|id| id.starts_with("chatcmpl-")));
    }
    let words: Vec<String> = calls[0].messages.iter().map(Message::words).collect();
    assert_eq!(words, ["be brief", "hello there friend"]);
    assert_eq!(calls[0].parameters["temperature"], 0.5);
    assert_eq!((calls[0].usage.prompt_tokens, calls[0].usage.completion_tokens), (Some(5), Some(3)));
    let called = &calls[1].choices[0].message.tool_calls[0];
    assert_eq!((called.name.as_str(), called.id.as_deref()), ("add", Some("call-1")));
    assert_eq!(calls[1].tools[0].description.as_deref(), Some("Adds."));
    let roles: Vec<&str> = calls[2].messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant", "tool"]);
    assert_eq!(calls[2].messages[2].words(), "1 and one is two");
    assert_eq!(calls[3].choices[0].message.words(), "friend there hello");
}

#[test]
fn langsmith_s_runs_of_langchain_are_read() {
    check("langsmith", &Asked { streams: false, ..Asked::of(Dialect::LangSmith) });
    assert_eq!(calls("langsmith")[0].choices[0].logprobs, [-0.5; 3]);
}

#[test]
fn litellm_s_two_spans_of_a_call_are_one() {
    check("litellm", &Asked { ids: true, streams: false, ..Asked::of(Dialect::LiteLlm) });
    assert!(calls("litellm").iter().all(|call| call.joined.len() == 1));
}

#[test]
fn agentops_and_the_tokens_that_0_3_adds_to_it_are_read() {
    let calls = calls("agentops");
    assert_eq!(calls.len(), 4);
    let (asked, streamed) = (&calls[..3], &calls[3]);
    assert!(asked.iter().all(LlmCall::has_token_ids));
    assert_eq!(calls[0].choices[0].logprobs, [-0.5; 3]);
    // 0.3 captures nothing but words of a stream.
    assert!(!streamed.has_token_ids());
    check("agentops", &Asked { ids: true, ..Asked::of(Dialect::AgentOps) });
}

#[test]
fn our_gateway_has_the_engine_s_tokens_of_streams_too() {
    check("gateway", &Asked { ids: true, ..Asked::of(Dialect::Gateway) });
    let calls = calls("gateway");
    assert!(calls.iter().all(LlmCall::has_token_ids));
    assert_eq!(calls[3].choices[0].logprobs, [-0.5; 3]);
}

#[test]
fn weave_s_calls_are_read_as_0_3_hands_them_on() {
    check("weave", &Asked { ids: true, ..Asked::of(Dialect::Weave) });
    let calls = calls("weave");
    assert_eq!(calls[0].choices[0].logprobs, [-0.5; 3]);
    assert!(calls[2].messages[1].parts.is_empty(), "None is no word");
    let parameters: Vec<&String> = calls[3].parameters.keys().collect();
    assert_eq!(parameters, ["stream", "extra_body"]);
    assert!(!calls[3].has_token_ids(), "0.3 captures nothing but words of a stream");
}

#[test]
fn calls_recorded_as_operations_are_read() {
    let spans: Vec<Span> = serde_json::from_value(json!([{
        "rollout_id": "ro", "attempt_id": "at", "sequence_id": 2, "trace_id": "t", "span_id": "w", "parent_id": null,
        "name": "openai.chat.completions.create", "status": {"status_code": "OK", "description": null},
        "attributes": {
            "agentlightning.operation.input.messages.0.role": "user",
            "agentlightning.operation.input.messages.0.content": "hello there friend",
            "agentlightning.operation.input.model": "fake",
            "agentlightning.operation.input.temperature": 0.5,
            "agentlightning.operation.input.self.client.base_url": "http://127.0.0.1/v1",
            "agentlightning.operation.output.id": "chatcmpl-1",
            "agentlightning.operation.output.model": "fake",
            "agentlightning.operation.output.prompt_token_ids": [1, 2, 3],
            "agentlightning.operation.output.choices.0.finish_reason": "stop",
            "agentlightning.operation.output.choices.0.index": 0,
            "agentlightning.operation.output.choices.0.message.role": "assistant",
            "agentlightning.operation.output.choices.0.message.content": "friend there hello",
            "agentlightning.operation.output.choices.0.token_ids": [4, 5],
            "agentlightning.operation.output.choices.0.logprobs.content.0.logprob": -0.5,
            "agentlightning.operation.output.choices.0.logprobs.content.1.logprob": -0.25,
            "agentlightning.operation.output.usage.completion_tokens": 2,
            "weave.noise": 1, "usage.fake.requests": 1,
        },
        "events": [], "links": [], "start_time": 1.0, "end_time": 2.0, "context": null, "parent": null,
        "resource": {"attributes": {}, "schema_url": ""},
    }]))
    .unwrap();
    let calls = read_calls(&spans);
    let [call] = calls.as_slice() else { panic!("{} calls", calls.len()) };
    assert_eq!((call.dialect, call.response_id.as_deref()), (Dialect::Weave, Some("chatcmpl-1")));
    assert_eq!(call.messages, [Message::text("user", "hello there friend")]);
    assert_eq!(call.choices[0].message, Message::text("assistant", "friend there hello"));
    assert_eq!((call.prompt_token_ids.as_slice(), call.response_token_ids()), (&[1, 2, 3][..], &[4, 5][..]));
    assert_eq!(call.choices[0].logprobs, [-0.5, -0.25]);
    assert_eq!(call.usage.completion_tokens, Some(2));
    assert_eq!(Value::Object(call.parameters.clone()), json!({"temperature": 0.5}));
}
