//! Tests of the ledger as its callers see it. Owns: sample lanes of two keys. Never: leaves a file.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use potluck_protocol::credit::Standing;
use potluck_protocol::id::{ContentHash, Digest, LaneId};
use potluck_protocol::job::FinishReason;
use potluck_protocol::offer::{Hardware, Protection, Quote, Terms};
use potluck_protocol::settle::{Accept, Close, CloseReason, Contract, Meter, Receipt, Usage, Voucher};
use potluck_protocol::sign::{Signable, Signed, SigningKey};
use potluck_protocol::unit::{GpuMillis, NanoCredit, Rate, UnixMillis};
use proptest::prelude::*;

use super::disk::length;
use super::frame::{FIRST_OF_GROUP, HEADER_BYTES, parse};
use super::index::{Table, open_unlocked};
use super::journal::segment_name;
use super::record::Checked;
use super::slot::Slot;
use super::*;

mod compaction;
mod conversation;
mod crash;
mod index;
mod journal;
mod pairs;
mod power;
mod two_disks;

/// Not long after the sample lanes were opened.
const NOW: UnixMillis = UnixMillis::new(10_000);
const MODEL: ContentHash = ContentHash::from_bytes([3; 32]);

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed([seed; 32])
}

fn sign<T: Signable>(key: &SigningKey, body: T) -> Signed<T> {
    key.sign(body).unwrap().into_signed()
}

fn terms() -> Terms {
    Terms {
        run: Rate::new(11_111),
        load: Rate::ZERO,
        guest: Rate::ZERO,
        quantum: GpuMillis::new(1_000),
        window: GpuMillis::new(2_000),
    }
}

/// A lane between the keys of two seeds.
#[derive(Clone, Copy)]
struct Sample {
    renter: u8,
    provider: u8,
    number: u64,
}

impl Sample {
    fn lane(&self) -> LaneId {
        LaneId {
            renter: key(self.renter).peer(),
            provider: key(self.provider).peer(),
            epoch: 0,
            lane: self.number,
        }
    }

    fn quote(&self) -> Signed<Quote> {
        let body = Quote {
            provider: self.lane().provider,
            renter: self.lane().renter,
            serial: self.number,
            model: MODEL,
            guest: None,
            terms: terms(),
            max_ms: GpuMillis::new(60_000),
            ahead: 0,
            warm: true,
            hardware: Hardware { class: "cpu".into(), name: "CPU".into(), memory_mib: 1 },
            protection: Protection::None,
            expires: UnixMillis::new(9),
        };
        sign(&key(self.provider), body)
    }

    fn contract(&self) -> Signed<Contract> {
        let body = Contract {
            lane: self.lane(),
            job: Digest::from_bytes([4; 32]),
            quote: self.quote().verify().unwrap().digest(),
            terms: terms(),
            max_total: NanoCredit::new(1_000_000),
            max_ms: GpuMillis::new(60_000),
            created: UnixMillis::new(1_000 + self.number),
            start_by: UnixMillis::new(2_000),
        };
        sign(&key(self.renter), body)
    }

    fn voucher(&self, k: u32, amount: u64) -> Record {
        let body = Voucher {
            lane: self.lane(),
            k,
            usage: Usage { run: GpuMillis::new(u64::from(k) * 1_000), ..Usage::default() },
            amount: NanoCredit::new(amount),
            meter: Digest::from_bytes([6; 32]),
            previous: Digest::from_bytes([7; 32]),
        };
        Record::Voucher(sign(&key(self.renter), body))
    }

    fn close(&self) -> Record {
        let body = Close {
            lane: self.lane(),
            by: self.lane().provider,
            k: 1,
            amount: NanoCredit::new(11),
            reason: CloseReason::Completed,
            finish: FinishReason::Stop,
            prompt_tokens: 12,
            completion_tokens: 34,
            result: Digest::from_bytes([9; 32]),
            at: UnixMillis::new(5_000),
        };
        Record::Close(sign(&key(self.provider), body))
    }

    /// Every kind of object, one voucher of 11.
    fn whole(&self) -> Vec<Record> {
        let (lane, zero) = (self.lane(), Digest::from_bytes([0; 32]));
        let provider = key(self.provider);
        let meter = Meter {
            lane,
            contract: zero,
            k: 1,
            usage: Usage::default(),
            tokens: 34,
            commitment: zero,
            last: true,
        };
        let receipt = Receipt { lane, k: 1, amount: NanoCredit::new(11), voucher: zero };
        vec![
            Record::Quote(self.quote()),
            Record::Contract(self.contract()),
            Record::Accept(sign(&provider, Accept { lane, contract: zero, at: UnixMillis::ZERO })),
            Record::Meter(sign(&provider, meter)),
            self.voucher(1, 11),
            Record::Receipt(sign(&provider, receipt)),
            self.close(),
        ]
    }
}

