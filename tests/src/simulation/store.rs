//! One simulated node's ledger: what is durable, by slot and by lane.
//!
//! Owns: sign-once, the lanes' latest objects, and the pair books that rest on them. Never: loses
//! what it kept, except when it is replayed from an older prefix (a restored backup). Called by the
//! simulated nodes and by the audit.

use std::collections::BTreeMap;

use potluck_protocol::balance::{Fold, Folded, PairId, PairState};
use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::life::LaneFacts;
use potluck_protocol::limits::{MAX_SYNC_LANES, MAX_SYNC_OBJECTS};
use potluck_protocol::pair::PairBook;
use potluck_protocol::settle::{Contract, Meter, Voucher};
use potluck_protocol::sign::Verified;
use potluck_protocol::statement::{Slot, Statement};
use potluck_protocol::sync::{Heads, HeadsDigest, LaneHead, StepHead};
use potluck_protocol::unit::{NanoCredit, UnixMillis};

/// What keeping a statement came to.
#[derive(Debug)]
pub enum Kept {
    /// It is durable now.
    New,
    /// It was held before.
    Known,
    /// Another one of its signer fills the slot: together they are a proof.
    Conflict(Box<Statement>),
    /// It is no statement between this node and another.
    Worthless,
}

/// The durable objects of one lane.
#[derive(Debug, Clone)]
pub struct LaneRecord {
    /// In short.
    pub head: LaneHead,
    /// What the renter bound itself to.
    pub contract: Option<Verified<Contract>>,
    /// The latest.
    pub voucher: Option<Verified<Voucher>>,
    /// The latest.
    pub meter: Option<Verified<Meter>>,
    /// All, in the order in which they came.
    pub statements: Vec<Statement>,
    /// When the newest of them was kept.
    pub last_activity: UnixMillis,
    closed: bool,
    abandoned: bool,
}

impl LaneRecord {
    fn new(lane: LaneId) -> Self {
        Self {
            head: LaneHead::nothing(lane),
            contract: None,
            voucher: None,
            meter: None,
            statements: Vec::new(),
            last_activity: UnixMillis::ZERO,
            closed: false,
            abandoned: false,
        }
    }

    /// What is owed for it.
    #[must_use]
    pub fn amount(&self) -> NanoCredit {
        self.voucher.as_ref().map_or(NanoCredit::ZERO, |voucher| voucher.body().amount)
    }

    /// For the law of its life.
    #[must_use]
    pub fn facts(&self) -> LaneFacts {
        LaneFacts {
            accepted: self.head.accept,
            meters: self.head.meter,
            vouchers: self.head.voucher,
            last_meter: self.meter.as_ref().is_some_and(|meter| meter.body().last),
            closed: self.closed,
            abandoned: self.abandoned,
            last_activity: self.last_activity,
        }
    }

    /// When its contract was created; the beginning of time while there is none.
    #[must_use]
    pub fn created(&self) -> UnixMillis {
        self.contract.as_ref().map_or(UnixMillis::ZERO, |contract| contract.body().created)
    }

    fn is_listed(&self) -> bool {
        self.head.accept || self.head.meter > 0 || self.head.voucher > 0
    }
}

/// The ledger of one node.
#[derive(Debug, Clone)]
pub struct Store {
    me: PeerId,
    log: Vec<(Statement, UnixMillis)>,
    slots: BTreeMap<Slot, (Digest, usize)>,
    lanes: BTreeMap<LaneId, LaneRecord>,
    books: BTreeMap<PeerId, PairBook>,
    settled: BTreeMap<PeerId, NanoCredit>,
}

impl Store {
    /// An empty one.
    #[must_use]
    pub fn new(me: PeerId) -> Self {
        Self {
            me,
            log: Vec::new(),
            slots: BTreeMap::new(),
            lanes: BTreeMap::new(),
            books: BTreeMap::new(),
            settled: BTreeMap::new(),
        }
    }

    /// What it would be if only its first `count` statements had been kept; links start anew.
    #[must_use]
    pub fn replayed(&self, count: usize) -> Self {
        let mut store = Self::new(self.me);
        for (statement, at) in self.log.iter().take(count) {
            store.keep(statement, *at);
        }
        store
    }

    /// Statements kept.
    #[must_use]
    pub fn count(&self) -> usize {
        self.log.len()
    }

