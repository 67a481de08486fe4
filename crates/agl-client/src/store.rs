use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use agl_store::{
    Capabilities, Clock as _, Error, IdempotencyKey, SpanDraft, Statistics, Store, Subscription, SystemClock,
};
use agl_types::v1;
use agl_types::{
    Attempt, AttemptEnd, AttemptQuery, AttemptUpdate, AttemptedRollout, Claim, DequeueRequest,
    EnqueueRequest, EnqueueRolloutRequest, EventQuery, NamedResources, Page, Patch, PurgeReport,
    PurgeRequest, QueueState, ResourcesQuery, ResourcesUpdate, Rollout, RolloutQuery, RolloutUpdate,
    RolloutView, SequenceIdRequest, SortOrder, Span, SpanQuery, StartRollout, WaitRequest, Worker,
    WorkerQuery, WorkerUpdate,
};
use async_trait::async_trait;
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::transport::Reply;
use crate::{Client, feed};

/// How long the server is asked to wait at a time, so that a dead connection is noticed.
const WAIT_SLICE: Duration = Duration::from_secs(20);
/// A server that answers sooner than this part of the time it was given has nothing left to wait for.
const WAITED_OUT: f64 = 0.9;

/// When to look again at the queue of a server that does not wait.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How much longer than other calls a purge may take.
const PURGE_TIME: Duration = Duration::from_secs(600);

/// How much longer than other calls training data may take to make.
const TRAINING_TIME: Duration = Duration::from_secs(600);

/// No body.
const NOTHING: Option<&()> = None;

/// A limit that REST refuses, although it makes sense: "just count".
const JUST_COUNT: i64 = 0;

#[derive(Serialize)]
struct Who {
    #[serde(skip_serializing_if = "Option::is_none")]
    worker_id: Option<String>,
}

#[derive(Serialize)]
struct Batch {
    spans: Vec<WireDraft>,
}

/// A span as the batch route takes it: without a sequence id where one is to be issued.
struct WireDraft(SpanDraft);

impl Serialize for WireDraft {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(SpanDraft { span, has_sequence_id }) = self;
        if *has_sequence_id {
            return span.serialize(serializer);
        }
        let mut value = serde_json::to_value(span).map_err(serde::ser::Error::custom)?;
        value["sequence_id"] = Value::Null;
        value.serialize(serializer)
    }
}

#[derive(Serialize)]
struct SequenceIdRequests {
    requests: Vec<SequenceIdRequest>,
}

#[derive(Deserialize)]
struct SequenceIds {
    sequence_ids: Vec<i64>,
}

