//! The laws of a lane: what each side may sign next.
//!
//! Owns: [`RenterLane`] and [`ProviderLane`], the two ends of one job's account, as pure state
//! machines. Never: reads a clock, signs, sends or stores; times come in as arguments and bodies to
//! sign go out. Called by `client` (countersigning) and `miner` (billing).
//!
//! ```text
//! Running <──▶ Stalled (provider: more than a window is unpaid) ──▶ Closed (after the last meter is paid)
//! ```
//!
//! The invariants, as numbered in SPEC.md: I2 monotone, I3 price, I4 provider's exposure,
//! I5 the renter signs only what its own clock allows, and at most one quantum without output.

use std::time::Duration;

use thiserror::Error;

use crate::id::Digest;
use crate::limits::{CLOCK_DRIFT_PPM, METER_GRACE_MS};
use crate::output::{OutputChain, Unit};
use crate::settle::{Contract, Meter, Phase, Receipt, Usage, Voucher};
use crate::sign::Verified;
use crate::unit::{GpuMillis, NanoCredit};

/// Why a renter does not pay for a meter. Fault: provider.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MeterRefused {
    /// It belongs to another lane or contract.
    #[error("the meter is for another contract")]
    WrongContract,
    /// Its number is not the next one.
    #[error("meter {got} came where {expected} was due")]
    OutOfOrder {
        /// The number due.
        expected: u32,
        /// The number that came.
        got: u32,
    },
    /// Two different meters bear one number: proof of a lie.
    #[error("two different meters bear the number {k}")]
    Equivocation {
        /// The number.
        k: u32,
    },
    /// Time or tokens fell.
    #[error("the meter counts less than the one before")]
    Backwards,
    /// A meter followed the last one.
    #[error("a meter came after the last one")]
    AfterLast,
    /// More time than has passed on our own clock.
    #[error("the provider claims {claimed_ms} ms of work; at most {allowed_ms} ms can have passed")]
    TooFast {
        /// What it claims, in milliseconds.
        claimed_ms: u64,
        /// What our clock allows, in milliseconds.
        allowed_ms: u64,
    },
    /// More time or money than the contract allows.
    #[error("the meter goes past the contract's limit")]
    OverLimit,
    /// It stands for tokens that were not delivered.
    #[error("the meter counts {claimed} tokens; {received} were delivered")]
    NotDelivered {
        /// Tokens it counts.
        claimed: u32,
        /// Tokens that came.
        received: u32,
    },
    /// It stands for other tokens than those delivered.
    #[error("the meter commits to other tokens than those delivered")]
    WrongCommitment,
    /// More than a quantum was claimed since output last came.
    #[error("the meter claims {claimed_ms} ms since the last output; at most {allowed_ms} ms are paid ahead")]
    NoOutput {
        /// What it claims since then, in milliseconds.
        claimed_ms: u64,
        /// The contract's quantum, in milliseconds.
        allowed_ms: u64,
    },
}

/// The renter's end.
#[derive(Debug)]
pub struct RenterLane {
    contract: Contract,
    contract_digest: Digest,
    chain: OutputChain,
    /// Output delivered after that in `chain`.
    pending: Vec<Unit>,
    last: Option<(Digest, Voucher)>,
    /// Digest of the last voucher, once signed.
    head: Digest,
    /// Time paid for by the last meter that came with output.
    productive: GpuMillis,
    /// Does a component run? It may work for long before it gives anything.
    component: bool,
    ended: bool,
}

impl RenterLane {
    /// The renter's end of the lane that `contract` opened.
    #[must_use]
    pub fn new(contract: &Verified<Contract>) -> Self {
        let digest = contract.digest();
        Self {
            contract: contract.body().clone(),
            contract_digest: digest,
            chain: OutputChain::new(digest),
            pending: Vec::new(),
            last: None,
            head: digest,
            productive: GpuMillis::ZERO,
            component: false,
            ended: false,
        }
    }

    /// The lane of a component's run: its output comes at its end, so that all of its time is paid
    /// before any output; what bounds it is the contract's time and money alone.
    #[must_use]
    pub fn of_component(self) -> Self {
        Self { component: true, ..self }
    }

