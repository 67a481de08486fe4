//! Agents that speak messages or responses, in front of a server that speaks chat completions alone, and of those that
//! speak the same.

use agl_gateway::{Api, GatewayOptions, ModelEntry, ModelList};
use axum::Router;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::IntoResponse as _;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::common::{Served, at, client, json as read, list, of, post};
use crate::engine::{Engine, ids_of};

/// The data of a stream's events.
fn events(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect()
}

fn message(text: &str) -> Value {
    json!({"model": "m", "max_tokens": 50, "system": "s", "messages": [{"role": "user", "content": text}]})
}

#[tokio::test]
async fn messages_are_answered_by_a_server_of_chat_completions_with_token_ids() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/messages", booked.base);
    let (status, answer) = read(post(&url, &message("a b c")).await).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["content"], json!([{"type": "text", "text": "c b a"}]));
    assert_eq!(
        (&answer["type"], &answer["role"], &answer["model"]),
        (&json!("message"), &json!("assistant"), &json!("m"))
    );
    assert_eq!((&answer["stop_reason"], &answer["usage"]["input_tokens"]), (&json!("end_turn"), &json!(4)));

    let mut body = message("a b c");
    body["stream"] = json!(true);
    let text = post(&url, &body).await.text().await.unwrap();
    let told = events(&text);
    let kinds: Vec<&str> = told.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], *kinds.last().unwrap()), ("message_start", "message_stop"));
    assert_eq!(told[0]["message"]["usage"]["input_tokens"], 4, "known from the token ids of the prompt");
    let said: String = told.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(said, "c b a");

    for span in served.spans(&booked).await {
        assert_eq!(of(&span, "dialect"), "anthropic.messages");
        assert_eq!(at(&span, "prompt_token_ids"), &json!(ids_of("s a b c")));
        assert_eq!(at(&span, "response_token_ids"), &json!(ids_of("c b a")));
        assert_eq!(at(&span, "gen_ai.prompt.1.content"), "a b c");
        assert_eq!(
            (of(&span, "untrainable"), at(&span, "gen_ai.response.id")),
            (&Value::Null, &answer["id"])
        );
    }
    assert!(engine.seen().iter().all(|seen| seen.path == "/v1/chat/completions"));
}

