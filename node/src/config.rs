//! Reading a program's TOML file, with errors that say where and what instead.
//!
//! Owns: the reader and its errors. Never: knows what a program's keys mean, or writes. Called by
//! every program with a configuration file; the file's type decides which keys there are
//! (`serde(deny_unknown_fields)`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

/// The largest file that is read, in bytes: a configuration is a page of text.
const MAX_FILE_BYTES: u64 = 262_144;
/// A key this far from what was written is no misspelling of it.
const MAX_EDITS: usize = 3;

/// Why a configuration cannot be used. Fault: whoever wrote the file.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A key that does not exist.
    #[error("{}:{line}: there is no key `{key}`{}", path.display(), did_you_mean(nearest.as_deref()))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was written.
        key: String,
        /// The key that was probably meant.
        nearest: Option<String>,
    },
    /// A value of the wrong type, or no TOML at all.
    #[error("{}:{line}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The file is too large to be a configuration.
    #[error("{} is too large for a configuration file ({bytes} bytes)", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default()
}

/// Reads `path`; `None` when there is no file.
///
/// # Errors
/// When the file cannot be read, is no TOML, or does not say what `T` needs; see [`ConfigError`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ConfigError> {
    let io_error = |source| ConfigError::Io { path: path.to_owned(), source };
    let bytes = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    if bytes > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned(), bytes });
    }
    let text = fs::read_to_string(path).map_err(io_error)?;
    parse(path, &text).map(Some)
}

/// Parses `text`, the content of the file at `path`.
///
/// # Errors
/// When it is no TOML, or does not say what `T` needs; see [`ConfigError`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        explain(path.to_owned(), line, error.message())
    })
}

/// Serde says: unknown field `lisen`, expected one of `listen`, `external`.
fn explain(path: PathBuf, line: usize, message: &str) -> ConfigError {
    let mut quoted = message.split('`').skip(1).step_by(2);
    match quoted.next() {
        Some(key) if message.starts_with("unknown field") => {
            let key = key.to_owned();
            let nearest = nearest(&key, quoted);
            ConfigError::UnknownKey { path, line, key, nearest }
        }
        _ => ConfigError::Invalid { path, line, problem: message.trim_end().replace('\n', "; ") },
    }
}

fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|known| (edits(key, known), known))
        .filter(|(edits, known)| *edits <= MAX_EDITS && *edits < known.len())
        .min()
        .map(|(_, known)| known.to_owned())
}

/// Insertions, deletions and replacements that turn one word into the other.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        listen: Vec<String>,
        inner: Inner,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        connections_in: u32,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self { listen: vec!["default".to_owned()], inner: Inner::default() }
        }
    }

    fn refused(text: &str) -> String {
        parse::<Sample>(Path::new("x.toml"), text).expect_err(text).to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_key_that_was_meant() {
        let top = refused("# a comment\n\nlisten = []\nlisen = []\n");
        assert_eq!(top, "x.toml:4: there is no key `lisen`; did you mean `listen`?");
        let inner = refused("[inner]\nconection_in = 3\n");
        assert_eq!(inner, "x.toml:2: there is no key `conection_in`; did you mean `connections_in`?");
        assert_eq!(refused("gpu = true\n"), "x.toml:1: there is no key `gpu`");
    }

    #[test]
    fn wrong_values_and_broken_files_are_named_with_their_line() {
        let wrong = refused("\nlisten = 7\n");
        assert!(wrong.starts_with("x.toml:2: ") && wrong.contains("integer"), "{wrong}");
        assert!(refused("listen = [\n").starts_with("x.toml:"), "broken");
        let negative = refused("[inner]\nconnections_in = -1\n");
        assert!(negative.starts_with("x.toml:2: "), "{negative}");
    }

    #[test]
    fn what_is_not_said_is_the_default() {
        let sample: Sample = parse(Path::new("x.toml"), "").expect("empty is fine");
        assert_eq!(sample, Sample::default());
    }

    #[test]
    fn no_file_is_no_error() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("none.toml");
        assert!(matches!(read::<Sample>(&path), Ok(None)));
    }
}
