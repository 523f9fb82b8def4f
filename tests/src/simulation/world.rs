//! The simulated world: virtual time, a bad network, and crashes.
//!
//! Owns: the queue of events, delays, losses, duplicates, splits, crashes and restored backups. Never:
//! looks into a message or helps a node. Called by [`super::run`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use potluck_protocol::credit::CreditPolicy;
use potluck_protocol::id::{ContentHash, PeerId};
use potluck_protocol::offer::{Hardware, Protection, Quote, Terms};
use potluck_protocol::sign::{SigningKey, Verified};
use potluck_protocol::unit::{GpuMillis, Rate, UnixMillis};

use super::Config;
use super::lie::Lie;
use super::message::{Effect, Message, Timer};
use super::node::{Node, Step, TIDY_MS};
use super::rng::Rng;

/// Virtual time begins here, so that wall clocks look as they do.
const EPOCH_MS: u64 = 1_700_000_000_000;
const HOUR_MS: u64 = 3_600_000;
/// Jobs begin and things go wrong for so long.
const ACTIVE_MS: u64 = 6 * HOUR_MS;
/// Then the network heals, and lanes that nobody closed come of age.
const HEALED_MS: u64 = 26 * HOUR_MS;
/// Then the balances are agreed.
const SETTLED_MS: u64 = 2 * HOUR_MS;
/// A message that is lost, in 1,000; on a job's stream that is a broken stream.
const LOST: u64 = 20;
/// A message that arrives twice, in 1,000.
const TWICE: u64 = 50;
/// A step after which the node is gone before anything it sends leaves, in 10,000.
const CRASH: u64 = 100;
/// A crash from which the node comes back with an old ledger, in 1,000.
const OLD: u64 = 200;

/// What all nodes share: their keys (for quotes, which are not simulated) and the bank.
#[derive(Debug)]
pub struct Commons {
    keys: BTreeMap<PeerId, SigningKey>,
    serial: u64,
    /// References of payments that truly were made.
    pub bank: BTreeSet<String>,
    /// Contracts refused.
    pub refused: u64,
}

impl Commons {
    /// What everybody asks.
    #[must_use]
    pub fn prices(&self) -> Terms {
        Terms {
            run: Rate::new(38_888),
            load: Rate::new(13_888),
            guest: Rate::ZERO,
            quantum: GpuMillis::new(1_000),
            window: GpuMillis::new(2_000),
        }
    }

    /// A quote as the quote protocol would have brought it.
    pub fn quote(&mut self, provider: PeerId, renter: PeerId, terms: Terms) -> Option<Verified<Quote>> {
        self.serial += 1;
        let quote = Quote {
            provider,
            renter,
            serial: self.serial,
            model: ContentHash::from_bytes([3; 32]),
            guest: None,
            terms,
            max_ms: GpuMillis::new(60_000),
            ahead: 0,
            warm: true,
            hardware: Hardware { class: "cpu".into(), name: "CPU".into(), memory_mib: 1 },
            protection: Protection::None,
            expires: UnixMillis::new(u64::MAX),
        };
        self.keys.get(&provider)?.sign(quote).ok()
    }
}

#[derive(Debug)]
enum Event {
    Deliver { from: usize, to: usize, message: Message },
    Wake { node: usize, life: u64, timer: Timer },
    Restart { node: usize },
}

struct Due {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Up,
    Down,
    Gone,
}

