//! The checkpoint: one signed file in place of segments whose lanes are settled and old.
//!
//! Owns: its format, writing one, and reading one back with every check. Never: decides what it keeps
//! (compaction does), or replaces anything. Called by compaction, and by the ledger when it builds its
//! index anew.
//!
//! ```text
//! header     as of a segment: stands for all segments up to `number`, `records` records, the last of
//!            which has the hash `before`
//! objects    kind = the object's; payload = number of the record u64 | object   (in their old order)
//! lanes      kind 0x70; how many objects of a retired lane have gone
//! pairs      kind 0x71; what the last vouchers of the retired lanes with one peer add up to
//! statement  kind 0x72; the last record: a signed [`Statement`]
//! ```
//!
//! Its records are chained like those of a segment, from zeros on, so that the statement's `content`
//! (the hash of the record before it) covers all of the file. The objects bear their makers'
//! signatures as ever: contract, last voucher, its receipt and the closes prove a debt to anyone.
//! That nothing else was there is the word of the ledger's owner, which is why the owner signs.

use potluck_protocol::id::PeerId;
use potluck_protocol::sign::{Signable, Signed, SigningKey};
use potluck_protocol::unit::UnixMillis;
use potluck_protocol::wire;
use serde::{Deserialize, Serialize};

use super::account::Part;
use super::disk::{Disk, DiskFile, length, read_full_at, write_all_at};
use super::error::{CompactError, LedgerError, io_error};
use super::fault;
use super::frame::{Format, HEADER_BYTES, Header, MAX_RECORD_BYTES, Position, parse, write_record};
use super::lane::RetiredLane;
use super::record::Checked;

const LANE: u8 = 0x70;
const PAIR: u8 = 0x71;
const STATEMENT: u8 = 0x72;
/// Bytes that are read and written at once.
const CHUNK_BYTES: usize = 1 << 20;

/// What the owner of a ledger says of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Statement {
    /// Whose ledger it is.
    pub(super) owner: PeerId,
    /// It stands for all segments up to this one.
    pub(super) through: u64,
    /// And so for these records.
    pub(super) position: Position,
    /// Hash of the record before this one.
    pub(super) content: [u8; 32],
    /// Objects kept.
    pub(super) kept: u64,
    /// Objects dropped, also by the checkpoints before.
    pub(super) dropped: u64,
    /// Lanes of which objects have gone.
    pub(super) lanes: u64,
    /// What the retired lanes add up to in our favour, in nano-credits.
    pub(super) owed_to_us: i128,
    /// And against us.
    pub(super) we_owe: i128,
    /// When it was made, by our clock.
    pub(super) at: UnixMillis,
}

impl Signable for Statement {
    const DOMAIN: &'static str = "potluck/v1/checkpoint";

    fn signer(&self) -> PeerId {
        self.owner
    }
}

/// What stands in a checkpoint.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "read one at a time and dropped at once")]
pub(super) enum Item {
    /// An object: the number it had in the journal, and at which byte of this file it lies.
    Object(u64, u64, Checked),
    /// A retired lane.
    Lane(RetiredLane),
    /// What the retired lanes with a peer add up to.
    Pair(PeerId, Part),
}

/// A checkpoint being written, under its draft's name.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    disk: &'a dyn Disk,
    name: String,
    file: Box<dyn DiskFile>,
    at: u64,
    pending: Vec<u8>,
    head: [u8; 32],
    statement: Statement,
}

impl<'a> Draft<'a> {
    /// Begins the checkpoint `name` that stands for `position`, the end of segment `through`.
    pub(super) fn begin(
        disk: &'a dyn Disk,
        name: &str,
        owner: PeerId,
        (through, position): (u64, Position),
        at: UnixMillis,
    ) -> Result<Self, LedgerError> {
        let draft = format!("{name}.new");
        let file = disk.create(&draft).map_err(io_error("create", &disk.path(&draft)))?;
        let header = Header {
            format: Format::Checkpoint1,
            number: through,
            owner,
            before: position.head,
            records: Some(position.records),
            made: Some(at),
        };
        let statement = Statement {
            owner,
            through,
            position,
            content: [0; 32],
            kept: 0,
            dropped: 0,
            lanes: 0,
            owed_to_us: 0,
            we_owe: 0,
            at,
        };
        let pending = header.encode().to_vec();
        Ok(Self { disk, name: draft, file, at: 0, pending, head: [0; 32], statement })
    }

