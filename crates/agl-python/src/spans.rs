//! Python's spans, read where they are: no JSON in between. What decides the shape of a trace is copied; what a call said,
//! and its token ids, are handed on by reference.

use std::borrow::Cow;

use agl_trace::{TraceTree, TripletOptions, prompt_image_urls, tree_calls};
use agl_types::{Attributes, JsonMap, OtelResource, Span, StatusCode, TraceStatus, semconv};
use pyo3::IntoPyObjectExt as _;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use serde_json::{Number, Value};

use crate::dispatch::read;
use crate::failure::Failure;

/// Attributes that say nothing about the shape of a trace, and are most of it.
const SAID: [&str; 6] = [
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "gen_ai.request.",
    "gen_ai.usage.",
    "agentlightning.operation.input.messages.",
    "logprobs.",
];

/// Where the token ids of a prompt may be; the first that is a list of whole numbers counts.
const PROMPT_IDS: [&str; 2] = [semconv::PROMPT_TOKEN_IDS, "agentlightning.operation.output.prompt_token_ids"];

/// Likewise of a response.
const RESPONSE_IDS: [&str; 4] = [
    semconv::RESPONSE_TOKEN_IDS,
    "agentlightning.operation.output.response_token_ids.0",
    "agentlightning.operation.output.choices.0.token_ids",
    "agentlightning.operation.output.choices.0.provider_specific_fields.token_ids",
];

/// How deep dotted keys nest, as in agl-trace.
const MAX_DEPTH: usize = 64;

/// The fields of a span, which is a pydantic model.
fn fields<'py>(span: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    Ok(span.getattr(intern!(span.py(), "__dict__"))?.cast_into::<PyDict>()?)
}

fn attributes_of<'py>(span: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    let attributes = fields(span)?.get_item(intern!(span.py(), "attributes"))?;
    match attributes.filter(|attributes| !attributes.is_none()) {
        Some(attributes) => Ok(attributes.cast_into::<PyDict>()?),
        None => Ok(PyDict::new(span.py())),
    }
}

/// The attributes of a span, in order.
struct Entries<'py>(Vec<(Bound<'py, PyString>, Bound<'py, PyAny>)>);

impl<'py> Entries<'py> {
    fn of(span: &Bound<'py, PyAny>) -> PyResult<Self> {
        let attributes = attributes_of(span)?;
        let mut entries = Vec::with_capacity(attributes.len());
        for (key, value) in &attributes {
            entries.push((key.cast_into()?, value));
        }
        Ok(Self(entries))
    }

    /// With their keys as text.
    fn named(&self) -> PyResult<Vec<(&str, &Bound<'py, PyAny>)>> {
        self.0.iter().map(|(key, value)| Ok((key.to_str()?, value))).collect()
    }
}

/// The spans with everything that decides the shape of their trace.
fn skeletons(spans: &Bound<'_, PyAny>) -> PyResult<Vec<Span>> {
    spans.try_iter()?.map(|span| skeleton_of(&span?)).collect()
}

fn skeleton_of(span: &Bound<'_, PyAny>) -> PyResult<Span> {
    skeleton(span, &Entries::of(span)?.named()?)
}

fn skeleton(span: &Bound<'_, PyAny>, attributes: &[(&str, &Bound<'_, PyAny>)]) -> PyResult<Span> {
    let py = span.py();
    let fields = fields(span)?;
    let get = |name: &Bound<'_, PyString>| {
        let value = fields.get_item(name)?;
        PyResult::Ok(value.filter(|value| !value.is_none()).map(Bound::unbind))
    };
    let text = |name: &Bound<'_, PyString>| -> PyResult<Option<String>> {
        get(name)?.map(|value| value.extract(py)).transpose()
    };
    let time = |name: &Bound<'_, PyString>| -> PyResult<Option<f64>> {
        get(name)?.map(|value| value.extract(py)).transpose()
    };
    Ok(Span {
        rollout_id: String::new(),
        attempt_id: String::new(),
        sequence_id: get(intern!(py, "sequence_id"))?
            .map(|value| value.extract(py))
            .transpose()?
            .unwrap_or_default(),
        trace_id: text(intern!(py, "trace_id"))?.unwrap_or_default(),
        span_id: text(intern!(py, "span_id"))?.unwrap_or_default(),
        parent_id: text(intern!(py, "parent_id"))?,
        name: text(intern!(py, "name"))?.unwrap_or_default(),
        status: TraceStatus::new(StatusCode::Unset),
        attributes: shaping(attributes)?,
        events: Vec::new(),
        links: Vec::new(),
        start_time: time(intern!(py, "start_time"))?,
        end_time: time(intern!(py, "end_time"))?,
        context: None,
        parent: None,
        resource: OtelResource::default(),
        extra: JsonMap::new(),
    })
}

