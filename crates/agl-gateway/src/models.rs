//! Who answers which model: the list, the choice among several, and how each of them is doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agl_types::ApiKey;
use axum::http::{HeaderMap, HeaderName};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, OnceCell, OwnedSemaphorePermit, Semaphore};
use url::Url;

use crate::Error;
use crate::access;
use crate::config::{Api, ModelEntry, ModelList};

/// The header in which an agent says its name.
const AGENT: &str = "x-agl-agent";
/// Failures in a row after which a backend is passed over for a while.
const TOO_MANY: u32 = 3;
/// For how long at first; it doubles with every further failure, up to [`LONGEST_REST`].
const REST: Duration = Duration::from_secs(2);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// A server that answers for one model, and how it is doing.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) entry: ModelEntry,
    pub(crate) key: Option<ApiKey>,
    pub(crate) key_header: Option<HeaderName>,
    url: Url,
    slots: Option<Arc<Semaphore>>,
    /// When the next call may begin.
    pace: Option<Mutex<Instant>>,
    failures: AtomicU32,
    resting: std::sync::Mutex<Option<Instant>>,
    /// Whether it returns token ids, once that is known.
    pub(crate) returns_ids: OnceCell<bool>,
}

impl Backend {
    pub(crate) fn new(entry: ModelEntry) -> Result<Self, Error> {
        let url = Url::parse(&entry.url).map_err(|error| entry.wrong("url", error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(entry.wrong("url", "it has to be like http://host:8000/v1"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(entry.wrong("url", "a password in it would be seen: give it as api_key"));
        }
        for (field, value) in [("timeout", entry.timeout), ("stream_timeout", entry.stream_timeout)] {
            if Duration::try_from_secs_f64(value).is_err() || value == 0.0 {
                return Err(entry.wrong(field, format!("it has to be seconds above 0, not {value}")));
            }
        }
        if !(entry.weight.is_finite() && entry.weight >= 0.0) {
            return Err(entry.wrong("weight", format!("it has to be 0 or more, not {}", entry.weight)));
        }
        if entry.name.is_empty() || names(&entry).any(|name| name.matches('*').count() > 1) {
            return Err(entry.wrong("name", "it has to be some text, with one * in it at most"));
        }
        if entry.max_concurrency == Some(0) || entry.requests_per_minute == Some(0) {
            let field =
                if entry.max_concurrency == Some(0) { "max_concurrency" } else { "requests_per_minute" };
            return Err(entry.wrong(field, "with 0 nothing would ever be answered: leave it out"));
        }
        if let Some(name) = entry.headers.keys().find(|name| HeaderName::from_bytes(name.as_bytes()).is_err())
        {
            return Err(entry.wrong("headers", format!("{name:?} is no name of a header")));
        }
        let key_header = match &entry.api_key_header {
            Some(name) => Some(
                HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| entry.wrong("api_key_header", format!("{name:?} is no name of a header")))?,
            ),
            None => None,
        };
        Ok(Self {
            key: entry.key()?,
            key_header,
            url,
            slots: entry
                .max_concurrency
                .map(|count| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))),
            pace: entry.requests_per_minute.map(|_| Mutex::new(Instant::now())),
            failures: AtomicU32::new(0),
            resting: std::sync::Mutex::new(None),
            returns_ids: OnceCell::new(),
            entry,
        })
    }

