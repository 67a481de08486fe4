//! What only a store in a file has to show: it lasts, and it knows whose file it is.
#![expect(clippy::unwrap_used, reason = "what cannot be set up is a failed test")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use agl_store::{ManualClock, SqliteOptions, SqliteStore, Store, Sync};
use agl_types::{
    AttemptQuery, AttemptStatus, AttemptUpdate, DequeueRequest, EnqueueRolloutRequest, RolloutConfig,
    RolloutQuery, RolloutStatus, Span, SpanQuery, StartRollout, ids,
};

fn open(path: &Path) -> Result<SqliteStore, agl_store::Error> {
    SqliteStore::open(path, SqliteOptions::default())
}

fn span(rollout_id: &str, attempt_id: &str, number: u64) -> Span {
    let span = Span::new("step", ids::trace_id(1, number), ids::span_id(number), 1.0, 2.0);
    span.placed(rollout_id, attempt_id, i64::try_from(number).unwrap())
        .with_attribute("text", "x".repeat(200))
}

/// Queue, counters, deadlines and all the rest are there after closing and opening again.
#[tokio::test]
async fn everything_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    let clock = ManualClock::at(100.0);
    let options = || SqliteOptions { clock: Arc::new(clock.clone()), sync: Sync::Full, ..Default::default() };
    let store = SqliteStore::open(&path, options()).unwrap();
    let config = RolloutConfig { timeout_seconds: Some(10.0), ..RolloutConfig::default() };
    let rollout = EnqueueRolloutRequest { config: Some(config), ..EnqueueRolloutRequest::new("limited") };
    let limited = store.start_rollout(StartRollout { rollout, worker_id: Some("w".into()) }).await.unwrap();
    let mut queued = Vec::new();
    for number in 0..3 {
        queued.push(store.enqueue_rollout(EnqueueRolloutRequest::new(number)).await.unwrap().rollout_id);
    }
    let (rollout_id, attempt_id) = (&limited.rollout.rollout_id, &limited.attempt.attempt_id);
    store.add_span(span(rollout_id, attempt_id, 5)).await.unwrap().unwrap();
    let rollouts = store.query_rollouts(RolloutQuery::default()).await.unwrap();
    let workers = store.query_workers(Default::default()).await.unwrap();
    store.close();
    drop(store);
    assert!(!folder.path().join("agl.db-wal").exists(), "a closed database is one file");

    let store = SqliteStore::open(&path, options()).unwrap();
    assert_eq!(store.query_rollouts(RolloutQuery::default()).await.unwrap(), rollouts);
    assert_eq!(store.query_workers(Default::default()).await.unwrap(), workers);
    assert_eq!(store.get_next_span_sequence_id(rollout_id, attempt_id).await.unwrap(), 6);
    let query = SpanQuery { rollout_id: rollout_id.clone(), ..SpanQuery::default() };
    assert_eq!(store.query_spans(query).await.unwrap().items, [span(rollout_id, attempt_id, 5)]);
    for rollout_id in queued {
        assert_eq!(store.dequeue_rollout(None).await.unwrap().unwrap().rollout.rollout_id, rollout_id);
    }
    drop(store);
    clock.advance(11.0);
    let store = SqliteStore::open(&path, options()).unwrap();
    let view = store.get_rollout_by_id(rollout_id).await.unwrap().unwrap();
    assert_eq!(
        (view.rollout.status, view.attempt.unwrap().status),
        (RolloutStatus::Failed, AttemptStatus::Timeout)
    );
}

/// A second store on the same file is refused until the first one is closed or gone.
#[tokio::test]
async fn a_file_belongs_to_one_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    let first = open(&path).unwrap();
    let error = open(&path).unwrap_err();
    assert_eq!(error.kind(), "invalid");
    assert!(error.to_string().contains("agl.db is open in another store"), "{error}");
    first.close();
    let second = open(&path).unwrap();
    let error = first.enqueue_rollout(EnqueueRolloutRequest::new(1)).await.unwrap_err();
    assert!(error.to_string().contains("closed"), "{error}");
    assert!(first.query_rollouts(RolloutQuery::default()).await.is_err());
    drop(first);
    assert!(open(&path).is_err());
    drop(second);
    open(&path).unwrap();
}

#[track_caller]
fn assert_refused(path: &Path, part: &str) {
    let error = open(path).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(part) && text.contains(path.to_str().unwrap()) && !text.contains('\n'), "{text}");
    // A refusal lets go of the lock.
    assert_eq!(open(path).unwrap_err().to_string(), text);
}

