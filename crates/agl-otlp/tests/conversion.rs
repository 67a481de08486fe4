//! From protobuf bytes to spans and back.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

use agl_types::semconv::{ATTEMPT_ID, ROLLOUT_ID, SPAN_SEQUENCE_ID};
use agl_types::{Event, JsonMap, Link, Span, SpanContext, StatusCode, TraceStatus, WrittenSpan};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event as WireEvent, Link as WireLink};
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span as WireSpan, Status as WireStatus,
};
use prost::Message as _;
use serde_json::{Value, json};

use agl_otlp::{Bounds, Error, ExportTraceServiceRequest, Format, Received, Rejected, Status};

fn any(value: Any) -> AnyValue {
    AnyValue { value: Some(value) }
}

fn attribute(key: &str, value: Any) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(any(value)), ..KeyValue::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Any::StringValue(value.to_owned()))
}

fn payload(resource: Vec<KeyValue>, spans: Vec<WireSpan>) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes: resource, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { spans, ..ScopeSpans::default() }],
            schema_url: "https://schema".to_owned(),
        }],
    }
}

/// Through the bytes, as over the wire.
fn through_bytes(request: &ExportTraceServiceRequest) -> Received {
    Format::Protobuf.receive(&request.encode_to_vec()).unwrap()
}

/// The span in the one place that it came in. What is written out has to be what serde writes, to the letter.
fn only(received: &Received) -> Span {
    assert_eq!(received.spans.len(), 1);
    let one = &received.spans[0];
    let span = one.span.parse().unwrap();
    assert_eq!(one.span, WrittenSpan::of(&span).unwrap());
    span
}

fn placed(attributes: Vec<KeyValue>) -> WireSpan {
    let ids = [text(ROLLOUT_ID, "ro-1"), text(ATTEMPT_ID, "at-1")];
    WireSpan { attributes: ids.into_iter().chain(attributes).collect(), ..WireSpan::default() }
}

#[test]
fn every_field_of_a_span_is_mapped() {
    let wire = WireSpan {
        trace_id: vec![0xAB; 16],
        span_id: vec![0, 0, 0, 0, 0, 0, 0, 0x0f],
        parent_span_id: vec![1, 2],
        name: "call".to_owned(),
        start_time_unix_nano: 1_700_000_000_500_000_000,
        end_time_unix_nano: 0,
        events: vec![WireEvent {
            time_unix_nano: 2_000_000_000,
            name: "token".to_owned(),
            attributes: vec![text("a", "b")],
            ..WireEvent::default()
        }],
        links: vec![WireLink { trace_id: vec![1; 16], span_id: vec![2; 8], ..WireLink::default() }],
        status: Some(WireStatus { message: "went wrong".to_owned(), code: 2 }),
        ..placed(vec![attribute(SPAN_SEQUENCE_ID, Any::IntValue(7))])
    };
    let received = through_bytes(&payload(vec![text("service.name", "agent")], vec![wire]));

    assert!(received.rejected.is_empty());
    assert!(received.spans[0].has_sequence_id);
    assert_eq!(
        serde_json::to_value(only(&received)).unwrap(),
        json!({
            "rollout_id": "ro-1", "attempt_id": "at-1", "sequence_id": 7,
            "trace_id": "ab".repeat(16), "span_id": "000000000000000f", "parent_id": "0000000000000102",
            "name": "call",
            "status": {"status_code": "ERROR", "description": "went wrong"},
            "attributes": {
                "agentlightning.rollout_id": "ro-1",
                "agentlightning.attempt_id": "at-1",
                "agentlightning.span_sequence_id": 7,
            },
            "events": [{"name": "token", "attributes": {"a": "b"}, "timestamp": 2.0}],
            "links": [{
                "context": {
                    "trace_id": "01".repeat(16), "span_id": "02".repeat(8), "is_remote": false, "trace_state": {},
                },
                "attributes": null,
            }],
            "start_time": 1_700_000_000.5, "end_time": null,
            "context": {
                "trace_id": "ab".repeat(16), "span_id": "000000000000000f", "is_remote": false, "trace_state": {},
            },
            "parent": null,
            "resource": {"attributes": {"service.name": "agent"}, "schema_url": "https://schema"},
        })
    );
}

