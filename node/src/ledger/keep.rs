//! Keeping: the ways in which signed objects enter a ledger.
//!
//! Owns: the check of what is offered, and turning the writer's outcome into what the caller asked for,
//! with the proof where two objects claim one slot. Never: writes (the writer does). Called by the
//! renter and the provider before they send what they signed, and by whoever syncs with a peer.

use std::sync::{Arc, PoisonError};

use potluck_protocol::id::PeerId;
use potluck_protocol::limits::MAX_CONVICTIONS;
use potluck_protocol::proof::Equivocation;
use potluck_protocol::statement::Statement;
use tokio::sync::oneshot;

use super::error::{AppendError, LedgerError, ReadError, RecordError};
use super::index::Table;
use super::journal::MAX_GROUP_BYTES;
use super::read::Reader;
use super::record::{Checked, Record, VerifiedRecord};
use super::writer::{Batch, Outcome, Request, batch_bytes};
use super::{Ledger, wall_now};

/// What became of a statement that was offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It is durable now.
    New,
    /// It was held before.
    Known,
    /// Its signer filled the slot with another one: together they are a proof.
    Conflict(Box<Equivocation>),
    /// It is no statement of this ledger.
    Worthless(RecordError),
    /// Its lane ended so long ago that only the outcome is kept.
    Retired,
}

impl Ledger {
    /// Keeps `records`, all or none; they are on the disk when this returns. What is kept already
    /// is not kept twice. A caller that stops waiting does not undo it.
    ///
    /// # Errors
    /// When an object is forged, not ours, or fills a slot that another object has; or when the disk
    /// fails, after which every append fails.
    pub async fn append(&self, records: Vec<Record>) -> Result<(), AppendError> {
        let me = self.shared.me;
        self.keep_all(records.into_iter().map(|it| Checked::new(it, me)).collect::<Result<_, _>>()?).await
    }

    /// As [`Ledger::append`], for objects that this process signed or verified already.
    ///
    /// # Errors
    /// As [`Ledger::append`]; none is forged.
    pub async fn append_verified(&self, records: Vec<VerifiedRecord>) -> Result<(), AppendError> {
        let me = self.shared.me;
        self.keep_all(records.into_iter().map(|it| Checked::from_verified(it, me)).collect::<Result<_, _>>()?)
            .await
    }

    async fn keep_all(&self, mut records: Vec<Checked>) -> Result<(), AppendError> {
        let now = wall_now();
        for record in &mut records {
            record.heard = Some(now);
        }
        for outcome in self.offer(records, true).await? {
            match outcome {
                Outcome::New | Outcome::Known => {}
                Outcome::Taken { offered, held, rival } => {
                    let proof = self.proof(&offered, rival).unwrap_or_else(|error| {
                        tracing::warn!(%error, "what fills the slot cannot be read");
                        None
                    });
                    return Err(AppendError::SlotTaken {
                        kind: offered.record.kind(),
                        k: offered.slot.k,
                        what: offered.slot.to_string(),
                        held,
                        offered: offered.commitment,
                        proof: proof.map(Box::new),
                    });
                }
                Outcome::Retired(slot) => return Err(AppendError::Retired { what: slot.to_string() }),
                Outcome::StateMissing => return Err(RecordError::StateMissing.into()),
            }
        }
        Ok(())
    }

    /// Keeps statements that came late (by sync or import), each by itself and in order; what is kept is on
    /// the disk when this returns. Gives what became of each. Signatures are checked, except of what is
    /// held already.
    ///
    /// # Errors
    /// When the disk fails, after which every append fails; when there is more than one group may take; or
    /// when the ledger cannot be read. What is forged or not ours is an outcome and no error.
    pub async fn keep_each(&self, statements: Vec<Statement>) -> Result<Vec<Kept>, AppendError> {
        let (mut kept, mut offered) = (Vec::with_capacity(statements.len()), Vec::new());
        for statement in statements {
            kept.push(match self.look_at(Record::from(statement))? {
                Look::Known => Some(Kept::Known),
                Look::Worthless(why) => Some(Kept::Worthless(why)),
                Look::Offer(record) => {
                    offered.push(*record);
                    None
                }
            });
        }
        let mut outcomes = if offered.is_empty() { Vec::new() } else { self.offer(offered, false).await? };
        let mut outcomes = outcomes.drain(..);
        let mut all = Vec::with_capacity(kept.len());
        for kept in kept {
            all.push(match kept {
                Some(kept) => kept,
                None => self.told(outcomes.next().ok_or(AppendError::Stopped)?)?,
            });
        }
        Ok(all)
    }

