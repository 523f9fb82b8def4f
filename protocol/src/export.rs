//! The export file: all that one peer's ledger holds, in one form that anybody can check offline.
//!
//! Owns: the file's header, frames, order, chain and [`Seal`], as a [`Writer`] that gives bytes and a
//! [`Reader`] that is fed bytes; what the statements in it come to is judged by [`audit`]. Never: opens
//! a file, or holds more than one frame of it. Called by the `ledger` verbs `export`, `import` and
//! `verify`. `SPEC.md` (Export files) says the same in prose.
//!
//! ```text
//! magic │ header │ proofs, by signer │ pair by pair: quotes, steps, lanes │ seal, signed
//!         each frame: u32 length, payload, the first 8 bytes of the chain up to here
//! ```
//!
//! The order is strict, so that one ledger has one file, and so that whoever reads it needs no memory of
//! what went before in order to know that no slot is filled twice.

pub mod audit;
mod lane;
mod steps;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::balance::PairId;
use crate::codec::{Bounded, WireError, decode, decode_bounded, encode};
use crate::id::{Digest, LaneId, PeerId};
use crate::limits::MAX_FRAME_BYTES;
use crate::proof::{Equivocation, ProofError};
use crate::sign::{SignError, Signable, Signed, SigningKey, Verified, digest_of, framed, preimage};
use crate::statement::{Statement, StatementError};
use crate::unit::UnixMillis;

/// The first bytes of a file.
pub const MAGIC: [u8; 8] = *b"potluck\n";
/// The version of the form that this build writes and reads.
pub const EXPORT_VERSION: u16 = 1;

const CHAIN_DOMAIN: &str = "potluck/v1/export-chain";
/// Bytes before a frame's payload: its length.
const LENGTH_BYTES: usize = 4;
/// Bytes behind a frame's payload: the beginning of the chain's digest there.
const CHECK_BYTES: usize = 8;

/// What a file says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the form.
    pub version: u16,
    /// Whose ledger it is.
    pub owner: PeerId,
    /// When it was written (wall clock, for people).
    pub made: UnixMillis,
    /// Only what is between the owner and this peer, when there is one.
    pub peer: Option<PeerId>,
}

/// One thing in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// That somebody signed two things in one place.
    Proof(Box<Equivocation>),
    /// A signed object between the owner and another.
    Statement(Statement),
}

impl Bounded for Entry {
    fn check_bounds(&self) -> Result<(), WireError> {
        match self {
            Self::Proof(proof) => proof.check_bounds(),
            Self::Statement(statement) => statement.check_bounds(),
        }
    }
}

/// The end of a file: its owner's word that this is all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Whose ledger it is.
    pub owner: PeerId,
    /// How many entries there are.
    pub entries: u64,
    /// The chain after the last of them.
    pub chain: Digest,
}

impl Signable for Seal {
    const DOMAIN: &'static str = "potluck/v1/export";

    fn signer(&self) -> PeerId {
        self.owner
    }
}

/// A frame after the header. The order of the variants is the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Frame {
    Entry(Entry),
    Seal(Box<Signed<Seal>>),
}

impl Bounded for Frame {
    fn check_bounds(&self) -> Result<(), WireError> {
        match self {
            Self::Entry(entry) => entry.check_bounds(),
            Self::Seal(_) => Ok(()),
        }
    }
}

/// Where an entry stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    /// Proofs first, by whom they convict.
    Proof(PeerId),
    /// Then what two peers signed, pair by pair.
    Pair(PairId, Part),
}

/// Where a statement stands among its pair's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// What providers promised, by digest.
    Quote(Digest),
    /// The balance: by epoch, step, kind (0 raise, 1 state, 2 countersignature, 3 cancel) and
    /// signer; a raise has step 0.
    Step(u32, u32, u8, PeerId),
    /// The lanes: by lane, stage (0 before the work, 1 the work, 2 the end), number, and kind in the
    /// stage (contract, accept; meter, voucher, receipt; close by renter and provider, abandoning by
    /// renter and provider).
    Lane(LaneId, u8, u32, u8),
}

impl Entry {
    /// Where it stands; `None` for what is between one peer and itself.
    #[must_use]
    pub fn rank(&self) -> Option<Rank> {
        let statement = match self {
            Self::Proof(proof) => return Some(Rank::Proof(proof.first.signer())),
            Self::Statement(statement) => statement,
        };
        Some(Rank::Pair(statement.pair()?, part(statement)?))
    }
}

