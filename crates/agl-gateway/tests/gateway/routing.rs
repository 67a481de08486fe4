//! Who answers: retries, failover, limits, pauses, a list that changes; and what never gets out.

use std::time::Duration;

use agl_gateway::{Capture, Gateway, GatewayOptions, ModelEntry, ModelList};
use agl_types::ApiKey;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::common::{Booked, Served, at, client, json as read, list, of, post};
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
    // So long that it is not held as JSON in between.
    let mut long = chat("flaky");
    long["messages"][0]["content"] = "a b ".repeat(10_000).into();
    let response = post(&url, &long).await;
    assert_eq!(
        (response.status(), &response.headers()["x-agl-tries"]),
        (StatusCode::OK, &"3".parse().unwrap())
    );
    let (status, answer) = read(post(&url, &chat("down")).await).await;
    let told = format!("down (the model server {}, tried 2 times)", engine.url);
    assert_eq!((status, &answer["error"]["message"]), (StatusCode::INTERNAL_SERVER_ERROR, &json!(told)));
    let message = json!({"model": "down", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]});
    let (_, answer) = read(post(&format!("{}/messages", booked.base), &message).await).await;
    assert_eq!(answer["error"]["message"], told);
    let spans = served.spans(&booked).await;
    assert_eq!((of(&spans[0], "tries"), of(&spans[0], "outcome")), (&json!(3), &json!("answered")));
    assert_eq!(spans[0].attributes["gen_ai.prompt.0.content"], long["messages"][0]["content"]);
    assert_eq!(spans[0].attributes["prompt_token_ids"].as_array().map(Vec::len), Some(20_000));
    assert_eq!((of(&spans[1], "tries"), of(&spans[1], "outcome")), (&json!(2), &json!("failed")));
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
    let engine = Engine::start().await;
    let may_pass = [408, 409, 429, 500, 502, 503, 504, 529];
    for status in may_pass.into_iter().chain([400, 401, 403, 404, 413, 422]) {
        let model = format!("once-{status}");
        let mut models = list(&engine.url, &[&model]);
        models.models[0].retries = 2;
        let served = Served::with(models, GatewayOptions::default()).await;
        let booked = served.book(None).await;
        let response = post(&format!("{}/chat/completions", booked.base), &chat(&model)).await;
        let expected = if may_pass.contains(&status) { (200, "2") } else { (status, "1") };
        let tries = response.headers()["x-agl-tries"].to_str().unwrap();
        assert_eq!((response.status().as_u16(), tries), expected, "{status}");
        let span = served.spans(&booked).await.remove(0);
        assert_eq!(of(&span, "http_status"), expected.0, "the last try is what counts");
    }
}