#[tokio::test]
async fn hosted_tools_are_left_out_where_the_list_says_so() {
    let engine = Engine::start().await;
    let dropping = |name: &str| ModelEntry { drop_hosted_tools: true, ..ModelEntry::new(name, &engine.url) };
    let entries = vec![
        dropping("m"),
        dropping("shared"),
        ModelEntry::new("shared", &engine.url),
        ModelEntry::new("strict", &engine.url),
    ];
    let served = Served::with(ModelList::new(entries), GatewayOptions::default()).await;
    let response = |model: &str, tools: &[&Value], choice: Value| {
        json!({
            "model": model, "input": "a b", "tools": tools, "tool_choice": choice, "parallel_tool_calls": false,
        })
    };
    let own = json!({"type": "function", "name": "shell", "parameters": {"type": "object"}});
    // As the Codex CLI sends it.
    let search = json!({"type": "web_search", "external_web_access": true});
    let dated = json!({"type": "web_search_preview_2025_03_11"});
    let chat_tools =
        json!([{"type": "function", "function": {"name": "shell", "parameters": {"type": "object"}}}]);
    let of_anthropic = |choice: Value| {
        let mut request = message("a b");
        request["tools"] = json!([
            {"type": "web_search_20250305", "name": "web_search"},
            {"name": "shell", "input_schema": {"type": "object"}},
        ]);
        request["tool_choice"] = choice;
        request
    };
    for (path, request, tools, choice, dropped) in [
        (
            "responses",
            response("m", &[&own, &search], json!("auto")),
            &chat_tools,
            json!("auto"),
            json!(["web_search"]),
        ),
        (
            "responses",
            response("m", &[&dated, &own, &search], json!({"type": "web_search"})),
            &chat_tools,
            Value::Null,
            json!(["web_search_preview_2025_03_11", "web_search"]),
        ),
        (
            "responses",
            response("m", &[&search], json!("auto")),
            &Value::Null,
            Value::Null,
            json!(["web_search"]),
        ),
        ("responses", response("m", &[&own], json!("auto")), &chat_tools, json!("auto"), Value::Null),
        (
            "messages",
            of_anthropic(json!({"type": "any"})),
            &chat_tools,
            json!("required"),
            json!(["web_search_20250305"]),
        ),
        (
            "messages",
            of_anthropic(json!({"type": "tool", "name": "web_search"})),
            &chat_tools,
            Value::Null,
            json!(["web_search_20250305"]),
        ),
    ] {
        let booked = served.book(None).await;
        let (status, answer) = read(post(&format!("{}/{path}", booked.base), &request).await).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let sent = engine.last().body;
        assert_eq!((&sent["tools"], &sent["tool_choice"]), (tools, &choice), "{request}");
        assert_eq!(sent["parallel_tool_calls"].is_null(), tools.is_null() || path == "messages");
        let span = served.spans(&booked).await.remove(0);
        assert_eq!(of(&span, "dropped_tools"), &dropped, "{request}");
        assert_eq!(of(&span, "untrainable"), &Value::Null);
    }
    let counted = engine.seen().len();
    let counting = of_anthropic(Value::Null);
    let booked = served.book(None).await;
    assert_eq!(
        post(&format!("{}/messages/count_tokens", booked.base), &counting).await.status(),
        StatusCode::OK
    );
    assert_eq!(engine.seen().len(), counted + 1);

    // Refused where one of those who may answer is not said to do without, and where the agent would miss it.
    let shell = json!({"type": "local_shell"});
    for (request, told) in [
        (
            response("strict", &[&own, &search], json!("auto")),
            vec!["\"web_search\"", "drop_hosted_tools = true"],
        ),
        (response("shared", &[&search], json!("auto")), vec!["\"web_search\"", "drop_hosted_tools = true"]),
        (response("m", &[&shell, &search], json!("auto")), vec!["a tool of the type \"local_shell\""]),
    ] {
        let (status, answer) = read(post(&format!("{}/responses", booked.base), &request).await).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!((status, &answer["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("tools")));
        assert!(told.iter().all(|part| message.contains(part)), "{message}");
    }
    assert!(served.spans(&booked).await.is_empty() && engine.seen().len() == counted + 1);
}

#[tokio::test]
async fn tools_come_and_go_in_messages() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/messages", booked.base);
    let mut body = message("a");
    body["tools"] = json!([{"name": "f", "input_schema": {"type": "object"}}]);
    for stream in [false, true] {
        body["stream"] = json!(stream);
        let response = post(&url, &body).await;
        let (call, reason) = if stream {
            let told = events(&response.text().await.unwrap());
            let start =
                told.iter().find(|event| event["type"] == "content_block_start").unwrap()["content_block"]
                    .clone();
            let input: String =
                told.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
            let mut call = start;
            call["input"] = serde_json::from_str(&input).unwrap();
            let end = told.iter().find(|event| event["type"] == "message_delta").unwrap();
            (call, end["delta"]["stop_reason"].clone())
        } else {
            let answer = read(response).await.1;
            (answer["content"][0].clone(), answer["stop_reason"].clone())
        };
        assert_eq!(call, json!({"type": "tool_use", "id": "call-0", "name": "f", "input": {"x": 1}}));
        assert_eq!(reason, "tool_use");
    }
    body["messages"] = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "call-0", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call-0", "content": "42 is it"}]},
    ]);
    body["stream"] = json!(false);
    assert_eq!(read(post(&url, &body).await).await.1["content"][0]["text"], "it is 42");
    assert_eq!(
        engine.last().body["messages"][3],
        json!({"role": "tool", "tool_call_id": "call-0", "content": "42 is it"})
    );
}

#[tokio::test]
async fn errors_are_told_in_the_dialect_of_the_agent() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m", "picky", "breaks"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/messages", booked.base);
    let mut body = message("a b c");
    body["model"] = json!("picky");
    let (status, answer) = read(post(&url, &body).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let told =
        json!({"type": "error", "error": {"type": "invalid_request_error", "message": "no such parameter"}});
    assert_eq!(answer, told);
    body["model"] = json!("other");
    assert_eq!(read(post(&url, &body).await).await.1["type"], "error");
    body["model"] = json!("m");
    body["tools"] = json!([{"type": "web_search_20250305", "name": "web_search"}]);
    let (status, answer) = read(post(&url, &body).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["error"]["message"].as_str().unwrap().contains("web_search_20250305"), "{answer}");
    let mut body = message("a b c");
    body["model"] = json!("breaks");
    body["stream"] = json!(true);
    assert!(post(&url, &body).await.text().await.is_err());
    let span = served.until(&booked, 2).await.pop().unwrap();
    assert_eq!(of(&span, "outcome"), "broken_off");
}

