//! Tests of compaction: what goes, what stays, and that nothing that is asked changes. Owns: ledgers
//! with old segments. Never: waits for a month.

use super::*;

pub(super) const AT_ONCE: Retention = Retention { keep: Duration::ZERO, worth_bytes: 0 };

/// Fills the present segment.
pub(super) async fn fill(ledger: &Ledger, from: u64) {
    for serial in from..from + 18 {
        let mut body = selling(1_000_000 + serial).quote().body;
        body.hardware.name = "x".repeat(60_000);
        ledger.append(vec![Record::Quote(sign(&key(1), body))]).await.unwrap();
    }
}

/// Lanes 1 and 2 closed with three vouchers each, lane 3 open; then a full segment.
pub(super) async fn grown(dir: &Path) -> Ledger {
    let (ledger, _) = open(dir);
    for lane in [selling(1), buying(2), selling(3)] {
        let mut records = lane.whole();
        let close = records.pop().unwrap();
        ledger.append(records).await.unwrap();
        ledger.append(vec![lane.voucher(2, 22), lane.voucher(3, 33)]).await.unwrap();
        if lane.number != 3 {
            ledger.append(vec![close]).await.unwrap();
        }
    }
    fill(&ledger, 0).await;
    ledger
}

pub(super) async fn compact(
    ledger: &Ledger,
    retention: Retention,
) -> Result<Option<Compacted>, CompactError> {
    let ledger = ledger.clone();
    tokio::task::spawn_blocking(move || ledger.compact(&key(1), retention)).await.unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.contains("-1-")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn old_lanes_keep_their_outcome_and_open_ones_everything() {
    let home = tempfile::tempdir().unwrap();
    let ledger = grown(home.path()).await;
    let before = answers(&ledger);
    let kept = compact(&ledger, AT_ONCE).await.unwrap().unwrap();
    // Of each closed lane two vouchers go; the receipt was for the first.
    assert_eq!((kept.dropped, kept.lanes), (4, 2));
    assert!(kept.bytes_after < kept.bytes_before);
    assert_eq!(names(home.path()), ["checkpoint-1-00000001.ckp", "journal-1-00000002.seg"]);
    assert_eq!(answers(&ledger), before);
    let kinds = |lane: Sample| -> Vec<_> {
        ledger.objects(&lane.lane()).unwrap().iter().map(|it| it.kind()).collect()
    };
    let outcome =
        [Kind::Quote, Kind::Contract, Kind::Accept, Kind::Meter, Kind::Receipt, Kind::Voucher, Kind::Close];
    assert_eq!(kinds(selling(1)), outcome);
    assert_eq!(kinds(buying(2)), outcome);
    assert_eq!(kinds(selling(3)).len(), 8);
    let found = ledger.check().unwrap();
    assert_eq!(found.objects + found.dropped, found.records);
    drop(ledger);
    let (ledger, report) = open(home.path());
    assert!(!report.rebuilt_index && answers(&ledger) == before);
    drop(ledger);
    // The checkpoint alone says as much as the index did.
    fs::remove_dir_all(home.path().join("index")).unwrap();
    let (ledger, report) = open(home.path());
    assert!(report.rebuilt_index);
    assert_eq!(answers(&ledger), before);
    assert_eq!(ledger.check().unwrap(), found);
}

#[tokio::test]
async fn a_retired_lane_takes_nothing_that_it_may_have_held_and_repeats_are_free() {
    let home = tempfile::tempdir().unwrap();
    let ledger = grown(home.path()).await;
    compact(&ledger, AT_ONCE).await.unwrap().unwrap();
    drop(ledger);
    for index_lost in [false, true] {
        if index_lost {
            fs::remove_dir_all(home.path().join("index")).unwrap();
        }
        let (ledger, _) = open(home.path());
        let append = |record| ledger.append(vec![record]);
        append(selling(1).voucher(3, 33)).await.unwrap();
        append(selling(1).close()).await.unwrap();
        let taken = append(selling(1).voucher(3, 34)).await;
        assert!(matches!(taken, Err(AppendError::SlotTaken { k: 3, .. })));
        for late in [selling(1).voucher(2, 23), selling(1).voucher(1, 12)] {
            assert!(matches!(append(late).await, Err(AppendError::Retired { .. })));
        }
        // An open lane goes on, whatever its age.
        append(selling(3).voucher(2, 22)).await.unwrap();
        append(selling(3).voucher(4, 44 + u64::from(index_lost))).await.unwrap_or_else(|error| {
            assert!(index_lost && matches!(error, AppendError::SlotTaken { .. }), "{error}");
        });
    }
}

#[tokio::test]
async fn a_checkpoint_is_taken_up_by_the_next_one() {
    let home = tempfile::tempdir().unwrap();
    let ledger = grown(home.path()).await;
    compact(&ledger, AT_ONCE).await.unwrap().unwrap();
    ledger.append(vec![selling(3).voucher(4, 44), selling(3).close()]).await.unwrap();
    fill(&ledger, 100).await;
    fill(&ledger, 200).await;
    let before = answers(&ledger);
    let second = compact(&ledger, AT_ONCE).await.unwrap().unwrap();
    // Lane 3: the vouchers 1 to 3.
    assert_eq!((second.dropped, second.lanes), (3, 3));
    assert_eq!(answers(&ledger), before);
    let found = ledger.check().unwrap();
    assert_eq!(found.dropped, 7);
    drop(ledger);
    fs::remove_dir_all(home.path().join("index")).unwrap();
    let (ledger, _) = open(home.path());
    assert_eq!((answers(&ledger), ledger.check().unwrap()), (before, found));
}

#[tokio::test]
async fn young_or_small_is_left_alone_and_a_strange_key_refused() {
    let home = tempfile::tempdir().unwrap();
    let ledger = grown(home.path()).await;
    for retention in [
        Retention::default(),
        Retention { keep: Duration::from_secs(3_600), ..AT_ONCE },
        Retention { worth_bytes: 2 << 20, ..AT_ONCE },
    ] {
        assert_eq!(compact(&ledger, retention).await.unwrap(), None);
    }
    let strange = tokio::task::spawn_blocking(move || ledger.compact(&key(2), AT_ONCE)).await.unwrap();
    assert!(matches!(strange, Err(CompactError::OtherKey { .. })));
    assert_eq!(names(home.path()), [segment_name(1), segment_name(2)]);
}

#[tokio::test]
async fn no_flipped_byte_in_a_checkpoint_passes() {
    let home = tempfile::tempdir().unwrap();
    let ledger = grown(home.path()).await;
    compact(&ledger, AT_ONCE).await.unwrap().unwrap();
    drop(ledger);
    let file = home.path().join("checkpoint-1-00000001.ckp");
    let whole = fs::read(&file).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 12).chain([whole.len() - 1]) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&file, &bytes).unwrap();
        // A broken header is found before the index is begun anew.
        let _ = fs::remove_dir_all(home.path().join("index"));
        let error = Ledger::open(home.path(), key(1).peer()).unwrap_err();
        assert!(matches!(error, LedgerError::Damaged { .. }), "{at}: {error}");
    }
    for cut in [whole.len() - 1, whole.len() / 2] {
        fs::write(&file, &whole[..cut]).unwrap();
        assert!(matches!(Ledger::open(home.path(), key(1).peer()), Err(LedgerError::Damaged { .. })));
    }
    fs::write(&file, &whole).unwrap();
    open(home.path()).0.check().unwrap();
}

