use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::attributes::{AttributeError, Attributes, check, is_plain_attribute, make_plain};
use crate::extra::deserialize_with_extra;
use crate::rollout::wire_enum;
use crate::{JsonMap, semconv};

wire_enum! {
    /// OpenTelemetry's status code of a span.
    StatusCode {
        /// Nobody said.
        Unset = "UNSET",
        /// It went well.
        Ok = "OK",
        /// It went wrong.
        Error = "ERROR",
    }
}

/// The ids of a span, as OpenTelemetry passes them around.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SpanContext {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// Whether it came from another process.
    pub is_remote: bool,
    /// W3C trace state.
    #[schema(value_type = Object)]
    pub trace_state: JsonMap,
    /// Further keys, kept as they came.
    #[serde(flatten)]
    #[schema(value_type = HashMap<String, Value>)]
    pub extra: JsonMap,
}

/// How a span went.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TraceStatus {
    /// The code.
    pub status_code: StatusCode,
    /// Why, when it went wrong.
    pub description: Option<String>,
    /// Further keys, kept as they came.
    #[serde(flatten)]
    #[schema(value_type = HashMap<String, Value>)]
    pub extra: JsonMap,
}

impl TraceStatus {
    /// A status without description.
    #[must_use]
    pub fn new(status_code: StatusCode) -> Self {
        Self { status_code, description: None, extra: JsonMap::new() }
    }
}

/// Something that happened at one moment of a span.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Event {
    /// What happened.
    pub name: String,
    /// Its details.
    #[schema(value_type = Object)]
    pub attributes: Attributes,
    /// When.
    pub timestamp: Option<f64>,
    /// Further keys, kept as they came.
    #[serde(flatten)]
    #[schema(value_type = HashMap<String, Value>)]
    pub extra: JsonMap,
}

/// A pointer from a span to another.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Link {
    /// The span pointed at.
    pub context: SpanContext,
    /// Details of the relation.
    #[schema(value_type = Option<Object>)]
    pub attributes: Option<Attributes>,
    /// Further keys, kept as they came.
    #[serde(flatten)]
    #[schema(value_type = HashMap<String, Value>)]
    pub extra: JsonMap,
}

/// What produced a span.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OtelResource {
    /// Its description.
    #[schema(value_type = Object)]
    pub attributes: Attributes,
    /// The schema of the attributes; empty when unknown.
    pub schema_url: String,
}

/// One thing that happened in an attempt.
///
/// Every key must be there in JSON, null where nothing is known; further keys are kept as they came.
///
/// ```
/// use agl_types::Span;
///
/// let span = Span::new("step", "0".repeat(32), "1".repeat(16), 1.0, 2.5)
///     .placed("ro-1", "at-1", 7)
///     .with_attribute("tool", "calculator");
/// assert_eq!((span.sequence_id, span.end_time), (7, Some(2.5)));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Span {
    /// The rollout it belongs to.
    pub rollout_id: String,
    /// The attempt it belongs to.
    pub attempt_id: String,
    /// Its place in the rollout; orders the spans of an attempt.
    pub sequence_id: i64,
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits; unique within the attempt.
    pub span_id: String,
    /// The span that it happened in.
    #[schema(required)]
    pub parent_id: Option<String>,
    /// What happened.
    pub name: String,
    /// How it went.
    pub status: TraceStatus,
    /// Its details.
    #[schema(value_type = Object)]
    pub attributes: Attributes,
    /// Moments within it.
    pub events: Vec<Event>,
    /// Pointers to other spans.
    pub links: Vec<Link>,
    /// When it began.
    #[schema(required)]
    pub start_time: Option<f64>,
    /// When it ended.
    #[schema(required)]
    pub end_time: Option<f64>,
    /// Its ids, as OpenTelemetry passes them around.
    #[schema(required)]
    pub context: Option<SpanContext>,
    /// Its parent's ids.
    #[schema(required)]
    pub parent: Option<SpanContext>,
    /// What produced it.
    pub resource: OtelResource,
    /// Further keys, kept as they came.
    #[serde(flatten)]
    #[schema(value_type = HashMap<String, Value>)]
    pub extra: JsonMap,
}

