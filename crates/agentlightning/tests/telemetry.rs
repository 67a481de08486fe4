//! Spans of `tracing` and of OpenTelemetry's SDK, among those that an agent emits itself.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::sync::Arc;

use agentlightning::types::{AttributeError, SpanQuery, StartRollout, StatusCode, semconv};
use agentlightning::{
    AnyAgent, BoxError, MemoryStore, OtelExporter, Outcome, RolloutContext, Runner, RunnerOptions, Span,
    StopSignal, Store as _, TracingLayer,
};
use opentelemetry::trace::{Span as _, TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::Value;
use tracing::Instrument as _;
use tracing_subscriber::layer::SubscriberExt as _;

/// Runs an agent on one task and returns the spans that it has left, without the runner's.
async fn spans_of(agent: Arc<dyn AnyAgent>) -> Vec<Span> {
    let store = Arc::new(MemoryStore::new());
    let runner = Runner::new(agent, store.clone(), RunnerOptions::new("Worker-0"));
    let view = runner.step(StartRollout::default(), &StopSignal::new()).await.unwrap();
    let query = SpanQuery { rollout_id: view.rollout.rollout_id, ..SpanQuery::default() };
    let mut spans = store.query_spans(query).await.unwrap().items;
    spans.retain(|span| span.name != semconv::AGL_STATE);
    spans
}

fn find<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let span = found.next().unwrap_or_else(|| unreachable!("no {name} in {spans:?}"));
    assert!(found.next().is_none(), "several {name}");
    span
}

#[tracing::instrument(skip_all, fields(depth = 2, answer))]
async fn think(context: &RolloutContext) {
    tracing::Span::current().record("answer", 42);
    tracing::info!(step = 1, "thinking hard");
    context.emit_message("inside").await.unwrap();
    tracing::error!("gave up");
}

#[tokio::test]
async fn spans_of_tracing_are_spans_of_the_attempt() {
    let subscriber = tracing_subscriber::registry().with(TracingLayer::new());
    let _guard = tracing::subscriber::set_default(subscriber);
    drop(tracing::info_span!("nobody's"));
    let agent = |_: Value, context: RolloutContext| async move {
        let outer = tracing::info_span!("outer", on = true);
        async {
            think(&context).await;
            let elsewhere = tracing::info_span!("elsewhere");
            tokio::spawn(async { tracing::info_span!("in a task").in_scope(|| ()) }.instrument(elsewhere))
                .await
        }
        .instrument(outer)
        .await?;
        context.emit_message("outside").await?;
        Ok::<_, BoxError>(Outcome::Done)
    };
    let spans = spans_of(Arc::new(agent)).await;
    let outer = find(&spans, "outer");
    assert_eq!((outer.parent_id.as_ref(), &outer.attributes["on"]), (None, &Value::Bool(true)));
    let thinking = find(&spans, "think");
    assert_eq!(thinking.parent_id.as_ref(), Some(&outer.span_id));
    assert_eq!((&thinking.attributes["depth"], &thinking.attributes["answer"]), (&2.into(), &42.into()));
    assert_eq!(thinking.status.status_code, StatusCode::Error);
    assert_eq!(thinking.status.description.as_deref(), Some("gave up"));
    let events: Vec<&str> = thinking.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(events, ["thinking hard", "gave up"]);
    assert_eq!(thinking.events[0].attributes["step"], 1);
    let elsewhere = find(&spans, "elsewhere");
    assert_eq!(elsewhere.parent_id.as_ref(), Some(&outer.span_id));
    assert_eq!(find(&spans, "in a task").parent_id.as_ref(), Some(&elsewhere.span_id));
    let messages: Vec<(&Value, Option<&String>)> = spans
        .iter()
        .filter(|span| span.name == semconv::AGL_MESSAGE)
        .map(|span| (&span.attributes[semconv::MESSAGE_BODY], span.parent_id.as_ref()))
        .collect();
    assert_eq!(messages, [(&"inside".into(), Some(&thinking.span_id)), (&"outside".into(), None)]);
    assert_eq!(spans.len(), 6);
    assert!(spans.iter().all(|span| span.trace_id == outer.trace_id && span.start_time <= span.end_time));
}

#[tokio::test]
async fn spans_of_opentelemetry_are_spans_of_the_attempt() -> Result<(), AttributeError> {
    let provider = SdkTracerProvider::builder()
        .with_resource(opentelemetry_sdk::Resource::builder_empty().with_service_name("agent").build())
        .with_span_processor(OtelExporter::new())
        .build();
    let tracer = provider.tracer("test");
    tracer.start("nobody's").end();
    let agent = move |_: Value, context: RolloutContext| {
        let tracer = tracer.clone();
        async move {
            let mut operation = context.begin_operation("step");
            operation.span_mut().attributes.insert("n".to_owned(), 1.into());
            let outer = tracer.start("outer");
            let within = Context::new().with_span(outer);
            let mut inner = tracer.start_with_context("inner", &within);
            inner.set_attribute(KeyValue::new("gen_ai.request.model", "m"));
            inner.add_event("first token", vec![KeyValue::new("after", 0.25)]);
            inner.set_status(opentelemetry::trace::Status::error("too slow"));
            // Ended elsewhere, where no rollout is known.
            tokio::spawn(async move { inner.end() }).await?;
            within.span().end();
            operation.end().await?;
            Ok::<_, BoxError>(Outcome::Reward(1.0))
        }
    };
    let spans = spans_of(Arc::new(agent)).await;
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["inner", "outer", semconv::AGL_OPERATION, semconv::AGL_ANNOTATION]);
    let (inner, outer) = (&spans[0], &spans[1]);
    assert_eq!((inner.parent_id.as_ref(), outer.parent_id.as_ref()), (Some(&outer.span_id), None));
    assert_eq!(inner.attributes["gen_ai.request.model"], "m");
    assert_eq!(
        (inner.events[0].name.as_str(), &inner.events[0].attributes["after"]),
        ("first token", &0.25.into())
    );
    assert_eq!(inner.status.description.as_deref(), Some("too slow"));
    assert_eq!(inner.resource.attributes["service.name"], "agent");
    assert_eq!(inner.resource.attributes[semconv::ROLLOUT_ID], inner.rollout_id.as_str());
    assert!(spans.iter().all(|span| span.trace_id == outer.trace_id));
    inner.check_attributes()
}