/// As provider towards renter 2.
fn selling(number: u64) -> Sample {
    Sample { renter: 2, provider: 1, number }
}

/// As renter towards provider 3.
fn buying(number: u64) -> Sample {
    Sample { renter: 1, provider: 3, number }
}

fn open(dir: &Path) -> (Ledger, OpenReport) {
    Ledger::open(dir, key(1).peer()).unwrap()
}

/// What most tests ask of a report: records, rebuilt, bytes cut.
fn brief(report: OpenReport) -> (u64, bool, u64) {
    (report.records, report.rebuilt_index, report.cut_bytes)
}

/// Groups that the first segment in `dir` was written in: one sync each.
fn groups(dir: &Path) -> usize {
    let bytes = fs::read(dir.join(segment_name(1))).unwrap();
    let (mut at, mut groups) = (HEADER_BYTES, 0);
    while let Some(frame) = parse(&bytes, at) {
        groups += usize::from(frame.kind & FIRST_OF_GROUP != 0);
        at += frame.bytes.len();
    }
    groups
}

type Answers = (Totals, Vec<PairBalance>, Vec<LaneSummary>, Standing, Standing);

fn answers(ledger: &Ledger) -> Answers {
    (
        ledger.totals().unwrap(),
        ledger.pairs().unwrap(),
        ledger.lanes(&Filter::default()).unwrap(),
        ledger.standing(key(2).peer(), NOW).unwrap(),
        ledger.standing(key(3).peer(), NOW).unwrap(),
    )
}

async fn filled(dir: &Path) -> Answers {
    let (ledger, _) = open(dir);
    ledger.append(selling(1).whole()).await.unwrap();
    ledger.append(vec![Record::Contract(selling(2).contract()), selling(2).voucher(1, 100)]).await.unwrap();
    ledger.append(buying(3).whole()).await.unwrap();
    answers(&ledger)
}

#[tokio::test]
async fn it_adds_up_and_a_reopened_ledger_answers_the_same() {
    let home = tempfile::tempdir().unwrap();
    let before = filled(home.path()).await;
    assert_eq!(before.0, Totals { owed_to_us: 111, we_owe: 11, balance: 100 });
    assert_eq!(
        before.3,
        Standing { balance: 111, open_caps: NanoCredit::new(1_000_000 - 100), ..Standing::default() }
    );
    assert_eq!(before.4, Standing { balance: -11, ..Standing::default() });
    let (ledger, report) = open(home.path());
    assert_eq!(brief(report), (16, false, 0));
    assert_eq!(answers(&ledger), before);
    assert!(ledger.has_lane(&selling(2).lane()).unwrap());
    assert!(!ledger.has_lane(&selling(9).lane()).unwrap());
}

#[tokio::test]
async fn a_lane_tells_its_whole_story() {
    let home = tempfile::tempdir().unwrap();
    filled(home.path()).await;
    let (ledger, _) = open(home.path());
    let filter = Filter { peer: Some(key(2).peer()), ..Filter::default() };
    let lanes = ledger.lanes(&filter).unwrap();
    assert_eq!(lanes.iter().map(|it| it.lane.lane).collect::<Vec<_>>(), [2, 1], "newest first");
    let lane = &lanes[1];
    assert_eq!((lane.role, lane.peer, lane.model), (LaneRole::Provider, key(2).peer(), Some(MODEL)));
    assert_eq!((lane.meters, lane.vouchers, lane.receipts), (1, 1, 1));
    assert_eq!((lane.run_ms, lane.amount, lane.prompt_tokens), (1_000, NanoCredit::new(11), 12));
    assert_eq!((lane.completion_tokens, lane.reason), (34, Some(CloseReason::Completed)));
    assert!(lane.receipt.is_some() && lane.contract.is_some() && lane.voucher.is_some());
    assert_eq!((lanes[0].reason, lanes[0].closed), (None, None));
    let newest = Filter { limit: Some(1), ..Filter::default() };
    assert_eq!(ledger.lanes(&newest).unwrap()[0].lane, buying(3).lane());
    let later = Filter { since: Some(UnixMillis::new(1_002)), ..Filter::default() };
    assert_eq!(ledger.lanes(&later).unwrap().len(), 2);
}