    fn told(&self, outcome: Outcome) -> Result<Kept, AppendError> {
        Ok(match outcome {
            Outcome::New => Kept::New,
            Outcome::Known => Kept::Known,
            Outcome::Retired(_) => Kept::Retired,
            Outcome::StateMissing => Kept::Worthless(RecordError::StateMissing),
            Outcome::Taken { offered, rival, .. } => {
                let proof = self.proof(&offered, rival);
                match proof.map_err(|error| AppendError::Unread { source: Arc::new(error) })? {
                    Some(proof) => Kept::Conflict(Box::new(proof)),
                    None => Kept::Worthless(RecordError::SerialTaken),
                }
            }
        })
    }

    /// Looks at a record before the writer does, which has no time for signatures.
    fn look_at(&self, record: Record) -> Result<Look, ReadError> {
        let me = self.shared.me;
        // What is held already was checked when it was kept.
        let held = match Checked::unsigned(&record, me) {
            Ok((key, commitment)) => {
                self.shared.index.slot(&key)?.is_some_and(|filled| filled.commitment == commitment)
            }
            Err(why) => return Ok(Look::Worthless(why)),
        };
        if held {
            return Ok(Look::Known);
        }
        Ok(match Checked::new(record, me) {
            Ok(checked) => Look::Offer(Box::new(checked)),
            Err(why) => Look::Worthless(why),
        })
    }

    /// Keeps a proof, about whomever; says whether it was news. At most one a signer is kept, and of those
    /// with whom we have no account at most [`MAX_CONVICTIONS`]; it is on the disk when this returns.
    ///
    /// # Errors
    /// When it proves nothing, or as [`Ledger::append`].
    pub async fn keep_proof(&self, proof: Equivocation) -> Result<bool, AppendError> {
        let signer = proof.first.signer();
        let index = &self.shared.index;
        let is_ours = signer == self.shared.me || index.account(signer)?.is_some();
        if index.has(Table::Proofs, signer.as_bytes())?
            || (!is_ours && self.proofs()?.len() >= MAX_CONVICTIONS)
        {
            return Ok(false);
        }
        let checked = Checked::new(proof.into(), self.shared.me)?;
        let outcomes = self.offer(vec![checked], true).await?;
        Ok(matches!(outcomes.as_slice(), [Outcome::New]))
    }

    /// Every proof that is kept.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn proofs(&self) -> Result<Vec<Equivocation>, ReadError> {
        let index = &self.shared.index;
        index.scan(Table::Proofs, &[]).map(|entry| index.decode(&entry?.1)).collect()
    }

    /// The proof against `peer`, if one is kept.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn proof_against(&self, peer: PeerId) -> Result<Option<Equivocation>, ReadError> {
        self.shared.index.get(Table::Proofs, peer.as_bytes())
    }

    /// What two objects in one slot prove; `None` of quotes, which prove nothing.
    fn proof(
        &self,
        offered: &Checked,
        rival: Option<Box<Record>>,
    ) -> Result<Option<Equivocation>, LedgerError> {
        let held = match rival {
            Some(rival) => Some(*rival),
            None => {
                let _files = self.shared.files.read().unwrap_or_else(PoisonError::into_inner);
                Reader::new(&*self.shared.disk, &self.shared.index).slot(&offered.key)?
            }
        };
        let both = held.as_ref().and_then(Record::statement).zip(offered.record.statement());
        Ok(both.and_then(|(held, offered)| Equivocation::of(held, offered).ok()).map(|(proof, _)| proof))
    }

    async fn offer(&self, records: Vec<Checked>, whole: bool) -> Result<Vec<Outcome>, AppendError> {
        let bytes = batch_bytes(&records);
        if bytes > MAX_GROUP_BYTES {
            return Err(AppendError::TooLarge { bytes, max: MAX_GROUP_BYTES });
        }
        let records = match self.keep_here(records, whole)? {
            Here::Done(outcomes) => return Ok(outcomes),
            Here::Not(records) => records,
        };
        let (answer, outcome) = oneshot::channel();
        let request = Request::Keep(Batch { records, whole, answer });
        self.inbox()?.send(request).await.map_err(|_| AppendError::Stopped)?;
        outcome.await.map_err(|_| AppendError::Stopped)?
    }

    /// Commits a batch on this thread, if that is quick and nobody else is at it or waits.
    fn keep_here(&self, records: Vec<Checked>, whole: bool) -> Result<Here, AppendError> {
        let inbox = self.inbox()?;
        if inbox.capacity() < inbox.max_capacity() {
            return Ok(Here::Not(records));
        }
        match self.shared.turn.of_caller() {
            Some(mut writer) if writer.may_serve(&records) => writer.serve(records, whole).map(Here::Done),
            // Of a writer that is broken, its thread tells.
            _ => Ok(Here::Not(records)),
        }
    }
}

/// Was a batch committed on its caller's thread?
enum Here {
    Done(Vec<Outcome>),
    Not(Vec<Checked>),
}

/// What a first look at a record shows.
enum Look {
    Known,
    Worthless(RecordError),
    Offer(Box<Checked>),
}