#[test]
fn attribute_values_of_every_type_are_kept() {
    let list = Any::ArrayValue(ArrayValue {
        values: vec![any(Any::IntValue(1)), any(Any::StringValue("x".to_owned())), AnyValue { value: None }],
    });
    let numbers =
        Any::ArrayValue(ArrayValue { values: vec![any(Any::IntValue(1)), any(Any::DoubleValue(0.5))] });
    let map = Any::KvlistValue(KeyValueList { values: vec![attribute("inner", list.clone())] });
    let attributes = vec![
        attribute("bool", Any::BoolValue(true)),
        attribute("double", Any::DoubleValue(0.1)),
        attribute("nan", Any::DoubleValue(f64::NAN)),
        attribute("infinite", Any::DoubleValue(f64::NEG_INFINITY)),
        attribute("bytes", Any::BytesValue(vec![0xde, 0xad])),
        attribute("numbers", numbers),
        attribute("list", list),
        attribute("map", map),
        KeyValue { key: "nothing".to_owned(), ..KeyValue::default() },
    ];
    let event = WireEvent { attributes: attributes.clone(), ..WireEvent::default() };
    let link = WireLink { attributes: attributes.clone(), ..WireLink::default() };
    let span = WireSpan { events: vec![event], links: vec![link], ..placed(attributes.clone()) };
    let received = through_bytes(&payload(attributes, vec![span]));

    assert!(!received.spans[0].span.is_plain);
    let span = only(&received);
    let expected = json!({
        "bool": true, "double": 0.1, "nan": "NaN", "infinite": "-Infinity", "bytes": {"bytesValue": "3q0="},
        "numbers": [1, 0.5], "list": [1, "x", null], "map": {"inner": [1, "x", null]}, "nothing": null,
    });
    for got in
        [&span.resource.attributes, &span.events[0].attributes, span.links[0].attributes.as_ref().unwrap()]
    {
        assert_eq!(&Value::Object(got.clone()), &expected);
    }
    let got = &span.attributes;
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(got.get(key), Some(value), "{key}");
    }
}

#[test]
fn ids_of_the_span_go_before_those_of_the_resource() {
    let resource = vec![text(ROLLOUT_ID, "ro-r"), text(ATTEMPT_ID, "at-r"), text(SPAN_SEQUENCE_ID, "3")];
    let own = WireSpan { attributes: vec![text(ROLLOUT_ID, "ro-s")], ..WireSpan::default() };
    let received = through_bytes(&payload(resource, vec![own, WireSpan::default()]));

    let ids: Vec<_> = received
        .spans
        .iter()
        .map(|one| (one.span.rollout_id.as_str(), one.span.attempt_id.as_str(), one.span.sequence_id))
        .collect();
    assert_eq!(ids, [("ro-s", "at-r", 3), ("ro-r", "at-r", 3)]);
}

#[test]
fn sequence_ids_that_make_no_sense_are_left_to_the_store() {
    let cases = [
        (Any::IntValue(0), Some(0)),
        (Any::StringValue("12".to_owned()), Some(12)),
        (Any::IntValue(-1), None),
        (Any::StringValue("-4".to_owned()), None),
        (Any::StringValue("many".to_owned()), None),
        (Any::DoubleValue(1.5), None),
        (Any::BoolValue(true), None),
    ];
    for (value, expected) in cases {
        let request = payload(vec![], vec![placed(vec![attribute(SPAN_SEQUENCE_ID, value.clone())])]);
        let received = through_bytes(&request);
        let one = &received.spans[0];
        assert_eq!(one.has_sequence_id.then_some(one.span.sequence_id), expected, "{value:?}");
    }
    assert!(!through_bytes(&payload(vec![], vec![placed(vec![])])).spans[0].has_sequence_id);
}

