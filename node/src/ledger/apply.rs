//! Taking records into the index: a group of them at once, and whole or not at all.
//!
//! Owns: how lanes, accounts and books follow from records. Never: reads the journal, or decides whether
//! a record is admitted (the writer does). Called by the writer, after the journal's sync, and by
//! the loader when the index is brought up to date; never by two at a time.
//!
//! Nearly all that a ledger hears is of lanes. Those are changed where they are held (see fresh.rs), once all
//! that may fail is done. What a balance changes is worked out apart and written at once: it may make
//! every lane of a pair be added up anew, out of sled.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use potluck_protocol::balance::PairState;
use potluck_protocol::id::{ContentHash, Digest, LaneId, PeerId};
use potluck_protocol::pair::PairBook;
use potluck_protocol::sign::Signed;
use potluck_protocol::statement::Statement;
use potluck_protocol::unit::UnixMillis;
use serde::{Deserialize, Serialize};

use super::account::{Account, Part, book_of, note, note_agreed, statements_of};
use super::error::ReadError;
use super::fresh::{Fresh, Writes};
use super::index::{Filled, Index, Table, time_key};
use super::journal::Place;
use super::lane::{LaneState, RetiredLane, other_side};
use super::read::Spot;
use super::record::{Checked, Kind, Record};
use super::slot::{LaneKey, Slot, SlotKey, Subject, lane_key};

/// A record that the journal holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbered<C> {
    /// Its number.
    pub(super) number: u64,
    /// Where it lies.
    pub(super) spot: Spot,
    /// The record, or a reference to it.
    pub(super) checked: C,
}

impl Numbered<Checked> {
    /// Without the record itself.
    pub(super) fn as_ref(&self) -> Numbered<&Checked> {
        Numbered { number: self.number, spot: self.spot, checked: &self.checked }
    }
}

impl Numbered<&Checked> {
    fn filled(&self) -> Filled {
        Filled { commitment: self.checked.commitment, number: self.number, spot: self.spot }
    }
}

/// What is kept of a quote beside its slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Quoted {
    pub(super) model: ContentHash,
    /// Its peers, and its serial as a lane's number.
    pub(super) slot: LaneId,
}

/// What a change of a lane is measured against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    opened: UnixMillis,
    has_ended: bool,
}

impl Before {
    /// A lane as it is.
    pub(super) fn of(lane: &LaneState) -> Self {
        Self { opened: lane.opened(), has_ended: lane.has_ended() }
    }

    /// Was it opened when it is now?
    pub(super) fn is_as_old_as(&self, lane: &LaneState) -> bool {
        self.opened == lane.opened()
    }
}

/// Lets `change` change a lane of `me`, and what it adds to the account with its peer.
pub(super) fn change_part(
    me: PeerId,
    (account, lane): (&mut Account, &mut LaneState),
    change: impl FnOnce(&mut LaneState),
) {
    let part = if lane.is_new() { Part::default() } else { lane.part(me, account.floor) };
    change(lane);
    account.part = account.part.exchange(part, lane.part(me, account.floor));
}

/// Where a lane is listed from now on and where no more: tells `list` of each table that changes, where the
/// lane has which key in it, and whether it is in it. With a `floor`, whether it is current is told, too.
pub(super) fn list_lane(
    key: &LaneKey,
    (before, after): (Option<Before>, &LaneState),
    floor: Option<UnixMillis>,
    mut list: impl FnMut(Table, &[u8], bool),
) {
    let moved = before.filter(|before| !before.is_as_old_as(after));
    if let Some(before) = moved {
        list(Table::Times, &time_key(before.opened, key), false);
    }
    if before.is_none() || moved.is_some() {
        list(Table::Times, &time_key(after.opened(), key), true);
    }
    // Unless the agreed balance with its peer has taken it in.
    if let Some(floor) = floor {
        list(Table::Current, key, after.opened() >= floor);
    }
    let was_open = before.is_some_and(|before| !before.has_ended);
    if was_open && after.has_ended() {
        list(Table::Open, key, false);
    } else if before.is_none() && !after.has_ended() {
        list(Table::Open, key, true);
    }
}

