//! The stories: whole programs, a real network on the loopback interface, the real model.
//!
//! Owns: what a renter, an owner and a misbehaving stranger live through, one story a file. Never:
//! sleeps, or looks inside a program: what a story knows was printed. Run by `make test`, one story at
//! a time (the engine wants the cores for itself).

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]

mod accounts;
mod answer;
mod bad_models;
mod books;
mod cancelled;
mod clocks;
mod components;
mod impostor;
mod impostors;
mod limits;
mod local_state;
mod lost_provider;
mod nobody;
mod offers;
mod owner_stops;
mod owner_yields;
mod skew;
mod stalled_reader;
mod stranger;
mod strangers;

use std::path::Path;

use potluck_protocol::unit::{GpuMillis, Rate};
use potluck_tests::ledgers;
use potluck_tests::renter::Ended;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

/// A prompt whose answer goes on for many seconds (it ends at no stop token in its first 600).
const LONG: &str = "Tell me a very long story about a fox.";

/// Held by the story that runs.
static TURN: Mutex<()> = Mutex::const_new(());

/// Waits for this story's turn.
async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// A number in an event.
fn number(event: &Value, key: &str) -> u64 {
    event[key].as_u64().unwrap_or_else(|| panic!("`{key}` is no number in {event}"))
}

/// The bill is the price times the time, floored, and no more than `budget`.
fn assert_bill(job: &Ended, budget: u64) {
    let rate = Rate::new(number(job.event("quote"), "run_nanocredits_per_second"));
    let settled = job.event("settled");
    let (ms, amount) = (number(settled, "gpu_ms"), number(settled, "amount_nanocredits"));
    assert_eq!(amount, rate.amount(GpuMillis::new(ms)).get(), "{ms} ms at {rate}");
    assert!(amount <= budget, "{amount} nano-credits of at most {budget}");
}

/// Both ledgers say the same with opposite signs; returns what the renter owes in nano-credits.
async fn assert_opposite(renter: &Path, provider: &Path) -> u64 {
    let owed = -ledgers::balance("potluck", renter).await.unwrap();
    let due = ledgers::balance("potluckd", provider).await.unwrap();
    assert_eq!(owed, due, "the renter says it owes {owed}, the provider that {due} are due");
    u64::try_from(owed).unwrap_or_else(|_| panic!("the renter is owed something: {owed}"))
}

/// The failed job says which code, with which exit status, and what to do.
fn assert_failed(job: &Ended, exit: i32, code: &str, fault: &str) {
    let error = job.event("error");
    assert_eq!((error["code"].as_str(), job.code()), (Some(code), Some(exit)), "{error}\n{}", job.stderr);
    assert_eq!(error["fault"], fault, "{error}");
    for key in ["message", "hint"] {
        assert!(error[key].as_str().is_some_and(|text| text.len() > 8), "no {key}: {error}");
    }
    assert!(!job.stderr.contains("panicked"), "{}", job.stderr);
}
