//! The schema, its migrations, and opening a file as what it is.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::gather;
use super::{Sync, upgrade};
use crate::Error;

/// Marks a database as ours: `AGLS` in ASCII.
const APPLICATION_ID: i32 = 0x4147_4C53;

/// How long to wait for a lock that some other program holds for a moment.
pub(super) const BUSY: std::time::Duration = std::time::Duration::from_secs(10);

/// Statements of different shapes that are kept prepared.
const PREPARED: usize = 96;

/// The steps from an empty file to the schema of today. A step that was released is never changed; the number of
/// steps taken is the database's `user_version`.
const MIGRATIONS: &[Migration] = &[
    Migration { sql: include_str!("001.sql"), finish: None },
    Migration { sql: include_str!("002.sql"), finish: Some(upgrade::write_spans_out) },
    Migration { sql: include_str!("003.sql"), finish: None },
    Migration { sql: include_str!("004.sql"), finish: None },
];

type Finish = fn(&Connection) -> Result<(), Error>;

/// One step.
struct Migration {
    sql: &'static str,
    /// What SQL cannot do, in the same transaction.
    finish: Option<Finish>,
}

/// Opens or creates the database for writing.
pub(super) fn open_writer(path: &Path, sync: Sync) -> Result<Connection, Error> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match gather::vfs() {
        Some(vfs) => Connection::open_with_flags_and_vfs(path, flags, vfs),
        None => Connection::open_with_flags(path, flags),
    };
    let connection = connection.map_err(|error| cannot_open(path, &error))?;
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
    // Spans are long and read in bulk: from the page cache directly, without copies in between.
    connection.execute_batch("PRAGMA mmap_size = 1073741824;").map_err(|error| cannot_open(path, &error))?;
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

/// Opens a database of ours as it is, with the schema that it has.
pub(super) fn open_existing(path: &Path, access: OpenFlags) -> Result<Connection, Error> {
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| cannot_open(path, &error))?;
    prepare(&connection).map_err(|error| cannot_open(path, &error))?;
    check_owner(&connection, path)?;
    Ok(connection)
}

/// The newest version of the schema.
pub(super) fn newest() -> usize {
    MIGRATIONS.len()
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    // Or a prepared statement would be planned anew whenever a parameter that the planner may look at has changed.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
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
pub(super) fn user_version(connection: &Connection) -> rusqlite::Result<usize> {
    let version: i32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

fn set_up(connection: &Connection, sync: Sync) -> rusqlite::Result<()> {
    // The answer is the mode in force, which is of no use: a file system without shared memory fails by itself.
    let _: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    // A commit may walk the whole page cache, so the writer's is kept small; the system's own serves it as well. The log
    // is cut down only when it got much longer than it usually gets: to cut it and let it grow anew holds commits up.
    connection.execute_batch(&format!(
        "PRAGMA synchronous = {}; PRAGMA journal_size_limit = 268435456; PRAGMA cache_size = -8192;",
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

    /// A file of the first schema is brought up to date with all that is in it.
    #[test]
    fn a_file_of_the_first_schema_is_brought_up_to_date() {
        use crate::backend::Read as _;
        use crate::query::Selection;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agl.db");
        let old = Connection::open(&path).unwrap();
        old.execute_batch(MIGRATIONS[0].sql).unwrap();
        old.execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;"))
            .unwrap();
        old.execute_batch(
            r#"INSERT INTO counters VALUES ('ro-1', 7);
            INSERT INTO spans (rollout_id, attempt_id, span_id, sequence_id, trace_id, parent_id, name, start_time,
                end_time, body) VALUES ('ro-1', 'at-1', 'b2', 7, 'a1', NULL, 'step', 1700000000.123456, NULL,
                '{"status":{"status_code":"OK","description":null},"attributes":{"k":[1,2]},"events":[],"links":[],
                "context":null,"parent":null,"resource":{"attributes":{},"schema_url":""},"extra":{"x":null}}');"#,
        )
        .unwrap();
        drop(old);
        let writer = open_writer(&path, Sync::Normal).unwrap();
        assert_eq!(user_version(&writer).unwrap(), MIGRATIONS.len());
        let everything = Selection::spans(&agl_types::SpanQuery::default()).unwrap();
        let (spans, total) =
            super::super::session::Session::new(&writer).select_spans("ro-1", None, &everything).unwrap();
        let span = spans[0].parse().unwrap();
        assert_eq!((total, span.sequence_id, span.start_time), (1, 7, Some(1_700_000_000.123_456)));
        assert_eq!(span.attributes["k"], serde_json::json!([1, 2]));
        assert_eq!(span.extra["x"], serde_json::Value::Null);
        let counted: i64 = writer.query_row("SELECT spans FROM counters", [], |row| row.get(0)).unwrap();
        assert_eq!(counted, 1);
    }

    /// What had ended before there was a completion log has its place in it, in the order in which it ended.
    #[test]
    fn what_has_ended_is_in_the_completion_log() {
        let connection = Connection::open_in_memory().unwrap();
        for Migration { sql, .. } in &MIGRATIONS[..2] {
            connection.execute_batch(sql).unwrap();
        }
        connection
            .execute_batch(
                "INSERT INTO rollouts (rollout_id, status, start_time, end_time, config) VALUES \
                 ('late', 'failed', 1, 9, '{}'), ('open', 'running', 1, NULL, '{}'), ('early', 'succeeded', 2, 5, '{}'); \
                 PRAGMA user_version = 2;",
            )
            .unwrap();
        migrate(&connection).unwrap();
        let mut logged = connection
            .prepare("SELECT rollout_id FROM rollouts WHERE completion IS NOT NULL ORDER BY completion")
            .unwrap();
        let ids: Result<Vec<String>, _> = logged.query_map([], |row| row.get(0)).unwrap().collect();
        assert_eq!(ids.unwrap(), ["early", "late"]);
        let last: i64 =
            connection.query_row("SELECT last FROM completion_log", [], |row| row.get(0)).unwrap();
        assert_eq!(last, 2);
    }
}
