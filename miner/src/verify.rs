//! From what a stranger sent to a job whose signatures and terms hold.
//!
//! Owns: the stages [`SignedJob`] and [`VerifiedJob`]; the second can only be made by checking the
//! first. Never: reads a clock, the ledger or a socket (what they say comes in). Called by
//! [`crate::desk`]; [`crate::admission`] takes the result further.
//!
//! ```text
//! SignedJob ──verify──▶ VerifiedJob ──admit──▶ AdmittedJob ──run──▶ MeteredRun
//! ```

use potluck_protocol::fault::RefusalCode;
use potluck_protocol::id::{ContentHash, PeerId};
use potluck_protocol::limits::{CLOCK_SLACK_MS, MAX_JOB_BYTES};
use potluck_protocol::offer::{GuestNeeds, OfferError, Quote};
use potluck_protocol::settle::{Contract, Phase, Usage};
use potluck_protocol::sign::{SignError, Signed, Verified};
use potluck_protocol::unit::{GpuMillis, UnixMillis};
use potluck_protocol::wire::Refusal;
use thiserror::Error;

use crate::admission::Uses;

/// A contract as it came: nothing in it is believed yet.
#[derive(Debug)]
pub struct SignedJob {
    /// What the renter binds itself to.
    pub contract: Signed<Contract>,
    /// The quote it says it rests on.
    pub quote: Signed<Quote>,
    /// Length of the job that follows, in bytes.
    pub job_bytes: u32,
}

/// Between whom, and when.
#[derive(Debug, Clone, Copy)]
pub struct Between {
    /// This provider.
    pub provider: PeerId,
    /// Who is at the other end of the connection (its key was proved in the handshake).
    pub renter: PeerId,
    /// Wall clock, for expiry with slack.
    pub now: UnixMillis,
}

/// Why a contract is not believed. Fault: renter, except [`Self::Expired`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotVerified {
    /// A signature is wrong.
    #[error(transparent)]
    Signature(#[from] SignError),
    /// The quote breaks its own rules, is another provider's or another renter's.
    #[error("the quote cannot be used: {0}")]
    Quote(#[from] OfferError),
    /// The contract is for other parties than those on this connection.
    #[error("the contract is between other parties")]
    WrongParties,
    /// The contract names another quote, or other terms.
    #[error("the contract does not match the quote: the {what} differs")]
    Mismatch {
        /// What differs.
        what: &'static str,
    },
    /// A limit is out of bounds.
    #[error("the contract's {what} is out of bounds")]
    Limit {
        /// Which.
        what: &'static str,
    },
    /// The start deadline has passed.
    #[error("the contract was to be started earlier")]
    Expired,
}

impl NotVerified {
    /// As the renter is told.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            Self::Signature(_) => RefusalCode::BadSignature,
            Self::Quote(OfferError::Expired { .. }) | Self::Expired => RefusalCode::Expired,
            Self::Quote(_) | Self::WrongParties | Self::Mismatch { .. } => RefusalCode::QuoteMismatch,
            Self::Limit { .. } => RefusalCode::Malformed,
        };
        Refusal::new(code, self.to_string())
    }
}

/// A job whose contract and quote are genuine and agree.
#[derive(Debug)]
pub struct VerifiedJob {
    contract: Verified<Contract>,
    quote: Verified<Quote>,
    job_bytes: usize,
}

impl SignedJob {
    /// Checks signatures, parties, terms and limits.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn verify(self, between: Between) -> Result<VerifiedJob, NotVerified> {
        let job_bytes = usize::try_from(self.job_bytes).unwrap_or(usize::MAX);
        if job_bytes == 0 || job_bytes > MAX_JOB_BYTES {
            return Err(NotVerified::Limit { what: "job length" });
        }
        let lane = self.contract.body.lane;
        if lane.renter != between.renter || lane.provider != between.provider {
            return Err(NotVerified::WrongParties);
        }
        self.quote.body.check(between.provider, between.renter, between.now)?;
        let contract = self.contract.verify()?;
        let quote = self.quote.verify()?;
        check_match(&contract, &quote)?;
        if started_late(contract.body(), between.now) {
            return Err(NotVerified::Expired);
        }
        Ok(VerifiedJob { contract, quote, job_bytes })
    }
}

