//! `potluckd ledger settle`: what the owner says about a renter's payment outside of Potluck.
//!
//! Owns: what is said of the outcome. Never: signs or talks to a renter itself: the running potluckd does,
//! because it alone holds the ledger and the network. Called by [`super::run`].

use std::path::Path;

use serde_json::Value;

use super::print_line;
use crate::cli::SettleArgs;
use crate::control::{Question, ask};
use crate::error::CommandError;

pub(super) fn run(dir: &Path, args: SettleArgs) -> Result<(), CommandError> {
    let SettleArgs { peer, amount, reference, deny, json } = args;
    let question = Question::Settle { peer, amount, reference, deny };
    let answer = ask(dir, question)?.ok_or_else(|| CommandError::NotRunning { state_dir: dir.to_owned() })?;
    told(&answer, json).map(|line| print_line(&line))
}

/// What the owner is told; an error when it came to nothing.
fn told(answer: &Value, json: bool) -> Result<String, CommandError> {
    let text = |key: &str| answer.get(key).and_then(Value::as_str).map(str::to_owned);
    let refused = text("state").is_some_and(|state| state == "refused");
    match (text("refused"), text("words")) {
        (Some(why), _) => Err(CommandError::NotSettled { why }),
        (None, Some(why)) if refused => Err(CommandError::NotSettled { why }),
        (None, _) if json => Ok(answer.to_string()),
        (None, Some(words)) => Ok(words),
        (None, None) => Err(CommandError::Control { why: "its answer has no words".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_owner_hears_what_became_of_it_and_a_no_is_an_error() {
        let agreed = json!({"state": "agreed", "words": "settled: both have signed it"});
        assert_eq!(told(&agreed, false).unwrap(), "settled: both have signed it");
        assert_eq!(told(&agreed, true).unwrap(), agreed.to_string());
        for no in [json!({"refused": "no such proposal"}), json!({"state": "refused", "words": "no"})] {
            let error = told(&no, true).unwrap_err();
            assert_eq!((error.code(), error.exit_code()), ("not_settled", 1));
        }
    }
}
