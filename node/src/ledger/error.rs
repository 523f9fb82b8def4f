//! Why a ledger cannot be opened, kept, read or made smaller.
//!
//! Owns: one error a way of using it, each saying whose fault it is. Never: decides what follows.
//! Made in this room, shown by both programs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use potluck_protocol::id::{Digest, PeerId};
use potluck_protocol::proof::{Equivocation, ProofError};
use potluck_protocol::sign::SignError;
use potluck_protocol::wire::WireError;
use thiserror::Error;

use super::record::Kind;

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
    /// An object is not what its maker signed: what the journal holds was changed, and all of it anew.
    #[error("object {number} of the ledger is forged: {source}; restore the ledger from a backup")]
    Forged {
        /// Its number in the journal.
        number: u64,
        /// What is wrong with it.
        source: RecordError,
    },
    /// The index says other than the journal. No money is lost: deleting its folder rebuilds it.
    #[error("the ledger's index {} does not agree with the journal: {what}; delete that folder to rebuild it", path.display())]
    Contradiction {
        /// Where the index lies.
        path: PathBuf,
        /// What it says otherwise.
        what: &'static str,
    },
    /// The index cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
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

/// Why an object may not enter this ledger. Fault: whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] SignError),
    /// Not the encoding of such an object.
    #[error(transparent)]
    Encoding(#[from] WireError),
    /// A kind that this version does not know.
    #[error("record kind {number} is unknown to this version")]
    UnknownKind {
        /// Its number.
        number: u8,
    },
    /// Between others, or between us and ourselves.
    #[error("the {kind} is between {one} and {other}; this ledger keeps what is between {me} and others")]
    NotOurs {
        /// Which kind of object.
        kind: Kind,
        /// One of the two.
        one: PeerId,
        /// The other.
        other: PeerId,
        /// Whose ledger this is.
        me: PeerId,
    },
    /// Signed by somebody who has no part in it.
    #[error("{by} signs what is not its own")]
    Stranger {
        /// Who.
        by: PeerId,
    },
    /// A countersignature whose state is not held: whoever has both shows both.
    #[error("a countersignature came without the balance that it agrees to")]
    StateMissing,
    /// The provider gave the number of one quote to another. That breaks no promise: it is bound to both.
    #[error("the provider gave this quote's number to another quote before")]
    SerialTaken,
    /// A proof that proves nothing.
    #[error(transparent)]
    Proof(#[from] ProofError),
}

/// Why records were not kept. None of the batch was, unless the kind says otherwise.
#[derive(Debug, Clone, Error)]
pub enum AppendError {
    /// Another object fills the slot, for ever. Fault: whoever made two.
    #[error("{what} is already {held}; {offered} is refused for ever")]
    SlotTaken {
        /// Which kind of object.
        kind: Kind,
        /// Which of its kind.
        k: u32,
        /// Which slot, in words.
        what: String,
        /// What is kept (of a countersignature: the balance's digest).
        held: Digest,
        /// What is refused.
        offered: Digest,
        /// What the two prove against their signer; none of quotes, which prove nothing.
        proof: Option<Box<Equivocation>>,
    },
    /// An object is forged, malformed, or not between us and another peer.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The lane ended so long ago that the ledger keeps only its outcome, or it is just being put away.
    /// Fault: whoever sends the object this late.
    #[error("{what} comes too late: the job ended long ago and its books are put away")]
    Retired {
        /// Which slot, in words.
        what: String,
    },
    /// Another object fills the slot, and cannot be read for the proof. Fault: this machine.
    #[error("what the ledger holds instead cannot be read: {source}")]
    Unread {
        /// Why.
        source: Arc<LedgerError>,
    },
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

/// Why a ledger was not made smaller. It is as it was, and goes on. Fault: this machine, or the caller.
#[derive(Debug, Error)]
pub enum CompactError {
    /// It is being done already.
    #[error("the ledger is being compacted already")]
    Busy,
    /// The key is another peer's.
    #[error("a checkpoint of {me} cannot be signed by {key}")]
    OtherKey {
        /// Whose ledger it is.
        me: PeerId,
        /// Whose key was given.
        key: PeerId,
    },
    /// The ledger has stopped.
    #[error("the ledger has stopped; start again")]
    Stopped,
    /// The signature failed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The journal cannot be read, or the checkpoint not written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Turns an I/O error into one that says what was tried on which file.
pub(super) fn io_error<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> LedgerError + use<'a> {
    move |source| LedgerError::Io { doing, path: path.to_owned(), source }
}