fn part(statement: &Statement) -> Option<Part> {
    let by_provider = |lane: &LaneId, by: PeerId| u8::from(by == lane.provider);
    Some(match statement {
        Statement::Quote(it) => Part::Quote(digest_of(&preimage(&it.body).ok()?)),
        Statement::Contract(it) => Part::Lane(it.body.lane, 0, 0, 0),
        Statement::Accept(it) => Part::Lane(it.body.lane, 0, 0, 1),
        Statement::Meter(it) => Part::Lane(it.body.lane, 1, it.body.k, 0),
        Statement::Voucher(it) => Part::Lane(it.body.lane, 1, it.body.k, 1),
        Statement::Receipt(it) => Part::Lane(it.body.lane, 1, it.body.k, 2),
        Statement::Close(it) => Part::Lane(it.body.lane, 2, 0, by_provider(&it.body.lane, it.body.by)),
        Statement::Abandon(it) => Part::Lane(it.body.lane, 2, 0, 2 + by_provider(&it.body.lane, it.body.by)),
        Statement::Raise(it) => Part::Step(it.body.epoch, 0, 0, it.body.by),
        Statement::State(it) => Part::Step(it.body.epoch, it.body.n, 1, it.body.by),
        Statement::Countersign(it) => Part::Step(it.body.epoch, it.body.n, 2, it.body.by),
        Statement::Cancel(it) => Part::Step(it.body.epoch, it.body.n, 3, it.body.by),
    })
}

/// Why bytes are no whole export file. Fault: whoever made or changed it; nothing of it is believed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExportError {
    /// It does not begin as one.
    #[error("this is not an export file of Potluck")]
    NotAnExport,
    /// It was written by a later version.
    #[error("this export file has version {version}; this program reads version {EXPORT_VERSION}")]
    Version {
        /// Its version.
        version: u16,
    },
    /// It ends in the middle.
    #[error("the file ends at byte {at}, before its seal: it was cut off")]
    CutOff {
        /// How long it is, in bytes.
        at: u64,
    },
    /// Something follows the seal.
    #[error("something follows the seal, at byte {at}")]
    Trailing {
        /// At which byte.
        at: u64,
    },
    /// A frame is longer than one may be, or empty.
    #[error("at byte {at} a frame claims {len} bytes; at most {MAX_FRAME_BYTES} are allowed")]
    Length {
        /// At which byte.
        at: u64,
        /// What it claims.
        len: u32,
    },
    /// Bytes were changed, taken out, put in or moved.
    #[error("the file was changed or is damaged: what ends at byte {at} is not what was written there")]
    Changed {
        /// At which byte.
        at: u64,
    },
    /// A frame is no entry.
    #[error("entry {entry}, at byte {at}, cannot be read: {source}")]
    Undecodable {
        /// Its number, from 1.
        entry: u64,
        /// At which byte.
        at: u64,
        /// What is wrong with it.
        source: WireError,
    },
    /// A statement is not believed.
    #[error("entry {entry}, at byte {at}, is not to be believed: {source}")]
    Statement {
        /// Its number, from 1.
        entry: u64,
        /// At which byte.
        at: u64,
        /// What is wrong with it.
        source: StatementError,
    },
    /// A proof proves nothing.
    #[error("entry {entry}, at byte {at}, proves nothing: {source}")]
    Proof {
        /// Its number, from 1.
        entry: u64,
        /// At which byte.
        at: u64,
        /// What is wrong with it.
        source: ProofError,
    },
    /// Entries are in the wrong order, or there is one twice.
    #[error("entry {entry}, at byte {at}, is out of order or fills a place that is filled")]
    OutOfOrder {
        /// Its number, from 1.
        entry: u64,
        /// At which byte.
        at: u64,
    },
    /// A statement is not between the owner and the peers that the header names.
    #[error("entry {entry}, at byte {at}, does not belong into a file of {owner}")]
    Foreign {
        /// Its number, from 1.
        entry: u64,
        /// At which byte.
        at: u64,
        /// Whose file it is.
        owner: PeerId,
    },
    /// The seal is another's, or counts otherwise.
    #[error("the seal does not fit the file")]
    WrongSeal,
    /// The seal is forged, or the file cannot be sealed with this key.
    #[error("the seal does not hold: {0}")]
    Seal(SignError),
    /// More than a reader holds in memory.
    #[error("the file holds more than {most} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// An entry is too long to be written.
    #[error("an entry cannot be written: {0}")]
    Unwritable(#[from] WireError),
}

/// The chain: `h_0 = H(header)`, `h_{i+1} = H(h_i | payload)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chain(Digest);

impl Chain {
    fn begin(payload: &[u8]) -> Self {
        Self(digest_of(&framed(CHAIN_DOMAIN, payload)))
    }

    fn then(self, payload: &[u8]) -> Self {
        Self::begin(&[self.0.as_bytes().as_slice(), payload].concat())
    }