#[tokio::test]
async fn tokens_of_a_message_are_counted() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let (status, answer) =
        read(post(&format!("{}/messages/count_tokens", booked.base), &message("a b c")).await).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({"input_tokens": 4})));
    assert!(served.spans(&booked).await.is_empty(), "it is no call that a policy makes");
}

#[tokio::test]
async fn responses_are_answered_by_a_server_of_chat_completions_with_token_ids() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/responses", booked.base);
    let (status, first) =
        read(post(&url, &json!({"model": "m", "instructions": "s", "input": "a b"})).await).await;
    assert_eq!(status, StatusCode::OK, "{first}");
    assert_eq!((&first["object"], &first["status"]), (&json!("response"), &json!("completed")));
    assert_eq!(first["output"][0]["content"][0]["text"], "b a");
    assert_eq!(first["usage"]["input_tokens"], 3);

    let body = json!({"model": "m", "input": "c d", "stream": true, "previous_response_id": first["id"]});
    let told = events(&post(&url, &body).await.text().await.unwrap());
    let last = told.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    let said: String = told
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta")
        .map(|event| event["delta"].as_str().unwrap())
        .collect();
    assert_eq!(said, "d c");
    let went_before = json!([
        {"role": "user", "content": "a b"}, {"role": "assistant", "content": "b a"}, {"role": "user", "content": "c d"},
    ]);
    assert_eq!(engine.last().body["messages"], went_before);
    let second = last["response"]["id"].clone();
    post(&url, &json!({"model": "m", "input": "e", "previous_response_id": second})).await;
    assert_eq!(engine.last().body["messages"].as_array().unwrap().len(), 5);

    let spans = served.spans(&booked).await;
    assert_eq!(of(&spans[0], "dialect"), "openai.responses");
    assert_eq!(at(&spans[0], "gen_ai.response.id"), &first["id"], "the id is the one that the agent saw");
    assert_eq!(at(&spans[1], "prompt_token_ids"), &json!(ids_of("a b b a c d")));
    assert_eq!(at(&spans[1], "response_token_ids"), &json!(ids_of("d c")));

    let other = served.book(None).await;
    let strange = json!({"model": "m", "input": "x", "previous_response_id": first["id"]});
    let (status, answer) = read(post(&format!("{}/responses", other.base), &strange).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "another attempt's calls are not there");
    assert!(answer["error"]["message"].as_str().unwrap().contains("not found among the calls"), "{answer}");
}

#[tokio::test]
async fn tools_come_and_go_in_responses() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/responses", booked.base);
    let body =
        json!({"model": "m", "input": "a", "tools": [{"type": "function", "name": "f", "parameters": {}}]});
    let (_, answer) = read(post(&url, &body).await).await;
    let call = &answer["output"][0];
    assert_eq!(
        (&call["type"], &call["name"], &call["arguments"]),
        (&json!("function_call"), &json!("f"), &json!("{\"x\": 1}"))
    );
    let output = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "so it is"});
    let body = json!({"model": "m", "input": [output], "previous_response_id": answer["id"]});
    let (_, answer) = read(post(&url, &body).await).await;
    assert_eq!(answer["output"][0]["content"][0]["text"], "is it so");
    // What the engine wrote comes back to it letter for letter.
    assert_eq!(engine.last().body["messages"][1]["tool_calls"][0]["function"]["arguments"], "{\"x\": 1}");
    let (status, answer) =
        read(post(&url, &json!({"model": "m", "input": "a", "background": true})).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["error"]["message"].as_str().unwrap().contains("background"), "{answer}");
}

