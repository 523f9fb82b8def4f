//! Nobody there, or no such thing: clear answers soon, and nothing is spent.
//!
//! Owns: jobs that never find a provider. Never: starts a worker. Run by the stories.

use std::time::{Duration, Instant};

use potluck_tests::ledgers;
use potluck_tests::network::Network;
use potluck_tests::renter::Renter;

use crate::{assert_failed, turn};

/// The promise for "no provider".
const SOON: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn no_provider_is_told_within_15_seconds() {
    let _turn = turn().await;
    let network = Network::start().await.unwrap();
    let renter = network.renter("renter").unwrap();
    let begin = Instant::now();
    let job = renter.run("hi", &[]).await.unwrap();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_failed(&job, 3, "no_provider", "network");
    assert_eq!(ledgers::balance("potluck", renter.state()).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bootstrap_is_told_within_15_seconds() {
    let _turn = turn().await;
    let home = tempfile::tempdir().unwrap();
    // A port of the loopback interface that nobody can listen on: it belongs to us, and stays mute.
    let mute = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = potluck_protocol::sign::SigningKey::from_seed([3; 32]).peer();
    let address = format!("/ip4/127.0.0.1/udp/{}/quic-v1/p2p/{peer}", mute.local_addr().unwrap().port());
    let renter = Renter::new(home.path().join("renter"), address);
    let begin = Instant::now();
    let job = renter.run("hi", &[]).await.unwrap();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_failed(&job, 3, "no_bootstrap", "network");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_model_is_a_usage_error_that_names_the_closest() {
    let _turn = turn().await;
    let home = tempfile::tempdir().unwrap();
    let renter = Renter::new(home.path().join("renter"), "/ip4/127.0.0.1/tcp/9".into());
    let job = renter.run_on("smollm3-135m", "hi", &[]).await.unwrap();
    assert_failed(&job, 2, "unknown_model", "renter");
    assert!(job.event("error")["hint"].as_str().unwrap().contains("smollm2-135m"));
}