    /// Notes tokens that were delivered.
    pub fn delivered(&mut self, tokens: &[u32]) {
        self.pending.extend(tokens.iter().copied().map(Unit::Token));
    }

    /// Notes a part of a component's output that was delivered.
    pub fn delivered_part(&mut self, part: &[u8]) {
        self.pending.push(Unit::part(part));
    }

    /// Tokens, or parts of output, delivered so far.
    #[must_use]
    pub fn received(&self) -> u32 {
        self.chain.tokens().saturating_add(u32::try_from(self.pending.len()).unwrap_or(u32::MAX))
    }

    /// The voucher that pays for `meter`, if it may be paid: `elapsed` is our own monotonic time
    /// since the contract was sent, `rtt` a round trip to the provider. The same meter twice gives
    /// the same voucher twice.
    ///
    /// # Errors
    /// The first law that the meter breaks; nothing changes then.
    pub fn pay(
        &mut self,
        meter: &Verified<Meter>,
        elapsed: Duration,
        rtt: Duration,
    ) -> Result<Voucher, MeterRefused> {
        let body = meter.body();
        if let Some((digest, voucher)) = &self.last
            && voucher.k == body.k
        {
            let same = *digest == meter.digest();
            return if same { Ok(voucher.clone()) } else { Err(MeterRefused::Equivocation { k: body.k }) };
        }
        self.check(body, elapsed, rtt)?;
        let chain = self.chain_to(body)?;
        let voucher = Voucher {
            lane: self.contract.lane,
            k: body.k,
            usage: body.usage,
            amount: body.usage.amount(&self.contract.terms),
            meter: meter.digest(),
            previous: self.head,
        };
        if chain.tokens() > self.chain.tokens() {
            self.productive = body.usage.total();
        }
        let taken = usize::try_from(chain.tokens() - self.chain.tokens()).unwrap_or(usize::MAX);
        self.pending.drain(..taken.min(self.pending.len()));
        self.chain = chain;
        self.ended = body.last;
        self.last = Some((meter.digest(), voucher.clone()));
        Ok(voucher)
    }

    /// Notes that the voucher was signed: the next one links to it.
    pub fn signed(&mut self, voucher: &Verified<Voucher>) {
        self.head = voucher.digest();
    }

    fn check(&self, meter: &Meter, elapsed: Duration, rtt: Duration) -> Result<(), MeterRefused> {
        if meter.lane != self.contract.lane || meter.contract != self.contract_digest {
            return Err(MeterRefused::WrongContract);
        }
        if self.ended {
            return Err(MeterRefused::AfterLast);
        }
        let expected = self.vouchers() + 1;
        if meter.k != expected {
            return Err(MeterRefused::OutOfOrder { expected, got: meter.k });
        }
        let before = self.usage();
        if !meter.usage.continues(&before) || meter.tokens < self.chain.tokens() {
            return Err(MeterRefused::Backwards);
        }
        let allowed_ms = allowed_ms(elapsed, rtt);
        let claimed_ms = meter.usage.total().get();
        if claimed_ms > allowed_ms {
            return Err(MeterRefused::TooFast { claimed_ms, allowed_ms });
        }
        let over_time = meter.usage.total() > self.contract.max_ms;
        if over_time || meter.usage.amount(&self.contract.terms) > self.contract.max_total {
            return Err(MeterRefused::OverLimit);
        }
        let dry = meter.usage.total().saturating_sub(self.productive);
        let dries = !self.component && meter.tokens == self.chain.tokens();
        if dries && dry > self.contract.terms.quantum {
            let allowed_ms = self.contract.terms.quantum.get();
            return Err(MeterRefused::NoOutput { claimed_ms: dry.get(), allowed_ms });
        }
        Ok(())
    }

    fn chain_to(&self, meter: &Meter) -> Result<OutputChain, MeterRefused> {
        let received = self.received();
        let more = usize::try_from(meter.tokens - self.chain.tokens()).unwrap_or(usize::MAX);
        let Some(units) = self.pending.get(..more) else {
            return Err(MeterRefused::NotDelivered { claimed: meter.tokens, received });
        };
        let mut chain = self.chain.clone();
        chain.extend_units(units);
        if chain.head() != meter.commitment {
            return Err(MeterRefused::WrongCommitment);
        }
        Ok(chain)
    }

