//! A lane over two ledgers, each on a disk whose power goes, which fills up or breaks its syncs: what
//! each side comes to lose, and that both say the same once they have compared. Owns: seeded lives of
//! a pair, with the protocol's law of a lane between them. Never: a network, or a clock.

use potluck_protocol::lane::{ProviderLane, RenterLane};
use potluck_protocol::output::OutputChain;
use potluck_protocol::sign::Verified;

use super::super::sim_disk::{Failure, SimDisk};
use super::*;

/// Pairs that live, and lanes in each life.
const PAIRS: u64 = 32;
const LANES: u64 = 8;
/// One step of the worker takes no longer, in milliseconds.
const OPERATION_MS: u64 = 120;

/// splitmix64: one seed is one life.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Renter,
    Provider,
}
use Who::{Provider, Renter};

/// Why a job's conversation ended early.
#[derive(Debug)]
enum Broken {
    /// That side's ledger stopped, and its program with it.
    Died(Who),
    /// The connection is gone; both live.
    Parted,
}

/// One side: its key's seed, its disk, and its ledger while its program runs.
struct Side {
    seed: u8,
    disk: SimDisk,
    index: std::path::PathBuf,
    ledger: Option<Ledger>,
    /// What it has let out of its hands.
    sent: Vec<Record>,
}

impl Side {
    fn new(seed: u8, home: &Path) -> Self {
        let index = home.join(seed.to_string());
        let mut side = Self { seed, disk: SimDisk::default(), index, ledger: None, sent: Vec::new() };
        side.open();
        side
    }

    fn open(&mut self) {
        let (disk, me) = (Arc::new(self.disk.clone()), key(self.seed).peer());
        let (ledger, _) = Ledger::open_on(disk, &self.index, me, &mut |_| {}).unwrap();
        ledger.check().unwrap();
        self.ledger = Some(ledger);
    }

    /// The program starts anew, after a power loss or a kill.
    fn restart(&mut self, rng: &mut Rng) {
        self.ledger = None;
        self.disk =
            if rng.chance(30) { self.disk.after_kill() } else { self.disk.after_power_loss(rng.next()) };
        if rng.chance(30) {
            fs::remove_dir_all(&self.index).unwrap();
        }
        self.open();
    }

    fn ledger(&self) -> &Ledger {
        self.ledger.as_ref().unwrap()
    }

    fn objects(&self, lane: &LaneId) -> Result<Vec<Record>, ()> {
        match self.ledger().objects(lane) {
            Ok(objects) => Ok(objects),
            Err(LedgerError::Io { .. }) => Err(()),
            Err(error) => panic!("{error}"),
        }
    }
}

/// One job, as both programs hold it in memory, and what really happened.
struct Job {
    sample: Sample,
    renter: RenterLane,
    provider: ProviderLane,
    chain: OutputChain,
    worked: u64,
    /// Of that, since the last token.
    quiet: u64,
    /// The longest operation: what came between two tokens, such as the reading of a long prompt.
    operation: u64,
    delivered: u32,
    /// Steps that give a token, of a hundred: some models think for long.
    talks: u64,
}

impl Job {
    fn new(number: u64, talks: u64) -> Self {
        let sample = selling(number);
        let contract = sample.contract().verify().unwrap();
        Self {
            sample,
            renter: RenterLane::new(&contract),
            provider: ProviderLane::new(&contract),
            chain: OutputChain::new(contract.digest()),
            worked: 0,
            quiet: 0,
            operation: 0,
            delivered: 0,
            talks,
        }
    }

    fn usage(&self) -> Usage {
        Usage { run: GpuMillis::new(self.worked), ..Usage::default() }
    }

    /// One step of the worker; some give a token, which arrives while the two are connected.
    fn operate(&mut self, rng: &mut Rng, connected: bool) {
        let took = 1 + rng.below(OPERATION_MS);
        self.worked += took;
        self.quiet += took;
        self.operation = self.operation.max(self.quiet);
        if rng.chance(self.talks) {
            let token = u32::try_from(rng.below(1_000)).unwrap();
            self.chain.extend(&[token]);
            self.quiet = 0;
            if connected {
                self.renter.delivered(&[token]);
                self.delivered += 1;
            }
        }
    }

    fn work_until_due(&mut self, rng: &mut Rng, connected: bool) {
        // Nothing is due while a whole quantum went by without a token.
        while self.provider.meter_due(self.chain.tokens()).is_none_or(|due| self.usage().total() < due) {
            self.operate(rng, connected);
        }
    }
}

