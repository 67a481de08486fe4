//! The servers under test, each a process of its own, and what the system knows about them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::Outcome;
use crate::http::Connection;
use crate::process;
use crate::store::shapes::{self, Claim, Template};

/// How long a server may take to answer for the first time; the peer imports a great deal.
const START: Duration = Duration::from_secs(120);

/// A server, and how it keeps what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// agentlightning 0.3 from PyPI, in memory.
    Peer,
    /// Ours, in memory.
    Memory,
    /// Ours, in a file, with `--sync normal`.
    SqliteNormal,
    /// Ours, in a file, with `--sync full`.
    SqliteFull,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Peer, Self::Memory, Self::SqliteNormal, Self::SqliteFull];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Peer => "0.3, memory",
            Self::Memory => "memory",
            Self::SqliteNormal => "SQLite, normal",
            Self::SqliteFull => "SQLite, full",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Peer | Self::Memory => &["--backend", "memory"],
            Self::SqliteNormal => &["--backend", "sqlite", "--sync", "normal", "--path", "agl.db"],
            Self::SqliteFull => &["--backend", "sqlite", "--sync", "full", "--path", "agl.db"],
        }
    }
}

/// Where the programs are, and where databases may be put.
#[derive(Debug)]
pub(crate) struct Programs<'a> {
    pub(crate) ours: &'a Path,
    pub(crate) peer: &'a Path,
    pub(crate) scratch: &'a Path,
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    pub(crate) process: u32,
    next_span: Arc<AtomicU64>,
    _child: Child,
    _folder: TempDir,
}

impl Server {
    pub(crate) async fn start(kind: Kind, programs: &Programs<'_>) -> Outcome<Self> {
        let folder = tempfile::tempdir_in(programs.scratch)?;
        let address = process::free_address()?;
        let program = if kind == Kind::Peer { programs.peer } else { programs.ours };
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut child = Command::new(std::path::absolute(program)?)
            .args(["store", "--host", "127.0.0.1", "--log-level", "WARNING", "--port"])
            .arg(address.port().to_string())
            .args(kind.arguments())
            .current_dir(folder.path())
            // The peer would ask the network for prices of models, in vain or not, before it serves.
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let started = Instant::now();
        while !is_healthy(address).await {
            if child.try_wait()?.is_some() || started.elapsed() > START {
                let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
                return Err(format!("the server of kind {kind:?} does not serve:\n{log}").into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let process = child.id().ok_or("the server is gone")?;
        let next_span = Arc::new(AtomicU64::new(1));
        Ok(Self { kind, address, process, next_span, _child: child, _folder: folder })
    }

    /// The numbers of spans that this server has been sent; a request takes its own from here.
    pub(crate) fn numbers(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.next_span)
    }

    /// How many spans it has been sent so far.
    pub(crate) fn sent_spans(&self) -> u64 {
        self.next_span.load(Ordering::Relaxed) - 1
    }

    /// Sends one request and returns its body.
    pub(crate) async fn ask(&self, request: &[u8]) -> Outcome<Value> {
        let mut connection = Connection::open(self.address).await?;
        let answer = connection.ask(request).await?;
        if !(200..300).contains(&answer.status) {
            let body = String::from_utf8_lossy(answer.body);
            return Err(format!("{:?} answered {}: {body}", self.kind, answer.status).into());
        }
        Ok(if answer.body.is_empty() { Value::Null } else { serde_json::from_slice(answer.body)? })
    }

    /// Puts at least `count` tasks into the queue.
    pub(crate) async fn enqueue(&self, count: usize) -> Outcome<()> {
        const AT_ONCE: usize = 500;
        let mut template = shapes::enqueue(AT_ONCE);
        for _ in 0..count.div_ceil(AT_ONCE) {
            self.ask(template.fill(None, 0)).await?;
        }
        Ok(())
    }

    /// Claims `count` rollouts, to give spans to.
    pub(crate) async fn claim(&self, count: usize) -> Outcome<Vec<Claim>> {
        const AT_ONCE: usize = 500;
        self.enqueue(count).await?;
        let mut claims = Vec::with_capacity(count);
        while claims.len() < count {
            let answer =
                self.ask(shapes::dequeue(AT_ONCE.min(count - claims.len()), 0).fill(None, 0)).await?;
            let before = claims.len();
            for claim in answer.as_array().into_iter().flatten() {
                let text = |value: &Value| value.as_str().map(str::to_owned);
                let (rollout_id, attempt_id) =
                    (text(&claim["rollout_id"]), text(&claim["attempt"]["attempt_id"]));
                let (rollout_id, attempt_id) = rollout_id.zip(attempt_id).ok_or("a claim without ids")?;
                claims.push(Claim { rollout_id, attempt_id });
            }
            if claims.len() == before {
                return Err("the queue is empty before its time".into());
            }
        }
        Ok(claims)
    }

    /// Fails unless a page has as many items, of as many in all, as it should.
    pub(crate) async fn expect_page(
        &self,
        mut page: Template,
        claim: &Claim,
        items: usize,
        total: u64,
    ) -> Outcome<()> {
        let page = self.ask(page.fill(Some(claim), 0)).await?;
        let found = (page["items"].as_array().map(Vec::len), page["total"].as_u64());
        if found == (Some(items), Some(total)) {
            return Ok(());
        }
        Err(format!("{:?} has a page of {found:?} where {items} of {total} spans should be", self.kind)
            .into())
    }

    /// The processor time that the server has used so far, with that of its children.
    pub(crate) fn processor_time(&self) -> Outcome<Duration> {
        process::processor_time(self.process)
    }

    /// The memory that is resident now, in MiB.
    pub(crate) fn resident_mib(&self) -> Outcome<f64> {
        process::resident_mib(self.process)
    }
}

async fn is_healthy(address: SocketAddr) -> bool {
    let mut health = shapes::health();
    let Ok(mut connection) = Connection::open(address).await else { return false };
    connection.ask(health.fill(None, 0)).await.is_ok_and(|answer| answer.status == 200)
}
