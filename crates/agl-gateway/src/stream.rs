//! A stream on its way from the model server to the agent. The agent's own connection drives it: what comes in is read,
//! looked at, kept and sent on in one go, with no task between.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::stream::unfold;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::answer::Outline;
use crate::assemble::Assembly;
use crate::call::{Call, End, Progress, tried_so_often, with_facts};
use crate::change;
use crate::dialect::{self, Dialect, messages, responses};
use crate::gateway::Capture;
use crate::link::Flow;
use crate::models::Backend;
use crate::record::{Kind, Outcome};
use crate::refusal::Refusal;
use crate::sse::Events;
use crate::upstream;

/// How long the end of a stream is waited for once the answer is whole, for the sake of the connection.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Bytes of a stream that go on together, when a model server is faster than they can be passed on: few at first, so that
/// the agent has something soon, then more, so that it has all soon.
const ENOUGH: Range<usize> = 1 << 10..32 << 10;

/// How long what was said last may take to be written before a connection is broken off.
const FLUSH: Duration = Duration::from_millis(10);

/// The answer to a call whose stream has begun with `first`. However it ends, it is recorded.
pub(crate) fn passed_on(
    call: Call,
    progress: Progress,
    (status, headers): (StatusCode, HeaderMap),
    flow: Flow,
    first: Bytes,
    permit: Option<OwnedSemaphorePermit>,
) -> Response {
    let answer = with_facts((status, headers).into_response(), &progress);
    let backend = progress.backend.clone();
    let idle = progress.backend.as_ref().map_or(300.0, |backend| backend.entry.stream_timeout);
    let passage = Passage {
        idle: Duration::try_from_secs_f64(idle).unwrap_or(Duration::MAX),
        status,
        stage: Stage::Passing(Source {
            flow,
            backend,
            events: Events::default(),
            first,
            held: Bytes::new(),
            enough: ENOUGH.start,
        }),
        _under_way: call.gateway.calls.token(),
        _permit: permit,
        live: Some(Live { tee: Tee::new(&call, &progress), call, progress }),
    };
    let pieces = unfold(passage, |mut passage| async {
        let piece = passage.next().await?;
        Some((piece, passage))
    });
    answer.map(|_| Body::from_stream(pieces))
}

/// A stream that is passed on. Dropped before its end, it is recorded as far as it came.
struct Passage {
    /// How long the model server may say nothing.
    idle: Duration,
    status: StatusCode,
    stage: Stage,
    /// None when it is recorded, or about to be.
    live: Option<Live>,
    _under_way: TaskTrackerToken,
    _permit: Option<OwnedSemaphorePermit>,
}

/// What a stream is recorded from.
struct Live {
    call: Call,
    progress: Progress,
    tee: Tee,
}

enum Stage {
    Passing(Source),
    Stopped(Source, Stopped),
    /// The agent has been told why it has to be broken off.
    BreakingOff(String),
    Over,
}

