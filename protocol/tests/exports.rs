//! Export files, from outside: what is written is read back whole, and nothing that was changed is.
//!
//! Owns: the properties of the form (any byte, any cut, any order) and of the audit (each law, broken by
//! a statement that is truly signed). Never: reads a file. Run by `make test`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking")]

#[path = "../../tests/fuzz/bodies/exports.rs"]
mod body;
#[path = "common/books.rs"]
mod books;

use std::sync::LazyLock;

use books::{Job, entries, file, frames, header, jobs_with_2, key, pair, proof, ranked, state, steps, terms};
use potluck_protocol::balance::{Countersign, PairState};
use potluck_protocol::export::audit::{Broken, Examiner, PairReport, Report};
use potluck_protocol::export::{Entry, ExportError, Item, MAGIC, Reader, Writer};
use potluck_protocol::sign::SigningKey;
use potluck_protocol::statement::Statement;
use potluck_protocol::unit::NanoCredit;
use proptest::prelude::*;

/// The owner's file, made once: signing it takes longer than reading it.
static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| file(entries()));

fn examine(bytes: &[u8], piece: usize) -> Result<(Report, Vec<PairReport>), ExportError> {
    let (mut examiner, mut pairs) = (Examiner::default(), Vec::new());
    for piece in bytes.chunks(piece.max(1)) {
        examiner.feed(piece, &mut |pair| pairs.push(pair))?;
    }
    Ok((examiner.finish()?, pairs))
}

fn with_2(pairs: &[PairReport]) -> &PairReport {
    pairs.iter().find(|pair| pair.peer == key(2).peer()).unwrap()
}

/// The report of the owner and 2 when its statements are these.
fn audited(statements: Vec<Statement>) -> PairReport {
    let (_, pairs) = examine(&file(ranked(statements)), 4_096).unwrap();
    with_2(&pairs).clone()
}

fn broken(report: &PairReport) -> Option<Broken> {
    assert_eq!(report.faults.count, u64::from(report.faults.first.is_some()));
    report.faults.first.map(|fault| fault.broken)
}

fn all_with_2() -> Vec<Statement> {
    steps().into_iter().chain(jobs_with_2().iter().flat_map(Job::statements)).collect()
}

#[test]
fn what_is_written_is_read_back_with_its_balances() {
    let bytes = file(entries());
    let (report, pairs) = examine(&bytes, 100).unwrap();
    assert_eq!((report.header.clone(), report.proofs, report.pairs), (header(), 1, 2));
    assert_eq!(report.statements + 1, u64::try_from(entries().len()).unwrap());
    assert_eq!(report.faults.count, 0, "{:?}", report.faults.first);
    let second = with_2(&pairs);
    // The agreed balance, and the lane since its floor, which the owner pays.
    let since = jobs_with_2().iter().find(|job| job.created > 5_000_000).unwrap().amount();
    let agreed = pair().owed_to(key(1).peer(), state().body().balance);
    assert_eq!(second.balance, agreed - i128::from(since.get()));
    assert_eq!((second.epoch, second.step, second.agreed, second.agreed_unproven), (1, 1, 1, 0));
    assert_eq!((second.paid_by_owner, second.paid_to_owner), (NanoCredit::new(50_000), NanoCredit::ZERO));
    assert_eq!((second.lanes, second.open, second.thinned, second.unproven), (3, 0, 0, 0));
    assert!(!second.frozen);
    let third = pairs.iter().find(|pair| pair.peer == key(3).peer()).unwrap();
    assert!(third.frozen, "3 is convicted by the file");
    assert_eq!(report.balance, second.balance + third.balance);
}

#[test]
fn an_empty_ledger_has_a_file_too() {
    let (report, pairs) = examine(&file(Vec::new()), 7).unwrap();
    assert_eq!((report.statements, report.balance, pairs.len()), (0, 0, 0));
}

#[test]
fn only_the_owner_seals_and_only_in_order() {
    let (writer, _) = Writer::begin(&header()).unwrap();
    assert!(matches!(writer.seal(&key(2)), Err(ExportError::Seal(_))));
    let all = entries();
    for swapped in 1..all.len() {
        let (mut writer, _) = Writer::begin(&header()).unwrap();
        let mut turned = all.clone();
        turned.swap(swapped - 1, swapped);
        let mut written = turned.into_iter().map(|entry| writer.entry(entry));
        let refused = written.any(|written| written.is_err());
        assert!(refused, "entries {swapped} and the one before changed places unnoticed");
    }
}

