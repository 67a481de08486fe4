use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agl_client::{Client, ClientOptions};
use agl_gateway::{AttemptGrant, AttemptTokens, Gateway, ModelEntry, ModelList};
use agl_runner::{Judge, Program, ProgramError, Surroundings, Task, TaskReport};
use agl_store::{Clock as _, SqliteOptions, SqliteStore, Store, SystemClock};
use agl_types::{ApiKey, Attempt};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;

use crate::args::{LogFormat, RunOptions};
use crate::console;
use crate::error::Error;
use crate::signals::StopSignals;
use crate::store::{LAST_MOMENT, address_of, listen};

/// What a server without a key is sent for one.
const NO_KEY: &str = "none";
/// How much longer than its run a program's token is good, for what is on its way at the end.
const GRACE: Duration = Duration::from_secs(60);

/// Runs a program once a task.
pub(crate) fn run(options: &RunOptions) -> Result<(), Error> {
    console::start_logging(options.log_level, LogFormat::Text);
    let tasks = tasks(&options.tasks, &options.expected_key)?;
    let judge = options.reward.as_deref().map(Judge::parse).transpose()?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|source| Error::System { what: "cannot start the runtime", source })?;
    let ended = runtime.block_on(async {
        let mut stop = StopSignals::catch()?;
        let (call_off, called_off) = watch::channel(false);
        let mut running = std::pin::pin!(run_all(options, tasks, judge, called_off));
        tokio::select! {
            ended = &mut running => return ended,
            () = stop.next() => {}
        }
        call_off.send_replace(true);
        // What is under way is killed and recorded as called off; whoever does not want to wait for that says so again.
        tokio::select! {
            _ = running => {}
            () = stop.next() => {}
        }
        Err(Error::CalledOff)
    });
    runtime.shutdown_timeout(LAST_MOMENT);
    ended
}

