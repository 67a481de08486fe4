//! The schema, its migrations, and opening a file as what it is.

use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{Sync, upgrade};
use crate::Error;

/// Marks a database as ours: `AGLS` in ASCII.
const APPLICATION_ID: i32 = 0x4147_4C53;

/// How long to wait for a lock that some other program holds for a moment.
const BUSY: std::time::Duration = std::time::Duration::from_secs(10);

/// Statements of different shapes that are kept prepared.
const PREPARED: usize = 96;

/// The steps from an empty file to the schema of today. A step that was released is never changed; the number of
/// steps taken is the database's `user_version`.
const MIGRATIONS: &[Migration] = &[
    Migration { sql: include_str!("001.sql"), finish: None },
    Migration { sql: include_str!("002.sql"), finish: Some(upgrade::write_spans_out) },
];

/// One step.
struct Migration {
    sql: &'static str,
    /// What SQL cannot do, in the same transaction.
    finish: Option<fn(&Connection) -> Result<(), Error>>,
}

/// Opens or creates the database for writing.
pub(super) fn open_writer(path: &Path, sync: Sync) -> Result<Connection, Error> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| cannot_open(path, &error))?;
    prepare(&connection).map_err(|error| cannot_open(path, &error))?;
    check_owner(&connection, path)?;
    set_up(&connection, sync).map_err(|error| cannot_open(path, &error))?;
    migrate(&connection)?;
    Ok(connection)
}

/// Opens the database for reading, after it has been opened for writing.
pub(super) fn open_reader(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| cannot_open(path, &error))?;
    prepare(&connection).map_err(|error| cannot_open(path, &error))?;
    Ok(connection)
}

/// Opens the database for copying its log home, after it has been opened for writing.
pub(super) fn open_log_keeper(path: &Path, sync: Sync) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| cannot_open(path, &error))?;
    let set_up = || {
        connection.busy_timeout(BUSY)?;
        connection
            .execute_batch(&format!("PRAGMA synchronous = {}; PRAGMA cache_size = -256;", sync.as_sql()))
    };
    set_up().map_err(|error| cannot_open(path, &error))?;
    Ok(connection)
}

impl Sync {
    fn as_sql(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Full => "FULL",
        }
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(PREPARED);
    connection.execute_batch("PRAGMA temp_store = MEMORY; PRAGMA cache_size = -16384;")
}

fn cannot_open(path: &Path, error: &rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => Error::invalid(
            "path",
            format!("{} is not an SQLite database: choose another file", path.display()),
        ),
        _ => Error::backend(format!("cannot open the database {}: {error}", path.display())),
    }
}

fn check_owner(connection: &Connection, path: &Path) -> Result<(), Error> {
    let facts = (|| {
        let application_id: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
        let version = user_version(connection)?;
        let objects: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        Ok((application_id, version, objects))
    })();
    let (application_id, version, objects) = facts.map_err(|error| cannot_open(path, &error))?;
    let is_blank = application_id == 0 && version == 0 && objects == 0;
    if application_id != APPLICATION_ID && !is_blank {
        let message = format!("{} is the database of another program: choose another file", path.display());
        return Err(Error::invalid("path", message));
    }
    if version > MIGRATIONS.len() {
        let message = format!(
            "{} has schema version {version}, but this program knows versions up to {}: use a newer release",
            path.display(),
            MIGRATIONS.len()
        );
        return Err(Error::invalid("path", message));
    }
    Ok(())
}

/// How many migrations the database has been through; far too many for a negative number, which is not ours.
fn user_version(connection: &Connection) -> rusqlite::Result<usize> {
    let version: i32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

fn set_up(connection: &Connection, sync: Sync) -> rusqlite::Result<()> {
    // The answer is the mode in force, which is of no use: a file system without shared memory fails by itself.
    let _: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    connection.execute_batch(&format!(
        "PRAGMA synchronous = {}; PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -65536;",
        sync.as_sql()
    ))?;
    Ok(())
}

/// Takes the steps that the database has not been through.
fn migrate(connection: &Connection) -> Result<(), Error> {
    for (number, Migration { sql, finish }) in (1..).zip(MIGRATIONS).skip(user_version(connection)?) {
        let transaction = connection.unchecked_transaction()?;
        transaction.execute_batch(sql)?;
        if let Some(finish) = finish {
            finish(&transaction)?;
        }
        transaction.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        ))?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The promises about power loss rest on these settings.
    #[test]
    fn durability_is_set() {
        let folder = tempfile::tempdir().unwrap();
        for (sync, synchronous) in [(Sync::Normal, 1), (Sync::Full, 2)] {
            let connection = open_writer(&folder.path().join("agl.db"), sync).unwrap();
            let value: i64 = connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
            assert_eq!(value, synchronous);
            let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
            assert_eq!(mode, "wal");
        }
    }

    /// A reader cannot write, and a writer under way is not in its way.
    #[test]
    fn readers_only_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agl.db");
        let writer = open_writer(&path, Sync::Normal).unwrap();
        let reader = open_reader(&path).unwrap();
        assert!(reader.execute("INSERT INTO queue (rollout_id) VALUES ('x')", []).is_err());
        writer.execute_batch("BEGIN IMMEDIATE; INSERT INTO queue (rollout_id) VALUES ('x');").unwrap();
        let count = |connection: &Connection| -> i64 {
            connection.query_row("SELECT count(*) FROM queue", [], |row| row.get(0)).unwrap()
        };
        assert_eq!((count(&reader), count(&writer)), (0, 1));
        writer.execute_batch("COMMIT").unwrap();
        assert_eq!(count(&reader), 1);
    }
}
