//! Any signed object between two peers, and the slot that it takes for ever.
//!
//! Owns: [`Statement`], the closed list of what two peers sign to each other about money, with its
//! pair, signer, [`Slot`] and check. Never: judges whether a statement was right to make (the laws
//! do) or keeps one. Called by sync, proofs and the ledger.
//!
//! A slot is what a signer fills at most once (invariant I7). Two valid statements of one signer in
//! one slot that commit it to different things convict it anywhere (see [`crate::proof`]).

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::balance::{Cancel, Countersign, PairId, PairState, Raise};
use crate::codec::{Bounded, WireError};
use crate::id::{Digest, LaneId, PeerId};
use crate::offer::Quote;
use crate::settle::{Abandon, Accept, Close, Contract, Meter, Receipt, Voucher};
use crate::sign::{SignError, Signable, Signed};

/// One signed object between two peers, unchecked. The order of the variants is the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statement {
    /// What a provider promised.
    Quote(Box<Signed<Quote>>),
    /// What a renter bound itself to.
    Contract(Box<Signed<Contract>>),
    /// That a provider took it.
    Accept(Box<Signed<Accept>>),
    /// Work claimed.
    Meter(Box<Signed<Meter>>),
    /// Work paid for.
    Voucher(Box<Signed<Voucher>>),
    /// That a voucher arrived.
    Receipt(Box<Signed<Receipt>>),
    /// The end of a lane.
    Close(Box<Signed<Close>>),
    /// The end of a lane in which nothing happened for a day.
    Abandon(Box<Signed<Abandon>>),
    /// A balance proposed.
    State(Box<Signed<PairState>>),
    /// A balance agreed.
    Countersign(Box<Signed<Countersign>>),
    /// A balance refused.
    Cancel(Box<Signed<Cancel>>),
    /// An epoch begun.
    Raise(Box<Signed<Raise>>),
}

/// What a statement is about. Two kinds may share a slot: a state, its countersignature and its
/// cancel all fill the signer's step of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The contract of a lane.
    Contract(LaneId),
    /// The accept of a lane.
    Accept(LaneId),
    /// Meter k of a lane.
    Meter(LaneId, u32),
    /// Voucher k of a lane.
    Voucher(LaneId, u32),
    /// Receipt k of a lane.
    Receipt(LaneId, u32),
    /// A side's close of a lane.
    Close(LaneId),
    /// A side's abandoning of a lane.
    Abandon(LaneId),
    /// Step n of a pair in an epoch.
    Step(PairId, u32, u32),
    /// An epoch of a pair.
    Raise(PairId, u32),
}

/// What one signer may fill once, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Whose.
    pub signer: PeerId,
    /// About what.
    pub place: Place,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = self.signer.short();
        match self.place {
            Place::Contract(lane) => write!(f, "the contract of {lane} by {who}"),
            Place::Accept(lane) => write!(f, "the accept of {lane} by {who}"),
            Place::Meter(lane, k) => write!(f, "meter {k} of {lane} by {who}"),
            Place::Voucher(lane, k) => write!(f, "voucher {k} of {lane} by {who}"),
            Place::Receipt(lane, k) => write!(f, "receipt {k} of {lane} by {who}"),
            Place::Close(lane) => write!(f, "the close of {lane} by {who}"),
            Place::Abandon(lane) => write!(f, "the abandoning of {lane} by {who}"),
            Place::Step(_, epoch, n) => write!(f, "balance step {n} of epoch {epoch} by {who}"),
            Place::Raise(_, epoch) => write!(f, "epoch {epoch} by {who}"),
        }
    }
}

/// Why a statement is not believed. Fault: whoever made or sent it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StatementError {
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] SignError),
    /// A field is past its bound.
    #[error(transparent)]
    Bound(#[from] WireError),
    /// It is about one peer alone.
    #[error("it is between {peer} and itself")]
    OnePeer {
        /// Who.
        peer: PeerId,
    },
    /// Its signer has no part in it.
    #[error("{signer} signs what is between others")]
    Stranger {
        /// Who.
        signer: PeerId,
    },
}

/// What a checked statement says: nothing else can make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::manual_non_exhaustive, reason = "nobody else makes one, in this crate either")]
pub struct Proven {
    /// Who signed it.
    pub signer: PeerId,
    /// Between whom.
    pub pair: PairId,
    /// blake3 of its preimage.
    pub digest: Digest,
    /// What its signer is bound to in its slot: its own digest; of a countersignature, the state's.
    pub commitment: Digest,
    sealed: (),
}

/// Applies one expression to the signed object inside, whichever it is.
macro_rules! each {
    ($statement:expr, $it:ident => $result:expr) => {
        match $statement {
            Statement::Quote($it) => $result,
            Statement::Contract($it) => $result,
            Statement::Accept($it) => $result,
            Statement::Meter($it) => $result,
            Statement::Voucher($it) => $result,
            Statement::Receipt($it) => $result,
            Statement::Close($it) => $result,
            Statement::Abandon($it) => $result,
            Statement::State($it) => $result,
            Statement::Countersign($it) => $result,
            Statement::Cancel($it) => $result,
            Statement::Raise($it) => $result,
        }
    };
}

impl Statement {
    /// Who must have signed it.
    #[must_use]
    pub fn signer(&self) -> PeerId {
        each!(self, it => it.body.signer())
    }

    /// Which lane it belongs to, when it does.
    #[must_use]
    pub fn lane(&self) -> Option<LaneId> {
        match self {
            Self::Contract(it) => Some(it.body.lane),
            Self::Accept(it) => Some(it.body.lane),
            Self::Meter(it) => Some(it.body.lane),
            Self::Voucher(it) => Some(it.body.lane),
            Self::Receipt(it) => Some(it.body.lane),
            Self::Close(it) => Some(it.body.lane),
            Self::Abandon(it) => Some(it.body.lane),
            Self::Quote(_) | Self::State(_) | Self::Countersign(_) | Self::Cancel(_) | Self::Raise(_) => None,
        }
    }

