//! The lies of byzantine nodes.
//!
//! Owns: the kinds of liar and what each does to the messages that an honest node would send. Never:
//! forges another's signature: that is what the real ones are for. Called by the simulated nodes.

use potluck_protocol::balance::PairState;
use potluck_protocol::settle::{Meter, Usage, Voucher};
use potluck_protocol::unit::{GpuMillis, NanoCredit};

use super::message::{Effect, Message};
use super::node::{Node, Step};

/// How a byzantine node lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lie {
    /// Claims more work than it did, and pays claims of payment that never were.
    Overclaim,
    /// Signs neither vouchers nor balances.
    Refuse,
    /// Says again what was said before.
    Replay,
    /// Says things late and in another order.
    Reorder,
    /// Signs two things in one slot.
    Equivocate,
    /// Comes back with an old ledger and signs at once.
    OldBackup,
    /// Is gone for good at some time.
    Vanish,
}

impl Lie {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Overclaim,
        Self::Refuse,
        Self::Replay,
        Self::Reorder,
        Self::Equivocate,
        Self::OldBackup,
        Self::Vanish,
    ];
}

const HISTORY: usize = 64;

impl Node {
    /// What a liar's messages become on their way out.
    pub fn twist(&mut self, step: &mut Step<'_>) {
        match self.lie {
            Some(Lie::Reorder) => {
                for effect in &mut step.out {
                    if let Effect::Send(to, message) = effect
                        && step.rng.chance(300)
                    {
                        *effect = Effect::SendLate(*to, message.clone(), step.rng.between(0, 2_500));
                    }
                }
            }
            Some(Lie::Replay) => self.replay(step),
            _ => {}
        }
    }

    fn replay(&mut self, step: &mut Step<'_>) {
        let mut again = Vec::new();
        for effect in &step.out {
            let Effect::Send(to, message @ (Message::ToProvider(..) | Message::ToRenter(..))) = effect else {
                continue;
            };
            self.history.push_back((*to, message.clone()));
            if self.history.len() > HISTORY {
                self.history.pop_front();
            }
            let length = u64::try_from(self.history.len()).unwrap_or(1);
            let at = usize::try_from(step.rng.between(0, length)).unwrap_or(0);
            if step.rng.chance(400)
                && let Some((to, message)) = self.history.get(at)
            {
                again.push(Effect::SendLate(*to, message.clone(), step.rng.between(0, 5_000)));
            }
        }
        step.out.extend(again);
    }
}

/// A meter that claims more than was done.
#[must_use]
pub fn overclaim(meter: &Meter, kind: u64) -> Meter {
    let mut lie = meter.clone();
    let run = meter.usage.run;
    lie.usage = match kind {
        // Just what the renter's clock lets pass.
        0 => Usage { run: run.saturating_add(GpuMillis::new(250)), ..meter.usage },
        1 => Usage { run: run.saturating_add(GpuMillis::new(1_200)), ..meter.usage },
        _ => Usage { run: GpuMillis::new(run.get().saturating_mul(2).saturating_add(3_000)), ..meter.usage },
    };
    lie
}

/// Another meter in the same slot.
#[must_use]
pub fn other_meter(meter: &Meter) -> Meter {
    Meter {
        usage: Usage { run: meter.usage.run.saturating_add(GpuMillis::new(1)), ..meter.usage },
        ..meter.clone()
    }
}

/// Another voucher in the same slot, for less.
#[must_use]
pub fn other_voucher(voucher: &Voucher) -> Voucher {
    Voucher { amount: voucher.amount.saturating_sub(NanoCredit::new(1)), ..voucher.clone() }
}

/// Another balance in the same slot, in the liar's favour.
#[must_use]
pub fn other_state(state: &PairState) -> PairState {
    PairState { balance: state.balance.saturating_add(1_000_000), ..state.clone() }
}
