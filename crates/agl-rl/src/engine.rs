//! The engine: one worker thread that runs all requests together, token by token.

use crate::error::{Error, Result};
use crate::load::{ModelFiles, resolve};
use crate::sampling::{Sampling, TokenOutput};
use crate::scheduler::Scheduler;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// How an engine is set up. The default suits a small machine.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Name the model is served under; the file's name if absent.
    pub model_name: Option<String>,
    /// Threads that compute; all processors if absent.
    pub threads: Option<usize>,
    /// Longest sequence (prompt and answer) in tokens; the model's own limit if absent.
    pub max_context: Option<usize>,
    /// Tokens whose keys and values are kept; about 1 GiB of them if absent. At least one sequence
    /// of full length.
    pub cache_tokens: Option<usize>,
    /// Sequences that run at once; 64 if absent. Others wait.
    pub max_batch: Option<usize>,
    /// Prompt tokens that are read between two tokens of running answers; 128 if absent.
    pub prefill_chunk: Option<usize>,
    /// Requests that may wait; 1024 if absent. More are refused.
    pub max_waiting: Option<usize>,
    /// Folder that models are fetched to, see [`crate::pull::cache_dir`].
    pub cache_dir: Option<PathBuf>,
}

/// What to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// The prompt's token ids; at least one.
    pub prompt: Vec<u32>,
    /// Number of answers; the prompt is read once for all.
    pub n: usize,
    /// Longest answer in tokens; what the context leaves if absent.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Makes the answers repeatable; random if absent.
    pub seed: Option<u64>,
    /// Texts that end an answer; they are not part of its text (their tokens are reported).
    pub stop: Vec<String>,
    /// Goes on after the model's own end token.
    pub ignore_eos: bool,
    /// How many of the likeliest tokens to report at each step.
    pub top_logprobs: usize,
}

impl GenerateRequest {
    /// One sampled answer of unlimited length.
    #[must_use]
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            n: 1,
            max_tokens: None,
            sampling: Sampling::default(),
            seed: None,
            stop: Vec::new(),
            ignore_eos: false,
            top_logprobs: 0,
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it with this token.
    EndToken(u32),
    /// This stop string appeared.
    StopString(String),
    /// `max_tokens` or the context is used up.
    Length,
}

/// What a running request reports.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An answer has one more token.
    Token {
        /// Which answer, from 0.
        choice: usize,
        /// The token.
        output: TokenOutput,
        /// The text that can be shown since the last token; may be empty.
        text: String,
    },
    /// An answer is complete.
    Finished {
        /// Which answer, from 0.
        choice: usize,
        /// Why.
        finish: Finish,
        /// Text that was held back until now; may be empty.
        text: String,
    },
    /// The request failed, nothing more follows.
    Failed(String),
}

/// A running request. Dropping it cancels the request.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::UnboundedReceiver<Event>,
    unfinished: usize,
}

impl Generation {
    /// The next event; `None` after the last answer's [`Event::Finished`].
    ///
    /// # Errors
    /// [`Error::Stopped`] if the engine was shut down or failed.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        if self.unfinished == 0 {
            return Ok(None);
        }
        match self.events.recv().await {
            Some(Event::Failed(reason)) => {
                tracing::error!(%reason, "generation failed");
                Err(Error::Stopped)
            }
            Some(event) => {
                if matches!(event, Event::Finished { .. }) {
                    self.unfinished -= 1;
                }
                Ok(Some(event))
            }
            None => Err(Error::Stopped),
        }
    }

    /// Waits for all answers.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the engine was shut down or failed.
    pub async fn collect(mut self) -> Result<Vec<Answer>> {
        let mut answers = vec![Answer::default(); self.unfinished];
        while let Some(event) = self.next().await? {
            match event {
                Event::Token { choice, output, text } => {
                    answers[choice].tokens.push(output);
                    answers[choice].text.push_str(&text);
                }
                Event::Finished { choice, finish, text } => {
                    answers[choice].text.push_str(&text);
                    answers[choice].finish = finish;
                }
                Event::Failed(_) => {}
            }
        }
        Ok(answers)
    }
}

