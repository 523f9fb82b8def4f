//! The objects of settlement: contract, accept, meter, voucher, receipt, close, abandon.
//!
//! Owns: what each says and who signs it. Never: decides whether one may be signed (see
//! [`crate::lane`]) or keeps it (the ledger does). Called by both sides of a job and the ledger.
//!
//! ```text
//! renter                               provider
//!   Contract(quote, job, limits) ───────▶
//!   ◀─────────────────────────── Accept(contract)
//!   ◀──────────────── Meter k (cumulative ms, commitment)        each quantum and at the end
//!   Voucher k (cumulative amount) ──────▶
//!   ◀───────────────────────── Receipt k
//!   ◀──────────────────────────── Close
//! ```

use serde::{Deserialize, Serialize};

use crate::id::{Digest, LaneId, PeerId};
use crate::job::FinishReason;
use crate::offer::Terms;
use crate::sign::Signable;
use crate::unit::{GpuMillis, NanoCredit, Rate, UnixMillis, amount, time_within};

/// What a renter binds itself to for one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contract {
    /// Between whom, and which job.
    pub lane: LaneId,
    /// Digest of the job (see [`crate::job::job_digest`]).
    pub job: Digest,
    /// Digest of the provider's quote.
    pub quote: Digest,
    /// The quote's terms, again, so that a ledger alone explains a bill.
    pub terms: Terms,
    /// The most this job may cost.
    pub max_total: NanoCredit,
    /// The most worker time this job may take, load and run together.
    pub max_ms: GpuMillis,
    /// When it was signed (wall clock, for people).
    pub created: UnixMillis,
    /// Not to be started after this (wall clock, with slack).
    pub start_by: UnixMillis,
}

/// A provider's word that it will run the job of a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// Which job.
    pub lane: LaneId,
    /// Digest of the contract.
    pub contract: Digest,
    /// When (wall clock, for people).
    pub at: UnixMillis,
}

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waiting for the worker: free.
    Queued,
    /// The model goes into memory: billed at the load rate.
    Load,
    /// The model works: billed at the run rate.
    Run,
    /// Waiting for a voucher: free.
    Stalled,
    /// A component works, and no model does: billed at the guest rate.
    Guest,
}

/// Worker time so far, by phase. Cumulative: it never falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Loading.
    pub load: GpuMillis,
    /// Running a model.
    pub run: GpuMillis,
    /// Running a component while no model of the job works.
    pub guest: GpuMillis,
}

impl Usage {
    /// All phases together.
    #[must_use]
    pub fn total(&self) -> GpuMillis {
        self.load.saturating_add(self.run).saturating_add(self.guest)
    }

    /// Time in `phase`; zero for a phase that is free.
    #[must_use]
    pub fn of(&self, phase: Phase) -> GpuMillis {
        match phase {
            Phase::Load => self.load,
            Phase::Run => self.run,
            Phase::Guest => self.guest,
            Phase::Queued | Phase::Stalled => GpuMillis::ZERO,
        }
    }

    /// What it costs (invariant I3).
    #[must_use]
    pub fn amount(&self, terms: &Terms) -> NanoCredit {
        amount(&self.priced(terms))
    }

    /// Is no phase shorter than in `before`?
    #[must_use]
    pub fn continues(&self, before: &Self) -> bool {
        self.load >= before.load && self.run >= before.run && self.guest >= before.guest
    }

    /// How long `phase` may be in all before `contract` stops the job, the other phases staying as they
    /// are; zero for a phase that is free.
    #[must_use]
    pub fn limit(&self, phase: Phase, contract: &Contract) -> GpuMillis {
        let mut others = *self;
        let (slot, rate) = match phase {
            Phase::Load => (&mut others.load, contract.terms.load),
            Phase::Run => (&mut others.run, contract.terms.run),
            Phase::Guest => (&mut others.guest, contract.terms.guest),
            Phase::Queued | Phase::Stalled => return GpuMillis::ZERO,
        };
        *slot = GpuMillis::ZERO;
        let by_time = contract.max_ms.saturating_sub(others.total());
        let by_money = time_within(contract.max_total, rate, &others.priced(&contract.terms));
        by_money.map_or(by_time, |by_money| by_money.min(by_time))
    }

    /// Cut to what `contract` allows, no phase under what `paid` has: running is cut first, then the
    /// component's time, then loading.
    #[must_use]
    pub fn cut(mut self, contract: &Contract, paid: &Self) -> Self {
        self.run = self.run.min(self.limit(Phase::Run, contract).max(paid.run));
        self.guest = self.guest.min(self.limit(Phase::Guest, contract).max(paid.guest));
        self.load = self.load.min(self.limit(Phase::Load, contract).max(paid.load));
        self
    }

    fn priced(&self, terms: &Terms) -> [(Rate, GpuMillis); 3] {
        [(terms.run, self.run), (terms.load, self.load), (terms.guest, self.guest)]
    }
}

