//! The owner wants the machine back while a stranger's job runs, and lends it again later.
//!
//! Owns: `potluckd pause`, `pause --now`, `--for` and `resume`, as owner and renter live through them.
//! Never: the end of the daemon itself ([`crate::owner_stops`]). Run by the stories.

use std::path::{Path, PathBuf};

use potluck_tests::network::Network;
use potluck_tests::owner::tell;
use potluck_tests::process::{Process, descendants};
use potluck_tests::programs::MODEL;
use potluck_tests::renter::{Ended, JOB, Renter};
use serde_json::Value;

use crate::{LONG, assert_bill, assert_failed, assert_opposite, number, turn};

/// A provider that joined the network.
async fn owner(network: &Network, state: &Path) -> (Process, Value) {
    let mut command = network.provider_command(state, MODEL, "0.04").unwrap();
    command.arg("--json");
    let mut owner = Process::start("potluckd", command, &state.with_extension("stderr")).unwrap();
    let ready = owner.event("ready", JOB).await.unwrap();
    owner.event("joined", JOB).await.unwrap();
    (owner, ready)
}

async fn market() -> (Network, PathBuf, Process) {
    let network = Network::start().await.unwrap();
    let state = network.folder("owner").unwrap();
    let (owner, ready) = owner(&network, &state).await;
    assert!(ready["paused"].is_null(), "{ready}");
    (network, state, owner)
}

/// A job on its way: its first piece of text is there.
async fn running(renter: &Renter, tokens: &str) -> (Process, Vec<Value>) {
    let mut process = renter.start(LONG, &["--max-tokens", tokens]).unwrap();
    let quote = process.event("quote", JOB).await.unwrap();
    let first = process.event("output", JOB).await.unwrap();
    (process, vec![quote, first])
}

/// Reads a job that [`running`] started to its end.
async fn ended(renter: &Renter, (process, before): (Process, Vec<Value>)) -> Ended {
    let mut job = renter.finish(process).await.unwrap();
    job.events.splice(0..0, before);
    job
}

/// The owner's command succeeds; its answer.
async fn told(state: &Path, verb: &str, flags: &[&str]) -> Value {
    let (code, answer) = tell(state, verb, flags).await.unwrap();
    assert_eq!(code, Some(0), "{verb} {flags:?}: {answer}");
    answer
}

/// A renter that comes now is told why it gets no price.
async fn assert_refused(network: &Network, name: &str) {
    let job = network.renter(name).unwrap().run("hi", &["--max-tokens", "4"]).await.unwrap();
    assert_failed(&job, 3, "no_provider", "network");
    let message = job.event("error")["message"].as_str().unwrap();
    assert!(message.contains("the owner needs the machine"), "{message}");
}

