use std::sync::Arc;

use agl_types::v1;
use agl_types::{
    Attempt, AttemptEnd, AttemptQuery, AttemptUpdate, AttemptedRollout, Claim, DequeueRequest,
    EnqueueRolloutRequest, EventQuery, JsonMap, NamedResources, Page, PurgeReport, PurgeRequest, QueueState,
    ResourcesQuery, ResourcesUpdate, Rollout, RolloutQuery, RolloutUpdate, RolloutView, SequenceIdRequest,
    Span, SpanQuery, StartRollout, WaitRequest, Worker, WorkerQuery, WorkerUpdate, WrittenSpan,
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::raw::look_elsewhere;
use crate::{Error, IdempotencyKey, Look, RawSpan, Subscription};

/// What a store can do; the names are those of the Python interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Safe to call from several threads.
    pub thread_safe: bool,
    /// Safe to call from several tasks of one event loop.
    pub async_safe: bool,
    /// Usable from another process without copying it.
    pub zero_copy: bool,
    /// Has an OTLP endpoint.
    pub otlp_traces: bool,
}

/// How much a store holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Statistics {
    /// The kind of store, e.g. `InMemoryLightningStore`.
    pub name: String,
    /// Rollouts held.
    pub total_rollouts: u64,
    /// Attempts held.
    pub total_attempts: u64,
    /// Spans held.
    pub total_spans: u64,
    /// Resources ids held.
    pub total_resources: u64,
    /// Workers ever seen.
    pub total_workers: u64,
    /// Seconds since the store was opened.
    pub uptime: f64,
    /// Further figures of a backend.
    #[serde(flatten)]
    #[schema(value_type = HashMap<String, Value>)]
    pub extra: JsonMap,
}

/// A span on its way into the store, which may not have its place in the rollout yet.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanDraft {
    /// The span.
    pub span: Span,
    /// Whether `span.sequence_id` counts; if not, the store issues the next one in the same transaction.
    pub has_sequence_id: bool,
}

/// The same, written out already.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenDraft {
    /// The span.
    pub span: WrittenSpan,
    /// Whether `span.sequence_id` counts; if not, the store issues the next one in the same transaction.
    pub has_sequence_id: bool,
}

/// Why spans were passed over, and how many each time.
pub type PassedOver = Vec<(String, u64)>;

impl From<Span> for SpanDraft {
    fn from(span: Span) -> Self {
        Self { span, has_sequence_id: true }
    }
}

/// What a store may forget by itself, and when.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Retention {
    /// For how many seconds after the end of a rollout its spans are kept; for ever when absent.
    pub keep_spans_for: Option<f64>,
    /// How many bytes the store may take up on disk. Beyond it, the spans of those rollouts go that ended first.
    pub max_bytes: Option<u64>,
}

