//! The threads that own the connections, and the queues that feed them.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::log::Log;
use super::schema::BUSY;
use super::session::Session;
use crate::Error;
use crate::backend::{Aftermath, Lane, Read, Tx};
use crate::metrics;
use crate::signals::{Signals, lock};

/// How many operations share a commit at most.
const GROUP_SIZE: usize = 512;

/// For how long a commit gathers operations at most; there is no waiting for more to come.
const GROUP_TIME: Duration = Duration::from_millis(10);

/// Jobs that wait for a thread.
pub(super) struct Jobs<J> {
    lanes: Mutex<Lanes<J>>,
    ready: Condvar,
}

struct Lanes<J> {
    fast: VecDeque<J>,
    bulk: VecDeque<J>,
    is_bulk_held: bool,
    is_closed: bool,
}

impl<J> Lanes<J> {
    /// Bulk that a thread may take now. What is left when the queue closes is done at once.
    fn has_bulk(&self) -> bool {
        !self.bulk.is_empty() && (self.is_closed || !self.is_bulk_held)
    }
}

impl<J> Default for Jobs<J> {
    fn default() -> Self {
        let lanes =
            Lanes { fast: VecDeque::new(), bulk: VecDeque::new(), is_bulk_held: false, is_closed: false };
        Self { lanes: Mutex::new(lanes), ready: Condvar::new() }
    }
}

impl<J> std::fmt::Debug for Jobs<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lanes = lock(&self.lanes);
        f.debug_struct("Jobs").field("fast", &lanes.fast.len()).field("bulk", &lanes.bulk.len()).finish()
    }
}

impl<J> Jobs<J> {
    /// Hands a job in; false when there is nobody left to do it.
    pub(super) fn push(&self, lane: Lane, job: J) -> bool {
        let mut lanes = lock(&self.lanes);
        if lanes.is_closed {
            return false;
        }
        match lane {
            Lane::Fast => lanes.fast.push_back(job),
            Lane::Bulk => lanes.bulk.push_back(job),
        }
        drop(lanes);
        self.ready.notify_one();
        true
    }

    /// Whether jobs are taken and none is there.
    pub(super) fn is_idle(&self) -> bool {
        let lanes = lock(&self.lanes);
        !lanes.is_closed && lanes.fast.is_empty() && lanes.bulk.is_empty()
    }

    /// Takes no more jobs; those that are there are still done.
    pub(super) fn close(&self) {
        lock(&self.lanes).is_closed = true;
        self.ready.notify_all();
    }

    /// Has bulk jobs wait, or go on; small ones are done in any case.
    pub(super) fn hold_bulk(&self, is_held: bool) {
        lock(&self.lanes).is_bulk_held = is_held;
        self.ready.notify_all();
    }

    /// Waits until there is a job; false when there will be none any more.
    fn wait(&self) -> bool {
        let lanes = lock(&self.lanes);
        let is_idle = |lanes: &mut Lanes<J>| lanes.fast.is_empty() && !lanes.has_bulk() && !lanes.is_closed;
        let lanes = self.ready.wait_while(lanes, is_idle).unwrap_or_else(PoisonError::into_inner);
        !(lanes.fast.is_empty() && lanes.bulk.is_empty())
    }

    fn take(&self, lane: Lane) -> Option<J> {
        let mut lanes = lock(&self.lanes);
        match lane {
            Lane::Fast => lanes.fast.pop_front(),
            Lane::Bulk if lanes.has_bulk() => lanes.bulk.pop_front(),
            Lane::Bulk => None,
        }
    }
}

