//! The golden vector of the export file: its bytes, frozen, and taken apart here by hand.
//!
//! Owns: `tests/vectors/export.json`. Never: writes there unless `POTLUCK_BLESS=1`. Run by `make test`;
//! fails when any byte differs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking")]

#[path = "../../protocol/tests/common/books.rs"]
mod books;

use std::fs;
use std::path::Path;

use potluck_protocol::export::audit::Examiner;
use potluck_protocol::export::{Entry, MAGIC, Seal};
use potluck_protocol::id::{hex, unhex};
use potluck_protocol::sign::Signed;
use potluck_protocol::wire;
use serde_json::{Value, json};

/// What the file in the folder must hold.
fn vector() -> Value {
    let bytes = books::file(books::entries());
    let at = books::frames(&bytes);
    let frames: Vec<String> = at.windows(2).map(|it| hex(&bytes[it[0]..it[1]])).collect();
    let mut pairs = Vec::new();
    let mut examiner = Examiner::default();
    let visit = &mut |pair: potluck_protocol::export::audit::PairReport| {
        pairs.push(json!({
            "peer": pair.peer,
            "balance": i64::try_from(pair.balance).unwrap(),
            "epoch": pair.epoch,
            "step": pair.step,
            "lanes": pair.lanes,
            "frozen": pair.frozen,
        }));
    };
    examiner.feed(&bytes, visit).unwrap();
    let report = examiner.finish().unwrap();
    json!({
        "owner_seed": hex(&books::key(1).seed()),
        "header": books::header(),
        "chain_domain": "potluck/v1/export-chain",
        "seal_domain": "potluck/v1/export",
        "magic": hex(&MAGIC),
        "frames": frames,
        "chain": report.chain.to_string(),
        "statements": report.statements,
        "proofs": report.proofs,
        "pairs": pairs,
    })
}

fn frozen() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/export.json");
    if std::env::var_os("POTLUCK_BLESS").is_some_and(|value| value == "1") {
        fs::write(&path, serde_json::to_string_pretty(&vector()).unwrap() + "\n").unwrap();
    }
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn the_file_is_what_this_build_writes() {
    assert_eq!(frozen(), vector(), "is the change of the form meant? (POTLUCK_BLESS=1)");
}

/// blake3 of a preimage as SPEC.md describes it.
fn hash(domain: &Value, body: &[u8]) -> [u8; 32] {
    let domain = domain.as_str().unwrap().as_bytes();
    let mut preimage = vec![u8::try_from(domain.len()).unwrap()];
    preimage.extend(domain);
    preimage.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    preimage.extend(body);
    *blake3::hash(&preimage).as_bytes()
}

/// Frames, chain and seal, from the file's bytes alone and as the specification says.
#[test]
fn the_form_is_as_the_specification_says() {
    let vector = frozen();
    let frames: Vec<Vec<u8>> =
        vector["frames"].as_array().unwrap().iter().map(|it| unhex(it.as_str().unwrap()).unwrap()).collect();
    let (mut chain, mut before) = (None::<[u8; 32]>, [0; 32]);
    let mut payloads = Vec::new();
    for frame in &frames {
        let (length, rest) = frame.split_at(4);
        let (payload, check) = rest.split_at(rest.len() - 8);
        assert_eq!(usize::try_from(u32::from_le_bytes(length.try_into().unwrap())).unwrap(), payload.len());
        before = chain.unwrap_or_default();
        let link = chain.map_or(payload.to_vec(), |head| [&head[..], payload].concat());
        let head = hash(&vector["chain_domain"], &link);
        assert_eq!(check, &head[..8]);
        chain = Some(head);
        payloads.push(payload);
    }
    assert_eq!(payloads[0], wire::encode(&books::header()).unwrap());
    let entries = books::entries();
    for (payload, entry) in payloads[1..].iter().zip(&entries) {
        // Variant 0 of a frame is an entry; of an entry, 0 is a proof and 1 a statement.
        let (kind, body) = match entry {
            Entry::Proof(it) => (0, wire::encode(it).unwrap()),
            Entry::Statement(it) => (1, wire::encode(it).unwrap()),
        };
        assert_eq!(*payload, [&[0, kind], &body[..]].concat());
    }
    let (kind, seal) = payloads.last().unwrap().split_first().unwrap();
    let seal: Signed<Seal> = wire::decode(seal).unwrap();
    assert_eq!((*kind, seal.body.entries), (1, u64::try_from(entries.len()).unwrap()));
    assert_eq!(*seal.body.chain.as_bytes(), before, "it speaks of the chain before itself");
    assert_eq!(payloads.len(), entries.len() + 2);
    assert!(seal.verify().is_ok());
}
