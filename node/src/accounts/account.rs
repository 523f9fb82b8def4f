//! What a process remembers of one peer while the two deal: link, outbox, and how fast it asks.
//!
//! Owns: [`Account`] and [`Bucket`]. Never: holds money (the ledger does), sends, or reads a clock: times
//! come in. Made when a peer is first met, forgotten when room is needed; nothing in it is missed then,
//! for it all follows from the ledger and a sync.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use potluck_protocol::id::PeerId;
use potluck_protocol::outbox::Outbox;
use potluck_protocol::pair::PairBook;
use potluck_protocol::statement::Statement;
use tokio::sync::Notify;

/// One question in so long, on average: 32 a second, more than an honest sync of ten thousand jobs over
/// the Atlantic asks.
const QUESTION_EVERY: Duration = Duration::from_micros(31_250);
/// How far a peer may be ahead of that: 256 questions at once.
const AHEAD: Duration = Duration::from_secs(8);
/// Questions of one peer that are answered at the same time.
const AT_ONCE: u32 = 4;

/// How fast one peer may ask. Holds one number: when the peer will have paid for all its questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    paid: Duration,
}

impl Bucket {
    /// May a question be answered at `now` (of any monotonic clock)? Then it is counted.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        let from = self.paid.max(now);
        let allowed = from.saturating_sub(now) < AHEAD;
        if allowed {
            self.paid = from.saturating_add(QUESTION_EVERY);
        }
        allowed
    }
}

/// One peer. Two locks keep order: `turn` is held by whoever drives a conversation with the peer, over
/// its questions; `books` by whoever reads, judges and signs, never over a question, because the peer may
/// be waiting for an answer of ours.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) peer: PeerId,
    /// The pair's book while the ledger has nothing.
    pub(super) fresh: PairBook,
    pub(super) turn: tokio::sync::Mutex<()>,
    pub(super) books: tokio::sync::Mutex<()>,
    /// Told when the pair's balance took a step, or a settlement was decided.
    pub(super) changed: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Do both hold the same, as far as we know?
    pub(super) synced: bool,
    /// Times that the two parted: what was compared before is worth nothing after.
    parted: u64,
    /// Does the outbox hold what the ledger says?
    pub(super) filled: bool,
    pub(super) outbox: Outbox,
    bucket: Bucket,
    answering: u32,
    /// Was the peer told of the proofs that we hold?
    pub(super) told: bool,
    /// When the account was last asked for.
    pub(super) used: Duration,
}

/// How an outbox was before a statement was kept for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Posting {
    filled: bool,
    parted: u64,
}

impl Account {
    /// The account of `me` with `peer`; `None` when they are one.
    pub(super) fn new(me: PeerId, peer: PeerId) -> Option<Self> {
        Some(Self {
            peer,
            fresh: PairBook::new(me, peer)?,
            turn: tokio::sync::Mutex::new(()),
            books: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
            state: Mutex::new(State::default()),
        })
    }

    /// What is remembered; to be held for a moment only.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Times that the two parted so far.
    pub(super) fn partings(&self) -> u64 {
        self.state().parted
    }

    /// The two must compare again; what we owe an answer for is looked up again.
    pub(super) fn parted(&self) {
        let mut state = self.state();
        state.synced = false;
        state.filled = false;
        state.parted = state.parted.wrapping_add(1);
    }

    /// Both were found to hold the same, by a comparison that began at `partings`. `None` when they have
    /// parted since; else whether that is news.
    pub(super) fn synced(&self, partings: u64) -> Option<bool> {
        let mut state = self.state();
        if state.parted != partings {
            return None;
        }
        state.outbox.synced();
        Some(!std::mem::replace(&mut state.synced, true))
    }

    /// A statement of ours is about to be kept: until [`Account::posted`] follows, which it does not when
    /// whoever waits for the ledger gives up, the outbox does not count as filled.
    pub(super) fn posting(&self) -> Posting {
        let mut state = self.state();
        Posting { filled: std::mem::replace(&mut state.filled, false), parted: state.parted }
    }

    /// The statement is kept, and was or will be sent at `now`.
    pub(super) fn posted(&self, statement: &Statement, now: Duration, before: Posting) {
        let mut state = self.state();
        state.outbox.sent(statement, now);
        state.filled |= before.filled && before.parted == state.parted;
    }

    /// May the peer's question be answered at `now`? Then [`Account::answered`] must follow.
    pub(super) fn admit(&self, now: Duration) -> bool {
        let mut state = self.state();
        state.used = now;
        let admitted = state.answering < AT_ONCE && state.bucket.take(now);
        state.answering += u32::from(admitted);
        admitted
    }

    /// A question that was admitted is done with.
    pub(super) fn answered(&self) {
        let mut state = self.state();
        state.answering = state.answering.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_protocol::sign::SigningKey;
    use proptest::prelude::*;

    fn account() -> Account {
        let [me, peer] = [1, 2].map(|seed| SigningKey::from_seed([seed; 32]).peer());
        assert!(Account::new(me, me).is_none());
        Account::new(me, peer).unwrap()
    }

    #[test]
    fn a_comparison_that_began_before_a_parting_counts_for_nothing() {
        let account = account();
        let before = account.partings();
        account.parted();
        assert_eq!(account.synced(before), None);
        assert!(!account.state().synced);
        assert_eq!(account.synced(account.partings()), Some(true));
        assert_eq!(account.synced(account.partings()), Some(false));
    }

    #[test]
    fn few_questions_are_answered_at_once() {
        let account = account();
        for _ in 0..AT_ONCE {
            assert!(account.admit(Duration::ZERO));
        }
        assert!(!account.admit(Duration::ZERO));
        account.answered();
        assert!(account.admit(Duration::ZERO));
    }

    #[test]
    fn a_pause_pays_for_a_burst_and_no_more() {
        let mut bucket = Bucket::default();
        let late = Duration::from_secs(1_000_000);
        let taken = (0..10_000).filter(|_| bucket.take(late)).count();
        assert_eq!(taken, 256);
    }

    proptest! {
        /// However a peer spreads its questions, no more are answered than the burst and the rate allow.
        #[test]
        fn the_rate_holds(pauses in prop::collection::vec(0..200u64, 1..2_000)) {
            let (mut bucket, mut now, mut taken) = (Bucket::default(), Duration::ZERO, 0u64);
            for pause in pauses {
                now += Duration::from_millis(pause);
                taken += u64::from(bucket.take(now));
            }
            prop_assert!(u128::from(taken) <= 256 + now.as_micros() / QUESTION_EVERY.as_micros() + 1);
        }
    }
}
