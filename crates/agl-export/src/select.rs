//! Which rollouts, and their spans, one rollout at a time.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agl_store::{AttemptSpans, Lean, Store};
use agl_trace::attributes::below;
use agl_trace::{
    Builder, Level, RolloutData, RolloutTrace, Tokens, TrainingData, TrainingOptions, read_rollout,
};
use agl_types::{Page, RolloutMode, RolloutQuery, RolloutStatus, RolloutView, Span, semconv};
use futures_util::{Stream, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use crate::{Arrays, Error, arrays, read_arrays, rows_to_ipc};

/// How many rollouts are looked up at once.
const PAGE: i64 = 128;
/// How many rollouts' spans are fetched at once.
const AT_ONCE: usize = 8;
/// How many times that is fetched ahead.
const AHEAD: usize = 3;

/// Which rollouts; a condition that is null does not count.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// The id is one of these.
    pub rollout_id_in: Option<Vec<String>>,
    /// The mode is one of these.
    pub mode_in: Option<Vec<RolloutMode>>,
    /// The status is one of these; by default those of rollouts that have ended.
    pub status_in: Option<Vec<RolloutStatus>>,
    /// The final reward is at least this; a rollout without one does not count.
    pub min_reward: Option<f64>,
    /// The final reward is at most this; a rollout without one does not count.
    pub max_reward: Option<f64>,
    /// It was created at this time or later, in seconds since 1970.
    pub since: Option<f64>,
    /// It was created before this time.
    pub until: Option<f64>,
}

/// Asks for training data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingRequest {
    /// Of which rollouts.
    pub select: Selection,
    /// How they become training data: see `docs/training-data.md`.
    #[schema(value_type = Object)]
    pub options: TrainingOptions,
    /// The form of the answer.
    pub format: AnswerFormat,
}

/// The form of training data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnswerFormat {
    /// An object with the keys `rows` and `report`.
    #[default]
    Json,
    /// A stream in Apache Arrow's IPC format: a row each row, and the report in the schema's metadata, under `agl.report`.
    Arrow,
}

impl Selection {
    fn query(&self, offset: i64) -> RolloutQuery {
        let ended =
            || RolloutStatus::ALL.iter().copied().filter(|status| status.is_terminal()).collect::<Vec<_>>();
        RolloutQuery {
            rollout_id_in: self.rollout_id_in.clone(),
            mode_in: self.mode_in.clone(),
            // Whoever names rollouts wants them as they are.
            status_in: self.status_in.clone().or_else(|| self.rollout_id_in.is_none().then(ended)),
            limit: PAGE,
            offset,
            ..RolloutQuery::default()
        }
    }

    fn is_in_time(&self, view: &RolloutView) -> bool {
        let start = view.rollout.start_time;
        self.since.is_none_or(|since| start >= since) && self.until.is_none_or(|until| start < until)
    }

    /// Whether a rollout with this final reward is wanted.
    pub(crate) fn is_in_reward(&self, reward: Option<f64>) -> bool {
        match reward {
            Some(reward) => {
                self.min_reward.is_none_or(|min| reward >= min)
                    && self.max_reward.is_none_or(|max| reward <= max)
            }
            None => self.min_reward.is_none() && self.max_reward.is_none(),
        }
    }

