//! The provider dies in the middle: what came stays, both ledgers stay whole.
//!
//! Owns: sudden death. Never: a polite stop. Run by the stories.

use std::time::Duration;

use potluck_tests::ledgers;
use potluck_tests::network::Network;
use potluck_tests::process::{descendants, wait_for_end};
use potluck_tests::renter::JOB;
use rustix::process::Signal;

use crate::{LONG, assert_failed, turn};

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_killed_in_the_middle_costs_nothing_but_the_rest() {
    let _turn = turn().await;
    let mut network = Network::with_providers(&["0.04"]).await.unwrap();
    let renter = network.renter("renter").unwrap();
    let mut process = renter.start(LONG, &["--max-tokens", "4000"]).unwrap();
    let first = process.event("output", JOB).await.unwrap();
    let provider = network.providers.remove(0);
    let workers = descendants(provider.process.id().unwrap());
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
