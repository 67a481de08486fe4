//! The one engine: [`Store`] over any backend.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use agl_types::v1;
use agl_types::{
    Attempt, AttemptEnd, AttemptQuery, AttemptUpdate, AttemptedRollout, Claim, DequeueRequest,
    EnqueueRolloutRequest, EventQuery, JsonMap, NamedResources, Page, PurgeReport, PurgeRequest, QueueState,
    ResourcesQuery, ResourcesUpdate, Rollout, RolloutQuery, RolloutUpdate, RolloutView, SequenceIdRequest,
    Span, SpanQuery, StartRollout, WaitRequest, Worker, WorkerQuery, WorkerUpdate,
};
use async_trait::async_trait;
use tokio::sync::watch;

use crate::backend::{Backend, Found, Lane, Part, Read};
use crate::feed::Feed;
use crate::idempotency::Replay;
use crate::metrics::{self, Transaction};
use crate::query::Selection;
use crate::raw::{AttemptSpans, Look, RawSpan, look_elsewhere, write_out};
use crate::work::controller::{self, Deletion};
use crate::work::{NewSpan, Work, resources_for};
use crate::{
    Capabilities, Clock, Error, IdSource, IdempotencyKey, Lean, PassedOver, Retention, SpanDraft, Statistics,
    Store, Subscription, WrittenDraft,
};

/// A batch of at least this many items lets single operations go first.
const BULK: usize = 16;

/// How many receipts one transaction forgets at most.
const RECEIPTS_AT_ONCE: usize = 2_000;

/// How many rollouts are looked up at once to be purged.
const PURGED_AT_ONCE: usize = 16;

/// How long the watchdog rests after the backend failed it.
const WATCHDOG_REST: Duration = Duration::from_secs(1);

/// A store in this process: the engine over a backend.
///
/// Deadlines (`timeout_seconds`, `unresponsive_seconds`) are acted upon by a thread of the store's own as soon as
/// they pass, and, should that be late, by the next call before it does anything else.
#[derive(Debug)]
pub struct LocalStore<B: Backend> {
    inner: Arc<Inner<B>>,
    /// Where this is a view for one call: see [`Store::once`].
    key: Option<IdempotencyKey>,
}

/// The spans of attempts while a transaction lasts.
struct InTransaction<'r> {
    read: &'r dyn Read,
    attempts: Vec<(String, String)>,
}

impl AttemptSpans for InTransaction<'_> {
    fn read(&self, number: usize, purpose: Lean) -> Result<Option<Vec<Span>>, Error> {
        let Some((rollout_id, attempt_id)) = self.attempts.get(number) else { return Ok(Some(Vec::new())) };
        let found = self.read.lean_spans(rollout_id, attempt_id, purpose)?;
        let is_gone = found.is_empty() && is_emptied(self.read, rollout_id)?;
        Ok((!is_gone).then_some(found))
    }
}

#[derive(Debug)]
struct Inner<B> {
    backend: B,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    opened: f64,
}

impl<B: Backend> LocalStore<B> {
    /// Puts the engine over a backend that has published its earliest deadline.
    pub(crate) fn over(backend: B, clock: Arc<dyn Clock>, ids: Arc<dyn IdSource>) -> Self {
        let opened = clock.now();
        let deadlines = backend.signals().deadlines();
        let inner = Arc::new(Inner { backend, clock: Arc::clone(&clock), ids, opened });
        start_watchdog(Arc::downgrade(&inner), clock, deadlines);
        Self { inner, key: None }
    }

    pub(crate) fn backend(&self) -> &B {
        &self.inner.backend
    }
}

impl<B: Backend> Drop for LocalStore<B> {
    fn drop(&mut self) {
        // The watchdog may hold the inner store for a moment longer; files are let go of now.
        if self.key.is_none() {
            self.inner.backend.close();
        }
    }
}