    /// Makes a statement durable, unless its slot is filled.
    pub fn keep(&mut self, statement: &Statement, now: UnixMillis) -> Kept {
        if self.holds(statement) {
            return Kept::Known;
        }
        let Ok(proven) = statement.verify() else { return Kept::Worthless };
        let (Some(slot), Some(peer)) = (statement.slot(), proven.pair.other(self.me)) else {
            return Kept::Worthless;
        };
        // A countersignature is nothing without its state: whoever has both shows both.
        if let Statement::Countersign(it) = statement
            && self.state_of(it.body.epoch, it.body.n, it.body.state).is_none()
        {
            return Kept::Worthless;
        }
        if let Some((held, at)) = self.slots.get(&slot) {
            if *held == proven.commitment {
                return Kept::Known;
            }
            return self
                .log
                .get(*at)
                .map_or(Kept::Worthless, |(held, _)| Kept::Conflict(Box::new(held.clone())));
        }
        self.slots.insert(slot, (proven.commitment, self.log.len()));
        self.log.push((statement.clone(), now));
        match statement.lane() {
            Some(lane) => {
                let record = self.lanes.entry(lane).or_insert_with(|| LaneRecord::new(lane));
                record.head.hold(statement, &proven);
                record.last_activity = now;
                record.statements.push(statement.clone());
                note_in_lane(record, statement);
            }
            None => self.note_step(peer, statement),
        }
        Kept::New
    }

    fn note_step(&mut self, peer: PeerId, statement: &Statement) {
        let state = match statement {
            Statement::Countersign(it) => self.state_of(it.body.epoch, it.body.n, it.body.state),
            _ => None,
        };
        let Some(book) = self.book_mut(peer) else { return };
        match statement {
            Statement::State(it) => {
                if let Ok(state) = it.as_ref().clone().verify() {
                    book.note_state(&state);
                }
            }
            Statement::Countersign(it) => {
                let (Ok(answer), Some(state)) = (it.as_ref().clone().verify(), state) else { return };
                if book.note_agreed(&state, &answer)
                    && let Some(settle) = &state.body().settle
                {
                    let settled = self.settled.entry(settle.payer).or_default();
                    *settled = settled.saturating_add(settle.amount);
                }
            }
            Statement::Cancel(it) => {
                if let Ok(cancel) = it.as_ref().clone().verify() {
                    book.note_cancel(&cancel);
                }
            }
            Statement::Raise(it) => {
                if let Ok(raise) = it.as_ref().clone().verify() {
                    book.note_raise(&raise);
                }
            }
            _ => {}
        }
    }

    fn state_of(&self, epoch: u32, n: u32, digest: Digest) -> Option<Verified<PairState>> {
        self.log.iter().rev().find_map(|(statement, _)| {
            let Statement::State(state) = statement else { return None };
            let of_step = (state.body.epoch, state.body.n) == (epoch, n);
            let state = of_step.then(|| state.as_ref().clone().verify().ok()).flatten()?;
            (state.digest() == digest).then_some(state)
        })
    }

    /// All outside payments of `peer` in agreed states.
    #[must_use]
    pub fn settled_by(&self, peer: PeerId) -> NanoCredit {
        self.settled.get(&peer).copied().unwrap_or_default()
    }

    /// All statements, in the order in which they were kept.
    pub fn statements(&self) -> impl Iterator<Item = &Statement> {
        self.log.iter().map(|(statement, _)| statement)
    }

    /// Is exactly this one held? Then it was checked before.
    #[must_use]
    pub fn holds(&self, statement: &Statement) -> bool {
        statement.slot().is_some_and(|slot| self.in_slot(&slot) == Some(statement))
    }

    /// The statement in a slot.
    #[must_use]
    pub fn in_slot(&self, slot: &Slot) -> Option<&Statement> {
        self.slots.get(slot).and_then(|(_, at)| self.log.get(*at)).map(|(statement, _)| statement)
    }

    /// The account with `peer`; `None` with oneself.
    pub fn book_mut(&mut self, peer: PeerId) -> Option<&mut PairBook> {
        if !self.books.contains_key(&peer) {
            self.books.insert(peer, PairBook::new(self.me, peer)?);
        }
        self.books.get_mut(&peer)
    }

    /// The account with `peer`, if there ever was anything.
    #[must_use]
    pub fn book(&self, peer: PeerId) -> Option<&PairBook> {
        self.books.get(&peer)
    }