    /// Keeps an object.
    pub(super) fn object(&mut self, number: u64, checked: &Checked) -> Result<(), LedgerError> {
        let mut payload = number.to_le_bytes().to_vec();
        payload.extend_from_slice(&checked.payload);
        self.statement.kept += 1;
        self.push(checked.record.kind().number(), &payload)
    }

    /// Notes what has gone of a retired lane.
    pub(super) fn lane(&mut self, lane: &RetiredLane) -> Result<(), LedgerError> {
        self.statement.lanes += 1;
        self.push_value(LANE, lane)
    }

    /// Notes what the last vouchers of the retired lanes with a peer add up to.
    pub(super) fn pair(&mut self, peer: PeerId, pair: Part) -> Result<(), LedgerError> {
        self.statement.owed_to_us += pair.owed_to_us;
        self.statement.we_owe += pair.we_owe;
        self.push_value(PAIR, &(peer, pair))
    }

    /// Signs it and makes it durable, still under its draft's name. Gives its size in bytes.
    pub(super) fn finish(mut self, dropped: u64, key: &SigningKey) -> Result<u64, CompactError> {
        let statement = Statement { content: self.head, dropped, ..self.statement.clone() };
        let signed = key.sign(statement)?.into_signed();
        self.push_value(STATEMENT, &signed)?;
        self.flush()?;
        fault::point(fault::CHECKPOINT_WRITTEN);
        self.file.sync_all().map_err(io_error("sync", &self.disk.path(&self.name)))?;
        fault::point(fault::CHECKPOINT_SYNCED);
        Ok(self.at)
    }

    fn push_value<T: Serialize>(&mut self, kind: u8, value: &T) -> Result<(), LedgerError> {
        let payload = wire::encode(value).map_err(std::io::Error::other);
        let payload = payload.map_err(io_error("write", &self.disk.path(&self.name)))?;
        self.push(kind, &payload)
    }

    fn push(&mut self, kind: u8, payload: &[u8]) -> Result<(), LedgerError> {
        let written = write_record(&mut self.pending, kind, &self.head, payload);
        self.head = written.map_err(io_error("write", &self.disk.path(&self.name)))?;
        if self.pending.len() >= CHUNK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), LedgerError> {
        let path = self.disk.path(&self.name);
        write_all_at(&*self.file, &self.pending, self.at).map_err(io_error("write", &path))?;
        self.at += length(self.pending.len());
        self.pending.clear();
        Ok(())
    }
}

/// Reads the checkpoint `name` and gives its statement; `visit` sees each item first, with the bytes
/// read so far. Memory stays bounded whatever its size.
///
/// # Errors
/// When anything in it is not as its owner signed it.
pub(super) fn read(
    disk: &dyn Disk,
    name: &str,
    owner: PeerId,
    visit: &mut dyn FnMut(Item, u64) -> Result<(), LedgerError>,
) -> Result<Statement, LedgerError> {
    let mut reader = Reader::open(disk, name, owner)?;
    let (mut head, mut kept, mut lanes) = ([0; 32], 0, 0);
    let (mut owed_to_us, mut we_owe) = (0_i128, 0_i128);
    loop {
        let (record, hash) = reader.next(&head)?;
        match record {
            Record::Item(item) => {
                match &item {
                    Item::Object(..) => kept += 1,
                    Item::Lane(_) => lanes += 1,
                    Item::Pair(_, pair) => {
                        owed_to_us += pair.owed_to_us;
                        we_owe += pair.we_owe;
                    }
                }
                visit(item, reader.at)?;
            }
            Record::Statement(signed) => {
                let verified = signed.verify().map_err(|_| reader.damaged("its signature does not hold"))?;
                let said = verified.body().clone();
                let dropped = said.dropped;
                let header = &reader.header;
                let position = Position { records: header.records.unwrap_or(0), head: header.before };
                let at = header.made.unwrap_or_default();
                let through = header.number;
                let found = Statement {
                    owner,
                    through,
                    position,
                    content: head,
                    kept,
                    dropped,
                    lanes,
                    owed_to_us,
                    we_owe,
                    at,
                };
                if said != found || reader.at != reader.size {
                    return Err(reader.damaged("it is not what its owner signed"));
                }
                return Ok(said);
            }
        }
        head = hash;
    }
}