/// Starts the thread that acts upon deadlines. It is a plain thread, because a store may be made where there is
/// no runtime, and it ends by itself when the store is gone.
fn start_watchdog<B: Backend>(
    store: Weak<Inner<B>>,
    clock: Arc<dyn Clock>,
    mut deadlines: watch::Receiver<f64>,
) {
    let watch = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "the watchdog has no runtime; deadlines pass only when the store is used");
                return;
            }
        };
        runtime.block_on(async move {
            loop {
                let earliest = *deadlines.borrow_and_update();
                tokio::select! {
                    () = clock.sleep_past(earliest), if earliest.is_finite() => {
                        let Some(inner) = store.upgrade() else { return };
                        let passed = inner.pass_deadlines().await;
                        drop(inner);
                        if let Err(error) = passed {
                            tracing::error!(%error, "the watchdog could not act upon a deadline");
                            tokio::time::sleep(WATCHDOG_REST).await;
                        }
                    }
                    changed = deadlines.changed() => {
                        if changed.is_err() {
                            return;
                        }
                    }
                }
            }
        });
    };
    if let Err(error) = std::thread::Builder::new().name("agl-watchdog".to_owned()).spawn(watch) {
        tracing::error!(%error, "the watchdog did not start; deadlines pass only when the store is used");
    }
}

impl<B: Backend> Inner<B> {
    /// Acts upon the deadlines that have passed.
    async fn pass_deadlines(&self) -> Result<(), Error> {
        while self.clock.now() > self.backend.signals().earliest_deadline() {
            let pass = |work: &mut Work<'_>| work.pass_deadlines();
            self.transact(Lane::Fast, pass).await?;
        }
        Ok(())
    }

    /// Acts upon deadlines before a call. Should that fail, because the disk is full, what is there can still be read.
    async fn catch_up(&self) {
        if let Err(error) = self.pass_deadlines().await {
            tracing::error!(%error, "a deadline could not be acted upon");
        }
    }