    /// Everybody that this node has an account with.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerId> {
        self.books.keys().copied().collect()
    }

    /// One lane.
    #[must_use]
    pub fn lane(&self, lane: &LaneId) -> Option<&LaneRecord> {
        self.lanes.get(lane)
    }

    /// All lanes.
    pub fn lanes(&self) -> impl Iterator<Item = (&LaneId, &LaneRecord)> {
        self.lanes.iter()
    }

    /// Lanes with `peer` that the last agreed state did not take in.
    pub fn lanes_with(&self, peer: PeerId) -> impl Iterator<Item = (&LaneId, &LaneRecord)> {
        let floor = self.books.get(&peer).map_or(UnixMillis::ZERO, |book| book.head().floor);
        self.lanes.iter().filter(move |(lane, record)| {
            (lane.renter == peer || lane.provider == peer) && record.created() >= floor
        })
    }

    /// What `peer` owes us, in nano-credits.
    #[must_use]
    pub fn balance_with(&self, peer: PeerId) -> i128 {
        let Some(book) = self.books.get(&peer) else { return 0 };
        let pair = book.pair();
        let open =
            self.lanes_with(peer).filter_map(|(lane, record)| pair.debt_of(lane.renter, record.amount()));
        pair.owed_to(self.me, open.fold(book.head().balance, i128::saturating_add))
    }

    /// When the contract of the oldest lane with `peer` that is still open was created.
    #[must_use]
    pub fn oldest_open(&self, peer: PeerId, now: UnixMillis) -> Option<UnixMillis> {
        self.lanes_with(peer)
            .filter(|(_, record)| record.is_listed() && record.facts().state(now).is_open())
            .map(|(_, record)| record.created())
            .min()
    }

    /// The lanes that a state with this floor takes in.
    #[must_use]
    pub fn fold(&self, pair: PairId, peer: PeerId, floor: UnixMillis) -> Option<Fold> {
        let mut fold = Fold::new(pair, floor);
        for (lane, record) in self.lanes_with(peer).filter(|(_, record)| record.created() < floor) {
            let Some(voucher) = &record.voucher else { continue };
            let body = voucher.body();
            let folded = Folded { lane: *lane, k: body.k, amount: body.amount, voucher: voucher.digest() };
            fold.add(&folded).ok()?;
        }
        Some(fold)
    }

    fn heads_with(&self, peer: PeerId) -> impl Iterator<Item = LaneHead> {
        self.lanes_with(peer).filter(|(_, record)| record.is_listed()).map(|(_, record)| record.head)
    }

    /// One page of what is held with `peer`.
    #[must_use]
    pub fn heads(&self, peer: PeerId, after: Option<LaneId>) -> Option<Heads> {
        let step = StepHead::of(self.books.get(&peer)?);
        let mut lanes: Vec<_> = self
            .heads_with(peer)
            .filter(|head| after.is_none_or(|after| head.lane > after))
            .take(MAX_SYNC_LANES + 1)
            .collect();
        let whole = lanes.len() <= MAX_SYNC_LANES;
        lanes.truncate(MAX_SYNC_LANES);
        Some(Heads { step, after, lanes, whole })
    }

    /// Everything held with `peer`, in one digest.
    #[must_use]
    pub fn heads_digest(&self, peer: PeerId) -> Option<Digest> {
        let mut digest = HeadsDigest::new(&StepHead::of(self.books.get(&peer)?)).ok()?;
        for head in self.heads_with(peer) {
            digest.add(&head).ok()?;
        }
        Some(digest.get())
    }

    /// What is held beyond these heads, one page of it, and whether there is more.
    #[must_use]
    pub fn beyond(&self, peer: PeerId, heads: &[LaneHead]) -> (Vec<Statement>, bool) {
        let with_peer = |lane: &LaneId| lane.renter == peer || lane.provider == peer;
        let mut page = Vec::new();
        for head in heads.iter().filter(|head| with_peer(&head.lane)) {
            let held = self.lanes.get(&head.lane).map_or(&[][..], |record| &record.statements);
            for statement in held.iter().filter(|statement| head.lacks(statement)) {
                if page.len() == MAX_SYNC_OBJECTS {
                    return (page, true);
                }
                page.push(statement.clone());
            }
        }
        (page, false)
    }
}

fn note_in_lane(record: &mut LaneRecord, statement: &Statement) {
    match statement {
        Statement::Contract(it) => record.contract = it.as_ref().clone().verify().ok(),
        Statement::Meter(it) if record.meter.as_ref().is_none_or(|held| held.body().k < it.body.k) => {
            record.meter = it.as_ref().clone().verify().ok();
        }
        Statement::Voucher(it) if record.voucher.as_ref().is_none_or(|held| held.body().k < it.body.k) => {
            record.voucher = it.as_ref().clone().verify().ok();
        }
        Statement::Close(_) => record.closed = true,
        Statement::Abandon(_) => record.abandoned = true,
        _ => {}
    }
}
