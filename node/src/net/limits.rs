//! The network's bounds: how many of everything, and how long for anything.
//!
//! Owns: the numbers. Never: enforces one; the behaviours, the event loop and the framing do.
//! Called at start (per role) and by every wait in this room.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a peer does on the network; decides what it serves and how many connections it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Serves the directory and introduces peers to each other. Takes no quotes and no jobs.
    Bootstrap,
    /// Serves the directory, quotes and jobs.
    Provider,
    /// Asks, and serves nothing but its accounts: it listens nowhere and enters nobody's routing table.
    Renter,
}

/// How many of everything. [`NetworkLimits::for_role`] gives the usual values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkLimits {
    /// Established connections that others opened to us.
    pub connections_in: u32,
    /// Established connections that we opened.
    pub connections_out: u32,
    /// Established connections with one peer, both directions together.
    pub connections_per_peer: u32,
    /// Connections in their handshake that others opened.
    pub pending_in: u32,
    /// Connections in their handshake that we opened.
    pub pending_out: u32,
    /// Questions that wait for our answer, on each topic; the next one is refused.
    pub inbound_requests: usize,
    /// Job streams that wait to be taken up; the next one is refused.
    pub inbound_jobs: usize,
    /// Questions and job streams of our own that wait for their peer; the next one fails at once.
    pub pending_outbound: usize,
    /// Directory keys that we keep for others.
    pub stored_keys: usize,
}

impl NetworkLimits {
    /// The usual bounds of a role.
    #[must_use]
    pub const fn for_role(role: Role) -> Self {
        match role {
            Role::Bootstrap => Self {
                connections_in: 4_096,
                connections_out: 256,
                connections_per_peer: 4,
                pending_in: 256,
                pending_out: 64,
                inbound_requests: 1,
                inbound_jobs: 1,
                pending_outbound: 64,
                stored_keys: 8_192,
            },
            Role::Provider => Self {
                connections_in: 512,
                connections_out: 256,
                connections_per_peer: 4,
                pending_in: 64,
                pending_out: 64,
                inbound_requests: 64,
                inbound_jobs: 32,
                pending_outbound: 256,
                stored_keys: 1_024,
            },
            Role::Renter => Self {
                connections_in: 0,
                connections_out: 256,
                connections_per_peer: 4,
                pending_in: 0,
                pending_out: 64,
                inbound_requests: 16,
                inbound_jobs: 1,
                pending_outbound: 256,
                stored_keys: 0,
            },
        }
    }
}

impl Default for NetworkLimits {
    /// The bounds of a bootstrap, whose operator edits them in a file.
    fn default() -> Self {
        Self::for_role(Role::Bootstrap)
    }
}

/// Commands of our own handles that wait for the event loop. It empties them between two network
/// events, so this fills only while the machine is starved.
pub(super) const COMMANDS: usize = 256;
/// Callers that wait in [`super::Network::join`] at once.
pub(super) const PENDING_JOINS: usize = 16;
/// Directory lookups and publications under way at once.
pub(super) const PENDING_QUERIES: usize = 128;
/// Keys that one peer publishes: 16 models, each alone and with one hardware class, and room.
pub(super) const PROVIDED_KEYS: usize = 128;
/// Operations that wait for a connection to one and the same peer.
pub(super) const PENDING_PER_PEER: usize = 64;
/// External addresses that we find out by ourselves.
pub(super) const LEARNED_EXTERNAL: usize = 8;
/// Other versions of Potluck whose first speaker is told of: a stranger must not fill the log.
pub(super) const VERSIONS_TOLD: usize = 8;
/// Peers whose addresses are remembered outside the routing table.
pub(super) const REMEMBERED_PEERS: usize = 1_024;
/// Streams that a peer may have open on one connection.
pub(super) const STREAMS_PER_CONNECTION: u32 = 64;
/// Bytes that a peer may send on one QUIC stream ahead of our reading: four of the largest frames.
pub(super) const STREAM_WINDOW_BYTES: u32 = 262_144;
/// The same for one whole QUIC connection.
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 2_097_152;

/// How long start waits for its sockets to report their addresses.
pub(super) const LISTEN_WITHIN: Duration = Duration::from_secs(5);
/// A QUIC connection whose peer is silent this long is over. Below the time in which a renter gives
/// up a provider for dead inside a job, so that a killed process shows as a closed connection.
pub(super) const QUIC_SILENCE: Duration = Duration::from_millis(4_500);
/// How often QUIC shows that we live: two may be lost before the other side gives up.
pub(super) const QUIC_KEEP_ALIVE: Duration = Duration::from_millis(1_500);
/// How long one QUIC or TCP handshake may take.
pub(super) const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// A connection without any stream is closed after this. Longer than kademlia's own refresh (5
/// minutes), so that a quiet provider does not lose and regain its bootstraps.
pub(super) const IDLE_CONNECTION: Duration = Duration::from_secs(600);
/// How often a connection is pinged; over TCP nothing else notices a dead peer.
pub(super) const PING_EVERY: Duration = Duration::from_secs(15);
/// How long a ping may take before its connection is closed.
pub(super) const PING_WITHIN: Duration = Duration::from_secs(5);
/// How long the negotiation of one stream may take.
pub(super) const STREAM_WITHIN: Duration = Duration::from_secs(10);
/// The longest that one question may take, and how long our own answer may take.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long one directory lookup may take.
pub(super) const QUERY_WITHIN: Duration = Duration::from_secs(10);
/// A lookup that found providers, and hears nothing new for this long, is done: one dead directory
/// peer must not hold up a renter.
pub(super) const QUERY_QUIET: Duration = Duration::from_millis(250);
/// How long a publication may take.
pub(super) const PROVIDE_WITHIN: Duration = Duration::from_secs(15);
/// Providers publish again this often.
pub(super) const PROVIDE_EVERY: Duration = Duration::from_secs(600);
/// A record that nobody publishes again is gone after this.
pub(super) const RECORD_LIFE: Duration = Duration::from_secs(1_800);
/// The first wait before lost bootstraps are dialed again; it doubles from there.
pub(super) const REJOIN_FIRST: Duration = Duration::from_millis(250);
/// The longest wait before lost bootstraps are dialed again.
pub(super) const REJOIN_MOST: Duration = Duration::from_secs(60);
/// What a handle waits on top of a call's own time before it takes the event loop for dead.
pub(super) const LOOP_GRACE: Duration = Duration::from_secs(5);
/// How long shutdown waits for connections to say goodbye.
pub(super) const GOODBYE_WITHIN: Duration = Duration::from_millis(500);
