//! The primitives in SQL.

use agl_types::v1::{Control, Model, ModelKey, RolloutConfig};
use agl_types::{
    Attempt, AttemptStatus, FilterLogic, ResourcesUpdate, Rollout, RolloutMode, RolloutStatus, RolloutView,
    SortOrder, Span, UNLIMITED, Worker, WorkerStatus, WrittenSpan,
};
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Params, Row, params, params_from_iter};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backend::{Counts, Found, Having, Part, Read, Receipt, Tx};
use crate::lean::{Reader, blank};
use crate::metrics;
use crate::query::{Selection, Test};
use crate::raw::RawSpan;
use crate::{Error, Lean};

const ROLLOUT: &str = "SELECT rollout_id, input, start_time, end_time, mode, resources_id, status, config, \
     metadata FROM rollouts JOIN rollout_bodies USING (seq)";
const ATTEMPT: &str = "SELECT rollout_id, attempt_id, sequence_id, start_time, end_time, status, worker_id, \
     last_heartbeat_time, metadata FROM attempts";
const SPAN: &str = "SELECT rollout_id, attempt_id, sequence_id, is_plain, body FROM spans";
const SPANS_OF_ATTEMPT: &str = "SELECT rollout_id, attempt_id, sequence_id, is_plain, body FROM spans \
     WHERE rollout_id = ? AND attempt_id = ? ORDER BY sequence_id, seq";
const RESOURCES: &str = "SELECT resources_id, create_time, update_time, version, resources FROM resources";
const WORKER: &str = "SELECT worker_id, status, heartbeat_stats, last_heartbeat_time, last_dequeue_time, \
     last_busy_time, last_idle_time, current_rollout_id, current_attempt_id FROM workers";

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        let why = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => "the disk is full: make room, and the store goes on",
            Some(ErrorCode::ReadOnly) => "its file is read-only: make it writable, and the store goes on",
            Some(ErrorCode::SystemIoFailure) => {
                "the disk refuses, or has turned read-only: see to it, and the store goes on"
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                "another program holds its file: end that one, and the store goes on"
            }
            _ => return Self::backend(format!("the database failed: {error}")),
        };
        Self::Unwritable { message: format!("the database takes no changes, {why} ({error})") }
    }
}

/// A connection inside a transaction.
pub(super) struct Session<'c> {
    connection: &'c Connection,
}

impl<'c> Session<'c> {
    pub(super) fn new(connection: &'c Connection) -> Self {
        Self { connection }
    }

    fn one<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        rows.next()?.map(read).transpose()
    }

    fn value<T: rusqlite::types::FromSql>(&self, sql: &str, params: impl Params) -> Result<Option<T>, Error> {
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.query_row(params, |row| row.get(0)).optional()?)
    }

    fn count(&self, rows: &str) -> Result<i64, Error> {
        Ok(self.value(&format!("SELECT count(*) FROM {rows}"), [])?.unwrap_or_default())
    }

    fn change(&self, sql: &str, params: impl Params) -> Result<usize, Error> {
        Ok(self.connection.prepare_cached(sql)?.execute(params)?)
    }

    /// Runs a selection.
    fn select<T>(
        &self,
        source: &Source<'_>,
        selection: &Selection,
        read: impl Fn(&Row<'_>) -> Result<T, Error>,
    ) -> Result<Found<T>, Error> {
        let Query { sql, count_sql, params } = compile(source, selection)?;
        let mut statement = self.connection.prepare_cached(&sql)?;
        let paging = [Sql::Integer(selection.limit), Sql::Integer(selection.offset)];
        let mut rows = statement.query(params_from_iter(params.iter().chain(&paging)))?;
        let mut items = Vec::new();
        while let Some(row) = rows.next()? {
            items.push(read(row)?);
        }
        let total = if selection.limit == UNLIMITED && selection.offset == 0 {
            i64::try_from(items.len()).unwrap_or(i64::MAX)
        } else if let Some(rollout_id) = source.counted.filter(|_| selection.conditions.is_empty()) {
            self.value("SELECT spans FROM counters WHERE rollout_id = ?", [rollout_id])?.unwrap_or_default()
        } else {
            self.value(&count_sql, params_from_iter(&params))?.unwrap_or_default()
        };
        Ok((items, total))
    }
}

/// What a selection chooses from.
struct Source<'a> {
    /// `SELECT ... FROM ...`.
    select: &'a str,
    /// The table that is counted, filtered and sorted.
    table: &'a str,
    /// What always applies, with its parameter.
    base: Vec<(&'a str, Option<Sql>)>,
    /// The column of the insertion order.
    tie: &'a str,
    /// The rollout whose spans this is all of: their number is kept.
    counted: Option<&'a str>,
}

impl<'a> Source<'a> {
    fn rollouts() -> Self {
        Self { select: ROLLOUT, table: "rollouts", base: Vec::new(), tie: "seq", counted: None }
    }

    fn attempts(rollout_id: &str) -> Self {
        let base = vec![("rollout_id = ?", Some(Sql::Text(rollout_id.to_owned())))];
        Self { select: ATTEMPT, table: "attempts", base, tie: "seq", counted: None }
    }

