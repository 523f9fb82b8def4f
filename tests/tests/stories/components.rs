//! A renter sends a program of her own: it runs beside the models, and its time and theirs are on one
//! bill.
//!
//! Owns: `potluck exec` from the file to the settled lane, and what a component may not do. Never: how
//! a jail holds (the escape suite). Run by the stories; says so when a language's tools are missing.

use std::fs;
use std::path::{Path, PathBuf};

use potluck_protocol::unit::{GpuMillis, Rate, amount};
use potluck_tests::guest_tools::{Guest, component};
use potluck_tests::ledgers;
use potluck_tests::network::Network;
use potluck_tests::renter::Ended;
use serde_json::{Value, json};

use crate::{assert_failed, assert_opposite, number, turn};

const ENCODER: &str = "all-minilm-l6-v2";
const MODELS: [&str; 4] = ["--model", "embed=all-minilm-l6-v2", "--model", "chat=smollm2-135m"];

/// The smallest job there is, in the text form: gives back what it was given.
const ECHO: &str = r#"
(component
  (core module $m
    (memory (export "memory") 17)
    (global $next (mut i32) (i32.const 65536))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $at i32)
      (local.set $at (global.get $next))
      (global.set $next (i32.add (global.get $next) (i32.and (i32.add (local.get 3) (i32.const 15)) (i32.const -16))))
      (local.get $at))
    (func (export "run") (param $at i32) (param $len i32) (result i32)
      (i32.store8 (i32.const 1024) (i32.const 0))
      (i32.store (i32.const 1028) (local.get $at))
      (i32.store (i32.const 1032) (local.get $len))
      (i32.const 1024)))
  (core instance $i (instantiate $m))
  (func (export "run") (param "input" (list u8)) (result (result (list u8) (error string)))
    (canon lift (core func $i "run") (memory (core memory $i "memory")) (realloc (core func $i "realloc")))))
"#;

/// As [`ECHO`], but it never ends.
fn endless() -> String {
    ECHO.replace("(i32.const 1024)))\n  (core instance", "(loop (br 0)) (unreachable)))\n  (core instance")
}