impl Passage {
    /// What goes on to the agent next; none at the end.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Passing(mut source) => {
                    let live = self.live.as_mut()?;
                    let (piece, stopped) = source.read(&mut live.tee, self.idle).await;
                    self.stage = match stopped {
                        None => Stage::Passing(source),
                        Some(stopped) => Stage::Stopped(source, stopped),
                    };
                    if !piece.is_empty() {
                        return Some(Ok(piece));
                    }
                }
                Stage::Stopped(source, stopped) => {
                    let live = self.live.take()?;
                    let form = live.call.dialect;
                    let last = match self.conclude(live, source, stopped).await {
                        Ok(last) if last.is_empty() => return None,
                        Ok(last) => last,
                        // An SDK raises what it is told; anything else sees the stream break off.
                        Err(problem) => {
                            let event = error_event(form, &problem);
                            self.stage = Stage::BreakingOff(problem);
                            event.into()
                        }
                    };
                    return Some(Ok(last));
                }
                Stage::BreakingOff(problem) => {
                    // A body that ends with an error is cut off with all that is not written yet.
                    tokio::time::sleep(FLUSH).await;
                    return Some(Err(io::Error::other(problem)));
                }
                Stage::Over => return None,
            }
        }
    }

    /// Records the call, in the order that capture says, and gives what the agent is told last, or why it is broken off.
    async fn conclude(&self, live: Live, mut source: Source, stopped: Stopped) -> Result<Bytes, String> {
        let Live { mut call, progress, tee } = live;
        let (is_finished, refusal) = (tee.is_finished(), tee.error().map(Value::to_string));
        let (outcome, error) = match stopped {
            Stopped::Broke(problem) => (Outcome::BrokenOff, Some(problem)),
            Stopped::Ended { .. } if refusal.is_some() => (Outcome::Failed, refusal),
            Stopped::Ended { is_done } if is_done || is_finished => (Outcome::Answered, None),
            Stopped::Ended { .. } => (Outcome::BrokenOff, Some("ended its stream in the middle".to_owned())),
        };
        let label = progress.backend.as_ref().map_or("", |backend| backend.label());
        let error = match outcome {
            Outcome::BrokenOff => error.map(|problem| {
                format!("the model server {label} {problem} ({})", tried_so_often(progress.tries))
            }),
            _ => error,
        };
        if outcome == Outcome::BrokenOff
            && let Some(backend) = &progress.backend
        {
            backend.did_badly();
        }
        let first_token = tee.first_token;
        let (response, told, written) = tee.finish(call.kind);
        let status = Some(self.status);
        let end = End { response, told, outcome, error: error.clone(), status, first_token };
        call.remember(&progress, &end);
        let mut last = std::mem::take(&mut source.held);
        if let Some(written) = written {
            last = if outcome == Outcome::Answered { written } else { Bytes::new() };
        }
        // In tasks of their own: the agent may leave now.
        let gateway = Arc::clone(&call.gateway);
        match gateway.options.capture {
            Capture::Durable => {
                let recorded = gateway.calls.spawn(async move { call.record(&progress, end).await });
                let recorded = recorded.await.unwrap_or_else(|_| Err(Refusal::broken_down()));
                recorded.map_err(|refusal| refusal.message)?;
            }
            Capture::Async => {
                let (go, gone) = oneshot::channel();
                gateway.calls.spawn(async move {
                    let gateway = Arc::clone(&call.gateway);
                    let _room = gateway.unrecorded.acquire().await;
                    let _ = go.send(());
                    call.record_or_warn(&progress, end).await;
                });
                // Only a runtime that shuts down would drop it.
                let _ = gone.await;
            }
        }
        match (outcome, error) {
            (Outcome::BrokenOff, Some(problem)) => return Err(problem),
            (Outcome::Answered, _) => source.see_out(),
            _ => {}
        }
        Ok(last)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Some(Live { mut call, progress, tee }) = self.live.take() {
            let first_token = tee.first_token;
            let (response, ..) = tee.finish(call.kind);
            let end = End::disconnected(response, first_token);
            let calls = call.gateway.calls.clone();
            // None when the program ends.
            if tokio::runtime::Handle::try_current().is_ok() {
                calls.spawn(async move { call.record_or_warn(&progress, end).await });
            }
        }
    }
}

/// What happens to a stream on its way through.
struct Tee {
    how: How,
    /// What is cut out.
    added: change::Added,
    assembly: Assembly,
    first_token: Option<f64>,
    started: Instant,
}

/// What is spoken on both sides of a stream.
enum How {
    /// Chat completions or completions.
    AsItIs,
    /// Messages, on both sides.
    Messages(messages::Assembly),
    /// Responses, on both sides.
    Responses(responses::Assembly),
    /// Messages, made of chat completions.
    ToMessages(messages::Writer),
    /// Responses, made of chat completions.
    ToResponses(Box<responses::Writer>),
}

