//! The objects of a pair's account: balance, outside payment, countersignature, cancel and epoch.
//!
//! Owns: [`PairId`] (which of two peers is which), the signed objects that both keep of their common
//! balance, and [`Fold`] (which lanes a balance takes in). Never: decides whether one may be signed
//! (see [`crate::pair`]) or keeps it. Called by the pair's law, the ledger and the `ledger` verbs.
//!
//! ```text
//! lanes' last vouchers ──fold──▶ PairState n (proposer) ──▶ Countersign n   agreed: both are bound
//!                                                     └───▶ Cancel n        n is burned; the balance before stands
//! ```
//!
//! A pair's debt at any instant is the balance of its last agreed state and, on top of it, the last
//! voucher of every lane whose contract was created at the state's `floor` or later.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec::{Bounded, WireError, encode, within};
use crate::id::{Digest, LaneId, PeerId};
use crate::limits::MAX_REFERENCE_BYTES;
use crate::sign::{Signable, digest_of, framed};
use crate::unit::{NanoCredit, UnixMillis};

const GENESIS_DOMAIN: &str = "potluck/v1/pair";
const LANES_DOMAIN: &str = "potluck/v1/lanes";

/// Two peers, in the order of their keys, whoever of them asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "TwoPeers")]
pub struct PairId {
    low: PeerId,
    high: PeerId,
}

#[derive(Deserialize)]
struct TwoPeers {
    low: PeerId,
    high: PeerId,
}

/// Two peers that are no pair: out of order, or one and the same. Fault: whoever wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a pair is two different peers, the lower key first")]
pub struct NotAPair;

impl TryFrom<TwoPeers> for PairId {
    type Error = NotAPair;

    fn try_from(two: TwoPeers) -> Result<Self, NotAPair> {
        if two.low < two.high { Ok(Self { low: two.low, high: two.high }) } else { Err(NotAPair) }
    }
}

impl PairId {
    /// The pair of two peers, in either order; `None` when they are one.
    #[must_use]
    pub fn of(one: PeerId, other: PeerId) -> Option<Self> {
        let (low, high) = if one < other { (one, other) } else { (other, one) };
        Self::try_from(TwoPeers { low, high }).ok()
    }

    /// The one with the lower key. Balances are written from its side: above zero, it owes.
    #[must_use]
    pub fn low(&self) -> PeerId {
        self.low
    }

    /// The one with the higher key.
    #[must_use]
    pub fn high(&self) -> PeerId {
        self.high
    }

    /// Is `peer` one of the two?
    #[must_use]
    pub fn has(&self, peer: PeerId) -> bool {
        peer == self.low || peer == self.high
    }

    /// The other one than `peer`; `None` when `peer` is neither.
    #[must_use]
    pub fn other(&self, peer: PeerId) -> Option<PeerId> {
        match peer {
            it if it == self.low => Some(self.high),
            it if it == self.high => Some(self.low),
            _ => None,
        }
    }

    /// What the other owes `peer`, of a balance of this pair (invariant I1: the two readings sum to
    /// zero). Nano-credits; a stranger reads 0.
    #[must_use]
    pub fn owed_to(&self, peer: PeerId, balance: i128) -> i128 {
        match peer {
            it if it == self.high => balance,
            it if it == self.low => balance.saturating_neg(),
            _ => 0,
        }
    }

    /// What a debt of `debtor` to the other adds to the balance; `None` for a stranger.
    #[must_use]
    pub fn debt_of(&self, debtor: PeerId, amount: NanoCredit) -> Option<i128> {
        let amount = i128::from(amount.get());
        match debtor {
            it if it == self.low => Some(amount),
            it if it == self.high => Some(-amount),
            _ => None,
        }
    }

    /// What the first state of the pair names as the one before it.
    #[must_use]
    pub fn genesis(&self) -> Digest {
        let two = [self.low.as_bytes().as_slice(), self.high.as_bytes().as_slice()].concat();
        digest_of(&framed(GENESIS_DOMAIN, &two))
    }
}

/// A payment outside of Potluck: by bank, cash, chain or favour. Nobody checks it but its receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settle {
    /// Who paid.
    pub payer: PeerId,
    /// By how much the payer's debt falls; beyond its debt it has prepaid.
    pub amount: NanoCredit,
    /// For people, at most [`MAX_REFERENCE_BYTES`]: no currency is assumed.
    pub reference: String,
}

