//! Who a peer is: one ed25519 key that is its PeerId, its ledger account and its signature.
//!
//! Owns: the key file, its format and its protection. Never: prints the key, repairs a file that it
//! does not trust, or makes a second key where there is one. Called once at start by every program.
//!
//! The file is one line, `potluck-ed25519-v1 <64 hexadecimal digits>`, so that it can be backed up
//! by hand. Whoever has it can spend and earn in its owner's name: it is readable by its owner only,
//! and a file that anybody else can read is refused, because the key must count as known to them.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use potluck_protocol::id::{PeerId, hex, unhex};
use potluck_protocol::sign::SigningKey;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use thiserror::Error;

/// What a key file begins with.
const FORMAT: &str = "potluck-ed25519-v1";
/// The longest key file that is looked at, in bytes: the line and a line end or two.
const MAX_FILE_BYTES: u64 = 96;
/// What the file's mode must not allow.
const OTHERS: u32 = 0o077;
/// Attempts to find an unused temporary name, or to settle a race with a file that vanishes.
const ATTEMPTS: u32 = 8;

/// Why there is no identity. Fault: this machine, its operator, or whoever wrote to its disk.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Others can read the key.
    #[error(
        "{} can be read by others (mode {mode:04o}); if nobody did, run: chmod 600 {}",
        path.display(), path.display()
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to somebody else.
    #[error("{} belongs to user {owner}, not to user {us} who runs this program", path.display())]
    NotOurs {
        /// The key file.
        path: PathBuf,
        /// The user id that owns it.
        owner: u32,
        /// Our user id.
        us: u32,
    },
    /// A symbolic link, a directory, a pipe: anything but a file.
    #[error("{} is not a regular file (links are not followed)", path.display())]
    NotAFile {
        /// The key file.
        path: PathBuf,
    },
    /// Not a key file, or a damaged one.
    #[error(
        "{} is not a key file: {problem} (expected one line: {FORMAT} and 64 hexadecimal digits); \
         restore it from a backup, or move it away to begin with a new identity",
        path.display()
    )]
    Malformed {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it. Never quotes it.
        problem: &'static str,
    },
    /// The file could not be read or made.
    #[error("{}: cannot {action} the key file: {source}", path.display())]
    Io {
        /// The key file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no randomness for a new key.
    #[error("the system gave no random bytes for a new key: {source}")]
    NoRandomness {
        /// What the system said.
        source: io::Error,
    },
}

/// A peer's key, in memory. Wiped when dropped.
pub struct Identity {
    key: SigningKey,
}

impl Identity {
    /// Reads the key file at `path`, or makes one if there is none. Of any number of processes that
    /// do so at once, one makes the file and all get its key.
    ///
    /// # Errors
    /// When the file is not safe or not whole (see [`IdentityError`]); it is never replaced.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        for _ in 0..ATTEMPTS {
            if let Some(identity) = Self::load(path)? {
                return Ok(identity);
            }
            if let Some(identity) = Self::create(path)? {
                return Ok(identity);
            }
        }
        let source = io::Error::other("it appears and vanishes again and again");
        Err(IdentityError::Io { path: path.to_owned(), action: "settle on", source })
    }

    /// Who this is.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.key.peer()
    }

    /// What this peer signs with.
    #[must_use]
    pub fn signing_key(&self) -> &SigningKey {
        &self.key
    }

    /// `None` when there is no file.
    fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let io_error = |action, source| IdentityError::Io { path: path.to_owned(), action, source };
        // NONBLOCK: a pipe in the key's place must not hang the start.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(descriptor) => File::from(descriptor),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => {
                return Err(IdentityError::NotAFile { path: path.to_owned() });
            }
            Err(errno) => return Err(io_error("open", errno.into())),
        };
        check_protection(path, &file.metadata().map_err(|error| io_error("examine", error))?)?;
        let mut text = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(|error| io_error("read", error))?;
        let parsed = parse(&text);
        wipe(&mut text);
        match parsed {
            Ok(key) => Ok(Some(Self { key })),
            Err(problem) => Err(IdentityError::Malformed { path: path.to_owned(), problem }),
        }
    }

    /// Makes the file as a whole under another name and gives it its own only if that is free;
    /// `None` when another process was faster.
    fn create(path: &Path) -> Result<Option<Self>, IdentityError> {
        let io_error = |action, source| IdentityError::Io { path: path.to_owned(), action, source };
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| IdentityError::NoRandomness { source: error.into() })?;
        let key = SigningKey::from_seed(seed);
        let mut line = format!("{FORMAT} {}\n", hex(&seed)).into_bytes();
        wipe(&mut seed);
        let written = write_new(path, &line);
        wipe(&mut line);
        match written {
            Ok(()) => Ok(Some(Self { key })),
            Err((_, error)) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err((action, error)) => Err(io_error(action, error)),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(of {})", self.peer())
    }
}

