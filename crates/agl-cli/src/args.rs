use std::ffi::OsString;
use std::path::PathBuf;

use agl_types::{RolloutMode, RolloutStatus};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Agent Lightning: trains agents as they are.
#[derive(Debug, Parser)]
#[command(name = "agl", version, about, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serves a store: the queue of tasks, and everything that agents record.
    Store(Box<StoreOptions>),
    /// Serves a gateway: passes calls of models on, and records them in a store elsewhere.
    Gateway(Box<GatewayServeOptions>),
    /// Serves a store and a gateway on one port.
    Serve(Box<ServeOptions>),
    /// Runs any program once a task, as a rollout: its model calls are captured, and its answers judged.
    Run(Box<RunOptions>),
    /// Asks a model server what it can do, and says what to do about what it can't.
    Doctor(DoctorOptions),
    /// Has a store give out no more tasks; what is being worked on goes on.
    Pause(ServedStore),
    /// Has a store give out tasks again.
    Resume(ServedStore),
    /// Looks after the file of a store.
    #[command(subcommand)]
    Db(DbCommand),
    /// Serves or fetches a language model.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Writes training data out of a store.
    Export(Box<ExportCommand>),
    /// Reads other people's records into a store, as rollouts that have succeeded.
    Import(ImportCommand),
}

/// A store to read from or write to.
#[derive(Debug, Args)]
pub(crate) struct StoreAddress {
    /// The store: the URL of a server, or the file of the sqlite backend, which no server may have open.
    #[arg(long, value_name = "URL|FILE", default_value = "http://127.0.0.1:4747")]
    pub(crate) store: String,

    #[command(flatten)]
    pub(crate) key: KeyOptions,
}

#[derive(Debug, Args)]
pub(crate) struct ExportCommand {
    /// What to write.
    pub(crate) kind: ExportKind,

    #[command(flatten)]
    pub(crate) store: StoreAddress,

    /// File to write; standard output if there is none. With --format npy, the folder to write.
    #[arg(long, short, value_name = "FILE", required_if_eq("format", "npy"))]
    pub(crate) out: Option<PathBuf>,

    /// Form of the file.
    #[arg(long, default_value = "jsonl")]
    pub(crate) format: ExportFormat,

    /// File for the account of what was left out, and why, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) filter: FilterOptions,

    #[command(flatten)]
    pub(crate) training: TrainingArguments,
}

/// Of which rollouts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which rollouts")]
pub(crate) struct FilterOptions {
    /// Id of a rollout; may be given several times.
    #[arg(long = "rollout", value_name = "ID")]
    pub(crate) rollouts: Vec<String>,

    /// Mode (train, val, test); may be given several times.
    #[arg(long, value_parser = word_of::<RolloutMode>)]
    pub(crate) mode: Vec<RolloutMode>,

    /// Status (succeeded, failed, …); may be given several times [default: every one that has ended].
    #[arg(long, value_parser = word_of::<RolloutStatus>)]
    pub(crate) status: Vec<RolloutStatus>,

    /// Least final reward.
    #[arg(long, value_name = "REWARD", allow_negative_numbers = true)]
    pub(crate) min_reward: Option<f64>,

    /// Greatest final reward.
    #[arg(long, value_name = "REWARD", allow_negative_numbers = true)]
    pub(crate) max_reward: Option<f64>,

    /// Created at this time or later, in seconds since 1970.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<f64>,

    /// Created before this time, in seconds since 1970.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<f64>,
}

/// How rollouts become training data.
#[derive(Debug, Args)]
#[command(next_help_heading = "Training data")]
pub(crate) struct TrainingArguments {
    /// Agents that are wanted: a name, a glob, re:EXPRESSION, or one of these after role:; may be given several times.
    #[arg(long = "agent", value_name = "PATTERN")]
    pub(crate) agents: Vec<String>,

    /// Agents that are not wanted; may be given several times.
    #[arg(long = "not-agent", value_name = "PATTERN")]
    pub(crate) not_agents: Vec<String>,

    /// Most tokens of a row; longer sequences are cut between calls.
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub(crate) max_length: Option<usize>,

    /// How rewards become advantages.
    #[arg(long, value_name = "ESTIMATOR", default_value = "none")]
    pub(crate) advantages: AdvantageKind,

    /// Key of a rollout's metadata that says which group it is in.
    #[arg(long, value_name = "KEY")]
    pub(crate) group_by: Option<String>,

    /// Write failed and unjudged rollouts too.
    #[arg(long)]
    pub(crate) all_outcomes: bool,

