use agl_runner::RolloutContext;
use agl_types::{Attributes, Event as SpanEvent, JsonMap, Span, StatusCode};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes as SpanFields, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Records what a rollout's code tells `tracing` as spans of its attempt.
///
/// A span of `tracing` that begins within a rollout, or within a span that does, becomes a span of the attempt: its
/// fields are attributes, its events are the span's events, and one at level `ERROR` makes its status an error. What
/// is emitted meanwhile (rewards, messages, operations) comes below it. Spans that begin elsewhere, and events outside
/// of every span, are none of this layer's business, so it goes well beside any other layer.
///
/// Tasks that an agent spawns have no rollout of their own: give them a span, `tokio::spawn(work.instrument(span))`.
///
/// ```
/// use agentlightning::TracingLayer;
/// use tracing_subscriber::layer::SubscriberExt as _;
///
/// let subscriber = tracing_subscriber::registry().with(TracingLayer::new());
/// // Usually tracing::subscriber::set_global_default(subscriber), or .init().
/// tracing::subscriber::with_default(subscriber, || tracing::info_span!("outside of rollouts, so not recorded"));
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct TracingLayer(());

impl TracingLayer {
    /// The layer. It has no options: what is recorded is up to the filters of the subscriber that it is put into.
    #[must_use]
    pub fn new() -> Self {
        Self(())
    }
}

/// A span under way.
struct Recording {
    context: RolloutContext,
    span: Span,
}

impl<S> Layer<S> for TracingLayer
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
{
    fn on_new_span(&self, fields: &SpanFields<'_>, id: &Id, registry: Context<'_, S>) {
        let Some(tracked) = registry.span(id) else { return };
        let parent = tracked.parent().and_then(|parent| {
            let extensions = parent.extensions();
            let Recording { context, span } = extensions.get::<Recording>()?;
            Some((context.clone(), span.span_id.clone()))
        });
        let (context, parent_id) = match parent {
            Some((context, parent_id)) => (context, Some(parent_id)),
            None => match RolloutContext::current() {
                Some(context) => (context, None),
                None => return,
            },
        };
        let mut span = context.new_span(fields.metadata().name());
        if parent_id.is_some() {
            span.parent_id = parent_id;
        }
        fields.record(&mut Fields(&mut span.attributes));
        tracked.extensions_mut().insert(Recording { context, span });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, registry: Context<'_, S>) {
        let Some(tracked) = registry.span(id) else { return };
        if let Some(recording) = tracked.extensions_mut().get_mut::<Recording>() {
            values.record(&mut Fields(&mut recording.span.attributes));
        }
    }

    fn on_event(&self, event: &Event<'_>, registry: Context<'_, S>) {
        let Some(tracked) = registry.event_span(event) else { return };
        let mut extensions = tracked.extensions_mut();
        let Some(Recording { context, span }) = extensions.get_mut::<Recording>() else { return };
        let mut attributes = Attributes::new();
        event.record(&mut Fields(&mut attributes));
        let name = match attributes.shift_remove(MESSAGE) {
            Some(Value::String(message)) => message,
            _ => event.metadata().name().to_owned(),
        };
        if *event.metadata().level() == Level::ERROR {
            span.status.status_code = StatusCode::Error;
            span.status.description = Some(name.clone());
        }
        attributes.insert("level".to_owned(), event.metadata().level().as_str().into());
        let timestamp = Some(context.now());
        span.events.push(SpanEvent { name, attributes, timestamp, extra: JsonMap::new() });
    }

    fn on_enter(&self, id: &Id, registry: Context<'_, S>) {
        let Some(tracked) = registry.span(id) else { return };
        if let Some(Recording { context, span }) = tracked.extensions().get::<Recording>() {
            context.enter(&span.span_id);
        }
    }

    fn on_exit(&self, id: &Id, registry: Context<'_, S>) {
        let Some(tracked) = registry.span(id) else { return };
        if let Some(Recording { context, span }) = tracked.extensions().get::<Recording>() {
            context.exit(&span.span_id);
        }
    }

    fn on_close(&self, id: Id, registry: Context<'_, S>) {
        let Some(tracked) = registry.span(&id) else { return };
        let Some(Recording { context, mut span }) = tracked.extensions_mut().remove::<Recording>() else {
            return;
        };
        span.end_time = Some(context.now());
        // What is lost is counted and told at the end of the attempt; telling `tracing` from here would not do.
        let _ = context.emit_span_now(span);
    }
}

const MESSAGE: &str = "message";

/// Takes fields in as attributes.
struct Fields<'a>(&'a mut Attributes);

impl Fields<'_> {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.set(field, value.to_string());
    }
}
