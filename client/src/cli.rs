//! The command line of `potluck`: parses, starts the runtime, turns failures into exit statuses.
//!
//! Owns: the grammar and `main`. Never: does a verb's work. Called by the program.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use potluck_node::books::args::Form;
use potluck_node::telemetry;

use crate::command::exec::{self, ExecArgs};
use crate::command::ledger;
use crate::command::new::{self, NewArgs};
use crate::command::run::{self, RunArgs};
use crate::command::search::{self, SearchCommand};
use crate::command::settle::{self, AccountCommand, LedgerArgs};
use crate::error::Failure;
use crate::output::{Printer, eprintln_prose};

/// Rent GPU time from strangers: a price before the call, a bill that both sides sign.
#[derive(Debug, Parser)]
#[command(
    name = "potluck",
    version,
    about,
    after_help = "Examples:
  potluck run smollm2-135m \"Name a planet with rings.\"
  potluck ledger balance"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one prompt on the network
    Run(RunArgs),
    /// Run a component of your own on the network
    Exec(ExecArgs),
    /// Begin a job of your own, in a new folder
    New(NewArgs),
    /// Who offers what, at what price
    #[command(subcommand)]
    Search(SearchCommand),
    /// What is owed to whom and for what, and what was paid
    #[command(after_help = "Examples:
  potluck ledger balance
  potluck ledger receipts --since 7d
  potluck ledger export backup.potluck")]
    Ledger(LedgerArgs),
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(why) = telemetry::start() {
        eprintln_prose(&format!("error: {why}\n  nothing was spent; unset it, or set it to info"));
        return ExitCode::from(2);
    }
    let (mut printer, result) = match cli.command {
        Command::Run(args) => {
            let mut printer = Printer::new(args.rent.json, args.rent.quiet);
            let result = block_on(run::run(args, &mut printer));
            (printer, result)
        }
        Command::Exec(args) => {
            let mut printer = Printer::new(args.rent.json, args.rent.quiet);
            let result = block_on(exec::run(args, &mut printer));
            (printer, result)
        }
        Command::New(args) => (Printer::new(false, false), new::run(&args).map_err(Failure::from)),
        Command::Search(SearchCommand::Offers(args)) => {
            let printer = Printer::new(args.json, false);
            let result = block_on(search::run(&args, &printer));
            (printer, result)
        }
        Command::Ledger(LedgerArgs { verb: AccountCommand::Settle(args), .. }) => {
            let mut printer = Printer::new(args.json, false);
            let result = block_on(settle::run(&args, &mut printer));
            (printer, result)
        }
        Command::Ledger(LedgerArgs { state_dir, verb: AccountCommand::Look(verb) }) => {
            (Printer::new(verb.form() == Form::Json, false), ledger::run(state_dir.as_deref(), verb))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            printer.failure(&failure);
            ExitCode::from(failure.exit())
        }
    }
}

fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|why| Failure::Internal { what: format!("the runtime cannot start: {why}") })?;
    runtime.block_on(command)
}
