//! The writer: what every append goes through, one group at a time.
//!
//! Owns: group commit (all batches that wait share one sync), the sign-once check, the horizon behind
//! which lanes are retired, and stopping for good after the first failure. Never: reads the network
//! or checks a signature (the front did). Called through a bounded channel by way of a thread, which ends
//! when the last [`super::Ledger`] is dropped, or stays only to refuse after a failure.
//!
//! Whoever comes while nobody else appends may commit its own batch on its own thread
//! ([`Writer::may_serve`] and turn.rs): waking the writer's thread and being woken by it costs as much as
//! the sync itself where the disk is quick.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use potluck_protocol::id::Digest;
use potluck_protocol::sign::Signed;
use tokio::sync::{mpsc, oneshot};

use super::apply::Numbered;
use super::disk::length;
use super::error::{AppendError, ReadError};
use super::fault;
use super::frame::record_bytes;
use super::index::Index;
use super::journal::{Journal, MAX_GROUP_BYTES, Place};
use super::read::{FileId, Spot};
use super::record::{Checked, Kind, Record};
use super::slot::{Slot, SlotKey, lane_key};
use super::turn::{Pace, Turn};
use super::wall_now;

/// After so many records the index is flushed: what a restart after a crash reads again at most.
const FLUSH_EVERY: u64 = 4_096;

/// A group of so many batches is followed by a pause of [`GATHER`], as many are at work then.
const SHARED_BY: usize = 4;
/// For so long batches gather before they are synced together. No voucher is that urgent, and while many
/// lanes run it spares the disk most of its syncs.
const GATHER: Duration = Duration::from_micros(500);

/// One batch, and where its outcome goes.
#[derive(Debug)]
pub(super) struct Batch {
    /// What to keep, unless it is kept already.
    pub(super) records: Vec<Checked>,
    /// All or none? Else each by itself.
    pub(super) whole: bool,
    /// Told once what is kept of the batch is durable.
    pub(super) answer: oneshot::Sender<Result<Vec<Outcome>, AppendError>>,
}

/// What became of a record.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is durable now.
    New,
    /// It was before.
    Known,
    /// Another one fills its slot.
    Taken {
        /// The one that was offered.
        offered: Box<Checked>,
        /// What fills the slot.
        held: Digest,
        /// The one that does, where the index does not know it yet.
        rival: Option<Box<Record>>,
    },
    /// Its lane is put away.
    Retired(Slot),
    /// It agrees to a balance that is not held.
    StateMissing,
}

impl Outcome {
    /// Is the record kept?
    fn is_kept(&self) -> bool {
        matches!(self, Self::New | Self::Known)
    }
}

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Request {
    /// Keep these.
    Keep(Batch),
    /// From now on lanes that ended by this record take nothing more.
    Retire {
        /// The record's number.
        horizon: u64,
        /// Told once it holds.
        answer: oneshot::Sender<Result<(), AppendError>>,
    },
    /// From now on they take again what they can never have held.
    Retired,
}

/// Bytes of the journal that `records` take.
pub(super) fn batch_bytes(records: &[Checked]) -> usize {
    records.iter().map(|it| record_bytes(it.payload.len())).sum()
}

/// What an append works with: held by the thread, or by who commits its own batch.
#[derive(Debug)]
pub(super) struct Writer {
    journal: Journal,
    index: Index,
    pace: Pace,
    horizon: u64,
    /// Are books being put away?
    retiring: bool,
    flushed: u64,
    failed: Option<AppendError>,
    /// Seen by who seals the index.
    has_failed: Arc<AtomicBool>,
    /// Shut while the index lacks what somebody was told of.
    gate: Arc<RwLock<()>>,
    /// Told when a segment is full.
    rolled: SyncSender<()>,
}

impl Writer {
    /// A writer over a journal and an index that reflects all of it, behind the `gate` that whoever asks
    /// the index has to pass; lanes that ended by record `horizon` are retired.
    pub(super) fn new(
        journal: Journal,
        (index, gate): (Index, Arc<RwLock<()>>),
        horizon: u64,
        has_failed: Arc<AtomicBool>,
        rolled: SyncSender<()>,
    ) -> Self {
        let flushed = journal.position().records;
        Self {
            journal,
            index,
            pace: Pace::default(),
            horizon,
            retiring: false,
            flushed,
            failed: None,
            has_failed,
            gate,
            rolled,
        }
    }

