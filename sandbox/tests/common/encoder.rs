//! Where the tests find the real encoder.
//!
//! Owns: one path. Never: downloads (`make model` does). Called by every test that loads the encoder.

use std::fs::File;
use std::path::PathBuf;

/// all-MiniLM-L6-v2 in one file, by the sha256 of the file.
const ENCODER: &str = "c07f6efe40a4fc6a7d84e22705bc466a0792fd8e9695e48ee241f6d80348013c.safetensors";

/// The encoder, opened read-only.
///
/// # Panics
/// When it is not there, with what to do about it.
#[must_use]
pub(crate) fn encoder() -> File {
    let path = std::env::var_os("POTLUCK_TEST_ENCODER").map_or_else(cached, PathBuf::from);
    File::open(&path).unwrap_or_else(|error| {
        panic!("the test encoder is not at {} ({error}): `make model` fetches it", path.display())
    })
}

fn cached() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"));
    cache.join("potluck/models").join(ENCODER)
}
