//! The bytes of the journal: headers, records, and telling a torn tail from damage.
//!
//! Owns: the file format, as pure functions over bytes. Never: reads a file or knows what a record
//! means. Called by the journal, the checkpoint and the fuzzer.
//!
//! ```text
//! header:  magic 8 | version 16 | number u64 | owner 32 | hash of the record before 32
//!          | records before u64 | made, unix ms u64 | zeros | crc32c u32          (128 bytes)
//! record:  len u32 | crc32c u32 | kind u8 | hash of the record before 32 | payload (len bytes)
//! ```
//!
//! Numbers are little-endian. The CRC of a record covers `len` and everything after the CRC; its
//! hash is blake3 of all its bytes. The high bit of `kind` marks the first record of a group. A group
//! is written only after the one before it was synced, so a whole first-of-group record *behind* a
//! broken one proves that the broken one had been durable: that is damage. Without such proof it is
//! the tail of a write that a crash tore, which nobody was promised.
//!
//! Segments of version 0 (Potluck 0.1) have zeros where `records before` and `made` are now, and are
//! read as they are; no new one is made.

use std::io;
use std::path::Path;

use potluck_protocol::id::PeerId;
use potluck_protocol::limits::MAX_FRAME_BYTES;
use potluck_protocol::unit::UnixMillis;
use serde::{Deserialize, Serialize};

use super::error::LedgerError;

const MAGIC: &[u8; 8] = b"POTLUCK\0";
/// Bytes before the first record of any file.
pub(super) const HEADER_BYTES: usize = 128;
const RECORD_HEAD_BYTES: usize = 4 + 4 + 1 + 32;
/// The largest payload: an object, and in a checkpoint its number before it.
const MAX_PAYLOAD_BYTES: usize = MAX_FRAME_BYTES + 8;
/// The most that one record may take.
pub(super) const MAX_RECORD_BYTES: usize = RECORD_HEAD_BYTES + MAX_PAYLOAD_BYTES;
/// Set in the kind of the first record of a group.
pub(super) const FIRST_OF_GROUP: u8 = 0x80;

/// Bytes of the journal that a record with such a payload takes.
pub(super) fn record_bytes(payload: usize) -> usize {
    RECORD_HEAD_BYTES + payload
}

/// A place in the chain: how many records, and the hash of the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Position {
    /// Records up to here.
    pub(super) records: u64,
    /// Hash of the last of them; zeros when there is none.
    pub(super) head: [u8; 32],
}

/// What a file is, and in which version. None is ever reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A segment of Potluck 0.1.
    Journal0,
    /// A segment.
    Journal1,
    /// A checkpoint.
    Checkpoint1,
}

impl Format {
    const ALL: [Self; 3] = [Self::Journal0, Self::Journal1, Self::Checkpoint1];

    fn bytes(self) -> &'static [u8; 16] {
        match self {
            Self::Journal0 => b"journal-0\0\0\0\0\0\0\0",
            Self::Journal1 => b"journal-1\0\0\0\0\0\0\0",
            Self::Checkpoint1 => b"checkpoint-1\0\0\0\0",
        }
    }
}

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// What it is.
    pub(super) format: Format,
    /// Which segment; of a checkpoint: the last segment that it stands for.
    pub(super) number: u64,
    /// Whose it is.
    pub(super) owner: PeerId,
    /// Hash of the record before its first; of a checkpoint: of the last record that it stands for.
    pub(super) before: [u8; 32],
    /// Records before its first; of a checkpoint: those it stands for. Unknown in version 0.
    pub(super) records: Option<u64>,
    /// When it was made, by our clock. Unknown in version 0.
    pub(super) made: Option<UnixMillis>,
}