/// All nodes and what is between them.
pub struct World {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Shared knowledge.
    pub commons: Commons,
    /// Messages delivered.
    pub delivered: u64,
    /// Crashes.
    pub crashes: u64,
    /// Crashes that lost the newest part of the ledger.
    pub restores: u64,
    /// Virtual time.
    pub now: u64,
    rng: Rng,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    health: Vec<Health>,
    life: Vec<u64>,
    /// Cut off from everybody until then.
    dark: Vec<u64>,
    index: BTreeMap<PeerId, usize>,
    /// When the last message on a stream arrives: the next comes after it.
    streams: BTreeMap<(usize, usize), u64>,
    calm: bool,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("nodes", &self.nodes.len())
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl World {
    /// A world before anything happened.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let mut rng = Rng::new(config.seed);
        let mut commons = Commons { keys: BTreeMap::new(), serial: 0, bank: BTreeSet::new(), refused: 0 };
        let policy = CreditPolicy::of_rate(commons.prices().run);
        let mut nodes = Vec::with_capacity(config.nodes);
        for at in 0..config.nodes {
            let mut seed = [0; 32];
            for chunk in seed.chunks_mut(8) {
                chunk.copy_from_slice(&rng.next().to_le_bytes());
            }
            let key = SigningKey::from_seed(seed);
            commons.keys.insert(key.peer(), SigningKey::from_seed(seed));
            // Every fifth lies, each kind in turn: one in five of any number.
            let lie = (at % 5 == 4).then(|| Lie::ALL.get(at / 5 % Lie::ALL.len()).copied()).flatten();
            nodes.push(Node::new(key, lie, config.mutation, policy));
        }
        let index = nodes.iter().enumerate().map(|(at, node)| (node.peer(), at)).collect();
        let count = config.nodes;
        let mut world = Self {
            nodes,
            commons,
            delivered: 0,
            crashes: 0,
            restores: 0,
            now: EPOCH_MS,
            rng,
            queue: BinaryHeap::new(),
            order: 0,
            health: vec![Health::Up; count],
            life: vec![0; count],
            dark: vec![0; count],
            index,
            streams: BTreeMap::new(),
            calm: false,
        };
        world.plan(config);
        world
    }

    /// Who rents from whom and when, and when balances are agreed.
    fn plan(&mut self, config: &Config) {
        let count = self.nodes.len();
        for node in 0..count {
            let neighbours: Vec<PeerId> =
                (1..=4).map(|step| self.nodes[(node + step * step) % count].peer()).collect();
            for _ in 0..config.jobs {
                let at = usize::try_from(self.rng.between(0, 4)).unwrap_or(0);
                let peer = neighbours[at % neighbours.len()];
                let when = self.rng.between(0, ACTIVE_MS);
                self.wake_at(node, when, Timer::Rent(peer));
                let later = self.rng.between(0, ACTIVE_MS);
                self.wake_at(node, later, Timer::Balance(peer));
            }
            self.wake_at(node, TIDY_MS, Timer::Tidy);
        }
    }

    fn wake_at(&mut self, node: usize, after: u64, timer: Timer) {
        let life = self.life[node];
        self.push(after, Event::Wake { node, life, timer });
    }

