//! The protocols of a peer, composed, and the swarm that runs them.
//!
//! Owns: which protocols there are and how each is set. Never: reacts to an event (the event loop
//! does). Called once at start.

use std::num::NonZeroUsize;

use libp2p::identity::Keypair;
use libp2p::kad::{self, BucketInserts, StoreInserts};
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::{StreamProtocol, Swarm, SwarmBuilder, connection_limits, identify, noise, ping, tcp, yamux};
use potluck_protocol::id::PeerId;
use potluck_protocol::version::NETWORK_NAME;

use super::directory::Directory;
use super::error::StartError;
use super::jobs;
use super::limits::{
    ANSWER_WITHIN, CONNECTION_WINDOW_BYTES, HANDSHAKE_WITHIN, IDLE_CONNECTION, NetworkLimits, PING_EVERY,
    PING_WITHIN, PROVIDE_EVERY, QUERY_WITHIN, QUIC_KEEP_ALIVE, QUIC_SILENCE, RECORD_LIFE, Role,
    STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION,
};
use super::question::{QuestionCodec, Topic};

/// The directory's protocol.
pub(super) const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/potluck/kad/1");
/// What `identify` calls this program.
const AGENT: &str = concat!("potluck/", env!("CARGO_PKG_VERSION"));

/// Every protocol of a peer. The limits come first: they refuse before anything else is set up.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    /// How many connections.
    pub(super) limits: connection_limits::Behaviour,
    /// Who are you, where do you listen, what do you speak?
    pub(super) identify: identify::Behaviour,
    /// Are you there?
    pub(super) ping: ping::Behaviour,
    /// Who offers it, and where is that peer?
    pub(super) kad: kad::Behaviour<Directory>,
    /// What would it cost?
    pub(super) quote: request_response::Behaviour<QuestionCodec>,
    /// What do we owe each other?
    pub(super) pair: request_response::Behaviour<QuestionCodec>,
    /// Do it.
    pub(super) jobs: jobs::Behaviour,
}

impl Behaviour {
    /// The behaviour of a topic.
    pub(super) fn questions(&mut self, topic: Topic) -> &mut request_response::Behaviour<QuestionCodec> {
        match topic {
            Topic::Quote => &mut self.quote,
            Topic::Pair => &mut self.pair,
        }
    }
}

/// The libp2p name of `peer`; `None` for 32 bytes that libp2p takes for no key.
pub(super) fn to_libp2p(peer: PeerId) -> Option<libp2p::PeerId> {
    libp2p::PeerId::from_bytes(&peer.to_libp2p_bytes()).ok()
}

/// The account of a libp2p peer; `None` when its key is not an ed25519 key.
pub(super) fn from_libp2p(peer: &libp2p::PeerId) -> Option<PeerId> {
    PeerId::from_libp2p_bytes(&peer.to_bytes())
}

/// The swarm of a peer. It listens nowhere yet.
pub(super) fn build(
    key: Keypair,
    role: Role,
    limits: &NetworkLimits,
) -> Result<Swarm<Behaviour>, StartError> {
    let yamux = || {
        let mut config = yamux::Config::default();
        let streams = usize::try_from(STREAMS_PER_CONNECTION).unwrap_or(usize::MAX);
        config.set_max_num_streams(streams);
        config
    };
    let key_problem = |problem: String| StartError::Key { problem };
    let swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux)
        .map_err(|error| key_problem(error.to_string()))?
        .with_quic_config(|mut config| {
            config.handshake_timeout = HANDSHAKE_WITHIN;
            config.max_idle_timeout = u32::try_from(QUIC_SILENCE.as_millis()).unwrap_or(u32::MAX);
            config.keep_alive_interval = QUIC_KEEP_ALIVE;
            config.max_concurrent_stream_limit = STREAMS_PER_CONNECTION;
            config.max_stream_data = STREAM_WINDOW_BYTES;
            config.max_connection_data = CONNECTION_WINDOW_BYTES;
            config
        })
        .with_dns()
        .map_err(|source| StartError::Resolver { source })?
        .with_behaviour(|key| behaviour(key, role, limits))
        .map_err(|error| key_problem(error.to_string()))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_CONNECTION).with_smart_dial())
        .with_connection_timeout(HANDSHAKE_WITHIN)
        .build();
    Ok(swarm)
}

fn behaviour(key: &Keypair, role: Role, limits: &NetworkLimits) -> Behaviour {
    let local = key.public().to_peer_id();
    let quotes = match role {
        Role::Provider => ProtocolSupport::Full,
        Role::Bootstrap | Role::Renter => ProtocolSupport::Outbound,
    };
    // Nobody has an account with a bootstrap.
    let pairs = (role != Role::Bootstrap).then_some(ProtocolSupport::Full);
    Behaviour {
        limits: connection_limits::Behaviour::new(connection_bounds(limits)),
        identify: identify::Behaviour::new(
            identify::Config::new(NETWORK_NAME.to_owned(), key.public())
                .with_agent_version(AGENT.to_owned())
                .with_push_listen_addr_updates(true)
                // Its cache holds what peers say of themselves unfiltered; we keep our own.
                .with_cache_size(0),
        ),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_EVERY).with_timeout(PING_WITHIN)),
        kad: kademlia(local, role, limits),
        quote: questions(Topic::Quote, Some(quotes), limits),
        pair: questions(Topic::Pair, pairs, limits),
        jobs: jobs::Behaviour::new(role == Role::Provider),
    }
}

/// The behaviour of one topic; without support, nobody is asked and nobody answered.
fn questions(
    topic: Topic,
    support: Option<ProtocolSupport>,
    limits: &NetworkLimits,
) -> request_response::Behaviour<QuestionCodec> {
    let config = request_response::Config::default()
        .with_request_timeout(ANSWER_WITHIN)
        .with_max_concurrent_streams(limits.inbound_requests.max(limits.pending_outbound));
    request_response::Behaviour::new(support.map(|support| (topic.protocol(), support)), config)
}

fn connection_bounds(limits: &NetworkLimits) -> connection_limits::ConnectionLimits {
    connection_limits::ConnectionLimits::default()
        .with_max_established_incoming(Some(limits.connections_in))
        .with_max_established_outgoing(Some(limits.connections_out))
        .with_max_established_per_peer(Some(limits.connections_per_peer))
        .with_max_pending_incoming(Some(limits.pending_in))
        .with_max_pending_outgoing(Some(limits.pending_out))
}

fn kademlia(local: libp2p::PeerId, role: Role, limits: &NetworkLimits) -> kad::Behaviour<Directory> {
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        // Only what `identify` reported and the address policy let through enters the table.
        .set_kbucket_inserts(BucketInserts::Manual)
        // Records pass the address policy as well.
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_query_timeout(QUERY_WITHIN)
        .set_parallelism(NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN))
        .set_provider_record_ttl(Some(RECORD_LIFE))
        .set_provider_publication_interval(Some(PROVIDE_EVERY))
        .set_record_ttl(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_caching(kad::Caching::Disabled);
    let store = Directory::new(local, limits.stored_keys);
    let mut kad = kad::Behaviour::with_config(local, store, config);
    // Left alone, kademlia serves nobody until an external address is confirmed.
    kad.set_mode(Some(match role {
        Role::Bootstrap | Role::Provider => kad::Mode::Server,
        Role::Renter => kad::Mode::Client,
    }));
    kad
}
