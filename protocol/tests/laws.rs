//! The invariants I1 to I8 of SPEC.md, each over random sequences of operations.
//!
//! Owns: two ends of a lane and of a pair with everything that an honest or lying other side may do
//! between them. Never: a case that was picked because it passes. Run by `make test`.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use potluck_protocol::balance::{Fold, Folded, PairId, PairState, Settle};
use potluck_protocol::credit::{CreditPolicy, Standing};
use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::lane::{ProviderLane, RenterLane};
use potluck_protocol::limits::{CLOCK_SLACK_MS, METER_GRACE_MS};
use potluck_protocol::offer::Terms;
use potluck_protocol::outbox::Outbox;
use potluck_protocol::output::OutputChain;
use potluck_protocol::pair::{Consent, PairBook, Verdict};
use potluck_protocol::proof::Equivocation;
use potluck_protocol::settle::{Contract, Meter, Phase, Receipt, Usage, Voucher};
use potluck_protocol::sign::{SigningKey, Verified};
use potluck_protocol::statement::{Slot, Statement};
use potluck_protocol::unit::{GpuMillis, NanoCredit, Rate, UnixMillis};
use proptest::prelude::*;
use proptest::sample::Index;

const NOW: UnixMillis = UnixMillis::new(1_700_000_000_000);

fn keys() -> (SigningKey, SigningKey) {
    (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]))
}

fn contract(quantum: u64, window: u64) -> Verified<Contract> {
    let (renter, provider) = keys();
    let body = Contract {
        lane: LaneId { renter: renter.peer(), provider: provider.peer(), epoch: 0, lane: 7 },
        job: Digest::from_bytes([4; 32]),
        quote: Digest::from_bytes([5; 32]),
        terms: Terms {
            run: Rate::new(38_888),
            load: Rate::new(13_888),
            guest: Rate::ZERO,
            quantum: GpuMillis::new(quantum),
            window: GpuMillis::new(window),
        },
        max_total: NanoCredit::new(2_000_000),
        max_ms: GpuMillis::new(60_000),
        created: NOW,
        start_by: NOW,
    };
    renter.sign(body).unwrap()
}

/// What may happen next in a lane.
#[derive(Debug, Clone)]
enum Act {
    /// The worker is busy for so long and writes so many tokens.
    Work { ms: u64, tokens: u8, load: bool },
    /// The provider claims what it has.
    Claim { last: bool },
    /// The newest meter arrives, perhaps again.
    Meter,
    /// An earlier meter arrives again.
    OldMeter(Index),
    /// The newest voucher arrives, perhaps again.
    Voucher,
    /// An earlier voucher arrives again.
    OldVoucher(Index),
    /// A meter that lies arrives.
    FalseMeter { run: u64, tokens: u8, k: u8 },
    /// A voucher that lies arrives.
    FalseVoucher { amount: u64, k: u8 },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..900u64, 0..3u8, any::<bool>()).prop_map(|(ms, tokens, load)| Act::Work { ms, tokens, load }),
        3 => prop::bool::weighted(0.05).prop_map(|last| Act::Claim { last }),
        3 => Just(Act::Meter),
        1 => any::<Index>().prop_map(Act::OldMeter),
        3 => Just(Act::Voucher),
        1 => any::<Index>().prop_map(Act::OldVoucher),
        1 => (any::<u64>(), any::<u8>(), 0..12u8).prop_map(|(run, tokens, k)| Act::FalseMeter { run, tokens, k }),
        1 => (any::<u64>(), 0..12u8).prop_map(|(amount, k)| Act::FalseVoucher { amount, k }),
    ]
}

/// Both ends of a lane; the clock advances with the work.
struct Lane {
    keys: (SigningKey, SigningKey),
    contract: Verified<Contract>,
    renter: RenterLane,
    provider: ProviderLane,
    chain: OutputChain,
    usage: Usage,
    elapsed: u64,
    longest: u64,
    meters: Vec<Verified<Meter>>,
    vouchers: Vec<Verified<Voucher>>,
    receipts: Vec<Receipt>,
}

