//! What the event loop makes of each event of the swarm.
//!
//! Owns: the reactions. Never: waits. A part of [`super::event_loop::EventLoop`].

use libp2p::core::ConnectedPoint;
use libp2p::kad;
use libp2p::kad::store::RecordStore as _;
use libp2p::request_response::{Event as QuestionEvent, Message};
use libp2p::swarm::{ConnectionId, DialError, ListenError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, connection_limits, identify, ping};
use potluck_protocol::version::Skew;
use tokio::time::Instant;

use super::addresses::{believed, peer_in, reach_of};
use super::behaviour::{BehaviourEvent, KAD_PROTOCOL, from_libp2p};
use super::discovery::{Discovery, News};
use super::errands::{describe, root_cause};
use super::error::OtherVersion;
use super::event_loop::{Connection, EventLoop, noise};
use super::framing::JobStream;
use super::jobs;
use super::limits::{LEARNED_EXTERNAL, Role, VERSIONS_TOLD};
use super::question::{Answer, Topic};

impl EventLoop {
    pub(super) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "connection closed");
                self.on_disconnected(peer_id, connection_id, num_established);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_error(connection_id, peer_id, &error);
            }
            SwarmEvent::IncomingConnectionError { error, send_back_addr, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "incoming connection failed");
                match error {
                    ListenError::Denied { .. } => self.counters.connections_refused += 1,
                    _ => self.counters.incoming_failed += 1,
                }
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                self.counters.listeners_lost += 1;
                tracing::warn!(?addresses, ?reason, "no longer listening");
            }
            SwarmEvent::ListenerError { error, .. } => {
                self.counters.listeners_lost += 1;
                tracing::warn!(%error, "a listener failed");
            }
            SwarmEvent::NewListenAddr { address, .. } => tracing::info!(%address, "listening"),
            SwarmEvent::NewExternalAddrCandidate { address } => self.on_candidate(address),
            _ => {}
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(event) => self.on_identify(event),
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::Kad(event) => self.on_kad(event),
            BehaviourEvent::Quote(event) => self.on_question_event(Topic::Quote, event),
            BehaviourEvent::Pair(event) => self.on_question_event(Topic::Pair, event),
            BehaviourEvent::Jobs(event) => self.on_job(event),
        }
    }

    fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        if from_libp2p(&peer).is_none() {
            self.counters.foreign_keys += 1;
            self.swarm.close_connection(id);
            return;
        }
        let mut address = endpoint.get_remote_address().clone();
        if peer_in(&address).is_some() {
            address.pop();
        }
        let outgoing = endpoint.is_dialer();
        let reach = reach_of(&address);
        self.connections.insert(id, Connection { peer, address, outgoing, reach });
        self.anchors.connected(id, peer);
        self.errands.connected(&mut self.swarm, peer);
    }

    fn on_disconnected(&mut self, peer: PeerId, id: ConnectionId, remaining: u32) {
        self.connections.remove(&id);
        let lost = self.anchors.disconnected(peer, Instant::now(), noise());
        self.counters.bootstraps_lost += u64::from(lost);
        if remaining == 0 {
            self.identified.remove(&peer);
            self.directory_peers.remove(&peer);
            if let Some(peer) = from_libp2p(&peer) {
                self.parts.pair_peers.send_if_modified(|peers| peers.remove(&peer));
                self.errands.disconnected(peer);
            }
        }
    }

    fn on_dial_error(&mut self, id: ConnectionId, peer: Option<PeerId>, error: &DialError) {
        let denied = matches!(error, DialError::Denied { cause }
            if cause.downcast_ref::<connection_limits::Exceeded>().is_some());
        if denied {
            self.counters.connections_refused += 1;
        } else {
            self.counters.dials_failed += 1;
        }
        let problem = describe(error);
        tracing::debug!(?peer, %problem, "dial failed");
        self.anchors.failed(id, &problems_of(error, &problem));
        let connected = peer.is_some_and(|peer| self.swarm.is_connected(&peer));
        if let Some(peer) = peer.filter(|_| !connected) {
            self.errands.dial_failed(&mut self.swarm, &mut self.discovery, peer, problem);
        }
    }

    /// Others see us at `address`. It is ours for sure only when we listen on exactly that.
    fn on_candidate(&mut self, address: Multiaddr) {
        let ours = self.swarm.listeners().any(|listener| *listener == address);
        let learned = self.swarm.external_addresses().count();
        if ours && learned < LEARNED_EXTERNAL {
            self.swarm.add_external_address(address);
        }
    }

    fn on_identify(&mut self, event: identify::Event) {
        match event {
            identify::Event::Received { connection_id, peer_id, info } => {
                self.on_identified(connection_id, peer_id, info);
            }
            identify::Event::Error { peer_id, error, .. } => {
                self.counters.identify_failed += 1;
                tracing::debug!(peer = %peer_id, %error, "not identified");
                if let Some(peer) = from_libp2p(&peer_id) {
                    self.errands.identified(peer, Skew::default());
                }
            }
            identify::Event::Sent { .. } | identify::Event::Pushed { .. } => {}
        }
    }

    fn on_identified(&mut self, id: ConnectionId, peer: PeerId, info: identify::Info) {
        self.compare_versions(&peer, &info);
        let Some(connection) = self.connections.get(&id) else { return };
        let reach = connection.reach;
        // An address that we dialed with success is as good as any that the peer names.
        let dialed = connection.outgoing.then(|| connection.address.clone());
        let (named, refused) = believed(&peer, info.listen_addrs, reach);
        self.counters.addresses_refused += refused;
        let (addresses, _) = believed(&peer, dialed.into_iter().chain(named), reach);
        for address in &addresses {
            self.swarm.add_peer_address(peer, address.clone());
        }
        let serves = info.protocols.contains(&KAD_PROTOCOL);
        if serves {
            for address in &addresses {
                self.swarm.behaviour_mut().kad.add_address(&peer, address.clone());
            }
        }
        if info.protocols.contains(&Topic::Pair.protocol())
            && let Some(peer) = from_libp2p(&peer)
        {
            self.parts.pair_peers.send_if_modified(|peers| peers.insert(peer));
        }
        self.identified.insert(peer, addresses);
        if serves && self.directory_peers.insert(peer) {
            self.on_directory_peer(peer);
        }
    }

    /// Notes what `peer` speaks instead of our versions. Whoever serves says once for each version who
    /// must upgrade; a renter hears it when what it wants comes to nothing.
    fn compare_versions(&mut self, peer: &PeerId, info: &identify::Info) {
        let names = info.protocols.iter().map(AsRef::as_ref).chain([info.protocol_version.as_str()]);
        let skew = Skew::of(names);
        let Some(peer) = from_libp2p(peer) else { return };
        if let Some(theirs) = skew.any() {
            self.counters.other_versions += 1;
            let is_news = self.versions_met.len() < VERSIONS_TOLD && self.versions_met.insert(theirs);
            if is_news && self.parts.role != Role::Renter {
                tracing::warn!("{}", OtherVersion::of(peer, theirs));
            }
        }
        self.errands.identified(peer, skew);
    }

    /// Somebody who serves the directory is there.
    fn on_directory_peer(&mut self, peer: PeerId) {
        let joined = self.joined_by(peer);
        tracing::debug!(%joined.via, %joined.address, "directory peer");
        if self.directory_peers.len() == 1 {
            // The first one, or the first one again: whoever kept our records may be gone.
            Discovery::republish(&mut self.swarm.behaviour_mut().kad);
        }
        self.anchors.joined(&joined);
    }

    fn on_ping(&mut self, event: ping::Event) {
        if let Err(ping::Failure::Timeout) = event.result {
            self.counters.pings_lost += 1;
            self.swarm.close_connection(event.connection);
        }
    }

    fn on_kad(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, stats, .. } => {
                let kad = &mut self.swarm.behaviour_mut().kad;
                let now = Instant::now();
                let news = self.discovery.on_progress(kad, id, result, &stats, now);
                self.on_news(news);
            }
            kad::Event::InboundRequest { request } => match request {
                kad::InboundRequest::AddProvider { record: Some(record) } => {
                    self.on_provider_record(record);
                }
                kad::InboundRequest::PutRecord { .. } => self.counters.records_refused += 1,
                _ => {}
            },
            _ => {}
        }
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::None => {}
            News::NotStored => self.counters.publications_failed += 1,
            News::Addresses(found) => {
                let reach = self.reach_to_directory();
                for (peer, named) in found {
                    let (addresses, refused) = believed(&peer, named, reach);
                    self.counters.addresses_refused += refused;
                    for address in addresses {
                        self.swarm.add_peer_address(peer, address);
                    }
                }
            }
            News::Located(peer, named) => {
                let (addresses, refused) = believed(&peer, named, self.reach_to_directory());
                self.counters.addresses_refused += refused;
                self.errands.located(&mut self.swarm, &mut self.discovery, peer, addresses);
            }
        }
    }

    /// A peer files itself under a key. Its addresses pass the same policy as anywhere.
    fn on_provider_record(&mut self, mut record: kad::ProviderRecord) {
        let reach = self.reach_to(&record.provider);
        let identified = self.identified.get(&record.provider).cloned().unwrap_or_default();
        let named = record.addresses.into_iter().chain(identified);
        let (addresses, refused) = believed(&record.provider, named, reach);
        self.counters.addresses_refused += refused;
        record.addresses = addresses;
        if self.swarm.behaviour_mut().kad.store_mut().add_provider(record).is_err() {
            self.counters.records_refused += 1;
        }
    }

    fn on_question_event(&mut self, topic: Topic, event: QuestionEvent<Vec<u8>, Answer>) {
        match event {
            QuestionEvent::Message { peer, message, .. } => match message {
                Message::Request { request, channel, .. } => {
                    self.on_question(topic, peer, request, channel);
                }
                Message::Response { request_id, response } => {
                    let awaited = self.errands.answered(topic, request_id, response);
                    self.counters.replies_late += u64::from(!awaited);
                }
            },
            QuestionEvent::OutboundFailure { request_id, error, .. } => {
                self.errands.ask_failed(topic, request_id, error);
            }
            QuestionEvent::InboundFailure { peer, error, .. } => {
                self.counters.requests_broken += 1;
                tracing::debug!(%peer, %error, "a question failed");
            }
            QuestionEvent::ResponseSent { .. } => {}
        }
    }

    fn on_job(&mut self, event: jobs::Event) {
        match event {
            jobs::Event::Inbound { peer, stream } => {
                let job = from_libp2p(&peer).map(|peer| JobStream::new(peer, stream));
                // A refused stream is dropped, which resets it: whoever opened it sees that.
                let taken = job.is_some_and(|job| self.parts.jobs.try_send(job).is_ok());
                self.counters.jobs_refused += u64::from(!taken);
            }
            jobs::Event::Opened { id, stream } => {
                let awaited = self.errands.opened(id, stream);
                self.counters.jobs_late += u64::from(!awaited);
            }
            jobs::Event::Failed { id, refusal } => self.errands.open_failed(id, refusal),
        }
    }
}

/// What went wrong per address; with the whole problem for errors that name no address.
fn problems_of(error: &DialError, problem: &str) -> Vec<(Multiaddr, String)> {
    match error {
        DialError::Transport(attempts) => {
            attempts.iter().map(|(address, error)| (address.clone(), root_cause(error))).collect()
        }
        DialError::WrongPeerId { address, .. } | DialError::LocalPeerId { address } => {
            vec![(address.clone(), problem.to_owned())]
        }
        _ => vec![(Multiaddr::empty(), problem.to_owned())],
    }
}
