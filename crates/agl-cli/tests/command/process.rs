//! The command as a child process.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// `agl` with these arguments.
pub(crate) fn agl(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agl"));
    command.args(args).stdin(Stdio::null()).env_remove("AGL_CACHE_DIR").env_remove("AGL_KEY");
    command
}

/// Runs `agl` to its end.
pub(crate) fn output(args: &[&str]) -> Output {
    agl(args).output().unwrap()
}

/// A running `agl store`; killed when dropped.
#[derive(Debug)]
pub(crate) struct Served {
    child: Child,
    /// The line that it printed when it was ready.
    pub(crate) line: String,
    /// The URL in that line.
    pub(crate) url: String,
}

impl Served {
    /// Starts `agl store` on a database; port 0 picks one.
    pub(crate) fn sqlite(path: &Path, port: u16) -> Self {
        let path = path.to_str().unwrap();
        Self::start(&["store", "--backend", "sqlite", "--path", path, "--port", &port.to_string()])
    }

    pub(crate) fn start(args: &[&str]) -> Self {
        Self::run(agl(args))
    }

    /// Starts this command, which has to print a line with a URL.
    pub(crate) fn run(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut complaint = String::new();
            child.stderr.as_mut().unwrap().read_to_string(&mut complaint).unwrap();
            assert!(!line.is_empty(), "{command:?} did not start: {complaint}");
        }
        let url = line.split_whitespace().find(|word| word.starts_with("http")).unwrap().to_owned();
        Self { child, line, url }
    }

    /// Sends SIGTERM, and returns what was on standard error at the end.
    pub(crate) fn log(mut self) -> String {
        self.signal("TERM");
        let mut log = String::new();
        self.child.stderr.as_mut().unwrap().read_to_string(&mut log).unwrap();
        assert_eq!(self.ended().code(), Some(0), "{log}");
        log
    }

    /// SIGKILL: nothing is finished, nothing is tidied up.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// How large files may get that it writes to, in bytes or `unlimited`; larger ones it can't write to.
    pub(crate) fn limit_files(&self, bytes: &str) {
        let mut prlimit = Command::new("prlimit");
        prlimit.arg(format!("--pid={}", self.child.id())).arg(format!("--fsize={bytes}:unlimited"));
        assert!(prlimit.status().unwrap().success());
    }

    /// Waits for the end, which has to come within a minute.
    pub(crate) fn ended(mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
