//! Tests of what the index holds in memory before sled gets it. Never: opens a journal.

use std::sync::{Arc, RwLock};
use std::thread;

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::index::{Index, Table, Writes};
use super::key;

fn index() -> (Index, TempDir) {
    let home = tempfile::tempdir().unwrap();
    (Index::begin(&home.path().join("index"), key(1).peer()).unwrap(), home)
}

fn put(index: &Index, name: u8, value: Option<u32>) {
    let mut writes = Writes::default();
    match value {
        Some(value) => writes.put(Table::Open, &[name], index.encode(&value).unwrap()),
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Wherever a value lies, it is what was written last.
    #[test]
    fn an_index_answers_as_a_map_does(acts in prop::collection::vec(act(), 1..60)) {
        let (index, _home) = index();
        let mut map = std::collections::BTreeMap::new();
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

#[test]
fn what_is_held_in_memory_is_bounded() {
    let (index, _home) = index();
    for number in 0..10_000_u32 {
        let mut writes = Writes::default();
        writes.put(Table::Open, &number.to_be_bytes(), Vec::new());
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
