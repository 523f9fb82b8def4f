//! The index: answers questions about the journal without reading it again.
//!
//! Owns: one sled tree with a table for each question, and the place in the journal that it reflects.
//! Never: is believed over the journal, which rebuilds it whenever it is missing, old, broken, or from
//! another journal. Written by the writer (see apply.rs) and by compaction, which only drops and
//! moves slots; asked by readers (see money.rs and pairs.rs). Ends when its last user drops it; sled
//! flushes then.
//!
//! It is one tree, because sled writes a batch of one tree at once and whole: a transaction over several
//! reads every key three times. The tree's name carries the schema's version: a change of a value's layout
//! changes the name, and the next open finds no place and rebuilds.
//!
//! A batch costs sled a write of its log and a switch of threads, more than the journal's sync takes: what is
//! written is held in memory first, where every question looks before it asks sled, and goes to sled many
//! groups at a time (see fresh.rs). The place goes with them, so that what a crash loses of the index is
//! read again from the journal.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::unit::UnixMillis;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sled::{Db, IVec, Tree};

use super::account::Account;
use super::error::{LedgerError, ReadError};
use super::fresh::{Fresh, Writes, in_table, with_table};
use super::journal::Place;
use super::lane::LaneState;
use super::page::{Page, PageKey, page_key};
use super::read::Spot;
use super::seal;
use super::slot::{LANE_KEY_BYTES, LaneKey, Slot, SlotKey, Subject, lane_key, slot_prefix};

pub(super) const TREE: &str = "index-3";
/// Where in [`Table::Meta`] the place is.
pub(super) const REFLECTED: &[u8] = b"reflected";
const BASE: &[u8] = b"base";
const HORIZON: &[u8] = b"horizon";
/// Keys and values that are held in memory before sled gets them, or some more: the last group's.
const FRESH_ENTRIES: usize = 2_048;
/// What a record of a lane writes at most: its slot, its lane in four tables (in one of them twice), the
/// account, the place.
const ENTRIES_A_RECORD: usize = 8;
/// Room for most values at once.
const USUAL_BYTES: usize = 256;
/// Times that freed pages are collected after so many entries, some hundreds each time.
const COLLECTIONS: usize = 64;
/// For so long another one's lock is waited for, and looked at so often.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(5);
/// sled's page cache, in bytes.
const CACHE_BYTES: u64 = 32 << 20;

/// A table: what its keys begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Table {
    /// The place, the base, the horizon.
    Meta = b'm',
    /// [`PageKey`] to [`Page`].
    Slots = b's',
    /// A lane's key to [`LaneState`].
    Lanes = b'l',
    /// When a lane was opened and its key, to nothing.
    Times = b't',
    /// The keys of lanes that nobody ended, to nothing.
    Open = b'o',
    /// The keys of lanes that no agreed balance has taken in, to nothing.
    Current = b'c',
    /// A peer to its [`Account`].
    Accounts = b'a',
    /// A peer to the statements of its book.
    Books = b'b',
    /// The digest of a balance that is not agreed, to that balance.
    States = b'n',
    /// The digest of a quote to [`super::apply::Quoted`].
    Quotes = b'q',
    /// Whoever is convicted to the proof.
    Proofs = b'p',
}

/// The place in the journal that the tables reflect.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reflected {
    /// Whose index it is.
    pub(super) owner: PeerId,
    /// The place.
    pub(super) place: Place,
}

/// The checkpoint that the tables rest on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Base {
    /// The last segment that it stands for; 0 when there is none.
    pub(super) through: u64,
    /// Records that it dropped, which have no slot any more.
    pub(super) dropped: u64,
}

/// What fills a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Filled {
    /// What its signer is bound to (see [`super::record::Checked`]).
    pub(super) commitment: Digest,
    /// Its number in the journal.
    pub(super) number: u64,
    /// Where it lies.
    pub(super) spot: Spot,
}

/// What fills a slot about some subject: by which kind and number.
pub(super) type FilledBy = ((u8, u32), Filled);