#[test]
fn spans_without_ids_are_counted_and_the_others_kept() {
    let nameless = WireSpan { attributes: vec![text(ROLLOUT_ID, "ro-1")], ..WireSpan::default() };
    let empty =
        WireSpan { attributes: vec![text(ROLLOUT_ID, ""), text(ATTEMPT_ID, "at-1")], ..WireSpan::default() };
    let received = through_bytes(&payload(vec![], vec![nameless, placed(vec![]), empty]));

    assert_eq!(received.spans.len(), 1);
    assert_eq!(received.rejected.total(), 2);
    let answer = Format::Protobuf.response(&received.rejected);
    let answer = ExportTraceServiceResponse::decode(answer.as_slice()).unwrap();
    let partial = answer.partial_success.unwrap();
    assert_eq!(partial.rejected_spans, 2);
    assert!(partial.error_message.contains("agentlightning.rollout_id"), "{}", partial.error_message);
}

#[test]
fn full_success_is_no_bytes_and_no_bytes_are_an_empty_request() {
    assert!(Format::Protobuf.response(&Rejected::default()).is_empty());
    assert_eq!(Format::Protobuf.receive(&[]).unwrap(), Received::default());
}

#[test]
fn bytes_that_are_something_else_are_refused() {
    let error = Format::Protobuf.receive(b"\x0a\xff not protobuf").unwrap_err();
    assert!(error.to_string().starts_with("Unable to parse OTLP traces payload: "), "{error}");
    assert_eq!(Status::decode(Format::Protobuf.error("no").as_slice()).unwrap().message, "no");
}

#[test]
fn a_span_comes_back_as_it_was_sent() {
    let mut span = Span::new("call", "0a".repeat(16), "0b".repeat(8), 1_700_000_000.25, 1_700_000_001.5)
        .placed("ro-1", "at-1", 4)
        .with_attribute("prompt_token_ids", json!([1, 2, 3]))
        .with_attribute("temperature", 0.5)
        .with_attribute("flags", json!([true, false]))
        .with_attribute("nested", json!({"null": null, "mixed": [1, "a", [{}]]}))
        .with_attribute("bytes", agl_types::bytes_attribute(b"\x00\xff"));
    span.parent_id = Some("0c".repeat(8));
    span.status = TraceStatus { description: Some("slow".to_owned()), ..TraceStatus::new(StatusCode::Error) };
    span.resource.attributes.insert("service.name".to_owned(), Value::from("agent"));
    span.events.push(Event {
        name: "e".to_owned(),
        attributes: JsonMap::from_iter([("k".to_owned(), json!(1))]),
        timestamp: Some(1.5),
        extra: JsonMap::new(),
    });
    span.links.push(Link {
        context: SpanContext {
            trace_id: "0d".repeat(16),
            span_id: "0e".repeat(8),
            is_remote: false,
            trace_state: JsonMap::new(),
            extra: JsonMap::new(),
        },
        attributes: None,
        extra: JsonMap::new(),
    });

    let received = through_bytes(&agl_otlp::request(std::slice::from_ref(&span)));
    // The ids travel as attributes, which a receiver keeps.
    let expected = span
        .with_attribute(ROLLOUT_ID, "ro-1")
        .with_attribute(ATTEMPT_ID, "at-1")
        .with_attribute(SPAN_SEQUENCE_ID, 4);
    assert!(received.spans[0].has_sequence_id);
    assert_eq!(only(&received), expected);

    // The place is the receiver's to give.
    let placeless = Span { sequence_id: -1, ..expected };
    let received = through_bytes(&agl_otlp::request(std::slice::from_ref(&placeless)));
    assert!(!received.spans[0].has_sequence_id);
    assert_eq!(only(&received).attributes.get(SPAN_SEQUENCE_ID), None);
}