/// A changing operation on its way through the writer.
pub(super) trait WriteJob: Send {
    /// Does the work; false when nothing of it is to be kept.
    fn run(&mut self, session: &mut Session<'_>) -> bool;
    /// Turns what is not a failure yet into one, because nothing of it is kept.
    fn fail(&mut self, error: Error);
    /// Tells the world, if the work succeeded. Comes before any answer of the group.
    fn publish(&self, signals: &Signals);
    /// Answers the caller.
    fn answer(self: Box<Self>);
}

struct Operation<T, F> {
    operation: Option<F>,
    outcome: Result<(T, Aftermath), Error>,
    reply: oneshot::Sender<Result<T, Error>>,
}

pub(super) fn write_job<T, F>(operation: F, reply: oneshot::Sender<Result<T, Error>>) -> Box<dyn WriteJob>
where
    T: Send + 'static,
    F: FnOnce(&mut dyn Tx) -> Result<(T, Aftermath), Error> + Send + 'static,
{
    let outcome = Err(Error::backend("the operation was not carried out"));
    Box::new(Operation { operation: Some(operation), outcome, reply })
}

impl<T, F> WriteJob for Operation<T, F>
where
    T: Send + 'static,
    F: FnOnce(&mut dyn Tx) -> Result<(T, Aftermath), Error> + Send + 'static,
{
    fn run(&mut self, session: &mut Session<'_>) -> bool {
        if let Some(operation) = self.operation.take() {
            // One defective operation must not take the writer and everybody else's work with it.
            self.outcome = catch_unwind(AssertUnwindSafe(|| operation(session)))
                .unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        }
        self.outcome.is_ok()
    }

    fn fail(&mut self, error: Error) {
        // An operation that failed by itself keeps its own error.
        if self.outcome.is_ok() || self.operation.is_some() {
            self.outcome = Err(error);
        }
    }

    fn publish(&self, signals: &Signals) {
        if let Ok((_, aftermath)) = &self.outcome {
            signals.publish(aftermath);
        }
    }

    fn answer(self: Box<Self>) {
        // Whoever stopped waiting does not want to know.
        let _ = self.reply.send(self.outcome.map(|(value, _)| value));
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Error::backend(format!("a store operation panicked, which is a defect: {}", text.unwrap_or("no message")))
}

/// So soon after a commit there are many who write: together they cost one commit, one by one each its own.
const CROWDED: Duration = Duration::from_micros(40);

/// Where things are written.
#[derive(Debug)]
pub(super) struct Desk(Mutex<Place>);

#[derive(Debug)]
struct Place {
    /// None when the database is closed.
    connection: Option<Connection>,
    /// When somebody last left.
    left: Instant,
}

impl Desk {
    pub(super) fn new(connection: Connection) -> Self {
        Self(Mutex::new(Place { connection: Some(connection), left: Instant::now() }))
    }

    /// Takes the connection away, when whoever is there has left.
    pub(super) fn close(&self) -> Option<Connection> {
        lock(&self.0).connection.take()
    }
}

/// The writer: commits groups of operations until there are none any more.
pub(super) fn write_all(desk: &Desk, jobs: &Jobs<Box<dyn WriteJob>>, signals: &Signals, log: &Log) {
    while jobs.wait() {
        let mut place = lock(&desk.0);
        let Some(connection) = &place.connection else { return };
        log.finish(connection);
        let started = Instant::now();
        let group = match begin(connection) {
            Ok(()) => {
                let mut group = gather(connection, jobs);
                commit(connection, &mut group, started);
                group
            }
            Err(error) => {
                tracing::error!(%error, "the database takes no changes");
                let mut refused: Vec<_> =
                    jobs.take(Lane::Fast).into_iter().chain(jobs.take(Lane::Bulk)).collect();
                refused.iter_mut().for_each(|job| job.fail(error.clone()));
                refused
            }
        };
        place.left = Instant::now();
        drop(place);
        for job in &group {
            job.publish(signals);
        }
        let has_company = group.len() > 1;
        for job in group {
            job.answer();
        }
        if has_company {
            // Those just answered may come back at once: together they cost one commit, one by one each its own.
            std::thread::yield_now();
        }
    }
}

/// Carries an operation out on the thread that wants it, which saves waking the writer and being woken by it. Gives it back
/// where that is not done at once, or not worth it: the writer is at work or has some to do, many come, or another program
/// writes.
pub(super) fn write_here(
    desk: &Desk,
    jobs: &Jobs<Box<dyn WriteJob>>,
    signals: &Signals,
    log: &Log,
    mut job: Box<dyn WriteJob>,
) -> Option<Box<dyn WriteJob>> {
    let Ok(mut place) = desk.0.try_lock() else { return Some(job) };
    let is_free = place.left.elapsed() > CROWDED && jobs.is_idle() && !log.is_mostly_copied();
    let Some(connection) = place.connection.as_ref().filter(|_| is_free) else { return Some(job) };
    let started = Instant::now();
    let begun = connection.busy_timeout(Duration::ZERO).map_err(Error::from).and_then(|()| begin(connection));
    let restored = connection.busy_timeout(BUSY);
    match (begun, restored) {
        (Ok(()), Ok(())) => {}
        (Ok(()), Err(_)) => {
            roll_back(connection, "ROLLBACK");
            return Some(job);
        }
        (Err(_), _) => return Some(job),
    }
    // It is alone in its transaction, and needs no savepoint.
    if job.run(&mut Session::new(connection)) {
        commit(connection, std::slice::from_mut(&mut job), started);
    } else {
        roll_back(connection, "ROLLBACK");
    }
    place.left = Instant::now();
    drop(place);
    job.publish(signals);
    job.answer();
    None
}

/// Commits what a group of operations has done; they fail together when that fails.
fn commit(connection: &Connection, group: &mut [Box<dyn WriteJob>], started: Instant) {
    if let Err(error) = command(connection, "COMMIT") {
        tracing::error!(%error, operations = group.len(), "a commit failed; nothing of it is kept");
        roll_back(connection, "ROLLBACK");
        group.iter_mut().for_each(|job| job.fail(error.clone()));
    }
    metrics::committed(group.len(), started.elapsed());
}

fn begin(connection: &Connection) -> Result<(), Error> {
    command(connection, "BEGIN IMMEDIATE")
}

/// Runs a statement without parameters and rows that comes again and again.
fn command(connection: &Connection, sql: &str) -> Result<(), Error> {
    connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// Runs waiting operations: the small ones first, then at least one bulk one, and on as long as the bounds allow.
fn gather(connection: &Connection, jobs: &Jobs<Box<dyn WriteJob>>) -> Vec<Box<dyn WriteJob>> {
    let started = Instant::now();
    let mut group: Vec<Box<dyn WriteJob>> = Vec::new();
    let mut has_bulk = false;
    loop {
        let within_bounds = group.len() < GROUP_SIZE && started.elapsed() < GROUP_TIME;
        let mut next = if within_bounds { jobs.take(Lane::Fast) } else { None };
        if next.is_none() && (within_bounds || !has_bulk) {
            next = jobs.take(Lane::Bulk);
            has_bulk = true;
        }
        let Some(mut job) = next else { return group };
        run_in_savepoint(connection, job.as_mut());
        group.push(job);
    }
}

fn run_in_savepoint(connection: &Connection, job: &mut dyn WriteJob) {
    if let Err(error) = command(connection, "SAVEPOINT operation") {
        job.fail(error);
        return;
    }
    if !job.run(&mut Session::new(connection)) {
        roll_back(connection, "ROLLBACK TO operation");
    }
    if let Err(error) = command(connection, "RELEASE operation") {
        job.fail(error);
    }
}

fn roll_back(connection: &Connection, sql: &str) {
    // A grave failure, such as a full disk, has SQLite roll back by itself, so there may be nothing left to do.
    if let Err(error) = command(connection, sql) {
        tracing::warn!(%error, "nothing to roll back");
    }
}

/// A looking operation with its answer.
pub(super) type ReadJob = Box<dyn FnOnce(&Connection) + Send>;

pub(super) fn read_job<T, F>(operation: F, reply: oneshot::Sender<Result<T, Error>>) -> ReadJob
where
    T: Send + 'static,
    F: FnOnce(&dyn Read) -> Result<T, Error> + Send + 'static,
{
    Box::new(move |connection| {
        let look = || {
            // Read transactions see one state from their first statement to their end.
            command(connection, "BEGIN")?;
            operation(&Session::new(connection))
        };
        let outcome =
            catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        if !connection.is_autocommit() {
            roll_back(connection, "ROLLBACK");
        }
        let _ = reply.send(outcome);
    })
}

/// A reader: answers until there is nothing to answer any more.
pub(super) fn read_all(connection: &Connection, jobs: &Jobs<ReadJob>) {
    while jobs.wait() {
        if let Some(job) = jobs.take(Lane::Fast) {
            job(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use agl_types::EnqueueRolloutRequest;
    use agl_types::lifecycle::create;

    use super::*;
    use crate::backend::Counts;
    use crate::sqlite::{Sync, schema};

    struct Writer {
        jobs: Jobs<Box<dyn WriteJob>>,
        folder: tempfile::TempDir,
    }

    impl Writer {
        fn new() -> Self {
            Self { jobs: Jobs::default(), folder: tempfile::tempdir().unwrap() }
        }

        /// Hands an operation in that is carried out by [`Writer::run`].
        fn submit<T: Send + 'static>(
            &self,
            lane: Lane,
            operation: impl FnOnce(&mut dyn Tx) -> Result<T, Error> + Send + 'static,
        ) -> oneshot::Receiver<Result<T, Error>> {
            let (reply, answer) = oneshot::channel();
            let operation = |tx: &mut dyn Tx| Ok((operation(tx)?, Aftermath::default()));
            assert!(self.jobs.push(lane, write_job(operation, reply)));
            answer
        }

        fn run(&self) -> Connection {
            self.jobs.close();
            let path = self.folder.path().join("agl.db");
            let desk = Desk::new(schema::open_writer(&path, Sync::Normal).unwrap());
            write_all(&desk, &self.jobs, &Signals::new(Counts::default()), &Log::of(&path).unwrap());
            desk.close().unwrap()
        }
    }

    fn insert(tx: &mut dyn Tx, rollout_id: &str) -> Result<(), Error> {
        tx.insert_rollout(&create(EnqueueRolloutRequest::new(1), rollout_id.to_owned(), None, 1.0))
    }

    /// An operation that fails or panics after it has written leaves nothing, and spares its neighbours.
    #[test]
    fn failures_leave_nothing_behind() {
        let writer = Writer::new();
        let before = writer.submit(Lane::Fast, |tx| insert(tx, "before"));
        let failed = writer.submit(Lane::Fast, |tx| {
            insert(tx, "failed")?;
            Err::<(), _>(Error::invalid("x", "no"))
        });
        let panicked = writer.submit(Lane::Fast, |tx| {
            insert(tx, "panicked")?;
            if tx.counter("x")? == 0 {
                panic!("a defect");
            }
            Ok(())
        });
        let twice = writer.submit(Lane::Fast, |tx| insert(tx, "before"));
        let after = writer.submit(Lane::Fast, |tx| insert(tx, "after"));
        let connection = writer.run();
        assert_eq!(before.blocking_recv().unwrap(), Ok(()));
        assert_eq!(failed.blocking_recv().unwrap(), Err(Error::invalid("x", "no")));
        let error = panicked.blocking_recv().unwrap().unwrap_err();
        assert!(error.to_string().contains("a defect"), "{error}");
        assert_eq!(twice.blocking_recv().unwrap().unwrap_err().kind(), "backend");
        assert_eq!(after.blocking_recv().unwrap(), Ok(()));
        let mut statement = connection.prepare("SELECT rollout_id FROM rollouts ORDER BY seq").unwrap();
        let kept: Vec<String> =
            statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(kept, ["before", "after"]);
    }

    /// Small operations go ahead of bulk ones that came earlier.
    #[test]
    fn small_operations_go_first() {
        let writer = Writer::new();
        let log = Arc::new(Mutex::new(Vec::new()));
        let note = |word: &'static str| {
            let log = Arc::clone(&log);
            move |_: &mut dyn Tx| {
                lock(&log).push(word);
                Ok(())
            }
        };
        let _answers = [
            writer.submit(Lane::Bulk, note("bulk 1")),
            writer.submit(Lane::Bulk, note("bulk 2")),
            writer.submit(Lane::Fast, note("fast 1")),
            writer.submit(Lane::Fast, note("fast 2")),
        ];
        writer.run();
        assert_eq!(*lock(&log), ["fast 1", "fast 2", "bulk 1", "bulk 2"]);
    }

    /// However many small ones keep coming, each group takes a bulk one along.
    #[test]
    fn bulk_operations_are_not_starved() {
        let writer = Writer::new();
        let place = Arc::new(Mutex::new(None));
        let done = Arc::new(Mutex::new(0));
        let count = {
            let done = Arc::clone(&done);
            move || *lock(&done)
        };
        let seen = Arc::clone(&place);
        let _bulk = writer.submit(Lane::Bulk, move |_| {
            *lock(&seen) = Some(count());
            Ok(())
        });
        let _answers: Vec<_> = (0..GROUP_SIZE * 2)
            .map(|_| {
                let done = Arc::clone(&done);
                writer.submit(Lane::Fast, move |_| {
                    *lock(&done) += 1;
                    Ok(())
                })
            })
            .collect();
        writer.run();
        let place = lock(&place).unwrap();
        assert!(place <= GROUP_SIZE, "the bulk operation came after {place} others");
    }

    /// Bulk operations that are held wait, small ones do not; a queue that closes leaves nothing undone.
    #[test]
    fn held_bulk_waits() {
        let jobs = Jobs::default();
        jobs.hold_bulk(true);
        jobs.push(Lane::Bulk, "bulk");
        jobs.push(Lane::Fast, "fast");
        assert!(jobs.wait());
        assert_eq!(jobs.take(Lane::Bulk), None);
        assert_eq!(jobs.take(Lane::Fast), Some("fast"));
        jobs.hold_bulk(false);
        assert!(jobs.wait());
        assert_eq!(jobs.take(Lane::Bulk), Some("bulk"));
        jobs.hold_bulk(true);
        jobs.push(Lane::Bulk, "last");
        jobs.close();
        assert!(jobs.wait());
        assert_eq!(jobs.take(Lane::Bulk), Some("last"));
        assert!(!jobs.wait());
    }

    /// What finds the connection free is done at once; whatever is in the way, the writer is left to it.
    #[test]
    fn operations_are_done_where_they_come_from() {
        let Writer { jobs, folder } = Writer::new();
        let path = folder.path().join("agl.db");
        let log = Log::of(&{
            schema::open_writer(&path, Sync::Normal).unwrap();
            path.clone()
        });
        let (log, signals) = (log.unwrap(), Signals::new(Counts::default()));
        let desk = Desk::new(schema::open_writer(&path, Sync::Normal).unwrap());
        let here = |operation: fn(&mut dyn Tx) -> Result<(), Error>| {
            let (reply, mut answer) = oneshot::channel();
            let job = write_job(move |tx: &mut dyn Tx| Ok((operation(tx)?, Aftermath::default())), reply);
            std::thread::sleep(CROWDED * 2);
            let rest = write_here(&desk, &jobs, &signals, &log, job);
            rest.is_none().then(|| answer.try_recv().unwrap())
        };
        assert_eq!(here(|tx| insert(tx, "a")), Some(Ok(())));
        let failed = |tx: &mut dyn Tx| {
            insert(tx, "failed")?;
            Err(Error::invalid("x", "no"))
        };
        assert_eq!(here(failed), Some(Err(Error::invalid("x", "no"))));
        let panicked = here(|tx| {
            insert(tx, "panicked")?;
            panic!("a defect")
        });
        assert!(panicked.unwrap().unwrap_err().to_string().contains("a defect"));
        assert_eq!(here(|tx| insert(tx, "b")), Some(Ok(())));

        let at_work = desk.0.lock().unwrap();
        assert_eq!(here(|tx| insert(tx, "c")), None);
        drop(at_work);
        let another = schema::open_writer(&path, Sync::Normal).unwrap();
        another.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(here(|tx| insert(tx, "c")), None);
        another.execute_batch("COMMIT").unwrap();
        let (reply, _answer) = oneshot::channel();
        jobs.push(Lane::Bulk, write_job(|_| Ok(((), Aftermath::default())), reply));
        assert_eq!(here(|tx| insert(tx, "c")), None);
        jobs.take(Lane::Bulk);
        assert_eq!(here(|tx| insert(tx, "c")), Some(Ok(())));
        jobs.close();
        assert_eq!(here(|tx| insert(tx, "d")), None);

        let connection = desk.close().unwrap();
        let patience: i64 = connection.query_row("PRAGMA busy_timeout", [], |row| row.get(0)).unwrap();
        assert_eq!(u128::try_from(patience).unwrap(), BUSY.as_millis());
        let mut statement = connection.prepare("SELECT rollout_id FROM rollouts ORDER BY seq").unwrap();
        let kept: Vec<String> =
            statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(kept, ["a", "b", "c"]);
    }

    /// A closed queue takes nothing more.
    #[test]
    fn closed_queues_refuse() {
        let writer = Writer::new();
        writer.run();
        let (reply, _answer) = oneshot::channel();
        assert!(!writer.jobs.push(Lane::Fast, write_job(|_| Ok(((), Aftermath::default())), reply)));
    }
}