/// A complete answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its tokens, with the one that ended it.
    pub tokens: Vec<TokenOutput>,
    /// Its text, without special tokens and stop strings.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

impl Default for Answer {
    fn default() -> Self {
        Self { tokens: Vec::new(), text: String::new(), finish: Finish::Length }
    }
}

/// A loaded model that answers. Cheap to clone; the worker ends with the last clone.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    max_context: usize,
    max_batch: usize,
    max_waiting: usize,
    vocab_size: usize,
    waiting: Arc<AtomicUsize>,
    /// `None` while being dropped: the worker ends when it is closed.
    jobs: Option<mpsc::UnboundedSender<Job>>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

/// A request on its way to the worker.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: GenerateRequest,
    pub(crate) seed: u64,
    pub(crate) max_tokens: usize,
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.jobs = None;
        let worker = self.worker.get_mut().map_or_else(|poisoned| poisoned.into_inner().take(), Option::take);
        // Requests that still run lose their receiver's engine; the worker cancels them.
        if let Some(worker) = worker
            && worker.join().is_err()
        {
            tracing::error!("the engine's worker panicked");
        }
    }
}

impl Engine {
    /// Loads a model: a `.gguf` file, a directory in Hugging Face's layout, or a known name, which
    /// is fetched if need be. Blocks.
    ///
    /// # Errors
    /// What [`crate::load::resolve`] and [`ModelFiles::load`] answer, and [`Error::Option`].
    pub fn load(model: &str, options: &EngineOptions) -> Result<Self> {
        let path = resolve(model, options.cache_dir.as_deref())?;
        let mut files = ModelFiles::load(&path)?;
        if crate::pull::KNOWN_MODELS.contains(&model) {
            model.clone_into(&mut files.name);
        }
        Self::new(files, options)
    }

    /// Starts the worker for a loaded model.
    ///
    /// # Errors
    /// [`Error::Option`] for an option out of range, [`Error::NotAModel`] for a chat template that
    /// does not compile.
    pub fn new(files: ModelFiles, options: &EngineOptions) -> Result<Self> {
        let config = files.model.config().clone();
        let positive = |name: &'static str, value: Option<usize>, default: usize| match value {
            Some(0) => Err(Error::Option { name, reason: "must be at least 1".into() }),
            other => Ok(other.unwrap_or(default)),
        };
        let max_context = positive("max-context", options.max_context, config.context_length)?;
        if max_context > config.context_length {
            let reason = format!("{max_context} is more than the model's {} tokens", config.context_length);
            return Err(Error::Option { name: "max-context", reason });
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = positive("threads", options.threads, processors)?;
        let max_batch = positive("max-batch", options.max_batch, 64)?;
        let prefill_chunk = positive("prefill-chunk", options.prefill_chunk, 128)?;
        let max_waiting = positive("max-waiting", options.max_waiting, 1024)?;
        let bytes_per_token = config.layers * config.kv_heads * config.head_dim * 2 * size_of::<f32>();
        let affordable = ((1 << 30) / bytes_per_token).min(1 << 20);
        let cache_tokens = positive("cache-tokens", options.cache_tokens, affordable)?.max(max_context);

        let name = options.model_name.clone().unwrap_or(files.name);
        let template = ChatTemplate::new(
            files.chat_template.as_deref(),
            &files.bos_token,
            &files.eos_token,
            &files.tokenizer,
        )
        .map_err(|reason| Error::not_a_model(&name, reason))?;
        let tokenizer = Arc::new(files.tokenizer);
        let (jobs, inbox) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let scheduler = Scheduler::new(
            files.model,
            tokenizer.clone(),
            files.end_tokens,
            crate::scheduler::Limits { cache_tokens, max_batch, prefill_chunk },
            inbox,
            waiting.clone(),
        );
        let worker = std::thread::Builder::new()
            .name("agl-engine".into())
            .spawn(move || scheduler.run(threads))
            .map_err(|e| Error::Option { name: "threads", reason: format!("can't start a thread: {e}") })?;
        Ok(Self {
            shared: Arc::new(Shared {
                name,
                tokenizer,
                template,
                max_context,
                max_batch,
                max_waiting,
                vocab_size: config.vocab_size,
                waiting,
                jobs: Some(jobs),
                worker: Mutex::new(Some(worker)),
            }),
        })
    }