    /// By how much the better conversation of a pair must have earned more.
    #[arg(long, value_name = "REWARD", default_value_t = 0.0)]
    pub(crate) margin: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportKind {
    /// Prompt, response and reward of every call.
    Triplets,
    /// Token ids of prompt and response, and reward, of every call.
    Transitions,
    /// Sequences of tokens to train on.
    Trajectories,
    /// Conversations to fine-tune on.
    Messages,
    /// Pairs of conversations, one better than the other.
    Pairs,
    /// Whole rollouts in the Agent Trajectory Interchange Format.
    Atif,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// One JSON object a line.
    Jsonl,
    /// Apache Parquet.
    Parquet,
    /// A stream in Apache Arrow's IPC format.
    Arrow,
    /// A folder of NumPy's files, one for each column.
    Npy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AdvantageKind {
    /// No advantages.
    None,
    /// Less the group's mean, over its standard deviation.
    Grpo,
    /// Less the group's mean.
    DrGrpo,
    /// Less the mean of the others of the group.
    Rloo,
    /// Less the batch's mean, over its standard deviation.
    ReinforcePlusPlus,
    /// Less the group's mean, over the batch's standard deviation.
    ReinforcePlusPlusBaseline,
}

#[derive(Debug, Args)]
pub(crate) struct ImportCommand {
    /// File to read, or - for standard input.
    pub(crate) file: PathBuf,

    #[command(flatten)]
    pub(crate) store: StoreAddress,

    /// What the file holds.
    #[arg(long)]
    pub(crate) format: ImportKind,

    /// Mode of the rollouts (train, val, test).
    #[arg(long, value_parser = word_of::<RolloutMode>)]
    pub(crate) mode: Option<RolloutMode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportKind {
    /// OTLP traces: protobuf, JSON, or a JSON object a line.
    Otlp,
    /// Requests and responses of OpenAI's chat API, one pair a line.
    OpenaiLog,
    /// Conversations, one a line.
    Chat,
}

/// A word of the store's own, such as a status.
fn word_of<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    T::deserialize(serde::de::value::StrDeserializer::new(text))
        .map_err(|error: serde::de::value::Error| error.to_string())
}

/// Where a server listens, and what it tells about itself.
#[derive(Debug, Args)]
pub(crate) struct ServerOptions {
    /// Address to listen on; 0.0.0.0 lets other machines in.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,

    /// What to log, on standard error.
    #[arg(long, default_value = "info", ignore_case = true)]
    pub(crate) log_level: LogLevel,

    /// How to write the log: for people, or one JSON object a line.
    #[arg(long, default_value = "text")]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(crate) struct StoreOptions {
    #[command(flatten)]
    pub(crate) server: ServerOptions,

    /// Port to listen on; 0 picks a free one, which is printed.
    #[arg(long, default_value_t = 4747)]
    pub(crate) port: u16,

    /// Takes OTLP over gRPC too, on this address; its host is that of the server unless it names one.
    #[cfg(feature = "grpc")]
    #[arg(long, value_name = "[HOST:]PORT", num_args = 0..=1, default_missing_value = "4317")]
    pub(crate) otlp_grpc: Option<Address>,

    /// Where everything is kept.
    #[arg(long, default_value = "sqlite")]
    pub(crate) backend: Backend,

    /// File of the sqlite backend, made if there is none [default: agl.db].
    #[arg(long, value_name = "FILE")]
    pub(crate) path: Option<PathBuf>,

    /// What an answered request survives, with the sqlite backend.
    #[arg(long, default_value = "normal")]
    pub(crate) sync: SyncMode,

    #[command(flatten)]
    pub(crate) access: AccessOptions,

    #[command(flatten)]
    pub(crate) limits: LimitOptions,

    #[command(flatten)]
    pub(crate) retention: RetentionOptions,

    /// Origin whose web pages may call the server, or * for all; may be given several times.
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors_origin: Vec<String>,

    /// Taken because 0.3 has it.
    #[arg(long = "n-workers", value_name = "COUNT", hide = true, value_parser = one_worker)]
    pub(crate) _n_workers: Option<()>,

    /// Taken because 0.3 has it: metrics are always there.
    #[arg(long = "tracker", value_name = "KIND", num_args = 1.., hide = true, value_parser = ["prometheus", "console"])]
    pub(crate) _tracker: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    #[command(flatten)]
    pub(crate) store: StoreOptions,

    #[command(flatten)]
    pub(crate) gateway: GatewayOptions,
}

#[derive(Debug, Args)]
pub(crate) struct GatewayServeOptions {
    #[command(flatten)]
    pub(crate) server: ServerOptions,

    /// Port to listen on; 0 picks a free one, which is printed.
    #[arg(long, default_value_t = 4748)]
    pub(crate) port: u16,

    /// The store that calls are recorded in.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:4747")]
    pub(crate) store: String,

    #[command(flatten)]
    pub(crate) gateway: GatewayOptions,

    #[command(flatten)]
    pub(crate) access: AccessOptions,

    #[command(flatten)]
    pub(crate) limits: LimitOptions,
}

/// What a gateway passes on, and what it keeps.
#[derive(Debug, Args)]
#[command(next_help_heading = "Gateway")]
pub(crate) struct GatewayOptions {
    /// TOML file that says who answers for which model; SIGHUP reads it again [default: the models that are
    /// registered with the store].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// When a call is recorded.
    #[arg(long, default_value = "durable")]
    pub(crate) capture: Capture,

    /// Whether agents get to see the token ids and log-probs that are captured [default: on the paths that name a
    /// rollout].
    #[arg(long, value_name = "WHETHER", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) expose_token_ids: Option<bool>,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorOptions {
    /// The base URL of the server, as an SDK takes it: as a rule it ends in /v1.
    pub(crate) url: String,

    /// The environment variable that has the server's key.
    #[arg(long, value_name = "VARIABLE", default_value = "OPENAI_API_KEY")]
    pub(crate) key_env: String,

    /// The model to ask [default: the first that it lists].
    #[arg(long)]
    pub(crate) model: Option<String>,

    /// Print one JSON object a finding in place of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// File of tasks, one JSON object a line; `id` and `mode` (train, val or test) are known keys. - is standard
    /// input.
    #[arg(long, value_name = "FILE")]
    pub(crate) tasks: PathBuf,

    /// How many times each task is run.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = at_least_one)]
    pub(crate) n: usize,

    /// How many programs run at once [default: one a processor].
    #[arg(long, value_name = "COUNT", value_parser = at_least_one)]
    pub(crate) workers: Option<usize>,

    /// How often a run is tried that ends badly, the first time included.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_attempts: u32,

    /// How long one run may take, in seconds or with m, h or d; then it is killed with all that it started [default: as
    /// long as it likes].
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub(crate) timeout: Option<f64>,

    /// What a run is worth: `exact` or `contains` compare its trimmed output with what the task expects,
    /// `regex:PATTERN` looks for a pattern in it, and anything else is a command that gets `{task, stdout, stderr,
    /// exit_code}` on standard input and prints a number or `{"reward": …, "feedback": …}`.
    #[arg(long, value_name = "HOW")]
    pub(crate) reward: Option<String>,

    /// The key of a task that says what is expected.
    #[arg(long, value_name = "KEY", default_value = "expected")]
    pub(crate) expected_key: String,

    /// Let programs set their own reward (POST to AGL_EVENT_URL).
    #[arg(long)]
    pub(crate) agent_may_reward: bool,

    /// Record what happens inside of Python programs too (agents, chains, tools), where the package is installed that
    /// this command is of.
    #[arg(long)]
    pub(crate) instrument: bool,

    /// The model server that all calls go to: an OpenAI-compatible base URL.
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "server"])]
    pub(crate) upstream: Option<String>,

    /// TOML file that says who answers for which model.
    #[arg(long, value_name = "FILE", conflicts_with = "server")]
    pub(crate) config: Option<PathBuf>,

    /// File of the store that everything is kept in, made if there is none.
    #[arg(long, value_name = "FILE", default_value = "agl.db", conflicts_with = "server")]
    pub(crate) path: PathBuf,

    /// Use the store and gateway of a running `agl serve`, whose key is taken from AGL_KEY.
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<String>,

    /// Print one JSON object a rollout in place of the table.
    #[arg(long)]
    pub(crate) json: bool,

    /// What to log, on standard error.
    #[arg(long, default_value = "warning", ignore_case = true)]
    pub(crate) log_level: LogLevel,

    /// The program and its arguments, after --.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Capture {
    /// Before the last byte of its answer leaves.
    Durable,
    /// After it: faster, and lost if the gateway is killed just then.
    Async,
}