impl Client {
    /// A call that changes something.
    async fn change<B, T>(&self, path: &[&str], body: &B) -> Result<T, Error>
    where
        B: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        Ok(self.change_patiently(Method::POST, path, body, Duration::ZERO).await?.value)
    }

    async fn change_patiently<B, T>(
        &self,
        method: Method,
        path: &[&str],
        body: &B,
        longer: Duration,
    ) -> Result<Reply<T>, Error>
    where
        B: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        let key = self.key.clone().unwrap_or_else(fresh_key);
        self.transport.change(method, path, body, &key, longer).await
    }

    /// A changing call of the 1.0 API.
    async fn change_v1<B, T>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&B>,
    ) -> Result<T, Error>
    where
        B: Serialize + ?Sized,
        T: DeserializeOwned,
    {
        let key = self.key.clone().unwrap_or_else(fresh_key);
        self.transport.call_v1(method, path, query, body, Some(&key)).await
    }

    /// Asks for a page; `limit` is the query's own.
    async fn search<Q, T>(
        &self,
        path: &[&str],
        query: &mut Q,
        limit: fn(&mut Q) -> &mut i64,
    ) -> Result<Page<T>, Error>
    where
        Q: Serialize,
        T: DeserializeOwned,
    {
        if *limit(query) != JUST_COUNT {
            return self.transport.post(path, query, Duration::ZERO).await;
        }
        *limit(query) = 1;
        let page: Page<T> = self.transport.post(path, query, Duration::ZERO).await?;
        Ok(Page { items: Vec::new(), limit: JUST_COUNT, ..page })
    }

    /// Claims work by this route; where there is none, the server is asked again for as long as the caller waits.
    async fn claim<T: DeserializeOwned>(
        &self,
        path: &[&str],
        request: DequeueRequest,
    ) -> Result<Vec<T>, Error> {
        if request.limit <= 0 {
            return Ok(Vec::new());
        }
        let started = Instant::now();
        let wait = request.wait.filter(|seconds| *seconds > 0.0);
        // A wait beyond what a duration can hold is for ever.
        let limit = wait.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        loop {
            let slice = limit.map(|limit| limit.saturating_sub(started.elapsed()).min(WAIT_SLICE));
            let ask = DequeueRequest { wait: slice.map(|slice| slice.as_secs_f64()), ..request.clone() };
            let longer = slice.unwrap_or_default();
            let asked = Instant::now();
            let claimed: Vec<T> = self.change_patiently(Method::POST, path, &ask, longer).await?.value;
            let Some(limit) = limit.filter(|_| claimed.is_empty()) else { return Ok(claimed) };
            if asked.elapsed() < longer.mul_f64(WAITED_OUT) {
                // It is about to stop, or is one of 0.3, which does not wait.
                tokio::time::sleep(LOOK_AGAIN.min(limit.saturating_sub(started.elapsed()))).await;
            }
            if started.elapsed() >= limit {
                return Ok(claimed);
            }
        }
    }

    /// Sends spans to a server that takes no batches.
    async fn add_one_by_one(&self, drafts: Vec<SpanDraft>) -> Result<Vec<Span>, Error> {
        let mut added = Vec::with_capacity(drafts.len());
        for SpanDraft { mut span, has_sequence_id } in drafts {
            if !has_sequence_id {
                span.sequence_id = self.next_sequence_id(&span.rollout_id, &span.attempt_id).await?;
            }
            let reply: Reply<Option<Span>> =
                self.change_patiently(Method::POST, &["spans"], &span, Duration::ZERO).await?;
            if reply.maybe_repeated && reply.value.is_none() {
                let sent = SpanDraft { span, has_sequence_id: true };
                added.extend(self.stored_by_us(&[sent], Vec::new()).await?);
            } else {
                added.extend(reply.value);
            }
        }
        Ok(added)
    }

    async fn next_sequence_id(&self, rollout_id: &str, attempt_id: &str) -> Result<i64, Error> {
        let request =
            SequenceIdRequest { rollout_id: rollout_id.to_owned(), attempt_id: attempt_id.to_owned() };
        let SequenceId { sequence_id } = self.change(&["spans", "next"], &request).await?;
        Ok(sequence_id)
    }

    /// Those of `sent` that are in the store as they were sent, although the server named only `answered` as new:
    /// a try whose answer was lost has stored them.
    async fn stored_by_us(&self, sent: &[SpanDraft], answered: Vec<Span>) -> Result<Vec<Span>, Error> {
        let mut stored: HashMap<_, _> = answered.into_iter().map(|span| (key(&span), span)).collect();
        for draft in sent {
            if stored.contains_key(&key(&draft.span)) {
                continue;
            }
            let query = SpanQuery {
                rollout_id: draft.span.rollout_id.clone(),
                attempt_id: Some(draft.span.attempt_id.clone()),
                span_id: Some(draft.span.span_id.clone()),
                ..SpanQuery::default()
            };
            for found in self.query_spans(query).await?.items {
                let sequence_id =
                    if draft.has_sequence_id { draft.span.sequence_id } else { found.sequence_id };
                if found == (Span { sequence_id, ..draft.span.clone() }) {
                    stored.insert(key(&found), found);
                }
            }
        }
        let mut groups: Vec<((&str, &str), Vec<Span>)> = Vec::new();
        for SpanDraft { span, .. } in sent {
            let Some(found) = stored.remove(&key(span)) else { continue };
            let place = (span.rollout_id.as_str(), span.attempt_id.as_str());
            match groups.iter_mut().find(|(group, _)| *group == place) {
                Some((_, spans)) => spans.push(found),
                None => groups.push((place, vec![found])),
            }
        }
        Ok(groups.into_iter().flat_map(|(_, spans)| spans).collect())
    }
}

#[derive(Deserialize)]
struct SequenceId {
    sequence_id: i64,
}

/// What a span is told apart by.
fn key(span: &Span) -> (String, String, String) {
    (span.rollout_id.clone(), span.attempt_id.clone(), span.span_id.clone())
}

#[async_trait]
impl Store for Client {
    fn capabilities(&self) -> Capabilities {
        Capabilities { thread_safe: true, async_safe: true, zero_copy: true, otlp_traces: true }
    }

    async fn statistics(&self) -> Result<Statistics, Error> {
        self.transport.get(&["statistics"]).await
    }

    fn otlp_traces_endpoint(&self) -> Result<String, Error> {
        Ok(format!("{}/v1/traces", self.address()))
    }

    async fn start_rollout(&self, request: StartRollout) -> Result<AttemptedRollout, Error> {
        self.change(&["rollouts"], &request).await
    }

