//! `potluck ledger settle PEER`: what we paid a provider outside of Potluck becomes part of the balance.
//!
//! Owns: the verb's flags, the wait for the other owner, and what is said of the outcome. Never: pays (a
//! person does, by any means), or decides whether the payment counts (the receiver's owner does). Called
//! by [`crate::cli`].

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use potluck_node::accounts::report::settlement;
use potluck_node::accounts::{SettleOutcome, SettleWish};
use potluck_node::books::args::Verb;
use potluck_protocol::id::PeerId;
use potluck_protocol::unit::NanoCredit;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::books::Books;
use crate::error::Failure;
use crate::joined::{Joining, NetworkArgs};
use crate::output::{Printer, print_data};
use crate::search::wall_clock;

/// A provider that is not met is looked for again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// `potluck ledger`: whose, and what of it.
#[derive(Debug, Args)]
pub struct LedgerArgs {
    /// Where keys and ledger are kept
    #[arg(long, value_name = "DIR", env = "POTLUCK_STATE_DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// What.
    #[command(subcommand)]
    pub verb: AccountCommand,
}

/// Verbs of `potluck ledger`.
#[derive(Debug, Subcommand)]
pub enum AccountCommand {
    /// Questions.
    #[command(flatten)]
    Look(Verb),
    /// Enter what you paid a provider outside of Potluck
    #[command(after_help = "Examples:
  potluck ledger settle 12D3KooW... --amount 1.50 --ref \"invoice 7\"
  potluck ledger settle 12D3KooW... --amount 1.50 --ref \"invoice 7\" --wait 600 --json

The provider's owner confirms it with `potluckd ledger settle`. Until then it is kept here and proposed
again whenever the two meet; the same verb shows how far it is. The same reference is the same payment:
two payments need two references.

Exit status: 0 agreed, or waits for the other owner; 1 refused, 2 usage, 3 no network, 5 local state")]
    Settle(SettleArgs),
}

/// Flags of `potluck ledger settle`.
#[derive(Debug, Args)]
pub struct SettleArgs {
    /// Whom you paid
    #[arg(value_name = "PEER")]
    pub peer: String,
    /// How much, in dollars
    #[arg(long, value_name = "$")]
    pub amount: String,
    /// By what reference both of you know the payment
    #[arg(long = "ref", value_name = "TEXT")]
    pub reference: String,
    /// Wait so long for the provider's owner to confirm it
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub wait: u64,
    /// Where the network is, and where our state.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// One JSON object instead of a line
    #[arg(long)]
    pub json: bool,
}

/// Runs the command; its progress goes through `printer`.
///
/// # Errors
/// The failure that the person is told of; a payment that was noted stays noted.
pub async fn run(args: &SettleArgs, printer: &mut Printer) -> Result<(), Failure> {
    let wish = wish(args)?;
    let mut joining = Joining::open(&args.network, printer).await?;
    let books = Books::open(&mut joining, printer.tells())?;
    let settled = tokio::select! {
        biased;
        () = joining.stop.cancelled() => Err(Failure::SettleStopped),
        settled = settle(&joining, &books, &wish, Duration::from_secs(args.wait), printer) => settled,
    };
    books.close().await;
    joining.network.shutdown().await;
    let said = settled?;
    printer.end_text();
    let words = said.get("words").and_then(Value::as_str).unwrap_or_default();
    if said.get("state").is_some_and(|state| state == "refused") {
        return Err(Failure::NotSettled { words: words.to_owned() });
    }
    let printed = if args.json { print_data(&said.to_string()) } else { print_data(words) };
    printed.map_err(|source| Failure::Io { action: "write", path: PathBuf::from("standard output"), source })
}

fn wish(args: &SettleArgs) -> Result<SettleWish, Failure> {
    let peer: PeerId = args.peer.parse().map_err(|why| Failure::Usage {
        message: format!("`{}` is no peer: {why}", args.peer.escape_debug()),
        hint: "potluck ledger balance names the providers that you owe".into(),
    })?;
    let amount = NanoCredit::from_dollars(&args.amount)?;
    Ok(SettleWish { peer, we_paid: true, amount, reference: args.reference.clone(), deny: false })
}

/// Enters the payment and waits for the other owner; what became of it, as it is shown.
async fn settle(
    joining: &Joining,
    books: &Books,
    wish: &SettleWish,
    wait: Duration,
    printer: &Printer,
) -> Result<Value, Failure> {
    joining.join().await?;
    let peer = wish.peer;
    let failed = |why| Failure::Settle { peer, why };
    printer.waiting(format!("proposing {} to {}", wish.amount, peer.short()));
    let begun = Instant::now();
    let mut outcome = books.accounts.settle(wish.clone()).await.map_err(failed)?;
    while matches!(outcome, SettleOutcome::Proposed | SettleOutcome::Noted { .. }) {
        let left = wait.saturating_sub(begun.elapsed());
        printer.waiting(format!("waiting {} s for the owner of {}", left.as_secs(), peer.short()));
        if matches!(outcome, SettleOutcome::Noted { .. }) {
            sleep(left.min(AGAIN_AFTER)).await;
        }
        // The same word again only looks how far it is.
        match timeout(left, books.accounts.settle(wish.clone())).await {
            Ok(again) => outcome = again.map_err(failed)?,
            Err(_) => break,
        }
    }
    let balance = books.ledger.standing(peer, wall_clock())?.balance;
    Ok(settlement(wish, &outcome, balance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_payment_is_a_usage_error() {
        let args = |peer: &str, amount: &str| SettleArgs {
            peer: peer.into(),
            amount: amount.into(),
            reference: "invoice 7".into(),
            wait: 5,
            network: NetworkArgs { bootstrap: Vec::new(), state_dir: None },
            json: false,
        };
        let provider = PeerId::from_bytes([7; 32]);
        assert_eq!(wish(&args("nobody", "1")).unwrap_err().exit(), 2);
        assert_eq!(wish(&args(&provider.to_string(), "1e3")).unwrap_err().exit(), 2);
        let wish = wish(&args(&provider.to_string(), "1.50")).unwrap();
        assert!(wish.we_paid && !wish.deny && wish.peer == provider);
        assert_eq!(wish.amount, NanoCredit::new(1_500_000_000));
    }
}
