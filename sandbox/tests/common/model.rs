//! Where the tests find the real model.
//!
//! Owns: one path. Never: downloads (`make model` does). Called by every test that loads the model.

use std::fs::File;
use std::path::PathBuf;

/// SmolLM2-135M-Instruct, Q4_1, by the sha256 of the file.
const MODEL: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53.gguf";

/// The path of the model file.
///
/// # Panics
/// When it is not there, with what to do about it.
#[must_use]
pub(crate) fn model_path() -> PathBuf {
    let path = std::env::var_os("POTLUCK_TEST_MODEL").map_or_else(cached, PathBuf::from);
    assert!(path.is_file(), "the test model is not at {}: `make model` fetches it", path.display());
    path
}

fn cached() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"));
    cache.join("potluck/models").join(MODEL)
}

/// The model, opened read-only.
///
/// # Panics
/// When it cannot be opened.
#[must_use]
pub(crate) fn model() -> File {
    File::open(model_path()).expect("the test model can be opened")
}