impl Header {
    /// Its bytes.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(self.format.bytes());
        bytes[24..32].copy_from_slice(&self.number.to_le_bytes());
        bytes[32..64].copy_from_slice(self.owner.as_bytes());
        bytes[64..96].copy_from_slice(&self.before);
        bytes[96..104].copy_from_slice(&self.records.unwrap_or(0).to_le_bytes());
        bytes[104..112].copy_from_slice(&self.made.map_or(0, UnixMillis::get).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header of `file` in the ledger of `owner`.
    pub(super) fn parse(bytes: &[u8], file: &Path, owner: PeerId) -> Result<Self, LedgerError> {
        let damaged = |what| LedgerError::Damaged { file: file.to_owned(), offset: 0, what };
        let found = bytes.get(..HEADER_BYTES).ok_or_else(|| damaged("it is too short for a header"))?;
        let (body, crc) = found.split_at(HEADER_BYTES - 4);
        if crc32c::crc32c(body).to_le_bytes() != crc || &found[..8] != MAGIC {
            return Err(damaged("its header is broken"));
        }
        let format = Format::ALL.into_iter().find(|format| format.bytes()[..] == found[8..24]);
        let format = format.ok_or_else(|| LedgerError::Version { file: file.to_owned() })?;
        let word = |at: usize| found[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        let known = format != Format::Journal0;
        let header = Self {
            format,
            number: word(24),
            owner: found[32..64].try_into().map(PeerId::from_bytes).unwrap_or(owner),
            before: found[64..96].try_into().unwrap_or_default(),
            records: known.then(|| word(96)),
            made: known.then(|| UnixMillis::new(word(104))),
        };
        if header.owner != owner {
            return Err(LedgerError::OtherOwner { file: file.to_owned(), owner: header.owner, ours: owner });
        }
        Ok(header)
    }

    /// Does this segment begin where `position` ends?
    pub(super) fn follows(&self, position: &Position) -> bool {
        self.before == position.head && self.records.is_none_or(|records| records == position.records)
    }
}

/// Appends one record to `bytes`; gives its hash.
pub(super) fn write_record(
    bytes: &mut Vec<u8>,
    kind: u8,
    before: &[u8; 32],
    payload: &[u8],
) -> io::Result<[u8; 32]> {
    let len = u32::try_from(payload.len()).map_err(io::Error::other)?.to_le_bytes();
    let start = bytes.len();
    bytes.extend_from_slice(&len);
    bytes.extend_from_slice(&[0; 4]);
    bytes.push(kind);
    bytes.extend_from_slice(before);
    bytes.extend_from_slice(payload);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&len), &bytes[start + 8..]);
    bytes[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    Ok(*blake3::hash(&bytes[start..]).as_bytes())
}

/// A record whose CRC holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    /// Its kind's number, with [`FIRST_OF_GROUP`].
    pub(super) kind: u8,
    /// Hash of the record before.
    pub(super) before: &'a [u8],
    /// What was appended.
    pub(super) payload: &'a [u8],
    /// All of it.
    pub(super) bytes: &'a [u8],
}

impl Frame<'_> {
    /// Its place on the chain.
    pub(super) fn hash(&self) -> [u8; 32] {
        *blake3::hash(self.bytes).as_bytes()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The record that begins at `at`, if a whole one does.
pub(super) fn parse(bytes: &[u8], at: usize) -> Option<Frame<'_>> {
    let len = usize::try_from(word(bytes, at)?).ok()?;
    if len == 0 || len > MAX_PAYLOAD_BYTES {
        return None;
    }
    let whole = bytes.get(at..at.checked_add(RECORD_HEAD_BYTES + len)?)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&whole[..4]), &whole[8..]);
    (word(whole, 4)? == crc).then(|| Frame {
        kind: whole[8],
        before: &whole[9..RECORD_HEAD_BYTES],
        payload: &whole[RECORD_HEAD_BYTES..],
        bytes: whole,
    })
}

/// Bytes up to the last that is not zero: a preallocated file ends in zeros.
pub(super) fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Does a later group prove that the broken record at the start of `rest` had been synced? (See the
/// head of this file.) A whole record that breaks the chain was synced, too, or is from elsewhere.
pub(super) fn was_durable(rest: &[u8]) -> bool {
    (0..used(rest)).any(|at| parse(rest, at).is_some_and(|frame| at == 0 || frame.kind & FIRST_OF_GROUP != 0))
}
