//! Tests of the journal's files: torn tails, damage, segments, and arbitrary bytes. Owns: journals of
//! plain payloads. Never: opens an index.

use super::super::frame::{Format, Header, Position, record_bytes, write_record};
use super::super::journal::Journal;
use super::*;

const OWNER: PeerId = PeerId::from_bytes([7; 32]);
const NOW: UnixMillis = UnixMillis::new(1_000);

fn survey(dir: &Path) -> Result<Found, LedgerError> {
    Found::survey(Arc::new(Folder::new(dir)), OWNER)
}

fn begin(dir: &Path) -> Journal {
    let found = survey(dir).unwrap();
    let end = found.scan(None, u64::MAX, &mut |_| Ok(())).unwrap();
    found.into_journal(end, NOW).unwrap()
}

/// All payloads, and the bytes cut.
fn read(dir: &Path) -> Result<(Vec<Vec<u8>>, usize), LedgerError> {
    let mut payloads = Vec::new();
    let found = survey(dir)?;
    let end = found.scan(None, u64::MAX, &mut |entry| {
        payloads.push(entry.payload.to_vec());
        Ok(())
    })?;
    found.into_journal(end, NOW)?;
    Ok((payloads, end.torn))
}

/// Three groups of one; and where they end.
fn three(dir: &Path) -> (Vec<Vec<u8>>, usize) {
    let mut journal = begin(dir);
    let payloads: Vec<Vec<u8>> = (1..=3).map(|n| vec![n; 40]).collect();
    let ends = payloads.iter().map(|payload| journal.append([(1, payload.as_slice())], NOW).unwrap().0.end);
    let end = usize::try_from(ends.last().unwrap()).unwrap();
    (payloads, end)
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let (payloads, end) = three(home.path());
    let file = home.path().join(segment_name(1));
    let whole = fs::read(&file).unwrap();
    let start = end - record_bytes(40);
    for torn in start..end {
        let mut bytes = whole.clone();
        bytes[torn..end].fill(0);
        fs::write(&file, &bytes).unwrap();
        let (read_back, cut) = read(home.path()).unwrap();
        assert_eq!(read_back, payloads[..2], "torn at {torn}");
        assert!(cut <= torn - start);
        assert_eq!(cut == 0, bytes[start..end].iter().all(|b| *b == 0));
        // The cut is durable: the next open finds a clean end.
        assert_eq!(read(home.path()).unwrap(), (payloads[..2].to_vec(), 0));
    }
}

#[test]
fn appends_go_on_after_a_cut() {
    let home = tempfile::tempdir().unwrap();
    let (payloads, end) = three(home.path());
    let file = home.path().join(segment_name(1));
    let mut bytes = fs::read(&file).unwrap();
    bytes[end - 1] ^= 1;
    fs::write(&file, &bytes).unwrap();
    begin(home.path()).append([(1, &b"after"[..])], NOW).unwrap();
    let expected = vec![payloads[0].clone(), payloads[1].clone(), b"after".to_vec()];
    assert_eq!(read(home.path()).unwrap(), (expected, 0));
}

#[test]
fn a_flipped_byte_before_a_later_group_is_damage_and_stays() {
    let home = tempfile::tempdir().unwrap();
    let (_, end) = three(home.path());
    let file = home.path().join(segment_name(1));
    let whole = fs::read(&file).unwrap();
    for at in HEADER_BYTES..end - record_bytes(40) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&file, &bytes).unwrap();
        let bad = HEADER_BYTES + (at - HEADER_BYTES) / record_bytes(40) * record_bytes(40);
        let error = read(home.path()).unwrap_err();
        let LedgerError::Damaged { file: named, offset, .. } = &error else { panic!("{at}: {error}") };
        assert_eq!((named, *offset), (&file, length(bad)));
        assert_eq!(fs::read(&file).unwrap(), bytes, "a damaged file is left as it is");
    }
}

