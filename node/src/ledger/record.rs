//! Records: the signed objects that a ledger keeps, and the slot each one takes for ever.
//!
//! Owns: [`Record`], its stable kind numbers, its slot, what compaction does with it, and the check of
//! its signature. Never: writes. Called by the ledger's front (before an append), by the index (on a
//! rebuild) and by compaction.
//!
//! A new kind of object takes three steps, all here: a line in `kinds!` with a number that was never
//! used, `Recorded` for its type, and, when it changes what a lane comes to, an arm in
//! [`super::view::LaneState::take`].

use std::fmt;

use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::offer::Quote;
use potluck_protocol::settle::{Accept, Close, Contract, Meter, Receipt, Voucher};
use potluck_protocol::sign::{SignError, Signable, Signed, Verified, preimage};
use potluck_protocol::wire::{self, WireError};

/// Bytes of a slot's key in the index.
pub(super) const SLOT_KEY_BYTES: usize = LANE_HASH_BYTES + 1 + 4;
/// Bytes that stand for a lane in a slot's key: nobody finds two lanes with the same.
const LANE_HASH_BYTES: usize = 16;
/// Bytes of a lane's key in the index.
pub(super) const LANE_KEY_BYTES: usize = 32 + 32 + 4 + 8;

/// What compaction does with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is of no lane, or stands outside it: kept for ever.
    Apart,
    /// It proves what the lane came to: kept for ever.
    Evidence,
    /// The newest of its kind in the lane proves it; the others go when the lane is retired.
    Newest,
    /// It mattered while the lane ran: it goes when the lane is retired.
    Passing,
}

/// A kind of object that the ledger keeps.
pub(super) trait Recorded: Signable + Clone {
    /// What compaction does with it.
    const KEEP: Keep;

    /// In which lane, and which of its kind there.
    fn place(&self) -> Result<(LaneId, u32), RecordError>;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident($body:ty) = $number:literal, $text:literal;)*) => {
        /// A signed object to keep.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Record {
            $($(#[$doc])* $name(Signed<$body>),)*
        }

        /// Kinds of record. The numbers are the journal's format: none is ever reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Kind {
            $(#[doc = concat!("[`Record::", stringify!($name), "`]")] $name = $number,)*
        }

        impl Kind {
            /// The kind that bears `number`.
            pub(super) fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// What compaction does with its objects.
            pub(super) fn keep(self) -> Keep {
                match self {
                    $(Self::$name => <$body as Recorded>::KEEP,)*
                }
            }
        }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)*
                })
            }
        }

        impl Record {
            /// Its canonical bytes, read back.
            fn decode(kind: Kind, payload: &[u8]) -> Result<Self, WireError> {
                Ok(match kind {
                    $(Kind::$name => Self::$name(wire::decode(payload)?),)*
                })
            }

            fn slot(&self) -> Result<Slot, RecordError> {
                let (kind, (lane, k)) = match self {
                    $(Self::$name(it) => (Kind::$name, it.body.place()?),)*
                };
                Ok(Slot { kind, lane, k })
            }

            /// Which kind it is of.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$name(_) => Kind::$name,)*
                }
            }

            fn encoded(&self) -> Result<Vec<u8>, WireError> {
                match self {
                    $(Self::$name(it) => wire::encode(it),)*
                }
            }

            fn verify(&self) -> Result<(), SignError> {
                match self {
                    $(Self::$name(it) => it.clone().verify().map(drop),)*
                }
            }

            /// Its digest: blake3 of what is signed.
            ///
            /// # Errors
            /// When it does not fit a frame.
            pub fn digest(&self) -> Result<Digest, WireError> {
                let preimage = match self {
                    $(Self::$name(it) => preimage(&it.body)?,)*
                };
                Ok(Digest::from_bytes(*blake3::hash(&preimage).as_bytes()))
            }
        }

        $(impl From<Verified<$body>> for VerifiedRecord {
            fn from(it: Verified<$body>) -> Self {
                Self { digest: it.digest(), record: Record::$name(it.into_signed()) }
            }
        })*
    };
}

kinds! {
    /// What a provider promised.
    Quote(Quote) = 1, "quote";
    /// What a renter bound itself to.
    Contract(Contract) = 2, "contract";
    /// That a provider took it.
    Accept(Accept) = 3, "accept";
    /// Work claimed.
    Meter(Meter) = 4, "meter";
    /// Work paid for.
    Voucher(Voucher) = 5, "voucher";
    /// That a voucher arrived.
    Receipt(Receipt) = 6, "receipt";
    /// The end of a lane.
    Close(Close) = 7, "close";
}

