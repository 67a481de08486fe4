//! Python's spans, read where they are: no JSON in between. What decides the shape of a trace is copied; what a call said,
//! and its token ids, are handed on by reference.

use agl_trace::{
    PROMPT_IDS, RESPONSE_IDS, TraceTree, TripletOptions, prompt_image_urls, shapes_trace, tree_calls,
};
use agl_types::{Attributes, JsonMap, OtelResource, Span, StatusCode, TraceStatus, semconv};
use pyo3::IntoPyObjectExt as _;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use serde_json::{Number, Value};

use crate::dispatch::read;
use crate::failure::Failure;

/// How deep dotted keys nest, as in agl-trace.
const MAX_DEPTH: usize = 64;

/// A span of Python's, which is a pydantic model.
struct Source<'py> {
    fields: Bound<'py, PyDict>,
    attributes: Bound<'py, PyDict>,
    /// What is in the attributes, in order.
    entries: Vec<Attribute<'py>>,
}

/// An attribute of a span.
struct Attribute<'py> {
    key: Bound<'py, PyString>,
    value: Bound<'py, PyAny>,
    group: Group,
}

/// The groups of attributes that a triplet is made of, by what their names begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Prompt,
    Completion,
    Request,
    Response,
    /// One of those of an operation, which are within each other.
    Operation,
    /// None of these.
    Other,
}

impl Group {
    /// The one that an attribute is in.
    #[inline]
    fn of(key: &str) -> Self {
        let is_in = |group: Self| Self::tail(key, group.name()).is_some();
        if key.starts_with("gen_ai.") {
            // Most attributes are those of a long history.
            let groups = [Self::Prompt, Self::Completion, Self::Request, Self::Response];
            groups.into_iter().find(|group| is_in(*group)).unwrap_or(Self::Other)
        } else if is_in(Self::Operation) {
            Self::Operation
        } else {
            Self::Other
        }
    }

    #[inline]
    const fn name(self) -> &'static str {
        match self {
            Self::Prompt => semconv::GEN_AI_PROMPT,
            Self::Completion => semconv::GEN_AI_COMPLETION,
            Self::Request => semconv::GEN_AI_REQUEST,
            Self::Response => semconv::GEN_AI_RESPONSE,
            Self::Operation => semconv::AGL_OPERATION,
            Self::Other => "",
        }
    }

    /// What follows the name of a group that an attribute is in.
    #[inline]
    fn tail<'k>(key: &'k str, name: &str) -> Option<&'k str> {
        key.strip_prefix(name)?.strip_prefix('.')
    }
}

impl<'py> Source<'py> {
    fn of(span: &Bound<'py, PyAny>) -> PyResult<Self> {
        let py = span.py();
        let fields = span.getattr(intern!(py, "__dict__"))?.cast_into::<PyDict>()?;
        let attributes = fields.get_item(intern!(py, "attributes"))?;
        let attributes = match attributes.filter(|attributes| !attributes.is_none()) {
            Some(attributes) => attributes.cast_into::<PyDict>()?,
            None => PyDict::new(py),
        };
        let mut entries = Vec::with_capacity(attributes.len());
        for (key, value) in &attributes {
            let key: Bound<'py, PyString> = key.cast_into()?;
            let group = Group::of(key.to_str()?);
            entries.push(Attribute { key, value, group });
        }
        Ok(Self { fields, attributes, entries })
    }

