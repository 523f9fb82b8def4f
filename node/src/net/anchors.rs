//! Joining the network, and joining it again when every bootstrap is lost.
//!
//! Owns: which bootstraps there are, what happened to each, when they are dialed next, and who
//! waits for the first one. Never: dials (the event loop does what [`Anchors::due`] says) and never
//! reads a clock. Called by the event loop.
//!
//! ```text
//!   resting --join()--> seeking --a bootstrap connects--> anchored
//!                          ^                                  |
//!                          '------- the last one is lost -----'
//! ```
//!
//! While seeking, all bootstraps are dialed at once; between two rounds lies a wait that doubles up
//! to a minute, with a quarter of jitter so that a thousand peers do not come back in one moment.

use std::collections::HashMap;
use std::time::Duration;

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Joined;
use super::addresses::peer_in;
use super::command::Patience;
use super::error::{JoinError, Tried};
use super::limits::{PENDING_JOINS, REJOIN_FIRST, REJOIN_MOST};

/// While somebody waits in `join`, rounds are at most this far apart.
const JOIN_ROUND: Duration = Duration::from_secs(1);

/// One bootstrap, with every address that we have of it.
struct Anchor {
    /// `None` until an address without a `/p2p` name answered.
    peer: Option<PeerId>,
    addresses: Vec<Multiaddr>,
    dialing: Option<ConnectionId>,
    connections: usize,
    /// What happened to an address last.
    problems: HashMap<Multiaddr, String>,
}

struct PendingJoin {
    patience: Patience,
    reply: oneshot::Sender<Result<Joined, JoinError>>,
}

/// A bootstrap to dial now.
pub(super) struct Due {
    /// Which, for [`Anchors::dialing`] and [`Anchors::refused`].
    pub(super) index: usize,
    pub(super) peer: Option<PeerId>,
    pub(super) addresses: Vec<Multiaddr>,
}

/// See the module's card.
pub(super) struct Anchors {
    anchors: Vec<Anchor>,
    seeking: bool,
    next_round: Option<Instant>,
    wait: Duration,
    joins: Vec<PendingJoin>,
}

impl Anchors {
    /// Addresses of one peer make one bootstrap.
    pub(super) fn new(bootstraps: Vec<Multiaddr>) -> Self {
        let mut anchors: Vec<Anchor> = Vec::new();
        for address in bootstraps {
            let peer = peer_in(&address);
            match anchors.iter_mut().find(|known| peer.is_some() && known.peer == peer) {
                Some(known) if known.addresses.contains(&address) => {}
                Some(known) => known.addresses.push(address),
                None => anchors.push(Anchor {
                    peer,
                    addresses: vec![address],
                    dialing: None,
                    connections: 0,
                    problems: HashMap::new(),
                }),
            }
        }
        Self { anchors, seeking: false, next_round: None, wait: REJOIN_FIRST, joins: Vec::new() }
    }

    /// Takes up a caller of `join`; the first one starts the search.
    pub(super) fn join(
        &mut self,
        patience: Patience,
        reply: oneshot::Sender<Result<Joined, JoinError>>,
        now: Instant,
    ) {
        if self.anchors.is_empty() {
            let _ = reply.send(Err(JoinError::NoBootstrap));
        } else if self.joins.len() >= PENDING_JOINS {
            let _ = reply.send(Err(JoinError::TooMany { limit: PENDING_JOINS }));
        } else {
            self.joins.push(PendingJoin { patience, reply });
            self.seek(now);
        }
    }

    /// Starts a round now, unless a bootstrap is connected.
    pub(super) fn seek(&mut self, now: Instant) {
        if self.anchors.iter().all(|anchor| anchor.connections == 0) {
            self.seeking = true;
            self.wait = REJOIN_FIRST;
            self.next_round = Some(now);
        }
    }

    /// Answers everybody who waits in `join`: a directory peer is connected and identified.
    pub(super) fn joined(&mut self, joined: &Joined) {
        for join in self.joins.drain(..) {
            let _ = join.reply.send(Ok(joined.clone()));
        }
    }

    /// Gives up whoever waited long enough by `now`; returns how many.
    pub(super) fn give_up(&mut self, now: Instant) -> u64 {
        let tried: Vec<Tried> = self.anchors.iter().flat_map(Anchor::tried).collect();
        let mut given_up = 0;
        for join in self.joins.extract_if(.., |join| join.patience.deadline <= now) {
            given_up += 1;
            let within = join.patience.within;
            let _ = join.reply.send(Err(JoinError::Unreachable { tried: tried.clone(), within }));
        }
        given_up
    }

