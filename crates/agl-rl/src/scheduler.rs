//! The worker's loop: which rows go through the model next, and what becomes of the results.

use crate::engine::{Event, Finish, Job};
use crate::kernels::attention::{KvPages, PAGE, Segment};
use crate::model::{Batch, Llama};
use crate::ops::with_slice;
use crate::pages::PagePool;
use crate::sampling::{TokenOutput, sample, uniform};
use crate::text::AnswerText;
use crate::tokenizer::Tokenizer;
use rayon::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

/// Numbers that bound the worker's appetite.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Positions in the cache.
    pub(crate) cache_tokens: usize,
    /// Sequences that run at once.
    pub(crate) max_batch: usize,
    /// Prompt rows in one step beside running answers.
    pub(crate) prefill_chunk: usize,
}

/// One answer in the making.
#[derive(Debug)]
struct Sequence {
    job: Arc<Job>,
    choice: usize,
    /// Answers that branch off after the prompt: their first tokens come from the same logits.
    siblings: usize,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// How many of them are in the cache.
    cached: usize,
    pages: Vec<u32>,
    text: AnswerText,
    /// Whether it left the engine's count of waiting requests.
    counted_out: bool,
}

impl Sequence {
    fn pending(&self) -> usize {
        self.tokens.len() - self.cached
    }

    fn generated(&self) -> usize {
        self.tokens.len() - self.job.request.prompt.len()
    }
}

/// The state of the worker.
pub(crate) struct Scheduler {
    model: Llama,
    tokenizer: Arc<Tokenizer>,
    end_tokens: Vec<u32>,
    limits: Limits,
    inbox: mpsc::UnboundedReceiver<Job>,
    /// Requests submitted and not yet running.
    waiting_count: Arc<AtomicUsize>,
    cache: Arc<RwLock<KvPages>>,
    pool: PagePool,
    waiting: VecDeque<Sequence>,
    /// In order of arrival.
    running: Vec<Sequence>,
}

