//! Which attempt a call belongs to: the one it names, or a session that is made for those that name none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use agl_store::Store;
use agl_types::v1::LATEST_ATTEMPT;
use agl_types::{
    AttemptQuery, AttemptStatus, AttemptUpdate, EnqueueRolloutRequest, JsonMap, Patch, RolloutMode,
    StartRollout,
};
use axum::http::{HeaderMap, StatusCode};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::access::{AttemptGrant, credentials};
use crate::address::Whose;
use crate::refusal::Refusal;

/// How many attempts are remembered to be there.
const REMEMBERED: usize = 1 << 16;
/// For how long a token is believed to be for an attempt that goes on.
const BELIEVED: Duration = Duration::from_secs(1);

/// The attempt that a call belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) rollout_id: String,
    pub(crate) attempt_id: String,
    pub(crate) mode: Option<RolloutMode>,
    /// The place of the call in its rollout, where the caller has one for it.
    pub(crate) sequence_id: Option<i64>,
    /// How the call named it.
    pub(crate) named: Named,
    /// Held for as long as the call is under way, where the attempt is a session.
    pub(crate) session: Option<Arc<()>>,
}

/// How a call names its attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    /// By a path of 0.3.
    Path,
    /// By a path of 1.0.
    Controlled,
    /// By headers, by a token, or not at all.
    Otherwise,
}

/// Finds attempts, and makes sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    store: Arc<dyn Store>,
    /// Attempts that are there.
    known: Mutex<HashMap<(String, String), Known>>,
    open: Arc<tokio::sync::Mutex<HashMap<[u8; 32], Session>>>,
    idle: Duration,
}

/// What is known of an attempt.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// What its rollout is for.
    mode: Option<RolloutMode>,
    has_ended: bool,
    looked_up: Instant,
}

#[derive(Debug)]
struct Session {
    rollout_id: String,
    attempt_id: String,
    last_used: Instant,
    /// Every call under way has one too.
    in_use: Arc<()>,
}

impl Sessions {
    /// Sessions end after `idle` without a call.
    pub(crate) fn new(store: Arc<dyn Store>, idle: Duration) -> Self {
        Self { store, known: Mutex::default(), open: Arc::default(), idle }
    }

    /// The attempt of a call that comes on such a path, with these headers, by the bearer of this grant.
    pub(crate) async fn find(
        &self,
        whose: Whose,
        headers: &HeaderMap,
        grant: Option<&AttemptGrant>,
    ) -> Result<Attempt, Refusal> {
        let attempt = match whose {
            Whose::Attempt { rollout_id, attempt_id } => {
                check(grant, &rollout_id, Some(&attempt_id))?;
                let mode = self.look_up(&rollout_id, &attempt_id).await?;
                Attempt { rollout_id, attempt_id, mode, sequence_id: None, named: Named::Path, session: None }
            }
            Whose::Controlled { rollout_id, attempt_id, mode } => {
                check(grant, &rollout_id, Some(attempt_id.as_str()).filter(|id| *id != LATEST_ATTEMPT))?;
                let attempt_id = self.controlled(&rollout_id, attempt_id).await?;
                Attempt {
                    rollout_id,
                    attempt_id,
                    mode: Some(mode),
                    sequence_id: None,
                    named: Named::Controlled,
                    session: None,
                }
            }
            Whose::Unsaid => match (of_headers(headers)?, grant) {
                (Some((rollout_id, attempt_id, sequence_id)), _) => {
                    check(grant, &rollout_id, Some(&attempt_id))?;
                    // The order of spans is not the agent's to say.
                    let sequence_id = sequence_id.filter(|_| grant.is_none());
                    let mode = self.look_up(&rollout_id, &attempt_id).await?;
                    Attempt {
                        rollout_id,
                        attempt_id,
                        mode,
                        sequence_id,
                        named: Named::Otherwise,
                        session: None,
                    }
                }
                (None, Some(AttemptGrant { rollout_id, attempt_id, .. })) => Attempt {
                    rollout_id: rollout_id.clone(),
                    attempt_id: attempt_id.clone(),
                    mode: self.look_up(rollout_id, attempt_id).await?,
                    sequence_id: None,
                    named: Named::Otherwise,
                    session: None,
                },
                (None, None) => self.session(headers).await?,
            },
        };
        check(grant, &attempt.rollout_id, Some(&attempt.attempt_id))?;
        if grant.is_some() && self.has_ended(&attempt).await? {
            return Err(Refusal::new(StatusCode::FORBIDDEN, "the attempt that this key is for has ended"));
        }
        Ok(attempt)
    }

