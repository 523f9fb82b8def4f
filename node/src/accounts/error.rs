//! What can go wrong with accounts: one enum per operation, each saying whose fault it is.
//!
//! Owns: the errors' types and words, and what to do about each. Never: decides what a program does.
//! Returned by [`super::Accounts`], shown by both programs.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use potluck_protocol::fault::Fault;
use potluck_protocol::id::PeerId;
use potluck_protocol::limits::MAX_REFERENCE_BYTES;
use potluck_protocol::sign::SignError;
use potluck_protocol::wire::WireError;
use thiserror::Error;

use crate::ledger::{AppendError, LedgerError, ReadError};
use crate::net::AskError;

/// Why the file of settlements cannot be used. Fault: this machine, or whoever edited it.
#[derive(Debug, Error)]
pub enum WishError {
    /// The file system refused.
    #[error("cannot {doing} {}: {source}; check that the disk is there and that you may write to it", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is not such a file, or of another version.
    #[error("{} is not a list of settlements: {problem}; move it away, and enter again what it held", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Too many wait already.
    #[error("{limit} settlements wait for an answer already; deny some, or wait")]
    Full {
        /// How many may wait.
        limit: usize,
    },
}

/// Why accounts cannot be opened. Fault: this machine.
#[derive(Debug, Error)]
pub enum AccountsError {
    /// The file of settlements.
    #[error(transparent)]
    Wishes(#[from] WishError),
    /// The ledger.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why our own books failed. Fault: this machine; the ledger says what to do.
#[derive(Debug, Error)]
pub enum BooksError {
    /// The index cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Nothing more is kept.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The journal cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A statement of ours does not fit a frame.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// We cannot sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The file of settlements.
    #[error(transparent)]
    Wishes(#[from] WishError),
}

macro_rules! by_books {
    ($error:ident: $($source:ty),*) => {
        $(impl From<$source> for $error {
            fn from(source: $source) -> Self {
                Self::Books(source.into())
            }
        })*
    };
}

/// Why two ledgers were not brought to the same. Nothing is lost: the next attempt goes on from there.
#[derive(Debug, Error)]
pub enum SyncError {
    /// Nobody owes itself. Fault: the caller.
    #[error("nobody keeps an account with itself")]
    Oneself,
    /// More accounts are in use at once than are kept in memory. Fault: this machine.
    #[error("{limit} accounts are in use already")]
    Full {
        /// How many may be in use.
        limit: usize,
    },
    /// One of the two is convicted. Fault: whoever it is.
    #[error("the account with {peer} is frozen: one of the two signed two different things in one place")]
    Frozen {
        /// With whom.
        peer: PeerId,
    },
    /// The peer was not reached, or gave no answer. Fault: theirs, or the network's in between.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The peer answers no more questions now. Fault: theirs, or ours for asking too fast.
    #[error("{peer} refuses to compare ledgers: {reason}")]
    Refused {
        /// Who.
        peer: PeerId,
        /// In its words.
        reason: String,
    },
    /// The peer's answer breaks the protocol. Fault: theirs.
    #[error("{peer} broke the rules of comparing ledgers: {what}")]
    OffScript {
        /// Who.
        peer: PeerId,
        /// How.
        what: &'static str,
    },
    /// Everything was exchanged and the two still hold different things. Fault: theirs, unless a job
    /// between the two goes on at the same time.
    #[error("the ledgers of {peer} and of this node still differ after {rounds} rounds")]
    Unequal {
        /// Who.
        peer: PeerId,
        /// Rounds made.
        rounds: u32,
    },
    /// The time was over. Fault: theirs, or the network's in between.
    #[error("the ledgers were not compared with {peer} within {:.1} s", within.as_secs_f32())]
    TimedOut {
        /// With whom.
        peer: PeerId,
        /// How long it was tried.
        within: Duration,
    },
    /// Our own books failed.
    #[error("our own books failed: {0}")]
    Books(BooksError),
}

by_books!(SyncError: BooksError, ReadError, AppendError, LedgerError, WireError);

impl SyncError {
    /// Whose fault it is; `peer` names the other side's part.
    #[must_use]
    pub fn fault(&self, peer: Fault) -> Fault {
        match self {
            Self::Oneself | Self::Full { .. } | Self::Books(_) => Fault::Local,
            Self::Ask(AskError::BadRequest { .. } | AskError::TooMany { .. } | AskError::Gone(_)) => {
                Fault::Local
            }
            Self::Ask(AskError::Busy { .. }) => Fault::Nobody,
            Self::Ask(AskError::OtherVersion(version)) if !version.is_theirs() => Fault::Local,
            Self::Ask(AskError::Unreachable { .. } | AskError::TimedOut { .. }) | Self::TimedOut { .. } => {
                Fault::Network
            }
            Self::Ask(AskError::Unsupported { .. } | AskError::Broken { .. } | AskError::OtherVersion(_))
            | Self::Frozen { .. }
            | Self::Refused { .. }
            | Self::OffScript { .. }
            | Self::Unequal { .. } => peer,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Oneself => "name another peer",
            Self::Full { .. } => "try again in a moment",
            Self::Frozen { .. } => "deal with another peer; the ledger keeps the proof",
            Self::Ask(AskError::Unsupported { .. }) | Self::OffScript { .. } => {
                "deal with another peer: this one runs another version, or is not honest"
            }
            Self::Ask(AskError::OtherVersion(version)) if !version.is_theirs() => "upgrade this program",
            Self::Ask(AskError::OtherVersion(_)) => "the peer's owner must upgrade",
            Self::Ask(AskError::Gone(_)) => "start again",
            Self::Ask(_) | Self::Refused { .. } | Self::Unequal { .. } | Self::TimedOut { .. } => {
                "try again later: what was exchanged so far is kept"
            }
            Self::Books(_) => "look after this machine's disk, and start again",
        }
    }
}

/// Why a settlement is not even noted.
#[derive(Debug, Error)]
pub enum SettleError {
    /// Nobody pays itself. Fault: the caller.
    #[error("nobody keeps an account with itself")]
    Oneself,
    /// More accounts are in use at once than are kept in memory. Fault: this machine.
    #[error("{limit} accounts are in use already")]
    Full {
        /// How many may be in use.
        limit: usize,
    },
    /// A payment of nothing. Fault: the caller.
    #[error("the amount of a payment is above zero")]
    NoAmount,
    /// The reference is missing or too long. Fault: the caller.
    #[error("the reference of a payment has 1 to {MAX_REFERENCE_BYTES} bytes, this one {len}")]
    BadReference {
        /// Its bytes.
        len: usize,
    },
    /// Only who is paid can deny a payment. Fault: the caller.
    #[error("a payment of our own is not ours to deny")]
    NotOursToDeny,
    /// There is no such proposal. Fault: the caller.
    #[error("{peer} has proposed no payment of this amount and reference")]
    NothingToDeny {
        /// Who.
        peer: PeerId,
    },
    /// The account is frozen. Fault: whoever is convicted.
    #[error("the account with {peer} is frozen: one of the two signed two different things in one place")]
    Frozen {
        /// With whom.
        peer: PeerId,
    },
    /// Our own books failed.
    #[error("our own books failed: {0}")]
    Books(BooksError),
}

by_books!(SettleError: BooksError, ReadError, WishError);

impl SettleError {
    /// Whose fault it is; `peer` names the other side's part.
    #[must_use]
    pub fn fault(&self, peer: Fault) -> Fault {
        match self {
            Self::Frozen { .. } => peer,
            _ => Fault::Local,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Oneself => "name another peer",
            Self::Full { .. } => "try again in a moment",
            Self::NoAmount => "give the amount that was paid",
            Self::BadReference { .. } => "give a short reference, like an invoice's number",
            Self::NotOursToDeny | Self::NothingToDeny { .. } => "look at what waits in the ledger",
            Self::Frozen { .. } => "settle outside of Potluck; the ledger keeps the proof and the debt",
            Self::Books(_) => "look after this machine's disk, and start again",
        }
    }
}