fn file(network: &Network, name: &str, bytes: &[u8]) -> PathBuf {
    let path = network.folder("files").unwrap().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn wasm(network: &Network, name: &str, text: &str) -> PathBuf {
    file(network, name, &wat::parse_str(text).unwrap())
}

/// The bill is the three prices times the three times, floored once.
fn assert_exec_bill(job: &Ended, receipt: &Value) {
    let quote = job.event("quote");
    let rate = |key: &str| Rate::new(number(quote, key));
    let ms = |key: &str| GpuMillis::new(number(receipt, key));
    let due = amount(&[
        (rate("run_nanocredits_per_second"), ms("run_ms")),
        (rate("load_nanocredits_per_second"), ms("load_ms")),
        (rate("guest_nanocredits_per_second"), ms("guest_ms")),
    ]);
    assert_eq!(number(job.event("settled"), "amount_nanocredits"), due.get(), "{receipt}");
}

async fn last_receipt(name: &str, state: &Path) -> Value {
    ledgers::receipts(name, state).await.unwrap().first().cloned().unwrap_or(Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_finds_lines_and_asks_a_model_about_them() {
    let _turn = turn().await;
    let Some(wasm) = component(Guest::NearestLines).await.unwrap() else { return };
    let mut network = Network::start().await.unwrap();
    let provider = network.add_provider_with("0.04", &["--model", ENCODER]).await.unwrap();
    let state = provider.state.clone();
    let renter = network.renter("renter").unwrap();
    let input = json!({
        "query": "Which planet has rings?",
        "lines": ["Bread is made of flour and water.", "Saturn is a planet with bright rings.",
                  "Foxes hunt at night.", "The rings of Jupiter are faint."],
        "k": 2,
    });
    let input = file(&network, "input.json", input.to_string().as_bytes());
    let job = renter.exec(&wasm, &input, &MODELS).await.unwrap();
    assert_eq!(job.code(), Some(0), "{:?}\n{}", job.events, job.stderr);
    let result: Value = serde_json::from_str(job.event("result")["data"].as_str().unwrap()).unwrap();
    let lines: Vec<_> = (0..2).map(|at| result["nearest"][at]["line"].as_str().unwrap()).collect();
    assert!(lines.iter().all(|line| line.contains("rings")), "{result}");
    assert!(!result["answer"].as_str().unwrap().is_empty(), "{result}");
    assert!(job.events.iter().any(|event| event["event"] == "progress"), "{:?}", job.events);

    let (ours, theirs) =
        (last_receipt("potluck", renter.state()).await, last_receipt("potluckd", &state).await);
    for key in ["load_ms", "run_ms", "guest_ms"] {
        assert!(number(&ours, key) > 0, "{key} of {ours}");
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    assert_exec_bill(&job, &ours);
    assert!(assert_opposite(renter.state(), &state).await > 0);

    // The same component is known now: it is neither sent nor compiled again.
    let again = renter.exec(&wasm, &input, &MODELS).await.unwrap();
    assert_eq!(again.code(), Some(0), "{:?}\n{}", again.events, again.stderr);
    assert_eq!(again.event("result")["data"], job.event("result")["data"], "equal jobs give equal results");
    let second = last_receipt("potluck", renter.state()).await;
    assert!(number(&second, "load_ms") < number(&ours, "load_ms"), "{second} after {ours}");

    // What it gives as an error is a failed job, and its time is owed all the same.
    let bad = file(&network, "bad.json", b"not json");
    let failed = renter.exec(&wasm, &bad, &MODELS).await.unwrap();
    assert_failed(&failed, 1, "guest_failed", "renter");
    assert!(number(failed.event("settled"), "guest_ms") > 0);
    assert_opposite(renter.state(), &state).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_template_runs_as_it_is() {
    let _turn = turn().await;
    let mut network = Network::start().await.unwrap();
    network.add_provider("0.04").await.unwrap();
    let renter = network.renter("renter").unwrap();
    let input = file(&network, "words.txt", b"one two three two\n");
    for guest in [Guest::Python, Guest::C] {
        let Some(wasm) = component(guest).await.unwrap() else { continue };
        let job = renter.exec(&wasm, &input, &[]).await.unwrap();
        assert_eq!(job.code(), Some(0), "{}: {:?}\n{}", guest.name(), job.events, job.stderr);
        assert!(
            job.event("result")["data"].as_str().is_some_and(|data| !data.is_empty()),
            "{:?}",
            job.events
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_component_may_not_do_ends_it_and_not_the_provider() {
    let _turn = turn().await;
    let mut network = Network::start().await.unwrap();
    let provider = network.add_provider("0.04").await.unwrap();
    let state = provider.state.clone();
    let renter = network.renter("renter").unwrap();
    let input = file(&network, "input", b"hello");
    let echo = wasm(&network, "echo.wasm", ECHO);

    let job = renter.exec(&echo, &input, &[]).await.unwrap();
    assert_eq!(
        (job.code(), job.event("result")["data"].as_str()),
        (Some(0), Some("hello")),
        "{:?}",
        job.events
    );
    let spins = wasm(&network, "spins.wasm", &endless());
    let job = renter.exec(&spins, &input, &["--max-seconds", "2"]).await.unwrap();
    assert_ne!(job.code(), Some(0), "{:?}", job.events);
    let paid = number(job.event("settled"), "guest_ms");
    assert!((1_000..=2_000).contains(&paid), "{paid} ms of at most 2 s");
    let broken = file(&network, "broken.wasm", &[b"\0asm\x0d\0\x01\0".as_slice(), &[0xff; 64]].concat());
    assert_failed(&renter.exec(&broken, &input, &[]).await.unwrap(), 1, "guest_failed", "renter");
    let unknown = renter.exec(&echo, &input, &["--model", "x=all-minilm-l6-v2"]).await.unwrap();
    assert_failed(&unknown, 3, "no_provider", "network");
    let text = file(&network, "text.wasm", ECHO.as_bytes());
    assert_failed(&renter.exec(&text, &input, &[]).await.unwrap(), 2, "usage", "renter");
    // And the provider serves on.
    let job = renter.exec(&echo, &input, &[]).await.unwrap();
    assert_eq!(job.code(), Some(0), "{:?}", job.events);
    assert_opposite(renter.state(), &state).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_without_a_jail_says_so_and_renters_keep_away() {
    let _turn = turn().await;
    let mut network = Network::start().await.unwrap();
    let provider = network.add_provider_with("0.04", &["--unsafe-no-jail"]).await.unwrap();
    assert_eq!(provider.ready["protection"], "none", "{}", provider.ready);
    let renter = network.renter("renter").unwrap();
    let refused = renter.run("hi", &["--max-tokens", "2"]).await.unwrap();
    assert_failed(&refused, 3, "unprotected", "renter");
    let taken = renter.run("hi", &["--max-tokens", "2", "--protection", "none"]).await.unwrap();
    assert_eq!(taken.code(), Some(0), "{}", taken.stderr);
    assert_eq!(taken.event("quote")["protection"], "none");
}
