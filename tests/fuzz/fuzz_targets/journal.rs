//! Fuzzes the journal's reader: any bytes as a segment, alone and behind a true header and a true record.
//!
//! Owns: nothing. Never: touches a disk. Run by `make fuzz`. The reader must not panic, whatever a disk
//! gives back, and must not lose a record before the first changed byte.

#![no_main]

use libfuzzer_sys::fuzz_target;
use potluck_node::ledger::read_segment;
use potluck_protocol::id::PeerId;

/// A segment of a ledger that Potluck 0.1 wrote: header and records.
const SEGMENT: &[u8] = include_bytes!("../../fixtures/ledger-0.1/renter/journal-0-00000001.seg");
/// Bytes of its header, which name its owner.
const HEADER: usize = 128;

fuzz_target!(|input: &[u8]| {
    let mut key = [0; 32];
    key.copy_from_slice(&SEGMENT[32..64]);
    let owner = PeerId::from_bytes(key);
    let (whole, _) = read_segment(SEGMENT, owner).expect("the fixture is whole");
    // As a file of its own.
    let _ = read_segment(input, owner);
    // As what follows a true header.
    let _ = read_segment(&[&SEGMENT[..HEADER], input].concat(), owner);
    // As a change of the true segment: the first two bytes say where, the rest goes over it.
    let Some((at, change)) = input.split_first_chunk::<2>() else { return };
    let at = HEADER + usize::from(u16::from_le_bytes(*at)) % (SEGMENT.len() - HEADER);
    let mut changed = SEGMENT.to_vec();
    let end = changed.len().min(at + change.len());
    changed[at..end].copy_from_slice(&change[..end - at]);
    if let Ok((objects, torn)) = read_segment(&changed, owner) {
        assert!(torn < changed.len(), "more is torn than there is");
        let before = read_segment(&SEGMENT[..at], owner).map_or(0, |(objects, _)| objects.len());
        assert!(objects.len() >= before && objects[..before] == whole[..before], "a good record was lost");
    }
});