fn check_protection(path: &Path, metadata: &fs::Metadata) -> Result<(), IdentityError> {
    let path = path.to_owned();
    let us = rustix::process::geteuid().as_raw();
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_file() {
        Err(IdentityError::NotAFile { path })
    } else if metadata.uid() != us {
        Err(IdentityError::NotOurs { path, owner: metadata.uid(), us })
    } else if mode & OTHERS != 0 {
        Err(IdentityError::Exposed { path, mode })
    } else {
        Ok(())
    }
}

fn parse(text: &[u8]) -> Result<SigningKey, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if u64::try_from(text.len()).is_ok_and(|len| len > MAX_FILE_BYTES) {
        return Err("it is too long");
    }
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let mut words = text.split_ascii_whitespace();
    if words.next() != Some(FORMAT) {
        return Err("it does not begin with the format's name");
    }
    let digits = words.next().ok_or("the key is missing")?;
    if words.next().is_some() {
        return Err("something follows the key");
    }
    let mut bytes = unhex(digits).ok_or("the key is not hexadecimal")?;
    let seed = <[u8; 32]>::try_from(bytes.as_slice());
    wipe(&mut bytes);
    let mut seed = seed.map_err(|_| "the key does not have 64 digits")?;
    let key = SigningKey::from_seed(seed);
    wipe(&mut seed);
    Ok(key)
}

/// Writes `bytes` to a new file at `path`, so that it is there whole or not at all, also after a
/// power cut. Fails with `AlreadyExists` if something is there. Names the step that failed.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), (&'static str, io::Error)> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (temporary, mut file) = open_temporary(path).map_err(|error| ("create", error))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let placed = match written {
        Ok(()) => place(&temporary, path).map_err(|error| ("create", error)),
        Err(error) => Err(("write", error)),
    };
    // After a rename there is nothing to remove; a leftover is only a nuisance.
    let _ = fs::remove_file(&temporary);
    placed?;
    let sync = File::open(directory).and_then(|directory| directory.sync_all());
    sync.map_err(|error| ("sync the folder of", error))
}

fn open_temporary(path: &Path) -> io::Result<(PathBuf, File)> {
    for _ in 0..ATTEMPTS {
        let mut noise = [0; 8];
        getrandom::fill(&mut noise)?;
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.new", hex(&noise)));
        let temporary = PathBuf::from(name);
        let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        match opened {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return opened.map(|file| (temporary, file)),
        }
    }
    Err(io::Error::other("no free temporary name was found"))
}

/// Gives `temporary` the name `path` unless that is taken. A hard link works on nearly every file
/// system; where it does not, a rename that replaces nothing does.
fn place(temporary: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(temporary, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            rustix::fs::renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE)
                .map_err(io::Error::from)
        }
        linked => linked,
    }
}