    /// The members of a group: what follows its name and a dot, and the value.
    fn members<'s>(
        &'s self,
        group: Group,
        name: &'s str,
    ) -> impl Iterator<Item = PyResult<Member<'s, 'py>>> + Clone {
        let of_group = self.entries.iter().filter(move |entry| entry.group == group);
        let member = move |entry: &'s Attribute<'py>| {
            let key = match entry.key.to_str() {
                Ok(key) => key,
                Err(error) => return Some(Err(error)),
            };
            Some(Ok((Group::tail(key, name)?, &entry.value)))
        };
        of_group.filter_map(member)
    }

    /// The span with everything that decides the shape of its trace, and whether there are token ids where that counts.
    fn skeleton(&self, has_ids: bool) -> PyResult<Span> {
        let py = self.fields.py();
        let get = |name: &Bound<'py, PyString>| {
            let value = self.fields.get_item(name)?;
            PyResult::Ok(value.filter(|value| !value.is_none()))
        };
        let text = |name: &Bound<'py, PyString>| -> PyResult<Option<String>> {
            get(name)?.map(|value| value.extract()).transpose()
        };
        let time = |name: &Bound<'py, PyString>| -> PyResult<Option<f64>> {
            get(name)?.map(|value| value.extract()).transpose()
        };
        Ok(Span {
            rollout_id: String::new(),
            attempt_id: String::new(),
            sequence_id: get(intern!(py, "sequence_id"))?
                .map(|value| value.extract())
                .transpose()?
                .unwrap_or_default(),
            trace_id: text(intern!(py, "trace_id"))?.unwrap_or_default(),
            span_id: text(intern!(py, "span_id"))?.unwrap_or_default(),
            parent_id: text(intern!(py, "parent_id"))?,
            name: text(intern!(py, "name"))?.unwrap_or_default(),
            status: TraceStatus::new(StatusCode::Unset),
            attributes: self.shaping(has_ids)?,
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
    fn shaping(&self, has_ids: bool) -> PyResult<Attributes> {
        let mut read = Attributes::new();
        for Attribute { key, value, group } in &self.entries {
            // Messages do not, and are most of them.
            if matches!(group, Group::Prompt | Group::Completion | Group::Request) {
                continue;
            }
            let key = key.to_str()?;
            let value = if shapes_trace(key) {
                copied(value)?
            } else if has_ids && (PROMPT_IDS.contains(&key) || RESPONSE_IDS.contains(&key)) {
                let Some(ids) = whole_numbers(value) else { continue };
                // Whether there are any is all that matters.
                Value::Array(if ids.is_empty() { Vec::new() } else { vec![0.into()] })
            } else {
                continue;
            };
            read.insert(key.to_owned(), value);
        }
        Ok(read)
    }
}

fn skeletons(spans: &Bound<'_, PyAny>, has_ids: bool) -> PyResult<Vec<Span>> {
    spans.try_iter()?.map(|span| Source::of(&span?)?.skeleton(has_ids)).collect()
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
        // What messages say most of the time, whose hashes are known.
        match name {
            "role" => return intern!(py, "role"),
            "content" => return intern!(py, "content"),
            _ => {}
        }
        // A handful as a rule; beyond that, looking costs more than making.
        let known = self.made.iter().take(16).position(|(known, _)| *known == name);
        let place = known.unwrap_or_else(|| {
            self.made.push((name, PyString::new(py, name)));
            self.made.len() - 1
        });
        &self.made[place].1
    }
}

/// Whether a text may be a list as JSON.
fn may_be_list(text: &str) -> bool {
    text.as_bytes().trim_ascii_start().first() == Some(&b'[')
}

/// A member of a group: what follows the group's name and a dot, and the value.
type Member<'k, 'py> = (&'k str, &'k Bound<'py, PyAny>);

/// The messages of a group whose keys are `{number}.{field}` in order, as they are written, without a tree of keys in
/// between; and whether their words may have images in them. None of any other group.
fn plain_messages<'k, 'py: 'k>(
    py: Python<'py>,
    names: &mut Names<'k, 'py>,
    members: impl Iterator<Item = PyResult<Member<'k, 'py>>>,
) -> PyResult<Option<(Bound<'py, PyList>, bool)>> {
    let mut messages: Vec<Bound<'py, PyDict>> = Vec::new();
    let mut current = None;
    let mut has_parts = false;
    for member in members {
        let (key, value) = member?;
        // Both are short: to look for a dot byte by byte is the fastest.
        let Some(dot) = key.bytes().position(|byte| byte == b'.') else { return Ok(None) };
        let (number, field) = (&key[..dot], &key[dot + 1..]);
        if current != Some(number) {
            if place(number) != Some(messages.len()) {
                return Ok(None);
            }
            messages.push(PyDict::new(py));
            current = Some(number);
        }
        // Where fields are numbers too, messages are lists.
        if field.bytes().any(|byte| byte == b'.') || field.starts_with(|first: char| first.is_ascii_digit()) {
            return Ok(None);
        }
        let Some(message) = messages.last() else { return Ok(None) };
        let name = names.get(py, field);
        match value.cast::<PyString>() {
            Ok(text) => {
                has_parts |= field == "content" && text.to_str().map_or(true, may_be_list);
                message.set_item(name, text)?;
            }
            Err(_) => {
                has_parts |= field == "content";
                message.set_item(name, listed(value))?;
            }
        }
    }
    Ok(Some((PyList::new(py, messages)?, has_parts)))
}