/// The store's interface: 0.3's methods, one for one, and what came on top.
///
/// An `Ok` of a mutating call means that the change is kept (see the backend for what "kept" survives).
/// Methods that only look never change anything, except that a deadline which has passed is acted upon first.
///
/// ```
/// use std::sync::Arc;
///
/// use agl_store::{MemoryStore, Store};
/// use agl_types::EnqueueRolloutRequest;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), agl_store::Error> {
/// let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
/// let rollout = store.enqueue_rollout(EnqueueRolloutRequest::new("a task")).await?;
/// let claimed = store.dequeue_rollout(Some("Worker-0".to_owned())).await?;
/// assert_eq!(claimed.map(|claim| claim.rollout.rollout_id), Some(rollout.rollout_id));
/// # Ok(()) }
/// ```
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// What this store can do.
    fn capabilities(&self) -> Capabilities;

    /// How much it holds.
    async fn statistics(&self) -> Result<Statistics, Error>;

    /// The URL that OTLP traces go to, ending in `/v1/traces`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the store has no such endpoint.
    fn otlp_traces_endpoint(&self) -> Result<String, Error> {
        Err(Error::Unsupported {
            message: "this store takes no OTLP traces: serve it with `agl store`".to_owned(),
        })
    }

    /// Creates a rollout and its first attempt, past the queue.
    async fn start_rollout(&self, request: StartRollout) -> Result<AttemptedRollout, Error>;

    /// Puts one rollout at the tail of the queue.
    async fn enqueue_rollout(&self, request: EnqueueRolloutRequest) -> Result<Rollout, Error> {
        let rollouts = self.enqueue_many_rollouts(vec![request]).await?;
        rollouts.into_iter().next().ok_or_else(|| Error::backend("the store acknowledged no rollout"))
    }

    /// Puts rollouts at the tail of the queue, in this order, all or none.
    async fn enqueue_many_rollouts(
        &self,
        requests: Vec<EnqueueRolloutRequest>,
    ) -> Result<Vec<Rollout>, Error>;

    /// Claims the rollout at the head of the queue, if there is one. Does not wait for one.
    async fn dequeue_rollout(&self, worker_id: Option<String>) -> Result<Option<AttemptedRollout>, Error> {
        let claimed =
            self.dequeue_many_rollouts(DequeueRequest { worker_id, ..DequeueRequest::default() }).await?;
        Ok(claimed.into_iter().next())
    }

    /// Claims up to `limit` rollouts from the head of the queue. With `wait`, and nothing there, the call waits
    /// that many seconds for something to claim and returns the moment there is.
    async fn dequeue_many_rollouts(&self, request: DequeueRequest) -> Result<Vec<AttemptedRollout>, Error>;

    /// Like [`Store::dequeue_many_rollouts`], and in the same step finds the resources of each rollout and stores the
    /// state event that its attempt has started: all that a runner begins with.
    ///
    /// # Errors
    /// [`Error::Unsupported`] from a store without this shortcut.
    async fn claim_rollouts(&self, request: DequeueRequest) -> Result<Vec<Claim>, Error> {
        let _ = request;
        Err(unsupported("claim_rollouts"))
    }

    /// Stores the last spans of an attempt and changes the attempt, or neither: a runner's last word.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown rollout or attempt; [`Error::Unsupported`] from a store without this
    /// shortcut.
    async fn end_attempt(
        &self,
        rollout_id: &str,
        attempt_id: &str,
        end: AttemptEnd,
    ) -> Result<Attempt, Error> {
        let _ = (rollout_id, attempt_id, end);
        Err(unsupported("end_attempt"))
    }

    /// Whether the queue gives out work.
    async fn queue_state(&self) -> Result<QueueState, Error> {
        Err(unsupported("queue_state"))
    }

    /// Has the queue give out no work, or work again, from now on and after a restart. A dequeue that waits goes on
    /// waiting while the queue is paused. Rollouts of controllers, which are in no queue, are claimed all the same.
    async fn set_queue_state(&self, state: QueueState) -> Result<QueueState, Error> {
        let _ = state;
        Err(unsupported("set_queue_state"))
    }

    /// Makes another attempt at a rollout, whatever its status, beyond `max_attempts` if need be.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown rollout.
    async fn start_attempt(
        &self,
        rollout_id: &str,
        worker_id: Option<String>,
    ) -> Result<AttemptedRollout, Error>;

    /// Stores one span; none when the attempt already has a span of this id (the first one stays).
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown rollout or attempt.
    async fn add_span(&self, span: Span) -> Result<Option<Span>, Error> {
        Ok(self.add_span_drafts(vec![span.into()]).await?.into_iter().next())
    }

    /// Stores spans and returns those that were new, grouped by attempt in order of first appearance.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown rollout or attempt; nothing is stored then.
    async fn add_many_spans(&self, spans: Vec<Span>) -> Result<Vec<Span>, Error> {
        self.add_span_drafts(spans.into_iter().map(SpanDraft::from).collect()).await
    }

    /// Like [`Store::add_many_spans`], and issues the sequence ids that are missing, in the order given.
    async fn add_span_drafts(&self, drafts: Vec<SpanDraft>) -> Result<Vec<Span>, Error>;

    /// Like [`Store::add_span_drafts`] for those who need no answer, and who can't help it when a rollout or an attempt
    /// is unknown: the spans of such a one are passed over. Returns why, and how many each time.
    async fn ingest_spans(&self, drafts: Vec<WrittenDraft>) -> Result<PassedOver, Error> {
        let read = |WrittenDraft { span, has_sequence_id }: WrittenDraft| {
            let span = span.parse().map_err(|error| Error::invalid("span", error.to_string()))?;
            Ok(SpanDraft { span, has_sequence_id })
        };
        let drafts = drafts.into_iter().map(read).collect::<Result<Vec<_>, Error>>()?;
        self.add_span_drafts(drafts).await?;
        Ok(PassedOver::new())
    }

    /// Stores a span under a rollout and attempt; without a sequence id the next one is issued.
    async fn add_otel_span(
        &self,
        rollout_id: &str,
        attempt_id: &str,
        span: Span,
        sequence_id: Option<i64>,
    ) -> Result<Option<Span>, Error> {
        let span = span.placed(rollout_id, attempt_id, sequence_id.unwrap_or_default());
        let draft = SpanDraft { span, has_sequence_id: sequence_id.is_some() };
        Ok(self.add_span_drafts(vec![draft]).await?.into_iter().next())
    }

    /// Looks for rollouts.
    async fn query_rollouts(&self, query: RolloutQuery) -> Result<Page<RolloutView>, Error>;

    /// Looks for the attempts of one rollout; an empty page for an unknown one.
    async fn query_attempts(&self, query: AttemptQuery) -> Result<Page<Attempt>, Error>;

    /// One rollout with its latest attempt.
    async fn get_rollout_by_id(&self, rollout_id: &str) -> Result<Option<RolloutView>, Error>;

    /// The latest attempt of a rollout.
    async fn get_latest_attempt(&self, rollout_id: &str) -> Result<Option<Attempt>, Error>;

    /// Looks for resources.
    async fn query_resources(&self, query: ResourcesQuery) -> Result<Page<ResourcesUpdate>, Error>;

    /// The newest version of one resources id, or the version asked for.
    async fn get_resources_by_id(
        &self,
        resources_id: &str,
        version: Option<u32>,
    ) -> Result<Option<ResourcesUpdate>, Error>;

    /// The resources added or updated last.
    async fn get_latest_resources(&self) -> Result<Option<ResourcesUpdate>, Error>;

    /// Stores resources under a new id, as version 1; they become the latest.
    async fn add_resources(&self, resources: NamedResources) -> Result<ResourcesUpdate, Error>;

    /// Stores a new version under this id, the first if there is none; it becomes the latest. Older versions
    /// stay readable.
    async fn update_resources(
        &self,
        resources_id: &str,
        resources: NamedResources,
    ) -> Result<ResourcesUpdate, Error>;

    /// Issues the next span sequence id of a rollout: 1, 2, ...
    async fn get_next_span_sequence_id(&self, rollout_id: &str, attempt_id: &str) -> Result<i64, Error> {
        let request =
            SequenceIdRequest { rollout_id: rollout_id.to_owned(), attempt_id: attempt_id.to_owned() };
        let issued = self.get_many_span_sequence_ids(vec![request]).await?;
        issued.into_iter().next().ok_or_else(|| Error::backend("the store issued no sequence id"))
    }

    /// Issues span sequence ids, in this order.
    async fn get_many_span_sequence_ids(&self, requests: Vec<SequenceIdRequest>) -> Result<Vec<i64>, Error>;

    /// Waits until all of the rollouts have ended or the time is up, and returns those that have ended, in the
    /// order asked for.
    async fn wait_for_rollouts(&self, request: WaitRequest) -> Result<Vec<Rollout>, Error>;

    /// Looks for spans of one rollout; an empty page for an unknown one.
    async fn query_spans(&self, query: SpanQuery) -> Result<Page<Span>, Error>;

    /// Like [`Store::query_spans`], for those who only send the spans on.
    async fn query_raw_spans(&self, query: SpanQuery) -> Result<Page<RawSpan>, Error> {
        let Page { items, limit, offset, total } = self.query_spans(query).await?;
        let items = items.iter().map(RawSpan::try_from).collect::<Result<Vec<_>, Error>>()?;
        Ok(Page { items, limit, offset, total })
    }

    /// The spans of many attempts, each a pair of the ids of rollout and attempt, in the order of sequence ids; an empty list
    /// for an attempt that is unknown, none where they were purged. For those who read a great many of them.
    async fn spans_of_attempts(
        &self,
        attempts: Vec<(String, String)>,
    ) -> Result<Vec<Option<Vec<RawSpan>>>, Error> {
        let mut found = Vec::with_capacity(attempts.len());
        for (rollout_id, attempt_id) in attempts {
            let query = SpanQuery { rollout_id, attempt_id: Some(attempt_id), ..SpanQuery::default() };
            found.push(match self.query_raw_spans(query).await {
                Ok(page) => Some(page.items),
                Err(Error::Gone { .. }) => None,
                Err(error) => return Err(error),
            });
        }
        Ok(found)
    }

    /// Has `look` at the spans of many attempts, as of [`Store::spans_of_attempts`], on a thread that may be kept busy and as
    /// near to where they are kept as can be: spans that are read at once need not be copied first.
    async fn look_at_spans(&self, attempts: Vec<(String, String)>, look: Look) -> Result<(), Error> {
        look_elsewhere(self.spans_of_attempts(attempts).await?, look).await
    }

    /// Training data of many rollouts, as a stream in Arrow's IPC format, made where the spans are; `request` is that of
    /// the route `POST /v1/agl/training-data`. None where the spans are at hand, and the data better made by the caller.
    async fn remote_training_data(&self, request: &serde_json::Value) -> Result<Option<Vec<u8>>, Error> {
        let _ = request;
        Ok(None)
    }

    /// Changes a rollout.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown rollout.
    async fn update_rollout(&self, rollout_id: &str, update: RolloutUpdate) -> Result<Rollout, Error>;

    /// Changes an attempt; `latest` names the one with the highest number.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown rollout or attempt.
    async fn update_attempt(
        &self,
        rollout_id: &str,
        attempt_id: &str,
        update: AttemptUpdate,
    ) -> Result<Attempt, Error>;

    /// Looks for workers.
    async fn query_workers(&self, query: WorkerQuery) -> Result<Page<Worker>, Error>;

    /// One worker.
    async fn get_worker_by_id(&self, worker_id: &str) -> Result<Option<Worker>, Error>;

    /// Takes a worker's heartbeat in; an unknown worker is made.
    async fn update_worker(&self, worker_id: &str, update: WorkerUpdate) -> Result<Worker, Error>;

    /// The same store for one changing call, which is carried out once under this key: when it comes again, within
    /// a day, its answer is made again, and [`Error::Conflict`] tells that the key was used for something else.
    /// None when the store knows no such keys.
    fn once(&self, key: IdempotencyKey) -> Option<Arc<dyn Store>> {
        let _ = key;
        None
    }

    /// Follows what changes, from now on or from the event after `query.after`.
    ///
    /// # Errors
    /// [`Error::Invalid`] when `query.after` is not the id of an event; [`Error::Unsupported`] where there is no feed.
    async fn subscribe(&self, query: EventQuery) -> Result<Subscription, Error> {
        let _ = query;
        Err(Error::Unsupported { message: "this store has no feed of events".to_owned() })
    }

    /// Removes the spans of ended rollouts for good; looking for them is [`Error::Gone`] from then on.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a request without any condition.
    async fn purge(&self, request: PurgeRequest) -> Result<PurgeReport, Error> {
        let _ = request;
        Err(Error::Unsupported { message: "this store removes nothing".to_owned() })
    }

    /// Forgets what is past its time: receipts of idempotent calls, and what `retention` says. To be called now and
    /// then by whoever serves the store.
    async fn housekeep(&self, retention: &Retention) -> Result<PurgeReport, Error> {
        let _ = retention;
        Ok(PurgeReport::default())
    }

    /// Removes a rollout and all that belongs to it: attempts, spans, its place in the queue. A worker that held it
    /// is free, and whoever waits for it is told, since it will not end.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown rollout.
    async fn delete_rollout(&self, rollout_id: &str) -> Result<(), Error> {
        let _ = rollout_id;
        Err(unsupported("delete_rollout"))
    }

    /// Makes rollouts that wait for a controller; they never enter the queue. A rollout that is there already under
    /// the id given is returned as it stands.
    async fn create_controller_rollouts(
        &self,
        requests: Vec<v1::RolloutCreate>,
    ) -> Result<Vec<v1::Rollout>, Error> {
        let _ = requests;
        Err(unsupported("create_controller_rollouts"))
    }

    /// Takes over what a controller says. Going on to running is a claim, which one caller at most succeeds with;
    /// going on to an end also ends the attempt.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown rollout; [`Error::Conflict`] when the state does not follow from the
    /// present one, or the rollout is a runner's.
    async fn update_controller_rollout(
        &self,
        rollout_id: &str,
        update: v1::StatusUpdate,
    ) -> Result<v1::Rollout, Error> {
        let _ = (rollout_id, update);
        Err(unsupported("update_controller_rollout"))
    }

    /// Rollouts in certain states, in order of creation: those that wait or run are the controllers' own, those that
    /// have ended are everybody's.
    async fn query_controller_rollouts(&self, query: v1::RolloutQuery) -> Result<Vec<v1::Rollout>, Error> {
        let _ = query;
        Err(unsupported("query_controller_rollouts"))
    }

    /// One rollout, whosever it is, as 1.0 sees it.
    async fn get_controller_rollout(&self, rollout_id: &str) -> Result<Option<v1::RolloutDetail>, Error> {
        let _ = rollout_id;
        Err(unsupported("get_controller_rollout"))
    }

    /// Rollouts in the order in which they ended.
    async fn query_completions(&self, query: v1::CompletionQuery) -> Result<v1::Completions, Error> {
        let _ = query;
        Err(unsupported("query_completions"))
    }

    /// Stores an event as a span of an attempt, at this moment; [`v1::LATEST_ATTEMPT`] names the latest one.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown rollout or attempt; [`Error::Conflict`] when there is no attempt yet.
    async fn add_event(
        &self,
        rollout_id: &str,
        attempt_id: &str,
        event: v1::EventCreate,
    ) -> Result<v1::Event, Error> {
        let _ = (rollout_id, attempt_id, event);
        Err(unsupported("add_event"))
    }

    /// The events of one attempt, in the order of their sequence ids; rewards are among them, whoever emitted them.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown rollout.
    async fn query_events(&self, query: v1::EventsQuery) -> Result<Vec<v1::Event>, Error> {
        let _ = query;
        Err(unsupported("query_events"))
    }

    /// Registers models; of one that is known by name and endpoint the version is replaced.
    async fn register_models(&self, models: Vec<v1::Model>) -> Result<Vec<v1::Model>, Error> {
        let _ = models;
        Err(unsupported("register_models"))
    }

    /// Every model, in the order in which they were registered.
    async fn query_models(&self) -> Result<Vec<v1::Model>, Error> {
        Err(unsupported("query_models"))
    }

    /// Removes one model, or all of them.
    async fn delete_models(&self, key: Option<v1::ModelKey>) -> Result<(), Error> {
        let _ = key;
        Err(unsupported("delete_models"))
    }
}

fn unsupported(method: &str) -> Error {
    Error::Unsupported { message: format!("this store does not implement {method}") }
}
