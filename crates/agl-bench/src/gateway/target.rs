//! Who is asked: the model server itself, and everybody who stands in front of it, each a process of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::shape::Shape;
use super::upstream::{self, Asked};
use crate::http::Connection;
use crate::{Outcome, process};

/// How long one may take to answer for the first time; the peers import a great deal.
const START: Duration = Duration::from_secs(120);

/// How many attempts calls are booked to.
const ATTEMPTS: usize = 64;

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The model server.
    Direct,
    /// Ours, `--capture durable`, on SQLite.
    Durable,
    /// Ours, `--capture async`, on SQLite.
    Async,
    /// LiteLLM's proxy, as agentlightning 0.3 runs it.
    LiteLlm,
    /// The server of agentlightning 1.0, which knows no streams.
    Controller,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Direct, Self::Durable, Self::Async, Self::LiteLlm, Self::Controller];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Durable => "durable",
            Self::Async => "async",
            Self::LiteLlm => "LiteLLM in 0.3",
            Self::Controller => "1.0",
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::Durable | Self::Async)
    }

    pub(crate) fn can(self, shape: Shape) -> bool {
        self != Self::Controller || !shape.stream
    }

    /// What its clients should get: through ours, what the model server would have told them itself; elsewhere all that
    /// capture asked for too, as the agents of these releases expect.
    fn owes(self) -> Asked {
        if self.is_ours() { Asked::NOTHING } else { Asked::ALL }
    }
}

/// Where the programs are, and where databases may be put.
#[derive(Debug)]
pub(crate) struct Programs<'a> {
    pub(crate) ours: &'a Path,
    /// A Python with agentlightning 0.3, and the script that runs its proxy.
    pub(crate) peer: &'a Path,
    pub(crate) script: &'a Path,
    /// The `agl-server` of agentlightning 1.0.
    pub(crate) controller: &'a Path,
    pub(crate) scratch: &'a Path,
}

/// One who is asked, until it is dropped.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    /// None for the model server, which is a thread of this program.
    pub(crate) process: Option<u32>,
    /// The paths that calls go to, one for each attempt.
    paths: Vec<String>,
    /// How many calls it has answered so far.
    pub(crate) answered: u64,
    child: Option<Started>,
}

#[derive(Debug)]
struct Started {
    child: Child,
    talk: Option<(ChildStdin, BufReader<ChildStdout>)>,
    folder: TempDir,
}