/// A store that is served somewhere.
#[derive(Debug, Args)]
pub(crate) struct ServedStore {
    /// URL of the store.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:4747")]
    pub(crate) server: String,

    #[command(flatten)]
    pub(crate) key: KeyOptions,
}

/// A key.
#[derive(Debug, Args)]
pub(crate) struct KeyOptions {
    /// Key that clients have to send. On the command line others on this machine can see it: better use the
    /// variable, or --key-file.
    #[arg(long, env = agl_types::ApiKey::VARIABLE, hide_env_values = true)]
    pub(crate) key: Option<String>,

    /// File that the key is in.
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    pub(crate) key_file: Option<PathBuf>,
}

/// A port, on a host or on the usual one.
#[cfg(feature = "grpc")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
}

#[cfg(feature = "grpc")]
impl std::str::FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (Some(host.trim_start_matches('[').trim_end_matches(']')), port),
            None => (None, text),
        };
        let port = port.parse().map_err(|_| "write it as PORT or HOST:PORT, e.g. 4317")?;
        Ok(Self { host: host.map(str::to_owned), port })
    }
}

/// Who is let in, and over what.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessOptions {
    #[command(flatten)]
    pub(crate) key: KeyOptions,

    /// Listen on an address that other machines reach without asking them for a key.
    #[arg(long)]
    pub(crate) insecure: bool,

    /// Speak TLS, with this certificate (PEM), followed by those between it and its authority.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM).
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// How much is taken on at once.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitOptions {
    /// Largest body of a request, in bytes or with K, M or G.
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = size)]
    pub(crate) max_body: usize,

    /// Connections that may be open; further ones wait.
    #[arg(long, value_name = "COUNT", default_value_t = 8192, value_parser = at_least_one)]
    pub(crate) max_connections: usize,

    /// Requests that may be under way; further ones are answered 503.
    #[arg(long, value_name = "COUNT", default_value_t = 1024, value_parser = at_least_one)]
    pub(crate) max_requests: usize,

    /// Requests that may wait for something to happen, beside those under way.
    #[arg(long, value_name = "COUNT", default_value_t = 4096, value_parser = at_least_one)]
    pub(crate) max_waits: usize,

    /// Seconds that requests under way may take to finish when the server is told to stop.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) drain: u64,
}

