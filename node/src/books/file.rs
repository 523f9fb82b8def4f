//! Files that people name: read with a bound, written whole or not at all.
//!
//! Owns: [`Draft`] (written beside its place, synced, then given its name), [`open`] (which hangs on
//! nothing and reads no folder), and the file of a proof. Never: holds a whole file in memory but a
//! proof's. Called by export, import, verify and the proof verbs. A draft that is dropped is deleted.

use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use potluck_protocol::export::MAGIC;
use potluck_protocol::limits::MAX_FRAME_BYTES;
use potluck_protocol::proof::Equivocation;
use potluck_protocol::wire;
use rustix::fs::{Mode, OFlags};
use tempfile::NamedTempFile;

use super::error::BooksError;
use super::rows::ProofLine;

/// Bytes that are read or written together.
pub(super) const PIECE: usize = 256 << 10;

/// An I/O error with what was tried on which file.
pub(super) fn io_error<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> BooksError + use<'a> {
    move |source| BooksError::Io { doing, path: path.to_owned(), source }
}

/// Opens a file for reading; a pipe, a device or a folder is refused and not waited for.
pub(super) fn open(path: &Path) -> Result<File, BooksError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
    let file = File::from(opened.map_err(io_error("read", path))?);
    if file.metadata().map_err(io_error("read", path))?.is_file() {
        Ok(file)
    } else {
        Err(BooksError::NotAFile { path: path.to_owned() })
    }
}

/// Reads on until `piece` is full or the file ends; gives what came.
pub(super) fn read_piece<'a>(
    file: &mut File,
    piece: &'a mut [u8],
    path: &Path,
) -> Result<&'a [u8], BooksError> {
    let mut filled = 0;
    while let Some(room) = piece.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read(room) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("read", path)(error)),
        }
    }
    Ok(piece.get(..filled).unwrap_or_default())
}

/// What a draft may replace; anything else of its name stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replaces {
    /// An export, whole or not.
    Export,
    /// A proof.
    Proof,
}

impl Replaces {
    fn kind(self) -> &'static str {
        match self {
            Self::Export => "export",
            Self::Proof => "proof",
        }
    }

    fn allows(self, path: &Path) -> Result<bool, BooksError> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(io_error("look at", path)(error)),
            Ok(found) if found.is_dir() => return Err(BooksError::NotAFile { path: path.to_owned() }),
            Ok(_) => {}
        }
        let mut file = open(path)?;
        let mut piece = vec![0; MAX_FRAME_BYTES + 1];
        let begin = read_piece(&mut file, &mut piece, path)?;
        Ok(begin.is_empty()
            || match self {
                Self::Export => begin.starts_with(&MAGIC),
                Self::Proof => wire::decode_bounded::<Equivocation>(begin).is_ok(),
            })
    }
}

/// A file that is not there yet.
#[derive(Debug)]
pub(super) struct Draft {
    path: PathBuf,
    file: io::BufWriter<NamedTempFile>,
    bytes: u64,
}

impl Draft {
    /// Begins a file that will be at `path` (mode 0600).
    pub(super) fn begin(path: &Path, replaces: Replaces) -> Result<Self, BooksError> {
        if !replaces.allows(path)? {
            return Err(BooksError::Taken { path: path.to_owned(), kind: replaces.kind() });
        }
        let made = tempfile::Builder::new().prefix(".potluck-").suffix(".new").tempfile_in(folder_of(path));
        let file = io::BufWriter::with_capacity(PIECE, made.map_err(io_error("write", path))?);
        Ok(Self { path: path.to_owned(), file, bytes: 0 })
    }

    /// Adds bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), BooksError> {
        self.file.write_all(bytes).map_err(io_error("write", &self.path))?;
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Where it will be.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, once all of it is on the disk; gives its length in bytes.
    pub(super) fn finish(self) -> Result<u64, BooksError> {
        let Self { path, file, bytes } = self;
        let file = file.into_inner().map_err(|error| io_error("write", &path)(error.into_error()))?;
        file.as_file().sync_all().map_err(io_error("write", &path))?;
        file.persist(&path).map_err(|error| io_error("write", &path)(error.error))?;
        let folder = folder_of(&path);
        let synced = File::open(&folder).and_then(|folder| folder.sync_all());
        synced.map_err(io_error("write", &folder))?;
        Ok(bytes)
    }
}

/// The folder that holds `path`.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The proof in a file: an [`Equivocation`]'s canonical bytes and nothing else.
pub(super) fn read_proof(path: &Path) -> Result<Equivocation, BooksError> {
    let mut file = open(path)?;
    let mut piece = vec![0; MAX_FRAME_BYTES + 1];
    let bytes = read_piece(&mut file, &mut piece, path)?;
    wire::decode_bounded(bytes).map_err(|source| BooksError::ProofBytes { path: path.to_owned(), source })
}

/// A proof, in a row.
pub(super) fn proof_line(proof: &Equivocation) -> Result<ProofLine, BooksError> {
    Ok(ProofLine {
        peer: proof.first.signer(),
        place: proof.first.slot().map(|slot| slot.to_string()).unwrap_or_default(),
        digest: proof.digest().map_err(BooksError::Encoding)?,
    })
}
