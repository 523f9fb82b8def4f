//! The ledger: every signed object between us and our peers, kept durably, and what it adds up to.
//!
//! Owns: the journal (truth), the index (a convenience that is rebuilt from it), sign-once, and the
//! balances. Never: signs, sends, or judges a bill (the laws of a lane are the protocol's). Called
//! by the renter and the provider before they send what they signed, and by whatever shows money.
//! Ends when the last clone of [`Ledger`] is dropped, which waits for the writer thread.
//!
//! ```text
//! append ──check signature──▶ channel ──▶ writer thread: sign-once │ journal, one fdatasync │ index ──▶ durable
//! totals, pairs, lanes, standing ◀───────────────────────────────────────────────────── index
//! ```

mod index;
mod journal;
mod record;
pub mod report;
mod view;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use potluck_protocol::id::{Digest, LaneId, PeerId};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

pub use record::{Kind, Record, RecordError};
pub use view::{Filter, LaneRole, LaneSummary, PairBalance, Standing, Totals};

use index::Index;
use journal::{Journal, MAX_GROUP_BYTES, Position};
use record::Checked;
use writer::{Request, Writer, batch_bytes};

/// Batches that may wait for the writer; beyond it `append` waits before it queues.
const QUEUE: usize = 256;
/// Records that enter the index together when it is brought up to date.
const REBUILD_GROUP: usize = 256;
/// A rebuild that takes longer shows its progress.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);

/// Why a ledger cannot be opened. Fault: this machine's disk, or whoever changed its files.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// The file system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Bytes that had been durable have changed. Nothing was deleted.
    #[error("the ledger is damaged: {} at byte {offset}: {what}; restore the file from a backup", file.display())]
    Damaged {
        /// Which file.
        file: PathBuf,
        /// At which byte.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// A file of the journal is gone.
    #[error("the ledger is damaged: {} is missing; restore it from a backup", file.display())]
    MissingSegment {
        /// Which file.
        file: PathBuf,
    },
    /// It was written by another version.
    #[error("{} has a format that this version does not read; use the version that wrote it", file.display())]
    Version {
        /// Which file.
        file: PathBuf,
    },
    /// It is the ledger of another identity.
    #[error("{} is the ledger of {owner}; this node is {ours}: the key was exchanged", file.display())]
    OtherOwner {
        /// Which file.
        file: PathBuf,
        /// Whose it is.
        owner: PeerId,
        /// Who we are.
        ours: PeerId,
    },
    /// A record is whole but not an object of this ledger.
    #[error("{} at byte {offset} holds what does not belong there: {source}", file.display())]
    BadRecord {
        /// Which file.
        file: PathBuf,
        /// At which byte.
        offset: u64,
        /// What is wrong with it.
        source: RecordError,
    },
    /// The index cannot even be begun anew.
    #[error("cannot write the ledger's index {}: {why}", path.display())]
    Index {
        /// Where.
        path: PathBuf,
        /// sled's reason.
        why: String,
    },
    /// The system gave no thread.
    #[error("cannot start the ledger's writer: {source}")]
    Thread {
        /// The system's reason.
        source: io::Error,
    },
}

