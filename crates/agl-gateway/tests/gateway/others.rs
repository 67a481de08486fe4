//! Completions, embeddings, the list of models, and whose call it is.

use std::time::Duration;

use agl_gateway::{AttemptGrant, GatewayOptions, ModelEntry, ModelList};
use agl_store::{MemoryStore, SqliteOptions, SqliteStore};
use agl_trace::read_calls;
use agl_types::v1::{Model, RolloutCreate, State, StatusUpdate};
use agl_types::{ApiKey, RolloutMode, RolloutQuery, RolloutStatus, Span, SpanQuery};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::common::{Served, at, client, json as read, list, of, post};
use crate::engine::{Engine, ids_of};

fn chat(text: &str) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": text}]})
}

#[tokio::test]
async fn completions_are_kept_with_their_tokens() {
    let engine = Engine::start().await;
    let options = GatewayOptions { expose_token_ids: Some(false), ..GatewayOptions::default() };
    let served = Served::with(list(&engine.url, &["m"]), options).await;
    let booked = served.book(None).await;
    for (number, stream) in [false, true].into_iter().enumerate() {
        let body = json!({"model": "m", "prompt": "one two", "stream": stream});
        let through = post(&format!("{}/completions", booked.base), &body).await.text().await.unwrap();
        let direct = post(&format!("{}/completions", engine.url), &body).await.text().await.unwrap();
        assert_eq!(through, direct);
        let span = &served.spans(&booked).await[number];
        assert_eq!(at(span, "gen_ai.operation.name"), "text_completion");
        assert_eq!(at(span, "prompt_token_ids"), &json!(ids_of("one two")));
        assert_eq!(at(span, "response_token_ids"), &json!(ids_of("two one")));
        assert_eq!(at(span, "gen_ai.completion.0.content"), "two one");
        assert_eq!(of(span, "choices.0.logprobs").as_array().unwrap().len(), 2);
        assert_eq!(of(span, "untrainable"), &Value::Null);
    }
}

#[tokio::test]
async fn answers_to_several_prompts_are_kept_apart() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    for stream in [false, true] {
        let body = json!({"model": "m", "prompt": ["one two", "three"], "stream": stream});
        post(&format!("{}/completions", booked.base), &body).await.text().await.unwrap();
        let span = served.spans(&booked).await.pop().unwrap();
        assert_eq!(at(&span, "prompt_token_ids"), &json!(ids_of("one two")));
        assert_eq!(of(&span, "choices.1.prompt_token_ids"), &json!(ids_of("three")));
        assert_eq!(of(&span, "choices.1.token_ids"), &json!(ids_of("three")));
        // No reader may take the second answer for one to the first prompt.
        assert!(of(&span, "untrainable").as_str().unwrap().contains("different prompts"), "{stream}");
    }
}

#[tokio::test]
async fn embeddings_are_passed_on_and_counted() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let body = json!({"model": "m", "input": ["a", "b"]});
    let through = post(&format!("{}/embeddings", booked.base), &body).await.text().await.unwrap();
    assert_eq!(through, post(&format!("{}/embeddings", engine.url), &body).await.text().await.unwrap());
    let span = served.spans(&booked).await.remove(0);
    assert_eq!(at(&span, "gen_ai.operation.name"), "embeddings");
    assert_eq!(at(&span, "gen_ai.usage.input_tokens"), 2);
    assert_eq!(at(&span, "gen_ai.request.input"), r#"["a","b"]"#);
    assert!(of(&span, "untrainable").is_string());
}

