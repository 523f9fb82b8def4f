//! The network as the rest of Potluck sees it: a handle, and what comes in.
//!
//! Owns: [`Network`] (cloneable; every call is a command to the one task that owns the libp2p
//! swarm) and [`Inbound`] (bounded queues of what others ask of us). Never: lets a libp2p type but
//! `Multiaddr` out, waits without a bound, or queues what it cannot hold. Called by the provider,
//! the renter and the bootstrap. Ends by [`Network::shutdown`], or when the last handle is dropped.
//!
//! ```text
//!   handles --Command--> event_loop (Swarm) --InboundRequest, JobStream--> Inbound
//!                         |  anchors    joining, and joining again
//!                         |  discovery  who offers it?           directory  what we keep of it
//!                         |  errands    get there, do one thing  addresses  what we believe
//!                         '- behaviour  limits identify ping kad quote pair jobs
//! ```
//!
//! Protocols: `/potluck/kad/1` (directory), `/potluck/quote/1` and `/potluck/pair/1` (one question,
//! one answer; only the second is answered by renters too), `/potluck/job/1` (a stream of frames). QUIC is preferred; TCP with noise and yamux comes second.
//!
//! What this room does not do yet: relays, hole punching, mDNS, signed offers in a sharded
//! directory, remembering peers over a restart. A provider behind NAT needs a forwarded port and
//! its address in `external`.

mod addresses;
mod anchors;
mod behaviour;
mod command;
mod directory;
mod discovery;
mod errands;
mod error;
mod event_loop;
mod framing;
mod jobs;
mod limits;
mod listen;
mod on_event;
mod question;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use libp2p::identity::Keypair;
use potluck_protocol::id::PeerId;
use potluck_protocol::limits::MAX_FRAME_BYTES;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use directory::DhtKey;
pub use error::{
    AnswerError, AskError, FindError, FrameError, JoinError, NetworkGone, OpenError, OtherVersion,
    ProvideError, Stage, StartError, Tried,
};
pub use framing::{FrameReader, FrameWriter, JobStream};
pub use libp2p::Multiaddr;
pub use limits::{NetworkLimits, Role};
pub use snapshot::{Link, NetCounters, NetSnapshot};

use command::{Command, Errand, Patience, Task};
use event_loop::{EventLoop, Parts};
use limits::{COMMANDS, GOODBYE_WITHIN, LOOP_GRACE, PROVIDE_WITHIN};
use question::Topic;

use crate::identity::Identity;

/// How a peer takes part.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Addresses to listen on, such as `/ip4/0.0.0.0/udp/4101/quic-v1`; port 0 lets the system
    /// choose. Empty for renters.
    pub listen: Vec<Multiaddr>,
    /// Bootstraps to join by, with or without a `/p2p/…` name.
    pub bootstrap: Vec<Multiaddr>,
    /// Addresses that others reach us at and that we cannot see ourselves (a forwarded port).
    pub external: Vec<Multiaddr>,
    /// What this peer does.
    pub role: Role,
    /// How many of everything.
    pub limits: NetworkLimits,
}

/// How the network was joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The first peer that serves the directory and is connected.
    pub via: PeerId,
    /// Its address.
    pub address: Multiaddr,
}

/// What others ask of us. The queues are bounded: when one is full the newcomer is refused (and
/// counted), never the one that waits.
#[derive(Debug)]
pub struct Inbound {
    /// Questions about offers and prices, each to be answered within 30 s.
    pub requests: mpsc::Receiver<InboundRequest>,
    /// Questions about what we owe each other, each to be answered within 30 s.
    pub pairs: mpsc::Receiver<InboundRequest>,
    /// Job streams that peers opened.
    pub jobs: mpsc::Receiver<JobStream>,
}

/// A question. Dropping it tells the peer that we are busy.
pub struct InboundRequest {
    /// Who asks; its key was proven by the connection's handshake.
    pub peer: PeerId,
    /// The question, 1 to `MAX_FRAME_BYTES` bytes, not decoded.
    pub bytes: Vec<u8>,
    reply: oneshot::Sender<Vec<u8>>,
}

