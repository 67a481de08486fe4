//! The SQLite backend: one file, WAL, one writer thread with group commit, readers on connections of their own.

mod gather;
mod jobs;
mod log;
pub mod maintenance;
mod schema;
mod session;
mod upgrade;

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::backend::{Aftermath, Backend, Deadline, Lane, Read, Tx};
use crate::engine::LocalStore;
use crate::signals::{Signals, lock};
use crate::{Clock, Error, IdSource, RandomIds, SystemClock};
use jobs::{Desk, Jobs, WriteJob};
use log::Log;
use session::Session;

/// A store in an SQLite file.
///
/// The file belongs to one store at a time: a second [`SqliteStore::open`], from this process or another, is
/// refused by an advisory lock on `FILE-lock`. The operating system drops the lock with the process that held it,
/// however that ends. Programs that only read the database (`sqlite3 FILE`) are not in the way.
///
/// ```no_run
/// # async fn example() -> Result<(), agl_store::Error> {
/// use agl_store::{SqliteOptions, SqliteStore, Store, Sync};
///
/// let store = SqliteStore::open("agl.db", SqliteOptions { sync: Sync::Full, ..Default::default() })?;
/// let rollout = store.enqueue_rollout(agl_types::EnqueueRolloutRequest::new("a task")).await?;
/// store.close();
/// # Ok(()) }
/// ```
pub type SqliteStore = LocalStore<Sqlite>;

/// What an acknowledged write survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sync {
    /// The end of the process, SIGKILL included. A power loss may take the last moments with it, never more.
    #[default]
    Normal,
    /// Power loss too: every commit waits for the disk.
    Full,
}

/// How to open a [`SqliteStore`].
///
/// ```
/// use agl_store::{SqliteOptions, Sync};
///
/// let options = SqliteOptions { sync: Sync::Full, readers: 2, ..SqliteOptions::default() };
/// ```
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// What an acknowledged write survives.
    pub sync: Sync,
    /// How many threads answer queries; at least 1.
    pub readers: usize,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where ids get their randomness from.
    pub ids: Arc<dyn IdSource>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { sync: Sync::Normal, readers: 4, clock: Arc::new(SystemClock), ids: Arc::new(RandomIds) }
    }
}

impl SqliteStore {
    /// Opens the database in `path`, which is made if there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the file when it is not a database, is another program's, has a newer schema, or
    /// is open in another store; [`Error::Backend`] when the system refuses.
    pub fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, Error> {
        let SqliteOptions { sync, readers, clock, ids } = options;
        Ok(Self::over(Sqlite::open(path.as_ref(), sync, readers.max(1))?, clock, ids))
    }

    /// Finishes what was begun, closes the file and lets go of its lock; later calls fail. Dropping the store does
    /// the same. Blocks for the time that the operations under way take.
    pub fn close(&self) {
        self.backend().close();
    }
}

/// The SQLite backend; see [`SqliteStore`].
#[derive(Debug)]
pub struct Sqlite {
    writes: Arc<Jobs<Box<dyn WriteJob>>>,
    desk: Arc<Desk>,
    /// Whether a commit waits for the disk, which no thread but the writer should.
    is_slow: bool,
    reads: Arc<Jobs<jobs::ReadJob>>,
    log: Arc<Log>,
    signals: Arc<Signals>,
    threads: Mutex<Option<Threads>>,
    /// The process that the threads live in; a fork has none of them.
    process: u32,
}

/// What keeps the file open.
#[derive(Debug)]
struct Threads {
    readers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
    log_keeper: Option<JoinHandle<()>>,
    lock: File,
}

impl Sqlite {
    fn open(path: &Path, sync: Sync, readers: usize) -> Result<Self, Error> {
        check_place(path)?;
        let (lock, mut writer) = locked(path, || schema::open_writer(path, sync))?;
        let session = Session::new(&writer);
        let signals = Signals::new(session.counts()?);
        let earliest = session.earliest_deadline()?;
        if let Some(moment) = earliest {
            signals.publish(&Aftermath { deadline: Deadline::Exactly(moment), ..Aftermath::default() });
        }
        let writes = Arc::new(Jobs::default());
        let reads = Arc::new(Jobs::default());
        let log = Arc::new(Log::of(path)?);
        log.follow(&mut writer)?;
        let desk = Arc::new(Desk::new(writer));
        let mut threads =
            Threads { readers: Vec::with_capacity(readers), writer: None, log_keeper: None, lock };
        let mut start = || {
            for _ in 0..readers {
                let connection = schema::open_reader(path)?;
                let jobs = Arc::clone(&reads);
                threads.readers.push(spawn("agl-sqlite-read", move || jobs::read_all(&connection, &jobs))?);
            }
            let (connection, its_log) = (schema::open_log_keeper(path, sync)?, Arc::clone(&log));
            let jobs = Arc::clone(&writes);
            threads.log_keeper =
                Some(spawn("agl-sqlite-log", move || its_log.keep_short(&connection, &jobs))?);
            let (jobs, signals, its_log) = (Arc::clone(&writes), Arc::clone(&signals), Arc::clone(&log));
            let its_desk = Arc::clone(&desk);
            let write = move || jobs::write_all(&its_desk, &jobs, &signals, &its_log);
            threads.writer = Some(spawn("agl-sqlite-write", write)?);
            Ok(())
        };
        let started = start();
        let threads = Mutex::new(Some(threads));
        let is_slow = sync == Sync::Full;
        let backend =
            Self { writes, desk, is_slow, reads, log, signals, threads, process: std::process::id() };
        if let Err(error) = started {
            backend.close();
            return Err(error);
        }
        Ok(backend)
    }

