//! Reading spans. Arguments and answers are JSON; the functions of agl-trace say what they mean.

use agl_export::{Arrays, TrainingRequest};
use agl_trace::advantage::Estimator;
use agl_trace::{AutoOptions, RolloutData, RolloutTrace, TrainingOptions};
use agl_types::Span;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};
use serde::Serialize;
use serde_json::Value;

use crate::completion::Outcome;
use crate::dispatch::{read, reply};
use crate::failure::Failure;
use crate::runtime::runtime;
use crate::store::{Store, wait};

impl From<agl_trace::Error> for Failure {
    fn from(error: agl_trace::Error) -> Self {
        match error {
            agl_trace::Error::MissingKey { .. } => Self::missing(error.to_string()),
            error => Self::invalid(None, error.to_string()),
        }
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

/// Triplets of any trace, and how they were found: a list of spans and the options of `AutoOptions`.
#[pyo3::pyfunction]
pub(crate) fn auto_triplets<'py>(
    py: Python<'py>,
    spans: &[u8],
    options: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || {
        let options: AutoOptions = read(options)?;
        reply(&agl_trace::auto_triplets(&read::<Vec<Span>>(spans)?, &options).map_err(Failure::from)?)
    })
}

/// Every call of a trace, whoever recorded it.
#[pyo3::pyfunction]
pub(crate) fn read_calls<'py>(py: Python<'py>, spans: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    of_spans(py, spans, agl_trace::read_calls)
}

/// The call that one span records, as the request and the response of OpenAI's chat API; null when it records none.
#[pyo3::pyfunction]
pub(crate) fn call_as_chat<'py>(py: Python<'py>, span: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || {
        let call = agl_trace::read_call(&read::<Span>(span)?, &[]);
        reply(&call.map(|call| call.to_request_and_response()))
    })
}

/// The messages and tools of every call of a trace, as 0.3's `TraceToMessages` has them.
#[pyo3::pyfunction]
pub(crate) fn trace_to_messages<'py>(py: Python<'py>, spans: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || reply(&agl_trace::spans_to_messages(&read::<Vec<Span>>(spans)?).map_err(Failure::from)?))
}

/// Rows and a report of attempts: a list of `RolloutTrace` and the options of `TrainingOptions`.
#[pyo3::pyfunction]
pub(crate) fn training_data<'py>(
    py: Python<'py>,
    traces: &[u8],
    options: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || {
        let traces: Vec<RolloutTrace> = read(traces)?;
        let options: TrainingOptions = read(options)?;
        reply(&agl_trace::training_data(&traces, &options).map_err(Failure::from)?)
    })
}

/// Conversations of attempts, to fine-tune on.
#[pyo3::pyfunction]
pub(crate) fn conversations<'py>(
    py: Python<'py>,
    traces: &[u8],
    options: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || {
        let data = rollouts(traces, options)?;
        reply(&data.iter().flat_map(agl_trace::conversations).collect::<Vec<_>>())
    })
}

/// Pairs of conversations, of which the first earned more by `margin` at least.
#[pyo3::pyfunction]
pub(crate) fn preference_pairs<'py>(
    py: Python<'py>,
    traces: &[u8],
    options: &[u8],
    margin: f64,
) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || reply(&agl_trace::preference_pairs(&rollouts(traces, options)?, margin)))
}

/// Attempts in the Agent Trajectory Interchange Format.
#[pyo3::pyfunction]
pub(crate) fn atif<'py>(py: Python<'py>, traces: &[u8], options: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || {
        let inputs: Vec<RolloutTrace> = read(traces)?;
        let options: TrainingOptions = read(options)?;
        let written: Vec<Value> = inputs
            .iter()
            .map(|trace| {
                let input = trace.rollout.as_ref().map(|rollout| rollout.input.clone()).unwrap_or_default();
                let data = agl_trace::read_rollout(trace, &options).map_err(Failure::from)?;
                Ok(agl_trace::atif::trajectory(&data, &input))
            })
            .collect::<Result<_, Failure>>()?;
        reply(&written)
    })
}

