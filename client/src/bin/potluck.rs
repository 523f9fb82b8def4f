//! The `potluck` program: the renter's command line. Everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    potluck_client::cli::main()
}