#[test]
fn a_sender_learns_what_was_not_kept() {
    let mut rejected = Rejected::default();
    assert_eq!(agl_otlp::rejections(&Format::Protobuf.response(&rejected)).unwrap(), (0, String::new()));
    rejected.add_many("too late", 2);
    let told = agl_otlp::rejections(&Format::Protobuf.response(&rejected)).unwrap();
    assert_eq!(told, (2, "2 spans: too late".to_owned()));
    assert!(agl_otlp::rejections(b"{}").is_err());
}

/// What the spans of one resource become is longer than what they are sent as.
#[test]
fn a_request_holds_no_more_than_its_bounds() {
    let ids = [text(ROLLOUT_ID, "ro-1"), text(ATTEMPT_ID, "at-1"), text("shared", &"x".repeat(1000))];
    let request = payload(ids.to_vec(), vec![WireSpan::default(); 10]).encode_to_vec();
    assert!(request.len() < 2000);
    let within = |spans: usize, bytes: usize| {
        Format::Protobuf
            .receive_within(&request, Bounds { spans, bytes })
            .map(|received| received.spans.len())
    };
    assert_eq!(within(10, 100_000), Ok(10));
    assert_eq!(within(9, 100_000), Err(Error::TooMuch { limit: 9, what: "spans" }));
    assert!(matches!(within(10, 10_000), Err(Error::TooMuch { limit: 10_000, .. })));
}

/// The same span in OTLP's JSON, as exporters write it, and with everything that readers have to put up with.
#[test]
fn json_is_read_as_protobuf_is() {
    let ids = json!([
        {"key": ROLLOUT_ID, "value": {"stringValue": "ro-1"}},
        {"key": ATTEMPT_ID, "value": {"stringValue": "at-1"}},
    ]);
    let body = json!({
        "resourceSpans": [{
            "resource": {"attributes": ids, "droppedAttributesCount": 0},
            "schemaUrl": "https://schema",
            "scopeSpans": [{
                "scope": {"name": "lib", "version": null},
                "spans": [{
                    "traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "eee19b7ec3c1b174",
                    "parentSpanId": "", "name": "call", "kind": 2, "flags": 257,
                    "startTimeUnixNano": "1700000000500000000", "endTimeUnixNano": 1_700_000_001_500_000_000_u64,
                    "attributes": [
                        {"key": "text", "value": {"stringValue": ""}},
                        {"key": "count", "value": {"intValue": "-9223372036854775808"}},
                        {"key": "small", "value": {"intValue": 3}},
                        {"key": "huge", "value": {"intValue": 1e21}},
                        {"key": "share", "value": {"doubleValue": 1}},
                        {"key": "nan", "value": {"doubleValue": "NaN"}},
                        {"key": "endless", "value": {"doubleValue": "-Infinity"}},
                        {"key": "yes", "value": {"boolValue": false}},
                        {"key": "list", "value": {"arrayValue": {"values": [{"intValue": 1}, {}, {"boolValue": true}]}}},
                        {"key": "none", "value": {"arrayValue": {}}},
                        {"key": "map", "value": {"kvlistValue": {"values": [{"key": "k", "value": {"bytesValue": "_-8"}}]}}},
                        {"key": "bytes", "value": {"bytesValue": "3q0="}},
                        {"key": "null", "value": null},
                        {"key": "later", "value": {"newValue": {"a": [1]}, "stringValue": null}},
                    ],
                    "events": [{"timeUnixNano": "2000000000", "name": "token", "attributes": null}],
                    "links": [{"traceId": "01".repeat(16), "spanId": "02".repeat(8), "attributes": []}],
                    "status": {"code": 2, "message": "went wrong"},
                    "unheard": {"of": [1]},
                }],
            }],
        }],
    });
    let span = only(&Format::Json.receive(body.to_string().as_bytes()).unwrap());
    assert_eq!((span.rollout_id.as_str(), span.attempt_id.as_str()), ("ro-1", "at-1"));
    assert_eq!(span.trace_id, "5b8efff798038103d269b633813fc60c");
    assert_eq!((span.span_id.as_str(), &span.parent_id), ("eee19b7ec3c1b174", &None));
    assert_eq!((span.start_time, span.end_time), (Some(1_700_000_000.5), Some(1_700_000_001.5)));
    assert_eq!(
        Value::Object(span.attributes.clone()),
        json!({
            "text": "", "count": i64::MIN, "small": 3, "huge": 1e21, "share": 1.0, "nan": "NaN",
            "endless": "-Infinity", "yes": false, "list": [1, null, true], "none": [],
            "map": {"k": {"bytesValue": "/+8="}}, "bytes": {"bytesValue": "3q0="}, "null": null, "later": null,
        })
    );
    assert_eq!((span.events[0].name.as_str(), span.events[0].timestamp), ("token", Some(2.0)));
    assert_eq!((span.links[0].context.span_id.clone(), &span.links[0].attributes), ("02".repeat(8), &None));
    assert_eq!(
        (span.status.status_code, span.status.description.as_deref()),
        (StatusCode::Error, Some("went wrong"))
    );
    assert_eq!(span.resource.schema_url, "https://schema");
}