/// The tables; clones share them.
#[derive(Clone)]
pub(super) struct Index {
    pub(super) me: PeerId,
    path: PathBuf,
    db: Db,
    tree: Tree,
    horizon: Arc<AtomicU64>,
    /// What is written and sled does not have yet.
    fresh: Arc<RwLock<Fresh>>,
    /// Held by the writer while records that somebody was told of are not in yet: who asks waits. The
    /// writer has none, as it never waits for itself.
    gate: Option<Arc<RwLock<()>>>,
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Opens sled once its lock is free: whoever closed it last may hold that a little longer, through a thread
/// that is ending or a child that was just forked.
pub(super) fn open_unlocked(config: &sled::Config) -> sled::Result<Db> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if is_locked(&error) && Instant::now() < until => {
                thread::sleep(LOCK_POLL);
            }
            opened => return opened,
        }
    }
}

/// sled tells it by words alone.
fn is_locked(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

impl Index {
    /// Opens the index in `path`; an unusable one is deleted and begun anew, empty.
    pub(super) fn open(path: &Path, me: PeerId) -> Result<Self, LedgerError> {
        let sealed = seal::take(path);
        match Self::try_open(path, me) {
            Ok(index) if sealed || index.is_sound() => return Ok(index),
            Ok(_) => tracing::warn!(path = %path.display(), "the ledger's index contradicts itself"),
            Err(why) => tracing::warn!(path = %path.display(), %why, "the ledger's index cannot be opened"),
        }
        Self::begin(path, me)
    }

    /// Deletes whatever is in `path` and begins an empty index there.
    pub(super) fn begin(path: &Path, me: PeerId) -> Result<Self, LedgerError> {
        match std::fs::remove_dir_all(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(LedgerError::Io { doing: "delete", path: path.to_owned(), source });
            }
            _ => {}
        }
        Self::try_open(path, me).map_err(|why| LedgerError::Index { path: path.to_owned(), why })
    }

    fn try_open(path: &Path, me: PeerId) -> Result<Self, String> {
        // sled panics on some broken files; what it then leaves behind is deleted with them.
        let index = catch_unwind(AssertUnwindSafe(|| {
            // No flusher thread: a lost tail of the index is read again from the journal.
            let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
            let db = open_unlocked(&config)?;
            let tree = db.open_tree(TREE)?;
            let path = path.to_owned();
            Ok(Self { me, path, db, tree, horizon: Arc::default(), fresh: Arc::default(), gate: None })
        }))
        .unwrap_or_else(|_| Err(sled::Error::ReportableBug("sled panicked".to_owned())))
        .map_err(|error| error.to_string())?;
        let horizon: Option<u64> = index.get(Table::Meta, HORIZON).map_err(|error| error.to_string())?;
        index.horizon.store(horizon.unwrap_or_default(), Ordering::Relaxed);
        Ok(index)
    }

    /// For whoever asks, while the holder of `gate` writes.
    pub(super) fn behind(self, gate: Arc<RwLock<()>>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// Waits until what anybody was told of is in.
    fn pass(&self) {
        if let Some(gate) = &self.gate {
            drop(gate.read().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// What a test breaks, with all in it.
    #[cfg(test)]
    pub(super) fn tree(&self) -> &Tree {
        self.settle().unwrap();
        &self.tree
    }

    /// Keys and values that sled does not have yet.
    #[cfg(test)]
    pub(super) fn held_in_memory(&self) -> usize {
        self.fresh().len()
    }

    fn fresh(&self) -> RwLockReadGuard<'_, Fresh> {
        self.fresh.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For whoever changes what is in memory, alone.
    pub(super) fn fresh_mut(&self) -> RwLockWriteGuard<'_, Fresh> {
        self.fresh.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The place that is reflected: none for a new index.
    pub(super) fn place(&self) -> Result<Option<Place>, ReadError> {
        self.pass();
        let fresh = self.fresh().known_place();
        if fresh.is_some() {
            return Ok(fresh);
        }
        let Some(reflected) = self.get::<Reflected>(Table::Meta, REFLECTED)? else { return Ok(None) };
        if reflected.owner != self.me {
            return Err(self.read_error("it belongs to another peer".to_owned()));
        }
        Ok(Some(reflected.place))
    }

    /// The checkpoint that it rests on.
    pub(super) fn base(&self) -> Result<Base, ReadError> {
        Ok(self.get(Table::Meta, BASE)?.unwrap_or_default())
    }

    /// Lanes that ended by this record are retired (see [`LaneState::is_retired`]).
    pub(super) fn horizon(&self) -> u64 {
        self.horizon.load(Ordering::Relaxed)
    }

    /// Moves the horizon.
    pub(super) fn set_horizon(&self, horizon: u64) -> Result<(), ReadError> {
        self.set(Table::Meta, HORIZON, &horizon)?;
        self.horizon.store(horizon, Ordering::Relaxed);
        Ok(())
    }

    /// Rests on another checkpoint.
    pub(super) fn set_base(&self, base: Base) -> Result<(), ReadError> {
        self.set(Table::Meta, BASE, &base)
    }

    /// Is this a lane that was written lately, and that nobody ended?
    pub(super) fn is_running(&self, key: &LaneKey) -> bool {
        self.fresh().running(key).is_some()
    }

    /// Is the slot beyond the newest of its kind in such a lane, and so empty?
    pub(super) fn is_beyond(&self, slot: &Slot) -> bool {
        self.fresh().is_beyond(slot)
    }

    /// What fills the slot with this key, if anything does.
    pub(super) fn slot(&self, key: &SlotKey) -> Result<Option<Filled>, ReadError> {
        self.pass();
        let fresh = self.fresh().slot(key);
        match fresh {
            Some(filled) => Ok(filled),
            None => Ok(self.page_in_sled(&page_key(key))?.and_then(|page| page.find(key))),
        }
    }

    /// A page of slots as sled has it.
    pub(super) fn page_in_sled(&self, key: &PageKey) -> Result<Option<Page>, ReadError> {
        self.in_sled(Table::Slots, key)
    }

    /// The account with a peer, if there is any.
    pub(super) fn account(&self, peer: PeerId) -> Result<Option<Account>, ReadError> {
        self.pass();
        let fresh = self.fresh().known_account(&peer);
        match fresh {
            Some(account) => Ok(Some(account)),
            None => self.account_in_sled(peer),
        }
    }

    /// The account with a peer as sled has it.
    pub(super) fn account_in_sled(&self, peer: PeerId) -> Result<Option<Account>, ReadError> {
        self.in_sled(Table::Accounts, peer.as_bytes())
    }

    /// What fills the slots about a subject, by kind and number.
    pub(super) fn slots_of(&self, subject: &Subject) -> Result<Vec<FilledBy>, ReadError> {
        let mut found = Vec::new();
        for entry in self.scan(Table::Slots, &slot_prefix(subject)) {
            let (key, value) = entry?;
            found.append(&mut self.page(&key, &value)?);
        }
        Ok(found)
    }

    /// One lane.
    pub(super) fn lane(&self, lane: &LaneId) -> Result<Option<LaneState>, ReadError> {
        self.lane_by_key(&lane_key(lane))
    }

    /// The lane with a key that a table holds.
    pub(super) fn lane_at(&self, key: &[u8]) -> Result<Option<LaneState>, ReadError> {
        self.lane_by_key(key.try_into().map_err(|_| self.broken())?)
    }

    /// The lane with this key.
    pub(super) fn lane_by_key(&self, key: &LaneKey) -> Result<Option<LaneState>, ReadError> {
        self.pass();
        let fresh = self.fresh().known_lane(key).cloned();
        match fresh {
            Some(lane) => Ok(Some(lane)),
            None => self.lane_in_sled(key),
        }
    }

    /// A lane as sled has it.
    pub(super) fn lane_in_sled(&self, key: &LaneKey) -> Result<Option<LaneState>, ReadError> {
        self.in_sled(Table::Lanes, key)
    }

    /// Drops slots whose records are dropped, and moves those whose records lie elsewhere now.
    pub(super) fn move_slots(&self, moved: &[(SlotKey, Filled)], gone: &[SlotKey]) -> Result<(), ReadError> {
        let mut writes = Writes::default();
        moved.iter().for_each(|(key, filled)| writes.fill(*key, *filled));
        gone.iter().for_each(|key| writes.empty(*key));
        self.write(writes)
    }

    /// Calls `visit` for each lane.
    pub(super) fn each_lane<E: From<ReadError>>(
        &self,
        mut visit: impl FnMut(LaneState) -> Result<(), E>,
    ) -> Result<(), E> {
        for entry in self.scan(Table::Lanes, &[]) {
            visit(self.decode(&entry?.1)?)?;
        }
        Ok(())
    }

    /// Writes what is in memory to sled's file, so that the next open reads less again.
    pub(super) fn flush(&self) {
        let settled = self.settle().and_then(|()| self.db.flush().map_err(|error| self.failed(&error)));
        if let Err(error) = settled {
            tracing::warn!(path = %self.path.display(), %error, "the ledger's index was not flushed");
        }
    }

    /// Gives sled what it does not have yet, all or nothing.
    fn settle(&self) -> Result<(), ReadError> {
        // Held until sled has it, so that nobody looks while it is in neither.
        self.settle_held(&mut self.fresh_mut())
    }

    fn settle_held(&self, fresh: &mut Fresh) -> Result<(), ReadError> {
        if fresh.is_empty() {
            return Ok(());
        }
        self.tree.apply_batch(fresh.batch(self)?).map_err(|error| self.failed(&error))?;
        fresh.settled();
        // sled leaves the pages that a batch replaced to its readers to free, some at each look. A rebuild
        // hardly looks: without this it holds five times the index in memory.
        for _ in 0..COLLECTIONS {
            crossbeam_epoch::pin().flush();
        }
        Ok(())
    }

    /// Every account, by peer.
    pub(super) fn accounts(&self) -> Result<Vec<(PeerId, Account)>, ReadError> {
        let mut accounts = Vec::new();
        for entry in self.scan(Table::Accounts, &[]) {
            let (key, value) = entry?;
            accounts.push((self.peer_of(&key)?, self.decode(&value)?));
        }
        Ok(accounts)
    }

    /// The peer that a key is.
    pub(super) fn peer_of(&self, key: &[u8]) -> Result<PeerId, ReadError> {
        <[u8; 32]>::try_from(key).map(PeerId::from_bytes).map_err(|_| self.broken())
    }

    /// The keys and values of a table whose keys begin with `prefix`, in rising order.
    pub(super) fn scan(
        &self,
        table: Table,
        prefix: &[u8],
    ) -> impl DoubleEndedIterator<Item = Result<(IVec, IVec), ReadError>> + use<'_> {
        self.sorted().chain(self.tree.scan_prefix(in_table(table, prefix)).map(|entry| self.entry(entry)))
    }

    /// The keys and values of a table from `first` on, in rising order.
    pub(super) fn scan_from(
        &self,
        table: Table,
        first: &[u8],
    ) -> impl DoubleEndedIterator<Item = Result<(IVec, IVec), ReadError>> + use<'_> {
        let range = in_table(table, first)..IVec::from(&[table as u8 + 1]);
        self.sorted().chain(self.tree.range(range).map(|entry| self.entry(entry)))
    }

    /// Gives sled everything, as only sled knows what comes after a key; the error if it cannot.
    fn sorted<T>(&self) -> impl DoubleEndedIterator<Item = Result<T, ReadError>> + use<T> {
        self.pass();
        self.settle().err().map(Err).into_iter()
    }

    fn entry(&self, entry: sled::Result<(IVec, IVec)>) -> Result<(IVec, IVec), ReadError> {
        let (key, value) = entry.map_err(|error| self.failed(&error))?;
        Ok((key.subslice(1, key.len().saturating_sub(1)), value))
    }

    /// Entries of a table.
    pub(super) fn count(&self, table: Table) -> Result<u64, ReadError> {
        self.scan(table, &[]).try_fold(0, |count, entry| entry.map(|_| count + 1))
    }

    /// Is there anything under this key?
    pub(super) fn has(&self, table: Table, key: &[u8]) -> Result<bool, ReadError> {
        self.held(table, key).map(|held| held.is_some())
    }

    /// The value under a key; slots, lanes and accounts have doors of their own, quicker ones.
    pub(super) fn get<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> Result<Option<T>, ReadError> {
        self.held(table, key)?.map(|bytes| self.decode(&bytes)).transpose()
    }

    fn held(&self, table: Table, key: &[u8]) -> Result<Option<IVec>, ReadError> {
        self.pass();
        if matches!(table, Table::Slots | Table::Lanes | Table::Accounts) {
            self.settle()?;
        }
        with_table(table, key, |key| {
            let fresh = self.fresh().other(key);
            match fresh {
                Some(held) => Ok(held),
                None => self.tree.get(key).map_err(|error| self.failed(&error)),
            }
        })
    }

    /// What sled has under a key, whatever came since.
    fn in_sled<T: DeserializeOwned>(&self, table: Table, key: &[u8]) -> Result<Option<T>, ReadError> {
        let held = with_table(table, key, |key| self.tree.get(key)).map_err(|error| self.failed(&error))?;
        held.map(|bytes| self.decode(&bytes)).transpose()
    }

    fn set<T: Serialize>(&self, table: Table, key: &[u8], value: &T) -> Result<(), ReadError> {
        let mut writes = Writes::default();
        writes.put(table, key, &self.encode(value)?);
        self.write(writes)
    }

    /// Writes all of it or nothing, for whoever asks from now on; [`Index::flush`] makes it durable.
    pub(super) fn write(&self, writes: Writes) -> Result<(), ReadError> {
        self.write_with(&mut self.fresh_mut(), writes)
    }

    /// As [`Index::write`], after changes in place.
    pub(super) fn write_with(&self, fresh: &mut Fresh, writes: Writes) -> Result<(), ReadError> {
        fresh.take(writes);
        if fresh.len() >= FRESH_ENTRIES { self.settle_held(fresh) } else { Ok(()) }
    }

    /// Can so many records of lanes be taken in without sled?
    pub(super) fn has_room(&self, records: usize) -> bool {
        self.fresh().len() + records.saturating_mul(ENTRIES_A_RECORD) < FRESH_ENTRIES
    }

    /// A value as the tables hold it.
    pub(super) fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, ReadError> {
        postcard::to_extend(value, Vec::with_capacity(USUAL_BYTES)).map_err(|_| self.broken())
    }

    /// A value that a table holds.
    pub(super) fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, ReadError> {
        postcard::from_bytes(bytes).map_err(|_| self.broken())
    }

    fn failed(&self, error: &sled::Error) -> ReadError {
        self.read_error(error.to_string())
    }

    /// A value or key that is not what it should be.
    pub(super) fn broken(&self) -> ReadError {
        self.read_error("a value in it is broken".to_owned())
    }

    /// Why the index cannot be read.
    pub(super) fn read_error(&self, why: String) -> ReadError {
        ReadError { path: self.path.clone(), why }
    }
}

/// When a lane was opened, and its key: newest last, then by lane.
pub(super) fn time_key(opened: UnixMillis, lane: &LaneKey) -> [u8; 8 + LANE_KEY_BYTES] {
    let mut key = [0; 8 + LANE_KEY_BYTES];
    key[..8].copy_from_slice(&opened.get().to_be_bytes());
    key[8..].copy_from_slice(lane);
    key
}
