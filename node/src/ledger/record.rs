//! Records: the signed objects that a ledger keeps, and the slot each one takes for ever.
//!
//! Owns: [`Record`], its stable kind numbers, its slot, and the check of its signature. Never:
//! writes. Called by the ledger's front (before an append) and by the index (on a rebuild).

use std::fmt;

use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::offer::Quote;
use potluck_protocol::settle::{Accept, Close, Contract, Meter, Receipt, Voucher};
use potluck_protocol::sign::{SignError, Signable, Signed};
use potluck_protocol::wire::{self, WireError};

/// Bytes of a slot's key in the index.
pub(super) const SLOT_KEY_BYTES: usize = 1 + LANE_KEY_BYTES + 4;
/// Bytes of a lane's key in the index.
pub(super) const LANE_KEY_BYTES: usize = 32 + 32 + 4 + 8;

/// A signed object to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// What a provider promised.
    Quote(Signed<Quote>),
    /// What a renter bound itself to.
    Contract(Signed<Contract>),
    /// That a provider took it.
    Accept(Signed<Accept>),
    /// Work claimed.
    Meter(Signed<Meter>),
    /// Work paid for.
    Voucher(Signed<Voucher>),
    /// That a voucher arrived.
    Receipt(Signed<Receipt>),
    /// The end of a lane.
    Close(Signed<Close>),
}

/// Kinds of record. The numbers are the journal's format: none is ever reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// [`Record::Quote`]
    Quote = 1,
    /// [`Record::Contract`]
    Contract = 2,
    /// [`Record::Accept`]
    Accept = 3,
    /// [`Record::Meter`]
    Meter = 4,
    /// [`Record::Voucher`]
    Voucher = 5,
    /// [`Record::Receipt`]
    Receipt = 6,
    /// [`Record::Close`]
    Close = 7,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Quote, Self::Contract, Self::Accept, Self::Meter, Self::Voucher, Self::Receipt, Self::Close];

    /// Its number in the journal.
    pub(super) fn number(self) -> u8 {
        self as u8
    }

    /// The kind that bears `number`.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quote => "quote",
            Self::Contract => "contract",
            Self::Accept => "accept",
            Self::Meter => "meter",
            Self::Voucher => "voucher",
            Self::Receipt => "receipt",
            Self::Close => "close",
        })
    }
}

/// What at most one object may ever fill (invariant I7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Slot {
    /// Of which kind.
    pub(super) kind: Kind,
    /// In which lane; for a quote, its serial stands in the lane's number.
    pub(super) lane: LaneId,
    /// Which of its kind: `k`; for a close 0 by the renter and 1 by the provider; otherwise 0.
    pub(super) k: u32,
}

impl Slot {
    /// Its key in the index.
    pub(super) fn key(&self) -> [u8; SLOT_KEY_BYTES] {
        let mut key = [0; SLOT_KEY_BYTES];
        key[0] = self.kind.number();
        key[1..=LANE_KEY_BYTES].copy_from_slice(&lane_key(&self.lane));
        key[1 + LANE_KEY_BYTES..].copy_from_slice(&self.k.to_be_bytes());
        key
    }
}

/// A lane's key in the index: all its fields, big-endian.
pub(super) fn lane_key(lane: &LaneId) -> [u8; LANE_KEY_BYTES] {
    let mut key = [0; LANE_KEY_BYTES];
    key[..32].copy_from_slice(lane.renter.as_bytes());
    key[32..64].copy_from_slice(lane.provider.as_bytes());
    key[64..68].copy_from_slice(&lane.epoch.to_be_bytes());
    key[68..].copy_from_slice(&lane.lane.to_be_bytes());
    key
}

