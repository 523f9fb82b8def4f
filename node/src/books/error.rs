//! Why a `ledger` verb fails.
//!
//! Owns: one error for all of them, with a stable code and what helps. Never: prints. Made in this room,
//! wrapped by both programs' own errors.

use std::io;
use std::path::PathBuf;

use potluck_protocol::codec::WireError;
use potluck_protocol::export::ExportError;
use potluck_protocol::id::PeerId;
use potluck_protocol::proof::ProofError;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ledger::{AppendError, LedgerError, ReadError};

/// Why a question is not answered, or a file not written or taken in.
#[derive(Debug, Error)]
pub enum BooksError {
    /// The ledger is damaged or unreadable. Fault: this machine.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The index cannot be read. Fault: this machine.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What was imported cannot be kept. Fault: this machine.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// A name that is none. Fault: whoever asks.
    #[error(
        "`{id}` is neither a job (job_ and up to 16 hexadecimal digits) nor the beginning of a digest (b3: and at least 4)"
    )]
    NotAName {
        /// What was given, cut to 80 characters.
        id: String,
    },
    /// Nothing has that name. Fault: whoever asks.
    #[error("nothing in this ledger is called {id}")]
    NotFound {
        /// What was asked for.
        id: String,
    },
    /// Too much has that name. Fault: whoever asks.
    #[error("{id} names more than one job: {}", jobs.join(", "))]
    Ambiguous {
        /// What was asked for.
        id: String,
        /// Some of what it names.
        jobs: Vec<String>,
    },
    /// There is no proof against that peer.
    #[error("there is no proof against {peer} in this ledger")]
    NoProof {
        /// Who.
        peer: PeerId,
    },
    /// A file cannot be read or written. Fault: this machine, or whoever named it.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Something else than a file has that name. Fault: whoever named it.
    #[error("{} is not a file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// A file of that name is there and is nothing that this verb writes. Fault: whoever named it.
    #[error("{} is there already, and is no {kind} of Potluck; choose another name", path.display())]
    Taken {
        /// Which file.
        path: PathBuf,
        /// What the verb writes.
        kind: &'static str,
    },
    /// The file is no whole export. Fault: whoever made or changed it.
    #[error("{}: {source}", path.display())]
    Export {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: ExportError,
    },
    /// The export is of another ledger. Fault: whoever named it.
    #[error("{} is the ledger of {owner}; this one is {ours}'s", path.display())]
    OtherOwner {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        owner: PeerId,
        /// Whose ledger this is.
        ours: PeerId,
    },
    /// The file was exchanged while it was read. Fault: whoever did that.
    #[error("{} changed while it was read; what was kept of it is true, the rest is missing", path.display())]
    Exchanged {
        /// Which file.
        path: PathBuf,
    },
    /// The file holds no proof, or one that proves nothing. Fault: whoever made or changed it.
    #[error("{} is no proof: {source}", path.display())]
    Proof {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: ProofError,
    },
    /// The file is no proof of Potluck. Fault: whoever named it.
    #[error("{} is no proof: {source}", path.display())]
    ProofBytes {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: WireError,
    },
    /// The file is whole, and shows that somebody broke a law. Fault: whoever signed that.
    #[error("{} is whole, and {count} laws are broken by what was signed; the first: {first}", path.display())]
    Faults {
        /// Which file.
        path: PathBuf,
        /// How many.
        count: u64,
        /// The first, and where.
        first: String,
    },
    /// What the ledger holds cannot be written down. Fault: ours.
    #[error("what the ledger holds cannot be written: {0}")]
    Encoding(WireError),
    /// The export cannot be formed. Fault: ours, or the ledger holds a place twice.
    #[error("the ledger cannot be exported: {0}")]
    Form(ExportError),
    /// An epoch cannot be raised after an import. Fault: ours.
    #[error("the epoch with {peer} cannot be raised: {why}")]
    Raise {
        /// With whom.
        peer: PeerId,
        /// Why.
        why: String,
    },
    /// The runtime cannot be started. Fault: this machine.
    #[error("the runtime cannot start: {source}")]
    Runtime {
        /// The system's reason.
        source: io::Error,
    },
}

