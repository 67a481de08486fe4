//! Who answers: retries, failover, limits, pauses, a list that changes; and what never gets out.

use std::time::Duration;

use agl_gateway::{Gateway, GatewayOptions, ModelEntry, ModelList};
use agl_types::ApiKey;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::common::{Served, client, json as read, list, of, post};
use crate::engine::Engine;

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "a b"}]})
}

#[tokio::test]
async fn a_call_is_tried_again_and_the_tries_are_counted() {
    let engine = Engine::start().await;
    let mut models = list(&engine.url, &["flaky", "down"]);
    models.models[0].retries = 2;
    models.models[1].retries = 1;
    let served = Served::with(models, GatewayOptions::default()).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    let response = post(&url, &chat("flaky")).await;
    assert_eq!(
        (response.status(), &response.headers()["x-agl-tries"]),
        (StatusCode::OK, &"3".parse().unwrap())
    );
    let (status, answer) = read(post(&url, &chat("down")).await).await;
    assert_eq!((status, &answer["error"]["message"]), (StatusCode::INTERNAL_SERVER_ERROR, &json!("down")));
    let spans = served.spans(&booked).await;
    assert_eq!((of(&spans[0], "tries"), of(&spans[0], "outcome")), (&json!(3), &json!("answered")));
    assert_eq!((of(&spans[1], "tries"), of(&spans[1], "outcome")), (&json!(2), &json!("failed")));
}

#[tokio::test]
async fn another_server_steps_in_at_once() {
    let engine = Engine::start().await;
    let dead = ModelEntry::new("m", "http://127.0.0.1:9/v1");
    let alive = ModelEntry::new("m", &engine.url);
    let served = Served::with(ModelList::new(vec![dead, alive]), GatewayOptions::default()).await;
    let mut tried_twice = 0;
    for _ in 0..12 {
        let booked = served.book(None).await;
        let response = post(&format!("{}/chat/completions", booked.base), &chat("m")).await;
        assert_eq!(response.status(), StatusCode::OK);
        let span = served.spans(&booked).await.remove(0);
        assert_eq!(of(&span, "backend"), &json!(engine.url));
        tried_twice += usize::from(of(&span, "tries") == 2);
    }
    assert!(tried_twice <= 3, "a server that keeps failing is passed over: {tried_twice}");
}

#[tokio::test]
async fn a_server_takes_on_no_more_than_it_may() {
    let engine = Engine::start().await;
    let mut models = list(&engine.url, &["waits"]);
    models.models[0].max_concurrency = Some(2);
    let served = Served::with(models, GatewayOptions::default()).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    let calls: Vec<_> = (0..5)
        .map(|_| {
            tokio::spawn({
                let url = url.clone();
                async move { post(&url, &chat("waits")).await.status() }
            })
        })
        .collect();
    while served.gateway.state().inflight < 5 || engine.seen().len() < 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(engine.seen().len(), 2);
    engine.go();
    for call in calls {
        assert_eq!(call.await.unwrap(), StatusCode::OK);
    }
}

#[tokio::test]
async fn the_list_changes_while_calls_run() {
    let (first, second) = (Engine::start().await, Engine::start().await);
    let served = Served::start(&first.url, &["waits", "m"]).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    let under_way = tokio::spawn({
        let url = url.clone();
        async move { post(&url, &chat("waits")).await.status() }
    });
    while first.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    served.gateway.set_models(list(&second.url, &["m"])).unwrap();
    assert_eq!(post(&url, &chat("m")).await.status(), StatusCode::OK);
    assert_eq!(second.seen().len(), 1);
    let mut wrong = list(&second.url, &["m"]);
    wrong.models[0].url = "nonsense".to_owned();
    let error = served.gateway.set_models(wrong).unwrap_err().to_string();
    assert!(error.contains("model \"m\": url"), "{error}");
    assert_eq!(post(&url, &chat("m")).await.status(), StatusCode::OK, "the former list stays");
    first.go();
    assert_eq!(under_way.await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn calls_wait_while_the_gateway_is_paused() {
    let engine = Engine::start().await;
    let options = GatewayOptions { max_parked: 2, ..GatewayOptions::default() };
    let served = Served::with(list(&engine.url, &["m", "waits"]), options).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    let start = |model: &'static str| {
        let url = url.clone();
        tokio::spawn(async move { post(&url, &chat(model)).await.status() })
    };
    let state =
        async || read(client().get(format!("{}/proxy/state", served.root)).send().await.unwrap()).await.1;
    let slow = start("waits");
    while engine.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let pause = json!({"retry_after_seconds": 3, "reason": "weights", "drain_seconds": 0.02});
    let (status, answer) = read(post(&format!("{}/proxy/pause", served.root), &pause).await).await;
    assert_eq!((status, &answer["paused"], &answer["inflight"]), (StatusCode::OK, &json!(true), &json!(1)));
    assert!(answer["waiting_for"][0]["call"].as_str().unwrap().contains(&booked.rollout_id));
    let parked = [start("m"), start("m")];
    while state().await["parked"] != 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let refused = post(&url, &chat("m")).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        (&refused.headers()["retry-after"], &refused.headers()["x-agl-paused"]),
        (&"3".parse().unwrap(), &"true".parse().unwrap())
    );
    assert_eq!(read(refused).await.1, json!({"error": "gateway paused", "reason": "weights"}));
    engine.go();
    assert_eq!(slow.await.unwrap(), StatusCode::OK, "what is under way goes on");
    assert_eq!(served.gateway.drain(Duration::from_secs(20)).await.inflight, 0);
    assert_eq!(engine.seen().len(), 1);
    let (_, answer) =
        read(client().post(format!("{}/proxy/resume", served.root)).send().await.unwrap()).await;
    assert_eq!(answer["paused"], false);
    for call in parked {
        assert_eq!(call.await.unwrap(), StatusCode::OK);
    }
    assert_eq!(state().await["inflight"], 0);
}

