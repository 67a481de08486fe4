//! Queries, checked and in one form for every backend.

use std::cmp::Ordering;

use agl_types::{
    Attempt, AttemptQuery, FilterLogic, ResourcesQuery, ResourcesUpdate, Rollout, RolloutQuery, SortOrder,
    SpanQuery, UNLIMITED, Worker, WorkerQuery,
};

use crate::Error;

/// What a query selects, checked.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The conditions, put together by `logic`.
    pub(crate) conditions: Vec<Condition>,
    /// How the conditions are put together; no condition at all matches everything.
    pub(crate) logic: FilterLogic,
    /// The order; insertion order for none, and between equals.
    pub(crate) sort: Option<Sort>,
    /// How many items at most; [`UNLIMITED`] or at least 0.
    pub(crate) limit: i64,
    /// How many matches to pass over; at least 0.
    pub(crate) offset: i64,
}

/// One condition. A field that is null meets none.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    pub(crate) column: &'static str,
    pub(crate) test: Test,
}

#[derive(Debug, Clone)]
pub(crate) enum Test {
    /// Is this.
    Is(String),
    /// Is one of these.
    In(Vec<String>),
    /// Has this in it; upper and lower case differ.
    Contains(String),
}

/// An order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sort {
    pub(crate) column: &'static str,
    pub(crate) order: SortOrder,
    /// Whether null counts as greater than everything (as for times: it has not happened yet) or as smaller.
    pub(crate) nulls_are_high: bool,
}

