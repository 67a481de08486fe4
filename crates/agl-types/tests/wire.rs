//! The JSON on the wire: every key, nulls emitted, further keys kept, bad input refused by name.
#![expect(clippy::unwrap_used, reason = "what cannot be read is a failed test")]

use agl_types::legacy::{GenericResponse, RolloutLegacy, Task, TaskIfAny};
use agl_types::{
    Attempt, AttemptStatus, AttemptUpdate, AttemptedRollout, DequeueRequest, EnqueueRequest,
    EnqueueRolloutRequest, Event, FilterLogic, Link, NamedResources, OtelResource, Page, Patch, Resource,
    ResourcesUpdate, Rollout, RolloutConfig, RolloutMode, RolloutQuery, RolloutStatus, RolloutUpdate,
    RolloutView, SortOrder, Span, SpanContext, SpanQuery, StartRollout, StatusCode, TraceStatus, Triplet,
    WaitRequest, Worker, WorkerQuery, WorkerStatus, WorkerUpdate,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// `input` means a `T` whose JSON is `output`, key order included, and which survives the way out and back.
#[track_caller]
fn reads_as<T: Serialize + DeserializeOwned>(input: &Value, output: &Value) {
    let value: T = serde_json::from_value(input.clone()).unwrap();
    let text = serde_json::to_string(&value).unwrap();
    assert_eq!(text, output.to_string());
    let again: T = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), text);
}

#[track_caller]
fn round_trips<T: Serialize + DeserializeOwned>(wire: &Value) {
    reads_as::<T>(wire, wire);
}

#[track_caller]
fn refuses<T: DeserializeOwned>(input: Value, part: &str) {
    let error = serde_json::from_value::<T>(input).err().unwrap().to_string();
    assert!(error.contains(part), "{error}");
}

fn attempt() -> Value {
    json!({
        "rollout_id": "ro-1", "attempt_id": "at-1", "sequence_id": 1, "start_time": 1.5, "end_time": null,
        "status": "preparing", "worker_id": null, "last_heartbeat_time": null, "metadata": null,
    })
}

fn rollout() -> Value {
    json!({
        "rollout_id": "ro-1", "input": {"b": 1, "a": [null]}, "start_time": 1.5, "end_time": null, "mode": null,
        "resources_id": null, "status": "queuing",
        "config": {"timeout_seconds": null, "unresponsive_seconds": null, "max_attempts": 1, "retry_condition": []},
        "metadata": null,
    })
}

fn context() -> Value {
    json!({"trace_id": "t", "span_id": "s", "is_remote": false, "trace_state": {"k": "v"}, "flags": 1})
}

fn span() -> Value {
    json!({
        "rollout_id": "ro-1", "attempt_id": "at-1", "sequence_id": 3, "trace_id": "t", "span_id": "s",
        "parent_id": null, "name": "n",
        "status": {"status_code": "UNSET", "description": null, "why": "?"},
        "attributes": {"z": [1, 2], "a": 0.1},
        "events": [{"name": "e", "attributes": {}, "timestamp": null, "more": [1]}],
        "links": [{"context": context(), "attributes": null, "more": {"x": null}}],
        "start_time": null, "end_time": null, "context": context(), "parent": null,
        "resource": {"attributes": {}, "schema_url": ""},
        "kind": "INTERNAL", "zz": {"deep": true},
    })
}

fn without(mut value: Value, key: &str) -> Value {
    value.as_object_mut().unwrap().shift_remove(key).unwrap();
    value
}

fn with(mut value: Value, key: &str, field: Value) -> Value {
    value.as_object_mut().unwrap().insert(key.to_owned(), field);
    value
}

