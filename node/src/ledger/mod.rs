//! The ledger: every signed object between us and our peers, kept durably, and what it adds up to.
//!
//! Owns: the journal (truth), the checkpoint that old parts of it become, the index (a convenience that
//! is rebuilt from them), sign-once, and the balances. Never: sends, or judges a bill (the laws of a
//! lane are the protocol's); it signs nothing but its own checkpoints. Called by the renter and the
//! provider before they send what they signed, and by whatever shows money. Ends when the last clone
//! of [`Ledger`] is dropped, which waits for the writer thread.
//!
//! ```text
//! append ──check signature──▶ channel ──▶ writer: sign-once │ journal, one fdatasync ──▶ durable │ index
//!                        └── alone, on a quick disk ──▶┘
//! totals, standing, book, heads ◀────────────────────────────────────────────────────── index
//! objects, statement, beyond ◀── one by one ── checkpoint, segments ◀── where they lie ── index
//! each_object, check ◀───────────── all of ── checkpoint, segments
//! tend ──a segment is full──▶ compaction: old segments ──▶ checkpoint, signed
//! ```

mod account;
mod append;
mod apply;
mod check;
mod checkpoint;
mod compact;
mod disk;
mod error;
mod frame;
mod fresh;
mod index;
mod journal;
mod keep;
mod lane;
mod load;
mod money;
mod page;
mod pairs;
mod read;
mod record;
mod seal;
mod slot;
mod sound;
mod turn;
mod view;
mod writer;

#[cfg(test)]
mod sim_disk;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use potluck_protocol::id::PeerId;
use potluck_protocol::sign::SigningKey;
use potluck_protocol::unit::UnixMillis;
use tokio::sync::{mpsc, oneshot};

pub use check::{Checkup, read_segment};
pub use compact::{Compacted, Retention};
pub use error::{AppendError, CompactError, LedgerError, ReadError, RecordError};
pub use keep::Kept;
pub use load::Progress;
pub use record::{Kind, Record, VerifiedRecord};
pub use view::{Filter, LaneRole, LaneSummary, PairBalance, Totals};

use compact::Plan;
use disk::{Disk, Folder};
use index::Index;
use journal::Found;
use seal::Sealer;
use turn::Turn;
use writer::{Request, Writer};

use crate::fault;

/// Batches that may wait for the writer; beyond it `append` waits before it queues.
const QUEUE: usize = 256;

/// What opening a ledger found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenReport {
    /// Records kept since the beginning, those that a checkpoint dropped among them.
    pub records: u64,
    /// Was the index built anew?
    pub rebuilt_index: bool,
    /// Bytes of an unfinished write that were cut; nobody had been told that they were kept.
    pub cut_bytes: u64,
    /// Bytes of journal that had to be read.
    pub read_bytes: u64,
}

/// The ledger of one identity; clones share it.
#[derive(Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("me", &self.shared.me).finish_non_exhaustive()
    }
}

struct Shared {
    me: PeerId,
    disk: Arc<dyn Disk>,
    index: Index,
    /// The writer is its thread's, or a caller's who commits its own batch while nobody else does.
    turn: Arc<Turn>,
    inbox: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    /// Hears of full segments, until somebody tends the ledger.
    rolled: Mutex<Option<Receiver<()>>>,
    /// Held by who compacts, and by who checks.
    compacting: Mutex<()>,
    /// Held by who reads the journal's files, and against them by who deletes some.
    files: RwLock<()>,
    /// After `index`: seals the files that it has let go of.
    _sealer: Sealer,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Closing the channel ends the thread after what was queued; waiting for it leaves the
        // folder free for the next open.
        self.inbox = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the ledger's writer ended abnormally");
        }
    }
}

impl Ledger {
    /// Opens the ledger of `me` in `dir` (made, mode 0700, when missing): finds the journal's end, cuts
    /// an unfinished tail, and brings the index up to date or builds it anew, which a bar on stderr
    /// shows. Blocks while it reads; with a good index that is only what came after it.
    ///
    /// # Errors
    /// When the journal is damaged or another's, or the disk refuses. Nothing is deleted then.
    pub fn open(dir: &Path, me: PeerId) -> Result<(Self, OpenReport), LedgerError> {
        Self::open_watched(dir, me, &mut load::bar())
    }