/// Dotted keys, nested, with values by reference; the twin of `agl_trace::attributes::unflatten`.
enum Nested<'k, 'py> {
    Leaf(Bound<'py, PyAny>),
    Group(Vec<(&'k str, Nested<'k, 'py>)>),
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
        let found = entries.iter().rposition(|(name, _)| *name == key);
        let place = found.unwrap_or_else(|| {
            entries.push((key, Self::Group(Vec::new())));
            entries.len() - 1
        });
        &mut entries[place].1
    }

    /// Groups whose keys are exactly `0..n-1` are lists.
    fn into_python(self, py: Python<'py>, names: &mut Names<'k, 'py>) -> PyResult<Bound<'py, PyAny>> {
        let entries = match self {
            Self::Leaf(value) => return Ok(listed(&value)),
            Self::Group(entries) => entries,
        };
        let count = entries.len();
        let place = |key: &str| place(key).filter(|place| *place < count);
        if count > 0 && entries.iter().all(|(key, _)| place(key).is_some()) {
            let mut items: Vec<Option<Bound<'py, PyAny>>> = vec![None; count];
            for (key, entry) in entries {
                if let Some(place) = place(key) {
                    items[place] = Some(entry.into_python(py, names)?);
                }
            }
            return Ok(PyList::new(py, items.into_iter().flatten())?.into_any());
        }
        let dict = PyDict::new(py);
        for (key, entry) in entries {
            let entry = entry.into_python(py, names)?;
            dict.set_item(names.get(py, key), entry)?;
        }
        Ok(dict.into_any())
    }
}

/// A group of attributes as a value of Python's, and whether there may be images in it.
struct Grouped<'py> {
    value: Bound<'py, PyAny>,
    may_have_images: bool,
}

impl<'py> Grouped<'py> {
    /// The members of the group of this name, and where there are none, the attribute of that very name.
    fn of<'k>(
        span: &'k Source<'py>,
        names: &mut Names<'k, 'py>,
        group: Group,
        name: &'k str,
    ) -> PyResult<Option<Self>> {
        let py = span.attributes.py();
        let members = span.members(group, name);
        if members.clone().next().is_none() {
            let own = span.attributes.get_item(name)?;
            return Ok(own.map(|own| Self { value: listed(&own), may_have_images: true }));
        }
        if let Some((messages, may_have_images)) = plain_messages(py, names, members.clone())? {
            return Ok(Some(Self { value: messages.into_any(), may_have_images }));
        }
        let mut nested = Nested::Group(Vec::new());
        for member in members {
            let (key, value) = member?;
            nested.insert(key, value.clone());
        }
        Ok(Some(Self { value: nested.into_python(py, names)?, may_have_images: true }))
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
        let is_words =
            content.cast::<PyString>().is_ok_and(|text| text.to_str().is_ok_and(|text| !may_be_list(text)));
        if !is_words {
            let message = JsonMap::from_iter([("content".to_owned(), copied(&content)?)]);
            urls.extend(prompt_image_urls(&Value::Object(message)));
        }
    }
    Ok(urls)
}

/// The triplet of a call as a dictionary: what `agl_trace::span_to_triplet` makes, with values by reference.
fn triplet<'k, 'py>(
    span: &'k Source<'py>,
    names: &mut Names<'k, 'py>,
    agent: &str,
    reward: Option<f64>,
) -> PyResult<Bound<'py, PyDict>> {
    let attributes = &span.attributes;
    let py = attributes.py();
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
    // A call's group, or that of an operation, less some of its keys.
    let mut either =
        |of_call: Group, of_operation: &'static str, less: &[&str]| -> PyResult<Option<Grouped<'py>>> {
            if let Some(found) = Grouped::of(span, names, of_call, of_call.name())? {
                return Ok(Some(found));
            }
            let found = Grouped::of(span, names, Group::Operation, of_operation)?;
            if let Some(Ok(fields)) = found.as_ref().map(|found| found.value.cast::<PyDict>()) {
                for key in less {
                    if fields.contains(key)? {
                        fields.del_item(key)?;
                    }
                }
            }
            Ok(found)
        };
    let value = |found: Option<Grouped<'py>>| found.map(|found| found.value);

