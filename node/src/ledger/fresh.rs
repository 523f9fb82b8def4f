//! What of the index is in memory and not in sled yet.
//!
//! Owns: [`Writes`], which go in together or not at all, and [`Fresh`], where they wait for sled. What
//! changes with every record (slots, lanes, accounts, the place) is held as it is, and becomes bytes when sled
//! gets it: a lane that was paid ten times is written once. A lane is changed here, where it lies, by what
//! apply.rs says follows from it. Never: decides when sled gets anything, or asks it for more than the pages
//! that slots go into. Called by the index.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use potluck_protocol::id::{LaneId, PeerId};
use sled::{Batch, IVec};

use super::account::Account;
use super::apply::{Before, change_part, list_lane};
use super::error::ReadError;
use super::index::{Filled, Index, REFLECTED, Reflected, Table};
use super::journal::Place;
use super::lane::{LaneState, other_side};
use super::page::page_key;
use super::slot::{LANE_KEY_BYTES, LaneKey, Slot, SlotKey, lane_key};

/// Lanes that are kept at hand after sled has them, or some more: the last group's.
const RECENT_LANES: usize = 512;
/// Room for the keys that are written most.
const USUAL_KEY: usize = 1 + 8 + LANE_KEY_BYTES;

/// Writes that go in together or not at all; of two to one key the later counts.
#[derive(Debug, Default)]
pub(super) struct Writes {
    slots: Vec<(SlotKey, Option<Filled>)>,
    lanes: Vec<(LaneKey, LaneState)>,
    accounts: Vec<(PeerId, Account)>,
    place: Option<Place>,
    others: Vec<(IVec, Option<IVec>)>,
}

impl Writes {
    /// Puts `value` into a table that is not held as values.
    pub(super) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.others.push((in_table(table, key), Some(value.into())));
    }

    /// Removes a key from such a table.
    pub(super) fn remove(&mut self, table: Table, key: &[u8]) {
        self.others.push((in_table(table, key), None));
    }

    /// Puts a key without a value into such a table, or removes it.
    pub(super) fn list(&mut self, table: Table, key: &[u8], is_in: bool) {
        self.others.push((in_table(table, key), is_in.then(IVec::default)));
    }

    /// Fills a slot.
    pub(super) fn fill(&mut self, slot: SlotKey, filled: Filled) {
        self.slots.push((slot, Some(filled)));
    }

    /// Empties a slot.
    pub(super) fn empty(&mut self, slot: SlotKey) {
        self.slots.push((slot, None));
    }

    /// Writes a lane.
    pub(super) fn lane(&mut self, key: LaneKey, lane: LaneState) {
        self.lanes.push((key, lane));
    }

    /// Writes the account with a peer.
    pub(super) fn account(&mut self, peer: PeerId, account: Account) {
        self.accounts.push((peer, account));
    }

    /// Notes the place that is reflected once they are in.
    pub(super) fn reflect(&mut self, place: Place) {
        self.place = Some(place);
    }
}

/// What is written and sled does not have yet; of what can be removed, `None` is.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    slots: HashMap<SlotKey, Option<Filled>>,
    lanes: HashMap<LaneKey, LaneState>,
    accounts: HashMap<PeerId, Account>,
    place: Option<Place>,
    others: HashMap<IVec, Option<IVec>>,
    /// Lanes that run, as sled has them: they are changed again and again.
    recent: HashMap<LaneKey, LaneState>,
}

impl Fresh {
    /// Takes all of `writes` in.
    pub(super) fn take(&mut self, writes: Writes) {
        let Writes { slots, lanes, accounts, place, others } = writes;
        self.slots.extend(slots);
        for (key, lane) in lanes {
            self.recent.remove(&key);
            self.lanes.insert(key, lane);
        }
        self.accounts.extend(accounts);
        self.place = place.or(self.place);
        self.others.extend(others);
    }

    /// Fills a slot.
    pub(super) fn fill(&mut self, slot: SlotKey, filled: Filled) {
        self.slots.insert(slot, Some(filled));
    }

    /// Holds a lane as sled has it, which is about to be changed.
    pub(super) fn remember(&mut self, key: LaneKey, lane: LaneState) {
        self.recent.insert(key, lane);
    }

    /// Puts the account with a peer.
    pub(super) fn put_account(&mut self, peer: PeerId, account: Account) {
        self.accounts.insert(peer, account);
    }

