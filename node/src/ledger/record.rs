//! Records: the signed objects that a ledger keeps.
//!
//! Owns: [`Record`], its stable kind numbers, which slot it takes, what compaction does with it, and the
//! check of its signature. Never: writes. Called by the ledger's front (before an append), by the index
//! (on a rebuild) and by compaction.
//!
//! A new kind of object takes three steps, all here: a line in `kinds!` with a number that was never
//! used, `Recorded` for its type, and, when it changes what a lane comes to, an arm in
//! [`super::lane::LaneState::take`].

use std::fmt;

use potluck_protocol::balance::{Cancel, Countersign, PairState, Raise};
use potluck_protocol::codec::{Bounded as _, check_len};
use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::limits::MAX_FRAME_BYTES;
use potluck_protocol::offer::Quote;
use potluck_protocol::proof::Equivocation;
use potluck_protocol::settle::{Abandon, Accept, Close, Contract, Meter, Receipt, Voucher};
use potluck_protocol::sign::{Signable, Signed, Verified, preimage};
use potluck_protocol::statement::Statement;
use potluck_protocol::unit::UnixMillis;
use potluck_protocol::wire::{self, WireError};

use super::error::RecordError;
use super::slot::{Slot, SlotKey, Subject, side};

/// What compaction does with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// It is of no lane, or stands outside it: kept for ever.
    Apart,
    /// It proves what the lane came to: kept for ever.
    Evidence,
    /// The newest of its kind in the lane proves it; the others go when the lane is retired.
    Newest,
}

/// A kind of object that the ledger keeps.
pub(super) trait Recorded: Signable + Clone {
    /// What compaction does with it.
    const KEEP: Keep;

    /// What it fills.
    fn slot(&self) -> Result<Slot, RecordError>;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident($body:ty) = $number:literal, $text:literal;)*) => {
        /// A signed object to keep.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Record {
            $($(#[$doc])* $name(Signed<$body>),)*
            /// That somebody signed two things in one place.
            Proof(Box<Equivocation>),
        }

        /// Kinds of record. The numbers are the journal's format: none is ever reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Kind {
            $(#[doc = concat!("[`Record::", stringify!($name), "`]")] $name = $number,)*
            /// [`Record::Proof`]
            Proof = 13,
        }

        impl Kind {
            /// The kind that bears `number`.
            pub(super) fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    13 => Some(Self::Proof),
                    _ => None,
                }
            }

            /// What compaction does with its objects.
            pub(super) fn keep(self) -> Keep {
                match self {
                    $(Self::$name => <$body as Recorded>::KEEP,)*
                    Self::Proof => Keep::Apart,
                }
            }
        }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)*
                    Self::Proof => "proof",
                })
            }
        }

        impl Record {
            /// Its canonical bytes, read back.
            fn decode(kind: Kind, payload: &[u8]) -> Result<Self, WireError> {
                Ok(match kind {
                    $(Kind::$name => Self::$name(wire::decode(payload)?),)*
                    Kind::Proof => Self::Proof(wire::decode(payload)?),
                })
            }

            /// What it fills.
            pub(super) fn slot(&self) -> Result<Slot, RecordError> {
                match self {
                    $(Self::$name(it) => it.body.slot(),)*
                    Self::Proof(it) => {
                        let subject = Subject::Convict(it.first.signer());
                        Ok(Slot { kind: Kind::Proof, subject, k: 0 })
                    }
                }
            }

            /// Which kind it is of.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$name(_) => Kind::$name,)*
                    Self::Proof(_) => Kind::Proof,
                }
            }

            /// Checks what is signed.
            fn verify(self) -> Result<VerifiedRecord, RecordError> {
                Ok(match self {
                    $(Self::$name(it) => it.verify()?.into(),)*
                    Self::Proof(it) => {
                        it.verify()?;
                        let (digest, payload) = (it.digest()?, wire::encode(&it)?);
                        VerifiedRecord { digest, record: Self::Proof(it), payload }
                    }
                })
            }

            /// Its digest: blake3 of what is signed; of a proof, of all of it.
            ///
            /// # Errors
            /// When it does not fit a frame.
            pub fn digest(&self) -> Result<Digest, WireError> {
                let preimage = match self {
                    $(Self::$name(it) => preimage(&it.body)?,)*
                    Self::Proof(it) => return it.digest(),
                };
                Ok(Digest::from_bytes(*blake3::hash(&preimage).as_bytes()))
            }

            /// As the law reads it; `None` for a proof.
            #[must_use]
            pub fn statement(&self) -> Option<Statement> {
                match self {
                    $(Self::$name(it) => Some(it.clone().into()),)*
                    Self::Proof(_) => None,
                }
            }
        }

        impl From<Statement> for Record {
            fn from(statement: Statement) -> Self {
                match statement {
                    $(Statement::$name(it) => Self::$name(*it),)*
                }
            }
        }

        $(impl From<Verified<$body>> for VerifiedRecord {
            fn from(it: Verified<$body>) -> Self {
                let (signed, digest, payload) = it.into_parts();
                Self { digest, record: Record::$name(signed), payload }
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
    /// The end of a lane in which nothing happened for a day.
    Abandon(Abandon) = 8, "abandoning";
    /// A balance proposed.
    State(PairState) = 9, "balance";
    /// A balance agreed.
    Countersign(Countersign) = 10, "countersignature";
    /// A balance refused.
    Cancel(Cancel) = 11, "refusal of a balance";
    /// An epoch begun.
    Raise(Raise) = 12, "epoch";
}

impl Recorded for Quote {
    const KEEP: Keep = Keep::Apart;

    /// Its serial stands in the lane's number.
    fn slot(&self) -> Result<Slot, RecordError> {
        let Self { renter, provider, serial, .. } = *self;
        let lane = LaneId { renter, provider, epoch: 0, lane: serial };
        Ok(Slot { kind: Kind::Quote, subject: Subject::Lane(lane), k: 0 })
    }
}

/// The slot of an object that a lane has one of, numbers from 1, or has one of from each side.
macro_rules! in_lane {
    ($name:ident, $keep:ident, $k:expr) => {
        impl Recorded for $name {
            const KEEP: Keep = Keep::$keep;

            fn slot(&self) -> Result<Slot, RecordError> {
                let k: fn(&Self) -> Result<u32, RecordError> = $k;
                Ok(Slot { kind: Kind::$name, subject: Subject::Lane(self.lane), k: k(self)? })
            }
        }
    };
}

in_lane!(Contract, Evidence, |_| Ok(0));
in_lane!(Accept, Evidence, |_| Ok(0));
in_lane!(Meter, Newest, |it| Ok(it.k));
in_lane!(Voucher, Newest, |it| Ok(it.k));
in_lane!(Receipt, Newest, |it| Ok(it.k));
in_lane!(Close, Evidence, |it| side(&it.lane, it.by));
in_lane!(Abandon, Evidence, |it| side(&it.lane, it.by));

/// The slot of what one signer says of a pair's balance.
macro_rules! of_pair {
    ($name:ident, $slot:expr) => {
        impl Recorded for $name {
            /// Few and small; they are the whole history of what was agreed and paid.
            const KEEP: Keep = Keep::Apart;

            fn slot(&self) -> Result<Slot, RecordError> {
                let slot: fn(&Self) -> Result<Slot, RecordError> = $slot;
                slot(self)
            }
        }
    };
}

of_pair!(PairState, |it| Slot::step(it.pair, it.by, it.epoch, it.n));
of_pair!(Countersign, |it| Slot::step(it.pair, it.by, it.epoch, it.n));
of_pair!(Cancel, |it| Slot::step(it.pair, it.by, it.epoch, it.n));
of_pair!(Raise, |it| Slot::raise(it.pair, it.by, it.epoch));

impl Record {
    /// What its signer is bound to in its slot, given its digest.
    fn commitment(&self, digest: Digest) -> Digest {
        match self {
            Self::Countersign(it) => it.body.state,
            _ => digest,
        }
    }
}

impl From<Equivocation> for Record {
    fn from(proof: Equivocation) -> Self {
        Self::Proof(Box::new(proof))
    }
}

impl Kind {
    /// Its number in the journal.
    pub(super) fn number(self) -> u8 {
        self as u8
    }
}

/// An object whose signature this process made or checked: keeping it costs no second check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedRecord {
    digest: Digest,
    record: Record,
    /// Its canonical bytes.
    payload: Vec<u8>,
}

/// A record that belongs in this ledger, ready for the journal.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    /// What it fills.
    pub(super) slot: Slot,
    /// The slot's key.
    pub(super) key: SlotKey,
    /// What it is.
    pub(super) digest: Digest,
    /// What its signer is bound to in its slot: its own digest; of a countersignature, the state's.
    pub(super) commitment: Digest,
    /// When we heard of it, by our clock; `None` for what came late: by sync, import or rebuild.
    pub(super) heard: Option<UnixMillis>,
    /// Canonical bytes of the signed object.
    pub(super) payload: Vec<u8>,
    /// The object itself.
    pub(super) record: Record,
}