impl Tee {
    fn new(call: &Call, progress: &Progress) -> Self {
        let how = match (call.dialect, progress.is_translated) {
            (Dialect::OpenAi, _) => How::AsItIs,
            (Dialect::Messages, false) => How::Messages(messages::Assembly::default()),
            (Dialect::Responses, false) => How::Responses(responses::Assembly::default()),
            (Dialect::Messages, true) => {
                How::ToMessages(messages::Writer::new(call.request["model"].clone()))
            }
            (Dialect::Responses, true) => How::ToResponses(Box::new(responses::Writer::new(call.telling()))),
        };
        let added = progress.sent.as_ref().map(|sent| sent.added).unwrap_or_default();
        Self {
            how,
            added: if call.expose { change::Added::default() } else { added },
            assembly: Assembly::default(),
            first_token: None,
            started: call.started,
        }
    }

    /// Takes an event in and appends what goes on to the agent. Returns whether it was the last one.
    fn take(&mut self, event: &crate::sse::Event, out: &mut BytesMut) -> bool {
        let data = event.data();
        let (says_something, is_last) = match &mut self.how {
            How::Messages(assembly) => {
                let says_something = assembly.add(serde_json::from_slice(&data).unwrap_or_default());
                (says_something, assembly.is_whole)
            }
            How::Responses(assembly) => {
                let says_something = assembly.add(serde_json::from_slice(&data).unwrap_or_default());
                (says_something, assembly.is_whole)
            }
            _ if data.trim_ascii() == b"[DONE]" => return true,
            how => {
                let Some(outline) = Outline::of(&data) else {
                    // A comment, or nothing that we know.
                    out.extend_from_slice(&event.raw);
                    return false;
                };
                let chunk = || outline.read(&data).unwrap_or_default();
                let mut told = String::new();
                match how {
                    How::ToMessages(writer) => writer.chunk(&chunk(), &mut told),
                    How::ToResponses(writer) => writer.chunk(&chunk(), &mut told),
                    _ if self.added.usage && outline.is_usage_only(&data) => {}
                    _ => event.write_with(&data, change::cuts_of_added(&data, &outline, self.added), out),
                }
                out.extend_from_slice(told.as_bytes());
                (self.assembly.add(&data, &outline), false)
            }
        };
        let is_native = matches!(self.how, How::Messages(_) | How::Responses(_));
        if is_native && !is_last {
            out.extend_from_slice(&event.raw);
        }
        if says_something && self.first_token.is_none() {
            self.first_token = Some(self.started.elapsed().as_secs_f64());
        }
        is_last
    }

    fn is_finished(&self) -> bool {
        match &self.how {
            How::Messages(assembly) => assembly.is_whole,
            How::Responses(assembly) => assembly.is_whole,
            How::AsItIs | How::ToMessages(_) | How::ToResponses(_) => self.assembly.is_finished(),
        }
    }

    /// What went wrong, where the server said so within the stream.
    fn error(&self) -> Option<&Value> {
        match &self.how {
            How::Messages(assembly) => assembly.error.as_ref(),
            How::Responses(assembly) => assembly.error.as_ref(),
            How::AsItIs | How::ToMessages(_) | How::ToResponses(_) => self.assembly.error(),
        }
    }

    /// The answer in the shape of chat completions, what the agent was told where it may come back to it, and the end
    /// of the stream where that is ours to write.
    fn finish(self, kind: Kind) -> (Value, Option<Value>, Option<Bytes>) {
        match self.how {
            How::AsItIs => (self.assembly.finish(kind.object()), None, None),
            How::Messages(assembly) => (messages::answer_as_chat(&assembly.finish()), None, None),
            How::Responses(assembly) => (responses::answer_as_chat(&assembly.finish()), None, None),
            How::ToMessages(mut writer) => {
                let chat = self.assembly.finish(kind.object());
                let end = writer.finish(&chat);
                (chat, None, Some(end.into()))
            }
            How::ToResponses(mut writer) => {
                let mut chat = self.assembly.finish(kind.object());
                let (end, told) = writer.finish(&chat);
                chat["id"] = told["id"].clone();
                (chat, Some(told), Some(end.into()))
            }
        }
    }
}

/// The model server's side of a stream.
struct Source {
    flow: Flow,
    /// Whose key is not to be told, should it come back.
    backend: Option<Arc<Backend>>,
    events: Events,
    /// What was read already.
    first: Bytes,
    /// The last event and what follows it, which goes on when the call is recorded.
    held: Bytes,
    /// How many bytes go on together next.
    enough: usize,
}

