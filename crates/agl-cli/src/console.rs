//! What the command says, and where.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use tracing_subscriber::EnvFilter;

use crate::args::{LogFormat, LogLevel};
use crate::error::Error;

/// One line on standard output, seen at once even through a pipe.
pub(crate) fn say(line: impl Display) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|source| Error::System { what: "cannot write to standard output", source })
}

/// One line on standard error that is no error, beside data on standard output.
pub(crate) fn note(line: impl Display) {
    // Nobody has to read it.
    let _ = writeln!(std::io::stderr().lock(), "agl: {line}");
}

/// Whether standard error holds JSON objects and nothing else.
static JSON: AtomicBool = AtomicBool::new(false);

/// One line on standard error.
pub(crate) fn complain(error: &Error) {
    if JSON.load(Ordering::Relaxed) {
        tracing::error!("{error}");
        return;
    }
    let line = error.to_string().replace('\n', " ");
    // If nobody reads standard error, the exit code has to do.
    let _ = writeln!(std::io::stderr().lock(), "agl: {line}");
}

/// Sends what our own crates log at `level`, and warnings of others, to standard error.
pub(crate) fn start_logging(level: LogLevel, format: LogFormat) {
    let own = match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warning => "warn",
        LogLevel::Error => "error",
    };
    let others = if level == LogLevel::Error { "error" } else { "warn" };
    let crates = [
        "agl_cli",
        "agl_client",
        "agl_gateway",
        "agl_otlp",
        "agl_rl",
        "agl_runner",
        "agl_server",
        "agl_store",
    ];
    let directives = crates.iter().fold(others.to_owned(), |text, name| format!("{text},{name}={own}"));
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(EnvFilter::new(directives)).with_writer(std::io::stderr);
    // Fails where the program around us logs already, which is fine.
    match format {
        LogFormat::Text => {
            let _ = subscriber.with_ansi(std::io::stderr().is_terminal()).try_init();
        }
        LogFormat::Json => {
            let json = subscriber.json().flatten_event(true).with_current_span(false).with_span_list(false);
            if json.try_init().is_ok() {
                JSON.store(true, Ordering::Relaxed);
                std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
            }
        }
    }
}
