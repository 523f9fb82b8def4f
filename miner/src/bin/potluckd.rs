//! `potluckd`: the owner's daemon. Everything is in the library; see [`potluck_miner::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    potluck_miner::cli::main()
}
