//! Calls merged into training rows: where a prompt begins with all the tokens of an earlier call, prompt and response
//! included, the two are one sequence.
//!
//! The calls of an attempt form a forest: each call continues the longest earlier sequence that its prompt begins with,
//! token for token, and of the same agent and model; several that continue one sequence fork it. A row is a path of the
//! forest. What the model did not sample there (prompts, tools' answers, what a sibling sampled) is masked, so every
//! sampled token is trained on once. Repeated calls are calls of their own.
//!
//! Sequences are found by the hash of their tokens (Karp and Rabin, "Efficient randomized pattern-matching algorithms",
//! 1987) and then compared, so that the merge takes time in proportion to the tokens, however many sequences begin alike.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::call::{LlmCall, TokenId};

/// How a token enters the hash of a sequence; any odd number with well mixed bits.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// One answer of one call, as tokens.
#[derive(Debug, Clone, Copy)]
pub struct Sampled<'c> {
    /// The prompt.
    pub prompt: &'c [TokenId],
    /// The answer.
    pub response: &'c [TokenId],
    /// The log-prob of each token of the answer; empty when they are not known.
    pub logprobs: &'c [f64],
    /// Only sequences with the same key are merged: that of agent and model.
    pub key: usize,
}

/// Where an answer is in its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The answer, by its place in the list given.
    pub sampled: usize,
    /// Where the masked tokens before it begin that no earlier answer of the sequence has.
    pub context: usize,
    /// Where its own tokens begin.
    pub start: usize,
    /// Where they end.
    pub end: usize,
}

/// Answers whose tokens make one sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sequence {
    /// All tokens.
    pub token_ids: Vec<TokenId>,
    /// The answers in it, in order; at least one.
    pub segments: Vec<Segment>,
    /// The sequence that this one forked off, if its first prompt begins with what another one continued differently.
    pub forked_from: Option<usize>,
}

