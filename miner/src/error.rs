//! What a command of `potluckd` can fail with, and the exit code that says so.
//!
//! Owns: the mapping of errors to exit codes and hints. Never: prints. Called by the commands.
//!
//! Exit codes: 0 done, 1 failed, 2 usage or configuration, 5 local state.

use std::path::PathBuf;

use potluck_node::accounts::AccountsError;
use potluck_node::books::{BooksError, Failed};
use potluck_node::identity::IdentityError;
use potluck_node::ledger::{LedgerError, ReadError};
use potluck_node::net::StartError;
use potluck_node::state::StateError;
use potluck_node::telemetry::TelemetryError;
use potluck_sandbox::cpu::CpuError;
use potluck_sandbox::jail::cuda::CudaError;
use potluck_sandbox::supervisor::StartError as WorkerStartError;
use thiserror::Error;

use crate::config::ConfigError;
use crate::guests::GuestHouseError;
use crate::model_file::ModelError;
use crate::models::PullError;

/// Why a command failed.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The configuration file is wrong. Fault: local.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log cannot be started. Fault: local (an environment variable).
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// `init` would overwrite a file. Fault: local.
    #[error("{} is there already", path.display())]
    ConfigExists {
        /// The file.
        path: PathBuf,
    },
    /// This processor cannot run the engine. Fault: local.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The state folder cannot be used. Fault: local.
    #[error(transparent)]
    State(#[from] StateError),
    /// The key file cannot be used. Fault: local.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The ledger cannot be opened. Fault: local.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The ledger cannot be read. Fault: local.
    #[error(transparent)]
    LedgerRead(#[from] ReadError),
    /// The accounts cannot be opened. Fault: local.
    #[error(transparent)]
    Accounts(#[from] AccountsError),
    /// A question to the ledger has no answer, or a file of it is not as it must be.
    #[error(transparent)]
    Books(Failed),
    /// A model cannot be served. Fault: local.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A model could not be fetched. Fault: network.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The network cannot be started, for example because a port is in use. Fault: local.
    #[error("cannot start the network: {0}")]
    Network(#[from] StartError),
    /// The worker does not start. Fault: local.
    #[error("the worker of {model} does not start: {source}")]
    Worker {
        /// The model's name.
        model: String,
        /// Why.
        source: WorkerStartError,
    },
    /// The program of the worker is missing. Fault: local.
    #[error("the worker program {} is missing", path.display())]
    NoWorkerProgram {
        /// Where it should be.
        path: PathBuf,
        /// What it is called.
        name: &'static str,
        /// The environment variable that names another place.
        variable: &'static str,
    },
    /// The jail is not what it must be. Fault: local.
    #[error("this machine takes no strangers' work: {summary}")]
    NoJail {
        /// What is there and what is not.
        summary: String,
    },
    /// The card cannot be taken into a jail. Fault: local.
    #[error(transparent)]
    Card(#[from] CudaError),
    /// Components cannot be run. Fault: local.
    #[error(transparent)]
    Guests(#[from] GuestHouseError),
    /// The doctor found something. Fault: local.
    #[error("{failed} of {checks} checks failed: this machine takes no strangers' work until they pass")]
    Unfit {
        /// How many failed.
        failed: usize,
        /// How many there were.
        checks: usize,
    },
    /// The self-test did not pass. Fault: local.
    #[error("the self-test failed: {what}")]
    SelfTest {
        /// What happened.
        what: String,
    },
    /// Nothing runs with this state folder.
    #[error("no potluckd runs with {}", state_dir.display())]
    NotRunning {
        /// The folder.
        state_dir: PathBuf,
    },
    /// The running potluckd says no to what the owner said.
    #[error("{why}")]
    NotSettled {
        /// In words.
        why: String,
    },
    /// The running potluckd does not answer as it should.
    #[error("the running potluckd does not answer: {why}")]
    Control {
        /// What happened.
        why: String,
    },
    /// A killed worker does not end.
    #[error("the machine is not free yet: a killed worker does not end")]
    NotFreed,
    /// The system refused something basic. Fault: local.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<BooksError> for CommandError {
    fn from(error: BooksError) -> Self {
        Self::Books(error.into())
    }
}

impl CommandError {
    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Books(failed) => failed.code.exit(),
            Self::Config(_) | Self::ConfigExists { .. } | Self::Telemetry(_) => 2,
            Self::Model(ModelError::Unknown(_)) => 2,
            Self::Pull(PullError::Unknown(_)) => 2,
            Self::State(_)
            | Self::Identity(_)
            | Self::Ledger(_)
            | Self::LedgerRead(_)
            | Self::Accounts(_)
            | Self::Network(_)
            | Self::System { .. } => 5,
            Self::Cpu(_)
            | Self::Model(_)
            | Self::Pull(_)
            | Self::Worker { .. }
            | Self::NoWorkerProgram { .. }
            | Self::NoJail { .. }
            | Self::Card(_)
            | Self::Guests(_)
            | Self::Unfit { .. }
            | Self::SelfTest { .. }
            | Self::NotRunning { .. }
            | Self::NotSettled { .. }
            | Self::NotFreed
            | Self::Control { .. } => 1,
        }
    }

    /// The stable short name, as in `--json`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Books(failed) => failed.code.name(),
            Self::Config(_) | Self::ConfigExists { .. } | Self::Telemetry(_) => "config",
            Self::Cpu(_) => "cpu",
            Self::State(_)
            | Self::Identity(_)
            | Self::Ledger(_)
            | Self::LedgerRead(_)
            | Self::Accounts(_) => "state",
            Self::Model(_) | Self::Pull(_) => "model",
            Self::Network(_) => "network",
            Self::Worker { .. } | Self::NoWorkerProgram { .. } | Self::Guests(_) => "worker",
            Self::NoJail { .. } => "no_jail",
            Self::Card(_) => "card",
            Self::Unfit { .. } => "unfit",
            Self::SelfTest { .. } => "self_test",
            Self::NotRunning { .. } => "not_running",
            Self::NotSettled { .. } => "not_settled",
            Self::NotFreed => "not_freed",
            Self::Control { .. } => "control",
            Self::System { .. } => "system",
        }
    }

    /// What to do next, when there is something to do.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Books(failed) => Some(failed.hint.clone()),
            Self::ConfigExists { .. } => {
                Some("`potluckd init --force` writes it anew; the identity and the ledger stay".into())
            }
            Self::Model(ModelError::NotPulled { name, .. }) => {
                Some(format!("fetch it with `potluckd models pull {name}`"))
            }
            Self::Model(ModelError::Unknown(unknown)) | Self::Pull(PullError::Unknown(unknown)) => {
                Some(format!("known models: {}", unknown.closest.join(", ")))
            }
            Self::NoWorkerProgram { name, variable, .. } => {
                Some(format!("install {name} next to potluckd, or set {variable} to its path"))
            }
            Self::NoJail { .. } => Some(
                "`potluckd doctor` says what helps. --unsafe-no-jail serves without a jail: your files are then \
                 open to strangers' work, the offer says so, and renters refuse it unless they ask for it"
                    .into(),
            ),
            Self::Guests(_) => Some("`guests = false` in potluckd.toml serves models only".into()),
            Self::NotRunning { .. } => Some("start it with `potluckd run`".into()),
            Self::NotFreed => Some(
                "no job is taken any more; the device's driver holds the process. Run `potluckd pause --now` \
                 again, or restart the machine"
                    .into(),
            ),
            _ => None,
        }
    }
}