/// Why an object may not enter this ledger. Fault: whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] SignError),
    /// Not the encoding of such an object.
    #[error(transparent)]
    Encoding(#[from] WireError),
    /// A kind that this version does not know.
    #[error("record kind {number} is unknown to this version")]
    UnknownKind {
        /// Its number.
        number: u8,
    },
    /// Between others, or between us and ourselves.
    #[error(
        "the {kind} is between {renter} and {provider}; this ledger keeps what is between {me} and others"
    )]
    NotOurs {
        /// Which kind of object.
        kind: Kind,
        /// Who pays.
        renter: PeerId,
        /// Who works.
        provider: PeerId,
        /// Whose ledger this is.
        me: PeerId,
    },
    /// A close by somebody outside the lane.
    #[error("{by} closes a lane that is not its own")]
    StrangerCloses {
        /// Who.
        by: PeerId,
    },
}

/// A record whose signature holds, ready for the journal.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    /// What it fills.
    pub(super) slot: Slot,
    /// What it is.
    pub(super) digest: Digest,
    /// Canonical bytes of the signed object.
    pub(super) payload: Vec<u8>,
    /// The object itself.
    pub(super) record: Record,
}

impl Checked {
    /// Checks signature and parties.
    pub(super) fn new(record: Record, me: PeerId) -> Result<Self, RecordError> {
        let slot = record.slot()?;
        let LaneId { renter, provider, .. } = slot.lane;
        if renter == provider || (renter != me && provider != me) {
            return Err(RecordError::NotOurs { kind: slot.kind, renter, provider, me });
        }
        let (digest, payload) = record.verified()?;
        Ok(Self { slot, digest, payload, record })
    }

    /// Reads and checks what the journal holds.
    pub(super) fn from_journal(number: u8, payload: &[u8], me: PeerId) -> Result<Self, RecordError> {
        let kind = Kind::from_number(number).ok_or(RecordError::UnknownKind { number })?;
        let record = match kind {
            Kind::Quote => Record::Quote(wire::decode(payload)?),
            Kind::Contract => Record::Contract(wire::decode(payload)?),
            Kind::Accept => Record::Accept(wire::decode(payload)?),
            Kind::Meter => Record::Meter(wire::decode(payload)?),
            Kind::Voucher => Record::Voucher(wire::decode(payload)?),
            Kind::Receipt => Record::Receipt(wire::decode(payload)?),
            Kind::Close => Record::Close(wire::decode(payload)?),
        };
        Self::new(record, me)
    }
}

impl Record {
    fn slot(&self) -> Result<Slot, RecordError> {
        let slot = |kind, lane, k| Slot { kind, lane, k };
        Ok(match self {
            Self::Quote(it) => {
                let Quote { renter, provider, serial, .. } = it.body;
                slot(Kind::Quote, LaneId { renter, provider, epoch: 0, lane: serial }, 0)
            }
            Self::Contract(it) => slot(Kind::Contract, it.body.lane, 0),
            Self::Accept(it) => slot(Kind::Accept, it.body.lane, 0),
            Self::Meter(it) => slot(Kind::Meter, it.body.lane, it.body.k),
            Self::Voucher(it) => slot(Kind::Voucher, it.body.lane, it.body.k),
            Self::Receipt(it) => slot(Kind::Receipt, it.body.lane, it.body.k),
            Self::Close(it) => {
                let (lane, by) = (it.body.lane, it.body.by);
                if by != lane.renter && by != lane.provider {
                    return Err(RecordError::StrangerCloses { by });
                }
                slot(Kind::Close, lane, u32::from(by == lane.provider))
            }
        })
    }

    fn verified(&self) -> Result<(Digest, Vec<u8>), RecordError> {
        match self {
            Self::Quote(it) => verified(it),
            Self::Contract(it) => verified(it),
            Self::Accept(it) => verified(it),
            Self::Meter(it) => verified(it),
            Self::Voucher(it) => verified(it),
            Self::Receipt(it) => verified(it),
            Self::Close(it) => verified(it),
        }
    }
}

fn verified<T: Signable + Clone>(signed: &Signed<T>) -> Result<(Digest, Vec<u8>), RecordError> {
    let payload = wire::encode(signed)?;
    Ok((signed.clone().verify()?.digest(), payload))
}
