//! `potluck-gpu-worker`: one model, one process, no network, no keys, no files but its model.
//!
//! Owns: nothing; see [`potluck_sandbox::worker`]. Started by `potluckd` only. Ends with one of the
//! codes in [`potluck_sandbox::exit`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(potluck_sandbox::worker::run().code())
}
