//! The verbs of `potluckd`, one file each.
//!
//! Owns: which verb does what. Never: holds policy. Called by [`crate::cli`].

mod doctor;
mod init;
mod ledger;
mod models;
mod pause;
mod run;
mod self_test;
mod settle;
mod status;

use std::io::Write as _;

use crate::cli::{AccountVerb, LedgerArgs, StateArgs, Verb};
use crate::error::CommandError;

/// Does what the command line says.
///
/// # Errors
/// As each verb.
pub(crate) fn run(verb: Verb) -> Result<(), CommandError> {
    match verb {
        Verb::Init { state, force } => init::run(&state.dir(), force),
        Verb::Run(args) => run::run(args),
        Verb::Pause { state, now, length, json } => pause::pause(&state.dir(), now, length, json),
        Verb::Resume { state, json } => pause::resume(&state.dir(), json),
        Verb::Doctor { state, json } => doctor::run(&state.dir(), json),
        Verb::SelfTest { gpu, require, json } => self_test::run(gpu, require, json),
        Verb::Status { state, json } => status::run(&state.dir(), json),
        Verb::Ledger(LedgerArgs { state_dir, verb }) => {
            let dir = StateArgs { state_dir }.dir();
            match verb {
                AccountVerb::Look(verb) => ledger::run(&dir, verb),
                AccountVerb::Settle(args) => settle::run(&dir, args),
            }
        }
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