    /// Where an endpoint of it is.
    pub(crate) fn endpoint(&self, endpoint: &str) -> Url {
        let mut url = self.url.clone();
        let path = format!("{}/{endpoint}", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url
    }

    /// What to call it. There is no secret in it.
    pub(crate) fn label(&self) -> &str {
        self.entry.url.split('?').next().unwrap_or_default()
    }

    /// Whether it speaks Anthropic's messages itself.
    pub(crate) fn speaks_messages(&self) -> bool {
        self.entry.api == Api::Anthropic || self.entry.messages
    }

    /// Waits for its turn, and keeps it for as long as the answer lives.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let permit = match &self.slots {
            // Nobody closes the semaphore.
            Some(slots) => Arc::clone(slots).acquire_owned().await.ok(),
            None => None,
        };
        if let (Some(pace), Some(per_minute)) = (&self.pace, self.entry.requests_per_minute) {
            let gap = Duration::from_secs(60) / per_minute.max(1);
            let at = {
                let mut next = pace.lock().await;
                let at = (*next).max(Instant::now());
                *next = at + gap;
                at
            };
            tokio::time::sleep_until(at.into()).await;
        }
        permit
    }

    pub(crate) fn did_well(&self) {
        if self.failures.swap(0, Ordering::Relaxed) >= TOO_MANY {
            *self.resting.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        }
    }

    pub(crate) fn did_badly(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(more) = failures.checked_sub(TOO_MANY) {
            let rest = REST.saturating_mul(1 << more.min(8)).min(LONGEST_REST);
            tracing::warn!(
                backend = self.label(),
                failures,
                "a model server keeps failing; trying others first"
            );
            *self.resting.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                Some(Instant::now() + rest);
        }
    }

    fn is_resting(&self) -> bool {
        let resting = self.resting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        resting.is_some_and(|until| Instant::now() < until)
    }
}

/// All names that an entry goes by.
fn names(entry: &ModelEntry) -> impl Iterator<Item = &str> {
    std::iter::once(entry.name.as_str()).chain(entry.aliases.iter().map(String::as_str))
}

/// A backend, and what it is to be asked for.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) backend: Arc<Backend>,
    pub(crate) model: String,
}

/// The model list as calls see it; a call keeps the one that it began with.
#[derive(Debug, Default)]
pub(crate) struct Models {
    backends: Vec<Arc<Backend>>,
    default_model: Option<String>,
}

impl Models {
    /// Checks a list. What is on the former list too keeps its state.
    pub(crate) fn new(list: ModelList, former: &Self) -> Result<Self, Error> {
        let ModelList { models, default_model } = list;
        let same = |entry: &ModelEntry| former.backends.iter().find(|known| known.entry == *entry).cloned();
        let backend = |entry: ModelEntry| match same(&entry) {
            // Its key may have changed where it is kept.
            Some(known) if entry.key()? == known.key => Ok(known),
            _ => Backend::new(entry).map(Arc::new),
        };
        let backends = models.into_iter().map(backend).collect::<Result<Vec<_>, Error>>()?;
        let models = Self { backends, default_model };
        if let Some(name) = &models.default_model
            && !models
                .backends
                .iter()
                .any(|backend| names(&backend.entry).any(|known| matched(known, name).is_some()))
        {
            return Err(Error::Config {
                place: "default_model".to_owned(),
                field: "default_model",
                problem: format!("there is no model {name:?} on the list"),
            });
        }
        Ok(models)
    }

    pub(crate) fn of(backends: Vec<Arc<Backend>>) -> Self {
        Self { backends, default_model: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// Every name that can be asked for as it is, once.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        for name in self.backends.iter().flat_map(|backend| names(&backend.entry)) {
            if !name.contains('*') && !seen.iter().any(|known| known == name) {
                seen.push(name.to_owned());
            }
        }
        seen
    }

    /// What to ask for in place of a model that is not there.
    pub(crate) fn stand_in(&self) -> Option<&str> {
        self.default_model.as_deref()
    }

    /// The one name there is, if it is the only one.
    pub(crate) fn only_name(&self) -> Option<String> {
        let mut all = self.backends.iter().map(|backend| &backend.entry.name);
        let first = all.next()?;
        (all.all(|name| name == first) && !first.contains('*')).then(|| first.clone())
    }

    /// Those who answer for a model: the closest matches, what is for whoever sent these headers first of all.
    pub(crate) fn find(&self, asked: &str, headers: &HeaderMap) -> Vec<Choice> {
        let mut best = (false, 0);
        let mut found: Vec<Choice> = Vec::new();
        for backend in &self.backends {
            let entry = &backend.entry;
            let is_own = is_for(entry, headers);
            if !is_own && !is_for_all(entry) {
                continue;
            }
            let closest =
                names(entry).filter_map(|name| matched(name, asked)).max_by_key(|(close, _)| *close);
            let Some((close, stood_for)) = closest else { continue };
            let rank = (is_own, close);
            if rank > best {
                found.clear();
                best = rank;
            }
            if rank == best {
                let model = match &entry.model {
                    Some(model) => model.replacen('*', stood_for, 1),
                    None => asked.to_owned(),
                };
                found.push(Choice { backend: Arc::clone(backend), model });
            }
        }
        found
    }

