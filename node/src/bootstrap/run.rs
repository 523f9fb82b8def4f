//! The bootstrap's life: start, tell where, wait, stop.
//!
//! Owns: the order of things and what is printed when. Never: parses arguments or decides exit
//! codes (the program does). Called by `potluck-bootstrap run`. Ends when the token is cancelled.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use potluck_protocol::id::PeerId;
use serde::Serialize;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::config::{self, BootstrapConfig};
use crate::config::ConfigError;
use crate::identity::{Identity, IdentityError};
use crate::net::{Multiaddr, Network, NetworkConfig, Role, StartError};
use crate::state::{StateDir, StateError};

/// How long the first attempt to join other bootstraps may take before it is mentioned.
const JOIN_WITHIN: Duration = Duration::from_secs(10);

/// Why a bootstrap did not start, or ended before its time.
#[derive(Debug, Error)]
pub enum RunError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state folder is held by another process, or not usable.
    #[error(transparent)]
    State(#[from] StateError),
    /// The key is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The network did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Nobody reads our output any more.
    #[error("cannot write to the output: {source}")]
    Output {
        /// What the system said.
        source: io::Error,
    },
    /// There is nothing to listen on.
    #[error("there is no address to listen on")]
    ListensNowhere,
}

/// What the command line says, over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Instead of the file's `listen`, unless empty.
    pub listen: Vec<Multiaddr>,
    /// Instead of the file's `external`, unless empty.
    pub external: Vec<Multiaddr>,
}

/// One line of `--json` output.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event<'a> {
    Listening { peer: PeerId, addresses: &'a [String] },
    Stopped,
}

/// Runs a bootstrap in `folder` until `stop` is cancelled. Addresses go to `out`, one a line, or as
/// JSON events when `json`; prose goes to `notes`.
///
/// # Errors
/// See [`RunError`]. Everything that was started is ended first.
pub async fn run(
    folder: &Path,
    overrides: Overrides,
    json: bool,
    stop: CancellationToken,
    out: &mut (impl Write + Send),
    notes: &mut (impl Write + Send),
) -> Result<(), RunError> {
    let state = StateDir::open(folder)?;
    let mut config = config::load(state.path())?;
    if !overrides.listen.is_empty() {
        config.listen = overrides.listen;
    }
    if !overrides.external.is_empty() {
        config.external = overrides.external;
    }
    if config.listen.is_empty() {
        return Err(RunError::ListensNowhere);
    }
    let identity = Identity::load_or_create(&state.key_path())?;
    let BootstrapConfig { listen, external, bootstrap, limits } = config;
    let joins = !bootstrap.is_empty();
    let config = NetworkConfig { listen, bootstrap, external, role: Role::Bootstrap, limits };
    let (network, _inbound) = Network::start(&identity, config).await?;
    let output = |source| RunError::Output { source };
    let told = tell_listening(&network, json, out, notes).await.map_err(output);
    if told.is_ok() {
        if joins {
            join(&network, &stop, notes).await;
        }
        stop.cancelled().await;
    }
    network.shutdown().await;
    told?;
    tell_stopped(json, out, notes).map_err(output)
}

async fn tell_listening(
    network: &Network,
    json: bool,
    out: &mut impl Write,
    notes: &mut impl Write,
) -> io::Result<()> {
    let addresses = network.listeners().await;
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let peer = network.local_peer();
    if json {
        return event(out, &Event::Listening { peer, addresses: &addresses });
    }
    // Prose is a courtesy: a closed stderr ends nothing.
    let _ = writeln!(notes, "bootstrap {peer} is listening; others join by any of these addresses:");
    for address in &addresses {
        writeln!(out, "{address}")?;
    }
    out.flush()
}

/// Joins the other bootstraps; that none answers is worth a word and no more, since the network
/// goes on trying.
async fn join(network: &Network, stop: &CancellationToken, notes: &mut impl Write) {
    let joined = tokio::select! {
        joined = network.join(JOIN_WITHIN) => joined,
        () = stop.cancelled() => return,
    };
    let _ = match joined {
        Ok(joined) => writeln!(notes, "joined by {}", joined.address),
        Err(error) => writeln!(notes, "warning: {error}; trying on"),
    };
}

fn tell_stopped(json: bool, out: &mut impl Write, notes: &mut impl Write) -> io::Result<()> {
    if json {
        return event(out, &Event::Stopped);
    }
    let _ = writeln!(notes, "stopped");
    Ok(())
}

fn event(out: &mut impl Write, event: &Event<'_>) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}
