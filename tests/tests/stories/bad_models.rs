//! Model files that are none: the owner is told, and nothing falls over.
//!
//! Owns: truncated and corrupt GGUF files given to `potluckd`. Never: a good model. Run by the
//! stories.

use std::fs;
use std::path::Path;

use potluck_tests::network::Network;
use potluck_tests::process::Process;
use potluck_tests::programs::model_file;
use potluck_tests::renter::JOB;

use crate::turn;

/// How `potluckd run` ends on the model file `path`: its exit code and stderr.
async fn ended(network: &Network, path: &Path) -> (Option<i32>, String) {
    let name = path.file_stem().unwrap().to_str().unwrap();
    let state = network.folder(name).unwrap();
    let command = network.provider_command(&state, path.to_str().unwrap(), "0.04").unwrap();
    let mut process = Process::start("potluckd", command, &state.with_extension("stderr")).unwrap();
    let status = process.exit(JOB).await.unwrap();
    (status.code(), process.stderr())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_model_file_is_an_error_with_its_name() {
    let _turn = turn().await;
    let network = Network::start().await.unwrap();
    let files = network.folder("files").unwrap();
    let whole = fs::read(model_file().unwrap()).unwrap();

    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("text", b"this is no model".to_vec()),
        ("header-only", whole[..64].to_vec()),
        ("truncated-metadata", whole[..100_000].to_vec()),
        ("truncated-weights", whole[..whole.len() / 2].to_vec()),
    ];
    // A tensor count of 2^63 and a metadata count of 2^63 (magic, version, tensors, pairs).
    for (name, at) in [("tensor-count", 8), ("metadata-count", 16)] {
        let mut corrupt = whole[..1_000_000].to_vec();
        corrupt[at..at + 8].copy_from_slice(&(1_u64 << 63).to_le_bytes());
        cases.push((name, corrupt));
    }
    for (name, bytes) in cases {
        let path = files.join(format!("{name}.gguf"));
        fs::write(&path, bytes).unwrap();
        let (code, stderr) = ended(&network, &path).await;
        assert!(code.is_some_and(|code| code != 0), "{name}: exit {code:?}\n{stderr}");
        assert!(!stderr.contains("panicked"), "{name}: {stderr}");
        assert!(stderr.contains(name), "{name} is not named: {stderr}");
    }
    let missing = files.join("missing.gguf");
    let (code, stderr) = ended(&network, &missing).await;
    assert!(code.is_some_and(|code| code != 0) && stderr.contains("missing.gguf"), "{code:?}: {stderr}");
}