    /// Is `receipt` for the last voucher?
    #[must_use]
    pub fn is_receipt(&self, receipt: &Receipt) -> bool {
        self.last.as_ref().is_some_and(|(_, voucher)| {
            receipt.lane == voucher.lane
                && receipt.k == voucher.k
                && receipt.amount == voucher.amount
                && receipt.voucher == self.head
        })
    }

    /// Vouchers issued.
    #[must_use]
    pub fn vouchers(&self) -> u32 {
        self.last.as_ref().map_or(0, |(_, voucher)| voucher.k)
    }

    /// What is owed.
    #[must_use]
    pub fn amount(&self) -> NanoCredit {
        self.last.as_ref().map_or(NanoCredit::ZERO, |(_, voucher)| voucher.amount)
    }

    /// Time paid for.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.last.as_ref().map_or_else(Usage::default, |(_, voucher)| voucher.usage)
    }

    /// Was the last meter paid?
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }
}

/// I5: the most worker time that can have passed at the provider.
fn allowed_ms(elapsed: Duration, rtt: Duration) -> u64 {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let elapsed = millis(elapsed);
    elapsed
        .saturating_add(
            elapsed / 1_000_000 * CLOCK_DRIFT_PPM + elapsed % 1_000_000 * CLOCK_DRIFT_PPM / 1_000_000,
        )
        .saturating_add(millis(rtt).saturating_mul(2))
        .saturating_add(METER_GRACE_MS)
}

/// Why a provider does not take a voucher. Fault: renter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VoucherRefused {
    /// No meter waits for it.
    #[error("voucher {k} pays for no meter that is open")]
    Unexpected {
        /// Its number.
        k: u32,
    },
    /// It belongs to another lane.
    #[error("the voucher is for another lane")]
    WrongLane,
    /// Its time or amount is not what the meter and the price give.
    #[error("the voucher is for {got}; the meter asks {expected}")]
    WrongAmount {
        /// What is due.
        expected: NanoCredit,
        /// What it says.
        got: NanoCredit,
    },
    /// It does not name the meter, or the voucher before.
    #[error("the voucher does not link to the meter and the voucher before it")]
    WrongLink,
}

/// Why a provider cannot meter. Fault: its own clock or caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MeterError {
    /// The last meter still waits for its voucher.
    #[error("meter {k} is not paid yet")]
    Unpaid {
        /// Its number.
        k: u32,
    },
    /// The last meter was issued.
    #[error("the lane has had its last meter")]
    Ended,
    /// Time fell.
    #[error("the time metered would fall")]
    Backwards,
}

/// The provider's end.
#[derive(Debug)]
pub struct ProviderLane {
    contract: Contract,
    contract_digest: Digest,
    head: Digest,
    k: u32,
    paid: Usage,
    amount: NanoCredit,
    /// Tokens paid for.
    paid_tokens: u32,
    /// Time paid for by the last meter that came with output.
    productive: GpuMillis,
    /// Does a component run? It may work for long before it gives anything.
    component: bool,
    /// The meter that waits for its voucher.
    open: Option<(Digest, Meter)>,
    ended: bool,
    receipt: Option<(Digest, Receipt)>,
}

impl ProviderLane {
    /// The provider's end of the lane that `contract` opened.
    #[must_use]
    pub fn new(contract: &Verified<Contract>) -> Self {
        Self {
            contract: contract.body().clone(),
            contract_digest: contract.digest(),
            head: contract.digest(),
            k: 0,
            paid: Usage::default(),
            amount: NanoCredit::ZERO,
            paid_tokens: 0,
            productive: GpuMillis::ZERO,
            component: false,
            open: None,
            ended: false,
            receipt: None,
        }
    }

    /// The lane of a component's run (see [`RenterLane::of_component`]).
    #[must_use]
    pub fn of_component(self) -> Self {
        Self { component: true, ..self }
    }

