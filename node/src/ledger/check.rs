//! Reading the whole journal: for people who ask for its objects, and for the check of all of it.
//!
//! Owns: the passes over checkpoint and segments. Never: changes anything, or reads past the record
//! that the index reflects (behind it the writer is at work). Called by [`super::Ledger`].

use std::path::Path;

use potluck_protocol::id::PeerId;

use super::apply::Numbered;
use super::checkpoint::{self, Item};
use super::disk::length;
use super::error::LedgerError;
use super::frame::{HEADER_BYTES, Header, Position};
use super::index::{Filled, Index};
use super::journal::{End, Entry, Found, Start, scan_bytes};
use super::read::{FileId, Spot};
use super::record::{Checked, Record};

/// What a check of a ledger found in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkup {
    /// Objects ever kept.
    pub records: u64,
    /// Objects whose signatures were checked: all that are still kept.
    pub objects: u64,
    /// Objects that a checkpoint dropped.
    pub dropped: u64,
}

/// Calls `visit` for each object up to record `until`, with where it lies; gives how many are dropped.
pub(super) fn each(
    found: &Found,
    until: u64,
    visit: &mut dyn FnMut(Numbered<Checked>) -> Result<(), LedgerError>,
) -> Result<u64, LedgerError> {
    let mut dropped = 0;
    if let Some((name, _)) = &found.base {
        let file = FileId::Checkpoint(found.through());
        dropped = checkpoint::read(&*found.disk, name, found.owner, &mut |item, _| match item {
            Item::Object(number, offset, checked) => {
                visit(Numbered { number, spot: Spot { file, offset }, checked })
            }
            Item::Lane(_) | Item::Pair(..) => Ok(()),
        })?
        .dropped;
    }
    found.scan(None, until, &mut |entry| visit(decode(entry, found.owner)?))?;
    Ok(dropped)
}

/// A record of a segment.
pub(super) fn decode(entry: &Entry<'_>, owner: PeerId) -> Result<Numbered<Checked>, LedgerError> {
    let checked = Checked::from_journal(entry.kind, entry.payload, owner).map_err(|source| {
        LedgerError::BadRecord { file: entry.file.to_owned(), offset: entry.place.start, source }
    })?;
    Ok(Numbered { number: entry.place.position.records, spot: entry.place.spot(), checked })
}

/// Reads `bytes` as the only segment of a journal of `owner`, as opening its ledger does, without a
/// disk: what the fuzzer calls. Gives the objects and the bytes of a torn write behind them.
///
/// # Errors
/// As [`super::Ledger::open`].
pub fn read_segment(bytes: &[u8], owner: PeerId) -> Result<(Vec<Record>, usize), LedgerError> {
    let file = Path::new("segment");
    let header = Header::parse(bytes, file, owner)?;
    if !header.follows(&Position::default()) {
        let what = "it does not continue the segment before it";
        return Err(LedgerError::Damaged { file: file.to_owned(), offset: 0, what });
    }
    let before = End::at_header(Position::default());
    let start = Start { file, segment: header.number, from: length(HEADER_BYTES), before };
    let mut objects = Vec::new();
    let rest = bytes.get(HEADER_BYTES..).unwrap_or_default();
    let end = scan_bytes(rest, &start, (u64::MAX, true), &mut |entry| {
        objects.push(decode(entry, owner)?.checked.record);
        Ok(())
    })?;
    Ok((objects, end.torn))
}

/// See [`super::Ledger::check`].
pub(super) fn check(found: &Found, index: &Index) -> Result<Checkup, LedgerError> {
    let contradiction = |what| LedgerError::Contradiction { path: index.path().to_owned(), what };
    let place = index.place()?;
    let records = place.map_or(0, |place| place.position.records);
    let mut objects = 0;
    let dropped = each(found, records, &mut |Numbered { number, spot, checked }| {
        checked.verify().map_err(|source| LedgerError::Forged { number, source })?;
        objects += 1;
        let commitment = checked.commitment;
        if index.slot(&checked.key)? == Some(Filled { commitment, number, spot }) {
            Ok(())
        } else {
            Err(contradiction("an object is missing or another"))
        }
    })?;
    if objects + dropped != records {
        return Err(contradiction("the number of objects differs"));
    }
    Ok(Checkup { records, objects, dropped })
}