    /// The rollouts, without their spans, in order of creation, a page after the other, and how many there are about.
    fn pages<'s>(
        &'s self,
        store: &'s dyn Store,
    ) -> impl Stream<Item = Result<(Vec<RolloutView>, i64), Error>> + 's {
        // What ends while they are looked through comes in between and moves others on, into a page that is still to come;
        // what is started anew or deleted goes and moves others back, into a page that was. So a page begins with the last
        // rollout of the one before, and where it does not, others were moved back, and those before it are looked at again.
        let seen: HashSet<String> = HashSet::new();
        stream::try_unfold(Some((0, seen)), move |state| async move {
            let Some((offset, mut seen)) = state else { return Ok(None) };
            let Page { mut items, total, .. } = store.query_rollouts(self.query(offset)).await?;
            let follows = items.first().is_some_and(|view| seen.contains(&view.rollout.rollout_id));
            if offset > 0 && !follows {
                let before = (offset - PAGE).max(0);
                return Ok(Some(((Vec::new(), total), Some((before, seen)))));
            }
            let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
            items.retain(|view| seen.insert(view.rollout.rollout_id.clone()) && self.is_in_time(view));
            let next = (count == PAGE).then(|| (offset.saturating_add(PAGE - 1), seen));
            Ok(Some(((items, total), next)))
        })
    }

    /// The rollouts' ids, likewise.
    pub(crate) async fn ids(&self, store: &dyn Store) -> Result<Vec<String>, Error> {
        self.each(store, |view| Ok(view.rollout.rollout_id)).await
    }

    /// What is kept of each rollout, likewise; only a page of them is in memory whole.
    pub(crate) async fn each<T>(
        &self,
        store: &dyn Store,
        keep: impl Fn(RolloutView) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        let mut pages = pin!(self.pages(store));
        while let Some((page, _)) = pages.try_next().await? {
            for view in page {
                found.push(keep(view)?);
            }
        }
        Ok(found)
    }
}

/// Rollouts to read.
pub(crate) enum Rollouts {
    /// Here they are.
    Known(Vec<RolloutView>),
    /// Their ids, where there may be more of them than there is room for.
    Named(Vec<String>),
}

impl Rollouts {
    /// A few at a time, in order.
    pub(crate) fn in_parts(self) -> impl Stream<Item = Result<Self, Error>> {
        fn parts<T>(all: Vec<T>) -> Vec<Vec<T>> {
            let count = all.len().div_ceil(AT_ONCE);
            let mut all = all.into_iter();
            (0..count).map(|_| all.by_ref().take(AT_ONCE).collect()).collect()
        }
        let parts: Vec<Self> = match self {
            Self::Known(views) => parts(views).into_iter().map(Self::Known).collect(),
            Self::Named(ids) => parts(ids).into_iter().map(Self::Named).collect(),
        };
        stream::iter(parts.into_iter().map(Ok))
    }

    async fn views(self, store: &dyn Store) -> Result<Vec<RolloutView>, Error> {
        match self {
            Self::Known(views) => Ok(views),
            Self::Named(ids) => {
                let query = RolloutQuery { rollout_id_in: Some(ids), ..RolloutQuery::default() };
                Ok(store.query_rollouts(query).await?.items)
            }
        }
    }
}

/// A rollout and the spans of its latest attempt, which are at hand.
pub(crate) struct Kept<'s> {
    /// Without its spans, until they are read.
    trace: RolloutTrace,
    spans: &'s dyn AttemptSpans,
    /// The number of the attempt among those whose spans are at hand, if there is one.
    number: Option<usize>,
}

impl Kept<'_> {
    /// The rollout's input.
    pub(crate) fn into_input(self) -> Value {
        self.trace.rollout.map(|rollout| rollout.input).unwrap_or_default()
    }

    /// Reads the spans.
    pub(crate) fn trace(&mut self, purpose: Lean) -> Result<&RolloutTrace, Error> {
        let read = |number| self.spans.read(number, purpose);
        let spans = self.number.map(read).transpose()?.unwrap_or_else(|| Some(Vec::new()));
        self.trace.spans_purged = spans.is_none();
        self.trace.spans = spans.unwrap_or_default();
        Ok(&self.trace)
    }
}

