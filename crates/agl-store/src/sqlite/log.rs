//! Keeps the write-ahead log short without holding up the writer.
//!
//! Copying a long log home into the database takes a while and waits for the disk. So a thread of its own does it,
//! on a connection of its own, while the writer goes on. What the writer adds meanwhile is little, and the writer
//! copies that itself, between two commits: only when nothing is left to be copied does SQLite begin the log anew.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rusqlite::Connection;
use rusqlite::hooks::Wal;

use crate::Error;
use crate::signals::lock;

/// Pages of 4 KiB after which the log is copied home. Long enough that each page is written home only once for many
/// times that it was changed.
const LONG: i32 = 16_384;

/// How many pages the writer may be left with; it waits for the disk while it copies them.
const FEW: i64 = 256;

/// How many times the thread goes after what was added meanwhile.
const ROUNDS: usize = 8;

/// The log of one database.
#[derive(Debug, Default)]
pub(super) struct Log {
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

    /// The writer, between two commits: does what is left, if it is time.
    pub(super) fn finish(&self, writer: &Connection) {
        if self.is_mostly_copied.swap(false, Ordering::Relaxed) {
            copy_home(writer);
        }
    }

    /// The thread: copies whenever the log is long, until it is closed.
    pub(super) fn keep_short(&self, connection: &Connection) {
        loop {
            let work = lock(&self.work);
            let is_idle = |work: &mut Work| !work.is_long && !work.is_closed;
            let mut work = self.news.wait_while(work, is_idle).unwrap_or_else(PoisonError::into_inner);
            if work.is_closed {
                return;
            }
            drop(work);
            // Each round takes less time than the one before, so that less is added meanwhile.
            for _ in 0..ROUNDS {
                if copy_home(connection) <= FEW {
                    break;
                }
            }
            self.is_mostly_copied.store(true, Ordering::Relaxed);
            work = lock(&self.work);
            work.is_long = false;
        }
    }

    /// Ends the thread.
    pub(super) fn close(&self) {
        lock(&self.work).is_closed = true;
        self.news.notify_all();
    }
}

/// Copies as much of the log home as nobody is in the way of, and returns how many pages are left; nobody is made to
/// wait.
fn copy_home(connection: &Connection) -> i64 {
    let copied = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        let (pages, copied): (i64, i64) = (row.get(1)?, row.get(2)?);
        Ok(pages - copied)
    });
    copied.unwrap_or_else(|error| {
        // What is in the log is safe there.
        tracing::warn!(%error, "the log of the database could not be copied home");
        0
    })
}
