//! `potluck-bootstrap`: introduces peers to each other, and has no other power.
//!
//! Owns: the command line and the exit codes. Never: does the work (`potluck_node::bootstrap` does).
//! Called by an operator or a service manager. Ends by SIGINT or SIGTERM; a second one ends at once.
//!
//! Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage or configuration, 5 the state folder is
//! in use or its key is not usable, 130 interrupted twice.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use potluck_node::bootstrap::config::{self, InitError, parse_address};
use potluck_node::bootstrap::run::{self, Overrides, RunError};
use potluck_node::net::{Multiaddr, StartError};
use potluck_node::state::{StateDir, StateError, default_dir};
use potluck_node::telemetry::TelemetryError;
use potluck_node::{shutdown, telemetry};

/// Something failed that is nobody's configuration.
const FAILED: u8 = 1;
/// The command line, the configuration or a variable is wrong. The same as clap's own.
const USAGE: u8 = 2;
/// The state folder is in use, or what is in it is not usable.
const STATE: u8 = 5;

const EXAMPLES: &str = "\
Examples:
  potluck-bootstrap init                      write the configuration with every default
  potluck-bootstrap run                       listen on port 4101, UDP and TCP
  potluck-bootstrap run --listen /ip4/127.0.0.1/udp/0/quic-v1 --json
                                              this machine only, any free port, for scripts

The addresses that it prints are what others need:
  potluckd run --bootstrap ADDRESS";

/// Introduces Potluck peers to each other. It holds no money, takes no jobs and vouches for nobody.
#[derive(Debug, Parser)]
#[command(name = "potluck-bootstrap", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the configuration file with every default, explained
    Init {
        #[command(flatten)]
        state: StateArgs,
    },
    /// Run until SIGINT or SIGTERM
    #[command(after_help = EXAMPLES)]
    Run {
        #[command(flatten)]
        state: StateArgs,
        /// Listen here instead of where the file says; may be given several times
        #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
        listen: Vec<Multiaddr>,
        /// Tell others to reach us here (a forwarded port); may be given several times
        #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
        external: Vec<Multiaddr>,
        /// Print one JSON object per line instead of addresses
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct StateArgs {
    /// Folder of the key and the configuration [default: potluck/bootstrap in the user's data
    /// folder]
    #[arg(long, value_name = "FOLDER", env = "POTLUCK_BOOTSTRAP_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

impl StateArgs {
    fn folder(self) -> PathBuf {
        self.state_dir.unwrap_or_else(|| default_dir("bootstrap"))
    }
}

/// What an operator needs to know of a failure.
struct Failure {
    code: u8,
    error: String,
    hint: Option<String>,
}

impl Failure {
    fn new(code: u8, error: impl ToString) -> Self {
        Self { code, error: error.to_string(), hint: None }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, error, hint }) => {
            // Nowhere is left to complain to if stderr is closed.
            let mut stderr = io::stderr().lock();
            let _ = writeln!(stderr, "error: {error}");
            if let Some(hint) = hint {
                let _ = writeln!(stderr, "hint: {hint}");
            }
            ExitCode::from(code)
        }
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    telemetry::start().map_err(|error| match error {
        TelemetryError::BadFilter { .. } => Failure::new(USAGE, error).hint("for example: POTLUCK_LOG=info"),
        TelemetryError::Twice => Failure::new(FAILED, error),
    })?;
    match command {
        Command::Init { state } => init(state),
        Command::Run { state, listen, external, json } => {
            run_until_stopped(state, Overrides { listen, external }, json)
        }
    }
}

fn init(state: StateArgs) -> Result<(), Failure> {
    let state = StateDir::open(&state.folder()).map_err(state_failure)?;
    let path = config::init(state.path()).map_err(|error| match &error {
        InitError::Exists { .. } => {
            Failure::new(USAGE, &error).hint("edit it, or delete it to begin again; it was left as it is")
        }
        InitError::Io { .. } => Failure::new(STATE, &error),
    })?;
    writeln!(io::stdout(), "{}", path.display())
        .map_err(|source| Failure::new(FAILED, RunError::Output { source }))
}

fn run_until_stopped(state: StateArgs, overrides: Overrides, json: bool) -> Result<(), Failure> {
    let folder = state.folder();
    let failed = |error: io::Error| Failure::new(FAILED, error);
    // Two threads are plenty: one swarm, and its connections.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let stop = shutdown::on_signals().map_err(failed)?;
        let (mut out, mut notes) = (io::stdout(), io::stderr());
        run::run(&folder, overrides, json, stop, &mut out, &mut notes).await.map_err(run_failure)
    })
}

fn run_failure(error: RunError) -> Failure {
    match error {
        RunError::Config(error) => Failure::new(USAGE, error)
            .hint("`potluck-bootstrap init --state-dir NEW_FOLDER` writes one with every key"),
        RunError::State(error) => state_failure(error),
        RunError::Identity(error) => Failure::new(STATE, error),
        RunError::ListensNowhere => Failure::new(USAGE, RunError::ListensNowhere)
            .hint("give --listen /ip4/0.0.0.0/udp/4101/quic-v1, or set `listen` in bootstrap.toml"),
        RunError::Start(error @ StartError::PortInUse { .. }) => Failure::new(FAILED, error)
            .hint("stop whoever listens there, or choose another port with --listen"),
        RunError::Start(error @ StartError::Listen { .. }) => Failure::new(FAILED, error)
            .hint("name an address of this machine: /ip4/0.0.0.0/udp/4101/quic-v1 is all of them"),
        error => Failure::new(FAILED, error),
    }
}

fn state_failure(error: StateError) -> Failure {
    Failure::new(STATE, error)
}