    fn push(&mut self, after: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Due { at: self.now + after, order: self.order, event }));
    }

    /// Runs everything to its end.
    pub fn run(&mut self) {
        self.run_until(EPOCH_MS + ACTIVE_MS);
        self.calm = true;
        for node in 0..self.nodes.len() {
            if self.health[node] == Health::Down {
                self.restart(node);
            }
        }
        self.run_until(EPOCH_MS + ACTIVE_MS + HEALED_MS);
        // Three occasions: one may find the two out of step, and one meets the answer of the owner.
        for occasion in 0..3 {
            for node in 0..self.nodes.len() {
                let later = occasion * HOUR_MS / 2;
                for peer in self.nodes[node].store.peers() {
                    if self.nodes[node].peer() < peer {
                        self.wake_at(node, later, Timer::Balance(peer));
                    }
                }
            }
        }
        self.run_until(EPOCH_MS + ACTIVE_MS + HEALED_MS + SETTLED_MS);
        // Everybody meets everybody once more: whatever was lost on the way is asked for now.
        for node in 0..self.nodes.len() {
            for peer in self.nodes[node].store.peers() {
                if let Some(book) = self.nodes[node].store.book_mut(peer) {
                    book.parted();
                }
            }
        }
        self.run_until(EPOCH_MS + ACTIVE_MS + HEALED_MS + SETTLED_MS + HOUR_MS);
    }

    fn run_until(&mut self, end: u64) {
        while self.queue.peek().is_some_and(|Reverse(due)| due.at <= end) {
            let Some(Reverse(due)) = self.queue.pop() else { return };
            self.now = due.at;
            self.happen(due.event);
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, message } => {
                if self.health[to] == Health::Up
                    && (self.calm || self.now >= self.dark[to].max(self.dark[from]))
                {
                    self.delivered += 1;
                    let peer = self.nodes[from].peer();
                    self.step(to, |node, step| node.hear(peer, &message, step));
                }
            }
            Event::Wake { node, life, timer } => {
                // Plans outlive a crash; what a process waited for does not.
                let planned = matches!(timer, Timer::Rent(_) | Timer::Balance(_));
                if self.health[node] == Health::Up && (planned || self.life[node] == life) {
                    if matches!(timer, Timer::Rent(_)) && self.rng.chance(30) {
                        self.dark[node] = self.now + self.rng.between(1_000, 40_000);
                    }
                    self.step(node, |node, step| node.wake(timer, step));
                }
            }
            Event::Restart { node } => {
                if self.health[node] == Health::Down {
                    self.restart(node);
                }
            }
        }
    }

    fn step(&mut self, at: usize, act: impl FnOnce(&mut Node, &mut Step<'_>)) {
        let before = self.nodes[at].store.count();
        let mut step =
            Step { now: self.now, rng: &mut self.rng, commons: &mut self.commons, out: Vec::new() };
        let node = &mut self.nodes[at];
        act(node, &mut step);
        node.twist(&mut step);
        let out = step.out;
        // A crash between the disk and the network: what was kept stays, what was to be sent is lost.
        let kept = self.nodes[at].store.count() > before;
        if !self.calm && kept && self.rng.next() % 10_000 < CRASH {
            self.crash(at);
            return;
        }
        for effect in out {
            match effect {
                Effect::Send(to, message) => self.send(at, to, message, 0),
                Effect::SendLate(to, message, late) => self.send(at, to, message, late),
                Effect::Wake(after, timer) => self.wake_at(at, after, timer),
            }
        }
    }

    fn send(&mut self, from: usize, to: PeerId, message: Message, late: u64) {
        let Some(to) = self.index.get(&to).copied() else { return };
        let times = match self.rng.next() % 1_000 {
            _ if self.calm => 1,
            dice if dice < LOST => 0,
            dice if dice < LOST + TWICE => 2,
            _ => 1,
        };
        for _ in 0..times {
            let delay = late + self.rng.between(5, 100);
            let mut at = self.now + delay;
            if message.is_ordered() && late == 0 {
                let last = self.streams.entry((from, to)).or_default();
                at = at.max(*last + 1);
                *last = at;
            }
            self.push(at - self.now, Event::Deliver { from, to, message: message.clone() });
        }
    }

    fn crash(&mut self, at: usize) {
        self.crashes += 1;
        self.life[at] += 1;
        self.nodes[at].crash();
        if self.nodes[at].lie == Some(Lie::Vanish) {
            self.health[at] = Health::Gone;
            return;
        }
        let old = if self.nodes[at].lie == Some(Lie::OldBackup) { 1_000 } else { OLD };
        if self.rng.chance(old) {
            self.restores += 1;
            let length = u64::try_from(self.nodes[at].store.count()).unwrap_or(0);
            let count = usize::try_from(self.rng.between(length / 2, length)).unwrap_or(0);
            self.nodes[at].restore(count, self.now);
        }
        self.health[at] = Health::Down;
        let after = self.rng.between(500, 120_000);
        self.push(after, Event::Restart { node: at });
    }

    fn restart(&mut self, at: usize) {
        self.health[at] = Health::Up;
        self.step(at, |node, step| node.wake_up(step));
    }

    /// Is it gone for good?
    #[must_use]
    pub fn is_gone(&self, at: usize) -> bool {
        self.health[at] == Health::Gone
    }

    /// Where a peer stands in [`World::nodes`].
    #[must_use]
    pub fn find(&self, peer: PeerId) -> Option<&Node> {
        self.index.get(&peer).and_then(|at| self.nodes.get(*at))
    }

    /// The wall clock.
    #[must_use]
    pub fn wall(&self) -> UnixMillis {
        UnixMillis::new(self.now)
    }
}