    fn spans(rollout_id: &'a str, attempt_id: Option<&str>) -> Self {
        let mut base = vec![("rollout_id = ?", Some(Sql::Text(rollout_id.to_owned())))];
        base.extend(attempt_id.map(|attempt_id| ("attempt_id = ?", Some(Sql::Text(attempt_id.to_owned())))));
        let counted = attempt_id.is_none().then_some(rollout_id);
        Self { select: SPAN, table: "spans", base, tie: "seq", counted }
    }

    fn newest_resources() -> Self {
        // Written out, because a parameter would hide from SQLite that the partial index serves.
        let base = vec![("is_newest = 1", None)];
        Self { select: RESOURCES, table: "resources", base, tie: "first_seq", counted: None }
    }

    fn resources() -> Self {
        Self { select: RESOURCES, table: "resources", base: Vec::new(), tie: "seq", counted: None }
    }

    fn workers() -> Self {
        Self { select: WORKER, table: "workers", base: Vec::new(), tie: "seq", counted: None }
    }
}

fn latest_attempt() -> String {
    format!("{ATTEMPT} WHERE rollout_id = ? ORDER BY sequence_id DESC LIMIT 1")
}

struct Query {
    sql: String,
    count_sql: String,
    params: Vec<Sql>,
}

/// Writes a selection as SQL whose last two parameters are limit and offset.
fn compile(source: &Source<'_>, selection: &Selection) -> Result<Query, Error> {
    let mut params = Vec::new();
    let mut required = Vec::new();
    for (condition, value) in &source.base {
        required.push((*condition).to_owned());
        params.extend(value.clone());
    }
    let mut pool = Vec::new();
    for condition in &selection.conditions {
        let column = condition.column;
        let (sql, value) = match &condition.test {
            Test::Is(text) => (format!("{column} = ?"), text.clone()),
            // An equality leaves the rest of an index in order.
            Test::In(list) if let [one] = list.as_slice() => (format!("{column} = ?"), one.clone()),
            Test::In(list) => (format!("{column} IN (SELECT value FROM json_each(?))"), to_json(list)?),
            Test::Contains(part) => (format!("instr({column}, ?) > 0"), part.clone()),
        };
        pool.push(sql);
        params.push(Sql::Text(value));
    }
    match selection.logic {
        FilterLogic::Or if !pool.is_empty() => required.push(format!("({})", pool.join(" OR "))),
        FilterLogic::Or | FilterLogic::And => required.extend(pool),
    }
    let Source { select, table, base: _, tie, counted: _ } = source;
    let filter =
        if required.is_empty() { String::new() } else { format!(" WHERE {}", required.join(" AND ")) };
    let sort = selection.sort.map_or_else(String::new, |sort| {
        let column = sort.column;
        // SQLite takes null for the smallest value, unless told otherwise.
        match (sort.order, sort.nulls_are_high) {
            (SortOrder::Asc, false) => format!("{column} ASC, "),
            (SortOrder::Desc, false) => format!("{column} DESC, "),
            (SortOrder::Asc, true) => format!("{column} ASC NULLS LAST, "),
            (SortOrder::Desc, true) => format!("{column} DESC NULLS FIRST, "),
        }
    });
    let order = format!("{sort}{table}.{tie}");
    let page = format!("{filter} ORDER BY {order} LIMIT ? OFFSET ?");
    // A page is chosen by what is small and stands in indexes; only its own rows are then read whole.
    let sql = if selection.limit == UNLIMITED {
        format!("{select}{page}")
    } else {
        format!("{select} WHERE {table}.seq IN (SELECT seq FROM {table}{page}) ORDER BY {order}")
    };
    Ok(Query { sql, count_sql: format!("SELECT count(*) FROM {table}{filter}"), params })
}

/// A number of things as SQL has it.
fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value)
        .map_err(|error| Error::backend(format!("cannot be written as JSON: {error}")))
}

fn optional_json<T: Serialize>(value: Option<&T>) -> Result<Option<String>, Error> {
    value.map(to_json).transpose()
}

fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T, Error> {
    parse_json(row.get_ref(column)?.as_str().map_err(|error| damaged(&error))?)
}

fn from_optional_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<Option<T>, Error> {
    row.get_ref(column)?.as_str_or_null().map_err(|error| damaged(&error))?.map(parse_json).transpose()
}

pub(super) fn parse_json<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| damaged(&error))
}

fn from_word<T>(row: &Row<'_>, column: usize, parse: fn(&str) -> Option<T>) -> Result<T, Error> {
    let word = row.get_ref(column)?.as_str().map_err(|error| damaged(&error))?;
    parse(word).ok_or_else(|| damaged(&format!("unknown word {word}")))
}

fn damaged(error: &dyn std::fmt::Display) -> Error {
    Error::backend(format!("the database holds something that this program cannot read: {error}"))
}

fn read_rollout(row: &Row<'_>) -> Result<Rollout, Error> {
    let mode = row.get_ref(4)?.as_str_or_null().map_err(|error| damaged(&error))?;
    Ok(Rollout {
        rollout_id: row.get(0)?,
        input: from_json(row, 1)?,
        start_time: row.get(2)?,
        end_time: row.get(3)?,
        mode: mode.and_then(RolloutMode::parse),
        resources_id: row.get(5)?,
        status: from_word(row, 6, RolloutStatus::parse)?,
        config: from_json(row, 7)?,
        metadata: from_optional_json(row, 8)?,
    })
}

