//! A simulated node as provider: operations, meters, receipts, and when it stops.
//!
//! Owns: the provider's side of each running lane and what its worker truly did. Never: claims what
//! [`ProviderLane`] does not claim, unless the node is a liar. Called by the node for each frame of a
//! renter and for its timers.

use potluck_protocol::fault::RefusalCode;
use potluck_protocol::id::LaneId;
use potluck_protocol::id::PeerId;
use potluck_protocol::job::FinishReason;
use potluck_protocol::lane::ProviderLane;
use potluck_protocol::limits::CLOCK_SLACK_MS;
use potluck_protocol::output::OutputChain;
use potluck_protocol::settle::{Accept, Close, CloseReason, Contract, Phase, Usage, Voucher};
use potluck_protocol::sign::{Signed, Verified};
use potluck_protocol::statement::Statement;
use potluck_protocol::unit::GpuMillis;
use potluck_protocol::wire::{self, ProviderFrame, Refusal, RenterFrame};

use super::Mutation;
use super::lie::{Lie, other_meter, overclaim};
use super::message::{Effect, Message, Timer};
use super::node::{Node, Step, Worked};
use super::store::Kept;

/// A voucher that is not here by then does not come.
const VOUCHER_WITHIN_MS: u64 = 10_000;

/// What the worker does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Load,
    Prompt,
    Token,
}

/// The provider's side of one running lane.
#[derive(Debug)]
pub(super) struct Providing {
    lane: ProviderLane,
    chain: OutputChain,
    usage: Usage,
    next: Operation,
    load_ms: u64,
    prompt_ms: u64,
    token_ms: u64,
    tokens_left: u32,
    working: bool,
    asked: Option<u64>,
}

impl Providing {
    fn length(&self) -> u64 {
        match self.next {
            Operation::Load => self.load_ms,
            Operation::Prompt => self.prompt_ms,
            Operation::Token => self.token_ms,
        }
    }

    fn over_limit(&self) -> bool {
        self.usage.run >= self.lane.limit(&self.usage, Phase::Run)
    }

    fn is_done(&self) -> bool {
        self.tokens_left == 0 || self.over_limit()
    }
}

impl Node {
    /// Takes a renter's frame.
    pub(super) fn on_renter_frame(
        &mut self,
        from: PeerId,
        lane: LaneId,
        frame: RenterFrame,
        step: &mut Step<'_>,
    ) {
        if lane.renter != from || lane.provider != self.peer() {
            return;
        }
        match frame {
            RenterFrame::Open { contract, .. } => self.on_open(lane, *contract, step),
            RenterFrame::Voucher(voucher) => {
                if let Some(receipt) = self.on_voucher(*voucher, step) {
                    let Statement::Receipt(receipt) = receipt else { return };
                    say_to_renter(lane, &ProviderFrame::Receipt(receipt), step);
                    self.go_on(lane, step);
                }
            }
            RenterFrame::Cancel => self.provider_closes(lane, CloseReason::RenterCancelled, step),
            RenterFrame::JobPart(_) => {}
        }
    }