impl Target {
    pub(crate) async fn start(kind: Kind, programs: &Programs<'_>, upstream: SocketAddr) -> Outcome<Self> {
        let mut target = Self {
            kind,
            address: upstream,
            process: None,
            paths: vec!["/v1/chat/completions".to_owned()],
            answered: 0,
            child: None,
        };
        if kind == Kind::Direct {
            return Ok(target);
        }
        let folder = tempfile::tempdir_in(programs.scratch)?;
        target.address = process::free_address()?;
        let port = target.address.port().to_string();
        let model = format!("http://{upstream}/v1");
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut command = match kind {
            Kind::Controller => {
                let mut command = Command::new(std::path::absolute(programs.controller)?);
                command.args(["host=127.0.0.1", &format!("port={port}"), "default_proxy.model_name=policy"]);
                command.args(["hydra.run.dir=.", "hydra.output_subdir=null"]);
                command
            }
            Kind::LiteLlm => {
                let mut command = Command::new(std::path::absolute(programs.peer)?);
                command.arg(std::path::absolute(programs.script)?);
                command.args([&port, &model, &ATTEMPTS.to_string()]);
                // It would ask the network for prices of models before it serves, and does not start without a key of
                // its own unless told that this is meant.
                command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
                command.env("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true");
                command
            }
            Kind::Direct | Kind::Durable | Kind::Async => {
                let list = format!("[[models]]\nname = \"policy\"\nurl = \"{model}\"\n");
                std::fs::write(folder.path().join("gateway.toml"), list)?;
                let mut command = Command::new(std::path::absolute(programs.ours)?);
                command.args(["serve", "--host", "127.0.0.1", "--port", &port, "--log-level", "WARNING"]);
                command.args(["--backend", "sqlite", "--path", "agl.db", "--config", "gateway.toml"]);
                command.args(["--expose-token-ids", "false", "--capture"]);
                command.arg(if kind == Kind::Async { "async" } else { "durable" });
                command
            }
        };
        let talks = kind == Kind::LiteLlm;
        let mut child = command
            .current_dir(folder.path())
            .stdin(if talks { Stdio::piped() } else { Stdio::null() })
            .stdout(if talks { Stdio::piped() } else { log.try_clone()?.into() })
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", kind.title()))?;
        let started = Instant::now();
        while Connection::open(target.address).await.is_err() {
            if child.try_wait()?.is_some() || started.elapsed() > START {
                let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                return Err(format!("{} does not serve:\n{log}", kind.title()).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        target.process = child.id();
        let mut talk = child.stdin.take().zip(child.stdout.take().map(BufReader::new));
        target.paths = match &mut talk {
            Some((_, told)) => {
                let mut line = String::new();
                tokio::time::timeout(START, told.read_line(&mut line)).await??;
                let attempts: Vec<(String, String)> = serde_json::from_str(&line)?;
                attempts.iter().map(|(rollout, attempt)| path(rollout, attempt)).collect()
            }
            None if kind == Kind::Controller => controller_paths(target.address, &model).await?,
            None => our_paths(target.address).await?,
        };
        target.child = Some(Started { child, talk, folder });
        Ok(target)
    }

    /// The request of a connection.
    pub(crate) fn request(&self, shape: Shape, connection: usize) -> Vec<u8> {
        let path = self.paths.get(connection % self.paths.len()).map_or("", String::as_str);
        shape.request(path, self.kind == Kind::Direct)
    }

    /// The body that an answer should have, and how many frames that is.
    pub(crate) fn expected(&self, shape: Shape) -> (Vec<u8>, usize) {
        let owed = self.kind.owes();
        (upstream::body(shape, owed), upstream::frames(shape, owed).len())
    }

    /// How many calls it has kept; none where that is not told.
    pub(crate) async fn kept(&mut self) -> Outcome<Option<u64>> {
        match (self.kind, &mut self.child) {
            (Kind::LiteLlm, Some(Started { talk: Some((ask, told)), .. })) => {
                ask.write_all(b"\n").await?;
                let mut line = String::new();
                told.read_line(&mut line).await?;
                Ok(Some(line.trim().parse()?))
            }
            (kind, _) if kind.is_ours() => {
                let held = get(self.address, "/v1/agl/statistics").await?;
                Ok(held["total_spans"].as_u64())
            }
            _ => Ok(None),
        }
    }

    /// Bytes of its files.
    pub(crate) fn disk(&self) -> Outcome<u64> {
        let Some(started) = &self.child else { return Ok(0) };
        let mut bytes = 0;
        for entry in std::fs::read_dir(started.folder.path())? {
            bytes += entry?.metadata()?.len();
        }
        Ok(bytes)
    }

    /// What it wrote to its log, and whether it still runs.
    pub(crate) fn complaints(&mut self) -> Outcome<String> {
        let Some(started) = &mut self.child else { return Ok(String::new()) };
        let ended = started.child.try_wait()?.map(|status| format!("it has ended: {status}\n"));
        let log = std::fs::read_to_string(started.folder.path().join("log")).unwrap_or_default();
        let from = log.len().saturating_sub(2000);
        Ok(ended.unwrap_or_default() + log.get(from..).unwrap_or_default())
    }
}

fn path(rollout: &str, attempt: &str) -> String {
    format!("/rollout/{rollout}/attempt/{attempt}/v1/chat/completions")
}

async fn our_paths(address: SocketAddr) -> Outcome<Vec<String>> {
    let mut paths = Vec::new();
    for _ in 0..ATTEMPTS {
        let started = post(address, "/v1/agl/rollouts", &json!({"input": "task", "mode": "train"})).await?;
        let id = |value: &Value| value.as_str().map(str::to_owned).ok_or("a rollout without ids");
        paths.push(path(&id(&started["rollout_id"])?, &id(&started["attempt"]["attempt_id"])?));
    }
    Ok(paths)
}

async fn controller_paths(address: SocketAddr, model: &str) -> Outcome<Vec<String>> {
    post(address, "/api/models", &json!([{"model": "policy", "endpoint": model}])).await?;
    let rollouts = vec![json!({"input": {"task": 1}}); ATTEMPTS];
    let made = post(address, "/api/rollouts", &rollouts.into()).await?;
    let path = |rollout: &Value| {
        let id = rollout["rollout_id"].as_str()?;
        Some(format!("/proxy/rollout/{id}/attempt/0/mode/train/openai/v1/chat/completions"))
    };
    made.as_array()
        .and_then(|made| made.iter().map(path).collect())
        .ok_or_else(|| format!("1.0 made no rollouts: {made}").into())
}

async fn post(address: SocketAddr, path: &str, body: &Value) -> Outcome<Value> {
    let body = body.to_string();
    ask(address, &format!("POST {path}"), &body).await
}

async fn get(address: SocketAddr, path: &str) -> Outcome<Value> {
    ask(address, &format!("GET {path}"), "").await
}

async fn ask(address: SocketAddr, what: &str, body: &str) -> Outcome<Value> {
    let length = body.len();
    let about = format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
    let request = format!("{what} HTTP/1.1\r\nHost: 127.0.0.1\r\n{about}\r\n{body}");
    let mut connection = Connection::open(address).await?;
    let answer = connection.ask(request.as_bytes()).await?;
    if !(200..300).contains(&answer.status) {
        let said = String::from_utf8_lossy(answer.body);
        return Err(format!("{what} is answered {}: {said}", answer.status).into());
    }
    Ok(serde_json::from_slice(answer.body)?)
}
