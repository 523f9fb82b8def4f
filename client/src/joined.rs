//! What every command on the network begins with: state folder, key, network, stop signal.
//!
//! Owns: the flags for it and the order of it. Never: asks or spends anything. Called by
//! `potluck run` and `potluck search`; whoever opens it shuts the network down.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use potluck_node::identity::Identity;
use potluck_node::net::{Inbound, InboundRequest, Multiaddr, Network, NetworkConfig, NetworkLimits, Role};
use potluck_node::shutdown;
use potluck_node::state::StateDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::command::ledger::state_dir;
use crate::error::Failure;
use crate::output::Printer;

/// Joining the network takes no longer: with the search, an error comes within 15 s.
const JOIN_LIMIT: Duration = Duration::from_secs(6);

/// Flags of every command on the network.
#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// Where to join the network (may be given several times)
    #[arg(long, value_name = "ADDR", env = "POTLUCK_BOOTSTRAP", value_delimiter = ',')]
    pub bootstrap: Vec<String>,
    /// Where keys and ledger are kept
    #[arg(long, value_name = "DIR", env = "POTLUCK_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

/// A peer on the network, or about to be.
#[derive(Debug)]
pub struct Joining {
    /// Our state folder, locked.
    pub state: StateDir,
    /// Who we are.
    pub identity: Identity,
    /// The network; not joined yet.
    pub network: Network,
    /// Cancelled when the person wants to stop.
    pub stop: CancellationToken,
    /// A renter serves no jobs and no quotes; what comes in is refused.
    inbound: Inbound,
}

impl Joining {
    /// Locks the state folder and starts the network.
    ///
    /// # Errors
    /// When an address, the folder, the key or a socket is not usable.
    pub async fn open(args: &NetworkArgs, printer: &Printer) -> Result<Self, Failure> {
        let bootstrap = addresses(&args.bootstrap)?;
        let state = StateDir::open(&state_dir(args.state_dir.as_deref()))?;
        let identity = Identity::load_or_create(&state.key_path())?;
        let stop = shutdown::on_signals()
            .map_err(|why| Failure::Internal { what: format!("signals cannot be watched: {why}") })?;
        printer.waiting("joining the network".into());
        let config = NetworkConfig {
            listen: Vec::new(),
            bootstrap,
            external: Vec::new(),
            role: Role::Renter,
            limits: NetworkLimits::for_role(Role::Renter),
        };
        let (network, inbound) = Network::start(&identity, config).await?;
        Ok(Self { state, identity, network, stop, inbound })
    }

    /// What peers ask about our accounts with them; empty from the second call on.
    pub fn questions(&mut self) -> mpsc::Receiver<InboundRequest> {
        let (_nobody, none) = mpsc::channel(1);
        std::mem::replace(&mut self.inbound.pairs, none)
    }

    /// Joins the network.
    ///
    /// # Errors
    /// When no bootstrap answers in time.
    pub async fn join(&self) -> Result<(), Failure> {
        self.network.join(JOIN_LIMIT).await?;
        Ok(())
    }
}

fn addresses(texts: &[String]) -> Result<Vec<Multiaddr>, Failure> {
    let parse = |text: &String| {
        text.parse().map_err(|why| Failure::Usage {
            message: format!("`{text}` is not an address: {why}"),
            hint: "an address looks like /ip4/203.0.113.7/udp/4101/quic-v1/p2p/12D3KooW…".into(),
        })
    };
    texts.iter().map(parse).collect()
}