/// What `work` makes of rollouts, in order. Several rollouts at once are worked on where the spans of their latest attempts
/// are, a few times beside each other however many rollouts there are.
pub(crate) fn read_ahead<'s, T: Send + 'static>(
    store: Arc<dyn Store>,
    parts: impl Stream<Item = Result<Rollouts, Error>> + 's,
    work: impl Fn(Vec<Kept<'_>>) -> Result<T, Error> + Clone + Send + 'static,
) -> impl Stream<Item = Result<T, Error>> + 's {
    let read = move |several: Rollouts| {
        let (store, work) = (Arc::clone(&store), work.clone());
        async move {
            let views = several.views(store.as_ref()).await?;
            let attempts = views.iter().filter_map(|view| view.attempt.as_ref());
            let ids =
                attempts.map(|attempt| (attempt.rollout_id.clone(), attempt.attempt_id.clone())).collect();
            let (reply, answer) = oneshot::channel();
            let look = move |spans: &dyn AttemptSpans| {
                let mut numbers = 0..;
                let kept = |RolloutView { rollout, attempt }: RolloutView| {
                    let number = attempt.as_ref().and_then(|_| numbers.next());
                    let trace = RolloutTrace { rollout: Some(rollout), attempt, ..RolloutTrace::default() };
                    Kept { trace, spans, number }
                };
                // Whoever stopped waiting does not want to know.
                let _ = reply.send(work(views.into_iter().map(kept).collect()));
            };
            store.look_at_spans(ids, Box::new(look)).await?;
            answer.await.map_err(std::io::Error::other)?
        }
    };
    parts.map_ok(read).try_buffered(AHEAD)
}

/// Reads a rollout for rows to be made of it; its prompts' words only where they have to explain why a call does not go on
/// where another one ended.
pub(crate) fn read_for_rows(kept: &mut Kept<'_>, options: &TrainingOptions) -> Result<RolloutData, Error> {
    let trace = kept.trace(Lean::Tokens)?;
    // A reward may link to its call by any attribute.
    let has_links = |span: &Span| below(&span.attributes, semconv::LINK).next().is_some();
    if !trace.spans.iter().any(has_links) {
        let data = read_rollout(trace, options)?;
        if options.level == Level::Transition || data.is_one_thread() {
            return Ok(data);
        }
    }
    Ok(read_rollout(kept.trace(Lean::Words)?, options)?)
}

/// Training data of the rollouts selected, a few of which are in memory at a time beside the rows.
///
/// # Errors
/// [`Error::Store`] when the store fails, [`Error::Trace`] for options that make no sense.
pub async fn training_data(store: Arc<dyn Store>, request: &TrainingRequest) -> Result<TrainingData, Error> {
    let mut whole = Builder::default();
    build(store, request, Builder::default, |part, _| whole.append(part)).await?;
    Ok(whole.finish(&request.options))
}

/// Has `take` take in the rows of the rollouts selected, a few rollouts at a time in a builder that `begin` makes, and how much
/// of the whole they are with those before, if all is alike.
async fn build(
    store: Arc<dyn Store>,
    request: &TrainingRequest,
    begin: impl Fn() -> Builder + Clone + Send + 'static,
    mut take: impl FnMut(Builder, f64),
) -> Result<(), Error> {
    let TrainingRequest { select, options, format: _ } = request;
    // Bad options are told before anything is fetched.
    read_rollout(&RolloutTrace::default(), options)?;
    let asked = Arc::new((select.clone(), options.clone()));
    let part = move |several: Vec<Kept<'_>>| {
        let (select, options) = &*asked;
        let mut builder = begin();
        for mut kept in several {
            let data = read_for_rows(&mut kept, options)?;
            if select.is_in_reward(data.identity.reward) {
                builder.add(data, options);
            }
        }
        Ok(builder)
    };
    let whole = AtomicI64::new(0);
    let parts = select.pages(store.as_ref()).map_ok(|(page, count)| {
        whole.store(count, Ordering::Relaxed);
        Rollouts::Known(page).in_parts()
    });
    let mut parts = pin!(read_ahead(Arc::clone(&store), parts.try_flatten(), part));
    let mut done = 0.0;
    while let Some(part) = parts.try_next().await? {
        done += AT_ONCE as f64;
        take(part, done / whole.load(Ordering::Relaxed) as f64);
    }
    Ok(())
}

/// The same as a stream in Arrow's IPC format, made where the spans are.
///
/// # Errors
/// Those of [`training_data`], and [`Error::Arrow`] for more than 2^31 tokens.
pub async fn training_arrow(store: Arc<dyn Store>, request: &TrainingRequest) -> Result<Vec<u8>, Error> {
    let asked = TrainingRequest { format: AnswerFormat::Arrow, ..request.clone() };
    if let Some(ipc) = store.remote_training_data(&serde_json::to_value(&asked)?).await? {
        return Ok(ipc);
    }
    let data = training_data(store, request).await?;
    rows_to_ipc(&data.rows, &data.report)
}