/// Files that are not ours are refused in one line that names them, and left as they are.
#[test]
fn foreign_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text =
        "this is a plain text file, long enough to hold a header of a hundred bytes, which it is not. "
            .repeat(9);
    std::fs::write(path("notes.txt"), &text).unwrap();
    assert_refused(&path("notes.txt"), "is not an SQLite database");
    assert_eq!(std::fs::read_to_string(path("notes.txt")).unwrap(), text);

    let foreign = rusqlite::Connection::open(path("other.db")).unwrap();
    foreign.execute_batch("CREATE TABLE songs (title TEXT); INSERT INTO songs VALUES ('x');").unwrap();
    drop(foreign);
    let before = std::fs::read(path("other.db")).unwrap();
    assert_refused(&path("other.db"), "is the database of another program");
    assert_eq!(std::fs::read(path("other.db")).unwrap(), before);

    let marked = rusqlite::Connection::open(path("marked.db")).unwrap();
    marked.execute_batch("PRAGMA application_id = 7;").unwrap();
    drop(marked);
    assert_refused(&path("marked.db"), "is the database of another program");

    drop(open(&path("newer.db")).unwrap());
    let newer = rusqlite::Connection::open(path("newer.db")).unwrap();
    newer.execute_batch("PRAGMA user_version = 999;").unwrap();
    drop(newer);
    assert_refused(&path("newer.db"), "has schema version 999");

    assert_refused(&path("no/such/folder/agl.db"), "cannot open");
    std::fs::create_dir(path("folder")).unwrap();
    assert_refused(&path("folder"), "cannot open");
    std::fs::write(path("empty.db"), "").unwrap();
    open(&path("empty.db")).unwrap();
}

/// An operation goes on when nobody waits for its answer any more, and whoever waits for its effect is told.
#[tokio::test]
async fn an_abandoned_call_is_carried_out() {
    let folder = tempfile::tempdir().unwrap();
    // Where commits wait for the disk they are the writer's; elsewhere the first poll may carry an operation out.
    let options = SqliteOptions { sync: Sync::Full, ..SqliteOptions::default() };
    let store = Arc::new(SqliteStore::open(folder.path().join("agl.db"), options).unwrap());
    // The writer may be quick enough to answer within the first poll; not every time, though.
    for _ in 0..1000 {
        let rollout_id = store.start_rollout(StartRollout::default()).await.unwrap().rollout.rollout_id;
        let waiting = {
            let (store, rollout_ids) = (Arc::clone(&store), vec![rollout_id.clone()]);
            let request = agl_types::WaitRequest { rollout_ids, timeout: None };
            tokio::spawn(async move { store.wait_for_rollouts(request).await })
        };
        let update = AttemptUpdate { status: AttemptStatus::Succeeded.into(), ..AttemptUpdate::default() };
        let mut call = store.update_attempt(&rollout_id, "latest", update);
        // One poll hands the operation in; then the caller is gone.
        let polled =
            std::future::poll_fn(|context| std::task::Poll::Ready(call.as_mut().poll(context))).await;
        drop(call);
        assert_eq!(waiting.await.unwrap().unwrap()[0].status, RolloutStatus::Succeeded);
        if polled.is_pending() {
            return;
        }
    }
    panic!("no call was ever abandoned");
}

/// A store is made and dropped where there is no runtime, and used from several ones.
#[test]
fn a_store_needs_no_runtime_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("agl.db")).unwrap();
    for number in 1..=2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(store.enqueue_rollout(EnqueueRolloutRequest::new(number))).unwrap();
        assert_eq!(runtime.block_on(store.statistics()).unwrap().total_rollouts, number);
    }
}

const CHILD_FILE: &str = "AGL_STORE_TEST_CHILD_FILE";

