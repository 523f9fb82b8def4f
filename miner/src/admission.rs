//! Who may have the worker, as pure policy.
//!
//! Owns: [`AdmissionBook`] (jobs admitted and not yet done with the worker) and [`AdmittedJob`], which
//! only it can make from a [`VerifiedJob`]. Never: reads the ledger (a [`Standing`]'s figures come in),
//! a clock or a socket. Called by [`crate::desk`].

use std::collections::BTreeMap;

use potluck_protocol::fault::RefusalCode;
use potluck_protocol::id::{ContentHash, PeerId};
use potluck_protocol::unit::{GpuMillis, NanoCredit};
use potluck_protocol::wire::Refusal;
use thiserror::Error;

use crate::verify::VerifiedJob;

/// What the owner allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionPolicy {
    /// Jobs that may wait for one model, besides the one that runs.
    pub queue: usize,
    /// What one renter may owe, with everything its open jobs may still cost.
    pub credit_limit: NanoCredit,
}

/// What the ledger knows of a renter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// What it owes; negative when we owe it.
    pub balance: i128,
    /// The sum of the limits of its open jobs.
    pub open_caps: NanoCredit,
}

/// Why a verified job is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotAdmitted {
    /// Fault: nobody.
    #[error("the queue is full ({waiting} jobs)")]
    QueueFull {
        /// Jobs before it.
        waiting: usize,
    },
    /// Fault: renter.
    #[error("this job could bring the debt to {would} and the owner lends {limit}")]
    CreditExhausted {
        /// The most that could be owed.
        would: NanoCredit,
        /// What the owner lends one renter.
        limit: NanoCredit,
    },
    /// Fault: renter.
    #[error("a budget of {budget} does not pay for one millisecond")]
    BudgetTooSmall {
        /// The contract's limit.
        budget: NanoCredit,
    },
}

impl NotAdmitted {
    /// As the renter is told.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            Self::QueueFull { .. } => RefusalCode::Busy,
            Self::CreditExhausted { .. } => RefusalCode::CreditExhausted,
            Self::BudgetTooSmall { .. } => RefusalCode::BudgetTooSmall,
        };
        Refusal::new(code, self.to_string())
    }
}

/// A job that may have the worker when its turn comes.
#[derive(Debug)]
pub struct AdmittedJob {
    verified: VerifiedJob,
    ticket: u64,
}

impl AdmittedJob {
    /// The job.
    #[must_use]
    pub fn verified(&self) -> &VerifiedJob {
        &self.verified
    }

    /// Its place: lower tickets go first.
    #[must_use]
    pub fn ticket(&self) -> u64 {
        self.ticket
    }
}

/// Whose turn a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uses {
    /// One model's worker.
    Model(ContentHash),
    /// Every worker: a component and its models have the device to themselves.
    All,
}

impl Uses {
    /// Can two jobs not run at once?
    fn meets(self, other: Self) -> bool {
        match (self, other) {
            (Self::Model(one), Self::Model(other)) => one == other,
            _ => true,
        }
    }
}

#[derive(Debug)]
struct Entry {
    renter: PeerId,
    uses: Uses,
    /// The job's limit until the ledger counts it.
    pending: NanoCredit,
}

/// The jobs admitted.
#[derive(Debug)]
pub struct AdmissionBook {
    policy: AdmissionPolicy,
    entries: BTreeMap<u64, Entry>,
    next: u64,
}

impl AdmissionBook {
    /// An empty book.
    #[must_use]
    pub fn new(policy: AdmissionPolicy) -> Self {
        Self { policy, entries: BTreeMap::new(), next: 0 }
    }

    /// Admits a job, or says why not.
    ///
    /// # Errors
    /// The first rule it breaks; the book is unchanged then.
    pub fn admit(&mut self, job: VerifiedJob, credit: Credit) -> Result<AdmittedJob, NotAdmitted> {
        let contract = job.contract();
        let renter = contract.lane.renter;
        let limit = job.run_limit();
        if limit == GpuMillis::ZERO {
            return Err(NotAdmitted::BudgetTooSmall { budget: contract.max_total });
        }
        let uses = job.uses();
        let waiting = self.ahead_of(uses, u64::MAX);
        if waiting > self.policy.queue {
            return Err(NotAdmitted::QueueFull { waiting });
        }
        let most = contract.max_total;
        let pending = self.pending_of(renter);
        let would = credit
            .balance
            .saturating_add(i128::from(credit.open_caps.get()))
            .saturating_add(i128::try_from(pending).unwrap_or(i128::MAX))
            .saturating_add(i128::from(most.get()));
        if would > i128::from(self.policy.credit_limit.get()) {
            let would = NanoCredit::new(u64::try_from(would).unwrap_or(u64::MAX));
            return Err(NotAdmitted::CreditExhausted { would, limit: self.policy.credit_limit });
        }
        let ticket = self.next;
        self.next += 1;
        self.entries.insert(ticket, Entry { renter, uses, pending: most });
        Ok(AdmittedJob { verified: job, ticket })
    }

