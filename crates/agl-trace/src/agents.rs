//! Whose calls are wanted: patterns of agents' names and roles, and priorities between them.

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Whose calls are wanted.
///
/// A call belongs to the innermost agent around it. It is wanted when a rule of `include` matches that agent (or
/// `include` is empty) and none of `exclude` does. Calls outside any agent have no name: only an empty `include` wants
/// them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentOptions {
    /// Agents that are wanted; all of them when empty.
    pub include: Vec<AgentRule>,
    /// Agents that are not.
    pub exclude: Vec<AgentRule>,
}

/// Agents of one kind.
///
/// In JSON a rule may also be its pattern alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "RuleForm")]
pub struct AgentRule {
    /// `writer` is that name, `writ*` a glob, `re:^wri` a regular expression that is found anywhere in the name, `exact:*`
    /// and `glob:a` say which is meant. `role:` before it asks for the agent's role instead: `role:re:^plan`.
    pub matches: String,
    /// What calls of these agents are labelled with, e.g. the model to train with them; by default the agent's name.
    pub label: Option<String>,
    /// Of several rules that match, that with the highest priority labels the call; of equals, the first.
    pub priority: i32,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RuleForm {
    Pattern(String),
    Whole {
        matches: String,
        #[serde(default)]
        label: Option<String>,
        #[serde(default)]
        priority: i32,
    },
}

impl From<RuleForm> for AgentRule {
    fn from(form: RuleForm) -> Self {
        match form {
            RuleForm::Pattern(matches) => Self { matches, ..Self::default() },
            RuleForm::Whole { matches, label, priority } => Self { matches, label, priority },
        }
    }
}

/// [`AgentOptions`], ready to be asked.
#[derive(Debug)]
pub struct AgentSelection {
    include: Vec<Compiled>,
    exclude: Vec<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    pattern: Pattern,
    of_role: bool,
    label: Option<String>,
    priority: i32,
}

#[derive(Debug)]
enum Pattern {
    Exact(String),
    Regex(Regex),
}

impl AgentSelection {
    /// Compiles the options.
    ///
    /// # Errors
    /// [`Error::Pattern`] naming the list, for a rule that is no regular expression, or empty.
    pub fn new(options: &AgentOptions) -> Result<Self, Error> {
        let compile = |field: &'static str, rules: &[AgentRule]| {
            rules.iter().map(|rule| Compiled::new(field, rule)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            include: compile("agents.include", &options.include)?,
            exclude: compile("agents.exclude", &options.exclude)?,
        })
    }

    /// The label of an agent's calls: `Some` when they are wanted. Without a label in the rules it is the agent's name,
    /// none outside any agent.
    #[must_use]
    pub fn label<'s>(&'s self, name: Option<&'s str>, role: Option<&'s str>) -> Option<Option<&'s str>> {
        if self.exclude.iter().any(|rule| rule.is_met_by(name, role)) {
            return None;
        }
        if self.include.is_empty() {
            return Some(name);
        }
        let met = self.include.iter().filter(|rule| rule.is_met_by(name, role));
        // `max_by_key` keeps the last of equals.
        let rule = met.rev().max_by_key(|rule| rule.priority)?;
        Some(rule.label.as_deref().or(name))
    }
}

impl Compiled {
    fn new(field: &'static str, rule: &AgentRule) -> Result<Self, Error> {
        let (of_role, text) = match rule.matches.strip_prefix("role:") {
            Some(text) => (true, text),
            None => (false, rule.matches.as_str()),
        };
        let bad = |message: String| Error::Pattern { field, message };
        let regex = |text: &str| Regex::new(text).map(Pattern::Regex).map_err(|error| bad(error.to_string()));
        let pattern = if let Some(text) = text.strip_prefix("re:") {
            regex(text)?
        } else if let Some(text) = text.strip_prefix("exact:") {
            Pattern::Exact(text.to_owned())
        } else if let Some(text) = text.strip_prefix("glob:") {
            regex(&glob(text))?
        } else if text.is_empty() {
            return Err(bad("it is empty, which no agent's name is".to_owned()));
        } else if text.contains(['*', '?', '[']) {
            regex(&glob(text))?
        } else {
            Pattern::Exact(text.to_owned())
        };
        Ok(Self { pattern, of_role, label: rule.label.clone(), priority: rule.priority })
    }

