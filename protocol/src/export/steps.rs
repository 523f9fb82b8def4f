//! The common balance of two peers in an export file: its steps in order, and the lanes that each
//! agreed one takes in.
//!
//! Owns: [`StepAudit`], which holds every agreed balance in short, because the lanes that prove them come
//! after. Never: blames a balance whose lanes are not all in the file: both sides have signed it, so it
//! binds them, and it is counted as unproven. Called by [`super::audit`].

use super::audit::{Broken, Faults};
use super::{At, ExportError};
use crate::balance::{Fold, Folded, PairId, PairState};
use crate::id::{Digest, PeerId};
use crate::limits::MAX_AGREED_STATES;
use crate::statement::{Proven, Slot, Statement};
use crate::unit::{NanoCredit, UnixMillis};

/// A balance that both signed.
#[derive(Debug)]
struct Agreed {
    at: At,
    slot: Slot,
    digest: Digest,
    balance: i128,
    /// What it takes in: the digest and the number that it states.
    lanes: (Digest, u32),
    /// What an outside payment takes off.
    paid: i128,
    /// The balance before it, when that is in the file.
    before: Option<i128>,
    /// The lanes in the file that it takes in.
    fold: Fold,
}

/// A step of which not all entries have come yet.
#[derive(Debug, Default)]
struct Step {
    /// Epoch and number.
    of: (u32, u32),
    states: Vec<(At, Digest, PairState)>,
    /// Who committed to what.
    spent: Vec<(PeerId, Digest)>,
}

/// The steps so far.
#[derive(Debug)]
pub(super) struct StepAudit {
    pair: PairId,
    epoch: u32,
    head: (u32, u32),
    step: Step,
    agreed: Vec<Agreed>,
    floor: UnixMillis,
    /// What the balance before the last one was named by.
    rested_on: Option<Digest>,
    paid: [NanoCredit; 2],
    /// What is vouched beyond the last balance.
    open: i128,
}

impl StepAudit {
    pub(super) fn new(pair: PairId) -> Self {
        Self {
            pair,
            epoch: 0,
            head: (0, 0),
            step: Step::default(),
            agreed: Vec::new(),
            floor: UnixMillis::ZERO,
            rested_on: None,
            paid: [NanoCredit::ZERO; 2],
            open: 0,
        }
    }

