//! True statements of a few peers, as their ledgers would hold them, and the export file that they make.
//!
//! Owns: the story of three peers with fixed keys: every call gives the same bytes. Never: signs what the
//! laws forbid, unless asked to change a body. Called by the tests of export files, here, in the golden
//! vectors and in the fuzz target.

#![allow(dead_code, reason = "each test takes what it needs")]

use potluck_protocol::balance::{
    Cancel, CancelReason, Countersign, Fold, Folded, PairId, PairState, Raise, Settle,
};
use potluck_protocol::export::{EXPORT_VERSION, Entry, Header, Writer};
use potluck_protocol::id::{ContentHash, Digest, LaneId};
use potluck_protocol::job::FinishReason;
use potluck_protocol::offer::{Hardware, Protection, Quote, Terms};
use potluck_protocol::proof::Equivocation;
use potluck_protocol::settle::{
    Abandon, Accept, Close, CloseReason, Contract, Meter, Receipt, Usage, Voucher,
};
use potluck_protocol::sign::{Signable, SigningKey, Verified};
use potluck_protocol::statement::Statement;
use potluck_protocol::unit::{GpuMillis, NanoCredit, Rate, UnixMillis};

/// When the first contract of the story was created.
pub(crate) const BEGIN: u64 = 1_700_000_000_000;

/// The key of one of the three; 1 is the owner of the file.
pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed([seed; 32])
}

fn signed<T: Signable>(key: &SigningKey, body: T) -> Verified<T> {
    key.sign(body).expect("its own key signs it")
}

pub(crate) fn terms() -> Terms {
    Terms {
        run: Rate::new(38_888),
        load: Rate::new(13_888),
        guest: Rate::new(5_555),
        quantum: GpuMillis::new(1_000),
        window: GpuMillis::new(2_000),
    }
}

/// One job of `renter` at `provider`, paid in `meters` steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) renter: u8,
    pub(crate) provider: u8,
    pub(crate) lane: u64,
    /// Milliseconds after [`BEGIN`].
    pub(crate) created: u64,
    pub(crate) meters: u32,
    pub(crate) closed: bool,
}

impl Job {
    pub(crate) fn id(&self) -> LaneId {
        let (renter, provider) = (key(self.renter).peer(), key(self.provider).peer());
        LaneId { renter, provider, epoch: 0, lane: self.lane }
    }

    pub(crate) fn quote(&self) -> Verified<Quote> {
        let LaneId { renter, provider, .. } = self.id();
        let quote = Quote {
            provider,
            renter,
            serial: self.lane,
            model: ContentHash::of(b"a model"),
            guest: None,
            terms: terms(),
            max_ms: GpuMillis::new(3_600_000),
            ahead: 0,
            warm: true,
            hardware: Hardware { class: "cpu".into(), name: "CPU".into(), memory_mib: 1_024 },
            protection: Protection::Full,
            expires: UnixMillis::new(BEGIN + self.created + 60_000),
        };
        signed(&key(self.provider), quote)
    }

    pub(crate) fn contract(&self) -> Verified<Contract> {
        let contract = Contract {
            lane: self.id(),
            job: Digest::from_bytes([4; 32]),
            quote: self.quote().digest(),
            terms: terms(),
            max_total: NanoCredit::new(1_000_000_000),
            max_ms: GpuMillis::new(600_000),
            created: UnixMillis::new(BEGIN + self.created),
            start_by: UnixMillis::new(BEGIN + self.created + 30_000),
        };
        signed(&key(self.renter), contract)
    }

    pub(crate) fn usage(k: u32) -> Usage {
        let run = GpuMillis::new(u64::from(k) * 997);
        Usage { load: GpuMillis::new(250), run, guest: GpuMillis::ZERO }
    }

    pub(crate) fn meter(&self, k: u32) -> Verified<Meter> {
        let meter = Meter {
            lane: self.id(),
            contract: self.contract().digest(),
            k,
            usage: Self::usage(k),
            tokens: k * 3,
            commitment: Digest::from_bytes([u8::try_from(k % 251).unwrap_or(0); 32]),
            last: k == self.meters,
        };
        signed(&key(self.provider), meter)
    }

