//! A simulated node: the protocol's laws, a durable store, and nothing else.
//!
//! Owns: what survives a crash and what does not, and the dispatch of messages and timers. Never:
//! decides a question of money itself: [`potluck_protocol`] does, and a liar's twists are in
//! [`super::lie`]. Called by the world, one step at a time; whatever a step keeps is durable before
//! anything it sends leaves.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use potluck_protocol::credit::CreditPolicy;
use potluck_protocol::id::{LaneId, PeerId};
use potluck_protocol::life::{LastWord, abandon};
use potluck_protocol::offer::Terms;
use potluck_protocol::outbox::Outbox;
use potluck_protocol::proof::{Convictions, Equivocation, Heard};
use potluck_protocol::settle::Usage;
use potluck_protocol::sign::{Signable, SigningKey, Verified};
use potluck_protocol::statement::{Slot, Statement};
use potluck_protocol::unit::{GpuMillis, NanoCredit, UnixMillis};
use potluck_protocol::wire::{self, PairRequest};

use super::Mutation;
use super::lie::Lie;
use super::message::{Effect, Message, Timer};
use super::pairing::Session;
use super::providing::Providing;
use super::renting::Renting;
use super::rng::Rng;
use super::store::{Kept, Store};
use super::world::Commons;

/// Statements remembered though no law let them be kept: two of them may convict.
const SEEN: usize = 4_096;
/// How often the books are gone through.
pub(super) const TIDY_MS: u64 = 1_800_000;

/// What one step may use of its world.
#[derive(Debug)]
pub struct Step<'a> {
    /// Milliseconds of virtual time; also everybody's wall clock since 1970.
    pub now: u64,
    /// The run's dice.
    pub rng: &'a mut Rng,
    /// What all nodes share.
    pub commons: &'a mut Commons,
    /// What the step asks for.
    pub out: Vec<Effect>,
}

impl Step<'_> {
    /// The wall clock.
    #[must_use]
    pub fn wall(&self) -> UnixMillis {
        UnixMillis::new(self.now)
    }

    /// The monotonic clock.
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        Duration::from_millis(self.now)
    }
}

/// What truly happened in a lane at its provider; survives crashes, unlike anything a node knows.
#[derive(Debug, Clone, Copy)]
pub struct Worked {
    /// Worker time truly spent.
    pub usage: Usage,
    /// The longest operation.
    pub longest: GpuMillis,
    /// The lane's prices and pace.
    pub terms: Terms,
}

/// What truly happened in a lane at its renter.
#[derive(Debug, Clone, Copy)]
pub struct Bought {
    /// Time paid for, in milliseconds.
    pub paid: u64,
    /// Time paid for by the last meter that came with output.
    pub productive: u64,
    /// Time that had passed at the last payment since the contract was sent.
    pub elapsed: u64,
    /// The lane's prices and pace.
    pub terms: Terms,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its key.
    pub key: SigningKey,
    /// How it lies; `None` when it is honest.
    pub lie: Option<Lie>,
    /// A law switched off, to see that the audit notices.
    pub mutation: Option<Mutation>,
    /// What is durable.
    pub store: Store,
    /// Who is convicted here (a file of its own: durable too).
    pub convictions: Convictions,
    /// What it lends.
    pub policy: CreditPolicy,
    /// Ground truth of its lanes as provider.
    pub worked: BTreeMap<LaneId, Worked>,
    /// Ground truth of its lanes as renter.
    pub bought: BTreeMap<LaneId, Bought>,
    /// When it last came back with an old ledger.
    pub restored: Option<u64>,
    pub(super) renting: BTreeMap<LaneId, Renting>,
    pub(super) providing: BTreeMap<LaneId, Providing>,
    pub(super) outboxes: BTreeMap<PeerId, Outbox>,
    pub(super) sessions: BTreeMap<PeerId, Session>,
    pub(super) wanted: BTreeMap<PeerId, u32>,
    pub(super) questions: u64,
    /// What each push of the outbox held.
    pub(super) pushed: BTreeMap<u64, Vec<Slot>>,
    seen: BTreeMap<Slot, Statement>,
    /// A replaying liar's memory.
    pub(super) history: VecDeque<(PeerId, Message)>,
}

impl Node {
    /// A node that nobody has met.
    #[must_use]
    pub fn new(key: SigningKey, lie: Option<Lie>, mutation: Option<Mutation>, policy: CreditPolicy) -> Self {
        Self {
            store: Store::new(key.peer()),
            key,
            lie,
            mutation: if lie.is_none() { mutation } else { None },
            convictions: Convictions::default(),
            policy,
            worked: BTreeMap::new(),
            bought: BTreeMap::new(),
            restored: None,
            renting: BTreeMap::new(),
            providing: BTreeMap::new(),
            outboxes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            wanted: BTreeMap::new(),
            questions: 0,
            pushed: BTreeMap::new(),
            seen: BTreeMap::new(),
            history: VecDeque::new(),
        }
    }

