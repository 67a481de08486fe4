use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use agl_client::{Client, ClientOptions};
use agl_export::{ExportOptions, FileFormat, ImportFormat, Kind, Selection};
use agl_store::{SqliteOptions, SqliteStore, Store};
use agl_trace::advantage::Estimator;
use agl_trace::{AgentOptions, AgentRule, Outcome, TrainingOptions};

use crate::args::{
    AdvantageKind, ExportCommand, ExportFormat, ExportKind, FilterOptions, ImportCommand, ImportKind,
    StoreAddress, TrainingArguments,
};
use crate::error::Error;
use crate::{console, key};

/// Writes training data out of a store.
pub(crate) fn export(command: &ExportCommand) -> Result<(), Error> {
    let options = ExportOptions {
        kind: match command.kind {
            ExportKind::Triplets => Kind::Triplets,
            ExportKind::Transitions => Kind::Transitions,
            ExportKind::Trajectories => Kind::Trajectories,
            ExportKind::Messages => Kind::Messages,
            ExportKind::Pairs => Kind::Pairs,
            ExportKind::Atif => Kind::Atif,
        },
        format: match command.format {
            ExportFormat::Jsonl | ExportFormat::Npy => FileFormat::Jsonl,
            ExportFormat::Parquet => FileFormat::Parquet,
            ExportFormat::Arrow => FileFormat::Arrow,
        },
        select: selection(&command.filter),
        training: training(&command.training),
        margin: command.training.margin,
    };
    let report = over(&command.store, async |store| {
        let out: Box<dyn Write + Send> = match &command.out {
            Some(folder) if command.format == ExportFormat::Npy => {
                return Ok(agl_export::export_to_folder(store, &options, folder).await?);
            }
            Some(path) => Box::new(BufWriter::new(create(path)?)),
            None => Box::new(BufWriter::new(io::stdout())),
        };
        Ok(agl_export::export(store, &options, out).await?)
    })?;
    if let Some(path) = &command.report {
        let file = create(path)?;
        serde_json::to_writer_pretty(file, &report)
            .map_err(|error| Error::File { path: path.clone(), source: error.into() })?;
    }
    let dropped: usize = report.report.dropped.len();
    // The data may be on standard output.
    console::note(format_args!(
        "{} written, of {} of {} rollouts; {dropped} left out",
        report.written, report.report.rollouts_used, report.report.rollouts
    ));
    Ok(())
}

/// Reads records into a store.
pub(crate) fn import(command: &ImportCommand) -> Result<(), Error> {
    let format = match command.format {
        ImportKind::Otlp => ImportFormat::Otlp,
        ImportKind::OpenaiLog => ImportFormat::OpenaiLog,
        ImportKind::Chat => ImportFormat::ChatJsonl,
    };
    let mode = command.mode;
    let report = over(&command.store, async |store| {
        if command.file.as_os_str() == "-" {
            return Ok(agl_export::import(store, format, mode, BufReader::new(io::stdin())).await?);
        }
        let path = &command.file;
        let file = File::open(path).map_err(|source| Error::File { path: path.clone(), source })?;
        Ok(agl_export::import(store, format, mode, BufReader::new(file)).await?)
    })?;
    console::say(format_args!("{} rollouts with {} spans", report.rollout_ids.len(), report.spans))
}

fn create(path: &Path) -> Result<File, Error> {
    File::create(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Does something with a store.
fn over<T>(
    address: &StoreAddress,
    work: impl AsyncFnOnce(Arc<dyn Store>) -> Result<T, Error>,
) -> Result<T, Error> {
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|source| Error::System { what: "cannot start the runtime", source })?;
    runtime.block_on(async {
        if address.store.contains("://") {
            let defaults = ClientOptions::from_env()?;
            let key = key::read(&address.key)?;
            let options = ClientOptions { key: key.or(defaults.key.clone()), ..defaults };
            return work(Arc::new(Client::new(&address.store, options)?)).await;
        }
        if !Path::new(&address.store).exists() {
            return Err(Error::NoStore { store: address.store.clone() });
        }
        let store = Arc::new(SqliteStore::open(&address.store, SqliteOptions::default())?);
        let done = work(Arc::clone(&store) as Arc<dyn Store>).await;
        store.close();
        done
    })
}

fn selection(filter: &FilterOptions) -> Selection {
    fn some<T: Clone>(list: &[T]) -> Option<Vec<T>> {
        (!list.is_empty()).then(|| list.to_vec())
    }
    Selection {
        rollout_id_in: some(&filter.rollouts),
        mode_in: some(&filter.mode),
        status_in: some(&filter.status),
        min_reward: filter.min_reward,
        max_reward: filter.max_reward,
        since: filter.since,
        until: filter.until,
    }
}

fn training(arguments: &TrainingArguments) -> TrainingOptions {
    let rules = |patterns: &[String]| {
        let rule = |pattern: &String| AgentRule { matches: pattern.clone(), ..AgentRule::default() };
        patterns.iter().map(rule).collect()
    };
    // Of rollouts whose spans are gone there is nothing, and the report says so.
    let every = [
        Outcome::Scored,
        Outcome::MissingReward,
        Outcome::UnusableReward,
        Outcome::AgentFailure,
        Outcome::InfrastructureFailure,
        Outcome::Unfinished,
    ];
    TrainingOptions {
        agents: AgentOptions { include: rules(&arguments.agents), exclude: rules(&arguments.not_agents) },
        max_length: arguments.max_length,
        estimator: match arguments.advantages {
            AdvantageKind::None => None,
            AdvantageKind::Grpo => Some(Estimator::Grpo),
            AdvantageKind::DrGrpo => Some(Estimator::DrGrpo),
            AdvantageKind::Rloo => Some(Estimator::Rloo),
            AdvantageKind::ReinforcePlusPlus => Some(Estimator::ReinforcePlusPlus),
            AdvantageKind::ReinforcePlusPlusBaseline => Some(Estimator::ReinforcePlusPlusBaseline),
        },
        group_by: arguments.group_by.clone(),
        train_on: if arguments.all_outcomes { every.to_vec() } else { vec![Outcome::Scored] },
        ..TrainingOptions::default()
    }
}
