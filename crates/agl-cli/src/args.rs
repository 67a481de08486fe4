use std::path::PathBuf;

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
    /// Has a store give out no more tasks; what is being worked on goes on.
    Pause(StoreAddress),
    /// Has a store give out tasks again.
    Resume(StoreAddress),
    /// Looks after the file of a store.
    #[command(subcommand)]
    Db(DbCommand),
    /// Serves or fetches a language model.
    #[command(subcommand)]
    Model(ModelCommand),
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
}

/// A store that is served somewhere.
#[derive(Debug, Args)]
pub(crate) struct StoreAddress {
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