    /// The lane as a ledger holds it, to take a voucher that comes after a restart: `voucher` is the
    /// last one kept, `meter` the last one signed. No work goes on in it.
    #[must_use]
    pub fn resumed(
        contract: &Verified<Contract>,
        voucher: Option<&Verified<Voucher>>,
        meter: Option<&Verified<Meter>>,
    ) -> Self {
        let mut lane = Self::new(contract);
        if let Some(voucher) = voucher {
            let body = voucher.body();
            lane.k = body.k;
            lane.paid = body.usage;
            lane.amount = body.amount;
            lane.head = voucher.digest();
            lane.receipt = Some((voucher.digest(), receipt_of(voucher)));
        }
        match meter {
            Some(meter) if meter.body().k == lane.k.saturating_add(1) => lane.metered(meter),
            Some(meter) => lane.ended = meter.body().last,
            None => {}
        }
        lane
    }

    /// The contract's limits as time in `phase`, after what the other phases of `usage` took: the job
    /// stops there, to the millisecond.
    #[must_use]
    pub fn limit(&self, usage: &Usage, phase: Phase) -> GpuMillis {
        usage.limit(phase, &self.contract)
    }

    /// The next meter, to be signed; `usage` beyond the contract's limits is cut to them (the
    /// provider bears what it overran).
    ///
    /// # Errors
    /// While a meter is unpaid, after the last one, or when time would fall.
    pub fn meter(&self, usage: Usage, chain: &OutputChain, last: bool) -> Result<Meter, MeterError> {
        if self.ended {
            return Err(MeterError::Ended);
        }
        if self.open.is_some() {
            return Err(MeterError::Unpaid { k: self.k + 1 });
        }
        let usage = self.cut_dry(usage.cut(&self.contract, &self.paid), chain.tokens());
        if !usage.continues(&self.paid) {
            return Err(MeterError::Backwards);
        }
        Ok(Meter {
            lane: self.contract.lane,
            contract: self.contract_digest,
            k: self.k + 1,
            usage,
            tokens: chain.tokens(),
            commitment: chain.head(),
            last,
        })
    }

    /// Without new output at most a quantum is claimed; the rest is claimed with the next output.
    fn cut_dry(&self, mut usage: Usage, tokens: u32) -> Usage {
        if tokens > self.paid_tokens || self.component {
            return usage;
        }
        let most = self.productive.saturating_add(self.contract.terms.quantum);
        usage.load = usage.load.min(most.saturating_sub(self.paid.run)).max(self.paid.load.min(usage.load));
        usage.run = usage.run.min(most.saturating_sub(usage.load)).max(self.paid.run.min(usage.run));
        usage
    }

    /// The worker time at which the next meter is due when `tokens` were produced so far; `None` while
    /// a meter is unpaid, and while all is claimed that may be before the next output.
    #[must_use]
    pub fn meter_due(&self, tokens: u32) -> Option<GpuMillis> {
        let due = self.paid.total().saturating_add(self.contract.terms.quantum);
        let dry = self.productive.saturating_add(self.contract.terms.quantum);
        let dries = !self.component && tokens <= self.paid_tokens;
        let nothing_new = dries && self.paid.total() >= dry;
        if self.open.is_some() || self.ended || nothing_new {
            return None;
        }
        Some(if dries { due.min(dry) } else { due })
    }

    /// Notes that the meter was signed and will be sent.
    pub fn metered(&mut self, meter: &Verified<Meter>) {
        self.open = Some((meter.digest(), meter.body().clone()));
    }

    /// Takes a voucher; the receipt is to be signed after the voucher is durable. The same voucher
    /// twice gives the same receipt twice.
    ///
    /// # Errors
    /// The first law that the voucher breaks; nothing changes then.
    pub fn accept(&mut self, voucher: &Verified<Voucher>) -> Result<Receipt, VoucherRefused> {
        if let Some((digest, receipt)) = &self.receipt
            && *digest == voucher.digest()
        {
            return Ok(receipt.clone());
        }
        let body = voucher.body();
        if body.lane != self.contract.lane {
            return Err(VoucherRefused::WrongLane);
        }
        let Some((meter_digest, meter)) = &self.open else {
            return Err(VoucherRefused::Unexpected { k: body.k });
        };
        if body.k != meter.k {
            return Err(VoucherRefused::Unexpected { k: body.k });
        }
        let expected = meter.usage.amount(&self.contract.terms);
        if body.usage != meter.usage || body.amount != expected {
            return Err(VoucherRefused::WrongAmount { expected, got: body.amount });
        }
        if body.meter != *meter_digest || body.previous != self.head {
            return Err(VoucherRefused::WrongLink);
        }
        let receipt = receipt_of(voucher);
        if meter.tokens > self.paid_tokens {
            self.paid_tokens = meter.tokens;
            self.productive = meter.usage.total();
        }
        self.k = body.k;
        self.paid = body.usage;
        self.amount = body.amount;
        self.head = voucher.digest();
        self.ended = meter.last;
        self.open = None;
        self.receipt = Some((voucher.digest(), receipt.clone()));
        Ok(receipt)
    }

