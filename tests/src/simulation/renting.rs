//! A simulated node as renter: contract, vouchers, and what it pays for.
//!
//! Owns: the renter's side of each running lane. Never: pays what [`RenterLane`] does not let it pay.
//! Called by the node for each frame of a provider and for its timers.

use std::time::Duration;

use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::job::FinishReason;
use potluck_protocol::lane::RenterLane;
use potluck_protocol::offer::Terms;
use potluck_protocol::settle::{Close, CloseReason, Contract, Meter, Voucher};
use potluck_protocol::sign::{Signed, Verified};
use potluck_protocol::statement::Statement;
use potluck_protocol::unit::{GpuMillis, UnixMillis};
use potluck_protocol::wire::{self, ProviderFrame, RenterFrame};

use super::Mutation;
use super::lie::{Lie, other_voucher};
use super::message::{Effect, Message, Timer};
use super::node::{Bought, Node, Step};
use super::store::Kept;

/// A renter takes a provider that was silent for so long for dead.
const SILENCE_MS: u64 = 15_000;
/// A round trip as the renter measured it before.
const RTT: Duration = Duration::from_millis(100);

/// The renter's side of one running lane.
#[derive(Debug)]
pub(super) struct Renting {
    lane: RenterLane,
    contract: Verified<Contract>,
    /// Digest of the last voucher; of the contract at first.
    head: Digest,
    paid_tokens: u32,
    sent: u64,
    heard: u64,
}

impl Node {
    /// Opens a lane with `peer` if one is wanted and the two may deal; else compares ledgers first.
    pub(super) fn try_rent(&mut self, peer: PeerId, step: &mut Step<'_>) {
        if self.wanted.get(&peer).copied().unwrap_or(0) == 0 || self.convictions.against(peer).is_some() {
            return;
        }
        let Some(book) = self.store.book_mut(peer) else { return };
        if book.may_sign().is_err() {
            self.begin_sync(peer, step);
            return;
        }
        let epoch = book.epoch();
        let Some(contract) = self.contract_with(peer, epoch, step) else { return };
        self.wanted.entry(peer).and_modify(|left| *left -= 1);
        let Some(quote) = step.commons.quote(peer, self.peer(), contract.terms) else { return };
        let Some(contract) = self.sign(Contract { quote: quote.digest(), ..contract }) else { return };
        if !matches!(self.store.keep(&contract.signed().clone().into(), step.wall()), Kept::New) {
            return;
        }
        let lane = contract.body().lane;
        let open = RenterFrame::Open {
            contract: Box::new(contract.signed().clone()),
            quote: Box::new(quote.into_signed()),
            job_bytes: 1,
        };
        let renting = Renting {
            lane: RenterLane::new(&contract),
            head: contract.digest(),
            contract,
            paid_tokens: 0,
            sent: step.now,
            heard: step.now,
        };
        self.renting.insert(lane, renting);
        say_to_provider(lane, &open, step);
        step.out.push(Effect::Wake(SILENCE_MS, Timer::Patience(lane)));
    }

    fn contract_with(&self, peer: PeerId, epoch: u32, step: &mut Step<'_>) -> Option<Contract> {
        let paces = [(1_000, 2_000), (500, 1_000), (2_000, 4_000)];
        let pace = usize::try_from(step.rng.between(0, 3)).ok()?;
        let (quantum, window) = paces.get(pace).copied()?;
        let terms = Terms {
            quantum: GpuMillis::new(quantum),
            window: GpuMillis::new(window),
            ..step.commons.prices()
        };
        Some(Contract {
            lane: LaneId { renter: self.peer(), provider: peer, epoch, lane: step.rng.next() },
            job: Digest::from_bytes([0; 32]),
            quote: Digest::from_bytes([0; 32]),
            terms,
            max_total: terms.run.amount(GpuMillis::new(step.rng.between(4_000, 15_000))),
            max_ms: GpuMillis::new(20_000),
            created: step.wall(),
            start_by: step.wall().saturating_add(UnixMillis::new(30_000)),
        })
    }

    /// Takes a provider's frame.
    pub(super) fn on_provider_frame(
        &mut self,
        from: PeerId,
        lane: LaneId,
        frame: ProviderFrame,
        step: &mut Step<'_>,
    ) {
        if lane.provider != from || lane.renter != self.peer() {
            return;
        }
        if let Some(renting) = self.renting.get_mut(&lane) {
            renting.heard = step.now;
        }
        match frame {
            ProviderFrame::Accept(accept) => {
                let ours =
                    self.renting.get(&lane).is_some_and(|it| it.contract.digest() == accept.body.contract);
                if ours {
                    self.keep_theirs(&Statement::Accept(accept), step);
                }
            }
            ProviderFrame::Refuse(_) => {
                self.renting.remove(&lane);
                if let Some(book) = self.store.book_mut(from) {
                    book.parted();
                }
            }
            ProviderFrame::Output { tokens, .. } => {
                if let Some(renting) = self.renting.get_mut(&lane) {
                    renting.lane.delivered(&tokens);
                }
            }
            ProviderFrame::Meter(meter) => self.on_meter(lane, *meter, step),
            ProviderFrame::Receipt(receipt) => self.on_receipt(from, Statement::Receipt(receipt), step),
            ProviderFrame::Close { close, .. } => {
                if self.keep_theirs(&Statement::Close(close), step) {
                    self.renting.remove(&lane);
                }
            }
            // No component runs in the simulation.
            ProviderFrame::Phase { .. }
            | ProviderFrame::Started { .. }
            | ProviderFrame::Want { .. }
            | ProviderFrame::Progress { .. }
            | ProviderFrame::Log(_)
            | ProviderFrame::OutputPart(_) => {}
        }
    }