/// What the two came to lose at most in one lane, in milliseconds.
#[derive(Debug, Default, Clone, Copy)]
struct Losses {
    renter: u64,
    provider: u64,
    deaths: [u32; 2],
}

struct Pair {
    sides: [Side; 2],
    rng: Rng,
    runtime: tokio::runtime::Runtime,
    jobs: Vec<Job>,
    losses: Losses,
}

impl Pair {
    fn new(seed: u64, home: &Path) -> Self {
        Self {
            sides: [Side::new(2, home), Side::new(1, home)],
            rng: Rng(seed),
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            jobs: Vec::new(),
            losses: Losses::default(),
        }
    }

    fn side(&mut self, who: Who) -> &mut Side {
        &mut self.sides[usize::from(who == Provider)]
    }

    /// Makes records durable, or finds that the program has ended.
    fn keep(&mut self, who: Who, records: &[Record]) -> Result<(), Broken> {
        let side = &self.sides[usize::from(who == Provider)];
        match self.runtime.block_on(side.ledger().append(records.to_vec())) {
            Ok(()) => Ok(()),
            Err(AppendError::Disk { .. } | AppendError::Stopped) => Err(Broken::Died(who)),
            Err(error) => panic!("{who:?}: {error}"),
        }
    }

    /// Keeps what was signed and what it answers, and sends it.
    fn say(&mut self, who: Who, records: &[Record]) -> Result<(), Broken> {
        self.keep(who, records)?;
        self.send(who, records)
    }

    /// Sends what is kept; it may not arrive.
    fn send(&mut self, who: Who, records: &[Record]) -> Result<(), Broken> {
        self.side(who).sent.extend_from_slice(records);
        if self.rng.chance(2) { Err(Broken::Parted) } else { Ok(()) }
    }

    fn converse(&mut self, job: &mut Job) -> Result<(), Broken> {
        let sample = job.sample;
        let lane = sample.lane();
        let quote = Record::Quote(sample.quote());
        let contract = Record::Contract(sample.contract());
        self.say(Renter, &[quote.clone(), contract.clone()])?;
        let digest = contract.digest().unwrap();
        let accept = Record::Accept(sign(
            &key(sample.provider),
            Accept { lane, contract: digest, at: UnixMillis::ZERO },
        ));
        self.say(Provider, &[quote, contract, accept.clone()])?;
        self.keep(Renter, &[accept])?;
        let meters = 1 + self.rng.below(5);
        for nth in 1..=meters {
            job.work_until_due(&mut self.rng, true);
            self.pay(job, nth == meters)?;
        }
        let close = self.close_of(Provider, job);
        self.say(Provider, std::slice::from_ref(&close))?;
        self.keep(Renter, &[close])
    }

    /// One meter and all that follows from it, while the work goes on.
    fn pay(&mut self, job: &mut Job, last: bool) -> Result<(), Broken> {
        let meter = self.metered(job, last)?;
        self.send(Provider, &[Record::Meter(meter.signed().clone())])?;
        while !last && !job.provider.must_stall(job.usage()) && self.rng.chance(60) {
            job.operate(&mut self.rng, true);
        }
        let elapsed = Duration::from_millis(job.worked);
        let voucher = job.renter.pay(&meter, elapsed, Duration::ZERO).unwrap();
        let voucher = key(job.sample.renter).sign(voucher).unwrap();
        let paid = Record::Voucher(voucher.signed().clone());
        self.keep(Renter, &[Record::Meter(meter.into_signed()), paid.clone()])?;
        job.renter.signed(&voucher);
        self.send(Renter, std::slice::from_ref(&paid))?;
        let receipt = job.provider.accept(&voucher).unwrap();
        let receipt = Record::Receipt(sign(&key(job.sample.provider), receipt));
        self.say(Provider, &[paid, receipt.clone()])?;
        self.keep(Renter, &[receipt])
    }

    fn metered(&mut self, job: &mut Job, last: bool) -> Result<Verified<Meter>, Broken> {
        let meter = job.provider.meter(job.usage(), &job.chain, last).unwrap();
        let meter = key(job.sample.provider).sign(meter).unwrap();
        self.keep(Provider, &[Record::Meter(meter.signed().clone())])?;
        job.provider.metered(&meter);
        Ok(meter)
    }

    /// A provider that hears nothing more works until it must stop.
    fn work_alone(&mut self, job: &mut Job) -> Result<(), Broken> {
        if job.provider.ended() {
            return Ok(());
        }
        if !job.provider.is_unpaid() {
            job.work_until_due(&mut self.rng, false);
            // It is on its way and never arrives; that it was sent holds all the same.
            let meter = self.metered(job, false)?;
            self.side(Provider).sent.push(Record::Meter(meter.into_signed()));
        }
        while !job.provider.must_stall(job.usage()) {
            job.operate(&mut self.rng, false);
        }
        Ok(())
    }

