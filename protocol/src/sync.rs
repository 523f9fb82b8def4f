//! Catching up: two peers compare what they hold, then send each other what is missing.
//!
//! Owns: [`Heads`] (what one side holds, in short), the comparison, and which statements lie beyond
//! a head. Never: reads a ledger, sends, or believes a head: only verified statements count. Called by
//! whoever keeps the ledger of a pair, on both ends of [`crate::version::PAIR_PROTOCOL`].
//!
//! ```text
//! Same(digest of all heads) ◀──▶ equal: both Synced
//!    └ else  Heads page by page ──▶ Fetch what we lack, Push what they lack, Steps ──▶ Same again
//! ```
//!
//! Who is shown a statement that it signed itself and does not hold has an old ledger: it keeps the
//! statement like any other, and raises the epoch (see [`crate::pair::PairBook::raise`]).

use serde::{Deserialize, Serialize};

use crate::balance::PairId;
use crate::codec::{Bounded, WireError, encode, within};
use crate::id::{Digest, LaneId};
use crate::limits::MAX_SYNC_LANES;
use crate::pair::PairBook;
use crate::sign::{digest_of, framed};
use crate::statement::{Proven, Statement};

const HEADS_DOMAIN: &str = "potluck/v1/heads";

/// The ends of a lane that are held: a bit for each of close and abandoning, by renter and provider.
const RENTER_CLOSE: u8 = 1;
const PROVIDER_CLOSE: u8 = 2;
const RENTER_ABANDON: u8 = 4;
const PROVIDER_ABANDON: u8 = 8;
const ALL_ENDS: u8 = 15;

/// What one side holds of one lane, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneHead {
    /// Which.
    pub lane: LaneId,
    /// Is the contract held?
    pub contract: bool,
    /// Is the accept held?
    pub accept: bool,
    /// The last meter's number; 0 when none.
    pub meter: u32,
    /// The last voucher's number; 0 when none.
    pub voucher: u32,
    /// The last receipt's number; 0 when none.
    pub receipt: u32,
    /// Which ends are held: 1 the renter's close, 2 the provider's, 4 and 8 their abandonings.
    pub ends: u8,
    /// Digest of the last voucher; zeros when none.
    pub last: Digest,
}

impl LaneHead {
    /// Nothing is held.
    #[must_use]
    pub fn nothing(lane: LaneId) -> Self {
        let last = Digest::from_bytes([0; 32]);
        Self { lane, contract: false, accept: false, meter: 0, voucher: 0, receipt: 0, ends: 0, last }
    }

    /// Takes in a statement that is held. Of another lane, or a quote: nothing changes.
    pub fn hold(&mut self, statement: &Statement, proven: &Proven) {
        if statement.lane() != Some(self.lane) {
            return;
        }
        match statement {
            Statement::Contract(_) => self.contract = true,
            Statement::Accept(_) => self.accept = true,
            Statement::Meter(it) => self.meter = self.meter.max(it.body.k),
            Statement::Voucher(it) if it.body.k > self.voucher => {
                (self.voucher, self.last) = (it.body.k, proven.digest);
            }
            Statement::Receipt(it) => self.receipt = self.receipt.max(it.body.k),
            Statement::Close(_) | Statement::Abandon(_) => self.ends |= self.end_bit(statement),
            _ => {}
        }
    }

    /// Does `statement`, of this lane, lie beyond what is held?
    #[must_use]
    pub fn lacks(&self, statement: &Statement) -> bool {
        statement.lane() == Some(self.lane)
            && match statement {
                Statement::Contract(_) => !self.contract,
                Statement::Accept(_) => !self.accept,
                Statement::Meter(it) => it.body.k > self.meter,
                Statement::Voucher(it) => it.body.k > self.voucher,
                Statement::Receipt(it) => it.body.k > self.receipt,
                Statement::Close(_) | Statement::Abandon(_) => self.ends & self.end_bit(statement) == 0,
                _ => false,
            }
    }

    fn end_bit(&self, statement: &Statement) -> u8 {
        let by_renter = statement.signer() == self.lane.renter;
        match statement {
            Statement::Close(_) if by_renter => RENTER_CLOSE,
            Statement::Close(_) => PROVIDER_CLOSE,
            _ if by_renter => RENTER_ABANDON,
            _ => PROVIDER_ABANDON,
        }
    }

    /// Does the other side hold anything that we, holding this, do not?
    fn is_behind(&self, other: &Self) -> bool {
        (other.contract && !self.contract)
            || (other.accept && !self.accept)
            || other.meter > self.meter
            || other.voucher > self.voucher
            || other.receipt > self.receipt
            || other.ends & !self.ends != 0
    }

    /// Do both hold a voucher of one number and not the same one?
    fn forks_from(&self, other: &Self) -> bool {
        self.voucher == other.voucher && self.last != other.last
    }
}

