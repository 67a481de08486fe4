//! Other people's records into a store, as rollouts that have succeeded.

use std::collections::HashMap;
use std::io::BufRead;
use std::sync::Arc;

use agl_store::Store;
use agl_trace::{Imported, conversation, logged_call};
use agl_types::{
    AttemptStatus, AttemptUpdate, EnqueueRolloutRequest, Patch, RolloutMode, Span, StartRollout, ids,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Error;

/// Reads what one line says.
type Reader = fn(&Value) -> Result<Imported, String>;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportFormat {
    /// OTLP traces: protobuf, JSON, or a JSON object a line, as OpenTelemetry's collector writes them to files.
    Otlp,
    /// Requests and responses of OpenAI's chat API, one pair a line.
    OpenaiLog,
    /// Conversations, one a line.
    ChatJsonl,
}

/// What was imported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImportReport {
    /// The rollouts made.
    pub rollout_ids: Vec<String>,
    /// How many spans they have.
    pub spans: usize,
}

/// Reads a file into a store. Spans of one trace, and records of one session, become one rollout.
///
/// # Errors
/// [`Error::Line`] and [`Error::Otlp`] for what is not of the format named; nothing is imported then, unless the records
/// before it were of rollouts of their own.
pub async fn import(
    store: Arc<dyn Store>,
    format: ImportFormat,
    mode: Option<RolloutMode>,
    mut input: impl BufRead + Send,
) -> Result<ImportReport, Error> {
    let mut report = ImportReport::default();
    match format {
        ImportFormat::Otlp => {
            let mut bytes = Vec::new();
            input.read_to_end(&mut bytes)?;
            let mut traces: Vec<(String, Vec<Span>)> = Vec::new();
            let mut place: HashMap<String, usize> = HashMap::new();
            for span in agl_otlp::spans_of_file(&bytes).map_err(|error| Error::Otlp(error.to_string()))? {
                let at = *place.entry(span.trace_id.clone()).or_insert_with(|| {
                    traces.push((span.trace_id.clone(), Vec::new()));
                    traces.len() - 1
                });
                traces[at].1.push(span);
            }
            for (trace_id, mut spans) in traces {
                // Who sent them in no order of ours left their times to tell it.
                spans.sort_by(|a, b| {
                    let end = |span: &Span| span.end_time.unwrap_or(f64::INFINITY);
                    end(a).total_cmp(&end(b))
                });
                let input = json!({"trace_id": trace_id});
                store_rollout(store.as_ref(), mode, input, spans, &mut report).await?;
            }
        }
        ImportFormat::OpenaiLog | ImportFormat::ChatJsonl => {
            let (what, read): (_, Reader) = match format {
                ImportFormat::ChatJsonl => ("conversation", conversation),
                _ => ("record of a call", logged_call),
            };
            let mut sessions: Vec<(Value, Vec<Span>)> = Vec::new();
            let mut place: HashMap<String, usize> = HashMap::new();
            for (number, line) in input.lines().enumerate() {
                let line = line?;
                if line.trim().is_empty() {
                    continue;
                }
                let wrong = |reason: String| Error::Line { line: number + 1, what, reason };
                let record: Value = serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?;
                let Imported { session, input, spans } = read(&record).map_err(wrong)?;
                let spans = with_ids(spans);
                match session {
                    None => store_rollout(store.as_ref(), mode, input, spans, &mut report).await?,
                    Some(session) => {
                        let at = *place.entry(session).or_insert_with(|| {
                            sessions.push((input, Vec::new()));
                            sessions.len() - 1
                        });
                        sessions[at].1.extend(spans);
                    }
                }
            }
            for (input, spans) in sessions {
                store_rollout(store.as_ref(), mode, input, spans, &mut report).await?;
            }
        }
    }
    Ok(report)
}

/// The same spans with ids of their own. A parent comes before its children.
fn with_ids(spans: Vec<Span>) -> Vec<Span> {
    let trace_id = ids::trace_id(rand::random(), rand::random());
    let mut known: HashMap<String, String> = HashMap::new();
    spans
        .into_iter()
        .map(|mut span| {
            let id = ids::span_id(rand::random());
            span.parent_id = span.parent_id.and_then(|parent| known.get(&parent).cloned());
            known.insert(std::mem::replace(&mut span.span_id, id.clone()), id);
            span.trace_id.clone_from(&trace_id);
            span.context = None;
            span
        })
        .collect()
}

async fn store_rollout(
    store: &dyn Store,
    mode: Option<RolloutMode>,
    input: Value,
    spans: Vec<Span>,
    report: &mut ImportReport,
) -> Result<(), Error> {
    let rollout = EnqueueRolloutRequest { input, mode, ..EnqueueRolloutRequest::default() };
    let request = StartRollout { rollout, worker_id: None };
    let started = store.start_rollout(request).await?;
    let (rollout_id, attempt_id) = (started.rollout.rollout_id, started.attempt.attempt_id);
    let placed: Vec<Span> =
        (1..).zip(spans).map(|(number, span)| span.placed(&rollout_id, &attempt_id, number)).collect();
    report.spans += store.add_many_spans(placed).await?.len();
    let done = AttemptUpdate { status: Patch::Set(AttemptStatus::Succeeded), ..AttemptUpdate::default() };
    store.update_attempt(&rollout_id, &attempt_id, done).await?;
    report.rollout_ids.push(rollout_id);
    Ok(())
}
