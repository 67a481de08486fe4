//! Looking after the file of an [`SqliteStore`](crate::SqliteStore).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{Sync, check_place, locked, schema};
use crate::Error;

/// How many examples of a problem are named.
const EXAMPLES: usize = 3;

/// What must be true of a database beyond what SQLite itself sees to: what is wrong with those that a query finds.
const INVARIANTS: &[(&str, &str)] = &[
    (
        "rollouts are to be done, but not in the queue",
        "SELECT rollout_id FROM rollouts WHERE status IN ('queuing', 'requeuing') AND is_controlled IS NULL \
         AND rollout_id NOT IN (SELECT rollout_id FROM queue)",
    ),
    (
        "rollouts are in the queue, but not to be done by a runner",
        "SELECT rollout_id FROM queue LEFT JOIN rollouts USING (rollout_id) \
         WHERE status IS NULL OR status NOT IN ('queuing', 'requeuing') OR is_controlled IS NOT NULL",
    ),
    (
        "rollouts have lost their input",
        "SELECT rollout_id FROM rollouts WHERE seq NOT IN (SELECT seq FROM rollout_bodies)",
    ),
    (
        "rollouts have ended without an end time, or have one and go on",
        "SELECT rollout_id FROM rollouts \
         WHERE (status IN ('succeeded', 'failed', 'cancelled')) <> (end_time IS NOT NULL)",
    ),
    (
        "rollouts are under way without an attempt",
        "SELECT rollout_id FROM rollouts WHERE status IN ('preparing', 'running') \
         AND rollout_id NOT IN (SELECT rollout_id FROM attempts)",
    ),
    (
        "rollouts have attempts that are not numbered 1, 2, 3 and so on",
        "SELECT rollout_id FROM attempts GROUP BY rollout_id \
         HAVING min(sequence_id) <> 1 OR max(sequence_id) <> count(*)",
    ),
    (
        "rollouts have attempts, but are not there",
        "SELECT DISTINCT rollout_id FROM attempts WHERE rollout_id NOT IN (SELECT rollout_id FROM rollouts)",
    ),
    (
        "rollouts have a deadline, but are not there",
        "SELECT rollout_id FROM deadlines WHERE rollout_id NOT IN (SELECT rollout_id FROM rollouts)",
    ),
    (
        "rollouts have spans of attempts that are not there",
        "SELECT DISTINCT rollout_id FROM (SELECT rollout_id, attempt_id FROM spans \
         EXCEPT SELECT rollout_id, attempt_id FROM attempts)",
    ),
    (
        "rollouts may issue a sequence id that a span has already",
        "SELECT rollout_id FROM (SELECT rollout_id, max(sequence_id) AS highest FROM spans GROUP BY rollout_id) \
         LEFT JOIN counters USING (rollout_id) WHERE last IS NULL OR last < highest",
    ),
    (
        "resources do not have exactly one newest version, the highest",
        "SELECT resources_id FROM resources GROUP BY resources_id \
         HAVING sum(is_newest) <> 1 OR max(version * is_newest) <> max(version) OR max(version) <> count(*)",
    ),
];

/// The schema versions before and after a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// The one found.
    pub from: usize,
    /// The newest.
    pub to: usize,
}

/// What is wrong with a database, one line each: damage that SQLite finds, and contradictions in what is kept. A store
/// may have it open meanwhile; all is judged as of one moment.
///
/// # Errors
/// [`Error::Invalid`] naming the file when it is not there, is not ours, or has another schema than today's;
/// [`Error::Backend`] when it cannot be read at all.
pub fn check(path: &Path) -> Result<Vec<String>, Error> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let version = schema::user_version(&connection)?;
    if version != schema::newest() {
        let message = format!(
            "{} has schema version {version}, and what has to be true is known of {} only: migrate it first",
            path.display(),
            schema::newest()
        );
        return Err(Error::invalid("path", message));
    }
    connection.execute_batch("BEGIN")?;
    let mut problems = texts(&connection, "PRAGMA integrity_check")?;
    problems.retain(|line| line != "ok");
    if !problems.is_empty() {
        // What a damaged file seems to say about itself is worth nothing.
        return Ok(problems);
    }
    for (problem, sql) in INVARIANTS {
        let found = texts(&connection, sql)?;
        if !found.is_empty() {
            let examples = found.iter().take(EXAMPLES).cloned().collect::<Vec<_>>().join(", ");
            let more = if found.len() > EXAMPLES { ", …" } else { "" };
            problems.push(format!("{} {problem}: {examples}{more}", found.len()));
        }
    }
    Ok(problems)
}