/// Merges answers, in the order in which they were given, by exact prefix.
#[must_use]
pub fn merge(sampled: &[Sampled<'_>]) -> Vec<Sequence> {
    /// Sequences by the hash of their first tokens.
    type Ends = HashMap<u64, Vec<End>>;
    #[derive(Clone, Copy)]
    struct End {
        sequence: usize,
        segment: usize,
    }
    let mut sequences: Vec<Sequence> = Vec::new();
    // For each key, every place where an answer ends, by length.
    let mut ends: HashMap<usize, BTreeMap<usize, Ends>> = HashMap::new();
    let mut candidates: Vec<(usize, u64)> = Vec::new();
    for (index, call) in sampled.iter().enumerate() {
        let Sampled { prompt, response, key, .. } = *call;
        let ends = ends.entry(key).or_default();
        let mut hash = 0_u64;
        let mut hashed = 0;
        candidates.clear();
        for (&length, alike) in ends.range(..=prompt.len()) {
            hash = hash_on(hash, &prompt[hashed..length]);
            hashed = length;
            if alike.contains_key(&hash) {
                candidates.push((length, hash));
            }
        }
        // The longest first, so that as a rule one is compared.
        let longest = candidates.iter().rev().find_map(|(length, hash)| {
            let alike = ends.get(length)?.get(hash)?;
            let is_same = |end: &&End| sequences[end.sequence].token_ids[..*length] == prompt[..*length];
            let is_open = |end: &&End| sequences[end.sequence].segments.len() == end.segment + 1;
            // Of those that can still be continued, the first; else one to fork.
            alike.iter().filter(is_open).find(is_same).or_else(|| alike.iter().find(is_same)).copied()
        });
        hash = hash_on(hash, &prompt[hashed..]);
        hash = hash_on(hash, response);

        let length = prompt.len() + response.len();
        let sequence = match longest {
            Some(end) if sequences[end.sequence].segments.len() == end.segment + 1 => end.sequence,
            fork => {
                let forked_from = fork.map(|end| end.sequence);
                sequences.push(Sequence { forked_from, ..Sequence::default() });
                sequences.len() - 1
            }
        };
        let merged = &mut sequences[sequence];
        let context = merged.token_ids.len();
        merged.token_ids.reserve(length - context);
        merged.token_ids.extend_from_slice(&prompt[context..]);
        merged.token_ids.extend_from_slice(response);
        merged.segments.push(Segment { sampled: index, context, start: prompt.len(), end: length });
        let segment = merged.segments.len() - 1;
        ends.entry(length).or_default().entry(hash).or_default().push(End { sequence, segment });
    }
    sequences
}

/// A sequence of each answer by itself, without tokens of its own: they are those of its call.
pub(crate) fn each_alone(sampled: &[Sampled<'_>]) -> Vec<Sequence> {
    let alone = |(index, call): (usize, &Sampled<'_>)| {
        let (start, end) = (call.prompt.len(), call.prompt.len() + call.response.len());
        let segment = Segment { sampled: index, context: 0, start, end };
        Sequence { segments: vec![segment], ..Sequence::default() }
    };
    sampled.iter().enumerate().map(alone).collect()
}

impl Sequence {
    /// How many tokens it has.
    pub(crate) fn len(&self) -> usize {
        self.segments.last().map_or(0, |last| last.end)
    }

    /// Some of its tokens, in two parts.
    pub(crate) fn tokens<'s>(
        &'s self,
        sampled: &[Sampled<'s>],
        range: std::ops::Range<usize>,
    ) -> [&'s [TokenId]; 2] {
        match self.segments.as_slice() {
            [only] if self.token_ids.is_empty() => {
                let Sampled { prompt, response, .. } = sampled[only.sampled];
                let cut = prompt.len();
                let of_response = range.start.max(cut) - cut..range.end.max(cut) - cut;
                [&prompt[range.start.min(cut)..range.end.min(cut)], &response[of_response]]
            }
            _ => [&self.token_ids[range], &[]],
        }
    }
}

fn hash_on(hash: u64, tokens: &[TokenId]) -> u64 {
    // One more than the token, so that a token of zero counts too.
    tokens.iter().fold(hash, |hash, &token| hash.wrapping_mul(FACTOR).wrapping_add(u64::from(token) + 1))
}

/// A part of a sequence that fits into a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins in the sequence.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// The answers that are trained on, by their place among the sequence's segments.
    pub segments: std::ops::Range<usize>,
}

/// Cuts a sequence between calls into pieces of at most `max_length` tokens, each opening with as much of what came
/// before as fits. An answer that alone is longer is in no piece; the second list has those, by their place among the
/// segments.
#[must_use]
pub fn split(sequence: &Sequence, max_length: usize) -> (Vec<Piece>, Vec<usize>) {
    let segments = &sequence.segments;
    let mut pieces = Vec::new();
    let mut too_long = Vec::new();
    let mut first = 0;
    while let Some(opening) = segments.get(first) {
        if opening.end - opening.start > max_length {
            too_long.push(first);
            first += 1;
            continue;
        }
        // The first piece of a sequence begins where the sequence does if it can.
        let fits = |segment: &&Segment| {
            segment.end - opening.context <= max_length && segment.end - segment.start <= max_length
        };
        let count = segments[first..].iter().take_while(fits).count().max(1);
        let end = segments[first + count - 1].end;
        pieces.push(Piece { start: end.saturating_sub(max_length), end, segments: first..first + count });
        first += count;
    }
    (pieces, too_long)
}

/// Why a prompt that carries on a conversation does not begin with its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mismatch {
    /// The same words became other tokens.
    Retokenized,
    /// The same messages were laid out differently: special tokens, thoughts left out, tools' calls written anew.
    Template,
    /// Messages were cut away, from the front or out of the middle.
    Truncated,
    /// Something else.
    Other,
}

/// What a tokenizer knows, for telling mismatches apart; without one the messages have to do.
pub trait Vocabulary {
    /// The words that these tokens stand for.
    fn text(&self, token_ids: &[TokenId]) -> String;
    /// Whether a token is a special one, such as the start of a message.
    fn is_special(&self, token_id: TokenId) -> bool;
}