/// A provider's claim of work done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    /// Which job.
    pub lane: LaneId,
    /// Digest of the contract.
    pub contract: Digest,
    /// 1, 2, 3 … without gaps.
    pub k: u32,
    /// Time so far.
    pub usage: Usage,
    /// Output so far, in tokens of a model or parts of a component's output.
    pub tokens: u32,
    /// Commitment to that output (see [`crate::output`]).
    pub commitment: Digest,
    /// No further meter follows.
    pub last: bool,
}

/// A renter's promise to pay, cumulative: each replaces the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voucher {
    /// Which job.
    pub lane: LaneId,
    /// The meter's number.
    pub k: u32,
    /// The meter's time.
    pub usage: Usage,
    /// What is owed for the whole lane so far.
    pub amount: NanoCredit,
    /// Digest of the meter.
    pub meter: Digest,
    /// Digest of the voucher before; of the contract for the first.
    pub previous: Digest,
}

/// A provider's word that it holds a voucher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Which job.
    pub lane: LaneId,
    /// The voucher's number.
    pub k: u32,
    /// The voucher's amount.
    pub amount: NanoCredit,
    /// Digest of the voucher.
    pub voucher: Digest,
}

/// Why a lane ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// The answer is whole.
    Completed,
    /// The renter stopped it.
    RenterCancelled,
    /// The contract's money or time was used up.
    LimitReached,
    /// The owner took the machine back.
    OwnerYield,
    /// The provider's worker or machine failed.
    ProviderFailed,
    /// The renter stopped paying.
    RenterFailed,
    /// The other side was not heard of any more.
    PeerLost,
}

/// The end of a lane, as the side that closes it states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// Which job.
    pub lane: LaneId,
    /// Who closes.
    pub by: PeerId,
    /// The last voucher's number; 0 when there was none.
    pub k: u32,
    /// The last voucher's amount: what the whole lane costs.
    pub amount: NanoCredit,
    /// Why.
    pub reason: CloseReason,
    /// How the answer ended.
    pub finish: FinishReason,
    /// Tokens read.
    pub prompt_tokens: u32,
    /// Tokens written.
    pub completion_tokens: u32,
    /// Commitment to all tokens written.
    pub result: Digest,
    /// When (wall clock, for people).
    pub at: UnixMillis,
}

/// The end of a lane in which nothing happened for a day, as either side states it: the last voucher
/// is final (see [`crate::life`]). Nothing in it depends on when it is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandon {
    /// Which job.
    pub lane: LaneId,
    /// Who gives it up.
    pub by: PeerId,
    /// The last voucher's number that it holds; 0 when there is none.
    pub k: u32,
    /// The last voucher's amount: what the whole lane costs.
    pub amount: NanoCredit,
    /// Digest of the last voucher; of the contract when there is none.
    pub voucher: Digest,
}

macro_rules! signed_by {
    ($type:ty, $domain:literal, $signer:expr) => {
        impl Signable for $type {
            const DOMAIN: &'static str = $domain;

            fn signer(&self) -> PeerId {
                let signer: fn(&Self) -> PeerId = $signer;
                signer(self)
            }
        }
    };
}

signed_by!(Contract, "potluck/v1/contract", |it| it.lane.renter);
signed_by!(Accept, "potluck/v1/accept", |it| it.lane.provider);
signed_by!(Meter, "potluck/v1/meter", |it| it.lane.provider);
signed_by!(Voucher, "potluck/v1/voucher", |it| it.lane.renter);
signed_by!(Receipt, "potluck/v1/receipt", |it| it.lane.provider);
signed_by!(Close, "potluck/v1/close", |it| it.by);
signed_by!(Abandon, "potluck/v1/abandon", |it| it.by);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sign::SigningKey;
    use crate::unit::Rate;

    pub(crate) fn sample_lane() -> LaneId {
        LaneId {
            renter: SigningKey::from_seed([1; 32]).peer(),
            provider: SigningKey::from_seed([2; 32]).peer(),
            epoch: 0,
            lane: 0x0123_4567_89ab_cdef,
        }
    }

    pub(crate) fn sample_contract() -> Contract {
        Contract {
            lane: sample_lane(),
            job: Digest::from_bytes([4; 32]),
            quote: Digest::from_bytes([5; 32]),
            terms: Terms {
                run: Rate::new(11_111),
                load: Rate::new(3_000),
                guest: Rate::new(2_000),
                quantum: GpuMillis::new(1_000),
                window: GpuMillis::new(2_000),
            },
            max_total: NanoCredit::new(1_000_000),
            max_ms: GpuMillis::new(60_000),
            created: UnixMillis::new(1_700_000_000_000),
            start_by: UnixMillis::new(1_700_000_030_000),
        }
    }

    pub(crate) fn sample_voucher() -> Voucher {
        Voucher {
            lane: sample_lane(),
            k: 1,
            usage: Usage { run: GpuMillis::new(1_000), ..Usage::default() },
            amount: NanoCredit::new(11_111),
            meter: Digest::from_bytes([6; 32]),
            previous: Digest::from_bytes([7; 32]),
        }
    }
}
