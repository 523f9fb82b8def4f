//! The one task that owns the swarm.
//!
//! Owns: the swarm, everything that waits for it, and the counters. Never: blocks, panics, lets a
//! map grow past its limit, or drops anything uncounted. Fed by the handles' commands and the
//! swarm's events; talks back by the commands' own channels and by [`super::Inbound`]. Ends when it
//! is told to, or when the last handle is gone: peers hear a goodbye, waiting callers that the
//! network is gone.
//!
//! The order of work is fixed: the end, then answers that are ready, then our own commands, then
//! what is overdue, and only then new work from others.

use std::collections::{BTreeSet, HashMap, HashSet};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use libp2p::multiaddr::Protocol;
use libp2p::request_response::ResponseChannel;
use libp2p::swarm::{ConnectionId, DialError, Swarm, dial_opts::DialOpts};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::addresses::Reach;
use super::anchors::Anchors;
use super::behaviour::{Behaviour, from_libp2p};
use super::command::Command;
use super::discovery::{Discovery, table_size};
use super::errands::{Errands, describe};
use super::framing::JobStream;
use super::limits::{ANSWER_WITHIN, GOODBYE_WITHIN, NetworkLimits, Role};
use super::question::{Answer, Topic};
use super::snapshot::{Link, NetCounters, NetSnapshot};
use super::{InboundRequest, Joined};

/// An established connection.
pub(super) struct Connection {
    pub(super) peer: PeerId,
    pub(super) address: Multiaddr,
    pub(super) outgoing: bool,
    pub(super) reach: Option<Reach>,
}

/// Answers that this program owes on one topic: `None` when it has none to give.
type Owed = FuturesUnordered<BoxFuture<'static, (ResponseChannel<Answer>, Option<Vec<u8>>)>>;

/// What the event loop is made of, besides the swarm.
pub(super) struct Parts {
    pub(super) local: potluck_protocol::id::PeerId,
    pub(super) role: Role,
    pub(super) limits: NetworkLimits,
    pub(super) bootstrap: Vec<Multiaddr>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) requests: mpsc::Sender<InboundRequest>,
    pub(super) pairs: mpsc::Sender<InboundRequest>,
    /// Connected and identified peers that keep accounts.
    pub(super) pair_peers: watch::Sender<BTreeSet<potluck_protocol::id::PeerId>>,
    pub(super) jobs: mpsc::Sender<JobStream>,
    pub(super) stop: CancellationToken,
    /// Tells the handles that the loop has ended, however it ends.
    pub(super) _ended: DropGuard,
}

/// See the module's card.
pub(super) struct EventLoop {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) parts: Parts,
    pub(super) owed_quotes: Owed,
    pub(super) owed_pairs: Owed,
    pub(super) connections: HashMap<ConnectionId, Connection>,
    /// What connected peers say of where they listen, as far as we believe it.
    pub(super) identified: HashMap<PeerId, Vec<Multiaddr>>,
    /// Connected and identified peers that serve the directory.
    pub(super) directory_peers: HashSet<PeerId>,
    /// Other versions that peers were found to speak.
    pub(super) versions_met: HashSet<u16>,
    pub(super) anchors: Anchors,
    pub(super) discovery: Discovery,
    pub(super) errands: Errands,
    pub(super) counters: NetCounters,
}

impl EventLoop {
    pub(super) fn new(swarm: Swarm<Behaviour>, mut parts: Parts) -> Self {
        Self {
            owed_quotes: FuturesUnordered::new(),
            owed_pairs: FuturesUnordered::new(),
            connections: HashMap::new(),
            identified: HashMap::new(),
            directory_peers: HashSet::new(),
            versions_met: HashSet::new(),
            anchors: Anchors::new(std::mem::take(&mut parts.bootstrap)),
            discovery: Discovery::new(parts.local),
            errands: Errands::new(parts.limits.pending_outbound),
            counters: NetCounters::default(),
            swarm,
            parts,
        }
    }

    /// Runs until it is told to stop or nobody is left to serve.
    pub(super) async fn run(mut self) {
        loop {
            let overdue = self.next_deadline();
            tokio::select! {
                biased;
                () = self.parts.stop.cancelled() => break,
                Some((channel, answer)) = self.owed_quotes.next() => {
                    self.give_answer(Topic::Quote, channel, answer);
                }
                Some((channel, answer)) = self.owed_pairs.next() => {
                    self.give_answer(Topic::Pair, channel, answer);
                }
                command = self.parts.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                () = until(overdue) => self.on_time(Instant::now()),
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
            }
        }
        self.say_goodbye().await;
    }

    /// Closes every connection, so that nobody has to find out by waiting.
    async fn say_goodbye(mut self) {
        for peer in self.swarm.connected_peers().copied().collect::<Vec<_>>() {
            // It may have closed in this moment.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closing = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        if timeout(GOODBYE_WITHIN, closing).await.is_err() {
            tracing::debug!("not every peer took the goodbye in time");
        }
    }

