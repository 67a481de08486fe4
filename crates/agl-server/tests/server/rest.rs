//! The REST routes, over real sockets: shapes, status codes, errors.

use std::sync::Arc;
use std::time::Duration;

use agl_server::{CorsOrigins, ServerOptions};
use agl_store::MemoryStore;
use reqwest::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_METHOD, ALLOW,
    CONTENT_TYPE, ORIGIN,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{Server, answer};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn span(rollout: &Value, span_id: &str) -> Value {
    json!({
        "rollout_id": rollout["rollout_id"], "attempt_id": rollout["attempt"]["attempt_id"], "sequence_id": 1,
        "trace_id": "0a".repeat(16), "span_id": span_id, "parent_id": null, "name": "step",
        "status": {"status_code": "OK", "description": null}, "attributes": {"a": 1}, "events": [], "links": [],
        "start_time": 1.5, "end_time": null, "context": null, "parent": null,
        "resource": {"attributes": {}, "schema_url": ""}, "further": {"kept": true},
    })
}

async fn started(server: &Server) -> Value {
    let (status, rollout) = server.post("/rollouts", json!({"input": "task", "worker_id": "w"})).await;
    assert_eq!(status, StatusCode::CREATED);
    rollout
}

/// The one issue of a 422 answer.
fn issue(body: &Value) -> (&str, &Value, &str) {
    assert_eq!(body["detail"].as_array().unwrap().len(), 1, "{body}");
    let issue = &body["detail"][0];
    (issue["type"].as_str().unwrap(), &issue["loc"], issue["msg"].as_str().unwrap())
}

#[tokio::test]
async fn a_task_goes_all_the_way() {
    let server = Server::start().await;
    let resources =
        json!({"prompt": {"resource_type": "prompt_template", "template": "{x}", "engine": "f-string"}});
    let (status, resources) = server.post("/resources", resources).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(keys(&resources), ["resources_id", "create_time", "update_time", "version", "resources"]);

    let rollouts = json!({"rollouts": [{"input": {"q": "1 + 1"}, "mode": "train"}, {"input": null}]});
    let (status, queued) = server.post("/queues/rollouts/enqueue", rollouts).await;
    assert_eq!(status, StatusCode::CREATED);
    let fields = [
        "rollout_id",
        "input",
        "start_time",
        "end_time",
        "mode",
        "resources_id",
        "status",
        "config",
        "metadata",
    ];
    assert_eq!(keys(&queued[0]), fields);
    assert_eq!(queued[0]["resources_id"], resources["resources_id"]);
    assert_eq!(queued[0]["status"], "queuing");

    let (status, claimed) = server.post("/queues/rollouts/dequeue", json!({"worker_id": "w-1"})).await;
    assert_eq!((status, claimed.as_array().unwrap().len()), (StatusCode::OK, 1));
    let claimed = &claimed[0];
    assert_eq!(claimed["rollout_id"], queued[0]["rollout_id"]);
    assert_eq!(keys(claimed).last(), Some(&"attempt"));
    assert_eq!(claimed["attempt"]["worker_id"], "w-1");
    let id = claimed["rollout_id"].as_str().unwrap();

    let (status, stored) = server.post("/spans", span(claimed, "0000000000000001")).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(stored["further"], json!({"kept": true}), "keys that we do not know are kept");
    let (status, again) = server.post("/spans", span(claimed, "0000000000000001")).await;
    assert_eq!((status, again), (StatusCode::CREATED, Value::Null), "a duplicate is answered null");
    let (_, next) = server
        .post("/spans/next", json!({"rollout_id": id, "attempt_id": claimed["attempt"]["attempt_id"]}))
        .await;
    assert_eq!(next, json!({"sequence_id": 2}));
    let (_, page) = server.get(&format!("/spans?rollout_id={id}&attempt_id=latest&name_contains=st")).await;
    assert_eq!(page, json!({"items": [stored], "limit": -1, "offset": 0, "total": 1}));

    let (status, running) = server.get(&format!("/rollouts/{id}")).await;
    assert_eq!((status, running["status"].as_str()), (StatusCode::OK, Some("running")));
    let done = json!({"status": "succeeded"});
    let (status, attempt) = server.post(&format!("/rollouts/{id}/attempts/latest"), done).await;
    assert_eq!((status, attempt["status"].as_str()), (StatusCode::OK, Some("succeeded")));
    let (status, ended) =
        server.post("/waits/rollouts", json!({"rollout_ids": [id, "missing"], "timeout": 5})).await;
    assert_eq!((status, ended[0]["status"].as_str()), (StatusCode::OK, Some("succeeded")));
    assert_eq!(keys(&ended[0]), fields);

    let (_, worker) = server.get("/workers/w-1").await;
    assert_eq!(worker["status"], "idle");
    let (_, statistics) = server.get("/statistics").await;
    assert_eq!((&statistics["total_rollouts"], &statistics["total_spans"]), (&json!(2), &json!(1)));
    assert_eq!(server.get("/health").await, (StatusCode::OK, json!({"status": "ok"})));
}

