//! Who is let in, as the command line says.

use std::time::Duration;

use agl_client::{Client, ClientOptions};
use agl_store::{Error, Store as _};
use agl_types::ApiKey;

use crate::arguments::complaint;
use crate::process::{Served, agl, output};

const STORE: [&str; 5] = ["store", "--backend", "memory", "--port", "0"];

/// What a client with this key is answered.
async fn asked(url: &str, key: Option<&str>) -> Result<agl_store::Statistics, Error> {
    let key = key.map(|key| ApiKey::new(key).unwrap());
    let options = ClientOptions { key, max_outage: Duration::from_secs(5), ..ClientOptions::default() };
    Client::new(url, options).unwrap().statistics().await
}

#[tokio::test]
async fn the_key_comes_from_a_flag_a_variable_or_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "s3cret\n").unwrap();
    let by_flag = agl(&[&STORE[..], &["--key", "s3cret"]].concat());
    let mut by_variable = agl(&STORE);
    by_variable.env("AGL_KEY", "s3cret");
    let by_file = agl(&[&STORE[..], &["--key-file", file.to_str().unwrap()]].concat());
    for command in [by_flag, by_variable, by_file] {
        let served = Served::run(command);
        asked(&served.url, Some("s3cret")).await.unwrap();
        for wrong in [None, Some("other")] {
            let refused = asked(&served.url, wrong).await.unwrap_err();
            assert!(matches!(refused, Error::Unauthorized { .. }), "{refused:?}");
        }
    }
}

#[tokio::test]
async fn other_machines_are_let_in_on_purpose_only() {
    let line = complaint(&output(&[&STORE[..], &["--host", "0.0.0.0"]].concat()));
    assert!(line.contains("--key") && line.contains("--insecure") && line.contains("0.0.0.0"), "{line}");
    for fix in [&["--key", "s3cret"][..], &["--insecure"]] {
        let served = Served::start(&[&STORE[..], &["--host", "0.0.0.0"], fix].concat());
        asked(&served.url, Some("s3cret")).await.unwrap();
    }
    // A name for this machine alone needs neither.
    let served = Served::start(&[&STORE[..], &["--host", "localhost"]].concat());
    asked(&served.url, None).await.unwrap();
}

#[test]
fn a_key_that_is_none_is_refused_without_repeating_it() {
    for (key, words) in [("", "empty"), ("two words", "printable")] {
        let line = complaint(&output(&[&STORE[..], &["--key", key]].concat()));
        assert!(line.contains(words) && !line.contains("two words"), "{line}");
    }
    let line = complaint(&output(&[&STORE[..], &["--key-file", "missing.key"]].concat()));
    assert!(line.contains("missing.key"), "{line}");
    let help = String::from_utf8(agl(&["store", "--help"]).env("AGL_KEY", "s3cret").output().unwrap().stdout)
        .unwrap();
    assert!(help.contains("AGL_KEY") && !help.contains("s3cret"), "{help}");
}

#[test]
fn certificates_that_are_none_are_named() {
    let args = ["--tls-cert", "missing.pem", "--tls-key", "missing.key"];
    let line = complaint(&output(&[&STORE[..], &args].concat()));
    assert!(line.contains("missing.pem"), "{line}");
}

/// The line says how to reach the server, and the limits of the command line hold.
#[tokio::test]
async fn a_body_may_be_as_long_as_was_said() {
    let served = Served::start(&[&STORE[..], &["--max-body", "1K"]].concat());
    let client = Client::new(&served.url, ClientOptions::default()).unwrap();
    let task = |length: usize| agl_types::EnqueueRolloutRequest::new("x".repeat(length));
    client.enqueue_rollout(task(100)).await.unwrap();
    let refused = client.enqueue_rollout(task(1000)).await.unwrap_err();
    assert!(refused.to_string().contains("1024 bytes"), "{refused}");
}