    /// Who it is.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.key.peer()
    }

    /// Does it lie in this way?
    pub(super) fn lies(&self, lie: Lie) -> bool {
        self.lie == Some(lie)
    }

    /// Is this law switched off here?
    pub(super) fn breaks(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    pub(super) fn sign<T: Signable>(&self, body: T) -> Option<Verified<T>> {
        self.key.sign(body).ok()
    }

    /// Loses everything but what is durable.
    pub fn crash(&mut self) {
        self.renting.clear();
        self.providing.clear();
        self.outboxes.clear();
        self.sessions.clear();
        self.wanted.clear();
        self.pushed.clear();
        self.seen.clear();
        let count = self.store.count();
        self.store = self.store.replayed(count);
    }

    /// Comes back with a ledger of `count` statements, older than the one it had.
    pub fn restore(&mut self, count: usize, now: u64) {
        self.store = self.store.replayed(count);
        self.restored = Some(now);
    }

    /// Begins anew with what is durable.
    pub fn wake_up(&mut self, step: &mut Step<'_>) {
        let blind = self.lies(Lie::OldBackup) || self.breaks(Mutation::SignBeforeSync);
        for peer in self.store.peers() {
            if blind && let Some(book) = self.store.book_mut(peer) {
                book.synced();
            }
            self.refill_outbox(peer, step);
            // A restart is an occasion to agree on what happened before.
            step.out.push(Effect::Wake(step.rng.between(2_000, 20_000), Timer::Balance(peer)));
        }
        step.out.push(Effect::Wake(1_000, Timer::Tidy));
    }

    /// After a restart: what was signed and has no answer on record.
    fn refill_outbox(&mut self, peer: PeerId, step: &mut Step<'_>) {
        let me = self.peer();
        let waits = |statement: &Statement, receipt: u32| match statement {
            Statement::Voucher(it) => it.body.k > receipt,
            Statement::Close(_) | Statement::Abandon(_) => true,
            _ => false,
        };
        let mut waiting: Vec<Statement> = Vec::new();
        for (_, record) in self.store.lanes_with(peer) {
            let ours = record.statements.iter().filter(|statement| statement.signer() == me);
            waiting.extend(ours.filter(|statement| waits(statement, record.head.receipt)).cloned());
        }
        if let Some(book) = self.store.book(peer) {
            waiting.extend(book.statements().into_iter().filter(|statement| statement.signer() == me));
        }
        let outbox = self.outboxes.entry(peer).or_default();
        for statement in &waiting {
            outbox.sent(statement, step.monotonic());
        }
        step.out.push(Effect::Wake(1_000, Timer::Outbox(peer)));
    }

    /// Takes a message in.
    pub fn hear(&mut self, from: PeerId, message: &Message, step: &mut Step<'_>) {
        match message {
            Message::ToProvider(lane, bytes) => {
                if let Ok(frame) = wire::decode_bounded(bytes) {
                    self.on_renter_frame(from, *lane, frame, step);
                }
            }
            Message::ToRenter(lane, bytes) => {
                if let Ok(frame) = wire::decode_bounded(bytes) {
                    self.on_provider_frame(from, *lane, frame, step);
                }
            }
            Message::Ask(id, bytes) => {
                if let Ok(request) = wire::decode_bounded(bytes) {
                    self.on_ask(from, *id, request, step);
                }
            }
            Message::Answer(id, bytes) => {
                if let Ok(response) = wire::decode_bounded(bytes) {
                    self.on_answer(from, *id, response, step);
                }
            }
        }
    }

    /// Does what is due.
    pub fn wake(&mut self, timer: Timer, step: &mut Step<'_>) {
        match timer {
            Timer::Rent(peer) => {
                *self.wanted.entry(peer).or_default() += 1;
                self.try_rent(peer, step);
            }
            Timer::Operation(lane) => self.operation_done(lane, step),
            Timer::Patience(lane) => {
                self.renter_patience(lane, step);
                self.provider_patience(lane, step);
            }
            Timer::Question(peer, id) => self.question_unanswered(peer, id, step),
            Timer::Outbox(peer) => self.send_outbox(peer, step),
            Timer::Balance(peer) => self.propose_balance(peer, step),
            Timer::Tidy => self.tidy(step),
        }
    }

    fn tidy(&mut self, step: &mut Step<'_>) {
        let (me, now) = (self.peer(), step.wall());
        let mut ends = Vec::new();
        for (lane, record) in self.store.lanes() {
            if self.renting.contains_key(lane) || self.providing.contains_key(lane) {
                continue;
            }
            let digest = match (&record.voucher, &record.contract) {
                (Some(voucher), _) => voucher.digest(),
                (None, Some(contract)) => contract.digest(),
                (None, None) => continue,
            };
            let last = LastWord { k: record.head.voucher, amount: record.amount(), digest };
            ends.extend(abandon(*lane, me, &record.facts(), last, now));
        }
        for body in ends {
            let other = if body.lane.renter == me { body.lane.provider } else { body.lane.renter };
            if let Some(signed) = self.sign(body) {
                self.keep_and_queue(other, &signed.into_signed().into(), step);
            }
        }
        for peer in self.store.peers() {
            self.begin_sync_if_needed(peer, step);
        }
        step.out.push(Effect::Wake(TIDY_MS, Timer::Tidy));
    }

    /// Makes a statement of ours durable and leaves it to the outbox. False when its slot is filled:
    /// then it must never leave.
    pub(super) fn keep_and_queue(
        &mut self,
        peer: PeerId,
        statement: &Statement,
        step: &mut Step<'_>,
    ) -> bool {
        if !matches!(self.store.keep(statement, step.wall()), Kept::New) {
            return false;
        }
        let outbox = self.outboxes.entry(peer).or_default();
        outbox.sent(statement, step.monotonic());
        step.out.push(Effect::Wake(1_000, Timer::Outbox(peer)));
        true
    }

    /// Makes a statement of another durable; two in one slot convict. False when it is not held now.
    pub(super) fn keep_theirs(&mut self, statement: &Statement, step: &mut Step<'_>) -> bool {
        match self.store.keep(statement, step.wall()) {
            Kept::New | Kept::Known => true,
            Kept::Conflict(held) => {
                self.convict(*held, statement.clone(), step);
                false
            }
            Kept::Worthless => false,
        }
    }

    /// Remembers what was said, whether or not a law lets it be kept: two in one slot convict.
    pub(super) fn witness(&mut self, statement: &Statement, step: &mut Step<'_>) {
        if self.store.holds(statement) {
            return;
        }
        let (Some(slot), Ok(proven)) = (statement.slot(), statement.verify()) else { return };
        let held = self.store.in_slot(&slot).or_else(|| self.seen.get(&slot)).cloned();
        match held {
            Some(held) if held.verify().is_ok_and(|it| it.commitment != proven.commitment) => {
                self.convict(held, statement.clone(), step);
            }
            Some(_) => {}
            None if self.seen.len() < SEEN => {
                self.seen.insert(slot, statement.clone());
            }
            None => {}
        }
    }

    fn convict(&mut self, one: Statement, other: Statement, step: &mut Step<'_>) {
        if let Ok((proof, _)) = Equivocation::of(one, other) {
            self.hear_proof(proof, step);
        }
    }

    /// Takes a proof in: freezes, and passes it on once.
    pub(super) fn hear_proof(&mut self, proof: Equivocation, step: &mut Step<'_>) {
        let peers = self.store.peers();
        let news = self.convictions.hear(proof.clone(), |peer| peers.contains(&peer));
        let Ok(Heard::News(conviction)) = news else { return };
        if let Some(book) = self.store.book_mut(conviction.signer) {
            book.convicted(&conviction);
        }
        for peer in peers.into_iter().filter(|peer| *peer != conviction.signer) {
            self.ask(peer, &PairRequest::Proof(Box::new(proof.clone())), step);
        }
    }

    /// What everybody unknown but `except` may come to owe, in nano-credits.
    pub(super) fn unknown_exposure(&self, except: PeerId, now: UnixMillis) -> u128 {
        let others = self.store.peers().into_iter().filter(|peer| *peer != except);
        let standings = others.map(|peer| self.standing(peer, now)).filter(|it| it.is_unknown());
        standings.map(|it| it.exposure()).sum()
    }

    /// Where `peer` stands with us as its provider.
    #[must_use]
    pub fn standing(&self, peer: PeerId, now: UnixMillis) -> potluck_protocol::credit::Standing {
        let mut open_caps = NanoCredit::ZERO;
        for (lane, record) in self.store.lanes_with(peer) {
            if lane.renter == peer && record.facts().state(now).is_open() {
                let cap = record.contract.as_ref().map_or(NanoCredit::ZERO, |it| it.body().max_total);
                open_caps = open_caps.saturating_add(cap.saturating_sub(record.amount()));
            }
        }
        potluck_protocol::credit::Standing {
            balance: self.store.balance_with(peer),
            open_caps,
            settled: self.store.settled_by(peer),
            audited: NanoCredit::ZERO,
            frozen: self.convictions.against(peer).is_some(),
        }
    }
}