    fn check(&self) -> &[u8] {
        &self.0.as_bytes()[..CHECK_BYTES]
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn put(into: &mut Vec<u8>, payload: &[u8], chain: Chain) -> Result<(), WireError> {
    let too_large = WireError::TooLarge { len: payload.len(), max: MAX_FRAME_BYTES };
    let len = u32::try_from(payload.len()).map_err(|_| too_large)?;
    into.extend(len.to_le_bytes());
    into.extend(payload);
    into.extend(chain.check());
    Ok(())
}

/// Keeps entries in order: shared by who writes and who reads.
#[derive(Debug, Clone, Copy, Default)]
struct Order {
    last: Option<Rank>,
}

impl Order {
    /// Takes the next entry; false when it may not stand there.
    fn take(&mut self, entry: &Entry) -> bool {
        let rank = entry.rank();
        let rises = rank > self.last;
        self.last = rank;
        rises
    }
}

/// Writes a file, entry by entry, as bytes for the caller to keep.
#[derive(Debug)]
pub struct Writer {
    owner: PeerId,
    chain: Chain,
    entries: u64,
    /// Bytes so far.
    written: u64,
    order: Order,
}

impl Writer {
    /// Begins a file; gives its first bytes.
    ///
    /// # Errors
    /// When the header cannot be encoded.
    pub fn begin(header: &Header) -> Result<(Self, Vec<u8>), ExportError> {
        let payload = encode(header)?;
        let chain = Chain::begin(&payload);
        let mut bytes = MAGIC.to_vec();
        put(&mut bytes, &payload, chain)?;
        let written = length(bytes.len());
        Ok((Self { owner: header.owner, chain, entries: 0, written, order: Order::default() }, bytes))
    }

    /// Adds the next entry; gives its bytes. Signatures are not checked: the caller's ledger did that.
    ///
    /// # Errors
    /// When it is out of order, or too long.
    pub fn entry(&mut self, entry: Entry) -> Result<Vec<u8>, ExportError> {
        self.entries += 1;
        if !self.order.take(&entry) {
            return Err(ExportError::OutOfOrder { entry: self.entries, at: self.written });
        }
        self.frame(&Frame::Entry(entry))
    }

    /// The chain after the last entry: what the seal will sign.
    #[must_use]
    pub fn chain(&self) -> Digest {
        self.chain.0
    }

    /// How many entries were added.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Ends the file; gives its last bytes.
    ///
    /// # Errors
    /// When the key is not the owner's.
    pub fn seal(mut self, key: &SigningKey) -> Result<Vec<u8>, ExportError> {
        let seal = Seal { owner: self.owner, entries: self.entries, chain: self.chain.0 };
        let seal = key.sign(seal).map_err(ExportError::Seal)?;
        self.frame(&Frame::Seal(Box::new(seal.into_signed())))
    }

    fn frame(&mut self, frame: &Frame) -> Result<Vec<u8>, ExportError> {
        let payload = encode(frame)?;
        self.chain = self.chain.then(&payload);
        let mut bytes = Vec::with_capacity(LENGTH_BYTES + payload.len() + CHECK_BYTES);
        put(&mut bytes, &payload, self.chain)?;
        self.written = self.written.saturating_add(length(bytes.len()));
        Ok(bytes)
    }
}

/// Where something stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// The entry's number, from 1.
    pub entry: u64,
    /// Its first byte in the file.
    pub byte: u64,
}

/// What comes out of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The header, once, first. Not signed yet: only the seal vouches for it.
    Header(Header),
    /// The next entry, in order. Its signatures are not checked yet (see [`audit::Audit`]).
    Entry(At, Entry),
    /// The seal, once, last: what came before is what its owner wrote.
    Seal(Verified<Seal>),
}

/// Reads a file that is fed to it piece by piece: at most one frame and one piece are in memory.
#[derive(Debug, Default)]
pub struct Reader {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are done with.
    done: usize,
    /// The byte of the file at which the rest of `buffer` begins.
    at: u64,
    header: Option<Header>,
    chain: Option<Chain>,
    entries: u64,
    order: Order,
    sealed: bool,
}

/// An entry's bytes, and the chain after it where it is one of the chain.
type Framed = (Vec<u8>, Option<Chain>);