    pub(super) fn pair(&self) -> PairId {
        self.pair
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The last agreed step.
    pub(super) fn step(&self) -> u32 {
        self.head.1
    }

    pub(super) fn agreed(&self) -> u64 {
        u64::try_from(self.agreed.len()).unwrap_or(u64::MAX)
    }

    /// Outside payments by `peer`.
    pub(super) fn paid_by(&self, peer: PeerId) -> NanoCredit {
        self.paid[usize::from(peer == self.pair.high())]
    }

    /// What `low` owes: the last agreed balance, and what was vouched since.
    pub(super) fn balance(&self) -> i128 {
        self.agreed.last().map_or(0, |last| last.balance).saturating_add(self.open)
    }

    /// Takes the next state, countersignature, cancel or raise.
    pub(super) fn take(
        &mut self,
        at: At,
        statement: &Statement,
        proven: &Proven,
        faults: &mut Faults,
    ) -> Result<(), ExportError> {
        let of = match statement {
            Statement::State(it) => (it.body.epoch, it.body.n),
            Statement::Countersign(it) => (it.body.epoch, it.body.n),
            Statement::Cancel(it) => (it.body.epoch, it.body.n),
            Statement::Raise(it) => {
                self.epoch = self.epoch.max(it.body.epoch);
                return Ok(());
            }
            _ => return Ok(()),
        };
        if of != self.step.of {
            self.step = Step { of, ..Step::default() };
        }
        let Proven { signer, commitment, .. } = *proven;
        if self.step.spent.iter().any(|(who, what)| *who == signer && *what != commitment) {
            faults.add(at, statement.slot(), Broken::SignedTwice);
            return Ok(());
        }
        self.step.spent.push((signer, commitment));
        match (statement, statement.slot()) {
            (Statement::State(it), _) => self.step.states.push((at, proven.digest, it.body.clone())),
            (Statement::Countersign(it), Some(slot)) => {
                self.countersigned(at, slot, it.body.state, faults)?
            }
            _ => {}
        }
        Ok(())
    }

    fn countersigned(
        &mut self,
        at: At,
        slot: Slot,
        state: Digest,
        faults: &mut Faults,
    ) -> Result<(), ExportError> {
        let found =
            self.step.states.iter().position(|(_, digest, body)| {
                *digest == state && self.pair.other(body.by) == Some(slot.signer)
            });
        let Some(found) = found else {
            faults.add(at, Some(slot), Broken::NoState);
            return Ok(());
        };
        if self.agreed.len() >= MAX_AGREED_STATES {
            return Err(ExportError::TooMany {
                what: "agreed balances of two peers",
                most: MAX_AGREED_STATES,
            });
        }
        let (at, digest, body) = self.step.states.swap_remove(found);
        self.agree(at, Slot { signer: body.by, ..slot }, digest, &body, faults);
        Ok(())
    }

    fn agree(&mut self, at: At, slot: Slot, digest: Digest, body: &PairState, faults: &mut Faults) {
        let last = self.agreed.last().map(|last| (last.digest, last.balance));
        let first = (self.pair.genesis(), 0);
        let before =
            if body.previous == last.unwrap_or(first).0 { Some(last.unwrap_or(first).1) } else { None };
        let forks = body.previous == first.0 || Some(body.previous) == self.rested_on;
        if before.is_none() && last.is_some() && forks {
            faults.add(at, Some(slot), Broken::Previous);
        }
        if body.floor < self.floor {
            faults.add(at, Some(slot), Broken::Floor);
        }
        let settle = body.settle.as_ref();
        let paid = settle.and_then(|settle| self.pair.debt_of(settle.payer, settle.amount));
        if let Some(settle) = settle.filter(|_| paid.is_some()) {
            let sum = &mut self.paid[usize::from(settle.payer == self.pair.high())];
            *sum = sum.saturating_add(settle.amount);
        }
        (self.head, self.epoch) = ((body.epoch, body.n), self.epoch.max(body.epoch));
        self.floor = self.floor.max(body.floor);
        self.rested_on = Some(body.previous);
        self.agreed.push(Agreed {
            at,
            slot,
            digest,
            balance: body.balance,
            lanes: (body.lanes, body.folded),
            paid: paid.unwrap_or(0),
            before,
            fold: Fold::new(self.pair, self.floor),
        });
    }

    /// Takes in a lane, in rising order: the first balance whose floor lies above its contract's time
    /// has it, or none yet.
    pub(super) fn fold(&mut self, folded: &Folded, created: UnixMillis) {
        let at = self.agreed.partition_point(|agreed| agreed.fold.floor() <= created);
        match self.agreed.get_mut(at) {
            // A fold refuses what is out of order or too much: then it does not prove the balance.
            Some(agreed) => drop(agreed.fold.add(folded)),
            None => {
                let debt = self.pair.debt_of(folded.lane.renter, folded.amount).unwrap_or(0);
                self.open = self.open.saturating_add(debt);
            }
        }
    }

    /// Compares every balance with its lanes; gives how many the file does not prove.
    pub(super) fn prove(&self, faults: &mut Faults) -> u64 {
        let mut unproven = 0;
        for agreed in &self.agreed {
            let whole = agreed.lanes == (agreed.fold.lanes(), agreed.fold.count());
            let Some(before) = agreed.before.filter(|_| whole) else {
                unproven += 1;
                continue;
            };
            let sum = before.saturating_add(agreed.fold.delta()).saturating_sub(agreed.paid);
            if sum != agreed.balance {
                faults.add(agreed.at, Some(agreed.slot), Broken::Sum { sum, got: agreed.balance });
            }
        }
        unproven
    }
}