fn read_attempt(row: &Row<'_>) -> Result<Attempt, Error> {
    Ok(Attempt {
        rollout_id: row.get(0)?,
        attempt_id: row.get(1)?,
        sequence_id: row.get(2)?,
        start_time: row.get(3)?,
        end_time: row.get(4)?,
        status: from_word(row, 5, AttemptStatus::parse)?,
        worker_id: row.get(6)?,
        last_heartbeat_time: row.get(7)?,
        metadata: from_optional_json(row, 8)?,
    })
}

fn read_span(row: &Row<'_>) -> Result<RawSpan, Error> {
    Ok(RawSpan {
        rollout_id: row.get(0)?,
        attempt_id: row.get(1)?,
        sequence_id: row.get(2)?,
        is_plain: row.get(3)?,
        rest: row.get(4)?,
    })
}

fn read_resources(row: &Row<'_>) -> Result<ResourcesUpdate, Error> {
    Ok(ResourcesUpdate {
        resources_id: row.get(0)?,
        create_time: row.get(1)?,
        update_time: row.get(2)?,
        version: row.get(3)?,
        resources: from_json(row, 4)?,
    })
}

fn read_worker(row: &Row<'_>) -> Result<Worker, Error> {
    Ok(Worker {
        worker_id: row.get(0)?,
        status: from_word(row, 1, WorkerStatus::parse)?,
        heartbeat_stats: from_optional_json(row, 2)?,
        last_heartbeat_time: row.get(3)?,
        last_dequeue_time: row.get(4)?,
        last_busy_time: row.get(5)?,
        last_idle_time: row.get(6)?,
        current_rollout_id: row.get(7)?,
        current_attempt_id: row.get(8)?,
    })
}

