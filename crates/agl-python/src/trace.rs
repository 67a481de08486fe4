//! Reading spans. Arguments and answers are JSON; the functions of agl-trace say what they mean.

use agl_trace::TripletOptions;
use agl_types::Span;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde::Serialize;
use serde_json::Value;

use crate::completion::Outcome;
use crate::dispatch::{read, reply};
use crate::failure::Failure;

impl From<agl_trace::Error> for Failure {
    fn from(error: agl_trace::Error) -> Self {
        Self::invalid(None, error.to_string())
    }
}

/// Runs `work` without the interpreter's lock.
fn answer<'py>(py: Python<'py>, work: impl FnOnce() -> Outcome + Send) -> PyResult<Bound<'py, PyBytes>> {
    Ok(PyBytes::new(py, &py.detach(work)?))
}

fn of_spans<'py, T: Serialize>(
    py: Python<'py>,
    spans: &[u8],
    find: impl FnOnce(&[Span]) -> T + Send,
) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || reply(&find(&read::<Vec<Span>>(spans)?)))
}

/// One triplet per LLM call of a trace: a list of spans and the options of `TripletOptions`.
#[pyo3::pyfunction]
pub(crate) fn trace_to_triplets<'py>(
    py: Python<'py>,
    spans: &[u8],
    options: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || {
        let options: TripletOptions = read(options)?;
        reply(&agl_trace::spans_to_triplets(&read::<Vec<Span>>(spans)?, &options).map_err(Failure::from)?)
    })
}

/// A trace as a nested tree, `{"id", "span", "children"}` at every node.
#[pyo3::pyfunction]
pub(crate) fn trace_to_tree<'py>(
    py: Python<'py>,
    spans: &[u8],
    repair_hierarchy: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || {
        reply(&agl_trace::tree_to_json(&read::<Vec<Span>>(spans)?, repair_hierarchy).map_err(Failure::from)?)
    })
}

/// The primary value of the last reward of a list of spans; null without one.
#[pyo3::pyfunction]
pub(crate) fn find_final_reward<'py>(py: Python<'py>, spans: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    of_spans(py, spans, agl_trace::find_final_reward)
}

/// The dimensions of the reward that a span holds, the primary one first; an empty list without one.
#[pyo3::pyfunction]
pub(crate) fn get_rewards_from_span<'py>(py: Python<'py>, span: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || reply(&agl_trace::get_rewards_from_span(&read::<Span>(span)?)))
}

/// The primary value of the reward that a span holds; null without one.
#[pyo3::pyfunction]
pub(crate) fn get_reward_value<'py>(py: Python<'py>, span: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || reply(&agl_trace::get_reward_value(&read::<Span>(span)?)))
}

/// The attributes of an OpenAI chat call's span, from its request and response.
#[pyo3::pyfunction]
pub(crate) fn chat_attributes<'py>(
    py: Python<'py>,
    request: &[u8],
    response: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || reply(&agl_trace::chat_attributes(&read::<Value>(request)?, &read::<Value>(response)?)))
}

/// Pairs of name and attributes, one for each tool call in an OpenAI chat response.
#[pyo3::pyfunction]
pub(crate) fn tool_call_attributes<'py>(py: Python<'py>, response: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || reply(&agl_trace::tool_call_attributes(&read::<Value>(response)?)))
}