/// Why records were not kept. None of the batch was, unless the kind says otherwise.
#[derive(Debug, Clone, Error)]
pub enum AppendError {
    /// Another object fills the slot, for ever. Fault: whoever made two.
    #[error("{kind} {k} of {lane} is already {held}; {offered} is refused for ever")]
    SlotTaken {
        /// Which kind of object.
        kind: Kind,
        /// In which lane (of a quote: its serial).
        lane: LaneId,
        /// Which of its kind.
        k: u32,
        /// The digest kept.
        held: Digest,
        /// The digest refused.
        offered: Digest,
    },
    /// An object is forged, malformed, or not between us and another peer.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// More than one group may take.
    #[error("the batch takes {bytes} bytes; at most {max} are allowed at once")]
    TooLarge {
        /// Its bytes in the journal.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The disk refused; whether the batch is kept shows when the ledger is next opened. The ledger
    /// has stopped. Fault: this machine.
    #[error("cannot write {}: {source}; the ledger has stopped, free the disk and start again", path.display())]
    Disk {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: Arc<io::Error>,
    },
    /// The index failed; a batch that got so far is kept, and the next open rebuilds the index. The
    /// ledger has stopped. Fault: this machine.
    #[error("the ledger has stopped: {0}; start again to rebuild it")]
    Index(#[from] ReadError),
    /// An earlier append failed, so this one was not tried. Fault: this machine.
    #[error("the ledger stopped at an earlier error; start again")]
    Stopped,
}

/// The index could not be read. Fault: this machine's disk; the next open rebuilds it.
#[derive(Debug, Clone, Error)]
#[error("cannot read the ledger's index {}: {why}", path.display())]
pub struct ReadError {
    /// Where it lies.
    pub path: PathBuf,
    /// What happened.
    pub why: String,
}

/// What opening a ledger found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenReport {
    /// Records kept.
    pub records: u64,
    /// Was the index built anew?
    pub rebuilt_index: bool,
    /// Bytes of an unfinished write that were cut; nobody had been told that they were kept.
    pub cut_bytes: u64,
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
    index: Index,
    inbox: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
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
    /// Opens the ledger of `me` in `dir` (made, mode 0700, when missing): checks the journal, cuts an
    /// unfinished tail, and brings the index up to date or builds it anew. Blocks while it reads.
    ///
    /// # Errors
    /// When the journal is damaged or another's, or the disk refuses. Nothing is deleted then.
    pub fn open(dir: &Path, me: PeerId) -> Result<(Self, OpenReport), LedgerError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| LedgerError::Io {
            doing: "create",
            path: dir.to_owned(),
            source,
        })?;
        // The journal first: while it is damaged or another's, the index is not touched.
        let (journal, cut_bytes) = Journal::open(dir, me)?;
        if cut_bytes > 0 {
            tracing::warn!(cut_bytes, "the ledger's last write was unfinished and has been cut");
        }
        let path = dir.join("index");
        let mut index = Index::open(&path, me)?;
        let mut reflected = index.position().unwrap_or_default();
        // The index may stop anywhere on the journal's chain, but must lie on it.
        if !journal.holds(&reflected)? {
            drop(index);
            index = Index::begin(&path, me)?;
            reflected = Position::default();
        }
        let records = journal.position().records;
        let rebuilt_index = records > 0 && reflected.records == 0;
        if rebuilt_index {
            tracing::info!(records, "building the ledger's index anew from the journal");
        }
        catch_up(&journal, &index, me, reflected.records)?;
        let ledger = Self::start(journal, index, me)?;
        Ok((ledger, OpenReport { records, rebuilt_index, cut_bytes }))
    }

    fn start(journal: Journal, index: Index, me: PeerId) -> Result<Self, LedgerError> {
        let (inbox, requests) = mpsc::channel(QUEUE);
        let writer = Writer::new(journal, index.clone());
        let thread = thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || writer.run(requests))
            .map_err(|source| LedgerError::Thread { source })?;
        let shared = Shared { me, index, inbox: Some(inbox), thread: Some(thread) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Keeps `records`, all or none; they are on the disk when this returns. What is kept already
    /// is not kept twice. A caller that stops waiting does not undo it.
    ///
    /// # Errors
    /// When an object is forged, not ours, or fills a slot that another object has; or when the disk
    /// fails, after which every append fails.
    pub async fn append(&self, records: Vec<Record>) -> Result<(), AppendError> {
        let me = self.shared.me;
        let records: Vec<_> = records.into_iter().map(|it| Checked::new(it, me)).collect::<Result<_, _>>()?;
        let bytes = batch_bytes(&records);
        if bytes > MAX_GROUP_BYTES {
            return Err(AppendError::TooLarge { bytes, max: MAX_GROUP_BYTES });
        }
        let inbox = self.shared.inbox.as_ref().ok_or(AppendError::Stopped)?;
        let (answer, outcome) = oneshot::channel();
        inbox.send(Request { records, answer }).await.map_err(|_| AppendError::Stopped)?;
        outcome.await.map_err(|_| AppendError::Stopped)?
    }

    /// What all lanes add up to: the latest voucher of each.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn totals(&self) -> Result<Totals, ReadError> {
        self.shared.index.totals()
    }

    /// The balance with each peer that we ever had a lane with.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn pairs(&self) -> Result<Vec<PairBalance>, ReadError> {
        self.shared.index.pairs()
    }

    /// Lanes that pass `filter`, newest first.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn lanes(&self, filter: &Filter) -> Result<Vec<LaneSummary>, ReadError> {
        self.shared.index.lanes(filter)
    }

    /// Is anything kept of this lane?
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn has_lane(&self, lane: &LaneId) -> Result<bool, ReadError> {
        self.shared.index.has_lane(lane)
    }

    /// Where we stand with `peer`; all zeros for a stranger.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn standing(&self, peer: PeerId) -> Result<Standing, ReadError> {
        self.shared.index.standing(peer)
    }
}

/// Takes the records after the first `skip` into the index, each with its signature checked again.
fn catch_up(journal: &Journal, index: &Index, me: PeerId, skip: u64) -> Result<(), LedgerError> {
    let total = journal.position().records;
    if skip >= total {
        return Ok(());
    }
    let failed = |ReadError { path, why }| LedgerError::Index { path, why };
    let mut progress = Progress { started: Instant::now(), total: total - skip, bar: None };
    let mut group = Vec::with_capacity(REBUILD_GROUP);
    journal.replay(skip, |entry| {
        let checked = Checked::from_journal(entry.kind, entry.payload, me).map_err(|source| {
            LedgerError::BadRecord { file: entry.file.to_owned(), offset: entry.offset, source }
        })?;
        group.push(checked);
        if group.len() == REBUILD_GROUP || entry.position.records == total {
            index.apply(&group, entry.position).map_err(failed)?;
            group.clear();
            progress.show(entry.position.records - skip);
        }
        Ok(())
    })?;
    index.flush();
    Ok(())
}

/// A bar on stderr for a person who waits; none when it is quick.
struct Progress {
    started: Instant,
    total: u64,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn show(&mut self, done: u64) {
        if self.bar.is_none() && self.started.elapsed() > PROGRESS_AFTER {
            let style = ProgressStyle::with_template("ledger index {wide_bar} {pos}/{len} {eta}");
            self.bar = Some(
                ProgressBar::new(self.total)
                    .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())),
            );
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            if done >= self.total {
                bar.finish_and_clear();
            }
        }
    }
}