#[test]
fn a_file_of_anything_else_is_named_so() {
    for bytes in [&b""[..], b"p", b"not an export at all", &[0; 64], &[0xff; 4_096]] {
        assert_eq!(examine(bytes, 16).unwrap_err(), ExportError::NotAnExport);
    }
    assert_eq!(examine(&MAGIC, 16).unwrap_err(), ExportError::CutOff { at: 8 });
    let mut later = header();
    later.version = 2;
    let (_, bytes) = Writer::begin(&later).unwrap();
    assert_eq!(examine(&bytes, 16).unwrap_err(), ExportError::Version { version: 2 });
}

#[test]
fn a_length_that_lies_holds_no_memory() {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(u32::MAX.to_le_bytes());
    assert_eq!(examine(&bytes, 16).unwrap_err(), ExportError::Length { at: 8, len: u32::MAX });
}

#[test]
fn a_file_of_others_or_of_another_peer_than_it_says_is_refused() {
    let mut narrow = header();
    narrow.peer = Some(key(3).peer());
    let (mut writer, mut bytes) = Writer::begin(&narrow).unwrap();
    for entry in ranked(all_with_2()) {
        bytes.extend(writer.entry(entry).unwrap());
    }
    bytes.extend(writer.seal(&key(1)).unwrap());
    assert!(matches!(examine(&bytes, 64), Err(ExportError::Foreign { entry: 1, .. })));
    let mut others = header();
    others.owner = key(9).peer();
    let (mut writer, mut bytes) = Writer::begin(&others).unwrap();
    bytes.extend(writer.entry(Entry::Statement(steps().remove(0))).unwrap());
    bytes.extend(writer.seal(&key(9)).unwrap());
    assert!(matches!(examine(&bytes, 64), Err(ExportError::Foreign { .. })));
}

#[test]
fn a_forged_statement_in_a_well_sealed_file_is_refused() {
    let mut all = all_with_2();
    for statement in &mut all {
        if let Statement::Voucher(it) = statement {
            it.body.amount = NanoCredit::new(1);
            break;
        }
    }
    let bytes = file(ranked(all));
    assert!(matches!(examine(&bytes, 64), Err(ExportError::Statement { .. })));
}

#[test]
fn what_compaction_leaves_out_is_counted_and_not_blamed() {
    let keep = |it: &Statement| match it {
        Statement::Meter(it) => it.body.lane.lane != 7,
        Statement::Voucher(it) => it.body.lane.lane != 7 || it.body.k == 3,
        Statement::Receipt(it) => it.body.lane.lane != 7 || it.body.k == 3,
        _ => true,
    };
    let report = audited(all_with_2().into_iter().filter(keep).collect());
    let whole = audited(all_with_2());
    assert_eq!((report.thinned, report.unproven, report.agreed_unproven), (1, 0, 0));
    assert_eq!((report.balance, broken(&report)), (whole.balance, None));
    // Without the folded lanes the agreed balance stands by its two signatures.
    let folded = |it: &Statement| it.lane().is_none_or(|lane| lane.lane == 9);
    let quote = |it: &Statement| matches!(it, Statement::Quote(it) if it.body.serial != 9);
    let kept = all_with_2().into_iter().filter(|it| folded(it) && !quote(it)).collect();
    let report = audited(kept);
    assert_eq!((report.balance, report.agreed_unproven), (whole.balance, 1));
    assert_eq!((report.lanes, broken(&report)), (1, None));
}

/// The owner's file with one voucher, meter, … of its first job changed and truly signed again, and
/// nothing after it.
fn changed(change: impl Fn(&Job) -> Statement) -> PairReport {
    let job = jobs_with_2().into_iter().find(|job| job.lane == 7).unwrap();
    let other = change(&job);
    let rank = |it: &Statement| Entry::Statement(it.clone()).rank();
    let before = job.statements().into_iter().filter(|it| rank(it) < rank(&other));
    audited(before.chain([other.clone()]).collect())
}

fn sign<T: potluck_protocol::sign::Signable>(key: &SigningKey, body: T) -> Statement
where
    Statement: From<potluck_protocol::sign::Signed<T>>,
{
    key.sign(body).unwrap().into_signed().into()
}

