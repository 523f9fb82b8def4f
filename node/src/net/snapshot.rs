//! What the network looks like right now, for status pages and tests.
//!
//! Owns: the shapes of [`NetSnapshot`] and [`NetCounters`]. Never: counts (the event loop does).
//! Called by [`super::Network::snapshot`].

use potluck_protocol::id::PeerId;
use serde::{Deserialize, Serialize};

use super::limits::Role;

/// Everything that was dropped, refused or lost since start. Nothing is dropped without a count
/// here, but for what libp2p sheds below us (streams over a connection's own limit).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// Connections refused by our limits, either direction.
    pub connections_refused: u64,
    /// Incoming connections that failed in their handshake.
    pub incoming_failed: u64,
    /// Dials that failed.
    pub dials_failed: u64,
    /// Connections closed because a ping was not answered.
    pub pings_lost: u64,
    /// Connections closed because the peer's key is no ed25519 key.
    pub foreign_keys: u64,
    /// Peers that could not be identified.
    pub identify_failed: u64,
    /// Peers that speak another version of Potluck.
    pub other_versions: u64,
    /// Addresses that peers named and we do not believe.
    pub addresses_refused: u64,
    /// Questions refused because too many wait for an answer.
    pub requests_refused: u64,
    /// Questions that this program left without an answer.
    pub requests_unanswered: u64,
    /// Questions and answers of others that broke the framing or broke off.
    pub requests_broken: u64,
    /// Answers of ours that came too late.
    pub answers_late: u64,
    /// Answers to us that came after we gave up.
    pub replies_late: u64,
    /// Job streams refused because too many wait to be taken up.
    pub jobs_refused: u64,
    /// Job streams that opened after we gave up.
    pub jobs_late: u64,
    /// Directory records refused: over quota, malformed, or values, which nobody may store.
    pub records_refused: u64,
    /// Publications of our own records that reached no directory peer.
    pub publications_failed: u64,
    /// Calls of our own that were refused because too many were under way.
    pub calls_refused: u64,
    /// Calls of our own that ran out of time.
    pub calls_timed_out: u64,
    /// Times that every bootstrap was lost.
    pub bootstraps_lost: u64,
    /// Listening sockets that failed.
    pub listeners_lost: u64,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Who is at the other end.
    pub peer: PeerId,
    /// The other end's address.
    pub address: String,
    /// Whether we opened it.
    pub outgoing: bool,
}

/// The network of one process at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetSnapshot {
    /// Who we are.
    pub peer: PeerId,
    /// What we do.
    pub role: Role,
    /// Addresses that we listen on, with our `/p2p` name.
    pub listeners: Vec<String>,
    /// Addresses that we tell others to reach us at, besides.
    pub external: Vec<String>,
    /// Established connections.
    pub links: Vec<Link>,
    /// Connected peers that serve the directory.
    pub directory_peers: usize,
    /// Peers in the routing table, connected or not.
    pub routing_table: usize,
    /// Keys that we publish.
    pub providing: usize,
    /// Directory records that we keep for others.
    pub records_kept: usize,
    /// Everything that was dropped, refused or lost.
    pub counters: NetCounters,
}
