//! Slots: what at most one object may ever fill (invariant I7), and the keys of the index.
//!
//! Owns: [`Slot`], what it is about, and how slots and lanes are written as keys. Never: knows what
//! fills one (the index does). Called by records, the writer, the index and whoever reads one object.

use std::fmt;

use potluck_protocol::balance::PairId;
use potluck_protocol::id::{LaneId, PeerId};
use potluck_protocol::statement::{self, Place};

use super::error::RecordError;
use super::record::Kind;

/// Bytes of a slot's key in the index.
pub(super) const SLOT_KEY_BYTES: usize = SUBJECT_BYTES + 1 + 4;
/// Bytes that stand for a slot's subject in its key: nobody finds two subjects with the same.
pub(super) const SUBJECT_BYTES: usize = 16;
/// Bytes of a lane's key in the index.
pub(super) const LANE_KEY_BYTES: usize = 32 + 32 + 4 + 8;

/// A slot's key in the index.
pub(super) type SlotKey = [u8; SLOT_KEY_BYTES];
/// A lane's key in the index.
pub(super) type LaneKey = [u8; LANE_KEY_BYTES];

/// What a slot is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// A lane; of a quote: its peers and its serial.
    Lane(LaneId),
    /// One signer's side of a pair's balance, in one epoch.
    Steps {
        /// Which pair.
        pair: PairId,
        /// Who signs.
        by: PeerId,
        /// In which epoch.
        epoch: u32,
    },
    /// Whoever a proof convicts.
    Convict(PeerId),
}

/// What at most one object may ever fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Slot {
    /// Of which kind; states, countersignatures and cancels share [`Kind::State`].
    pub(super) kind: Kind,
    /// About what.
    pub(super) subject: Subject,
    /// Which of its kind.
    pub(super) k: u32,
}

impl Slot {
    /// The slot that the law calls `slot`; `None` where that signer has none.
    pub(super) fn of(slot: &statement::Slot) -> Option<Self> {
        let by = slot.signer;
        let (kind, lane, signer, k) = match slot.place {
            Place::Contract(lane) => (Kind::Contract, lane, lane.renter, 0),
            Place::Accept(lane) => (Kind::Accept, lane, lane.provider, 0),
            Place::Meter(lane, k) => (Kind::Meter, lane, lane.provider, k),
            Place::Voucher(lane, k) => (Kind::Voucher, lane, lane.renter, k),
            Place::Receipt(lane, k) => (Kind::Receipt, lane, lane.provider, k),
            Place::Close(lane) => (Kind::Close, lane, by, side(&lane, by).ok()?),
            Place::Abandon(lane) => (Kind::Abandon, lane, by, side(&lane, by).ok()?),
            Place::Step(pair, epoch, n) => return Self::step(pair, by, epoch, n).ok(),
            Place::Raise(pair, epoch) => return Self::raise(pair, by, epoch).ok(),
        };
        (signer == by).then_some(Self { kind, subject: Subject::Lane(lane), k })
    }

    /// Step `n` of `by`.
    pub(super) fn step(pair: PairId, by: PeerId, epoch: u32, n: u32) -> Result<Self, RecordError> {
        Self::of_pair(Kind::State, pair, by, epoch, n)
    }

    /// The epoch that `by` begins.
    pub(super) fn raise(pair: PairId, by: PeerId, epoch: u32) -> Result<Self, RecordError> {
        Self::of_pair(Kind::Raise, pair, by, epoch, 0)
    }

    fn of_pair(kind: Kind, pair: PairId, by: PeerId, epoch: u32, k: u32) -> Result<Self, RecordError> {
        if !pair.has(by) {
            return Err(RecordError::Stranger { by });
        }
        Ok(Self { kind, subject: Subject::Steps { pair, by, epoch }, k })
    }

    /// The two peers it is between; `None` for a proof, which is about anybody.
    pub(super) fn between(&self) -> Option<(PeerId, PeerId)> {
        match self.subject {
            Subject::Lane(lane) => Some((lane.renter, lane.provider)),
            Subject::Steps { pair, .. } => Some((pair.low(), pair.high())),
            Subject::Convict(_) => None,
        }
    }

    /// The lane that it is in; `None` for quotes, balances and proofs.
    pub(super) fn lane(&self) -> Option<LaneId> {
        match self.subject {
            Subject::Lane(lane) if self.kind != Kind::Quote => Some(lane),
            _ => None,
        }
    }

    /// Its key in the index: the slots of a lane lie side by side.
    pub(super) fn key(&self) -> SlotKey {
        let mut key = [0; SLOT_KEY_BYTES];
        key[..SUBJECT_BYTES].copy_from_slice(&slot_prefix(&self.subject));
        key[SUBJECT_BYTES] = self.kind.number();
        key[SUBJECT_BYTES + 1..].copy_from_slice(&self.k.to_be_bytes());
        key
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject {
            Subject::Lane(lane) => write!(f, "{} {} of {lane}", self.kind, self.k),
            Subject::Steps { by, epoch, .. } if self.kind == Kind::Raise => {
                write!(f, "epoch {epoch} by {}", by.short())
            }
            Subject::Steps { by, epoch, .. } => {
                write!(f, "balance step {} of epoch {epoch} by {}", self.k, by.short())
            }
            Subject::Convict(signer) => write!(f, "the proof against {signer}"),
        }
    }
}

/// 0 for the renter and 1 for the provider: both may end a lane.
pub(super) fn side(lane: &LaneId, by: PeerId) -> Result<u32, RecordError> {
    match by {
        it if it == lane.renter => Ok(0),
        it if it == lane.provider => Ok(1),
        _ => Err(RecordError::Stranger { by }),
    }
}

/// What the keys of all slots, and pages of slots, about a subject begin with.
pub(super) fn slot_prefix(subject: &Subject) -> [u8; SUBJECT_BYTES] {
    let hash = match subject {
        Subject::Lane(lane) => blake3::hash(&lane_key(lane)),
        // Of other lengths than a lane's key, so that no two subjects are written alike.
        Subject::Steps { pair, by, epoch } => {
            let (low, high) = (pair.low(), pair.high());
            let epoch = epoch.to_be_bytes();
            blake3::hash(&[low.as_bytes(), high.as_bytes(), by.as_bytes(), &epoch[..]].concat())
        }
        Subject::Convict(signer) => blake3::hash(signer.as_bytes()),
    };
    let mut prefix = [0; SUBJECT_BYTES];
    prefix.copy_from_slice(&hash.as_bytes()[..SUBJECT_BYTES]);
    prefix
}

/// A lane's key in the index: all its fields, big-endian, so that keys rise as lanes do.
pub(super) fn lane_key(lane: &LaneId) -> LaneKey {
    let mut key = [0; LANE_KEY_BYTES];
    key[..32].copy_from_slice(lane.renter.as_bytes());
    key[32..64].copy_from_slice(lane.provider.as_bytes());
    key[64..68].copy_from_slice(&lane.epoch.to_be_bytes());
    key[68..].copy_from_slice(&lane.lane.to_be_bytes());
    key
}