    async fn transact<T, F>(&self, lane: Lane, operation: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&mut Work<'_>) -> Result<T, Error> + Send + 'static,
    {
        let clock = Arc::clone(&self.clock);
        let ids = Arc::clone(&self.ids);
        self.backend
            .write(lane, move |tx| {
                let mut work = Work::new(tx, &*ids, clock.now());
                let value = operation(&mut work)?;
                Ok((value, work.finish()?))
            })
            .await
    }

    async fn look<T, F>(&self, operation: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Read) -> Result<T, Error> + Send + 'static,
    {
        self.catch_up().await;
        self.backend.read(operation).await
    }
}

impl<B: Backend> LocalStore<B> {
    /// A changing call.
    async fn write<T, F>(&self, call: &'static str, lane: Lane, operation: F) -> Result<T, Error>
    where
        T: Replay,
        F: FnOnce(&mut Work<'_>) -> Result<T, Error> + Send + 'static,
    {
        let started = Instant::now();
        self.inner.catch_up().await;
        let key = self.key.clone();
        let once = move |work: &mut Work<'_>| match key {
            None => operation(work),
            Some(key) => work.once(&key, operation),
        };
        let timed = move |work: &mut Work<'_>| metrics::timed(call, Transaction::Atomic, || once(work));
        let outcome = self.inner.transact(lane, timed).await;
        metrics::answered(call, started.elapsed(), &outcome);
        outcome
    }

    /// A looking call.
    async fn read<T, F>(&self, call: &'static str, operation: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Read) -> Result<T, Error> + Send + 'static,
    {
        let started = Instant::now();
        let timed = move |read: &dyn Read| metrics::timed(call, Transaction::Query, || operation(read));
        let outcome = self.inner.look(timed).await;
        metrics::answered(call, started.elapsed(), &outcome);
        outcome
    }

    /// Claims work in a transaction, again and again for as long as there is none and the caller waits.
    async fn claim<T>(
        &self,
        call: &'static str,
        request: DequeueRequest,
        claim: fn(&mut Work<'_>, &DequeueRequest) -> Result<Vec<T>, Error>,
    ) -> Result<Vec<T>, Error>
    where
        Vec<T>: Replay,
    {
        let lane = lane(usize::try_from(request.limit).unwrap_or_default());
        let wait = request.wait.filter(|seconds| *seconds > 0.0 && request.limit > 0);
        let mut waiting = wait.map(|seconds| (moment_in(seconds), self.inner.backend.signals().idle()));
        loop {
            let asked = request.clone();
            let claimed = self.write(call, lane, move |work| claim(work, &asked)).await?;
            match &mut waiting {
                Some((deadline, idle)) if claimed.is_empty() => match deadline {
                    None => idle.work().await,
                    Some(moment) => {
                        if tokio::time::timeout_at(*moment, idle.work()).await.is_err() {
                            return Ok(claimed);
                        }
                    }
                },
                _ => return Ok(claimed),
            }
        }
    }

    /// Removes the spans of these rollouts, or of all that ended before a moment, in transactions that are short.
    async fn remove_spans(
        &self,
        rollout_ids: Option<Vec<String>>,
        ended_before: Option<f64>,
    ) -> Result<PurgeReport, Error> {
        let mut report = PurgeReport::default();
        let mut named = rollout_ids.map(VecDeque::from);
        loop {
            let targets = match &mut named {
                Some(named) => std::mem::take(named),
                None => self
                    .inner
                    .look(move |read| read.purgeable(ended_before.unwrap_or(f64::INFINITY), PURGED_AT_ONCE))
                    .await?
                    .into(),
            };
            if targets.is_empty() {
                return Ok(report);
            }
            let purge = move |work: &mut Work<'_>| work.purge(targets, ended_before);
            let (purged, left) = self.inner.transact(Lane::Bulk, purge).await?;
            report.rollouts += purged.rollouts;
            report.spans += purged.spans;
            if let Some(named) = &mut named {
                *named = left;
            }
        }
    }
}

/// Seconds as a moment from now; none when it is further away than anybody waits.
fn moment_in(seconds: f64) -> Option<tokio::time::Instant> {
    let duration = Duration::try_from_secs_f64(seconds.max(0.0)).ok()?;
    tokio::time::Instant::now().checked_add(duration)
}

fn lane(items: usize) -> Lane {
    if items < BULK { Lane::Fast } else { Lane::Bulk }
}

fn page<T>(found: Found<T>, limit: i64, offset: i64) -> Page<T> {
    let (items, total) = found;
    Page { items, limit, offset, total }
}

/// Writes spans out, so that the one writer of the backend does not have to.
fn write_drafts(drafts: &[SpanDraft]) -> Result<Vec<WrittenDraft>, Error> {
    let write = |SpanDraft { span, has_sequence_id }: &SpanDraft| {
        // One that could be stored but not be read again would take the other spans of its rollout with it.
        span.check_attributes().map_err(|deep| Error::invalid(deep.field.clone(), deep.to_string()))?;
        Ok(WrittenDraft { span: write_out(span)?, has_sequence_id: *has_sequence_id })
    };
    drafts.iter().map(write).collect()
}

/// Whether a rollout has no spans at all.
fn is_bare(read: &dyn Read, rollout_id: &str) -> Result<bool, Error> {
    let count = SpanQuery { limit: 0, ..SpanQuery::default() };
    Ok(read.select_spans(rollout_id, None, &Selection::spans(&count)?)?.1 == 0)
}

/// Whether the spans of a rollout were purged, and it has got no others since.
fn is_emptied(read: &dyn Read, rollout_id: &str) -> Result<bool, Error> {
    Ok(read.is_purged(rollout_id)? && is_bare(read, rollout_id)?)
}

/// Spans of one rollout, or of one of its attempts, unless they were purged.
pub(crate) fn spans(
    read: &dyn Read,
    rollout_id: &str,
    attempt_id: Option<&str>,
    selection: &Selection,
) -> Result<Found<RawSpan>, Error> {
    let found = read.select_spans(rollout_id, attempt_id, selection)?;
    if found.1 == 0 && is_emptied(read, rollout_id)? {
        return Err(Error::Gone { message: format!("Spans for rollout {rollout_id} have been evicted") });
    }
    Ok(found)
}

fn view(read: &dyn Read, rollout_id: &str) -> Result<Option<RolloutView>, Error> {
    let Some(rollout) = read.rollout(rollout_id, Part::Whole)? else { return Ok(None) };
    let attempt = read.latest_attempt(rollout_id)?;
    Ok(Some(RolloutView { rollout, attempt }))
}

#[async_trait]
impl<B: Backend> Store for LocalStore<B> {
    fn capabilities(&self) -> Capabilities {
        Capabilities { thread_safe: true, async_safe: true, zero_copy: false, otlp_traces: false }
    }

    async fn statistics(&self) -> Result<Statistics, Error> {
        let bytes = self.read("statistics", |read| read.bytes()).await?;
        let signals = self.inner.backend.signals();
        let (counts, feed) = (signals.counts(), signals.feed().figures());
        let count = |number: i64| u64::try_from(number).unwrap_or_default();
        let mut extra = JsonMap::new();
        extra.insert("queued_rollouts".to_owned(), count(counts.queued).into());
        extra.insert("feed_subscribers".to_owned(), feed.subscribers.into());
        extra.insert("feed_lag".to_owned(), feed.lag.into());
        extra.insert("feed_dropped".to_owned(), feed.dropped.into());
        extra.extend(bytes.map(|bytes| ("store_bytes".to_owned(), bytes.into())));
        Ok(Statistics {
            name: B::NAME.to_owned(),
            total_rollouts: count(counts.rollouts),
            total_attempts: count(counts.attempts),
            total_spans: count(counts.spans),
            total_resources: count(counts.resources),
            total_workers: count(counts.workers),
            uptime: self.inner.clock.now() - self.inner.opened,
            extra,
        })
    }

    async fn start_rollout(&self, request: StartRollout) -> Result<AttemptedRollout, Error> {
        self.write("start_rollout", Lane::Fast, |work| work.start_rollout(request)).await
    }

    async fn enqueue_many_rollouts(
        &self,
        requests: Vec<EnqueueRolloutRequest>,
    ) -> Result<Vec<Rollout>, Error> {
        self.write("enqueue_many_rollouts", lane(requests.len()), |work| work.enqueue(requests)).await
    }

    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method itself is for one lifetime only"
    )]
    async fn dequeue_many_rollouts(&self, request: DequeueRequest) -> Result<Vec<AttemptedRollout>, Error> {
        self.claim("dequeue_many_rollouts", request, |work, request| work.dequeue(request)).await
    }

    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method itself is for one lifetime only"
    )]
    async fn claim_rollouts(&self, request: DequeueRequest) -> Result<Vec<Claim>, Error> {
        self.claim("claim_rollouts", request, |work, request| work.claim(request)).await
    }

