//! Appending past the system's page cache.
//!
//! Owns: [`AppendFile`], a file that is written front to back, in whole blocks of the disk. Never: grows the
//! file. Called through the folder (see disk.rs) by the journal.
//!
//! The journal syncs what it writes at once. By way of the page cache that is a copy, a search for what is
//! dirty, a write and a sync; without it, one write that is durable when it returns, and up to a sixth less
//! time on a quick disk. Where the file system cannot do that, and past the file's end, bytes go the usual
//! way. Whoever reads the file through the page cache sees the same bytes: the system drops its copy of a
//! block that is written so.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::disk::{DiskFile, length, read_full_at};

/// What any disk of today takes as a whole, and any page cache counts in.
const BLOCK: usize = 4_096;

/// A file to append to: what lies behind a write, in the block where it ends, may become zeros.
#[derive(Debug)]
pub(super) struct AppendFile {
    /// By way of the page cache.
    file: File,
    tail: Mutex<Tail>,
}

/// The end of what was written.
#[derive(Debug, Default)]
struct Tail {
    /// Past the page cache, and durable once it is written; `None` where that cannot be.
    direct: Option<File>,
    /// Was anything written the usual way, and not synced since?
    is_dirty: bool,
    /// Bytes of the file.
    size: u64,
    /// Where blocks are put together.
    room: Vec<u8>,
    /// Where in it the first block begins: its address in memory must be a block's multiple.
    at: usize,
    /// Where in the file that block begins, if the room has it as the file does.
    start: Option<u64>,
}

impl AppendFile {
    /// Opens the file at `path`, which is there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = options.open(path)?;
        let flags = i32::try_from((OFlags::DIRECT | OFlags::DSYNC).bits()).unwrap_or_default();
        let direct = match options.custom_flags(flags).open(path) {
            Err(error) if is_unable(&error) => None,
            opened => Some(opened?),
        };
        let size = file.metadata()?.len();
        Ok(Self { file, tail: Mutex::new(Tail { direct, size, ..Tail::default() }) })
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Is it that the file system cannot do this?
fn is_unable(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::OPNOTSUPP))
}

impl Tail {
    /// Makes room for `whole` bytes of blocks; the first block stays in it.
    fn make_room(&mut self, whole: usize) {
        if self.room.len() >= whole + BLOCK {
            return;
        }
        let mut room = vec![0; whole + BLOCK];
        let at = room.as_ptr().align_offset(BLOCK).min(BLOCK);
        if let Some(first) = self.room.get(self.at..self.at + BLOCK) {
            room[at..at + BLOCK].copy_from_slice(first);
        }
        (self.room, self.at) = (room, at);
    }

    /// Writes past the page cache; `None` when that cannot be.
    fn write_at(&mut self, file: &File, bytes: &[u8], offset: u64) -> Option<io::Result<usize>> {
        let known = self.start.take();
        let before = usize::try_from(offset % length(BLOCK)).ok()?;
        let start = offset - length(before);
        let end = before + bytes.len();
        let whole = end.next_multiple_of(BLOCK);
        if bytes.is_empty() || self.direct.is_none() || start.checked_add(length(whole))? > self.size {
            return None;
        }
        self.make_room(whole);
        let blocks = self.room.get_mut(self.at..self.at + whole)?;
        if known != Some(start)
            && let Err(error) = read_full_at(file, &mut blocks[..BLOCK], start)
        {
            return Some(Err(error));
        }
        blocks[before..end].copy_from_slice(bytes);
        if whole > BLOCK {
            blocks[end..].fill(0);
        }
        match DiskFile::write_at(self.direct.as_ref()?, blocks, start) {
            Ok(written) => {
                if written == whole {
                    blocks.copy_within(whole - BLOCK.., 0);
                    self.start = Some(start + length(whole - BLOCK));
                }
                Some(Ok(written.saturating_sub(before).min(bytes.len())))
            }
            Err(error) if is_unable(&error) => {
                self.direct = None;
                None
            }
            Err(error) => Some(Err(error)),
        }
    }
}

impl DiskFile for AppendFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        DiskFile::read_at(&self.file, bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut tail = self.tail();
        match tail.write_at(&self.file, bytes, offset) {
            Some(written) => written,
            None => {
                tail.is_dirty = true;
                DiskFile::write_at(&self.file, bytes, offset)
            }
        }
    }

    fn reserve(&self, size: u64) -> io::Result<()> {
        self.file.reserve(size)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut tail = self.tail();
        if tail.is_dirty {
            DiskFile::sync_data(&self.file)?;
            tail.is_dirty = false;
        }
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        DiskFile::sync_all(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::write_all_at;
    use super::*;
    use proptest::prelude::*;

    fn blocks(count: usize) -> (tempfile::TempDir, std::path::PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("file");
        std::fs::write(&path, vec![0; count * BLOCK]).unwrap();
        (home, path)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Past the page cache or not, opened once or again and again, the file holds what was appended.
        #[test]
        fn what_is_appended_is_what_the_file_holds(
            chunks in prop::collection::vec((1..9_000_usize, any::<bool>(), any::<bool>()), 1..24),
            begin in 0..5_000_usize,
        ) {
            let (_home, path) = blocks(56);
            let mut expected = vec![9; begin];
            let mut file = AppendFile::open(&path).unwrap();
            write_all_at(&file, &expected, 0).unwrap();
            for (nth, (len, again, plain)) in chunks.into_iter().enumerate() {
                if again {
                    file = AppendFile::open(&path).unwrap();
                }
                if plain {
                    file.tail().direct = None;
                }
                let chunk = vec![u8::try_from(nth + 1).unwrap(); len];
                write_all_at(&file, &chunk, length(expected.len())).unwrap();
                file.sync_data().unwrap();
                expected.extend(chunk);
                let mut held = std::fs::read(&path).unwrap();
                prop_assert!(held.split_off(expected.len()).iter().all(|byte| *byte == 0));
                prop_assert!(held == expected);
            }
        }
    }

    #[test]
    fn what_passes_the_end_goes_the_usual_way() {
        let (_home, path) = blocks(1);
        let file = AppendFile::open(&path).unwrap();
        write_all_at(&file, &[1; 100], 4_000).unwrap();
        write_all_at(&file, &[2; 100], 4_100).unwrap();
        let held = std::fs::read(&path).unwrap();
        assert_eq!(held.len(), 4_200);
        assert_eq!(held[4_000..], [vec![1; 100], vec![2; 100]].concat());
    }
}
