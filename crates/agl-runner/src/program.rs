//! Any program as an agent: told its task on standard input, in a file and in its environment, and where to call models
//! by its environment alone.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agl_store::{Clock as _, Store, SystemClock};
use agl_trace::{RewardDimension, reward_attributes};
use agl_types::{
    Attempt, AttemptStatus, AttemptUpdate, EnqueueRolloutRequest, JsonMap, Patch, RolloutMode, Span,
    StartRollout, ids, semconv,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::judge::{Judge, JudgeError, Verdict};

/// Bytes kept of what a program writes: the last ones.
const KEPT: usize = 1 << 20;
/// How long what a program wrote may take to come, once it has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes of it that are recorded with the attempt.
const RECORDED: usize = 16 << 10;
/// What every Python interpreter runs when it starts, where it is found first.
const SITECUSTOMIZE: &str = include_str!("sitecustomize.py");
/// Where Python looks for modules before anything else.
const PYTHONPATH: &str = "PYTHONPATH";

/// A program to be run once a task.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program and its arguments; not empty.
    pub command: Vec<OsString>,
    /// How long one run may take.
    pub timeout: Option<Duration>,
    /// Variables that the program does not inherit.
    pub hidden: Vec<String>,
    /// Whether what happens inside of Python interpreters is recorded too, those included that the program starts.
    pub instrument: bool,
}

/// Where the program finds a gateway and a store.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The URL of the server, without a slash at its end.
    pub root: String,
    /// What it has to send there.
    pub token: String,
}

/// How a run of a program ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ran {
    /// What it returned; none when a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it took too long and was ended for that.
    pub timed_out: bool,
    /// The end of what it wrote on standard output.
    pub stdout: String,
    /// The end of what it wrote on standard error.
    pub stderr: String,
}

impl Ran {
    /// Whether it ended by itself and well.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.exit_code == Some(0) && !self.timed_out
    }

    /// How it ended, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        match (self.timed_out, self.exit_code, self.signal) {
            (true, _, _) => "took too long".to_owned(),
            (_, Some(code), _) => format!("exited with code {code}"),
            (_, None, Some(signal)) => format!("was ended by signal {signal}"),
            (_, None, None) => "ended".to_owned(),
        }
    }
}

/// What came of one task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskReport {
    /// The task's own id, if it has one.
    pub id: Option<String>,
    /// The rollout.
    pub rollout_id: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// Whether the last one went well.
    pub succeeded: bool,
    /// What it was judged to be worth.
    pub reward: Option<f64>,
    /// What else was said of it.
    pub feedback: Option<String>,
    /// How the last run ended.
    pub ended: String,
    /// Seconds in all.
    pub seconds: f64,
}