impl Checked {
    /// Checks signature, bounds and parties.
    pub(super) fn new(record: Record, me: PeerId) -> Result<Self, RecordError> {
        if let Record::State(state) = &record {
            state.body.check_bounds()?;
        }
        Self::from_verified(record.verify()?, me)
    }

    /// Reads what the journal holds. Its signature was checked before it was appended, and the chain
    /// shows that it is unchanged since.
    pub(super) fn from_journal(number: u8, payload: &[u8], me: PeerId) -> Result<Self, RecordError> {
        let kind = Kind::from_number(number).ok_or(RecordError::UnknownKind { number })?;
        let record = Record::decode(kind, payload)?;
        let digest = record.digest()?;
        Self::from_verified(VerifiedRecord { digest, record, payload: payload.to_vec() }, me)
    }

    /// Checks the signature again.
    pub(super) fn verify(&self) -> Result<(), RecordError> {
        self.record.clone().verify().map(drop)
    }

    /// The slot's key and the commitment of a record that would belong here, its signature apart.
    pub(super) fn unsigned(record: &Record, me: PeerId) -> Result<(SlotKey, Digest), RecordError> {
        let slot = Self::place(record, me)?;
        Ok((slot.key(), record.commitment(record.digest()?)))
    }

    fn place(record: &Record, me: PeerId) -> Result<Slot, RecordError> {
        let slot = record.slot()?;
        if let Some((one, other)) = slot.between()
            && (one == other || (one != me && other != me))
        {
            return Err(RecordError::NotOurs { kind: record.kind(), one, other, me });
        }
        Ok(slot)
    }

    /// Checks the parties, and that it fits a frame.
    pub(super) fn from_verified(verified: VerifiedRecord, me: PeerId) -> Result<Self, RecordError> {
        let VerifiedRecord { digest, record, payload } = verified;
        check_len(payload.len(), MAX_FRAME_BYTES)?;
        let slot = Self::place(&record, me)?;
        let commitment = record.commitment(digest);
        Ok(Self { slot, key: slot.key(), digest, commitment, heard: None, payload, record })
    }
}