    fn close_of(&mut self, who: Who, job: &Job) -> Record {
        let (k, amount) = match who {
            Renter => (job.renter.vouchers(), job.renter.amount()),
            Provider => (job.provider.vouchers(), job.provider.amount()),
        };
        let signer = key(self.side(who).seed);
        let body = Close {
            lane: job.sample.lane(),
            by: signer.peer(),
            k,
            amount,
            reason: CloseReason::Completed,
            finish: FinishReason::Stop,
            prompt_tokens: 1,
            completion_tokens: job.chain.tokens(),
            result: job.chain.head(),
            at: UnixMillis::new(5_000),
        };
        Record::Close(sign(&signer, body))
    }

    /// One job: as far as it comes, and what each side does when it breaks.
    fn live(&mut self, number: u64) {
        let who = if self.rng.chance(50) { Renter } else { Provider };
        let failures = [Failure::PowerCut, Failure::PowerCut, Failure::Full, Failure::Write, Failure::Sync];
        let failure = failures[usize::try_from(self.rng.below(5)).unwrap()];
        let after = self.rng.below(90);
        self.side(who).disk.fail(after, failure);
        let talks = if self.rng.chance(50) { 40 } else { 3 };
        let mut job = Job::new(number, talks);
        if let Err(broken) = self.converse(&mut job) {
            let dead = match broken {
                Broken::Died(who) => Some(who),
                Broken::Parted => None,
            };
            if dead != Some(Provider)
                && let Err(Broken::Died(who)) = self.work_alone(&mut job)
            {
                self.restart(who);
            }
            if let Some(who) = dead {
                self.restart(who);
            }
        }
        self.jobs.push(job);
        while let Err(who) = self.sync() {
            self.restart(who);
        }
    }

    fn restart(&mut self, who: Who) {
        self.losses.deaths[usize::from(who == Provider)] += 1;
        let side = &mut self.sides[usize::from(who == Provider)];
        side.restart(&mut self.rng);
        // I8: what it had sent, it still has.
        for record in &side.sent {
            let lane = lane_of(record);
            assert!(side.objects(&lane).unwrap().contains(record), "{who:?} forgot what it sent: {record:?}");
        }
    }

    /// Each shows the other what it lacks, and closes what is open; again and again until it is said.
    fn sync(&mut self) -> Result<(), Who> {
        for at in 0..self.jobs.len() {
            let lane = self.jobs[at].sample.lane();
            for (from, to) in [(Renter, Provider), (Provider, Renter)] {
                let held = self.side(to).objects(&lane).map_err(|()| to)?;
                let shown = self.side(from).objects(&lane).map_err(|()| from)?;
                for record in shown.into_iter().filter(|record| !held.contains(record)) {
                    self.take(to, &lane, record).map_err(|_| to)?;
                }
            }
            for who in [Renter, Provider] {
                let held = self.side(who).objects(&lane).map_err(|()| who)?;
                let accepted = held.iter().any(|it| matches!(it, Record::Accept(_)));
                let me = key(self.side(who).seed).peer();
                let closed = held.iter().any(|it| matches!(it, Record::Close(close) if close.body.by == me));
                if accepted && !closed {
                    let close = self.own_close(who, at, &held);
                    self.keep(who, std::slice::from_ref(&close)).map_err(|_| who)?;
                    let other = if who == Renter { Provider } else { Renter };
                    self.keep(other, &[close]).map_err(|_| other)?;
                }
            }
        }
        Ok(())
    }

    /// The close of a lane that was left open: the last voucher kept is final.
    fn own_close(&mut self, who: Who, at: usize, held: &[Record]) -> Record {
        let last = held.iter().rev().find_map(|record| match record {
            Record::Voucher(voucher) => Some((voucher.body.k, voucher.body.amount)),
            _ => None,
        });
        let (k, amount) = last.unwrap_or((0, NanoCredit::ZERO));
        let signer = key(self.side(who).seed);
        let Record::Close(close) = self.close_of(who, &Job::new(self.jobs[at].sample.number, 0)) else {
            unreachable!("a close is a close")
        };
        Record::Close(sign(&signer, Close { k, amount, ..close.body }))
    }

