//! Ctrl-C: the job stops at once, and what was used is settled.
//!
//! Owns: the person's own end of a job. Never: kills a program. Run by the stories.

use rustix::process::Signal;

use potluck_tests::network::Network;
use potluck_tests::renter::JOB;

use crate::{LONG, assert_bill, assert_opposite, number, turn};

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_cancels_settles_and_exits_130() {
    let _turn = turn().await;
    let network = Network::with_providers(&["0.04"]).await.unwrap();
    let renter = network.renter("renter").unwrap();
    let mut process = renter.start(LONG, &["--max-tokens", "4000"]).unwrap();
    let quote = process.event("quote", JOB).await.unwrap();
    let first = process.event("output", JOB).await.unwrap();
    process.signal(Signal::INT).unwrap();
    let mut job = renter.finish(process).await.unwrap();
    job.events.splice(0..0, [quote, first]);

    assert_eq!(job.code(), Some(130), "{}", job.stderr);
    assert_bill(&job, u64::MAX);
    assert_eq!(job.event("error")["code"], "cancelled");
    assert_eq!(job.event("done")["finish"], "cancelled");
    let settled = job.event("settled");
    assert!(settled["receipt"].is_string(), "not settled: {settled}");
    let amount = number(settled, "amount_nanocredits");
    assert_eq!(assert_opposite(renter.state(), &network.providers[0].state).await, amount);

    // The provider is free again.
    let next = renter.run("hi", &["--max-tokens", "4"]).await.unwrap();
    assert_eq!(next.code(), Some(0), "{}", next.stderr);
}