impl Lane {
    fn new(quantum: u64, window: u64) -> Self {
        let contract = contract(quantum, window);
        Self {
            keys: keys(),
            renter: RenterLane::new(&contract),
            provider: ProviderLane::new(&contract),
            chain: OutputChain::new(contract.digest()),
            contract,
            usage: Usage::default(),
            elapsed: 0,
            longest: 0,
            meters: Vec::new(),
            vouchers: Vec::new(),
            receipts: Vec::new(),
        }
    }

    fn terms(&self) -> Terms {
        self.contract.body().terms
    }

    fn act(&mut self, act: &Act) {
        match act {
            // A provider that keeps I4 works only while it may.
            Act::Work { ms, tokens, load } => {
                if !self.provider.must_stall(self.usage) && !self.provider.ended() {
                    self.work(*ms, *tokens, *load);
                }
            }
            Act::Claim { last } => {
                if let Ok(meter) = self.provider.meter(self.usage, &self.chain, *last) {
                    let meter = self.keys.1.sign(meter).unwrap();
                    self.provider.metered(&meter);
                    self.meters.push(meter);
                }
            }
            Act::Meter => self.pay(self.meters.last().cloned()),
            Act::OldMeter(at) if !self.meters.is_empty() => self.pay(Some(at.get(&self.meters).clone())),
            Act::Voucher => self.accept(self.vouchers.last().cloned()),
            Act::OldVoucher(at) if !self.vouchers.is_empty() => {
                self.accept(Some(at.get(&self.vouchers).clone()))
            }
            Act::OldMeter(_) | Act::OldVoucher(_) => {}
            Act::FalseMeter { run, tokens, k } => self.pay(Some(self.false_meter(*run, *tokens, *k))),
            Act::FalseVoucher { amount, k } => self.accept(Some(self.false_voucher(*amount, *k))),
        }
    }

    fn work(&mut self, ms: u64, tokens: u8, load: bool) {
        let (Usage { load: loaded, run, .. }, took) = (self.usage, GpuMillis::new(ms));
        self.usage = if load {
            Usage { load: loaded.saturating_add(took), ..self.usage }
        } else {
            Usage { run: run.saturating_add(took), ..self.usage }
        };
        self.elapsed += ms;
        self.longest = self.longest.max(ms);
        let tokens = vec![9; usize::from(tokens)];
        self.chain.extend(&tokens);
        self.renter.delivered(&tokens);
    }

    fn claim_if_due(&mut self) {
        let due = self.provider.meter_due(self.chain.tokens());
        if due.is_some_and(|due| self.usage.total() >= due) {
            self.act(&Act::Claim { last: false });
        }
    }

    fn pay(&mut self, meter: Option<Verified<Meter>>) {
        let Some(meter) = meter else { return };
        let elapsed = Duration::from_millis(self.elapsed);
        if let Ok(voucher) = self.renter.pay(&meter, elapsed, Duration::ZERO) {
            let voucher = self.keys.0.sign(voucher).unwrap();
            self.renter.signed(&voucher);
            if self.vouchers.last() != Some(&voucher) {
                self.vouchers.push(voucher);
            }
        }
    }

    fn accept(&mut self, voucher: Option<Verified<Voucher>>) {
        let Some(voucher) = voucher else { return };
        if let Ok(receipt) = self.provider.accept(&voucher)
            && self.receipts.last() != Some(&receipt)
        {
            self.receipts.push(receipt);
        }
    }

    fn false_meter(&self, run: u64, tokens: u8, k: u8) -> Verified<Meter> {
        let meter = Meter {
            lane: self.contract.body().lane,
            contract: self.contract.digest(),
            k: u32::from(k),
            usage: Usage { run: GpuMillis::new(run % 100_000), ..self.usage },
            tokens: u32::from(tokens),
            commitment: self.chain.head(),
            last: false,
        };
        self.keys.1.sign(meter).unwrap()
    }

