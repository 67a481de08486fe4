//! Finding out what a model argument means, and loading it.

use crate::error::{Error, Result};
use crate::model::Llama;
use crate::tokenizer::Tokenizer;
use crate::{gguf, hf, pull};
use std::path::{Path, PathBuf};

/// A loaded model with all that is needed to talk to it.
#[derive(Debug)]
pub struct ModelFiles {
    /// A name for it: the file's or directory's.
    pub name: String,
    /// The weights.
    pub model: Llama,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template (Jinja), if it brings one.
    pub chat_template: Option<String>,
    /// The text of the token that begins a document; may be empty.
    pub bos_token: String,
    /// The text of the token that ends a document; may be empty.
    pub eos_token: String,
    /// The tokens that end an answer.
    pub end_tokens: Vec<u32>,
}

impl ModelFiles {
    /// Loads a `.gguf` file, or a directory in Hugging Face's layout (`config.json`,
    /// `model.safetensors`, `tokenizer.json`).
    ///
    /// # Errors
    /// [`Error::NotAModel`] naming the file and what is wrong with it, or [`Error::Io`].
    pub fn load(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if metadata.is_dir() { hf::load(path) } else { gguf::load(path) }
    }
}

/// The file or directory that a model argument means: a path that exists, or the name of a model
/// in the cache folder, which is fetched if it is not there. Blocks while fetching.
///
/// # Errors
/// [`Error::UnknownModel`] if it is neither, or what [`pull::pull`] answers.
pub fn resolve(model: &str, cache_dir: Option<&Path>) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.to_owned());
    }
    if pull::KNOWN_MODELS.contains(&model) {
        return pull::pull(model, cache_dir);
    }
    if model.contains(['/', '\\']) || model.ends_with(".gguf") {
        let known = pull::KNOWN_MODELS.join(", ");
        let problem = format!("no such file or folder (nor a known name: {known})");
        return Err(Error::io(path, std::io::Error::new(std::io::ErrorKind::NotFound, problem)));
    }
    Err(Error::UnknownModel(model.to_owned()))
}