/// A call that carried on an earlier one whose tokens its prompt does not begin with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatched {
    /// The span of the call.
    pub span_id: String,
    /// The span of the call that it carries on.
    pub after: String,
    /// How many tokens the two have in common.
    pub common: usize,
    /// Why.
    pub kind: Mismatch,
}

/// Finds, among the calls before `calls[at]` that are of the same agent and model, the one that it carries on although its
/// prompt does not begin with that call's tokens; none when it carries on none, or does so exactly.
#[must_use]
pub fn mismatch(calls: &[&LlmCall], at: usize, vocabulary: Option<&dyn Vocabulary>) -> Option<Mismatched> {
    let call = calls[at];
    let alike =
        |other: &&&LlmCall| other.agent == call.agent && other.model == call.model && other.has_token_ids();
    // The newest that it carries on by its messages; else the one with the most tokens in common, if the prompt goes on
    // beyond that one's and parts with it in the answer.
    let earlier = || calls[..at].iter().rev().filter(alike);
    let by_messages = earlier().find(|other| goes_on(other, call));
    let by_tokens = || {
        let parted = earlier().map(|other| (common(other, call), other));
        let inside = parted.filter(|(common, other)| {
            *common > other.prompt_token_ids.len() && *common < call.prompt_token_ids.len()
        });
        inside.max_by_key(|(common, _)| *common).map(|(_, other)| other)
    };
    let truncated = || earlier().find(|other| is_cut(other, call));
    let (other, kind) = if let Some(other) = by_messages {
        (other, None)
    } else if let Some(other) = truncated() {
        (other, Some(Mismatch::Truncated))
    } else {
        (by_tokens()?, None)
    };
    let whole = other.prompt_token_ids.len() + other.response_token_ids().len();
    let common = common(other, call);
    if common == whole {
        return None;
    }
    let kind = kind.unwrap_or_else(|| classify(other, call, common, vocabulary));
    Some(Mismatched { span_id: call.span_id.clone(), after: other.span_id.clone(), common, kind })
}

/// How many tokens `call`'s prompt has in common with the sequence of `other`.
fn common(other: &LlmCall, call: &LlmCall) -> usize {
    let sequence = other.prompt_token_ids.iter().chain(other.response_token_ids());
    sequence.zip(&call.prompt_token_ids).take_while(|(a, b)| a == b).count()
}

/// Whether the messages of `call` begin with those of `other` and its answer.
fn goes_on(other: &LlmCall, call: &LlmCall) -> bool {
    let Some(answer) = other.choice().map(|choice| &choice.message) else { return false };
    let count = other.messages.len();
    !other.messages.is_empty()
        && call.messages.len() > count
        && call.messages[..count] == other.messages[..]
        && says_the_same(&call.messages[count], answer)
}

/// Whether two messages say the same, thoughts aside.
fn says_the_same(a: &crate::call::Message, b: &crate::call::Message) -> bool {
    let calls = |message: &crate::call::Message| -> Vec<(String, String)> {
        message.tool_calls.iter().map(|call| (call.name.clone(), call.arguments.clone())).collect()
    };
    a.words().trim() == b.words().trim() && calls(a) == calls(b)
}

/// Whether `call` has the answer of `other`, but not all of what came before it.
fn is_cut(other: &LlmCall, call: &LlmCall) -> bool {
    let Some(answer) = other.choice().map(|choice| &choice.message).filter(|answer| !answer.is_empty())
    else {
        return false;
    };
    let Some(at) = call
        .messages
        .iter()
        .position(|message| message.role == "assistant" && says_the_same(message, answer))
    else {
        return false;
    };
    let mut before = other.messages.iter();
    // What is left has to be there in the same order.
    at < other.messages.len() && call.messages[..at].iter().all(|kept| before.any(|message| message == kept))
}

