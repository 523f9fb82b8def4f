//! The index: answers questions about the journal without reading it again.
//!
//! Owns: the sled trees (slots, lanes, lanes by time, pairs, quotes) and the place in the journal that
//! they reflect. Never: is believed over the journal, which rebuilds it whenever it is missing, old,
//! broken, or from another journal. Called by the writer thread, which writes all of it, by compaction,
//! which only drops slots, and by readers. Ends when its last user drops it; sled flushes then.
//!
//! Tree names carry the schema's version: a change of a value's layout changes the name, and the
//! next open finds no place and rebuilds.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use potluck_protocol::id::{ContentHash, Digest, LaneId, PeerId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sled::transaction::{ConflictableTransactionError, TransactionError, Transactional as _};
use sled::{Db, Tree};

use super::error::{LedgerError, ReadError};
use super::journal::Place;
use super::record::{Checked, LANE_KEY_BYTES, Record, Slot, lane_key, slot_prefix};
use super::seal;
use super::view::{Filter, LaneState, LaneSummary, PairBalance, PairState, RetiredLane, Standing, Totals};

const REFLECTED: &[u8] = b"reflected";
const BASE: &[u8] = b"base";
const HORIZON: &[u8] = b"horizon";
/// sled's page cache, in bytes.
const CACHE_BYTES: u64 = 32 << 20;

/// The place in the journal that the trees reflect.
#[derive(Debug, Serialize, Deserialize)]
struct Reflected {
    owner: PeerId,
    place: Place,
}

/// The checkpoint that the trees rest on.
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
    /// Its digest.
    pub(super) digest: Digest,
    /// Its number in the journal.
    pub(super) number: u64,
}

/// What is kept of a quote beside its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Quoted {
    model: ContentHash,
    number: u64,
}

/// The trees; clones share them.
#[derive(Clone)]
pub(super) struct Index {
    me: PeerId,
    path: PathBuf,
    db: Db,
    meta: Tree,
    slots: Tree,
    lanes: Tree,
    times: Tree,
    pairs: Tree,
    quotes: Tree,
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("path", &self.path).finish_non_exhaustive()
    }
}

type Conflict = ConflictableTransactionError<String>;

