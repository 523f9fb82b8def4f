//! Both sides' books, read through the programs that keep them.
//!
//! Owns: `potluck ledger ... --json` and `potluckd ledger ... --json`, and what the owner says there. Never: opens a ledger's files.
//! Called by the demo and the stories.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::error::KitError;
use crate::process::Process;
use crate::programs::program;

const READ: Duration = Duration::from_secs(20);

/// The JSON lines that `program ledger verb` prints for the state folder `state`.
///
/// # Errors
/// When it fails or prints no JSON.
pub async fn ask(name: &str, verb: &str, state: &Path) -> Result<Vec<Value>, KitError> {
    ask_of(name, &[verb], state).await
}

/// As [`ask`], for a verb with words behind it.
///
/// # Errors
/// As [`ask`].
pub async fn ask_of(name: &str, words: &[&str], state: &Path) -> Result<Vec<Value>, KitError> {
    let mut command = Command::new(program(name)?);
    command.arg("ledger").args(words).args(["--json", "--state-dir"]).arg(state);
    let mut process = Process::start(name, command, &state.with_extension("ledger-stderr"))?;
    let mut lines = Vec::new();
    while let Some(line) = process.next_event(READ).await? {
        lines.push(line);
    }
    if process.exit(READ).await?.success() {
        return Ok(lines);
    }
    Err(KitError::Ended {
        program: name.into(),
        what: format!("answer `ledger {}`", words.join(" ")),
        log: process.stderr(),
    })
}

/// `potluckd ledger settle` with `flags` (the renter, the amount and the reference among them), told to the
/// provider whose state is in `state`: its exit code, and its answer or its error.
///
/// # Errors
/// When it does not start, prints no JSON, or does not end in time.
pub async fn settle(state: &Path, flags: &[&str]) -> Result<(Option<i32>, Value), KitError> {
    let mut command = Command::new(program("potluckd")?);
    command.args(["ledger", "settle", "--json"]).args(flags).arg("--state-dir").arg(state);
    let mut process = Process::start("potluckd", command, &state.with_extension("settle-stderr"))?;
    let answer = process.next_event(READ).await?.unwrap_or_default();
    Ok((process.exit(READ).await?.code(), answer))
}

/// What the ledger in `state` says in sum: positive when others owe its owner. Nano-credits.
///
/// # Errors
/// As [`ask`], and when there is no balance in it.
pub async fn balance(name: &str, state: &Path) -> Result<i64, KitError> {
    let lines = ask(name, "balance", state).await?;
    let found = lines.first().and_then(|line| line["balance_nanocredits"].as_i64());
    found.ok_or_else(|| KitError::Unreadable {
        program: name.into(),
        line: lines.first().map(Value::to_string).unwrap_or_default(),
        why: "balance_nanocredits is missing".into(),
    })
}

/// The jobs in the ledger of `state`, newest first.
///
/// # Errors
/// As [`ask`].
pub async fn receipts(name: &str, state: &Path) -> Result<Vec<Value>, KitError> {
    ask(name, "receipts", state).await
}