    /// The thread's whole life.
    pub(super) fn run(turn: &Turn, mut inbox: mpsc::Receiver<Request>) {
        let (mut held, mut is_busy) = (None, false);
        while let Some(request) = held.take().or_else(|| inbox.blocking_recv()) {
            // Held while batches gather, too: nobody passes those that wait.
            let Some(mut writer) = turn.of_thread() else { return };
            match request {
                Request::Keep(first) => {
                    if is_busy {
                        thread::sleep(GATHER);
                    }
                    let (group, next) = gather(first, &mut inbox);
                    held = next;
                    is_busy = group.len() >= SHARED_BY;
                    writer.commit(group);
                }
                Request::Retire { horizon, answer } => {
                    let outcome = writer.retire(horizon);
                    writer.retiring = outcome.is_ok();
                    tell(answer, outcome);
                }
                Request::Retired => writer.retiring = false,
            }
        }
        if let Some(writer) = turn.of_thread() {
            writer.index.flush();
        }
    }

    /// May a caller that nobody waits beside commit this on its own thread? Not where the disk is slow, a
    /// segment is full, sled is to be given its due, or a balance makes lanes be added up.
    pub(super) fn may_serve(&self, records: &[Checked]) -> bool {
        let after = self.journal.position().records + length(records.len());
        self.pace.is_quick()
            && self.failed.is_none()
            && records.iter().all(|it| it.slot.lane().is_some())
            && self.journal.has_room(batch_bytes(records))
            && after - self.flushed < FLUSH_EVERY
            && self.index.has_room(records.len())
    }

    /// Commits one batch, on the caller's thread; gives what became of it.
    pub(super) fn serve(&mut self, records: Vec<Checked>, whole: bool) -> Result<Vec<Outcome>, AppendError> {
        let mut group = Group::of_size(records.len());
        let outcomes = self.admit(records, whole, &mut group)?;
        let mut told = Ok(());
        self.keep(&group.fresh, |kept| told = kept);
        told.map(|()| outcomes)
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
        let mut group_of = Group::of_size(group.iter().map(|batch| batch.records.len()).sum());
        let mut waiting = Vec::with_capacity(group.len());
        for Batch { records, whole, answer } in group {
            let outcomes = match &self.failed {
                Some(_) => Err(AppendError::Stopped),
                None => self.admit(records, whole, &mut group_of),
            };
            match outcomes {
                Ok(outcomes) => waiting.push((answer, outcomes)),
                Err(error) => tell(answer, Err(error)),
            }
        }
        // A batch that is kept already may wait on one of this very group: all are told together.
        self.keep(&group_of.fresh, |kept| {
            for (answer, outcomes) in waiting {
                tell(answer, kept.clone().map(|()| outcomes));
            }
        });
        self.flush_if_due();
    }

    /// Writes a group, tells those who wait for it, and takes it into the index.
    fn keep(&mut self, fresh: &[Checked], tell: impl FnOnce(Result<(), AppendError>)) {
        fault::point(fault::GROUP_TAKEN);
        let written = if fresh.is_empty() { Ok(None) } else { self.write(fresh).map(Some) };
        if let Err(error) = &written {
            self.fail(error.clone());
        }
        // They go on at once; only who asks the index waits until it knows what they know.
        let gate = self.gate.clone();
        let shut = gate.write().unwrap_or_else(PoisonError::into_inner);
        tell(written.as_ref().map(drop).map_err(Clone::clone));
        fault::point(fault::GROUP_ANSWERED);
        if let Ok(Some(written)) = written {
            if let Err(error) = self.index.apply(written.numbered(fresh), Some(written.place)) {
                self.fail(error.into());
            }
            fault::point(fault::GROUP_INDEXED);
        }
        drop(shut);
    }

    /// Nothing is kept from now on.
    fn fail(&mut self, error: AppendError) {
        tracing::error!(%error, "the ledger stops: nothing more is signed or sent");
        self.has_failed.store(true, Ordering::Relaxed);
        self.failed = Some(error);
    }

    fn flush_if_due(&mut self) {
        let records = self.journal.position().records;
        if self.failed.is_none() && records - self.flushed >= FLUSH_EVERY {
            self.index.flush();
            fault::point(fault::INDEX_FLUSHED);
            self.flushed = records;
        }
    }

    /// Takes in the records of a batch that are not kept yet (invariant I7). Of a batch that goes in whole
    /// or not at all, the first refusal is the only outcome.
    fn admit(
        &self,
        records: Vec<Checked>,
        whole: bool,
        group: &mut Group,
    ) -> Result<Vec<Outcome>, AppendError> {
        let before = group.fresh.len();
        let mut outcomes = Vec::with_capacity(records.len());
        for record in records {
            match self.judge(record, group) {
                Ok(outcome) if outcome.is_kept() || !whole => outcomes.push(outcome),
                refused => {
                    group.forget(before);
                    return Ok(vec![refused?]);
                }
            }
        }
        Ok(outcomes)
    }