/// What is forgotten by itself. Rollouts, attempts and resources always stay.
#[derive(Debug, Args)]
#[command(next_help_heading = "Retention")]
pub(crate) struct RetentionOptions {
    /// How long spans are kept after the end of their rollout, in seconds or with m, h or d [default: for ever].
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub(crate) keep_spans_for: Option<f64>,

    /// How large the sqlite backend's file may become, in bytes or with K, M or G. Beyond it, the spans go of those
    /// rollouts that ended first [default: no limit].
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub(crate) max_bytes: Option<usize>,
}

/// A time in seconds, or in minutes, hours or days.
fn seconds(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.char_indices().next_back() {
        Some((index, 's')) => (&text[..index], 1.0),
        Some((index, 'm')) => (&text[..index], 60.0),
        Some((index, 'h')) => (&text[..index], 3_600.0),
        Some((index, 'd')) => (&text[..index], 86_400.0),
        _ => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number * unit),
        _ => Err("write it as a number of seconds, or with m, h or d: 90, 15m, 7d".to_owned()),
    }
}

/// A number of bytes, where K, M and G stand for powers of 1024.
fn size(text: &str) -> Result<usize, String> {
    let (digits, power) = match text.char_indices().next_back() {
        Some((index, unit)) if unit.is_ascii_alphabetic() => {
            let power =
                "KMG".find(unit.to_ascii_uppercase()).ok_or_else(|| format!("{unit} is none of K, M, G"))?;
            (&text[..index], power + 1)
        }
        _ => (text, 0),
    };
    let count: usize = digits.parse().map_err(|error| format!("{error}"))?;
    let bytes = count.checked_mul(1 << (10 * power));
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "it has to be between 1 and what memory can hold".to_owned())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it has to be 1 at least".to_owned()),
        Ok(count) => Ok(count),
        Err(error) => Err(error.to_string()),
    }
}

fn one_worker(text: &str) -> Result<(), &'static str> {
    if text == "1" { Ok(()) } else { Err("one process serves all: leave it out") }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// In memory: gone when the server ends.
    Memory,
    /// In one SQLite file: still there afterwards.
    Sqlite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SyncMode {
    /// The end of the server, SIGKILL included.
    Normal,
    /// Power loss too, at the price of waiting for the disk.
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    Debug,
    Info,
    Warning,
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line of text.
    Text,
    /// A JSON object with timestamp, level, target, message and fields.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DbCommand {
    /// Looks for damage, and for what contradicts itself; a server may go on meanwhile.
    Check(DbFile),
    /// Copies the file as it is at one moment, while a server may go on.
    Backup {
        #[command(flatten)]
        db: DbFile,
        /// File to make; it must not be there yet.
        to: PathBuf,
    },
    /// Gives back the room of what was removed. No server may have the file open.
    Vacuum(DbFile),
    /// Brings the file up to the newest schema, as every server does when it opens it.
    Migrate(DbFile),
}

