//! The seal: says that the index is, byte for byte, what an orderly end left.
//!
//! Owns: the file `index.seal`. Never: is believed after a crash (it is taken away before the index is
//! opened), nor over the journal. Made when the ledger is dropped, after sled has let go of its files;
//! asked for when it is opened.
//!
//! sled may come back from damage with some keys missing and no error. Without a seal every key is
//! therefore counted and every lane added up, which takes seconds for a year of work; with it, one
//! pass over the files finds any byte that has changed.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

/// A file of the index: its name within it, length and CRC32C.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sealed {
    name: String,
    bytes: u64,
    crc: u32,
}

/// Seals an index when it is dropped, unless the ledger failed.
#[derive(Debug)]
pub(super) struct Sealer {
    index: PathBuf,
    failed: Arc<AtomicBool>,
}

impl Sealer {
    /// For the index in folder `index`.
    pub(super) fn new(index: &Path, failed: Arc<AtomicBool>) -> Self {
        Self { index: index.to_owned(), failed }
    }
}

impl Drop for Sealer {
    fn drop(&mut self) {
        if self.failed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = seal(&self.index) {
            // The next open counts instead.
            tracing::debug!(path = %self.index.display(), %error, "the ledger's index was not sealed");
        }
    }
}

fn seal_path(index: &Path) -> PathBuf {
    index.with_extension("seal")
}

fn seal(index: &Path) -> io::Result<()> {
    let bytes = postcard::to_stdvec(&files(index)?).map_err(io::Error::other)?;
    let draft = index.with_extension("seal.new");
    fs::write(&draft, bytes)?;
    fs::rename(&draft, seal_path(index))
}

/// Takes the seal away; true when it was whole and every file is as it says.
pub(super) fn take(index: &Path) -> bool {
    let taken = || -> io::Result<bool> {
        let path = seal_path(index);
        let bytes = fs::read(&path)?;
        fs::remove_file(&path)?;
        let sealed: Vec<Sealed> = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
        Ok(sealed == files(index)?)
    };
    taken().unwrap_or(false)
}

/// All files under `index`, in order.
fn files(index: &Path) -> io::Result<Vec<Sealed>> {
    let (mut found, mut folders) = (Vec::new(), vec![index.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(index).unwrap_or(&path).to_string_lossy().into_owned();
            let (bytes, crc) = sum(&path)?;
            found.push(Sealed { name, bytes, crc });
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

fn sum(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, mut crc) = (0, 0);
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok((bytes, crc)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        crc = crc32c::crc32c_append(crc, buffer.get(..read).unwrap_or_default());
        bytes += u64::try_from(read).unwrap_or(0);
    }
}
