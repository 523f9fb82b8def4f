//! The wire of `/potluck/job/1`: raw streams, opened and accepted one by one.
//!
//! Owns: the negotiation of a job stream and the handover to the event loop, as events that cannot
//! be lost on the way (libp2p-stream drops inbound streams silently when two come at once, and
//! waits for ever when a dial it did not start fails). Never: dials, frames, queues without a bound
//! (the event loop admits what is opened, the swarm how many inbound streams negotiate at once).
//! Called by the swarm. A handler ends with its connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::num::NonZeroUsize;
use std::task::{Context, Poll};

use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, UpgradeInfo};
use libp2p::core::{InboundUpgrade, OutboundUpgrade};
use libp2p::swarm::handler::{
    ConnectionEvent, ConnectionHandlerEvent, DialUpgradeError, FullyNegotiatedInbound,
    FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    PeerAddresses, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol};

use super::limits::{REMEMBERED_PEERS, STREAM_WITHIN};

/// The protocol's name and version.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/potluck/job/1");

/// Names one attempt to open a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct OpenId(pub(super) u64);

/// Why a stream to a connected peer did not open.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The peer does not speak the protocol.
    Unsupported,
    /// The connection broke, or the negotiation took too long.
    Broken(String),
}

/// What the event loop hears.
#[derive(Debug)]
pub(super) enum Event {
    /// A peer opened a stream.
    Inbound {
        /// Who.
        peer: PeerId,
        /// The stream.
        stream: Stream,
    },
    /// A stream that we asked for is open.
    Opened {
        /// Which.
        id: OpenId,
        /// The stream.
        stream: Stream,
    },
    /// A stream that we asked for did not open.
    Failed {
        /// Which.
        id: OpenId,
        /// Why.
        refusal: Refusal,
    },
}

/// Opens and accepts job streams on established connections. It also remembers the addresses that
/// the event loop found out about peers, so that every dial of this swarm knows them.
pub(super) struct Behaviour {
    accepts: bool,
    addresses: PeerAddresses,
    events: VecDeque<ToSwarm<Event, OpenId>>,
}

impl Behaviour {
    /// `accepts`: whether peers may open streams to us.
    pub(super) fn new(accepts: bool) -> Self {
        let peers = NonZeroUsize::new(REMEMBERED_PEERS).unwrap_or(NonZeroUsize::MIN);
        Self { accepts, addresses: PeerAddresses::new(peers), events: VecDeque::new() }
    }

    /// Asks for a stream to a connected peer. An [`Event::Opened`] or [`Event::Failed`] follows,
    /// unless the connection closes first.
    pub(super) fn open(&mut self, peer: PeerId, id: OpenId) {
        let handler = NotifyHandler::Any;
        self.events.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler, event: id });
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.accepts))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(self.accepts))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        Ok(peer.map(|peer| self.addresses.get(&peer).collect()).unwrap_or_default())
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        self.addresses.on_swarm_event(&event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        self.events.push_back(ToSwarm::GenerateEvent(match event {
            FromHandler::Inbound(stream) => Event::Inbound { peer, stream },
            FromHandler::Opened(id, stream) => Event::Opened { id, stream },
            FromHandler::Failed(id, refusal) => Event::Failed { id, refusal },
        }));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// What a handler tells the behaviour.
#[derive(Debug)]
pub(super) enum FromHandler {
    Inbound(Stream),
    Opened(OpenId, Stream),
    Failed(OpenId, Refusal),
}

/// The job streams of one connection.
pub(super) struct Handler {
    accepts: bool,
    wanted: VecDeque<OpenId>,
    events: VecDeque<FromHandler>,
}

impl Handler {
    fn new(accepts: bool) -> Self {
        Self { accepts, wanted: VecDeque::new(), events: VecDeque::new() }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = OpenId;
    type ToBehaviour = FromHandler;
    type InboundProtocol = JobUpgrade;
    type OutboundProtocol = JobUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenId;

    fn listen_protocol(&self) -> SubstreamProtocol<JobUpgrade> {
        SubstreamProtocol::new(JobUpgrade { offered: self.accepts }, ())
    }

    fn on_behaviour_event(&mut self, id: OpenId) {
        self.wanted.push_back(id);
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<JobUpgrade, OpenId, FromHandler>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(event));
        }
        if let Some(id) = self.wanted.pop_front() {
            let protocol =
                SubstreamProtocol::new(JobUpgrade { offered: true }, id).with_timeout(STREAM_WITHIN);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, JobUpgrade, JobUpgrade, (), OpenId>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                self.events.push_back(FromHandler::Inbound(protocol))
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                self.events.push_back(FromHandler::Opened(info, protocol))
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let refusal = match error {
                    StreamUpgradeError::NegotiationFailed => Refusal::Unsupported,
                    StreamUpgradeError::Timeout => {
                        Refusal::Broken("the negotiation took too long".to_owned())
                    }
                    StreamUpgradeError::Io(error) => Refusal::Broken(error.to_string()),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                self.events.push_back(FromHandler::Failed(info, refusal));
            }
            _ => {}
        }
    }
}

/// Negotiates the protocol and yields the bare stream; offers nothing when the peer's role takes
/// no jobs.
#[derive(Debug, Clone, Copy)]
pub(super) struct JobUpgrade {
    offered: bool,
}

impl UpgradeInfo for JobUpgrade {
    type Info = StreamProtocol;
    type InfoIter = std::option::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.offered.then_some(PROTOCOL).into_iter()
    }
}

impl InboundUpgrade<Stream> for JobUpgrade {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

impl OutboundUpgrade<Stream> for JobUpgrade {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}
