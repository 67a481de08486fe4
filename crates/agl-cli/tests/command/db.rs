//! Looking after the file of a store, with and without a server on it.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agl_client::{Client, ClientOptions};
use agl_store::Store as _;
use agl_types::{EnqueueRolloutRequest, RolloutQuery};

use crate::arguments::complaint;
use crate::process::{Served, output};

fn db(command: &str, paths: &[&Path]) -> Output {
    let mut args = vec!["db", command];
    args.extend(paths.iter().map(|path| path.to_str().unwrap()));
    output(&args)
}

/// What a command that went well says.
fn said(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

async fn fill(url: &str, rollouts: usize) -> Client {
    let client = Client::new(url, ClientOptions::default()).unwrap();
    let tasks = (0..rollouts).map(|_| EnqueueRolloutRequest::new("x".repeat(1000)));
    client.enqueue_many_rollouts(tasks.collect()).await.unwrap();
    client
}

/// A database with some rollouts in it, which nobody has open.
async fn filled(path: &Path) {
    let served = Served::sqlite(path, 0);
    let client = fill(&served.url, 20).await;
    client.dequeue_rollout(None).await.unwrap().unwrap();
    // Of 1.0: it waits too, but for a controller.
    let task = serde_json::from_value(serde_json::json!({"input": 1})).unwrap();
    client.create_controller_rollouts(vec![task]).await.unwrap();
    served.log();
}

#[tokio::test]
async fn what_contradicts_itself_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    filled(&path).await;
    assert_eq!(said(&db("check", &[&path])), format!("{} is in order", path.display()));

    // Somebody has been at it.
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch("DELETE FROM queue WHERE place = (SELECT min(place) FROM queue)").unwrap();
    connection.execute_batch("UPDATE attempts SET sequence_id = 7").unwrap();
    drop(connection);
    let broken = db("check", &[&path]);
    assert_eq!(broken.status.code(), Some(1));
    let lines = String::from_utf8(broken.stdout).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(lines.contains("not in the queue: ro-") && lines.contains("not numbered"), "{lines}");
    assert!(String::from_utf8_lossy(&broken.stderr).contains("2 problems"));
}

#[tokio::test]
async fn damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    filled(&path).await;
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 3 * 4096;
    bytes[at..].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let broken = db("check", &[&path]);
    assert_eq!(broken.status.code(), Some(1), "{}", String::from_utf8_lossy(&broken.stdout));
}

/// The copy holds all that was acknowledged before it was begun, and is in order.
#[tokio::test]
async fn a_backup_is_made_while_a_server_writes() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("agl.db"), folder.path().join("copy.db"));
    let served = Served::sqlite(&path, 0);
    let client = fill(&served.url, 500).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut written = 0;
            while !stop.load(Ordering::SeqCst) {
                client.enqueue_rollout(EnqueueRolloutRequest::new("more")).await.unwrap();
                written += 1;
            }
            (client, written)
        }
    });
    let (from, to) = (path.clone(), copy.clone());
    let made = tokio::task::spawn_blocking(move || db("backup", &[&from, &to])).await.unwrap();
    stop.store(true, Ordering::SeqCst);
    let (client, written) = writing.await.unwrap();
    assert!(said(&made).contains(copy.to_str().unwrap()));
    assert_eq!(
        said(&db("check", &[&path])),
        format!("{} is in order", path.display()),
        "with a server on it"
    );
    assert_eq!(said(&db("check", &[&copy])), format!("{} is in order", copy.display()));

    let restored = Served::sqlite(&copy, 0);
    let all = RolloutQuery { limit: 1, ..RolloutQuery::default() };
    let copied =
        Client::new(&restored.url, ClientOptions::default()).unwrap().query_rollouts(all.clone()).await;
    let copied = copied.unwrap().total;
    assert!((500..=500 + written).contains(&copied), "{copied} of {written} more");
    assert_eq!(client.query_rollouts(all).await.unwrap().total, 500 + written, "the original went on");

    let line = complaint(&db("backup", &[&path, &copy]));
    assert!(line.contains("copy.db is there already"), "{line}");
    let names: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("partial")), "{names:?}");
}

#[tokio::test]
async fn room_is_given_back_when_no_server_is_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    let served = Served::sqlite(&path, 0);
    fill(&served.url, 2000).await;
    for command in ["vacuum", "migrate"] {
        let line = complaint(&db(command, &[&path]));
        assert!(line.contains("open in another store"), "{line}");
    }
    served.log();
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch("UPDATE rollout_bodies SET input = '1'").unwrap();
    drop(connection);
    let before = std::fs::metadata(&path).unwrap().len();
    said(&db("vacuum", &[&path]));
    let after = std::fs::metadata(&path).unwrap().len();
    assert!(after < before / 2, "{before} bytes became {after}");
    said(&db("check", &[&path]));
}

#[tokio::test]
async fn an_old_file_is_migrated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    filled(&path).await;
    let newest = said(&db("migrate", &[&path]));
    assert!(newest.contains("already, the newest"), "{newest}");

    // As old as can be: a database without anything in it.
    let blank = folder.path().join("blank.db");
    std::fs::write(&blank, "").unwrap();
    let line = complaint(&db("check", &[&blank]));
    assert!(line.contains("schema version 0") && line.contains("migrate"), "{line}");
    let migrated = said(&db("migrate", &[&blank]));
    assert!(migrated.contains("had schema version 0"), "{migrated}");
    said(&db("check", &[&blank]));
}

#[test]
fn a_file_that_is_not_a_store_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (missing, text) = (folder.path().join("missing.db"), folder.path().join("notes.txt"));
    std::fs::write(&text, "not a database at all, but long enough to be mistaken for one".repeat(100))
        .unwrap();
    for command in ["check", "vacuum", "migrate"] {
        let line = complaint(&db(command, &[&missing]));
        assert!(line.contains("missing.db does not exist"), "{line}");
        let line = complaint(&db(command, &[&text]));
        assert!(line.contains("notes.txt is not an SQLite database"), "{line}");
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 1, "nothing is left beside them");
}