impl Recorded for Quote {
    const KEEP: Keep = Keep::Apart;

    /// Its serial stands in the lane's number.
    fn place(&self) -> Result<(LaneId, u32), RecordError> {
        let Self { renter, provider, serial, .. } = *self;
        Ok((LaneId { renter, provider, epoch: 0, lane: serial }, 0))
    }
}

/// The place of an object that a lane has one of, or numbers from 1.
macro_rules! in_lane {
    ($body:ty, $keep:ident, $k:expr) => {
        impl Recorded for $body {
            const KEEP: Keep = Keep::$keep;

            fn place(&self) -> Result<(LaneId, u32), RecordError> {
                let k: fn(&Self) -> u32 = $k;
                Ok((self.lane, k(self)))
            }
        }
    };
}

in_lane!(Contract, Evidence, |_| 0);
in_lane!(Accept, Passing, |_| 0);
in_lane!(Meter, Passing, |it| it.k);
in_lane!(Voucher, Newest, |it| it.k);
in_lane!(Receipt, Newest, |it| it.k);

impl Recorded for Close {
    const KEEP: Keep = Keep::Evidence;

    /// 0 by the renter and 1 by the provider: both may close.
    fn place(&self) -> Result<(LaneId, u32), RecordError> {
        let (lane, by) = (self.lane, self.by);
        if by != lane.renter && by != lane.provider {
            return Err(RecordError::StrangerCloses { by });
        }
        Ok((lane, u32::from(by == lane.provider)))
    }
}

impl Kind {
    /// Its number in the journal.
    pub(super) fn number(self) -> u8 {
        self as u8
    }
}

/// What at most one object may ever fill (invariant I7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Slot {
    /// Of which kind.
    pub(super) kind: Kind,
    /// In which lane (see [`Recorded::place`]).
    pub(super) lane: LaneId,
    /// Which of its kind.
    pub(super) k: u32,
}

impl Slot {
    /// Its key in the index: the slots of a lane lie side by side.
    pub(super) fn key(&self) -> [u8; SLOT_KEY_BYTES] {
        let mut key = [0; SLOT_KEY_BYTES];
        key[..LANE_HASH_BYTES].copy_from_slice(&slot_prefix(&self.lane));
        key[LANE_HASH_BYTES] = self.kind.number();
        key[LANE_HASH_BYTES + 1..].copy_from_slice(&self.k.to_be_bytes());
        key
    }
}

/// What the keys of all slots of a lane begin with.
pub(super) fn slot_prefix(lane: &LaneId) -> [u8; LANE_HASH_BYTES] {
    let hash = blake3::hash(&lane_key(lane));
    let mut prefix = [0; LANE_HASH_BYTES];
    prefix.copy_from_slice(&hash.as_bytes()[..LANE_HASH_BYTES]);
    prefix
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

/// An object whose signature this process made or checked: keeping it costs no second check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedRecord {
    digest: Digest,
    record: Record,
}

/// A record that belongs in this ledger, ready for the journal.
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
        record.verify()?;
        let digest = record.digest()?;
        Self::from_verified(VerifiedRecord { digest, record }, me)
    }

    /// Checks the parties.
    pub(super) fn from_verified(verified: VerifiedRecord, me: PeerId) -> Result<Self, RecordError> {
        let payload = verified.record.encoded()?;
        Self::placed(verified, payload, me)
    }

    /// Reads what the journal holds. Its signature was checked before it was appended, and the chain
    /// shows that it is unchanged since.
    pub(super) fn from_journal(number: u8, payload: &[u8], me: PeerId) -> Result<Self, RecordError> {
        let kind = Kind::from_number(number).ok_or(RecordError::UnknownKind { number })?;
        let record = Record::decode(kind, payload)?;
        let digest = record.digest()?;
        Self::placed(VerifiedRecord { digest, record }, payload.to_vec(), me)
    }

    /// Checks the signature again.
    pub(super) fn verify(&self) -> Result<(), RecordError> {
        Ok(self.record.verify()?)
    }

    fn placed(
        VerifiedRecord { digest, record }: VerifiedRecord,
        payload: Vec<u8>,
        me: PeerId,
    ) -> Result<Self, RecordError> {
        let slot = record.slot()?;
        let LaneId { renter, provider, .. } = slot.lane;
        if renter == provider || (renter != me && provider != me) {
            return Err(RecordError::NotOurs { kind: slot.kind, renter, provider, me });
        }
        Ok(Self { slot, digest, payload, record })
    }
}