async fn assert_served(network: &Network, name: &str) {
    let job = network.renter(name).unwrap().run("hi", &["--max-tokens", "4"]).await.unwrap();
    assert_eq!(job.code(), Some(0), "{}", job.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_now_settles_the_running_and_the_queued_job_and_frees_the_machine() {
    let _turn = turn().await;
    let (network, state, owner) = market().await;
    let (renter, waiter) = (network.renter("renter").unwrap(), network.renter("waiter").unwrap());
    let job = running(&renter, "4000").await;
    let mut queued = waiter.start(LONG, &["--max-tokens", "4000"]).unwrap();
    let quote = queued.event("quote", JOB).await.unwrap();
    let phase = queued.event("phase", JOB).await.unwrap();
    assert_eq!(phase["phase"], "queued");
    let workers = descendants(owner.id().unwrap());
    assert!(!workers.is_empty(), "the worker is no process of its own");

    let answer = told(&state, "pause", &["--now"]).await;
    assert_eq!(answer["state"], "paused", "{answer}");
    assert_eq!((number(&answer, "jobs_stopped"), number(&answer, "jobs_settled")), (2, 2), "{answer}");
    assert!(number(&answer, "stopped_ms") <= number(&answer, "freed_ms"), "{answer}");
    assert!(number(&answer, "processes_killed") >= 1, "{answer}");
    assert_eq!(descendants(owner.id().unwrap()), [], "a worker is left after the answer");

    // The part that was done is paid, to the instant; both books agree, and nobody is blamed.
    let job = ended(&renter, job).await;
    assert_failed(&job, 1, "owner_yield", "nobody");
    assert!(!job.text().is_empty(), "the answer so far is lost");
    assert_bill(&job, u64::MAX);
    let error = job.event("error")["message"].as_str().unwrap();
    assert!(error.contains("needs the machine") && error.contains("paid"), "{error}");
    assert!(number(job.event("done"), "completion_tokens") < 4_000);
    let amount = number(job.event("settled"), "amount_nanocredits");
    assert!(amount > 0);
    let waited = ended(&waiter, (queued, vec![quote, phase])).await;
    assert_failed(&waited, 1, "owner_yield", "nobody");
    assert_eq!(number(waited.event("settled"), "amount_nanocredits"), 0, "waiting was billed");
    assert_eq!(assert_opposite(renter.state(), &state).await, amount);

    // Said twice it is the same; strangers are told why they get nothing.
    let again = told(&state, "pause", &["--now"]).await;
    assert_eq!((&again["state"], number(&again, "processes_killed")), (&"paused".into(), 0), "{again}");
    assert_refused(&network, "refused").await;
    let status = told(&state, "status", &[]).await;
    assert_eq!((&status["owner"]["state"], &status["models"][0]["warm"]), (&"paused".into(), &false.into()));

    let resumed = told(&state, "resume", &[]).await;
    assert_eq!((&resumed["state"], &resumed["warm"]), (&"running".into(), &true.into()), "{resumed}");
    assert_served(&network, "served").await;
    assert!(!owner.stderr().contains("panicked"), "{}", owner.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gentle_pause_lets_the_job_finish_and_then_frees_the_machine() {
    let _turn = turn().await;
    let (network, state, mut owner) = market().await;
    let renter = network.renter("renter").unwrap();
    let job = running(&renter, "60").await;
    let answer = told(&state, "pause", &[]).await;
    assert_eq!((&answer["state"], number(&answer, "jobs_left")), (&"draining".into(), 1), "{answer}");
    assert_refused(&network, "refused").await;

    let job = ended(&renter, job).await;
    assert_eq!(job.code(), Some(0), "{}", job.stderr);
    assert_eq!(number(job.event("done"), "completion_tokens"), 60);
    while owner.event("owner", JOB).await.unwrap()["state"] != "paused" {}
    assert_eq!(descendants(owner.id().unwrap()), [], "a worker is left in a paused machine");

    // Resumed and paused again with nothing to wait for: the answer itself says that it is done.
    told(&state, "resume", &[]).await;
    assert_served(&network, "served").await;
    let answer = told(&state, "pause", &[]).await;
    assert_eq!(answer["state"], "paused", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_with_an_end_ends_by_itself() {
    let _turn = turn().await;
    let (network, state, mut owner) = market().await;
    let answer = told(&state, "pause", &["--now", "--for", "2s"]).await;
    assert!(answer["until_ms"].is_u64() && answer["state"] == "paused", "{answer}");
    while owner.event("owner", JOB).await.unwrap()["state"] != "running" {}
    owner.event("worker_back", JOB).await.unwrap();
    assert_served(&network, "served").await;
    let status = told(&state, "status", &[]).await;
    assert_eq!(status["owner"]["state"], "running", "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_daemon_stays_paused_until_the_owner_lends_it() {
    let _turn = turn().await;
    let (network, state, first) = market().await;
    told(&state, "pause", &["--now", "--for", "1h"]).await;
    assert!(first.stop().await.unwrap().success());

    let (second, ready) = owner(&network, &state).await;
    assert_eq!(ready["paused"], true, "{ready}");
    assert!(ready["until_ms"].is_u64(), "{ready}");
    assert_eq!(descendants(second.id().unwrap()), [], "a paused machine loaded a model");
    let status = told(&state, "status", &[]).await;
    assert_eq!(
        (&status["owner"]["state"], &status["owner"]["until_ms"]),
        (&"paused".into(), &ready["until_ms"])
    );
    told(&state, "resume", &[]).await;
    assert_served(&network, "served").await;
    assert!(second.stop().await.unwrap().success());

    let (third, ready) = owner(&network, &state).await;
    assert!(ready["paused"].is_null(), "a resume was forgotten: {ready}");
    drop(third);
    let (code, answer) = tell(&state, "pause", &["--now"]).await.unwrap();
    assert_eq!((code, answer["code"].as_str()), (Some(1), Some("not_running")), "{answer}");
}