#[derive(Debug, Args)]
pub(crate) struct DbFile {
    /// File of the sqlite backend.
    pub(crate) file: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Serves a language model over the OpenAI API, on the processor. It asks nobody for a key.
    Serve(ModelServeOptions),
    /// Fetches a model into the cache, once, and prints where it is.
    Pull(ModelPullOptions),
}

#[derive(Debug, Args)]
pub(crate) struct ModelServeOptions {
    #[command(flatten)]
    pub(crate) server: ServerOptions,

    /// Port to listen on; 0 picks a free one, which is printed.
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,

    /// A .gguf file, a folder in Hugging Face's layout, or the name of a model to fetch (smollm2).
    #[arg(long)]
    pub(crate) model: String,

    /// Name that clients ask for [default: that of the file].
    #[arg(long, value_name = "NAME")]
    pub(crate) model_name: Option<String>,

    /// Threads that compute [default: all processors].
    #[arg(long)]
    pub(crate) threads: Option<usize>,

    /// Longest sequence (prompt and answer) in tokens [default: the model's own limit].
    #[arg(long, value_name = "TOKENS")]
    pub(crate) max_context: Option<usize>,

    /// Sequences that run at once; others wait [default: 64].
    #[arg(long, value_name = "SEQUENCES")]
    pub(crate) max_batch: Option<usize>,

    #[command(flatten)]
    pub(crate) cache: CacheOptions,
}

#[derive(Debug, Args)]
pub(crate) struct ModelPullOptions {
    /// The model to fetch.
    #[arg(value_parser = agl_rl::pull::KNOWN_MODELS.to_vec())]
    pub(crate) model: String,

    #[command(flatten)]
    pub(crate) cache: CacheOptions,
}

#[derive(Debug, Args)]
pub(crate) struct CacheOptions {
    /// Folder that models are kept in [default: agentlightning in the user's cache folder].
    #[arg(long, value_name = "FOLDER", env = agl_rl::pull::CACHE_DIR_VARIABLE)]
    pub(crate) cache_dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_store_is_private_and_durable_by_default() {
        let Command::Store(options) = Arguments::parse_from(["agl", "store"]).command else {
            panic!("a store was asked for")
        };
        assert_eq!((options.server.host.as_str(), options.port), ("127.0.0.1", 4747));
        assert_eq!((options.backend, options.sync), (Backend::Sqlite, SyncMode::Normal));
        assert_eq!(options.server.log_level, LogLevel::Info);
    }

    #[cfg(feature = "grpc")]
    #[test]
    fn grpc_has_its_usual_port_and_the_servers_host() {
        let asked = |arguments: &[&str]| {
            let line = ["agl", "store"].iter().chain(arguments);
            let Command::Store(options) = Arguments::parse_from(line).command else { panic!("a store") };
            options.otlp_grpc.map(|address| (address.host, address.port))
        };
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&["--otlp-grpc"]), Some((None, 4317)));
        assert_eq!(asked(&["--otlp-grpc", "0", "--port", "1"]), Some((None, 0)));
        assert_eq!(asked(&["--otlp-grpc", "[::1]:9"]), Some((Some("::1".to_owned()), 9)));
        assert!(Arguments::try_parse_from(["agl", "store", "--otlp-grpc", "here"]).is_err());
    }

    #[test]
    fn what_0_3_asks_for_is_taken() {
        let line = ["agl", "store", "--tracker", "prometheus", "console", "--n-workers", "1", "--port", "1"];
        let Command::Store(options) = Arguments::parse_from(line).command else { panic!("a store") };
        assert_eq!(options.port, 1);
        for line in [["agl", "store", "--tracker", "statsd"], ["agl", "store", "--backend", "mongo"]] {
            assert!(Arguments::try_parse_from(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, expected) in [("90", 90.0), ("1.5m", 90.0), ("2h", 7_200.0), ("7d", 604_800.0), ("0", 0.0)]
        {
            assert_eq!(seconds(text), Ok(expected));
        }
        for text in ["", "d", "-1", "1w", "NaN", "inf"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("1"), Ok(1));
        assert_eq!(size("3k"), Ok(3 << 10));
        assert_eq!(size("256M"), Ok(256 << 20));
        assert_eq!(size("2G"), Ok(2 << 30));
        for text in ["", "0", "M", "1T", "1.5M", "-1", "99999999999G", "9 M"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn log_levels_are_also_taken_in_capitals() {
        let Command::Store(options) =
            Arguments::parse_from(["agl", "store", "--log-level", "WARNING"]).command
        else {
            panic!("a store was asked for")
        };
        assert_eq!(options.server.log_level, LogLevel::Warning);
    }
}