/// An object's number in the journal, and the object.
pub(super) fn split_object(payload: &[u8]) -> Option<(u64, &[u8])> {
    let (number, object) = payload.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), object))
}

/// One record of a checkpoint.
#[allow(clippy::large_enum_variant, reason = "read one at a time and dropped at once")]
enum Record {
    Item(Item),
    Statement(Box<Signed<Statement>>),
}

struct Reader<'a> {
    disk: &'a dyn Disk,
    name: &'a str,
    owner: PeerId,
    file: Box<dyn DiskFile>,
    size: u64,
    header: Header,
    /// Where the next record begins in the file.
    at: u64,
    buffer: Vec<u8>,
    /// And in the buffer.
    from: usize,
}

impl<'a> Reader<'a> {
    fn open(disk: &'a dyn Disk, name: &'a str, owner: PeerId) -> Result<Self, LedgerError> {
        let path = disk.path(name);
        let file = disk.open(name).map_err(io_error("open", &path))?;
        let size = file.size().map_err(io_error("read", &path))?;
        let mut bytes = [0; HEADER_BYTES];
        let read = read_full_at(&*file, &mut bytes, 0).map_err(io_error("read", &path))?;
        let header = Header::parse(bytes.get(..read).unwrap_or_default(), &path, owner)?;
        Ok(Self {
            disk,
            name,
            owner,
            file,
            size,
            header,
            at: length(HEADER_BYTES),
            buffer: Vec::new(),
            from: 0,
        })
    }

    fn damaged(&self, what: &'static str) -> LedgerError {
        LedgerError::Damaged { file: self.disk.path(self.name), offset: self.at, what }
    }

    /// Has the next record whole in the buffer, if the file has it.
    fn fill(&mut self) -> Result<(), LedgerError> {
        if self.buffer.len() - self.from >= MAX_RECORD_BYTES {
            return Ok(());
        }
        self.buffer.drain(..self.from);
        self.from = 0;
        let held = self.buffer.len();
        self.buffer.resize(held + CHUNK_BYTES, 0);
        let read = read_full_at(&*self.file, &mut self.buffer[held..], self.at + length(held));
        let read = read.map_err(io_error("read", &self.disk.path(self.name)))?;
        self.buffer.truncate(held + read);
        Ok(())
    }

    /// The record that follows the one with the hash `before`, and its own hash.
    fn next(&mut self, before: &[u8; 32]) -> Result<(Record, [u8; 32]), LedgerError> {
        self.fill()?;
        let Some(frame) = parse(&self.buffer, self.from).filter(|frame| frame.before == before) else {
            return Err(self.damaged("a record there is broken"));
        };
        let (hash, bytes) = (frame.hash(), frame.bytes.len());
        let record = self.decode(frame.kind, frame.payload)?;
        self.from += bytes;
        self.at += length(bytes);
        Ok((record, hash))
    }

    fn decode(&self, kind: u8, payload: &[u8]) -> Result<Record, LedgerError> {
        let file = || self.disk.path(self.name);
        let bad = |source| LedgerError::BadRecord { file: file(), offset: self.at, source };
        Ok(match kind {
            LANE => Record::Item(Item::Lane(wire::decode(payload).map_err(|it| bad(it.into()))?)),
            PAIR => {
                let (peer, pair) = wire::decode(payload).map_err(|it| bad(it.into()))?;
                Record::Item(Item::Pair(peer, pair))
            }
            STATEMENT => Record::Statement(Box::new(wire::decode(payload).map_err(|it| bad(it.into()))?)),
            kind => {
                let (number, object) =
                    split_object(payload).ok_or_else(|| self.damaged("an object there has no number"))?;
                let checked = Checked::from_journal(kind, object, self.owner).map_err(bad)?;
                Record::Item(Item::Object(number, self.at, checked))
            }
        })
    }
}
