//! Checking a file that somebody gives us, with nothing but the file.
//!
//! Owns: the rows of `verify` and `verify-proof`. Never: opens a state folder, a ledger or a socket.
//! Called by both programs.

use std::path::{Path, PathBuf};

use potluck_protocol::export::audit::{Examiner, Faults, PairReport};
use potluck_protocol::id::PeerId;
use serde::{Deserialize, Serialize};

use super::error::BooksError;
use super::file::{self, PIECE, read_piece};
use super::rows::{ProofLine, number};

/// Pairs whose rows are kept; more are counted.
const MOST_PAIRS: usize = 10_000;

/// What a whole export shows of one peer and its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedPair {
    /// The other than the owner.
    pub peer: PeerId,
    /// Above zero when the peer owes the owner.
    pub balance_nanocredits: i64,
    /// Outside payments by the peer in agreed balances.
    pub settled_nanocredits: u64,
    /// Outside payments by the owner in agreed balances.
    pub paid_nanocredits: u64,
    /// The account's epoch.
    pub epoch: u32,
    /// The step of the last agreed balance.
    pub step: u32,
    /// Agreed balances in the file.
    pub agreed: u64,
    /// Of these, those whose jobs are not all in the file.
    pub agreed_unproven: u64,
    /// Jobs in the file.
    pub lanes: u64,
    /// Of these, those without an end on record.
    pub open: u64,
    /// Of these, those of which compaction left out the middle.
    pub thinned: u64,
    /// Of these, those whose price cannot be checked, because the contract is not in the file.
    pub unproven: u64,
    /// Does the file convict one of the two?
    pub frozen: bool,
    /// Laws broken by what the two signed.
    pub faults: u64,
    /// The first of them, and where.
    pub first_fault: Option<String>,
}

/// What a whole export shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Which file.
    pub file: PathBuf,
    /// Whose ledger.
    pub owner: PeerId,
    /// Only what is between the owner and this peer, when there is one.
    pub peer: Option<PeerId>,
    /// When it was made, by its owner's clock.
    pub made_unix_ms: u64,
    /// Statements in it.
    pub statements: u64,
    /// Proofs in it.
    pub proofs: u64,
    /// Peers in it.
    pub pairs: u64,
    /// What they owe the owner together.
    pub balance_nanocredits: i64,
    /// Laws broken.
    pub faults: u64,
    /// The first of them, and where.
    pub first_fault: Option<String>,
    /// Each peer; of more than 10,000 the first.
    pub each: Vec<VerifiedPair>,
}

/// What a proof proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofChecked {
    /// Which file.
    pub file: PathBuf,
    /// What it proves.
    #[serde(flatten)]
    pub proof: ProofLine,
}

/// Checks everything in the export at `path`: see `SPEC.md`, Export files.
///
/// # Errors
/// When it cannot be read, or is no whole export. A law that is broken in it is no error.
pub fn verify(path: &Path) -> Result<Verified, BooksError> {
    let (mut examiner, mut piece, mut each) = (Examiner::default(), vec![0; PIECE], Vec::new());
    let bad = |source| BooksError::Export { path: path.to_owned(), source };
    let mut file = file::open(path)?;
    loop {
        let read = read_piece(&mut file, &mut piece, path)?;
        if read.is_empty() {
            break;
        }
        let keep = &mut |pair: PairReport| {
            if each.len() < MOST_PAIRS {
                each.push(row(&pair));
            }
        };
        examiner.feed(read, keep).map_err(bad)?;
    }
    let report = examiner.finish().map_err(bad)?;
    Ok(Verified {
        file: path.to_owned(),
        owner: report.header.owner,
        peer: report.header.peer,
        made_unix_ms: report.header.made.get(),
        statements: report.statements,
        proofs: report.proofs,
        pairs: report.pairs,
        balance_nanocredits: number(report.balance),
        faults: report.faults.count,
        first_fault: said(&report.faults),
        each,
    })
}

fn said(faults: &Faults) -> Option<String> {
    faults.first.map(|fault| fault.to_string())
}

fn row(pair: &PairReport) -> VerifiedPair {
    VerifiedPair {
        peer: pair.peer,
        balance_nanocredits: number(pair.balance),
        settled_nanocredits: pair.paid_to_owner.get(),
        paid_nanocredits: pair.paid_by_owner.get(),
        epoch: pair.epoch,
        step: pair.step,
        agreed: pair.agreed,
        agreed_unproven: pair.agreed_unproven,
        lanes: pair.lanes,
        open: pair.open,
        thinned: pair.thinned,
        unproven: pair.unproven,
        frozen: pair.frozen,
        faults: pair.faults.count,
        first_fault: said(&pair.faults),
    }
}

/// Checks the proof at `path`.
///
/// # Errors
/// When it cannot be read, or convicts nobody.
pub fn verify_proof(path: &Path) -> Result<ProofChecked, BooksError> {
    let proof = file::read_proof(path)?;
    proof.verify().map_err(|source| BooksError::Proof { path: path.to_owned(), source })?;
    Ok(ProofChecked { file: path.to_owned(), proof: file::proof_line(&proof)? })
}