    fn closed(&self) -> Error {
        if std::process::id() == self.process {
            Error::backend("the store is closed")
        } else {
            Error::backend(
                "the store was opened before this process was forked off and works in the parent only: \
                 serve it there and use a client here",
            )
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| Error::backend(format!("cannot start a thread for the database: {error}")))
}

/// Refuses a path that cannot be a database's, before anything is made there.
fn check_place(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        let message = format!("cannot open {}: it is a directory: name a file in it", path.display());
        return Err(Error::invalid("path", message));
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.exists() => {
            let message = format!(
                "cannot open {}: the folder {} does not exist: make it, or choose another",
                path.display(),
                folder.display()
            );
            Err(Error::invalid("path", message))
        }
        _ => Ok(()),
    }
}

/// Opens a database under its lock, which is held for as long as its file is kept.
fn locked<T>(path: &Path, open: impl FnOnce() -> Result<T, Error>) -> Result<(File, T), Error> {
    let (lock, new_lock_file) = take_lock(path)?;
    let opened = open().inspect_err(|error| {
        // Nothing of ours stays beside a file that is not ours. Whoever might wait for this very lock is
        // refused that file too.
        if let (Error::Invalid { .. }, Some(new_lock_file)) = (error, &new_lock_file)
            && let Err(error) = std::fs::remove_file(new_lock_file)
        {
            tracing::warn!(%error, "{} is left behind", new_lock_file.display());
        }
    })?;
    Ok((lock, opened))
}

/// The lock, and the path of its file if that was made for it.
fn take_lock(path: &Path) -> Result<(File, Option<PathBuf>), Error> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push("-lock");
    let lock_path = PathBuf::from(lock_path);
    // The file of a store is never removed: whoever did could take away a lock that somebody else just took.
    let is_new = !lock_path.exists();
    let file = OpenOptions::new().create(true).append(true).open(&lock_path).map_err(|error| {
        Error::backend(format!(
            "cannot open {}: cannot write {}: {error}",
            path.display(),
            lock_path.display()
        ))
    })?;
    match file.try_lock() {
        Ok(()) => Ok((file, is_new.then_some(lock_path))),
        Err(TryLockError::WouldBlock) => Err(Error::invalid(
            "path",
            format!(
                "{} is open in another store: close that one, or connect to it as a client",
                path.display()
            ),
        )),
        Err(TryLockError::Error(error)) => {
            Err(Error::backend(format!("cannot lock {}: {error}", lock_path.display())))
        }
    }
}

impl Backend for Sqlite {
    const NAME: &'static str = "SqliteLightningStore";
    const READS_APART: bool = true;

    async fn write<T, F>(&self, lane: Lane, operation: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Tx) -> Result<(T, Aftermath), Error> + Send + 'static,
    {
        if std::process::id() != self.process {
            return Err(self.closed());
        }
        let (reply, answer) = oneshot::channel();
        let job = jobs::write_job(operation, reply);
        let job = if lane == Lane::Bulk || self.is_slow {
            Some(job)
        } else {
            jobs::write_here(&self.desk, &self.writes, &self.signals, &self.log, job)
        };
        if let Some(job) = job
            && !self.writes.push(lane, job)
        {
            return Err(self.closed());
        }
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    async fn read<T, F>(&self, operation: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Read) -> Result<T, Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        if std::process::id() != self.process
            || !self.reads.push(Lane::Fast, jobs::read_job(operation, reply))
        {
            return Err(self.closed());
        }
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    fn close(&self) {
        if std::process::id() != self.process {
            return;
        }
        let Some(Threads { readers, writer, log_keeper, lock: file_lock }) = lock(&self.threads).take()
        else {
            return;
        };
        let join = |thread: JoinHandle<()>| {
            if thread.join().is_err() {
                tracing::error!("a thread of the database panicked");
            }
        };
        // The writer is the last to let go of the file, because only it can bring the log home into the database.
        self.reads.close();
        readers.into_iter().for_each(join);
        self.log.close();
        log_keeper.into_iter().for_each(join);
        self.writes.close();
        writer.into_iter().for_each(join);
        drop(self.desk.close());
        // There are no deadlines in a store that is closed.
        self.signals
            .publish(&Aftermath { deadline: Deadline::Exactly(f64::INFINITY), ..Aftermath::default() });
        if let Err(error) = file_lock.unlock() {
            tracing::error!(%error, "the lock of the database could not be let go of");
        }
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.close();
        if std::process::id() != self.process {
            // The threads are the parent's, and so is the lock, which must not be waited for or touched here.
            std::mem::forget(lock(&self.threads).take());
        }
    }
}