deserialize_with_extra!(SpanContext { trace_id, span_id, is_remote, trace_state });
deserialize_with_extra!(TraceStatus { status_code, description default });
deserialize_with_extra!(Event { name, attributes, timestamp default });
deserialize_with_extra!(Link { context, attributes default });
deserialize_with_extra!(Span {
    rollout_id,
    attempt_id,
    sequence_id,
    trace_id,
    span_id,
    parent_id,
    name,
    status,
    attributes,
    events,
    links,
    start_time,
    end_time,
    context,
    parent,
    resource,
});

impl Span {
    /// A finished span with status OK and nothing around it: no events, no links, an empty resource.
    ///
    /// `trace_id` is 32 and `span_id` 16 hexadecimal digits; both times are in seconds.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        trace_id: String,
        span_id: String,
        start_time: f64,
        end_time: f64,
    ) -> Self {
        Self {
            rollout_id: String::new(),
            attempt_id: String::new(),
            sequence_id: 0,
            context: Some(SpanContext {
                trace_id: trace_id.clone(),
                span_id: span_id.clone(),
                is_remote: false,
                trace_state: JsonMap::new(),
                extra: JsonMap::new(),
            }),
            trace_id,
            span_id,
            parent_id: None,
            name: name.into(),
            status: TraceStatus::new(StatusCode::Ok),
            attributes: Attributes::new(),
            events: Vec::new(),
            links: Vec::new(),
            start_time: Some(start_time),
            end_time: Some(end_time),
            parent: None,
            resource: OtelResource::default(),
            extra: JsonMap::new(),
        }
    }

    /// Checks the attributes of the span, its events, its links and its resource.
    ///
    /// # Errors
    /// [`AttributeError`] naming the first that is nested deeper than [`crate::MAX_ATTRIBUTE_DEPTH`].
    pub fn check_attributes(&self) -> Result<(), AttributeError> {
        check(|| "attributes".to_owned(), &self.attributes)?;
        for (index, event) in self.events.iter().enumerate() {
            check(|| format!("events.{index}.attributes"), &event.attributes)?;
        }
        for (index, link) in self.links.iter().enumerate() {
            if let Some(attributes) = &link.attributes {
                check(|| format!("links.{index}.attributes"), attributes)?;
            }
        }
        check(|| "resource.attributes".to_owned(), &self.resource.attributes)
    }

    /// Whether 0.3's models can read the span as it is, all of its attributes being plain.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let events = self.events.iter().map(|event| &event.attributes);
        let links = self.links.iter().filter_map(|link| link.attributes.as_ref());
        let all = [&self.attributes, &self.resource.attributes].into_iter().chain(events).chain(links);
        all.flat_map(Attributes::values).all(is_plain_attribute)
    }

    /// The same span for readers with 0.3's models, which take no attribute but a string, a boolean, a number or a
    /// list of one of these, and refuse a whole page for one that is something else: bytes become their
    /// hexadecimal digits, anything else JSON text.
    #[must_use]
    pub fn into_plain(mut self) -> Self {
        let events = self.events.iter_mut().map(|event| &mut event.attributes);
        let links = self.links.iter_mut().filter_map(|link| link.attributes.as_mut());
        let all =
            [&mut self.attributes, &mut self.resource.attributes].into_iter().chain(events).chain(links);
        all.for_each(make_plain);
        self
    }

    /// The same span, placed in an attempt.
    #[must_use]
    pub fn placed(mut self, rollout_id: &str, attempt_id: &str, sequence_id: i64) -> Self {
        rollout_id.clone_into(&mut self.rollout_id);
        attempt_id.clone_into(&mut self.attempt_id);
        self.sequence_id = sequence_id;
        self
    }

    /// The same span with one more attribute.
    #[must_use]
    pub fn with_attribute(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }

    /// The same span as a state event: [`semconv::STATE_STARTED`] and the like.
    #[must_use]
    pub fn with_state(mut self, event: &str) -> Self {
        self.status = TraceStatus::new(StatusCode::Ok);
        self.with_attribute(semconv::STATE_EVENT, event)
    }
}
