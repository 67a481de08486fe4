//! Where figures go: to the screen, into a JSON file, and between two lines of a page.

use std::path::Path;

use serde::Serialize;

use crate::Outcome;

const END: &str = "<!-- end of tables -->";

pub(crate) fn print(tables: &str) {
    println!("{tables}");
}

/// Writes `NAME.json`, and the tables of `NAME.md`, which has to be there with a place for them.
pub(crate) fn write(folder: &Path, name: &str, report: &impl Serialize, tables: &str) -> Outcome<()> {
    let begin = format!("<!-- tables: written by make bench-{name} -->");
    std::fs::write(folder.join(format!("{name}.json")), serde_json::to_string_pretty(report)? + "\n")?;
    let page = folder.join(format!("{name}.md"));
    let text = std::fs::read_to_string(&page)?;
    let places = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = places.ok_or_else(|| format!("{} has no place for tables", page.display()))?;
    std::fs::write(&page, format!("{before}{begin}\n\n{tables}\n{END}{after}"))?;
    Ok(())
}