    let prompt = PyDict::new(py);
    prompt.set_item(
        intern!(py, "token_ids"),
        ids(&[intern!(py, PROMPT_IDS[0]), intern!(py, PROMPT_IDS[1])])?,
    )?;
    let messages = either(Group::Prompt, "agentlightning.operation.input.messages", &[])?;
    let pictured = messages.as_ref().filter(|messages| messages.may_have_images);
    prompt.set_item(intern!(py, "image_urls"), image_urls(pictured.map(|messages| &messages.value))?)?;
    prompt.set_item(intern!(py, "raw_content"), value(messages))?;
    let response = PyDict::new(py);
    let response_ids = [
        intern!(py, RESPONSE_IDS[0]),
        intern!(py, RESPONSE_IDS[1]),
        intern!(py, RESPONSE_IDS[2]),
        intern!(py, RESPONSE_IDS[3]),
    ];
    response.set_item(intern!(py, "token_ids"), ids(&response_ids)?)?;
    let choices = either(Group::Completion, "agentlightning.operation.output.choices", &[])?;
    response.set_item(intern!(py, "raw_content"), value(choices))?;
    let logprobs = text(intern!(py, semconv::LOGPROBS_CONTENT))?;
    let logprobs = logprobs.map(|text| text.to_str().map(serde_json::from_str::<Value>)).transpose()?;
    if let Some(Ok(logprobs)) = logprobs {
        response.set_item(intern!(py, "logprobs"), to_python(py, &logprobs)?)?;
    }
    let metadata = PyDict::new(py);
    let request = either(Group::Request, semconv::OPERATION_INPUT, &["messages"])?;
    metadata.set_item(intern!(py, "request"), value(request))?;
    let less = ["choices", "prompt_token_ids", "response_token_ids"];
    let answer = either(Group::Response, semconv::OPERATION_OUTPUT, &less)?;
    metadata.set_item(intern!(py, "response"), value(answer))?;
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
    // The attributes are gone through once for the shape of the trace, and those of calls once for what they say.
    let sources = spans.iter().map(|span| Source::of(&span)).collect::<PyResult<Vec<_>>>()?;
    let skeleton = |source: &Source<'py>| source.skeleton(options.skip_empty_token_spans);
    let skeletons = sources.iter().map(skeleton).collect::<PyResult<Vec<_>>>()?;
    let mut tree = TraceTree::from_spans(&skeletons).map_err(Failure::from)?;
    if options.repair_hierarchy {
        tree.repair_hierarchy();
    }
    let calls = tree_calls(&tree, &options).map_err(Failure::from)?;
    let places = places(&skeletons);
    let mut names = Names::default();
    calls
        .iter()
        .filter_map(|call| Some((places.get(&std::ptr::from_ref(tree.span(call.node)))?, call)))
        .map(|(place, call)| triplet(&sources[*place], &mut names, &call.agent, call.reward))
        .collect()
}

/// The triplet of one call, as a dictionary, without a reward.
#[pyo3::pyfunction]
pub(crate) fn triplet_of_span<'py>(span: &Bound<'py, PyAny>, agent: &str) -> PyResult<Bound<'py, PyDict>> {
    triplet(&Source::of(span)?, &mut Names::default(), agent, None)
}

/// The nodes of a tree: the place of its span among those given, or the id and times of a made-up one; and its children.
type Node = (Option<usize>, Option<(String, String, Option<f64>, Option<f64>)>, Vec<usize>);

/// The tree of a trace as its root and its nodes.
#[pyo3::pyfunction]
pub(crate) fn tree_of_spans(spans: &Bound<'_, PyAny>) -> PyResult<(usize, Vec<Node>)> {
    let skeletons = skeletons(spans, false)?;
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
    let skeletons = skeletons(spans, false)?;
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
    let options = read::<TripletOptions>(options)?;
    let skeletons = skeletons(spans, options.skip_empty_token_spans)?;
    let tree = TraceTree::of_shape(&skeletons, &parents).map_err(Failure::from)?;
    let calls = tree_calls(&tree, &options).map_err(Failure::from)?;
    Ok(calls.into_iter().map(|call| (call.node, call.agent, call.reward)).collect())
}

/// The name of the agent that a span stands for; none when it stands for none.
#[pyo3::pyfunction]
pub(crate) fn agent_of_span(span: &Bound<'_, PyAny>) -> PyResult<Option<String>> {
    Ok(agl_trace::agent_name(&Source::of(span)?.skeleton(false)?).map(str::to_owned))
}
