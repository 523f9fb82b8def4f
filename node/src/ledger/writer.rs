//! The writer: one thread through which every append goes.
//!
//! Owns: group commit (all batches that wait share one sync), the sign-once check, the horizon behind
//! which lanes are retired, and stopping for good after the first failure. Never: reads the network
//! or checks a signature (the front did). Called through a bounded channel. Ends when the last
//! [`super::Ledger`] is dropped, or stays only to refuse after a failure.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use potluck_protocol::id::Digest;
use tokio::sync::{mpsc, oneshot};

use super::error::AppendError;
use super::fault;
use super::frame::record_bytes;
use super::index::Index;
use super::journal::{Journal, MAX_GROUP_BYTES};
use super::record::{Checked, Keep, Slot};
use super::wall_now;

/// After so many records the index is flushed: what a restart after a crash reads again at most.
const FLUSH_EVERY: u64 = 4_096;

/// One batch, and where its outcome goes.
#[derive(Debug)]
pub(super) struct Batch {
    /// Kept all or none, except what is kept already.
    pub(super) records: Vec<Checked>,
    /// Told once the batch is durable.
    pub(super) answer: oneshot::Sender<Result<(), AppendError>>,
}

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Request {
    /// Keep these.
    Keep(Batch),
    /// From now on lanes that were closed by this record take nothing more.
    Retire {
        /// The record's number.
        horizon: u64,
        /// Told once it holds.
        answer: oneshot::Sender<Result<(), AppendError>>,
    },
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
    horizon: u64,
    flushed: u64,
    failed: Option<AppendError>,
    /// Seen by who seals the index.
    has_failed: Arc<AtomicBool>,
    /// Told when a segment is full.
    rolled: SyncSender<()>,
}

impl Writer {
    /// A writer over a journal and an index that reflects all of it; lanes closed by record `horizon`
    /// are retired.
    pub(super) fn new(
        journal: Journal,
        index: Index,
        horizon: u64,
        has_failed: Arc<AtomicBool>,
        rolled: SyncSender<()>,
    ) -> Self {
        let flushed = journal.position().records;
        Self { journal, index, horizon, flushed, failed: None, has_failed, rolled }
    }

    /// The thread's whole life.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut held = None;
        while let Some(request) = held.take().or_else(|| inbox.blocking_recv()) {
            match request {
                Request::Keep(first) => {
                    let (group, next) = gather(first, &mut inbox);
                    held = next;
                    self.commit(group);
                }
                Request::Retire { horizon, answer } => {
                    let outcome = self.retire(horizon);
                    tell(answer, outcome);
                }
            }
        }
        self.index.flush();
    }

    fn retire(&mut self, horizon: u64) -> Result<(), AppendError> {
        if self.failed.is_some() {
            return Err(AppendError::Stopped);
        }
        if horizon > self.horizon {
            self.index.set_horizon(horizon)?;
            self.horizon = horizon;
        }
        Ok(())
    }

    fn commit(&mut self, group: Vec<Batch>) {
        let mut fresh = Vec::new();
        let mut pending = HashMap::new();
        let mut waiting = Vec::new();
        for Batch { records, answer } in group {
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
        fault::point(fault::GROUP_TAKEN);
        // A batch that is kept already may wait on one of this very group: all are told together.
        let outcome = if fresh.is_empty() { Ok(()) } else { self.write(fresh) };
        if let Err(error) = &outcome {
            tracing::error!(%error, "the ledger stops: nothing more is signed or sent");
            self.has_failed.store(true, Ordering::Relaxed);
            self.failed = Some(error.clone());
        }
        for answer in waiting {
            tell(answer, outcome.clone());
        }
        fault::point(fault::GROUP_ANSWERED);
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
                None => self.index.slot(&record.slot)?.map(|filled| filled.digest),
            };
            match held {
                Some(held) if held == record.digest => {}
                Some(held) => {
                    return Err(AppendError::SlotTaken { kind, lane, k, held, offered: record.digest });
                }
                None if self.is_retired(&record.slot)? => {
                    return Err(AppendError::Retired { kind, lane, k });
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

    /// Is it of a lane of which only the outcome is kept? An empty slot there may have been filled.
    fn is_retired(&self, slot: &Slot) -> Result<bool, AppendError> {
        if self.horizon == 0 || slot.kind.keep() == Keep::Apart {
            return Ok(false);
        }
        Ok(self.index.lane(&slot.lane)?.is_some_and(|lane| lane.is_retired(self.horizon)))
    }

    fn write(&mut self, fresh: Vec<Checked>) -> Result<(), AppendError> {
        let group: Vec<_> = fresh.iter().map(|it| (it.slot.kind.number(), it.payload.as_slice())).collect();
        let (segment, first) = (self.journal.segment(), self.journal.position().records + 1);
        let place = self
            .journal
            .append(&group, wall_now())
            .map_err(|source| AppendError::Disk { path: self.journal.path(), source: source.into() })?;
        let numbered: Vec<_> = (first..).zip(fresh).collect();
        self.index.apply(&numbered, Some(place))?;
        fault::point(fault::GROUP_INDEXED);
        if place.position.records - self.flushed >= FLUSH_EVERY {
            self.index.flush();
            fault::point(fault::INDEX_FLUSHED);
            self.flushed = place.position.records;
        }
        if segment != self.journal.segment() {
            // Whoever compacts may be busy, and looks again when it is done.
            let _ = self.rolled.try_send(());
        }
        Ok(())
    }
}

/// All batches that wait and fit one group with `first`, and what comes after them.
fn gather(first: Batch, inbox: &mut mpsc::Receiver<Request>) -> (Vec<Batch>, Option<Request>) {
    let mut bytes = batch_bytes(&first.records);
    let mut group = vec![first];
    while let Ok(next) = inbox.try_recv() {
        let Request::Keep(batch) = next else { return (group, Some(next)) };
        bytes += batch_bytes(&batch.records);
        if bytes > MAX_GROUP_BYTES {
            return (group, Some(Request::Keep(batch)));
        }
        group.push(batch);
    }
    (group, None)
}

fn tell(answer: oneshot::Sender<Result<(), AppendError>>, outcome: Result<(), AppendError>) {
    // A caller that no longer waits gave up the outcome, not the record.
    let _ = answer.send(outcome);
}
