//! `potluckd`: the owner's daemon.
//!
//! Owns: nothing; everything it does is in the library, see [`potluck_miner::cli`]. Started by the owner.

use std::process::ExitCode;

fn main() -> ExitCode {
    potluck_miner::cli::main()
}
