//! Data out of a store into a file, a rollout at a time.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use agl_store::{Lean, Store};
use agl_trace::advantage::advantages;
use agl_trace::{
    Builder, Outcome, PreferencePair, Report, RolloutData, RolloutTrace, Row, TrainingOptions, Transition,
    atif, call_triplet, conversations, preference_pairs, read_rollout,
};
use agl_types::RolloutView;
use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::columns::{
    OwnedTransition, atif_batch, atif_schema, conversation_batch, conversation_schema, pair_batch,
    pair_schema, row_batch, row_schema, transition_batch, transition_schema, triplet_batch, triplet_schema,
};
use crate::select::{Kept, Rollouts, read_ahead, read_for_rows};
use crate::write::{Columns, Sink, Target};
use crate::{Error, FileFormat, Selection};

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Prompt, response and reward of every call, as 0.3's adapters give them.
    Triplets,
    /// Token ids of prompt and response, and reward, of every call.
    Transitions,
    /// Sequences of tokens to train on.
    Trajectories,
    /// Conversations to fine-tune on.
    Messages,
    /// Pairs of conversations, one better than the other.
    Pairs,
    /// Whole rollouts in the Agent Trajectory Interchange Format.
    Atif,
}

impl Kind {
    /// Whether a rollout that came out so is exported. Records of what happened are of every rollout; conversations need
    /// nobody to have judged them.
    fn takes(self, outcome: Outcome, training: &TrainingOptions) -> bool {
        match self {
            // There is nothing left to make a record of.
            Self::Triplets | Self::Atif => outcome != Outcome::SpansPurged,
            Self::Messages | Self::Transitions
                if matches!(outcome, Outcome::MissingReward | Outcome::UnusableReward) =>
            {
                true
            }
            _ => training.train_on.contains(&outcome),
        }
    }
}

/// What is exported, of which rollouts, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportOptions {
    /// What.
    pub kind: Kind,
    /// In which form.
    pub format: FileFormat,
    /// Of which rollouts.
    pub select: Selection,
    /// How they become training data.
    pub training: TrainingOptions,
    /// By how much the better conversation of a pair must have earned more.
    pub margin: f64,
}

/// What was exported, and what was not.
#[derive(Debug, Default, Serialize)]
pub struct ExportReport {
    /// How many items were written.
    pub written: usize,
    /// The account of everything else.
    #[serde(flatten)]
    pub report: Report,
}

/// Writes the data of the rollouts selected. Only a few rollouts are in memory at once; of pairs, those of one group.
///
/// # Errors
/// [`Error::Store`], [`Error::Trace`] and [`Error::Io`] as they come.
pub async fn export<W: Write + Send>(
    store: Arc<dyn Store>,
    options: &ExportOptions,
    out: W,
) -> Result<ExportReport, Error> {
    write(store, options, Target::Stream(out, options.format)).await
}

/// Writes the data of the rollouts selected into a folder, as buffers of NumPy's: of each column of numbers `NAME.npy`, of
/// lists of numbers also `NAME_offsets.npy`, and `rows.jsonl` with the words. `options.format` does not count.
///
/// # Errors
/// [`Error::Format`] for data that are words; else those of [`export`].
pub async fn export_to_folder(
    store: Arc<dyn Store>,
    options: &ExportOptions,
    folder: &Path,
) -> Result<ExportReport, Error> {
    write(store, options, Target::<io::Sink>::Folder(folder)).await
}

async fn write<W: Write + Send>(
    store: Arc<dyn Store>,
    options: &ExportOptions,
    target: Target<'_, W>,
) -> Result<ExportReport, Error> {
    read_rollout(&RolloutTrace::default(), &options.training)?;
    match options.kind {
        Kind::Trajectories => trajectories(store, options, target).await,
        Kind::Transitions => {
            let columns =
                Columns { kind: "transitions", schema: transition_schema(), to_batch: transition_batch };
            each(store, options, target, columns, |data, report, _| {
                let mut transitions = Vec::new();
                if options.training.quarantine && report.quarantine(&data) {
                    return transitions;
                }
                for judged in &data.calls {
                    match Transition::try_from(judged) {
                        Ok(transition) => transitions.push(OwnedTransition {
                            transition,
                            rollout_id: data.identity.rollout_id.clone(),
                            attempt_id: data.identity.attempt_id.clone(),
                            group: data.identity.group.clone(),
                        }),
                        Err(error) => {
                            report.drop_call(&data.identity.rollout_id, &judged.call, error.to_string());
                        }
                    }
                }
                transitions
            })
            .await
        }
        Kind::Triplets => {
            let columns = Columns { kind: "triplets", schema: triplet_schema(), to_batch: triplet_batch };
            each(store, options, target, columns, |data, _, _| {
                let triplet = |judged| {
                    let mut triplet = call_triplet(judged);
                    let rollout_id = data.identity.rollout_id.clone();
                    triplet.metadata.insert("rollout_id".to_owned(), rollout_id.into());
                    triplet
                };
                data.calls.iter().map(triplet).collect()
            })
            .await
        }
        Kind::Messages => {
            let columns =
                Columns { kind: "messages", schema: conversation_schema(), to_batch: conversation_batch };
            each(store, options, target, columns, |data, _, _| conversations(&data)).await
        }
        Kind::Atif => {
            let columns = Columns { kind: "ATIF trajectories", schema: atif_schema(), to_batch: atif_batch };
            each(store, options, target, columns, |data, _, input| {
                if data.calls.is_empty() { Vec::new() } else { vec![atif::trajectory(&data, input)] }
            })
            .await
        }
        Kind::Pairs => pairs(store, options, target).await,
    }
}