    pub(super) fn on_receipt(&mut self, from: PeerId, receipt: Statement, step: &mut Step<'_>) {
        let Statement::Receipt(body) = &receipt else { return };
        let record = self.store.lane(&body.body.lane);
        let voucher = record.and_then(|record| record.voucher.as_ref());
        let ours = voucher.is_some_and(|it| it.body().k > body.body.k || it.digest() == body.body.voucher);
        if ours && self.keep_theirs(&receipt, step) {
            self.outboxes.entry(from).or_default().answered(&receipt);
        }
    }

    fn on_meter(&mut self, lane: LaneId, meter: Signed<Meter>, step: &mut Step<'_>) {
        self.witness(&meter.clone().into(), step);
        if self.lies(Lie::Refuse) {
            return;
        }
        let Ok(meter) = meter.verify() else { return };
        let pays_anything = self.breaks(Mutation::PayAnything);
        let Some(renting) = self.renting.get_mut(&lane) else { return };
        let elapsed = step.now - renting.sent;
        let voucher = match renting.lane.pay(&meter, Duration::from_millis(elapsed), RTT) {
            Ok(voucher) => voucher,
            Err(_) if pays_anything => blind_voucher(renting, &meter),
            Err(_) => {
                self.renter_closes(lane, CloseReason::ProviderFailed, step);
                say_to_provider(lane, &RenterFrame::Cancel, step);
                return;
            }
        };
        let Some(voucher) = self.sign(voucher) else { return };
        if !self.keep_theirs(&meter.signed().clone().into(), step) {
            return;
        }
        let statement = Statement::from(voucher.signed().clone());
        if matches!(self.store.keep(&statement, step.wall()), Kept::Conflict(_) | Kept::Worthless) {
            return;
        }
        let peer = lane.provider;
        self.outboxes.entry(peer).or_default().sent(&statement, step.monotonic());
        step.out.push(Effect::Wake(1_000, Timer::Outbox(peer)));
        self.note_bought(lane, &voucher, &meter, elapsed);
        if self.lies(Lie::Equivocate)
            && step.rng.chance(300)
            && let Some(other) = self.sign(other_voucher(voucher.body()))
        {
            say_to_provider(lane, &RenterFrame::Voucher(Box::new(other.into_signed())), step);
        }
        if let Some(renting) = self.renting.get_mut(&lane) {
            renting.lane.signed(&voucher);
            renting.head = voucher.digest();
        }
        say_to_provider(lane, &RenterFrame::Voucher(Box::new(voucher.into_signed())), step);
    }

    /// Ground truth for the audit.
    fn note_bought(
        &mut self,
        lane: LaneId,
        voucher: &Verified<Voucher>,
        meter: &Verified<Meter>,
        elapsed: u64,
    ) {
        let Some(renting) = self.renting.get_mut(&lane) else { return };
        let terms = renting.contract.body().terms;
        let bought = self.bought.entry(lane).or_insert(Bought { paid: 0, productive: 0, elapsed: 0, terms });
        let paid = voucher.body().usage.total().get();
        // A count of tokens beyond those delivered is no output.
        let tokens = meter.body().tokens.min(renting.lane.received());
        if paid >= bought.paid {
            (bought.paid, bought.elapsed) = (paid, elapsed);
            if tokens > renting.paid_tokens {
                (bought.productive, renting.paid_tokens) = (paid, tokens);
            }
        }
    }

    fn renter_closes(&mut self, lane: LaneId, reason: CloseReason, step: &mut Step<'_>) {
        let Some(renting) = self.renting.remove(&lane) else { return };
        let close = Close {
            lane,
            by: self.peer(),
            k: renting.lane.vouchers(),
            amount: renting.lane.amount(),
            reason,
            finish: FinishReason::Cancelled,
            prompt_tokens: 0,
            completion_tokens: renting.lane.received(),
            result: renting.contract.digest(),
            at: step.wall(),
        };
        if let Some(close) = self.sign(close) {
            self.keep_and_queue(lane.provider, &close.into_signed().into(), step);
        }
    }

    pub(super) fn renter_patience(&mut self, lane: LaneId, step: &mut Step<'_>) {
        let Some(renting) = self.renting.get(&lane) else { return };
        let silent = step.now - renting.heard;
        if silent >= SILENCE_MS {
            self.renter_closes(lane, CloseReason::PeerLost, step);
        } else {
            step.out.push(Effect::Wake(SILENCE_MS - silent, Timer::Patience(lane)));
        }
    }
}

/// What a renter without a law signs: whatever the meter asks.
fn blind_voucher(renting: &Renting, meter: &Verified<Meter>) -> Voucher {
    let body = meter.body();
    Voucher {
        lane: body.lane,
        k: body.k,
        usage: body.usage,
        amount: body.usage.amount(&renting.contract.body().terms),
        meter: meter.digest(),
        previous: renting.head,
    }
}

/// Sends a frame on a job's stream.
pub(super) fn say_to_provider(lane: LaneId, frame: &RenterFrame, step: &mut Step<'_>) {
    if let Ok(bytes) = wire::encode(frame) {
        step.out.push(Effect::Send(lane.provider, Message::ToProvider(lane, bytes)));
    }
}
