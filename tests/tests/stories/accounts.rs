//! Two peers' account: crashes in the middle, payments outside of Potluck, and what is lent to whom.
//!
//! Owns: programs killed while a job runs, a state folder that came back from an old copy, settlements in
//! both directions, and a stranger at its limit. Never: two signatures in one place (the simulation has
//! those). Run by the stories.

use std::path::Path;
use std::time::{Duration, Instant};

use potluck_tests::ledgers;
use potluck_tests::network::{Network, log_of};
use potluck_tests::owner;
use potluck_tests::process::Process;
use potluck_tests::programs::MODEL;
use potluck_tests::renter::{JOB, Renter};
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::{LONG, assert_failed, assert_opposite, number, turn};

/// What a stranger may owe at $0.04 an hour: 60 seconds of it, in nano-credits.
const NEW_PEER: u64 = 11_111 * 60;

/// Reads a job's output until it has been paid for at least once: two quanta of it have come.
async fn until_paid(job: &mut Process) {
    job.event("output", JOB).await.unwrap();
    let first = Instant::now();
    while first.elapsed() < Duration::from_millis(2_500) {
        job.event("output", JOB).await.unwrap();
    }
}

/// Every job in the ledger of `state` has ended; how many there are.
async fn all_ended(program: &str, state: &Path) -> usize {
    let jobs = ledgers::receipts(program, state).await.unwrap();
    for job in &jobs {
        assert!(!job["reason"].is_null(), "{program} left a job open: {job}");
    }
    jobs.len()
}