    fn false_voucher(&self, amount: u64, k: u8) -> Verified<Voucher> {
        let meter = self.meters.last().map_or(self.contract.digest(), Verified::digest);
        let previous = self.vouchers.last().map_or(self.contract.digest(), Verified::digest);
        let voucher = Voucher {
            lane: self.contract.body().lane,
            k: u32::from(k),
            usage: self.usage,
            amount: NanoCredit::new(amount % 3_000_000),
            meter,
            previous,
        };
        self.keys.0.sign(voucher).unwrap()
    }
}

/// Two ends of a pair with their lanes; a folded lane has one voucher.
struct Pair {
    keys: [SigningKey; 2],
    books: [PairBook; 2],
    lanes: BTreeMap<LaneId, (u64, NanoCredit)>,
    /// Outside payments that were agreed, by who paid.
    paid: [u64; 2],
    pair: PairId,
    now: u64,
}

impl Pair {
    fn new() -> Self {
        let (one, other) = keys();
        let mut keys = [one, other];
        keys.sort_by_key(SigningKey::peer);
        let (low, high) = (keys[0].peer(), keys[1].peer());
        let mut books = [PairBook::new(low, high).unwrap(), PairBook::new(high, low).unwrap()];
        books.iter_mut().for_each(PairBook::synced);
        Self {
            keys,
            books,
            lanes: BTreeMap::new(),
            paid: [0; 2],
            pair: PairId::of(low, high).unwrap(),
            now: NOW.get(),
        }
    }

    fn peer(&self, side: usize) -> PeerId {
        self.keys[side].peer()
    }

    fn fold(&self, side: usize, floor: UnixMillis) -> Fold {
        let mut fold = Fold::new(self.pair, floor);
        let from = self.books[side].head().floor.get();
        for (lane, (created, amount)) in &self.lanes {
            if (from..floor.get()).contains(created) {
                let voucher = Digest::from_bytes([8; 32]);
                fold.add(&Folded { lane: *lane, k: 1, amount: *amount, voucher }).unwrap();
            }
        }
        fold
    }

    /// What `side` is owed, as it reads its own book and lanes.
    fn reading(&self, side: usize) -> i128 {
        let head = self.books[side].head();
        let open = self.lanes.iter().filter(|(_, (created, _))| *created >= head.floor.get());
        let balance = open.fold(head.balance, |sum, (lane, (_, amount))| {
            sum + self.pair.debt_of(lane.renter, *amount).unwrap()
        });
        self.pair.owed_to(self.peer(side), balance)
    }

    fn propose(&mut self, side: usize, pays: Option<u64>) -> Option<Verified<PairState>> {
        let now = UnixMillis::new(self.now);
        let floor = self.books[side].safe_floor(now, None);
        let payer = self.peer(side);
        let settle =
            pays.map(|amount| Settle { payer, amount: NanoCredit::new(amount), reference: "cash".into() });
        let state = self.books[side].propose(&self.fold(side, floor), settle, floor).ok()?;
        let state = self.keys[side].sign(state).unwrap();
        self.books[side].note_state(&state);
        Some(state)
    }

    fn answer(&mut self, side: usize, state: &Verified<PairState>, consent: Consent) -> Option<Statement> {
        let now = UnixMillis::new(self.now);
        let fold = self.fold(side, state.body().floor);
        let verdict = self.books[side].judge(state, &fold, None, now, consent);
        self.books[side].note_state(state);
        match verdict.ok()? {
            Verdict::Countersign(body) => {
                let signed = self.keys[side].sign(body).unwrap();
                for book in &mut self.books {
                    book.note_agreed(state, &signed);
                }
                if let Some(settle) = &state.body().settle {
                    self.paid[usize::from(settle.payer == self.pair.high())] += settle.amount.get();
                }
                Some(signed.into_signed().into())
            }
            Verdict::Cancel(body) => {
                let signed = self.keys[side].sign(body).unwrap();
                for book in &mut self.books {
                    book.note_cancel(&signed);
                }
                Some(signed.into_signed().into())
            }
            Verdict::Clash | Verdict::AskOwner(_) => None,
        }
    }
}