    fn on_command(&mut self, command: Command) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        match command {
            Command::Join { patience, reply } => match self.directory_peers.iter().next() {
                Some(peer) => {
                    let _ = reply.send(Ok(self.joined_by(*peer)));
                }
                None => self.anchors.join(patience, reply, Instant::now()),
            },
            Command::Provide { key, patience, reply } => {
                self.discovery.provide(kad, key, patience, reply);
            }
            Command::Withdraw { key, reply } => {
                kad.stop_providing(&key.record_key());
                let _ = reply.send(());
            }
            Command::Find { key, want, patience, reply } => {
                self.discovery.find(kad, key, want, patience, reply);
            }
            Command::Run(errand) => {
                let taken = self.errands.run(&mut self.swarm, &mut self.discovery, errand);
                self.counters.calls_refused += u64::from(!taken);
            }
            Command::Listeners { reply } => {
                let _ = reply.send(self.named_listeners());
            }
            Command::Snapshot { reply } => {
                let _ = reply.send(self.snapshot());
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deadlines =
            [self.anchors.next_deadline(), self.discovery.next_deadline(), self.errands.next_deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// Does what is due by `now`.
    fn on_time(&mut self, now: Instant) {
        self.counters.calls_timed_out += self.anchors.give_up(now)
            + self.discovery.sweep(&mut self.swarm.behaviour_mut().kad, now)
            + self.errands.sweep(now);
        for due in self.anchors.due(now, noise()) {
            let dial = match due.peer {
                Some(peer) => DialOpts::peer_id(peer).addresses(due.addresses).build(),
                None => match due.addresses.into_iter().next() {
                    Some(address) => DialOpts::unknown_peer_id().address(address).build(),
                    None => continue,
                },
            };
            let connection = dial.connection_id();
            match self.swarm.dial(dial) {
                Ok(()) => self.anchors.dialing(due.index, connection),
                // Connected, or somebody else's dial is under way: its outcome is ours as well.
                Err(DialError::DialPeerConditionFalse(_)) => {}
                Err(error) => self.anchors.refused(due.index, &describe(&error)),
            }
        }
    }

    /// Passes a question on, or refuses it when too many on its topic wait already.
    pub(super) fn on_question(
        &mut self,
        topic: Topic,
        peer: PeerId,
        bytes: Vec<u8>,
        channel: ResponseChannel<Answer>,
    ) {
        let (owed, queue) = match topic {
            Topic::Quote => (&self.owed_quotes, &self.parts.requests),
            Topic::Pair => (&self.owed_pairs, &self.parts.pairs),
        };
        let room = owed.len() < self.parts.limits.inbound_requests;
        let (Some(peer), true) = (from_libp2p(&peer), room) else {
            return self.refuse(topic, channel);
        };
        let (reply, answer) = oneshot::channel();
        match queue.try_send(InboundRequest { peer, bytes, reply }) {
            Ok(()) => owed.push(Box::pin(async move {
                let answer = timeout(ANSWER_WITHIN, answer).await;
                (channel, answer.ok().and_then(Result::ok))
            })),
            Err(_) => self.refuse(topic, channel),
        }
    }

    fn refuse(&mut self, topic: Topic, channel: ResponseChannel<Answer>) {
        self.counters.requests_refused += 1;
        // If whoever asked is gone, nobody needs the refusal.
        let _ = self.swarm.behaviour_mut().questions(topic).send_response(channel, Answer::Busy);
    }

    fn give_answer(&mut self, topic: Topic, channel: ResponseChannel<Answer>, answer: Option<Vec<u8>>) {
        let answer = answer.map_or(Answer::Busy, Answer::Bytes);
        self.counters.requests_unanswered += u64::from(answer == Answer::Busy);
        let sent = self.swarm.behaviour_mut().questions(topic).send_response(channel, answer);
        self.counters.answers_late += u64::from(sent.is_err());
    }

    /// How the network was joined, if it was by `peer`.
    pub(super) fn joined_by(&self, peer: PeerId) -> Joined {
        let link = self.connections.values().find(|connection| connection.peer == peer);
        Joined {
            via: from_libp2p(&peer).unwrap_or(self.parts.local),
            address: link.map(|link| link.address.clone()).unwrap_or_else(Multiaddr::empty),
        }
    }

    /// The narrowest reach of our connections to `peer`.
    pub(super) fn reach_to(&self, peer: &PeerId) -> Option<Reach> {
        let links = self.connections.values().filter(|connection| connection.peer == *peer);
        links.filter_map(|connection| connection.reach).min()
    }

    /// The narrowest reach of our connections to anybody who serves the directory: addresses that
    /// they pass on are believed as far as that.
    pub(super) fn reach_to_directory(&self) -> Option<Reach> {
        self.directory_peers.iter().filter_map(|peer| self.reach_to(peer)).min()
    }

    fn named_listeners(&self) -> Vec<Multiaddr> {
        let local = *self.swarm.local_peer_id();
        self.swarm.listeners().map(|address| address.clone().with(Protocol::P2p(local))).collect()
    }

    fn snapshot(&mut self) -> NetSnapshot {
        let text = |address: &Multiaddr| address.to_string();
        let links = self.connections.values().filter_map(|connection| {
            Some(Link {
                peer: from_libp2p(&connection.peer)?,
                address: text(&connection.address),
                outgoing: connection.outgoing,
            })
        });
        let links = links.collect();
        let kad = &mut self.swarm.behaviour_mut().kad;
        NetSnapshot {
            peer: self.parts.local,
            role: self.parts.role,
            links,
            directory_peers: self.directory_peers.len(),
            routing_table: table_size(kad),
            providing: kad.store_mut().own_keys().len(),
            records_kept: kad.store_mut().len(),
            listeners: self.named_listeners().iter().map(text).collect(),
            external: self.swarm.external_addresses().map(text).collect(),
            counters: self.counters,
        }
    }
}

/// Sleeps until `deadline`; for ever when there is none.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A random byte for jitter. A system without randomness gets none, which only costs the jitter.
pub(super) fn noise() -> u8 {
    let mut byte = [0];
    match getrandom::fill(&mut byte) {
        Ok(()) => byte[0],
        Err(_) => 128,
    }
}