#[tokio::test]
async fn a_lost_or_broken_index_is_built_anew() {
    let home = tempfile::tempdir().unwrap();
    let before = filled(home.path()).await;
    let path = home.path().join("index");
    let rebuilt = |what: &str| {
        let (ledger, report) = open(home.path());
        assert!(report.rebuilt_index, "{what}");
        assert_eq!(answers(&ledger), before, "{what}");
    };
    fs::remove_dir_all(&path).unwrap();
    rebuilt("deleted");
    fs::write(path.join("db"), vec![0x5a; 100_000]).unwrap();
    rebuilt("overwritten data");
    // Whatever table loses a key, the others tell.
    for table in [
        Table::Slots,
        Table::Lanes,
        Table::Times,
        Table::Open,
        Table::Current,
        Table::Accounts,
        Table::Quotes,
    ] {
        let db = open_unlocked(&sled::Config::new().path(&path)).unwrap();
        let tree = db.open_tree(super::index::TREE).unwrap();
        let (lost, _) = tree.scan_prefix([table as u8]).next().unwrap().unwrap();
        tree.remove(lost).unwrap();
        drop((tree, db));
        rebuilt(&format!("{table:?}"));
    }
}

#[tokio::test]
async fn a_ledger_that_does_not_open_is_left_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    filled(home.path()).await;
    let other = Ledger::open(home.path(), key(2).peer()).unwrap_err();
    assert!(matches!(other, LedgerError::OtherOwner { .. }), "{other}");
    let path = home.path().join(segment_name(1));
    let whole = fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    bytes[300] ^= 1;
    fs::write(&path, &bytes).unwrap();
    // A good index spares the reading of what it reflects; a check reads all of it.
    let (ledger, _) = open(home.path());
    assert!(matches!(ledger.check(), Err(LedgerError::Damaged { offset: 128, .. })));
    drop(ledger);
    fs::remove_dir_all(home.path().join("index")).unwrap();
    let damaged = Ledger::open(home.path(), key(1).peer()).unwrap_err();
    assert!(matches!(damaged, LedgerError::Damaged { .. }), "{damaged}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
    fs::write(&path, whole).unwrap();
    assert_eq!(brief(open(home.path()).1), (16, true, 0));
}

#[tokio::test]
async fn a_forged_object_in_a_whole_chain_is_found_by_a_check() {
    let home = tempfile::tempdir().unwrap();
    let me = key(1).peer();
    let mut forged = selling(1).contract();
    forged.body.max_total = NanoCredit::new(1);
    let payload = potluck_protocol::wire::encode(&forged).unwrap();
    let found = Found::survey(Arc::new(Folder::new(home.path())), me).unwrap();
    let end = found.scan(None, u64::MAX, &mut |_| Ok(())).unwrap();
    found
        .into_journal(end, UnixMillis::ZERO)
        .unwrap()
        .append([(2, payload.as_slice())], UnixMillis::ZERO)
        .unwrap();
    let (ledger, report) = open(home.path());
    assert_eq!(report.records, 1);
    assert!(matches!(ledger.check(), Err(LedgerError::Forged { number: 1, .. })));
}

#[tokio::test]
async fn a_good_index_spares_reading_the_journal() {
    let home = tempfile::tempdir().unwrap();
    filled(home.path()).await;
    let (ledger, sealed) = open(home.path());
    let segment = length(fs::read(home.path().join(segment_name(1))).unwrap().len());
    let used = length(HEADER_BYTES) + segment - sealed.read_bytes - length(HEADER_BYTES);
    assert!(used > 3_000, "{used} bytes before the end were not read");
    assert_eq!(ledger.check().unwrap(), Checkup { records: 16, objects: 16, dropped: 0 });
    drop(ledger);
    // Without its seal the index is counted, and believed all the same.
    fs::remove_file(home.path().join("index.seal")).unwrap();
    assert_eq!(open(home.path()).1, sealed);
    fs::remove_dir_all(home.path().join("index")).unwrap();
    let (_, rebuilt) = open(home.path());
    assert!(rebuilt.rebuilt_index && rebuilt.read_bytes > sealed.read_bytes);
}