/// Reads the rollouts one after the other and hands those on that are wanted.
async fn read_all(
    store: Arc<dyn Store>,
    options: &ExportOptions,
    ids: Vec<String>,
    mut take: impl FnMut(RolloutData, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let training = Arc::new(options.training.clone());
    let is_of_rows = options.kind == Kind::Trajectories;
    let read = move |several: Vec<Kept<'_>>| {
        let read = |mut kept: Kept<'_>| {
            let data = if is_of_rows {
                read_for_rows(&mut kept, &training)?
            } else {
                read_rollout(kept.trace(Lean::Words)?, &training)?
            };
            Ok((data, kept.into_input()))
        };
        several.into_iter().map(read).collect::<Result<Vec<_>, Error>>()
    };
    let mut read = pin!(read_ahead(store, Rollouts::Named(ids).in_parts(), read));
    while let Some(several) = read.try_next().await? {
        for (data, input) in several {
            if options.select.is_in_reward(data.identity.reward) {
                take(data, &input)?;
            }
        }
    }
    Ok(())
}

async fn each<T: Serialize, W: Write + Send>(
    store: Arc<dyn Store>,
    options: &ExportOptions,
    target: Target<'_, W>,
    columns: Columns<T>,
    items: impl Fn(RolloutData, &mut Report, &Value) -> Vec<T>,
) -> Result<ExportReport, Error> {
    let ids = options.select.ids(store.as_ref()).await?;
    let mut sink = Sink::new(target, columns)?;
    let mut done = ExportReport::default();
    read_all(store, options, ids, |mut data, input| {
        done.report.take_in(&mut data);
        if !options.kind.takes(data.identity.outcome, &options.training) {
            done.report.drop_rollout(&data);
            return Ok(());
        }
        let items = items(data, &mut done.report, input);
        done.report.rollouts_used += usize::from(!items.is_empty());
        done.written += items.len();
        items.into_iter().try_for_each(|item| sink.write(item))
    })
    .await?;
    sink.finish()?;
    done.report.count_reasons();
    Ok(done)
}

/// Rows need the rewards of their whole group for their advantages, so the rollouts are read twice when those are asked
/// for: what the first reading keeps is a number for each.
async fn trajectories<W: Write + Send>(
    store: Arc<dyn Store>,
    options: &ExportOptions,
    target: Target<'_, W>,
) -> Result<ExportReport, Error> {
    let ids = options.select.ids(store.as_ref()).await?;
    let alone = TrainingOptions { estimator: None, ..options.training.clone() };
    let rows_of = |data: RolloutData| {
        let mut builder = Builder::default();
        builder.add(data, &alone);
        builder.finish(&alone)
    };
    let mut of_rollout: HashMap<String, Option<f64>> = HashMap::new();
    if let Some(estimator) = options.training.estimator {
        let mut used: Vec<(String, String, Option<f64>)> = Vec::new();
        read_all(Arc::clone(&store), options, ids.clone(), |data, _| {
            let identity = data.identity.clone();
            if !rows_of(data).rows.is_empty() {
                used.push((identity.rollout_id, identity.group, identity.reward));
            }
            Ok(())
        })
        .await?;
        let groups: Vec<&str> = used.iter().map(|(_, group, _)| group.as_str()).collect();
        let rewards: Vec<Option<f64>> = used.iter().map(|(.., reward)| *reward).collect();
        let advantages = advantages(estimator, &groups, &rewards);
        of_rollout = used.iter().map(|(id, ..)| id.clone()).zip(advantages).collect();
    }
    let columns = Columns { kind: "trajectories", schema: row_schema(), to_batch: row_batch };
    let mut sink: Sink<Row, W> = Sink::new(target, columns)?;
    let mut done = ExportReport::default();
    read_all(store, options, ids, |data, _| {
        let made = rows_of(data);
        done.report.add(made.report);
        for mut row in made.rows {
            row.advantage = of_rollout.get(&row.rollout_id).copied().flatten();
            done.written += 1;
            sink.write(row)?;
        }
        Ok(())
    })
    .await?;
    sink.finish()?;
    Ok(done)
}

/// Groups come one after the other, so that only one is in memory. Which group a rollout is in is known without its
/// spans.
async fn pairs<W: Write + Send>(
    store: Arc<dyn Store>,
    options: &ExportOptions,
    target: Target<'_, W>,
) -> Result<ExportReport, Error> {
    let grouped = |view: RolloutView| {
        let bare = RolloutTrace { rollout: Some(view.rollout), ..RolloutTrace::default() };
        let identity = read_rollout(&bare, &options.training)?.identity;
        Ok((identity.group, identity.rollout_id))
    };
    let mut groups: Vec<Vec<String>> = Vec::new();
    let mut place: HashMap<String, usize> = HashMap::new();
    for (group, rollout_id) in options.select.each(store.as_ref(), grouped).await? {
        let at = *place.entry(group).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[at].push(rollout_id);
    }
    let columns = Columns { kind: "preference pairs", schema: pair_schema(), to_batch: pair_batch };
    let mut sink: Sink<PreferencePair, W> = Sink::new(target, columns)?;
    let mut done = ExportReport::default();
    for group in groups {
        let mut members = Vec::new();
        read_all(Arc::clone(&store), options, group, |mut data, _| {
            done.report.take_in(&mut data);
            if options.kind.takes(data.identity.outcome, &options.training) {
                members.push(data);
            } else {
                done.report.drop_rollout(&data);
            }
            Ok(())
        })
        .await?;
        for pair in preference_pairs(&members, options.margin) {
            done.written += 1;
            sink.write(pair)?;
        }
    }
    sink.finish()?;
    done.report.count_reasons();
    Ok(done)
}
