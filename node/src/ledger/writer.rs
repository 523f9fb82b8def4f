//! The writer: one thread through which every append goes.
//!
//! Owns: group commit (all batches that wait share one sync), the sign-once check, and stopping for
//! good after the first failure. Never: reads the network or checks a signature (the front did).
//! Called through a bounded channel. Ends when the last [`super::Ledger`] is dropped, or stays only
//! to refuse after a failure.

use std::collections::HashMap;

use potluck_protocol::id::Digest;
use tokio::sync::{mpsc, oneshot};

use super::AppendError;
use super::index::Index;
use super::journal::{Journal, MAX_GROUP_BYTES, record_bytes};
use super::record::{Checked, Slot};

/// After so many records the index is flushed: what a restart after a crash reads again at most.
const FLUSH_EVERY: u64 = 4_096;

/// One batch, and where its outcome goes.
#[derive(Debug)]
pub(super) struct Request {
    /// Kept all or none, except what is kept already.
    pub(super) records: Vec<Checked>,
    /// Told once the batch is durable.
    pub(super) answer: oneshot::Sender<Result<(), AppendError>>,
}

/// Bytes of the journal that `records` take.
pub(super) fn batch_bytes(records: &[Checked]) -> usize {
    records.iter().map(|it| record_bytes(it.payload.len())).sum()
}

/// What the thread works with.
#[derive(Debug)]
pub(super) struct Writer {
    journal: Journal,
    index: Index,
    flushed: u64,
    failed: Option<AppendError>,
}

impl Writer {
    /// A writer over a journal and an index that reflects all of it.
    pub(super) fn new(journal: Journal, index: Index) -> Self {
        let flushed = journal.position().records;
        Self { journal, index, flushed, failed: None }
    }

    /// The thread's whole life.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut held = None;
        while let Some(first) = held.take().or_else(|| inbox.blocking_recv()) {
            let mut bytes = batch_bytes(&first.records);
            let mut group = vec![first];
            while let Ok(next) = inbox.try_recv() {
                bytes += batch_bytes(&next.records);
                if bytes > MAX_GROUP_BYTES {
                    held = Some(next);
                    break;
                }
                group.push(next);
            }
            self.commit(group);
        }
        self.index.flush();
    }

    fn commit(&mut self, group: Vec<Request>) {
        let mut fresh = Vec::new();
        let mut pending = HashMap::new();
        let mut waiting = Vec::new();
        for Request { records, answer } in group {
            let admitted = match &self.failed {
                Some(_) => Err(AppendError::Stopped),
                None => self.admit(records, &mut pending),
            };
            match admitted {
                Ok(records) => {
                    fresh.extend(records);
                    waiting.push(answer);
                }
                Err(error) => tell(answer, Err(error)),
            }
        }
        // A batch that is kept already may wait on one of this very group: all are told together.
        let outcome = if fresh.is_empty() { Ok(()) } else { self.write(&fresh) };
        if let Err(error) = &outcome {
            tracing::error!(%error, "the ledger stops: nothing more is signed or sent");
            self.failed = Some(error.clone());
        }
        for answer in waiting {
            tell(answer, outcome.clone());
        }
    }

    /// The records of a batch that are not kept yet; all or none are admitted (invariant I7).
    fn admit(
        &self,
        records: Vec<Checked>,
        pending: &mut HashMap<Slot, Digest>,
    ) -> Result<Vec<Checked>, AppendError> {
        let mut ours: HashMap<Slot, Digest> = HashMap::new();
        let mut fresh = Vec::new();
        for record in records {
            let Slot { kind, lane, k } = record.slot;
            let held = match ours.get(&record.slot).or_else(|| pending.get(&record.slot)) {
                Some(digest) => Some(*digest),
                None => self.index.slot(&record.slot)?.map(Digest::from_bytes),
            };
            match held {
                Some(held) if held == record.digest => {}
                Some(held) => {
                    return Err(AppendError::SlotTaken { kind, lane, k, held, offered: record.digest });
                }
                None => {
                    ours.insert(record.slot, record.digest);
                    fresh.push(record);
                }
            }
        }
        pending.extend(ours);
        Ok(fresh)
    }

    fn write(&mut self, fresh: &[Checked]) -> Result<(), AppendError> {
        let group: Vec<_> = fresh.iter().map(|it| (it.slot.kind.number(), it.payload.as_slice())).collect();
        self.journal.append(&group).map_err(|source| AppendError::Disk {
            path: self.journal.path().to_owned(),
            source: source.into(),
        })?;
        let position = self.journal.position();
        self.index.apply(fresh, position)?;
        if position.records - self.flushed >= FLUSH_EVERY {
            self.index.flush();
            self.flushed = position.records;
        }
        Ok(())
    }
}

fn tell(answer: oneshot::Sender<Result<(), AppendError>>, outcome: Result<(), AppendError>) {
    // A caller that no longer waits gave up the outcome, not the record.
    let _ = answer.send(outcome);
}