#[tokio::test]
async fn an_orderly_end_seals_the_index_and_a_changed_byte_breaks_the_seal() {
    let home = tempfile::tempdir().unwrap();
    filled(home.path()).await;
    let index = home.path().join("index");
    assert!(seal::take(&index));
    assert!(!seal::take(&index), "a seal holds once");
    drop(open(home.path()));
    let mut bytes = fs::read(index.join("db")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(index.join("db"), bytes).unwrap();
    assert!(!seal::take(&index));
}

#[tokio::test]
async fn the_objects_of_a_lane_can_be_read_again() {
    let home = tempfile::tempdir().unwrap();
    filled(home.path()).await;
    let (ledger, _) = open(home.path());
    assert_eq!(ledger.objects(&buying(3).lane()).unwrap(), buying(3).whole());
    assert_eq!(ledger.objects(&buying(9).lane()).unwrap(), []);
    let mut all = Vec::new();
    ledger.each_object(|record| all.push(record)).unwrap();
    assert_eq!((all.len(), &all[..7]), (16, &selling(1).whole()[..]));
}

#[tokio::test]
async fn a_rebuild_tells_how_far_it_is() {
    let home = tempfile::tempdir().unwrap();
    filled(home.path()).await;
    fs::remove_dir_all(home.path().join("index")).unwrap();
    let mut seen = Vec::new();
    Ledger::open_watched(home.path(), key(1).peer(), &mut |progress| seen.push(progress)).unwrap();
    let last = seen.last().unwrap();
    assert!(last.total > 3_000 && last.done == last.total, "{seen:?}");
}

#[tokio::test]
async fn no_flipped_byte_in_the_index_changes_an_answer() {
    let home = tempfile::tempdir().unwrap();
    let before = filled(home.path()).await;
    let file = home.path().join("index/db");
    let whole = fs::read(&file).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for at in (0..used).step_by(used / 40 + 1) {
        let mut bytes = fs::read(&file).unwrap();
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 0x40;
        }
        fs::write(&file, bytes).unwrap();
        assert_eq!(answers(&open(home.path()).0), before, "byte {at}");
    }
}

#[tokio::test]
async fn an_index_ahead_of_or_behind_the_journal_is_set_right() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    ledger.append(vec![selling(1).voucher(1, 5)]).await.unwrap();
    drop(ledger);
    let (journal, copy) = (home.path().join(segment_name(1)), home.path().join("copy"));
    fs::copy(&journal, &copy).unwrap();
    let (ledger, _) = open(home.path());
    ledger.append(vec![selling(1).voucher(2, 9)]).await.unwrap();
    drop(ledger);
    let newer = fs::read(&journal).unwrap();
    fs::rename(&copy, &journal).unwrap();
    let (ledger, report) = open(home.path());
    assert_eq!((report.records, report.rebuilt_index), (1, true), "ahead");
    assert_eq!(ledger.totals().unwrap().owed_to_us, 5);
    drop(ledger);
    fs::write(&journal, newer).unwrap();
    let (ledger, report) = open(home.path());
    assert_eq!((report.records, report.rebuilt_index), (2, false), "behind");
    assert_eq!(ledger.totals().unwrap().owed_to_us, 9);
}

#[tokio::test]
async fn a_cut_tail_leaves_the_index_too() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    ledger.append(vec![selling(1).voucher(1, 5)]).await.unwrap();
    ledger.append(vec![selling(1).voucher(2, 9)]).await.unwrap();
    drop(ledger);
    let path = home.path().join(segment_name(1));
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (ledger, report) = open(home.path());
    assert_eq!((report.records, report.rebuilt_index), (1, true));
    assert!(report.cut_bytes > 100);
    assert_eq!(ledger.totals().unwrap().owed_to_us, 5);
    // The slot of the record that was cut is free again: nobody had been told it was kept.
    ledger.append(vec![selling(1).voucher(2, 10)]).await.unwrap();
}

#[test]
fn ten_threads_race_for_one_slot_and_one_wins() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    let race: Vec<_> = (0..10)
        .map(|amount| {
            let ledger = ledger.clone();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(ledger.append(vec![selling(1).voucher(1, amount)]))
            })
        })
        .collect();
    let outcomes: Vec<_> = race.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(outcomes.iter().filter(|it| it.is_ok()).count(), 1);
    for outcome in &outcomes {
        assert!(matches!(outcome, Ok(()) | Err(AppendError::SlotTaken { kind: Kind::Voucher, k: 1, .. })));
    }
    drop(ledger);
    assert_eq!(open(home.path()).1.records, 1);
}

#[tokio::test]
async fn a_slot_stays_taken_after_a_reopen_and_a_repeat_is_free() {
    let home = tempfile::tempdir().unwrap();
    filled(home.path()).await;
    let (ledger, report) = open(home.path());
    ledger.append(selling(1).whole()).await.unwrap();
    // All or none: the voucher before the conflict is not kept either.
    let batch = vec![selling(2).voucher(2, 300), selling(1).voucher(1, 12)];
    assert!(matches!(ledger.append(batch).await, Err(AppendError::SlotTaken { .. })));
    drop(ledger);
    let (ledger, again) = open(home.path());
    assert_eq!(again.records, report.records);
    assert_eq!(ledger.totals().unwrap().owed_to_us, 111);
}