impl Program {
    /// Runs the program for an attempt.
    ///
    /// It leads a process group of its own, of which nothing is left when this returns or is dropped.
    ///
    /// # Errors
    /// When the program cannot be started, or the file with its task not be written.
    pub async fn run(
        &self,
        task: &Value,
        attempt: &Attempt,
        mode: Option<RolloutMode>,
        at: &Surroundings,
    ) -> io::Result<Ran> {
        let folder = tempfile::Builder::new().prefix("agl-task-").tempdir()?;
        let task_file = folder.path().join("task.json");
        let text = task.to_string();
        tokio::fs::write(&task_file, &text).await?;
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "there is no program to run"))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        self.hidden.iter().for_each(|name| {
            command.env_remove(name);
        });
        command.envs(environment(attempt, mode, at)).env("AGL_TASK_FILE", &task_file);
        // A task too large for an environment is in the file and on standard input all the same.
        if text.len() < 64 << 10 {
            command.env("AGL_TASK", &text);
        }
        if self.instrument {
            let path = folder.path().join("python");
            tokio::fs::create_dir(&path).await?;
            tokio::fs::write(path.join("sitecustomize.py"), SITECUSTOMIZE).await?;
            command.env(PYTHONPATH, before_others(&path, std::env::var_os(PYTHONPATH))?);
        }
        let mut group = Group::lead(command.spawn()?);
        let input = group.child.stdin.take();
        let (out, err) = (group.child.stdout.take(), group.child.stderr.take());
        let told = tokio::spawn(async move {
            if let Some(mut input) = input {
                // A program need not read its task.
                let _ = input.write_all(text.as_bytes()).await;
            }
        });
        let (out, err) = (Tail::of(out), Tail::of(err));
        let ended = match self.timeout {
            Some(timeout) => tokio::time::timeout(timeout, group.child.wait()).await.ok(),
            None => Some(group.child.wait().await),
        };
        let timed_out = ended.is_none();
        group.end();
        let status = match ended {
            Some(status) => status?,
            None => group.child.wait().await?,
        };
        told.abort();
        let (stdout, stderr) = tokio::join!(out.read(), err.read());
        Ok(Ran { exit_code: status.code(), signal: signal_of(status), timed_out, stdout, stderr })
    }

    /// Runs a task as a rollout: up to `max_attempts` times, until the program ends well; then it is judged.
    ///
    /// What the program wrote and how it ended is kept with each attempt, the reward as a span. A program that ends
    /// badly has no reward. Once `called_off` is true the program is killed with what it started, and its attempt has failed
    /// for that reason.
    ///
    /// # Errors
    /// When the store fails, the program cannot be started at all, or the run is called off.
    pub async fn run_task(
        &self,
        store: &dyn Store,
        task: &Task,
        max_attempts: u32,
        judge: Option<&Judge>,
        called_off: &mut watch::Receiver<bool>,
        surroundings: impl Fn(&Attempt) -> Surroundings,
    ) -> Result<TaskReport, ProgramError> {
        let started = std::time::Instant::now();
        let rollout = EnqueueRolloutRequest {
            mode: task.mode,
            metadata: Some(task.metadata()),
            ..EnqueueRolloutRequest::new(task.input.clone())
        };
        let first = store.start_rollout(StartRollout { rollout, worker_id: None }).await?;
        let rollout_id = first.rollout.rollout_id.clone();
        let mut attempt = first.attempt;
        let mut made = 1;
        loop {
            let at = surroundings(&attempt);
            let ran = tokio::select! {
                biased;
                // Whoever could call it off may be gone, which does not.
                Ok(_) = called_off.wait_for(|is_so| *is_so) => None,
                ran = self.run(&task.input, &attempt, task.mode, &at) => Some(ran),
            };
            let Some(ran) = ran else {
                let facts = json!({ Attempt::REASON: Attempt::CANCELLED });
                report(store, &attempt, AttemptStatus::Failed, facts).await?;
                return Err(ProgramError::CalledOff);
            };
            let ran = ran.map_err(|source| ProgramError::Start { program: self.command[0].clone(), source });
            let ran = match ran {
                Ok(ran) => ran,
                Err(error) => {
                    report(store, &attempt, AttemptStatus::Failed, json!({"error": error.to_string()}))
                        .await?;
                    return Err(error);
                }
            };
            if !ran.is_success() && made < max_attempts {
                report(store, &attempt, failed(&ran), facts(&ran)).await?;
                attempt = store.start_attempt(&rollout_id, None).await?.attempt;
                made += 1;
                continue;
            }
            let (mut verdict, mut facts) = (Verdict::default(), facts(&ran));
            if let Some(judge) = judge.filter(|_| ran.is_success()) {
                match judge.judge(&task.input, task.expected.as_ref(), &ran, &self.hidden).await {
                    Ok(said) => verdict = said,
                    // Not the agent's failure, and no reward of 0.
                    Err(error) => {
                        tracing::warn!(rollout_id, %error, "a run could not be judged");
                        facts["scorer_error"] = error.to_string().into();
                    }
                }
            }
            if let Some(reward) = verdict.reward {
                store
                    .add_otel_span(
                        &rollout_id,
                        &attempt.attempt_id,
                        reward_span(reward, verdict.feedback.as_deref()),
                        None,
                    )
                    .await?;
            }
            let status = if ran.is_success() { AttemptStatus::Succeeded } else { failed(&ran) };
            report(store, &attempt, status, facts).await?;
            return Ok(TaskReport {
                id: task.id.clone(),
                rollout_id,
                attempts: made,
                succeeded: ran.is_success(),
                reward: verdict.reward,
                feedback: verdict.feedback,
                ended: ran.describe(),
                seconds: started.elapsed().as_secs_f64(),
            });
        }
    }
}