/// What one side holds of the pair's balance, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepHead {
    /// The pair's epoch.
    pub epoch: u32,
    /// The highest step spent.
    pub used: u32,
    /// Digest of the last agreed state, or the pair's genesis.
    pub agreed: Digest,
    /// Digests of the states that wait, rising; at most two.
    pub open: Vec<Digest>,
}

impl StepHead {
    /// As a book has it.
    #[must_use]
    pub fn of(book: &PairBook) -> Self {
        let mut open: Vec<Digest> = book.open().iter().map(|state| state.digest()).collect();
        open.sort_unstable();
        Self { epoch: book.epoch(), used: book.used(), agreed: book.head().digest, open }
    }
}

/// One page of what a side holds: *all* its lanes after `after`, up to the last one listed, or to the
/// end when `whole`. Lanes that the last agreed state took in, and contracts without an accept, a
/// meter or a voucher, are not listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// Its balance.
    pub step: StepHead,
    /// Lanes up to this one were compared before.
    pub after: Option<LaneId>,
    /// Its lanes, rising.
    pub lanes: Vec<LaneHead>,
    /// Do no more lanes follow?
    pub whole: bool,
}

impl Heads {
    /// The last lane that the page speaks of; `None` for all that follow.
    fn through(&self) -> Option<LaneId> {
        if self.whole { None } else { self.lanes.last().map(|head| head.lane) }
    }

    fn find(&self, lane: LaneId) -> LaneHead {
        self.lanes
            .binary_search_by_key(&lane, |head| head.lane)
            .ok()
            .and_then(|at| self.lanes.get(at))
            .copied()
            .unwrap_or(LaneHead::nothing(lane))
    }
}

impl Bounded for Heads {
    fn check_bounds(&self) -> Result<(), WireError> {
        within(self.lanes.len() <= MAX_SYNC_LANES, "lanes in one page")?;
        within(self.step.open.len() <= 2, "open balance states")?;
        within(self.whole || !self.lanes.is_empty(), "a page that leads nowhere")?;
        check_lanes(&self.lanes)?;
        let rising = self.after.is_none_or(|after| self.lanes.first().is_none_or(|first| after < first.lane));
        within(rising, "order of lanes")
    }
}

/// Checks the order and the fields of a list of lanes.
///
/// # Errors
/// The first rule broken.
pub(crate) fn check_lanes(lanes: &[LaneHead]) -> Result<(), WireError> {
    within(lanes.len() <= MAX_SYNC_LANES, "lanes in one page")?;
    within(lanes.is_sorted_by(|one, next| one.lane < next.lane), "order of lanes")?;
    within(lanes.iter().all(|head| head.ends <= ALL_ENDS), "ends of a lane")
}

/// What two pages tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Our heads of the lanes of which the other side has more: fetch what lies beyond them. Where both
    /// hold another voucher of one number, a head that holds nothing: fetch it all, for the proof.
    pub fetch: Vec<LaneHead>,
    /// The other side's heads of the lanes of which we have more: push what lies beyond them.
    pub push: Vec<LaneHead>,
    /// Do the balances differ? Then fetch its steps and push ours.
    pub steps: bool,
    /// Where the next page begins; `None` when all was compared.
    pub next: Option<LaneId>,
}

impl Difference {
    /// Is nothing different on these pages?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fetch.is_empty() && self.push.is_empty() && !self.steps
    }
}

/// Compares one page of each side, which begin at the same lane, as far as both reach.
#[must_use]
pub fn compare(pair: PairId, ours: &Heads, theirs: &Heads) -> Difference {
    let through = match (ours.through(), theirs.through()) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    let mut lanes: Vec<LaneId> = ours.lanes.iter().chain(&theirs.lanes).map(|head| head.lane).collect();
    lanes.sort_unstable();
    lanes.dedup();
    lanes.retain(|lane| through.is_none_or(|last| *lane <= last));
    // A peer can only speak of the pair's own lanes.
    lanes.retain(|lane| PairId::of(lane.renter, lane.provider) == Some(pair));
    let mut difference =
        Difference { steps: ours.step != theirs.step, next: through, ..Difference::default() };
    for lane in lanes {
        let (our, their) = (ours.find(lane), theirs.find(lane));
        if our.forks_from(&their) {
            difference.fetch.push(LaneHead::nothing(lane));
            difference.push.push(LaneHead::nothing(lane));
            continue;
        }
        if our.is_behind(&their) {
            difference.fetch.push(our);
        }
        if their.is_behind(&our) {
            difference.push.push(their);
        }
    }
    difference
}

/// Everything a side holds, in one digest. With `H(x)` = blake3 of the preimage `potluck/v1/heads` over
/// `x`: `h_0 = H(canonical bytes of the step head)`, `h_{i+1} = H(h_i | canonical bytes of lane i)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadsDigest(Digest);