/// Why a stream goes no further.
enum Stopped {
    /// The model server has said all; whether it also said that.
    Ended {
        is_done: bool,
    },
    Broke(String),
}

impl Source {
    /// Reads on until there is something for the agent, or an end. What is there already goes along; what is not is not
    /// waited for. The last event is held.
    async fn read(&mut self, tee: &mut Tee, idle: Duration) -> (Bytes, Option<Stopped>) {
        if self.enough > ENOUGH.start {
            // What was read before is written first.
            written().await;
        }
        let mut out = BytesMut::new();
        let stopped = loop {
            let chunk = if !self.first.is_empty() {
                Ok(Some(std::mem::take(&mut self.first)))
            } else if out.is_empty() {
                match tokio::time::timeout(idle, self.flow.chunk()).await {
                    Ok(read) => read,
                    Err(_) => {
                        let problem = format!("said nothing for {} s", idle.as_secs_f64());
                        break Some(Stopped::Broke(problem));
                    }
                }
            } else {
                // The agent's connection asks again when it has sent what there is.
                if out.len() >= self.enough {
                    self.enough = (self.enough * 2).min(ENOUGH.end);
                    break None;
                }
                let Some(read) = self.flow.chunk().now_or_never() else {
                    self.enough = ENOUGH.start;
                    break None;
                };
                read
            };
            match chunk {
                Ok(Some(chunk)) => self.events.feed(&chunk),
                Ok(None) => {
                    let rest = self.events.rest();
                    self.held = self.without_key(rest);
                    break Some(Stopped::Ended { is_done: false });
                }
                Err(error) => {
                    let problem = format!("broke off: {}", upstream::cause(&error));
                    break Some(Stopped::Broke(problem));
                }
            }
            match self.take_all(tee, &mut out) {
                Ok(true) => break Some(Stopped::Ended { is_done: true }),
                Ok(false) => {}
                Err(crate::sse::TooLong) => {
                    break Some(Stopped::Broke("sent an event without an end".to_owned()));
                }
            }
        };
        (out.freeze(), stopped)
    }

    /// Passes the events on that are complete. Returns whether the last is among them, which is held.
    fn take_all(&mut self, tee: &mut Tee, out: &mut BytesMut) -> Result<bool, crate::sse::TooLong> {
        while let Some(mut event) = self.events.next()? {
            event.raw = self.without_key(event.raw);
            if tee.take(&event, out) {
                self.held = event.raw;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn without_key(&self, text: Bytes) -> Bytes {
        match &self.backend {
            Some(backend) => upstream::without_key(text, backend),
            None => text,
        }
    }

    /// Reads the rest, so that the connection can be used again.
    fn see_out(mut self) {
        if !matches!(self.flow.chunk().now_or_never(), Some(Ok(None) | Err(_))) {
            tokio::spawn(async move {
                let rest = async { while let Ok(Some(_)) = self.flow.chunk().await {} };
                let _ = tokio::time::timeout(LAST_MOMENT, rest).await;
            });
        }
    }
}

/// Steps back once: a connection that finds nothing more to send writes what it has.
async fn written() {
    let mut has_stepped_back = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_stepped_back, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What an agent is told within a stream that breaks off.
fn error_event(dialect: Dialect, problem: &str) -> String {
    match dialect {
        Dialect::OpenAi => {
            let told = json!({"error": {"message": problem, "type": "upstream_error", "code": 502}});
            format!("data: {told}\n\n")
        }
        Dialect::Messages => {
            let told = json!({"type": "error", "error": {"type": "api_error", "message": problem}});
            dialect::event("error", &told)
        }
        Dialect::Responses => {
            // Documented are the members beside each other; what SDKs raise is the one within.
            let error = json!({"type": "upstream_error", "code": "upstream_error", "message": problem, "param": null});
            let told = json!({
                "type": "error", "code": "upstream_error", "message": problem, "param": null, "sequence_number": 0,
                "error": error,
            });
            dialect::event("error", &told)
        }
    }
}