#[test]
fn rollouts_and_attempts() {
    round_trips::<Attempt>(&attempt());
    let shortest = json!({"rollout_id": "ro-1", "attempt_id": "at-1", "sequence_id": 1, "start_time": 1.5});
    reads_as::<Attempt>(&shortest, &attempt());
    round_trips::<Rollout>(&rollout());
    let shortest = json!({"rollout_id": "ro-1", "input": {"b": 1, "a": [null]}, "start_time": 1.5});
    reads_as::<Rollout>(&shortest, &rollout());
    reads_as::<Rollout>(&with(rollout(), "unknown", json!(1)), &rollout());
    let attempted = with(rollout(), "attempt", attempt());
    round_trips::<AttemptedRollout>(&attempted);
    round_trips::<RolloutView>(&attempted);
    round_trips::<RolloutView>(&rollout());
    refuses::<AttemptedRollout>(rollout(), "missing field `attempt`");
    for key in ["rollout_id", "input", "start_time"] {
        refuses::<Rollout>(without(rollout(), key), &format!("missing field `{key}`"));
    }
    for key in ["rollout_id", "attempt_id", "sequence_id", "start_time"] {
        refuses::<Attempt>(without(attempt(), key), &format!("missing field `{key}`"));
    }
    refuses::<Rollout>(with(rollout(), "status", json!("done")), "unknown variant `done`");
    refuses::<Rollout>(with(rollout(), "mode", json!("dev")), "unknown variant `dev`");
}

#[test]
fn configs() {
    let wire = json!({
        "timeout_seconds": 30.0, "unresponsive_seconds": 2.5, "max_attempts": 3,
        "retry_condition": ["failed", "timeout", "unresponsive"],
    });
    round_trips::<RolloutConfig>(&wire);
    reads_as::<RolloutConfig>(&json!({}), &rollout()["config"]);
    for bad in [json!(0), json!(-1)] {
        assert!(serde_json::from_value::<RolloutConfig>(json!({"max_attempts": bad})).is_err());
    }
    refuses::<RolloutConfig>(json!({"max_attempts": 0}), "nonzero");
    // A list is not read as the fields in order.
    refuses::<RolloutConfig>(json!([]), "expected struct RolloutConfig");
    refuses::<RolloutConfig>(json!({"retry_condition": ["cancelled"]}), "unknown variant `cancelled`");
}

#[test]
fn spans_and_their_parts() {
    round_trips::<Span>(&span());
    round_trips::<SpanContext>(&context());
    round_trips::<Event>(&span()["events"][0]);
    round_trips::<Link>(&span()["links"][0]);
    round_trips::<TraceStatus>(&json!({"status_code": "ERROR", "description": "boom"}));
    round_trips::<OtelResource>(&json!({"attributes": {"service.name": "x"}, "schema_url": "u"}));
    reads_as::<TraceStatus>(
        &json!({"status_code": "OK"}),
        &json!({"status_code": "OK", "description": null}),
    );
    let declared = [
        "rollout_id",
        "attempt_id",
        "sequence_id",
        "trace_id",
        "span_id",
        "parent_id",
        "name",
        "status",
        "attributes",
        "events",
        "links",
        "start_time",
        "end_time",
        "context",
        "parent",
        "resource",
    ];
    for key in declared {
        refuses::<Span>(without(span(), key), &format!("missing field `{key}`"));
    }
    let keys = serde_json::to_value(Span::new("n", "t".into(), "s".into(), 1.0, 2.0)).unwrap();
    assert_eq!(keys.as_object().unwrap().keys().collect::<Vec<_>>(), declared);
    refuses::<Span>(with(span(), "status", json!({"status_code": "FINE"})), "FINE");
    refuses::<Event>(json!({"name": "e"}), "missing field `attributes`");
}