    /// When [`Self::due`] or [`Self::give_up`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let joins = self.joins.iter().map(|join| join.patience.deadline);
        joins.chain(self.next_round).min()
    }

    /// The bootstraps to dial at `now`; `noise` (0 to 255) places the next round within its jitter.
    pub(super) fn due(&mut self, now: Instant, noise: u8) -> Vec<Due> {
        if !self.seeking || self.next_round.is_none_or(|round| now < round) {
            return Vec::new();
        }
        let most = if self.joins.is_empty() { REJOIN_MOST } else { JOIN_ROUND };
        let wait = self.wait.min(most);
        self.next_round = Some(now + jittered(wait, noise));
        self.wait = (wait * 2).min(REJOIN_MOST);
        let idle = self.anchors.iter().enumerate().filter(|(_, anchor)| anchor.dialing.is_none());
        idle.map(|(index, anchor)| Due { index, peer: anchor.peer, addresses: anchor.addresses.clone() })
            .collect()
    }

    /// The dial of bootstrap `index` has begun.
    pub(super) fn dialing(&mut self, index: usize, connection: ConnectionId) {
        if let Some(anchor) = self.anchors.get_mut(index) {
            anchor.dialing = Some(connection);
        }
    }

    /// The dial of bootstrap `index` could not begin.
    pub(super) fn refused(&mut self, index: usize, problem: &str) {
        if let Some(anchor) = self.anchors.get_mut(index) {
            anchor.note(&anchor.addresses.clone(), problem);
        }
    }

    /// A dial failed; whether it was one of ours.
    pub(super) fn failed(&mut self, connection: ConnectionId, problems: &[(Multiaddr, String)]) {
        let mut anchors = self.anchors.iter_mut();
        let Some(anchor) = anchors.find(|anchor| anchor.dialing == Some(connection)) else {
            return;
        };
        anchor.dialing = None;
        for (address, problem) in problems {
            // libp2p reports an address with its `/p2p` name where we may have one without.
            let known = anchor.addresses.iter().find(|known| same_socket(known, address)).cloned();
            anchor.note(&known.map_or_else(|| anchor.addresses.clone(), |one| vec![one]), problem);
        }
    }

    /// A connection came up, by whatever dial.
    pub(super) fn connected(&mut self, connection: ConnectionId, peer: PeerId) {
        for anchor in &mut self.anchors {
            if anchor.dialing == Some(connection) {
                anchor.dialing = None;
                anchor.peer.get_or_insert(peer);
            }
            if anchor.peer == Some(peer) {
                anchor.connections += 1;
                anchor.problems.clear();
                self.seeking = false;
                self.next_round = None;
                self.wait = REJOIN_FIRST;
            }
        }
    }

    /// A connection closed; whether it was the last one to any bootstrap.
    pub(super) fn disconnected(&mut self, peer: PeerId, now: Instant, noise: u8) -> bool {
        let mut ours = false;
        for anchor in self.anchors.iter_mut().filter(|anchor| anchor.peer == Some(peer)) {
            ours = anchor.connections > 0;
            anchor.connections = anchor.connections.saturating_sub(1);
        }
        let lost = ours && self.anchors.iter().all(|anchor| anchor.connections == 0);
        if lost {
            self.seeking = true;
            self.wait = REJOIN_FIRST;
            self.next_round = Some(now + jittered(REJOIN_FIRST, noise));
        }
        lost
    }
}

impl Anchor {
    fn note(&mut self, addresses: &[Multiaddr], problem: &str) {
        for address in addresses {
            self.problems.insert(address.clone(), problem.to_owned());
        }
    }

    fn tried(&self) -> impl Iterator<Item = Tried> {
        self.addresses.iter().map(|address| Tried {
            address: address.clone(),
            problem: match (self.problems.get(address), self.connections) {
                (Some(problem), _) => problem.clone(),
                (None, 0) => "no answer".to_owned(),
                (None, _) => "connected, but it does not serve the directory".to_owned(),
            },
        })
    }
}

/// The same host, transport and port, with or without a `/p2p` name.
fn same_socket(one: &Multiaddr, other: &Multiaddr) -> bool {
    let bare = |address: &Multiaddr| {
        let mut address = address.clone();
        if peer_in(&address).is_some() {
            address.pop();
        }
        address
    };
    bare(one) == bare(other)
}

