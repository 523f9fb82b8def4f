//! The state folder: one folder, one process.
//!
//! Owns: where a program keeps its key, ledger and socket, who may write there, and the lock that
//! keeps a second process out. Never: reads or writes what lies inside. Called by every program at
//! start. Ends when [`StateDir`] is dropped: the kernel lets go of the lock, also after a crash.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

/// Why a state folder cannot be used. Fault: this machine's owner, or its disk.
#[derive(Debug, Error)]
pub enum StateError {
    /// Another process holds it.
    #[error("{} is in use by {}; stop that process, or choose another folder with --state-dir", path.display(), holder(*pid))]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process that holds it, when its lock file says so.
        pid: Option<u32>,
    },
    /// Others may write into it, and so could replace the key.
    #[error("{} can be written by other users (mode {mode:03o}); run `chmod go-w` on it", path.display())]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to another user.
    #[error("{} belongs to user {owner}; choose a folder of your own with --state-dir", path.display())]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// The user id that owns it.
        owner: u32,
    },
    /// Something else has its name.
    #[error("{} is not a folder; move it away or choose another with --state-dir", path.display())]
    NotADirectory {
        /// What is there.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {doing} {}: {source}; check that the disk is there and that you may write to it", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// A state folder that this process alone holds.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl StateDir {
    /// Opens the folder, making it (mode 0700) and its parents when they are missing, and locks it.
    ///
    /// # Errors
    /// When another process holds it, when others may write into it, or when the disk refuses.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        create(path)?;
        check(path)?;
        let lock = lock(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the secret key lies.
    #[must_use]
    pub fn key_path(&self) -> PathBuf {
        self.path.join("identity.key")
    }

    /// Where the ledger lies.
    #[must_use]
    pub fn ledger_dir(&self) -> PathBuf {
        self.path.join("ledger")
    }
}

/// Where `program` keeps its state unless told otherwise: `potluck/<program>` under the user's data
/// folder (`$XDG_DATA_HOME`, or `~/.local/share`); under the working folder for a user without home.
#[must_use]
pub fn default_dir(program: &str) -> PathBuf {
    let data =
        directories::BaseDirs::new().map_or_else(|| PathBuf::from("."), |dirs| dirs.data_dir().to_owned());
    data.join("potluck").join(program)
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StateError + use<'a> {
    move |source| StateError::Io { doing, path: path.to_owned(), source }
}

fn create(path: &Path) -> Result<(), StateError> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("create", path)(error)),
        _ => Ok(()),
    }
}

fn check(path: &Path) -> Result<(), StateError> {
    let metadata = fs::metadata(path).map_err(io_error("read", path))?;
    if !metadata.is_dir() {
        return Err(StateError::NotADirectory { path: path.to_owned() });
    }
    let ours = rustix::process::geteuid().as_raw();
    if metadata.uid() != ours {
        return Err(StateError::NotOurs { path: path.to_owned(), owner: metadata.uid() });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(StateError::Writable { path: path.to_owned(), mode });
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, StateError> {
    let name = path.join("lock");
    // Not truncated on open: until the lock is ours, what it says is the holder's.
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(io_error("open", &name))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // Only to say who it is: unreadable counts as unknown.
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(StateError::Locked { path: path.to_owned(), pid });
        }
        Err(errno) => return Err(io_error("lock", &name)(errno.into())),
    }
    file.set_len(0).map_err(io_error("write", &name))?;
    file.rewind().map_err(io_error("write", &name))?;
    writeln!(file, "{}", std::process::id()).map_err(io_error("write", &name))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_second_opener_is_told_who_holds_it() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        let held = StateDir::open(&path).unwrap();
        assert_eq!(fs::metadata(held.path()).unwrap().mode() & 0o777, 0o700);
        let error = StateDir::open(&path).unwrap_err();
        assert!(
            matches!(&error, StateError::Locked { pid: Some(pid), .. } if *pid == std::process::id()),
            "{error}"
        );
        drop(held);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_folder_that_others_may_write_is_refused() {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(StateDir::open(home.path()), Err(StateError::Writable { mode: 0o770, .. })));
    }

    #[test]
    fn a_file_is_no_folder() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        fs::write(&path, "x").unwrap();
        assert!(matches!(StateDir::open(&path), Err(StateError::NotADirectory { .. })));
    }
}
