//! Compiled components, kept under this machine's own seal.
//!
//! Owns: the folder of artefacts, the key that seals them, their bound on disk, and the sealed copies
//! that workers are handed. Never: compiles or loads one, and never hands out bytes that it did not
//! check itself: loading an artefact *is* running code, so nothing here may come from anybody else.
//! Called by `potluckd`.
//!
//! A file is `magic | MAC | artefact`, written whole under another name and moved into place. The MAC
//! is blake3 keyed with 32 random bytes that never leave the folder (mode 0600), over the component's
//! hash, the engine's name and the artefact. What was checked is copied into a sealed memory file
//! before it is handed over: nobody can change it between the check and its use.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use potluck_protocol::id::ContentHash;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use thiserror::Error;

use super::wire::MAX_ARTEFACT_BYTES;

const MAGIC: &[u8; 16] = b"potluck-art-v1\0\n";
const MAC_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
const KEY_FILE: &str = "seal.key";
const SUFFIX: &str = "artefact";
/// Bytes of all artefacts on disk unless the owner says otherwise.
pub const DEFAULT_CACHE_BYTES: u64 = 2 << 30;
/// Bytes of checked artefacts that are held in memory for the next run of the same component.
const MAX_HELD_BYTES: u64 = 256 << 20;

/// Why the cache cannot be used. Fault: local.
#[derive(Debug, Error)]
#[error("the folder of compiled components cannot be used: cannot {act} {}: {source}", path.display())]
pub struct CacheError {
    /// What was tried.
    pub act: &'static str,
    /// On what.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

fn failed<'a>(act: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CacheError + 'a {
    move |source| CacheError { act, path: path.to_owned(), source }
}

/// A compiled component that was checked, in a memory file that can no longer change.
#[derive(Debug)]
pub struct Artefact {
    file: File,
    bytes: u64,
}

impl Artefact {
    /// Copies `bytes` into a sealed memory file.
    fn seal(bytes: &[u8]) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("potluck-artefact", flags)?);
        file.write_all(bytes)?;
        file.seek(SeekFrom::Start(0))?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok(Self { file, bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX) })
    }

    /// The same memory file, opened anew and read-only: a reader moves no other reader's place.
    fn share(&self) -> io::Result<Self> {
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        Ok(Self { file, bytes: self.bytes })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The memory file, to be handed to a worker.
    #[must_use]
    pub fn into_file(self) -> File {
        self.file
    }
}

/// The cache. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct ArtefactCache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    key: [u8; KEY_BYTES],
    engine: [u8; 32],
    max_bytes: u64,
    /// Checked and sealed, the latest used last.
    held: Mutex<Vec<(ContentHash, Artefact)>>,
}

impl ArtefactCache {
    /// Opens the cache in `folder` for artefacts of `engine`, holding at most `max_bytes` on disk. The
    /// folder and its key are made when they are not there.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn open(folder: &Path, engine: [u8; 32], max_bytes: u64) -> Result<Self, CacheError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("make the folder", folder))?;
        let key = load_key(&folder.join(KEY_FILE))?;
        let inner = Inner { folder: folder.to_owned(), key, engine, max_bytes, held: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Is there an artefact of this component? Whether it is sound shows in [`Self::get`].
    #[must_use]
    pub fn contains(&self, component: ContentHash) -> bool {
        self.held().iter().any(|(held, _)| *held == component) || self.path(component).is_file()
    }

    /// The artefact of this component; `None` when there is none, or the one there was not made by this
    /// machine for this engine (it is then deleted). Reads and hashes the whole file: not for a task
    /// that must not block.
    #[must_use]
    pub fn get(&self, component: ContentHash) -> Option<Artefact> {
        if let Some(artefact) = self.remembered(component) {
            return Some(artefact);
        }
        let path = self.path(component);
        let mut file = File::open(&path).ok()?;
        match self.read(component, &mut file) {
            Ok(Some(artefact)) => {
                // The oldest by this mark makes room first.
                let _ = file.set_modified(SystemTime::now());
                self.hold(component, &artefact);
                Some(artefact)
            }
            Ok(None) => {
                tracing::warn!(%component, "a compiled component is not this machine's own; it is dropped");
                let _ = fs::remove_file(&path);
                None
            }
            Err(error) => {
                tracing::warn!(%component, %error, "a compiled component cannot be read");
                None
            }
        }
    }

    /// Keeps an artefact and gives it back sealed. One that cannot be kept on disk is still given.
    ///
    /// # Errors
    /// [`CacheError`] when no memory file can be made.
    pub fn put(&self, component: ContentHash, bytes: &[u8]) -> Result<Artefact, CacheError> {
        let path = self.path(component);
        if let Err(error) = self.write(component, bytes, &path) {
            tracing::warn!(%error, "a compiled component is not kept");
        }
        self.make_room(&path);
        let artefact = Artefact::seal(bytes).map_err(failed("make a memory file for", &path))?;
        self.hold(component, &artefact);
        Ok(artefact)
    }

    fn path(&self, component: ContentHash) -> PathBuf {
        // One file for a component and an engine: an update of either makes another name.
        let mut hasher = blake3::Hasher::new();
        hasher.update(component.as_bytes()).update(&self.inner.engine);
        self.inner.folder.join(format!("{}.{SUFFIX}", hasher.finalize().to_hex()))
    }

    fn mac(&self, component: ContentHash, artefact: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.inner.key);
        hasher.update(component.as_bytes()).update(&self.inner.engine).update(artefact);
        hasher.finalize()
    }

