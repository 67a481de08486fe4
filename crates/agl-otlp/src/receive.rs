use agl_types::WrittenSpan;
use agl_types::ids::hex;
use agl_types::semconv::{ATTEMPT_ID, ROLLOUT_ID, SPAN_SEQUENCE_ID};
use serde_json::Value;

use crate::value::{Pairs, write_json, write_text};
use crate::wire::fields;
use crate::{Error, Rejected};

const TRACE_ID_DIGITS: usize = 32;
const SPAN_ID_DIGITS: usize = 16;
const NANOS_PER_SECOND: u64 = 1_000_000_000;
const WITHOUT_IDS: &str = "no agentlightning.rollout_id or agentlightning.attempt_id among the attributes of the \
                           span or its resource";

/// A span as it came in.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceivedSpan {
    /// The span, with the rollout and attempt it names; its `sequence_id` counts only if the next field says so.
    pub span: WrittenSpan,
    /// Whether it named its place in the rollout. If not, the store issues the next one.
    pub has_sequence_id: bool,
}

/// What an export request held.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Received {
    /// The spans that name a rollout and an attempt, in payload order.
    pub spans: Vec<ReceivedSpan>,
    /// The others.
    pub rejected: Rejected,
}

/// How much one request may hold. Its own length says little: every span is stored with a copy of what is said of their
/// resource once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Spans, those that belong nowhere included.
    pub spans: usize,
    /// Bytes of what is stored of them.
    pub bytes: usize,
}

impl Default for Bounds {
    /// As much as there is memory for.
    fn default() -> Self {
        Self { spans: usize::MAX, bytes: usize::MAX }
    }
}

/// What is left of the bounds.
struct Room {
    bounds: Bounds,
    spans: usize,
    bytes: usize,
}

impl Room {
    fn take(&mut self, spans: usize, bytes: usize) -> Result<(), Error> {
        let beyond = |limit: usize, what: &'static str| Error::TooMuch { limit, what };
        let Bounds { spans: most, bytes: longest } = self.bounds;
        self.spans = self.spans.checked_sub(spans).ok_or_else(|| beyond(most, "spans"))?;
        self.bytes =
            self.bytes.checked_sub(bytes).ok_or_else(|| beyond(longest, "bytes of spans, as stored"))?;
        Ok(())
    }
}

/// Reads the spans of an export request from its protobuf bytes; no bytes at all are an empty request.
///
/// Most of a span is only ever sent on as JSON, so that is what it becomes, straight from the bytes: making objects
/// of it all, just to write them out, takes several times as long.
///
/// # Errors
/// [`Error::Payload`] when the bytes are something else, [`Error::TooMuch`] beyond the bounds.
pub(crate) fn receive(request: &[u8], bounds: Bounds) -> Result<Received, Error> {
    let mut room = Room { bounds, spans: bounds.spans, bytes: bounds.bytes };
    let mut received = Received::default();
    let mut groups = fields(request);
    while let Some((number, wire)) = groups.next()? {
        if number == 1 {
            receive_group(wire.bytes("resource_spans")?, &mut received, &mut room)?;
        }
    }
    Ok(received)
}

fn receive_group(group: &[u8], received: &mut Received, room: &mut Room) -> Result<(), Error> {
    let mut shared = Pairs::default();
    let mut schema_url = "";
    let mut scopes = Vec::new();
    let mut parts = fields(group);
    while let Some((number, wire)) = parts.next()? {
        match number {
            1 => {
                let mut parts = fields(wire.bytes("resource")?);
                while let Some((number, wire)) = parts.next()? {
                    if number == 1 {
                        shared.add(wire)?;
                    }
                }
            }
            2 => scopes.push(wire.bytes("scope_spans")?),
            3 => schema_url = wire.text("schema_url")?,
            _ => {}
        }
    }
    let mut json = br#"{"attributes":"#.to_vec();
    let is_plain = shared.write(&mut json)?;
    json.extend_from_slice(br#","schema_url":"#);
    write_json(schema_url, &mut json);
    json.push(b'}');
    let resource = Resource { place: Place::of(&shared)?, json, is_plain };

    for scope in scopes {
        let mut parts = fields(scope);
        while let Some((number, wire)) = parts.next()? {
            if number != 2 {
                continue;
            }
            room.take(1, 0)?;
            match receive_span(wire.bytes("spans")?, &resource)? {
                Some(span) => {
                    room.take(0, span.span.rest.len())?;
                    received.spans.push(span);
                }
                None => received.rejected.add(WITHOUT_IDS),
            }
        }
    }
    Ok(())
}

/// What the spans of a group have in common.
struct Resource {
    place: Place,
    json: Vec<u8>,
    is_plain: bool,
}

/// Where attributes say that a span belongs.
struct Place {
    rollout_id: Option<String>,
    attempt_id: Option<String>,
    sequence_id: Option<Option<i64>>,
}

impl Place {
    fn of(attributes: &Pairs<'_>) -> Result<Self, Error> {
        Ok(Self {
            rollout_id: attributes.get(ROLLOUT_ID)?.map(text),
            attempt_id: attributes.get(ATTEMPT_ID)?.map(text),
            sequence_id: attributes.get(SPAN_SEQUENCE_ID)?.as_ref().map(sequence_id),
        })
    }
}

fn text(value: Value) -> String {
    if let Value::String(text) = value { text } else { value.to_string() }
}

/// The sequence id, if it makes sense: a whole number or its digits, not negative.
fn sequence_id(value: &Value) -> Option<i64> {
    let number = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| *number >= 0)
}