#[tokio::test]
async fn forged_and_foreign_objects_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    let foreign = Sample { renter: 2, provider: 3, number: 1 };
    let refused = ledger.append(foreign.whole()).await;
    assert!(matches!(refused, Err(AppendError::Record(RecordError::NotOurs { .. }))));
    let mut forged = selling(1).contract();
    forged.body.max_total = NanoCredit::new(1);
    let refused = ledger.append(vec![Record::Contract(forged)]).await;
    assert!(matches!(refused, Err(AppendError::Record(RecordError::Signature(_)))));
    drop(ledger);
    assert_eq!(open(home.path()).1.records, 0);
}

#[tokio::test]
async fn what_was_verified_is_kept_without_a_second_look() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    let contract = selling(1).contract().verify().unwrap();
    ledger.append_verified(vec![contract.clone().into()]).await.unwrap();
    // The same slot, the same digest: the two ways of keeping agree.
    ledger.append(vec![Record::Contract(contract.into_signed())]).await.unwrap();
    let foreign = Sample { renter: 2, provider: 3, number: 1 }.contract().verify().unwrap();
    let refused = ledger.append_verified(vec![foreign.into()]).await;
    assert!(matches!(refused, Err(AppendError::Record(RecordError::NotOurs { .. }))));
    assert_eq!(ledger.check().unwrap(), Checkup { records: 1, objects: 1, dropped: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_that_wait_together_share_a_sync() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    let verified = |number| match selling(number).voucher(1, 1) {
        Record::Voucher(voucher) => voucher.verify().unwrap().into(),
        other => panic!("{other:?}"),
    };
    let records: Vec<VerifiedRecord> = (0..100).map(verified).collect();
    let appends = records.into_iter().map(|record| ledger.append_verified(vec![record]));
    for outcome in futures::future::join_all(appends).await {
        outcome.unwrap();
    }
    assert_eq!(ledger.totals().unwrap().owed_to_us, 100);
    drop(ledger);
    let syncs = groups(home.path());
    assert!((1..=50).contains(&syncs), "{syncs} syncs for 100 appends");
}

/// One step of a ledger's life.
#[derive(Debug, Clone)]
enum Step {
    Voucher { sell: bool, lane: u64, k: u32, amount: u64 },
    Close { sell: bool, lane: u64 },
    Reopen,
    LoseIndex,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (any::<bool>(), 0..3_u64, 1..4_u32, 0..3_u64)
            .prop_map(|(sell, lane, k, amount)| Step::Voucher { sell, lane, k, amount }),
        2 => (any::<bool>(), 0..3_u64).prop_map(|(sell, lane)| Step::Close { sell, lane }),
        1 => Just(Step::Reopen),
        1 => Just(Step::LoseIndex),
    ];
    proptest::collection::vec(step, 1..24)
}

fn sample(sell: bool, lane: u64) -> Sample {
    if sell { selling(lane) } else { buying(lane) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn any_history_adds_up_as_a_naive_model_says(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let home = tempfile::tempdir().unwrap();
        let mut ledger = Some(open(home.path()).0);
        let mut model: HashMap<(bool, u64, u32), u64> = HashMap::new();
        for step in steps {
            let append = |record| runtime.block_on(ledger.as_ref().unwrap().append(vec![record]));
            match step {
                Step::Voucher { sell, lane, k, amount } => {
                    let kept = *model.entry((sell, lane, k)).or_insert(amount);
                    let outcome = append(sample(sell, lane).voucher(k, amount));
                    prop_assert_eq!(outcome.is_ok(), kept == amount);
                }
                Step::Close { sell, lane } => append(sample(sell, lane).close()).unwrap(),
                Step::Reopen | Step::LoseIndex => {
                    // The folder must be free before it is opened again.
                    drop(ledger.take());
                    if matches!(step, Step::LoseIndex) {
                        fs::remove_dir_all(home.path().join("index")).unwrap();
                    }
                    ledger = Some(open(home.path()).0);
                }
            }
        }
        let owed = |sell: bool| -> i128 {
            let latest = |lane| (1..4).rev().find_map(|k| model.get(&(sell, lane, k))).copied();
            (0..3).filter_map(latest).map(i128::from).sum()
        };
        let expected = Totals { owed_to_us: owed(true), we_owe: owed(false), balance: owed(true) - owed(false) };
        prop_assert_eq!(ledger.as_ref().unwrap().totals().unwrap(), expected);
    }
}