impl Read for Session<'_> {
    fn rollout(&self, rollout_id: &str, part: Part) -> Result<Option<Rollout>, Error> {
        match part {
            Part::Whole => self.one(&format!("{ROLLOUT} WHERE rollout_id = ?"), [rollout_id], read_rollout),
            Part::Brief => self.one(
                "SELECT rollout_id, 'null', start_time, end_time, mode, resources_id, status, config, NULL \
                 FROM rollouts WHERE rollout_id = ?",
                [rollout_id],
                read_rollout,
            ),
        }
    }

    fn attempt(&self, rollout_id: &str, attempt_id: &str) -> Result<Option<Attempt>, Error> {
        let sql = format!("{ATTEMPT} WHERE rollout_id = ? AND attempt_id = ?");
        self.one(&sql, [rollout_id, attempt_id], read_attempt)
    }

    fn latest_attempt(&self, rollout_id: &str) -> Result<Option<Attempt>, Error> {
        self.one(&latest_attempt(), [rollout_id], read_attempt)
    }

    fn queue_head(&self) -> Result<Option<String>, Error> {
        self.value("SELECT rollout_id FROM queue ORDER BY place LIMIT 1", [])
    }

    fn is_paused(&self) -> Result<bool, Error> {
        Ok(self.value("SELECT is_paused FROM queue_state", [])?.unwrap_or_default())
    }

    fn counter(&self, rollout_id: &str) -> Result<i64, Error> {
        Ok(self.value("SELECT last FROM counters WHERE rollout_id = ?", [rollout_id])?.unwrap_or_default())
    }

    fn resources(&self, resources_id: &str, version: Option<u32>) -> Result<Option<ResourcesUpdate>, Error> {
        match version {
            Some(version) => {
                let sql = format!("{RESOURCES} WHERE resources_id = ? AND version = ?");
                self.one(&sql, params![resources_id, version], read_resources)
            }
            None => {
                let sql = format!("{RESOURCES} WHERE resources_id = ? ORDER BY version DESC LIMIT 1");
                self.one(&sql, [resources_id], read_resources)
            }
        }
    }

    fn latest_resources_id(&self) -> Result<Option<String>, Error> {
        self.value("SELECT resources_id FROM resources ORDER BY seq DESC LIMIT 1", [])
    }

    fn worker(&self, worker_id: &str) -> Result<Option<Worker>, Error> {
        self.one(&format!("{WORKER} WHERE worker_id = ?"), [worker_id], read_worker)
    }

    fn earliest_deadline(&self) -> Result<Option<f64>, Error> {
        self.value("SELECT moment FROM deadlines ORDER BY moment LIMIT 1", [])
    }

    fn overdue(&self, now: f64, limit: usize) -> Result<Vec<String>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT rollout_id FROM deadlines WHERE moment < ? ORDER BY moment, rollout_id LIMIT ?",
        )?;
        let rows = statement.query_map(params![now, whole(limit)], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn counts(&self) -> Result<Counts, Error> {
        Ok(Counts {
            rollouts: self.count("rollouts")?,
            attempts: self.count("attempts")?,
            spans: self.count("spans")?,
            resources: self.count("resources WHERE is_newest = 1")?,
            workers: self.count("workers")?,
            queued: self.count("queue")?,
        })
    }

    fn receipt(&self, key: &str) -> Result<Option<Receipt>, Error> {
        self.one("SELECT fingerprint, made, answer FROM receipts WHERE key = ?", [key], |row| {
            Ok(Receipt { fingerprint: row.get(0)?, made: row.get(1)?, answer: row.get(2)? })
        })
    }

    fn purgeable(&self, ended_before: f64, limit: usize) -> Result<Vec<String>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT rollout_id FROM rollouts \
             WHERE end_time IS NOT NULL AND (purged_at IS NULL OR purged_at < end_time) AND end_time < ? \
             ORDER BY end_time LIMIT ?",
        )?;
        let rows = statement.query_map(params![ended_before, whole(limit)], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn bytes(&self) -> Result<Option<u64>, Error> {
        let pragma = |name: &str| -> Result<u64, Error> {
            let number: i64 = self.connection.pragma_query_value(None, name, |row| row.get(0))?;
            Ok(u64::try_from(number).unwrap_or_default())
        };
        let used = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
        Ok(Some(used.saturating_mul(pragma("page_size")?)))
    }

    fn is_purged(&self, rollout_id: &str) -> Result<bool, Error> {
        let purged_at: Option<Option<f64>> =
            self.value("SELECT purged_at FROM rollouts WHERE rollout_id = ?", [rollout_id])?;
        Ok(purged_at.flatten().is_some())
    }

    fn select_rollouts(&self, selection: &Selection) -> Result<Found<RolloutView>, Error> {
        self.select(&Source::rollouts(), selection, |row| {
            let rollout = read_rollout(row)?;
            let attempt = self.latest_attempt(&rollout.rollout_id)?;
            Ok(RolloutView { rollout, attempt })
        })
    }

    fn select_attempts(&self, rollout_id: &str, selection: &Selection) -> Result<Found<Attempt>, Error> {
        self.select(&Source::attempts(rollout_id), selection, read_attempt)
    }

    fn select_spans(
        &self,
        rollout_id: &str,
        attempt_id: Option<&str>,
        selection: &Selection,
    ) -> Result<Found<RawSpan>, Error> {
        self.select(&Source::spans(rollout_id, attempt_id), selection, read_span)
    }

    fn lean_spans(&self, rollout_id: &str, attempt_id: &str, purpose: Lean) -> Result<Vec<Span>, Error> {
        let mut statement = self.connection.prepare_cached(SPANS_OF_ATTEMPT)?;
        let mut rows = statement.query([rollout_id, attempt_id])?;
        let mut reader = Reader::default();
        let mut spans = Vec::with_capacity(16);
        while let Some(row) = rows.next()? {
            let rest = row.get_ref(4)?.as_str().map_err(|error| damaged(&error))?;
            // A span is large: it is read where it stays.
            spans.push(blank(row.get(2)?));
            let Some(span) = spans.last_mut() else { continue };
            match reader.read(rest, purpose, span) {
                Some(()) => {
                    rollout_id.clone_into(&mut span.rollout_id);
                    attempt_id.clone_into(&mut span.attempt_id);
                }
                None => *span = read_span(row)?.parse()?,
            }
        }
        Ok(spans)
    }

    fn select_resources(
        &self,
        all_versions: bool,
        selection: &Selection,
    ) -> Result<Found<ResourcesUpdate>, Error> {
        let source = if all_versions { Source::resources() } else { Source::newest_resources() };
        self.select(&source, selection, read_resources)
    }

    fn select_workers(&self, selection: &Selection) -> Result<Found<Worker>, Error> {
        self.select(&Source::workers(), selection, read_worker)
    }

    fn control(&self, rollout_id: &str) -> Result<Option<Control>, Error> {
        let sql = "SELECT k8s_job_name, last_attempt_id, error_message, version, updated_at \
                   FROM controls JOIN rollouts USING (seq) WHERE rollout_id = ?";
        self.one(sql, [rollout_id], |row| {
            Ok(Control {
                k8s_job_name: row.get(0)?,
                last_attempt_id: row.get(1)?,
                error_message: row.get(2)?,
                version: row.get(3)?,
                updated_at: row.get(4)?,
            })
        })
    }

    fn run_config(&self, rollout_id: &str) -> Result<Option<RolloutConfig>, Error> {
        let sql = "SELECT run_configs.config FROM run_configs JOIN rollouts USING (seq) WHERE rollout_id = ?";
        self.one(sql, [rollout_id], |row| from_json(row, 0))
    }

    fn having(&self, statuses: &[Having], limit: usize) -> Result<Vec<String>, Error> {
        if statuses.is_empty() {
            return Ok(Vec::new());
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut statement = self.connection.prepare_cached(&having_sql(statuses))?;
        let rows = statement.query_map([limit], |row| row.get(1))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn completions(&self, after: i64, limit: usize) -> Result<Vec<(i64, String)>, Error> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut statement = self.connection.prepare_cached(COMPLETIONS)?;
        let rows = statement.query_map(params![after, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn last_completion(&self) -> Result<i64, Error> {
        Ok(self.value("SELECT last FROM completion_log", [])?.unwrap_or_default())
    }

    fn models(&self) -> Result<Vec<Model>, Error> {
        let mut statement =
            self.connection.prepare_cached("SELECT model, endpoint, version FROM models ORDER BY seq")?;
        let rows = statement.query_map([], |row| {
            Ok(Model { model: row.get(0)?, endpoint: row.get(1)?, version: row.get(2)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Tx for Session<'_> {
    fn insert_rollout(&mut self, rollout: &Rollout) -> Result<(), Error> {
        self.change(
            "INSERT INTO rollouts (rollout_id, status, start_time, end_time, mode, resources_id, config) \
             VALUES (?, ?, ?, ?, ?, ?, ?)",
            params![
                rollout.rollout_id,
                rollout.status.as_str(),
                rollout.start_time,
                rollout.end_time,
                rollout.mode.map(RolloutMode::as_str),
                rollout.resources_id,
                to_json(&rollout.config)?,
            ],
        )?;
        self.change(
            "INSERT INTO rollout_bodies (seq, input, metadata) VALUES (?, ?, ?)",
            params![
                self.connection.last_insert_rowid(),
                to_json(&rollout.input)?,
                optional_json(rollout.metadata.as_ref())?,
            ],
        )?;
        Ok(())
    }

    fn put_rollout(&mut self, rollout: &Rollout) -> Result<(), Error> {
        self.change(
            "UPDATE rollouts SET status = ?, start_time = ?, end_time = ?, mode = ?, resources_id = ?, config = ? \
             WHERE rollout_id = ?",
            params![
                rollout.status.as_str(),
                rollout.start_time,
                rollout.end_time,
                rollout.mode.map(RolloutMode::as_str),
                rollout.resources_id,
                to_json(&rollout.config)?,
                rollout.rollout_id,
            ],
        )?;
        self.change(
            "UPDATE rollout_bodies SET input = ?, metadata = ? \
             WHERE seq = (SELECT seq FROM rollouts WHERE rollout_id = ?)",
            params![to_json(&rollout.input)?, optional_json(rollout.metadata.as_ref())?, rollout.rollout_id],
        )?;
        Ok(())
    }

    fn put_rollout_status(&mut self, rollout: &Rollout) -> Result<(), Error> {
        self.change(
            "UPDATE rollouts SET status = ?, end_time = ? WHERE rollout_id = ?",
            params![rollout.status.as_str(), rollout.end_time, rollout.rollout_id],
        )?;
        Ok(())
    }

    fn insert_attempt(&mut self, attempt: &Attempt) -> Result<(), Error> {
        self.change(
            "INSERT INTO attempts (rollout_id, attempt_id, sequence_id, start_time, end_time, status, worker_id, \
             last_heartbeat_time, metadata) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                attempt.rollout_id,
                attempt.attempt_id,
                attempt.sequence_id,
                attempt.start_time,
                attempt.end_time,
                attempt.status.as_str(),
                attempt.worker_id,
                attempt.last_heartbeat_time,
                optional_json(attempt.metadata.as_ref())?,
            ],
        )?;
        Ok(())
    }

    fn put_attempt(&mut self, attempt: &Attempt) -> Result<(), Error> {
        self.change(
            "UPDATE attempts SET end_time = ?, status = ?, worker_id = ?, last_heartbeat_time = ?, metadata = ? \
             WHERE rollout_id = ? AND sequence_id = ?",
            params![
                attempt.end_time,
                attempt.status.as_str(),
                attempt.worker_id,
                attempt.last_heartbeat_time,
                optional_json(attempt.metadata.as_ref())?,
                attempt.rollout_id,
                attempt.sequence_id,
            ],
        )?;
        Ok(())
    }

    fn set_deadline(&mut self, rollout_id: &str, deadline: Option<f64>) -> Result<(), Error> {
        match deadline {
            Some(moment) => self.change(
                "INSERT INTO deadlines (rollout_id, moment) VALUES (?, ?) \
                 ON CONFLICT DO UPDATE SET moment = excluded.moment",
                params![rollout_id, moment],
            )?,
            None => self.change("DELETE FROM deadlines WHERE rollout_id = ?", [rollout_id])?,
        };
        Ok(())
    }

    fn push_queue(&mut self, rollout_id: &str) -> Result<(), Error> {
        self.change("INSERT INTO queue (rollout_id) VALUES (?)", [rollout_id])?;
        Ok(())
    }

    fn leave_queue(&mut self, rollout_id: &str) -> Result<bool, Error> {
        Ok(self.change("DELETE FROM queue WHERE rollout_id = ?", [rollout_id])? > 0)
    }

    fn set_paused(&mut self, paused: bool) -> Result<(), Error> {
        self.change("UPDATE queue_state SET is_paused = ?", [paused])?;
        Ok(())
    }

    fn set_counter(&mut self, rollout_id: &str, last: i64, new_spans: usize) -> Result<(), Error> {
        self.change(
            "INSERT INTO counters (rollout_id, last, spans) VALUES (?, ?, ?) \
             ON CONFLICT DO UPDATE SET last = excluded.last, spans = spans + excluded.spans",
            params![rollout_id, last, whole(new_spans)],
        )?;
        Ok(())
    }

    fn insert_spans(&mut self, rollout_id: &str, spans: &[&WrittenSpan]) -> Result<Vec<bool>, Error> {
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO spans (rollout_id, attempt_id, span_id, sequence_id, trace_id, parent_id, name, start_time, \
             end_time, is_plain, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (rollout_id, attempt_id, span_id) DO NOTHING",
        )?;
        let insert = |span: &&WrittenSpan| {
            metrics::span_written(span.rest.len());
            let added = statement.execute(params![
                rollout_id,
                span.attempt_id,
                span.span_id,
                span.sequence_id,
                span.trace_id,
                span.parent_id,
                span.name,
                span.start_time,
                span.end_time,
                span.is_plain,
                span.rest,
            ])?;
            Ok(added == 1)
        };
        spans.iter().map(insert).collect()
    }

    fn insert_resources(&mut self, update: &ResourcesUpdate) -> Result<(), Error> {
        self.change("UPDATE resources SET is_newest = 0 WHERE resources_id = ?", [&update.resources_id])?;
        self.change(
            "INSERT INTO resources (resources_id, version, first_seq, is_newest, create_time, update_time, resources) \
             VALUES (?1, ?2, coalesce((SELECT first_seq FROM resources WHERE resources_id = ?1), \
             (SELECT coalesce(max(seq), 0) + 1 FROM resources)), 1, ?3, ?4, ?5)",
            params![
                update.resources_id,
                update.version,
                update.create_time,
                update.update_time,
                to_json(&update.resources)?,
            ],
        )?;
        Ok(())
    }

    fn put_worker(&mut self, worker: &Worker) -> Result<(), Error> {
        self.change(
            "INSERT INTO workers (worker_id, status, heartbeat_stats, last_heartbeat_time, last_dequeue_time, \
             last_busy_time, last_idle_time, current_rollout_id, current_attempt_id) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (worker_id) DO UPDATE SET status = excluded.status, \
             heartbeat_stats = excluded.heartbeat_stats, last_heartbeat_time = excluded.last_heartbeat_time, \
             last_dequeue_time = excluded.last_dequeue_time, last_busy_time = excluded.last_busy_time, \
             last_idle_time = excluded.last_idle_time, current_rollout_id = excluded.current_rollout_id, \
             current_attempt_id = excluded.current_attempt_id",
            params![
                worker.worker_id,
                worker.status.as_str(),
                optional_json(worker.heartbeat_stats.as_ref())?,
                worker.last_heartbeat_time,
                worker.last_dequeue_time,
                worker.last_busy_time,
                worker.last_idle_time,
                worker.current_rollout_id,
                worker.current_attempt_id,
            ],
        )?;
        Ok(())
    }

    fn put_receipt(&mut self, key: &str, receipt: &Receipt) -> Result<(), Error> {
        let Receipt { fingerprint, made, answer } = receipt;
        self.change(
            "INSERT OR REPLACE INTO receipts (key, fingerprint, made, answer) VALUES (?, ?, ?, ?)",
            params![key, fingerprint, made, answer],
        )?;
        Ok(())
    }

    fn forget_receipts(&mut self, made_before: f64, limit: usize) -> Result<usize, Error> {
        self.change(
            "DELETE FROM receipts WHERE seq IN (SELECT seq FROM receipts ORDER BY seq LIMIT ?) AND made < ?",
            params![whole(limit), made_before],
        )
    }

    fn delete_spans(&mut self, rollout_id: &str, limit: usize) -> Result<usize, Error> {
        let deleted = self.change(
            "DELETE FROM spans WHERE seq IN (SELECT seq FROM spans WHERE rollout_id = ? LIMIT ?)",
            params![rollout_id, whole(limit)],
        )?;
        self.change(
            "UPDATE counters SET spans = spans - ? WHERE rollout_id = ?",
            params![whole(deleted), rollout_id],
        )?;
        Ok(deleted)
    }

    fn set_purged(&mut self, rollout_id: &str, now: f64) -> Result<(), Error> {
        self.change("UPDATE rollouts SET purged_at = ? WHERE rollout_id = ?", params![now, rollout_id])?;
        Ok(())
    }

    fn insert_control(
        &mut self,
        rollout_id: &str,
        control: &Control,
        config: &RolloutConfig,
    ) -> Result<(), Error> {
        let seq: i64 = self
            .value("UPDATE rollouts SET is_controlled = 1 WHERE rollout_id = ? RETURNING seq", [rollout_id])?
            .ok_or_else(|| Error::rollout_not_found(rollout_id))?;
        self.change("INSERT INTO controls (seq, version, updated_at) VALUES (?, 0, 0)", [seq])?;
        self.change("INSERT INTO run_configs (seq, config) VALUES (?, ?)", params![seq, to_json(config)?])?;
        self.put_control(rollout_id, control)
    }

    fn put_control(&mut self, rollout_id: &str, control: &Control) -> Result<(), Error> {
        let Control { k8s_job_name, last_attempt_id, error_message, version, updated_at } = control;
        self.change(
            "UPDATE controls SET k8s_job_name = ?, last_attempt_id = ?, error_message = ?, version = ?, \
             updated_at = ? WHERE seq = (SELECT seq FROM rollouts WHERE rollout_id = ?)",
            params![k8s_job_name, last_attempt_id, error_message, version, updated_at, rollout_id],
        )?;
        Ok(())
    }

    fn complete(&mut self, rollout_id: &str) -> Result<(), Error> {
        let place: Option<i64> =
            self.value("UPDATE completion_log SET last = last + 1 RETURNING last", [])?;
        self.change("UPDATE rollouts SET completion = ? WHERE rollout_id = ?", params![place, rollout_id])?;
        Ok(())
    }

    fn delete_rollout(&mut self, rollout_id: &str) -> Result<(), Error> {
        for of_seq in ["rollout_bodies", "controls", "run_configs"] {
            let sql =
                format!("DELETE FROM {of_seq} WHERE seq = (SELECT seq FROM rollouts WHERE rollout_id = ?)");
            self.change(&sql, [rollout_id])?;
        }
        for of_id in ["attempts", "deadlines", "counters", "rollouts"] {
            self.change(&format!("DELETE FROM {of_id} WHERE rollout_id = ?"), [rollout_id])?;
        }
        Ok(())
    }

    fn put_model(&mut self, model: &Model) -> Result<(), Error> {
        self.change(
            "INSERT INTO models (model, endpoint, version) VALUES (?, ?, ?) \
             ON CONFLICT DO UPDATE SET version = excluded.version",
            params![model.model, model.endpoint, model.version],
        )?;
        Ok(())
    }

    fn delete_models(&mut self, key: Option<&ModelKey>) -> Result<(), Error> {
        match key {
            Some(ModelKey { model, endpoint }) => {
                self.change("DELETE FROM models WHERE model = ? AND endpoint = ?", [model, endpoint])?
            }
            None => self.change("DELETE FROM models", [])?,
        };
        Ok(())
    }
}

const COMPLETIONS: &str = "SELECT completion, rollout_id FROM rollouts \
     WHERE completion > ? AND end_time IS NOT NULL ORDER BY completion LIMIT ?";

/// One branch a status, each in order of creation, so that they are merged rather than sorted. Its only parameter is
/// the limit.
fn having_sql(statuses: &[Having]) -> String {
    let branch = |having: &Having| {
        // Written out, because a parameter would hide from SQLite that the partial index serves.
        let lane = if having.is_controlled { " AND is_controlled = 1" } else { "" };
        format!("SELECT seq, rollout_id FROM rollouts WHERE status = '{}'{lane}", having.status)
    };
    let branches: Vec<String> = statuses.iter().map(branch).collect();
    format!("{} ORDER BY seq LIMIT ?", branches.join(" UNION ALL "))
}

#[cfg(test)]
mod tests {
    use agl_types::v1::State;
    use agl_types::{AttemptQuery, ResourcesQuery, RolloutQuery, SpanQuery, WorkerQuery};

    use super::*;
    use crate::sqlite::{Sync, schema};

    /// What SQLite would do for a query: one line a step.
    fn plan(connection: &Connection, sql: &str) -> String {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let count = statement.parameter_count();
        let params = vec![Sql::Text("1".to_owned()); count];
        let steps = statement.query_map(params_from_iter(params), |row| row.get::<_, String>(3)).unwrap();
        steps.collect::<Result<Vec<_>, _>>().unwrap().join("\n")
    }

    /// The plans of choosing a page's rows, of reading them, and of counting all of them.
    fn plans(connection: &Connection, source: &Source<'_>, selection: &Selection) -> [String; 3] {
        let query = compile(source, selection).unwrap();
        let (whole, rest) = query.sql.split_once(".seq IN (").unwrap();
        let (keys, order) = rest.rsplit_once(')').unwrap();
        let rows = format!("{whole}.seq IN (SELECT ?){order}");
        [keys, &rows, &query.count_sql].map(|sql| plan(connection, sql))
    }

    /// No query reads a whole table, or sorts it, to answer for one rollout or one page.
    #[test]
    fn queries_use_indexes() {
        let folder = tempfile::tempdir().unwrap();
        let connection = schema::open_writer(&folder.path().join("agl.db"), Sync::Normal).unwrap();
        let text = |text: &str| Some(text.to_owned());
        let rollouts = |query: RolloutQuery| {
            let query = RolloutQuery { limit: 10, ..query };
            let [keys, rows, count] =
                plans(&connection, &Source::rollouts(), &Selection::rollouts(&query).unwrap());
            assert!(rows.contains("SEARCH rollouts USING INTEGER PRIMARY KEY"), "{query:?}:\n{rows}");
            assert!(!rows.contains("SCAN rollout"), "{query:?}:\n{rows}");
            (keys, count)
        };
        let all = RolloutQuery::default;
        for field in ["rollout_id", "start_time", "end_time", "mode", "resources_id", "status"] {
            for sort_order in [SortOrder::Asc, SortOrder::Desc] {
                // In order until the page is full.
                for rollout_id_contains in [None, text("x")] {
                    let (keys, count) = rollouts(RolloutQuery {
                        sort_by: text(field),
                        sort_order,
                        rollout_id_contains,
                        ..all()
                    });
                    assert!(keys.contains("INDEX"), "{field} {sort_order:?}:\n{keys}");
                    assert!(!keys.contains("TEMP B-TREE FOR ORDER BY"), "{field} {sort_order:?}:\n{keys}");
                    assert!(count.contains("USING COVERING INDEX"), "{field}:\n{count}");
                }
            }
        }
        let (keys, count) = rollouts(RolloutQuery { rollout_id_contains: text("x"), ..all() });
        assert_eq!(keys, "SCAN rollouts", "in the order of the table");
        assert!(count.contains("COVERING INDEX"), "{count}");

        let (one, two) =
            (vec![RolloutStatus::Running], vec![RolloutStatus::Failed, RolloutStatus::Cancelled]);
        for status_in in [one, two] {
            let is_one = status_in.len() == 1;
            let query = || RolloutQuery { status_in: Some(status_in.clone()), ..all() };
            let (keys, count) = rollouts(query());
            assert!(keys.contains("SEARCH rollouts USING COVERING INDEX rollouts_status"), "{keys}");
            assert_eq!(keys.contains("TEMP B-TREE"), !is_one, "{keys}");
            assert!(count.contains("SEARCH rollouts USING COVERING INDEX rollouts_status"), "{count}");
            for query in [
                RolloutQuery { sort_by: text("start_time"), sort_order: SortOrder::Desc, ..query() },
                RolloutQuery { rollout_id_contains: text("x"), ..query() },
                RolloutQuery { mode_in: Some(vec![RolloutMode::Val]), ..query() },
            ] {
                let (keys, count) = rollouts(query);
                assert!(keys.contains("SEARCH rollouts USING INDEX"), "{keys}");
                assert!(count.contains("SEARCH rollouts USING"), "{count}");
            }
        }
        let (keys, count) = rollouts(RolloutQuery { mode_in: Some(RolloutMode::ALL.to_vec()), ..all() });
        assert!(keys.contains("SEARCH rollouts USING COVERING INDEX rollouts_mode"), "{keys}");
        assert!(count.contains("SEARCH rollouts USING COVERING INDEX rollouts_mode"), "{count}");
        for ids in [vec![], vec!["a".to_owned()], vec!["a".to_owned(), "b".to_owned()]] {
            let (keys, count) = rollouts(RolloutQuery { rollout_id_in: Some(ids), ..all() });
            for plan in [keys, count] {
                assert!(plan.contains("SEARCH rollouts USING COVERING INDEX"), "{plan}");
                assert!(!plan.contains("SCAN rollouts"), "{plan}");
            }
        }

        for attempt_id in [None, Some("a")] {
            for sort_by in [None, text("sequence_id"), text("start_time"), text("name")] {
                let name = text("x");
                for query in [
                    SpanQuery { sort_by: sort_by.clone(), limit: 10, ..Default::default() },
                    SpanQuery {
                        sort_by: sort_by.clone(),
                        name_contains: name.clone(),
                        trace_id: name.clone(),
                        filter_logic: FilterLogic::Or,
                        limit: 10,
                        ..Default::default()
                    },
                ] {
                    let selection = Selection::spans(&query).unwrap();
                    let [keys, rows, count] = plans(&connection, &Source::spans("r", attempt_id), &selection);
                    assert!(keys.starts_with("SEARCH spans USING"), "{keys}");
                    assert!(rows.starts_with("SEARCH spans USING INTEGER PRIMARY KEY"), "{rows}");
                    assert!(count.starts_with("SEARCH spans USING"), "{count}");
                }
            }
        }
        let query = SpanQuery { limit: 10, ..Default::default() };
        let [keys, ..] = plans(&connection, &Source::spans("r", None), &Selection::spans(&query).unwrap());
        assert_eq!(keys, "SEARCH spans USING COVERING INDEX spans_sequence_id (rollout_id=?)");
        // All of them are read as they stand in the index.
        let query = compile(&Source::spans("r", None), &Selection::spans(&SpanQuery::default()).unwrap());
        let plan_of_all = plan(&connection, &query.unwrap().sql);
        assert_eq!(plan_of_all, "SEARCH spans USING INDEX spans_sequence_id (rollout_id=?)");

        let query = AttemptQuery { limit: 10, ..Default::default() };
        let [keys, _, count] =
            plans(&connection, &Source::attempts("r"), &Selection::attempts(&query).unwrap());
        assert!(keys.contains("SEARCH attempts USING COVERING INDEX"), "{keys}");
        assert!(!keys.contains("B-TREE"), "{keys}");
        assert!(count.contains("SEARCH attempts USING COVERING INDEX"), "{count}");
        let latest = plan(&connection, &latest_attempt());
        assert!(latest.starts_with("SEARCH attempts USING INDEX") && !latest.contains("B-TREE"), "{latest}");

        let selection = Selection::resources(&ResourcesQuery { limit: 10, ..Default::default() }).unwrap();
        let [keys, _, count] = plans(&connection, &Source::newest_resources(), &selection);
        assert!(keys.contains("resources_newest") && !keys.contains("B-TREE"), "{keys}");
        assert!(count.contains("resources_newest"), "{count}");
        // Workers are few, and written at every claim: they are read in order until the page is full.
        for status_in in [None, Some(vec![WorkerStatus::Idle])] {
            let query = WorkerQuery { status_in, limit: 5, ..Default::default() };
            let [keys, ..] = plans(&connection, &Source::workers(), &Selection::workers(&query).unwrap());
            assert!(!keys.contains("TEMP B-TREE"), "{keys}");
        }
    }

    /// Neither a list of states nor the completion log scans or sorts a table.
    #[test]
    fn lists_of_controllers_use_indexes() {
        let folder = tempfile::tempdir().unwrap();
        let connection = schema::open_writer(&folder.path().join("agl.db"), Sync::Normal).unwrap();
        for state in State::ALL {
            for is_controlled in [true, false] {
                let having = state.statuses().iter().map(|status| Having { status: *status, is_controlled });
                let plan = plan(&connection, &having_sql(&having.collect::<Vec<_>>()));
                let index = if is_controlled { "rollouts_controlled" } else { "rollouts_status" };
                assert!(plan.contains(index), "{plan}");
                assert!(!plan.contains("SCAN") && !plan.contains("TEMP B-TREE"), "{plan}");
            }
        }
        let plan = plan(&connection, COMPLETIONS);
        assert!(plan.contains("rollouts_completion") && !plan.contains("TEMP B-TREE"), "{plan}");
    }
}