#[test]
fn segments_follow_each_other_and_none_may_be_missing() {
    let home = tempfile::tempdir().unwrap();
    let mut journal = begin(home.path());
    let payload = vec![5; 60_000];
    for _ in 0..60 {
        journal.append([(1, payload.as_slice())], NOW).unwrap();
    }
    assert_eq!(journal.segment(), 3);
    assert_eq!(read(home.path()).unwrap().0.len(), 60);
    let second = home.path().join(segment_name(2));
    fs::rename(&second, home.path().join("elsewhere")).unwrap();
    assert!(matches!(read(home.path()), Err(LedgerError::MissingSegment { file }) if file == second));
    fs::rename(home.path().join(segment_name(3)), &second).unwrap();
    assert!(matches!(read(home.path()), Err(LedgerError::Damaged { offset: 0, .. })));
}

#[test]
fn another_peers_journal_is_refused_and_another_version_named() {
    let home = tempfile::tempdir().unwrap();
    three(home.path());
    let other = Found::survey(Arc::new(Folder::new(home.path())), PeerId::from_bytes([8; 32])).unwrap_err();
    assert!(matches!(other, LedgerError::OtherOwner { owner: OWNER, .. }), "{other}");
    let newer = home.path().join("journal-2-00000002.seg");
    fs::write(&newer, b"").unwrap();
    assert!(matches!(survey(home.path()), Err(LedgerError::Version { file }) if file == newer));
}

#[test]
fn a_place_is_confirmed_only_where_it_lies() {
    let home = tempfile::tempdir().unwrap();
    let mut journal = begin(home.path());
    let (first, starts) = journal.append([(1, &b"one"[..])], NOW).unwrap();
    assert_eq!(starts, [length(HEADER_BYTES)]);
    let (second, _) = journal.append([(1, &b"two"[..])], NOW).unwrap();
    let found = survey(home.path()).unwrap();
    assert!(found.confirms(&first).unwrap() && found.confirms(&second).unwrap());
    let mut seen = 0;
    found
        .scan(Some(&first), u64::MAX, &mut |entry| {
            seen += usize::from(entry.payload == b"two");
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, 1);
    for (start, end) in [(second.start, first.end), (0, u64::MAX), (second.start + 1, second.end)] {
        assert!(!found.confirms(&super::super::journal::Place { start, end, ..second }).unwrap());
    }
    let elsewhere = super::super::journal::Place { segment: 9, ..first };
    assert!(!found.confirms(&elsewhere).unwrap());
}

/// A segment with `records` of these sizes, each a group of its own.
fn segment(sizes: &[usize]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let header = Header {
        format: Format::Journal1,
        number: 1,
        owner: OWNER,
        before: [0; 32],
        records: Some(0),
        made: Some(NOW),
    };
    let mut bytes = header.encode().to_vec();
    let mut head = Position::default().head;
    let mut payloads = Vec::new();
    for (nth, size) in sizes.iter().enumerate() {
        let payload = vec![u8::try_from(nth + 1).unwrap(); *size];
        head = write_record(&mut bytes, 1 | FIRST_OF_GROUP, &head, &payload).unwrap();
        payloads.push(payload);
    }
    (bytes, payloads)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_reader_panic_or_invent_a_record(
        noise in proptest::collection::vec(any::<u8>(), 0..400),
        sizes in proptest::collection::vec(1..80_usize, 0..6),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 1..=255_u8), 0..4),
        keep in any::<proptest::sample::Index>(),
        with_noise: bool,
    ) {
        let home = tempfile::tempdir().unwrap();
        let (mut bytes, payloads) = segment(&sizes);
        bytes.truncate(keep.index(bytes.len() + 1));
        for (at, flip) in flips {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
        }
        if with_noise {
            bytes.extend_from_slice(&noise);
        }
        fs::write(home.path().join(segment_name(1)), &bytes).unwrap();
        if let Ok((read_back, _)) = read(home.path()) {
            prop_assert!(payloads.starts_with(&read_back), "{} of {}", read_back.len(), payloads.len());
            prop_assert_eq!(read(home.path()).unwrap(), (read_back, 0));
        }
    }
}
