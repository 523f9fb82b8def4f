//! The verbs of `potluckd`, one file each.
//!
//! Owns: which verb does what. Never: holds policy. Called by [`crate::cli`].

mod init;
mod ledger;
mod models;
mod run;
mod status;

use std::io::Write as _;

use crate::cli::Verb;
use crate::error::CommandError;

/// Does what the command line says.
///
/// # Errors
/// As each verb.
pub(crate) fn run(verb: Verb) -> Result<(), CommandError> {
    match verb {
        Verb::Init { state, force } => init::run(&state.dir(), force),
        Verb::Run(args) => run::run(args),
        Verb::Status { state, json } => status::run(&state.dir(), json),
        Verb::Ledger(verb) => ledger::run(verb),
        Verb::Models(verb) => models::run(verb),
    }
}

/// One line on stdout; a reader that went away is not an error.
pub(crate) fn print_line(line: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        tracing::debug!(%error, "nobody reads the output");
    }
}