/// None for a span that does not say where it belongs.
fn receive_span(span: &[u8], resource: &Resource) -> Result<Option<ReceivedSpan>, Error> {
    let mut trace_id: &[u8] = &[];
    let mut span_id: &[u8] = &[];
    let mut parent_id: &[u8] = &[];
    let mut name = "";
    let (mut start_time, mut end_time) = (None, None);
    let mut attributes = Pairs::default();
    let (mut events, mut links) = (Vec::new(), Vec::new());
    let mut status: &[u8] = &[];
    let mut parts = fields(span);
    while let Some((number, wire)) = parts.next()? {
        match number {
            1 => trace_id = wire.bytes("trace_id")?,
            2 => span_id = wire.bytes("span_id")?,
            4 => parent_id = wire.bytes("parent_span_id")?,
            5 => name = wire.text("name")?,
            7 => start_time = seconds(wire.fixed64("start_time_unix_nano")?),
            8 => end_time = seconds(wire.fixed64("end_time_unix_nano")?),
            9 => attributes.add(wire)?,
            11 => events.push(wire.bytes("events")?),
            13 => links.push(wire.bytes("links")?),
            15 => status = wire.bytes("status")?,
            _ => {}
        }
    }

    let own = Place::of(&attributes)?;
    let either = |own: Option<String>, shared: &Option<String>| {
        own.or_else(|| shared.clone()).filter(|id| !id.is_empty())
    };
    let rollout_id = either(own.rollout_id, &resource.place.rollout_id);
    let attempt_id = either(own.attempt_id, &resource.place.attempt_id);
    let (Some(rollout_id), Some(attempt_id)) = (rollout_id, attempt_id) else { return Ok(None) };
    let sequence_id = own.sequence_id.or(resource.place.sequence_id).flatten();

    let trace_id = hex(trace_id, TRACE_ID_DIGITS);
    let span_id = hex(span_id, SPAN_ID_DIGITS);
    let parent_id = (!parent_id.is_empty()).then(|| hex(parent_id, SPAN_ID_DIGITS));
    // Little is longer as JSON than in protobuf, but for what is between the values.
    let mut json = Vec::with_capacity(span.len() + span.len() / 4 + resource.json.len() + 512);
    json.extend_from_slice(br#""trace_id":"#);
    write_json(&trace_id, &mut json);
    json.extend_from_slice(br#","span_id":"#);
    write_json(&span_id, &mut json);
    json.extend_from_slice(br#","parent_id":"#);
    write_json(&parent_id, &mut json);
    json.extend_from_slice(br#","name":"#);
    write_text(name, &mut json);
    json.extend_from_slice(br#","status":"#);
    write_status(status, &mut json)?;
    json.extend_from_slice(br#","attributes":"#);
    let mut is_plain = resource.is_plain;
    is_plain &= attributes.write(&mut json)?;
    json.extend_from_slice(br#","events":"#);
    is_plain &= write_all(&events, write_event, &mut json)?;
    json.extend_from_slice(br#","links":"#);
    is_plain &= write_all(&links, write_link, &mut json)?;
    json.extend_from_slice(br#","start_time":"#);
    write_json(&start_time, &mut json);
    json.extend_from_slice(br#","end_time":"#);
    write_json(&end_time, &mut json);
    json.extend_from_slice(br#","context":"#);
    write_context(&trace_id, &span_id, &mut json);
    json.extend_from_slice(br#","parent":null,"resource":"#);
    json.extend_from_slice(&resource.json);
    json.push(b'}');

    let rest = String::from_utf8(json).map_err(|error| Error::payload(error.to_string()))?;
    let span = WrittenSpan {
        rollout_id,
        attempt_id,
        sequence_id: sequence_id.unwrap_or_default(),
        trace_id,
        span_id,
        parent_id,
        name: name.to_owned(),
        start_time,
        end_time,
        rest,
        is_plain,
    };
    Ok(Some(ReceivedSpan { span, has_sequence_id: sequence_id.is_some() }))
}

/// Seconds since the epoch. The fraction goes its own way, so that it is rounded once.
fn seconds(nanos: u64) -> Option<f64> {
    let (whole, rest) = ((nanos / NANOS_PER_SECOND) as f64, (nanos % NANOS_PER_SECOND) as f64);
    (nanos != 0).then_some(whole + rest / NANOS_PER_SECOND as f64)
}

fn write_context(trace_id: &str, span_id: &str, json: &mut Vec<u8>) {
    json.extend_from_slice(br#"{"trace_id":"#);
    write_json(trace_id, json);
    json.extend_from_slice(br#","span_id":"#);
    write_json(span_id, json);
    json.extend_from_slice(br#","is_remote":false,"trace_state":{}}"#);
}

fn write_status(status: &[u8], json: &mut Vec<u8>) -> Result<(), Error> {
    let (mut code, mut description) = (0, "");
    let mut parts = fields(status);
    while let Some((number, wire)) = parts.next()? {
        match number {
            2 => description = wire.text("the message of a status")?,
            3 => code = wire.varint("the code of a status")?,
            _ => {}
        }
    }
    let code: &[u8] = match code {
        1 => b"OK",
        2 => b"ERROR",
        _ => b"UNSET",
    };
    json.extend_from_slice(br#"{"status_code":""#);
    json.extend_from_slice(code);
    json.extend_from_slice(br#"","description":"#);
    write_json(&(!description.is_empty()).then_some(description), json);
    json.push(b'}');
    Ok(())
}

/// Appends messages as a JSON list; tells whether all of them are plain.
fn write_all(
    messages: &[&[u8]],
    write: impl Fn(&[u8], &mut Vec<u8>) -> Result<bool, Error>,
    json: &mut Vec<u8>,
) -> Result<bool, Error> {
    let mut are_plain = true;
    json.push(b'[');
    for (place, message) in messages.iter().enumerate() {
        if place > 0 {
            json.push(b',');
        }
        are_plain &= write(message, json)?;
    }
    json.push(b']');
    Ok(are_plain)
}

fn write_event(event: &[u8], json: &mut Vec<u8>) -> Result<bool, Error> {
    let (mut name, mut timestamp, mut attributes) = ("", None, Pairs::default());
    let mut parts = fields(event);
    while let Some((number, wire)) = parts.next()? {
        match number {
            1 => timestamp = seconds(wire.fixed64("the time of an event")?),
            2 => name = wire.text("the name of an event")?,
            3 => attributes.add(wire)?,
            _ => {}
        }
    }
    json.extend_from_slice(br#"{"name":"#);
    write_text(name, json);
    json.extend_from_slice(br#","attributes":"#);
    let is_plain = attributes.write(json)?;
    json.extend_from_slice(br#","timestamp":"#);
    write_json(&timestamp, json);
    json.push(b'}');
    Ok(is_plain)
}

fn write_link(link: &[u8], json: &mut Vec<u8>) -> Result<bool, Error> {
    let mut trace_id: &[u8] = &[];
    let mut span_id: &[u8] = &[];
    let mut attributes = Pairs::default();
    let mut parts = fields(link);
    while let Some((number, wire)) = parts.next()? {
        match number {
            1 => trace_id = wire.bytes("the trace_id of a link")?,
            2 => span_id = wire.bytes("the span_id of a link")?,
            4 => attributes.add(wire)?,
            _ => {}
        }
    }
    json.extend_from_slice(br#"{"context":"#);
    write_context(&hex(trace_id, TRACE_ID_DIGITS), &hex(span_id, SPAN_ID_DIGITS), json);
    json.extend_from_slice(br#","attributes":"#);
    let is_plain = if attributes.is_empty() {
        json.extend_from_slice(b"null");
        true
    } else {
        attributes.write(json)?
    };
    json.push(b'}');
    Ok(is_plain)
}
