//! The requests: built once, the same bytes for every server but for the ids, which are written over placeholders
//! of the same length.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;
use serde_json::{Value, json};

/// A rollout and its attempt, which spans can be given to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) rollout_id: String,
    pub(crate) attempt_id: String,
}

/// As long as the ids of both servers.
const ROLLOUT_ID: &str = "ro-ROLLOUTIDHER";
const ATTEMPT_ID: &str = "at-ATTEMPTI";
/// Ids of spans are numbers. The upper half marks the placeholders, which are unlike anything else in a request.
const SPAN_MARK: u64 = 0xFEED_FACE_0000_0000;
/// Sequence ids have ten digits, each to be as long as any other. Only the first span of a request can have one.
const FIRST_SEQUENCE_ID: u64 = 1_000_000_000;

/// A request with the places at which ids go.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    rollout_ids: Vec<usize>,
    attempt_ids: Vec<usize>,
    spans: Vec<SpanPlaces>,
}

/// Where the ids of one span go.
#[derive(Debug, Clone, Default)]
struct SpanPlaces {
    hexadecimal: Vec<usize>,
    binary: Vec<usize>,
    sequence_id: Vec<usize>,
}

impl Template {
    fn new(head: &str, content_type: &str, body: &[u8], spans: usize) -> Self {
        let mut bytes = format!("{head} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n").into_bytes();
        if !body.is_empty() {
            let about = format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len());
            bytes.extend_from_slice(about.as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        let mut template = Self {
            rollout_ids: places(&bytes, ROLLOUT_ID.as_bytes()),
            attempt_ids: places(&bytes, ATTEMPT_ID.as_bytes()),
            spans: vec![SpanPlaces::default(); spans],
            bytes,
        };
        template.find_spans();
        template
    }

    /// Finds where the ids of spans go, in one pass for each notation.
    fn find_spans(&mut self) {
        for place in places(&self.bytes, &SPAN_MARK.to_be_bytes()[..4]) {
            let number = self.bytes.get(place + 4..place + 8).and_then(|bytes| bytes.try_into().ok());
            let number = number.map(u32::from_be_bytes);
            if let Some(span) = self.span(number) {
                span.binary.push(place);
            }
        }
        for place in places(&self.bytes, &hexadecimal(SPAN_MARK).as_bytes()[..8]) {
            let digits =
                self.bytes.get(place + 8..place + 16).and_then(|bytes| std::str::from_utf8(bytes).ok());
            let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
            if let Some(span) = self.span(number) {
                span.hexadecimal.push(place);
            }
        }
        for place in places(&self.bytes, FIRST_SEQUENCE_ID.to_string().as_bytes()) {
            if let Some(span) = self.span(Some(0)) {
                span.sequence_id.push(place);
            }
        }
    }

    fn span(&mut self, number: Option<u32>) -> Option<&mut SpanPlaces> {
        self.spans.get_mut(usize::try_from(number?).ok()?)
    }

    fn json(head: &str, body: &Value, spans: usize) -> Self {
        Self::new(head, "application/json", body.to_string().as_bytes(), spans)
    }

    /// The request for this rollout, with spans numbered from `first_span` on.
    pub(crate) fn fill(&mut self, claim: Option<&Claim>, first_span: u64) -> &[u8] {
        if let Some(Claim { rollout_id, attempt_id }) = claim {
            self.rollout_ids.iter().for_each(|place| put(&mut self.bytes, *place, rollout_id.as_bytes()));
            self.attempt_ids.iter().for_each(|place| put(&mut self.bytes, *place, attempt_id.as_bytes()));
        }
        for (number, span) in (first_span..).zip(&self.spans) {
            if !span.hexadecimal.is_empty() {
                let digits = hexadecimal(number);
                span.hexadecimal.iter().for_each(|place| put(&mut self.bytes, *place, digits.as_bytes()));
            }
            span.binary.iter().for_each(|place| put(&mut self.bytes, *place, &number.to_be_bytes()));
            if !span.sequence_id.is_empty() {
                let digits = (FIRST_SEQUENCE_ID + number).to_string();
                span.sequence_id.iter().for_each(|place| put(&mut self.bytes, *place, digits.as_bytes()));
            }
        }
        &self.bytes
    }

    /// How many spans it carries.
    pub(crate) fn spans(&self) -> u64 {
        u64::try_from(self.spans.len()).unwrap_or(u64::MAX)
    }
}

fn places(haystack: &[u8], needle: &[u8]) -> Vec<usize> {
    haystack
        .windows(needle.len())
        .enumerate()
        .filter(|(_, window)| *window == needle)
        .map(|(at, _)| at)
        .collect()
}

fn put(bytes: &mut [u8], place: usize, id: &[u8]) {
    if let Some(slot) = bytes.get_mut(place..place + id.len()) {
        slot.copy_from_slice(id);
    }
}

fn hexadecimal(number: u64) -> String {
    format!("{number:016x}")
}

/// A check of the server's health.
pub(crate) fn health() -> Template {
    Template::new("GET /v1/agl/health", "", &[], 0)
}

/// Puts `count` small tasks into the queue.
pub(crate) fn enqueue(count: usize) -> Template {
    let task = json!({
        "input": { "question": "What is 17 times 23, and is the result prime?", "answer": "391", "index": 17 },
        "mode": "train",
    });
    Template::json("POST /v1/agl/queues/rollouts/enqueue", &json!({ "rollouts": vec![task; count] }), 0)
}

/// Claims up to `limit` rollouts, as a runner does.
pub(crate) fn dequeue(limit: usize, worker: usize) -> Template {
    let body = json!({ "limit": limit, "worker_id": format!("worker-{worker}") });
    Template::json("POST /v1/agl/queues/rollouts/dequeue", &body, 0)
}

/// Stores one span of an LLM call by JSON.
pub(crate) fn rest_span() -> Template {
    let span_id = hexadecimal(SPAN_MARK);
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let attributes: serde_json::Map<String, Value> = attributes(0)
        .into_iter()
        .map(|(key, value)| {
            let value = match value {
                any_value::Value::StringValue(text) => text.into(),
                any_value::Value::IntValue(number) => number.into(),
                any_value::Value::DoubleValue(number) => number.into(),
                _ => Value::Null,
            };
            (key.to_owned(), value)
        })
        .collect();
    let body = json!({
        "rollout_id": ROLLOUT_ID,
        "attempt_id": ATTEMPT_ID,
        "sequence_id": FIRST_SEQUENCE_ID,
        "trace_id": trace_id,
        "span_id": span_id,
        "parent_id": "00f067aa0ba902b7",
        "name": "openai.chat.completion",
        "status": { "status_code": "OK", "description": null },
        "attributes": attributes,
        "events": [],
        "links": [],
        "start_time": 1_764_000_000.125,
        "end_time": 1_764_000_001.75,
        "context": { "trace_id": trace_id, "span_id": span_id, "is_remote": false, "trace_state": {} },
        "parent": { "trace_id": trace_id, "span_id": "00f067aa0ba902b7", "is_remote": false, "trace_state": {} },
        "resource": {
            "attributes": {
                "service.name": "agent",
                "telemetry.sdk.language": "python",
                "telemetry.sdk.name": "opentelemetry",
                "telemetry.sdk.version": "1.38.0",
            },
            "schema_url": "",
        },
    });
    Template::json("POST /v1/agl/spans", &body, 1)
}

/// Stores `count` spans of LLM calls by OTLP; rollout and attempt are told by the resource, as exporters do.
pub(crate) fn otlp(count: u32) -> Template {
    let spans = (0..u64::from(count))
        .map(|number| Span {
            trace_id: vec![
                0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47,
                0x36,
            ],
            span_id: (SPAN_MARK | number).to_be_bytes().to_vec(),
            parent_span_id: vec![0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7],
            name: "openai.chat.completion".to_owned(),
            kind: 3,
            start_time_unix_nano: 1_764_000_000_125_000_000 + number * 2_000_000_000,
            end_time_unix_nano: 1_764_000_001_750_000_000 + number * 2_000_000_000,
            attributes: attributes(number).into_iter().map(|(key, value)| pair(key, value)).collect(),
            status: Some(Status { message: String::new(), code: 1 }),
            ..Span::default()
        })
        .collect();
    let text = |text: &str| any_value::Value::StringValue(text.to_owned());
    let resource = [
        ("service.name", "agent"),
        ("telemetry.sdk.language", "python"),
        ("telemetry.sdk.name", "opentelemetry"),
        ("telemetry.sdk.version", "1.38.0"),
        ("agentlightning.rollout_id", ROLLOUT_ID),
        ("agentlightning.attempt_id", ATTEMPT_ID),
    ];
    let scope = InstrumentationScope { name: "agent".to_owned(), ..InstrumentationScope::default() };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: resource.iter().map(|(key, value)| pair(key, text(value))).collect(),
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    };
    Template::new("POST /v1/traces", "application/x-protobuf", &request.encode_to_vec(), count as usize)
}

