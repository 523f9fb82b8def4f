//! Tests of what the index holds in memory before sled gets it. Never: opens a journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use std::thread;

use potluck_protocol::id::{Digest, LaneId, PeerId};
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::account::Account;
use super::super::apply::Numbered;
use super::super::error::ReadError;
use super::super::frame::Position;
use super::super::fresh::Writes;
use super::super::index::{Filled, Index, Table};
use super::super::journal::Place;
use super::super::lane::LaneState;
use super::super::read::{FileId, Spot};
use super::super::record::{Checked, Kind};
use super::super::slot::{Slot, SlotKey, Subject, lane_key};
use super::{buying, key, selling};

fn index() -> (Index, TempDir) {
    let home = tempfile::tempdir().unwrap();
    (Index::begin(&home.path().join("index"), key(1).peer()).unwrap(), home)
}

fn put(index: &Index, name: u8, value: Option<u32>) {
    let mut writes = Writes::default();
    match value {
        Some(value) => writes.put(Table::Open, &[name], &index.encode(&value).unwrap()),
        None => writes.remove(Table::Open, &[name]),
    }
    index.write(writes).unwrap();
}

/// What somebody does to an index.
#[derive(Debug, Clone)]
enum Act {
    Put(u8, Option<u32>),
    Get(u8),
    List,
    Flush,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..12_u8, any::<Option<u32>>()).prop_map(|(name, value)| Act::Put(name, value)),
        3 => (0..12_u8).prop_map(Act::Get),
        1 => Just(Act::List),
        1 => Just(Act::Flush),
    ]
}

/// Two kinds of two numbers, and then the next page.
fn slot(name: u8) -> SlotKey {
    let k = 8 * u32::from(name / 4) + u32::from(name % 2);
    let kind = if name % 4 < 2 { Kind::Voucher } else { Kind::Meter };
    Slot { kind, subject: Subject::Lane(lane(0)), k }.key()
}

fn filled(number: u32) -> Filled {
    let spot = Spot { file: FileId::Segment(1), offset: u64::from(number) };
    Filled { commitment: Digest::from_bytes([7; 32]), number: u64::from(number), spot }
}

fn lane(name: u8) -> LaneId {
    LaneId { renter: key(1).peer(), provider: key(2).peer(), epoch: 0, lane: u64::from(name) }
}

/// As `number` leaves the lane: every other number ends it.
fn lane_after(name: u8, number: u32) -> LaneState {
    let ends = u8::from(number.is_multiple_of(2));
    LaneState { touched: u64::from(number), ends, ..LaneState::new(lane(name)) }
}

