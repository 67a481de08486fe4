//! Steps between schemas that take more than SQL.

use agl_types::{Attributes, Event, JsonMap, Link, OtelResource, Span, SpanContext, TraceStatus};
use rusqlite::{Connection, params};
use serde::Deserialize;

use super::session::parse_json;
use crate::Error;
use crate::raw::write_out;

/// A span's body as schema 1 had it: the parts that have no column.
#[derive(Deserialize)]
struct Body {
    status: TraceStatus,
    attributes: Attributes,
    events: Vec<Event>,
    links: Vec<Link>,
    context: Option<SpanContext>,
    parent: Option<SpanContext>,
    resource: OtelResource,
    extra: JsonMap,
}

/// Writes the bodies of spans anew: as the JSON that they are answered as.
pub(super) fn write_spans_out(connection: &Connection) -> Result<(), Error> {
    let mut read = connection.prepare(
        "SELECT seq, rollout_id, attempt_id, span_id, sequence_id, trace_id, parent_id, name, start_time, end_time, \
         body FROM spans",
    )?;
    let mut write = connection.prepare("UPDATE spans SET body = ?, is_plain = ? WHERE seq = ?")?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        let body: String = row.get(10)?;
        let Body { status, attributes, events, links, context, parent, resource, extra } = parse_json(&body)?;
        let span = Span {
            rollout_id: row.get(1)?,
            attempt_id: row.get(2)?,
            span_id: row.get(3)?,
            sequence_id: row.get(4)?,
            trace_id: row.get(5)?,
            parent_id: row.get(6)?,
            name: row.get(7)?,
            start_time: row.get(8)?,
            end_time: row.get(9)?,
            status,
            attributes,
            events,
            links,
            context,
            parent,
            resource,
            extra,
        };
        let written = write_out(&span)?;
        write.execute(params![written.rest, written.is_plain, seq])?;
    }
    Ok(())
}