async fn small_job(renter: &Renter) -> potluck_tests::renter::Ended {
    let job = renter.run("Name a planet.", &["--max-tokens", "8"]).await.unwrap();
    assert_eq!(job.code(), Some(0), "{:?} {}", job.events, job.stderr);
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renter_killed_in_the_middle_comes_back_and_both_ledgers_agree() {
    let _turn = turn().await;
    let network = Network::with_providers(&["0.04"]).await.unwrap();
    let (renter, provider) = (network.renter("renter").unwrap(), &network.providers[0]);
    let mut job = renter.start(LONG, &["--max-tokens", "4000"]).unwrap();
    until_paid(&mut job).await;
    job.signal(Signal::KILL).unwrap();
    job.exit(JOB).await.unwrap();
    let owed = -ledgers::balance("potluck", renter.state()).await.unwrap();
    assert!(owed > 0, "it was killed before it paid anything");

    let job = small_job(&renter).await;
    let amount = i64::try_from(number(job.event("settled"), "amount_nanocredits")).unwrap();
    let total = assert_opposite(renter.state(), &provider.state).await;
    assert_eq!(i64::try_from(total).unwrap(), owed + amount, "the killed job's vouchers count, and no more");
    assert_eq!(all_ended("potluck", renter.state()).await, 2);
    assert_eq!(all_ended("potluckd", &provider.state).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_killed_in_the_middle_starts_again_and_lends_what_is_left() {
    let _turn = turn().await;
    let mut network = Network::with_providers(&["0.04"]).await.unwrap();
    let renter = network.renter("renter").unwrap();
    let mut job = renter.start(LONG, &["--max-tokens", "4000"]).unwrap();
    until_paid(&mut job).await;
    let mut provider = network.providers.remove(0);
    provider.process.signal(Signal::KILL).unwrap();
    provider.process.exit(JOB).await.unwrap();
    let job = renter.finish(job).await.unwrap();
    assert_failed(&job, 1, "provider_lost", "provider");
    let owed = u64::try_from(-ledgers::balance("potluck", renter.state()).await.unwrap()).unwrap();
    assert!(owed > 0, "it was killed before it was paid anything");

    let mut command = network.provider_command(&provider.state, MODEL, "0.04").unwrap();
    command.arg("--json");
    let mut again = Process::start("potluckd", command, &log_of(&provider.state)).unwrap();
    again.event("joined", JOB).await.unwrap();
    let job = small_job(&renter).await;
    // The job that died holds nothing back: all of a stranger's credit but what it owes is there.
    assert_eq!(number(job.event("quote"), "credit_nanocredits"), NEW_PEER - owed);
    let total = assert_opposite(renter.state(), &provider.state).await;
    assert_eq!(total, owed + number(job.event("settled"), "amount_nanocredits"));
    assert_eq!(all_ended("potluck", renter.state()).await, 2);
    assert_eq!(all_ended("potluckd", &provider.state).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_folder_from_an_old_copy_learns_what_it_signed() {
    let _turn = turn().await;
    let network = Network::with_providers(&["0.04"]).await.unwrap();
    let (renter, provider) = (network.renter("renter").unwrap(), &network.providers[0]);
    assert_eq!(number(small_job(&renter).await.event("accepted"), "epoch"), 0);
    let old = renter.state().with_extension("old");
    copy(renter.state(), &old).await;
    small_job(&renter).await;
    std::fs::remove_dir_all(renter.state()).unwrap();
    copy(&old, renter.state()).await;

    // It had forgotten the second job; nothing is signed any more where it may have forgotten more.
    assert_eq!(number(small_job(&renter).await.event("accepted"), "epoch"), 1);
    assert!(assert_opposite(renter.state(), &provider.state).await > 0);
    assert_eq!(all_ended("potluck", renter.state()).await, 3);
    assert_eq!(all_ended("potluckd", &provider.state).await, 3);
}

async fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().await.unwrap();
    assert!(status.success(), "cp of {}", from.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_count_when_their_receiver_says_so() {
    let _turn = turn().await;
    let mut network = Network::with_providers(&["0.04"]).await.unwrap();
    let renter = network.renter("renter").unwrap();
    let (peer, state) = (network.providers[0].peer.clone(), network.providers[0].state.clone());
    small_job(&renter).await;
    let owed = assert_opposite(renter.state(), &state).await;
    let us = ledgers::ask("potluck", "balance", renter.state()).await.unwrap()[0]["peer"].clone();
    let us = us.as_str().unwrap();

    // The renter paid and says so; it counts once the owner does.
    let cash = ["--amount", "0.00002", "--ref", "cash 1"];
    let mut paying = renter.settle(&[&[peer.as_str()], &cash[..], &["--wait", "60"]].concat()).unwrap();
    until_claimed(&state, "cash 1").await;
    assert_eq!(ledgers::balance("potluckd", &state).await.unwrap(), i64::try_from(owed).unwrap());
    let (code, answer) = ledgers::settle(&state, &[&[us], &cash[..]].concat()).await.unwrap();
    assert_eq!((code, answer["state"].as_str()), (Some(0), Some("agreed")), "{answer}");
    let answer = paying.next_event(JOB).await.unwrap().unwrap();
    assert_eq!(answer["state"], "agreed", "{answer}");
    assert!(paying.exit(JOB).await.unwrap().success(), "{}", paying.stderr());
    assert_both(&renter, &state, i64::try_from(owed).unwrap() - 20_000).await;

    // A payment that did not arrive: refused, and the debt stays.
    let lie = ["--amount", "0.00003", "--ref", "cash 2"];
    let mut lying = renter.settle(&[&[peer.as_str()], &lie[..], &["--wait", "60"]].concat()).unwrap();
    until_claimed(&state, "cash 2").await;
    let (code, answer) = ledgers::settle(&state, &[&[us], &lie[..], &["--deny"]].concat()).await.unwrap();
    assert_eq!((code, answer["state"].as_str()), (Some(0), Some("denied")), "{answer}");
    let answer = lying.next_event(JOB).await.unwrap().unwrap();
    assert_eq!((answer["code"].as_str(), answer["fault"].as_str()), (Some("not_settled"), Some("provider")));
    assert_eq!(lying.exit(JOB).await.unwrap().code(), Some(1));
    assert_both(&renter, &state, i64::try_from(owed).unwrap() - 20_000).await;

    // The owner enters a payment of which the renter said nothing; when the two next meet it counts.
    let gift = ["--amount", "0.00001", "--ref", "cash 3"];
    let (code, answer) = ledgers::settle(&state, &[&[us], &gift[..]].concat()).await.unwrap();
    // Proposed, when the daemon has not noticed yet that the renter left.
    let waits = ["noted", "proposed"].map(|state| answer["state"] == state);
    assert!(code == Some(0) && waits.contains(&true), "{answer}");
    let (mut owed, mut answer) = (owed, Value::Null);
    for _ in 0..5 {
        owed += number(small_job(&renter).await.event("settled"), "amount_nanocredits");
        // The job may have been shorter than the two signatures.
        (_, answer) = ledgers::settle(&state, &[&[us], &gift[..]].concat()).await.unwrap();
        if answer["state"] == "agreed" {
            break;
        }
    }
    assert_eq!(answer["state"], "agreed", "{answer}");
    assert_both(&renter, &state, i64::try_from(owed).unwrap() - 30_000).await;

    // Who is not there cannot be told.
    network.providers.remove(0).process.stop().await.unwrap();
    let (code, answer) = ledgers::settle(&state, &[&[us], &gift[..]].concat()).await.unwrap();
    assert_eq!((code, answer["code"].as_str()), (Some(1), Some("not_running")), "{answer}");
}

/// Asks the daemon until it shows that a renter says it paid with this reference.
async fn until_claimed(state: &Path, reference: &str) {
    let deadline = Instant::now() + JOB;
    while Instant::now() < deadline {
        let (_, status) = owner::tell(state, "status", &[]).await.unwrap();
        let waiting = status["waiting"].as_array().cloned().unwrap_or_default();
        let ours = |it: &Value| it["waits_for"] == "our_owner" && it["payment"]["reference"] == reference;
        if waiting.iter().any(ours) {
            return;
        }
    }
    panic!("the provider never heard of `{reference}`");
}

/// Both say that the renter owes `owed` (less than nothing: it has prepaid).
async fn assert_both(renter: &Renter, provider: &Path, owed: i64) {
    let ours = -ledgers::balance("potluck", renter.state()).await.unwrap();
    let theirs = ledgers::balance("potluckd", provider).await.unwrap();
    assert_eq!((ours, theirs), (owed, owed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_at_its_limit_is_told_the_way_out() {
    let _turn = turn().await;
    let mut network = Network::start().await.unwrap();
    network.add_provider_with("0.04", &["--new-peer-credit", "4"]).await.unwrap();
    let (renter, provider) = (network.renter("renter").unwrap(), &network.providers[0]);
    let lent = 4 * 11_111;
    let job = renter.run(LONG, &["--max-tokens", "4000"]).await.unwrap();
    assert_failed(&job, 4, "credit_reached", "renter");
    assert_eq!(number(job.event("settled"), "amount_nanocredits"), lent);
    assert_eq!(assert_opposite(renter.state(), &provider.state).await, lent);

    let way_out = format!("potluck ledger settle {}", provider.peer);
    for flags in [&[][..], &["--budget", "0.0001"]] {
        let job = renter.run("Name a planet.", flags).await.unwrap();
        assert_failed(&job, 4, "credit_exhausted", "renter");
        let hint = job.event("error")["hint"].as_str().unwrap();
        assert!(hint.contains(&way_out), "{hint}");
    }
    assert_eq!(assert_opposite(renter.state(), &provider.state).await, lent);

    // The way out leads out.
    let cash = ["--amount", "0.000044444", "--ref", "cash"];
    let mut paying =
        renter.settle(&[&[provider.peer.as_str()], &cash[..], &["--wait", "60"]].concat()).unwrap();
    until_claimed(&provider.state, "cash").await;
    let us = ledgers::ask("potluckd", "balance", &provider.state).await.unwrap();
    let us = us[0]["pairs"][0]["peer"].as_str().unwrap();
    ledgers::settle(&provider.state, &[&[us], &cash[..]].concat()).await.unwrap();
    assert!(paying.exit(JOB).await.unwrap().success(), "{}", paying.stderr());
    let job = small_job(&renter).await;
    assert_eq!(number(job.event("quote"), "credit_nanocredits"), lent + lent / 2);
    assert!(assert_opposite(renter.state(), &provider.state).await > 0);
}
