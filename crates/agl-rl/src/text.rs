//! The text of an answer as it grows: whole characters only, and nothing at or after a stop string.

use crate::tokenizer::Detokenizer;

/// Turns tokens' bytes into text that may be shown.
#[derive(Debug, Clone, Default)]
pub(crate) struct AnswerText {
    detokenizer: Detokenizer,
    /// Text that might be the beginning of a stop string.
    held: String,
}

impl AnswerText {
    /// Adds a token's bytes. Gives the text that can be shown, and the stop string if one is
    /// complete; then nothing may follow.
    pub(crate) fn push<'s>(&mut self, bytes: &[u8], stops: &'s [String]) -> (String, Option<&'s str>) {
        let text = self.detokenizer.push(bytes);
        self.held.push_str(&text);
        let found =
            stops.iter().filter_map(|stop| Some((self.held.find(stop)?, stop))).min_by_key(|(at, _)| *at);
        if let Some((at, stop)) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let keep = stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// What is left when the answer ends otherwise.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&self.detokenizer.finish());
        text
    }
}

/// Length of the longest end of `text` that is a beginning of `marker`.
pub(crate) fn overlap(text: &str, marker: &str) -> usize {
    let candidates = marker.char_indices().map(|(at, _)| at).skip(1).filter(|&at| at <= text.len());
    candidates.filter(|&at| text.as_bytes().ends_with(&marker.as_bytes()[..at])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pieces: &[&str], stops: &[&str]) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut text = AnswerText::default();
        let mut shown = String::new();
        for piece in pieces {
            let (new, stop) = text.push(piece.as_bytes(), &stops);
            shown.push_str(&new);
            if let Some(stop) = stop {
                return (shown, Some(stop.to_owned()));
            }
        }
        shown.push_str(&text.finish());
        (shown, None)
    }

    #[test]
    fn stop_strings_may_be_spread_over_tokens() {
        assert_eq!(run(&["one tw", "o thr", "ee"], &["two"]), ("one ".into(), Some("two".into())));
        assert_eq!(run(&["ab", "ac"], &["abc"]), ("abac".into(), None));
        assert_eq!(run(&["a", "a", "b"], &["aab", "b"]), (String::new(), Some("aab".into())));
        assert_eq!(run(&["é", "–"], &["–x"]), ("é–".into(), None));
    }
}