    fn judge(&self, record: Checked, group: &mut Group) -> Result<Outcome, ReadError> {
        let held = match group.find(&record.key) {
            Some(rival) => Some((rival.commitment, Some(rival))),
            None if self.index.is_beyond(&record.slot) => None,
            None => self.index.slot(&record.key)?.map(|filled| (filled.commitment, None)),
        };
        Ok(match held {
            // One proof against a signer is as good as another.
            Some((held, _)) if held == record.commitment || record.slot.kind == Kind::Proof => Outcome::Known,
            Some((held, rival)) => {
                let rival = rival.map(|rival| Box::new(rival.record.clone()));
                Outcome::Taken { offered: Box::new(record), held, rival }
            }
            None if self.may_have_gone(&record.slot)? => Outcome::Retired(record.slot),
            None if !self.has_state(&record, group)? => Outcome::StateMissing,
            None => {
                group.take(record);
                Outcome::New
            }
        })
    }

    /// Is it of a lane of which only the outcome is kept, and may it have been there before? While the
    /// books of such a lane are being put away, it takes nothing at all.
    fn may_have_gone(&self, slot: &Slot) -> Result<bool, ReadError> {
        if self.horizon == 0 {
            return Ok(false);
        }
        let Some(lane) = slot.lane().filter(|lane| !self.index.is_running(&lane_key(lane))) else {
            return Ok(false);
        };
        let lane = self.index.lane(&lane)?.filter(|lane| lane.is_put_away(self.horizon));
        Ok(lane.is_some_and(|lane| self.retiring || lane.may_have_held(slot)))
    }

    /// A countersignature is nothing without its state, which is the other side's.
    fn has_state(&self, record: &Checked, group: &Group) -> Result<bool, ReadError> {
        let Record::Countersign(Signed { body, .. }) = &record.record else { return Ok(true) };
        let state =
            body.pair.other(body.by).and_then(|by| Slot::step(body.pair, by, body.epoch, body.n).ok());
        let Some(key) = state.map(|slot| slot.key()) else { return Ok(false) };
        let held = match group.find(&key) {
            Some(state) => Some(state.commitment),
            None => self.index.slot(&key)?.map(|filled| filled.commitment),
        };
        Ok(held == Some(body.state))
    }

    fn write(&mut self, fresh: &[Checked]) -> Result<Written, AppendError> {
        let group = fresh.iter().map(|it| (it.record.kind().number(), it.payload.as_slice()));
        let (segment, first) = (self.journal.segment(), self.journal.position().records + 1);
        let started = Instant::now();
        let (place, starts) = self
            .journal
            .append(group, wall_now())
            .map_err(|source| AppendError::Disk { path: self.journal.path(), source: source.into() })?;
        self.pace.note(started.elapsed());
        if segment != self.journal.segment() {
            // Whoever compacts may be busy, and looks again when it is done.
            let _ = self.rolled.try_send(());
        }
        Ok(Written { place, first, starts })
    }
}

/// Where a group is in the journal.
struct Written {
    /// The place after it.
    place: Place,
    /// The number of its first record.
    first: u64,
    /// Where in the segment each begins.
    starts: Vec<u64>,
}

impl Written {
    /// The records of this group, as the index takes them in.
    fn numbered<'a>(
        &'a self,
        fresh: &'a [Checked],
    ) -> impl Iterator<Item = Numbered<&'a Checked>> + Clone + use<'a> {
        let file = FileId::Segment(self.place.segment);
        (self.first..).zip(&self.starts).zip(fresh).map(move |((number, offset), checked)| {
            let spot = Spot { file, offset: *offset };
            Numbered { number, spot, checked }
        })
    }
}

/// In so few records a slot is found sooner by looking at each.
const FEW: usize = 8;

/// The records that are to be written together.
struct Group {
    fresh: Vec<Checked>,
    /// Where in it each slot's is, once there are more than [`FEW`].
    slots: HashMap<SlotKey, usize>,
}

impl Group {
    /// An empty one, with room for so many records.
    fn of_size(records: usize) -> Self {
        Self { fresh: Vec::with_capacity(records), slots: HashMap::new() }
    }

    fn find(&self, key: &SlotKey) -> Option<&Checked> {
        if self.fresh.len() > FEW {
            self.slots.get(key).and_then(|at| self.fresh.get(*at))
        } else {
            self.fresh.iter().find(|it| it.key == *key)
        }
    }

    fn take(&mut self, record: Checked) {
        self.fresh.push(record);
        if self.fresh.len() > FEW {
            let known = self.slots.len();
            self.slots.extend((known..).zip(&self.fresh[known..]).map(|(at, it)| (it.key, at)));
        }
    }

    /// Gives up all but the first `len`.
    fn forget(&mut self, len: usize) {
        for record in self.fresh.drain(len..) {
            self.slots.remove(&record.key);
        }
        if self.fresh.len() <= FEW {
            self.slots.clear();
        }
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

fn tell<T>(answer: oneshot::Sender<Result<T, AppendError>>, outcome: Result<T, AppendError>) {
    // A caller that no longer waits gave up the outcome, not the record.
    let _ = answer.send(outcome);
}