/// The balance of a pair as one of the two proposes it; agreed once the other countersigns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairState {
    /// Between whom.
    pub pair: PairId,
    /// Who proposes.
    pub by: PeerId,
    /// The pair's epoch.
    pub epoch: u32,
    /// The step: 1, 2, 3 …; in one epoch each number is used once, by a state or a cancelled state.
    pub n: u32,
    /// In nano-credits; above zero when the lower key owes the higher.
    pub balance: i128,
    /// Every lane whose contract was created before this is in the balance, or void.
    pub floor: UnixMillis,
    /// Digest of the lanes that this state adds (see [`Fold`]).
    pub lanes: Digest,
    /// How many they are.
    pub folded: u32,
    /// An outside payment that this state takes in.
    pub settle: Option<Settle>,
    /// Digest of the last agreed state; [`PairId::genesis`] for the first.
    pub previous: Digest,
}

/// The other side's word that a proposed state is agreed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Countersign {
    /// Between whom.
    pub pair: PairId,
    /// Who countersigns.
    pub by: PeerId,
    /// The state's epoch.
    pub epoch: u32,
    /// The state's step.
    pub n: u32,
    /// Digest of the state.
    pub state: Digest,
}

/// Why a proposed state was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// Our own books give another balance, other lanes or another floor.
    Disagrees,
    /// The payment did not arrive, or its receiver does not say so.
    NotPaid,
}

/// The other side's word that it will never countersign this step: the number is burned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// Between whom.
    pub pair: PairId,
    /// Who refuses.
    pub by: PeerId,
    /// The state's epoch.
    pub epoch: u32,
    /// The state's step.
    pub n: u32,
    /// Digest of the state refused.
    pub proposal: Digest,
    /// Why.
    pub reason: CancelReason,
}

/// One side's word that it uses no earlier epoch with this peer any more: it restored an old ledger
/// and may have forgotten what it signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raise {
    /// Between whom.
    pub pair: PairId,
    /// Who forgot.
    pub by: PeerId,
    /// The first epoch that is still used.
    pub epoch: u32,
}

macro_rules! signed_by_one {
    ($type:ty, $domain:literal) => {
        impl Signable for $type {
            const DOMAIN: &'static str = $domain;

            fn signer(&self) -> PeerId {
                self.by
            }
        }
    };
}

signed_by_one!(PairState, "potluck/v1/pair-state");
signed_by_one!(Countersign, "potluck/v1/countersign");
signed_by_one!(Cancel, "potluck/v1/cancel");
signed_by_one!(Raise, "potluck/v1/raise");

impl Bounded for PairState {
    fn check_bounds(&self) -> Result<(), WireError> {
        let reference = self.settle.as_ref().map_or(0, |settle| settle.reference.len());
        within(reference <= MAX_REFERENCE_BYTES, "length of a payment's reference")
    }
}

/// One lane as a balance takes it in: its last voucher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folded {
    /// Which.
    pub lane: LaneId,
    /// The last voucher's number.
    pub k: u32,
    /// The last voucher's amount.
    pub amount: NanoCredit,
    /// Digest of the last voucher.
    pub voucher: Digest,
}

/// Why lanes cannot be folded. Fault: whoever lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FoldError {
    /// It is between others.
    #[error("{lane} is between other peers")]
    OtherPair {
        /// Which.
        lane: LaneId,
    },
    /// Lanes come in rising order, each once.
    #[error("{lane} is listed twice or out of order")]
    OutOfOrder {
        /// Which.
        lane: LaneId,
    },
    /// More lanes than can be counted.
    #[error("more lanes than one state can take in")]
    TooMany,
}

/// Lanes added up, in rising order of their ids. With `H(x)` = blake3 of the preimage
/// `potluck/v1/lanes` over `x`: `h_0 = H("")`, `h_{i+1} = H(h_i | canonical bytes of the lane)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    pair: PairId,
    floor: UnixMillis,
    head: Digest,
    count: u32,
    delta: i128,
    last: Option<LaneId>,
}

impl Fold {
    /// No lanes yet; they will be those with a voucher whose contract was created before `floor` and
    /// not before the floor of the last agreed state.
    #[must_use]
    pub fn new(pair: PairId, floor: UnixMillis) -> Self {
        Self { pair, floor, head: digest_of(&framed(LANES_DOMAIN, &[])), count: 0, delta: 0, last: None }
    }