/// A task, as a line of a file has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The whole of it.
    pub input: Value,
    /// Its own id.
    pub id: Option<String>,
    /// What it is for.
    pub mode: Option<RolloutMode>,
    /// What a right answer is.
    pub expected: Option<Value>,
}

impl Task {
    /// Reads a JSON object of which `id`, `mode` and `expected_key` are known.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &str, expected_key: &str) -> Result<Self, String> {
        let input: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let fields = input.as_object().ok_or("it has to be a JSON object")?;
        let id = match fields.get("id") {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(other) => Some(other.to_string()),
        };
        let mode = match fields.get("mode") {
            None | Some(Value::Null) => None,
            Some(mode) => Some(
                mode.as_str()
                    .and_then(RolloutMode::parse)
                    .ok_or_else(|| format!("mode is {mode}: use train, val or test"))?,
            ),
        };
        let expected = fields.get(expected_key).filter(|expected| !expected.is_null()).cloned();
        Ok(Self { id, mode, expected, input })
    }

    fn metadata(&self) -> JsonMap {
        self.id.iter().map(|id| ("task_id".to_owned(), id.as_str().into())).collect()
    }
}

/// A run that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The program could not be started.
    #[error("cannot run {}: {source}", program.display())]
    Start {
        /// The program.
        program: OsString,
        /// What the system said.
        source: io::Error,
    },
    /// The run was called off.
    #[error("called off")]
    CalledOff,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] agl_store::Error),
    /// A judge makes no sense.
    #[error(transparent)]
    Judge(#[from] JudgeError),
}

/// A search path with this folder at its front.
fn before_others(folder: &Path, others: Option<OsString>) -> io::Result<OsString> {
    // An empty part would be the folder that the program is in.
    let others = others.filter(|others| !others.is_empty());
    let parts = others.iter().flat_map(std::env::split_paths);
    std::env::join_paths(std::iter::once(folder.to_owned()).chain(parts)).map_err(io::Error::other)
}

/// What tells a program whose attempt it works on, and where to call.
fn environment(
    attempt: &Attempt,
    mode: Option<RolloutMode>,
    at: &Surroundings,
) -> Vec<(&'static str, String)> {
    let Surroundings { root, token } = at;
    let part = |id: &str| utf8_percent_encode(id, NON_ALPHANUMERIC).to_string().replace("%2D", "-");
    let (rollout, tried) = (part(&attempt.rollout_id), part(&attempt.attempt_id));
    let base = format!("{root}/rollout/{rollout}/attempt/{tried}");
    let mode = if mode == Some(RolloutMode::Train) || mode.is_none() { "train" } else { "val" };
    vec![
        ("OPENAI_BASE_URL", format!("{base}/v1")),
        ("OPENAI_API_BASE", format!("{base}/v1")),
        ("OPENAI_API_KEY", token.clone()),
        ("ANTHROPIC_BASE_URL", base),
        ("ANTHROPIC_API_KEY", token.clone()),
        (
            "AGL_OPENAI_BASE_URL",
            format!("{root}/proxy/rollout/{rollout}/attempt/{tried}/mode/{mode}/openai/v1"),
        ),
        ("AGL_EVENT_URL", format!("{root}/api/rollouts/{rollout}/attempt/{tried}/events")),
        ("AGL_KEY", token.clone()),
        ("AGL_ROLLOUT_ID", attempt.rollout_id.clone()),
        ("AGL_ATTEMPT_ID", attempt.attempt_id.clone()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", root.clone()),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{root}/v1/traces")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()),
        ("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer%20{token}")),
        // The store takes traces only.
        ("OTEL_METRICS_EXPORTER", "none".to_owned()),
        ("OTEL_LOGS_EXPORTER", "none".to_owned()),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            format!("{}={rollout},{}={tried}", semconv::ROLLOUT_ID, semconv::ATTEMPT_ID),
        ),
    ]
}