fn rollouts(traces: &[u8], options: &[u8]) -> Result<Vec<RolloutData>, Failure> {
    let traces: Vec<RolloutTrace> = read(traces)?;
    let options: TrainingOptions = read(options)?;
    traces.iter().map(|trace| agl_trace::read_rollout(trace, &options).map_err(Failure::from)).collect()
}

/// The advantage of each rollout: its group and its reward, null for none.
#[pyo3::pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a list of Python's has to be copied")]
pub(crate) fn advantages(
    estimator: &str,
    groups: Vec<String>,
    rewards: Vec<Option<f64>>,
) -> PyResult<Vec<Option<f64>>> {
    let estimator: Estimator = serde_json::from_value(estimator.into())
        .map_err(|error| Failure::invalid(Some("estimator".to_owned()), format!("estimator: {error}")))?;
    if groups.len() != rewards.len() {
        let message = format!(
            "groups has {} entries and rewards {}: give one for each rollout",
            groups.len(),
            rewards.len()
        );
        return Err(Failure::invalid(Some("rewards".to_owned()), message).into());
    }
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    Ok(agl_trace::advantage::advantages(estimator, &groups, &rewards))
}

/// What a text says that is a Python literal or JSON, as JSON.
#[pyo3::pyfunction]
pub(crate) fn python_value<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyBytes>> {
    answer(py, || reply(&agl_trace::python_value(&text.into())))
}

/// A column of numbers, which NumPy takes as it is, by version 3 of its array interface.
#[pyo3::pyclass(frozen, module = "agentlightning._core")]
pub(crate) struct Column(Numbers);

enum Numbers {
    Int64(Vec<i64>),
    UInt32(Vec<u32>),
    UInt8(Vec<u8>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
}

#[pyo3::pymethods]
impl Column {
    /// Where the numbers are, and of which kind.
    #[getter(__array_interface__)]
    fn array_interface<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (kind, place, count) = match &self.0 {
            Numbers::Int64(numbers) => ("i8", numbers.as_ptr().addr(), numbers.len()),
            Numbers::UInt32(numbers) => ("u4", numbers.as_ptr().addr(), numbers.len()),
            Numbers::UInt8(numbers) => ("u1", numbers.as_ptr().addr(), numbers.len()),
            Numbers::Float32(numbers) => ("f4", numbers.as_ptr().addr(), numbers.len()),
            Numbers::Float64(numbers) => ("f8", numbers.as_ptr().addr(), numbers.len()),
        };
        let order = if cfg!(target_endian = "little") { '<' } else { '>' };
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", (count,))?;
        interface.set_item("typestr", format!("{order}{kind}"))?;
        // Nobody may write there.
        interface.set_item("data", (place, true))?;
        Ok(interface)
    }
}

/// A list of texts; those that repeat the one before are the same object.
fn texts<'t, 'py>(
    py: Python<'py>,
    texts: impl Iterator<Item = Option<&'t str>>,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    let mut last = (None, py.None().into_bound(py));
    for text in texts {
        if text != last.0 {
            let object =
                text.map_or_else(|| py.None().into_bound(py), |text| PyString::new(py, text).into_any());
            last = (text, object);
        }
        list.append(&last.1)?;
    }
    Ok(list)
}

