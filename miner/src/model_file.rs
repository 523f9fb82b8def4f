//! A model file that is what its name says, opened once.
//!
//! Owns: finding the file of a model, and hashing it as a stream of bytes before it is used. Never:
//! parses it (the worker does) or opens it a second time by name. Called before a worker starts.

use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use potluck_node::catalogue::{self, UnknownModel};
use potluck_protocol::id::ContentHash;
use thiserror::Error;

/// Bytes hashed at a time.
const CHUNK: usize = 1 << 20;

/// A model that can be given to a worker.
#[derive(Debug)]
pub struct ModelFile {
    /// Its content.
    pub hash: ContentHash,
    /// As people call it.
    pub name: String,
    /// Where it was opened.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    file: File,
}

/// Why a model cannot be served. Fault: local.
#[derive(Debug, Error)]
pub enum ModelError {
    /// No such model.
    #[error(transparent)]
    Unknown(UnknownModel),
    /// It is known but not here.
    #[error("{name} is not on this machine ({} is missing)", path.display())]
    NotPulled {
        /// Its name.
        name: &'static str,
        /// Where its file would be.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("the model file {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is a folder, a pipe or a device.
    #[error("{} is not a file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// Its bytes are not those of the model.
    #[error("{} is damaged: its hash is {got}, {name} has {expected}; delete it and pull it again", path.display())]
    Damaged {
        /// The model.
        name: &'static str,
        /// The file.
        path: PathBuf,
        /// The catalogue's hash.
        expected: ContentHash,
        /// The file's hash.
        got: ContentHash,
    },
}

impl ModelFile {
    /// Opens and hashes the model that `named` means: a name or hash of the catalogue, or a path. Blocks for
    /// about a third of a second per gigabyte on a fast disk.
    ///
    /// # Errors
    /// When there is none, it cannot be read, or its bytes are others than the catalogue says.
    pub fn open(named: &str) -> Result<Self, ModelError> {
        let by_hash = named.parse().ok().and_then(catalogue::name_of);
        if let Some(model) = catalogue::find(by_hash.unwrap_or(named)) {
            let path = model.cached_path();
            if !path.exists() {
                return Err(ModelError::NotPulled { name: model.name, path });
            }
            let opened = Self::open_path(&path, model.name)?;
            if opened.hash != model.blake3 {
                let (expected, got) = (model.blake3, opened.hash);
                return Err(ModelError::Damaged { name: model.name, path, expected, got });
            }
            return Ok(opened);
        }
        let path = Path::new(named);
        let is_model = |end: &std::ffi::OsStr| end == "gguf" || end == "safetensors";
        let looks_like_path = named.contains('/') || path.extension().is_some_and(is_model);
        if !looks_like_path && let Err(unknown) = catalogue::resolve(named) {
            return Err(ModelError::Unknown(unknown));
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut opened = Self::open_path(path, &stem)?;
        if let Some(known) = catalogue::name_of(opened.hash) {
            opened.name = known.to_owned();
        }
        Ok(opened)
    }

    fn open_path(path: &Path, name: &str) -> Result<Self, ModelError> {
        let failed = |source| ModelError::Read { path: path.to_owned(), source };
        let is_file = std::fs::metadata(path).map_err(failed)?.is_file();
        if !is_file {
            return Err(ModelError::NotAFile { path: path.to_owned() });
        }
        let mut file = File::open(path).map_err(failed)?;
        let (hash, bytes) = hash_of(&mut file).map_err(failed)?;
        Ok(Self { hash, name: name.to_owned(), path: path.to_owned(), bytes, file })
    }

    /// The open file at its beginning, for a worker. It is the one that was hashed, whatever bears its
    /// name now.
    ///
    /// # Errors
    /// When the system gives no further descriptor.
    pub fn reopen(&self) -> Result<File, ModelError> {
        let failed = |source| ModelError::Read { path: self.path.clone(), source };
        let mut file = self.file.try_clone().map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(file)
    }
}

fn hash_of(file: &mut File) -> std::io::Result<(ContentHash, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let got = file.read(&mut chunk)?;
        if got == 0 {
            return Ok((ContentHash::from_bytes(*hasher.finalize().as_bytes()), bytes));
        }
        hasher.update(&chunk[..got]);
        bytes += u64::try_from(got).unwrap_or(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_served_under_the_hash_of_its_bytes_even_when_its_name_changes_hands() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.gguf");
        std::fs::write(&path, b"first").unwrap();
        let model = ModelFile::open(path.to_str().unwrap()).unwrap();
        assert_eq!((model.hash, model.name.as_str(), model.bytes), (ContentHash::of(b"first"), "mine", 5));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"second").unwrap();
        let mut content = String::new();
        model.reopen().unwrap().read_to_string(&mut content).unwrap();
        assert_eq!(content, "first");
    }

    #[test]
    fn what_cannot_be_served_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        assert!(matches!(ModelFile::open(folder), Err(ModelError::NotAFile { .. })));
        let missing = format!("{folder}/none.gguf");
        assert!(matches!(ModelFile::open(&missing), Err(ModelError::Read { .. })));
        assert!(matches!(ModelFile::open("smollm9"), Err(ModelError::Unknown(_))));
    }
}