    fn on_open(&mut self, lane: LaneId, contract: Signed<Contract>, step: &mut Step<'_>) {
        self.witness(&contract.clone().into(), step);
        let (peer, wall) = (lane.renter, step.wall());
        let Ok(contract) = contract.verify() else { return };
        let body = contract.body();
        if body.lane != lane || self.providing.contains_key(&lane) {
            return;
        }
        let Some(book) = self.store.book_mut(peer) else { return };
        let may_open = book.may_open(body);
        let late = wall.get() > body.start_by.get().saturating_add(CLOCK_SLACK_MS);
        let known = self.store.lane(&lane).is_some_and(|record| record.head.accept);
        let standing = self.standing(peer, wall);
        let others = self.unknown_exposure(peer, wall);
        let credit = self.policy.allows(&standing, others, body.max_total);
        if may_open.is_err() || late || known || credit.is_err() {
            step.commons.refused += 1;
            let refusal = Refusal::new(RefusalCode::Expired, "not now");
            say_to_renter(lane, &ProviderFrame::Refuse(refusal), step);
            return;
        }
        let accept = Accept { lane, contract: contract.digest(), at: wall };
        let Some(accept) = self.sign(accept) else { return };
        if !self.keep_theirs(&contract.signed().clone().into(), step)
            || !matches!(self.store.keep(&accept.signed().clone().into(), wall), Kept::New)
        {
            return;
        }
        say_to_renter(lane, &ProviderFrame::Accept(Box::new(accept.into_signed())), step);
        let providing = Self::work_on(&contract, step);
        let terms = contract.body().terms;
        let longest = GpuMillis::new(providing.load_ms.max(providing.prompt_ms).max(providing.token_ms));
        self.worked.insert(lane, Worked { usage: Usage::default(), longest, terms });
        self.providing.insert(lane, providing);
        self.go_on(lane, step);
    }

    fn work_on(contract: &Verified<Contract>, step: &mut Step<'_>) -> Providing {
        let load_ms = if step.rng.chance(200) { step.rng.between(300, 2_000) } else { 0 };
        Providing {
            lane: ProviderLane::new(contract),
            chain: OutputChain::new(contract.digest()),
            usage: Usage::default(),
            next: if load_ms > 0 { Operation::Load } else { Operation::Prompt },
            load_ms,
            prompt_ms: step.rng.between(50, 2_500),
            token_ms: step.rng.between(30, 400),
            tokens_left: u32::try_from(step.rng.between(3, 60)).unwrap_or(3),
            working: false,
            asked: None,
        }
    }

    /// The worker is done with one operation.
    pub(super) fn operation_done(&mut self, lane: LaneId, step: &mut Step<'_>) {
        let Some(job) = self.providing.get_mut(&lane) else { return };
        let took = GpuMillis::new(job.length());
        job.working = false;
        match job.next {
            Operation::Load => job.usage.load = job.usage.load.saturating_add(took),
            Operation::Prompt | Operation::Token => job.usage.run = job.usage.run.saturating_add(took),
        }
        let produced = job.next != Operation::Load;
        job.next = if produced { Operation::Token } else { Operation::Prompt };
        let usage = job.usage;
        if produced {
            let token = u32::try_from(step.rng.between(0, 50_000)).unwrap_or(0);
            job.chain.extend(&[token]);
            job.tokens_left = job.tokens_left.saturating_sub(1);
            say_to_renter(lane, &ProviderFrame::Output { tokens: vec![token], text: String::new() }, step);
        }
        if let Some(worked) = self.worked.get_mut(&lane) {
            worked.usage = usage;
        }
        self.go_on(lane, step);
    }

    /// Meters what is due, then works, waits or ends.
    fn go_on(&mut self, lane: LaneId, step: &mut Step<'_>) {
        let careless = self.breaks(Mutation::IgnoreWindow);
        let Some(job) = self.providing.get(&lane) else { return };
        if job.working {
            return;
        }
        if job.lane.ended() {
            let reason = if job.over_limit() { CloseReason::LimitReached } else { CloseReason::Completed };
            self.provider_closes(lane, reason, step);
            return;
        }
        let due = job.lane.meter_due(job.chain.tokens()).is_some_and(|due| job.usage.total() >= due);
        let last = job.is_done();
        if !job.lane.is_unpaid() && (due || last) {
            self.claim(lane, last, step);
        }
        let Some(job) = self.providing.get_mut(&lane) else { return };
        let stalled = !careless && job.lane.must_stall(job.usage);
        if !stalled && !job.is_done() {
            job.working = true;
            step.out.push(Effect::Wake(job.length(), Timer::Operation(lane)));
        }
    }