    async fn end_attempt(
        &self,
        rollout_id: &str,
        attempt_id: &str,
        end: AttemptEnd,
    ) -> Result<Attempt, Error> {
        let (rollout_id, attempt_id) = (rollout_id.to_owned(), attempt_id.to_owned());
        let AttemptEnd { spans, update } = end;
        let place =
            |span: Span| SpanDraft { span: span.placed(&rollout_id, &attempt_id, 0), has_sequence_id: false };
        let written = write_drafts(&spans.into_iter().map(place).collect::<Vec<_>>())?;
        self.write("end_attempt", lane(written.len()), move |work| {
            work.end_attempt(&rollout_id, &attempt_id, written, update)
        })
        .await
    }

    async fn queue_state(&self) -> Result<QueueState, Error> {
        self.read("queue_state", |read| Ok(QueueState { paused: read.is_paused()? })).await
    }

    async fn set_queue_state(&self, state: QueueState) -> Result<QueueState, Error> {
        self.write("set_queue_state", Lane::Fast, move |work| work.set_queue_state(state)).await
    }

    async fn start_attempt(
        &self,
        rollout_id: &str,
        worker_id: Option<String>,
    ) -> Result<AttemptedRollout, Error> {
        let rollout_id = rollout_id.to_owned();
        self.write("start_attempt", Lane::Fast, move |work| work.start_attempt(&rollout_id, worker_id)).await
    }

    async fn add_span_drafts(&self, drafts: Vec<SpanDraft>) -> Result<Vec<Span>, Error> {
        let written = write_drafts(&drafts)?;
        let new = self.write("add_span_drafts", lane(drafts.len()), |work| work.add_spans(written)).await?;
        let mut spans: Vec<Option<Span>> = drafts.into_iter().map(|draft| Some(draft.span)).collect();
        let placed = new.into_iter().filter_map(|NewSpan { index, sequence_id }| {
            let span = spans.get_mut(index)?.take()?;
            Some(Span { sequence_id, ..span })
        });
        Ok(placed.collect())
    }

    async fn ingest_spans(&self, drafts: Vec<WrittenDraft>) -> Result<PassedOver, Error> {
        let started = Instant::now();
        self.inner.catch_up().await;
        let outcome = self.inner.transact(lane(drafts.len()), |work| work.ingest_spans(drafts)).await;
        metrics::answered("ingest_spans", started.elapsed(), &outcome);
        outcome
    }