    /// Those who answer for a model, in the order in which they are to be tried for this rollout: always the same, for
    /// the sake of their prefix caches, each by its weight (rendezvous hashing; Thaler and Ravishankar, 1998), but
    /// those that keep failing last.
    pub(crate) fn route(&self, asked: &str, headers: &HeaderMap, rollout_id: &str) -> Vec<Choice> {
        let mut found = self.find(asked, headers);
        if found.len() > 1 {
            found.sort_by_cached_key(|choice| {
                let distance = distance(&choice.backend, rollout_id);
                // Positive floats are ordered as their bits are.
                (choice.backend.is_resting(), distance.to_bits())
            });
        }
        found
    }
}

fn is_for_all(entry: &ModelEntry) -> bool {
    entry.agents.is_empty() && entry.headers.is_empty() && entry.keys.is_empty()
}

/// Whether an entry is for the agent that sent these headers in particular: by its name, by headers of its own, or by
/// its key.
fn is_for(entry: &ModelEntry, headers: &HeaderMap) -> bool {
    let has = |name: &str, value: &str| {
        headers.get_all(name).iter().any(|given| given.as_bytes() == value.as_bytes())
    };
    entry.agents.iter().any(|agent| has(AGENT, agent))
        || (!entry.headers.is_empty() && entry.headers.iter().all(|(name, value)| has(name, value)))
        || entry.keys.iter().any(|key| access::has_key(headers, key))
}

/// How closely a name matches, and what its `*` stands for.
fn matched<'a>(name: &str, asked: &'a str) -> Option<(usize, &'a str)> {
    match name.split_once('*') {
        None => (name == asked).then_some((usize::MAX, "")),
        Some((head, tail)) => {
            let stood_for = asked.strip_prefix(head)?.strip_suffix(tail)?;
            Some((1 + head.len() + tail.len(), stood_for))
        }
    }
}