#[test]
fn json_that_is_something_else_is_refused_by_the_field() {
    let of_span = |span: Value| json!({"resourceSpans": [{"scopeSpans": [{"spans": [{}, span]}]}]});
    let cases = [
        (json!([]), "the request is not an object"),
        (json!({"resourceSpans": 1}), "resourceSpans is not a list"),
        (json!({"resourceSpans": [1]}), "resourceSpans.0 is not an object"),
        (
            of_span(json!({"traceId": "xyz0"})),
            "resourceSpans.0.scopeSpans.0.spans.1.traceId is not hexadecimal",
        ),
        (of_span(json!({"spanId": "abc"})), "spans.1.spanId is not hexadecimal"),
        (of_span(json!({"startTimeUnixNano": -1})), "spans.1.startTimeUnixNano is not a time"),
        (
            of_span(json!({"attributes": [{"key": "k", "value": {"intValue": "1.5"}}]})),
            "spans.1.attributes.0.value.intValue is not an integer",
        ),
        (
            of_span(json!({"events": [{"attributes": [{"value": {"bytesValue": "?"}}]}]})),
            "spans.1.events.0.attributes.0.value.bytesValue is not base64",
        ),
    ];
    for (body, expected) in cases {
        let error = Format::Json.receive(body.to_string().as_bytes()).unwrap_err().to_string();
        assert!(
            error.starts_with("Unable to parse OTLP traces payload: ") && error.contains(expected),
            "{error}"
        );
    }
    assert!(Format::Json.receive(b"{").unwrap_err().to_string().contains("EOF"));
}

#[test]
fn json_answers_are_those_of_protobuf() {
    assert_eq!(Format::Json.response(&Rejected::default()), b"{}");
    let mut rejected = Rejected::default();
    rejected.add("no");
    rejected.add("no");
    let json = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
    assert_eq!(
        json(Format::Json.response(&rejected)),
        json!({"partialSuccess": {"rejectedSpans": "2", "errorMessage": "2 spans: no"}})
    );
    assert_eq!(json(Format::Json.error("bad")), json!({"message": "bad"}));
}

/// Of a repeated key the last value counts, in the first one's place, however many keys there are.
#[test]
fn repeated_keys_are_there_once() {
    for count in [1, 31, 32, 33, 100] {
        let key = |number: i32| format!("k{number}");
        let twice = (0..count).chain(0..count).enumerate();
        let attributes = twice
            .map(|(place, number)| attribute(&key(number), Any::IntValue(i64::try_from(place).unwrap())));
        let span = only(&through_bytes(&payload(vec![], vec![placed(attributes.collect())])));
        let keys: Vec<_> = span.attributes.keys().skip(2).cloned().collect();
        assert_eq!(keys, (0..count).map(key).collect::<Vec<_>>());
        assert_eq!(span.attributes["k0"], json!(count));
    }
}