/// Copies a database as it is at one moment to `to`, a file that is not there yet, and returns the copy's size in
/// bytes. A store may have it open, and go on writing, meanwhile. The copy appears when it is whole.
///
/// # Errors
/// [`Error::Invalid`] naming the file that is not there, is not ours, or is in the way; [`Error::Backend`] when it
/// cannot be read or written.
pub fn backup(path: &Path, to: &Path) -> Result<u64, Error> {
    check_place(to)?;
    if to.exists() {
        let message = format!("{} is there already: remove it, or choose another file", to.display());
        return Err(Error::invalid("to", message));
    }
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let partial = beside(to, "-partial");
    let copied = copy(&connection, &partial, to);
    if copied.is_err() {
        // It may not even have been made.
        let _ = fs::remove_file(&partial);
    }
    copied
}

fn copy(connection: &Connection, partial: &Path, to: &Path) -> Result<u64, Error> {
    let failed = |error: std::io::Error| Error::backend(format!("cannot write {}: {error}", to.display()));
    let Some(target) = partial.to_str() else {
        return Err(Error::invalid("to", format!("{} is not text: choose another name", to.display())));
    };
    connection.execute("VACUUM INTO ?1", [target])?;
    let file = File::open(partial).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(partial, to).map_err(failed)?;
    if let Some(folder) = to.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    }
    Ok(file.metadata().map_err(failed)?.len())
}

/// Gives the room of what was removed back to the system, and returns the bytes taken before and after.
///
/// # Errors
/// [`Error::Invalid`] naming the file when it is not there, is not ours, or is open in a store; [`Error::Backend`]
/// when it cannot be written.
pub fn vacuum(path: &Path) -> Result<(u64, u64), Error> {
    check_there(path)?;
    let (_lock, connection) = locked(path, || open(path, OpenFlags::SQLITE_OPEN_READ_WRITE))?;
    let before = size(path);
    connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);")?;
    Ok((before, size(path)))
}

/// Brings a database up to the newest schema.
///
/// # Errors
/// As [`SqliteStore::open`](crate::SqliteStore::open), and [`Error::Invalid`] when the file is not there.
pub fn migrate(path: &Path) -> Result<Migrated, Error> {
    check_there(path)?;
    let (_lock, from) = locked(path, || {
        let from = schema::user_version(&open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?)?;
        schema::open_writer(path, Sync::Full)?;
        Ok(from)
    })?;
    Ok(Migrated { from, to: schema::newest() })
}

/// Opens a database that is there and ours, whatever its schema.
fn open(path: &Path, access: OpenFlags) -> Result<Connection, Error> {
    check_there(path)?;
    schema::open_existing(path, access)
}

fn check_there(path: &Path) -> Result<(), Error> {
    check_place(path)?;
    if path.exists() {
        Ok(())
    } else {
        Err(Error::invalid("path", format!("{} does not exist: name the file of a store", path.display())))
    }
}

/// The first column of every row.
fn texts(connection: &Connection, sql: &str) -> Result<Vec<String>, Error> {
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Bytes of a database and its log.
fn size(path: &Path) -> u64 {
    let files = [path.to_owned(), beside(path, "-wal")];
    files.iter().filter_map(|file| fs::metadata(file).ok()).map(|metadata| metadata.len()).sum()
}

/// A file whose name is longer by `suffix`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
