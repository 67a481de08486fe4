//! Python's spans, read where they are: no JSON in between, and lists of numbers only by reference.

use agl_trace::{TraceTree, TripletOptions, span_to_triplet, tree_calls};
use agl_types::{Attributes, JsonMap, Span, StatusCode, Triplet};
use pyo3::IntoPyObjectExt as _;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use serde_json::{Number, Value};

use crate::dispatch::read;
use crate::failure::Failure;

/// A list of this number that stands alone in a list is one of Python's own, by reference: this less its place. No token
/// and no other attribute is so small.
const FIRST_REFERENCE: i64 = i64::MIN / 2;

/// Lists shorter than this are copied.
const SHORT: usize = 4;

/// Python's spans, and the lists in them that were not copied.
struct Borrowed<'py> {
    spans: Vec<Span>,
    lists: Vec<Bound<'py, PyAny>>,
}

impl<'py> Borrowed<'py> {
    fn of(spans: &Bound<'py, PyAny>) -> PyResult<Self> {
        let mut borrowed = Self { spans: Vec::new(), lists: Vec::new() };
        for span in spans.try_iter()? {
            let span = borrowed.span(&span?)?;
            borrowed.spans.push(span);
        }
        Ok(borrowed)
    }

    fn span(&mut self, span: &Bound<'py, PyAny>) -> PyResult<Span> {
        let py = span.py();
        // A pydantic model keeps its fields there.
        let fields = span.getattr(intern!(py, "__dict__"))?;
        let fields = fields.cast::<PyDict>()?;
        let get = |name: &Bound<'py, PyString>| {
            fields.get_item(name).map(|value| value.filter(|value| !value.is_none()))
        };
        let text = |name: &Bound<'py, PyString>| -> PyResult<Option<String>> {
            get(name)?.map(|value| value.extract()).transpose()
        };
        let time = |name: &Bound<'py, PyString>| -> PyResult<Option<f64>> {
            get(name)?.map(|value| value.extract()).transpose()
        };
        let name = text(intern!(py, "name"))?.unwrap_or_default();
        let trace_id = text(intern!(py, "trace_id"))?.unwrap_or_default();
        let span_id = text(intern!(py, "span_id"))?.unwrap_or_default();
        let mut read = Span::new(name, trace_id, span_id, 0.0, 0.0);
        read.context = None;
        read.parent_id = text(intern!(py, "parent_id"))?;
        read.rollout_id = text(intern!(py, "rollout_id"))?.unwrap_or_default();
        read.attempt_id = text(intern!(py, "attempt_id"))?.unwrap_or_default();
        read.sequence_id =
            get(intern!(py, "sequence_id"))?.map(|value| value.extract()).transpose()?.unwrap_or_default();
        read.start_time = time(intern!(py, "start_time"))?;
        read.end_time = time(intern!(py, "end_time"))?;
        read.status.status_code = StatusCode::Unset;
        if let Some(attributes) = get(intern!(py, "attributes"))? {
            read.attributes = self.attributes(&attributes)?;
        }
        Ok(read)
    }

    fn attributes(&mut self, attributes: &Bound<'py, PyAny>) -> PyResult<Attributes> {
        let mut read = Attributes::new();
        let Ok(attributes) = attributes.cast::<PyDict>() else { return Ok(read) };
        for (key, value) in attributes {
            read.insert(key.cast::<PyString>()?.to_str()?.to_owned(), self.value(&value)?);
        }
        Ok(read)
    }

    fn value(&mut self, value: &Bound<'py, PyAny>) -> PyResult<Value> {
        if let Ok(text) = value.cast::<PyString>() {
            return Ok(text.to_str()?.into());
        }
        if let Ok(flag) = value.cast::<PyBool>() {
            return Ok(flag.is_true().into());
        }
        if value.is_instance_of::<PyInt>() {
            return Ok(value.extract::<i64>().map_or_else(|_| value.to_string().into(), Value::from));
        }
        if value.is_instance_of::<PyFloat>() {
            return Ok(Number::from_f64(value.extract()?).map_or(Value::Null, Value::Number));
        }
        if let Ok(list) = value.cast::<PyList>() {
            return self.list(value, list.len(), || list.iter());
        }
        if let Ok(list) = value.cast::<PyTuple>() {
            return self.list(value, list.len(), || list.iter());
        }
        if let Ok(fields) = value.cast::<PyDict>() {
            let mut read = JsonMap::new();
            for (key, value) in fields {
                read.insert(key.to_string(), self.value(&value)?);
            }
            return Ok(Value::Object(read));
        }
        Ok(if value.is_none() { Value::Null } else { value.to_string().into() })
    }

    fn list<I: Iterator<Item = Bound<'py, PyAny>>>(
        &mut self,
        list: &Bound<'py, PyAny>,
        length: usize,
        items: impl Fn() -> I,
    ) -> PyResult<Value> {
        // Whether they are all whole numbers is asked of the types alone.
        if length >= SHORT && items().all(|item| item.is_exact_instance_of::<PyInt>()) {
            let place =
                i64::try_from(self.lists.len()).map_err(|error| Failure::backend(error.to_string()))?;
            self.lists.push(list.clone());
            return Ok(Value::Array(vec![(FIRST_REFERENCE - place).into()]));
        }
        items().map(|item| self.value(&item)).collect::<PyResult<Vec<Value>>>().map(Value::Array)
    }

    /// A value as Python has it, with the lists that were not copied.
    fn to_python(&self, py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
        match value {
            Value::Null => Ok(py.None().into_bound(py)),
            Value::Bool(flag) => flag.into_bound_py_any(py),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => whole.into_bound_py_any(py),
                None => number.as_f64().into_bound_py_any(py),
            },
            Value::String(text) => text.into_bound_py_any(py),
            Value::Array(items) => {
                if let Some(list) = self.reference(items) {
                    // What goes in as a tuple comes out as a list.
                    return match list.cast::<PyTuple>() {
                        Ok(tuple) => Ok(tuple.to_list().into_any()),
                        Err(_) => Ok(list.clone()),
                    };
                }
                let items =
                    items.iter().map(|item| self.to_python(py, item)).collect::<PyResult<Vec<_>>>()?;
                Ok(PyList::new(py, items)?.into_any())
            }
            Value::Object(fields) => Ok(self.dict(py, fields)?.into_any()),
        }
    }

    fn dict(&self, py: Python<'py>, fields: &JsonMap) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (key, value) in fields {
            dict.set_item(key, self.to_python(py, value)?)?;
        }
        Ok(dict)
    }

    fn reference(&self, items: &[Value]) -> Option<&Bound<'py, PyAny>> {
        let [only] = items else { return None };
        let number = only.as_i64().filter(|number| *number <= FIRST_REFERENCE)?;
        self.lists.get(usize::try_from(FIRST_REFERENCE - number).ok()?)
    }

    fn triplet(&self, py: Python<'py>, triplet: &Triplet) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item(intern!(py, "prompt"), self.to_python(py, &triplet.prompt)?)?;
        dict.set_item(intern!(py, "response"), self.to_python(py, &triplet.response)?)?;
        dict.set_item(intern!(py, "reward"), triplet.reward)?;
        dict.set_item(intern!(py, "metadata"), self.dict(py, &triplet.metadata)?)?;
        Ok(dict)
    }
}

