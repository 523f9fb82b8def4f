//! The main job: tokens come, both sides sign the bill, and their ledgers agree.
//!
//! Owns: the good way. Never: anything that fails on purpose. Run by the stories.

use potluck_tests::ledgers;
use potluck_tests::network::Network;
use potluck_tests::process::Process;
use potluck_tests::programs::MODEL;
use potluck_tests::renter::JOB;
use serde_json::Value;

use crate::{assert_bill, assert_opposite, number, turn};

const QUESTION: &str = "Why is the sky blue?";

/// The position of the first event of this kind.
fn at(events: &[Value], kind: &str) -> usize {
    events
        .iter()
        .position(|event| event["event"] == kind)
        .unwrap_or_else(|| panic!("no `{kind}` in {events:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_answers_and_both_ledgers_agree() {
    let _turn = turn().await;
    let network = Network::with_providers(&["0.05", "0.04"]).await.unwrap();
    let renter = network.renter("renter").unwrap();
    let job = renter.run(QUESTION, &["--max-tokens", "32"]).await.unwrap();

    assert_eq!(job.code(), Some(0), "{}", job.stderr);
    let order = ["quote", "accepted", "output", "settled", "done"].map(|kind| at(&job.events, kind));
    assert!(order.is_sorted(), "{order:?}");
    assert!(job.text().to_lowercase().contains("light"), "{}", job.text());
    let done = job.event("done");
    let tokens: u64 = job.events.iter().filter(|e| e["event"] == "output").map(|e| number(e, "tokens")).sum();
    assert_eq!(number(done, "completion_tokens"), tokens);
    assert!((1..=32).contains(&tokens));
    assert!(number(done, "prompt_tokens") > 0);
    assert!(number(done, "ttft_ms") <= number(done, "elapsed_ms"));

    let cheap = &network.providers[1];
    assert_eq!(job.event("settled")["provider"], cheap.peer, "the cheaper of two was not chosen");
    assert_eq!(number(job.event("quote"), "quotes"), 2);
    assert_bill(&job, u64::MAX);
    let amount = number(job.event("settled"), "amount_nanocredits");
    assert!(amount > 0);
    assert_eq!(assert_opposite(renter.state(), &cheap.state).await, amount);
    assert_eq!(ledgers::balance("potluckd", &network.providers[0].state).await.unwrap(), 0);

    let bought = ledgers::receipts("potluck", renter.state()).await.unwrap();
    let sold = ledgers::receipts("potluckd", &cheap.state).await.unwrap();
    assert_eq!((bought.len(), sold.len()), (1, 1), "{bought:?} {sold:?}");
    for key in ["job", "gpu_ms", "amount_nanocredits", "vouchers", "receipt", "completion_tokens"] {
        assert_eq!(bought[0][key], sold[0][key], "{key}");
        assert!(!bought[0][key].is_null(), "{key} is missing: {bought:?}");
    }
    assert_eq!(bought[0]["receipt"], job.event("settled")["receipt"]);
    assert!(bought[0]["receipt"].as_str().is_some_and(|digest| digest.starts_with("b3:")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_the_same_answer_on_another_machine() {
    let _turn = turn().await;
    let network = Network::with_providers(&["0.04", "0.05"]).await.unwrap();
    let renter = network.renter("renter").unwrap();
    let flags =
        |peer, seed| ["--max-tokens", "24", "--temperature", "0.9", "--seed", seed, "--provider", peer];
    let (first, second) = (network.providers[0].peer.as_str(), network.providers[1].peer.as_str());
    let here = renter.run("Tell me a story.", &flags(first, "7")).await.unwrap();
    let there = renter.run("Tell me a story.", &flags(second, "7")).await.unwrap();
    let other = renter.run("Tell me a story.", &flags(second, "8")).await.unwrap();
    assert_eq!(here.event("settled")["provider"], first);
    assert_eq!(there.event("settled")["provider"], second);
    assert!(!here.text().is_empty());
    assert_eq!(here.text(), there.text());
    assert_ne!(there.text(), other.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn text_goes_to_stdout_and_prose_to_stderr() {
    let _turn = turn().await;
    let network = Network::with_providers(&["0.04"]).await.unwrap();
    let renter = network.renter("renter").unwrap();
    let command = renter.command(MODEL, QUESTION, &["--max-tokens", "8"]).unwrap();
    let mut process = Process::start("potluck", command, &renter.state().with_extension("stderr")).unwrap();
    let mut text = String::new();
    while let Some(line) = process.line(JOB).await.unwrap() {
        text += &line;
    }
    assert!(process.exit(JOB).await.unwrap().success(), "{}", process.stderr());
    let prose = process.stderr();
    assert!(prose.contains('$'), "the bill is missing: {prose}");
    let json = renter.run(QUESTION, &["--max-tokens", "8"]).await.unwrap();
    assert_eq!(text, json.text().replace('\n', ""), "greedy answers differ, or prose got in between");
}
