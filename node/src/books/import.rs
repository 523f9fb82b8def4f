//! Taking an export back in.
//!
//! Owns: the two passes over the file, what became of each entry, and the epochs that a restored ledger
//! raises. Never: keeps anything of a damaged file or of another owner's. Called by both programs'
//! `ledger import`, with the state folder locked.
//!
//! The first pass checks everything and keeps nothing. The second keeps, and stops where the file is not
//! what it was: then what was kept is true, and the rest is missing.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Seek as _;
use std::path::{Path, PathBuf};

use potluck_protocol::export::audit::{Examiner, PairReport};
use potluck_protocol::export::{Entry, Item, Reader};
use potluck_protocol::id::{Digest, PeerId};
use potluck_protocol::proof::Equivocation;
use potluck_protocol::sign::SigningKey;
use potluck_protocol::statement::Statement;
use serde::{Deserialize, Serialize};

use super::error::BooksError;
use super::file::{self, PIECE, io_error, read_piece};
use crate::ledger::{Kept, Ledger};

/// Statements that are kept together.
const GROUP: usize = 256;

/// What became of a file's entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Which file.
    pub file: PathBuf,
    /// Statements that were missing and are kept now.
    pub new: u64,
    /// Statements that were there.
    pub known: u64,
    /// Statements whose signer had filled their place with something else: each is a proof.
    pub conflicting: u64,
    /// Statements that this ledger does not take.
    pub foreign: u64,
    /// Statements of jobs of which only the outcome is kept.
    pub put_away: u64,
    /// Proofs that are news, those of conflicts among them.
    pub proofs: u64,
    /// Peers with whom the epoch was raised, because something that we had signed came back.
    pub epochs_raised: u64,
    /// Laws broken by what the file holds: its signers are to be asked.
    pub faults: u64,
}

/// Takes the export at `path` into `ledger`, whose owner has `key`.
///
/// # Errors
/// When the file is damaged, another owner's, or unreadable: nothing is kept then. When the ledger
/// refuses: what was kept until then stays.
pub fn import(ledger: &Ledger, key: &SigningKey, path: &Path) -> Result<Imported, BooksError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|source| BooksError::Runtime { source })?;
    let mut file = file::open(path)?;
    let (faults, sealed) = check(&mut file, path, key.peer())?;
    file.rewind().map_err(io_error("read", path))?;
    let counts = Imported {
        file: path.to_owned(),
        new: 0,
        known: 0,
        conflicting: 0,
        foreign: 0,
        put_away: 0,
        proofs: 0,
        epochs_raised: 0,
        faults,
    };
    let mut intake = Intake { ledger, me: key.peer(), group: Vec::new(), counts, restored: BTreeSet::new() };
    runtime.block_on(async {
        intake.read(&mut file, path, sealed).await?;
        intake.raise(key).await
    })?;
    Ok(intake.counts)
}

/// Reads the whole file, which must be `me`'s; gives the faults in it and the seal's chain.
fn check(file: &mut File, path: &Path, me: PeerId) -> Result<(u64, Digest), BooksError> {
    let (mut examiner, mut piece) = (Examiner::default(), vec![0; PIECE]);
    let bad = |source| BooksError::Export { path: path.to_owned(), source };
    loop {
        let read = read_piece(file, &mut piece, path)?;
        if read.is_empty() {
            break;
        }
        examiner.feed(read, &mut |_: PairReport| {}).map_err(bad)?;
        // Not the seal's word yet, but nobody seals another's file with this owner's key.
        if let Some(owner) = examiner.header().map(|header| header.owner).filter(|owner| *owner != me) {
            return Err(BooksError::OtherOwner { path: path.to_owned(), owner, ours: me });
        }
    }
    let report = examiner.finish().map_err(bad)?;
    Ok((report.faults.count, report.chain))
}

struct Intake<'a> {
    ledger: &'a Ledger,
    me: PeerId,
    group: Vec<Statement>,
    counts: Imported,
    /// With whom something came back that we had signed.
    restored: BTreeSet<PeerId>,
}

impl Intake<'_> {
    async fn read(&mut self, file: &mut File, path: &Path, sealed: Digest) -> Result<(), BooksError> {
        let exchanged = || BooksError::Exchanged { path: path.to_owned() };
        let (mut reader, mut piece, mut whole) = (Reader::default(), vec![0; PIECE], false);
        loop {
            let read = read_piece(file, &mut piece, path)?;
            if read.is_empty() {
                break;
            }
            reader.feed(read);
            while let Some(item) = reader.next().map_err(|_| exchanged())? {
                match item {
                    Item::Header(_) => {}
                    Item::Entry(_, Entry::Proof(proof)) => self.proof(*proof).await?,
                    Item::Entry(_, Entry::Statement(statement)) => self.statement(statement).await?,
                    Item::Seal(seal) => whole = seal.body().chain == sealed,
                }
            }
        }
        self.keep().await?;
        if whole { Ok(()) } else { Err(exchanged()) }
    }

    async fn proof(&mut self, proof: Equivocation) -> Result<(), BooksError> {
        self.counts.proofs += u64::from(self.ledger.keep_proof(proof).await?);
        Ok(())
    }

    async fn statement(&mut self, statement: Statement) -> Result<(), BooksError> {
        self.group.push(statement);
        if self.group.len() >= GROUP { self.keep().await } else { Ok(()) }
    }

    async fn keep(&mut self) -> Result<(), BooksError> {
        let group = std::mem::take(&mut self.group);
        let ours: Vec<Option<PeerId>> = group
            .iter()
            .map(|it| it.pair().filter(|_| it.signer() == self.me).and_then(|pair| pair.other(self.me)))
            .collect();
        for (kept, ours) in self.ledger.keep_each(group).await?.into_iter().zip(ours) {
            match kept {
                Kept::New => {
                    self.counts.new += 1;
                    self.restored.extend(ours);
                }
                Kept::Known => self.counts.known += 1,
                Kept::Conflict(proof) => {
                    self.counts.conflicting += 1;
                    self.proof(*proof).await?;
                }
                Kept::Worthless(why) => {
                    tracing::info!(%why, "the ledger does not take an imported statement");
                    self.counts.foreign += 1;
                }
                Kept::Retired => self.counts.put_away += 1,
            }
        }
        Ok(())
    }

    /// Who gets back what it had signed may have signed more, after the file was made: with those peers
    /// nothing is signed in the old epoch any more.
    async fn raise(&mut self, key: &SigningKey) -> Result<(), BooksError> {
        for peer in std::mem::take(&mut self.restored) {
            let failed = |why: String| BooksError::Raise { peer, why };
            let Some(raise) = self.ledger.book(peer)?.and_then(|book| book.raise()) else { continue };
            let raise = key.sign(raise).map_err(|error| failed(error.to_string()))?;
            self.ledger.keep_each(vec![raise.into_signed().into()]).await?;
            self.counts.epochs_raised += 1;
        }
        Ok(())
    }
}