/// What may happen next between two peers.
#[derive(Debug, Clone)]
enum Deal {
    /// A lane came and ended.
    Lane { renter: bool, amount: u32, number: u64 },
    /// Time passes.
    Later(u32),
    /// One side proposes; the other answers, or the answer is to come.
    Propose { side: bool, pays: Option<u32>, consent: u8, answered: bool },
    /// Both propose before either hears.
    Clash,
    /// A state changed on its way to the other's harm, signed by its proposer.
    Lie { side: bool, more: i64 },
}

fn deal() -> impl Strategy<Value = Deal> {
    prop_oneof![
        4 => (any::<bool>(), any::<u32>(), any::<u64>())
            .prop_map(|(renter, amount, number)| Deal::Lane { renter, amount, number }),
        3 => (0..3_000_000u32).prop_map(Deal::Later),
        4 => (any::<bool>(), prop::option::of(any::<u32>()), 0..3u8, prop::bool::weighted(0.8))
            .prop_map(|(side, pays, consent, answered)| Deal::Propose { side, pays, consent, answered }),
        1 => Just(Deal::Clash),
        2 => (any::<bool>(), any::<i64>()).prop_map(|(side, more)| Deal::Lie { side, more }),
    ]
}

impl Pair {
    fn deal(&mut self, deal: &Deal) {
        match deal {
            Deal::Lane { renter, amount, number } => {
                let (renter, provider) = (self.peer(usize::from(*renter)), self.peer(usize::from(!*renter)));
                let lane = LaneId { renter, provider, epoch: 0, lane: *number };
                let amount = NanoCredit::new(u64::from(*amount));
                self.lanes.entry(lane).or_insert((self.now, amount));
            }
            Deal::Later(ms) => self.now += u64::from(*ms),
            Deal::Propose { side, pays, consent, answered } => {
                let side = usize::from(*side);
                let Some(state) = self.propose(side, pays.map(u64::from)) else { return };
                if *answered {
                    let consent = [Consent::Unasked, Consent::Given, Consent::Denied][usize::from(*consent)];
                    self.answer(1 - side, &state, consent);
                }
            }
            Deal::Clash => {
                let (low, high) = (self.propose(0, Some(1)), self.propose(1, Some(2)));
                let (Some(low), Some(high)) = (low, high) else { return };
                assert_eq!(self.answer(0, &high, Consent::Given), None);
                assert_eq!(self.answer(1, &low, Consent::Given), None);
            }
            Deal::Lie { side, more } => {
                let side = usize::from(*side);
                let Some(state) = self.propose(side, None) else { return };
                let balance = state.body().balance + i128::from(*more);
                let lie = self.keys[side].sign(PairState { balance, ..state.body().clone() }).unwrap();
                let answer = self.answer(1 - side, &lie, Consent::Given);
                let signed = matches!(answer, Some(Statement::Countersign(_)));
                assert_eq!(signed, *more == 0, "a false balance was countersigned");
            }
        }
    }
}