impl Reader {
    /// Takes the next bytes of the file. Call [`Reader::next`] until it gives nothing before more are fed.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.done.min(self.buffer.len()));
        self.done = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// What the file says of itself, once that was read.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// The next item, as soon as all of it was fed.
    ///
    /// # Errors
    /// The first thing found wrong; the file is worth nothing then.
    #[expect(clippy::should_implement_trait, reason = "an iterator has no way to ask for more bytes")]
    pub fn next(&mut self) -> Result<Option<Item>, ExportError> {
        if self.sealed {
            let over = self.buffer.len() > self.done;
            return if over { Err(ExportError::Trailing { at: self.at }) } else { Ok(None) };
        }
        if self.header.is_none() {
            return self.read_header();
        }
        let byte = self.at;
        let Some((payload, before)) = self.frame()? else { return Ok(None) };
        let at = At { entry: self.entries + 1, byte };
        let frame: Frame = decode_bounded(&payload).map_err(|source| ExportError::Undecodable {
            entry: at.entry,
            at: byte,
            source,
        })?;
        match frame {
            Frame::Entry(entry) => {
                self.entries = at.entry;
                self.place(at, &entry)?;
                Ok(Some(Item::Entry(at, entry)))
            }
            Frame::Seal(seal) => self.seal(*seal, before).map(Some),
        }
    }

    /// Says that nothing more will be fed.
    ///
    /// # Errors
    /// When the file has no seal.
    pub fn finish(&self) -> Result<(), ExportError> {
        let fed = length(self.buffer.len().saturating_sub(self.done));
        let at = self.at.saturating_add(fed);
        match (self.sealed, self.at) {
            (true, _) => Ok(()),
            (false, 0) => Err(ExportError::NotAnExport),
            (false, _) => Err(ExportError::CutOff { at }),
        }
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.done..).unwrap_or_default()
    }

    fn take(&mut self, bytes: usize) {
        self.done += bytes;
        self.at = self.at.saturating_add(length(bytes));
    }

    fn read_header(&mut self) -> Result<Option<Item>, ExportError> {
        if self.at == 0 {
            let Some(magic) = self.rest().get(..MAGIC.len()) else { return Ok(None) };
            if magic != MAGIC {
                return Err(ExportError::NotAnExport);
            }
            self.take(MAGIC.len());
        }
        let Some((payload, _)) = self.frame()? else { return Ok(None) };
        let header: Header = decode(&payload).map_err(|_| ExportError::NotAnExport)?;
        if header.version != EXPORT_VERSION {
            return Err(ExportError::Version { version: header.version });
        }
        self.header = Some(header.clone());
        Ok(Some(Item::Header(header)))
    }

    /// The payload of the next frame, and the chain before it.
    fn frame(&mut self) -> Result<Option<Framed>, ExportError> {
        let rest = self.rest();
        let Some(length) = rest.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let claimed = u32::from_le_bytes(*length);
        let len = usize::try_from(claimed).unwrap_or(usize::MAX);
        if len == 0 || len > MAX_FRAME_BYTES {
            return Err(ExportError::Length { at: self.at, len: claimed });
        }
        let whole = LENGTH_BYTES + len + CHECK_BYTES;
        let Some(frame) = rest.get(..whole) else { return Ok(None) };
        let payload = frame.get(LENGTH_BYTES..LENGTH_BYTES + len).unwrap_or_default().to_vec();
        let chain = self.chain.map_or_else(|| Chain::begin(&payload), |chain| chain.then(&payload));
        let intact = frame.ends_with(chain.check());
        self.take(whole);
        if !intact {
            return Err(ExportError::Changed { at: self.at });
        }
        let before = self.chain.replace(chain);
        Ok(Some((payload, before)))
    }

    /// Does the entry stand where it may, and belong to the owner?
    fn place(&mut self, At { entry, byte: at }: At, it: &Entry) -> Result<(), ExportError> {
        let Some(Header { owner, peer, .. }) = self.header else { return Err(ExportError::NotAnExport) };
        let belongs = match it {
            Entry::Statement(it) => it.pair().is_some_and(|pair| {
                pair.has(owner) && peer.is_none_or(|peer| pair.other(owner) == Some(peer))
            }),
            Entry::Proof(it) => peer.is_none_or(|peer| [owner, peer].contains(&it.first.signer())),
        };
        if !belongs {
            return Err(ExportError::Foreign { entry, at, owner });
        }
        if self.order.take(it) { Ok(()) } else { Err(ExportError::OutOfOrder { entry, at }) }
    }

    fn seal(&mut self, seal: Signed<Seal>, before: Option<Chain>) -> Result<Item, ExportError> {
        let Some(Header { owner, .. }) = self.header else { return Err(ExportError::NotAnExport) };
        let Seal { owner: sealed_by, entries, chain } = seal.body;
        if sealed_by != owner || entries != self.entries || before != Some(Chain(chain)) {
            return Err(ExportError::WrongSeal);
        }
        let seal = seal.verify().map_err(ExportError::Seal)?;
        self.sealed = true;
        Ok(Item::Seal(seal))
    }
}
