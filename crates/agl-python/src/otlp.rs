//! What a sender of OTLP writes and reads.

use agl_otlp::{Status, rejections, request};
use agl_types::Span;
use prost::Message as _;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::dispatch::read;
use crate::failure::Failure;

/// No place in a rollout, so that the store gives one.
const NO_PLACE: i64 = -1;

/// An export request in protobuf with these spans, JSON, in places that are the store's to give.
#[pyo3::pyfunction]
pub(crate) fn otlp_request<'py>(py: Python<'py>, spans: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let encoded = py.detach(|| {
        let mut spans: Vec<Span> = read(spans)?;
        spans.iter_mut().for_each(|span| span.sequence_id = NO_PLACE);
        Ok::<_, Failure>(request(&spans).encode_to_vec())
    })?;
    Ok(PyBytes::new(py, &encoded))
}

/// How many spans the answer to an export request says that were not kept, and why.
#[pyo3::pyfunction]
pub(crate) fn otlp_rejected(answer: &[u8]) -> PyResult<(u64, String)> {
    Ok(rejections(answer).map_err(|error| Failure::invalid(None, error.to_string()))?)
}

/// Why an export request was refused, by its answer; empty where that says nothing.
#[pyo3::pyfunction]
pub(crate) fn otlp_refusal(answer: &[u8]) -> String {
    Status::decode(answer).map(|status| status.message).unwrap_or_default()
}
