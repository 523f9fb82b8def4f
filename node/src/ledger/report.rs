//! The ledger as `potluck ledger --json` and `potluckd ledger --json` show it.
//!
//! Owns: the JSON of balances and receipts, the same on both sides (stable: fields are added, never
//! renamed). Never: adds anything up (the ledger does) or prints. Called by both programs' `ledger`
//! verbs and by the provider's control socket.

use potluck_protocol::id::PeerId;
use serde_json::{Value, json};

use super::{Filter, LaneSummary, Ledger, ReadError};
use crate::catalogue;

/// What peers owe, in nano-credits.
///
/// # Errors
/// When the ledger cannot be read.
pub fn balance(ledger: &Ledger, me: PeerId) -> Result<Value, ReadError> {
    let totals = ledger.totals()?;
    let pairs: Vec<_> = ledger
        .pairs()?
        .into_iter()
        .map(|pair| {
            json!({
                "peer": pair.peer,
                "balance_nanocredits": number(pair.balance),
                "lanes": pair.lanes,
                "open": pair.open,
            })
        })
        .collect();
    Ok(json!({
        "peer": me,
        "owed_to_us_nanocredits": number(totals.owed_to_us),
        "we_owe_nanocredits": number(totals.we_owe),
        "balance_nanocredits": number(totals.balance),
        "pairs": pairs,
    }))
}

/// The last `limit` jobs, newest first, an object each.
///
/// # Errors
/// When the ledger cannot be read.
pub fn receipts(ledger: &Ledger, limit: usize) -> Result<Vec<Value>, ReadError> {
    let filter = Filter { limit: Some(limit), ..Filter::default() };
    Ok(ledger.lanes(&filter)?.iter().map(receipt).collect())
}

fn receipt(lane: &LaneSummary) -> Value {
    json!({
        "job": lane.lane.to_string(),
        "role": lane.role,
        "peer": lane.peer,
        "opened_unix_ms": lane.opened.get(),
        "model": lane.model,
        "model_name": lane.model.and_then(catalogue::name_of),
        "gpu_ms": lane.run_ms.saturating_add(lane.load_ms),
        "load_ms": lane.load_ms,
        "run_ms": lane.run_ms,
        "guest_ms": lane.guest_ms,
        "amount_nanocredits": lane.amount.get(),
        "vouchers": lane.vouchers,
        "receipts": lane.receipts,
        "prompt_tokens": lane.prompt_tokens,
        "completion_tokens": lane.completion_tokens,
        "reason": lane.reason,
        "receipt": lane.receipt.map(|digest| digest.to_string()),
    })
}

/// JSON has no 128-bit numbers; no ledger comes near 9 billion credits.
fn number(nanos: i128) -> i64 {
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}