    /// What the rollout of an attempt is for, if the attempt is there.
    async fn look_up(&self, rollout_id: &str, attempt_id: &str) -> Result<Option<RolloutMode>, Refusal> {
        match self.known(rollout_id, attempt_id) {
            Some(known) => Ok(known.mode),
            None => Ok(self.ask(rollout_id, attempt_id).await?.mode),
        }
    }

    /// Whether an attempt is over.
    async fn has_ended(&self, attempt: &Attempt) -> Result<bool, Refusal> {
        let Attempt { rollout_id, attempt_id, .. } = attempt;
        match self.known(rollout_id, attempt_id) {
            Some(known) if known.has_ended || known.looked_up.elapsed() < BELIEVED => Ok(known.has_ended),
            _ => Ok(self.ask(rollout_id, attempt_id).await?.has_ended),
        }
    }

    fn known(&self, rollout_id: &str, attempt_id: &str) -> Option<Known> {
        let pair = (rollout_id.to_owned(), attempt_id.to_owned());
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&pair).copied()
    }

    /// Asks the store for an attempt.
    async fn ask(&self, rollout_id: &str, attempt_id: &str) -> Result<Known, Refusal> {
        let looked_up = Instant::now();
        let found =
            self.store.get_rollout_by_id(rollout_id).await.map_err(|error| Refusal::of_store(&error))?;
        let Some(view) = found else {
            return Err(Refusal::not_found(format!("Rollout {rollout_id} not found")));
        };
        let mut attempt = view.attempt.filter(|latest| latest.attempt_id == attempt_id);
        if attempt.is_none() {
            let query = AttemptQuery { rollout_id: rollout_id.to_owned(), ..AttemptQuery::default() };
            let page = self.store.query_attempts(query).await.map_err(|error| Refusal::of_store(&error))?;
            attempt = page.items.into_iter().find(|attempt| attempt.attempt_id == attempt_id);
        }
        let Some(attempt) = attempt else {
            return Err(Refusal::not_found(format!("Rollout {rollout_id} has no attempt {attempt_id}")));
        };
        let found = Known { mode: view.rollout.mode, has_ended: attempt.status.is_terminal(), looked_up };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert((rollout_id.to_owned(), attempt_id.to_owned()), found);
        Ok(found)
    }

    /// An attempt as 1.0 names it: the latest is `0`.
    async fn controlled(&self, rollout_id: &str, attempt_id: String) -> Result<String, Refusal> {
        if attempt_id != LATEST_ATTEMPT {
            self.look_up(rollout_id, &attempt_id).await?;
            return Ok(attempt_id);
        }
        let found =
            self.store.get_rollout_by_id(rollout_id).await.map_err(|error| Refusal::of_store(&error))?;
        let view = found.ok_or_else(|| Refusal::not_found(format!("Rollout {rollout_id} not found")))?;
        let attempt = view.attempt.ok_or_else(|| {
            let message =
                format!("nobody has claimed rollout {rollout_id} yet: a call has no attempt to belong to");
            Refusal::new(StatusCode::CONFLICT, message)
        })?;
        Ok(attempt.attempt_id)
    }

    /// The session of those who call with these credentials.
    async fn session(&self, headers: &HeaderMap) -> Result<Attempt, Refusal> {
        let mut hash = Sha256::new();
        if let Some(credential) = credentials(headers).next() {
            hash.update(credential);
        }
        let caller: [u8; 32] = hash.finalize().into();
        // Held while a session is made, so that one is made and not several.
        let mut open = self.open.lock().await;
        if let Some(session) = open.get_mut(&caller) {
            session.last_used = Instant::now();
            return Ok(session.attempt());
        }
        let metadata = JsonMap::from_iter([("gateway_session".to_owned(), true.into())]);
        let rollout = EnqueueRolloutRequest {
            metadata: Some(metadata),
            ..EnqueueRolloutRequest::new(json!("calls that named no rollout"))
        };
        let started = self.store.start_rollout(StartRollout { rollout, worker_id: None }).await;
        let started = started.map_err(|error| Refusal::of_store(&error))?;
        let session = Session {
            rollout_id: started.rollout.rollout_id,
            attempt_id: started.attempt.attempt_id,
            last_used: Instant::now(),
            in_use: Arc::default(),
        };
        tracing::info!(rollout = session.rollout_id, "a session for calls that name no rollout");
        let attempt = session.attempt();
        if open.is_empty() {
            let (open, store, idle) = (Arc::downgrade(&self.open), Arc::downgrade(&self.store), self.idle);
            tokio::spawn(end_when_idle(open, store, idle));
        }
        open.insert(caller, session);
        Ok(attempt)
    }

    /// Ends all sessions.
    pub(crate) async fn close(&self) {
        let sessions = std::mem::take(&mut *self.open.lock().await);
        for session in sessions.into_values() {
            session.end(&*self.store).await;
        }
    }
}