fn classify(other: &LlmCall, call: &LlmCall, common: usize, vocabulary: Option<&dyn Vocabulary>) -> Mismatch {
    let sequence: Vec<TokenId> =
        other.prompt_token_ids.iter().chain(other.response_token_ids()).copied().collect();
    if let Some(vocabulary) = vocabulary {
        let special = |tokens: &[TokenId]| -> Vec<TokenId> {
            tokens.iter().copied().filter(|&token| vocabulary.is_special(token)).collect()
        };
        let (ours, theirs) = (special(&sequence), special(&call.prompt_token_ids));
        if !theirs.starts_with(&ours) {
            return Mismatch::Template;
        }
        let is_same = vocabulary.text(&call.prompt_token_ids).starts_with(&vocabulary.text(&sequence));
        return if is_same { Mismatch::Retokenized } else { Mismatch::Other };
    }
    if !goes_on(other, call) {
        return Mismatch::Other;
    }
    // The words are the same. Where the answer was tokenized anew, the two part within it; where it was laid out anew,
    // before it or at its end.
    let parts_within = common >= other.prompt_token_ids.len() && common + 1 < sequence.len();
    if parts_within { Mismatch::Retokenized } else { Mismatch::Template }
}

/// Rows put one after the other into a buffer, as kernels for sequences of varying length want them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Packed {
    /// The rows, by their place in the list given.
    pub rows: Vec<usize>,
    /// Where each row begins in the buffer, and where the last one ends.
    pub cu_seqlens: Vec<usize>,
}

/// Packs rows of these lengths into buffers of `capacity` tokens: each into the first that has room for it, in order.
/// `batches` are ranges of rows; no buffer has rows of two of them. A row that is longer than `capacity` has a buffer of its
/// own.
#[must_use]
pub fn pack(lengths: &[usize], batches: &[std::ops::Range<usize>], capacity: usize) -> Vec<Packed> {
    let mut buffers: Vec<Packed> = Vec::new();
    for batch in batches {
        let first = buffers.len();
        for row in batch.clone() {
            let length = lengths[row];
            let has_room =
                |packed: &&mut Packed| packed.cu_seqlens.last().copied().unwrap_or(0) + length <= capacity;
            if let Some(packed) = buffers[first..].iter_mut().find(has_room) {
                let end = packed.cu_seqlens.last().copied().unwrap_or(0) + length;
                packed.rows.push(row);
                packed.cu_seqlens.push(end);
            } else {
                buffers.push(Packed { rows: vec![row], cu_seqlens: vec![0, length] });
            }
        }
    }
    buffers
}