/// What a thread that panicked left is as good as what another one did.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same as flat arrays.
///
/// # Errors
/// Those of [`training_arrow`].
pub async fn training_arrays(store: Arc<dyn Store>, request: &TrainingRequest) -> Result<Arrays, Error> {
    let asked = TrainingRequest { format: AnswerFormat::Arrow, ..request.clone() };
    if let Some(ipc) = store.remote_training_data(&serde_json::to_value(&asked)?).await? {
        return read_arrays(&ipc);
    }
    // The tokens are laid out where they are read, and only copied from there: to memory that is used again, because it takes
    // longer to get it than to fill it.
    let used = Arc::new(Mutex::new(Vec::new()));
    let begin = {
        let used = Arc::clone(&used);
        move || Builder::reusing(lock(&used).pop().unwrap_or_default())
    };
    let mut whole = (Builder::default(), Tokens::default());
    build(store, request, begin, |mut builder, share| {
        let tokens = builder.take_tokens();
        arrays::append(&mut whole.1, &tokens, share);
        whole.0.append(builder);
        lock(&used).push(tokens);
    })
    .await?;
    let (builder, tokens) = whole;
    let (data, order) = builder.finish_with_order(&request.options);
    Arrays::with_tokens(data.rows, tokens, &order, &data.report)
}

#[cfg(test)]
mod tests {
    use agl_store::MemoryStore;
    use agl_types::{AttemptStatus, AttemptUpdate, StartRollout};

    use super::*;

    async fn end(store: &dyn Store, rollout_id: &str) {
        let update = AttemptUpdate { status: AttemptStatus::Succeeded.into(), ..AttemptUpdate::default() };
        store.update_attempt(rollout_id, "latest", update).await.unwrap();
    }

    /// A rollout that ends between two pages moves others from one page into the next: they are no other rollouts there.
    #[tokio::test]
    async fn a_rollout_counts_once_whatever_ends_between_pages() {
        let store = MemoryStore::new();
        let mut ids = Vec::new();
        for _ in 0..PAGE + 10 {
            ids.push(store.start_rollout(StartRollout::default()).await.unwrap().attempt.rollout_id);
        }
        for rollout_id in &ids[5..] {
            end(&store, rollout_id).await;
        }
        let selection = Selection::default();
        let mut pages = pin!(selection.pages(&store));
        let mut found = Vec::new();
        while let Some((page, _)) = pages.try_next().await.unwrap() {
            found.extend(page.into_iter().map(|view| view.rollout.rollout_id));
            for rollout_id in &ids[..5] {
                end(&store, rollout_id).await;
            }
        }
        assert_eq!(found, ids[5..]);
    }

    /// A rollout that is started anew or deleted between two pages moves others from a page to come into one that was.
    #[tokio::test]
    async fn no_rollout_is_hidden_by_others_that_go_between_pages() {
        let store = MemoryStore::new();
        let mut ids = Vec::new();
        for _ in 0..2 * PAGE + 50 {
            ids.push(store.start_rollout(StartRollout::default()).await.unwrap().attempt.rollout_id);
            end(&store, ids.last().unwrap()).await;
        }
        let selection = Selection::default();
        let mut pages = pin!(selection.pages(&store));
        let mut found = Vec::new();
        // The last one of the first page among them, which the next would go on from.
        let page = usize::try_from(PAGE).unwrap();
        let going: Vec<&String> = ids[..page].iter().rev().step_by(2).collect();
        let mut going = going.chunks(20);
        while let Some((page, _)) = pages.try_next().await.unwrap() {
            found.extend(page.into_iter().map(|view| view.rollout.rollout_id));
            for (number, rollout_id) in going.next().unwrap_or_default().iter().enumerate() {
                if number % 2 == 0 {
                    store.start_attempt(rollout_id, None).await.unwrap();
                } else {
                    store.delete_rollout(rollout_id).await.unwrap();
                }
            }
        }
        assert_eq!(found, ids);
    }
}