/// Lanes, accounts and books as a group of records leaves them, before any of it is written.
#[derive(Default)]
struct Changes {
    /// What it was, if it was there, and as it will be.
    lanes: HashMap<LaneKey, (Option<Before>, LaneState)>,
    accounts: BTreeMap<PeerId, Account>,
    books: BTreeMap<PeerId, PairBook>,
    /// Balances that are not agreed; `None` once they are.
    states: BTreeMap<Digest, Option<Signed<PairState>>>,
    /// Where the floor has moved, and so the lanes are to be added up anew: where it was.
    moved: BTreeMap<PeerId, UnixMillis>,
}

impl Index {
    /// Takes in records that the journal holds, all or nothing; `place` is the place after them, and
    /// none while a checkpoint is read.
    pub(super) fn apply<'a>(
        &self,
        group: impl Iterator<Item = Numbered<&'a Checked>> + Clone,
        place: Option<Place>,
    ) -> Result<(), ReadError> {
        let is_balance = |it: Numbered<&Checked>| matches!(it.checked.slot.subject, Subject::Steps { .. });
        if group.clone().any(is_balance) {
            self.apply_apart(group, place)
        } else {
            self.apply_in_place(group, place)
        }
    }

    /// As [`Index::apply`]: worked out first, and then written.
    pub(super) fn apply_apart<'a>(
        &self,
        group: impl Iterator<Item = Numbered<&'a Checked>>,
        place: Option<Place>,
    ) -> Result<(), ReadError> {
        let (mut changes, mut writes) = (Changes::default(), Writes::default());
        for it in group {
            let (checked, horizon) = (it.checked, self.horizon());
            writes.fill(checked.key, it.filled());
            match checked.slot.subject {
                Subject::Lane(lane) if checked.slot.lane().is_some() => {
                    self.change_lane(&mut changes, lane, |lane| lane.take(it.number, checked, horizon))?;
                }
                Subject::Steps { pair, .. } => {
                    let peer = pair.other(self.me).ok_or_else(|| self.broken())?;
                    self.change_book(&mut changes, peer, &checked.record, checked.digest)?;
                }
                Subject::Lane(_) | Subject::Convict(_) => self.put_apart(&mut writes, checked)?,
            }
        }
        self.add_up_moved(&mut changes, &mut writes)?;
        if let Some(place) = place {
            writes.reflect(place);
        }
        self.write_changes(changes, writes)
    }

    /// As [`Index::apply`], for a group without any statement of a balance: changed where it is held.
    fn apply_in_place<'a>(
        &self,
        group: impl Iterator<Item = Numbered<&'a Checked>> + Clone,
        place: Option<Place>,
    ) -> Result<(), ReadError> {
        let (mut fresh, mut writes) = (self.fresh_mut(), Writes::default());
        for it in group.clone() {
            match it.checked.slot.lane() {
                Some(lane) => self.bring(&mut fresh, lane)?,
                None => self.put_apart(&mut writes, it.checked)?,
            }
        }
        // Nothing fails from here on.
        let horizon = self.horizon();
        for it in group {
            fresh.fill(it.checked.key, it.filled());
            if let Some(lane) = it.checked.slot.lane() {
                fresh.change_lane(self.me, lane, |lane| lane.take(it.number, it.checked, horizon));
            }
        }
        if let Some(place) = place {
            writes.reflect(place);
        }
        self.write_with(&mut fresh, writes)
    }

    /// Puts down an object that has no lane, but a table of its own.
    fn put_apart(&self, writes: &mut Writes, checked: &Checked) -> Result<(), ReadError> {
        match (checked.slot.subject, &checked.record) {
            (Subject::Lane(slot), Record::Quote(quote)) => {
                let quoted = Quoted { model: quote.body.model, slot };
                writes.put(Table::Quotes, checked.digest.as_bytes(), &self.encode(&quoted)?);
            }
            (Subject::Convict(signer), Record::Proof(proof)) => {
                writes.put(Table::Proofs, signer.as_bytes(), &self.encode(proof)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Puts back what a checkpoint says of retired lanes; gives what their vouchers in it come to, by peer.
    pub(super) fn restore(&self, retired: &[RetiredLane]) -> Result<BTreeMap<PeerId, Part>, ReadError> {
        let mut fresh = self.fresh_mut();
        for lane in retired {
            self.bring(&mut fresh, lane.lane)?;
        }
        let mut parts = BTreeMap::<PeerId, Part>::new();
        for lane in retired {
            let state = fresh.change_lane(self.me, lane.lane, |state| state.restore(lane));
            let part = parts.entry(state.peer(self.me)).or_default();
            *part = part.and(state.whole_part(self.me));
        }
        self.write_with(&mut fresh, Writes::default())?;
        Ok(parts)
    }

    /// Makes sure that a lane, if it is known, and the account with its peer are in memory.
    fn bring(&self, fresh: &mut Fresh, lane: LaneId) -> Result<(), ReadError> {
        let key = lane_key(&lane);
        if fresh.known_lane(&key).is_none()
            && let Some(held) = self.lane_in_sled(&key)?
        {
            fresh.remember(key, held);
        }
        let peer = other_side(&lane, self.me);
        if fresh.known_account(&peer).is_none() {
            fresh.put_account(peer, self.account_in_sled(peer)?.unwrap_or_default());
        }
        Ok(())
    }

    fn account_in<'a>(&self, changes: &'a mut Changes, peer: PeerId) -> Result<&'a mut Account, ReadError> {
        use std::collections::btree_map::Entry;
        Ok(match changes.accounts.entry(peer) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.account(peer)?.unwrap_or_default()),
        })
    }

    /// Notes in `changes` what `change` does to a lane, and to the account with its peer.
    fn change_lane(
        &self,
        changes: &mut Changes,
        lane: LaneId,
        change: impl FnOnce(&mut LaneState),
    ) -> Result<(), ReadError> {
        let peer = other_side(&lane, self.me);
        let mut account = *self.account_in(changes, peer)?;
        let key = lane_key(&lane);
        let (_, after) = match changes.lanes.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let held = self.lane_by_key(&key)?;
                let before = held.as_ref().map(Before::of);
                entry.insert((before, held.unwrap_or_else(|| LaneState::new(lane))))
            }
        };
        change_part(self.me, (&mut account, after), change);
        changes.accounts.insert(peer, account);
        Ok(())
    }

    /// Notes in `changes` what a balance statement does to the book and the account with `peer`.
    fn change_book(
        &self,
        changes: &mut Changes,
        peer: PeerId,
        record: &Record,
        digest: Digest,
    ) -> Result<(), ReadError> {
        let mut book = match changes.books.remove(&peer) {
            Some(book) => book,
            None => book_of(self.me, peer, &self.statements(peer)?).ok_or_else(|| self.broken())?,
        };
        match record {
            Record::State(state) => {
                changes.states.insert(digest, Some(state.clone()));
                self.account_in(changes, peer)?.proposed += 1;
                note(&mut book, record);
            }
            Record::Countersign(answer) => {
                let state = self.agreed(changes, peer, answer.body.state)?;
                if let Some(state) = state
                    && note_agreed(&mut book, &state, answer)
                {
                    let account = self.account_in(changes, peer)?;
                    let floor = account.floor;
                    account.agree(&book, state.body.settle.as_ref(), self.me);
                    changes.moved.entry(peer).or_insert(floor);
                }
            }
            _ => note(&mut book, record),
        }
        changes.books.insert(peer, book);
        Ok(())
    }

    /// The balance with this digest, which is agreed now; `None` when it is not held.
    fn agreed(
        &self,
        changes: &mut Changes,
        peer: PeerId,
        state: Digest,
    ) -> Result<Option<Signed<PairState>>, ReadError> {
        let held = match changes.states.get(&state) {
            Some(held) => held.clone(),
            None => self.get(Table::States, state.as_bytes())?,
        };
        if held.is_some() {
            changes.states.insert(state, None);
            let account = self.account_in(changes, peer)?;
            account.proposed = account.proposed.saturating_sub(1);
        }
        Ok(held)
    }

    /// Where a floor has moved: adds the lanes up anew, and lists those that are current.
    fn add_up_moved(&self, changes: &mut Changes, writes: &mut Writes) -> Result<(), ReadError> {
        let me = self.me;
        for (peer, before) in changes.moved.clone() {
            let floor = self.account_in(changes, peer)?.floor;
            let mut part = Part::default();
            let mut add = |lane: &LaneState| {
                let Part { owed_to_us, we_owe, .. } = lane.part(me, floor);
                part = part.and(Part { owed_to_us, we_owe, ..Part::default() });
            };
            // A floor falls only where both signed so; then lanes that were done with are current again.
            let table = if floor < before { Table::Lanes } else { Table::Current };
            self.each_lane_with(peer, table, None, &mut |lane| {
                let key = lane_key(&lane.lane);
                if !changes.lanes.contains_key(&key) {
                    add(lane);
                    writes.list(Table::Current, &key, lane.opened() >= floor);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            changes.lanes.values().filter(|(_, lane)| lane.peer(me) == peer).for_each(|(_, lane)| add(lane));
            let account = self.account_in(changes, peer)?;
            account.part = Part { lanes: account.part.lanes, open: account.part.open, ..part };
        }
        Ok(())
    }

    fn write_changes(&self, mut changes: Changes, mut writes: Writes) -> Result<(), ReadError> {
        for (key, (before, after)) in std::mem::take(&mut changes.lanes) {
            let peer = after.peer(self.me);
            let stays = before.is_some_and(|before| before.is_as_old_as(&after))
                && !changes.moved.contains_key(&peer);
            let floor = changes.accounts.get(&peer).filter(|_| !stays).map(|account| account.floor);
            list_lane(&key, (before, &after), floor, |table, key, is_in| writes.list(table, key, is_in));
            writes.lane(key, after);
        }
        for (peer, book) in std::mem::take(&mut changes.books) {
            let statements = statements_of(&book);
            self.account_in(&mut changes, peer)?.book = u32::try_from(statements.len()).unwrap_or(u32::MAX);
            writes.put(Table::Books, peer.as_bytes(), &self.encode(&statements)?);
        }
        for (digest, state) in &changes.states {
            match state {
                Some(state) => writes.put(Table::States, digest.as_bytes(), &self.encode(state)?),
                None => writes.remove(Table::States, digest.as_bytes()),
            }
        }
        changes.accounts.into_iter().for_each(|(peer, account)| writes.account(peer, account));
        self.write(writes)
    }

    /// The statements that make the book with `peer`.
    pub(super) fn statements(&self, peer: PeerId) -> Result<Vec<Statement>, ReadError> {
        Ok(self.get(Table::Books, peer.as_bytes())?.unwrap_or_default())
    }

    /// Where the quote with this digest lies, and for which model it was.
    pub(super) fn quoted(&self, quote: &Digest) -> Result<Option<Quoted>, ReadError> {
        self.get(Table::Quotes, quote.as_bytes())
    }
}

impl Quoted {
    /// The key of the quote's slot.
    pub(super) fn key(&self) -> SlotKey {
        Slot { kind: Kind::Quote, subject: Subject::Lane(self.slot), k: 0 }.key()
    }
}
