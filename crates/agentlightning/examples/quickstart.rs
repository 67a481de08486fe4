//! Runs a quiz agent through its tasks in pure Rust: an embedded model, a durable store, several runners.
//!
//! ```text
//! cargo run -p agentlightning --example quickstart -- [--db FILE] [--runners N] [--tasks N] [--model NAME]
//! ```

#![expect(clippy::print_stdout, reason = "an example speaks to its reader")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use agentlightning::{
    Agent, BoxError, ChatModel, Counts, ModeSummary, Outcome, Progress, RolloutContext, RolloutReport,
    SqliteOptions, SqliteStore, Summary, Trainer, Triplet, async_trait,
};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};

/// Runs a quiz agent through its tasks, and keeps everything that happens in a database.
#[derive(Parser)]
struct Arguments {
    /// Where everything is kept.
    #[arg(long, default_value = "agl.db")]
    db: PathBuf,
    /// A model file, a folder, or a known name, which is fetched when it is not in the cache yet.
    #[arg(long, default_value = "smollm2")]
    model: String,
    /// How many rollouts run at the same time.
    #[arg(long, default_value_t = 4)]
    runners: usize,
    /// At most so many tasks of each dataset.
    #[arg(long)]
    tasks: Option<usize>,
}

/// A task of the quiz.
#[derive(Deserialize)]
struct Question {
    question: String,
    /// A text or a list of texts.
    answer: Value,
}

/// Asks the model, and when the reply rambles on asks once more for the bare answer.
struct QuizAgent {
    model: ChatModel,
}

const SYSTEM: &str = "You are a helpful assistant. Answer the question in a few words.";

#[async_trait]
impl Agent for QuizAgent {
    type Task = Question;
    type Resources = ();

