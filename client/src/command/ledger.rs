//! `potluck ledger balance|receipts`: what we owe, and for what.
//!
//! Owns: the tables and their `--json` forms. Never: changes the ledger. Called by [`crate::cli`].

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use potluck_node::identity::Identity;
use potluck_node::ledger::{Filter, LaneSummary, Ledger, report};
use potluck_node::state::{StateDir, default_dir};
use potluck_protocol::id::PeerId;
use potluck_protocol::unit::dollars;

use crate::error::Failure;
use crate::output::{eprintln_prose, print_data};

/// Receipts shown at most, newest first.
const MAX_SHOWN: usize = 1_000;

/// Verbs of `potluck ledger`.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// What we owe each provider
    #[command(after_help = "Example:\n  potluck ledger balance --json")]
    Balance(LedgerArgs),
    /// The jobs we paid for, newest first
    #[command(after_help = "Example:\n  potluck ledger receipts --json | jq .amount_nanocredits")]
    Receipts(LedgerArgs),
}

/// Flags of the ledger's verbs.
#[derive(Debug, Args)]
pub struct LedgerArgs {
    /// Where keys and ledger are kept
    #[arg(long, value_name = "DIR", env = "POTLUCK_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// The state folder: the flag's, or the default one.
#[must_use]
pub fn state_dir(flag: Option<&Path>) -> PathBuf {
    flag.map_or_else(|| default_dir("potluck"), Path::to_path_buf)
}

/// Runs the command.
///
/// # Errors
/// When the state folder or the ledger cannot be opened, or stdout is closed.
pub fn run(command: &LedgerCommand) -> Result<(), Failure> {
    let (LedgerCommand::Balance(args) | LedgerCommand::Receipts(args)) = command;
    let state = StateDir::open(&state_dir(args.state_dir.as_deref()))?;
    let identity = Identity::load_or_create(&state.key_path())?;
    let (ledger, _report) = Ledger::open(&state.ledger_dir(), identity.peer())?;
    let printed = match command {
        LedgerCommand::Balance(_) => balance(&ledger, identity.peer(), args.json)?,
        LedgerCommand::Receipts(_) => receipts(&ledger, args.json)?,
    };
    printed.map_err(|source| Failure::Io { action: "write", path: PathBuf::from("standard output"), source })
}

fn balance(ledger: &Ledger, us: PeerId, json: bool) -> Result<std::io::Result<()>, Failure> {
    if json {
        return Ok(print_data(&report::balance(ledger, us)?.to_string()));
    }
    let (totals, pairs) = (ledger.totals()?, ledger.pairs()?);
    let mut lines =
        vec![format!("balance   {}   (an IOU between peers, not money held)", dollars(totals.balance, true))];
    for pair in pairs {
        lines.push(format!(
            "{}   {}   {} jobs, {} open",
            pair.peer,
            dollars(pair.balance, true),
            pair.lanes,
            pair.open
        ));
    }
    Ok(print_data(&lines.join("\n")))
}

fn receipts(ledger: &Ledger, json: bool) -> Result<std::io::Result<()>, Failure> {
    if json {
        let all = report::receipts(ledger, MAX_SHOWN)?;
        return Ok(all.iter().try_for_each(|receipt| print_data(&receipt.to_string())));
    }
    let lanes = ledger.lanes(&Filter { limit: Some(MAX_SHOWN), ..Filter::default() })?;
    if lanes.is_empty() {
        eprintln_prose("no job yet: potluck run smollm2-135m \"hello\"");
    }
    let line = |lane: &LaneSummary| {
        format!(
            "{}   {}   {} ms   {}   {} vouchers   {} tokens",
            lane.lane,
            lane.peer.short(),
            lane.load_ms.saturating_add(lane.run_ms).saturating_add(lane.guest_ms),
            lane.amount,
            lane.vouchers,
            lane.completion_tokens
        )
    };
    Ok(lanes.iter().try_for_each(|lane| print_data(&line(lane))))
}
