//! Pausing and resuming a store that is served.

use agl_client::{Client, ClientOptions};
use agl_store::Store as _;
use agl_types::EnqueueRolloutRequest;

use crate::arguments::complaint;
use crate::process::{Served, agl, output};

fn said(args: &[&str]) -> String {
    let output = output(args);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_pause_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    let served = Served::sqlite(&path, 0);
    let client = Client::new(&served.url, ClientOptions::default()).unwrap();
    client.enqueue_rollout(EnqueueRolloutRequest::new("task")).await.unwrap();
    let line = said(&["pause", "--server", &served.url]);
    assert_eq!(line, format!("the store at {} gives out no more tasks\n", served.url));
    assert_eq!(client.dequeue_rollout(None).await.unwrap(), None);
    served.kill();

    let served = Served::sqlite(&path, 0);
    let client = Client::new(&served.url, ClientOptions::default()).unwrap();
    assert_eq!(client.dequeue_rollout(None).await.unwrap(), None);
    let line = said(&["resume", "--server", &served.url]);
    assert_eq!(line, format!("the store at {} gives out tasks\n", served.url));
    assert!(client.dequeue_rollout(None).await.unwrap().is_some());
}

#[test]
fn whoever_pauses_needs_the_key() {
    let served = Served::start(&["store", "--backend", "memory", "--port", "0", "--key", "s3cret"]);
    let mut with_key = agl(&["pause", "--server", &served.url]);
    assert!(with_key.env("AGL_KEY", "s3cret").status().unwrap().success());
    let line = complaint(&output(&["pause", "--server", &served.url]));
    assert!(line.contains("key"), "{line}");
}

#[test]
fn a_store_that_is_not_there_is_named() {
    let line = complaint(&output(&["pause", "--server", "http://127.0.0.1:9"]));
    assert!(line.contains("127.0.0.1:9"), "{line}");
    let line = complaint(&output(&["resume", "--server", "127.0.0.1:9"]));
    assert!(line.contains("not a URL"), "{line}");
}