    pub(crate) fn voucher(&self, k: u32) -> Verified<Voucher> {
        let previous = if k == 1 { self.contract().digest() } else { self.voucher(k - 1).digest() };
        let usage = Self::usage(k);
        let amount = usage.amount(&terms());
        let voucher = Voucher { lane: self.id(), k, usage, amount, meter: self.meter(k).digest(), previous };
        signed(&key(self.renter), voucher)
    }

    pub(crate) fn receipt(&self, k: u32) -> Verified<Receipt> {
        let voucher = self.voucher(k);
        let amount = voucher.body().amount;
        signed(&key(self.provider), Receipt { lane: self.id(), k, amount, voucher: voucher.digest() })
    }

    pub(crate) fn amount(&self) -> NanoCredit {
        if self.meters == 0 { NanoCredit::ZERO } else { Self::usage(self.meters).amount(&terms()) }
    }

    pub(crate) fn close(&self) -> Verified<Close> {
        let close = Close {
            lane: self.id(),
            by: key(self.provider).peer(),
            k: self.meters,
            amount: self.amount(),
            reason: CloseReason::Completed,
            finish: FinishReason::Stop,
            prompt_tokens: 37,
            completion_tokens: self.meters * 3,
            result: Digest::from_bytes([5; 32]),
            at: UnixMillis::new(BEGIN + self.created + 10_000),
        };
        signed(&key(self.provider), close)
    }

    pub(crate) fn abandon(&self) -> Verified<Abandon> {
        let voucher = match self.meters {
            0 => self.contract().digest(),
            k => self.voucher(k).digest(),
        };
        let body = Abandon {
            lane: self.id(),
            by: key(self.renter).peer(),
            k: self.meters,
            amount: self.amount(),
            voucher,
        };
        signed(&key(self.renter), body)
    }

    /// All of its statements, as they come to be.
    pub(crate) fn statements(&self) -> Vec<Statement> {
        let accept = Accept {
            lane: self.id(),
            contract: self.contract().digest(),
            at: UnixMillis::new(BEGIN + self.created + 20),
        };
        let mut all: Vec<Statement> = vec![
            self.quote().into_signed().into(),
            self.contract().into_signed().into(),
            signed(&key(self.provider), accept).into_signed().into(),
        ];
        for k in 1..=self.meters {
            all.push(self.meter(k).into_signed().into());
            all.push(self.voucher(k).into_signed().into());
            all.push(self.receipt(k).into_signed().into());
        }
        all.push(if self.closed {
            self.close().into_signed().into()
        } else {
            self.abandon().into_signed().into()
        });
        all
    }

    pub(crate) fn folded(&self) -> Folded {
        let voucher = self.voucher(self.meters).digest();
        Folded { lane: self.id(), k: self.meters, amount: self.amount(), voucher }
    }
}

/// The owner's jobs: two at 2, one of 3's with the owner, in the order of a file.
pub(crate) fn jobs() -> Vec<Job> {
    let mut jobs = vec![
        Job { renter: 1, provider: 2, lane: 7, created: 0, meters: 3, closed: true },
        Job { renter: 1, provider: 2, lane: 9, created: 9_000_000, meters: 2, closed: false },
        Job { renter: 2, provider: 1, lane: 8, created: 1_000, meters: 1, closed: true },
        Job { renter: 3, provider: 1, lane: 5, created: 2_000, meters: 2, closed: true },
    ];
    jobs.sort_by_key(|job| (PairId::of(job.id().renter, job.id().provider), job.id()));
    jobs
}

/// The jobs of the owner and 2.
pub(crate) fn jobs_with_2() -> Vec<Job> {
    jobs().into_iter().filter(|job| job.renter == 2 || job.provider == 2).collect()
}

pub(crate) fn pair() -> PairId {
    PairId::of(key(1).peer(), key(2).peer()).expect("two peers")
}