    async fn rollout(&self, task: Question, (): (), context: &RolloutContext) -> Result<Outcome, BoxError> {
        let mut messages = vec![
            json!({"role": "system", "content": SYSTEM}),
            json!({"role": "user", "content": task.question}),
        ];
        let request = json!({"messages": messages, "max_tokens": 32, "temperature": 0.2});
        let mut reply = self.model.chat(context, request).await?;
        if reply["choices"][0]["finish_reason"] == "length" {
            messages.push(reply["choices"][0]["message"].clone());
            messages.push(json!({"role": "user", "content": "Say only the answer, in one or two words."}));
            let request = json!({"messages": messages, "max_tokens": 12, "temperature": 0.2});
            reply = self.model.chat(context, request).await?;
        }
        let answer = reply["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        Ok(Outcome::Reward(grade(answer, &task.answer)))
    }
}

/// 1.0 if the reply has an accepted answer (a text or a list of texts) in it as a whole word, else 0.0.
fn grade(reply: &str, accepted: &Value) -> f64 {
    let accepted: Vec<&str> = match accepted {
        Value::Array(answers) => answers.iter().filter_map(Value::as_str).collect(),
        answer => answer.as_str().into_iter().collect(),
    };
    f64::from(u8::from(accepted.iter().any(|answer| has_word(reply, answer))))
}

fn has_word(text: &str, word: &str) -> bool {
    let (text, word) = (text.to_lowercase(), word.to_lowercase());
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(&word).any(|(start, found)| {
        let before = text[..start].chars().next_back();
        let after = text[start + found.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// Draws the bar and keeps a few triplets to show.
#[derive(Clone)]
struct Watcher {
    bar: ProgressBar,
    samples: Arc<Mutex<Vec<Triplet>>>,
}

const SAMPLES: usize = 3;

impl Progress for Watcher {
    fn counted(&self, counts: &Counts) {
        self.bar.set_length(counts.planned);
        self.bar.set_position(counts.finished);
        let tokens = counts.prompt_tokens + counts.response_tokens;
        self.bar.set_message(format!(
            "{} spans · {} LLM calls · {tokens} tokens",
            counts.spans, counts.llm_calls
        ));
    }

    fn finished(&self, report: &RolloutReport) {
        if let Ok(mut samples) = self.samples.lock()
            && samples.len() < SAMPLES
        {
            samples.extend(report.triplets.last().cloned());
        }
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let arguments = Arguments::parse();
    let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart/tasks.jsonl");
    let tasks: Vec<Value> =
        std::fs::read_to_string(tasks)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let split = |name: &str| -> Vec<Value> {
        let of_split = tasks.iter().filter(|task| task["split"] == name).cloned();
        of_split.take(arguments.tasks.unwrap_or(usize::MAX)).collect()
    };
    let (train, val) = (split("train"), split("val"));

    println!("loading {} ...", arguments.model);
    let model = ChatModel::load(&arguments.model, agentlightning::rl::EngineOptions::default()).await?;
    let store = SqliteStore::open(&arguments.db, SqliteOptions::default())?;
    let style = "{elapsed:>4} {bar:40.cyan} {pos}/{len} rollouts · {msg}";
    let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template(style)?);
    let watcher = Watcher { bar: bar.clone(), samples: Arc::default() };
    let trainer = Trainer::builder()
        .agent(QuizAgent { model })
        .n_runners(arguments.runners)
        .store(Arc::new(store))
        .on_progress(watcher.clone())
        .build()?;

    let signal = trainer.signal().clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            signal.cancel();
        }
    });
    let summary = trainer.fit(train, val).await?;
    bar.finish();
    show(&summary, &watcher, &arguments.db);
    // 130 is what a shell reports for a program ended by Ctrl+C.
    Ok(if summary.stopped { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

fn show(summary: &Summary, watcher: &Watcher, db: &Path) {
    println!("\n{:<12}{:>10}{:>8}{:>11}{:>13}", "dataset", "succeeded", "failed", "cancelled", "mean reward");
    for (name, mode) in [("train", &summary.train), ("validation", &summary.val)] {
        let ModeSummary { succeeded, failed, cancelled, mean_reward, .. } = mode;
        let mean = mean_reward.map_or_else(|| "-".to_owned(), |mean| format!("{mean:.3}"));
        println!("{name:<12}{succeeded:>10}{failed:>8}{cancelled:>11}{mean:>13}");
    }
    let counts = &summary.counts;
    println!(
        "\n{} rollouts in {} attempts, {} spans, {} LLM calls, {} prompt and {} response tokens",
        counts.finished,
        counts.attempts,
        counts.spans,
        counts.llm_calls,
        counts.prompt_tokens,
        counts.response_tokens
    );
    if summary.stopped {
        println!("The run was interrupted; what had happened by then is kept.");
    }
    println!("\nSome of the triplets (prompt, response, reward):");
    for triplet in watcher.samples.lock().iter().flat_map(|samples| samples.iter()) {
        println!("  prompt   {} {}", token_ids(&triplet.prompt), last_content(&triplet.prompt));
        println!("  response {} {}", token_ids(&triplet.response), last_content(&triplet.response));
        println!(
            "  reward   {}\n",
            triplet.reward.map_or_else(|| "-".to_owned(), |reward| reward.to_string())
        );
    }
    println!("Everything is in {}. To look at it: agl store --path {}", db.display(), db.display());
}

fn last_content(side: &Value) -> String {
    let messages = side["raw_content"].as_array().map(Vec::as_slice).unwrap_or_default();
    messages.last().map_or_else(String::new, |message| message["content"].to_string())
}

/// The first few token ids and how many there are.
fn token_ids(side: &Value) -> String {
    let ids = side["token_ids"].as_array().map(Vec::as_slice).unwrap_or_default();
    let first: Vec<String> = ids.iter().take(5).map(ToString::to_string).collect();
    format!("[{}{}] ({})", first.join(", "), if ids.len() > 5 { ", ..." } else { "" }, ids.len())
}
