//! The pause that outlives the daemon: one small file in the state folder.
//!
//! Owns: `owner.json`, which is there exactly while the owner wants the machine. Never: decides whether
//! a pause is over ([`crate::owner`] does). Called by `potluckd run` and [`crate::pausing`]; every
//! change is whole or not at all, also when the power fails.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::owner::Pause;

/// The file's name in the state folder.
const FILE: &str = "owner.json";
/// No file of ours is larger, in bytes.
const MAX_BYTES: u64 = 256;

/// Where a pause is kept.
#[derive(Debug, Clone)]
pub struct PauseFile {
    folder: PathBuf,
}

impl PauseFile {
    /// The file in `state_dir`.
    #[must_use]
    pub fn in_folder(state_dir: &Path) -> Self {
        Self { folder: state_dir.to_owned() }
    }

    /// The pause that is kept. A file that cannot be read still says that the owner wanted the machine:
    /// it counts as a pause without end.
    #[must_use]
    pub fn load(&self) -> Option<Pause> {
        let mut text = String::new();
        let read = match File::open(self.path()) {
            Ok(file) => file.take(MAX_BYTES).read_to_string(&mut text),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => Err(error),
        };
        let pause = read.and_then(|_| serde_json::from_str(&text).map_err(std::io::Error::other));
        Some(pause.unwrap_or_else(|error| {
            tracing::warn!(path = %self.path().display(), %error, "unreadable; taken for a pause without end");
            Pause { until_ms: None }
        }))
    }

    /// Keeps `pause`, or that there is none; durable when this returns.
    ///
    /// # Errors
    /// When the disk refuses; what was kept before stays then.
    pub fn save(&self, pause: Option<Pause>) -> std::io::Result<()> {
        match pause {
            Some(pause) => {
                let mut file = NamedTempFile::new_in(&self.folder)?;
                file.write_all(serde_json::to_string(&pause)?.as_bytes())?;
                file.as_file().sync_all()?;
                file.persist(self.path()).map_err(|error| error.error)?;
            }
            None => match fs::remove_file(self.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
        File::open(&self.folder)?.sync_all()
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_kept_until_it_is_taken_back() {
        let home = tempfile::tempdir().unwrap();
        let file = PauseFile::in_folder(home.path());
        assert_eq!(file.load(), None);
        for pause in [Pause { until_ms: None }, Pause { until_ms: Some(u64::MAX) }] {
            file.save(Some(pause)).unwrap();
            assert_eq!(file.load(), Some(pause));
        }
        for _ in 0..2 {
            file.save(None).unwrap();
            assert_eq!(file.load(), None);
        }
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "something was left behind");
    }

    #[test]
    fn a_damaged_file_keeps_the_machine_the_owners() {
        let home = tempfile::tempdir().unwrap();
        let file = PauseFile::in_folder(home.path());
        for text in ["", "{", "7", "{\"until_ms\": -1}", "{\"until_ms\": 1, \"more\": 2}", "\u{fffd}"] {
            fs::write(file.path(), text).unwrap();
            assert_eq!(file.load(), Some(Pause { until_ms: None }), "{text}");
        }
    }
}