#[tokio::test]
async fn a_servers_key_goes_to_the_server_and_nowhere_else() {
    const KEY: &str = "planted-key-0123456789";
    let engine = Engine::start().await;
    let mut models = list(&engine.url, &["m", "tells", "redirects"]);
    for entry in &mut models.models {
        entry.api_key = Some(ApiKey::new(KEY).unwrap());
    }
    let served = Served::with(models.clone(), GatewayOptions::default()).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    let mut told = format!("{models:?} {:?}", served.gateway);
    for model in ["m", "tells", "redirects"] {
        let response =
            client().post(&url).bearer_auth("the-agents-own").json(&chat(model)).send().await.unwrap();
        told.push_str(&format!("{:?}", response.headers()));
        told.push_str(&response.text().await.unwrap());
        let seen = engine.last();
        assert_eq!(seen.headers["authorization"], format!("Bearer {KEY}"));
        assert!(!format!("{:?}", seen.headers).contains("the-agents-own"), "an agent's key stays here");
    }
    told.push_str(&serde_json::to_string(&served.spans(&booked).await).unwrap());
    assert!(told.contains("wrong key: Bearer ***"), "{told}");
    assert!(!told.contains(KEY));
    let redirected = served.spans(&booked).await.pop().unwrap();
    assert_eq!(of(&redirected, "http_status"), 302, "nobody is sent elsewhere");
}

#[tokio::test]
async fn a_servers_headers_are_sent_with_every_request() {
    let engine = Engine::start().await;
    let mut models = list(&engine.url, &["m"]);
    for (name, value) in
        [("x-title", "ours"), ("openai-organization", "ours"), ("authorization", "Basic eDp5")]
    {
        models.models[0].headers.insert(name, value.parse().unwrap());
    }
    let served = Served::with(models, GatewayOptions::default()).await;
    let url = format!("{}/chat/completions", served.book(None).await.base);
    let request = client().post(&url).header("openai-organization", "theirs").bearer_auth("theirs");
    request.json(&chat("m")).send().await.unwrap();
    let seen = engine.last().headers;
    assert_eq!(
        (&seen["x-title"], &seen["openai-organization"]),
        (&"ours".parse().unwrap(), &"ours".parse().unwrap())
    );
    assert_eq!(seen.get_all("authorization").iter().collect::<Vec<_>>(), ["Basic eDp5"]);
}

#[tokio::test]
async fn only_what_is_meant_for_the_other_side_crosses_over() {
    let engine = Engine::start().await;
    let served = Served::start(&engine.url, &["m"]).await;
    let booked = served.book(None).await;
    let response = client()
        .post(format!("{}/chat/completions", booked.base))
        .header("connection", "x-mine, openai-project")
        .header("x-mine", "1")
        .header("openai-project", "named as of this hop")
        .header("openai-organization", "o")
        .header("cookie", "a=b")
        .header("x-forwarded-for", "1.2.3.4")
        .header("x-agl-agent", "a")
        .header("te", "trailers")
        .header("accept-encoding", "gzip")
        .json(&chat("m"))
        .send()
        .await
        .unwrap();
    for name in ["x-hop", "set-cookie"] {
        assert!(response.headers().get(name).is_none(), "{name}");
    }
    assert_eq!(response.headers()["x-engine"], "yes");
    let seen = engine.last().headers;
    for name in ["x-mine", "openai-project", "cookie", "x-forwarded-for", "x-agl-agent", "te"] {
        assert!(seen.get(name).is_none(), "{name}");
    }
    assert_eq!(
        (&seen["openai-organization"], &seen["accept-encoding"]),
        (&"o".parse().unwrap(), &"identity".parse().unwrap())
    );
}

#[tokio::test]
async fn a_request_may_not_be_larger_than_the_limit() {
    let engine = Engine::start().await;
    let options = GatewayOptions { body_limit: 200, ..GatewayOptions::default() };
    let served = Served::with(list(&engine.url, &["m"]), options).await;
    let booked = served.book(None).await;
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "a".repeat(300)}]});
    let answer = post(&format!("{}/chat/completions", booked.base), &body).await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert!(engine.seen().is_empty());
}

#[test]
fn a_list_that_makes_no_sense_is_refused() {
    let store = std::sync::Arc::new(agl_store::MemoryStore::new());
    let with = |models: ModelList| {
        Gateway::new(store.clone(), models, GatewayOptions::default()).unwrap_err().to_string()
    };
    let mut models = list("http://h/v1", &["m"]);
    models.default_model = Some("other".to_owned());
    assert!(with(models).contains("default_model"));
    let mut models = list("http://h/v1", &["m"]);
    models.models[0].api_key_env = Some("AGL_TEST_NO_SUCH_VARIABLE".to_owned());
    assert!(with(models).contains("AGL_TEST_NO_SUCH_VARIABLE is not set"));
}