    fn claim(&mut self, lane: LaneId, last: bool, step: &mut Step<'_>) {
        let Some(job) = self.providing.get(&lane) else { return };
        let Ok(mut meter) = job.lane.meter(job.usage, &job.chain, last) else { return };
        if self.lies(Lie::Overclaim) {
            meter = overclaim(&meter, step.rng.between(0, 3));
        }
        let Some(signed) = self.sign(meter) else { return };
        if !matches!(self.store.keep(&signed.signed().clone().into(), step.wall()), Kept::New) {
            return;
        }
        if self.lies(Lie::Equivocate)
            && step.rng.chance(300)
            && let Some(other) = self.sign(other_meter(signed.body()))
        {
            say_to_renter(lane, &ProviderFrame::Meter(Box::new(other.into_signed())), step);
        }
        let Some(job) = self.providing.get_mut(&lane) else { return };
        job.lane.metered(&signed);
        job.asked = Some(step.now);
        say_to_renter(lane, &ProviderFrame::Meter(Box::new(signed.into_signed())), step);
        step.out.push(Effect::Wake(VOUCHER_WITHIN_MS, Timer::Patience(lane)));
    }

    /// Takes a voucher, in a running lane or long after it; the receipt when it is good. Both are
    /// durable then.
    pub(super) fn on_voucher(&mut self, voucher: Signed<Voucher>, step: &mut Step<'_>) -> Option<Statement> {
        let statement = Statement::from(voucher.clone());
        self.witness(&statement, step);
        let voucher = voucher.verify().ok()?;
        let lane = voucher.body().lane;
        let receipt = match self.providing.get_mut(&lane) {
            Some(job) => job.lane.accept(&voucher).ok()?,
            None => {
                let record = self.store.lane(&lane)?;
                let contract = record.contract.as_ref()?;
                let (last, meter) = (record.voucher.as_ref(), record.meter.as_ref());
                ProviderLane::resumed(contract, last, meter).accept(&voucher).ok()?
            }
        };
        let receipt = Statement::from(self.sign(receipt)?.into_signed());
        if !self.keep_theirs(&statement, step) || !self.keep_theirs(&receipt, step) {
            return None;
        }
        if let Some(job) = self.providing.get_mut(&lane) {
            job.asked = None;
        }
        Some(receipt)
    }

    fn provider_closes(&mut self, lane: LaneId, reason: CloseReason, step: &mut Step<'_>) {
        let Some(job) = self.providing.remove(&lane) else { return };
        // The operation in flight is done in vain.
        if job.working
            && let Some(worked) = self.worked.get_mut(&lane)
        {
            worked.usage.run = worked.usage.run.saturating_add(GpuMillis::new(job.length()));
        }
        let close = Close {
            lane,
            by: self.peer(),
            k: job.lane.vouchers(),
            amount: job.lane.amount(),
            reason,
            finish: FinishReason::Stop,
            prompt_tokens: 1,
            completion_tokens: job.chain.tokens(),
            result: job.chain.head(),
            at: step.wall(),
        };
        let Some(close) = self.sign(close) else { return };
        self.keep_and_queue(lane.renter, &close.signed().clone().into(), step);
        say_to_renter(
            lane,
            &ProviderFrame::Close { close: Box::new(close.into_signed()), refusal: None },
            step,
        );
    }

    pub(super) fn provider_patience(&mut self, lane: LaneId, step: &mut Step<'_>) {
        let careless = self.breaks(Mutation::IgnoreWindow);
        let Some(job) = self.providing.get(&lane) else { return };
        let lost = job.asked.is_some_and(|asked| step.now >= asked + VOUCHER_WITHIN_MS);
        if lost && (!careless || job.is_done()) {
            self.provider_closes(lane, CloseReason::RenterFailed, step);
        }
    }
}

fn say_to_renter(lane: LaneId, frame: &ProviderFrame, step: &mut Step<'_>) {
    if let Ok(bytes) = wire::encode(frame) {
        step.out.push(Effect::Send(lane.renter, Message::ToRenter(lane, bytes)));
    }
}