proptest! {
    /// I1: whatever two peers do, what one reads is what the other reads with the sign turned, and it is
    /// what their lanes and payments add up to.
    #[test]
    fn i1_conservation(deals in prop::collection::vec(deal(), 0..40)) {
        let mut pair = Pair::new();
        for deal in &deals {
            pair.deal(deal);
            prop_assert_eq!(pair.reading(0) + pair.reading(1), 0);
            let lanes: i128 = pair.lanes.iter()
                .map(|(lane, (_, amount))| pair.pair.debt_of(lane.renter, *amount).unwrap()).sum();
            let paid = i128::from(pair.paid[1]) - i128::from(pair.paid[0]);
            prop_assert_eq!(pair.reading(1), lanes + paid);
        }
    }

    /// I2: numbers step by exactly one, nothing falls, and each names the one before; steps of a balance
    /// are spent once and never again.
    #[test]
    fn i2_monotone(acts in prop::collection::vec(act(), 0..80), deals in prop::collection::vec(deal(), 0..30)) {
        let mut lane = Lane::new(1_000, 2_000);
        for act in &acts {
            lane.act(act);
        }
        let mut before = (0, Usage::default(), NanoCredit::ZERO, lane.contract.digest());
        for voucher in &lane.vouchers {
            let body = voucher.body();
            prop_assert_eq!((body.k, body.previous), (before.0 + 1, before.3));
            prop_assert!(body.usage.load >= before.1.load && body.usage.run >= before.1.run);
            prop_assert!(body.amount >= before.2);
            before = (body.k, body.usage, body.amount, voucher.digest());
        }
        let mut pair = Pair::new();
        for deal in &deals {
            let (used, head) = (pair.books[0].used(), pair.books[0].head());
            pair.deal(deal);
            let after = pair.books[0].head();
            prop_assert!(pair.books[0].used() >= used && after.n >= head.n && after.floor >= head.floor);
            if after.n > head.n {
                prop_assert!(after.n > used || pair.books[0].used() == used);
            }
        }
    }

    /// I3: every voucher that either side holds is exactly the price of its time.
    #[test]
    fn i3_price(acts in prop::collection::vec(act(), 0..80)) {
        let mut lane = Lane::new(1_000, 2_000);
        for act in &acts {
            lane.act(act);
            let terms = lane.terms();
            prop_assert_eq!(lane.provider.amount(), lane.provider.paid().amount(&terms));
            prop_assert_eq!(lane.renter.amount(), lane.renter.usage().amount(&terms));
        }
        for voucher in &lane.vouchers {
            let Usage { load, run, .. } = voucher.body().usage;
            let exact = u128::from(38_888u64) * u128::from(run.get()) + u128::from(13_888u64) * u128::from(load.get());
            prop_assert_eq!(u128::from(voucher.body().amount.get()), exact / 1_000);
        }
    }

    /// I4: a provider that meters when it is due and stalls when it must never has more unpaid than a
    /// window, a quantum and one operation, while output flows.
    #[test]
    fn i4_exposure(
        quantum in 100..3_000u64, more in 0..3_000u64,
        operations in prop::collection::vec((1..1_500u64, any::<bool>()), 0..60),
    ) {
        let window = quantum + more;
        let mut lane = Lane::new(quantum, window);
        for (ms, answered) in operations {
            if lane.provider.ended() {
                break;
            }
            if !lane.provider.must_stall(lane.usage) {
                lane.work(ms, 1, false);
            }
            lane.claim_if_due();
            if answered {
                lane.act(&Act::Meter);
                lane.act(&Act::Voucher);
                lane.claim_if_due();
            }
            let limit = lane.provider.limit(&lane.usage, Phase::Run).get();
            let unpaid = lane.usage.run.get().min(limit) - lane.provider.paid().run.get();
            prop_assert!(unpaid <= window + quantum + lane.longest, "{unpaid} ms unpaid");
        }
    }

    /// I5: whatever is claimed, the renter signs no more than its own clock and its contract allow, and
    /// at most a quantum beyond the last output that came.
    #[test]
    fn i5_own_clock(acts in prop::collection::vec(act(), 0..80)) {
        let mut lane = Lane::new(1_000, 2_000);
        let (mut productive, mut paid_tokens) = (0, 0);
        for act in &acts {
            let before = lane.renter.vouchers();
            lane.act(act);
            let total = lane.renter.usage().total().get();
            prop_assert!(total <= lane.elapsed + lane.elapsed / 2_000 + METER_GRACE_MS);
            prop_assert!(total <= 60_000 && lane.renter.amount() <= lane.contract.body().max_total);
            if lane.renter.vouchers() > before {
                let paid = lane.vouchers.last().unwrap().body().meter;
                let meter = lane.meters.iter().find(|meter| meter.digest() == paid);
                let tokens = meter.map_or(paid_tokens, |meter| meter.body().tokens);
                if tokens > paid_tokens {
                    (productive, paid_tokens) = (total, tokens);
                } else if meter.is_some() {
                    prop_assert!(total <= productive + 1_000, "{total} ms paid, output until {productive}");
                }
            }
        }
    }

    /// I6: however contracts, work and payments follow each other, no peer comes to owe more than its
    /// limit, nor all unknown ones more than theirs.
    #[test]
    fn i6_credit(acts in prop::collection::vec((0..6usize, 0..4u8, 0..4_000_000u64), 0..200)) {
        let policy = CreditPolicy { unknown_cap: NanoCredit::new(5_000_000), ..CreditPolicy::of_rate(Rate::new(38_888)) };
        let mut peers = [Standing::default(); 6];
        let unknown = |peers: &[Standing; 6], except: usize| -> u128 {
            let others = peers.iter().enumerate().filter(|(at, it)| *at != except && it.is_unknown());
            others.map(|(_, it)| it.exposure()).sum()
        };
        for (at, kind, amount) in acts {
            let amount = NanoCredit::new(amount);
            let others = unknown(&peers, at);
            let it = &mut peers[at];
            match kind {
                // A contract, if it is admitted.
                0 if policy.allows(it, others, amount).is_ok() => it.open_caps = it.open_caps.saturating_add(amount),
                // Work within open contracts.
                1 => {
                    let done = amount.min(it.open_caps);
                    it.open_caps = it.open_caps.saturating_sub(done);
                    it.balance += i128::from(done.get());
                }
                // The open contracts end.
                2 => it.open_caps = NanoCredit::ZERO,
                // A payment.
                3 => {
                    it.balance -= i128::from(amount.get());
                    it.settled = it.settled.saturating_add(amount);
                }
                _ => {}
            }
            prop_assert!(peers[at].exposure() <= u128::from(policy.limit(&peers[at]).get()));
            prop_assert!(unknown(&peers, usize::MAX) <= u128::from(policy.unknown_cap.get()));
        }
    }

    /// I7: of all that an honest side signs, no two fill one slot with different things; and whoever
    /// does so is convicted by the two alone.
    #[test]
    fn i7_sign_once(acts in prop::collection::vec(act(), 0..80), deals in prop::collection::vec(deal(), 0..30)) {
        let mut lane = Lane::new(1_000, 2_000);
        for act in &acts {
            lane.act(act);
        }
        let mut slots: BTreeMap<Slot, Statement> = BTreeMap::new();
        let vouchers = lane.vouchers.iter().map(|it| Statement::from(it.signed().clone()));
        let receipts = lane.receipts.iter().map(|it| Statement::from(lane.keys.1.sign(it.clone()).unwrap().into_signed()));
        for statement in vouchers.chain(receipts) {
            let other = slots.insert(statement.slot().unwrap(), statement.clone());
            prop_assert!(other.is_none_or(|other| other == statement));
        }
        // Balances: what each side's law hands out to sign, in all that happens.
        let mut pair = Pair::new();
        let mut steps: BTreeMap<(u32, bool), Digest> = BTreeMap::new();
        for deal in &deals {
            let honest = !matches!(deal, Deal::Lie { .. });
            pair.deal(deal);
            for state in pair.books[0].open().iter().filter(|_| honest) {
                let slot = (state.body().n, state.body().by == pair.pair.low());
                let held = *steps.entry(slot).or_insert(state.digest());
                prop_assert_eq!(held, state.digest());
            }
            if !honest {
                steps.clear();
            }
        }
        // And a second voucher of one number is a proof.
        if let Some(voucher) = lane.vouchers.first() {
            let amount = voucher.body().amount.saturating_add(NanoCredit::new(1));
            let other = lane.keys.0.sign(Voucher { amount, ..voucher.body().clone() }).unwrap();
            let proof = Equivocation::of(voucher.signed().clone().into(), other.into_signed().into());
            prop_assert_eq!(proof.unwrap().1.signer, lane.keys.0.peer());
        }
    }

    /// I8: after a restart from what is durable at any moment, what was sent and not answered is sent
    /// again, answered as before, and then no more.
    #[test]
    fn i8_durable_before_sent(acts in prop::collection::vec(act(), 1..60), repeats in 1..4usize) {
        let mut lane = Lane::new(1_000, 2_000);
        for act in &acts {
            lane.act(act);
        }
        // The voucher that the provider has no receipt for, if there is one, and the restarted provider.
        let kept = lane.provider.vouchers();
        let held = lane.vouchers.iter().find(|voucher| voucher.body().k == kept);
        let meter = lane.meters.last();
        let mut resumed = ProviderLane::resumed(&lane.contract, held, meter);
        prop_assert_eq!((resumed.vouchers(), resumed.amount()), (kept, lane.provider.amount()));
        let mut outbox = Outbox::default();
        for voucher in lane.vouchers.iter().filter(|voucher| voucher.body().k > kept) {
            outbox.sent(&voucher.signed().clone().into(), Duration::ZERO);
        }
        let mut now = Duration::ZERO;
        let mut answers: Vec<Receipt> = Vec::new();
        for _ in 0..repeats {
            let Some(next) = outbox.next_due() else { break };
            now = now.max(next);
            for slot in outbox.due(now) {
                let sent = lane.vouchers.iter().find(|it| Statement::from(it.signed().clone()).slot() == Some(slot));
                answers.push(resumed.accept(sent.unwrap()).unwrap());
            }
        }
        prop_assert!(answers.windows(2).all(|two| two[0] == two[1]));
        if let Some(receipt) = answers.last() {
            outbox.answered(&lane.keys.1.sign(receipt.clone()).unwrap().into_signed().into());
            prop_assert!(lane.renter.is_receipt(receipt));
        }
        prop_assert!(outbox.is_empty());
        prop_assert_eq!(resumed.amount(), lane.renter.amount().max(lane.provider.amount()));
    }
}