impl InboundRequest {
    /// Answers with 1 to `MAX_FRAME_BYTES` bytes. Does not wait for them to arrive.
    ///
    /// # Errors
    /// When the answer has no or too many bytes, or whoever asked waits no longer.
    pub fn answer(self, bytes: Vec<u8>) -> Result<(), AnswerError> {
        let len = bytes.len();
        if len == 0 || len > MAX_FRAME_BYTES {
            return Err(AnswerError::BadAnswer { len });
        }
        self.reply.send(bytes).map_err(|_| AnswerError::NobodyWaits)
    }
}

impl fmt::Debug for InboundRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InboundRequest({} bytes from {})", self.bytes.len(), self.peer)
    }
}

/// The network of this process. Clones are cheap and share it.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    local: PeerId,
    commands: mpsc::Sender<Command>,
    pair_peers: watch::Receiver<BTreeSet<PeerId>>,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network(of {})", self.inner.local)
    }
}

impl Network {
    /// Opens the listening sockets and starts the task that owns the network. Must be called within
    /// a tokio runtime. Dials nobody: see [`Self::join`].
    ///
    /// # Errors
    /// When a port is in use or an address cannot be listened on; see [`StartError`].
    pub async fn start(identity: &Identity, config: NetworkConfig) -> Result<(Self, Inbound), StartError> {
        let NetworkConfig { listen, bootstrap, external, role, limits } = config;
        if let (Role::Renter, Some(address)) = (role, listen.first()) {
            return Err(StartError::RenterListens { address: address.clone() });
        }
        let key = Keypair::ed25519_from_bytes(identity.signing_key().seed())
            .map_err(|error| StartError::Key { problem: error.to_string() })?;
        let mut swarm = behaviour::build(key, role, &limits)?;
        for address in external {
            swarm.add_external_address(address);
        }
        let (commands, command_queue) = mpsc::channel(COMMANDS);
        let (requests, request_queue) = mpsc::channel(limits.inbound_requests.max(1));
        let (pairs, pair_queue) = mpsc::channel(limits.inbound_requests.max(1));
        let (jobs, job_queue) = mpsc::channel(limits.inbound_jobs.max(1));
        let (pair_peers, pair_peers_seen) = watch::channel(BTreeSet::new());
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let parts = Parts {
            local: identity.peer(),
            role,
            limits,
            bootstrap,
            commands: command_queue,
            requests,
            pairs,
            pair_peers,
            jobs,
            stop: stop.clone(),
            _ended: ended.clone().drop_guard(),
        };
        let mut event_loop = EventLoop::new(swarm, parts);
        listen::listen_on_all(&mut event_loop, &listen).await?;
        tokio::spawn(event_loop.run());
        let inner =
            Arc::new(Inner { local: identity.peer(), commands, pair_peers: pair_peers_seen, stop, ended });
        let inbound = Inbound { requests: request_queue, pairs: pair_queue, jobs: job_queue };
        Ok((Self { inner }, inbound))
    }

    /// Who we are.
    #[must_use]
    pub fn local_peer(&self) -> PeerId {
        self.inner.local
    }

    /// Addresses that we listen on, each with our `/p2p` name; none once the network has stopped.
    pub async fn listeners(&self) -> Vec<Multiaddr> {
        let listeners = self.call(Duration::ZERO, |reply| Command::Listeners { reply }).await;
        listeners.unwrap_or_default()
    }

    /// Dials the bootstraps and returns when one peer that serves the directory is connected and
    /// identified; at once if one is. From then on lost bootstraps are dialed again and again, with
    /// growing pauses, and what we publish is published again when the directory is back.
    ///
    /// # Errors
    /// When no bootstrap is configured or none answers `within`. The search goes on nevertheless.
    pub async fn join(&self, within: Duration) -> Result<Joined, JoinError> {
        let patience = Patience::starting_now(within);
        self.call(within, |reply| Command::Join { patience, reply }).await?
    }

    /// Files this peer under `key` at the directory peers closest to it, now and every 10 minutes
    /// until [`Self::withdraw`]. Returns when the record was sent to at least one of them, which
    /// takes at most 15 s (kademlia does not confirm records).
    ///
    /// # Errors
    /// See [`ProvideError`]: after all but `TooMany` and `Gone`, the key stays on the list.
    pub async fn provide(&self, key: DhtKey) -> Result<(), ProvideError> {
        let patience = Patience::starting_now(PROVIDE_WITHIN);
        self.call(PROVIDE_WITHIN, |reply| Command::Provide { key, patience, reply }).await?
    }