/// Flat arrays of rows: columns of numbers and lists of texts by name, and the report as JSON.
fn arrays_to_python(py: Python<'_>, arrays: Arrays) -> PyResult<(Bound<'_, PyDict>, Bound<'_, PyBytes>)> {
    let report = reply(&arrays.report)?;
    let columns = PyDict::new(py);
    for (name, numbers) in [
        ("offsets", Numbers::Int64(arrays.offsets)),
        ("token_ids", Numbers::UInt32(arrays.token_ids)),
        ("mask", Numbers::UInt8(arrays.mask)),
        ("logprobs", Numbers::Float32(arrays.logprobs)),
        ("rewards", Numbers::Float64(arrays.rewards)),
        ("advantages", Numbers::Float64(arrays.advantages)),
        ("weights", Numbers::Float64(arrays.weights)),
    ] {
        columns.set_item(name, Column(numbers).into_pyobject(py)?)?;
    }
    let known = |column: &[String]| texts(py, column.iter().map(|text| Some(text.as_str())));
    columns.set_item("rollout_ids", known(&arrays.rollout_ids)?)?;
    columns.set_item("attempt_ids", known(&arrays.attempt_ids)?)?;
    columns.set_item("groups", known(&arrays.groups)?)?;
    columns.set_item("agents", texts(py, arrays.agents.iter().map(Option::as_deref))?)?;
    columns.set_item("models", texts(py, arrays.models.iter().map(Option::as_deref))?)?;
    Ok((columns, PyBytes::new(py, &report)))
}

/// Training data of a store's rollouts as flat arrays; `request` is a `TrainingRequest`.
#[pyo3::pyfunction]
pub(crate) fn store_arrays<'py>(
    py: Python<'py>,
    store: &Store,
    request: &[u8],
) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyBytes>)> {
    let request: TrainingRequest = read(request)?;
    let store = store.inner();
    let made = async move { agl_export::training_arrays(store, &request).await };
    let arrays = wait(py, runtime(py)?, made)?.map_err(Failure::from)?;
    arrays_to_python(py, arrays)
}

/// Training data of attempts as flat arrays: a list of `RolloutTrace` and the options of `TrainingOptions`.
#[pyo3::pyfunction]
pub(crate) fn trace_arrays<'py>(
    py: Python<'py>,
    traces: &[u8],
    options: &[u8],
) -> PyResult<(Bound<'py, PyDict>, Bound<'py, PyBytes>)> {
    let arrays = py.detach(|| {
        let traces: Vec<RolloutTrace> = read(traces)?;
        let options: TrainingOptions = read(options)?;
        let data = agl_trace::training_data(&traces, &options).map_err(Failure::from)?;
        Arrays::of(data.rows, &data.report).map_err(Failure::from)
    })?;
    arrays_to_python(py, arrays)
}

/// Rows packed into buffers: of each buffer its rows and where they begin in it. `batches` are first and last row, exclusive.
#[pyo3::pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a list of Python's has to be copied")]
pub(crate) fn pack(
    lengths: Vec<usize>,
    batches: Vec<(usize, usize)>,
    capacity: usize,
) -> PyResult<Vec<(Vec<usize>, Vec<usize>)>> {
    if let Some((first, last)) = batches.iter().find(|(first, last)| first > last || *last > lengths.len()) {
        let message = format!("batch ({first}, {last}) is not within the {} rows", lengths.len());
        return Err(Failure::invalid(Some("batches".to_owned()), message).into());
    }
    let batches: Vec<_> = batches.into_iter().map(|(first, last)| first..last).collect();
    let packed = agl_trace::trajectory::pack(&lengths, &batches, capacity);
    Ok(packed.into_iter().map(|packed| (packed.rows, packed.cu_seqlens)).collect())
}

/// Rows cut into batches of at least `size` rows without parting those of a group: first and last row of each, exclusive.
#[pyo3::pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a list of Python's has to be copied")]
pub(crate) fn batches(groups: Vec<String>, size: usize) -> Vec<(usize, usize)> {
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let ranges = agl_trace::trajectory::batches(&groups, size);
    ranges.into_iter().map(|range| (range.start, range.end)).collect()
}

impl From<agl_export::Error> for Failure {
    fn from(error: agl_export::Error) -> Self {
        match error {
            agl_export::Error::Store(error) => error.into(),
            agl_export::Error::Trace(error) => error.into(),
            error => Self::backend(error.to_string()),
        }
    }
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
