//! Whose call it is, from the path that it comes on.

use agl_types::RolloutMode;
use percent_encoding::percent_decode_str;

/// A request's path, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address<'p> {
    pub(crate) whose: Whose,
    /// What is asked for, without a leading `/v1`: `chat/completions`.
    pub(crate) endpoint: &'p str,
}

/// Whom a path books a call to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Nobody in particular.
    Unsaid,
    /// An attempt, as 0.3 names it.
    Attempt { rollout_id: String, attempt_id: String },
    /// An attempt, as 1.0 names it.
    Controlled { rollout_id: String, attempt_id: String, mode: RolloutMode },
}

/// Takes a path apart; none when it is no path of ours.
pub(crate) fn parse(path: &str) -> Option<Address<'_>> {
    let path = path.strip_prefix('/')?;
    let (whose, rest) = if let Some(rest) = path.strip_prefix("proxy/rollout/") {
        let (rollout_id, rest) = segment(rest)?;
        let (attempt_id, rest) = segment(rest.strip_prefix("attempt/")?)?;
        let (mode, rest) = segment(rest.strip_prefix("mode/")?)?;
        let mode = RolloutMode::parse(&mode).filter(|mode| *mode != RolloutMode::Test)?;
        let rest = rest.strip_prefix("openai/").or_else(|| rest.strip_prefix("anthropic/")).unwrap_or(rest);
        (Whose::Controlled { rollout_id, attempt_id, mode }, rest)
    } else if let Some(rest) = path.strip_prefix("rollout/") {
        let (rollout_id, rest) = segment(rest)?;
        let (attempt_id, rest) = segment(rest.strip_prefix("attempt/")?)?;
        (Whose::Attempt { rollout_id, attempt_id }, rest)
    } else {
        (Whose::Unsaid, path)
    };
    let endpoint = rest.strip_prefix("v1/").unwrap_or(rest);
    Some(Address { whose, endpoint })
}

/// The first segment, decoded, and what follows it.
fn segment(path: &str) -> Option<(String, &str)> {
    let (segment, rest) = path.split_once('/').unwrap_or((path, ""));
    let decoded = percent_decode_str(segment).decode_utf8().ok()?;
    (!decoded.is_empty()).then(|| (decoded.into_owned(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(rollout: &str, attempt: &str) -> Whose {
        Whose::Attempt { rollout_id: rollout.to_owned(), attempt_id: attempt.to_owned() }
    }

    #[test]
    fn paths_of_both_contracts_say_whose_call_it_is() {
        let endpoint = "chat/completions";
        for tail in ["/v1/chat/completions", "/chat/completions"] {
            assert_eq!(parse(tail), Some(Address { whose: Whose::Unsaid, endpoint }));
            let path = format!("/rollout/ro%2D1/attempt/at-1{tail}");
            assert_eq!(parse(&path), Some(Address { whose: attempt("ro-1", "at-1"), endpoint }));
        }
        let path = "/proxy/rollout/r/attempt/0/mode/val/openai/v1/chat/completions";
        let whose = Whose::Controlled {
            rollout_id: "r".to_owned(),
            attempt_id: "0".to_owned(),
            mode: RolloutMode::Val,
        };
        assert_eq!(parse(path), Some(Address { whose, endpoint }));
    }

    #[test]
    fn what_is_not_whole_is_no_path_of_ours() {
        for path in [
            "",
            "x",
            "/rollout/r",
            "/rollout//attempt/a/v1/models",
            "/rollout/r/attempt//v1/models",
            "/proxy/rollout/r/attempt/0/mode/test/openai/v1/models",
            "/proxy/rollout/r/attempt/0/mode/x/v1/models",
            "/rollout/%ff/attempt/a/v1/models",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
        // A slash within an id stays within it.
        assert_eq!(parse("/rollout/a%2F..%2Fb/attempt/c/models").unwrap().whose, attempt("a/../b", "c"),);
    }
}