impl HeadsDigest {
    /// Begins with the balance.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn new(step: &StepHead) -> Result<Self, WireError> {
        Ok(Self(digest_of(&framed(HEADS_DOMAIN, &encode(step)?))))
    }

    /// Adds the next lane, in rising order.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn add(&mut self, head: &LaneHead) -> Result<(), WireError> {
        let link = [self.0.as_bytes().as_slice(), &encode(head)?].concat();
        self.0 = digest_of(&framed(HEADS_DOMAIN, &link));
        Ok(())
    }

    /// The digest.
    #[must_use]
    pub fn get(self) -> Digest {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PeerId;
    use crate::settle::tests::{sample_lane, sample_voucher};
    use crate::sign::SigningKey;
    use proptest::prelude::*;

    fn pair() -> PairId {
        PairId::of(PeerId::from_bytes([1; 32]), PeerId::from_bytes([2; 32])).unwrap()
    }

    fn step(used: u32) -> StepHead {
        StepHead { epoch: 0, used, agreed: Digest::from_bytes([0; 32]), open: Vec::new() }
    }

    fn head(lane: u64, voucher: u32) -> LaneHead {
        let (renter, provider) = (PeerId::from_bytes([1; 32]), PeerId::from_bytes([2; 32]));
        let last = Digest::from_bytes([u8::try_from(voucher).unwrap(); 32]);
        let lane = LaneId { renter, provider, epoch: 0, lane };
        LaneHead { accept: true, contract: true, meter: voucher, voucher, last, ..LaneHead::nothing(lane) }
    }

    /// Pages of at most `size` lanes after `after`.
    fn page(lanes: &[LaneHead], after: Option<LaneId>, size: usize) -> Heads {
        let left: Vec<_> =
            lanes.iter().filter(|it| after.is_none_or(|after| it.lane > after)).copied().collect();
        let whole = left.len() <= size;
        Heads { step: step(0), after, lanes: left.into_iter().take(size).collect(), whole }
    }

    #[test]
    fn a_head_holds_what_it_was_given_and_lacks_the_rest() {
        let voucher = SigningKey::from_seed([1; 32]).sign(sample_voucher()).unwrap();
        let (digest, voucher) = (voucher.digest(), Statement::from(voucher.into_signed()));
        let mut head = LaneHead::nothing(sample_lane());
        assert!(head.lacks(&voucher));
        head.hold(&voucher, &voucher.verify().unwrap());
        assert!(!head.lacks(&voucher));
        assert_eq!((head.voucher, head.last), (1, digest));
        let mut other = sample_lane();
        other.lane += 1;
        assert!(!LaneHead::nothing(other).lacks(&voucher));
    }

    #[test]
    fn a_fork_is_fetched_whole_by_both() {
        let (ours, mut theirs) = (head(1, 3), head(1, 3));
        theirs.last = Digest::from_bytes([9; 32]);
        let difference = compare(pair(), &page(&[ours], None, 9), &page(&[theirs], None, 9));
        assert_eq!(difference.fetch, [LaneHead::nothing(ours.lane)]);
    }

    #[test]
    fn pages_out_of_order_or_leading_nowhere_are_refused() {
        let good = page(&[head(1, 1), head(2, 1)], None, 9);
        assert_eq!(good.check_bounds(), Ok(()));
        let turned = Heads { lanes: vec![head(2, 1), head(1, 1)], ..good.clone() };
        let before = Heads { after: Some(head(1, 1).lane), ..good.clone() };
        let empty = Heads { lanes: Vec::new(), whole: false, ..good };
        for bad in [turned, before, empty] {
            assert!(bad.check_bounds().is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// Page by page, whatever the sizes, the comparison finds every lane that differs, once, on the
        /// right side, and ends.
        #[test]
        fn every_difference_is_found(
            lanes in prop::collection::btree_map(0..60u64, (0..4u32, 0..4u32), 0..30), our_size in 1..7usize, their_size in 1..7usize
        ) {
            let side = |pick: fn(&(u32, u32)) -> u32| -> Vec<LaneHead> {
                let held = lanes.iter().filter(|(_, both)| pick(both) > 0);
                held.map(|(lane, both)| head(*lane, pick(both))).collect()
            };
            let (ours, theirs) = (side(|both| both.0), side(|both| both.1));
            let (mut fetched, mut pushed, mut after) = (Vec::new(), Vec::new(), None);
            for _ in 0..200 {
                let difference = compare(pair(), &page(&ours, after, our_size), &page(&theirs, after, their_size));
                fetched.extend(difference.fetch.iter().map(|it| it.lane.lane));
                pushed.extend(difference.push.iter().map(|it| it.lane.lane));
                after = difference.next;
                if after.is_none() {
                    break;
                }
            }
            prop_assert_eq!(after, None);
            let expect = |behind: fn(&(u32, u32)) -> bool| -> Vec<u64> {
                lanes.iter().filter(|(_, both)| behind(both)).map(|(lane, _)| *lane).collect()
            };
            prop_assert_eq!(fetched, expect(|both| both.1 > both.0));
            prop_assert_eq!(pushed, expect(|both| both.0 > both.1));
        }
    }
}
