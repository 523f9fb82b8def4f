//! Tests that take the power away, fill the disk and break its syncs. Owns: random lives of a journal
//! and of a ledger on a simulated disk. Never: touches the real journal format's tests.

use std::thread::{self, ThreadId};
use std::time::Duration;

use super::super::journal::Journal;
use super::super::sim_disk::{Failure, SimDisk};
use super::*;

const OWNER: PeerId = PeerId::from_bytes([7; 32]);
const NOW: UnixMillis = UnixMillis::new(1_000);

fn failures() -> impl Strategy<Value = Failure> {
    prop_oneof![
        3 => Just(Failure::PowerCut),
        1 => Just(Failure::Full),
        1 => Just(Failure::Write),
        1 => Just(Failure::Sync),
    ]
}

/// Opens a journal; gives what is in it, too.
fn open_journal(disk: &SimDisk) -> Result<(Journal, Vec<Vec<u8>>), LedgerError> {
    let mut payloads = Vec::new();
    let mut found = Found::survey(Arc::new(disk.clone()), OWNER)?;
    let end = found.scan(None, u64::MAX, &mut |entry| {
        payloads.push(entry.payload.to_vec());
        Ok(())
    })?;
    found.sweep()?;
    Ok((found.into_journal(end, NOW)?, payloads))
}

