//! Who may have the worker, as pure policy.
//!
//! Owns: [`AdmissionBook`] (jobs admitted and not yet done with the worker) and [`AdmittedJob`], which
//! only it can make from a [`VerifiedJob`]. Never: reads the ledger (what it knows of a renter comes in),
//! a clock or a socket, or sets how much is lent ([`CreditPolicy`] does). Called by [`crate::desk`].

use std::collections::BTreeMap;

use potluck_protocol::credit::{CreditPolicy, CreditRefused, Standing};
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
    /// What renters may owe, with everything their open jobs may still cost.
    pub credit: CreditPolicy,
}

/// What the ledger knows of a renter, and of the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// Where the renter stands.
    pub standing: Standing,
    /// What all other unknown peers together may come to owe, in nano-credits.
    pub others: u128,
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
    /// Fault: renter, who settles first; or nobody, when strangers have all that is lent to them.
    #[error(transparent)]
    NoCredit(#[from] CreditRefused),
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
            Self::NoCredit(CreditRefused::Frozen) => RefusalCode::Frozen,
            Self::NoCredit(_) => RefusalCode::CreditExhausted,
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
    /// Had the renter neither paid nor worked for us?
    unknown: bool,
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
    pub fn admit(&mut self, job: VerifiedJob, known: Known) -> Result<AdmittedJob, NotAdmitted> {
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
        let Known { standing, others } = self.with_pending(renter, known);
        self.policy.credit.allows(&standing, others, most)?;
        let ticket = self.next;
        self.next += 1;
        let unknown = standing.is_unknown();
        self.entries.insert(ticket, Entry { renter, uses, pending: most, unknown });
        Ok(AdmittedJob { verified: job, ticket })
    }

    /// What `renter` may still come to owe.
    #[must_use]
    pub fn room(&self, renter: PeerId, known: Known) -> NanoCredit {
        let Known { standing, others } = self.with_pending(renter, known);
        self.policy.credit.room(&standing, others)
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

    /// The ledger's word with the limits of the jobs that it does not count yet.
    fn with_pending(&self, renter: PeerId, Known { mut standing, mut others }: Known) -> Known {
        for entry in self.entries.values() {
            if entry.renter == renter {
                standing.open_caps = standing.open_caps.saturating_add(entry.pending);
            } else if entry.unknown {
                others = others.saturating_add(u128::from(entry.pending.get()));
            }
        }
        Known { standing, others }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::tests::{sample_job, sample_job_of, sample_job_with};
    use potluck_protocol::unit::Rate;

    const NOTHING: Known = Known { standing: STRANGER, others: 0 };
    const STRANGER: Standing = Standing {
        balance: 0,
        open_caps: NanoCredit::ZERO,
        settled: NanoCredit::ZERO,
        audited: NanoCredit::ZERO,
        frozen: false,
    };

    /// One stranger may owe `each`, all of them `all`.
    fn book(each: u64, all: u64) -> AdmissionBook {
        let credit = CreditPolicy {
            rate: Rate::new(1_000),
            new_peer: GpuMillis::new(each),
            cap: NanoCredit::new(1 << 40),
            unknown_cap: NanoCredit::new(all),
        };
        AdmissionBook::new(AdmissionPolicy { queue: 2, credit })
    }

    #[test]
    fn the_queue_is_bounded_and_frees_its_places() {
        let mut book = book(1 << 30, 1 << 30);
        let jobs: Vec<_> = (0..3).map(|lane| book.admit(sample_job(lane), NOTHING).unwrap()).collect();
        let ahead: Vec<_> = jobs.iter().map(|job| book.ahead(job.ticket())).collect();
        assert_eq!(ahead, [0, 1, 2]);
        assert!(matches!(book.admit(sample_job(3), NOTHING), Err(NotAdmitted::QueueFull { waiting: 3 })));
        book.release(jobs[0].ticket());
        assert_eq!(book.ahead(jobs[2].ticket()), 1);
        assert!(book.admit(sample_job(4), NOTHING).is_ok());
    }

    #[test]
    fn two_jobs_at_once_cannot_share_one_credit() {
        // A sample's limit is 1,000 nano-credits.
        let mut book = book(2_500, 1 << 30);
        let first = book.admit(sample_job(0), NOTHING).unwrap();
        let second = book.admit(sample_job(1), NOTHING).unwrap();
        let renter = first.verified().contract().lane.renter;
        assert_eq!(book.room(renter, NOTHING), NanoCredit::new(500));
        let refused = book.admit(sample_job(2), NOTHING).unwrap_err();
        assert_eq!(refused.refusal().code, RefusalCode::CreditExhausted);
        // Once the ledger counts them they are not counted twice.
        book.recorded(first.ticket());
        book.recorded(second.ticket());
        let standing = Standing { open_caps: NanoCredit::new(1_500), ..STRANGER };
        assert!(book.admit(sample_job(2), Known { standing, others: 0 }).is_ok());
    }

    #[test]
    fn strangers_share_one_credit_before_the_ledger_counts_their_jobs() {
        let mut book = book(2_500, 1_900);
        let first = book.admit(sample_job_of(8, 0), NOTHING).unwrap();
        let refused = book.admit(sample_job_of(9, 0), NOTHING).unwrap_err();
        assert!(matches!(refused, NotAdmitted::NoCredit(CreditRefused::UnknownPeers { .. })), "{refused}");
        // Who paid before needs none of it, nor takes any.
        let standing = Standing { settled: NanoCredit::new(1), ..STRANGER };
        assert!(book.admit(sample_job_of(9, 1), Known { standing, others: 0 }).is_ok());
        book.release(first.ticket());
        assert!(book.admit(sample_job_of(7, 0), NOTHING).is_ok());
    }

    #[test]
    fn a_frozen_pair_is_told_so() {
        let standing = Standing { frozen: true, balance: -5_000, ..STRANGER };
        let refused = book(2_500, 2_500).admit(sample_job(0), Known { standing, others: 0 }).unwrap_err();
        assert_eq!(refused.refusal().code, RefusalCode::Frozen);
    }

    #[test]
    fn a_budget_below_one_millisecond_is_refused() {
        // 111,110 nano-credits a second cost 111 in the first millisecond.
        let mut book = book(2_500, 2_500);
        let poor = sample_job_with(|contract| contract.max_total = NanoCredit::new(110));
        let refused = book.admit(poor, NOTHING).unwrap_err();
        assert_eq!(refused.refusal().code, RefusalCode::BudgetTooSmall);
        let enough = sample_job_with(|contract| contract.max_total = NanoCredit::new(111));
        assert!(book.admit(enough, NOTHING).is_ok());
    }
}