async fn report(
    store: &dyn Store,
    attempt: &Attempt,
    status: AttemptStatus,
    facts: Value,
) -> Result<(), agl_store::Error> {
    let update = AttemptUpdate {
        status: Patch::Set(status),
        metadata: Patch::Set(facts.as_object().cloned()),
        ..AttemptUpdate::default()
    };
    store.update_attempt(&attempt.rollout_id, &attempt.attempt_id, update).await.map(drop)
}

fn failed(ran: &Ran) -> AttemptStatus {
    if ran.timed_out { AttemptStatus::Timeout } else { AttemptStatus::Failed }
}

fn facts(ran: &Ran) -> Value {
    json!({
        "exit_code": ran.exit_code, "signal": ran.signal, "timed_out": ran.timed_out,
        "stdout_tail": end_of(&ran.stdout), "stderr_tail": end_of(&ran.stderr),
    })
}

fn end_of(text: &str) -> &str {
    let mut from = text.len().saturating_sub(RECORDED);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

fn reward_span(reward: f64, feedback: Option<&str>) -> Span {
    let now = SystemClock.now();
    let trace_id = ids::trace_id(rand::random(), rand::random());
    let mut span = Span::new(semconv::AGL_ANNOTATION, trace_id, ids::span_id(rand::random()), now, now);
    span.attributes
        .extend(reward_attributes(&[RewardDimension { name: "primary".to_owned(), value: reward }]));
    if let Some(feedback) = feedback {
        span.attributes.insert("agentlightning.feedback".to_owned(), feedback.into());
    }
    span
}

/// The end of what a program writes.
pub(crate) struct Tail {
    kept: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Tail {
    /// Begins to read.
    pub(crate) fn of(source: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&kept);
        let reader = tokio::spawn(async move {
            let Some(mut source) = source else { return };
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = source.read(&mut buffer).await {
                let mut kept = shared.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&buffer[..count]);
                if kept.len() > 2 * KEPT {
                    let beyond = kept.len() - KEPT;
                    kept.drain(..beyond);
                }
            }
        });
        Self { kept, reader }
    }

    /// What there is once the program has ended. Somebody who has left its group may keep the other end open for ever.
    pub(crate) async fn read(mut self) -> String {
        if tokio::time::timeout(LAST_WORDS, &mut self.reader).await.is_err() {
            self.reader.abort();
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept[kept.len().saturating_sub(KEPT)..]).into_owned()
    }
}

fn signal_of(status: ExitStatus) -> Option<i32> {
    status.signal()
}

/// A child and everything that it started, ended when this is dropped.
pub(crate) struct Group {
    pub(crate) child: Child,
    leader: Option<Pid>,
}

impl Group {
    /// Takes charge of a child that leads a process group.
    pub(crate) fn lead(child: Child) -> Self {
        let leader = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Self { child, leader }
    }

    /// Ends whatever of it is left.
    pub(crate) fn end(&mut self) {
        if let Some(leader) = self.leader.take() {
            // There may be nobody left.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_before_others_and_adds_none() {
        let path = |others: Option<&str>| before_others(Path::new("/a"), others.map(OsString::from)).unwrap();
        assert_eq!(path(None), "/a");
        assert_eq!(path(Some("")), "/a");
        assert_eq!(path(Some("/b:/c")), "/a:/b:/c");
    }

    #[test]
    fn known_keys_of_a_task_are_read() {
        let task =
            Task::parse(r#"{"id": 7, "mode": "val", "answer": "x", "question": "?"}"#, "answer").unwrap();
        assert_eq!(
            (task.id.as_deref(), task.mode, task.expected),
            (Some("7"), Some(RolloutMode::Val), Some(json!("x")))
        );
        assert!(Task::parse("[]", "expected").unwrap_err().contains("object"));
        assert!(Task::parse(r#"{"mode": "x"}"#, "expected").unwrap_err().contains("train, val or test"));
    }
}
