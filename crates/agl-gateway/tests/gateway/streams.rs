//! Streams: a tee that keeps every byte, and a record whatever the end.

use std::time::Duration;

use agl_gateway::{Capture, GatewayOptions};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::common::{Served, at, list, of, post};
use crate::engine::{Engine, ids_of};

fn chat(model: &str, text: &str) -> Value {
    json!({"model": model, "stream": true, "messages": [{"role": "user", "content": text}]})
}

#[tokio::test]
async fn a_stream_is_passed_on_byte_for_byte_without_what_capture_added() {
    let engine = Engine::start().await;
    let options = GatewayOptions { expose_token_ids: Some(false), ..GatewayOptions::default() };
    let served = Served::with(list(&engine.url, &["m"]), options).await;
    let booked = served.book(None).await;
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let cases = [
        ("n", json!(1)),
        ("n", json!(2)),
        ("logprobs", json!(true)),
        ("return_token_ids", json!(true)),
        ("stream_options", json!({"include_usage": true})),
        ("tools", tools),
    ];
    for (number, (extra, value)) in cases.into_iter().enumerate() {
        let mut body = chat("m", "one \"two\" {three} ü");
        body[extra] = value;
        let through = post(&format!("{}/chat/completions", booked.base), &body).await;
        assert!(through.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        let through = through.text().await.unwrap();
        let direct = post(&format!("{}/chat/completions", engine.url), &body).await.text().await.unwrap();
        assert_eq!(through, direct, "{extra}");
        // Kept before the last byte had left.
        let spans = served.spans(&booked).await;
        assert_eq!(spans.len(), number + 1);
        let span = &spans[number];
        assert_eq!(
            (of(span, "outcome"), of(span, "untrainable")),
            (&json!("answered"), &Value::Null),
            "{extra}"
        );
        assert_eq!(at(span, "gen_ai.request.streaming"), true);
        assert_eq!(at(span, "prompt_token_ids"), &json!(ids_of("one \"two\" {three} ü")));
        assert!(of(span, "time_to_first_token").as_f64().unwrap() > 0.0);
    }
    let spans = served.spans(&booked).await;
    assert_eq!(at(&spans[0], "gen_ai.completion.0.content"), "ü {three} \"two\" one");
    assert_eq!(of(&spans[1], "choices.1.token_ids"), &json!(ids_of("ü {three} \"two\" one 1")));
    assert_eq!(of(&spans[0], "choices.0.logprobs").as_array().unwrap().len(), 4);
    assert_eq!(at(&spans[5], "response_token_ids"), &json!([1, 2, 3]));
    assert_eq!(at(&spans[5], "gen_ai.completion.0.finish_reason"), "tool_calls");
}

#[tokio::test]
async fn an_agent_of_ours_sees_the_token_ids() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let text =
        post(&format!("{}/chat/completions", booked.base), &chat("m", "a b")).await.text().await.unwrap();
    assert!(text.contains("\"token_ids\"") && text.contains("prompt_token_ids"), "{text}");
    assert!(text.contains("\"usage\""), "what it did not ask for does it no harm");
    assert!(text.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn pieces_are_not_held_back() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["hangs"]).await;
    let booked = served.book(None).await;
    let response = post(&format!("{}/chat/completions", booked.base), &chat("hangs", "a b")).await;
    let mut pieces = response.bytes_stream();
    let mut text = Vec::new();
    // The engine says two things and a comment, and then nothing more.
    while !String::from_utf8_lossy(&text).contains("\"content\":\"b\"") {
        text.extend_from_slice(&pieces.next().await.unwrap().unwrap());
    }
    assert!(served.spans(&booked).await.is_empty());
    drop(pieces);
    engine.until_dropped(0).await;
    let span = served.until(&booked, 1).await.remove(0);
    assert_eq!(of(&span, "outcome"), "disconnected");
    assert_eq!(at(&span, "gen_ai.completion.0.content"), "b", "what there was is kept");
    assert_eq!(of(&span, "untrainable"), "the agent left before the end of the answer");
}