/// The life of the child process that gets killed: it works, and says of everything what was acknowledged.
#[ignore = "a child process of the test below"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_process() {
    let store = Arc::new(open(Path::new(&std::env::var_os(CHILD_FILE).unwrap())).unwrap());
    let say = |line: String| std::io::stdout().lock().write_all(format!("ACK {line}\n").as_bytes()).unwrap();
    let work = |worker: u64| {
        let store = Arc::clone(&store);
        async move {
            for round in 0_u64.. {
                let requests = (0..3).map(|number| EnqueueRolloutRequest {
                    config: Some(RolloutConfig {
                        max_attempts: 2.try_into().unwrap(),
                        retry_condition: vec![AttemptStatus::Failed],
                        ..RolloutConfig::default()
                    }),
                    ..EnqueueRolloutRequest::new(number)
                });
                for rollout in store.enqueue_many_rollouts(requests.collect()).await.unwrap() {
                    say(format!("rollout {}", rollout.rollout_id));
                }
                let request = DequeueRequest { limit: 2, worker_id: Some(format!("w{worker}")), wait: None };
                for claim in store.dequeue_many_rollouts(request).await.unwrap() {
                    let (rollout, attempt) = (claim.rollout.rollout_id, claim.attempt.attempt_id);
                    say(format!("attempt {rollout} {attempt}"));
                    let count = if round % 3 == 0 { 60 } else { 1 };
                    let spans = (1..=count).map(|number| span(&rollout, &attempt, number)).collect();
                    for span in store.add_many_spans(spans).await.unwrap() {
                        say(format!("span {rollout} {attempt} {}", span.span_id));
                    }
                    let status =
                        if round % 2 == 0 { AttemptStatus::Succeeded } else { AttemptStatus::Failed };
                    let update = AttemptUpdate { status: status.into(), ..AttemptUpdate::default() };
                    store.update_attempt(&rollout, &attempt, update).await.unwrap();
                    say(format!("ended {rollout} {attempt} {status}"));
                }
            }
        }
    };
    tokio::join!(work(0), work(1), work(2), work(3));
}

/// Three processes on one file, each killed in the middle of its work: nothing acknowledged is lost, nothing is
/// half done, and no lock is left behind.
#[tokio::test]
async fn what_was_acknowledged_survives_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    let mut acknowledged: Vec<String> = Vec::new();
    for enough in [300, 700, 1500] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "child_process"])
            .env(CHILD_FILE, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
        let mut of_this_child = 0;
        let mut take = |line: Vec<u8>| {
            let line = String::from_utf8(line).unwrap();
            if let Some(acknowledgment) = line.split_once("ACK ").map(|(_, rest)| rest.to_owned()) {
                acknowledged.push(acknowledgment);
                of_this_child += 1;
            }
            of_this_child
        };
        while take(lines.next().expect("the child ended by itself").unwrap()) < enough {}
        assert!(open(&path).unwrap_err().to_string().contains("open in another store"));
        child.kill().unwrap();
        child.wait().unwrap();
        // What was said before the kill counts; the last line may have been cut off.
        let mut rest: Vec<Vec<u8>> = lines.map(Result::unwrap).collect();
        rest.pop();
        rest.into_iter().for_each(|line| {
            take(line);
        });
        check(&open(&path).unwrap(), &acknowledged).await;
    }
}

async fn check(store: &SqliteStore, acknowledged: &[String]) {
    let rollouts = store.query_rollouts(RolloutQuery::default()).await.unwrap().items;
    let statistics = store.statistics().await.unwrap();
    assert_eq!(statistics.total_rollouts, rollouts.len() as u64);
    let mut known = BTreeSet::new();
    let mut waiting = BTreeSet::new();
    let (mut attempts_in_all, mut spans_in_all) = (0, 0);
    for view in rollouts {
        let rollout_id = view.rollout.rollout_id;
        known.insert(format!("rollout {rollout_id}"));
        if view.rollout.status.is_queuing() {
            waiting.insert(rollout_id.clone());
        }
        let query = AttemptQuery { rollout_id: rollout_id.clone(), ..AttemptQuery::default() };
        for (number, attempt) in (1..).zip(store.query_attempts(query).await.unwrap().items) {
            assert_eq!(attempt.sequence_id, number);
            known.insert(format!("attempt {rollout_id} {}", attempt.attempt_id));
            known.insert(format!("ended {rollout_id} {} {}", attempt.attempt_id, attempt.status));
            attempts_in_all += 1;
        }
        let query = SpanQuery { rollout_id: rollout_id.clone(), ..SpanQuery::default() };
        for span in store.query_spans(query).await.unwrap().items {
            known.insert(format!("span {rollout_id} {} {}", span.attempt_id, span.span_id));
            spans_in_all += 1;
        }
    }
    assert_eq!((statistics.total_attempts, statistics.total_spans), (attempts_in_all, spans_in_all));
    for acknowledgment in acknowledged {
        assert!(known.contains(acknowledgment), "lost: {acknowledgment}");
    }
    let everything = DequeueRequest { limit: 1_000_000, worker_id: None, wait: None };
    let queue = store.dequeue_many_rollouts(everything).await.unwrap();
    let queued: BTreeSet<String> = queue.into_iter().map(|claim| claim.rollout.rollout_id).collect();
    assert_eq!(queued, waiting, "the queue holds exactly the rollouts that wait");
}