fn check_match(contract: &Verified<Contract>, quote: &Verified<Quote>) -> Result<(), NotVerified> {
    if contract.body().quote != quote.digest() {
        return Err(NotVerified::Mismatch { what: "quote" });
    }
    if contract.body().terms != quote.body().terms {
        return Err(NotVerified::Mismatch { what: "price or pace" });
    }
    let max_ms = contract.body().max_ms;
    if max_ms == GpuMillis::ZERO || max_ms > quote.body().max_ms {
        return Err(NotVerified::Limit { what: "longest time" });
    }
    Ok(())
}

/// Is it too late to start this job? With slack, as wall clocks differ.
#[must_use]
pub fn started_late(contract: &Contract, now: UnixMillis) -> bool {
    now > contract.start_by.saturating_add(UnixMillis::new(CLOCK_SLACK_MS))
}

impl VerifiedJob {
    /// The contract.
    #[must_use]
    pub fn contract(&self) -> &Contract {
        self.contract.body()
    }

    /// The contract with its proof.
    #[must_use]
    pub fn signed_contract(&self) -> &Verified<Contract> {
        &self.contract
    }

    /// The quote with its proof.
    #[must_use]
    pub fn signed_quote(&self) -> &Verified<Quote> {
        &self.quote
    }

    /// Which model it is for.
    #[must_use]
    pub fn model(&self) -> ContentHash {
        self.quote.body().model
    }

    /// What the component may have, when the job runs one.
    #[must_use]
    pub fn guest(&self) -> Option<&GuestNeeds> {
        self.quote.body().guest.as_ref()
    }

    /// Whose turn it waits for.
    #[must_use]
    pub fn uses(&self) -> Uses {
        if self.guest().is_some() { Uses::All } else { Uses::Model(self.model()) }
    }

    /// Length of the job that follows, in bytes: 1 to [`MAX_JOB_BYTES`].
    #[must_use]
    pub fn job_bytes(&self) -> usize {
        self.job_bytes
    }

