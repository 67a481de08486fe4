use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agl_store::{Error as StoreError, SpanDraft, Store};
use agl_types::Span;
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::retry::Patience;

/// Spans that may wait for the store; then emitting waits.
const CAPACITY: usize = 4096;
/// Spans sent in one call.
const BATCH: usize = 256;

/// Takes one attempt's spans in and sends them to the store in batches, in the order of their emission.
///
/// The store numbers them as it stores them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SpanSink {
    messages: mpsc::Sender<Message>,
    /// Spans from code that could not wait, since the last flush.
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Span(Box<Span>),
    Flush(oneshot::Sender<Result<(), StoreError>>),
}

impl SpanSink {
    /// Starts the task that sends; it ends with the last clone of the sink.
    pub(crate) fn start(store: Arc<dyn Store>, patience: Patience) -> Self {
        let (messages, receiver) = mpsc::channel(CAPACITY);
        tokio::spawn(send(store, patience, receiver));
        Self { messages, lost: Arc::default() }
    }

    /// Hands a span over, which already names its rollout and attempt. Waits only while very many are underway.
    ///
    /// # Errors
    /// [`Error::Over`] when nobody sends spans any more.
    pub async fn emit(&self, span: Span) -> Result<(), Error> {
        self.messages.send(Message::Span(Box::new(span))).await.map_err(|_| Error::Over)
    }

    /// Hands a span over from code that cannot wait.
    ///
    /// # Errors
    /// [`Error::Over`] when nobody sends spans any more; [`Error::Full`] when very many are underway.
    pub fn emit_now(&self, span: Span) -> Result<(), Error> {
        self.messages.try_send(Message::Span(Box::new(span))).map_err(|refused| match refused {
            mpsc::error::TrySendError::Closed(_) => Error::Over,
            mpsc::error::TrySendError::Full(_) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                Error::Full
            }
        })
    }

    /// Waits until every span emitted so far is kept by the store.
    ///
    /// # Errors
    /// [`Error::Store`] when some span since the last flush was not taken; [`Error::Over`] like
    /// [`SpanSink::emit`].
    pub async fn flush(&self) -> Result<(), Error> {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::error!(lost, "spans came faster than the store took them, and were lost");
        }
        let (done, answer) = oneshot::channel();
        self.messages.send(Message::Flush(done)).await.map_err(|_| Error::Over)?;
        answer.await.map_err(|_| Error::Over)?.map_err(Error::from)
    }
}

async fn send(store: Arc<dyn Store>, patience: Patience, mut receiver: mpsc::Receiver<Message>) {
    let mut refused: Result<(), StoreError> = Ok(());
    let mut messages = Vec::with_capacity(BATCH);
    while receiver.recv_many(&mut messages, BATCH).await > 0 {
        let mut drafts: Vec<SpanDraft> = Vec::with_capacity(messages.len());
        for message in messages.drain(..) {
            match message {
                Message::Span(span) => drafts.push(SpanDraft { span: *span, has_sequence_id: false }),
                Message::Flush(done) => {
                    refused = refused.and(deliver(&*store, &patience, std::mem::take(&mut drafts)).await);
                    // Whoever asked may have gone by now.
                    let _ = done.send(std::mem::replace(&mut refused, Ok(())));
                }
            }
        }
        refused = refused.and(deliver(&*store, &patience, drafts).await);
    }
}

async fn deliver(store: &dyn Store, patience: &Patience, drafts: Vec<SpanDraft>) -> Result<(), StoreError> {
    if drafts.is_empty() {
        return Ok(());
    }
    // Repeating is safe: a span that was stored although its acknowledgement got lost is not stored again.
    let stored = patience.insist("storing spans", || store.add_span_drafts(drafts.clone())).await;
    stored
        .map(drop)
        .inspect_err(|error| tracing::error!(%error, spans = drafts.len(), "spans were not stored"))
}