impl Scheduler {
    pub(crate) fn new(
        model: Llama,
        tokenizer: Arc<Tokenizer>,
        end_tokens: Vec<u32>,
        limits: Limits,
        inbox: mpsc::UnboundedReceiver<Job>,
        waiting_count: Arc<AtomicUsize>,
    ) -> Self {
        let cache = Arc::new(RwLock::new(model.new_cache()));
        Self {
            pool: PagePool::new(limits.cache_tokens.div_ceil(PAGE)),
            model,
            tokenizer,
            end_tokens,
            limits,
            inbox,
            waiting_count,
            cache,
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Serves requests until the engine is dropped.
    pub(crate) fn run(mut self, threads: usize) {
        // This thread is one of the pool's, so that small work never changes threads.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build();
        if let Err(error) = &pool {
            tracing::warn!(%error, "no thread pool of our own; using the shared one");
        }
        while self.take_jobs() {
            self.forget_cancelled();
            self.admit();
            if self.running.is_empty() {
                continue;
            }
            if let Err(error) = self.step() {
                tracing::error!(%error, "a step of the model failed");
                for sequence in std::mem::take(&mut self.running) {
                    let _ = sequence.job.events.send(Event::Failed(error.to_string()));
                    self.release(&sequence.pages);
                }
            }
        }
    }

    /// Takes what has arrived; waits if there is nothing else to do. False: no more will come.
    fn take_jobs(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            match self.inbox.blocking_recv() {
                Some(job) => self.queue(job),
                None => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(job) => self.queue(job),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn queue(&mut self, job: Job) {
        self.waiting.push_back(Sequence {
            choice: 0,
            siblings: job.request.n - 1,
            tokens: job.request.prompt.clone(),
            cached: 0,
            pages: Vec::new(),
            text: AnswerText::default(),
            counted_out: false,
            job: Arc::new(job),
        });
    }

    /// Drops the sequences whose receiver has gone.
    fn forget_cancelled(&mut self) {
        let (gone, running) =
            std::mem::take(&mut self.running).into_iter().partition(|s| s.job.events.is_closed());
        self.running = running;
        for sequence in gone {
            self.release(&sequence.pages);
        }
        let waiting_count = &self.waiting_count;
        self.waiting.retain(|sequence| {
            let closed = sequence.job.events.is_closed();
            if closed && !sequence.counted_out {
                waiting_count.fetch_sub(1, Ordering::Relaxed);
            }
            !closed
        });
    }

    fn release(&mut self, pages: &[u32]) {
        // The last page first: a beginning without its end is of more use than the reverse.
        for &page in pages.iter().rev() {
            self.pool.release(page);
        }
    }

    /// Lets waiting sequences run while there is room.
    fn admit(&mut self) {
        while self.running.len() < self.limits.max_batch
            && let Some(next) = self.waiting.front()
        {
            // Beside others, a sequence starts only if all it has so far fits, and a page more.
            if !self.running.is_empty() && self.pool.available() < next.tokens.len() / PAGE + 2 {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            if !sequence.counted_out {
                sequence.counted_out = true;
                self.waiting_count.fetch_sub(1, Ordering::Relaxed);
            }
            // The last token is always computed, for its logits.
            sequence.pages = self.pool.find(&sequence.tokens[..sequence.tokens.len() - 1]);
            sequence.cached = sequence.pages.len() * PAGE;
            self.running.push(sequence);
        }
    }

    /// Gives a running sequence pages for `count` more tokens. If there are none, the youngest
    /// sequence goes back to the queue; false if that was the one itself.
    fn reserve(&mut self, index: usize, count: usize) -> bool {
        let needed = (self.running[index].cached + count).div_ceil(PAGE);
        while self.running[index].pages.len() < needed {
            if let Some(page) = self.pool.take() {
                self.running[index].pages.push(page);
                continue;
            }
            let Some(mut youngest) = self.running.pop() else { return false };
            self.release(&std::mem::take(&mut youngest.pages));
            youngest.cached = 0;
            self.waiting.push_front(youngest);
            if index >= self.running.len() {
                return false;
            }
        }
        true
    }

    /// How many tokens of each running sequence go through the model in this step: one of each
    /// answer, and a chunk of the prompts.
    fn plan(&mut self) -> Vec<usize> {
        let answering = self.running.iter().filter(|s| s.pending() == 1).count();
        // Nobody waits for the next token while only prompts are read.
        let chunk = if answering == 0 { self.limits.prefill_chunk * 4 } else { self.limits.prefill_chunk };
        let mut left = chunk;
        let mut plan = Vec::new();
        let mut index = 0;
        while index < self.running.len() {
            let pending = self.running[index].pending();
            let count = if pending == 1 { 1 } else { pending.min(left) };
            if !self.reserve(index, count) {
                break;
            }
            if pending > 1 {
                left -= count;
            }
            plan.push(count);
            index += 1;
        }
        plan.truncate(self.running.len());
        plan
    }

    /// One pass through the model.
    fn step(&mut self) -> candle_core::Result<()> {
        let plan = self.plan();
        let mut batch = Batch { tokens: Vec::new(), segments: Vec::new(), wanted: Vec::new() };
        // The running sequences whose next token this step decides.
        let mut deciding = Vec::new();
        for (index, &count) in plan.iter().enumerate() {
            if count == 0 {
                continue;
            }
            let sequence = &self.running[index];
            let first = batch.tokens.len();
            batch.tokens.extend_from_slice(&sequence.tokens[sequence.cached..sequence.cached + count]);
            let rows = first..batch.tokens.len();
            if count == sequence.pending() {
                batch.wanted.push(rows.end as u32 - 1);
                deciding.push(index);
            }
            batch.segments.push(Segment { rows, start: sequence.cached, pages: sequence.pages.clone() });
        }
        if batch.tokens.is_empty() {
            return Ok(());
        }
        self.cache.write().unwrap_or_else(PoisonError::into_inner).grow(self.pool.len());
        let logits = self.model.step(batch, &self.cache)?;
        for (sequence, &count) in self.running.iter_mut().zip(&plan) {
            let full_before = sequence.cached / PAGE;
            sequence.cached += count;
            if sequence.cached / PAGE > full_before {
                self.pool.remember(&sequence.tokens[..sequence.cached], &sequence.pages);
            }
        }
        for &index in &deciding {
            self.branch(index);
        }
        let decided = self.sample(&logits, &deciding)?;
        self.publish(decided);
        Ok(())
    }

    /// After the prompt was read once, lets the other answers go on from it.
    fn branch(&mut self, index: usize) {
        let siblings = std::mem::take(&mut self.running[index].siblings);
        for choice in 1..=siblings {
            let leader = &self.running[index];
            let mut sibling = Sequence {
                job: leader.job.clone(),
                choice,
                siblings: 0,
                tokens: leader.tokens.clone(),
                cached: leader.cached,
                pages: Vec::new(),
                text: AnswerText::default(),
                counted_out: true,
            };
            let full = leader.cached / PAGE;
            let pages = leader.pages.clone();
            // A page that will be written to can't be shared.
            let own =
                if leader.cached.is_multiple_of(PAGE) { Some(None) } else { self.pool.take().map(Some) };
            if let Some(own) = own {
                for &page in &pages[..full] {
                    self.pool.share(page);
                }
                sibling.pages = pages[..full].to_vec();
                if let Some(page) = own {
                    let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
                    cache.grow(self.pool.len());
                    cache.copy(pages[full], page);
                    sibling.pages.push(page);
                }
            } else {
                // No room: it reads the prompt again later.
                sibling.cached = 0;
            }
            self.running.push(sibling);
        }
    }

    /// Chooses the next token of each deciding sequence and of those that have just branched off.
    fn sample(
        &self,
        logits: &candle_core::Tensor,
        deciding: &[usize],
    ) -> candle_core::Result<Vec<(usize, TokenOutput)>> {
        let vocab = self.model.config().vocab_size;
        let mut rows: Vec<(usize, usize)> = Vec::new();
        for (row, &index) in deciding.iter().enumerate() {
            let leader = &self.running[index];
            let fresh = leader.choice == 0 && leader.generated() == 0;
            for (other, sequence) in self.running.iter().enumerate() {
                let branched = fresh && Arc::ptr_eq(&sequence.job, &leader.job) && sequence.generated() == 0;
                if other == index || branched {
                    rows.push((row, other));
                }
            }
        }
        with_slice(logits, |data| {
            let choose = |&(row, index): &(usize, usize)| {
                let sequence = &self.running[index];
                let request = &sequence.job.request;
                let random = uniform(sequence.job.seed, sequence.choice, sequence.generated());
                let logits = &data[row * vocab..(row + 1) * vocab];
                (index, sample(logits, request.sampling, random, request.top_logprobs))
            };
            if rows.len() * vocab < 20_000 {
                rows.iter().map(choose).collect()
            } else {
                rows.par_iter().map(choose).collect()
            }
        })
    }

    /// Adds the chosen tokens to their sequences, tells the listeners, and lets go of the
    /// sequences that are complete.
    fn publish(&mut self, decided: Vec<(usize, TokenOutput)>) {
        let mut complete = vec![false; self.running.len()];
        for (index, output) in decided {
            let sequence = &mut self.running[index];
            let job = sequence.job.clone();
            let token = output.token;
            sequence.tokens.push(token);
            let ended = !job.request.ignore_eos && self.end_tokens.contains(&token);
            let bytes: &[u8] = if ended { &[] } else { self.tokenizer.token_bytes(token) };
            let (text, stop) = sequence.text.push(bytes, &job.request.stop);
            let finish = if ended {
                Some(Finish::EndToken(token))
            } else if let Some(stop) = stop {
                Some(Finish::StopString(stop.to_owned()))
            } else if sequence.generated() >= job.max_tokens {
                Some(Finish::Length)
            } else {
                None
            };
            // A failed send means that nobody listens; the next step forgets the sequence.
            let _ = job.events.send(Event::Token { choice: sequence.choice, output, text });
            if let Some(finish) = finish {
                let rest = if matches!(finish, Finish::StopString(_)) {
                    String::new()
                } else {
                    sequence.text.finish()
                };
                let _ = job.events.send(Event::Finished { choice: sequence.choice, finish, text: rest });
                complete[index] = true;
            }
        }
        let mut flags = complete.into_iter();
        let (done, running) = std::mem::take(&mut self.running)
            .into_iter()
            .partition::<Vec<_>, _>(|_| flags.next() == Some(true));
        self.running = running;
        for sequence in done {
            self.release(&sequence.pages);
        }
    }
}