    /// Takes one object in by its own law.
    fn take(&mut self, who: Who, lane: &LaneId, record: Record) -> Result<(), Broken> {
        let (Provider, Record::Voucher(voucher)) = (who, &record) else { return self.keep(who, &[record]) };
        let held = self.side(Provider).objects(lane).map_err(|()| Broken::Died(Provider))?;
        let (mut contract, mut last, mut meter) = (None, None, None);
        for record in held {
            match record {
                Record::Contract(it) => contract = Some(it.verify().unwrap()),
                Record::Voucher(it) => last = Some(it.verify().unwrap()),
                Record::Meter(it) => meter = Some(it.verify().unwrap()),
                _ => {}
            }
        }
        let mut resumed = ProviderLane::resumed(&contract.unwrap(), last.as_ref(), meter.as_ref());
        let receipt = resumed.accept(&voucher.clone().verify().unwrap()).unwrap();
        let receipt = Record::Receipt(sign(&key(1), receipt));
        self.keep(Provider, &[record, receipt.clone()])?;
        self.keep(Renter, &[receipt]).map_err(|_| Broken::Died(Provider))
    }

    /// Both ledgers are sound and say the same, and nobody lost over the bound.
    fn audit(&mut self) {
        for side in &self.sides {
            // What is still to fail would only fail the audit.
            side.disk.fail(u64::MAX / 2, Failure::PowerCut);
            side.ledger().check().unwrap();
        }
        let balance =
            |side: &Side, peer: u8| side.ledger().standing(key(peer).peer(), wall_now()).unwrap().balance;
        assert_eq!(balance(&self.sides[0], 1), -balance(&self.sides[1], 2));
        for job in &self.jobs {
            let lane = job.sample.lane();
            let [renter, provider] = [0, 1].map(|at| self.sides[at].objects(&lane).unwrap());
            let vouchers = |held: &[Record]| held.iter().filter(is_voucher).cloned().collect::<Vec<_>>();
            assert_eq!(vouchers(&renter), vouchers(&provider));
            let (mut paid, mut productive, mut tokens) = (0, 0, 0);
            for (voucher, meter) in renter.iter().filter(is_voucher).map(|it| (it, meter_of(it, &renter))) {
                let Record::Voucher(voucher) = voucher else { continue };
                paid = voucher.body.usage.total().get();
                assert!(meter.tokens <= job.delivered, "{} of {}", meter.tokens, job.delivered);
                if meter.tokens > tokens {
                    (productive, tokens) = (paid, meter.tokens);
                }
            }
            // I4: besides one operation in flight.
            let unpaid = job.worked.saturating_sub(paid + job.operation);
            self.losses.provider = self.losses.provider.max(unpaid);
            self.losses.renter = self.losses.renter.max(paid - productive);
        }
    }
}

fn lane_of(record: &Record) -> LaneId {
    match record {
        Record::Quote(it) => selling(it.body.serial).lane(),
        of_a_lane => of_a_lane.statement().and_then(|statement| statement.lane()).unwrap(),
    }
}

fn is_voucher(record: &&Record) -> bool {
    record.kind() == Kind::Voucher
}

fn meter_of<'a>(voucher: &Record, held: &'a [Record]) -> &'a Meter {
    let Record::Voucher(voucher) = voucher else { unreachable!("only vouchers pay meters") };
    let mut meters = held.iter().filter_map(|it| match it {
        Record::Meter(meter) if meter.body.k == voucher.body.k => Some(&meter.body),
        _ => None,
    });
    meters.next_back().unwrap()
}

#[test]
fn whatever_the_two_disks_lose_nobody_loses_over_the_bound() {
    let terms = terms();
    let (mut most, mut all) = (Losses::default(), [0; 2]);
    for seed in 0..PAIRS {
        let home = tempfile::tempdir().unwrap();
        let mut pair = Pair::new(seed, home.path());
        for number in 0..LANES {
            pair.live(number);
        }
        pair.audit();
        let lost = pair.losses;
        let bound = terms.window.get() + terms.quantum.get();
        assert!(lost.provider <= bound, "seed {seed}: the provider worked {} ms for nothing", lost.provider);
        assert!(lost.renter <= terms.quantum.get(), "seed {seed}: {} ms without output", lost.renter);
        most.provider = most.provider.max(lost.provider);
        most.renter = most.renter.max(lost.renter);
        all = [all[0] + lost.deaths[0], all[1] + lost.deaths[1]];
    }
    // The lives were not idle: both died often, and both came to lose something.
    assert!(all.iter().all(|deaths| u64::from(*deaths) > PAIRS), "{all:?}");
    assert!(most.provider > terms.quantum.get() && most.renter == terms.quantum.get(), "{most:?}");
}
