//! Whatever the facade offers comes with an example, which `cargo test` runs.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::path::{Path, PathBuf};

/// The names that lib.rs offers, but for whole crates and macros of others.
fn offered() -> Vec<String> {
    let source = include_str!("../src/lib.rs");
    let statements = source.split("pub use ").skip(1).filter_map(|rest| rest.split(';').next());
    let mut names = Vec::new();
    for statement in
        statements.filter(|statement| !statement.contains(" as ") && !statement.contains("async_trait"))
    {
        let (_, items) = statement.split_once("::").unwrap();
        let items = items.trim_start_matches('{').trim_end_matches('}');
        names.extend(items.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned));
    }
    names
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The comments above the definition of `name`; none if `source` does not define it.
fn documentation(source: &str, name: &str) -> Option<String> {
    let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
    let is_name = |rest: &str| {
        rest.strip_prefix(name)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    let kinds = ["struct ", "enum ", "trait ", "type ", "fn ", "async fn "];
    let defines = |line: &str| {
        let of_kind = |kind: &str| {
            line.strip_prefix("pub ").and_then(|line| line.strip_prefix(kind)).is_some_and(is_name)
        };
        // The macro that makes the enums of the wire leaves out the keywords.
        kinds.into_iter().any(of_kind)
            || (is_name(line) && line.ends_with(" {") && source.contains("wire_enum!"))
    };
    let place = lines.iter().position(|line| defines(line))?;
    let above =
        lines[..place].iter().rev().take_while(|line| line.starts_with("//") || line.starts_with('#'));
    Some(above.copied().collect::<Vec<_>>().join("\n"))
}

#[test]
fn every_public_item_has_an_example() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for name in ["agentlightning", "agl-algorithm", "agl-runner", "agl-store", "agl-trace", "agl-types"] {
        sources(&crates.join(name).join("src"), &mut files);
    }
    let texts: Vec<String> = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let names = offered();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let documented: Vec<String> = texts.iter().filter_map(|text| documentation(text, &name)).collect();
        assert!(!documented.is_empty(), "{name} is defined nowhere");
        assert!(documented.iter().any(|text| text.contains("```")), "{name} has no example");
    }
}