#[test]
fn resources() {
    let wire = json!({
        "resources_id": "rs-1", "create_time": 1.0, "update_time": 2.0, "version": 2,
        "resources": {
            "z": {"resource_type": "llm", "endpoint": "http://h/v1", "model": "m", "api_key": null, "sampling_parameters": {}},
            "a": {"resource_type": "proxy_llm", "endpoint": "http://h/v1", "model": "m", "api_key": "k", "sampling_parameters": {"n": 2}, "mine": 1},
            "p": {"resource_type": "prompt_template", "template": "{x}", "engine": "jinja", "mine": [null]},
            "c": {"name": "before the tag", "resource_type": "dataset", "rows": [1, {"y": null}]},
        },
    });
    round_trips::<ResourcesUpdate>(&wire);
    let resources: NamedResources = serde_json::from_value(wire["resources"].clone()).unwrap();
    let types: Vec<&str> = resources.values().map(Resource::resource_type).collect();
    assert_eq!(types, ["llm", "proxy_llm", "prompt_template", "dataset"]);
    let short = json!({"resource_type": "llm", "endpoint": "e", "model": "m"});
    reads_as::<Resource>(
        &short,
        &with(with(short.clone(), "api_key", json!(null)), "sampling_parameters", json!({})),
    );
    refuses::<Resource>(json!({"endpoint": "e"}), "resource_type");
    refuses::<Resource>(json!({"resource_type": 3}), "resource_type");
    refuses::<Resource>(json!({"resource_type": "llm", "model": "m"}), "missing field `endpoint`");
    refuses::<Resource>(json!({"resource_type": "prompt_template", "template": "x", "engine": "tcl"}), "tcl");
    for key in ["resources_id", "create_time", "update_time", "version", "resources"] {
        refuses::<ResourcesUpdate>(without(wire.clone(), key), &format!("missing field `{key}`"));
    }
}

#[test]
fn workers_pages_and_triplets() {
    let worker = json!({
        "worker_id": "w", "status": "unknown", "heartbeat_stats": null, "last_heartbeat_time": null,
        "last_dequeue_time": null, "last_busy_time": null, "last_idle_time": null, "current_rollout_id": null,
        "current_attempt_id": null,
    });
    reads_as::<Worker>(&json!({"worker_id": "w"}), &worker);
    assert_eq!(serde_json::to_value(Worker::new("w")).unwrap(), worker);
    round_trips::<Page<Worker>>(&json!({"items": [worker], "limit": -1, "offset": 0, "total": 1}));
    let triplet = json!({"prompt": {"token_ids": [1]}, "response": null, "reward": null, "metadata": {}});
    round_trips::<Triplet>(&triplet);
    reads_as::<Triplet>(&json!({"prompt": {"token_ids": [1]}, "response": null}), &triplet);
    refuses::<Triplet>(json!({"response": 1}), "missing field `prompt`");
}

#[test]
fn legacy_types() {
    let task = json!({
        "rollout_id": "r", "input": 1, "mode": null, "resources_id": null, "create_time": null, "last_claim_time": null,
        "num_claims": null, "metadata": {},
    });
    reads_as::<Task>(&json!({"rollout_id": "r", "input": 1}), &task);
    reads_as::<TaskIfAny>(&json!({"is_available": false}), &json!({"is_available": false, "task": null}));
    let rollout = json!({
        "rollout_id": "r", "task": null, "final_reward": null, "triplets": null, "trace": null, "logs": null, "metadata": {},
    });
    reads_as::<RolloutLegacy>(&json!({"rollout_id": "r"}), &rollout);
    reads_as::<GenericResponse>(&json!({}), &json!({"status": "success", "message": null, "data": null}));
}

