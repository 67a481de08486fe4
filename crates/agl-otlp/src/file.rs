//! Files of OTLP traces, as OpenTelemetry's collector and its SDKs write them.

use agl_types::semconv::{ATTEMPT_ID, ROLLOUT_ID};
use agl_types::{Span, ids};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message as _;

use crate::{Error, Format};

/// Reads the spans of a file: one export request as protobuf or as JSON, or one as JSON on each line. They need not name
/// a rollout; whatever they name is forgotten.
///
/// # Errors
/// [`Error::Payload`] when it is none of these.
pub fn spans_of_file(bytes: &[u8]) -> Result<Vec<Span>, Error> {
    let is_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if !is_json {
        let request =
            ExportTraceServiceRequest::decode(bytes).map_err(|error| Error::payload(error.to_string()))?;
        return spans(request);
    }
    if let Ok(request) = crate::json::decode(bytes) {
        return spans(request);
    }
    let mut all = Vec::new();
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match crate::json::decode(line) {
            Ok(request) => all.extend(spans(request)?),
            Err(Error::Payload { message }) => {
                return Err(Error::payload(format!("line {}: {message}", number + 1)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// The spans of a request, whichever rollout they are of.
fn spans(mut request: ExportTraceServiceRequest) -> Result<Vec<Span>, Error> {
    // A span that names no rollout would be passed over: it goes by its trace until the store knows better.
    for group in &mut request.resource_spans {
        for scope in &mut group.scope_spans {
            for span in &mut scope.spans {
                span.attributes.retain(|pair| pair.key != ROLLOUT_ID && pair.key != ATTEMPT_ID);
                let trace_id = ids::hex(&span.trace_id, 32);
                for key in [ROLLOUT_ID, ATTEMPT_ID] {
                    let value = Some(AnyValue { value: Some(Value::StringValue(trace_id.clone())) });
                    span.attributes.push(KeyValue { key: key.to_owned(), value, ..KeyValue::default() });
                }
            }
        }
    }
    let received = Format::Protobuf.receive(&request.encode_to_vec())?;
    received
        .spans
        .into_iter()
        .map(|received| {
            let mut json = Vec::new();
            received.span.write_to(&mut json);
            let mut span: Span =
                serde_json::from_slice(&json).map_err(|error| Error::payload(error.to_string()))?;
            span.attributes.shift_remove(ROLLOUT_ID);
            span.attributes.shift_remove(ATTEMPT_ID);
            Ok(span)
        })
        .collect()
}