#[tokio::test]
async fn one_try_takes_no_longer_than_it_may() {
    let engine = Engine::start().await;
    let mut models = list(&engine.url, &["waits"]);
    (models.models[0].timeout, models.models[0].retries) = (0.05, 1);
    let served = Served::with(models, GatewayOptions::default()).await;
    let booked = served.book(None).await;
    let (status, answer) =
        read(post(&format!("{}/chat/completions", booked.base), &chat("waits")).await).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    let message = answer["error"]["message"].as_str().unwrap();
    for part in [engine.url.as_str(), "gave no answer within 0.05 s", "\"waits\"", "tried 2 times"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    engine.until_dropped(2).await;
    let span = served.spans(&booked).await.remove(0);
    assert_eq!((of(&span, "outcome"), of(&span, "tries")), (&json!("failed"), &json!(2)));
    assert_eq!(span.status.description.as_deref(), Some(message));
    let asked = json!({"model": "waits", "messages": [{"role": "user", "content": "a"}]});
    let (status, answer) = read(post(&format!("{}/messages/count_tokens", booked.base), &asked).await).await;
    assert_eq!((status, &answer["type"]), (StatusCode::GATEWAY_TIMEOUT, &json!("error")), "{answer}");
    let told = format!("the model server {} did not count within 0.05 s (tried once)", engine.url);
    assert_eq!(answer["error"]["message"], told);
}

#[tokio::test]
async fn whatever_form_an_error_has_it_says_whose_it_is_and_how_often_it_was_tried() {
    let engine = Engine::start().await;
    let bodies = [
        r#"{"error": {"message": "gone", "code": 7}}"#,
        r#"{"error": "gone"}"#,
        r#"{"object":"error","message":"gone"}"#,
        r#"{"detail": "gone", "x": 1}"#,
        "gone",
        r#"{"x": "gone"}"#,
        "",
    ];
    for body in bodies {
        let mut models = list(&engine.url, &["says"]);
        models.models[0].retries = 1;
        models.models[0].set.insert("answer_503".to_owned(), body.into());
        let served = Served::with(models, GatewayOptions::default()).await;
        let booked = served.book(None).await;
        let message =
            json!({"model": "says", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]});
        for (path, asked) in
            [("chat/completions", &chat("says")), ("messages", &message), ("messages/count_tokens", &message)]
        {
            let (status, answer) = read(post(&format!("{}/{path}", booked.base), asked).await).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            let told = [&answer["error"]["message"], &answer["error"], &answer["message"], &answer["detail"]];
            let told = told.into_iter().find_map(Value::as_str).unwrap();
            let tries = if path.ends_with("tokens") { "tried once" } else { "tried 2 times" };
            let who = format!("(the model server {}, {tries})", engine.url);
            assert!(
                told.ends_with(&who) && (body.is_empty() || told.contains("gone")),
                "{path} {body}: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_call_does_not_wait_for_room_for_ever() {
    let engine = Engine::start().await;
    let full =
        ModelEntry { max_concurrency: Some(1), timeout: 0.05, ..ModelEntry::new("waits", &engine.url) };
    let paced =
        ModelEntry { requests_per_minute: Some(1), timeout: 0.05, ..ModelEntry::new("m", &engine.url) };
    let served = Served::with(ModelList::new(vec![full, paced]), GatewayOptions::default()).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    assert_eq!(post(&url, &chat("m")).await.status(), StatusCode::OK);
    let (status, answer) = read(post(&url, &chat("m")).await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "one a minute: {answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    let told = format!(
        "the model server {} had no room for the call within 0.05 s (model \"m\", not tried)",
        engine.url
    );
    assert_eq!(message, told);
    assert_eq!(engine.seen().len(), 1);
    let both = [chat("waits"), chat("waits")].map(|body| {
        let url = url.clone();
        tokio::spawn(async move { post(&url, &body).await.status() })
    });
    let mut seen = Vec::new();
    for call in both {
        seen.push(call.await.unwrap());
    }
    seen.sort_unstable();
    assert_eq!(seen, [StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT]);
}

#[tokio::test]
async fn all_calls_of_a_rollout_go_to_one_server() {
    let engines = [Engine::start().await, Engine::start().await, Engine::start().await];
    let entries = engines.iter().map(|engine| ModelEntry::new("m", &engine.url)).collect();
    let served = Served::with(ModelList::new(entries), GatewayOptions::default()).await;
    let mut used = std::collections::HashSet::new();
    for _ in 0..12 {
        let booked = served.book(None).await;
        for _ in 0..3 {
            post(&format!("{}/chat/completions", booked.base), &chat("m")).await;
        }
        let spans = served.spans(&booked).await;
        let backend = of(&spans[0], "backend").as_str().unwrap();
        assert!(spans.len() == 3 && spans.iter().all(|span| of(span, "backend") == backend));
        used.insert(backend.to_owned());
    }
    assert!(used.len() > 1, "rollouts are spread");
}

#[tokio::test]
async fn an_agent_has_a_way_of_its_own_by_name_header_or_key() {
    let engine = Engine::start().await;
    let to = |model: &str| ModelEntry { model: Some(model.to_owned()), ..ModelEntry::new("m", &engine.url) };
    let entries = vec![
        to("for-all"),
        ModelEntry { agents: vec!["judge".to_owned()], ..to("by-name") },
        ModelEntry {
            headers: [("x-role", "critic"), ("x-team", "a")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..to("by-header")
        },
        ModelEntry { keys: vec![ApiKey::new("the-agents-own").unwrap()], ..to("by-key") },
        ModelEntry { agents: vec!["judge".to_owned()], ..ModelEntry::new("judge-only", &engine.url) },
    ];
    let served = Served::with(ModelList::new(entries), GatewayOptions::default()).await;
    let booked = served.book(None).await;
    let call = async |model: &str, headers: &[(&str, &str)]| {
        let request = client().post(format!("{}/chat/completions", booked.base)).json(&chat(model));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        read(request.send().await.unwrap()).await
    };
    for (headers, model) in [
        (&[][..], "for-all"),
        (&[("x-agl-agent", "writer"), ("x-role", "critic"), ("authorization", "Bearer other")], "for-all"),
        (&[("x-agl-agent", "judge")], "by-name"),
        (&[("x-role", "critic"), ("x-team", "a")], "by-header"),
        (&[("authorization", "Bearer the-agents-own")], "by-key"),
        (&[("x-api-key", "the-agents-own")], "by-key"),
    ] {
        assert_eq!(call("m", headers).await.0, StatusCode::OK);
        assert_eq!(engine.last().body["model"], model, "{headers:?}");
    }
    assert_eq!(call("judge-only", &[("x-agl-agent", "judge")]).await.0, StatusCode::OK);
    let (status, answer) = call("judge-only", &[]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    let told = serde_json::to_string(&served.spans(&booked).await).unwrap();
    assert!(!told.contains("the-agents-own"), "a key is nobody else's affair");
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
    let versioned = |url: &str, names: &[&str], version| {
        let mut models = list(url, names);
        models.models.iter_mut().for_each(|entry| entry.version = Some(version));
        models
    };
    let served = Served::with(versioned(&first.url, &["waits", "m"], 1), GatewayOptions::default()).await;
    let booked = served.book(None).await;
    let url = format!("{}/chat/completions", booked.base);
    let under_way = tokio::spawn({
        let url = url.clone();
        async move { post(&url, &chat("waits")).await.status() }
    });
    while first.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    served.gateway.set_models(versioned(&second.url, &["m"], 2)).unwrap();
    assert_eq!(post(&url, &chat("m")).await.status(), StatusCode::OK);
    assert_eq!(second.seen().len(), 1);
    let mut wrong = list(&second.url, &["m"]);
    wrong.models[0].url = "nonsense".to_owned();
    let error = served.gateway.set_models(wrong).unwrap_err().to_string();
    assert!(error.contains("model \"m\": url"), "{error}");
    assert_eq!(post(&url, &chat("m")).await.status(), StatusCode::OK, "the former list stays");
    first.go();
    assert_eq!(under_way.await.unwrap(), StatusCode::OK);
    let spans = served.spans(&booked).await;
    let versions: Vec<&Value> = spans.iter().map(|span| of(span, "model_version")).collect();
    assert_eq!(versions, [2, 2, 1], "a call under way keeps the version that it began with");
}

#[tokio::test]
async fn parked_calls_go_first_come_first_served() {
    let engine = Engine::start().await;
    let mut models = list(&engine.url, &["m"]);
    models.models[0].max_concurrency = Some(1);
    let served = Served::with(models, GatewayOptions::default()).await;
    let booked = served.book(None).await;
    served.gateway.pause(agl_gateway::Pause::default());
    let mut calls = Vec::new();
    for number in 0..5 {
        let url = format!("{}/chat/completions", booked.base);
        let body = json!({"model": "m", "messages": [{"role": "user", "content": number.to_string()}]});
        calls.push(tokio::spawn(async move { post(&url, &body).await.status() }));
        while served.gateway.state().parked <= number {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    served.gateway.resume();
    for call in calls {
        assert_eq!(call.await.unwrap(), StatusCode::OK);
    }
    let order: Vec<Value> =
        engine.seen().iter().map(|seen| seen.body["messages"][0]["content"].clone()).collect();
    assert_eq!(order, ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn no_call_is_parked_for_ever() {
    let engine = Engine::start().await;
    let options = GatewayOptions { max_park: Duration::from_millis(20), ..GatewayOptions::default() };
    let served = Served::with(list(&engine.url, &["m"]), options).await;
    let booked = served.book(None).await;
    served.gateway.pause(agl_gateway::Pause { retry_after_seconds: 7, reason: Some("weights".to_owned()) });
    let message = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]});
    for (path, body) in
        [("chat/completions", &chat("m")), ("messages", &message), ("messages/count_tokens", &message)]
    {
        let refused = post(&format!("{}/{path}", booked.base), body).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS, "{path}");
        assert_eq!(refused.headers()["retry-after"], "7");
    }
    assert_eq!(served.gateway.state().parked, 0);
    assert!(engine.seen().is_empty() && served.spans(&booked).await.is_empty());
}

#[tokio::test]
async fn a_call_that_is_given_up_before_it_is_sent_is_recorded_as_aborted() {
    for capture in [Capture::Durable, Capture::Async] {
        let engine = Engine::start().await;
        let mut models = list(&engine.url, &["m", "waits"]);
        models.models[1].max_concurrency = Some(1);
        let served = Served::with(models, GatewayOptions { capture, ..GatewayOptions::default() }).await;
        let call = async |path: &'static str, body: Value| {
            let booked = served.book(None).await;
            let url = format!("{}/{path}", booked.base);
            (booked, tokio::spawn(async move { post(&url, &body).await.status() }))
        };
        let assert_aborted = async |booked: &Booked| {
            let span = served.until(booked, 1).await.remove(0);
            assert_eq!((of(&span, "outcome"), of(&span, "tries")), (&json!("aborted"), &json!(0)));
            assert_eq!(at(&span, "gen_ai.prompt.0.role"), "user");
            assert_eq!(
                agl_trace::read_calls(std::slice::from_ref(&span))[0].gap,
                None,
                "the agent was given nothing"
            );
            assert_eq!(span.status.status_code, agl_types::StatusCode::Error);
        };
        served.gateway.pause(agl_gateway::Pause::default());
        let message = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]});
        for (path, body) in [("chat/completions", chat("m")), ("messages", message)] {
            let (booked, parked) = call(path, body).await;
            while served.gateway.state().parked == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            parked.abort();
            assert_aborted(&booked).await;
            assert_eq!(served.gateway.state().parked, 0);
        }
        served.gateway.resume();
        assert!(engine.seen().is_empty(), "nobody waits for these any more");

        // Likewise while there is no room at the model server.
        let (_, under_way) = call("chat/completions", chat("waits")).await;
        while engine.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let (booked, waiting) = call("chat/completions", chat("waits")).await;
        while served.gateway.state().inflight < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        waiting.abort();
        assert_aborted(&booked).await;
        engine.go();
        assert_eq!(under_way.await.unwrap(), StatusCode::OK);
        assert_eq!(engine.seen().len(), 1);
    }
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
        models.models[0].extra_headers.insert(name, value.parse().unwrap());
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