    /// The ledger now counts the job's limit itself.
    pub fn recorded(&mut self, ticket: u64) {
        if let Some(entry) = self.entries.get_mut(&ticket) {
            entry.pending = NanoCredit::ZERO;
        }
    }

    /// The job is done with the worker, or never got it.
    pub fn release(&mut self, ticket: u64) {
        self.entries.remove(&ticket);
    }

    /// Jobs that go before `ticket`.
    #[must_use]
    pub fn ahead(&self, ticket: u64) -> usize {
        self.entries.get(&ticket).map_or(0, |entry| self.ahead_of(entry.uses, ticket))
    }

    /// Jobs that would go before a new one that uses `uses`.
    #[must_use]
    pub fn waiting_for(&self, uses: Uses) -> usize {
        self.ahead_of(uses, u64::MAX)
    }

    /// Jobs admitted and not done.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Is no job admitted?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn ahead_of(&self, uses: Uses, before: u64) -> usize {
        self.entries.range(..before).filter(|(_, entry)| entry.uses.meets(uses)).count()
    }

    fn pending_of(&self, renter: PeerId) -> u128 {
        self.entries
            .values()
            .filter(|entry| entry.renter == renter)
            .map(|entry| u128::from(entry.pending.get()))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::tests::{sample_job, sample_job_with};

    const POLICY: AdmissionPolicy = AdmissionPolicy { queue: 2, credit_limit: NanoCredit::new(2_500) };
    const NOTHING: Credit = Credit { balance: 0, open_caps: NanoCredit::ZERO };

    #[test]
    fn the_queue_is_bounded_and_frees_its_places() {
        let mut book =
            AdmissionBook::new(AdmissionPolicy { queue: 2, credit_limit: NanoCredit::new(1 << 40) });
        let jobs: Vec<_> = (0..3).map(|lane| book.admit(sample_job(lane), NOTHING).unwrap()).collect();
        let ahead: Vec<_> = jobs.iter().map(|job| book.ahead(job.ticket())).collect();
        assert_eq!(ahead, [0, 1, 2]);
        assert!(matches!(book.admit(sample_job(3), NOTHING), Err(NotAdmitted::QueueFull { waiting: 3 })));
        book.release(jobs[0].ticket());
        assert_eq!(book.ahead(jobs[2].ticket()), 1);
        assert!(book.admit(sample_job(4), NOTHING).is_ok());
    }

    #[test]
    fn debt_open_jobs_and_this_job_together_stay_within_the_credit() {
        // The sample's limit is 1,000 nano-credits.
        let admit = |balance, open| {
            let credit = Credit { balance, open_caps: NanoCredit::new(open) };
            AdmissionBook::new(POLICY).admit(sample_job(0), credit)
        };
        assert!(admit(1_500, 0).is_ok());
        assert!(admit(0, 1_500).is_ok());
        assert!(admit(-5_000, 6_500).is_ok());
        for (balance, open) in [(1_501, 0), (0, 1_501), (1, 1_500), (i128::MAX, 1)] {
            assert!(matches!(admit(balance, open), Err(NotAdmitted::CreditExhausted { .. })));
        }
    }

    #[test]
    fn two_jobs_at_once_cannot_share_one_credit() {
        let mut book = AdmissionBook::new(POLICY);
        let first = book.admit(sample_job(0), NOTHING).unwrap();
        let second = book.admit(sample_job(1), NOTHING).unwrap();
        assert!(matches!(book.admit(sample_job(2), NOTHING), Err(NotAdmitted::CreditExhausted { .. })));
        // Once the ledger counts them they are not counted twice.
        book.recorded(first.ticket());
        book.recorded(second.ticket());
        let credit = Credit { balance: 0, open_caps: NanoCredit::new(1_500) };
        assert!(book.admit(sample_job(2), credit).is_ok());
    }

    #[test]
    fn a_budget_below_one_millisecond_is_refused() {
        // 111,110 nano-credits a second cost 111 in the first millisecond.
        let mut book = AdmissionBook::new(POLICY);
        let poor = sample_job_with(|contract| contract.max_total = NanoCredit::new(110));
        let refused = book.admit(poor, NOTHING).unwrap_err();
        assert_eq!(refused.refusal().code, RefusalCode::BudgetTooSmall);
        let enough = sample_job_with(|contract| contract.max_total = NanoCredit::new(111));
        assert!(book.admit(enough, NOTHING).is_ok());
    }
}
