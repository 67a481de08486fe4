use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agl_otlp::{ExportTraceServiceRequest, Format};
use agl_runner::RolloutContext;
use agl_types::{Span, semconv};
use opentelemetry::trace::{Span as _, SpanId, TraceContextExt as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::common::v1::KeyValue as WireKeyValue;
use opentelemetry_proto::tonic::resource::v1::Resource as WireResource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};
use opentelemetry_proto::transform::common::tonic::Attributes as WireAttributes;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span as SdkSpan, SpanData, SpanProcessor};
use prost::Message as _;

/// Exports the spans of OpenTelemetry's SDK to the attempts of the rollouts that they happen in.
///
/// A span that starts within a rollout, or below a span that does, is handed to the store together with whatever else
/// the attempt emits; others are passed over. It is a span processor rather than an exporter behind one, because only
/// at its start can be told which rollout a span belongs to, and the attempt must not end before its spans are out.
///
/// ```
/// use agentlightning::OtelExporter;
/// use opentelemetry_sdk::trace::SdkTracerProvider;
///
/// let provider = SdkTracerProvider::builder().with_span_processor(OtelExporter::new()).build();
/// opentelemetry::global::set_tracer_provider(provider);
/// ```
#[derive(Debug, Default)]
pub struct OtelExporter {
    underway: Mutex<HashMap<SpanId, Place>>,
    resource: Vec<WireKeyValue>,
}

/// Where a span under way belongs.
#[derive(Debug, Clone)]
struct Place {
    context: RolloutContext,
    parent_id: Option<String>,
}

impl OtelExporter {
    /// An exporter, to be given to a tracer provider as a span processor.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn underway(&self) -> std::sync::MutexGuard<'_, HashMap<SpanId, Place>> {
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The span as the store has it; none if it could not be read, a defect.
    fn convert(&self, data: SpanData, place: &Place) -> Option<Span> {
        let context = &place.context;
        let ids = [
            KeyValue::new(semconv::ROLLOUT_ID, context.rollout().rollout_id.clone()),
            KeyValue::new(semconv::ATTEMPT_ID, context.attempt().attempt_id.clone()),
        ];
        let mut attributes = self.resource.clone();
        attributes.extend(WireAttributes::from(ids.to_vec()).0);
        // By way of the wire, so that such a span looks as if it had been sent.
        let group = ResourceSpans {
            resource: Some(WireResource { attributes, ..WireResource::default() }),
            scope_spans: vec![ScopeSpans { spans: vec![data.into()], ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        };
        let request = ExportTraceServiceRequest { resource_spans: vec![group] };
        let received = Format::Protobuf.receive(&request.encode_to_vec()).ok()?;
        let mut span = received.spans.into_iter().next()?.span.parse().ok()?;
        // An attempt has one trace.
        context.trace_id().clone_into(&mut span.trace_id);
        span.parent_id.clone_from(&place.parent_id);
        (span.context, span.parent) = (None, None);
        Some(span)
    }
}

impl SpanProcessor for OtelExporter {
    fn on_start(&self, span: &mut SdkSpan, cx: &Context) {
        let parent = cx.span().span_context().clone();
        let mut underway = self.underway();
        let place = match underway.get(&parent.span_id()) {
            Some(Place { context, .. }) => {
                Place { context: context.clone(), parent_id: Some(parent.span_id().to_string()) }
            }
            None => match RolloutContext::current() {
                Some(context) => {
                    let parent_id = context.new_span("").parent_id;
                    Place { context, parent_id }
                }
                None => return,
            },
        };
        underway.insert(span.span_context().span_id(), place);
    }

    fn on_end(&self, data: SpanData) {
        let Some(place) = self.underway().remove(&data.span_context.span_id()) else { return };
        if let Some(span) = self.convert(data, &place) {
            // What is lost is counted and told at the end of the attempt.
            let _ = place.context.emit_span_now(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        let pairs =
            resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect::<Vec<_>>();
        self.resource = WireAttributes::from(pairs).0;
    }
}