impl Session {
    fn attempt(&self) -> Attempt {
        Attempt {
            rollout_id: self.rollout_id.clone(),
            attempt_id: self.attempt_id.clone(),
            mode: None,
            sequence_id: None,
            named: Named::Otherwise,
            session: Some(Arc::clone(&self.in_use)),
        }
    }

    fn is_idle(&mut self, idle: Duration) -> bool {
        if Arc::strong_count(&self.in_use) > 1 {
            self.last_used = Instant::now();
        }
        self.last_used.elapsed() >= idle
    }

    async fn end(self, store: &dyn Store) {
        let update =
            AttemptUpdate { status: Patch::Set(AttemptStatus::Succeeded), ..AttemptUpdate::default() };
        if let Err(error) = store.update_attempt(&self.rollout_id, &self.attempt_id, update).await {
            tracing::warn!(%error, rollout = self.rollout_id, "a session could not be ended");
        }
    }
}

/// Ends sessions that nothing comes from, until none is left.
async fn end_when_idle(
    open: Weak<tokio::sync::Mutex<HashMap<[u8; 32], Session>>>,
    store: Weak<dyn Store>,
    idle: Duration,
) {
    loop {
        tokio::time::sleep((idle / 10).max(Duration::from_millis(10))).await;
        let (Some(open), Some(store)) = (open.upgrade(), store.upgrade()) else { return };
        let mut open = open.lock().await;
        let ended: Vec<Session> =
            open.extract_if(|_, session| session.is_idle(idle)).map(|(_, session)| session).collect();
        let is_last = open.is_empty();
        drop(open);
        for session in ended {
            session.end(&*store).await;
        }
        if is_last {
            return;
        }
    }
}

/// Refuses what a grant is not for, before anything is looked up: nobody learns whether it is there.
fn check(grant: Option<&AttemptGrant>, rollout_id: &str, attempt_id: Option<&str>) -> Result<(), Refusal> {
    let is_beyond = |grant: &AttemptGrant| {
        grant.rollout_id != rollout_id || attempt_id.is_some_and(|attempt_id| grant.attempt_id != attempt_id)
    };
    if grant.is_some_and(is_beyond) {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "this key is for another attempt"));
    }
    Ok(())
}

/// Rollout, attempt and sequence id as 0.3's headers have them.
fn of_headers(headers: &HeaderMap) -> Result<Option<(String, String, Option<i64>)>, Refusal> {
    let text = |name: &str| {
        let value = headers.get(name)?;
        Some(value.to_str().map(str::to_owned).map_err(|_| bad(&format!("{name} is not text"))))
    };
    let (rollout, attempt) = (text("x-rollout-id").transpose()?, text("x-attempt-id").transpose()?);
    let (rollout, attempt) = match (rollout, attempt) {
        (Some(rollout), Some(attempt)) => (rollout, attempt),
        (None, None) => return Ok(None),
        _ => return Err(bad("x-rollout-id and x-attempt-id go together: send both or neither")),
    };
    let sequence = text("x-sequence-id").transpose()?.map(|text| {
        text.parse::<i64>()
            .ok()
            .filter(|id| *id > 0)
            .ok_or_else(|| bad("x-sequence-id has to be a number above 0"))
    });
    Ok(Some((rollout, attempt, sequence.transpose()?)))
}

fn bad(message: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, message)
}