    /// Adds the next lane.
    ///
    /// # Errors
    /// When it is another pair's or not the next in order; nothing changes then.
    pub fn add(&mut self, folded: &Folded) -> Result<(), FoldError> {
        let lane = folded.lane;
        if PairId::of(lane.renter, lane.provider) != Some(self.pair) {
            return Err(FoldError::OtherPair { lane });
        }
        if self.last.is_some_and(|last| last >= lane) {
            return Err(FoldError::OutOfOrder { lane });
        }
        let debt = self.pair.debt_of(lane.renter, folded.amount).ok_or(FoldError::OtherPair { lane })?;
        let bytes = encode(folded).map_err(|_| FoldError::TooMany)?;
        let (count, delta) = (self.count.checked_add(1), self.delta.checked_add(debt));
        let (Some(count), Some(delta)) = (count, delta) else { return Err(FoldError::TooMany) };
        let link = [self.head.as_bytes().as_slice(), &bytes].concat();
        self.head = digest_of(&framed(LANES_DOMAIN, &link));
        (self.count, self.delta, self.last) = (count, delta, Some(lane));
        Ok(())
    }

    /// Before when the lanes' contracts were created.
    #[must_use]
    pub fn floor(&self) -> UnixMillis {
        self.floor
    }

    /// Digest of the lanes.
    #[must_use]
    pub fn lanes(&self) -> Digest {
        self.head
    }

    /// How many they are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// What they add to the balance, in nano-credits.
    #[must_use]
    pub fn delta(&self) -> i128 {
        self.delta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};
    use proptest::prelude::*;

    fn peer(byte: u8) -> PeerId {
        PeerId::from_bytes([byte; 32])
    }

    fn folded(renter: u8, provider: u8, lane: u64, amount: u64) -> Folded {
        Folded {
            lane: LaneId { renter: peer(renter), provider: peer(provider), epoch: 0, lane },
            k: 1,
            amount: NanoCredit::new(amount),
            voucher: Digest::from_bytes([9; 32]),
        }
    }

    #[test]
    fn a_pair_has_one_name_and_one_encoding() {
        let pair = PairId::of(peer(2), peer(1)).unwrap();
        assert_eq!(Some(pair), PairId::of(peer(1), peer(2)));
        assert_eq!(PairId::of(peer(1), peer(1)), None);
        let bytes = encode(&pair).unwrap();
        assert_eq!(decode::<PairId>(&bytes), Ok(pair));
        let swapped = [&bytes[32..], &bytes[..32]].concat();
        assert!(decode::<PairId>(&swapped).is_err());
        assert!(decode::<PairId>(&[7; 64]).is_err());
    }

    #[test]
    fn lanes_fold_in_order_and_only_within_their_pair() {
        let pair = PairId::of(peer(1), peer(2)).unwrap();
        let mut fold = Fold::new(pair, UnixMillis::new(5));
        fold.add(&folded(1, 2, 4, 100)).unwrap();
        let again = fold.add(&folded(1, 2, 4, 100));
        assert!(matches!(again, Err(FoldError::OutOfOrder { .. })));
        assert!(matches!(fold.add(&folded(1, 3, 5, 1)), Err(FoldError::OtherPair { .. })));
        fold.add(&folded(2, 1, 0, 30)).unwrap();
        assert_eq!((fold.count(), fold.delta()), (2, 70));
    }

    proptest! {
        /// I1: whatever the balance, one side's reading is the other's with the sign turned.
        #[test]
        fn both_readings_sum_to_zero(balance in -1i128 << 100..1i128 << 100, a: u8, b: u8) {
            prop_assume!(a != b);
            let pair = PairId::of(peer(a), peer(b)).unwrap();
            prop_assert_eq!(pair.owed_to(peer(a), balance) + pair.owed_to(peer(b), balance), 0);
        }

        /// Any change to any lane shows in the digest.
        #[test]
        fn the_digest_binds_every_lane(amounts in proptest::collection::vec(0..1_000u64, 1..8), at: prop::sample::Index) {
            let fold = |amounts: &[u64]| {
                let mut fold = Fold::new(PairId::of(peer(1), peer(2)).unwrap(), UnixMillis::new(0));
                for (lane, amount) in amounts.iter().enumerate() {
                    fold.add(&folded(1, 2, u64::try_from(lane).unwrap(), *amount)).unwrap();
                }
                (fold.lanes(), fold.delta())
            };
            let mut other = amounts.clone();
            other[at.index(amounts.len())] += 1;
            let (ours, theirs) = (fold(&amounts), fold(&other));
            prop_assert_ne!(ours.0, theirs.0);
            prop_assert_eq!(ours.1 + 1, theirs.1);
        }
    }
}
