//! The outbox: what we signed and the other side has not confirmed, and when to send it again.
//!
//! Owns: which statements wait, for what answer, and the times between attempts. Never: keeps the
//! statements (the ledger does; slots name them), sends or reads a clock. Called once a statement is
//! durable; after a restart it is filled again from the ledger (invariant I8).
//!
//! Every statement may arrive twice: a receiver that has it already answers as it did before.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits::MAX_SYNC_OBJECTS;
use crate::statement::{Place, Slot, Statement};

/// The first wait; it doubles with each attempt.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiting {
    due: Duration,
    wait: Duration,
}

/// What waits for one peer. Times are the caller's monotonic clock since any fixed moment.
#[derive(Debug, Clone, Default)]
pub struct Outbox {
    waiting: BTreeMap<Slot, Waiting>,
}

impl Outbox {
    /// Notes a durable statement of ours that was sent at `now`, or will be: it is due again after a
    /// wait. A voucher takes the place of the lane's earlier ones, because it includes them. What
    /// needs no confirming (a quote, a contract before its accept, a meter, a receipt: each is asked
    /// for again by whoever misses it) is passed over.
    pub fn sent(&mut self, statement: &Statement, now: Duration) {
        let Some(slot) = statement.slot() else { return };
        match slot.place {
            Place::Voucher(lane, k) => {
                self.waiting.retain(
                    |old, _| !matches!(old.place, Place::Voucher(at, earlier) if at == lane && earlier < k),
                );
            }
            Place::Raise(..) => self.answered(statement),
            Place::Close(_) | Place::Abandon(_) | Place::Step(..) => {}
            Place::Contract(_) | Place::Accept(_) | Place::Meter(..) | Place::Receipt(..) => return,
        }
        self.waiting.insert(slot, Waiting { due: now.saturating_add(FIRST_WAIT), wait: FIRST_WAIT });
    }

    /// Notes a verified statement of the other side: a receipt confirms its voucher and all before it;
    /// a countersignature, a cancel or a proposal of its own confirms our step; a new epoch ends it.
    pub fn answered(&mut self, by: &Statement) {
        let Some(answer) = by.slot() else { return };
        self.waiting.retain(|slot, _| match (slot.place, answer.place) {
            (Place::Voucher(lane, k), Place::Receipt(at, confirmed)) => lane != at || k > confirmed,
            (Place::Step(pair, _, n), Place::Step(other, _, confirmed)) => pair != other || n > confirmed,
            // What waited in an epoch that is over waits for nothing any more.
            (Place::Step(pair, epoch, _), Place::Raise(other, begun)) => pair != other || epoch >= begun,
            _ => true,
        });
    }

    /// Notes that the other side took `slots` in: what needs no answer of its own is done.
    pub fn delivered(&mut self, slots: &[Slot]) {
        self.waiting.retain(|slot, _| needs_answer(slot) || !slots.contains(slot));
    }

    /// Notes that both sides hold the same: whatever the other side has not answered to, it has.
    pub fn synced(&mut self) {
        self.waiting.retain(|slot, _| needs_answer(slot));
    }

    /// What is to be sent (again) at `now`, at most one page; each is then due again after twice the
    /// wait.
    pub fn due(&mut self, now: Duration) -> Vec<Slot> {
        let mut due = Vec::new();
        for (slot, waiting) in &mut self.waiting {
            if waiting.due <= now && due.len() < MAX_SYNC_OBJECTS {
                waiting.wait = waiting.wait.saturating_mul(2).min(LONGEST_WAIT);
                waiting.due = now.saturating_add(waiting.wait);
                due.push(*slot);
            }
        }
        due
    }

    /// When something is next due.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.waiting.values().map(|waiting| waiting.due).min()
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Does nothing wait?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

fn needs_answer(slot: &Slot) -> bool {
    matches!(slot.place, Place::Voucher(..) | Place::Step(..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settle::Receipt;
    use crate::settle::tests::{sample_lane, sample_voucher};
    use crate::sign::SigningKey;

    fn voucher(k: u32) -> Statement {
        let mut body = sample_voucher();
        body.k = k;
        SigningKey::from_seed([1; 32]).sign(body).unwrap().into_signed().into()
    }

    fn receipt(k: u32) -> Statement {
        let voucher = voucher(k).verify().unwrap().digest;
        let body = Receipt { lane: sample_lane(), k, amount: sample_voucher().amount, voucher };
        SigningKey::from_seed([2; 32]).sign(body).unwrap().into_signed().into()
    }

    #[test]
    fn a_voucher_is_sent_again_until_its_receipt() {
        let mut outbox = Outbox::default();
        outbox.sent(&voucher(1), Duration::ZERO);
        let mut sent = 0;
        for second in 0..100 {
            sent += outbox.due(Duration::from_secs(second)).len();
        }
        // After 1, 3, 7, 15, 31 and 63 seconds.
        assert_eq!(sent, 6);
        outbox.answered(&receipt(1));
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_newer_voucher_stands_for_the_older_and_an_old_receipt_does_not_confirm_it() {
        let mut outbox = Outbox::default();
        outbox.sent(&voucher(1), Duration::ZERO);
        outbox.sent(&voucher(2), Duration::ZERO);
        assert_eq!(outbox.len(), 1);
        outbox.answered(&receipt(1));
        outbox.synced();
        assert_eq!(outbox.len(), 1);
        outbox.answered(&receipt(2));
        assert!(outbox.is_empty());
    }

    #[test]
    fn waits_have_a_longest() {
        let mut outbox = Outbox::default();
        outbox.sent(&voucher(1), Duration::ZERO);
        let mut now = Duration::ZERO;
        for _ in 0..40 {
            let next = outbox.next_due().unwrap();
            assert!(next - now <= LONGEST_WAIT);
            now = next;
            assert_eq!(outbox.due(now).len(), 1);
        }
    }
}