#[tokio::test]
async fn an_index_that_lost_a_voucher_stops_compaction() {
    let home = tempfile::tempdir().unwrap();
    let ledger = grown(home.path()).await;
    // The lane as it was before its last voucher, which sled might fall back to.
    let key = [&[Table::Lanes as u8][..], &super::super::slot::lane_key(&selling(1).lane())].concat();
    ledger.shared.index.tree().insert(key, stale(&selling(1))).unwrap();
    let refused = compact(&ledger, AT_ONCE).await.unwrap_err();
    assert!(matches!(refused, CompactError::Ledger(LedgerError::Contradiction { .. })), "{refused}");
    assert_eq!(names(home.path()), [segment_name(1), segment_name(2)]);
}

/// Lane as a sled that lost the newest writes would have it: closed, with its first voucher only.
fn stale(sample: &Sample) -> Vec<u8> {
    let me = key(1).peer();
    let mut lane = super::super::lane::LaneState::new(sample.lane());
    for (number, record) in (1..).zip(sample.whole()) {
        if !matches!(record, Record::Quote(_)) {
            lane.take(number, &Checked::new(record, me).unwrap(), 0);
        }
    }
    postcard::to_stdvec(&lane).unwrap()
}

#[tokio::test]
async fn who_tends_a_ledger_compacts_it_when_a_segment_is_full() {
    let home = tempfile::tempdir().unwrap();
    let (ledger, _) = open(home.path());
    ledger.tend(key(1), AT_ONCE).unwrap();
    ledger.append(selling(1).whole()).await.unwrap();
    fill(&ledger, 0).await;
    let patience = std::time::Instant::now() + Duration::from_secs(30);
    while names(home.path()).first().is_none_or(|name| !name.starts_with("checkpoint")) {
        assert!(std::time::Instant::now() < patience, "nothing was compacted: {:?}", names(home.path()));
        tokio::task::yield_now().await;
    }
}