    async fn query_rollouts(&self, query: RolloutQuery) -> Result<Page<RolloutView>, Error> {
        let selection = Selection::rollouts(&query)?;
        let found = self.read("query_rollouts", move |read| read.select_rollouts(&selection)).await?;
        Ok(page(found, query.limit, query.offset))
    }

    async fn query_attempts(&self, query: AttemptQuery) -> Result<Page<Attempt>, Error> {
        let selection = Selection::attempts(&query)?;
        let AttemptQuery { rollout_id, limit, offset, .. } = query;
        let found =
            self.read("query_attempts", move |read| read.select_attempts(&rollout_id, &selection)).await?;
        Ok(page(found, limit, offset))
    }

    async fn get_rollout_by_id(&self, rollout_id: &str) -> Result<Option<RolloutView>, Error> {
        let rollout_id = rollout_id.to_owned();
        self.read("get_rollout_by_id", move |read| view(read, &rollout_id)).await
    }

    async fn get_latest_attempt(&self, rollout_id: &str) -> Result<Option<Attempt>, Error> {
        let rollout_id = rollout_id.to_owned();
        self.read("get_latest_attempt", move |read| read.latest_attempt(&rollout_id)).await
    }

    async fn query_resources(&self, query: ResourcesQuery) -> Result<Page<ResourcesUpdate>, Error> {
        let selection = Selection::resources(&query)?;
        let all_versions = query.all_versions;
        let found =
            self.read("query_resources", move |read| read.select_resources(all_versions, &selection)).await?;
        Ok(page(found, query.limit, query.offset))
    }

    async fn get_resources_by_id(
        &self,
        resources_id: &str,
        version: Option<u32>,
    ) -> Result<Option<ResourcesUpdate>, Error> {
        let resources_id = resources_id.to_owned();
        self.read("get_resources_by_id", move |read| read.resources(&resources_id, version)).await
    }

    async fn get_latest_resources(&self) -> Result<Option<ResourcesUpdate>, Error> {
        self.read("get_latest_resources", |read| resources_for(read, None)).await
    }

    async fn add_resources(&self, resources: NamedResources) -> Result<ResourcesUpdate, Error> {
        self.write("add_resources", Lane::Fast, |work| work.add_resources(resources)).await
    }

    async fn update_resources(
        &self,
        resources_id: &str,
        resources: NamedResources,
    ) -> Result<ResourcesUpdate, Error> {
        let resources_id = resources_id.to_owned();
        self.write("update_resources", Lane::Fast, |work| work.update_resources(resources_id, resources))
            .await
    }

    async fn get_many_span_sequence_ids(&self, requests: Vec<SequenceIdRequest>) -> Result<Vec<i64>, Error> {
        self.write("get_many_span_sequence_ids", lane(requests.len()), move |work| {
            work.issue_sequence_ids(&requests)
        })
        .await
    }