/// Overwrites a secret. The black box keeps the compiler from leaving it out as a dead write.
fn wipe(secret: &mut [u8]) {
    secret.fill(0);
    std::hint::black_box(secret);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("temporary folder")
    }

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    }

    #[test]
    fn a_new_identity_is_private_and_comes_back() {
        let folder = folder();
        let path = folder.path().join("identity");
        let made = Identity::load_or_create(&path).expect("made");
        let mode = fs::metadata(&path).expect("there").mode() & 0o7777;
        assert_eq!(mode, 0o600);
        assert_eq!(Identity::load_or_create(&path).expect("loaded").peer(), made.peer());
        let names: Vec<_> = fs::read_dir(folder.path()).expect("folder").collect();
        assert_eq!(names.len(), 1, "no temporary file is left: {names:?}");
        let text = fs::read_to_string(&path).expect("text");
        assert_eq!(text, format!("{FORMAT} {}\n", hex(&made.signing_key().seed())));
    }

    #[test]
    fn eight_creators_get_one_identity() {
        for _ in 0..20 {
            let folder = folder();
            let path = folder.path().join("identity");
            let start = std::sync::Barrier::new(8);
            let peers: Vec<PeerId> = std::thread::scope(|scope| {
                let create = || {
                    start.wait();
                    Identity::load_or_create(&path).expect("identity").peer()
                };
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            let kept = Identity::load_or_create(&path).expect("identity").peer();
            assert!(peers.iter().all(|peer| *peer == kept), "{peers:?}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_remedy() {
        let folder = folder();
        let path = folder.path().join("identity");
        for mode in [0o640, 0o604, 0o666, 0o620] {
            write(&path, &format!("{FORMAT} {}", "07".repeat(32)), mode);
            let error = Identity::load_or_create(&path).expect_err("refused");
            assert!(matches!(error, IdentityError::Exposed { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains(&format!("chmod 600 {}", path.display())), "{text}");
            assert!(text.contains(&format!("{mode:04o}")), "{text}");
        }
    }

    #[test]
    fn damaged_files_are_refused_and_left_alone() {
        let folder = folder();
        let path = folder.path().join("identity");
        let seed = "07".repeat(32);
        for text in [
            String::new(),
            FORMAT.to_owned(),
            format!("{FORMAT} {}", &seed[1..]),
            format!("{FORMAT} {}zz", &seed[2..]),
            format!("{FORMAT} {seed}00"),
            format!("{FORMAT} {seed} more"),
            format!("potluck-ed25519-v2 {seed}"),
            format!("{FORMAT} {seed}{}", "\n".repeat(99)),
        ] {
            write(&path, &text, 0o600);
            let error = Identity::load_or_create(&path).expect_err("refused");
            assert!(matches!(error, IdentityError::Malformed { .. }), "{text:?}: {error}");
            assert!(!error.to_string().contains(&seed[..16]), "the key is not quoted: {error}");
            assert_eq!(fs::read_to_string(&path).expect("there"), text);
        }
    }

    #[test]
    fn a_backup_typed_by_hand_is_read() {
        let folder = folder();
        let path = folder.path().join("identity");
        write(&path, &format!("{FORMAT}  {}\r\n\n", "AB".repeat(32)), 0o400);
        let identity = Identity::load_or_create(&path).expect("read");
        assert_eq!(identity.signing_key().seed(), [0xab; 32]);
    }

    #[test]
    fn links_folders_and_pipes_are_no_key_files() {
        let folder = folder();
        let target = folder.path().join("target");
        write(&target, &format!("{FORMAT} {}", "07".repeat(32)), 0o600);
        let link = folder.path().join("link");
        symlink(&target, &link).expect("link");
        let dangling = folder.path().join("dangling");
        symlink(folder.path().join("nowhere"), &dangling).expect("link");
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::from(0o600), 0).expect("pipe");
        for path in [link, dangling, pipe, folder.path().to_owned()] {
            let error = Identity::load_or_create(&path).expect_err("refused");
            assert!(matches!(error, IdentityError::NotAFile { .. }), "{path:?}: {error}");
        }
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let folder = folder();
        let path = folder.path().join("identity");
        write(&path, &format!("{FORMAT} {}", "07".repeat(32)), 0o600);
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_err() {
            // Only root may give files away; `check_protection` is the same code either way.
            return;
        }
        let error = Identity::load_or_create(&path).expect_err("refused");
        assert!(matches!(error, IdentityError::NotOurs { owner: 12_345, .. }), "{error}");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = folder();
        let path = folder.path().join("nowhere").join("identity");
        let error = Identity::load_or_create(&path).expect_err("refused");
        assert!(error.to_string().contains("nowhere"), "{error}");
    }

    #[test]
    fn debug_shows_no_secret() {
        let folder = folder();
        let identity = Identity::load_or_create(&folder.path().join("identity")).expect("made");
        let shown = format!("{identity:?} {:?}", identity.signing_key());
        assert!(!shown.contains(&hex(&identity.signing_key().seed())), "{shown}");
    }
}