/// Whether 0.3's models can read a span is found out on the way.
#[test]
fn plain_is_what_span_says_it_is() {
    let lists = [
        (json!([]), true),
        (json!(["a", "b"]), true),
        (json!([1, 0.5]), true),
        (json!([true]), true),
        (json!([true, 1]), false),
        (json!([["a"]]), false),
        (json!(null), false),
        (json!({}), false),
    ];
    for (value, is_plain) in lists {
        let span = Span::new("s", "0a".repeat(16), "0b".repeat(8), 1.0, 2.0).placed("r", "a", 1);
        let in_span = span.clone().with_attribute("k", value.clone());
        let mut in_resource = span.clone();
        in_resource.resource.attributes.insert("k".to_owned(), value.clone());
        let mut in_event = span;
        in_event.events.push(Event {
            name: "e".to_owned(),
            attributes: JsonMap::from_iter([("k".to_owned(), value.clone())]),
            timestamp: None,
            extra: JsonMap::new(),
        });
        for span in [in_span, in_resource, in_event] {
            let received = through_bytes(&agl_otlp::request(&[span]));
            assert_eq!(received.spans[0].span.is_plain, is_plain, "{value}");
            only(&received);
        }
    }
}

/// Whatever bytes come, they are read or refused.
#[test]
fn damaged_payloads_are_refused_or_read() {
    let span = Span::new("s", "0a".repeat(16), "0b".repeat(8), 1.0, 2.0)
        .placed("r", "a", 1)
        .with_attribute("k", json!({"a": [1, "x", null]}));
    let good = agl_otlp::request(&[span]).encode_to_vec();
    for cut in 1..good.len() {
        assert!(Format::Protobuf.receive(&good[..cut]).is_err(), "cut at {cut}");
    }
    for place in 0..good.len() {
        for value in [0, 1, 0x0b, 0x7f, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[place] = value;
            // What is read as something must be something that can be read again.
            for one in Format::Protobuf.receive(&bad).map(|received| received.spans).unwrap_or_default() {
                one.span.parse().unwrap();
            }
        }
    }
}

/// What no sender means, and would break whoever reads it.
#[test]
fn nesting_has_an_end() {
    let nested = |levels: usize| {
        (0..levels)
            .fold(any(Any::IntValue(1)), |inner, _| any(Any::ArrayValue(ArrayValue { values: vec![inner] })))
    };
    let received = |levels: usize| {
        let deep = KeyValue { key: "k".to_owned(), value: Some(nested(levels)), ..KeyValue::default() };
        Format::Protobuf.receive(&payload(vec![], vec![placed(vec![deep])]).encode_to_vec())
    };
    assert!(received(agl_types::MAX_ATTRIBUTE_DEPTH).is_ok());
    assert!(
        received(agl_types::MAX_ATTRIBUTE_DEPTH + 1).unwrap_err().to_string().contains("nested too deeply")
    );
}

/// Every character there is up to the first that is none of ASCII's, at every place.
#[test]
fn text_is_written_as_serde_writes_it() {
    let alphabet: String = (0..=0x80_u8).map(char::from).collect();
    for length in [0, 1, 31, 32, 33, 64, 100] {
        let calm = "é".repeat(length);
        let texts =
            alphabet.chars().map(|odd| format!("{calm}{odd}{calm}")).chain([calm.clone(), alphabet.clone()]);
        let attributes = texts.enumerate().map(|(number, value)| text(&format!("{value}{number}"), &value));
        let wire = WireSpan { name: alphabet.clone(), ..placed(attributes.collect()) };
        only(&through_bytes(&payload(vec![], vec![wire])));
    }
}