    /// Changes a lane of `me`, new unless it is known here, with the account and the lists that follow it;
    /// gives the lane. The account must be known here.
    pub(super) fn change_lane(
        &mut self,
        me: PeerId,
        lane: LaneId,
        change: impl FnOnce(&mut LaneState),
    ) -> &LaneState {
        let Self { lanes, accounts, others, recent, .. } = self;
        let key = lane_key(&lane);
        let account = accounts.entry(other_side(&lane, me)).or_default();
        let (before, after) = match lanes.entry(key) {
            Entry::Occupied(entry) => {
                let after = entry.into_mut();
                (Some(Before::of(after)), after)
            }
            Entry::Vacant(entry) => match recent.remove(&key) {
                Some(held) => (Some(Before::of(&held)), entry.insert(held)),
                None => (None, entry.insert(LaneState::new(lane))),
            },
        };
        change_part(me, (account, after), change);
        let stays = before.is_some_and(|before| before.is_as_old_as(after));
        let floor = (!stays).then_some(account.floor);
        list_lane(&key, (before, after), floor, |table, key, is_in| {
            others.insert(in_table(table, key), is_in.then(IVec::default));
        });
        after
    }

    /// Keys that sled does not have as they are, the place apart.
    pub(super) fn len(&self) -> usize {
        self.slots.len() + self.lanes.len() + self.accounts.len() + self.others.len()
    }

    /// Does sled have everything?
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0 && self.place.is_none()
    }

    /// What fills a slot; `None` when only sled knows.
    pub(super) fn slot(&self, key: &SlotKey) -> Option<Option<Filled>> {
        self.slots.get(key).copied()
    }

    /// A lane; `None` when only sled knows.
    pub(super) fn known_lane(&self, key: &LaneKey) -> Option<&LaneState> {
        self.lanes.get(key).or_else(|| self.recent.get(key))
    }

    /// A lane that was written lately, and that nobody ended.
    pub(super) fn running(&self, key: &LaneKey) -> Option<&LaneState> {
        self.known_lane(key).filter(|lane| !lane.has_ended())
    }

    /// Is the slot beyond the newest of its kind in such a lane, and so empty?
    pub(super) fn is_beyond(&self, slot: &Slot) -> bool {
        let Some(lane) = slot.lane() else { return false };
        self.running(&lane_key(&lane)).is_some_and(|lane| lane.is_beyond(slot))
    }

    /// An account; `None` when only sled knows.
    pub(super) fn known_account(&self, peer: &PeerId) -> Option<Account> {
        self.accounts.get(peer).copied()
    }

    /// The place that is reflected; `None` when only sled knows.
    pub(super) fn known_place(&self) -> Option<Place> {
        self.place
    }

    /// What is under a key of a table that is not held as values; `None` when only sled knows.
    pub(super) fn other(&self, key: &[u8]) -> Option<Option<IVec>> {
        self.others.get(key).cloned()
    }

    /// All that sled is to get, as it keeps it.
    pub(super) fn batch(&self, index: &Index) -> Result<Batch, ReadError> {
        let mut pages = HashMap::new();
        for (slot, filled) in &self.slots {
            let page = match pages.entry(page_key(slot)) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let held = index.page_in_sled(entry.key())?;
                    entry.insert(held.unwrap_or_default())
                }
            };
            page.set(slot, *filled);
        }
        let mut batch = Batch::default();
        let mut put = |key: IVec, value: Option<IVec>| match value {
            Some(value) => batch.insert(key, value),
            None => batch.remove(key),
        };
        for (key, page) in &pages {
            let value = if page.is_empty() { None } else { Some(index.encode(page)?.into()) };
            put(in_table(Table::Slots, key), value);
        }
        for (key, lane) in &self.lanes {
            put(in_table(Table::Lanes, key), Some(index.encode(lane)?.into()));
        }
        for (peer, account) in &self.accounts {
            put(in_table(Table::Accounts, peer.as_bytes()), Some(index.encode(account)?.into()));
        }
        if let Some(place) = self.place {
            let reflected = Reflected { owner: index.me, place };
            put(in_table(Table::Meta, REFLECTED), Some(index.encode(&reflected)?.into()));
        }
        for (key, value) in &self.others {
            put(key.clone(), value.clone());
        }
        Ok(batch)
    }

    /// Sled has it all now.
    pub(super) fn settled(&mut self) {
        self.slots.clear();
        self.accounts.clear();
        self.place = None;
        self.others.clear();
        if self.recent.len() >= RECENT_LANES {
            self.recent.clear();
        }
        self.recent.extend(self.lanes.drain().filter(|(_, lane)| !lane.has_ended()));
    }
}

/// A key of the tree: the table's letter, then the table's key.
pub(super) fn in_table(table: Table, key: &[u8]) -> IVec {
    with_table(table, key, |whole| whole.into())
}

/// Calls `then` with a key of the tree, which takes no memory of its own when it is of the usual length.
pub(super) fn with_table<T>(table: Table, key: &[u8], then: impl FnOnce(&[u8]) -> T) -> T {
    let mut room = [0; USUAL_KEY];
    room[0] = table as u8;
    match room.get_mut(1..=key.len()) {
        Some(place) => {
            place.copy_from_slice(key);
            then(&room[..=key.len()])
        }
        None => then(&[&[table as u8], key].concat()),
    }
}