/// A declared field of a model, and whether values of it have an order.
type Field = (&'static str, bool);

const ROLLOUT_FIELDS: &[Field] = &[
    ("rollout_id", true),
    ("input", false),
    ("start_time", true),
    ("end_time", true),
    ("mode", true),
    ("resources_id", true),
    ("status", true),
    ("config", false),
    ("metadata", false),
];

const ATTEMPT_FIELDS: &[Field] = &[
    ("rollout_id", true),
    ("attempt_id", true),
    ("sequence_id", true),
    ("start_time", true),
    ("end_time", true),
    ("status", true),
    ("worker_id", true),
    ("last_heartbeat_time", true),
    ("metadata", false),
];

const SPAN_FIELDS: &[Field] = &[
    ("rollout_id", true),
    ("attempt_id", true),
    ("sequence_id", true),
    ("trace_id", true),
    ("span_id", true),
    ("parent_id", true),
    ("name", true),
    ("status", false),
    ("attributes", false),
    ("events", false),
    ("links", false),
    ("start_time", true),
    ("end_time", true),
    ("context", false),
    ("parent", false),
    ("resource", false),
];

const RESOURCES_FIELDS: &[Field] = &[
    ("resources_id", true),
    ("create_time", true),
    ("update_time", true),
    ("version", true),
    ("resources", false),
];

const WORKER_FIELDS: &[Field] = &[
    ("worker_id", true),
    ("status", true),
    ("heartbeat_stats", false),
    ("last_heartbeat_time", true),
    ("last_dequeue_time", true),
    ("last_busy_time", true),
    ("last_idle_time", true),
    ("current_rollout_id", true),
    ("current_attempt_id", true),
];

impl Selection {
    fn new(
        fields: &[Field],
        sort_by: Option<&str>,
        order: SortOrder,
        limit: i64,
        offset: i64,
    ) -> Result<Self, Error> {
        if limit < UNLIMITED {
            let message =
                format!("Limit must be greater than or equal to 0, or -1 for no limit, but is {limit}");
            return Err(Error::invalid("limit", message));
        }
        if offset < 0 {
            let message = format!("Offset must be greater than or equal to 0, but is {offset}");
            return Err(Error::invalid("offset", message));
        }
        let sort = sort_by.map(|name| sort(fields, name, order)).transpose()?;
        Ok(Self { conditions: Vec::new(), logic: FilterLogic::And, sort, limit, offset })
    }

    fn with(mut self, column: &'static str, test: Option<Test>) -> Self {
        self.conditions.extend(test.map(|test| Condition { column, test }));
        self
    }

    fn is(self, column: &'static str, text: Option<&String>) -> Self {
        self.with(column, text.cloned().map(Test::Is))
    }

    fn one_of<T: ToString>(self, column: &'static str, words: Option<&[T]>) -> Self {
        self.with(column, words.map(|words| Test::In(words.iter().map(ToString::to_string).collect())))
    }

    fn contains(self, column: &'static str, text: Option<&String>) -> Self {
        self.with(column, text.cloned().map(Test::Contains))
    }

    fn by(mut self, logic: FilterLogic) -> Self {
        self.logic = logic;
        self
    }

    pub(crate) fn rollouts(query: &RolloutQuery) -> Result<Self, Error> {
        let RolloutQuery {
            status_in,
            mode_in,
            rollout_id_in,
            rollout_id_contains,
            filter_logic,
            sort_by,
            sort_order,
            limit,
            offset,
        } = query;
        Ok(Self::new(ROLLOUT_FIELDS, sort_by.as_deref(), *sort_order, *limit, *offset)?
            .one_of("status", status_in.as_deref())
            .one_of("mode", mode_in.as_deref())
            .one_of("rollout_id", rollout_id_in.as_deref())
            .contains("rollout_id", rollout_id_contains.as_ref())
            .by(*filter_logic))
    }

    pub(crate) fn attempts(query: &AttemptQuery) -> Result<Self, Error> {
        let AttemptQuery { rollout_id: _, sort_by, sort_order, limit, offset } = query;
        Self::new(ATTEMPT_FIELDS, sort_by.as_deref(), *sort_order, *limit, *offset)
    }

    pub(crate) fn spans(query: &SpanQuery) -> Result<Self, Error> {
        let SpanQuery {
            rollout_id: _,
            attempt_id: _,
            trace_id,
            trace_id_contains,
            span_id,
            span_id_contains,
            parent_id,
            parent_id_contains,
            name,
            name_contains,
            filter_logic,
            sort_by,
            sort_order,
            limit,
            offset,
        } = query;
        Ok(Self::new(SPAN_FIELDS, sort_by.as_deref(), *sort_order, *limit, *offset)?
            .is("trace_id", trace_id.as_ref())
            .contains("trace_id", trace_id_contains.as_ref())
            .is("span_id", span_id.as_ref())
            .contains("span_id", span_id_contains.as_ref())
            .is("parent_id", parent_id.as_ref())
            .contains("parent_id", parent_id_contains.as_ref())
            .is("name", name.as_ref())
            .contains("name", name_contains.as_ref())
            .by(*filter_logic))
    }

    pub(crate) fn resources(query: &ResourcesQuery) -> Result<Self, Error> {
        let ResourcesQuery {
            resources_id,
            resources_id_contains,
            all_versions: _,
            sort_by,
            sort_order,
            limit,
            offset,
        } = query;
        Ok(Self::new(RESOURCES_FIELDS, sort_by.as_deref(), *sort_order, *limit, *offset)?
            .is("resources_id", resources_id.as_ref())
            .contains("resources_id", resources_id_contains.as_ref()))
    }

    pub(crate) fn workers(query: &WorkerQuery) -> Result<Self, Error> {
        let WorkerQuery { status_in, worker_id_contains, filter_logic, sort_by, sort_order, limit, offset } =
            query;
        Ok(Self::new(WORKER_FIELDS, sort_by.as_deref(), *sort_order, *limit, *offset)?
            .one_of("status", status_in.as_deref())
            .contains("worker_id", worker_id_contains.as_ref())
            .by(*filter_logic))
    }

    /// The ids that alone can match, if the conditions say so.
    pub(crate) fn candidates(&self, column: &str) -> Option<Vec<&str>> {
        if self.logic == FilterLogic::Or && self.conditions.len() > 1 {
            return None;
        }
        self.conditions.iter().filter(|condition| condition.column == column).find_map(|condition| {
            match &condition.test {
                Test::Is(text) => Some(vec![text.as_str()]),
                Test::In(list) => Some(list.iter().map(String::as_str).collect()),
                Test::Contains(_) => None,
            }
        })
    }

    /// The matching rows among `rows`, which come in insertion order: those of the page, and their number in all.
    pub(crate) fn pick<'a, T: Row>(&self, rows: impl Iterator<Item = &'a T>) -> (Vec<&'a T>, i64) {
        let mut matches: Vec<&T> = rows.filter(|row| self.is_met_by(*row)).collect();
        if let Some(sort) = self.sort {
            // The sort is stable, so equals stay in insertion order in either direction.
            matches.sort_by(|a, b| sort.compare(a.cell(sort.column), b.cell(sort.column)));
        }
        let total = i64::try_from(matches.len()).unwrap_or(i64::MAX);
        let offset = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        (matches.into_iter().skip(offset).take(limit).collect(), total)
    }

    fn is_met_by(&self, row: &impl Row) -> bool {
        let mut answers = self.conditions.iter().map(|condition| {
            let Cell::Text(text) = row.cell(condition.column) else { return false };
            match &condition.test {
                Test::Is(wanted) => wanted == text,
                Test::In(list) => list.iter().any(|wanted| wanted == text),
                Test::Contains(part) => text.contains(part.as_str()),
            }
        });
        match self.logic {
            FilterLogic::Or if !self.conditions.is_empty() => answers.any(|met| met),
            FilterLogic::Or | FilterLogic::And => answers.all(|met| met),
        }
    }
}

