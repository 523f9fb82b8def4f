//! The books of one accepted job: what was done, claimed, paid and receipted.
//!
//! Owns: [`MeteredRun`], made only from an [`AdmittedJob`]; the order "sign, make durable, send". Never:
//! decides when to meter or when to stop ([`crate::driver`] does). It ends with [`MeteredRun::close`].

use std::sync::Arc;
use std::time::Instant;

use potluck_node::fault;
use potluck_protocol::fault::RefusalCode;
use potluck_protocol::id::LaneId;
use potluck_protocol::job::FinishReason;
use potluck_protocol::lane::{MeterError, ProviderLane, VoucherRefused};
use potluck_protocol::output::{OutputChain, Unit};
use potluck_protocol::settle::{Close, CloseReason, Contract, Phase, Usage, Voucher};
use potluck_protocol::sign::{SignError, Signed, Verified};
use potluck_protocol::unit::{GpuMillis, NanoCredit};
use potluck_protocol::wire::{ProviderFrame, Refusal};
use thiserror::Error;

use crate::admission::AdmittedJob;
use crate::clock::wall_now;
use crate::desk::{Desk, boxed};
use crate::frames::{JobWire, StreamFault};
use crate::keeping::NotKept;
use crate::meter::MeterClock;

/// Why a job's account cannot go on.
#[derive(Debug, Error)]
pub enum AccountFault {
    /// The renter is not there any more. Fault: renter or network.
    #[error(transparent)]
    Stream(#[from] StreamFault),
    /// Our ledger takes no record, or the renter signed two things in one place.
    #[error(transparent)]
    NotKept(#[from] NotKept),
    /// We cannot sign. Fault: provider.
    #[error("the provider cannot sign: {0}")]
    Sign(SignError),
    /// Our own clock or order of calls is wrong. Fault: provider.
    #[error(transparent)]
    Meter(#[from] MeterError),
    /// The voucher's signature is wrong. Fault: renter.
    #[error("the voucher cannot be believed: {0}")]
    BadVoucher(SignError),
    /// The voucher does not pay what is due. Fault: renter.
    #[error(transparent)]
    WrongVoucher(#[from] VoucherRefused),
}

/// How a job ended, as its books say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: CloseReason,
    /// How the answer ended.
    pub finish: FinishReason,
    /// What the renter is told besides.
    pub refusal: Option<Refusal>,
    /// Is the time since the last meter still to be claimed?
    pub bill_rest: bool,
}

impl Ending {
    /// The answer is whole.
    #[must_use]
    pub fn completed(finish: FinishReason) -> Self {
        Self { reason: CloseReason::Completed, finish, refusal: None, bill_rest: true }
    }

    /// Stopped in good order: what was done is billed.
    #[must_use]
    pub fn stopped(reason: CloseReason, refusal: Option<Refusal>) -> Self {
        Self { reason, finish: FinishReason::Cancelled, refusal, bill_rest: true }
    }

    /// Failed: nothing more is billed.
    #[must_use]
    pub fn failed(reason: CloseReason, code: RefusalCode, why: impl Into<String>) -> Self {
        let refusal = Some(Refusal::new(code, why));
        Self { reason, finish: FinishReason::Cancelled, refusal, bill_rest: false }
    }

    /// The end that a fault of the account brings.
    #[must_use]
    pub fn of_fault(fault: &AccountFault) -> Self {
        let why = fault.to_string();
        match fault {
            AccountFault::Stream(StreamFault::Malformed(_)) => {
                Self::failed(CloseReason::RenterFailed, RefusalCode::Malformed, why)
            }
            AccountFault::Stream(_) => Self {
                reason: CloseReason::PeerLost,
                finish: FinishReason::Cancelled,
                refusal: None,
                bill_rest: false,
            },
            AccountFault::NotKept(NotKept::Ledger(_)) => {
                Self::failed(CloseReason::ProviderFailed, RefusalCode::LedgerFailed, why)
            }
            AccountFault::NotKept(NotKept::Equivocated { .. }) => {
                Self::failed(CloseReason::RenterFailed, RefusalCode::Frozen, why)
            }
            AccountFault::Sign(_) | AccountFault::Meter(_) => {
                Self::failed(CloseReason::ProviderFailed, RefusalCode::WorkerFailed, why)
            }
            AccountFault::BadVoucher(_) => {
                Self::failed(CloseReason::RenterFailed, RefusalCode::BadSignature, why)
            }
            AccountFault::WrongVoucher(_) => {
                Self::failed(CloseReason::RenterFailed, RefusalCode::VoucherMissing, why)
            }
        }
    }
}

/// The account of one running job.
#[derive(Debug)]
pub struct MeteredRun {
    desk: Arc<Desk>,
    contract: Verified<Contract>,
    lane: ProviderLane,
    chain: OutputChain,
    /// Worker time.
    pub clock: MeterClock,
    /// When the open meter was sent.
    asked: Option<Instant>,
    /// When the clock was last read for a meter.
    read_at: Instant,
    prompt_tokens: u32,
}

impl MeteredRun {
    /// Opens the books of an admitted job.
    #[must_use]
    pub fn open(desk: Arc<Desk>, job: &AdmittedJob, now: Instant) -> Self {
        let contract = job.verified().signed_contract().clone();
        let lane = ProviderLane::new(&contract);
        let lane = if job.verified().guest().is_some() { lane.of_component() } else { lane };
        Self {
            lane,
            chain: OutputChain::new(contract.digest()),
            clock: MeterClock::new(now),
            asked: None,
            read_at: now,
            prompt_tokens: 0,
            desk,
            contract,
        }
    }

    /// Which job.
    #[must_use]
    pub fn lane_id(&self) -> LaneId {
        self.contract.body().lane
    }

    /// What the renter bound itself to.
    #[must_use]
    pub fn contract(&self) -> &Contract {
        self.contract.body()
    }

    /// The account's state, to ask it what is due.
    #[must_use]
    pub fn account(&self) -> &ProviderLane {
        &self.lane
    }

    /// When the contract's limits end the job if the phase does not change; `None` while the phase is
    /// free.
    #[must_use]
    pub fn ends_at(&self, now: Instant) -> Option<Instant> {
        let (usage, phase) = (self.clock.usage(now), self.clock.phase());
        let others = usage.total().saturating_sub(usage.of(phase));
        self.clock.reaches(others.saturating_add(self.lane.limit(&usage, phase)), now)
    }

    /// Has the job used up what the contract allows?
    #[must_use]
    pub fn is_used_up(&self, now: Instant) -> bool {
        self.ends_at(now).is_some_and(|at| now >= at)
    }

    /// The worker time at which the next meter is due; `None` while none is.
    #[must_use]
    pub fn meter_due(&self) -> Option<GpuMillis> {
        self.lane.meter_due(self.chain.tokens())
    }

    /// When the open meter was sent; `None` when all is paid.
    #[must_use]
    pub fn waiting_since(&self) -> Option<Instant> {
        self.asked
    }

    /// Ends the billed time at `at`, which may lie in the past: a worker that was killed earned nothing
    /// after it. What a meter has claimed already is not taken back.
    pub fn stop_clock(&mut self, at: Instant) {
        self.clock.enter(Phase::Stalled, at.max(self.read_at));
    }

    /// Notes that the prompt was read.
    pub fn started(&mut self, prompt_tokens: u32) {
        self.prompt_tokens = prompt_tokens;
    }

    /// Notes tokens that are about to be sent.
    pub fn produced(&mut self, tokens: &[u32]) {
        self.chain.extend(tokens);
    }

    /// Notes a part of a component's output that is about to be sent.
    pub fn produced_part(&mut self, part: &[u8]) {
        self.chain.extend_units(&[Unit::part(part)]);
    }

    /// Is there anything to bill that no meter claims yet?
    #[must_use]
    pub fn has_rest(&self, now: Instant) -> bool {
        self.lane.vouchers() > 0 || self.chain.tokens() > 0 || self.clock.usage(now) != Usage::default()
    }

    /// Claims the work so far: signed, durable, then sent.
    ///
    /// # Errors
    /// When it cannot be signed, kept or sent, or one is open already.
    pub async fn claim(&mut self, wire: &mut JobWire, last: bool) -> Result<(), AccountFault> {
        self.read_at = Instant::now();
        let body = self.lane.meter(self.clock.usage(self.read_at), &self.chain, last)?;
        let meter = self.desk.sign(body).map_err(AccountFault::Sign)?;
        fault::point(fault::PROVIDER_METER_SIGNED);
        self.desk.keep(vec![meter.clone().into()]).await?;
        fault::point(fault::PROVIDER_METER_KEPT);
        self.lane.metered(&meter);
        self.asked = Some(Instant::now());
        wire.send(&ProviderFrame::Meter(boxed(&meter))).await?;
        fault::point(fault::PROVIDER_METER_SENT);
        Ok(())
    }

    /// Takes a voucher: checked, durable with its receipt, then the receipt is sent.
    ///
    /// # Errors
    /// When the voucher breaks a law, or the receipt cannot be signed, kept or sent.
    pub async fn paid(&mut self, wire: &mut JobWire, voucher: Signed<Voucher>) -> Result<(), AccountFault> {
        let voucher = voucher.verify().map_err(AccountFault::BadVoucher)?;
        let body = self.lane.accept(&voucher)?;
        fault::point(fault::PROVIDER_VOUCHER_RECEIVED);
        let receipt = self.desk.sign(body).map_err(AccountFault::Sign)?;
        self.desk.keep(vec![voucher.into(), receipt.clone().into()]).await?;
        fault::point(fault::PROVIDER_RECEIPT_KEPT);
        if !self.lane.is_unpaid() {
            self.asked = None;
        }
        wire.send(&ProviderFrame::Receipt(boxed(&receipt))).await?;
        fault::point(fault::PROVIDER_RECEIPT_SENT);
        Ok(())
    }

    /// Closes the books and says so to the renter, if it is still there. If not, or if a meter is unpaid,
    /// the two must compare ledgers before they deal again.
    pub async fn close(mut self, wire: JobWire, ending: Ending) -> Closed {
        self.clock.enter(Phase::Stalled, Instant::now());
        let closed = Closed {
            lane: self.lane_id(),
            reason: ending.reason,
            run: self.lane.paid().total(),
            worked: self.clock.usage(Instant::now()).total(),
            amount: self.lane.amount(),
            completion_tokens: self.chain.tokens(),
            why: ending.refusal.as_ref().map(|refusal| refusal.reason.clone()),
        };
        let body = Close {
            lane: self.lane_id(),
            by: self.desk.me(),
            k: self.lane.vouchers(),
            amount: self.lane.amount(),
            reason: ending.reason,
            finish: ending.finish,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.chain.tokens(),
            result: self.chain.head(),
            at: wall_now(),
        };
        let unpaid = self.lane.is_unpaid();
        if unpaid {
            // Before the renter hears of the end, and comes back at once.
            self.desk.accounts().parted(closed.lane.renter);
        }
        let mut whole = false;
        match self.desk.sign(body) {
            Ok(close) => {
                fault::point(fault::PROVIDER_CLOSE_SIGNED);
                if let Err(error) = self.desk.keep(vec![close.clone().into()]).await {
                    tracing::error!(job = %closed.lane, %error, "the end of a job was not recorded");
                }
                fault::point(fault::PROVIDER_CLOSE_KEPT);
                let frame = ProviderFrame::Close { close: boxed(&close), refusal: ending.refusal };
                whole = wire.finish(&frame).await;
                fault::point(fault::PROVIDER_CLOSE_SENT);
            }
            Err(error) => tracing::error!(job = %closed.lane, %error, "the end of a job was not signed"),
        }
        if !whole {
            self.desk.accounts().parted(closed.lane.renter);
        }
        closed
    }
}

/// A job's last figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Which.
    pub lane: LaneId,
    /// Why it ended.
    pub reason: CloseReason,
    /// Time paid for.
    pub run: GpuMillis,
    /// Time worked, paid for or not.
    pub worked: GpuMillis,
    /// What is owed for it.
    pub amount: NanoCredit,
    /// Tokens written.
    pub completion_tokens: u32,
    /// In words, when it did not end by itself.
    pub why: Option<String>,
}
