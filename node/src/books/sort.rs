//! Sorting more entries than fit in memory.
//!
//! Owns: [`Sorter`], which keeps full runs in nameless files and merges them. Never: holds more than
//! [`RUN_BYTES`] and one entry a run. Called by export: a ledger keeps its objects as they came, a file
//! has them by pair and lane. Its files vanish with the process, however that ends.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use potluck_protocol::codec::{decode, encode};
use potluck_protocol::export::{Entry, Rank};

use super::error::BooksError;
use super::file::{folder_of, io_error};

/// Bytes of entries that are sorted in memory.
pub(super) const RUN_BYTES: usize = 64 << 20;

/// Takes entries in any order, gives them in a file's.
#[derive(Debug)]
pub(super) struct Sorter {
    /// Beside what runs are kept, for messages and the disk's room.
    path: PathBuf,
    run_bytes: usize,
    held: Vec<(Option<Rank>, Vec<u8>)>,
    bytes: usize,
    runs: Vec<File>,
}

impl Sorter {
    /// An empty one; runs of `run_bytes` lie in the folder of `path`.
    pub(super) fn new(path: &Path, run_bytes: usize) -> Self {
        Self { path: path.to_owned(), run_bytes, held: Vec::new(), bytes: 0, runs: Vec::new() }
    }

    /// Takes an entry.
    pub(super) fn push(&mut self, entry: &Entry) -> Result<(), BooksError> {
        let bytes = encode(entry).map_err(BooksError::Encoding)?;
        self.bytes += bytes.len() + size_of::<(Option<Rank>, Vec<u8>)>();
        self.held.push((entry.rank(), bytes));
        if self.bytes >= self.run_bytes { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<(), BooksError> {
        let path = &self.path;
        self.held.sort_unstable();
        let mut run =
            BufWriter::new(tempfile::tempfile_in(folder_of(path)).map_err(io_error("write", path))?);
        for (_, bytes) in self.held.drain(..) {
            let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
            run.write_all(&length).and_then(|()| run.write_all(&bytes)).map_err(io_error("write", path))?;
        }
        let mut run = run.into_inner().map_err(|error| io_error("write", path)(error.into_error()))?;
        run.rewind().map_err(io_error("read", path))?;
        self.runs.push(run);
        self.bytes = 0;
        Ok(())
    }

    /// Gives every entry to `visit`, in order.
    pub(super) fn finish(
        mut self,
        visit: &mut dyn FnMut(Entry) -> Result<(), BooksError>,
    ) -> Result<(), BooksError> {
        if self.runs.is_empty() {
            self.held.sort_unstable();
            return self.held.drain(..).try_for_each(|(_, bytes)| visit(read(&bytes)?));
        }
        self.spill()?;
        let path = &self.path;
        let mut runs: Vec<_> = self.runs.into_iter().map(BufReader::new).collect();
        let mut heads = BinaryHeap::new();
        for (number, run) in runs.iter_mut().enumerate() {
            heads.extend(next(run, path)?.map(|(rank, bytes)| Reverse((rank, number, bytes))));
        }
        while let Some(Reverse((_, number, bytes))) = heads.pop() {
            visit(read(&bytes)?)?;
            let Some(run) = runs.get_mut(number) else { continue };
            heads.extend(next(run, path)?.map(|(rank, bytes)| Reverse((rank, number, bytes))));
        }
        Ok(())
    }
}

fn read(bytes: &[u8]) -> Result<Entry, BooksError> {
    decode(bytes).map_err(BooksError::Encoding)
}

type Ranked = (Option<Rank>, Vec<u8>);

/// The next entry of a run.
fn next(run: &mut BufReader<File>, path: &Path) -> Result<Option<Ranked>, BooksError> {
    let mut length = [0; 4];
    match run.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read.map_err(io_error("read", path))?,
    }
    let mut bytes = vec![0; usize::try_from(u32::from_le_bytes(length)).unwrap_or_default()];
    run.read_exact(&mut bytes).map_err(io_error("read", path))?;
    Ok(Some((read(&bytes)?.rank(), bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_protocol::balance::{PairId, Raise};
    use potluck_protocol::sign::SigningKey;

    #[test]
    fn entries_come_out_in_order_however_many_runs_they_made() {
        let home = tempfile::tempdir().unwrap();
        let (key, other) = (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]));
        let pair = PairId::of(key.peer(), other.peer()).unwrap();
        // Not in order: 7 is prime to 100.
        let epochs = (0..100u32).map(|at| at * 7 % 100);
        let entries: Vec<Entry> = epochs
            .map(|epoch| key.sign(Raise { pair, by: key.peer(), epoch }).unwrap().into_signed())
            .map(|raise| Entry::Statement(raise.into()))
            .collect();
        let mut sorted = entries.clone();
        sorted.sort_by_key(Entry::rank);
        for run_bytes in [1, 1_000, RUN_BYTES] {
            let mut sorter = Sorter::new(&home.path().join("export"), run_bytes);
            entries.iter().for_each(|entry| sorter.push(entry).unwrap());
            let mut found = Vec::new();
            let visit = &mut |entry| {
                found.push(entry);
                Ok(())
            };
            sorter.finish(visit).unwrap();
            assert_eq!(found, sorted);
        }
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    }
}
