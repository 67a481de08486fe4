use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// What can end a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot listen on {address}: {source}{}", hint(source))]
    Listen { address: String, source: io::Error },
    #[error(transparent)]
    Store(#[from] agl_store::Error),
    #[error(transparent)]
    Server(#[from] agl_server::Error),
    #[error(transparent)]
    Program(#[from] agl_runner::ProgramError),
    #[error(transparent)]
    Judge(#[from] agl_runner::JudgeError),
    #[error("cannot read the tasks in {}: {problem}", path.display())]
    Tasks { path: PathBuf, problem: String },
    #[error("the run was called off")]
    CalledOff,
    #[error(transparent)]
    Gateway(#[from] agl_gateway::Error),
    #[error(transparent)]
    Model(#[from] agl_rl::Error),
    #[error("cannot read the key in {}: {source}", path.display())]
    KeyFile { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Key(#[from] agl_types::ApiKeyError),
    #[error(
        "{address} can be reached from other machines: have them send a key (--key, --key-file or AGL_KEY), or let \
         everybody in with --insecure"
    )]
    Exposed { address: IpAddr },
    #[error("{} is not in order: {count} problems, listed above", path.display())]
    Broken { path: PathBuf, count: usize },
    #[error(transparent)]
    Data(#[from] agl_export::Error),
    #[error("cannot use {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "there is no store in {store}: name the URL of a server, such as http://127.0.0.1:4747, or a file that is there"
    )]
    NoStore { store: String },
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
    #[error("--{option} makes no sense with --backend memory, which has no file: use --backend sqlite")]
    NeedsSqlite { option: &'static str },
}

/// What to do about it.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; choose another --port, or 0 for any that is free",
        io::ErrorKind::PermissionDenied => "; choose a --port above 1023",
        _ => "",
    }
}
