//! The index: answers questions about the journal without reading it again.
//!
//! Owns: the sled trees (slots, lanes, lanes by time, pairs, models of quotes) and the journal
//! position that they reflect. Never: is believed over the journal, which rebuilds it whenever it is
//! missing, old, broken, or from another journal. Called by the writer thread (the only one that
//! writes) and by readers. Ends when its last user drops it; sled flushes then.
//!
//! Tree names carry the schema's version: a change of a value's layout changes the name, and the
//! next open finds no position and rebuilds.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use potluck_protocol::id::{ContentHash, LaneId, PeerId};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sled::transaction::{
    ConflictableTransactionError, TransactionError, Transactional as _, TransactionalTree,
};
use sled::{Db, Tree};

use super::journal::Position;
use super::record::{Checked, LANE_KEY_BYTES, Record, Slot, lane_key};
use super::view::{Filter, LaneState, LaneSummary, PairBalance, PairState, Standing, Totals};
use super::{LedgerError, ReadError};

const POSITION: &[u8] = b"position";
/// sled's page cache, in bytes.
const CACHE_BYTES: u64 = 32 << 20;

/// The journal position that the trees reflect, as the index keeps it.
#[derive(Debug, Serialize, Deserialize)]
struct Reflected {
    owner: PeerId,
    records: u64,
    head: [u8; 32],
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
    models: Tree,
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").field("path", &self.path).finish_non_exhaustive()
    }
}

type Conflict = ConflictableTransactionError<String>;

impl Index {
    /// Opens the index in `path`; an unusable one is deleted and begun anew, empty.
    pub(super) fn open(path: &Path, me: PeerId) -> Result<Self, LedgerError> {
        match Self::try_open(path, me) {
            Ok(index) if index.is_sound() => return Ok(index),
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
                models: tree("models-1")?,
                db,
            })
        }))
        .unwrap_or_else(|_| Err(sled::Error::ReportableBug("sled panicked".to_owned())))
        .map_err(|error| error.to_string())
    }

    /// Does every record have its slot, and do the lanes add up to the pairs? (sled may come back
    /// from damage with some keys missing and no error.)
    fn is_sound(&self) -> bool {
        let sound = || -> Result<bool, ReadError> {
            let records = self.position()?.records;
            if u64::try_from(self.slots.len()) != Ok(records) || self.times.len() != self.lanes.len() {
                return Ok(false);
            }
            let mut pairs = std::collections::BTreeMap::<PeerId, PairState>::new();
            for entry in &self.lanes {
                let lane: LaneState = self.decode(&entry.map_err(|e| self.failed(&e))?.1)?;
                let pair = pairs.entry(lane.peer(self.me)).or_default();
                *pair = pair.exchange(PairState::default(), lane.part(self.me));
            }
            Ok(self.all_pairs()? == pairs.into_iter().collect::<Vec<_>>())
        };
        catch_unwind(AssertUnwindSafe(sound)).is_ok_and(|sound| sound.unwrap_or(false))
    }

    /// The journal position reflected: the beginning for a new index or one of another peer.
    pub(super) fn position(&self) -> Result<Position, ReadError> {
        let Some(reflected) = self.get::<Reflected>(&self.meta, POSITION)? else {
            return Ok(Position::default());
        };
        if reflected.owner != self.me {
            return Err(ReadError { path: self.path.clone(), why: "it belongs to another peer".to_owned() });
        }
        Ok(Position { records: reflected.records, head: reflected.head })
    }

    /// The digest that fills `slot`, if any.
    pub(super) fn slot(&self, slot: &Slot) -> Result<Option<[u8; 32]>, ReadError> {
        let found = self.slots.get(slot.key()).map_err(|error| self.failed(&error))?;
        found.map(|bytes| <[u8; 32]>::try_from(bytes.as_ref()).map_err(|_| self.broken())).transpose()
    }

    /// Takes in a group that the journal holds, all or nothing; `position` is the place after it.
    pub(super) fn apply(&self, group: &[Checked], position: Position) -> Result<(), ReadError> {
        let reflected = Reflected { owner: self.me, records: position.records, head: position.head };
        let trees = (&self.meta, &self.slots, &self.lanes, &self.times, &self.pairs, &self.models);
        trees
            .transaction(|(meta, slots, lanes, times, pairs, models)| {
                for checked in group {
                    slots.insert(&checked.slot.key()[..], &checked.digest.as_bytes()[..])?;
                    if let Record::Quote(quote) = &checked.record {
                        models.insert(&checked.digest.as_bytes()[..], &quote.body.model.as_bytes()[..])?;
                    } else {
                        self.apply_to_lane(checked, lanes, times, pairs)?;
                    }
                }
                put(meta, POSITION, &reflected)
            })
            .map_err(|error| match error {
                TransactionError::Abort(why) => ReadError { path: self.path.clone(), why },
                TransactionError::Storage(error) => self.failed(&error),
            })
    }

    fn apply_to_lane(
        &self,
        checked: &Checked,
        lanes: &TransactionalTree,
        times: &TransactionalTree,
        pairs: &TransactionalTree,
    ) -> Result<(), Conflict> {
        let key = lane_key(&checked.slot.lane);
        let before = take::<LaneState>(lanes, &key)?;
        let mut after = before.clone().unwrap_or_else(|| LaneState::new(checked.slot.lane));
        after.take(checked);
        put(lanes, &key, &after)?;
        if let Some(before) = before.as_ref().filter(|before| before.opened() != after.opened()) {
            times.remove(&time_key(before)[..])?;
        }
        times.insert(&time_key(&after)[..], &[][..])?;
        let peer = after.peer(self.me);
        let pair = take::<PairState>(pairs, peer.as_bytes())?.unwrap_or_default();
        let part = before.map_or_else(PairState::default, |before| before.part(self.me));
        put(pairs, peer.as_bytes(), &pair.exchange(part, after.part(self.me)))
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
        let found = self.models.get(agreed.quote.as_bytes()).map_err(|error| self.failed(&error))?;
        found
            .map(|bytes| <[u8; 32]>::try_from(bytes.as_ref()).map_err(|_| self.broken()))
            .transpose()
            .map(|bytes| bytes.map(ContentHash::from_bytes))
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

fn take<T: DeserializeOwned>(tree: &TransactionalTree, key: &[u8]) -> Result<Option<T>, Conflict> {
    tree.get(key)?.map(|bytes| postcard::from_bytes(&bytes).map_err(abort)).transpose()
}

fn put<T: Serialize>(tree: &TransactionalTree, key: &[u8], value: &T) -> Result<(), Conflict> {
    tree.insert(key, postcard::to_stdvec(value).map_err(abort)?)?;
    Ok(())
}
