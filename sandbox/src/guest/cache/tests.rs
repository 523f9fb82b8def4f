//! Tests of the artefact cache: what was tampered with, or sealed by another key or for another
//! engine, is never handed out. Owns nothing; run by `cargo test`.

use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;

fn component(n: u8) -> ContentHash {
    ContentHash::from_bytes([n; 32])
}

fn cache(folder: &Path) -> ArtefactCache {
    ArtefactCache::open(folder, [1; 32], 1 << 20).unwrap()
}

fn bytes(artefact: Artefact) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = artefact.into_file();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_was_put_is_found_again_by_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let first = cache(folder.path());
    assert!(!first.contains(component(1)) && first.get(component(1)).is_none());
    assert_eq!(bytes(first.put(component(1), b"code").unwrap()), b"code");
    let next = cache(folder.path());
    assert!(next.contains(component(1)));
    assert_eq!(bytes(next.get(component(1)).unwrap()), b"code");
    // And from memory.
    assert_eq!(bytes(next.get(component(1)).unwrap()), b"code");
}

#[test]
fn another_engine_or_another_key_finds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let first = cache(folder.path());
    first.put(component(1), b"code").unwrap();
    let other = ArtefactCache::open(folder.path(), [2; 32], 1 << 20).unwrap();
    assert!(other.get(component(1)).is_none());
    fs::write(folder.path().join(KEY_FILE), [9; KEY_BYTES]).unwrap();
    let foreign = cache(folder.path());
    assert!(foreign.contains(component(1)));
    assert!(foreign.get(component(1)).is_none());
    assert!(!foreign.contains(component(1)), "what is not ours is deleted");
}

#[test]
fn one_components_artefact_is_not_anothers() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    cache.put(component(1), b"code").unwrap();
    fs::copy(cache.path(component(1)), cache.path(component(2))).unwrap();
    assert!(cache.get(component(2)).is_none());
}

#[test]
fn key_and_artefacts_are_the_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(&folder.path().join("deep"));
    cache.put(component(1), b"code").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path().join("deep")), 0o700);
    assert_eq!(mode(&folder.path().join("deep").join(KEY_FILE)), 0o600);
    assert_eq!(mode(&cache.path(component(1))), 0o600);
}

#[test]
fn a_handed_artefact_cannot_be_changed() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = cache(folder.path()).put(component(1), b"code").unwrap().into_file();
    assert!(file.write_all(b"evil").is_err());
    assert!(file.set_len(1).is_err());
}

#[test]
fn the_disk_is_bounded_and_the_longest_unused_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let cache = ArtefactCache::open(folder.path(), [1; 32], 2_500).unwrap();
    for n in 0..3 {
        cache.put(component(n), &[n; 1_000]).unwrap();
        let old = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(n) + 1);
        File::open(cache.path(component(n))).unwrap().set_modified(old).unwrap();
    }
    assert!(!cache.path(component(0)).exists());
    assert!(cache.path(component(1)).exists() && cache.path(component(2)).exists());
}

#[test]
fn memory_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    let large = vec![0; usize::try_from(MAX_HELD_BYTES / 2).unwrap()];
    for n in 0..3 {
        cache.hold(component(n), &Artefact::seal(&large).unwrap());
    }
    assert_eq!(cache.held().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// No flipped, cut or lengthened file is handed out.
    #[test]
    fn a_tampered_artefact_is_dropped(at: prop::sample::Index, with in 1u8.., cut: bool, more: bool) {
        let folder = tempfile::tempdir().unwrap();
        cache(folder.path()).put(component(1), b"machine code").unwrap();
        let fresh = cache(folder.path());
        let path = fresh.path(component(1));
        let mut file = fs::read(&path).unwrap();
        let at = at.index(file.len());
        if cut {
            file.truncate(at);
        } else if more {
            file.push(with);
        } else {
            file[at] ^= with;
        }
        fs::write(&path, file).unwrap();
        prop_assert!(fresh.get(component(1)).is_none());
        prop_assert!(!path.exists());
    }
}
