//! Lookups and publications in kademlia's directory.
//!
//! Owns: the queries under way, who waits for each, and when each has taken long enough. Never:
//! stores records ([`super::directory`]), dials, or chooses among providers. Called by the event
//! loop. The sharded directory of signed offers will replace what is behind these calls.

use std::collections::HashMap;

use libp2p::Multiaddr;
use libp2p::core::Endpoint;
use libp2p::kad::{self, GetClosestPeersError, GetProvidersOk, QueryId, QueryResult, QueryStats};
use libp2p::swarm::{ConnectionId, NetworkBehaviour as _};
use potluck_protocol::id::PeerId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::behaviour::from_libp2p;
use super::command::Patience;
use super::directory::{DhtKey, Directory};
use super::error::{FindError, ProvideError};
use super::limits::{PENDING_QUERIES, QUERY_QUIET};

type Kad = kad::Behaviour<Directory>;

struct Find {
    want: usize,
    found: Vec<PeerId>,
    patience: Patience,
    /// When the lookup counts as done because nothing new came.
    quiet_at: Option<Instant>,
    reply: oneshot::Sender<Result<Vec<PeerId>, FindError>>,
}

struct Provide {
    patience: Patience,
    reply: oneshot::Sender<Result<(), ProvideError>>,
}

/// What a query's progress means to the event loop.
pub(super) enum News {
    /// Nothing to do.
    None,
    /// Addresses of peers that were found; not filtered yet.
    Addresses(Vec<(libp2p::PeerId, Vec<Multiaddr>)>),
    /// The search for one peer's addresses is over; not filtered yet, perhaps empty.
    Located(libp2p::PeerId, Vec<Multiaddr>),
    /// A record of ours reached nobody.
    NotStored,
}

/// See the module's card.
pub(super) struct Discovery {
    /// Who we are: nobody is told to call itself.
    local: PeerId,
    finds: HashMap<QueryId, Find>,
    provides: HashMap<QueryId, Provide>,
    locating: HashMap<QueryId, libp2p::PeerId>,
}

/// Peers in the routing table.
pub(super) fn table_size(kad: &mut Kad) -> usize {
    kad.kbuckets().map(|bucket| bucket.num_entries()).sum()
}

impl Discovery {
    pub(super) fn new(local: PeerId) -> Self {
        Self { local, finds: HashMap::new(), provides: HashMap::new(), locating: HashMap::new() }
    }

    fn is_full(&self) -> bool {
        self.finds.len() + self.provides.len() + self.locating.len() >= PENDING_QUERIES
    }

    /// Starts a lookup; the answer goes to `reply`.
    pub(super) fn find(
        &mut self,
        kad: &mut Kad,
        key: DhtKey,
        want: usize,
        patience: Patience,
        reply: oneshot::Sender<Result<Vec<PeerId>, FindError>>,
    ) {
        if want == 0 {
            let _ = reply.send(Ok(Vec::new()));
        } else if self.is_full() {
            let _ = reply.send(Err(FindError::TooMany { limit: PENDING_QUERIES }));
        } else if table_size(kad) == 0 {
            let _ = reply.send(Err(FindError::NotJoined));
        } else {
            let id = kad.get_providers(key.record_key());
            let found = Vec::new();
            self.finds.insert(id, Find { want, found, patience, quiet_at: None, reply });
        }
    }

    /// Puts `key` on the list of what we publish, and publishes it now if anybody is known.
    pub(super) fn provide(
        &mut self,
        kad: &mut Kad,
        key: DhtKey,
        patience: Patience,
        reply: oneshot::Sender<Result<(), ProvideError>>,
    ) {
        if self.is_full() {
            let _ = reply.send(Err(ProvideError::TooMany { limit: PENDING_QUERIES }));
            return;
        }
        let joined = table_size(kad) > 0;
        match kad.start_providing(key.record_key()) {
            Ok(id) if joined => {
                self.provides.insert(id, Provide { patience, reply });
            }
            // The query without peers ends by itself; the key stays on the list.
            Ok(_) => {
                let _ = reply.send(Err(ProvideError::NotJoined));
            }
            Err(_) => {
                let limit = super::limits::PROVIDED_KEYS;
                let _ = reply.send(Err(ProvideError::TooMany { limit }));
            }
        }
    }

    /// Publishes every key on the list again: whoever kept them may be gone.
    pub(super) fn republish(kad: &mut Kad) {
        for key in kad.store_mut().own_keys() {
            // On the list already, so there is room; the outcome comes as an event.
            let _ = kad.start_providing(key);
        }
    }

    /// Looks for addresses of `peer`; whether a lookup could begin.
    pub(super) fn locate(&mut self, kad: &mut Kad, peer: libp2p::PeerId) -> bool {
        if self.is_full() || table_size(kad) == 0 {
            return false;
        }
        let id = kad.get_closest_peers(peer);
        self.locating.insert(id, peer);
        true
    }

