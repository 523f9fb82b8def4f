//! The law of a pair: when two peers may deal, and how their common balance takes its next step.
//!
//! Owns: [`PairBook`], one side's view of the pair as a pure state machine. Never: signs, stores, sends,
//! or reads a clock; bodies to sign go out, and what became durable is noted. Called by the ledger
//! (which fills it from what it holds) and by whoever settles, syncs or opens a lane.
//!
//! ```text
//!              heads are equal
//! SyncNeeded ───────────────────▶ Synced         restart, reconnection or a gap leads back
//!      └──────── equivocation ───────┴──────────▶ Frozen (for ever)
//!
//! step n:   free ─State by one─▶ proposed ─Countersign by the other─▶ agreed
//!                                   ├─Cancel by the other──────────▶ burned
//!                                   └─State by the other too───────▶ burned (both have spent their slot)
//! ```
//!
//! A proposer cannot take its word back, and needs not: the state only says what its own books said.
//! Nothing else waits for the answer; lanes go on, and the next sync brings it.

use thiserror::Error;

use crate::balance::{Cancel, CancelReason, Countersign, Fold, PairId, PairState, Raise, Settle};
use crate::id::{Digest, PeerId};
use crate::limits::CLOCK_SLACK_MS;
use crate::proof::Conviction;
use crate::settle::Contract;
use crate::sign::Verified;
use crate::statement::Statement;
use crate::unit::UnixMillis;

/// May the two deal?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Link {
    /// The two must compare what they hold before either signs.
    SyncNeeded,
    /// Both hold the same.
    Synced,
    /// One of the two is convicted: nothing new is signed, what is owed stays owed.
    Frozen,
}

/// The last agreed state, as far as later steps need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its epoch.
    pub epoch: u32,
    /// Its step; 0 before the first.
    pub n: u32,
    /// In nano-credits; above zero when the lower key owes the higher.
    pub balance: i128,
    /// Lanes whose contract was created before this are in the balance, or void.
    pub floor: UnixMillis,
    /// Its digest; the pair's genesis before the first.
    pub digest: Digest,
}

/// Why nothing may be signed with this peer now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotNow {
    /// Fault: nobody; sync first.
    #[error("the two ledgers must be compared first")]
    SyncNeeded,
    /// Fault: whoever is convicted.
    #[error("the account is frozen: one of the two signed two different things in one place")]
    Frozen,
}

/// Why a state cannot be proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ProposeRefused {
    /// The pair is not synced.
    #[error(transparent)]
    NotNow(#[from] NotNow),
    /// Another proposal waits. Fault: nobody; sync brings its answer.
    #[error("step {n} still waits for an answer")]
    StepOpen {
        /// Which.
        n: u32,
    },
    /// It would take in nothing.
    #[error("there is nothing to take in: no lane has ended and no payment is named")]
    NothingNew,
    /// The lanes are of another pair, or the payer is no party. Fault: the caller.
    #[error("the lanes or the payment are of other peers")]
    OtherPair,
    /// The floor falls, or lies past what is safe. Fault: the caller.
    #[error("the floor must not fall, nor pass an open lane or the slack of two clocks")]
    UnsafeFloor,
    /// The numbers are used up, or the balance passes 2^127.
    #[error("the account's numbers are used up")]
    Overflow,
}

/// Why a state that came is not even judged. Fault: the sender, or its ledger or ours is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StateRefused {
    /// The pair is not synced.
    #[error(transparent)]
    NotNow(#[from] NotNow),
    /// It is another pair's, or our own.
    #[error("the state is not by the other side of this pair")]
    NotTheirs,
    /// One of the two has raised the epoch: nothing is signed in the other, where a restored ledger may
    /// have forgotten what it signed.
    #[error("the state is of epoch {got}; the pair is in epoch {current}")]
    WrongEpoch {
        /// The pair's.
        current: u32,
        /// The state's.
        got: u32,
    },
    /// Its step, or what it follows, is not what we have. Sync.
    #[error("step {got} came where {expected} was due")]
    Gap {
        /// The step due.
        expected: u32,
        /// The step that came.
        got: u32,
    },
}

