//! Chat completions that are not streams.

use agl_gateway::{AttemptGrant, Capture, GatewayOptions};
use agl_types::StatusCode as SpanStatus;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::common::{Served, at, client, json as read, list, of, post};
use crate::engine::{Engine, ids_of};

fn chat(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}]})
}

#[tokio::test]
async fn a_call_is_answered_and_kept_with_its_tokens() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let (status, answer) =
        read(post(&format!("{}/chat/completions", booked.base), &chat("m", "one two three")).await).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(answer["choices"][0]["message"]["content"], "three two one");
    // Agents on this path read what was captured.
    assert_eq!(answer["prompt_token_ids"], json!(ids_of("one two three")));
    assert_eq!(engine.last().body["return_token_ids"], true);
    assert_eq!(engine.last().path, "/v1/chat/completions");

    let spans = served.spans(&booked).await;
    let [span] = spans.as_slice() else { panic!("{} spans", spans.len()) };
    assert_eq!((span.name.as_str(), span.sequence_id), ("litellm_request", 1));
    assert_eq!(span.status.status_code, SpanStatus::Ok);
    assert_eq!(at(span, "prompt_token_ids"), &json!(ids_of("one two three")));
    assert_eq!(at(span, "response_token_ids"), &json!(ids_of("three two one")));
    assert_eq!(of(span, "choices.0.token_ids"), &json!(ids_of("three two one")));
    assert_eq!(of(span, "choices.0.logprobs").as_array().unwrap().len(), 3);
    assert_eq!(of(span, "untrainable"), &Value::Null);
    assert_eq!(of(span, "outcome"), "answered");
    assert_eq!((of(span, "tries"), of(span, "http_status")), (&json!(1), &json!(200)));
    assert_eq!(of(span, "backend"), &json!(engine.url));
    assert_eq!(at(span, "gen_ai.operation.name"), "chat");
    assert_eq!(at(span, "gen_ai.prompt.0.content"), "one two three");
    assert_eq!(at(span, "gen_ai.completion.0.content"), "three two one");
    assert_eq!(
        (at(span, "gen_ai.usage.input_tokens"), at(span, "gen_ai.usage.output_tokens")),
        (&json!(3), &json!(3))
    );
    assert_eq!(at(span, "gen_ai.response.finish_reasons"), &json!(["stop"]));
    assert_eq!(at(span, "gen_ai.response.id"), &answer["id"]);
    assert!(span.is_plain(), "0.3's models can read it");
    assert!(span.end_time > span.start_time);

    // 0.3's adapters read the same from it.
    let options =
        agl_trace::TripletOptions { llm_call_match: "litellm_request".to_owned(), ..Default::default() };
    let triplets = agl_trace::spans_to_triplets(&spans, &options).unwrap();
    assert_eq!(triplets[0].prompt["token_ids"], json!(ids_of("one two three")));
    assert_eq!(triplets[0].response["token_ids"], json!(ids_of("three two one")));
}

/// What the engine says to a request when nobody is in between.
async fn direct(engine: &Engine, body: &Value) -> bytes::Bytes {
    post(&format!("{}/chat/completions", engine.url), body).await.bytes().await.unwrap()
}

#[tokio::test]
async fn what_capture_added_is_cut_and_no_other_byte_changes() {
    let engine = Engine::start().await;
    let options = GatewayOptions { expose_token_ids: Some(false), ..GatewayOptions::default() };
    let served = Served::with(list(&engine.url, &["m"]), options).await;
    let booked = served.book(None).await;
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    for (extra, value) in [
        ("n", json!(1)),
        ("n", json!(3)),
        ("logprobs", json!(true)),
        ("return_token_ids", json!(true)),
        ("tools", tools),
    ] {
        let mut body = chat("m", "one \"two\" {three} ü");
        body[extra] = value;
        let through = post(&format!("{}/chat/completions", booked.base), &body).await;
        assert_eq!(through.headers()["x-engine"], "yes");
        let through = through.bytes().await.unwrap();
        assert_eq!(through, direct(&engine, &body).await, "{extra}");
        let span = served.spans(&booked).await.pop().unwrap();
        assert_eq!(of(&span, "untrainable"), &Value::Null, "{extra}");
        assert!(at(&span, "response_token_ids").is_array(), "{extra}");
    }
    let span = &served.spans(&booked).await[1];
    assert_eq!(of(span, "choices.2.token_ids").as_array().unwrap().len(), 5, "every choice has its tokens");
}

#[tokio::test]
async fn a_server_that_knows_no_token_ids_is_not_asked_for_any() {
    let engine = Engine::owned_by("somebody").await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let mut body = chat("m", "a b");
    body["return_token_ids"] = json!(true);
    let (status, _) = read(post(&format!("{}/chat/completions", booked.base), &body).await).await;
    assert_eq!(status, StatusCode::OK);
    let seen = engine.last().body;
    assert_eq!((&seen["return_token_ids"], &seen["logprobs"]), (&Value::Null, &Value::Null));
    let span = served.spans(&booked).await.remove(0);
    assert_eq!(of(&span, "untrainable"), "the model server returns no token ids");
    assert_eq!(at(&span, "gen_ai.completion.0.content"), "b a");
}

