//! `potluckd ledger`: what peers owe, and for which jobs.
//!
//! Owns: asking the running potluckd, or opening the ledger when none runs. Never: changes it.

use std::path::Path;

use potluck_node::identity::Identity;
use potluck_node::ledger::{Ledger, report};
use potluck_node::state::StateDir;
use potluck_protocol::unit::dollars;
use serde_json::{Value, json};

use super::print_line;
use crate::cli::LedgerVerb;
use crate::control::{Question, ask};
use crate::error::CommandError;

pub(super) fn run(verb: LedgerVerb) -> Result<(), CommandError> {
    let (dir, json, question) = match verb {
        LedgerVerb::Balance { state, json } => (state.dir(), json, Question::Balance),
        LedgerVerb::Receipts { state, limit, json } => (state.dir(), json, Question::Receipts { limit }),
    };
    let answer = match ask(&dir, question.clone())? {
        Some(answer) => answer,
        None => read(&dir, question.clone())?,
    };
    if json && matches!(question, Question::Receipts { .. }) {
        receipts(&answer).iter().for_each(|receipt| print_line(&receipt.to_string()));
        return Ok(());
    }
    let shown = match question {
        _ if json => answer.to_string(),
        Question::Receipts { .. } => receipts_prose(&answer),
        _ => balance_prose(&answer),
    };
    print_line(&shown);
    Ok(())
}

/// Nobody else has the state: the folder's lock says so.
fn read(dir: &Path, question: Question) -> Result<Value, CommandError> {
    let state = StateDir::open(dir)?;
    let identity = Identity::load_or_create(&state.key_path())?;
    let (ledger, _) = Ledger::open(&state.ledger_dir(), identity.peer())?;
    Ok(match question {
        Question::Receipts { limit } => json!({"receipts": report::receipts(&ledger, limit)?}),
        _ => report::balance(&ledger, identity.peer())?,
    })
}

fn balance_prose(answer: &Value) -> String {
    let money = |value: Option<&Value>| dollars(i128::from(value.and_then(Value::as_i64).unwrap_or(0)), true);
    let mut lines = vec![format!(
        "balance   {}   (owed to us {}, we owe {})",
        money(answer.get("balance_nanocredits")),
        money(answer.get("owed_to_us_nanocredits")),
        money(answer.get("we_owe_nanocredits")),
    )];
    for pair in answer.get("pairs").and_then(Value::as_array).into_iter().flatten() {
        lines.push(format!(
            "  {}  {}  {} jobs, {} open",
            pair.get("peer").and_then(Value::as_str).unwrap_or("?"),
            money(pair.get("balance_nanocredits")),
            pair.get("lanes").and_then(Value::as_u64).unwrap_or(0),
            pair.get("open").and_then(Value::as_u64).unwrap_or(0),
        ));
    }
    lines.join("\n")
}

fn receipts(answer: &Value) -> &[Value] {
    answer.get("receipts").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn receipts_prose(answer: &Value) -> String {
    let receipts = receipts(answer);
    if receipts.is_empty() {
        return "no jobs yet".into();
    }
    let line = |receipt: &Value| {
        let text = |key| receipt.get(key).and_then(Value::as_str).unwrap_or("open");
        let number = |key| receipt.get(key).and_then(Value::as_u64).unwrap_or(0);
        format!(
            "{}  {} ms  {}  {} tokens  {} vouchers  {}  with {}",
            text("job"),
            number("gpu_ms"),
            dollars(i128::from(number("amount_nanocredits")), false),
            number("completion_tokens"),
            number("vouchers"),
            text("reason"),
            text("peer"),
        )
    };
    receipts.iter().map(line).collect::<Vec<_>>().join("\n")
}