/// What to do about a state that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Sign this: it is right.
    Countersign(Countersign),
    /// Sign this: the step is burned.
    Cancel(Cancel),
    /// Both proposed this step, which burns it; nothing is signed.
    Clash,
    /// It says that we were paid: ask the owner, and judge it again with the answer.
    AskOwner(Settle),
}

/// The owner's answer to a state that says that we were paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// Not asked yet.
    Unasked,
    /// The payment arrived.
    Given,
    /// It did not.
    Denied,
}

/// Why a contract may not be opened. Fault: the renter, or nobody (sync, then ask for a new quote).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LaneRefused {
    /// The pair is not synced.
    #[error(transparent)]
    NotNow(#[from] NotNow),
    /// It is of another pair.
    #[error("the contract is between other peers")]
    OtherPair,
    /// Its epoch is not the pair's.
    #[error("the contract is of epoch {got}; the pair is in epoch {current}")]
    WrongEpoch {
        /// The pair's.
        current: u32,
        /// The contract's.
        got: u32,
    },
    /// A balance that was signed leaves it out for ever.
    #[error("the contract is older than the balance that both signed")]
    BelowFloor,
}

/// One side's view of a pair.
#[derive(Debug, Clone)]
pub struct PairBook {
    pair: PairId,
    me: PeerId,
    peer: PeerId,
    link: Link,
    epoch: u32,
    head: Head,
    /// The highest step that anybody spent in this epoch; the head's when none.
    used: u32,
    /// The states proposed for step `used` and not agreed or cancelled; two when both proposed.
    open: Vec<Verified<PairState>>,
    agreed: Option<(Verified<PairState>, Verified<Countersign>)>,
    cancel: Option<Verified<Cancel>>,
    raises: [Option<Verified<Raise>>; 2],
}

impl PairBook {
    /// The pair of `me` and `peer` before anything was signed; `None` when they are one.
    #[must_use]
    pub fn new(me: PeerId, peer: PeerId) -> Option<Self> {
        let pair = PairId::of(me, peer)?;
        let head = Head { epoch: 0, n: 0, balance: 0, floor: UnixMillis::ZERO, digest: pair.genesis() };
        Some(Self {
            pair,
            me,
            peer,
            link: Link::SyncNeeded,
            epoch: 0,
            head,
            used: 0,
            open: Vec::new(),
            agreed: None,
            cancel: None,
            raises: [None, None],
        })
    }

    /// Which pair.
    #[must_use]
    pub fn pair(&self) -> PairId {
        self.pair
    }

    /// May the two deal?
    #[must_use]
    pub fn link(&self) -> Link {
        self.link
    }