/// How far a backend is from a rollout: exponentially distributed with its weight for a rate, so that the nearest of
/// several is each as often as its weight says.
fn distance(backend: &Backend, rollout_id: &str) -> f64 {
    let entry = &backend.entry;
    let mut hash = Sha256::new();
    for part in [rollout_id, &entry.url, entry.model.as_deref().unwrap_or_default()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    let bits = digest.iter().take(8).fold(0_u64, |bits, byte| (bits << 8) | u64::from(*byte));
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let uniform = ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -uniform.ln() / entry.weight
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn models(entries: Vec<ModelEntry>) -> Models {
        Models::new(ModelList::new(entries), &Models::default()).unwrap()
    }

    fn entry(name: &str, url: &str) -> ModelEntry {
        ModelEntry::new(name, format!("http://{url}/v1"))
    }

    fn to(models: &Models, asked: &str, agent: Option<&'static str>) -> Vec<Choice> {
        let headers = agent.map(|name| (HeaderName::from_static(AGENT), HeaderValue::from_static(name)));
        models.route(asked, &headers.into_iter().collect(), "r")
    }

    fn asked(choices: &[Choice]) -> Vec<(&str, &str)> {
        choices.iter().map(|choice| (choice.backend.label(), choice.model.as_str())).collect()
    }

    #[test]
    fn the_closest_name_wins_and_carries_its_star_over() {
        let models = models(vec![
            ModelEntry { model: Some("org/*".to_owned()), ..entry("*", "any") },
            entry("gpt-*", "gpt"),
            ModelEntry {
                aliases: vec!["small".to_owned()],
                model: Some("q".to_owned()),
                ..entry("gpt-5", "exact")
            },
            ModelEntry { agents: vec!["judge".to_owned()], ..entry("gpt-*", "judge") },
        ]);
        assert_eq!(asked(&to(&models, "x", None)), [("http://any/v1", "org/x")]);
        assert_eq!(asked(&to(&models, "gpt-4", None)), [("http://gpt/v1", "gpt-4")]);
        assert_eq!(asked(&to(&models, "gpt-5", None)), [("http://exact/v1", "q")]);
        assert_eq!(asked(&to(&models, "small", Some("writer"))), [("http://exact/v1", "q")]);
        assert_eq!(asked(&to(&models, "gpt-5", Some("judge"))), [("http://judge/v1", "gpt-5")]);
        assert_eq!(models.names(), ["gpt-5", "small"]);
        assert_eq!(models.only_name(), None);
    }

    #[test]
    fn a_rollout_stays_where_it_is_and_few_move_when_one_comes() {
        let of = |count: usize| models((0..count).map(|n| entry("m", &format!("h{n}"))).collect());
        let (three, four) = (of(3), of(4));
        let first = |models: &Models, rollout: usize| {
            models.route("m", &HeaderMap::new(), &format!("ro-{rollout}"))[0].backend.label().to_owned()
        };
        let moved = (0..400).filter(|rollout| first(&three, *rollout) != first(&four, *rollout));
        let moved: Vec<usize> = moved.collect();
        assert!((50..150).contains(&moved.len()), "{}", moved.len());
        assert!(moved.iter().all(|rollout| first(&four, *rollout) == "http://h3/v1"), "only to the new one");
    }

    #[test]
    fn shares_follow_the_weights() {
        let models = models(vec![
            ModelEntry { weight: 3.0, ..entry("m", "a") },
            entry("m", "b"),
            ModelEntry { weight: 0.0, ..entry("m", "c") },
        ]);
        let first = |rollout: i32| {
            models.route("m", &HeaderMap::new(), &rollout.to_string())[0].backend.label().to_owned()
        };
        let to_a = (0..1000).filter(|rollout| first(*rollout) == "http://a/v1").count();
        assert!((650..850).contains(&to_a), "{to_a}");
        assert!((0..1000).all(|rollout| first(rollout) != "http://c/v1"));
    }

    #[test]
    fn what_keeps_failing_comes_last_until_it_does_well() {
        let models = models(vec![entry("m", "a"), entry("m", "b")]);
        let first = models.route("m", &HeaderMap::new(), "r")[0].backend.clone();
        for _ in 0..TOO_MANY {
            assert_eq!(models.route("m", &HeaderMap::new(), "r")[0].backend.label(), first.label());
            first.did_badly();
        }
        assert_ne!(models.route("m", &HeaderMap::new(), "r")[0].backend.label(), first.label());
        first.did_well();
        assert_eq!(models.route("m", &HeaderMap::new(), "r")[0].backend.label(), first.label());
    }

    #[test]
    fn state_is_kept_for_what_stays_on_the_list() {
        let before = models(vec![entry("m", "a"), entry("m", "b")]);
        let after = Models::new(ModelList::new(vec![entry("m", "b"), entry("m", "c")]), &before).unwrap();
        assert!(Arc::ptr_eq(&before.backends[1], &after.backends[0]));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let refused = |entry: ModelEntry| Backend::new(entry).unwrap_err().to_string();
        assert!(refused(ModelEntry::new("m", "ftp://h")).contains("url"));
        let error = refused(ModelEntry::new("m", "http://u:secret@h/v1"));
        assert!(error.contains("url") && !error.contains("secret"), "{error}");
        assert!(refused(ModelEntry { weight: -1.0, ..entry("m", "h") }).contains("weight"));
        assert!(refused(ModelEntry { timeout: 0.0, ..entry("m", "h") }).contains("timeout"));
        assert!(refused(entry("a*b*", "h")).contains("name"));
        let headers = [("no name".to_owned(), String::new())].into();
        assert!(refused(ModelEntry { headers, ..entry("m", "h") }).contains("headers"));
        assert!(
            refused(ModelEntry { max_concurrency: Some(0), ..entry("m", "h") }).contains("max_concurrency")
        );
    }
}
