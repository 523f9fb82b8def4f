//! An old ledger opens: what Potluck 0.1.0 wrote is read, believed and carried on by the present code.
//!
//! Owns: copies of the ledgers in `fixtures/ledger-0.1`. Never: changes the fixtures. Run by `make test`.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use potluck_node::books::{Answer, Ask, Books, ReceiptsAsk};
use potluck_node::ledger::{Filter, Ledger, LedgerError, OpenReport, Record};
use potluck_protocol::sign::SigningKey;
use serde_json::{Value, json};

/// Whose ledgers these are, and by which seed.
const SIDES: [(&str, u8, u64); 2] = [("renter", 11, 46), ("provider", 12, 39)];
/// What 0.1 preallocated for a first segment; the fixture leaves the zeros out.
const SEGMENT_BYTES: u64 = 1 << 20;
const SEGMENT: &str = "journal-0-00000001.seg";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ledger-0.1")
}

/// A copy of one side's ledger, as it lay on its disk.
fn copy(side: &str, with_index: bool) -> tempfile::TempDir {
    let (from, home) = (fixtures().join(side), tempfile::tempdir().unwrap());
    fs::copy(from.join(SEGMENT), home.path().join(SEGMENT)).unwrap();
    let segment = File::options().write(true).open(home.path().join(SEGMENT)).unwrap();
    segment.set_len(SEGMENT_BYTES).unwrap();
    if with_index {
        fs::create_dir(home.path().join("index")).unwrap();
        for name in ["conf", "db"] {
            fs::copy(from.join("index").join(name), home.path().join("index").join(name)).unwrap();
        }
    }
    home
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed([seed; 32])
}

fn open(home: &Path, seed: u8) -> (Ledger, OpenReport) {
    Ledger::open(home, key(seed).peer()).unwrap()
}

fn answers(ledger: &Ledger, seed: u8) -> Value {
    let key = key(seed);
    let ask = |ask: Ask| Books { ledger, key: &key }.answer(&ask).unwrap();
    let Answer::Balance(balance) = ask(Ask::Balance) else { panic!("another answer") };
    let which = ReceiptsAsk { limit: 100, ..ReceiptsAsk::default() };
    let Answer::Receipts(receipts) = ask(Ask::Receipts(which)) else { panic!("another answer") };
    json!({
        "balance": balance,
        "receipts": receipts,
        "lanes": ledger.lanes(&Filter::default()).unwrap(),
    })
}

/// `answer` without the fields that `old` does not have: fields are added, never renamed or removed.
fn as_old(answer: Value, old: &Value) -> Value {
    match (answer, old) {
        (Value::Object(new), Value::Object(old)) => new
            .into_iter()
            .filter_map(|(key, value)| old.get(&key).map(|old| (key.clone(), as_old(value, old))))
            .collect(),
        (Value::Array(new), Value::Array(old)) if new.len() == old.len() => {
            new.into_iter().zip(old).map(|(new, old)| as_old(new, old)).collect()
        }
        (new, _) => new,
    }
}

fn expected(side: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures().join(format!("{side}.json"))).unwrap()).unwrap()
}

#[test]
fn both_sides_of_an_old_ledger_answer_as_they_did() {
    for (side, seed, records) in SIDES {
        for with_index in [true, false] {
            let home = copy(side, with_index);
            let (ledger, opened) = open(home.path(), seed);
            // The old index is of another schema: it is built anew, not misread.
            assert_eq!((opened.records, opened.rebuilt_index, opened.cut_bytes), (records, true, 0));
            let old = expected(side);
            assert_eq!(as_old(answers(&ledger, seed), &old), old, "{side}");
            let found = ledger.check().unwrap();
            assert_eq!((found.objects, found.dropped), (records, 0));
            drop(ledger);
            assert!(!open(home.path(), seed).1.rebuilt_index, "the second open knows the index");
        }
    }
}

#[tokio::test]
async fn an_old_ledger_goes_on_and_keeps_its_slots() {
    let (renter, provider) = (copy("renter", true), copy("provider", true));
    let (ours, _) = open(renter.path(), 11);
    let (theirs, _) = open(provider.path(), 12);
    let shared = ours.lanes(&Filter { peer: Some(key(12).peer()), ..Filter::default() }).unwrap();
    let mut vouchers = 0;
    for lane in &shared {
        let objects = ours.objects(&lane.lane).unwrap();
        assert_eq!(objects, theirs.objects(&lane.lane).unwrap());
        // What is kept already is kept once, on either side.
        theirs.append(objects.clone()).await.unwrap();
        for object in objects {
            let Record::Voucher(voucher) = object else { continue };
            vouchers += 1;
            let mut body = voucher.body;
            body.amount = body.amount.saturating_add(body.amount);
            let payer = if body.lane.renter == key(11).peer() { key(11) } else { key(12) };
            let other = Record::Voucher(payer.sign(body).unwrap().into_signed());
            assert!(ours.append(vec![other]).await.is_err(), "a slot of the old ledger was free");
        }
    }
    assert_eq!((shared.len(), vouchers), (4, 8));
}

#[test]
fn an_old_ledger_is_still_its_owners_only() {
    let home = copy("renter", true);
    let error = Ledger::open(home.path(), key(12).peer()).unwrap_err();
    assert!(matches!(error, LedgerError::OtherOwner { .. }), "{error}");
    assert_eq!(open(home.path(), 11).1.records, 46);
}