    /// The epoch of new lanes and steps.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The last agreed state.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// The highest step that is spent in this epoch; the head's when none.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used
    }

    /// States that wait for an answer: ours, the other side's, or both.
    #[must_use]
    pub fn open(&self) -> &[Verified<PairState>] {
        &self.open
    }

    /// Every balance step and epoch that the other side may lack: the agreed state, what is open, the
    /// last cancel, and both epochs. In the order in which they are to be taken in: a state counts only
    /// in the pair's epoch.
    #[must_use]
    pub fn statements(&self) -> Vec<Statement> {
        let mut all: Vec<Statement> = Vec::new();
        if let Some((state, countersign)) = &self.agreed {
            all.push(state.signed().clone().into());
            all.push(countersign.signed().clone().into());
        }
        all.extend(self.raises.iter().flatten().map(|raise| raise.signed().clone().into()));
        all.extend(self.open.iter().map(|state| state.signed().clone().into()));
        all.extend(self.cancel.iter().map(|cancel| cancel.signed().clone().into()));
        all
    }

    /// The connection was lost, or the process is new.
    pub fn parted(&mut self) {
        if self.link == Link::Synced {
            self.link = Link::SyncNeeded;
        }
    }

    /// Both sides were found to hold the same.
    pub fn synced(&mut self) {
        if self.link == Link::SyncNeeded {
            self.link = Link::Synced;
        }
    }

    /// Somebody was convicted; when it is one of the two, the pair is frozen. Says whether it is.
    pub fn convicted(&mut self, conviction: &Conviction) -> bool {
        if self.pair.has(conviction.signer) {
            self.link = Link::Frozen;
        }
        self.link == Link::Frozen
    }

    /// May anything new be signed?
    ///
    /// # Errors
    /// Why not.
    pub fn may_sign(&self) -> Result<(), NotNow> {
        match self.link {
            Link::Synced => Ok(()),
            Link::SyncNeeded => Err(NotNow::SyncNeeded),
            Link::Frozen => Err(NotNow::Frozen),
        }
    }

    /// May this contract be signed, or accepted?
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn may_open(&self, contract: &Contract) -> Result<(), LaneRefused> {
        self.may_sign()?;
        let lane = contract.lane;
        if PairId::of(lane.renter, lane.provider) != Some(self.pair) {
            return Err(LaneRefused::OtherPair);
        }
        if lane.epoch != self.epoch {
            return Err(LaneRefused::WrongEpoch { current: self.epoch, got: lane.epoch });
        }
        let open = self.open.iter().map(|state| state.body().floor);
        let floor = open.fold(self.head.floor, UnixMillis::max);
        if contract.created < floor { Err(LaneRefused::BelowFloor) } else { Ok(()) }
    }

    /// The highest floor that is safe to propose at `now`: below every open lane's contract
    /// (`oldest_open` is when the oldest was created), and so far back that no contract which an honest
    /// clock dates can come to lie below it.
    #[must_use]
    pub fn safe_floor(&self, now: UnixMillis, oldest_open: Option<UnixMillis>) -> UnixMillis {
        let by_clock = now.saturating_sub(UnixMillis::new(2 * CLOCK_SLACK_MS));
        oldest_open.map_or(by_clock, |open| open.min(by_clock)).max(self.head.floor)
    }

    /// The next state, to be signed. `fold` holds every lane with a voucher whose contract was created
    /// from the head's floor on and before the fold's.
    ///
    /// # Errors
    /// Why there is none now.
    pub fn propose(
        &self,
        fold: &Fold,
        settle: Option<Settle>,
        safe: UnixMillis,
    ) -> Result<PairState, ProposeRefused> {
        self.may_sign()?;
        // After a clash the lower key goes first, so that the two do not clash for ever.
        let free = self.open.is_empty() || (self.clashed() && self.me == self.pair.low());
        if !free {
            return Err(ProposeRefused::StepOpen { n: self.used });
        }
        if fold.count() == 0 && settle.is_none() {
            return Err(ProposeRefused::NothingNew);
        }
        if fold.floor() < self.head.floor || fold.floor() > safe {
            return Err(ProposeRefused::UnsafeFloor);
        }
        let payer_is_ours = settle.as_ref().is_none_or(|settle| self.pair.has(settle.payer));
        if !payer_is_ours {
            return Err(ProposeRefused::OtherPair);
        }
        let n = self.used.checked_add(1).ok_or(ProposeRefused::Overflow)?;
        let balance = self.after(fold, settle.as_ref()).ok_or(ProposeRefused::Overflow)?;
        Ok(PairState {
            pair: self.pair,
            by: self.me,
            epoch: self.epoch,
            n,
            balance,
            floor: fold.floor(),
            lanes: fold.lanes(),
            folded: fold.count(),
            settle,
            previous: self.head.digest,
        })
    }

    /// The balance after `fold` and `settle`; `None` past 2^127.
    fn after(&self, fold: &Fold, settle: Option<&Settle>) -> Option<i128> {
        let paid = settle.and_then(|settle| self.pair.debt_of(settle.payer, settle.amount)).unwrap_or(0);
        self.head.balance.checked_add(fold.delta())?.checked_sub(paid)
    }

    /// Did both propose the last step?
    fn clashed(&self) -> bool {
        self.open.len() == 2
    }

    /// What to answer to a state of the other side. `fold` is our own, up to the state's floor; `now`
    /// our wall clock; `oldest_open` when the contract of our oldest open lane was created.
    ///
    /// # Errors
    /// Why it cannot be judged: nothing is signed, and unless it is not theirs at all, sync.
    pub fn judge(
        &self,
        state: &Verified<PairState>,
        fold: &Fold,
        oldest_open: Option<UnixMillis>,
        now: UnixMillis,
        consent: Consent,
    ) -> Result<Verdict, StateRefused> {
        self.may_sign()?;
        let body = state.body();
        if body.pair != self.pair || body.by != self.peer {
            return Err(StateRefused::NotTheirs);
        }
        if body.epoch != self.epoch {
            return Err(StateRefused::WrongEpoch { current: self.epoch, got: body.epoch });
        }
        let known = self.open.iter().any(|open| open.digest() == state.digest());
        let expected = if known { self.used } else { self.used.saturating_add(1) };
        let clash = !known && body.n == self.used && self.open.iter().any(|open| open.body().by == self.me);
        if clash || (known && self.clashed()) {
            return Ok(Verdict::Clash);
        }
        if body.n != expected {
            return Err(StateRefused::Gap { expected, got: body.n });
        }
        Ok(match self.fault_in(body, fold, oldest_open, now, consent) {
            Some(reason) => Verdict::Cancel(Cancel {
                pair: self.pair,
                by: self.me,
                epoch: body.epoch,
                n: body.n,
                proposal: state.digest(),
                reason,
            }),
            None => match &body.settle {
                Some(settle) if settle.payer == self.peer && consent != Consent::Given => {
                    Verdict::AskOwner(settle.clone())
                }
                _ => Verdict::Countersign(Countersign {
                    pair: self.pair,
                    by: self.me,
                    epoch: body.epoch,
                    n: body.n,
                    state: state.digest(),
                }),
            },
        })
    }

    /// What our own books hold against a state, if anything.
    fn fault_in(
        &self,
        body: &PairState,
        fold: &Fold,
        oldest_open: Option<UnixMillis>,
        now: UnixMillis,
        consent: Consent,
    ) -> Option<CancelReason> {
        // One slack less than the proposer keeps: its clock may be that far ahead of ours.
        let latest = now.saturating_sub(UnixMillis::new(CLOCK_SLACK_MS));
        let floor_holds = body.floor == fold.floor()
            && body.floor >= self.head.floor
            && body.floor <= latest.max(self.head.floor)
            && oldest_open.is_none_or(|open| body.floor <= open);
        let payer_is_ours = body.settle.as_ref().is_none_or(|settle| self.pair.has(settle.payer));
        let agrees = floor_holds
            && payer_is_ours
            && body.previous == self.head.digest
            && body.lanes == fold.lanes()
            && body.folded == fold.count()
            && self.after(fold, body.settle.as_ref()) == Some(body.balance);
        if !agrees {
            return Some(CancelReason::Disagrees);
        }
        (consent == Consent::Denied && body.settle.is_some()).then_some(CancelReason::NotPaid)
    }

    /// Notes a state that is durable here, by either side. Of another epoch, or of a step that is spent,
    /// it changes nothing.
    pub fn note_state(&mut self, state: &Verified<PairState>) {
        let body = state.body();
        let spent = body.n < self.used || body.n <= self.head.n || self.is_cancelled(state.digest());
        if body.pair != self.pair || body.epoch != self.epoch || spent {
            return;
        }
        if body.n > self.used {
            self.open.clear();
        }
        self.used = body.n;
        if !self.open.iter().any(|open| open.body().by == body.by) {
            self.open.push(state.clone());
        }
    }

    /// Notes a state and its countersignature that both are durable here: whatever we held before, both
    /// sides are bound to the newest such pair of signatures. Says whether it became the head. (A ledger
    /// keeps no countersignature without its state: whoever has the one has the other, and shows both.)
    pub fn note_agreed(&mut self, state: &Verified<PairState>, countersign: &Verified<Countersign>) -> bool {
        let (body, answer) = (state.body(), countersign.body());
        let whole = body.pair == self.pair
            && answer.state == state.digest()
            && self.pair.other(body.by) == Some(answer.by);
        whole && self.adopt(state.clone(), countersign.clone())
    }

    fn adopt(&mut self, state: Verified<PairState>, countersign: Verified<Countersign>) -> bool {
        let PairState { epoch, n, balance, floor, .. } = *state.body();
        if (epoch, n) <= (self.head.epoch, self.head.n) {
            return false;
        }
        self.head = Head { epoch, n, balance, floor, digest: state.digest() };
        self.begin_epoch(epoch);
        self.open.retain(|open| open.body().n > n);
        self.used = self.used.max(n);
        self.agreed = Some((state, countersign));
        true
    }

    /// Notes a cancel that is durable here: its step is burned.
    pub fn note_cancel(&mut self, cancel: &Verified<Cancel>) {
        let body = cancel.body();
        let spent = body.n < self.used || body.n <= self.head.n;
        if body.pair != self.pair || body.epoch != self.epoch || spent {
            return;
        }
        self.used = body.n;
        self.open.retain(|open| open.digest() != body.proposal && open.body().n >= body.n);
        self.cancel = Some(cancel.clone());
    }

    fn is_cancelled(&self, state: Digest) -> bool {
        self.cancel.as_ref().is_some_and(|cancel| cancel.body().proposal == state)
    }

    /// Notes an epoch that is durable here.
    pub fn note_raise(&mut self, raise: &Verified<Raise>) {
        let body = raise.body();
        if body.pair != self.pair {
            return;
        }
        self.begin_epoch(body.epoch);
        let slot = &mut self.raises[usize::from(body.by == self.pair.high())];
        if slot.as_ref().is_none_or(|held| held.body().epoch < body.epoch) {
            *slot = Some(raise.clone());
        }
    }

    /// In a new epoch every step after the head is free again, because a slot names its epoch; what waited
    /// in the old one is void.
    fn begin_epoch(&mut self, epoch: u32) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.open.clear();
            self.cancel = None;
            self.used = self.head.n;
        }
    }

    /// What to sign when the other side showed something that we signed and no longer had: our ledger
    /// is an old one, and there may be more that nobody shows. Who knows that it restored a backup signs it
    /// at once, to every peer. `None` when the epochs are used up: then the two are done with each other.
    #[must_use]
    pub fn raise(&self) -> Option<Raise> {
        Some(Raise { pair: self.pair, by: self.me, epoch: self.epoch.checked_add(1)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::Equivocation;
    use crate::settle::tests::sample_contract;
    use crate::sign::SigningKey;
    use crate::unit::NanoCredit;

    const NOW: UnixMillis = UnixMillis::new(1_700_000_000_000);

    fn keys() -> [SigningKey; 2] {
        let mut keys = [SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32])];
        keys.sort_by_key(SigningKey::peer);
        keys
    }

    fn books() -> [PairBook; 2] {
        let [low, high] = keys().map(|key| key.peer());
        let mut books = [PairBook::new(low, high).unwrap(), PairBook::new(high, low).unwrap()];
        books.iter_mut().for_each(PairBook::synced);
        books
    }

    fn proposal(book: &PairBook, key: &SigningKey, amount: u64) -> Verified<PairState> {
        let settle = Settle { payer: key.peer(), amount: NanoCredit::new(amount), reference: "cash".into() };
        let fold = Fold::new(book.pair(), UnixMillis::ZERO);
        key.sign(book.propose(&fold, Some(settle), NOW).unwrap()).unwrap()
    }

    fn judge(
        book: &PairBook,
        state: &Verified<PairState>,
        consent: Consent,
    ) -> Result<Verdict, StateRefused> {
        book.judge(state, &Fold::new(book.pair(), state.body().floor), None, NOW, consent)
    }

    #[test]
    fn nothing_is_signed_before_a_sync_or_after_a_conviction() {
        let (keys, [mut low, high]) = (keys(), books());
        let fold = Fold::new(low.pair(), UnixMillis::ZERO);
        let state = proposal(&high, &keys[1], 5);
        low.parted();
        assert_eq!(low.propose(&fold, None, NOW), Err(NotNow::SyncNeeded.into()));
        assert_eq!(judge(&low, &state, Consent::Given), Err(NotNow::SyncNeeded.into()));
        low.synced();
        let other = proposal(&high, &keys[1], 6);
        let (_, conviction) =
            Equivocation::of(state.signed().clone().into(), other.signed().clone().into()).unwrap();
        assert!(low.convicted(&conviction));
        low.parted();
        low.synced();
        assert_eq!((low.link(), low.may_sign()), (Link::Frozen, Err(NotNow::Frozen)));
    }

    #[test]
    fn a_payment_needs_its_receivers_word_and_a_refused_one_burns_its_number() {
        let (keys, [mut low, mut high]) = (keys(), books());
        let state = proposal(&high, &keys[1], 5);
        high.note_state(&state);
        low.note_state(&state);
        assert!(matches!(judge(&low, &state, Consent::Unasked), Ok(Verdict::AskOwner(_))));
        let Ok(Verdict::Cancel(cancel)) = judge(&low, &state, Consent::Denied) else {
            unreachable!("denied")
        };
        assert_eq!(cancel.reason, CancelReason::NotPaid);
        let cancel = keys[0].sign(cancel).unwrap();
        for book in [&mut low, &mut high] {
            book.note_cancel(&cancel);
            // What was cancelled does not come back.
            book.note_state(&state);
            assert_eq!((book.open().len(), book.used(), book.head().n), (0, 1, 0));
        }
        let next = proposal(&high, &keys[1], 7);
        assert_eq!((next.body().n, next.body().previous), (2, low.pair().genesis()));
        high.note_state(&next);
        let fold = Fold::new(low.pair(), UnixMillis::ZERO);
        let again = high.propose(&fold, next.body().settle.clone(), NOW);
        assert_eq!(again, Err(ProposeRefused::StepOpen { n: 2 }));
        let Ok(Verdict::Countersign(sign)) = judge(&low, &next, Consent::Given) else {
            unreachable!("given")
        };
        let sign = keys[0].sign(sign).unwrap();
        assert!(low.note_agreed(&next, &sign) && high.note_agreed(&next, &sign));
        assert!(!high.note_agreed(&next, &sign));
        // The higher key prepaid: the lower owes it.
        assert_eq!((high.head().balance, low.head()), (7, high.head()));
    }

    #[test]
    fn after_a_clash_the_lower_key_goes_first() {
        let (keys, [mut low, mut high]) = (keys(), books());
        let states = [proposal(&low, &keys[0], 1), proposal(&high, &keys[1], 2)];
        low.note_state(&states[0]);
        high.note_state(&states[1]);
        assert_eq!(judge(&low, &states[1], Consent::Given), Ok(Verdict::Clash));
        for book in [&mut low, &mut high] {
            states.iter().for_each(|state| book.note_state(state));
        }
        let fold = Fold::new(low.pair(), UnixMillis::ZERO);
        let waits = high.propose(&fold, states[1].body().settle.clone(), NOW);
        assert_eq!(waits, Err(ProposeRefused::StepOpen { n: 1 }));
        let next = proposal(&low, &keys[0], 1);
        assert!(matches!(judge(&high, &next, Consent::Given), Ok(Verdict::Countersign(_))));
    }

    #[test]
    fn a_new_epoch_voids_what_waited_and_nothing_is_signed_in_the_old_one() {
        let (keys, [mut low, mut high]) = (keys(), books());
        let state = proposal(&high, &keys[1], 5);
        high.note_state(&state);
        let raise = keys[0].sign(low.raise().unwrap()).unwrap();
        low.note_raise(&raise);
        high.note_raise(&raise);
        assert_eq!(judge(&low, &state, Consent::Given), Err(StateRefused::WrongEpoch { current: 1, got: 0 }));
        low.note_state(&state);
        assert_eq!((low.used(), high.used(), high.open().len()), (0, 0, 0));
        let mut contract = sample_contract();
        contract.lane.epoch = 0;
        assert_eq!(low.may_open(&contract), Err(LaneRefused::WrongEpoch { current: 1, got: 0 }));
        contract.lane.epoch = 1;
        assert_eq!(low.may_open(&contract), Ok(()));
        // An agreement of the old epoch that only now shows still binds both.
        let sign =
            Countersign { pair: low.pair(), by: keys[0].peer(), epoch: 0, n: 1, state: state.digest() };
        let sign = keys[0].sign(sign).unwrap();
        assert!(low.note_agreed(&state, &sign) && high.note_agreed(&state, &sign));
        assert_eq!((low.head().n, low.used(), low.epoch()), (1, 1, 1));
    }

    #[test]
    fn a_countersignature_by_the_proposer_or_of_another_state_agrees_to_nothing() {
        let (keys, [mut low, high]) = (keys(), books());
        let (state, other) = (proposal(&high, &keys[1], 5), proposal(&high, &keys[1], 6));
        let sign = |key: &SigningKey, state: Digest| {
            key.sign(Countersign { pair: high.pair(), by: key.peer(), epoch: 0, n: 1, state }).unwrap()
        };
        assert!(!low.note_agreed(&state, &sign(&keys[1], state.digest())));
        assert!(!low.note_agreed(&state, &sign(&keys[0], other.digest())));
        assert_eq!(low.head().n, 0);
    }
}