/// Cuts rows into batches of at least `size` rows, without parting rows of one group; `groups` has each row's, and rows of
/// a group are neighbours.
#[must_use]
pub fn batches(groups: &[&str], size: usize) -> Vec<std::ops::Range<usize>> {
    let mut batches = Vec::new();
    let mut start = 0;
    for row in 0..groups.len() {
        let ends_group = groups.get(row + 1) != Some(&groups[row]);
        if ends_group && row + 1 - start >= size.max(1) {
            batches.push(start..row + 1);
            start = row + 1;
        }
    }
    if start < groups.len() {
        batches.push(start..groups.len());
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{Choice, Message};

    fn sampled<'c>(prompt: &'c [TokenId], response: &'c [TokenId]) -> Sampled<'c> {
        Sampled { prompt, response, logprobs: &[], key: 0 }
    }

    fn shape(sequences: &[Sequence]) -> Vec<(Vec<TokenId>, Vec<usize>)> {
        sequences
            .iter()
            .map(|sequence| {
                (sequence.token_ids.clone(), sequence.segments.iter().map(|s| s.sampled).collect())
            })
            .collect()
    }

    #[test]
    fn a_conversation_becomes_one_sequence() {
        let calls =
            [sampled(&[1, 2], &[3]), sampled(&[1, 2, 3, 4], &[5, 6]), sampled(&[1, 2, 3, 4, 5, 6], &[7])];
        let sequences = merge(&calls);
        assert_eq!(shape(&sequences), [(vec![1, 2, 3, 4, 5, 6, 7], vec![0, 1, 2])]);
        let last = sequences[0].segments[2];
        // No new token between two answers: 0.3 put the whole prompt in here.
        assert_eq!((last.context, last.start, last.end), (6, 6, 7));
    }

    #[test]
    fn what_parts_has_a_sequence_of_its_own() {
        // A fork, an identical call, another agent, and a context that was cut.
        let calls = [
            sampled(&[1, 2], &[3]),
            sampled(&[1, 2, 3, 4], &[5]),
            sampled(&[1, 2, 3, 9], &[6]),
            sampled(&[1, 2], &[3]),
            Sampled { key: 1, ..sampled(&[1, 2, 3], &[8]) },
            sampled(&[2, 3], &[1]),
        ];
        let sequences = merge(&calls);
        assert_eq!(
            shape(&sequences),
            [
                (vec![1, 2, 3, 4, 5], vec![0, 1]),
                (vec![1, 2, 3, 9, 6], vec![2]),
                (vec![1, 2, 3], vec![3]),
                (vec![1, 2, 3, 8], vec![4]),
                (vec![2, 3, 1], vec![5]),
            ]
        );
        assert_eq!(sequences[1].forked_from, Some(0));
        assert_eq!(sequences[1].segments[0].context, 0, "what the other sampled is masked here");
        assert_eq!(sequences[2].forked_from, None);
    }

    #[test]
    fn one_answer_of_two_alike_is_continued_once_each() {
        let calls = [
            sampled(&[1], &[2]),
            sampled(&[1], &[2]),
            sampled(&[1, 2, 3], &[4]),
            sampled(&[1, 2, 3], &[4]),
            sampled(&[1, 2, 3], &[4]),
        ];
        let owners: Vec<Vec<usize>> = shape(&merge(&calls)).into_iter().map(|(_, calls)| calls).collect();
        assert_eq!(owners, [vec![0, 2], vec![1, 3], vec![4]]);
    }

    #[test]
    fn the_longest_of_several_prefixes_is_continued() {
        let calls =
            [sampled(&[], &[1]), sampled(&[7], &[8]), sampled(&[1, 2], &[3]), sampled(&[1, 2, 3], &[4])];
        assert_eq!(shape(&merge(&calls))[0], (vec![1, 2, 3, 4], vec![0, 2, 3]));
    }

    #[test]
    fn long_sequences_are_cut_between_calls() {
        let calls = [
            sampled(&[1, 2, 3], &[4, 5]),
            sampled(&[1, 2, 3, 4, 5, 6], &[7, 8]),
            sampled(&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[10, 11, 12, 13, 14]),
            sampled(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], &[16]),
        ];
        let sequence = merge(&calls).remove(0);
        let pieces = |max| {
            let (pieces, too_long) = split(&sequence, max);
            let pieces: Vec<_> = pieces.into_iter().map(|p| (p.start, p.end, p.segments)).collect();
            (pieces, too_long)
        };
        assert_eq!(pieces(16), (vec![(0, 16, 0..4)], vec![]));
        assert_eq!(pieces(8), (vec![(0, 8, 0..2), (8, 16, 2..4)], vec![]));
        // The first row of those that follow opens with what fits of what came before.
        assert_eq!(pieces(10), (vec![(0, 8, 0..2), (6, 16, 2..4)], vec![]));
        assert_eq!(pieces(5), (vec![(0, 5, 0..1), (3, 8, 1..2), (9, 14, 2..3), (11, 16, 3..4)], vec![]));
        assert_eq!(pieces(4), (vec![(1, 5, 0..1), (4, 8, 1..2), (12, 16, 3..4)], vec![2]));
        assert_eq!(pieces(0).1, [0, 1, 2, 3]);
    }

    #[test]
    fn buffers_hold_rows_of_one_batch() {
        let packed = pack(&[3, 4, 2, 9, 1], &[0..3, 3..5], 6);
        let rows: Vec<_> = packed.iter().map(|packed| packed.rows.clone()).collect();
        assert_eq!(rows, [vec![0, 2], vec![1], vec![3], vec![4]]);
        assert_eq!(packed[0].cu_seqlens, [0, 3, 5]);
        assert_eq!(batches(&["a", "a", "b", "c", "c", "c", "d"], 2), [0..2, 2..6, 6..7]);
        assert_eq!(batches(&["a", "a"], 1).first(), Some(&(0..2)));
        assert_eq!(batches(&[], 3), Vec::<std::ops::Range<usize>>::new());
    }

    fn call(
        id: &str,
        said: &[(&str, &str)],
        prompt: &[TokenId],
        answer: &str,
        response: &[TokenId],
    ) -> LlmCall {
        let message = Message::text("assistant", answer);
        LlmCall {
            span_id: id.to_owned(),
            messages: said.iter().map(|(role, text)| Message::text(role, text)).collect(),
            prompt_token_ids: prompt.to_vec(),
            choices: vec![Choice { message, token_ids: response.to_vec(), ..Choice::default() }],
            ..LlmCall::default()
        }
    }

    fn kind(calls: &[LlmCall], vocabulary: Option<&dyn Vocabulary>) -> Option<Mismatch> {
        let calls: Vec<&LlmCall> = calls.iter().collect();
        mismatch(&calls, calls.len() - 1, vocabulary).map(|found| found.kind)
    }

    #[test]
    fn mismatches_are_told_apart_by_the_messages() {
        let first = call("a", &[("user", "hi")], &[1, 2], "having", &[30, 31, 9]);
        let said = [("user", "hi"), ("assistant", "having"), ("user", "go")];
        let then = |prompt: &[TokenId]| [first.clone(), call("b", &said, prompt, "x", &[5])];
        assert_eq!(kind(&then(&[1, 2, 30, 31, 9, 4]), None), None);
        assert_eq!(kind(&then(&[1, 2, 32, 33, 9, 4]), None), Some(Mismatch::Retokenized));
        assert_eq!(kind(&then(&[1, 2, 30, 31, 8, 9, 4]), None), Some(Mismatch::Template));
        assert_eq!(kind(&then(&[1, 7, 30, 31, 9, 4]), None), Some(Mismatch::Template));
        let cut = call("b", &[("assistant", "having"), ("user", "go")], &[30, 31, 9, 4], "x", &[5]);
        assert_eq!(kind(&[first.clone(), cut], None), Some(Mismatch::Truncated));
        let fresh = call("b", &[("user", "something else")], &[1, 3], "x", &[5]);
        assert_eq!(kind(&[first.clone(), fresh], None), None, "another conversation is no mismatch");
        let unsaid = [call("a", &[], &[1, 2], "", &[30, 31, 9]), call("b", &[], &[1, 2, 30, 7], "", &[5])];
        assert_eq!(kind(&unsaid, None), Some(Mismatch::Other));
        let mut elsewhere = then(&[1, 2, 32, 33, 9, 4]);
        elsewhere[1].agent = Some("another".to_owned());
        assert_eq!(kind(&elsewhere, None), None);
    }

    #[test]
    fn mismatches_are_told_apart_by_a_tokenizer() {
        struct Words;
        impl Vocabulary for Words {
            fn text(&self, tokens: &[TokenId]) -> String {
                tokens
                    .iter()
                    .map(|token| match token {
                        30 => "hav",
                        31 => "ing",
                        32 => "ha",
                        33 => "ving",
                        _ => ".",
                    })
                    .collect()
            }
            fn is_special(&self, token: TokenId) -> bool {
                token >= 90
            }
        }
        let first = call("a", &[], &[1, 2], "", &[30, 31, 90]);
        let then = |prompt: &[TokenId]| [first.clone(), call("b", &[], prompt, "", &[5])];
        // Without messages the two must have a token of the answer in common to be known for one conversation.
        assert_eq!(kind(&then(&[1, 2, 30, 31, 91, 4]), Some(&Words)), Some(Mismatch::Template));
        let said = [("user", "hi"), ("assistant", "having")];
        let first = call("a", &[("user", "hi")], &[1, 2], "having", &[30, 31, 90]);
        let second = call("b", &said, &[1, 2, 32, 33, 90, 4], "", &[5]);
        assert_eq!(kind(&[first, second], Some(&Words)), Some(Mismatch::Retokenized));
    }
}
