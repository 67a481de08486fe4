//! Bad input: one clear line and an exit code.

use std::net::TcpListener;
use std::process::Output;

use crate::process::{Served, agl, output};

/// The one line that a failed command leaves on standard error.
pub(crate) fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(output.stdout.is_empty());
    assert_eq!(text.lines().count(), 1, "{text}");
    let line = text.strip_prefix("agl: ");
    line.unwrap_or_else(|| unreachable!("no prefix: {text}")).trim_end().to_owned()
}

#[test]
fn the_version_is_told() {
    let output = output(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("agl {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn arguments_that_make_no_sense_end_with_2() {
    for args in [
        &["store", "--backend", "paper"][..],
        &["store", "--port", "70000"],
        &["store", "--n-workers", "2"],
        &["store", "--tls-cert", "cert.pem"],
        &["store", "--key", "k", "--key-file", "key"],
        &["store", "--max-body", "lots"],
        &["store", "--max-requests", "0"],
        &["db"],
        &["db", "check"],
        &["sell"],
        &["model", "serve"],
        &["model", "pull", "gpt"],
        &[],
    ] {
        let output = output(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let line = complaint(&output(&["store", "--port", &port]));
    assert!(line.starts_with(&format!("cannot listen on 127.0.0.1:{port}: ")), "{line}");
    assert!(line.contains("in use") && line.contains("--port"), "{line}");
}

#[test]
fn a_database_that_is_not_ours_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("foreign.db");
    let connection = rusqlite::Connection::open(&foreign).unwrap();
    connection
        .execute_batch("create table recipes (name text); insert into recipes values ('soup')")
        .unwrap();
    drop(connection);
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "not a database at all, but long enough to be mistaken for one".repeat(100))
        .unwrap();

    for path in [&foreign, &text] {
        let before = std::fs::read(path).unwrap();
        let path_text = path.to_str().unwrap();
        let line = complaint(&output(&["store", "--backend", "sqlite", "--path", path_text, "--port", "0"]));
        assert!(line.contains(path_text), "{line}");
        assert_eq!(std::fs::read(path).unwrap(), before, "{path_text} was changed");
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 2, "nothing is left beside them");
}

#[test]
fn a_database_of_a_newer_schema_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agl.db");
    let served = Served::sqlite(&path, 0);
    served.signal("TERM");
    assert_eq!(served.ended().code(), Some(0));
    let connection = rusqlite::Connection::open(&path).unwrap();
    let version: i64 = connection.query_row("pragma user_version", [], |row| row.get(0)).unwrap();
    connection.pragma_update(None, "user_version", version + 1).unwrap();
    drop(connection);

    let path_text = path.to_str().unwrap();
    let line = complaint(&output(&["store", "--backend", "sqlite", "--path", path_text, "--port", "0"]));
    assert!(line.contains(path_text) && line.contains("newer"), "{line}");
}

#[test]
fn a_path_that_cannot_be_a_file_is_named() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let missing = outer.path().join("missing");
    for (path, named, words) in
        [(folder.clone(), &folder, "is a directory"), (missing.join("agl.db"), &missing, "does not exist")]
    {
        let line = complaint(&output(&["store", "--path", path.to_str().unwrap(), "--port", "0"]));
        assert!(line.contains(named.to_str().unwrap()) && line.contains(words), "{line}");
    }
    assert_eq!(outer.path().read_dir().unwrap().count(), 1, "nothing is made");
}

#[test]
fn an_origin_that_is_none_is_refused() {
    for origin in ["foo", "http://", "http://a/page"] {
        let line = complaint(&output(&["store", "--n-workers", "1", "--cors-origin", origin]));
        assert!(line.contains(origin), "{line}");
    }
}

#[test]
fn a_path_needs_the_sqlite_backend() {
    let line = complaint(&output(&["store", "--backend", "memory", "--path", "x.db", "--port", "0"]));
    assert!(line.contains("--backend sqlite"), "{line}");
}

#[test]
fn a_model_file_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, "this is no model").unwrap();
    for (path, words) in [(path.to_str().unwrap(), ""), ("missing/model.gguf", "no such file or folder")] {
        let line = complaint(&output(&["model", "serve", "--model", path, "--port", "0"]));
        assert!(line.contains(path) && line.contains(words), "{line}");
    }
}

#[test]
fn the_default_file_is_in_the_current_folder() {
    let folder = tempfile::tempdir().unwrap();
    let refused = agl(&["store", "--backend", "sqlite", "--port", "1", "--host", "256.0.0.1"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(folder.path().read_dir().unwrap().count(), 0, "nothing is made before the port is ours");
}
