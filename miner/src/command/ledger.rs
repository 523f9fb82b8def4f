//! `potluckd ledger …`: what peers owe, for which jobs, and how to prove it.
//!
//! Owns: asking the running potluckd, or opening the ledger when none runs. Never: answers or words a
//! question itself (`potluck_node::books` does, for both programs). Called by [`super::run`].

use std::path::Path;

use potluck_node::books::args::{Verb, Work};
use potluck_node::books::print::print;
use potluck_node::books::{self, Answer, Failed};
use serde_json::Value;

use super::print_line;
use crate::control::{Question, ask};
use crate::error::CommandError;

pub(super) fn run(dir: &Path, verb: Verb) -> Result<(), CommandError> {
    let form = verb.form();
    let work = verb.work();
    let told = match &work {
        Work::Ask(of) => ask(dir, Question::Ledger { of: of.clone() })?.map(told).transpose()?,
        _ => None,
    };
    let answer = match told {
        Some(answer) => answer,
        None => books::work_here::<CommandError>(dir, form, work)?,
    };
    let printed = print(&answer, form);
    printed.data.iter().for_each(|line| print_line(line));
    printed.prose.iter().for_each(|line| eprintln!("{line}"));
    Ok(answer.verdict()?)
}

/// What the running potluckd said.
fn told(mut answer: Value) -> Result<Answer, CommandError> {
    let unreadable = |error: serde_json::Error| CommandError::Control { why: error.to_string() };
    if let Some(failed) = answer.get_mut("failed").map(Value::take) {
        let failed: Failed = serde_json::from_value(failed).map_err(unreadable)?;
        return Err(CommandError::Books(failed));
    }
    serde_json::from_value(answer).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_node::books::{BooksError, Code};
    use serde_json::json;

    #[test]
    fn an_answer_and_a_failure_cross_the_socket_whole() {
        let answer = Answer::Proofs(Vec::new());
        assert_eq!(told(serde_json::to_value(&answer).unwrap()).unwrap(), answer);
        let failed = Failed::from(BooksError::NotFound { id: "job_1234".into() });
        let error = told(json!({"failed": failed})).unwrap_err();
        assert_eq!((error.exit_code(), error.code()), (1, Code::NotFound.name()));
        assert!(error.to_string().contains("job_1234") && error.hint().is_some(), "{error}");
        assert!(matches!(told(json!({"else": 1})), Err(CommandError::Control { .. })));
    }
}