/// The attributes that decide the shape of a trace.
fn shaping(attributes: &[(&str, &Bound<'_, PyAny>)]) -> PyResult<Attributes> {
    let mut read = Attributes::new();
    for &(key, value) in attributes {
        if SAID.iter().any(|said| key.starts_with(said)) {
            continue;
        }
        let value = if PROMPT_IDS.contains(&key) || RESPONSE_IDS.contains(&key) {
            // Whether there are any is all that matters.
            match whole_numbers(value) {
                Some(ids) if ids.is_empty() => Value::Array(Vec::new()),
                Some(_) => Value::Array(vec![0.into()]),
                None => Value::Null,
            }
        } else {
            copied(value)?
        };
        read.insert(key.to_owned(), value);
    }
    Ok(read)
}

/// A value of Python's as JSON.
fn copied(value: &Bound<'_, PyAny>) -> PyResult<Value> {
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
        return list.iter().map(|item| copied(&item)).collect::<PyResult<Vec<Value>>>().map(Value::Array);
    }
    if let Ok(list) = value.cast::<PyTuple>() {
        return list.iter().map(|item| copied(&item)).collect::<PyResult<Vec<Value>>>().map(Value::Array);
    }
    if let Ok(fields) = value.cast::<PyDict>() {
        let mut read = JsonMap::new();
        for (key, value) in fields {
            read.insert(key.to_string(), copied(&value)?);
        }
        return Ok(Value::Object(read));
    }
    Ok(if value.is_none() { Value::Null } else { value.to_string().into() })
}

/// JSON as a value of Python's.
fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Null => Ok(py.None().into_bound(py)),
        Value::Bool(flag) => flag.into_bound_py_any(py),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => whole.into_bound_py_any(py),
            None => number.as_f64().into_bound_py_any(py),
        },
        Value::String(text) => text.into_bound_py_any(py),
        Value::Array(items) => {
            let items = items.iter().map(|item| to_python(py, item)).collect::<PyResult<Vec<_>>>()?;
            Ok(PyList::new(py, items)?.into_any())
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            for (key, value) in fields {
                dict.set_item(key, to_python(py, value)?)?;
            }
            Ok(dict.into_any())
        }
    }
}

/// A list of whole numbers as it is, a tuple of them as a list; none of anything else. OpenTelemetry's lists are of one
/// kind, so the first item tells which.
fn whole_numbers<'py>(value: &Bound<'py, PyAny>) -> Option<Bound<'py, PyList>> {
    let is_whole =
        |item: PyResult<Bound<'_, PyAny>>| item.is_ok_and(|item| item.is_exact_instance_of::<PyInt>());
    if let Ok(list) = value.cast::<PyList>() {
        return (list.is_empty() || is_whole(list.get_item(0))).then(|| list.clone());
    }
    let tuple = value.cast::<PyTuple>().ok()?;
    (tuple.is_empty() || is_whole(tuple.get_item(0))).then(|| tuple.to_list())
}

/// The place in a list that a key stands for: a whole number without signs or zeros before it.
fn place(key: &str) -> Option<usize> {
    let is_number = key.bytes().all(|byte| byte.is_ascii_digit()) && (key == "0" || !key.starts_with('0'));
    key.parse().ok().filter(|_| is_number)
}