/// What 1 and 2 agree on: the two jobs before the floor, and a payment by 1.
pub(crate) fn state() -> Verified<PairState> {
    let mut fold = Fold::new(pair(), UnixMillis::new(BEGIN + 5_000_000));
    for job in jobs_with_2().iter().filter(|job| job.created < 5_000_000) {
        fold.add(&job.folded()).expect("in order");
    }
    let amount = NanoCredit::new(50_000);
    let settle = Settle { payer: key(1).peer(), amount, reference: "invoice 2026-07 · 蓝".into() };
    let state = PairState {
        pair: pair(),
        by: key(1).peer(),
        epoch: 0,
        n: 1,
        balance: fold.delta() - pair().debt_of(settle.payer, amount).expect("a party"),
        floor: fold.floor(),
        lanes: fold.lanes(),
        folded: fold.count(),
        settle: Some(settle),
        previous: pair().genesis(),
    };
    signed(&key(1), state)
}

/// The balance's steps, in a file's order.
pub(crate) fn steps() -> Vec<Statement> {
    let (pair, by, agreed) = (pair(), key(2).peer(), state());
    let sign = Countersign { pair, by, epoch: 0, n: 1, state: agreed.digest() };
    let mut next = agreed.body().clone();
    (next.n, next.settle, next.folded, next.previous) = (2, None, 0, agreed.digest());
    (next.lanes, next.balance) = (Fold::new(pair, next.floor).lanes(), agreed.body().balance + 1);
    let next = signed(&key(1), next);
    let cancel =
        Cancel { pair, by, epoch: 0, n: 2, proposal: next.digest(), reason: CancelReason::Disagrees };
    vec![
        agreed.into_signed().into(),
        signed(&key(2), sign).into_signed().into(),
        next.into_signed().into(),
        signed(&key(2), cancel).into_signed().into(),
        signed(&key(1), Raise { pair, by: key(1).peer(), epoch: 1 }).into_signed().into(),
    ]
}

/// That 3 signed two vouchers of one number.
pub(crate) fn proof() -> Equivocation {
    let job = Job { renter: 3, provider: 1, lane: 6, created: 3_000, meters: 1, closed: true };
    let mut less = job.voucher(1).body().clone();
    less.amount = NanoCredit::new(less.amount.get() - 1);
    let less = signed(&key(3), less).into_signed();
    Equivocation::of(job.voucher(1).into_signed().into(), less.into()).expect("two of one number").0
}

/// Statements as a file has them.
pub(crate) fn ranked(statements: Vec<Statement>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = statements.into_iter().map(Entry::Statement).collect();
    entries.sort_by_cached_key(Entry::rank);
    entries
}

/// All entries of the owner's file, in order.
pub(crate) fn entries() -> Vec<Entry> {
    let statements = steps().into_iter().chain(jobs().into_iter().flat_map(|job| job.statements()));
    let mut entries = vec![Entry::Proof(Box::new(proof()))];
    entries.extend(ranked(statements.collect()));
    entries
}

pub(crate) fn header() -> Header {
    let made = UnixMillis::new(BEGIN + 20_000_000);
    Header { version: EXPORT_VERSION, owner: key(1).peer(), made, peer: None }
}

/// The file of `entries`, sealed by the owner.
pub(crate) fn file(entries: Vec<Entry>) -> Vec<u8> {
    let (mut writer, mut bytes) = Writer::begin(&header()).expect("a header");
    for entry in entries {
        bytes.extend(writer.entry(entry).expect("in order"));
    }
    bytes.extend(writer.seal(&key(1)).expect("the owner's key"));
    bytes
}

/// Where each frame of `file` begins, the header's first; the file's length last.
pub(crate) fn frames(file: &[u8]) -> Vec<usize> {
    let mut at = potluck_protocol::export::MAGIC.len();
    let mut frames = vec![at];
    while let Some(length) = file.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        at += 12 + usize::try_from(u32::from_le_bytes(*length)).expect("small");
        frames.push(at);
    }
    frames
}