    async fn enqueue_many_rollouts(
        &self,
        requests: Vec<EnqueueRolloutRequest>,
    ) -> Result<Vec<Rollout>, Error> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        self.change(&["queues", "rollouts", "enqueue"], &EnqueueRequest { rollouts: requests }).await
    }

    async fn dequeue_many_rollouts(&self, request: DequeueRequest) -> Result<Vec<AttemptedRollout>, Error> {
        self.claim(&["queues", "rollouts", "dequeue"], request).await
    }

    async fn claim_rollouts(&self, request: DequeueRequest) -> Result<Vec<Claim>, Error> {
        self.claim(&["queues", "rollouts", "claim"], request).await
    }

    async fn end_attempt(
        &self,
        rollout_id: &str,
        attempt_id: &str,
        end: AttemptEnd,
    ) -> Result<Attempt, Error> {
        self.change(&["rollouts", rollout_id, "attempts", attempt_id, "end"], &end).await
    }

    async fn queue_state(&self) -> Result<QueueState, Error> {
        self.transport.get(&["queues", "rollouts"]).await
    }

    async fn set_queue_state(&self, state: QueueState) -> Result<QueueState, Error> {
        let path = ["queues", "rollouts"];
        Ok(self.change_patiently(Method::PUT, &path, &state, Duration::ZERO).await?.value)
    }

    async fn start_attempt(
        &self,
        rollout_id: &str,
        worker_id: Option<String>,
    ) -> Result<AttemptedRollout, Error> {
        self.change(&["rollouts", rollout_id, "attempts"], &Who { worker_id }).await
    }

    async fn add_span_drafts(&self, drafts: Vec<SpanDraft>) -> Result<Vec<Span>, Error> {
        if drafts.is_empty() {
            return Ok(Vec::new());
        }
        if self.one_by_one.load(Ordering::Relaxed) {
            return self.add_one_by_one(drafts).await;
        }
        let batch = Batch { spans: drafts.into_iter().map(WireDraft).collect() };
        let reply = self.change_patiently(Method::POST, &["spans", "batch"], &batch, Duration::ZERO).await;
        let sent: Vec<SpanDraft> = batch.spans.into_iter().map(|WireDraft(draft)| draft).collect();
        match reply {
            Ok(Reply { value, maybe_repeated: false }) => Ok(value),
            Ok(Reply { value, maybe_repeated: true }) => self.stored_by_us(&sent, value).await,
            Err(Error::Unsupported { .. }) => {
                let added = self.add_one_by_one(sent).await?;
                self.one_by_one.store(true, Ordering::Relaxed);
                Ok(added)
            }
            Err(error) => Err(error),
        }
    }

    async fn query_rollouts(&self, mut query: RolloutQuery) -> Result<Page<RolloutView>, Error> {
        self.search(&["rollouts", "search"], &mut query, |query| &mut query.limit).await
    }

    async fn query_attempts(&self, mut query: AttemptQuery) -> Result<Page<Attempt>, Error> {
        let rollout_id = query.rollout_id.clone();
        let path = ["rollouts", &rollout_id, "attempts", "search"];
        self.search(&path, &mut query, |query| &mut query.limit).await
    }

    async fn get_rollout_by_id(&self, rollout_id: &str) -> Result<Option<RolloutView>, Error> {
        match self.transport.get(&["rollouts", rollout_id]).await {
            Ok(view) => Ok(Some(view)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn get_latest_attempt(&self, rollout_id: &str) -> Result<Option<Attempt>, Error> {
        self.transport.get(&["rollouts", rollout_id, "attempts", "latest"]).await
    }

    async fn query_resources(&self, query: ResourcesQuery) -> Result<Page<ResourcesUpdate>, Error> {
        let ResourcesQuery {
            resources_id,
            resources_id_contains,
            all_versions,
            sort_by,
            sort_order,
            limit,
            offset,
        } = query;
        let order = match sort_order {
            SortOrder::Asc => "asc",
            SortOrder::Desc => "desc",
        };
        let asked_for = if limit == JUST_COUNT { 1 } else { limit };
        let mut pairs = vec![
            ("all_versions", all_versions.to_string()),
            ("sort_order", order.to_owned()),
            ("limit", asked_for.to_string()),
            ("offset", offset.to_string()),
        ];
        let texts = [
            ("resources_id", resources_id),
            ("resources_id_contains", resources_id_contains),
            ("sort_by", sort_by),
        ];
        pairs.extend(texts.into_iter().filter_map(|(key, text)| Some((key, text?))));
        let page: Page<ResourcesUpdate> = self.transport.get_with(&["resources"], &pairs).await?;
        let items = if limit == JUST_COUNT { Vec::new() } else { page.items };
        Ok(Page { items, limit, ..page })
    }

    async fn get_resources_by_id(
        &self,
        resources_id: &str,
        version: Option<u32>,
    ) -> Result<Option<ResourcesUpdate>, Error> {
        let query: Vec<_> = version.map(|version| ("version", version.to_string())).into_iter().collect();
        self.transport.get_with(&["resources", resources_id], &query).await
    }

    async fn get_latest_resources(&self) -> Result<Option<ResourcesUpdate>, Error> {
        self.transport.get(&["resources", "latest"]).await
    }

    async fn add_resources(&self, resources: NamedResources) -> Result<ResourcesUpdate, Error> {
        self.change(&["resources"], &resources).await
    }

    async fn update_resources(
        &self,
        resources_id: &str,
        resources: NamedResources,
    ) -> Result<ResourcesUpdate, Error> {
        self.change(&["resources", resources_id], &resources).await
    }

    async fn get_many_span_sequence_ids(&self, requests: Vec<SequenceIdRequest>) -> Result<Vec<i64>, Error> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let requests = SequenceIdRequests { requests };
        match self.change::<_, SequenceIds>(&["spans", "next", "batch"], &requests).await {
            Ok(issued) => Ok(issued.sequence_ids),
            Err(Error::Unsupported { .. }) => {
                let mut issued = Vec::with_capacity(requests.requests.len());
                for SequenceIdRequest { rollout_id, attempt_id } in requests.requests {
                    issued.push(self.next_sequence_id(&rollout_id, &attempt_id).await?);
                }
                Ok(issued)
            }
            Err(error) => Err(error),
        }
    }

    async fn wait_for_rollouts(&self, request: WaitRequest) -> Result<Vec<Rollout>, Error> {
        let started = Instant::now();
        let rollout_ids = request.rollout_ids;
        // No time limit, or one beyond what a duration can hold, is for ever.
        let limit = request.timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok());
        loop {
            let left = limit.map(|limit| limit.saturating_sub(started.elapsed()));
            let slice = left.map_or(WAIT_SLICE, |left| left.min(WAIT_SLICE));
            let ask = WaitRequest { rollout_ids: rollout_ids.clone(), timeout: Some(slice.as_secs_f64()) };
            let asked = Instant::now();
            let ended: Vec<Rollout> = self.transport.post(&["waits", "rollouts"], &ask, slice).await?;
            let waited_out = asked.elapsed() >= slice.mul_f64(WAITED_OUT);
            let time_is_up = limit.is_some_and(|limit| started.elapsed() >= limit);
            if ended.len() >= rollout_ids.len() || !waited_out || time_is_up {
                return Ok(ended);
            }
        }
    }

    async fn query_spans(&self, mut query: SpanQuery) -> Result<Page<Span>, Error> {
        self.search(&["spans", "search"], &mut query, |query| &mut query.limit).await
    }

    async fn remote_training_data(&self, request: &Value) -> Result<Option<Vec<u8>>, Error> {
        let bytes = self.transport.post_for_bytes(&["training-data"], request, TRAINING_TIME).await?;
        Ok(Some(bytes.to_vec()))
    }

    async fn update_rollout(&self, rollout_id: &str, update: RolloutUpdate) -> Result<Rollout, Error> {
        self.change(&["rollouts", rollout_id], &update).await
    }

    async fn update_attempt(
        &self,
        rollout_id: &str,
        attempt_id: &str,
        update: AttemptUpdate,
    ) -> Result<Attempt, Error> {
        let path = ["rollouts", rollout_id, "attempts", attempt_id];
        // POST takes no null; PATCH does, but 0.3 does not know it.
        let clears = matches!(update.worker_id, Patch::Set(None))
            || matches!(update.last_heartbeat_time, Patch::Set(None))
            || matches!(update.metadata, Patch::Set(None));
        if clears {
            Ok(self.change_patiently(Method::PATCH, &path, &update, Duration::ZERO).await?.value)
        } else {
            self.change(&path, &update).await
        }
    }

    async fn query_workers(&self, mut query: WorkerQuery) -> Result<Page<Worker>, Error> {
        self.search(&["workers", "search"], &mut query, |query| &mut query.limit).await
    }

    async fn get_worker_by_id(&self, worker_id: &str) -> Result<Option<Worker>, Error> {
        self.transport.get(&["workers", worker_id]).await
    }

    async fn update_worker(&self, worker_id: &str, update: WorkerUpdate) -> Result<Worker, Error> {
        self.change(&["workers", worker_id], &update).await
    }

    fn once(&self, key: IdempotencyKey) -> Option<Arc<dyn Store>> {
        // The server makes the fingerprint of what it is sent.
        Some(Arc::new(Self { key: Some(key.key), ..self.clone() }))
    }

    async fn subscribe(&self, query: EventQuery) -> Result<Subscription, Error> {
        feed::subscribe(self.clone(), query).await
    }

    async fn purge(&self, request: PurgeRequest) -> Result<PurgeReport, Error> {
        // Nothing that is gone goes again, so this needs no key; but it may take its time.
        self.transport.post(&["purge"], &request, PURGE_TIME).await
    }

    async fn delete_rollout(&self, rollout_id: &str) -> Result<(), Error> {
        let path = ["rollouts", rollout_id];
        let () = self.change_patiently(Method::DELETE, &path, &(), PURGE_TIME).await?.value;
        Ok(())
    }

    async fn create_controller_rollouts(
        &self,
        requests: Vec<v1::RolloutCreate>,
    ) -> Result<Vec<v1::Rollout>, Error> {
        self.change_v1(Method::POST, &["rollouts"], &[], Some(&requests)).await
    }

    async fn update_controller_rollout(
        &self,
        rollout_id: &str,
        update: v1::StatusUpdate,
    ) -> Result<v1::Rollout, Error> {
        let patch = v1::RolloutPatch { status: update };
        self.change_v1(Method::PATCH, &["rollouts", rollout_id], &[], Some(&patch)).await
    }

    async fn query_controller_rollouts(&self, query: v1::RolloutQuery) -> Result<Vec<v1::Rollout>, Error> {
        let v1::RolloutQuery { state_in, limit } = query;
        if state_in.is_empty() {
            return Ok(Vec::new());
        }
        let mut pairs = vec![("limit", limit.to_string())];
        pairs.extend(state_in.iter().map(|state| ("state_in", state.to_string())));
        self.transport.call_v1(Method::GET, &["rollouts"], &pairs, NOTHING, None).await
    }

    async fn get_controller_rollout(&self, rollout_id: &str) -> Result<Option<v1::RolloutDetail>, Error> {
        match self.transport.call_v1(Method::GET, &["rollouts", rollout_id], &[], NOTHING, None).await {
            Ok(detail) => Ok(Some(detail)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn query_completions(&self, query: v1::CompletionQuery) -> Result<v1::Completions, Error> {
        let pairs = [("after", query.after.to_string()), ("limit", query.limit.to_string())];
        self.transport.call_v1(Method::GET, &["rollouts", "terminal"], &pairs, NOTHING, None).await
    }

    async fn add_event(
        &self,
        rollout_id: &str,
        attempt_id: &str,
        event: v1::EventCreate,
    ) -> Result<v1::Event, Error> {
        let path = ["rollouts", rollout_id, "attempt", attempt_id, "events"];
        self.change_v1(Method::POST, &path, &[], Some(&event)).await
    }

    async fn query_events(&self, query: v1::EventsQuery) -> Result<Vec<v1::Event>, Error> {
        let v1::EventsQuery { rollout_id, event_type } = query;
        let pairs: Vec<_> = event_type.map(|event_type| ("event_type", event_type)).into_iter().collect();
        self.transport.call_v1(Method::GET, &["rollouts", &rollout_id, "events"], &pairs, NOTHING, None).await
    }

    async fn register_models(&self, models: Vec<v1::Model>) -> Result<Vec<v1::Model>, Error> {
        self.change_v1(Method::POST, &["models"], &[], Some(&models)).await
    }

    async fn query_models(&self) -> Result<Vec<v1::Model>, Error> {
        self.transport.call_v1(Method::GET, &["models"], &[], NOTHING, None).await
    }

    async fn delete_models(&self, key: Option<v1::ModelKey>) -> Result<(), Error> {
        let pairs: Vec<_> = key
            .map(|v1::ModelKey { model, endpoint }| [("model", model), ("endpoint", endpoint)])
            .into_iter()
            .flatten()
            .collect();
        let _: Value = self.change_v1(Method::DELETE, &["models"], &pairs, NOTHING).await?;
        Ok(())
    }
}

/// A name for a call that no other call has. Names that follow each other in time do so in order, which makes them
/// cheap to keep.
fn fresh_key() -> Arc<str> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "microseconds of this age fit"
    )]
    let micros = (SystemClock.now() * 1e6) as u64;
    format!("{micros:014x}-{:016x}", rand::random::<u64>()).into()
}