    /// As [`Ledger::open`], telling `watch` how far it is.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open_watched(
        dir: &Path,
        me: PeerId,
        watch: &mut dyn FnMut(Progress),
    ) -> Result<(Self, OpenReport), LedgerError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| LedgerError::Io {
            doing: "create",
            path: dir.to_owned(),
            source,
        })?;
        Self::open_on(Arc::new(Folder::new(dir)), &dir.join("index"), me, watch)
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        index: &Path,
        me: PeerId,
        watch: &mut dyn FnMut(Progress),
    ) -> Result<(Self, OpenReport), LedgerError> {
        fault::arm();
        // The journal first: while it is another's or has gaps, the index is not touched.
        let mut found = Found::survey(disk.clone(), me)?;
        let loaded = load::load(&found, index, watch)?;
        found.sweep()?;
        let (end, horizon) = (loaded.end, found.begin().records);
        if end.torn > 0 {
            tracing::warn!(bytes = end.torn, "the ledger's last write was unfinished and is cut");
        }
        let report = OpenReport {
            records: end.position.records,
            rebuilt_index: loaded.rebuilt,
            cut_bytes: disk::length(end.torn),
            read_bytes: loaded.read_bytes,
        };
        let journal = found.into_journal(end, wall_now())?;
        let horizon = horizon.max(loaded.index.horizon());
        loaded.index.set_horizon(horizon)?;
        let failed = Arc::new(AtomicBool::new(false));
        let (roll, rolled) = sync_channel(1);
        let (inbox, requests) = mpsc::channel(QUEUE);
        let gate = Arc::new(RwLock::new(()));
        let index_and_gate = (loaded.index.clone(), gate.clone());
        let writer = Writer::new(journal, index_and_gate, horizon, failed.clone(), roll);
        let turn = Arc::new(Turn::new(writer));
        let serving = turn.clone();
        let thread = thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || Writer::run(&serving, requests))
            .map_err(|source| LedgerError::Thread { source })?;
        let shared = Shared {
            me,
            disk,
            index: loaded.index.behind(gate),
            turn,
            inbox: Some(inbox),
            thread: Some(thread),
            rolled: Mutex::new(Some(rolled)),
            compacting: Mutex::new(()),
            files: RwLock::new(()),
            _sealer: Sealer::new(index, failed),
        };
        Ok((Self { shared: Arc::new(shared) }, report))
    }

    fn inbox(&self) -> Result<&mpsc::Sender<Request>, AppendError> {
        self.shared.inbox.as_ref().ok_or(AppendError::Stopped)
    }

    /// Calls `visit` for every object that is kept, in the order in which they were kept.
    ///
    /// # Errors
    /// When the journal cannot be read, or is damaged.
    pub fn each_object(&self, mut visit: impl FnMut(Record)) -> Result<(), LedgerError> {
        let _files = self.shared.files.read().unwrap_or_else(PoisonError::into_inner);
        let found = Found::survey(self.shared.disk.clone(), self.shared.me)?;
        let until = self.shared.index.place()?.map_or(0, |place| place.position.records);
        check::each(&found, until, &mut |numbered| {
            visit(numbered.checked.record);
            Ok(())
        })
        .map(drop)
    }

    /// Reads all of the journal: every CRC, the whole chain, every signature, the checkpoint's sums; and
    /// whether the index says the same. Changes nothing.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn check(&self) -> Result<Checkup, LedgerError> {
        // Compaction moves slots, one by one.
        let _alone = self.shared.compacting.lock().unwrap_or_else(PoisonError::into_inner);
        let found = Found::survey(self.shared.disk.clone(), self.shared.me)?;
        check::check(&found, &self.shared.index)
    }

    /// Replaces what is old by a checkpoint signed with `key`; `None` when nothing is, or it is not
    /// worth it. Blocks for as long as it takes to read that (never call it from an async task);
    /// appends go on meanwhile. [`Ledger::tend`] calls it when it is due.
    ///
    /// # Errors
    /// When it is being done already, the key is another's, or the disk refuses. The ledger goes on.
    pub fn compact(&self, key: &SigningKey, retention: Retention) -> Result<Option<Compacted>, CompactError> {
        let Shared { me, disk, index, compacting, files, .. } = &*self.shared;
        if key.peer() != *me {
            return Err(CompactError::OtherKey { me: *me, key: key.peer() });
        }
        let _alone = match compacting.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(alone)) => alone.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(CompactError::Busy),
        };
        let Some(plan) = Plan::of(Found::survey(disk.clone(), *me)?, retention, wall_now())? else {
            return Ok(None);
        };
        let (answer, outcome) = oneshot::channel();
        let request = Request::Retire { horizon: plan.horizon(), answer };
        let inbox = self.inbox().map_err(|_| CompactError::Stopped)?;
        inbox.blocking_send(request).map_err(|_| CompactError::Stopped)?;
        outcome.blocking_recv().ok().and_then(Result::ok).ok_or(CompactError::Stopped)?;
        let _retired = Retiring { inbox };
        let (compacted, base) = plan.write(index, key, wall_now())?;
        plan.reindex(index, base)?;
        let _nobody_reads = files.write().unwrap_or_else(PoisonError::into_inner);
        plan.sweep()?;
        tracing::info!(?compacted, "the ledger's old segments became a checkpoint");
        Ok(Some(compacted))
    }

    /// Compacts now and whenever a segment is full, on a thread of its own, until the ledger is
    /// dropped. The second call does nothing.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn tend(&self, key: SigningKey, retention: Retention) -> Result<(), LedgerError> {
        let rolled = self.shared.rolled.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(rolled) = rolled else { return Ok(()) };
        let shared = Arc::downgrade(&self.shared);
        thread::Builder::new()
            .name("ledger-tend".to_owned())
            .spawn(move || tend(&shared, &rolled, &key, retention))
            .map(drop)
            .map_err(|source| LedgerError::Thread { source })
    }
}

/// While it lives, lanes that are put away take nothing.
struct Retiring<'a> {
    inbox: &'a mpsc::Sender<Request>,
}

impl Drop for Retiring<'_> {
    fn drop(&mut self) {
        // A writer that is gone takes nothing anyway.
        let _ = self.inbox.blocking_send(Request::Retired);
    }
}

fn tend(shared: &Weak<Shared>, rolled: &Receiver<()>, key: &SigningKey, retention: Retention) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = (Ledger { shared }).compact(key, retention) {
            tracing::warn!(%error, "the ledger was not compacted");
        }
        // The writer holds the other end, and ends with the ledger.
        if rolled.recv().is_err() {
            return;
        }
    }
}

/// Our wall clock: for the age of segments, and of lanes in which nothing happens.
fn wall_now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