    /// The name the model is served under.
    #[must_use]
    pub fn model_name(&self) -> &str {
        &self.shared.name
    }

    /// Longest sequence (prompt and answer) in tokens.
    #[must_use]
    pub fn max_context(&self) -> usize {
        self.shared.max_context
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.shared.tokenizer
    }

    /// The model's chat template.
    #[must_use]
    pub fn template(&self) -> &ChatTemplate {
        &self.shared.template
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::BadRequest`] naming the field, [`Error::QueueFull`], or [`Error::Stopped`].
    pub fn submit(&self, request: GenerateRequest) -> Result<Generation> {
        let shared = &self.shared;
        let max_tokens = self.check(&request)?;
        if shared.waiting.load(Ordering::Relaxed) >= shared.max_waiting {
            return Err(Error::QueueFull(shared.max_waiting));
        }
        let (events, receiver) = mpsc::unbounded_channel();
        let unfinished = request.n;
        let seed = request.seed.unwrap_or_else(rand::random);
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        let job = Job { request, seed, max_tokens, events };
        shared.jobs.as_ref().ok_or(Error::Stopped)?.send(job).map_err(|_| Error::Stopped)?;
        Ok(Generation { events: receiver, unfinished })
    }

    /// Generates all answers to a request.
    ///
    /// # Errors
    /// As [`Self::submit`] and [`Generation::collect`].
    pub async fn generate(&self, request: GenerateRequest) -> Result<Vec<Answer>> {
        self.submit(request)?.collect().await
    }

    /// The longest answer that a request allows, in tokens.
    fn check(&self, request: &GenerateRequest) -> Result<usize> {
        let limit = self.shared.max_context;
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(Error::bad_request("prompt", "the prompt must hold at least one token"));
        }
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= self.shared.vocab_size) {
            return Err(Error::bad_request("prompt", format!("token id {id} is out of vocabulary")));
        }
        if request.n == 0 || request.n > self.shared.max_batch {
            let most = self.shared.max_batch;
            return Err(Error::bad_request(
                "n",
                format!("n must be between 1 and {most}, got {}", request.n),
            ));
        }
        let Sampling { temperature, top_p, .. } = request.sampling;
        if !(temperature.is_finite() && temperature >= 0.0) {
            let message = format!("temperature must be non-negative, got {temperature}");
            return Err(Error::bad_request("temperature", message));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::bad_request("top_p", format!("top_p must be in (0, 1], got {top_p}")));
        }
        if request.max_tokens == Some(0) {
            return Err(Error::bad_request("max_tokens", "max_tokens must be at least 1, got 0"));
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(Error::bad_request("stop", "stop must not hold an empty string"));
        }
        let room = limit.saturating_sub(prompt);
        let wanted = request.max_tokens.unwrap_or(room);
        if room == 0 || wanted > room {
            let asked = match request.max_tokens {
                Some(wanted) => format!(
                    "you requested {} tokens ({prompt} in the messages, {wanted} in the completion)",
                    prompt + wanted
                ),
                None => {
                    format!("your messages resulted in {prompt} tokens, which leaves none for the completion")
                }
            };
            return Err(Error::bad_request(
                "max_tokens",
                format!(
                    "This model's maximum context length is {limit} tokens. However, {asked}. Please reduce the length of the messages or completion."
                ),
            ));
        }
        Ok(wanted)
    }
}