/// Reads every span of a rollout.
pub(crate) fn read_rollout() -> Template {
    Template::new(&format!("GET /v1/agl/spans?rollout_id={ROLLOUT_ID}&limit=-1"), "", &[], 0)
}

/// Reads a hundred spans from the middle of a long rollout.
pub(crate) fn read_page(offset: u64) -> Template {
    let query =
        format!("rollout_id={ROLLOUT_ID}&limit=100&offset={offset}&sort_by=sequence_id&sort_order=asc");
    Template::new(&format!("GET /v1/agl/spans?{query}"), "", &[], 0)
}

fn pair(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// The fourteen attributes of an LLM call, about 3.5 kB of JSON with the rest of the span; its texts differ from
/// one `number` to the next.
fn attributes(number: u64) -> Vec<(&'static str, any_value::Value)> {
    use any_value::Value::{DoubleValue, IntValue};
    let text = |text: String| any_value::Value::StringValue(text);
    vec![
        ("gen_ai.request.model", text("Qwen/Qwen2.5-7B-Instruct".to_owned())),
        ("gen_ai.response.model", text("Qwen/Qwen2.5-7B-Instruct".to_owned())),
        ("gen_ai.response.id", text(format!("chatcmpl-{:032x}", number + 1))),
        ("gen_ai.request.temperature", DoubleValue(0.7)),
        ("gen_ai.usage.input_tokens", IntValue(412)),
        ("gen_ai.usage.output_tokens", IntValue(187)),
        ("llm.usage.total_tokens", IntValue(599)),
        ("gen_ai.prompt.0.role", text("system".to_owned())),
        ("gen_ai.prompt.0.content", text(prose(number * 3, 700))),
        ("gen_ai.prompt.1.role", text("user".to_owned())),
        ("gen_ai.prompt.1.content", text(prose(number * 3 + 1, 750))),
        ("gen_ai.completion.0.role", text("assistant".to_owned())),
        ("gen_ai.completion.0.content", text(prose(number * 3 + 2, 750))),
        ("gen_ai.completion.0.finish_reason", text("stop".to_owned())),
    ]
}

/// Text that looks like what people and models write, quotes and line breaks included.
fn prose(seed: u64, length: usize) -> String {
    const WORDS: [&str; 32] = [
        "the",
        "agent",
        "should",
        "answer",
        "with",
        "a",
        "number",
        "because",
        "every",
        "step",
        "of",
        "its",
        "plan",
        "is",
        "checked",
        "against",
        "tools",
        "and",
        "\"search\"",
        "returns",
        "three",
        "results",
        "for",
        "this",
        "question",
        "about",
        "rivers",
        "in",
        "Europe.\n",
        "however",
        "the user's",
        "intent",
    ];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut text = String::with_capacity(length + 16);
    while text.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let index = usize::try_from(state >> 59).unwrap_or_default();
        text.push_str(WORDS.get(index).copied().unwrap_or_default());
        text.push(' ');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        Claim { rollout_id: "ro-0123456789ab".to_owned(), attempt_id: "at-01234567".to_owned() }
    }

    fn body(bytes: &[u8]) -> &[u8] {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        &bytes[end + 4..]
    }

    #[test]
    fn a_span_gets_its_ids() {
        let mut template = rest_span();
        let span: Value = serde_json::from_slice(body(template.fill(Some(&claim()), 255))).unwrap();
        assert_eq!(span["rollout_id"], "ro-0123456789ab");
        assert_eq!(span["attempt_id"], "at-01234567");
        assert_eq!(span["span_id"], "00000000000000ff");
        assert_eq!(span["context"]["span_id"], "00000000000000ff");
        assert_eq!(span["sequence_id"], FIRST_SEQUENCE_ID + 255);
        assert_eq!(span["attributes"].as_object().unwrap().len(), 14);
        let size = span.to_string().len();
        assert!((3300..3700).contains(&size), "{size} bytes");
    }

    #[test]
    fn a_batch_gets_its_ids_again_and_again() {
        let mut template = otlp(10);
        template.fill(Some(&claim()), 7);
        let other = Claim { rollout_id: "ro-ba9876543210".to_owned(), attempt_id: "at-76543210".to_owned() };
        let bytes = template.fill(Some(&other), 1000);
        let request = ExportTraceServiceRequest::decode(body(bytes)).unwrap();
        let [group] = request.resource_spans.as_slice() else { panic!("one group") };
        let attributes = &group.resource.as_ref().unwrap().attributes;
        let words: Vec<_> = attributes
            .iter()
            .filter_map(|pair| match pair.value.as_ref()?.value.as_ref()? {
                any_value::Value::StringValue(text) => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert!(words.ends_with(&["ro-ba9876543210", "at-76543210"]), "{words:?}");
        let ids: Vec<_> = group.scope_spans[0].spans.iter().map(|span| span.span_id.clone()).collect();
        assert_eq!(ids, (1000u64..1010).map(|id| id.to_be_bytes().to_vec()).collect::<Vec<_>>());
    }
}
