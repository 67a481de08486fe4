//! What a run of a program is worth: by comparison with what was expected, or by a scorer's word.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use regex::Regex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::program::{Group, Ran, Tail};

/// How long a scorer may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// How a run is judged.
#[derive(Debug, Clone)]
pub enum Judge {
    /// 1 if standard output, trimmed, is what is expected, else 0.
    Exact,
    /// 1 if what is expected is in standard output, else 0.
    Contains,
    /// 1 if the pattern is found in standard output, trimmed, else 0.
    Regex(Regex),
    /// What a program says, run by the shell: it gets `{task, stdout, stderr, exit_code}` on standard input and prints a
    /// number, or `{"reward": …, "feedback": …}`.
    Scorer(String),
}

/// What was made of a run.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Verdict {
    /// What it is worth; none when nobody said.
    pub reward: Option<f64>,
    /// What else is to be said.
    #[serde(default)]
    pub feedback: Option<String>,
}

/// A run that could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// A pattern is none.
    #[error("the pattern of the reward makes no sense: {0}")]
    Pattern(#[from] regex::Error),
    /// There is nothing to compare with.
    #[error("the task says nothing about what is expected")]
    Nothing,
    /// The scorer could not be run.
    #[error("the scorer could not be run: {0}")]
    Start(#[from] io::Error),
    /// The scorer failed.
    #[error("the scorer {0}")]
    Failed(String),
}

impl Judge {
    /// Reads `exact`, `contains`, `regex:PATTERN`, or the command of a scorer.
    ///
    /// # Errors
    /// [`JudgeError::Pattern`].
    pub fn parse(text: &str) -> Result<Self, JudgeError> {
        Ok(match text {
            "exact" => Self::Exact,
            "contains" => Self::Contains,
            _ => match text.strip_prefix("regex:") {
                Some(pattern) => Self::Regex(Regex::new(pattern)?),
                None => Self::Scorer(text.to_owned()),
            },
        })
    }

    /// Judges a run. A scorer does not inherit the variables that are `hidden`.
    ///
    /// # Errors
    /// [`JudgeError`], in which case nothing is known about what it is worth.
    pub async fn judge(
        &self,
        task: &Value,
        expected: Option<&Value>,
        ran: &Ran,
        hidden: &[String],
    ) -> Result<Verdict, JudgeError> {
        let said = ran.stdout.trim();
        let wanted = || match expected {
            None => Err(JudgeError::Nothing),
            Some(Value::String(text)) => Ok(text.trim().to_owned()),
            Some(other) => Ok(other.to_string()),
        };
        let is_right = match self {
            Self::Exact => said == wanted()?,
            Self::Contains => said.contains(&wanted()?),
            Self::Regex(pattern) => pattern.is_match(said),
            Self::Scorer(command) => return score(command, task, ran, hidden).await,
        };
        Ok(Verdict { reward: Some(f64::from(u8::from(is_right))), feedback: None })
    }
}

async fn score(command: &str, task: &Value, ran: &Ran, hidden: &[String]) -> Result<Verdict, JudgeError> {
    let question =
        json!({"task": task, "stdout": ran.stdout, "stderr": ran.stderr, "exit_code": ran.exit_code});
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    shell.process_group(0);
    hidden.iter().for_each(|name| {
        shell.env_remove(name);
    });
    let mut group = Group::lead(shell.spawn()?);
    let (input, out, err) = (group.child.stdin.take(), group.child.stdout.take(), group.child.stderr.take());
    let told = tokio::spawn(async move {
        if let Some(mut input) = input {
            // It need not read what it is told.
            let _ = input.write_all(question.to_string().as_bytes()).await;
        }
    });
    let (out, err) = (Tail::of(out), Tail::of(err));
    let ended = tokio::time::timeout(PATIENCE, group.child.wait()).await;
    group.end();
    told.abort();
    let (out, err) = tokio::join!(out.read(), err.read());
    let status =
        ended.map_err(|_| JudgeError::Failed(format!("took longer than {} s", PATIENCE.as_secs())))??;
    if !status.success() {
        return Err(JudgeError::Failed(format!("ended with {status}: {}", err.trim())));
    }
    let odd =
        || JudgeError::Failed(format!("printed {:?}: a number is wanted, or {{\"reward\": …}}", out.trim()));
    let verdict = match serde_json::from_str(out.trim()).map_err(|_| odd())? {
        Value::Number(number) => Verdict { reward: number.as_f64(), feedback: None },
        object @ Value::Object(_) => serde_json::from_value(object).map_err(|_| odd())?,
        _ => return Err(odd()),
    };
    if verdict.reward.is_some_and(f64::is_finite) { Ok(verdict) } else { Err(odd()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(stdout: &str) -> Ran {
        Ran {
            exit_code: Some(0),
            signal: None,
            timed_out: false,
            stdout: stdout.to_owned(),
            stderr: String::new(),
        }
    }

    async fn reward(judge: &str, stdout: &str, expected: Option<Value>) -> Result<Verdict, JudgeError> {
        Judge::parse(judge)?.judge(&json!({"q": 1}), expected.as_ref(), &ran(stdout), &[]).await
    }

    #[tokio::test]
    async fn comparisons_are_made_on_what_is_left_without_blanks() {
        for (judge, stdout, expected, worth) in [
            ("exact", " 42\n", json!("42"), 1.0),
            ("exact", "42", json!(42), 1.0),
            ("exact", "421", json!("42"), 0.0),
            ("contains", "it is 42.", json!("42"), 1.0),
            ("contains", "it is 41.", json!("42"), 0.0),
            ("regex:^it is \\d+\\.$", "it is 41.\n", json!(null), 1.0),
            ("regex:^\\d+$", "it is 41.", json!(null), 0.0),
        ] {
            let expected = (!expected.is_null()).then_some(expected);
            assert_eq!(
                reward(judge, stdout, expected).await.unwrap().reward,
                Some(worth),
                "{judge} {stdout}"
            );
        }
        assert!(matches!(reward("exact", "x", None).await, Err(JudgeError::Nothing)));
        assert!(matches!(Judge::parse("regex:("), Err(JudgeError::Pattern(_))));
    }

    #[tokio::test]
    async fn a_scorer_is_told_all_and_believed_if_it_makes_sense() {
        let verdict = reward("cat >/dev/null; echo 0.5", "", None).await.unwrap();
        assert_eq!(verdict, Verdict { reward: Some(0.5), feedback: None });
        let command = r#"grep -q '"stdout":"hello"' && echo '{"reward": 1, "feedback": "well done"}'"#;
        let verdict = reward(command, "hello", None).await.unwrap();
        assert_eq!(verdict, Verdict { reward: Some(1.0), feedback: Some("well done".to_owned()) });
        for (command, part) in [
            ("echo much", "much"),
            ("echo oops >&2; exit 3", "oops"),
            ("echo '{}'", "reward"),
            ("echo true", "true"),
        ] {
            let error = reward(command, "", None).await.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