/// A tuple as a list, anything else as it is.
fn listed<'py>(value: &Bound<'py, PyAny>) -> Bound<'py, PyAny> {
    value.cast::<PyTuple>().map_or_else(|_| value.clone(), |tuple| tuple.to_list().into_any())
}

/// The names of fields as Python's strings, each made once.
#[derive(Default)]
struct Names<'k, 'py> {
    made: Vec<(&'k str, Bound<'py, PyString>)>,
}

impl<'k, 'py> Names<'k, 'py> {
    fn get(&mut self, py: Python<'py>, name: &'k str) -> &Bound<'py, PyString> {
        // A handful at most as a rule; beyond that, looking costs more than making.
        let known = self.made.iter().take(8).position(|(known, _)| *known == name);
        let place = known.unwrap_or_else(|| {
            // What two messages say most of the time, whose hashes are known.
            let made = match name {
                "role" => intern!(py, "role").clone(),
                "content" => intern!(py, "content").clone(),
                _ => PyString::new(py, name),
            };
            self.made.push((name, made));
            self.made.len() - 1
        });
        &self.made[place].1
    }
}

/// The messages of a group whose keys are `{number}.{field}` in order, as they are written, without a tree of keys in
/// between; and whether their words may have images in them. None of any other group.
fn plain_messages<'py>(
    py: Python<'py>,
    entries: &[(&str, &Bound<'py, PyAny>)],
) -> PyResult<Option<(Bound<'py, PyList>, bool)>> {
    let messages = PyList::empty(py);
    let mut names = Names::default();
    let mut message: Option<(&str, Bound<'py, PyDict>)> = None;
    let mut has_parts = false;
    for (key, value) in entries {
        // Both are short: to look for a dot byte by byte is the fastest.
        let Some(dot) = key.bytes().position(|byte| byte == b'.') else { return Ok(None) };
        let (number, field) = (&key[..dot], &key[dot + 1..]);
        if field.bytes().any(|byte| byte == b'.') {
            return Ok(None);
        }
        let current = match &message {
            Some((current, message)) if *current == number => message,
            _ => {
                if place(number) != Some(messages.len()) {
                    return Ok(None);
                }
                let made = PyDict::new(py);
                messages.append(&made)?;
                &message.insert((number, made)).1
            }
        };
        if field == "content" {
            let text = value.cast::<PyString>().ok().and_then(|text| text.to_str().ok());
            has_parts |= text.is_none_or(|text| text.trim_start().starts_with('['));
        }
        // Where fields are numbers too, messages are lists.
        if field.starts_with(|first: char| first.is_ascii_digit()) {
            return Ok(None);
        }
        current.set_item(names.get(py, field), listed(value))?;
    }
    Ok(Some((messages, has_parts)))
}

/// Dotted keys, nested, with values by reference; the twin of `agl_trace::attributes::unflatten`.
enum Nested<'k, 'py> {
    Leaf(Bound<'py, PyAny>),
    Group(Vec<(Cow<'k, str>, Nested<'k, 'py>)>),
}

impl<'k, 'py> Nested<'k, 'py> {
    fn insert(&mut self, key: &'k str, value: Bound<'py, PyAny>) {
        let mut group = self;
        let mut rest = key;
        for _ in 1..MAX_DEPTH {
            let Some((segment, tail)) = rest.split_once('.') else { break };
            group = group.slot(segment);
            rest = tail;
        }
        *group.slot(rest) = Self::Leaf(value);
    }

    /// The place of a key, where a group is made of whatever is there.
    fn slot(&mut self, key: &'k str) -> &mut Self {
        if let Self::Leaf(_) = self {
            *self = Self::Group(Vec::new());
        }
        let Self::Group(entries) = self else { return self };
        // Keys come in order as a rule, so the last one is the likeliest.
        let found = entries.iter().rposition(|(name, _)| name == key);
        let place = found.unwrap_or_else(|| {
            entries.push((Cow::Borrowed(key), Self::Group(Vec::new())));
            entries.len() - 1
        });
        &mut entries[place].1
    }

    /// Groups whose keys are exactly `0..n-1` are lists.
    fn into_python(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let entries = match self {
            Self::Leaf(value) => return Ok(listed(&value)),
            Self::Group(entries) => entries,
        };
        let count = entries.len();
        let place = |key: &str| place(key).filter(|place| *place < count);
        if count > 0 && entries.iter().all(|(key, _)| place(key).is_some()) {
            let mut items: Vec<Option<Bound<'py, PyAny>>> = vec![None; count];
            for (key, entry) in entries {
                if let Some(place) = place(&key) {
                    items[place] = Some(entry.into_python(py)?);
                }
            }
            return Ok(PyList::new(py, items.into_iter().flatten())?.into_any());
        }
        let dict = PyDict::new(py);
        for (key, entry) in entries {
            dict.set_item(key.as_ref(), entry.into_python(py)?)?;
        }
        Ok(dict.into_any())
    }
}

/// The groups of attributes that a triplet is made of; none of which there are no attributes.
struct Groups<'py> {
    /// In the order of [`GROUPS`].
    found: [Option<Bound<'py, PyAny>>; GROUPS.len()],
    /// Of each of them whether there may be images in it; where there are not, nobody needs to look.
    may_have_images: [bool; GROUPS.len()],
}

/// Prompt, completion, request and response, as OpenTelemetry's conventions have them and as an operation does.
const GROUPS: [&str; 8] = [
    semconv::GEN_AI_PROMPT,
    "agentlightning.operation.input.messages",
    semconv::GEN_AI_COMPLETION,
    "agentlightning.operation.output.choices",
    semconv::GEN_AI_REQUEST,
    semconv::OPERATION_INPUT,
    semconv::GEN_AI_RESPONSE,
    semconv::OPERATION_OUTPUT,
];

/// What the names of all groups begin with, in turn.
const GROUPED: [&str; 2] = ["gen_ai.", "agentlightning.operation."];

impl<'py> Groups<'py> {
    fn of(py: Python<'py>, attributes: &[(&str, &Bound<'py, PyAny>)]) -> PyResult<Self> {
        // The members of each group, with what follows its name; and an attribute of the group's own name, which stands
        // for a group of which there are none.
        let mut members: [Vec<(&str, &Bound<'py, PyAny>)>; GROUPS.len()] = Default::default();
        let mut own: [Option<&Bound<'py, PyAny>>; GROUPS.len()] = [None; GROUPS.len()];
        for &(key, value) in attributes {
            // Most keys are of one group or of none, which is soon told.
            let Some(first) = GROUPED.iter().position(|grouped| key.starts_with(grouped)) else { continue };
            for (place, prefix) in GROUPS.iter().enumerate().skip(first).step_by(GROUPED.len()) {
                let Some(tail) = key.strip_prefix(prefix) else { continue };
                if tail.is_empty() {
                    own[place] = Some(value);
                } else if let Some(tail) = tail.strip_prefix('.') {
                    members[place].push((tail, value));
                    // No group is within another one of those of models' calls.
                    if first == 0 {
                        break;
                    }
                }
            }
        }
        let mut groups = Self { found: Default::default(), may_have_images: [true; GROUPS.len()] };
        for (place, (members, own)) in members.into_iter().zip(own).enumerate() {
            if members.is_empty() {
                groups.found[place] = own.map(listed);
            } else if let Some((messages, has_parts)) = plain_messages(py, &members)? {
                groups.found[place] = Some(messages.into_any());
                groups.may_have_images[place] = has_parts;
            } else {
                let mut nested = Nested::Group(Vec::new());
                members.into_iter().for_each(|(key, value)| nested.insert(key, value.clone()));
                groups.found[place] = Some(nested.into_python(py)?);
            }
        }
        Ok(groups)
    }

    /// The first of a pair; its second one, less some of its keys, if there is none.
    fn either(&self, first: usize, less: &[&str]) -> PyResult<Option<Bound<'py, PyAny>>> {
        let [first, second] = [&self.found[first], &self.found[first + 1]];
        if first.is_some() {
            return Ok(first.clone());
        }
        if let Some(Ok(fields)) = second.as_ref().map(|second| second.cast::<PyDict>()) {
            for key in less {
                if fields.contains(key)? {
                    fields.del_item(key)?;
                }
            }
        }
        Ok(second.clone())
    }
}

/// The URLs of the images in a prompt.
fn image_urls(messages: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<String>> {
    let Some(messages) = messages else { return Ok(Vec::new()) };
    let Ok(list) = messages.cast::<PyList>() else { return Ok(prompt_image_urls(&copied(messages)?)) };
    let mut urls = Vec::new();
    for message in list {
        let Ok(message) = message.cast_into::<PyDict>() else { continue };
        let Some(content) = message.get_item(intern!(messages.py(), "content"))? else { continue };
        // Words are no list of parts.
        let is_words = content
            .cast::<PyString>()
            .is_ok_and(|text| text.to_str().is_ok_and(|text| !text.trim_start().starts_with('[')));
        if !is_words {
            let message = JsonMap::from_iter([("content".to_owned(), copied(&content)?)]);
            urls.extend(prompt_image_urls(&Value::Object(message)));
        }
    }
    Ok(urls)
}

/// The triplet of a call as a dictionary: what `agl_trace::span_to_triplet` makes, with values by reference.
fn triplet<'py>(
    span: &Bound<'py, PyAny>,
    entries: &[(&str, &Bound<'py, PyAny>)],
    agent: &str,
    reward: Option<f64>,
) -> PyResult<Bound<'py, PyDict>> {
    let py = span.py();
    let attributes = attributes_of(span)?;
    let ids = |keys: &[&Bound<'py, PyString>]| -> PyResult<Bound<'py, PyList>> {
        for key in keys {
            if let Some(ids) = attributes.get_item(key)?.and_then(|value| whole_numbers(&value)) {
                return Ok(ids);
            }
        }
        Ok(PyList::empty(py))
    };
    let text = |key: &Bound<'py, PyString>| -> PyResult<Option<Bound<'py, PyString>>> {
        let value = attributes.get_item(key)?.and_then(|value| value.cast_into::<PyString>().ok());
        Ok(value.filter(|text| !text.is_empty().unwrap_or(true)))
    };
    let groups = Groups::of(py, entries)?;
    let messages = groups.either(0, &[])?;

    let prompt = PyDict::new(py);
    prompt.set_item(
        intern!(py, "token_ids"),
        ids(&[intern!(py, PROMPT_IDS[0]), intern!(py, PROMPT_IDS[1])])?,
    )?;
    let is_first = groups.found[0].is_some();
    let images = messages.as_ref().filter(|_| groups.may_have_images[usize::from(!is_first)]);
    prompt.set_item(intern!(py, "image_urls"), image_urls(images)?)?;
    prompt.set_item(intern!(py, "raw_content"), messages)?;
    let response = PyDict::new(py);
    let response_ids = [
        intern!(py, RESPONSE_IDS[0]),
        intern!(py, RESPONSE_IDS[1]),
        intern!(py, RESPONSE_IDS[2]),
        intern!(py, RESPONSE_IDS[3]),
    ];
    response.set_item(intern!(py, "token_ids"), ids(&response_ids)?)?;
    response.set_item(intern!(py, "raw_content"), groups.either(2, &[])?)?;
    let logprobs = text(intern!(py, semconv::LOGPROBS_CONTENT))?;
    let logprobs = logprobs.map(|text| text.to_str().map(serde_json::from_str::<Value>)).transpose()?;
    if let Some(Ok(logprobs)) = logprobs {
        response.set_item(intern!(py, "logprobs"), to_python(py, &logprobs)?)?;
    }
    let metadata = PyDict::new(py);
    metadata.set_item(intern!(py, "request"), groups.either(4, &["messages"])?)?;
    let less = ["choices", "prompt_token_ids", "response_token_ids"];
    metadata.set_item(intern!(py, "response"), groups.either(6, &less)?)?;
    let response_id = match text(intern!(py, semconv::GEN_AI_RESPONSE_ID))? {
        Some(id) => Some(id),
        None => text(intern!(py, "agentlightning.operation.output.id"))?,
    };
    metadata.set_item(intern!(py, "response_id"), response_id)?;
    metadata.set_item(intern!(py, "agent_name"), agent)?;

    let triplet = PyDict::new(py);
    triplet.set_item(intern!(py, "prompt"), prompt)?;
    triplet.set_item(intern!(py, "response"), response)?;
    triplet.set_item(intern!(py, "reward"), reward)?;
    triplet.set_item(intern!(py, "metadata"), metadata)?;
    Ok(triplet)
}

/// Where each span of a tree is among those given.
fn places(spans: &[Span]) -> std::collections::HashMap<*const Span, usize> {
    spans.iter().enumerate().map(|(place, span)| (std::ptr::from_ref(span), place)).collect()
}

/// The triplets of a trace, as dictionaries: Python's spans, and the options of `TripletOptions`. Lists of token ids are
/// those of the spans themselves.
#[pyo3::pyfunction]
pub(crate) fn triplets_of_spans<'py>(
    spans: &Bound<'py, PyList>,
    options: &[u8],
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    // What is wrong with them is told by the slower reader.
    let options: TripletOptions = serde_json::from_slice(options).or_else(|_| read(options))?;
    // The attributes are gone through once for the shape of the trace and once for what the calls say.
    let entries = spans.iter().map(|span| Entries::of(&span)).collect::<PyResult<Vec<_>>>()?;
    let named = entries.iter().map(Entries::named).collect::<PyResult<Vec<_>>>()?;
    let skeletons =
        spans.iter().zip(&named).map(|(span, named)| skeleton(&span, named)).collect::<PyResult<Vec<_>>>()?;
    let mut tree = TraceTree::from_spans(&skeletons).map_err(Failure::from)?;
    if options.repair_hierarchy {
        tree.repair_hierarchy();
    }
    let calls = tree_calls(&tree, &options).map_err(Failure::from)?;
    let places = places(&skeletons);
    calls
        .iter()
        .filter_map(|call| Some((places.get(&std::ptr::from_ref(tree.span(call.node)))?, call)))
        .map(|(place, call)| triplet(&spans.get_item(*place)?, &named[*place], &call.agent, call.reward))
        .collect()
}

/// The triplet of one call, as a dictionary, without a reward.
#[pyo3::pyfunction]
pub(crate) fn triplet_of_span<'py>(span: &Bound<'py, PyAny>, agent: &str) -> PyResult<Bound<'py, PyDict>> {
    triplet(span, &Entries::of(span)?.named()?, agent, None)
}

/// The nodes of a tree: the place of its span among those given, or the id and times of a made-up one; and its children.
type Node = (Option<usize>, Option<(String, String, Option<f64>, Option<f64>)>, Vec<usize>);

/// The tree of a trace as its root and its nodes.
#[pyo3::pyfunction]
pub(crate) fn tree_of_spans(spans: &Bound<'_, PyAny>) -> PyResult<(usize, Vec<Node>)> {
    let skeletons = skeletons(spans)?;
    let tree = TraceTree::from_spans(&skeletons).map_err(Failure::from)?;
    // Of spans with one id the last counts.
    let place = places(&skeletons);
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
    let skeletons = skeletons(spans)?;
    let mut tree = TraceTree::of_shape(&skeletons, &parents).map_err(Failure::from)?;
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
    let skeletons = skeletons(spans)?;
    let tree = TraceTree::of_shape(&skeletons, &parents).map_err(Failure::from)?;
    let calls = tree_calls(&tree, &read::<TripletOptions>(options)?).map_err(Failure::from)?;
    Ok(calls.into_iter().map(|call| (call.node, call.agent, call.reward)).collect())
}

/// The name of the agent that a span stands for; none when it stands for none.
#[pyo3::pyfunction]
pub(crate) fn agent_of_span(span: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
    Ok(agl_trace::agent_name(&skeleton_of(span)?).map(str::to_owned))
}