/// The kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The ledger is damaged, or cannot be read or written.
    Ledger,
    /// A name that is none, or of many.
    Usage,
    /// Nothing of that name is there.
    NotFound,
    /// The file that was named is not one to read or write.
    File,
    /// The disk or its permissions refuse.
    Disk,
    /// The file is no whole export.
    BadExport,
    /// The export is of another ledger.
    OtherOwner,
    /// The export shows broken laws.
    Faults,
    /// The file proves nothing.
    BadProof,
    /// A bug or an exhausted machine.
    Internal,
}

impl Code {
    /// Its stable name, as in `--json`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ledger => "ledger",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::File => "file",
            Self::Disk => "disk",
            Self::BadExport => "bad_export",
            Self::OtherOwner => "other_owner",
            Self::Faults => "faults",
            Self::BadProof => "bad_proof",
            Self::Internal => "internal",
        }
    }

    /// The exit status: 1 what was asked for is not there or not as it must be, 2 usage, 5 this machine.
    #[must_use]
    pub fn exit(self) -> u8 {
        match self {
            Self::Usage | Self::File => 2,
            Self::Ledger | Self::Disk => 5,
            Self::NotFound
            | Self::BadExport
            | Self::OtherOwner
            | Self::Faults
            | Self::BadProof
            | Self::Internal => 1,
        }
    }
}

/// A failure as it crosses to the process that asked.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failed {
    /// Its kind.
    pub code: Code,
    /// What happened.
    pub message: String,
    /// What helps.
    pub hint: String,
}

impl From<BooksError> for Failed {
    fn from(error: BooksError) -> Self {
        Self { code: error.code(), message: error.to_string(), hint: error.hint().to_owned() }
    }
}

impl BooksError {
    /// Its kind.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Ledger(_) | Self::Read(_) | Self::Append(_) => Code::Ledger,
            Self::NotAName { .. } | Self::Ambiguous { .. } => Code::Usage,
            Self::NotFound { .. } | Self::NoProof { .. } => Code::NotFound,
            Self::NotAFile { .. } | Self::Taken { .. } => Code::File,
            Self::Io { .. } => Code::Disk,
            Self::Export { .. } | Self::Exchanged { .. } => Code::BadExport,
            Self::OtherOwner { .. } => Code::OtherOwner,
            Self::Faults { .. } => Code::Faults,
            Self::Proof { .. } | Self::ProofBytes { .. } => Code::BadProof,
            Self::Encoding(_) | Self::Form(_) | Self::Raise { .. } | Self::Runtime { .. } => Code::Internal,
        }
    }

    /// What helps.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Ledger(_) | Self::Read(_) | Self::Append(_) => {
                "nothing more will be signed until this is mended"
            }
            Self::NotAName { .. } | Self::NotFound { .. } => "`ledger receipts` lists the jobs",
            Self::Ambiguous { .. } => "give more digits",
            Self::NoProof { .. } => "`ledger proofs` lists them",
            Self::Io { .. } => {
                "nothing half-done is left; check the path, the permissions and the disk's room"
            }
            Self::NotAFile { .. } | Self::Taken { .. } => "nothing was changed; name another file",
            Self::Export { .. } => "nothing of it is to be believed; get the file again from its owner",
            Self::Exchanged { .. } => "import it again",
            Self::OtherOwner { .. } => {
                "nothing was changed; an export goes back only to its own identity. `ledger verify` reads any"
            }
            Self::Proof { .. } | Self::ProofBytes { .. } => "it convicts nobody",
            Self::Faults { .. } => "the balances stand by their signatures; ask whoever signed that",
            Self::Encoding(_) | Self::Form(_) | Self::Raise { .. } => "run `ledger check`",
            Self::Runtime { .. } => "nothing was changed",
        }
    }
}