#[test]
fn requests() {
    let enqueue = json!({"input": 1, "mode": null, "resources_id": null, "config": null, "metadata": null});
    reads_as::<EnqueueRolloutRequest>(&json!({"input": 1}), &enqueue);
    refuses::<EnqueueRolloutRequest>(json!({}), "missing field `input`");
    refuses::<EnqueueRequest>(json!({}), "missing field `rollouts`");
    reads_as::<StartRollout>(&json!({"input": 1}), &with(enqueue, "worker_id", json!(null)));
    reads_as::<DequeueRequest>(&json!({}), &json!({"limit": 1, "worker_id": null}));
    reads_as::<WaitRequest>(&json!({"rollout_ids": []}), &json!({"rollout_ids": [], "timeout": null}));
    let query: RolloutQuery =
        serde_json::from_value(json!({"status_in": [], "sort_order": "desc", "filter_logic": "or"})).unwrap();
    let expected = RolloutQuery {
        status_in: Some(Vec::new()),
        sort_order: SortOrder::Desc,
        filter_logic: FilterLogic::Or,
        ..RolloutQuery::default()
    };
    assert_eq!(query, expected);
    assert_eq!((query.limit, query.offset, query.sort_by), (-1, 0, None));
    assert_eq!(SpanQuery::default().sort_by.as_deref(), Some("sequence_id"));
    refuses::<WorkerQuery>(json!({"filter_logic": "xor"}), "xor");
    refuses::<WorkerQuery>(json!({"sort_order": "up"}), "up");
}

/// Absent keeps, null clears where there is something to clear, and what is kept is absent again.
#[test]
fn updates() {
    let update: RolloutUpdate = serde_json::from_value(json!({"mode": null, "input": null})).unwrap();
    let expected =
        RolloutUpdate { mode: Patch::Set(None), input: Patch::Set(Value::Null), ..RolloutUpdate::default() };
    assert_eq!(update, expected);
    round_trips::<RolloutUpdate>(&json!({}));
    round_trips::<RolloutUpdate>(&json!({"mode": null, "status": "cancelled", "metadata": {"a": 1}}));
    round_trips::<AttemptUpdate>(&json!({"status": "failed", "worker_id": "", "metadata": {}}));
    round_trips::<WorkerUpdate>(&json!({"heartbeat_stats": {"cpu": 1}}));
    refuses::<RolloutUpdate>(json!({"status": null}), "null");
    refuses::<RolloutUpdate>(json!({"config": null}), "null");
    refuses::<AttemptUpdate>(json!({"status": null}), "null");
    refuses::<WorkerUpdate>(json!({"heartbeat_stats": null}), "null");
}

/// The words of all enumerations, in 0.3's order, both ways.
#[test]
fn words() {
    fn check<T: Copy + PartialEq + std::fmt::Debug + Serialize + DeserializeOwned>(
        all: &[T],
        words: &str,
        as_str: fn(T) -> &'static str,
        parse: fn(&str) -> Option<T>,
    ) {
        assert_eq!(all.iter().copied().map(as_str).collect::<Vec<_>>().join(" "), words);
        for &value in all {
            assert_eq!(parse(as_str(value)), Some(value));
            assert_eq!(serde_json::to_value(value).unwrap(), json!(as_str(value)));
            assert_eq!(serde_json::from_value::<T>(json!(as_str(value))).unwrap(), value);
        }
        assert_eq!(parse("nonsense"), None);
    }
    check(
        RolloutStatus::ALL,
        "queuing preparing running failed succeeded cancelled requeuing",
        RolloutStatus::as_str,
        RolloutStatus::parse,
    );
    check(
        AttemptStatus::ALL,
        "preparing running failed succeeded unresponsive timeout",
        AttemptStatus::as_str,
        AttemptStatus::parse,
    );
    check(RolloutMode::ALL, "train val test", RolloutMode::as_str, RolloutMode::parse);
    check(WorkerStatus::ALL, "idle busy unknown", WorkerStatus::as_str, WorkerStatus::parse);
    check(StatusCode::ALL, "UNSET OK ERROR", StatusCode::as_str, StatusCode::parse);
    let classes = RolloutStatus::ALL.iter().map(|s| (s.is_queuing(), s.is_active(), s.is_terminal()));
    for (queuing, active, terminal) in classes {
        assert_eq!(
            u8::from(queuing) + u8::from(active) + u8::from(terminal),
            1,
            "each status is of one class"
        );
    }
}
