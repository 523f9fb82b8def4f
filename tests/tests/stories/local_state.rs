//! This machine's own troubles: a locked folder, a taken port, a key that others can read.
//!
//! Owns: what a program says before it meets anybody. Never: needs a provider. Run by the stories.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use potluck_node::state::StateDir;
use potluck_tests::process::Process;
use potluck_tests::programs::program;
use potluck_tests::renter::{JOB, Renter};
use tokio::process::Command;

use crate::{assert_failed, turn};

/// Runs `name run` with these flags until it ends; its exit code and stderr.
async fn ended(name: &str, state: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program(name).unwrap());
    command.arg("run").arg("--state-dir").arg(state).args(flags);
    let mut process = Process::start(name, command, &state.with_extension("stderr")).unwrap();
    let status = process.exit(JOB).await.unwrap();
    assert!(!process.stderr().contains("panicked"), "{}", process.stderr());
    (status.code(), process.stderr())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_another_process_holds_is_refused() {
    let _turn = turn().await;
    let home = tempfile::tempdir().unwrap();
    let held = StateDir::open(&home.path().join("state")).unwrap();
    let us = std::process::id().to_string();

    let renter = Renter::new(held.path().to_owned(), "/ip4/127.0.0.1/tcp/9".into());
    let job = renter.run("hi", &[]).await.unwrap();
    assert_failed(&job, 5, "state", "local");
    assert!(job.event("error")["message"].as_str().unwrap().contains(&us), "it does not say who holds it");

    for name in ["potluckd", "potluck-bootstrap"] {
        let (code, stderr) = ended(name, held.path(), &["--listen", "/ip4/127.0.0.1/udp/0/quic-v1"]).await;
        assert_ne!(code, Some(0), "{name}");
        assert!(stderr.contains(&us) && stderr.contains("in use"), "{name}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let _turn = turn().await;
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for name in ["potluckd", "potluck-bootstrap"] {
        let address = format!("/ip4/127.0.0.1/tcp/{port}");
        let (code, stderr) = ended(name, &home.path().join(name), &["--listen", &address]).await;
        assert_ne!(code, Some(0), "{name}");
        assert!(stderr.contains(&port.to_string()), "{name}: {stderr}");
        assert!(stderr.to_lowercase().contains("in use"), "{name}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_others_can_read_is_refused() {
    let _turn = turn().await;
    let home = tempfile::tempdir().unwrap();
    let renter = Renter::new(home.path().join("renter"), "/ip4/127.0.0.1/tcp/9".into());
    let ledger = potluck_tests::ledgers::balance("potluck", renter.state()).await;
    assert_eq!(ledger.unwrap(), 0, "a first look makes the key and an empty ledger");
    let key = renter.state().join("identity.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let job = renter.run("hi", &[]).await.unwrap();
    assert_failed(&job, 5, "identity", "local");
}