fn sort(fields: &[Field], name: &str, order: SortOrder) -> Result<Sort, Error> {
    let Some((column, has_order)) = fields.iter().find(|(field, _)| *field == name) else {
        let allowed: Vec<&str> = fields.iter().map(|(field, _)| *field).collect();
        let message = format!("Invalid sort_by: {name}, allowed fields are: {}", allowed.join(", "));
        return Err(Error::invalid("sort_by", message));
    };
    if !has_order {
        let allowed: Vec<&str> =
            fields.iter().filter(|(_, has_order)| *has_order).map(|(field, _)| *field).collect();
        let message = format!(
            "Invalid sort_by: {name} has no order, fields that can be sorted by are: {}",
            allowed.join(", ")
        );
        return Err(Error::invalid("sort_by", message));
    }
    Ok(Sort { column, order, nulls_are_high: column.ends_with("_time") })
}

impl Sort {
    fn compare(self, a: Cell<'_>, b: Cell<'_>) -> Ordering {
        let null_to_value = if self.nulls_are_high { Ordering::Greater } else { Ordering::Less };
        let ascending = match (a, b) {
            (Cell::Null, Cell::Null) => Ordering::Equal,
            (Cell::Null, _) => null_to_value,
            (_, Cell::Null) => null_to_value.reverse(),
            (Cell::Text(a), Cell::Text(b)) => a.cmp(b),
            (Cell::Integer(a), Cell::Integer(b)) => a.cmp(&b),
            (Cell::Real(a), Cell::Real(b)) => a.partial_cmp(&b).unwrap_or(Ordering::Equal),
            // A column holds values of one kind.
            _ => Ordering::Equal,
        };
        match self.order {
            SortOrder::Asc => ascending,
            SortOrder::Desc => ascending.reverse(),
        }
    }
}

/// The value of one column of one row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cell<'a> {
    Null,
    Text(&'a str),
    Integer(i64),
    Real(f64),
}

impl<'a> From<&'a str> for Cell<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Cell<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for Cell<'_> {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl<'a, T: Into<Cell<'a>>> From<Option<T>> for Cell<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Cell::Null, Into::into)
    }
}

/// Something with named columns that queries look at.
pub(crate) trait Row {
    /// The value of a column; null for one that nothing is filtered or sorted by.
    fn cell(&self, column: &str) -> Cell<'_>;
}

impl Row for Rollout {
    fn cell(&self, column: &str) -> Cell<'_> {
        match column {
            "rollout_id" => (&self.rollout_id).into(),
            "start_time" => self.start_time.into(),
            "end_time" => self.end_time.into(),
            "mode" => self.mode.map(agl_types::RolloutMode::as_str).into(),
            "resources_id" => self.resources_id.as_ref().into(),
            "status" => self.status.as_str().into(),
            _ => Cell::Null,
        }
    }
}

impl Row for Attempt {
    fn cell(&self, column: &str) -> Cell<'_> {
        match column {
            "rollout_id" => (&self.rollout_id).into(),
            "attempt_id" => (&self.attempt_id).into(),
            "sequence_id" => Cell::Integer(self.sequence_id.into()),
            "start_time" => self.start_time.into(),
            "end_time" => self.end_time.into(),
            "status" => self.status.as_str().into(),
            "worker_id" => self.worker_id.as_ref().into(),
            "last_heartbeat_time" => self.last_heartbeat_time.into(),
            _ => Cell::Null,
        }
    }
}

impl Row for ResourcesUpdate {
    fn cell(&self, column: &str) -> Cell<'_> {
        match column {
            "resources_id" => (&self.resources_id).into(),
            "create_time" => self.create_time.into(),
            "update_time" => self.update_time.into(),
            "version" => Cell::Integer(self.version.into()),
            _ => Cell::Null,
        }
    }
}

impl Row for Worker {
    fn cell(&self, column: &str) -> Cell<'_> {
        match column {
            "worker_id" => (&self.worker_id).into(),
            "status" => self.status.as_str().into(),
            "last_heartbeat_time" => self.last_heartbeat_time.into(),
            "last_dequeue_time" => self.last_dequeue_time.into(),
            "last_busy_time" => self.last_busy_time.into(),
            "last_idle_time" => self.last_idle_time.into(),
            "current_rollout_id" => self.current_rollout_id.as_ref().into(),
            "current_attempt_id" => self.current_attempt_id.as_ref().into(),
            _ => Cell::Null,
        }
    }
}
