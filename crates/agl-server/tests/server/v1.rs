//! The routes of the 1.0 contract, over real sockets.

use reqwest::header::AUTHORIZATION;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::{Server, answer};

/// A server with the 1.0 routes at hand.
struct V1(Server);

impl V1 {
    async fn start() -> Self {
        Self(Server::start().await)
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = reqwest::Client::new().request(method, self.0.url(&format!("/api{path}")));
        if let Some(body) = body {
            request = request.json(&body);
        }
        // Whoever follows the contract sends a key, which is not looked at where there is none.
        answer(request.header(AUTHORIZATION, "Bearer whatever")).await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(Method::POST, path, Some(body)).await
    }

    async fn patch(&self, id: &str, status: Value) -> (StatusCode, Value) {
        self.send(Method::PATCH, &format!("/rollouts/{id}"), Some(json!({ "status": status }))).await
    }

    /// Makes one rollout and returns its id.
    async fn create(&self, input: Value) -> String {
        let (status, made) = self.post("/rollouts", json!([{ "input": input }])).await;
        assert_eq!(status, StatusCode::CREATED);
        made[0]["rollout_id"].as_str().unwrap().to_owned()
    }

    async fn delete(&self, path: &str) -> StatusCode {
        let request = reqwest::Client::new().delete(self.0.url(path));
        request.send().await.unwrap().status()
    }
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn issue(body: &Value) -> (&str, &Value) {
    assert_eq!(body["detail"].as_array().unwrap().len(), 1, "{body}");
    (body["detail"][0]["type"].as_str().unwrap(), &body["detail"][0]["loc"])
}

#[tokio::test]
async fn a_controller_and_its_agent_go_all_the_way() {
    let server = V1::start().await;
    assert_eq!(answer(reqwest::Client::new().get(server.0.url("/healthz"))).await.1, json!({"status": "ok"}));
    let models = json!([{"model": "m", "endpoint": "http://h/v1"}]);
    let (status, registered) = server.post("/models", models).await;
    assert_eq!((status, &registered[0]["version"]), (StatusCode::CREATED, &json!(0)));

    let template = json!({"k8s": {"job_template": "kind: Job"}});
    let body = json!([
        {"input": {"instance_id": "i-1"}, "config": template, "metadata": {"batch_idx": 1, "x": "y"}},
        {"input": "other", "is_train": false, "rollout_id": "mine"},
    ]);
    let (status, made) = server.post("/rollouts", body).await;
    assert_eq!(status, StatusCode::CREATED);
    let made = &made[0];
    assert_eq!(keys(made), ["rollout_id", "input", "is_train", "config", "metadata", "status"]);
    assert_eq!(
        made["config"],
        json!({"timeout_seconds": 3600, "local": null, "k8s": {"job_template": "kind: Job"}})
    );
    assert_eq!(made["metadata"], json!({"batch_idx": 1, "sample_idx_in_batch": null, "x": "y"}));
    let fields =
        ["state", "k8s_job_name", "last_attempt_id", "error_message", "version", "created_at", "updated_at"];
    assert_eq!(keys(&made["status"]), fields);
    assert_eq!((&made["status"]["state"], &made["status"]["version"]), (&json!("queuing"), &json!(1)));
    let id = made["rollout_id"].as_str().unwrap();
    assert!(id.len() == 32 && id.chars().all(|digit| digit.is_ascii_hexdigit()), "{id}");

    let (status, listed) = server.get("/rollouts?state_in=queuing&state_in=running&limit=1").await;
    assert_eq!((status, &listed), (StatusCode::OK, &json!([made])));
    let claim = json!({"state": "running", "k8s_job_name": "job", "last_attempt_id": "0"});
    let (status, running) = server.patch(id, claim).await;
    assert_eq!((status, &running["status"]["version"]), (StatusCode::OK, &json!(2)));

    let call = json!({
        "event_type": "model_request",
        "data": {
            "model": "m", "http_status": 200, "status": "ok", "server": {"model": "m", "endpoint": "e", "version": 1},
            "response": {"prompt_token_ids": [1], "choices": [{"token_ids": [2]}]},
        },
    });
    let events = format!("/rollouts/{id}/attempt/0/events");
    let (status, told) = server.post(&events, call.clone()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(keys(&told), ["event_type", "rollout_id", "attempt_id", "timestamp", "data"]);
    assert_eq!((&told["attempt_id"], &told["data"]), (&json!("0"), &call["data"]));
    server.post(&events, json!({"event_type": "reward", "data": {"value": 1.0, "message": "m"}})).await;
    let (_, raw) = server.get(&format!("/rollouts/{id}/events")).await;
    assert_eq!((&raw[0], &raw[1]["data"]), (&told, &json!({"value": 1.0, "message": "m"})));
    let (_, triplets) = server.get(&format!("/rollouts/{id}/events?format=triplet")).await;
    let kept = json!({
        "prompt_token_ids": [1], "response_token_ids": [2], "response_log_probs": null,
        "server": {"model": "m", "version": 1}, "http_status": 200, "status": "ok",
    });
    assert_eq!((&triplets[0]["data"], &triplets[1]["data"]), (&kept, &json!({"value": 1.0})));
    let (_, rewards) = server.get(&format!("/rollouts/{id}/events?event_type=reward")).await;
    assert_eq!(rewards, json!([raw[1]]));

    let (status, ended) = server.patch(id, json!({"state": "succeeded"})).await;
    assert_eq!((status, &ended["status"]["state"]), (StatusCode::OK, &json!("succeeded")));
    let (_, detail) = server.get(&format!("/rollouts/{id}")).await;
    assert_eq!(detail, json!({"rollout": ended, "attempts": ["0"]}));
    let (_, log) = server.get("/rollouts/terminal?after=0&limit=10").await;
    let item = json!({"rollout_id": id, "state": "succeeded", "data_id": "i-1", "is_train": true});
    assert_eq!(log, json!({"items": [item], "next_after": 1, "total_terminal": 1}));
    assert_eq!(server.get("/rollouts/terminal?after=1").await.1["items"], json!([]));

    for _ in 0..2 {
        assert_eq!(server.delete(&format!("/api/rollouts/{id}")).await, StatusCode::NO_CONTENT);
    }
    assert_eq!(server.get(&format!("/rollouts/{id}")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.send(Method::DELETE, "/models", None).await, (StatusCode::OK, json!({"status": "ok"})));
    assert_eq!(server.get("/models").await, (StatusCode::OK, json!([])));
}

/// Of twenty claims at once one is answered 200, the others 409.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_claim_of_many_succeeds() {
    let server = std::sync::Arc::new(V1::start().await);
    let id = server.create(json!(1)).await;
    let claims: Vec<_> = (0..20)
        .map(|_| {
            let (server, id) = (std::sync::Arc::clone(&server), id.clone());
            tokio::spawn(async move { server.patch(&id, json!({"state": "running"})).await })
        })
        .collect();
    let mut winners = 0;
    for claim in claims {
        let (status, body) = claim.await.unwrap();
        if status == StatusCode::OK {
            winners += 1;
        } else {
            let detail = format!("Rollout {id}: cannot transition running -> running");
            assert_eq!((status, body["detail"].as_str()), (StatusCode::CONFLICT, Some(detail.as_str())));
        }
    }
    assert_eq!(winners, 1);
    let (_, attempts) = server.0.get(&format!("/rollouts/{id}/attempts")).await;
    assert_eq!(attempts["total"], 1);
}

/// Each contract shows the other's rollouts, and hands out none of them.
#[tokio::test]
async fn lanes_are_seen_from_both_sides() {
    let server = V1::start().await;
    let ours = server.create(json!("ours")).await;
    let (_, theirs) = server
        .0
        .post("/queues/rollouts/enqueue", json!({"rollouts": [{"input": "theirs", "mode": "val"}]}))
        .await;
    let theirs = theirs[0]["rollout_id"].as_str().unwrap();

    let (_, claimed) =
        server.0.post("/queues/rollouts/dequeue", json!({"limit": 10, "worker_id": "w"})).await;
    assert_eq!(claimed.as_array().unwrap().len(), 1);
    assert_eq!(claimed[0]["rollout_id"], theirs);
    let (status, refused) = server.0.post(&format!("/rollouts/{ours}/attempts"), json!({})).await;
    assert_eq!((status, &refused["error_type"]), (StatusCode::CONFLICT, &json!("conflict")));
    let (_, listed) = server.get("/rollouts?state_in=queuing&state_in=running").await;
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["rollout_id"]), (1, &json!(ours)));
    let (status, refused) = server.patch(theirs, json!({"state": "failed"})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(refused["detail"].as_str().unwrap().contains("is a runner's"), "{refused}");

    let (_, page) = server.0.get("/rollouts").await;
    assert_eq!(page["total"], 2);
    assert_eq!(
        (&page["items"][0]["status"], &page["items"][0]["mode"]),
        (&json!("queuing"), &json!("train"))
    );
    assert_eq!(page["items"][0]["config"]["timeout_seconds"], json!(3660.0));
    let (_, seen) = server.get(&format!("/rollouts/{theirs}")).await;
    let attempt_id = &claimed[0]["attempt"]["attempt_id"];
    assert_eq!(seen["attempts"], json!([attempt_id]));
    let status = &seen["rollout"]["status"];
    assert_eq!((&status["state"], &status["last_attempt_id"]), (&json!("running"), attempt_id));
    assert_eq!(seen["rollout"]["is_train"], false);

    let (_, running) = server.patch(&ours, json!({"state": "running"})).await;
    assert_eq!(running["status"]["state"], "running");
    let (_, view) = server.0.get(&format!("/rollouts/{ours}")).await;
    assert_eq!((&view["status"], &view["attempt"]["sequence_id"]), (&json!("preparing"), &json!(1)));
    server.post(&format!("/rollouts/{ours}/attempt/0/events"), json!({"event_type": "x"})).await;
    let (_, view) = server.0.get(&format!("/rollouts/{ours}")).await;
    assert_eq!(view["status"], "running");
    let (_, spans) = server.0.get(&format!("/spans?rollout_id={ours}")).await;
    assert_eq!(spans["items"][0]["attributes"]["agentlightning.event.type"], "x");

    assert_eq!(server.delete(&format!("/v1/agl/rollouts/{ours}")).await, StatusCode::NO_CONTENT);
    assert_eq!(server.delete(&format!("/v1/agl/rollouts/{ours}")).await, StatusCode::NOT_FOUND);
    assert_eq!(server.get(&format!("/rollouts/{ours}")).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn errors_are_those_of_the_contract() {
    let server = V1::start().await;
    let (status, body) = server.post("/rollouts", json!({"input": 1})).await;
    assert_eq!((status, issue(&body)), (StatusCode::UNPROCESSABLE_ENTITY, ("list_type", &json!(["body"]))));
    for (rollout, kind, loc) in [
        (json!({"is_train": true}), "missing", json!(["body", 0, "input"])),
        (json!("x"), "model_attributes_type", json!(["body", 0])),
        (
            json!({"input": 1, "config": {"timeout_seconds": 1.5}}),
            "int_type",
            json!(["body", 0, "config", "timeout_seconds"]),
        ),
        (
            json!({"input": 1, "config": {"local": {}}}),
            "missing",
            json!(["body", 0, "config", "local", "agent_class"]),
        ),
        (json!({"input": 1, "metadata": {"batch_idx": "a"}}), "value_error", json!(["body", 0, "metadata"])),
    ] {
        let (status, body) = server.post("/rollouts", json!([rollout])).await;
        assert_eq!((status, issue(&body)), (StatusCode::UNPROCESSABLE_ENTITY, (kind, &loc)), "{rollout}");
    }
    let (status, body) = server.get("/rollouts").await;
    assert_eq!(
        (status, issue(&body)),
        (StatusCode::UNPROCESSABLE_ENTITY, ("missing", &json!(["query", "state_in"])))
    );
    let (status, body) = server.get("/rollouts?state_in=cancelled").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(issue(&body).1, &json!(["query", "state_in", 0]));
    assert_eq!(server.get("/rollouts/terminal?after=x").await.0, StatusCode::UNPROCESSABLE_ENTITY);

    let id = server.create(json!(1)).await;
    let (status, body) = server.patch(&id, json!({"version": 3})).await;
    let loc = json!(["body", "status", "version"]);
    assert_eq!((status, issue(&body)), (StatusCode::UNPROCESSABLE_ENTITY, ("extra_forbidden", &loc)));
    let (status, body) = server.patch(&id, json!({"state": "cancelled"})).await;
    let loc = json!(["body", "status", "state"]);
    assert_eq!((status, issue(&body)), (StatusCode::UNPROCESSABLE_ENTITY, ("literal_error", &loc)));
    assert_eq!(server.patch(&id, json!({"state": null})).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let (status, body) = server.patch(&id, json!({"state": "succeeded"})).await;
    let detail = format!("Rollout {id}: cannot transition queuing -> succeeded");
    assert_eq!((status, body["detail"].as_str()), (StatusCode::CONFLICT, Some(detail.as_str())));
    let (status, body) = server.send(Method::PATCH, &format!("/rollouts/{id}"), Some(json!({}))).await;
    assert_eq!(
        (status, &body["status"]["version"]),
        (StatusCode::OK, &json!(1)),
        "nothing said, nothing changed"
    );
    assert_eq!(server.patch("nope", json!({"state": "running"})).await.0, StatusCode::NOT_FOUND);

    let event = json!({"event_type": "x", "data": {}});
    let events = format!("/rollouts/{id}/attempt/0/events");
    let (status, body) = server.post(&events, event.clone()).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(body["detail"].as_str().unwrap().contains("claim it first"), "{body}");
    let (status, body) = server.post(&events, json!({"event_type": "x", "data": [1]})).await;
    assert_eq!((status, issue(&body).1), (StatusCode::UNPROCESSABLE_ENTITY, &json!(["body", "data"])));
    assert_eq!(server.post("/rollouts/nope/attempt/0/events", event).await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.get("/rollouts/nope/events").await.0, StatusCode::NOT_FOUND);
    let (status, body) = server.post("/models", json!([{"model": "m"}])).await;
    let loc = json!(["body", 0, "endpoint"]);
    assert_eq!((status, issue(&body)), (StatusCode::UNPROCESSABLE_ENTITY, ("missing", &loc)));
    assert_eq!(server.send(Method::DELETE, "/models?model=m", None).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(server.send(Method::PUT, "/models", None).await.0, StatusCode::METHOD_NOT_ALLOWED);
}
