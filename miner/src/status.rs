//! How a running provider is doing.
//!
//! Owns: the JSON of `potluckd status` and its prose. Never: measures or changes anything. Called by
//! the control socket (JSON) and the command (prose).

use std::sync::atomic::Ordering;
use std::time::Instant;

use potluck_node::books::Balance;
use potluck_node::net::Network;
use potluck_protocol::unit::{UnixMillis, dollars};
use serde_json::{Value, json};

use crate::clock::wall_now;
use crate::desk::Desk;
use crate::guests::GuestHouse;

/// Everything at once.
pub(crate) async fn of(desk: &Desk, network: &Network, started: Instant) -> Value {
    let models: Vec<_> = desk
        .slots()
        .iter()
        .map(|slot| {
            let ready = slot.ready();
            json!({
                "name": slot.model().name,
                "model": slot.model().hash,
                "warm": ready.is_some(),
                "device": ready.as_ref().map(|ready| &ready.hardware.class),
                "context_tokens": ready.as_ref().map(|ready| ready.ware.context_tokens),
            })
        })
        .collect();
    let first = desk.slots().iter().find_map(|slot| slot.ready());
    let balance = Balance::of(desk.ledger(), desk.me());
    let owner = desk.gate().owner();
    json!({
        "peer": desk.me(),
        "owner": {
            "state": owner.stage(),
            "until_ms": owner.until().map(UnixMillis::get),
            "words": owner.words(wall_now()),
        },
        "uptime_ms": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "models": models,
        "device": first.as_ref().map(|ready| &ready.hardware.class),
        "hardware": first.as_ref().map(|ready| &ready.hardware.name),
        "price_per_hour": desk.prices().run.to_string(),
        "protection": desk.protection().level(),
        "protection_detail": desk.protection().summary(),
        "guest_runtime": desk.guests().map(GuestHouse::runtime),
        "jobs": {
            "running": desk.running(),
            "done": desk.counts.done.load(Ordering::Relaxed),
            "ended_early": desk.counts.ended_early.load(Ordering::Relaxed),
        },
        "waiting": desk.accounts().waiting().unwrap_or_default(),
        "balance_nanocredits": balance.ok().map(|balance| balance.balance_nanocredits),
        "addresses": network.listeners().await.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "network": network.snapshot().await.ok(),
    })
}

/// The same for people, one thing a line.
#[must_use]
pub(crate) fn prose(status: &Value) -> String {
    let text = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or("?").to_owned();
    let count = |key: &str| status.pointer(&format!("/jobs/{key}")).and_then(Value::as_u64).unwrap_or(0);
    let lent = status.pointer("/owner/state").and_then(Value::as_str).is_none_or(|state| state == "running");
    let words = status.pointer("/owner/words").and_then(Value::as_str).unwrap_or("?");
    let paused = (!lent).then(|| words.to_owned());
    let loading = if lent { "loading" } else { "not in memory" };
    let names: Vec<_> = status
        .get("models")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|model| {
            let warm = model.get("warm").and_then(Value::as_bool).unwrap_or(false);
            let name = model.get("name").and_then(Value::as_str).unwrap_or("?");
            format!("{name} ({})", if warm { "warm" } else { loading })
        })
        .collect();
    let owed = status.get("balance_nanocredits").and_then(Value::as_i64).unwrap_or(0);
    let uptime = status.get("uptime_ms").and_then(Value::as_u64).unwrap_or(0) / 1_000;
    let addresses = status.get("addresses").and_then(Value::as_array).map_or(0, Vec::len);
    let lines = [
        format!("serving   {} on {} at {}", names.join(", "), text("hardware"), text("price_per_hour")),
        format!(
            "jobs      {} running or queued, {} done, {} ended early",
            count("running"),
            count("done"),
            count("ended_early")
        ),
        format!("balance   {} (IOUs of renters less our own)", dollars(i128::from(owed), true)),
        format!("network   {} at {addresses} addresses", text("peer")),
        format!("jail      {}", text("protection_detail")),
        format!("up        {}:{:02}:{:02}", uptime / 3_600, uptime / 60 % 60, uptime % 60),
    ];
    paused.into_iter().chain(lines).chain(waiting(status)).collect::<Vec<_>>().join("\n")
}

/// What peers say that they paid: it counts once the owner says so too.
fn waiting(status: &Value) -> impl Iterator<Item = String> {
    let all = status.get("waiting").and_then(Value::as_array).into_iter().flatten();
    let ours = all.filter(|it| it.get("waits_for").is_some_and(|whom| whom == "our_owner"));
    ours.map(|it| {
        let amount = it.pointer("/payment/amount").and_then(Value::as_u64).unwrap_or(0);
        let text = |at: &str| it.pointer(at).and_then(Value::as_str).unwrap_or("?");
        // The reference is a stranger's text, and the line may be pasted into a shell.
        let reference: String = text("/payment/reference").chars().filter(|c| !c.is_control()).collect();
        let reference = reference.replace('\'', r"'\''");
        format!(
            "paid?     {} says it paid {}: potluckd ledger settle {0} --amount {} --ref '{reference}' [--deny]",
            text("/peer"),
            dollars(i128::from(amount), false),
            dollars(i128::from(amount), false).trim_start_matches('$'),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_hears_who_says_that_it_paid_and_how_to_answer() {
        let payment = json!({"payer": "12D3", "amount": 1_500_000_000_u64, "reference": "it's\u{1b} $(7)"});
        let waiting = json!([
            {"peer": "12D3", "payment": payment, "waits_for": "our_owner"},
            {"peer": "12D4", "payment": null, "waits_for": "their_answer"},
        ]);
        let shown = prose(&json!({"waiting": waiting}));
        assert!(shown.contains("settle 12D3 --amount 1.50 --ref 'it'\\''s $(7)' [--deny]"), "{shown}");
        assert!(!shown.contains("12D4"), "{shown}");
    }

    #[test]
    fn a_short_answer_is_shown_as_far_as_it_goes() {
        let shown = prose(&json!({"models": [{"name": "m", "warm": true}], "balance_nanocredits": 1_500}));
        assert!(shown.starts_with("serving   m (warm) on ? at ?\n"), "{shown}");
        assert!(shown.contains("+$0.0000015"), "{shown}");
        let owner = json!({"state": "paused", "words": "paused; `potluckd resume` ends it"});
        let shown = prose(&json!({"owner": owner, "models": [{"name": "m", "warm": false}]}));
        assert!(shown.starts_with("paused; `potluckd resume` ends it\n"), "{shown}");
        assert!(shown.contains("m (not in memory)"), "{shown}");
    }
}
