//! What became of a settlement, as `potluck ledger settle` and `potluckd ledger settle` say it.
//!
//! Owns: the JSON of it, the same on both sides (stable: fields are added, never renamed), and the words
//! for people. Never: decides anything or prints. Called by both programs' verbs.

use potluck_protocol::balance::CancelReason;
use serde_json::{Value, json};

use super::{SettleOutcome, SettleWish};

/// What became of `wish`; `balance` is what the peer owes us now, in nano-credits.
#[must_use]
pub fn settlement(wish: &SettleWish, outcome: &SettleOutcome, balance: i128) -> Value {
    json!({
        "state": state(outcome),
        "peer": wish.peer,
        "we_paid": wish.we_paid,
        "amount_nanocredits": wish.amount,
        "reference": wish.reference,
        "balance_nanocredits": i64::try_from(balance).unwrap_or(if balance < 0 { i64::MIN } else { i64::MAX }),
        "words": words(wish, outcome),
    })
}

fn state(outcome: &SettleOutcome) -> &'static str {
    match outcome {
        SettleOutcome::Agreed => "agreed",
        SettleOutcome::Denied => "denied",
        SettleOutcome::Refused { .. } => "refused",
        SettleOutcome::Proposed => "proposed",
        SettleOutcome::Noted { .. } => "noted",
    }
}

fn words(wish: &SettleWish, outcome: &SettleOutcome) -> String {
    let direction = if wish.we_paid { "to" } else { "from" };
    let payment = format!("{} {direction} {}", wish.amount, wish.peer.short());
    match outcome {
        SettleOutcome::Agreed => format!("settled: both have signed {payment}"),
        SettleOutcome::Denied => format!("denied: {payment} does not count; the balance stays as it was"),
        SettleOutcome::Refused { reason: CancelReason::NotPaid } => {
            format!(
                "refused: the other owner says that {payment} did not arrive; the balance stays as it was"
            )
        }
        SettleOutcome::Refused { reason: CancelReason::Disagrees } => format!(
            "refused: the other side's ledger comes to another balance than ours before {payment}; \
             the balance stays as it was"
        ),
        SettleOutcome::Proposed => format!(
            "{payment} is proposed and waits for the other owner's word; nothing more is to be done here"
        ),
        SettleOutcome::Noted { why } if wish.deny => {
            format!("that {payment} did not arrive is noted, and said when the two next meet: {why}")
        }
        SettleOutcome::Noted { why } => {
            format!("{payment} is noted, and goes on when the two next meet: {why}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_protocol::id::PeerId;
    use potluck_protocol::unit::NanoCredit;

    #[test]
    fn the_fields_keep_their_names_and_the_words_say_who_paid_whom() {
        let wish = SettleWish {
            peer: PeerId::from_bytes([1; 32]),
            we_paid: true,
            amount: NanoCredit::new(1_500_000_000),
            reference: "invoice 7".into(),
            deny: false,
        };
        let said = settlement(&wish, &SettleOutcome::Proposed, -5);
        assert_eq!((&said["state"], &said["balance_nanocredits"]), (&json!("proposed"), &json!(-5)));
        assert_eq!(
            (&said["we_paid"], &said["amount_nanocredits"]),
            (&json!(true), &json!(1_500_000_000_u64))
        );
        let text = said["words"].as_str().unwrap_or_default();
        assert!(text.starts_with("$1.50 to ") && text.contains("waits"), "{text}");
        let theirs = SettleWish { we_paid: false, ..wish };
        let refused = SettleOutcome::Refused { reason: CancelReason::NotPaid };
        assert!(words(&theirs, &refused).contains("$1.50 from "), "{refused:?}");
    }
}