    async fn wait_for_rollouts(&self, request: WaitRequest) -> Result<Vec<Rollout>, Error> {
        let WaitRequest { rollout_ids, timeout } = request;
        // No such duration means longer than anybody waits.
        let timeout =
            timeout.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX));
        let deadline = timeout.map(|timeout| (timeout, tokio::time::Instant::now().checked_add(timeout)));
        let listener =
            self.inner.backend.signals().listen(rollout_ids.iter().cloned().collect::<HashSet<_>>());
        loop {
            listener.expect_all();
            let asked_for = rollout_ids.clone();
            let known = self
                .inner
                .look(move |read| {
                    asked_for
                        .iter()
                        .map(|id| read.rollout(id, Part::Whole))
                        .collect::<Result<Vec<_>, Error>>()
                })
                .await?;
            let mut has_open = false;
            for (rollout_id, rollout) in rollout_ids.iter().zip(&known) {
                if rollout.as_ref().is_none_or(|rollout| rollout.status.is_terminal()) {
                    listener.strike(rollout_id);
                } else {
                    has_open = true;
                }
            }
            let ended = known.into_iter().flatten().filter(|rollout| rollout.status.is_terminal());
            match deadline {
                _ if !has_open => return Ok(ended.collect()),
                Some((timeout, _)) if timeout.is_zero() => return Ok(ended.collect()),
                Some((_, Some(moment))) if tokio::time::Instant::now() >= moment => {
                    return Ok(ended.collect());
                }
                Some((_, Some(moment))) => {
                    // Once the time is up, the next round looks for the last time.
                    let _ = tokio::time::timeout_at(moment, listener.all_struck()).await;
                }
                Some((_, None)) | None => listener.all_struck().await,
            }
        }
    }

    async fn query_spans(&self, query: SpanQuery) -> Result<Page<Span>, Error> {
        let Page { items, limit, offset, total } = self.query_raw_spans(query).await?;
        let items = items.iter().map(RawSpan::parse).collect::<Result<Vec<_>, Error>>()?;
        Ok(Page { items, limit, offset, total })
    }

    async fn query_raw_spans(&self, query: SpanQuery) -> Result<Page<RawSpan>, Error> {
        let selection = Selection::spans(&query)?;
        let SpanQuery { rollout_id, attempt_id, limit, offset, .. } = query;
        let select = move |read: &dyn Read| {
            let attempt_id = match attempt_id {
                Some(attempt_id) if attempt_id == "latest" => match read.latest_attempt(&rollout_id)? {
                    Some(attempt) => Some(attempt.attempt_id),
                    None => return Ok((Vec::new(), 0)),
                },
                other => other,
            };
            spans(read, &rollout_id, attempt_id.as_deref(), &selection)
        };
        Ok(page(self.read("query_spans", select).await?, limit, offset))
    }

    async fn spans_of_attempts(
        &self,
        attempts: Vec<(String, String)>,
    ) -> Result<Vec<Option<Vec<RawSpan>>>, Error> {
        let selection = Selection::spans(&SpanQuery::default())?;
        let select = move |read: &dyn Read| {
            let spans_of = |(rollout_id, attempt_id): &(String, String)| {
                let (found, count) = read.select_spans(rollout_id, Some(attempt_id), &selection)?;
                let is_gone = count == 0 && is_emptied(read, rollout_id)?;
                Ok((!is_gone).then_some(found))
            };
            attempts.iter().map(spans_of).collect()
        };
        self.read("query_spans", select).await
    }

    async fn look_at_spans(&self, attempts: Vec<(String, String)>, look: Look) -> Result<(), Error> {
        if !B::READS_APART {
            return look_elsewhere(self.spans_of_attempts(attempts).await?, look).await;
        }
        let look = move |read: &dyn Read| {
            look(&InTransaction { read, attempts });
            Ok(())
        };
        self.read("query_spans", look).await
    }

    async fn update_rollout(&self, rollout_id: &str, update: RolloutUpdate) -> Result<Rollout, Error> {
        let rollout_id = rollout_id.to_owned();
        self.write("update_rollout", Lane::Fast, move |work| work.update_rollout(&rollout_id, update)).await
    }

    async fn update_attempt(
        &self,
        rollout_id: &str,
        attempt_id: &str,
        update: AttemptUpdate,
    ) -> Result<Attempt, Error> {
        let (rollout_id, attempt_id) = (rollout_id.to_owned(), attempt_id.to_owned());
        self.write("update_attempt", Lane::Fast, move |work| {
            work.update_attempt(&rollout_id, &attempt_id, update)
        })
        .await
    }

    async fn query_workers(&self, query: WorkerQuery) -> Result<Page<Worker>, Error> {
        let selection = Selection::workers(&query)?;
        let found = self.read("query_workers", move |read| read.select_workers(&selection)).await?;
        Ok(page(found, query.limit, query.offset))
    }

    async fn get_worker_by_id(&self, worker_id: &str) -> Result<Option<Worker>, Error> {
        let worker_id = worker_id.to_owned();
        self.read("get_worker_by_id", move |read| read.worker(&worker_id)).await
    }

    async fn update_worker(&self, worker_id: &str, update: WorkerUpdate) -> Result<Worker, Error> {
        let worker_id = worker_id.to_owned();
        self.write("update_worker", Lane::Fast, move |work| work.update_worker(&worker_id, update)).await
    }

    fn once(&self, key: IdempotencyKey) -> Option<Arc<dyn Store>> {
        Some(Arc::new(Self { inner: Arc::clone(&self.inner), key: Some(key) }))
    }

    async fn subscribe(&self, query: EventQuery) -> Result<Subscription, Error> {
        Feed::subscribe(self.inner.backend.signals().feed(), query)
    }

    async fn purge(&self, request: PurgeRequest) -> Result<PurgeReport, Error> {
        let PurgeRequest { rollout_id_in, ended_before } = request;
        if rollout_id_in.is_none() && ended_before.is_none() {
            let message = "a purge needs rollout_id_in or ended_before, or it would remove everything";
            return Err(Error::invalid("rollout_id_in", message));
        }
        self.remove_spans(rollout_id_in, ended_before).await
    }

    async fn housekeep(&self, retention: &Retention) -> Result<PurgeReport, Error> {
        while self.inner.transact(Lane::Bulk, |work| work.forget_receipts(RECEIPTS_AT_ONCE)).await? {}
        let mut report = PurgeReport::default();
        if let Some(seconds) = retention.keep_spans_for {
            report = self.remove_spans(None, Some(self.inner.clock.now() - seconds)).await?;
        }
        let Some(most) = retention.max_bytes else { return Ok(report) };
        let mut enough = most;
        while self.inner.look(|read| read.bytes()).await?.is_some_and(|bytes| bytes > enough) {
            // Once begun, some room is made, so that it does not have to be made again at once.
            enough = most / 10 * 9;
            let oldest = self.inner.look(|read| read.purgeable(f64::INFINITY, PURGED_AT_ONCE)).await?;
            if oldest.is_empty() {
                tracing::warn!(
                    "the store takes up more than {most} bytes, and there are no more spans of ended rollouts to remove"
                );
                break;
            }
            let purged = self.remove_spans(Some(oldest), None).await?;
            report.rollouts += purged.rollouts;
            report.spans += purged.spans;
        }
        Ok(report)
    }

    async fn delete_rollout(&self, rollout_id: &str) -> Result<(), Error> {
        loop {
            let rollout_id = rollout_id.to_owned();
            let delete = move |work: &mut Work<'_>| work.delete_rollout(&rollout_id);
            if let Deletion::Whole = self.write("delete_rollout", Lane::Bulk, delete).await? {
                return Ok(());
            }
        }
    }

    async fn create_controller_rollouts(
        &self,
        requests: Vec<v1::RolloutCreate>,
    ) -> Result<Vec<v1::Rollout>, Error> {
        let lane = lane(requests.len());
        self.write("create_controller_rollouts", lane, |work| work.create_controlled(requests)).await
    }

    async fn update_controller_rollout(
        &self,
        rollout_id: &str,
        update: v1::StatusUpdate,
    ) -> Result<v1::Rollout, Error> {
        let rollout_id = rollout_id.to_owned();
        self.write("update_controller_rollout", Lane::Fast, move |work| {
            work.update_controlled(&rollout_id, &update)
        })
        .await
    }

    async fn query_controller_rollouts(&self, query: v1::RolloutQuery) -> Result<Vec<v1::Rollout>, Error> {
        self.read("query_controller_rollouts", move |read| controller::list(read, &query)).await
    }

    async fn get_controller_rollout(&self, rollout_id: &str) -> Result<Option<v1::RolloutDetail>, Error> {
        let rollout_id = rollout_id.to_owned();
        self.read("get_controller_rollout", move |read| controller::detail(read, &rollout_id)).await
    }

    async fn query_completions(&self, query: v1::CompletionQuery) -> Result<v1::Completions, Error> {
        self.read("query_completions", move |read| controller::completions(read, query)).await
    }

    async fn add_event(
        &self,
        rollout_id: &str,
        attempt_id: &str,
        event: v1::EventCreate,
    ) -> Result<v1::Event, Error> {
        let (rollout_id, attempt_id) = (rollout_id.to_owned(), attempt_id.to_owned());
        let add = move |work: &mut Work<'_>| work.add_event(&rollout_id, &attempt_id, event);
        Ok(self.write("add_event", Lane::Fast, add).await?.event)
    }

    async fn query_events(&self, query: v1::EventsQuery) -> Result<Vec<v1::Event>, Error> {
        self.read("query_events", move |read| controller::events(read, &query)).await
    }

    async fn register_models(&self, models: Vec<v1::Model>) -> Result<Vec<v1::Model>, Error> {
        self.write("register_models", Lane::Fast, |work| work.register_models(models)).await
    }

    async fn query_models(&self) -> Result<Vec<v1::Model>, Error> {
        self.read("query_models", |read| read.models()).await
    }

    async fn delete_models(&self, key: Option<v1::ModelKey>) -> Result<(), Error> {
        self.write("delete_models", Lane::Fast, move |work| work.delete_models(key.as_ref())).await
    }
}
