//! Which rollouts, and their spans, one rollout at a time.

use std::pin::pin;
use std::sync::Arc;

use agl_store::{Lean, RawSpan, Store};
use agl_trace::{Builder, Level, RolloutData, RolloutTrace, TrainingData, TrainingOptions, read_rollout};
use agl_types::{RolloutMode, RolloutQuery, RolloutStatus, RolloutView};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Arrays, Error, read_arrays, rows_to_ipc};

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

    /// The rollouts, without their spans, in order of creation.
    pub(crate) async fn rollouts(&self, store: &dyn Store) -> Result<Vec<RolloutView>, Error> {
        self.each(store, Ok).await
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
        let mut offset = 0;
        loop {
            let page = store.query_rollouts(self.query(offset)).await?;
            let count = i64::try_from(page.items.len()).unwrap_or(i64::MAX);
            offset = offset.saturating_add(count);
            for view in page.items.into_iter().filter(|view| self.is_in_time(view)) {
                found.push(keep(view)?);
            }
            if count < PAGE {
                return Ok(found);
            }
        }
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
    fn in_parts(self) -> Vec<Self> {
        fn parts<T>(mut all: Vec<T>) -> Vec<Vec<T>> {
            let mut parts = Vec::new();
            while !all.is_empty() {
                let rest = all.split_off(all.len().min(AT_ONCE));
                parts.push(std::mem::replace(&mut all, rest));
            }
            parts
        }
        match self {
            Self::Known(views) => parts(views).into_iter().map(Self::Known).collect(),
            Self::Named(ids) => parts(ids).into_iter().map(Self::Named).collect(),
        }
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

/// A rollout and the spans of its latest attempt, as they are kept.
pub(crate) struct Kept {
    pub(crate) view: RolloutView,
    spans: Vec<RawSpan>,
}

impl Kept {
    /// Reads the spans.
    pub(crate) fn trace(&self, purpose: Lean) -> Result<RolloutTrace, Error> {
        let spans = self.spans.iter().map(|span| span.parse_lean(purpose)).collect::<Result<_, _>>()?;
        let RolloutView { rollout, attempt } = self.view.clone();
        Ok(RolloutTrace { rollout: Some(rollout), attempt, spans })
    }
}

/// What `work` makes of rollouts, in order. Their latest attempts' spans are fetched for several rollouts at once, and read
/// and worked on beside each other, a few at a time however many there are.
pub(crate) fn read_ahead<T: Send + 'static>(
    store: Arc<dyn Store>,
    rollouts: Rollouts,
    work: impl Fn(Vec<Kept>) -> Result<T, Error> + Clone + Send + 'static,
) -> impl Stream<Item = Result<T, Error>> {
    let read = rollouts.in_parts().into_iter().map(move |several| {
        let (store, work) = (Arc::clone(&store), work.clone());
        async move {
            let views = several.views(store.as_ref()).await?;
            let attempts = views.iter().filter_map(|view| view.attempt.as_ref());
            let ids = attempts.map(|attempt| (attempt.rollout_id.clone(), attempt.attempt_id.clone()));
            let mut spans = store.spans_of_attempts(ids.collect()).await?.into_iter();
            // Those that have an attempt have spans in turn.
            let with_spans = |view: RolloutView| {
                let spans = view.attempt.as_ref().and_then(|_| spans.next()).unwrap_or_default();
                Kept { view, spans }
            };
            let kept = views.into_iter().map(with_spans).collect();
            let worked = tokio::task::spawn_blocking(move || work(kept));
            worked.await.map_err(std::io::Error::other)?
        }
    });
    stream::iter(read).buffered(AHEAD)
}

/// Reads a rollout for rows to be made of it; its prompts' words only where they have to explain why a call does not go on
/// where another one ended.
pub(crate) fn read_for_rows(kept: &Kept, options: &TrainingOptions) -> Result<RolloutData, Error> {
    let data = read_rollout(&kept.trace(Lean::Tokens)?, options)?;
    if options.level == Level::Transition || data.is_one_thread() {
        return Ok(data);
    }
    Ok(read_rollout(&kept.trace(Lean::Words)?, options)?)
}

/// Training data of the rollouts selected, a few of which are in memory at a time beside the rows.
///
/// # Errors
/// [`Error::Store`] when the store fails, [`Error::Trace`] for options that make no sense.
pub async fn training_data(store: Arc<dyn Store>, request: &TrainingRequest) -> Result<TrainingData, Error> {
    let TrainingRequest { select, options, format: _ } = request;
    // Bad options are told before anything is fetched.
    read_rollout(&RolloutTrace::default(), options)?;
    let rollouts = select.rollouts(store.as_ref()).await?;
    let asked = Arc::new((select.clone(), options.clone()));
    let build = move |several: Vec<Kept>| {
        let (select, options) = &*asked;
        let mut builder = Builder::default();
        for kept in &several {
            let data = read_for_rows(kept, options)?;
            if select.is_in_reward(data.identity.reward) {
                builder.add(data, options);
            }
        }
        Ok(builder)
    };
    let mut built = pin!(read_ahead(store, Rollouts::Known(rollouts), build));
    let mut whole = Builder::default();
    while let Some(builder) = built.try_next().await? {
        whole.append(builder);
    }
    Ok(whole.finish(options))
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

/// The same as flat arrays.
///
/// # Errors
/// Those of [`training_arrow`].
pub async fn training_arrays(store: Arc<dyn Store>, request: &TrainingRequest) -> Result<Arrays, Error> {
    let asked = TrainingRequest { format: AnswerFormat::Arrow, ..request.clone() };
    if let Some(ipc) = store.remote_training_data(&serde_json::to_value(&asked)?).await? {
        return read_arrays(&ipc);
    }
    let data = training_data(store, request).await?;
    Arrays::of(data.rows, &data.report)
}