    /// Stops publishing `key`. Records that others keep expire within 30 minutes; until then we are
    /// still found and must say no.
    ///
    /// # Errors
    /// When the network has stopped.
    pub async fn withdraw(&self, key: DhtKey) -> Result<(), NetworkGone> {
        self.call(Duration::ZERO, |reply| Command::Withdraw { key, reply }).await
    }

    /// Up to `want` peers that filed themselves under `key`, in the order they were found, never
    /// this peer itself. Returns as soon as `want` are found, the directory was searched, or it
    /// fell silent after naming some; at the latest after `within`, with those found by then. No
    /// provider is an empty list.
    ///
    /// # Errors
    /// When we have not joined, or no directory peer answered; see [`FindError`].
    pub async fn find_providers(
        &self,
        key: DhtKey,
        want: usize,
        within: Duration,
    ) -> Result<Vec<PeerId>, FindError> {
        let patience = Patience::starting_now(within);
        self.call(within, |reply| Command::Find { key, want, patience, reply }).await?
    }

    /// Asks `peer` one question about an offer or a price (1 to `MAX_FRAME_BYTES` bytes) and waits at
    /// most `within` (and at most 30 s once it is sent) for the answer. Finds and dials the peer when
    /// needed. Never asks twice.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn ask(&self, peer: PeerId, request: Vec<u8>, within: Duration) -> Result<Vec<u8>, AskError> {
        self.ask_about(Topic::Quote, peer, request, within).await
    }

    /// As [`Self::ask`], about what we and `peer` owe each other.
    ///
    /// # Errors
    /// See [`AskError`]: `Unsupported` by a peer that keeps no accounts.
    pub async fn ask_pair(
        &self,
        peer: PeerId,
        request: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, AskError> {
        self.ask_about(Topic::Pair, peer, request, within).await
    }

    /// The peers that are connected and keep accounts, now and whenever that changes. A peer appears
    /// when it has told what it speaks, shortly after its connection is up.
    #[must_use]
    pub fn pair_peers(&self) -> watch::Receiver<BTreeSet<PeerId>> {
        self.inner.pair_peers.clone()
    }

    async fn ask_about(
        &self,
        topic: Topic,
        peer: PeerId,
        request: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, AskError> {
        let len = request.len();
        if len == 0 || len > MAX_FRAME_BYTES {
            return Err(AskError::BadRequest { len });
        }
        let patience = Patience::starting_now(within);
        let errand = |reply| Errand { peer, patience, task: Task::Ask { topic, request, reply } };
        self.call(within, |reply| Command::Run(errand(reply))).await?
    }

    /// Opens a job stream to `peer`. Finds and dials the peer when needed. A peer that has no room
    /// for another job resets the stream, which the first read shows.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_job(&self, peer: PeerId, within: Duration) -> Result<JobStream, OpenError> {
        let patience = Patience::starting_now(within);
        let errand = |reply| Errand { peer, patience, task: Task::Open { reply } };
        self.call(within, |reply| Command::Run(errand(reply))).await?
    }

    /// What the network looks like right now.
    ///
    /// # Errors
    /// When the network has stopped.
    pub async fn snapshot(&self) -> Result<NetSnapshot, NetworkGone> {
        self.call(Duration::ZERO, |reply| Command::Snapshot { reply }).await
    }

    /// Closes every connection with a goodbye and ends the network, for every clone of this handle.
    /// Returns when it has ended, at the latest after a few seconds.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        if timeout(GOODBYE_WITHIN + LOOP_GRACE, self.inner.ended.cancelled()).await.is_err() {
            tracing::warn!("the network did not end in time");
        }
    }

    /// Sends a command and waits for its answer: at most `within`, by which the event loop answers,
    /// and some grace, after which the event loop counts as dead.
    async fn call<T>(
        &self,
        within: Duration,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, NetworkGone> {
        let (reply, answer) = oneshot::channel();
        let command = command(reply);
        let exchange = async {
            self.inner.commands.send(command).await.map_err(|_| NetworkGone)?;
            answer.await.map_err(|_| NetworkGone)
        };
        timeout(within + LOOP_GRACE, exchange).await.unwrap_or(Err(NetworkGone))
    }
}