/// A server that speaks messages and responses itself.
async fn native() -> String {
    async fn answer(headers: HeaderMap, request: Request) -> axum::response::Response {
        let path = request.uri().path().to_owned();
        let bytes = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap();
        if path.ends_with("/messages")
            && (headers.get("anthropic-version").is_none() || headers["x-api-key"] != "the-servers-key")
        {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        let text = match (path.rsplit('/').next().unwrap(), body["stream"] == true) {
            ("count_tokens", _) => r#"{"input_tokens": 7}"#,
            ("messages", false) => {
                r#"{"id":"msg_1", "type":"message","role":"assistant","model":"claude","content":[{"type":"text","text":"hi  there"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":2}}"#
            }
            ("messages", true) => {
                "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_2\",\"role\":\"assistant\",\"model\":\"claude\",\"content\":[],\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\nevent: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"hi  there\"}}\n\nevent: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":2}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
            }
            ("responses", false) => {
                r#"{"id":"resp_x","object":"response","status":"completed","model":"gpt","output":[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"hi"}]}],"usage":{"input_tokens":1,"output_tokens":1,"total_tokens":2}}"#
            }
            _ => {
                "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_y\"}}\n\nevent: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"hi\"}\n\nevent: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_y\",\"status\":\"completed\",\"model\":\"gpt\",\"output\":[{\"type\":\"message\",\"role\":\"assistant\",\"content\":[{\"type\":\"output_text\",\"text\":\"hi\"}]}],\"usage\":{\"input_tokens\":1,\"output_tokens\":1,\"total_tokens\":2}}}\n\n"
            }
        };
        let kind = if body["stream"] == true { "text/event-stream" } else { "application/json" };
        ([("content-type", kind)], text).into_response()
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    url
}

#[tokio::test]
async fn servers_that_speak_the_dialect_are_spoken_to_in_it_byte_for_byte() {
    let url = native().await;
    let claude = ModelEntry {
        api: Api::Anthropic,
        api_key: Some(agl_types::ApiKey::new("the-servers-key").unwrap()),
        ..ModelEntry::new("claude", &url)
    };
    let gpt = ModelEntry { responses: true, token_ids: Some(false), ..ModelEntry::new("gpt", &url) };
    let served = Served::with(ModelList::new(vec![claude, gpt]), GatewayOptions::default()).await;
    let booked = served.book(None).await;
    for (number, (path, model, stream)) in [
        ("messages", "claude", false),
        ("messages", "claude", true),
        ("responses", "gpt", false),
        ("responses", "gpt", true),
    ]
    .into_iter()
    .enumerate()
    {
        let body = json!({"model": model, "stream": stream, "input": "x", "messages": [{"role": "user", "content": "x"}]});
        let through = post(&format!("{}/{path}", booked.base), &body).await.text().await.unwrap();
        let direct = client()
            .post(format!("{url}/{path}"))
            .header("anthropic-version", "v")
            .header("x-api-key", "the-servers-key");
        assert_eq!(
            through,
            direct.json(&body).send().await.unwrap().text().await.unwrap(),
            "{path} {stream}"
        );
        let span = &served.spans(&booked).await[number];
        assert_eq!(of(span, "outcome"), "answered");
        let said = if path == "messages" { "hi  there" } else { "hi" };
        assert_eq!(at(span, "gen_ai.completion.0.content"), said, "{path} {stream}");
        assert_eq!(at(span, "gen_ai.completion.0.finish_reason"), "stop");
        assert!(of(span, "untrainable").as_str().unwrap().contains("no token ids"));
    }
    let counted =
        post(&format!("{}/messages/count_tokens", booked.base), &json!({"model": "claude", "messages": []}))
            .await;
    assert_eq!(read(counted).await.1, json!({"input_tokens": 7}));
}

#[tokio::test]
async fn a_server_of_another_dialect_steps_in() {
    let engine = Engine::start().await;
    let dead = ModelEntry { api: Api::Anthropic, ..ModelEntry::new("m", "http://127.0.0.1:9/v1") };
    let alive = ModelEntry::new("m", &engine.url);
    let served = Served::with(ModelList::new(vec![dead, alive]), GatewayOptions::default()).await;
    for stream in [false, true] {
        // Which of them is asked first is up to the rollout.
        for _ in 0..6 {
            let booked = served.book(None).await;
            let mut body = message("a b");
            body["stream"] = json!(stream);
            let told = post(&format!("{}/messages", booked.base), &body).await.text().await.unwrap();
            assert!(told.contains("\"type\":\"message\"") && told.contains("end_turn"), "{told}");
            let span = served.spans(&booked).await.remove(0);
            assert_eq!(at(&span, "response_token_ids"), &json!(ids_of("b a")));
        }
    }
}

#[tokio::test]
async fn a_list_may_hold_both_kinds_of_server() {
    let engine = Engine::start().await;
    let mut models = list(&engine.url, &["m"]);
    models.models.push(ModelEntry { api: Api::Anthropic, ..ModelEntry::new("claude-*", native().await) });
    let served = Served::with(models, GatewayOptions::default()).await;
    let booked = served.book(None).await;
    let (status, _) = read(post(&format!("{}/messages", booked.base), &message("a b")).await).await;
    assert_eq!(status, StatusCode::OK);
}