#[tokio::test]
async fn bodies_may_be_left_out_where_nothing_is_needed() {
    let server = Server::start().await;
    assert_eq!(
        server.send(Method::POST, "/queues/rollouts/dequeue", None).await,
        (StatusCode::OK, json!([]))
    );
    let (status, worker) = server.send(Method::POST, "/workers/w", None).await;
    assert_eq!((status, worker["status"].as_str()), (StatusCode::OK, Some("unknown")));
    let (status, same) = server.post("/workers/w", Value::Null).await;
    assert_eq!((status, &same["worker_id"]), (StatusCode::OK, &worker["worker_id"]));
    let rollout = started(&server).await;
    let path = format!("/rollouts/{}/attempts", rollout["rollout_id"].as_str().unwrap());
    let (status, second) = server.send(Method::POST, &path, None).await;
    assert_eq!((status, &second["attempt"]["sequence_id"]), (StatusCode::CREATED, &json!(2)));

    let (status, body) = server.send(Method::POST, "/rollouts/search", None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(issue(&body), ("missing", &json!(["body"]), "Field required"));
}

#[tokio::test]
async fn queries_take_repeated_keys_and_the_same_keys_as_json() {
    let server = Server::start().await;
    let rollouts =
        json!({"rollouts": [{"input": 0, "mode": "train"}, {"input": 1, "mode": "val"}, {"input": 2}]});
    let (_, queued) = server.post("/queues/rollouts/enqueue", rollouts).await;
    let ids: Vec<&str> =
        queued.as_array().unwrap().iter().map(|one| one["rollout_id"].as_str().unwrap()).collect();
    server.post(&format!("/rollouts/{}", ids[2]), json!({"status": "cancelled"})).await;

    let inputs = |page: &Value| -> Vec<i64> {
        page["items"].as_array().unwrap().iter().map(|one| one["input"].as_i64().unwrap()).collect()
    };
    let (status, page) =
        server.get("/rollouts?status_in=queuing&status_in=cancelled&sort_by=status&color_in=red").await;
    assert_eq!((status, inputs(&page)), (StatusCode::OK, vec![2, 0, 1]));
    let (_, page) = server
        .get(&format!(
            "/rollouts?rollout_id_in={}&rollout_id_in={}&limit=1&offset=1&sort_order=desc",
            ids[0], ids[1]
        ))
        .await;
    assert_eq!((&page["limit"], &page["offset"], &page["total"]), (&json!(1), &json!(1), &json!(2)));
    assert_eq!(inputs(&page), [1]);
    assert_eq!(inputs(&server.get("/rollouts?mode_in=val&mode_in=test").await.1), [1]);
    let search = json!({"status_in": ["queuing"], "rollout_id_in": null, "sort_by": "start_time"});
    assert_eq!(inputs(&server.post("/rollouts/search", search).await.1), [0, 1]);
    assert_eq!(server.post("/rollouts/search", json!({"status_in": []})).await.1["total"], 0);
    assert_eq!(inputs(&server.post("/rollouts/search", json!({})).await.1), [0, 1, 2]);
    assert_eq!(server.get("/rollouts/unknown/attempts").await.1["total"], 0);
    assert_eq!(server.get("/spans?rollout_id=unknown").await.1["total"], 0);
    assert_eq!(server.post("/workers/search", json!({"status_in": ["idle"]})).await.1["total"], 0);
}

#[tokio::test]
async fn pages_that_make_no_sense_are_answered_400() {
    let server = Server::start().await;
    started(&server).await;
    for (path, detail) in [
        ("/rollouts?limit=0", "Limit must be greater than 0 or -1 for no limit"),
        ("/rollouts?limit=-2", "Limit must be greater than 0 or -1 for no limit"),
        ("/workers?offset=-1", "Offset must be greater than or equal to 0"),
        ("/spans?rollout_id=r&limit=0", "Limit must be greater than 0 or -1 for no limit"),
        (
            "/workers?sort_by=size",
            "Invalid sort_by: size, allowed fields are: worker_id, status, heartbeat_stats, last_heartbeat_time, \
             last_dequeue_time, last_busy_time, last_idle_time, current_rollout_id, current_attempt_id",
        ),
    ] {
        let (status, body) = server.get(path).await;
        assert_eq!((status, body["detail"].as_str()), (StatusCode::BAD_REQUEST, Some(detail)), "{path}");
    }
}

#[tokio::test]
async fn null_is_refused_where_it_means_nothing() {
    let server = Server::start().await;
    let rollout = started(&server).await;
    let id = rollout["rollout_id"].as_str().unwrap();
    let attempt = format!("/rollouts/{id}/attempts/{}", rollout["attempt"]["attempt_id"].as_str().unwrap());
    for (path, field) in [
        (format!("/rollouts/{id}"), "status"),
        (format!("/rollouts/{id}"), "config"),
        (attempt.clone(), "status"),
        (attempt.clone(), "worker_id"),
        (attempt.clone(), "last_heartbeat_time"),
        (attempt, "metadata"),
        ("/workers/w".to_owned(), "heartbeat_stats"),
    ] {
        let (status, body) = server.post(&path, json!({ field: null })).await;
        let expected = json!({"detail": format!("{field} is invalid; it cannot be a null value.")});
        assert_eq!((status, body), (StatusCode::BAD_REQUEST, expected), "{path}");
    }
    let nulls = json!({"input": null, "mode": null, "resources_id": null, "metadata": null});
    let (status, updated) = server.post(&format!("/rollouts/{id}"), nulls).await;
    assert_eq!(
        (status, &updated["metadata"], &updated["input"]),
        (StatusCode::OK, &Value::Null, &Value::Null)
    );
    assert_eq!(updated.get("attempt"), None);

    // Where null does mean something, there is a method of our own that takes it.
    let path = format!("/rollouts/{id}/attempts/latest");
    let (status, attempt) = server.send(Method::PATCH, &path, Some(json!({"worker_id": null}))).await;
    assert_eq!((status, &attempt["worker_id"]), (StatusCode::OK, &Value::Null));
    let (status, body) = server.send(Method::PATCH, &path, Some(json!({"status": null}))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
}

#[tokio::test]
async fn what_is_not_there_is_404_unless_0_3_documents_an_answer() {
    let server = Server::start().await;
    let rollout = started(&server).await;
    let id = rollout["rollout_id"].as_str().unwrap();
    let stray = json!({"rollout_id": "missing", "attempt": {"attempt_id": "at"}});
    let lost = json!({"rollout_id": id, "attempt": {"attempt_id": "at-missing"}});
    for (method, path, body, detail) in [
        (Method::GET, "/rollouts/missing", None, "Rollout missing not found"),
        (Method::POST, "/rollouts/missing/attempts", Some(json!({})), "Rollout missing not found"),
        (Method::POST, "/rollouts/missing/attempts/a", Some(json!({})), "Rollout missing not found"),
        (Method::POST, "/spans", Some(span(&stray, "1")), "Rollout missing not found"),
        (
            Method::POST,
            "/spans/batch",
            Some(json!({"spans": [span(&stray, "1")]})),
            "Rollout missing not found",
        ),
        (Method::POST, "/spans", Some(span(&lost, "1")), "Attempt at-missing not found"),
    ] {
        let (status, answer) = server.send(method.clone(), path, body).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}: {answer}");
        assert!(answer["detail"].as_str().unwrap().starts_with(detail), "{method} {path}: {answer}");
        assert_eq!(answer["error_type"], "not_found");
    }
    let (status, answer) = server.post("/rollouts/missing", json!({"status": "failed"})).await;
    assert_eq!((status, answer["error_type"].as_str()), (StatusCode::NOT_FOUND, Some("not_found")));

    for path in
        ["/rollouts/missing/attempts/latest", "/workers/missing", "/resources/missing", "/resources/latest"]
    {
        assert_eq!(server.get(path).await, (StatusCode::OK, Value::Null), "{path}");
    }
    let (status, made) = server.post("/resources/mine", json!({})).await;
    assert_eq!((status, &made["version"]), (StatusCode::OK, &json!(1)), "an update of nothing makes it");
}

#[tokio::test]
async fn malformed_requests_are_422_and_name_the_field() {
    let server = Server::start().await;
    let wrong_status = "Input should be 'queuing', 'preparing', 'running', 'failed', 'succeeded', 'cancelled' or 'requeuing'";
    let mut nameless = span(&json!({"rollout_id": "r", "attempt": {"attempt_id": "a"}}), "1");
    nameless.as_object_mut().unwrap().remove("context");
    let mut wordy = nameless.clone();
    wordy["context"] = Value::Null;
    wordy["sequence_id"] = "one".into();
    for (path, body, kind, loc, message) in [
        ("/queues/rollouts/enqueue", json!({}), "missing", json!(["body", "rollouts"]), "Field required"),
        (
            "/queues/rollouts/enqueue",
            json!({"rollouts": [{"input": 1}, {"mode": "train"}]}),
            "missing",
            json!(["body", "rollouts", 1, "input"]),
            "Field required",
        ),
        (
            "/queues/rollouts/enqueue",
            json!({"rollouts": [{"input": 1, "config": {"max_attempts": 0}}]}),
            "greater_than_equal",
            json!(["body", "rollouts", 0, "config", "max_attempts"]),
            "Input should be greater than or equal to 1",
        ),
        (
            "/rollouts",
            json!({"input": 1, "mode": "training"}),
            "literal_error",
            json!(["body", "mode"]),
            "Input should be 'train', 'val' or 'test'",
        ),
        (
            "/queues/rollouts/enqueue",
            json!({"rollouts": [{"input": 1, "config": {"max_attempts": "2"}}]}),
            "int_type",
            json!(["body", "rollouts", 0, "config", "max_attempts"]),
            "Input should be a valid integer",
        ),
        (
            "/rollouts",
            json!({"input": 1, "config": {"max_attempts": null}}),
            "int_type",
            json!(["body", "config", "max_attempts"]),
            "Input should be a valid integer",
        ),
        (
            "/rollouts",
            json!({"input": 1, "config": {"max_attempts": 5_000_000_000_u64}}),
            "less_than_equal",
            json!(["body", "config", "max_attempts"]),
            "Input should be less than or equal to 4294967295",
        ),
        (
            "/resources",
            json!({"p": {"resource_type": "prompt_template", "template": "x", "engine": "perl"}}),
            "literal_error",
            json!(["body", "p", "engine"]),
            "Input should be 'jinja', 'f-string' or 'poml'",
        ),
        (
            "/resources",
            json!({"m": {"resource_type": "llm", "endpoint": "e", "model": 5}}),
            "string_type",
            json!(["body", "m", "model"]),
            "Input should be a valid string",
        ),
        (
            "/rollouts/search",
            json!({"sort_order": null}),
            "literal_error",
            json!(["body", "sort_order"]),
            "Input should be 'asc' or 'desc'",
        ),
        (
            "/rollouts/search",
            json!({"status_in": ["failed", 5]}),
            "literal_error",
            json!(["body", "status_in", 1]),
            wrong_status,
        ),
        (
            "/rollouts/search",
            json!({"status_in": ["lost"]}),
            "literal_error",
            json!(["body", "status_in", 0]),
            wrong_status,
        ),
        (
            "/rollouts/search",
            json!({"limit": "ten"}),
            "int_type",
            json!(["body", "limit"]),
            "Input should be a valid integer",
        ),
        (
            "/rollouts/search",
            json!({"filter_logic": "xor"}),
            "literal_error",
            json!(["body", "filter_logic"]),
            "Input should be 'and' or 'or'",
        ),
        ("/spans", nameless, "missing", json!(["body", "context"]), "Field required"),
        ("/spans", wordy, "int_type", json!(["body", "sequence_id"]), "Input should be a valid integer"),
        ("/spans/search", json!({}), "missing", json!(["body", "rollout_id"]), "Field required"),
        (
            "/spans/next",
            json!({"rollout_id": "r"}),
            "missing",
            json!(["body", "attempt_id"]),
            "Field required",
        ),
        (
            "/resources",
            json!({"m": {"resource_type": "llm"}}),
            "missing",
            json!(["body", "m", "endpoint"]),
            "Field required",
        ),
        (
            "/rollouts/search",
            json!([]),
            "model_attributes_type",
            json!(["body"]),
            "Input should be a valid dictionary or object to extract fields from",
        ),
        (
            "/workers/w",
            json!({"heartbeat_stats": 5}),
            "dict_type",
            json!(["body", "heartbeat_stats"]),
            "Input should be a valid dictionary",
        ),
        (
            "/waits/rollouts",
            json!({"rollout_ids": ["r"], "timeout": "soon"}),
            "float_type",
            json!(["body", "timeout"]),
            "Input should be a valid number",
        ),
    ] {
        let (status, answer) = server.post(path, body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path}: {answer}");
        assert_eq!(issue(&answer), (kind, &loc, message), "{path}");
        assert!(answer["detail"][0].get("input").is_some(), "{answer}");
    }
    for (path, kind, loc) in [
        ("/rollouts?limit=abc", "int_parsing", json!(["query", "limit"])),
        ("/rollouts?sort_order=up", "literal_error", json!(["query", "sort_order"])),
        ("/rollouts?status_in=queuing&status_in=", "literal_error", json!(["query", "status_in", 1])),
        ("/spans", "missing", json!(["query", "rollout_id"])),
    ] {
        let (status, answer) = server.get(path).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{path}: {answer}");
        let (found, place, _) = issue(&answer);
        assert_eq!((found, place), (kind, &loc), "{path}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_json_is_422() {
    let server = Server::start().await;
    let send = |body: &'static str, content_type: &'static str| {
        let request = reqwest::Client::new().post(server.url("/v1/agl/rollouts"));
        answer(request.header(CONTENT_TYPE, content_type).body(body))
    };
    let (status, body) = send("{\n\"input\": }", "application/json").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(issue(&body), ("json_invalid", &json!(["body", 11]), "JSON decode error"));
    // A web page can send this without asking first; it must not pass for JSON.
    let (status, body) = send("{\"input\": 1}", "text/plain").await;
    assert_eq!((status, issue(&body).1), (StatusCode::UNPROCESSABLE_ENTITY, &json!(["body"])));
    let (status, _) = send("{\"input\": 1}", "application/json; charset=utf-8").await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, _) = send("{\"input\": [NaN, nan]}", "application/json").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

/// Python's `json.dumps` writes numbers that are none; within a string they are text.
#[tokio::test]
async fn bare_nans_are_null() {
    let server = Server::start().await;
    let request = reqwest::Client::new().post(server.url("/v1/agl/rollouts"));
    let body = r#"{"input": {"a": NaN, "b": [-Infinity,Infinity], "c": "NaN, \" NaN \\", "d": NaN}}"#;
    let (status, rollout) = answer(request.header(CONTENT_TYPE, "application/json").body(body)).await;
    assert_eq!(status, StatusCode::CREATED, "{rollout}");
    let expected = json!({"a": null, "b": [null, null], "c": "NaN, \" NaN \\", "d": null});
    assert_eq!(rollout["input"], expected);
}

#[tokio::test]
async fn paths_and_methods_that_are_not_there_are_json_too() {
    let server = Server::start().await;
    let not_found = (StatusCode::NOT_FOUND, json!({"detail": "Not Found"}));
    assert_eq!(server.get("/nothing").await, not_found);
    assert_eq!(answer(reqwest::Client::new().get(server.url("/elsewhere"))).await, not_found);
    let response = reqwest::Client::new().delete(server.url("/v1/agl/rollouts")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(response.headers().contains_key(ALLOW));
    assert_eq!(response.json::<Value>().await.unwrap(), json!({"detail": "Method Not Allowed"}));
}

#[tokio::test]
async fn ids_are_percent_decoded() {
    let server = Server::start().await;
    let (_, worker) = server.send(Method::POST, "/workers/a%2Fb%20%C3%BC", None).await;
    assert_eq!(worker["worker_id"], "a/b ü");
    let (status, body) = server.get("/workers/%ff").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
}

#[tokio::test]
async fn every_version_of_resources_can_be_read() {
    let server = Server::start().await;
    let custom = |n: i64| json!({"thing": {"resource_type": "mine", "n": n}});
    server.post("/resources/id", custom(1)).await;
    server.post("/resources/id", custom(2)).await;
    assert_eq!(server.get("/resources/id").await.1["resources"], custom(2));
    assert_eq!(server.get("/resources/id?version=1").await.1["resources"], custom(1));
    assert_eq!(server.get("/resources/id?version=3").await, (StatusCode::OK, Value::Null));
    assert_eq!(server.get("/resources").await.1["total"], 1);
    assert_eq!(server.get("/resources?all_versions=true").await.1["total"], 2);
    let (status, _) = server.get("/resources?all_versions=maybe").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn spans_can_be_sent_many_at_once() {
    let server = Server::start().await;
    let rollout = started(&server).await;
    let mut absent = span(&rollout, "1");
    absent.as_object_mut().unwrap().remove("sequence_id");
    let mut empty = span(&rollout, "2");
    empty["sequence_id"] = Value::Null;
    let mut given = span(&rollout, "3");
    given["sequence_id"] = 9.into();
    let (status, stored) =
        server.post("/spans/batch", json!({"spans": [absent, empty, given, span(&rollout, "1")]})).await;
    assert_eq!(status, StatusCode::CREATED, "{stored}");
    let numbers: Vec<&Value> = stored.as_array().unwrap().iter().map(|span| &span["sequence_id"]).collect();
    assert_eq!(numbers, [1, 2, 9], "the duplicate is left out");
    let asked = json!({"rollout_id": rollout["rollout_id"], "attempt_id": "any"});
    let (_, issued) = server.post("/spans/next/batch", json!({"requests": [asked, asked]})).await;
    assert_eq!(issued, json!({"sequence_ids": [10, 11]}));

    let (status, body) = server.post("/spans/batch", json!({"spans": [{"name": "x"}]})).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(issue(&body).1, &json!(["body", "spans", 0, "rollout_id"]));
    assert_eq!(server.post("/spans/batch", json!({"spans": []})).await, (StatusCode::CREATED, json!([])));
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413() {
    let options = ServerOptions { body_limit: 1000, ..ServerOptions::default() };
    let server = Server::over(Arc::new(MemoryStore::new()), options).await;
    let (status, _) = server.post("/rollouts", json!({"input": "x".repeat(900)})).await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, body) = server.post("/rollouts", json!({"input": "x".repeat(1000)})).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(body["detail"].as_str().unwrap().contains("1000 bytes"), "{body}");
}

#[tokio::test]
async fn listed_origins_may_call_from_a_browser() {
    let cors = CorsOrigins::parse(["http://dash:1"]).unwrap();
    let options = ServerOptions { cors, ..ServerOptions::default() };
    let server = Server::over(Arc::new(MemoryStore::new()), options).await;
    let from = |origin: &'static str, method: Method| {
        let request = reqwest::Client::new().request(method, server.url("/v1/agl/rollouts/missing"));
        request.header(ORIGIN, origin).header(ACCESS_CONTROL_REQUEST_METHOD, "GET").send()
    };
    let listed = from("http://dash:1", Method::GET).await.unwrap();
    assert_eq!(listed.status(), StatusCode::NOT_FOUND);
    assert_eq!(listed.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "http://dash:1", "errors carry it too");
    assert_eq!(listed.headers()[ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
    let preflight = from("http://dash:1", Method::OPTIONS).await.unwrap();
    assert_eq!(preflight.status(), StatusCode::OK);
    let stranger = from("http://other", Method::GET).await.unwrap();
    assert!(!stranger.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
}

#[tokio::test]
async fn requests_in_flight_are_finished_and_waits_are_turned_away() {
    let server = Server::start().await;
    let rollout = started(&server).await;
    let ask = json!({"rollout_ids": [rollout["rollout_id"]], "timeout": null});
    let waiting =
        tokio::spawn(answer(reqwest::Client::new().post(server.url("/v1/agl/waits/rollouts")).json(&ask)));
    // Half a request: the server has to wait for the rest.
    let body = "{\"input\": 1}";
    let head = format!(
        "POST /v1/agl/rollouts HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut half = tokio::net::TcpStream::connect(server.address).await.unwrap();
    half.write_all(head.as_bytes()).await.unwrap();
    // Long enough for both to have come in; too short a pause would only make the test weaker.
    tokio::time::sleep(Duration::from_millis(200)).await;

    let address = server.address;
    let ended = server.tell_to_stop();
    let (status, body_of_wait) = waiting.await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body_of_wait}");
    assert!(!ended.is_finished(), "half a request is still in flight");
    half.write_all(body.as_bytes()).await.unwrap();
    let mut answered = String::new();
    half.read_to_string(&mut answered).await.unwrap();
    assert!(answered.starts_with("HTTP/1.1 201"), "{answered}");
    ended.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn requests_that_never_end_are_cut_off() {
    let options = ServerOptions { drain: Duration::from_millis(100), ..ServerOptions::default() };
    let server = Server::over(Arc::new(MemoryStore::new()), options).await;
    let mut half = tokio::net::TcpStream::connect(server.address).await.unwrap();
    half.write_all(b"POST /v1/agl/rollouts HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n").await.unwrap();
    server.get("/health").await;
    server.stop().await;
}