    /// I4: must work stop until a voucher comes? `usage` is the time so far.
    #[must_use]
    pub fn must_stall(&self, usage: Usage) -> bool {
        self.open.is_some() && usage.total().saturating_sub(self.paid.total()) >= self.contract.terms.window
    }

    /// Is a meter waiting for its voucher?
    #[must_use]
    pub fn is_unpaid(&self) -> bool {
        self.open.is_some()
    }

    /// Was the last meter paid?
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Vouchers held.
    #[must_use]
    pub fn vouchers(&self) -> u32 {
        self.k
    }

    /// What the renter owes for this lane.
    #[must_use]
    pub fn amount(&self) -> NanoCredit {
        self.amount
    }

    /// Time paid for.
    #[must_use]
    pub fn paid(&self) -> Usage {
        self.paid
    }
}

fn receipt_of(voucher: &Verified<Voucher>) -> Receipt {
    let body = voucher.body();
    Receipt { lane: body.lane, k: body.k, amount: body.amount, voucher: voucher.digest() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settle::tests::sample_contract;
    use crate::sign::SigningKey;
    use proptest::prelude::*;

    struct Pair {
        renter_key: SigningKey,
        provider_key: SigningKey,
        renter: RenterLane,
        provider: ProviderLane,
        chain: OutputChain,
    }

    fn pair() -> Pair {
        let renter_key = SigningKey::from_seed([1; 32]);
        let contract = renter_key.sign(sample_contract()).unwrap();
        Pair {
            renter: RenterLane::new(&contract),
            provider: ProviderLane::new(&contract),
            chain: OutputChain::new(contract.digest()),
            renter_key,
            provider_key: SigningKey::from_seed([2; 32]),
        }
    }

    fn ran(ms: u64) -> Usage {
        Usage { run: GpuMillis::new(ms), ..Usage::default() }
    }

    impl Pair {
        fn say(&mut self, tokens: &[u32]) {
            self.chain.extend(tokens);
            self.renter.delivered(tokens);
        }

        fn meter(&mut self, ms: u64, last: bool) -> Verified<Meter> {
            let meter = self.provider.meter(ran(ms), &self.chain, last).unwrap();
            let meter = self.provider_key.sign(meter).unwrap();
            self.provider.metered(&meter);
            meter
        }

        fn pay(&mut self, meter: &Verified<Meter>) -> Result<Verified<Voucher>, MeterRefused> {
            let voucher = self.renter.pay(meter, Duration::from_secs(3_600), Duration::ZERO)?;
            let voucher = self.renter_key.sign(voucher).unwrap();
            self.renter.signed(&voucher);
            Ok(voucher)
        }

        fn forged(&self, change: impl FnOnce(&mut Meter)) -> Verified<Meter> {
            let run = self.provider.paid().run.get().max(500);
            let mut meter = self.provider.meter(ran(run), &self.chain, false).unwrap();
            change(&mut meter);
            self.provider_key.sign(meter).unwrap()
        }
    }

    #[test]
    fn a_lane_runs_and_ends() {
        let mut pair = pair();
        pair.say(&[1, 2, 3]);
        let meter = pair.meter(1_000, false);
        let voucher = pair.pay(&meter).unwrap();
        let receipt = pair.provider.accept(&voucher).unwrap();
        assert!(pair.renter.is_receipt(&receipt));
        pair.say(&[4]);
        let meter = pair.meter(1_284, true);
        let voucher = pair.pay(&meter).unwrap();
        pair.provider.accept(&voucher).unwrap();
        assert!(pair.renter.ended() && pair.provider.ended());
        assert_eq!(pair.renter.amount(), NanoCredit::new(11_111 * 1_284 / 1_000));
        assert_eq!(pair.renter.amount(), pair.provider.amount());
        assert_eq!(pair.provider.meter(ran(2_000), &pair.chain, true), Err(MeterError::Ended));
    }

    #[test]
    fn paying_twice_is_idempotent_and_two_meters_of_one_number_convict() {
        let mut pair = pair();
        let meter = pair.meter(700, false);
        let first = pair.pay(&meter).unwrap();
        let again = pair.renter.pay(&meter, Duration::ZERO, Duration::ZERO).unwrap();
        assert_eq!(first.body(), &again);
        let mut other = meter.body().clone();
        other.usage = ran(701);
        let other = pair.provider_key.sign(other).unwrap();
        assert_eq!(pair.pay(&other).unwrap_err(), MeterRefused::Equivocation { k: 1 });
        let receipt = pair.provider.accept(&first).unwrap();
        assert_eq!(pair.provider.accept(&first), Ok(receipt));
    }

    #[test]
    fn a_renter_refuses_every_overclaim() {
        let mut pair = pair();
        pair.say(&[1, 2]);
        let refused = |pair: &mut Pair, change: fn(&mut Meter)| {
            let meter = pair.forged(change);
            pair.pay(&meter).unwrap_err()
        };
        assert_eq!(
            refused(&mut pair, |m| m.contract = Digest::from_bytes([0; 32])),
            MeterRefused::WrongContract
        );
        assert_eq!(refused(&mut pair, |m| m.k = 2), MeterRefused::OutOfOrder { expected: 1, got: 2 });
        assert_eq!(refused(&mut pair, |m| m.usage.run = GpuMillis::new(60_001)), MeterRefused::OverLimit);
        assert_eq!(
            refused(&mut pair, |m| m.tokens = 3),
            MeterRefused::NotDelivered { claimed: 3, received: 2 }
        );
        assert_eq!(
            refused(&mut pair, |m| m.commitment = Digest::from_bytes([0; 32])),
            MeterRefused::WrongCommitment
        );
        let meter = pair.meter(5_000, false);
        let early = pair.renter.pay(&meter, Duration::from_millis(4_700), Duration::ZERO);
        assert_eq!(early, Err(MeterRefused::TooFast { claimed_ms: 5_000, allowed_ms: 4_952 }));
        assert!(pair.renter.pay(&meter, Duration::from_millis(4_700), Duration::from_millis(24)).is_ok());
    }

    #[test]
    fn a_provider_refuses_every_wrong_voucher() {
        let mut pair = pair();
        let meter = pair.meter(1_000, false);
        let good = pair.pay(&meter).unwrap().body().clone();
        let mut refused = |change: fn(&mut Voucher)| {
            let mut voucher = good.clone();
            change(&mut voucher);
            let voucher = pair.renter_key.sign(voucher).unwrap();
            pair.provider.accept(&voucher).unwrap_err()
        };
        assert!(matches!(
            refused(|v| v.amount = NanoCredit::new(11_110)),
            VoucherRefused::WrongAmount { .. }
        ));
        assert!(matches!(refused(|v| v.k = 2), VoucherRefused::Unexpected { k: 2 }));
        assert_eq!(refused(|v| v.lane.lane = 1), VoucherRefused::WrongLane);
        assert_eq!(refused(|v| v.previous = Digest::from_bytes([0; 32])), VoucherRefused::WrongLink);
    }

    #[test]
    fn work_stops_when_a_window_is_unpaid() {
        let mut pair = pair();
        assert!(!pair.provider.must_stall(ran(900)));
        let meter = pair.meter(1_000, false);
        assert!(!pair.provider.must_stall(ran(1_999)));
        assert!(pair.provider.must_stall(ran(2_000)));
        let voucher = pair.pay(&meter).unwrap();
        pair.provider.accept(&voucher).unwrap();
        assert!(!pair.provider.must_stall(ran(2_000)));
    }

    #[test]
    fn at_most_a_quantum_is_paid_ahead_of_output() {
        let mut pair = pair();
        // A long prompt: a quantum is claimed, then nothing more until the first token.
        assert_eq!(pair.provider.meter_due(0), Some(GpuMillis::new(1_000)));
        let meter = pair.meter(1_700, false);
        assert_eq!(meter.body().usage, ran(1_000));
        let voucher = pair.pay(&meter).unwrap();
        pair.provider.accept(&voucher).unwrap();
        assert_eq!(pair.provider.meter_due(0), None);
        let forged = pair.forged(|meter| meter.usage = ran(1_001));
        let refused = MeterRefused::NoOutput { claimed_ms: 1_001, allowed_ms: 1_000 };
        assert_eq!(pair.pay(&forged).unwrap_err(), refused);
        pair.say(&[1]);
        assert_eq!(pair.provider.meter_due(1), Some(GpuMillis::new(2_000)));
        let meter = pair.meter(4_000, true);
        let voucher = pair.pay(&meter).unwrap();
        pair.provider.accept(&voucher).unwrap();
        assert_eq!(pair.provider.paid(), ran(4_000));
    }

    #[test]
    fn a_restarted_provider_takes_the_voucher_it_waited_for() {
        let mut pair = pair();
        pair.say(&[1]);
        let first = pair.meter(1_000, false);
        let paid = pair.pay(&first).unwrap();
        pair.provider.accept(&paid).unwrap();
        pair.say(&[2]);
        let second = pair.meter(2_000, false);
        let late = pair.pay(&second).unwrap();
        let contract = pair.renter_key.sign(sample_contract()).unwrap();
        let mut resumed = ProviderLane::resumed(&contract, Some(&paid), Some(&second));
        let receipt = resumed.accept(&late).unwrap();
        assert!(pair.renter.is_receipt(&receipt));
        assert_eq!(resumed.accept(&late), Ok(receipt));
        let mut current = ProviderLane::resumed(&contract, Some(&late), Some(&second));
        assert!(!current.is_unpaid() && current.accept(&late).is_ok());
        assert_eq!(current.accept(&paid).unwrap_err(), VoucherRefused::Unexpected { k: 1 });
    }

    proptest! {
        /// Whatever honest times a job takes, both ends agree on the bill, which is the price of
        /// the time, never falls, and never passes the contract.
        #[test]
        fn honest_sides_agree(steps in proptest::collection::vec((0..30_000u64, 0..5usize), 1..12)) {
            let mut pair = pair();
            let (mut ms, mut productive, mut before) = (0, 0, NanoCredit::ZERO);
            let count = steps.len();
            for (at, (step, tokens)) in steps.into_iter().enumerate() {
                ms += step;
                pair.say(&vec![7; tokens]);
                if tokens > 0 {
                    productive = ms.min(60_000);
                }
                let meter = pair.meter(ms, at + 1 == count);
                let voucher = pair.pay(&meter).unwrap();
                pair.provider.accept(&voucher).unwrap();
                let amount = pair.provider.amount();
                prop_assert_eq!(amount, pair.renter.amount());
                let due = GpuMillis::new(ms.min(60_000).min(productive + 1_000));
                prop_assert_eq!(amount, sample_contract().terms.run.amount(due));
                prop_assert!(amount >= before && amount <= sample_contract().max_total);
                before = amount;
            }
            prop_assert!(pair.provider.ended());
        }

        /// A lying provider is never paid for more than our clock, the contract or the output allow.
        #[test]
        fn nothing_false_is_paid(run: u64, load: u64, tokens: u32, k in 0..3u32, elapsed in 0..100_000u64) {
            let mut pair = pair();
            pair.say(&[1, 2, 3]);
            let meter = pair.forged(|meter| {
                meter.usage = Usage { load: GpuMillis::new(load), run: GpuMillis::new(run), guest: GpuMillis::ZERO };
                meter.tokens = tokens;
                meter.k = k;
            });
            if let Ok(voucher) = pair.renter.pay(&meter, Duration::from_millis(elapsed), Duration::ZERO) {
                prop_assert!(voucher.usage.total().get() <= elapsed + elapsed / 1_000 + METER_GRACE_MS);
                prop_assert!(voucher.amount <= sample_contract().max_total);
                prop_assert_eq!((voucher.k, meter.body().tokens), (1, 3));
            }
        }
    }
}