    /// Takes up what a query reports.
    pub(super) fn on_progress(
        &mut self,
        kad: &mut Kad,
        id: QueryId,
        result: QueryResult,
        stats: &QueryStats,
        now: Instant,
    ) -> News {
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
                self.found(kad, id, providers, now)
            }
            QueryResult::GetProviders(_) => {
                self.find_ended(id, stats);
                News::None
            }
            QueryResult::StartProviding(outcome) => {
                let stored = outcome.is_ok() && stats.num_successes() > 0;
                if let Some(provide) = self.provides.remove(&id) {
                    let outcome = if stored { Ok(()) } else { Err(ProvideError::NotStored) };
                    let _ = provide.reply.send(outcome);
                }
                if stored { News::None } else { News::NotStored }
            }
            QueryResult::RepublishProvider(outcome) => {
                let stored = outcome.is_ok() && stats.num_successes() > 0;
                if stored { News::None } else { News::NotStored }
            }
            QueryResult::GetClosestPeers(outcome) => {
                let Some(peer) = self.locating.remove(&id) else { return News::None };
                let infos = match outcome {
                    Ok(closest) => closest.peers,
                    Err(GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                let its = infos.into_iter().find(|info| info.peer_id == peer);
                News::Located(peer, its.map(|info| info.addrs).unwrap_or_default())
            }
            _ => News::None,
        }
    }

    fn found(
        &mut self,
        kad: &mut Kad,
        id: QueryId,
        providers: impl IntoIterator<Item = libp2p::PeerId>,
        now: Instant,
    ) -> News {
        let Some(find) = self.finds.get_mut(&id) else { return News::None };
        let mut addresses = Vec::new();
        for provider in providers {
            let Some(peer) = from_libp2p(&provider) else { continue };
            let news = peer != self.local && !find.found.contains(&peer);
            if news && find.found.len() < find.want {
                find.found.push(peer);
                addresses.push((provider, addresses_in_query(kad, provider)));
            }
        }
        if !find.found.is_empty() {
            find.quiet_at = Some(now + QUERY_QUIET);
        }
        if find.found.len() >= find.want {
            self.finish(kad, id);
        }
        News::Addresses(addresses)
    }

    /// Ends a lookup early, with what it found.
    fn finish(&mut self, kad: &mut Kad, id: QueryId) {
        if let Some(mut query) = kad.query_mut(&id) {
            query.finish();
        }
        if let Some(find) = self.finds.remove(&id) {
            let _ = find.reply.send(Ok(find.found));
        }
    }

    fn find_ended(&mut self, id: QueryId, stats: &QueryStats) {
        let Some(find) = self.finds.remove(&id) else { return };
        let heard = !find.found.is_empty() || stats.num_successes() > 0;
        let _ = find.reply.send(if heard { Ok(find.found) } else { Err(FindError::NoAnswer) });
    }

    /// When [`Self::sweep`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let finds = self.finds.values().flat_map(|find| [Some(find.patience.deadline), find.quiet_at]);
        let provides = self.provides.values().map(|provide| Some(provide.patience.deadline));
        finds.chain(provides).flatten().min()
    }

    /// Ends what has taken long enough by `now`; returns how many calls ran out of time.
    pub(super) fn sweep(&mut self, kad: &mut Kad, now: Instant) -> u64 {
        let over: Vec<QueryId> = self
            .finds
            .iter()
            .filter(|(_, find)| {
                find.patience.deadline <= now
                    || find.quiet_at.is_some_and(|quiet| quiet <= now)
                    || find.reply.is_closed()
            })
            .map(|(id, _)| *id)
            .collect();
        let mut timed_out = 0;
        for id in over {
            if self.finds.get(&id).is_some_and(|find| !find.found.is_empty()) {
                self.finish(kad, id);
                continue;
            }
            if let Some(mut query) = kad.query_mut(&id) {
                query.finish();
            }
            if let Some(find) = self.finds.remove(&id) {
                timed_out += 1;
                let within = find.patience.within;
                let _ = find.reply.send(Err(FindError::TimedOut { within }));
            }
        }
        for (_, provide) in self.provides.extract_if(|_, provide| provide.patience.deadline <= now) {
            timed_out += 1;
            let within = provide.patience.within;
            let _ = provide.reply.send(Err(ProvideError::TimedOut { within }));
        }
        timed_out
    }
}

/// The addresses that running queries and the routing table have of `peer`: kademlia reports found
/// providers by name only and forgets their addresses with the query, but tells them to any dial.
fn addresses_in_query(kad: &mut Kad, peer: libp2p::PeerId) -> Vec<Multiaddr> {
    let no_dial = ConnectionId::new_unchecked(0);
    kad.handle_pending_outbound_connection(no_dial, Some(peer), &[], Endpoint::Dialer).unwrap_or_default()
}