/// `wait` moved by up to a quarter either way.
fn jittered(wait: Duration, noise: u8) -> Duration {
    wait * 3 / 4 + wait * u32::from(noise) / 510
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchors(texts: &[&str]) -> Anchors {
        Anchors::new(texts.iter().map(|text| text.parse().expect(text)).collect())
    }

    fn join(anchors: &mut Anchors, now: Instant, secs: u64) -> oneshot::Receiver<Result<Joined, JoinError>> {
        let (reply, answer) = oneshot::channel();
        let within = Duration::from_secs(secs);
        anchors.join(Patience { within, deadline: now + within }, reply, now);
        answer
    }

    #[test]
    fn addresses_of_one_bootstrap_are_dialed_together() {
        let peer = PeerId::random();
        let mut anchors = anchors(&[
            &format!("/ip4/1.2.3.4/udp/1/quic-v1/p2p/{peer}"),
            &format!("/ip4/1.2.3.4/tcp/1/p2p/{peer}"),
            "/ip4/5.6.7.8/tcp/1",
        ]);
        let now = Instant::now();
        assert!(anchors.due(now, 0).is_empty(), "nothing is dialed before join");
        let _answer = join(&mut anchors, now, 5);
        let due = anchors.due(now, 0);
        assert_eq!(due.iter().map(|due| due.addresses.len()).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn the_wait_between_rounds_doubles_up_to_a_minute() {
        let mut anchors = anchors(&["/ip4/1.2.3.4/tcp/1"]);
        let mut now = Instant::now();
        anchors.seek(now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert_eq!(anchors.due(now, 255).len(), 1);
            let next = anchors.next_deadline().expect("seeking");
            waits.push(next - now);
            now = next;
        }
        assert!(waits.is_sorted(), "{waits:?}");
        assert!(waits[0] <= REJOIN_FIRST * 5 / 4, "{waits:?}");
        assert!(waits[11] >= REJOIN_MOST && waits[11] <= REJOIN_MOST * 5 / 4, "{waits:?}");
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        let wait = Duration::from_secs(8);
        assert_eq!(jittered(wait, 0), Duration::from_secs(6));
        assert_eq!(jittered(wait, 255), Duration::from_secs(10));
    }

    #[test]
    fn a_join_that_runs_out_says_what_happened_to_each_address() {
        let mut anchors = anchors(&["/ip4/1.2.3.4/tcp/1", "/ip4/5.6.7.8/tcp/1"]);
        let now = Instant::now();
        let mut answer = join(&mut anchors, now, 2);
        let connection = ConnectionId::new_unchecked(7);
        anchors.due(now, 0);
        anchors.dialing(0, connection);
        let named = format!("/ip4/1.2.3.4/tcp/1/p2p/{}", PeerId::random());
        anchors.failed(connection, &[(named.parse().expect("address"), "refused".to_owned())]);
        assert_eq!(anchors.give_up(now + Duration::from_secs(2)), 1);
        let Ok(Err(JoinError::Unreachable { tried, .. })) = answer.try_recv() else {
            panic!("given up");
        };
        let problems: Vec<_> = tried.iter().map(|tried| tried.problem.as_str()).collect();
        assert_eq!(problems, ["refused", "no answer"]);
    }

    #[test]
    fn only_the_loss_of_the_last_bootstrap_starts_a_search() {
        let (one, two) = (PeerId::random(), PeerId::random());
        let mut anchors =
            anchors(&[&format!("/ip4/1.2.3.4/tcp/1/p2p/{one}"), &format!("/ip4/5.6.7.8/tcp/1/p2p/{two}")]);
        let now = Instant::now();
        anchors.seek(now);
        anchors.connected(ConnectionId::new_unchecked(1), one);
        anchors.connected(ConnectionId::new_unchecked(2), two);
        assert_eq!(anchors.next_deadline(), None);
        assert!(!anchors.disconnected(one, now, 0));
        assert!(!anchors.disconnected(PeerId::random(), now, 0));
        assert!(anchors.disconnected(two, now, 0));
        assert!(anchors.next_deadline().is_some_and(|next| next > now));
        assert!(!anchors.disconnected(two, now, 0), "it is lost once");
    }

    #[test]
    fn without_bootstraps_join_says_so_at_once() {
        let mut answer = join(&mut anchors(&[]), Instant::now(), 5);
        assert_eq!(answer.try_recv().expect("answered"), Err(JoinError::NoBootstrap));
    }
}