/// Lanes and pairs as a group of records leaves them, before any of it is written.
#[derive(Default)]
struct Changes {
    /// As it was, and as it will be.
    lanes: HashMap<[u8; LANE_KEY_BYTES], (Option<LaneState>, LaneState)>,
    pairs: BTreeMap<PeerId, PairState>,
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
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(LedgerError::Io { doing: "delete", path: path.to_owned(), source });
            }
            _ => {}
        }
        Self::try_open(path, me).map_err(|why| LedgerError::Index { path: path.to_owned(), why })
    }

    fn try_open(path: &Path, me: PeerId) -> Result<Self, String> {
        // sled panics on some broken files; what it then leaves behind is deleted with them.
        catch_unwind(AssertUnwindSafe(|| {
            // No flusher thread: a lost tail of the index is read again from the journal.
            let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
            let db = config.open()?;
            let tree = |name: &str| db.open_tree(name);
            Ok(Self {
                me,
                path: path.to_owned(),
                meta: tree("meta-1")?,
                slots: tree("slots-1")?,
                lanes: tree("lanes-1")?,
                times: tree("times-1")?,
                pairs: tree("pairs-1")?,
                quotes: tree("quotes-1")?,
                db,
            })
        }))
        .unwrap_or_else(|_| Err(sled::Error::ReportableBug("sled panicked".to_owned())))
        .map_err(|error| error.to_string())
    }

    /// Does every record have its slot, and do the lanes add up to the pairs? (sled may come back
    /// from damage with some keys missing and no error.)
    pub(super) fn is_sound(&self) -> bool {
        let sound = || -> Result<bool, ReadError> {
            let records = self.place()?.map_or(0, |place| place.position.records);
            let slots = records.checked_sub(self.base()?.dropped);
            if u64::try_from(self.slots.len()).ok() != slots || self.times.len() != self.lanes.len() {
                return Ok(false);
            }
            let mut pairs = BTreeMap::<PeerId, PairState>::new();
            self.each_lane(|lane| {
                let pair = pairs.entry(lane.peer(self.me)).or_default();
                *pair = pair.exchange(PairState::default(), lane.part(self.me));
                Ok::<_, ReadError>(())
            })?;
            Ok(self.all_pairs()? == pairs.into_iter().collect::<Vec<_>>())
        };
        catch_unwind(AssertUnwindSafe(sound)).is_ok_and(|sound| sound.unwrap_or(false))
    }

    /// What a test breaks.
    #[cfg(test)]
    pub(super) fn lanes_tree(&self) -> &Tree {
        &self.lanes
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The place that is reflected: none for a new index.
    pub(super) fn place(&self) -> Result<Option<Place>, ReadError> {
        let Some(reflected) = self.get::<Reflected>(&self.meta, REFLECTED)? else { return Ok(None) };
        if reflected.owner != self.me {
            return Err(ReadError { path: self.path.clone(), why: "it belongs to another peer".to_owned() });
        }
        Ok(Some(reflected.place))
    }

    /// The checkpoint that it rests on.
    pub(super) fn base(&self) -> Result<Base, ReadError> {
        Ok(self.get(&self.meta, BASE)?.unwrap_or_default())
    }

    /// Lanes that were closed by this record take no more objects (see [`LaneState::is_retired`]).
    pub(super) fn horizon(&self) -> Result<u64, ReadError> {
        Ok(self.get(&self.meta, HORIZON)?.unwrap_or_default())
    }

    /// Moves the horizon.
    pub(super) fn set_horizon(&self, horizon: u64) -> Result<(), ReadError> {
        self.set(HORIZON, &horizon)
    }

    /// Rests on another checkpoint.
    pub(super) fn set_base(&self, base: Base) -> Result<(), ReadError> {
        self.set(BASE, &base)
    }

    /// What fills `slot`, if anything does.
    pub(super) fn slot(&self, slot: &Slot) -> Result<Option<Filled>, ReadError> {
        self.get(&self.slots, &slot.key())
    }

    /// One lane.
    pub(super) fn lane(&self, lane: &LaneId) -> Result<Option<LaneState>, ReadError> {
        self.get(&self.lanes, &lane_key(lane))
    }

    /// Numbers of the records of a lane, its quote's among them, in the journal's order.
    pub(super) fn numbers(&self, lane: &LaneId) -> Result<Vec<u64>, ReadError> {
        let mut numbers = Vec::new();
        for entry in self.slots.scan_prefix(slot_prefix(lane)) {
            let filled: Filled = self.decode(&entry.map_err(|error| self.failed(&error))?.1)?;
            numbers.push(filled.number);
        }
        if let Some(agreed) = self.lane(lane)?.and_then(|lane| lane.agreed) {
            let quoted: Option<Quoted> = self.get(&self.quotes, agreed.quote.as_bytes())?;
            numbers.extend(quoted.map(|quoted| quoted.number));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Takes in records that the journal holds, each with its number, all or nothing; `place` is the
    /// place after them, and none while a checkpoint is read.
    pub(super) fn apply(&self, group: &[(u64, Checked)], place: Option<Place>) -> Result<(), ReadError> {
        let mut changes = Changes::default();
        for (number, checked) in group {
            if !matches!(checked.record, Record::Quote(_)) {
                self.change_lane(&mut changes, checked.slot.lane, |lane| lane.take(*number, checked))?;
            }
        }
        let mut slots = Vec::with_capacity(group.len());
        let mut quotes = Vec::new();
        for (number, checked) in group {
            let filled = Filled { digest: checked.digest, number: *number };
            slots.push((checked.slot.key(), self.encode(&filled)?));
            if let Record::Quote(quote) = &checked.record {
                let quoted = Quoted { model: quote.body.model, number: *number };
                quotes.push((*checked.digest.as_bytes(), self.encode(&quoted)?));
            }
        }
        self.write(&changes, &slots, &quotes, place)
    }

    /// Puts back what a checkpoint says of retired lanes; gives what they come to, by peer.
    pub(super) fn restore(&self, retired: &[RetiredLane]) -> Result<BTreeMap<PeerId, PairState>, ReadError> {
        let mut changes = Changes::default();
        for lane in retired {
            self.change_lane(&mut changes, lane.lane, |state| state.restore(lane.clone()))?;
        }
        self.write(&changes, &[], &[], None)?;
        let mut pairs = BTreeMap::<PeerId, PairState>::new();
        for (_, lane) in changes.lanes.values() {
            let pair = pairs.entry(lane.peer(self.me)).or_default();
            *pair = pair.exchange(PairState::default(), lane.part(self.me));
        }
        Ok(pairs)
    }

    /// Notes in `changes` what `change` does to a lane, and to its pair.
    fn change_lane(
        &self,
        changes: &mut Changes,
        lane: LaneId,
        change: impl FnOnce(&mut LaneState),
    ) -> Result<(), ReadError> {
        let key = lane_key(&lane);
        let (_, after) = match changes.lanes.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let before: Option<LaneState> = self.get(&self.lanes, &key)?;
                let after = before.clone().unwrap_or_else(|| LaneState::new(lane));
                entry.insert((before, after))
            }
        };
        let is_new = after.is_new();
        let part = if is_new { PairState::default() } else { after.part(self.me) };
        change(after);
        let peer = after.peer(self.me);
        let pair = match changes.pairs.get(&peer) {
            Some(pair) => *pair,
            None => self.get(&self.pairs, peer.as_bytes())?.unwrap_or_default(),
        };
        changes.pairs.insert(peer, pair.exchange(part, after.part(self.me)));
        Ok(())
    }

    fn write(
        &self,
        changes: &Changes,
        slots: &[([u8; super::record::SLOT_KEY_BYTES], Vec<u8>)],
        quotes: &[([u8; 32], Vec<u8>)],
        place: Option<Place>,
    ) -> Result<(), ReadError> {
        let reflected = place.map(|place| self.encode(&Reflected { owner: self.me, place })).transpose()?;
        let trees = (&self.meta, &self.slots, &self.lanes, &self.times, &self.pairs, &self.quotes);
        let written = trees.transaction(|(meta_tree, slot_tree, lanes, times, pairs, quote_tree)| {
            for (key, filled) in slots {
                slot_tree.insert(&key[..], filled.as_slice())?;
            }
            for (key, quoted) in quotes {
                quote_tree.insert(&key[..], quoted.as_slice())?;
            }
            for (key, (before, after)) in &changes.lanes {
                let moved = before.as_ref().filter(|before| before.opened() != after.opened());
                if let Some(before) = moved {
                    times.remove(&time_key(before)[..])?;
                }
                if before.is_none() || moved.is_some() {
                    times.insert(&time_key(after)[..], &[][..])?;
                }
                lanes.insert(&key[..], postcard::to_stdvec(after).map_err(abort)?)?;
            }
            for (peer, pair) in &changes.pairs {
                pairs.insert(&peer.as_bytes()[..], postcard::to_stdvec(pair).map_err(abort)?)?;
            }
            if let Some(reflected) = &reflected {
                meta_tree.insert(REFLECTED, reflected.as_slice())?;
            }
            Ok(())
        });
        written.map_err(|error| match error {
            TransactionError::Abort(why) => ReadError { path: self.path.clone(), why },
            TransactionError::Storage(error) => self.failed(&error),
        })
    }

    /// Drops slots whose records are dropped.
    pub(super) fn drop_slots(&self, slots: &[Slot]) -> Result<(), ReadError> {
        let mut batch = sled::Batch::default();
        for slot in slots {
            batch.remove(&slot.key()[..]);
        }
        self.slots.apply_batch(batch).map_err(|error| self.failed(&error))
    }

    /// Calls `visit` for each lane.
    pub(super) fn each_lane<E: From<ReadError>>(
        &self,
        mut visit: impl FnMut(LaneState) -> Result<(), E>,
    ) -> Result<(), E> {
        for entry in &self.lanes {
            let (_, value) = entry.map_err(|error| self.failed(&error))?;
            visit(self.decode(&value)?)?;
        }
        Ok(())
    }

    /// Writes what sled holds in memory to its file, so that the next open reads less again.
    pub(super) fn flush(&self) {
        if let Err(error) = self.db.flush() {
            tracing::warn!(path = %self.path.display(), %error, "the ledger's index was not flushed");
        }
    }

    /// See [`super::Ledger::totals`].
    pub(super) fn totals(&self) -> Result<Totals, ReadError> {
        let mut totals = Totals::default();
        for (_, pair) in self.all_pairs()? {
            totals.owed_to_us += pair.owed_to_us;
            totals.we_owe += pair.we_owe;
            totals.balance += pair.balance();
        }
        Ok(totals)
    }

    /// See [`super::Ledger::pairs`].
    pub(super) fn pairs(&self) -> Result<Vec<PairBalance>, ReadError> {
        let balance = |(peer, pair): (PeerId, PairState)| PairBalance {
            peer,
            balance: pair.balance(),
            lanes: u64::try_from(pair.lanes).unwrap_or(0),
            open: u64::try_from(pair.open).unwrap_or(0),
        };
        Ok(self.all_pairs()?.into_iter().map(balance).collect())
    }

    /// See [`super::Ledger::standing`].
    pub(super) fn standing(&self, peer: PeerId) -> Result<Standing, ReadError> {
        let pair: PairState = self.get(&self.pairs, peer.as_bytes())?.unwrap_or_default();
        // More than the unit holds counts as all it holds: no limit on credit is above that.
        let caps = u64::try_from(pair.open_caps.max(0)).unwrap_or(u64::MAX);
        Ok(Standing { balance: pair.balance(), open_caps: potluck_protocol::unit::NanoCredit::new(caps) })
    }

    /// See [`super::Ledger::has_lane`].
    pub(super) fn has_lane(&self, lane: &LaneId) -> Result<bool, ReadError> {
        self.lanes.contains_key(lane_key(lane)).map_err(|error| self.failed(&error))
    }

    /// See [`super::Ledger::lanes`].
    pub(super) fn lanes(&self, filter: &Filter) -> Result<Vec<LaneSummary>, ReadError> {
        let from = filter.since.unwrap_or_default().get().to_be_bytes();
        let limit = filter.limit.unwrap_or(usize::MAX);
        let mut found = Vec::new();
        for entry in self.times.range(from..).rev() {
            if found.len() >= limit {
                break;
            }
            let (key, _) = entry.map_err(|error| self.failed(&error))?;
            let lane =
                key.get(8..).filter(|lane| lane.len() == LANE_KEY_BYTES).ok_or_else(|| self.broken())?;
            let lane: LaneState = self.get(&self.lanes, lane)?.ok_or_else(|| self.broken())?;
            if filter.peer.is_none_or(|peer| peer == lane.peer(self.me)) {
                found.push(lane.summary(self.me, self.model(&lane)?));
            }
        }
        Ok(found)
    }

    fn model(&self, lane: &LaneState) -> Result<Option<ContentHash>, ReadError> {
        let Some(agreed) = &lane.agreed else { return Ok(None) };
        let quoted: Option<Quoted> = self.get(&self.quotes, agreed.quote.as_bytes())?;
        Ok(quoted.map(|quoted| quoted.model))
    }

    fn all_pairs(&self) -> Result<Vec<(PeerId, PairState)>, ReadError> {
        let mut pairs = Vec::new();
        for entry in &self.pairs {
            let (key, value) = entry.map_err(|error| self.failed(&error))?;
            let peer = <[u8; 32]>::try_from(key.as_ref()).map_err(|_| self.broken())?;
            pairs.push((PeerId::from_bytes(peer), self.decode(&value)?));
        }
        Ok(pairs)
    }

    fn get<T: DeserializeOwned>(&self, tree: &Tree, key: &[u8]) -> Result<Option<T>, ReadError> {
        let found = tree.get(key).map_err(|error| self.failed(&error))?;
        found.map(|bytes| self.decode(&bytes)).transpose()
    }

    fn set<T: Serialize>(&self, key: &[u8], value: &T) -> Result<(), ReadError> {
        let bytes = self.encode(value)?;
        self.meta.insert(key, bytes).map(drop).map_err(|error| self.failed(&error))
    }

    fn encode<T: Serialize>(&self, value: &T) -> Result<Vec<u8>, ReadError> {
        postcard::to_stdvec(value).map_err(|_| self.broken())
    }

    fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, ReadError> {
        postcard::from_bytes(bytes).map_err(|_| self.broken())
    }

    fn failed(&self, error: &sled::Error) -> ReadError {
        ReadError { path: self.path.clone(), why: error.to_string() }
    }

    fn broken(&self) -> ReadError {
        ReadError { path: self.path.clone(), why: "a value in it is broken".to_owned() }
    }
}

/// Newest last, then by lane.
fn time_key(lane: &LaneState) -> [u8; 8 + LANE_KEY_BYTES] {
    let mut key = [0; 8 + LANE_KEY_BYTES];
    key[..8].copy_from_slice(&lane.opened().get().to_be_bytes());
    key[8..].copy_from_slice(&lane_key(&lane.lane));
    key
}

fn abort(error: postcard::Error) -> Conflict {
    ConflictableTransactionError::Abort(error.to_string())
}