/// The triplets of a trace, as dictionaries: Python's spans, and the options of `TripletOptions`. Lists of token ids are
/// those of the spans themselves.
#[pyo3::pyfunction]
pub(crate) fn triplets_of_spans<'py>(
    py: Python<'py>,
    spans: &Bound<'py, PyAny>,
    options: &[u8],
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let options: TripletOptions = read(options)?;
    let borrowed = Borrowed::of(spans)?;
    let mut tree = TraceTree::from_spans(&borrowed.spans).map_err(Failure::from)?;
    if options.repair_hierarchy {
        tree.repair_hierarchy();
    }
    let calls = tree_calls(&tree, &options).map_err(Failure::from)?;
    let triplet = |call: &agl_trace::TreeCall| {
        borrowed.triplet(py, &span_to_triplet(tree.span(call.node), &call.agent, call.reward))
    };
    calls.iter().map(triplet).collect()
}

/// The triplet of one call, as a dictionary, without a reward.
#[pyo3::pyfunction]
pub(crate) fn triplet_of_span<'py>(
    py: Python<'py>,
    span: &Bound<'py, PyAny>,
    agent: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let mut borrowed = Borrowed { spans: Vec::new(), lists: Vec::new() };
    let span = borrowed.span(span)?;
    borrowed.triplet(py, &span_to_triplet(&span, agent, None))
}

