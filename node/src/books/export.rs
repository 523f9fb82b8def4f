//! Writing a whole ledger to one file.
//!
//! Owns: which of the ledger's objects go into a file. Never: knows the file's form (the protocol does),
//! or leaves half a file. Called by [`super::Books`]; reads the journal once, never the index.

use std::path::{Path, PathBuf};

use potluck_protocol::export::{EXPORT_VERSION, Entry, Header, Writer};
use potluck_protocol::id::{Digest, PeerId};
use potluck_protocol::sign::SigningKey;
use serde::{Deserialize, Serialize};

use super::error::BooksError;
use super::file::{Draft, Replaces};
use super::sort::{RUN_BYTES, Sorter};
use super::wall_now;
use crate::ledger::{Ledger, Record};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Where.
    pub file: PathBuf,
    /// Whose ledger.
    pub owner: PeerId,
    /// Only what is between the owner and this peer, when there is one.
    pub peer: Option<PeerId>,
    /// How many statements and proofs.
    pub entries: u64,
    /// The file's length.
    pub bytes: u64,
    /// The chain that the seal signs: two files with the same one hold the same.
    pub chain: Digest,
}

/// See [`super::Ask::Export`].
pub(super) fn export(
    ledger: &Ledger,
    key: &SigningKey,
    path: &Path,
    peer: Option<PeerId>,
) -> Result<Exported, BooksError> {
    let owner = key.peer();
    let mut draft = Draft::begin(path, Replaces::Export)?;
    let mut sorter = Sorter::new(draft.path(), RUN_BYTES);
    let mut pushed = Ok(());
    ledger.each_object(|record| {
        // The visitor cannot stop the pass; after a failure it only waits for its end.
        if let (Ok(()), Some(entry)) = (&pushed, entry(record, owner, peer)) {
            pushed = sorter.push(&entry);
        }
    })?;
    pushed?;
    let header = Header { version: EXPORT_VERSION, owner, made: wall_now(), peer };
    let (mut writer, bytes) = Writer::begin(&header).map_err(BooksError::Form)?;
    draft.write(&bytes)?;
    sorter.finish(&mut |entry| draft.write(&writer.entry(entry).map_err(BooksError::Form)?))?;
    let (entries, chain) = (writer.entries(), writer.chain());
    draft.write(&writer.seal(key).map_err(BooksError::Form)?)?;
    let bytes = draft.finish()?;
    Ok(Exported { file: path.to_owned(), owner, peer, entries, bytes, chain })
}

/// As a file has it; `None` when it is not asked for.
fn entry(record: Record, owner: PeerId, peer: Option<PeerId>) -> Option<Entry> {
    let statement = match record {
        Record::Proof(proof) => {
            let signer = proof.first.signer();
            let wanted = peer.is_none_or(|peer| [owner, peer].contains(&signer));
            return wanted.then_some(Entry::Proof(proof));
        }
        other => other.statement()?,
    };
    let other = statement.pair()?.other(owner);
    peer.is_none_or(|peer| other == Some(peer)).then_some(Entry::Statement(statement))
}
