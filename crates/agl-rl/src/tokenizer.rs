//! Text to token ids and back.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// How text is cut up before byte pairs are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PreTokenizer {
    /// GPT-2's expression.
    Gpt2,
    /// Each digit alone, then GPT-2's expression.
    Smollm,
    /// Llama 3's expression: digits in groups of three.
    Llama3,
    /// Qwen 2's expression: each digit alone.
    Qwen2,
}

impl PreTokenizer {
    /// The names that [`Self::named`] knows.
    pub(crate) const NAMES: &str = "default, gpt-2, smollm, llama-bpe, qwen2";

    /// By the name that GGUF files use.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "default" | "gpt-2" => Some(Self::Gpt2),
            "smollm" => Some(Self::Smollm),
            "llama-bpe" | "llama3" => Some(Self::Llama3),
            "qwen2" => Some(Self::Qwen2),
            _ => None,
        }
    }

    fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let cut_by = |expression: &str| -> tokenizers::Result<PreTokenizerWrapper> {
            let pattern = SplitPattern::Regex(expression.into());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
            Ok(Sequence::new(vec![split.into(), ByteLevel::new(false, true, false).into()]).into())
        };
        match self {
            Self::Gpt2 => Ok(ByteLevel::new(false, true, true).into()),
            Self::Smollm => {
                Ok(Sequence::new(vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()])
                    .into())
            }
            Self::Llama3 => cut_by(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            Self::Qwen2 => cut_by(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        }
    }
}

/// What a byte-level BPE tokenizer is made of.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    /// By id.
    pub(crate) tokens: Vec<String>,
    /// `left right`, most frequent first.
    pub(crate) merges: Vec<String>,
    /// Tokens that are no text.
    pub(crate) special: Vec<String>,
    /// Tokens that are text, but matched whole.
    pub(crate) added: Vec<String>,
    pub(crate) pre_tokenizer: PreTokenizer,
    /// Put before every text that is not a rendered chat.
    pub(crate) start: Option<u32>,
}

/// A tokenizer with the exact bytes of each of its tokens.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// By id; empty for special tokens.
    bytes: Vec<Vec<u8>>,
    /// Special tokens by their text.
    special: HashMap<String, u32>,
    start: Option<u32>,
}

impl Tokenizer {
    /// Builds a byte-level BPE tokenizer.
    pub(crate) fn byte_level(vocabulary: Vocabulary) -> Result<Self> {
        let Vocabulary { tokens, merges, special, added, pre_tokenizer, start } = vocabulary;
        let pairs = merges
            .iter()
            .map(|merge| match merge.split_once(' ') {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => Err(Error::Tokenizer(format!("merge `{merge}` is not a pair"))),
            })
            .collect::<Result<Vec<_>>>()?;
        let ids: Vocab = tokens.into_iter().zip(0u32..).collect();
        let model = BPE::builder().vocab_and_merges(ids, pairs).build().map_err(text_of)?;
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(pre_tokenizer.build().map_err(text_of)?));
        inner.with_decoder(Some(ByteLevel::new(false, true, true)));
        inner
            .add_special_tokens(special.iter().map(|token| AddedToken::from(token.as_str(), true)))
            .map_err(text_of)?;
        inner
            .add_tokens(added.iter().map(|token| AddedToken::from(token.as_str(), false).normalized(false)))
            .map_err(text_of)?;
        Self::new(inner, start)
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// If the file can't be read or is not a tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let inner = tokenizers::Tokenizer::from_str(&text)
            .map_err(|e| Error::not_a_model(path, format!("not a tokenizer.json: {e}")))?;
        Self::new(inner, None)
    }

    fn new(inner: tokenizers::Tokenizer, start: Option<u32>) -> Result<Self> {
        let byte_level = serde_json::to_string(&inner.get_decoder())
            .map_err(|e| Error::Tokenizer(e.to_string()))?
            .contains("ByteLevel");
        let byte_of = byte_alphabet();
        let added = inner.get_added_tokens_decoder();
        let vocab = inner.get_vocab(true);
        let count = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let mut bytes = vec![Vec::new(); count];
        for (token, &id) in &vocab {
            bytes[id as usize] = match added.get(&id) {
                Some(token) if token.special => Vec::new(),
                Some(token) => token.content.clone().into_bytes(),
                None if byte_level => token.chars().filter_map(|c| byte_of.get(&c).copied()).collect(),
                None => match hex_byte(token) {
                    Some(byte) => vec![byte],
                    None => token.replace('\u{2581}', " ").into_bytes(),
                },
            };
        }
        let special = added
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(&id, token)| (token.content.clone(), id))
            .collect();
        Ok(Self { inner, bytes, special, start })
    }

    /// Number of ids, counting unused ones below the largest.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// The ids of a text. Special tokens written out in it become their ids. `with_start` adds
    /// what the model expects before a text (a rendered chat brings its own).
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str, with_start: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, with_start).map_err(text_of)?;
        let start = self.start.filter(|_| with_start);
        Ok(start.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// The bytes that a token adds to the text: none for special tokens and unknown ids. A
    /// character may be spread over several tokens.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The text of a sequence of ids, without special tokens; bytes that are not UTF-8 become
    /// replacement characters.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A token as it is shown: a special token by its name, others by their text.
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<String> {
        let name = self.inner.id_to_token(id)?;
        if self.special.get(&name) == Some(&id) {
            return Some(name);
        }
        Some(String::from_utf8_lossy(self.token_bytes(id)).into_owned())
    }

    /// The id of a special token.
    #[must_use]
    pub fn special_id(&self, text: &str) -> Option<u32> {
        self.special.get(text).copied()
    }
}

/// Makes text of bytes that come token by token, never cutting a character.
#[derive(Debug, Default, Clone)]
pub(crate) struct Detokenizer {
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Adds a token's bytes; gives the text that is complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    // An incomplete character at the end may still be completed.
                    let Some(broken) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[broken..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// What is left when no more tokens come.
    pub(crate) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// GPT-2's printable stand-in for each byte, reversed.
fn byte_alphabet() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut stand_ins = 0x100u32..;
    (0..=255u8)
        .filter_map(|byte| {
            let code = if printable(byte) { Some(u32::from(byte)) } else { stand_ins.next() };
            Some((char::from_u32(code?)?, byte))
        })
        .collect()
}

/// The byte of a SentencePiece token like `<0x0A>`.
fn hex_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
fn text_of(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_never_cut() {
        let mut detokenizer = Detokenizer::default();
        let text = "aé€😀b";
        let shown: String = text.bytes().map(|byte| detokenizer.push(&[byte])).collect();
        assert_eq!(shown, text);
        assert_eq!(detokenizer.push(&[0xE2, 0x82]), "");
        assert_eq!(detokenizer.push(b"x"), "\u{FFFD}x");
        assert_eq!(detokenizer.push(&[0xF0, 0x9F]), "");
        assert_eq!(detokenizer.finish(), "\u{FFFD}");
    }

    #[test]
    fn the_byte_alphabet_is_the_library_s() {
        let ours: std::collections::HashSet<char> = byte_alphabet().into_keys().collect();
        assert_eq!(ours.len(), 256);
        assert!(ByteLevel::alphabet().iter().all(|c| ours.contains(c)));
        assert_eq!(byte_alphabet()[&'Ġ'], b' ');
    }
}