    /// How long it may run on a model that is in memory.
    #[must_use]
    pub fn run_limit(&self) -> GpuMillis {
        let works = if self.quote.body().guest.is_some() { Phase::Guest } else { Phase::Run };
        Usage::default().limit(works, self.contract.body())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use potluck_protocol::id::{Digest, LaneId};
    use potluck_protocol::offer::{Hardware, Protection, Terms};
    use potluck_protocol::sign::SigningKey;
    use potluck_protocol::unit::{NanoCredit, Rate};

    const NOW: UnixMillis = UnixMillis::new(1_700_000_000_000);

    fn renter() -> SigningKey {
        SigningKey::from_seed([1; 32])
    }

    fn provider() -> SigningKey {
        SigningKey::from_seed([2; 32])
    }

    fn between() -> Between {
        Between { provider: provider().peer(), renter: renter().peer(), now: NOW }
    }

    fn quote(renter: PeerId) -> Quote {
        Quote {
            provider: provider().peer(),
            renter,
            serial: 1,
            model: ContentHash::from_bytes([3; 32]),
            guest: None,
            terms: Terms {
                run: Rate::new(111_110),
                load: Rate::ZERO,
                guest: Rate::ZERO,
                quantum: GpuMillis::new(1_000),
                window: GpuMillis::new(2_000),
            },
            max_ms: GpuMillis::new(60_000),
            ahead: 0,
            warm: true,
            hardware: Hardware { class: "cpu".into(), name: "CPU".into(), memory_mib: 1 },
            protection: Protection::None,
            expires: UnixMillis::new(NOW.get() + 60_000),
        }
    }

    fn contract(lane: u64, quote: &Verified<Quote>) -> Contract {
        let Quote { renter, provider, .. } = *quote.body();
        Contract {
            lane: LaneId { renter, provider, epoch: 0, lane },
            job: Digest::from_bytes([4; 32]),
            quote: quote.digest(),
            terms: quote.body().terms,
            max_total: NanoCredit::new(1_000),
            max_ms: GpuMillis::new(60_000),
            created: NOW,
            start_by: UnixMillis::new(NOW.get() + 30_000),
        }
    }

    fn signed(change: impl FnOnce(&mut Contract)) -> SignedJob {
        signed_by(&renter(), change)
    }

    fn signed_by(renter: &SigningKey, change: impl FnOnce(&mut Contract)) -> SignedJob {
        let quote = provider().sign(quote(renter.peer())).unwrap();
        let mut body = contract(0, &quote);
        change(&mut body);
        SignedJob {
            contract: renter.sign(body).unwrap().into_signed(),
            quote: quote.into_signed(),
            job_bytes: 100,
        }
    }

    /// A genuine job with a limit of 1,000 nano-credits.
    pub(crate) fn sample_job(lane: u64) -> VerifiedJob {
        sample_job_with(|contract| contract.lane.lane = lane)
    }

    /// The same, of the renter whose seed this is.
    pub(crate) fn sample_job_of(seed: u8, lane: u64) -> VerifiedJob {
        let renter = SigningKey::from_seed([seed; 32]);
        let between = Between { renter: renter.peer(), ..between() };
        signed_by(&renter, |contract| contract.lane.lane = lane).verify(between).unwrap()
    }

    pub(crate) fn sample_job_with(change: impl FnOnce(&mut Contract)) -> VerifiedJob {
        signed(change).verify(between()).unwrap()
    }

    fn code(job: SignedJob) -> RefusalCode {
        job.verify(between()).unwrap_err().refusal().code
    }

    #[test]
    fn a_genuine_job_passes_and_knows_its_limit() {
        let job = sample_job(7);
        // 9 ms cost 999, 10 ms would cost 1,111.
        assert_eq!(job.run_limit(), GpuMillis::new(9));
    }

    #[test]
    fn tampering_is_refused() {
        let mut altered = signed(|_| ());
        altered.contract.body.max_total = NanoCredit::new(1);
        assert_eq!(code(altered), RefusalCode::BadSignature);
        let mut cheaper = signed(|_| ());
        cheaper.quote.body.terms.run = Rate::new(1);
        assert_eq!(code(cheaper), RefusalCode::BadSignature);
    }

    #[test]
    fn the_contract_must_match_the_quote() {
        let other_terms = signed(|contract| contract.terms.run = Rate::new(1));
        let other_quote = signed(|contract| contract.quote = Digest::from_bytes([9; 32]));
        assert_eq!(code(other_terms), RefusalCode::QuoteMismatch);
        assert_eq!(code(other_quote), RefusalCode::QuoteMismatch);
        assert_eq!(code(signed(|contract| contract.max_ms = GpuMillis::new(60_001))), RefusalCode::Malformed);
        assert_eq!(code(signed(|contract| contract.max_ms = GpuMillis::ZERO)), RefusalCode::Malformed);
    }

    #[test]
    fn nobody_uses_anothers_contract() {
        let thief = Between { renter: SigningKey::from_seed([8; 32]).peer(), ..between() };
        assert_eq!(signed(|_| ()).verify(thief).unwrap_err(), NotVerified::WrongParties);
        let elsewhere = Between { provider: SigningKey::from_seed([8; 32]).peer(), ..between() };
        assert_eq!(signed(|_| ()).verify(elsewhere).unwrap_err(), NotVerified::WrongParties);
    }

    #[test]
    fn late_and_oversized_jobs_are_refused() {
        let at = |ms| Between { now: UnixMillis::new(NOW.get() + ms), ..between() };
        assert!(signed(|_| ()).verify(at(CLOCK_SLACK_MS + 30_000)).is_ok());
        let late = signed(|_| ()).verify(at(CLOCK_SLACK_MS + 30_001)).unwrap_err();
        assert_eq!(late.refusal().code, RefusalCode::Expired);
        for job_bytes in [0, u32::try_from(MAX_JOB_BYTES).unwrap() + 1] {
            let job = SignedJob { job_bytes, ..signed(|_| ()) };
            assert_eq!(code(job), RefusalCode::Malformed);
        }
    }
}