/// What is held as it is, in all forms at once.
fn note(index: &Index, name: u8, number: Option<u32>) {
    let mut writes = Writes::default();
    match number {
        Some(number) => {
            writes.fill(slot(name), filled(number));
            writes.lane(lane_key(&lane(name)), lane_after(name, number));
            writes.account(PeerId::from_bytes([name; 32]), Account { book: number, ..Account::default() });
            let position = Position { records: u64::from(number), head: [name; 32] };
            writes.reflect(Place { position, segment: 1, start: 2, end: 3 });
        }
        None => writes.empty(slot(name)),
    }
    index.write(writes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// So it is with what becomes bytes only when sled gets it.
    #[test]
    fn slots_lanes_and_accounts_are_what_was_written_last(acts in prop::collection::vec(act(), 1..60)) {
        let (index, _home) = index();
        let (mut slots, mut lanes) = (BTreeMap::new(), BTreeMap::new());
        let mut last = None;
        for act in acts {
            match act {
                Act::Put(name, number) => {
                    note(&index, name, number);
                    _ = slots.insert(name, number);
                    if let Some(number) = number {
                        _ = lanes.insert(name, number);
                        last = Some((u64::from(number), [name; 32]));
                    }
                }
                Act::Get(name) => {
                    let held = slots.get(&name).copied().flatten().map(filled);
                    prop_assert_eq!(index.slot(&slot(name)).unwrap(), held);
                    let number = lanes.get(&name).copied();
                    let held = number.map(|number| lane_after(name, number));
                    prop_assert_eq!(index.lane(&lane(name)).unwrap(), held);
                    let account = index.account(PeerId::from_bytes([name; 32])).unwrap();
                    prop_assert_eq!(account.map(|account| account.book), number);
                    // Only one that runs is known to.
                    if index.is_running(&lane_key(&lane(name))) {
                        prop_assert!(number.is_some_and(|number| number % 2 == 1));
                    }
                }
                Act::List => {
                    let all = index.slots_of(&Subject::Lane(lane(0))).unwrap();
                    let names = (0..12).filter_map(|name| slots.get(&name).copied().flatten().map(filled));
                    prop_assert_eq!(all.len(), names.clone().count());
                    prop_assert!(names.into_iter().all(|it| all.iter().any(|(_, filled)| *filled == it)));
                    let held: BTreeSet<_> = slots.iter().filter_map(|(name, it)| it.map(|_| *name / 4)).collect();
                    prop_assert_eq!(index.count(Table::Slots).unwrap(), u64::try_from(held.len()).unwrap());
                    let held = lanes.values().map(|number| u64::from(*number)).sum::<u64>();
                    let mut sum = 0;
                    index.each_lane(|lane| { sum += lane.touched; Ok::<_, ReadError>(()) }).unwrap();
                    prop_assert_eq!(sum, held);
                    let all = index.accounts().unwrap();
                    let all: Vec<_> = all.iter().map(|(peer, it)| (peer.as_bytes()[0], it.book)).collect();
                    prop_assert_eq!(all, lanes.iter().map(|(name, it)| (*name, *it)).collect::<Vec<_>>());
                }
                Act::Flush => index.flush(),
            }
            let place = index.place().unwrap().map(|place| (place.position.records, place.position.head));
            prop_assert_eq!(place, last);
        }
    }

    /// Wherever a value lies, it is what was written last.
    #[test]
    fn an_index_answers_as_a_map_does(acts in prop::collection::vec(act(), 1..60)) {
        let (index, _home) = index();
        let mut map = BTreeMap::new();
        for act in acts {
            match act {
                Act::Put(name, value) => {
                    put(&index, name, value);
                    match value {
                        Some(value) => _ = map.insert(name, value),
                        None => _ = map.remove(&name),
                    }
                }
                Act::Get(name) => {
                    prop_assert_eq!(index.get::<u32>(Table::Open, &[name]).unwrap(), map.get(&name).copied());
                    prop_assert_eq!(index.has(Table::Open, &[name]).unwrap(), map.contains_key(&name));
                }
                Act::List => {
                    let all: Vec<(u8, u32)> = index
                        .scan(Table::Open, &[])
                        .map(|entry| entry.map(|(key, value)| (key[0], index.decode(&value).unwrap())).unwrap())
                        .collect();
                    prop_assert_eq!(all, map.iter().map(|(name, value)| (*name, *value)).collect::<Vec<_>>());
                }
                Act::Flush => index.flush(),
            }
        }
    }
}

/// Objects of four lanes with two peers, and their quotes.
fn objects() -> Vec<Checked> {
    let samples = [selling(1), selling(2), buying(1), buying(2)];
    let vouchers =
        samples.into_iter().flat_map(|lane| (2..4).map(move |k| lane.voucher(k, u64::from(k) * 10)));
    let records = samples.iter().flat_map(|lane| lane.whole());
    records.chain(vouchers).map(|record| Checked::new(record, key(1).peer()).unwrap()).collect()
}

/// All keys and values, as sled has them.
fn everything(index: &Index) -> Vec<(Vec<u8>, Vec<u8>)> {
    index
        .tree()
        .iter()
        .map(|entry| entry.unwrap())
        .map(|(key, value)| (key.to_vec(), value.to_vec()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// In whatever order and groups objects come, and whatever sled has of them already.
    #[test]
    fn in_place_or_apart_a_group_leaves_the_same(
        order in Just((0..objects().len()).collect::<Vec<_>>()).prop_shuffle(),
        groups in prop::collection::vec((1..6_usize, any::<bool>()), 24),
    ) {
        let (objects, [(one, _home), (other, _other_home)]) = (objects(), [index(), index()]);
        let mut rest = order.as_slice();
        let mut first = 1;
        for (size, flush) in groups {
            let (group, after) = rest.split_at(size.min(rest.len()));
            rest = after;
            let group = (first..).zip(group).map(|(number, at)| {
                let spot = Spot { file: FileId::Segment(1), offset: number * 100 };
                Numbered { number, spot, checked: &objects[*at] }
            });
            let position = Position { records: first, head: [1; 32] };
            let place = Some(Place { position, segment: 1, start: first, end: first + 1 });
            one.apply(group.clone(), place).unwrap();
            other.apply_apart(group, place).unwrap();
            first += u64::try_from(size).unwrap();
            if flush {
                one.flush();
            } else {
                other.flush();
            }
        }
        prop_assert_eq!(everything(&one), everything(&other));
    }
}

#[test]
fn what_is_held_in_memory_is_bounded() {
    let (index, _home) = index();
    for number in 0..10_000_u32 {
        let mut writes = Writes::default();
        writes.put(Table::Open, &number.to_be_bytes(), &[]);
        index.write(writes).unwrap();
        assert!(index.held_in_memory() < 2_048, "{number}");
    }
    assert_eq!(index.count(Table::Open).unwrap(), 10_000);
    assert_eq!(index.held_in_memory(), 0, "a list is of everything");
}

#[test]
fn whoever_asks_waits_while_the_gate_is_shut() {
    let (writer, _home) = index();
    let gate = Arc::new(RwLock::new(()));
    let reader = writer.clone().behind(gate.clone());
    let shut = gate.write().unwrap();
    let asked = thread::spawn(move || reader.get::<u32>(Table::Open, &[7]).unwrap());
    put(&writer, 7, Some(70));
    drop(shut);
    assert_eq!(asked.join().unwrap(), Some(70));
}

#[test]
fn who_holds_the_lock_a_little_longer_costs_no_rebuild() {
    let (index, home) = index();
    let path = home.path().join("index");
    put(&index, 7, Some(70));
    let mut writes = Writes::default();
    writes.remove(Table::Open, &[7]);
    index.write(writes).unwrap();
    index.set_horizon(9).unwrap();
    index.flush();
    let holder = thread::spawn(move || {
        thread::sleep(std::time::Duration::from_millis(50));
        drop(index);
    });
    let again = Index::open(&path, key(1).peer()).unwrap();
    assert_eq!(again.horizon(), 9, "it is the same one");
    holder.join().unwrap();
}