#[tokio::test]
async fn a_stream_that_breaks_off_breaks_off_for_the_agent_too() {
    let engine = Engine::start().await;
    for capture in [Capture::Durable, Capture::Async] {
        let options = GatewayOptions { capture, ..GatewayOptions::default() };
        let served = Served::with(list(&engine.url, &["breaks"]), options).await;
        let booked = served.book(None).await;
        let response = post(&format!("{}/chat/completions", booked.base), &chat("breaks", "a b c")).await;
        let mut pieces = response.bytes_stream();
        let mut text = Vec::new();
        let end = loop {
            match pieces.next().await {
                Some(Ok(piece)) => text.extend_from_slice(&piece),
                other => break other,
            }
        };
        assert!(matches!(end, Some(Err(_))), "the agent is not told that all is well");
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("\"error\"") && text.contains(&engine.url) && text.contains("tried once"),
            "{text}"
        );
        assert!(!text.contains("[DONE]"), "{text}");
        let span = served.until(&booked, 1).await.remove(0);
        assert_eq!(of(&span, "outcome"), "broken_off");
        assert!(span.status.description.unwrap().contains(&engine.url));
    }
}

#[tokio::test]
async fn nothing_is_tried_again_once_a_byte_has_reached_the_agent() {
    for (model, outcome, told) in [
        ("breaks", "broken_off", "broke off"),
        ("stops", "broken_off", "ended its stream in the middle"),
        ("errs", "failed", "out of memory"),
    ] {
        let engine = Engine::start().await;
        let mut models = list(&engine.url, &[model]);
        models.models[0].retries = 3;
        let served = Served::with(models, GatewayOptions::default()).await;
        let booked = served.book(None).await;
        let response = post(&format!("{}/chat/completions", booked.base), &chat(model, "a b c")).await;
        let ended = response.bytes().await;
        assert_eq!(ended.is_ok(), model == "errs", "what the server says itself goes on as it is");
        let span = served.until(&booked, 1).await.remove(0);
        assert_eq!((of(&span, "outcome"), of(&span, "tries")), (&json!(outcome), &json!(1)), "{model}");
        assert!(at(&span, "error.message").as_str().unwrap().contains(told), "{span:?}");
        assert!(of(&span, "untrainable").is_string());
        assert_eq!(at(&span, "gen_ai.completion.0.content"), "c", "what there was is kept");
        assert_eq!(engine.seen().len(), 1, "{model}");
    }
}

#[tokio::test]
async fn a_stream_that_never_began_is_tried_again() {
    let engine = Engine::start().await;
    let mut models = list(&engine.url, &["late"]);
    models.models[0].retries = 1;
    let served = Served::with(models, GatewayOptions::default()).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    let text = post(&url, &chat("late", "a b")).await.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let span = served.spans(&booked).await.remove(0);
    assert_eq!((of(&span, "outcome"), of(&span, "tries")), (&json!("answered"), &json!(2)));
}

#[tokio::test]
async fn an_error_before_the_stream_is_an_answer() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["picky"]).await;
    let booked = served.book(None).await;
    let response = post(&format!("{}/chat/completions", booked.base), &chat("picky", "a")).await;
    assert_eq!(response.status(), reqwest::StatusCode::BAD_REQUEST);
    assert_eq!(of(&served.spans(&booked).await[0], "outcome"), "failed");
}

#[tokio::test]
async fn a_stream_that_stands_still_is_given_up() {
    let engine = Engine::start().await;
    let mut models = list(&engine.url, &["hangs"]);
    models.models[0].stream_timeout = 0.05;
    let served = Served::with(models, GatewayOptions::default()).await;
    let booked = served.book(None).await;
    let response = post(&format!("{}/chat/completions", booked.base), &chat("hangs", "a b")).await;
    let end = tokio::time::timeout(Duration::from_secs(20), response.bytes()).await.unwrap();
    assert!(end.is_err());
    let span = served.until(&booked, 1).await.remove(0);
    assert!(span.status.description.unwrap().contains("said nothing for 0.05 s"));
}
