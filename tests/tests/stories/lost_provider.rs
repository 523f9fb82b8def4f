//! The provider dies in the middle: what came stays, both ledgers stay whole.
//!
//! Owns: sudden death. Never: a polite stop. Run by the stories.

use std::fs;
use std::time::Duration;

use potluck_tests::ledgers;
use potluck_tests::network::Network;
use potluck_tests::process::wait_for_end;
use potluck_tests::renter::JOB;
use rustix::process::{Pid, Signal};

use crate::{LONG, assert_failed, turn};

/// Processes whose parent is `parent`, as the kernel lists them.
fn children(parent: u32) -> Vec<Pid> {
    let path = format!("/proc/{parent}/task");
    let tasks = fs::read_dir(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let lists = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>())
        .filter_map(Pid::from_raw)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_killed_in_the_middle_costs_nothing_but_the_rest() {
    let _turn = turn().await;
    let mut network = Network::with_providers(&["0.04"]).await.unwrap();
    let renter = network.renter("renter").unwrap();
    let mut process = renter.start(LONG, &["--max-tokens", "4000"]).unwrap();
    let first = process.event("output", JOB).await.unwrap();
    let provider = network.providers.remove(0);
    let workers = children(provider.process.id().unwrap());
    assert!(!workers.is_empty(), "the worker is no process of its own");
    provider.process.signal(Signal::KILL).unwrap();

    let mut job = renter.finish(process).await.unwrap();
    job.events.insert(0, first);
    assert_failed(&job, 1, "provider_lost", "provider");
    assert!(!job.text().is_empty(), "the tokens so far are lost");
    for worker in workers {
        assert!(wait_for_end(worker, Duration::from_secs(10)), "worker {worker:?} outlived its daemon");
    }
    drop(provider.process);

    // Both ledgers reopen, and the provider holds no more than the renter signed.
    let owed = -ledgers::balance("potluck", renter.state()).await.unwrap();
    let due = ledgers::balance("potluckd", &provider.state).await.unwrap();
    assert!((0..=owed).contains(&due), "the renter signed for {owed}, the provider claims {due}");
}
