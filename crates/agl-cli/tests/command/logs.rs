//! What is on standard error.

use std::time::Duration;

use agl_client::{Client, ClientOptions};
use agl_store::Store as _;
use agl_types::ApiKey;
use serde_json::Value;

use crate::process::{Served, output};

#[tokio::test]
async fn a_log_in_json_is_json_in_every_line() {
    let args = ["store", "--backend", "memory", "--port", "0", "--key", "s3cret"];
    let served = Served::start(&[&args[..], &["--log-level", "debug", "--log-format", "json"]].concat());
    for key in ["s3cret", "wr0ng"] {
        let key = Some(ApiKey::new(key).unwrap());
        let options = ClientOptions { key, max_outage: Duration::ZERO, ..ClientOptions::default() };
        let client = Client::new(&served.url, options).unwrap();
        let _ = client.get_rollout_by_id("ro-1?").await;
    }
    let log = served.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].is_string(), "{field} in {line}");
        }
    }
    let statuses: Vec<i64> = lines
        .iter()
        .filter(|line| line["target"] == "agl_server::routes" && line["message"] == "answered")
        .map(|line| {
            assert_eq!((&line["method"], &line["path"]), (&"GET".into(), &"/v1/agl/rollouts/ro-1%3F".into()));
            assert!(line["millis"].is_f64() && line["level"] == "DEBUG", "{line}");
            line["status"].as_i64().unwrap()
        })
        .collect();
    assert_eq!(statuses, [404, 401], "{log}");
    assert!(!log.contains("s3cret") && !log.contains("wr0ng"), "keys are never logged: {log}");
}

#[test]
fn the_last_words_are_json_too() {
    let output = output(&["store", "--log-format", "json", "--cors-origin", "none", "--port", "0"]);
    assert_eq!(output.status.code(), Some(1));
    let line: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(line["level"], "ERROR");
    assert!(line["message"].as_str().unwrap().contains("cors origin"), "{line}");
}
