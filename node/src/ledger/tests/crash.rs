//! The ledger's own crash matrix: a process of its own is killed at every fault point, and its ledger
//! opened again. Owns: the short life that passes every point. Never: kills this process.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use super::*;

/// Where the life is lived, in the child.
const HOME: &str = "POTLUCK_TEST_LIFE";
const AT_ONCE: Retention = Retention { keep: Duration::ZERO, worth_bytes: 0 };
/// More records than go unflushed.
const MANY: u64 = 4_200;

/// Appends one batch and notes outside the ledger that it was acknowledged.
fn append(ledger: &Ledger, home: &Path, name: &str, records: Vec<Record>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(ledger.append(records)).unwrap();
    let mut noted = fs::File::options().create(true).append(true).open(home.join("acknowledged")).unwrap();
    writeln!(noted, "{name}").unwrap();
}

/// What a name in `acknowledged` stands for.
fn batch(name: &str) -> Vec<Record> {
    let (what, number) = name.split_once(' ').unwrap();
    let number = number.parse().unwrap();
    match what {
        "lane" => selling(number).whole(),
        "bulk" => {
            let mut body = selling(1_000_000 + number).quote().body;
            body.hardware.name = "x".repeat(60_000);
            vec![Record::Quote(sign(&key(1), body))]
        }
        _ => (0..MANY / 4).map(|k| selling(number).voucher(u32::try_from(k).unwrap() + 1, 11)).collect(),
    }
}

fn live(home: &Path) {
    let dir = home.join("ledger");
    let keep = |ledger: &Ledger, name: String| append(ledger, home, &name, batch(&name));
    let (ledger, _) = open(&dir);
    for number in 1..=3 {
        keep(&ledger, format!("lane {number}"));
    }
    drop(ledger);
    fs::remove_dir_all(dir.join("index")).unwrap();
    let (ledger, _) = open(&dir);
    for round in 0..2 {
        for number in 0..18 {
            keep(&ledger, format!("bulk {}", round * 100 + number));
        }
        ledger.compact(&key(1), AT_ONCE).unwrap();
        keep(&ledger, format!("lane {}", 10 + round));
    }
    if std::env::var(fault::VARIABLE).is_ok_and(|point| point == fault::INDEX_FLUSHED.name()) {
        for number in 20..25 {
            keep(&ledger, format!("many {number}"));
        }
    }
}

#[test]
#[ignore = "the life that the crash matrix ends; it starts it itself"]
fn a_life() {
    if let Some(home) = std::env::var_os(HOME) {
        live(Path::new(&home));
    }
}

/// Lives until `point`; gives whether that killed it.
fn die_at(home: &Path, point: &str) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "ledger::tests::crash::a_life"])
        .env(HOME, home)
        .env(fault::VARIABLE, point)
        .output()
        .unwrap()
        .status;
    assert!(status.success() || status.signal() == Some(9), "{point}: {status}");
    status.signal() == Some(9)
}

#[test]
fn a_kill_at_any_point_loses_nothing_that_was_acknowledged() {
    let groups = [fault::GROUP_WRITTEN, fault::GROUP_SYNCED, fault::GROUP_INDEXED];
    let rolls = [fault::SEGMENT_CREATED, fault::SEGMENT_SYNCED, fault::SEGMENT_NAMED];
    let later = groups.map(|point| format!("{point}:3")).into_iter();
    let later = later.chain(rolls.map(|point| format!("{point}:2")));
    for point in fault::LEDGER_POINTS.iter().map(ToString::to_string).chain(later) {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("ledger");
        assert!(die_at(home.path(), &point), "{point} was not passed");
        let acknowledged = fs::read_to_string(home.path().join("acknowledged")).unwrap_or_default();
        let (ledger, _) = open(&dir);
        ledger.check().unwrap_or_else(|error| panic!("{point}: {error}"));
        let before = (answers(&ledger), ledger.check().unwrap().records);
        for name in acknowledged.lines() {
            // What is kept is not kept twice; of a retired lane the outcome is.
            append(&ledger, &dir, name, batch(name).into_iter().filter(|it| !passes(it)).collect());
        }
        assert_eq!((answers(&ledger), ledger.check().unwrap().records), before, "{point}");
        // And it goes on, by the journal alone.
        ledger.compact(&key(1), AT_ONCE).unwrap();
        append(&ledger, &dir, "lane 99", batch("lane 99"));
        let answers_now = answers(&ledger);
        drop(ledger);
        fs::remove_dir_all(dir.join("index")).unwrap();
        let (ledger, _) = open(&dir);
        assert_eq!(answers(&ledger), answers_now, "{point}");
        let leftovers = fs::read_dir(&dir)
            .unwrap()
            .filter(|it| it.as_ref().unwrap().file_name().to_string_lossy().ends_with(".new"));
        assert_eq!(leftovers.count(), 0, "{point}");
    }
}

/// May it be gone from a retired lane?
fn passes(record: &Record) -> bool {
    matches!(record.kind(), Kind::Accept | Kind::Meter)
}
