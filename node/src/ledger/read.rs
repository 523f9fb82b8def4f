//! Random access: single records, by where the index says that they lie.
//!
//! Owns: [`Spot`], and the check that what lies there is what the index means (CRC, slot, commitment).
//! Never: scans a file, or repairs the index. Called by the ledger for what people and peers ask for;
//! the caller holds the lock that keeps files from being deleted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;

use serde::{Deserialize, Serialize};

use super::checkpoint;
use super::disk::{Disk, DiskFile, read_full_at};
use super::error::{LedgerError, io_error};
use super::frame::{FIRST_OF_GROUP, MAX_RECORD_BYTES, parse};
use super::index::{Filled, Index};
use super::journal::{checkpoint_name, old_segment_name, segment_name};
use super::record::{Checked, Record};
use super::slot::SlotKey;

/// Most records are smaller, and come with the first read.
const FIRST_READ_BYTES: usize = 1_024;

/// Which file of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum FileId {
    /// The segment with this number.
    Segment(u64),
    /// The checkpoint that stands for all segments up to this one.
    Checkpoint(u64),
}

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spot {
    /// In which file.
    pub(super) file: FileId,
    /// At which byte it begins.
    pub(super) offset: u64,
}

/// Reads records one by one; each file is opened once.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    disk: &'a dyn Disk,
    index: &'a Index,
    open: HashMap<FileId, (String, Box<dyn DiskFile>)>,
}

impl<'a> Reader<'a> {
    /// Of the ledger on `disk` that `index` is of.
    pub(super) fn new(disk: &'a dyn Disk, index: &'a Index) -> Self {
        Self { disk, index, open: HashMap::new() }
    }

    /// What fills the slot with this key.
    pub(super) fn slot(&mut self, key: &SlotKey) -> Result<Option<Record>, LedgerError> {
        match self.index.slot(key)? {
            Some(filled) => self.record(&filled).map(Some),
            None => Ok(None),
        }
    }

    /// The record that fills a slot.
    pub(super) fn record(&mut self, filled: &Filled) -> Result<Record, LedgerError> {
        let Spot { file, offset } = filled.spot;
        let (name, handle) = self.file(file)?;
        let path = self.disk.path(&name);
        let mut bytes = Vec::new();
        for size in [FIRST_READ_BYTES, MAX_RECORD_BYTES] {
            bytes.resize(size, 0);
            let read = read_full_at(&*handle, &mut bytes, offset).map_err(io_error("read", &path))?;
            bytes.truncate(read);
            if parse(&bytes, 0).is_some() {
                break;
            }
        }
        self.open.insert(file, (name, handle));
        let frame = parse(&bytes, 0).ok_or_else(|| LedgerError::Damaged {
            file: path.clone(),
            offset,
            what: "a record there is broken",
        })?;
        let owner = self.index.me;
        let kind = frame.kind & !FIRST_OF_GROUP;
        let (number, payload) = match file {
            FileId::Segment(_) => (filled.number, frame.payload),
            FileId::Checkpoint(_) => checkpoint::split_object(frame.payload).unwrap_or_default(),
        };
        let checked = Checked::from_journal(kind, payload, owner)
            .map_err(|source| LedgerError::BadRecord { file: path, offset, source })?;
        if checked.commitment == filled.commitment && number == filled.number {
            Ok(checked.record)
        } else {
            let what = "an object lies elsewhere";
            Err(LedgerError::Contradiction { path: self.index.path().to_owned(), what })
        }
    }

    /// Takes a file out of those that are open; it goes back once it was read.
    fn file(&mut self, file: FileId) -> Result<(String, Box<dyn DiskFile>), LedgerError> {
        if let Entry::Occupied(entry) = self.open.entry(file) {
            return Ok(entry.remove());
        }
        let names = match file {
            FileId::Segment(number) => [segment_name(number), old_segment_name(number)],
            FileId::Checkpoint(through) => [checkpoint_name(through), checkpoint_name(through)],
        };
        let [name, old] = names;
        match self.disk.open(&name) {
            Ok(handle) => Ok((name, handle)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && old != name => {
                let handle = self.disk.open(&old).map_err(io_error("open", &self.disk.path(&old)))?;
                Ok((old, handle))
            }
            Err(error) => Err(io_error("open", &self.disk.path(&name))(error)),
        }
    }
}