/// When the token of a run that may take this long is good no more, in seconds since 1970.
fn until(timeout: Duration) -> u64 {
    let until = SystemClock.now() + timeout.saturating_add(GRACE).as_secs_f64();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` saturates, which is meant"
    )]
    let until = until.ceil() as u64;
    until
}

fn tasks(path: &Path, expected_key: &str) -> Result<Vec<Task>, Error> {
    let wrong = |problem: String| Error::Tasks { path: path.to_owned(), problem };
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|error| wrong(error.to_string()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(number, line): (usize, &str)| {
        Task::parse(line, expected_key).map_err(|problem| wrong(format!("line {}: {problem}", number + 1)))
    };
    let tasks = lines.map(parse).collect::<Result<Vec<_>, Error>>()?;
    if tasks.is_empty() { Err(wrong("there is none".to_owned())) } else { Ok(tasks) }
}

/// The store and the gateway that programs are pointed at.
struct Place {
    store: Arc<dyn Store>,
    root: String,
    tokens: Option<AttemptTokens>,
    /// How long one run may take.
    timeout: Option<Duration>,
    /// Variables that are the gateway's alone.
    hidden: Vec<String>,
    /// What was opened for the run, to be closed after it.
    own: Option<Own>,
}

struct Own {
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
    sqlite: Arc<SqliteStore>,
}

impl Place {
    async fn open(options: &RunOptions) -> Result<Self, Error> {
        let client = ClientOptions::from_env()?;
        let timeout = options.timeout.map(Duration::from_secs_f64);
        if let Some(root) = &options.server {
            let tokens = client.key.as_ref().map(|key| AttemptTokens::new(Some(key)));
            let store = Client::new(root, client)?;
            let root = store.address().to_owned();
            let hidden = vec![ApiKey::VARIABLE.to_owned()];
            return Ok(Self { store: Arc::new(store), root, tokens, timeout, hidden, own: None });
        }
        let models = match (&options.upstream, &options.config) {
            (Some(url), _) => ModelList::new(vec![ModelEntry::new("*", url)]),
            (None, Some(config)) => ModelList::from_file(config)?,
            (None, None) => ModelList::default(),
        };
        let hidden = models.models.iter().filter_map(|model| model.api_key_env.clone()).collect();
        let sqlite = Arc::new(SqliteStore::open(&options.path, SqliteOptions::default())?);
        let store = Arc::clone(&sqlite) as Arc<dyn Store>;
        // Nobody is told it, so that programs get in with their tokens and not without.
        let key = Some(ApiKey::new(&format!("{:032x}", rand::random::<u128>()))?);
        let gateway_options = agl_gateway::GatewayOptions {
            key: key.clone(),
            ca_file: client.ca_file,
            ..agl_gateway::GatewayOptions::default()
        };
        let gateway = Gateway::new(Arc::clone(&store), models, gateway_options)?;
        let tokens = Some(gateway.tokens().clone());
        let server_options =
            agl_server::ServerOptions { key, gateway: Some(gateway), ..agl_server::ServerOptions::default() };
        let listener = listen("127.0.0.1", 0).await?;
        let root = format!("http://{}", address_of(&listener)?);
        let (stop, stopped) = oneshot::channel::<()>();
        let served = Arc::clone(&store);
        let server = tokio::spawn(async move {
            let told = async {
                // Dropped when the run is called off.
                let _ = stopped.await;
            };
            agl_server::serve(listener, served, &server_options, told).await
        });
        Ok(Self { store, root, tokens, timeout, hidden, own: Some(Own { stop, server, sqlite }) })
    }

    fn surroundings(&self, attempt: &Attempt, may_reward: bool) -> Surroundings {
        let grant = AttemptGrant {
            rollout_id: attempt.rollout_id.clone(),
            attempt_id: attempt.attempt_id.clone(),
            may_reward,
            until: self.timeout.map(until),
        };
        let token = self.tokens.as_ref().map_or_else(|| NO_KEY.to_owned(), |tokens| tokens.issue(&grant));
        Surroundings { root: self.root.clone(), token }
    }

    async fn close(&mut self) {
        if let Some(Own { stop, server, sqlite }) = self.own.take() {
            let _ = stop.send(());
            let _ = server.await;
            sqlite.close();
        }
    }
}

async fn run_all(
    options: &RunOptions,
    tasks: Vec<Task>,
    judge: Option<Judge>,
    called_off: watch::Receiver<bool>,
) -> Result<(), Error> {
    let mut place = Place::open(options).await?;
    let program = Program {
        command: options.command.clone(),
        timeout: place.timeout,
        hidden: place.hidden.clone(),
        instrument: options.instrument,
    };
    let done = run_each(options, tasks, Arc::new(judge), program, &place, called_off).await;
    place.close().await;
    let reports = done?;
    if options.json {
        for report in &reports {
            let line = serde_json::to_string(report)
                .map_err(|source| Error::System { what: "a report has no JSON", source: source.into() })?;
            console::say(line)?;
        }
        return Ok(());
    }
    summary(&reports)
}

async fn run_each(
    options: &RunOptions,
    tasks: Vec<Task>,
    judge: Arc<Option<Judge>>,
    program: Program,
    place: &Place,
    called_off: watch::Receiver<bool>,
) -> Result<Vec<TaskReport>, Error> {
    let total = tasks.len() * options.n;
    let workers = options
        .workers
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let room = Arc::new(Semaphore::new(workers.min(Semaphore::MAX_PERMITS)));
    let program = Arc::new(program);
    let bar = progress(total);
    let mut running = JoinSet::new();
    let runs = tasks.into_iter().flat_map(|task| std::iter::repeat_n(task, options.n)).enumerate();
    for (number, task) in runs {
        let (room, program, judge) = (Arc::clone(&room), Arc::clone(&program), Arc::clone(&judge));
        let store = Arc::clone(&place.store);
        let (max_attempts, may_reward) = (options.max_attempts, options.agent_may_reward);
        let place = Place {
            store: Arc::clone(&store),
            root: place.root.clone(),
            tokens: place.tokens.clone(),
            timeout: place.timeout,
            hidden: Vec::new(),
            own: None,
        };
        let mut called_off = called_off.clone();
        running.spawn(async move {
            // Nobody closes the semaphore.
            let _permit = room.acquire().await;
            if *called_off.borrow() {
                return Err(ProgramError::CalledOff);
            }
            let surroundings = |attempt: &Attempt| place.surroundings(attempt, may_reward);
            let judge = judge.as_ref().as_ref();
            let report =
                program.run_task(&*store, &task, max_attempts, judge, &mut called_off, surroundings).await;
            report.map(|report| (number, report))
        });
    }
    let mut reports = Vec::with_capacity(total);
    while let Some(ended) = running.join_next().await {
        let ended = ended.map_err(|error| Error::System {
            what: "a run broke down",
            source: std::io::Error::other(error),
        })?;
        // What cannot be started once cannot be started again: the others are dropped.
        match ended {
            Ok(report) => reports.push(report),
            // The others are recorded too.
            Err(ProgramError::CalledOff) => {}
            Err(error) => return Err(Error::from(error)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    reports.sort_by_key(|(number, _)| *number);
    Ok(reports.into_iter().map(|(_, report)| report).collect())
}

/// A bar on standard error, where somebody sees it.
fn progress(total: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total as u64);
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} rollouts, {elapsed}, {eta} to go");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// A line for every rollout, and one for all.
fn summary(reports: &[TaskReport]) -> Result<(), Error> {
    let width = reports.iter().filter_map(|report| report.id.as_ref()).map(|id| id.chars().count()).max();
    let width = width.unwrap_or(0).clamp(4, 40);
    console::say(format_args!(
        "{:width$}  {:15}  {:>8}  {:>7}  {:>8}  ended",
        "task", "rollout", "attempts", "reward", "seconds"
    ))?;
    for report in reports {
        let id: String = report.id.as_deref().unwrap_or("-").chars().take(width).collect();
        let reward = report.reward.map_or_else(|| "-".to_owned(), |reward| format!("{reward:.3}"));
        console::say(format_args!(
            "{id:width$}  {:15}  {:>8}  {reward:>7}  {:>8.2}  {}",
            report.rollout_id, report.attempts, report.seconds, report.ended
        ))?;
    }
    let succeeded = reports.iter().filter(|report| report.succeeded).count();
    let rewards: Vec<f64> = reports.iter().filter_map(|report| report.reward).collect();
    #[expect(clippy::cast_precision_loss, reason = "a mean for people to read")]
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    let mean = if rewards.is_empty() { "none".to_owned() } else { format!("{mean:.3}") };
    console::say(format_args!(
        "{succeeded} of {} ended well; mean reward of {}: {mean}",
        reports.len(),
        rewards.len()
    ))
}
