//! `potluck-wasm-worker`: one stranger's component, compiled or run, and nothing else in reach.
//!
//! Owns: nothing; see [`potluck_sandbox::guest`]. Started by `potluckd` only. Ends with one of the
//! codes in [`potluck_sandbox::exit`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(potluck_sandbox::guest::main().code())
}