#[tokio::test]
async fn a_count_that_does_not_fit_is_told() {
    let cases = [
        ("wrong-completion", "there are 2 token ids of the response, but usage counts 3"),
        ("wrong-prompt", "there are 2 token ids of the prompt, but usage counts 3"),
        ("wrong-logprobs", "there are 2 token ids but 1 log-probs"),
        ("wrong-ids", "the model server returned no token ids, although it was asked to"),
    ];
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &cases.map(|(model, _)| model)).await;
    let booked = served.book(None).await;
    for (model, reason) in cases {
        for stream in [false, true] {
            let mut body = chat(model, "a b");
            body["stream"] = json!(stream && model != "wrong-logprobs");
            let url = format!("{}/chat/completions", booked.base);
            assert!(!post(&url, &body).await.text().await.unwrap().is_empty(), "{model}");
            let span = served.spans(&booked).await.pop().unwrap();
            assert_eq!(of(&span, "untrainable"), reason, "{model} {stream}");
            assert_eq!(of(&span, "outcome"), "answered");
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_none_is_kept_as_a_failure() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["garbage"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    assert_eq!(post(&url, &chat("garbage", "a")).await.text().await.unwrap(), "<html>");
    let span = served.spans(&booked).await.remove(0);
    assert_eq!((of(&span, "outcome"), at(&span, "error.message")), (&json!("failed"), &json!("<html>")));
}

#[tokio::test]
async fn an_error_is_passed_on_and_kept_as_one() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["picky"]).await;
    let booked = served.book(None).await;
    let response = post(&format!("{}/chat/completions", booked.base), &chat("picky", "a")).await;
    assert_eq!(response.headers()["x-agl-backend"], engine.url.as_str());
    assert_eq!(response.headers()["x-agl-tries"], "1");
    let (status, answer) = read(response).await;
    assert_eq!((status, &answer["error"]["message"]), (StatusCode::BAD_REQUEST, &json!("no such parameter")));
    let span = served.spans(&booked).await.remove(0);
    assert_eq!(span.status.status_code, SpanStatus::Error);
    assert_eq!((of(&span, "outcome"), of(&span, "http_status")), (&json!("failed"), &json!(400)));
    assert_eq!(at(&span, "error.type"), "400");
    assert!(at(&span, "error.message").as_str().unwrap().contains("no such parameter"));
    assert_eq!(of(&span, "untrainable"), "the call failed");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_to_the_agent_and_in_the_span() {
    let served = Served::start("http://127.0.0.1:9/v1", &["m"]).await;
    let booked = served.book(None).await;
    let (status, answer) =
        read(post(&format!("{}/chat/completions", booked.base), &chat("m", "a")).await).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    let message = answer["error"]["message"].as_str().unwrap();
    for part in ["http://127.0.0.1:9/v1", "could not be reached", "refused", "\"m\"", "tried once"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    let span = served.spans(&booked).await.remove(0);
    assert_eq!(span.status.description.as_deref(), Some(message));
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_with_the_reason() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m", "n"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    let send = async |body: &str| read(client().post(&url).body(body.to_owned()).send().await.unwrap()).await;
    for (body, part) in [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        (r#"{"model":"m","mod\u0065l":"n","messages":[]}"#, "\"model\" twice"),
        (r#"{"model":1}"#, "model has to be text"),
        (r#"{"messages":[]}"#, "names no model"),
        (r#"{"model":"x"}"#, "Invalid model name \"x\": there are m, n"),
        (r#"{"model":"m","stream":"yes"}"#, "stream has to be true or false"),
    ] {
        let (status, answer) = send(body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }
    let got = client().get(&url).send().await.unwrap();
    assert_eq!(got.status(), StatusCode::METHOD_NOT_ALLOWED);
    for (path, status) in [
        ("/rollout/ro-none/attempt/at-none/v1/chat/completions", StatusCode::NOT_FOUND),
        (
            &format!("/rollout/{}/attempt/at-none/v1/chat/completions", booked.rollout_id),
            StatusCode::NOT_FOUND,
        ),
        (
            &format!("/rollout/{}/attempt/{}/v1/other", booked.rollout_id, booked.attempt_id),
            StatusCode::NOT_FOUND,
        ),
    ] {
        let answer = post(&format!("{}{path}", served.root), &chat("m", "a")).await;
        assert_eq!(answer.status(), status, "{path}");
    }
    assert!(engine.seen().is_empty(), "nothing of that went on");
    assert!(served.spans(&booked).await.is_empty());
}

#[tokio::test]
async fn capture_after_the_answer_keeps_the_place_of_the_call() {
    let engine = Engine::start().await;
    let options = GatewayOptions { capture: Capture::Async, ..GatewayOptions::default() };
    let served = Served::with(list(&engine.url, &["m"]), options).await;
    let booked = served.book(None).await;
    post(&format!("{}/chat/completions", booked.base), &chat("m", "a b")).await;
    let next = served.store.get_next_span_sequence_id(&booked.rollout_id, &booked.attempt_id).await.unwrap();
    assert_eq!(next, 2, "what the agent records now comes after its call");
    assert_eq!(served.until(&booked, 1).await[0].sequence_id, 1);
}

#[tokio::test]
async fn an_agent_that_leaves_is_recorded_and_the_call_given_up() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["waits"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    let call = tokio::spawn(async move { post(&url, &chat("waits", "a")).await });
    while engine.seen().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    call.abort();
    engine.until_dropped(1).await;
    let span = served.until(&booked, 1).await.remove(0);
    assert_eq!(of(&span, "outcome"), "disconnected");
    assert_eq!(span.status.status_code, SpanStatus::Error);
}

#[tokio::test]
async fn an_answer_that_cannot_be_kept_is_not_given() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    assert_eq!(post(&url, &chat("m", "a")).await.status(), StatusCode::OK);
    served.store.delete_rollout(&booked.rollout_id).await.unwrap();
    let (status, answer) = read(post(&url, &chat("m", "a")).await).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(answer["error"]["message"].as_str().unwrap().contains("could not be recorded"), "{answer}");
}

#[tokio::test]
async fn what_a_model_called_a_tool_with_comes_back_as_it_spelled_it() {
    let engine = Engine::start().await;
    let mut models = list(&engine.url, &["m", "as-is"]);
    models.models[1].restore_tool_calls = false;
    let store: std::sync::Arc<dyn agl_store::Store> = std::sync::Arc::new(agl_store::MemoryStore::new());
    let start = || Served::over(store.clone(), models.clone(), GatewayOptions::default());
    let served = start().await;
    let asked = |model: &str, stream: bool| {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
        let messages = json!([{"role": "user", "content": "a"}]);
        json!({"model": model, "messages": messages, "tools": [tool], "stream": stream})
    };
    // What the model server is told when the agent gives back a call so.
    let told_to = async |request: reqwest::RequestBuilder, model: &str, id: &str, arguments: &str| {
        let call = json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
        let messages = json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": id, "content": "so it is"},
        ]);
        let body = json!({"model": model, "messages": messages});
        assert_eq!(request.json(&body).send().await.unwrap().status(), StatusCode::OK);
        let mut sent = engine.last().body["messages"].clone();
        let function = &mut sent[1]["tool_calls"][0]["function"];
        let written = function["arguments"].as_str().unwrap().to_owned();
        function["arguments"] = arguments.into();
        assert_eq!(sent, messages, "nothing else is touched");
        written
    };
    let told = async |base: &str, model: &str, id: &str, arguments: &str| {
        told_to(client().post(format!("{base}/chat/completions")), model, id, arguments).await
    };
    let (written, anew) = ("{\"x\": 1}", "{\"x\":1}");
    for stream in [false, true] {
        let booked = served.book(None).await;
        let base = &booked.base;
        let answer = post(&format!("{base}/chat/completions"), &asked("m", stream)).await;
        assert!(answer.text().await.unwrap().contains("call-0"));
        assert_eq!(told(base, "m", "call-0", anew).await, written);
        let span = served.until(&booked, 2).await.pop().unwrap();
        assert_eq!(at(&span, "gen_ai.prompt.1.tool_calls.0.arguments"), written, "as the server got it");
        for (model, id, arguments) in [
            ("m", "call-0", written),
            ("m", "call-0", "{\"x\":2}"),
            ("m", "call-0", "{oops"),
            ("m", "call-9", anew),
            ("as-is", "call-0", anew),
        ] {
            assert_eq!(told(base, model, id, arguments).await, arguments, "{model} {id}");
        }
        let other = served.book(None).await;
        assert_eq!(told(&other.base, "m", "call-0", anew).await, anew, "not of another attempt");
        assert_eq!(told(&start().await.at(&booked), "m", "call-0", anew).await, written, "after a restart");
    }
    let nobodys = format!("{}/v1", served.root);
    let booked = served.book(None).await;
    post(&format!("{}/chat/completions", booked.base), &asked("m", false)).await.text().await.unwrap();
    let (rollout_id, attempt_id) = (booked.rollout_id.clone(), booked.attempt_id.clone());
    let request = client().post(format!("{nobodys}/chat/completions"));
    let by_headers = request.header("x-rollout-id", &rollout_id).header("x-attempt-id", &attempt_id);
    assert_eq!(told_to(by_headers, "m", "call-0", anew).await, written);
    let grant = AttemptGrant { rollout_id, attempt_id, may_reward: false, until: None };
    let request = client().post(format!("{nobodys}/chat/completions"));
    let by_key = request.bearer_auth(served.gateway.tokens().issue(&grant));
    assert_eq!(told_to(by_key, "m", "call-0", anew).await, written);
    post(&format!("{nobodys}/chat/completions"), &asked("m", false)).await.text().await.unwrap();
    assert_eq!(told(&nobodys, "m", "call-0", anew).await, anew, "who knows whose it is");
}