/// The nodes of a tree: the place of its span among those given, or the id and times of a made-up one; and its children.
type Node = (Option<usize>, Option<(String, String, Option<f64>, Option<f64>)>, Vec<usize>);

/// The tree of a trace as its root and its nodes.
#[pyo3::pyfunction]
pub(crate) fn tree_of_spans(spans: &Bound<'_, PyAny>) -> PyResult<(usize, Vec<Node>)> {
    let borrowed = Borrowed::of(spans)?;
    let tree = TraceTree::from_spans(&borrowed.spans).map_err(Failure::from)?;
    // Of spans with one id the last counts.
    let place: std::collections::HashMap<*const Span, usize> =
        borrowed.spans.iter().enumerate().map(|(place, span)| (std::ptr::from_ref(span), place)).collect();
    let node = |node: usize| {
        let span = tree.span(node);
        let place = place.get(&std::ptr::from_ref(span)).copied();
        let made_up = place
            .is_none()
            .then(|| (span.span_id.clone(), span.name.clone(), span.start_time, span.end_time));
        (place, made_up, tree.children(node).to_vec())
    };
    Ok((tree.root(), (0..tree.len()).map(node).collect()))
}

/// The children of each node of a tree of this shape, once it is repaired. `parents` has the place of each span's parent.
#[pyo3::pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a list of Python's has to be copied")]
pub(crate) fn repaired_children(
    spans: &Bound<'_, PyAny>,
    parents: Vec<Option<usize>>,
) -> PyResult<Vec<Vec<usize>>> {
    let borrowed = Borrowed::of(spans)?;
    let mut tree = TraceTree::of_shape(&borrowed.spans, &parents).map_err(Failure::from)?;
    tree.repair_hierarchy();
    Ok((0..tree.len()).map(|node| tree.children(node).to_vec()).collect())
}

/// Place, agent and reward of every call that counts in a tree of this shape.
#[pyo3::pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "a list of Python's has to be copied")]
pub(crate) fn calls_of_tree(
    spans: &Bound<'_, PyAny>,
    parents: Vec<Option<usize>>,
    options: &[u8],
) -> PyResult<Vec<(usize, String, Option<f64>)>> {
    let borrowed = Borrowed::of(spans)?;
    let tree = TraceTree::of_shape(&borrowed.spans, &parents).map_err(Failure::from)?;
    let calls = tree_calls(&tree, &read::<TripletOptions>(options)?).map_err(Failure::from)?;
    Ok(calls.into_iter().map(|call| (call.node, call.agent, call.reward)).collect())
}

/// The name of the agent that a span stands for; none when it stands for none.
#[pyo3::pyfunction]
pub(crate) fn agent_of_span(span: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
    let mut borrowed = Borrowed { spans: Vec::new(), lists: Vec::new() };
    Ok(agl_trace::agent_name(&borrowed.span(span)?).map(str::to_owned))
}