    fn is_met_by(&self, name: Option<&str>, role: Option<&str>) -> bool {
        let Some(text) = (if self.of_role { role } else { name }) else { return false };
        match &self.pattern {
            Pattern::Exact(exact) => exact == text,
            // A match that takes too much backtracking counts as none.
            Pattern::Regex(regex) => regex.is_match(text).unwrap_or(false),
        }
    }
}

/// A shell's pattern (`*`, `?`, `[abc]`, `[!abc]`) as a regular expression of the whole text.
fn glob(pattern: &str) -> String {
    let mut regex = String::from(r"(?s)\A");
    let mut rest = pattern.chars();
    while let Some(character) = rest.next() {
        match character {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '[' => {
                let set: String = rest.clone().take_while(|&c| c != ']').collect();
                let is_closed = rest.clone().nth(set.chars().count()) == Some(']');
                if set.is_empty() || !is_closed {
                    regex.push_str(r"\[");
                    continue;
                }
                rest.nth(set.chars().count());
                let (negation, set) = set.strip_prefix('!').map_or(("", set.as_str()), |set| ("^", set));
                let set =
                    set.replace('\\', r"\\").replace('[', r"\[").replace('^', r"\^").replace('&', r"\&");
                regex.push_str(&format!("[{negation}{set}]"));
            }
            other => regex.push_str(&fancy_regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    regex.push_str(r"\z");
    regex
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn label(options: serde_json::Value, name: Option<&str>, role: Option<&str>) -> Option<Option<String>> {
        let options: AgentOptions = serde_json::from_value(options).unwrap();
        let selection = AgentSelection::new(&options).unwrap();
        selection.label(name, role).map(|label| label.map(str::to_owned))
    }

    fn is_wanted(pattern: &str, name: &str) -> bool {
        label(json!({"include": [pattern]}), Some(name), Some("the role")).is_some()
    }

    #[test]
    fn names_are_matched_in_three_ways() {
        assert!(
            is_wanted("writer", "writer")
                && !is_wanted("writer", "writers")
                && !is_wanted("writer", "a writer")
        );
        assert!(is_wanted("writ*", "writer") && !is_wanted("writ*", "rewriter") && is_wanted("*", ""));
        assert!(is_wanted("re:rite", "writer") && !is_wanted("re:^rite", "writer"));
        assert!(is_wanted("exact:a*", "a*") && !is_wanted("exact:a*", "ab"));
        assert!(is_wanted("glob:a", "a") && is_wanted("a[bc]?", "abz") && !is_wanted("a[!bc]", "ab"));
        assert!(
            is_wanted("a[!bc]", "ad")
                && is_wanted("glob:a[", "a[")
                && is_wanted("a.b*", "a.b")
                && !is_wanted("a.b*", "axb")
        );
        assert!(
            is_wanted("role:the role", "x") && is_wanted("role:re:^the", "x") && !is_wanted("role:x", "x")
        );
    }

    #[test]
    fn lists_include_and_exclude() {
        assert_eq!(label(json!({}), None, None), Some(None));
        assert_eq!(label(json!({}), Some("a"), None), Some(Some("a".to_owned())));
        assert_eq!(label(json!({"include": ["a"]}), None, None), None);
        let options = json!({"include": ["a*"], "exclude": ["ab"]});
        assert_eq!(label(options.clone(), Some("ac"), None), Some(Some("ac".to_owned())));
        assert_eq!(label(options, Some("ab"), None), None);
    }

    #[test]
    fn the_highest_priority_labels_and_of_equals_the_first() {
        let options = json!({"include": [
            {"matches": "*", "label": "any"},
            {"matches": "a*", "label": "first", "priority": 1},
            {"matches": "ab", "label": "second", "priority": 1},
        ]});
        assert_eq!(label(options.clone(), Some("ab"), None), Some(Some("first".to_owned())));
        assert_eq!(label(options, Some("x"), None), Some(Some("any".to_owned())));
    }

    #[test]
    fn bad_patterns_name_their_list() {
        for (pattern, list) in
            [("re:(", "agents.include"), ("", "agents.include"), ("role:", "agents.include")]
        {
            let options: AgentOptions = serde_json::from_value(json!({"include": [pattern]})).unwrap();
            let error = AgentSelection::new(&options).unwrap_err();
            assert!(error.to_string().starts_with(list), "{error}");
        }
        assert!(serde_json::from_value::<AgentOptions>(json!({"includes": []})).is_err());
    }
}