/// Appends vouchers one by one, up to 200 or until `enough` of the thread that synced the last one.
async fn synced_by_until(disk: &SimDisk, enough: impl Fn(Option<ThreadId>) -> bool) -> bool {
    let home = tempfile::tempdir().unwrap();
    let me = key(1).peer();
    let (ledger, _) =
        Ledger::open_on(Arc::new(disk.clone()), &home.path().join("index"), me, &mut |_| {}).unwrap();
    let sample = Sample { renter: 1, provider: 2, number: 1 };
    for k in 1..=200 {
        ledger.append(vec![sample.voucher(k, u64::from(k) * 11_111)]).await.unwrap();
        if enough(disk.synced_by()) {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn on_a_quick_disk_who_is_alone_commits_by_itself() {
    let ours = thread::current().id();
    assert!(synced_by_until(&SimDisk::default(), |by| by == Some(ours)).await);
}

#[tokio::test]
async fn nobody_waits_on_its_own_thread_for_a_slow_disk() {
    let ours = thread::current().id();
    let disk = SimDisk::default();
    disk.slow_down(Duration::from_millis(1));
    assert!(!synced_by_until(&disk, |by| by == Some(ours)).await);
}

/// One life: what is appended in it, and what ends it.
type Life = (Vec<Vec<usize>>, u64, Failure, u64, bool);

fn lives() -> impl Strategy<Value = Vec<Life>> {
    // Some records are large, so that segments fill up.
    let size = prop_oneof![4 => 1..600_usize, 1 => 50_000..65_000_usize];
    let groups = proptest::collection::vec(proptest::collection::vec(size, 1..6), 1..30);
    proptest::collection::vec((groups, 0..120_u64, failures(), any::<u64>(), any::<bool>()), 1..5)
}

proptest! {
    /// Whatever happens to the disk: what is found again is a prefix of what was written, and has all
    /// that was acknowledged.
    #[test]
    fn a_journal_keeps_what_it_acknowledged(lives in lives()) {
        let mut disk = SimDisk::default();
        let (mut written, mut acknowledged) = (Vec::<Vec<u8>>::new(), 0);
        let mut tag = 0_u32;
        for (groups, after, failure, seed, is_killed) in lives {
            disk.fail(after, failure);
            // A life may end while it opens, more than once.
            let opened = open_journal(&disk);
            if let Ok((mut journal, found)) = opened {
                prop_assert!(found.len() >= acknowledged, "{} of {acknowledged} are left", found.len());
                prop_assert!(written.starts_with(&found));
                // What was found is kept from now on: opening made it durable.
                written = found;
                acknowledged = written.len();
                for sizes in groups {
                    let payloads: Vec<Vec<u8>> = sizes.iter().map(|size| {
                        tag += 1;
                        tag.to_le_bytes().iter().copied().cycle().take(*size).collect()
                    }).collect();
                    let group: Vec<_> = payloads.iter().map(|payload| (1, payload.as_slice())).collect();
                    let outcome = journal.append(group, NOW);
                    written.extend(payloads);
                    if outcome.is_err() {
                        break;
                    }
                    acknowledged = written.len();
                }
            }
            disk = if is_killed { disk.after_kill() } else { disk.after_power_loss(seed) };
        }
        let (_, found) = open_journal(&disk).unwrap();
        prop_assert!(found.len() >= acknowledged && written.starts_with(&found));
    }
}

#[test]
fn a_group_whose_sync_failed_is_made_durable_by_the_next_open() {
    for seed in 0..8 {
        let disk = SimDisk::default();
        let (mut journal, _) = open_journal(&disk).unwrap();
        disk.fail(0, Failure::Sync);
        journal.append([(1, &b"in memory only"[..]), (1, &b"this too"[..])], NOW).unwrap_err();
        // The process ends, the system does not: the next start reads the group from memory.
        let disk = disk.after_kill();
        let (mut journal, found) = open_journal(&disk).unwrap();
        assert_eq!(found, [b"in memory only".to_vec(), b"this too".to_vec()]);
        journal.append([(1, &b"later"[..])], NOW).unwrap();
        let (_, found) = open_journal(&disk.after_power_loss(seed)).unwrap();
        assert_eq!(found.len(), 3);
    }
}

#[tokio::test]
async fn a_full_disk_stops_the_ledger_for_good() {
    let home = tempfile::tempdir().unwrap();
    let (index, me) = (home.path().join("index"), key(1).peer());
    for (failure, kind) in [
        (Failure::Full, std::io::ErrorKind::StorageFull),
        (Failure::Sync, std::io::Error::from_raw_os_error(5).kind()),
    ] {
        let disk = SimDisk::default();
        let (ledger, _) = Ledger::open_on(Arc::new(disk.clone()), &index, me, &mut |_| {}).unwrap();
        ledger.append(vec![selling(1).voucher(1, 5)]).await.unwrap();
        disk.fail(0, failure);
        let refused = ledger.append(vec![selling(1).voucher(2, 9)]).await.unwrap_err();
        let AppendError::Disk { source, .. } = &refused else { panic!("{refused}") };
        assert_eq!(source.kind(), kind);
        // The disk has room again, and is not asked.
        let steps = disk.steps();
        assert!(matches!(ledger.append(vec![selling(1).voucher(3, 9)]).await, Err(AppendError::Stopped)));
        assert_eq!(disk.steps(), steps);
        assert_eq!(ledger.totals().unwrap().owed_to_us, 5);
        drop(ledger);
        let disk = disk.after_power_loss(1);
        let (ledger, report) = Ledger::open_on(Arc::new(disk), &index, me, &mut |_| {}).unwrap();
        assert_eq!((report.records, ledger.totals().unwrap().owed_to_us), (1, 5));
    }
}

/// A step in a ledger's life.
#[derive(Debug, Clone)]
enum Act {
    Voucher {
        sell: bool,
        lane: u64,
        k: u32,
    },
    Close {
        sell: bool,
        lane: u64,
    },
    /// A large quote, so that segments fill up.
    Fill,
    Compact,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (any::<bool>(), 0..6_u64, 1..5_u32).prop_map(|(sell, lane, k)| Act::Voucher { sell, lane, k }),
        2 => (any::<bool>(), 0..6_u64).prop_map(|(sell, lane)| Act::Close { sell, lane }),
        8 => Just(Act::Fill),
        2 => Just(Act::Compact),
    ];
    proptest::collection::vec(act, 10..60)
}

/// What must be in a ledger, and what may be.
#[derive(Default)]
struct Model {
    /// Amount by voucher: acknowledged, or tried.
    vouchers: HashMap<(bool, u64, u32), (u64, bool)>,
    fills: u64,
    tried: u64,
}

impl Model {
    fn act(
        &mut self,
        ledger: &Ledger,
        act: &Act,
        runtime: &tokio::runtime::Runtime,
    ) -> Result<(), AppendError> {
        let append = |record| runtime.block_on(ledger.append(vec![record]));
        self.tried += 1;
        match *act {
            Act::Voucher { sell, lane, k } => {
                let amount = u64::from(k) * 100 + lane;
                let known = self.vouchers.entry((sell, lane, k)).or_insert((amount, false));
                match append(sample(sell, lane).voucher(k, amount)) {
                    Ok(()) => known.1 = true,
                    // The lane was retired before this voucher came.
                    Err(AppendError::Retired { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Act::Close { sell, lane } => append(sample(sell, lane).close())?,
            Act::Fill => {
                self.fills += 1;
                append(Record::Quote(bulky(self.fills)))?;
            }
            Act::Compact => {
                let everything = Retention { keep: Duration::ZERO, worth_bytes: 0 };
                match ledger.compact(&key(1), everything) {
                    Ok(_) | Err(CompactError::Ledger(LedgerError::Io { .. })) => {}
                    Err(CompactError::Stopped) => return Err(AppendError::Stopped),
                    Err(error) => panic!("{error}"),
                }
            }
        }
        Ok(())
    }

    /// Is all there that was acknowledged, and nothing that was never tried?
    fn check(&self, ledger: &Ledger, runtime: &tokio::runtime::Runtime) {
        ledger.check().unwrap();
        for sell in [true, false] {
            for lane in 0..6 {
                let latest = |only_sure: bool| {
                    (1..5)
                        .rev()
                        .filter_map(|k| self.vouchers.get(&(sell, lane, k)))
                        .find(|(_, sure)| *sure || !only_sure)
                        .map_or(0, |(amount, _)| *amount)
                };
                let lanes = ledger.lanes(&Filter::default()).unwrap();
                let found = lanes.iter().find(|it| it.lane == sample(sell, lane).lane());
                let amount = found.map_or(0, |it| it.amount.get());
                assert!((latest(true)..=latest(false)).contains(&amount), "{amount} in {sell} {lane}");
            }
        }
        for ((sell, lane, k), (amount, sure)) in &self.vouchers {
            let other = runtime.block_on(ledger.append(vec![sample(*sell, *lane).voucher(*k, amount + 1)]));
            let is_refused =
                matches!(other, Err(AppendError::SlotTaken { .. } | AppendError::Retired { .. }));
            // Only of a voucher that was never acknowledged may another take the place.
            assert!(is_refused || !sure, "{sell} {lane} {k}: {other:?}");
        }
    }
}

/// An object that fills a good part of a segment.
fn bulky(serial: u64) -> Signed<Quote> {
    let mut body = selling(1_000_000 + serial).quote().body;
    body.hardware.name = "x".repeat(60_000);
    sign(&key(1), body)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_ledger_keeps_what_it_acknowledged(
        acts in acts(), after in 0..400_u64, failure in failures(), seed: u64, killed: bool, index_lost: bool,
    ) {
        let home = tempfile::tempdir().unwrap();
        let (index, me) = (home.path().join("index"), key(1).peer());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let disk = SimDisk::default();
        let mut model = Model::default();
        let (ledger, _) = Ledger::open_on(Arc::new(disk.clone()), &index, me, &mut |_| {}).unwrap();
        disk.fail(after, failure);
        for act in &acts {
            if model.act(&ledger, act, &runtime).is_err() {
                break;
            }
        }
        drop(ledger);
        let disk = if killed { disk.after_kill() } else { disk.after_power_loss(seed) };
        if index_lost {
            fs::remove_dir_all(&index).unwrap();
        }
        let (ledger, _) = Ledger::open_on(Arc::new(disk.clone()), &index, me, &mut |_| {}).unwrap();
        model.check(&ledger, &runtime);
        // And once more from the journal alone.
        let before = answers(&ledger);
        drop(ledger);
        fs::remove_dir_all(&index).unwrap();
        let (ledger, _) = Ledger::open_on(Arc::new(disk), &index, me, &mut |_| {}).unwrap();
        prop_assert_eq!(answers(&ledger), before);
    }
}
