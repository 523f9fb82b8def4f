//! What a ledger says when people ask: rows, explanations, export files.
//!
//! Owns: the questions of the `ledger` verbs, their answers as typed rows, and how these are printed; the
//! JSON is stable (fields are added, never renamed). Never: adds money up (the ledger does), or knows
//! which program asks. Called by both programs' `ledger` verbs, and by the provider's control socket,
//! which carries question and answer as JSON.
//!
//! ```text
//! args ──▶ Ask ──▶ Books (whoever holds the ledger) ──▶ Answer ──▶ print: table, JSON or CSV
//!      └─▶ import, verify, verify-proof: by the asking process itself
//! ```

pub mod args;
mod check;
mod error;
mod explain;
mod export;
mod file;
mod find;
mod import;
pub mod print;
mod rows;
mod show;
mod sort;
mod table;
mod time;

use std::path::{Path, PathBuf};

use potluck_protocol::id::PeerId;
use potluck_protocol::sign::SigningKey;
use potluck_protocol::unit::UnixMillis;
use serde::{Deserialize, Serialize};

pub use check::{ProofChecked, Verified, VerifiedPair, verify, verify_proof};
pub use error::{BooksError, Code, Failed};
pub use explain::{Explanation, Step};
pub use export::Exported;
pub use import::{Imported, import};
pub use rows::{Balance, Checked, Pair, PairLine, ProofLine, ProofWritten, Receipt, Side, Waiting};
pub use show::Object;
pub use time::wall_now;

use crate::identity::{Identity, IdentityError};
use crate::ledger::{Ledger, LedgerError, OpenReport, Progress};
use crate::state::{StateDir, StateError};
use args::{Form, Work};

/// A question to a ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// What peers owe.
    Balance,
    /// The account with each peer.
    Pairs,
    /// The last jobs.
    Receipts(ReceiptsAsk),
    /// Objects by name.
    Show {
        /// A job, or the beginning of a digest.
        id: String,
    },
    /// Why a job costs what it costs.
    Explain {
        /// The job.
        job: String,
    },
    /// Is the journal whole?
    Check,
    /// Who is convicted.
    Proofs,
    /// The proof against one, into a file.
    Proof {
        /// Whom it convicts.
        peer: PeerId,
        /// Where to write it.
        out: PathBuf,
    },
    /// Everything, into a file.
    Export {
        /// Where to write it.
        file: PathBuf,
        /// Only what is between us and this peer.
        peer: Option<PeerId>,
    },
}

/// Which jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptsAsk {
    /// Opened then or later.
    pub since: Option<UnixMillis>,
    /// With this peer.
    pub peer: Option<PeerId>,
    /// This one.
    pub job: Option<String>,
    /// At most so many, the newest.
    pub limit: usize,
}

/// What a ledger says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", content = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Ask::Balance`].
    Balance(Balance),
    /// To [`Ask::Pairs`].
    Pairs(Vec<Pair>),
    /// To [`Ask::Receipts`].
    Receipts(Vec<Receipt>),
    /// To [`Ask::Show`].
    Show(Vec<Object>),
    /// To [`Ask::Explain`].
    Explain(Box<Explanation>),
    /// To [`Ask::Check`].
    Check(Checked),
    /// To [`Ask::Proofs`].
    Proofs(Vec<ProofLine>),
    /// To [`Ask::Proof`].
    Proof(ProofWritten),
    /// To [`Ask::Export`].
    Export(Exported),
    /// Of [`import`].
    Import(Imported),
    /// Of [`verify`].
    Verify(Verified),
    /// Of [`verify_proof`].
    VerifyProof(ProofChecked),
}

impl Answer {
    /// Is everything as it must be? Said after the answer was printed.
    ///
    /// # Errors
    /// When an export is whole and shows broken laws.
    pub fn verdict(&self) -> Result<(), BooksError> {
        match self {
            Self::Verify(Verified { file, faults, first_fault, .. }) if *faults > 0 => {
                let first = first_fault.clone().unwrap_or_default();
                Err(BooksError::Faults { path: file.clone(), count: *faults, first })
            }
            _ => Ok(()),
        }
    }
}

/// A ledger and the key of whose it is.
#[derive(Debug, Clone, Copy)]
pub struct Books<'a> {
    /// The ledger.
    pub ledger: &'a Ledger,
    /// Its owner's key: an export is signed with it.
    pub key: &'a SigningKey,
}

impl Books<'_> {
    /// Answers. Blocks for as long as it takes to read what is asked for; export, check, show by digest,
    /// and pairs read the whole journal.
    ///
    /// # Errors
    /// When the ledger cannot be read, the question names nothing that is there, or a file cannot be
    /// written.
    pub fn answer(&self, ask: &Ask) -> Result<Answer, BooksError> {
        let Self { ledger, key } = *self;
        let me = key.peer();
        Ok(match ask {
            Ask::Balance => Answer::Balance(Balance::of(ledger, me)?),
            Ask::Pairs => Answer::Pairs(rows::pairs(ledger, me, wall_now())?),
            Ask::Receipts(which) => Answer::Receipts(rows::receipts(ledger, which)?),
            Ask::Show { id } => Answer::Show(show::show(ledger, id)?),
            Ask::Explain { job } => Answer::Explain(Box::new(explain::explain(ledger, job)?)),
            Ask::Check => Answer::Check(rows::check(ledger)?),
            Ask::Proofs => Answer::Proofs(rows::proofs(ledger)?),
            Ask::Proof { peer, out } => Answer::Proof(rows::proof(ledger, *peer, out)?),
            Ask::Export { file, peer } => Answer::Export(export::export(ledger, key, file, *peer)?),
        })
    }
}

/// Opens the ledger of `me` in `dir`; a person (`told`) sees how far a rebuild of the index is.
///
/// # Errors
/// As [`Ledger::open`].
pub fn open(dir: &Path, me: PeerId, told: bool) -> Result<(Ledger, OpenReport), LedgerError> {
    if told { Ledger::open(dir, me) } else { Ledger::open_watched(dir, me, &mut |_: Progress| {}) }
}

/// Does `work` in this process, on the ledger in the state folder `dir` where it needs one: nobody else
/// may hold it, and the folder's lock says so.
///
/// # Errors
/// When the folder, the key or the ledger cannot be opened, or the question has no answer.
pub fn work_here<E>(dir: &Path, form: Form, work: Work) -> Result<Answer, E>
where
    E: From<StateError> + From<IdentityError> + From<LedgerError> + From<BooksError>,
{
    let opened = || -> Result<_, E> {
        let state = StateDir::open(dir)?;
        let identity = Identity::load_or_create(&state.key_path())?;
        let (ledger, _) = open(&state.ledger_dir(), identity.peer(), form == Form::Table)?;
        Ok((state, identity, ledger))
    };
    Ok(match work {
        Work::Verify(file) => Answer::Verify(verify(&file)?),
        Work::VerifyProof(file) => Answer::VerifyProof(verify_proof(&file)?),
        Work::Import(file) => {
            let (_locked, identity, ledger) = opened()?;
            Answer::Import(import(&ledger, identity.signing_key(), &file)?)
        }
        Work::Ask(ask) => {
            let (_locked, identity, ledger) = opened()?;
            Books { ledger: &ledger, key: identity.signing_key() }.answer(&ask)?
        }
    })
}