    /// Between whom it is; `None` when that is one peer alone.
    #[must_use]
    pub fn pair(&self) -> Option<PairId> {
        match self {
            Self::Quote(it) => PairId::of(it.body.renter, it.body.provider),
            Self::State(it) => Some(it.body.pair),
            Self::Countersign(it) => Some(it.body.pair),
            Self::Cancel(it) => Some(it.body.pair),
            Self::Raise(it) => Some(it.body.pair),
            _ => self.lane().and_then(|lane| PairId::of(lane.renter, lane.provider)),
        }
    }

    /// What it fills. A quote fills nothing: two quotes bind a provider to both.
    #[must_use]
    pub fn slot(&self) -> Option<Slot> {
        let place = match self {
            Self::Quote(_) => return None,
            Self::Contract(it) => Place::Contract(it.body.lane),
            Self::Accept(it) => Place::Accept(it.body.lane),
            Self::Meter(it) => Place::Meter(it.body.lane, it.body.k),
            Self::Voucher(it) => Place::Voucher(it.body.lane, it.body.k),
            Self::Receipt(it) => Place::Receipt(it.body.lane, it.body.k),
            Self::Close(it) => Place::Close(it.body.lane),
            Self::Abandon(it) => Place::Abandon(it.body.lane),
            Self::State(it) => Place::Step(it.body.pair, it.body.epoch, it.body.n),
            Self::Countersign(it) => Place::Step(it.body.pair, it.body.epoch, it.body.n),
            Self::Cancel(it) => Place::Step(it.body.pair, it.body.epoch, it.body.n),
            Self::Raise(it) => Place::Raise(it.body.pair, it.body.epoch),
        };
        Some(Slot { signer: self.signer(), place })
    }

    /// Checks the signature, that the signer is one of the two peers, and every bound.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn verify(&self) -> Result<Proven, StatementError> {
        let signer = self.signer();
        let pair = self.pair().ok_or(StatementError::OnePeer { peer: signer })?;
        if !pair.has(signer) {
            return Err(StatementError::Stranger { signer });
        }
        self.check_bounds()?;
        let digest = each!(self, it => it.as_ref().clone().verify()?.digest());
        let commitment = match self {
            Self::Countersign(it) => it.body.state,
            _ => digest,
        };
        Ok(Proven { signer, pair, digest, commitment, sealed: () })
    }
}

impl Bounded for Statement {
    fn check_bounds(&self) -> Result<(), WireError> {
        match self {
            Self::Quote(it) => {
                it.body.hardware.check().map_err(|_| WireError::OverLimit { what: "hardware" })
            }
            Self::State(it) => it.body.check_bounds(),
            _ => Ok(()),
        }
    }
}

macro_rules! from_signed {
    ($($type:ty => $variant:ident),* $(,)?) => {
        $(impl From<Signed<$type>> for Statement {
            fn from(signed: Signed<$type>) -> Self {
                Self::$variant(Box::new(signed))
            }
        })*
    };
}

from_signed!(
    Quote => Quote, Contract => Contract, Accept => Accept, Meter => Meter, Voucher => Voucher,
    Receipt => Receipt, Close => Close, Abandon => Abandon, PairState => State,
    Countersign => Countersign, Cancel => Cancel, Raise => Raise,
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offer::tests::sample_quote;
    use crate::settle::tests::{sample_contract, sample_voucher};
    use crate::sign::SigningKey;

    #[test]
    fn a_statement_by_an_outsider_or_between_one_peer_is_refused() {
        let (renter, stranger) = (SigningKey::from_seed([1; 32]), SigningKey::from_seed([9; 32]));
        let good = Statement::from(renter.sign(sample_voucher()).unwrap().into_signed());
        assert!(good.verify().is_ok());
        let pair = good.pair().unwrap();
        let raise = stranger.sign(Raise { pair, by: stranger.peer(), epoch: 1 }).unwrap();
        let raise = Statement::from(raise.into_signed()).verify();
        assert_eq!(raise, Err(StatementError::Stranger { signer: stranger.peer() }));
        let mut own = sample_contract();
        own.lane.provider = renter.peer();
        let own = Statement::from(renter.sign(own).unwrap().into_signed()).verify();
        assert_eq!(own, Err(StatementError::OnePeer { peer: renter.peer() }));
    }

    #[test]
    fn states_countersignatures_and_cancels_share_a_slot_and_quotes_have_none() {
        let key = SigningKey::from_seed([1; 32]);
        let pair = PairId::of(key.peer(), PeerId::from_bytes([3; 32])).unwrap();
        let state = Digest::from_bytes([4; 32]);
        let countersign = Countersign { pair, by: key.peer(), epoch: 0, n: 3, state };
        let countersign = Statement::from(key.sign(countersign).unwrap().into_signed());
        let reason = crate::balance::CancelReason::Disagrees;
        let cancel = Cancel { pair, by: key.peer(), epoch: 0, n: 3, proposal: state, reason };
        let cancel = Statement::from(key.sign(cancel).unwrap().into_signed());
        assert_eq!(countersign.slot(), cancel.slot());
        assert_eq!(countersign.verify().unwrap().commitment, state);
        let quote = key.sign(sample_quote(key.peer(), PeerId::from_bytes([3; 32]))).unwrap();
        assert_eq!(Statement::from(quote.into_signed()).slot(), None);
    }
}
