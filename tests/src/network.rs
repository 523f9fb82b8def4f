//! A small market on this machine: one bootstrap and some providers, as separate processes.
//!
//! Owns: their state folders and their start. Never: listens beyond the loopback interface. Called
//! by the demo, the stories and the benchmarks. Ends on drop: providers first, then the bootstrap,
//! then the folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::error::{KitError, io_error};
use crate::process::Process;
use crate::programs::{MODEL, program};
use crate::renter::Renter;

/// How long a program may take to listen.
const LISTEN: Duration = Duration::from_secs(20);
/// How long a provider may take to have its model in memory.
const WARM: Duration = Duration::from_secs(60);
/// Any free UDP port of this machine.
pub const LOOPBACK: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// A running provider.
#[derive(Debug)]
pub struct Provider {
    /// The process.
    pub process: Process,
    /// Its peer id.
    pub peer: String,
    /// Its state folder.
    pub state: PathBuf,
    /// Where it is reached.
    pub address: String,
    /// What it said when it was ready.
    pub ready: Value,
}

/// The market.
#[derive(Debug)]
pub struct Network {
    /// The running providers, in the order in which they were started.
    pub providers: Vec<Provider>,
    /// The bootstrap.
    pub bootstrap: Process,
    /// The bootstrap's peer id.
    pub bootstrap_peer: String,
    /// Where the bootstrap is reached.
    pub address: String,
    home: TempDir,
}

impl Network {
    /// One bootstrap, and no provider yet.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start() -> Result<Self, KitError> {
        let home = tempfile::Builder::new()
            .prefix("potluck-")
            .tempdir()
            .map_err(io_error("make a temporary folder"))?;
        let state = folder(home.path(), "bootstrap")?;
        let mut command = Command::new(program("potluck-bootstrap")?);
        command.arg("run").arg("--json").arg("--state-dir").arg(&state).args(["--listen", LOOPBACK]);
        let mut bootstrap = Process::start("potluck-bootstrap", command, &log_of(&state))?;
        let listening = bootstrap.event("listening", LISTEN).await?;
        let address = text_at(&listening["addresses"], 0);
        let bootstrap_peer = listening["peer"].as_str().unwrap_or_default().to_owned();
        Ok(Self { providers: Vec::new(), bootstrap, bootstrap_peer, address, home })
    }

    /// One bootstrap, and a provider for each price ($/h), all warm.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn with_providers(prices: &[&str]) -> Result<Self, KitError> {
        let mut network = Self::start().await?;
        for price in prices {
            network.add_provider(price).await?;
        }
        Ok(network)
    }

    /// Adds a provider at `price` ($/h) and waits until it is warm.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn add_provider(&mut self, price: &str) -> Result<&Provider, KitError> {
        self.add_provider_with(price, &[]).await
    }

    /// As [`Self::add_provider`], with more flags of `potluckd run`.
    ///
    /// # Errors
    /// As there.
    pub async fn add_provider_with(&mut self, price: &str, flags: &[&str]) -> Result<&Provider, KitError> {
        let state = folder(self.home.path(), &format!("provider{}", self.providers.len()))?;
        let mut command = self.provider_command(&state, MODEL, price)?;
        command.args(flags).arg("--json");
        let mut process = Process::start("potluckd", command, &log_of(&state))?;
        let listening = process.event("listening", LISTEN).await?;
        let address = text_at(&listening["addresses"], 0);
        let ready = process.event("ready", WARM).await?;
        // Only then does the bootstrap know where it is.
        process.event("joined", WARM).await?;
        let peer = ready["peer"].as_str().unwrap_or_default().to_owned();
        let at = self.providers.len();
        self.providers.push(Provider { process, peer, state, address, ready });
        Ok(&self.providers[at])
    }

    /// The command of a provider that serves `model` (a name or a file) from the folder `state`.
    ///
    /// # Errors
    /// When the program was not built.
    pub fn provider_command(&self, state: &Path, model: &str, price: &str) -> Result<Command, KitError> {
        self.provider_command_at(LOOPBACK, state, model, price)
    }

    /// As [`Self::provider_command`], listening at a given address.
    ///
    /// # Errors
    /// As there.
    pub fn provider_command_at(
        &self,
        listen: &str,
        state: &Path,
        model: &str,
        price: &str,
    ) -> Result<Command, KitError> {
        let mut command = Command::new(program("potluckd")?);
        command.arg("run").arg("--state-dir").arg(state);
        command.args(["--listen", listen, "--bootstrap", &self.address]);
        command.args(["--model", model, "--price", price, "--threads", "1"]);
        Ok(command)
    }

    /// A renter with a state folder of its own.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn renter(&self, name: &str) -> Result<Renter, KitError> {
        Ok(Renter::new(folder(self.home.path(), name)?, self.address.clone()))
    }

    /// A fresh folder inside the market's own.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf, KitError> {
        folder(self.home.path(), name)
    }
}

fn text_at(array: &Value, at: usize) -> String {
    array[at].as_str().unwrap_or_default().to_owned()
}

/// Where the program with this state folder writes its stderr: beside the folder, never in it.
#[must_use]
pub fn log_of(state: &Path) -> PathBuf {
    state.with_extension("stderr")
}

fn folder(home: &Path, name: &str) -> Result<PathBuf, KitError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let path = home.join(name);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&path)
        .map_err(io_error(format!("create {}", path.display())))?;
    Ok(path)
}