#[tokio::test]
async fn an_image_is_kept_once_and_referred_to() {
    const IMAGE: &str = "data:image/png;base64,iVBORw0KGgo=";
    const DIGEST: &str = "4c4b6a3be1314ab86138bef4314dde022e600960d8689a2c8f8631802d20dab6";
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let content =
        json!([{"type": "text", "text": "a b"}, {"type": "image_url", "image_url": {"url": IMAGE}}]);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": content}]});
    let message = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": [
        {"type": "text", "text": "a b"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
    ]}]});
    for (endpoint, body) in [("chat/completions", &body), ("chat/completions", &body), ("messages", &message)]
    {
        assert_eq!(post(&format!("{}/{endpoint}", booked.base), body).await.status(), StatusCode::OK);
        assert_eq!(engine.last().body["messages"][0]["content"], content, "the server gets the whole image");
    }
    let spans = served.spans(&booked).await;
    let (blobs, calls): (Vec<&Span>, Vec<&Span>) =
        spans.iter().partition(|span| span.name == "agentlightning.blob");
    assert_eq!((blobs.len(), calls.len()), (1, 3));
    let blob = |part: &str| at(blobs[0], &format!("agentlightning.blob.{part}"));
    assert_eq!((blob("sha256"), blob("media_type")), (&json!(DIGEST), &json!("image/png")));
    assert_eq!((blob("data"), blob("size")), (&json!("iVBORw0KGgo="), &json!(8)));
    assert_eq!(blobs[0].parent_id.as_ref(), Some(&calls[0].span_id));
    let reference = format!("sha256:{DIGEST}?type=image/png&size=8");
    for call in calls {
        let kept = at(call, "gen_ai.prompt.0.content").as_str().unwrap();
        assert!(kept.contains(&reference) && !kept.contains("iVBOR"), "{kept}");
        let images: Vec<String> =
            read_calls(std::slice::from_ref(call))[0].image_urls().map(str::to_owned).collect();
        assert_eq!(images, std::slice::from_ref(&reference), "readers find it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_at_once_with_the_same_new_image_store_it_once() {
    let engine = Engine::start().await;
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("agl.db"), SqliteOptions::default()).unwrap();
    let models = list(&engine.url, &["waits"]);
    let served = Served::over(std::sync::Arc::new(store), models, GatewayOptions::default()).await;
    let booked = served.book(None).await;
    let content = json!([{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]);
    let body = json!({"model": "waits", "messages": [{"role": "user", "content": content}]});
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let (url, body) = (format!("{}/chat/completions", booked.base), body.clone());
            tokio::spawn(async move { post(&url, &body).await.status() })
        })
        .collect();
    while engine.seen().len() < 8 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    engine.go();
    for call in calls {
        assert_eq!(call.await.unwrap(), StatusCode::OK);
    }
    let spans = served.spans(&booked).await;
    assert_eq!(spans.iter().filter(|span| span.name == "agentlightning.blob").count(), 1);
    // One that the store had passed over as there already would have left a gap.
    let places: Vec<i64> = spans.iter().map(|span| span.sequence_id).collect();
    assert_eq!(places, (1..=9).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_response_goes_on_from_one_with_an_image() {
    const IMAGE: &str = "data:image/png;base64,iVBORw0KGgo=";
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/responses", booked.base);
    let content = json!([{"type": "input_text", "text": "a b"}, {"type": "input_image", "image_url": IMAGE}]);
    let asked = json!({"model": "m", "input": [{"role": "user", "content": content}]});
    let (_, first) = read(post(&url, &asked).await).await;
    let again = json!({"model": "m", "input": "c", "previous_response_id": first["id"]});
    let (status, second) = read(post(&url, &again).await).await;
    assert_eq!(status, StatusCode::OK, "{second}");
    assert_eq!(engine.last().body["messages"][0]["content"][1]["image_url"]["url"], IMAGE);
    let spans = served.spans(&booked).await;
    let said = serde_json::to_string(&spans).unwrap();
    assert_eq!(said.matches("iVBORw0KGgo=").count(), 1);
}

#[tokio::test]
async fn models_are_listed_from_both_sides() {
    let served = Served::start("http://127.0.0.1:9/v1", &["b", "c-*"]).await;
    let model = Model { model: "a/x".to_owned(), endpoint: "http://127.0.0.1:9/v1".to_owned(), version: 0 };
    served.store.register_models(vec![model]).await.unwrap();
    let booked = served.book(None).await;
    for base in [format!("{}/v1", served.root), served.root.clone(), booked.base] {
        let (_, answer) = read(client().get(format!("{base}/models")).send().await.unwrap()).await;
        let ids: Vec<&Value> = answer["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
        assert_eq!(ids, ["a/x", "b"]);
        let (status, answer) = read(client().get(format!("{base}/models/a/x")).send().await.unwrap()).await;
        assert_eq!((status, &answer["id"]), (StatusCode::OK, &json!("a/x")));
        let absent = client().get(format!("{base}/models/z")).send().await.unwrap();
        assert_eq!(absent.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn calls_of_1_0_are_booked_to_the_claim_and_read_as_events() {
    let engine = Engine::start().await;
    let served = Served::with(ModelList::default(), GatewayOptions::default()).await;
    let created = served.store.create_controller_rollouts(vec![RolloutCreate::new("task")]).await.unwrap();
    let rollout_id = created[0].rollout_id.clone();
    let url = |mode: &str| {
        format!("{}/proxy/rollout/{rollout_id}/attempt/0/mode/{mode}/openai/v1/chat/completions", served.root)
    };
    let body = json!({"model": "whatever", "messages": [{"role": "user", "content": "a b"}]});
    let (status, answer) = read(post(&url("train"), &body).await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
    let model = Model { model: "m".to_owned(), endpoint: engine.url.clone(), version: 7 };
    served.store.register_models(vec![model]).await.unwrap();
    let (status, answer) = read(post(&url("train"), &body).await).await;
    assert_eq!(status, StatusCode::CONFLICT, "nobody has claimed it: {answer}");
    served.store.update_controller_rollout(&rollout_id, StatusUpdate::to(State::Running)).await.unwrap();
    let (status, answer) = read(post(&url("train"), &body).await).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["choices"][0]["token_ids"], json!(ids_of("b a")));
    assert_eq!(engine.last().body["model"], "m");

    let query = agl_types::v1::EventsQuery { rollout_id: rollout_id.clone(), event_type: None };
    let events = served.store.query_events(query).await.unwrap();
    assert_eq!(events[0].event_type, "model_request");
    let data = Value::Object(events[0].data.clone());
    assert_eq!(data["response"]["choices"][0]["token_ids"], json!(ids_of("b a")));
    assert_eq!(
        (&data["model_version"], &data["status"], &data["http_status"]),
        (&json!(7), &json!("ok"), &json!(200))
    );
    assert_eq!(data["request"]["return_token_ids"], true);
    let triplet = Value::Object(agl_trace::as_triplets(events).remove(0).data);
    assert_eq!(triplet["prompt_token_ids"], json!(ids_of("a b")));
    assert_eq!(triplet["response_log_probs"].as_array().unwrap().len(), 2);
    assert_eq!(triplet["server"], json!({"model": "m", "version": 7}));

    let claude =
        format!("{}/proxy/rollout/{rollout_id}/attempt/0/mode/val/anthropic/v1/messages", served.root);
    let message = json!({"model": "x", "max_tokens": 9, "messages": [{"role": "user", "content": "c d"}]});
    let (status, answer) = read(post(&claude, &message).await).await;
    assert_eq!((status, &answer["content"][0]["text"]), (StatusCode::OK, &json!("d c")), "{answer}");

    let odd = post(&url("test"), &body).await;
    assert_eq!(odd.status(), StatusCode::NOT_FOUND, "there is no such mode");
}

#[tokio::test]
async fn sampling_follows_the_mode() {
    let engine = Engine::start().await;
    let sampling = |temperature: f64| json!({"temperature": temperature}).as_object().cloned().unwrap();
    let entry = ModelEntry { train: sampling(1.0), val: sampling(0.0), ..ModelEntry::new("m", &engine.url) };
    let served = Served::with(ModelList::new(vec![entry]), GatewayOptions::default()).await;
    for (mode, temperature) in
        [(Some(RolloutMode::Train), json!(1.0)), (Some(RolloutMode::Val), json!(0.0)), (None, json!(0.5))]
    {
        let booked = served.book(mode).await;
        let mut body = chat("a");
        body["temperature"] = json!(0.5);
        post(&format!("{}/chat/completions", booked.base), &body).await;
        assert_eq!(engine.last().body["temperature"], temperature);
        let span = served.spans(&booked).await.remove(0);
        assert_eq!(
            at(&span, "gen_ai.request.temperature"),
            &temperature,
            "what was sent is what is recorded"
        );
    }
}

#[tokio::test]
async fn headers_name_the_attempt_where_the_path_does_not() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/v1/chat/completions", served.root);
    let with = |headers: Vec<(&'static str, String)>| {
        let request = client().post(&url).json(&chat("a b"));
        headers.into_iter().fold(request, |request, (name, value)| request.header(name, value)).send()
    };
    let both = vec![("x-rollout-id", booked.rollout_id.clone()), ("x-attempt-id", booked.attempt_id.clone())];
    let (_, answer) = read(with(both.clone()).await.unwrap()).await;
    assert_eq!(answer["prompt_token_ids"], Value::Null, "an agent that was not told reads nothing of ours");
    with([both.clone(), vec![("x-sequence-id", "9".to_owned())]].concat()).await.unwrap();
    let places: Vec<i64> = served.spans(&booked).await.iter().map(|span| span.sequence_id).collect();
    assert_eq!(places, [1, 9]);
    for wrong in [vec![both[0].clone()], [both, vec![("x-sequence-id", "x".to_owned())]].concat()] {
        assert_eq!(with(wrong).await.unwrap().status(), StatusCode::BAD_REQUEST);
    }
    assert!(
        engine.seen().iter().all(|seen| seen.headers.get("x-rollout-id").is_none()),
        "it is nobody else's affair"
    );
}

#[tokio::test]
async fn calls_that_name_nothing_share_a_session_that_ends_when_idle() {
    let engine = Engine::start().await;
    let options = GatewayOptions { session_idle: Duration::from_millis(300), ..GatewayOptions::default() };
    let served = Served::with(list(&engine.url, &["m"]), options).await;
    let url = format!("{}/v1/chat/completions", served.root);
    for key in ["one", "one", "two"] {
        client().post(&url).bearer_auth(key).json(&chat("a")).send().await.unwrap();
    }
    let rollouts = served.store.query_rollouts(RolloutQuery::default()).await.unwrap().items;
    assert_eq!(rollouts.len(), 2, "one for each key");
    let query = SpanQuery { rollout_id: rollouts[0].rollout.rollout_id.clone(), ..SpanQuery::default() };
    assert_eq!(served.store.query_spans(query).await.unwrap().total, 2);
    let ended = || async {
        let all = served.store.query_rollouts(RolloutQuery::default()).await.unwrap().items;
        all.iter().all(|view| view.rollout.status == RolloutStatus::Succeeded)
    };
    while !ended().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client().post(&url).bearer_auth("one").json(&chat("a")).send().await.unwrap();
    assert_eq!(served.store.query_rollouts(RolloutQuery::default()).await.unwrap().total, 3);
    served.gateway.close().await;
    assert!(ended().await, "none is left open");
}

#[tokio::test]
async fn a_session_is_not_idle_while_a_call_is_under_way() {
    let engine = Engine::start().await;
    let options = GatewayOptions { session_idle: Duration::from_millis(50), ..GatewayOptions::default() };
    let served = Served::with(list(&engine.url, &["m", "waits"]), options).await;
    let call = |key: &'static str, model: &'static str| {
        let url = format!("{}/v1/chat/completions", served.root);
        let body = json!({"model": model, "messages": [{"role": "user", "content": "a"}]});
        tokio::spawn(
            async move { client().post(url).bearer_auth(key).json(&body).send().await.unwrap().status() },
        )
    };
    let slow = call("one", "waits");
    while engine.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(call("two", "m").await.unwrap(), StatusCode::OK);
    let statuses = || async {
        let all = served.store.query_rollouts(RolloutQuery::default()).await.unwrap().items;
        all.iter().map(|view| view.rollout.status).collect::<Vec<_>>()
    };
    // The second session began later, and has ended.
    while statuses().await[1] != RolloutStatus::Succeeded {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_ne!(statuses().await[0], RolloutStatus::Succeeded);
    engine.go();
    assert_eq!(slow.await.unwrap(), StatusCode::OK);
    while statuses().await[0] != RolloutStatus::Succeeded {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_token_is_good_for_its_attempt_alone() {
    let engine = Engine::start().await;
    let options = GatewayOptions { key: Some(ApiKey::new("the-key").unwrap()), ..GatewayOptions::default() };
    let served =
        Served::over(std::sync::Arc::new(MemoryStore::new()), list(&engine.url, &["m"]), options).await;
    let (own, other) = (served.book(None).await, served.book(None).await);
    let grant = AttemptGrant {
        rollout_id: own.rollout_id.clone(),
        attempt_id: own.attempt_id.clone(),
        may_reward: true,
        until: None,
    };
    let token = served.gateway.tokens().issue(&grant);
    let call = async |base: &str, credential: Option<(&'static str, String)>| {
        let request = client().post(format!("{base}/chat/completions")).json(&chat("a"));
        let request = match credential {
            Some((name, value)) => request.header(name, value),
            None => request,
        };
        request.send().await.unwrap().status()
    };
    let bearer = |token: &str| Some(("authorization", format!("Bearer {token}")));
    let unnamed = format!("{}/v1", served.root);
    for base in [&own.base, &unnamed] {
        assert_eq!(call(base, bearer(&token)).await, StatusCode::OK);
        assert_eq!(call(base, Some(("x-api-key", token.clone()))).await, StatusCode::OK);
        assert_eq!(call(base, None).await, StatusCode::UNAUTHORIZED);
        assert_eq!(call(base, bearer("other")).await, StatusCode::UNAUTHORIZED);
        assert_eq!(call(base, bearer(&format!("{token}x"))).await, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(served.spans(&own).await.len(), 4, "with a token, a call needs no path");
    assert_eq!(call(&other.base, bearer(&token)).await, StatusCode::FORBIDDEN);
    assert_eq!(call(&other.base, bearer("the-key")).await, StatusCode::OK);
    assert_eq!(served.spans(&other).await.len(), 1);
    for (method, path) in [("POST", "pause"), ("POST", "resume"), ("GET", "state")] {
        let method = method.parse().unwrap();
        let asked = client().request(method, format!("{}/proxy/{path}", served.root)).bearer_auth(&token);
        assert_eq!(asked.send().await.unwrap().status(), StatusCode::FORBIDDEN, "{path}");
    }
}