/// The floor of a balance keeps clear of clocks that differ, and of open lanes.
#[test]
fn a_floor_never_voids_a_lane_that_may_still_be_paid() {
    let mut pair = Pair::new();
    let lane = LaneId { renter: pair.peer(0), provider: pair.peer(1), epoch: 0, lane: 1 };
    pair.lanes.insert(lane, (pair.now, NanoCredit::new(5)));
    pair.now += 3 * CLOCK_SLACK_MS;
    let state = pair.propose(0, None).unwrap();
    let (fold, now) = (pair.fold(1, state.body().floor), UnixMillis::new(pair.now));
    let open = Some(UnixMillis::new(state.body().floor.get() - 1));
    let verdict = pair.books[1].judge(&state, &fold, open, now, Consent::Unasked);
    assert!(matches!(verdict, Ok(Verdict::Cancel(_))), "{verdict:?}");
    let early = UnixMillis::new(state.body().floor.get() + CLOCK_SLACK_MS - 1);
    let verdict = pair.books[1].judge(&state, &fold, None, early, Consent::Unasked);
    assert!(matches!(verdict, Ok(Verdict::Cancel(_))), "{verdict:?}");
    let verdict = pair.books[1].judge(&state, &fold, None, now, Consent::Unasked);
    assert!(matches!(verdict, Ok(Verdict::Countersign(_))), "{verdict:?}");
    // What is older than the floor is refused from then on.
    let mut old = contract(1_000, 2_000).body().clone();
    old.created = UnixMillis::new(state.body().floor.get() - 1);
    assert!(pair.books[0].may_open(&old).is_err());
    old.created = state.body().floor;
    assert!(pair.books[0].may_open(&old).is_ok());
}
