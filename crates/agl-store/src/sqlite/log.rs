//! Keeps the write-ahead log short without holding up the writer.
//!
//! Copying a long log home into the database takes a while and waits for the disk. So a thread of its own does it,
//! on a connection of its own, while the writer goes on. What the writer adds meanwhile is copied after that, while bulk
//! operations wait, so that there is ever less of it; the few last pages the writer copies itself, between two commits:
//! only when nothing is left to be copied does SQLite begin the log anew. It waits for the disk then, so the thread has
//! all that was copied before written there already. So small operations never wait for long.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::hooks::Wal;

use super::jobs::Jobs;
use crate::Error;
use crate::signals::lock;

/// Pages of 4 KiB after which the log is copied home. Long enough that each page is written home only once for many
/// times that it was changed.
const LONG: i32 = 16_384;

/// How many pages the writer may be left with; it waits for the disk while it copies them.
const FEW: i32 = 64;

/// How long the thread's last round may take. The disk is still busy with earlier ones where it takes longer, and the
/// writer would wait for that.
const QUICK: Duration = Duration::from_millis(5);

/// How many times the thread goes after what was added meanwhile at most.
const ROUNDS: usize = 8;

/// How long bulk operations wait for that at most, but for the last round.
const LONGEST_HOLD: Duration = Duration::from_millis(500);

/// How much rather than the thread others get the processor, as `nice` has it: while a lot is copied, those who write are
/// served first.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// The log of one database.
#[derive(Debug)]
pub(super) struct Log {
    /// The database itself. Closing it takes SQLite's locks on the file away from the whole process, so it is kept for
    /// longer than any connection.
    database: File,
    /// Pages in it, as of the last commit.
    pages: AtomicI32,
    /// Whether most of it has been copied, and the rest is the writer's to do.
    is_mostly_copied: AtomicBool,
    work: Mutex<Work>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    is_long: bool,
    is_closed: bool,
}

impl Log {
    /// That of the database in `path`, which is there already.
    pub(super) fn of(path: &Path) -> Result<Self, Error> {
        // Some systems write to the disk only what is open for writing.
        let database = OpenOptions::new().read(true).write(true).open(path);
        let database = database.map_err(|error| {
            Error::backend(format!("cannot open the database {}: {error}", path.display()))
        })?;
        Ok(Self {
            database,
            pages: AtomicI32::default(),
            is_mostly_copied: AtomicBool::default(),
            work: Mutex::default(),
            news: Condvar::default(),
        })
    }

    /// Follows what the writer's connection adds. SQLite's own way of keeping the log short is off from here on.
    pub(super) fn follow(self: &Arc<Self>, writer: &mut Connection) -> Result<(), Error> {
        let log = Arc::clone(self);
        let hook = move |_: &mut Wal, pages: std::ffi::c_int| {
            log.grew_to(pages);
            Ok(())
        };
        Ok(writer.wal_hook(Some(hook))?)
    }

    fn grew_to(&self, pages: i32) {
        self.pages.store(pages, Ordering::Relaxed);
        if pages >= LONG && !self.is_mostly_copied.load(Ordering::Relaxed) {
            let mut work = lock(&self.work);
            if !work.is_long {
                work.is_long = true;
                self.news.notify_one();
            }
        }
    }

    /// Whether the writer has the rest to do.
    pub(super) fn is_mostly_copied(&self) -> bool {
        self.is_mostly_copied.load(Ordering::Relaxed)
    }

    /// The writer, between two commits: does what is left, if it is time.
    pub(super) fn finish(&self, writer: &Connection) {
        if self.is_mostly_copied.swap(false, Ordering::Relaxed) {
            copy_home(writer);
        }
    }

    /// The thread: copies whenever the log is long, until it is closed.
    pub(super) fn keep_short<J>(&self, connection: &Connection, writes: &Jobs<J>) {
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICENESS) {
            tracing::debug!(%error, "the log is copied home at the same priority as everything else");
        }
        loop {
            let work = lock(&self.work);
            let is_idle = |work: &mut Work| !work.is_long && !work.is_closed;
            let mut work = self.news.wait_while(work, is_idle).unwrap_or_else(PoisonError::into_inner);
            if work.is_closed {
                return;
            }
            drop(work);
            let _ = self.bring_home(connection);
            writes.hold_bulk(true);
            self.catch_up(connection);
            self.is_mostly_copied.store(true, Ordering::Relaxed);
            writes.hold_bulk(false);
            work = lock(&self.work);
            work.is_long = false;
        }
    }

    /// Copies what the writer adds, until that is little and the disk keeps up.
    fn catch_up(&self, connection: &Connection) {
        let began = Instant::now();
        for _ in 0..ROUNDS {
            let started = Instant::now();
            let Some(copied) = self.bring_home(connection) else { return };
            // SQLite counts only what was there when it began, so what came meanwhile is counted here.
            let left = self.pages.load(Ordering::Relaxed) - copied;
            if (left <= FEW && started.elapsed() < QUICK) || began.elapsed() > LONGEST_HOLD {
                return;
            }
        }
    }

    /// Copies and has it written to the disk; returns as [`copy_home`] does.
    fn bring_home(&self, connection: &Connection) -> Option<i32> {
        let copied = copy_home(connection)?;
        // SQLite makes sure of that itself before it does without the log.
        if let Err(error) = self.database.sync_data() {
            tracing::warn!(%error, "the database could not be written to the disk");
        }
        Some(copied)
    }

    /// Ends the thread.
    pub(super) fn close(&self) {
        lock(&self.work).is_closed = true;
        self.news.notify_all();
    }
}

/// Copies as much of the log home as nobody is in the way of, and returns how many of its pages are home now; nobody is
/// made to wait.
fn copy_home(connection: &Connection) -> Option<i32> {
    let copied = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(2));
    // What is in the log is safe there.
    copied
        .inspect_err(|error| tracing::warn!(%error, "the log of the database could not be copied home"))
        .ok()
}