    /// The artefact in `file`; `None` when its seal is not ours.
    fn read(&self, component: ContentHash, file: &mut File) -> io::Result<Option<Artefact>> {
        let most = MAX_ARTEFACT_BYTES.saturating_add(256);
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        let Some((head, artefact)) = bytes.split_at_checked(MAGIC.len() + MAC_BYTES) else { return Ok(None) };
        let (magic, mac) = head.split_at(MAGIC.len());
        let Ok(mac) = <[u8; MAC_BYTES]>::try_from(mac) else { return Ok(None) };
        // Compared in constant time by blake3.
        if magic != MAGIC || self.mac(component, artefact) != blake3::Hash::from_bytes(mac) {
            return Ok(None);
        }
        Artefact::seal(artefact).map(Some)
    }

    fn write(&self, component: ContentHash, bytes: &[u8], path: &Path) -> Result<(), CacheError> {
        let whole = self.inner.folder.join(format!(".{}.{:x}", std::process::id(), next_number()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&whole)
            .and_then(|mut file| {
                file.write_all(MAGIC)?;
                file.write_all(self.mac(component, bytes).as_bytes())?;
                file.write_all(bytes)?;
                file.sync_data()
            })
            .and_then(|()| fs::rename(&whole, path));
        written.map_err(|source| {
            let _ = fs::remove_file(&whole);
            CacheError { act: "write", path: path.to_owned(), source }
        })
    }

    /// Deletes the artefacts that were used longest ago until the rest is within the bound; `keep` stays.
    fn make_room(&self, keep: &Path) {
        let Ok(entries) = fs::read_dir(&self.inner.folder) else { return };
        let mut files: Vec<_> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == SUFFIX))
            .filter_map(|path| {
                let metadata = fs::metadata(&path).ok()?;
                Some((metadata.modified().ok()?, metadata.len(), path))
            })
            .collect();
        files.sort();
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files {
            if total <= self.inner.max_bytes {
                return;
            }
            if path != keep && fs::remove_file(&path).is_ok() {
                total = total.saturating_sub(len);
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Vec<(ContentHash, Artefact)>> {
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, component: ContentHash) -> Option<Artefact> {
        let mut held = self.held();
        let at = held.iter().position(|(hash, _)| *hash == component)?;
        let entry = held.remove(at);
        let shared = entry.1.share().ok();
        held.push(entry);
        shared
    }

    fn hold(&self, component: ContentHash, artefact: &Artefact) {
        let Ok(shared) = artefact.share() else { return };
        let mut held = self.held();
        held.retain(|(hash, _)| *hash != component);
        held.push((component, shared));
        while held.iter().map(|(_, artefact)| artefact.bytes).sum::<u64>() > MAX_HELD_BYTES {
            held.remove(0);
        }
    }
}

/// Tells files of one process apart while they are written.
fn next_number() -> u64 {
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn load_key(path: &Path) -> Result<[u8; KEY_BYTES], CacheError> {
    match fs::read(path) {
        // A key of another length was never ours: what it seals is not either.
        Ok(bytes) => {
            if let Ok(key) = bytes.try_into() {
                return Ok(key);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(CacheError { act: "read", path: path.to_owned(), source }),
    }
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key)
        .map_err(|why| failed("draw a key for", path)(io::Error::other(why.to_string())))?;
    let whole = path.with_extension("new");
    let _ = fs::remove_file(&whole);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&whole)
        .and_then(|mut file| file.write_all(&key).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&whole, path))
        .map_err(failed("write", path))?;
    Ok(key)
}

#[cfg(test)]
#[path = "cache/tests.rs"]
mod tests;