#[test]
fn each_law_of_a_lane_that_is_broken_is_found() {
    type Change = fn(&Job) -> Statement;
    let cases: [(Change, Broken); 8] = [
        (
            |job| {
                let mut voucher = job.voucher(2).body().clone();
                voucher.amount = NanoCredit::new(voucher.amount.get() + 1);
                sign(&key(1), voucher)
            },
            Broken::Price {
                price: Job::usage(2).amount(&terms()),
                got: NanoCredit::new(Job::usage(2).amount(&terms()).get() + 1),
            },
        ),
        (
            |job| {
                let mut voucher = job.voucher(2).body().clone();
                voucher.previous = job.contract().digest();
                sign(&key(1), voucher)
            },
            Broken::Link,
        ),
        (
            |job| {
                let mut voucher = job.voucher(2).body().clone();
                voucher.meter = job.meter(1).digest();
                sign(&key(1), voucher)
            },
            Broken::Meter,
        ),
        (
            |job| {
                let mut meter = job.meter(2).body().clone();
                meter.contract = job.quote().digest();
                sign(&key(2), meter)
            },
            Broken::OtherContract,
        ),
        (
            |job| {
                let mut meter = job.meter(2).body().clone();
                meter.tokens = 0;
                sign(&key(2), meter)
            },
            Broken::Backwards,
        ),
        (
            |job| {
                let mut receipt = job.receipt(2).body().clone();
                receipt.amount = NanoCredit::new(1);
                sign(&key(2), receipt)
            },
            Broken::Voucher,
        ),
        (
            |job| {
                let mut close = job.close().body().clone();
                close.amount = NanoCredit::new(1);
                sign(&key(2), close)
            },
            Broken::Voucher,
        ),
        (
            |job| {
                let mut abandon = job.abandon().body().clone();
                abandon.voucher = job.contract().digest();
                sign(&key(1), abandon)
            },
            Broken::Voucher,
        ),
    ];
    for (change, law) in cases {
        let report = changed(change);
        assert_eq!(broken(&report), Some(law));
        let fault = report.faults.first.unwrap();
        assert!(fault.to_string().starts_with(&format!("entry {}", fault.at.entry)), "{fault}");
    }
}

#[test]
fn past_the_contracts_limit_and_past_the_last_meter_is_found() {
    let job = jobs_with_2().into_iter().find(|job| job.lane == 7).unwrap();
    let mut meter = job.meter(3).body().clone();
    meter.k = 4;
    let mut all: Vec<_> =
        job.statements().into_iter().filter(|it| !matches!(it, Statement::Close(_))).collect();
    all.push(sign(&key(2), meter));
    assert_eq!(broken(&audited(all)), Some(Broken::AfterLast));
    let report = changed(|job| {
        let mut voucher = job.voucher(2).body().clone();
        voucher.usage.run = potluck_protocol::unit::GpuMillis::new(600_000);
        voucher.amount = voucher.usage.amount(&terms());
        let mut meter = job.meter(2).body().clone();
        meter.usage = voucher.usage;
        voucher.meter = key(2).sign(meter).unwrap().digest();
        sign(&key(1), voucher)
    });
    // The meter that it names is not the one in the file, which is found first.
    assert_eq!(broken(&report), Some(Broken::Meter));
    let mut contract = job.contract().body().clone();
    contract.max_total = NanoCredit::new(1);
    let rest = |it: &Statement| matches!(it, Statement::Voucher(it) if it.body.k == 3);
    let vouchers = job.statements().into_iter().filter(rest);
    let report = audited([sign(&key(1), contract)].into_iter().chain(vouchers).collect());
    assert_eq!(broken(&report), Some(Broken::OverLimit));
}

/// The file's agreed state changed and signed again by both, with the lanes that it takes in.
fn agreed(change: impl Fn(&mut PairState)) -> PairReport {
    let mut body = state().body().clone();
    change(&mut body);
    let state = key(1).sign(body).unwrap();
    let (pair, by, n) = (pair(), key(2).peer(), state.body().n);
    let sign_it = Countersign { pair, by, epoch: 0, n, state: state.digest() };
    let steps = vec![state.into_signed().into(), sign(&key(2), sign_it)];
    audited(steps.into_iter().chain(jobs_with_2().iter().flat_map(Job::statements)).collect())
}

#[test]
fn each_law_of_a_balance_that_is_broken_is_found() {
    let sum = state().body().balance;
    let report = agreed(|state| state.balance += 1);
    assert_eq!(broken(&report), Some(Broken::Sum { sum, got: sum + 1 }));
    // Other lanes than those in the file prove nothing either way: both have signed it.
    let report = agreed(|state| state.folded += 1);
    assert_eq!((broken(&report), report.agreed_unproven), (None, 1));
    let report = agreed(|state| state.settle = None);
    assert!(matches!(broken(&report), Some(Broken::Sum { .. })));
    // A second balance that rests on the beginning, as the first does.
    let mut second = state().body().clone();
    second.n = 2;
    let second = key(1).sign(second).unwrap();
    let answer = Countersign { pair: pair(), by: key(2).peer(), epoch: 0, n: 2, state: second.digest() };
    let forked = [second.clone().into_signed().into(), sign(&key(2), answer.clone())];
    let report = audited(steps().into_iter().take(2).chain(forked).collect());
    assert_eq!(broken(&report), Some(Broken::Previous));
    let report = audited(vec![sign(&key(2), answer)]);
    assert_eq!(broken(&report), Some(Broken::NoState));
}

#[test]
fn a_step_that_one_side_spent_twice_is_found() {
    let mut all: Vec<_> = steps().into_iter().take(2).collect();
    let mut other = state().body().clone();
    other.by = key(2).peer();
    all.push(sign(&key(2), other));
    assert_eq!(broken(&audited(all)), Some(Broken::SignedTwice));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever byte is changed, the file is not whole.
    #[test]
    fn no_changed_byte_passes(at: prop::sample::Index, flip in 1..=255u8, piece in 1..5_000usize) {
        let mut bytes = WHOLE.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(examine(&bytes, piece).is_err());
    }

    /// Wherever it is cut, or whatever follows it, the file is not whole.
    #[test]
    fn no_cut_and_no_addition_passes(at: prop::sample::Index, more in proptest::collection::vec(any::<u8>(), 1..40)) {
        let bytes = WHOLE.clone();
        prop_assert!(examine(&bytes[..at.index(bytes.len())], 999).is_err());
        prop_assert!(examine(&[bytes.as_slice(), &more].concat(), 999).is_err());
    }

    /// No frame can be taken out, doubled or moved.
    #[test]
    fn no_frame_moves(one: prop::sample::Index, other: prop::sample::Index, how in 0..3u8) {
        let bytes = WHOLE.clone();
        let at = frames(&bytes);
        let mut all: Vec<&[u8]> = at.windows(2).map(|it| &bytes[it[0]..it[1]]).collect();
        let (one, other) = (one.index(all.len()), other.index(all.len()));
        match how {
            0 => drop(all.remove(one)),
            1 => all.insert(other, all[one]),
            _ => all.swap(one, other),
        }
        let moved = [MAGIC.as_slice(), &all.concat()].concat();
        prop_assume!(moved != bytes);
        prop_assert!(examine(&moved, 999).is_err());
    }

    /// How it is cut into pieces does not matter, and no more than a frame and a piece is held.
    #[test]
    fn pieces_do_not_matter(piece in 1..400usize) {
        let bytes = WHOLE.clone();
        prop_assert_eq!(examine(&bytes, piece), examine(&bytes, bytes.len()));
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000), true_begin: bool, piece in 1..99usize) {
        let bytes = if true_begin { [MAGIC.as_slice(), &bytes].concat() } else { bytes };
        prop_assert!(examine(&bytes, piece).is_err());
    }
}

#[test]
fn a_reader_gives_every_entry_in_its_order_and_place() {
    let bytes = WHOLE.clone();
    let (mut reader, mut seen, mut begins) = (Reader::default(), Vec::new(), Vec::new());
    reader.feed(&bytes);
    while let Some(item) = reader.next().unwrap() {
        if let Item::Entry(at, entry) = item {
            seen.push(entry);
            begins.push(usize::try_from(at.byte).unwrap());
        }
    }
    assert_eq!(seen, entries());
    let frames = frames(&bytes);
    assert_eq!(begins, frames[1..frames.len() - 2]);
    assert!(matches!(&seen[0], Entry::Proof(it) if **it == proof()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The fuzz target's body on the stable compiler.
    #[test]
    fn the_fuzzers_laws_hold_for_a_moment(kind in 0..3u8, bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        body::examine(&[&[kind], bytes.as_slice()].concat());
    }
}
