//! Compaction: old segments become one checkpoint that keeps what proves the debts.
//!
//! Owns: which segments are old, what of them is kept, and the order of the steps. Never: drops
//! anything of a lane that is open, or that had news within the retention time; or believes the index
//! over the journal. Called by whoever tends the ledger, beside the running writer.
//!
//! Steps, each of which may be the last before a crash:
//!
//! 1. The writer takes no more objects of lanes that ended by the last record of the old segments (the
//!    horizon), until all is done: what is decided of them below stays true. (Afterwards such a lane
//!    takes only what it can never have held: a second end, or what lies beyond its newest.)
//! 2. The draft is written, signed, synced, and read back with every check.
//! 3. It gets its name, and the folder is synced: from here on it counts.
//! 4. The index learns where objects lie now, drops the slots that have gone and rests on the checkpoint. Until that is done, an
//!    open finds that it rests on another and rebuilds it.
//! 5. What it stands for is deleted. What a crash leaves of that is deleted at the next open.
//!
//! The index says which object is a lane's newest. It is not trusted with money for that: the vouchers
//! that were in fact kept must add up, peer by peer, to what the index says the lanes come to.

use std::collections::BTreeMap;
use std::time::Duration;

use potluck_protocol::id::{LaneId, PeerId};
use potluck_protocol::sign::SigningKey;
use potluck_protocol::unit::{NanoCredit, UnixMillis};

use super::account::Part;
use super::apply::Numbered;
use super::check::decode;
use super::checkpoint::{self, Draft, Item};
use super::error::{CompactError, LedgerError, io_error};
use super::fault;
use super::frame::Position;
use super::index::{Base, Filled, Index};
use super::journal::{Found, checkpoint_name};
use super::lane::{LaneState, RetiredLane};
use super::read::{FileId, Spot};
use super::record::{Checked, Record};
use super::slot::{Slot, SlotKey};
use super::view::LaneRole;

/// Slots that leave the index, or move in it, together.
const SLOT_GROUP: usize = 1_024;

/// What compaction may touch, and when it is worth its cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// All objects of a lane are kept so long after its segment was full, however it ended.
    pub keep: Duration,
    /// Nothing is done for less than so many bytes of old segments (nor for less than half of the
    /// checkpoint that would be written again).
    pub worth_bytes: u64,
}

impl Default for Retention {
    /// A month, in which a bill can be disputed with every meter at hand; one full segment.
    fn default() -> Self {
        Self { keep: Duration::from_secs(30 * 24 * 3_600), worth_bytes: 8 << 20 }
    }
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Objects that are in the checkpoint.
    pub kept: u64,
    /// Objects that have gone, this time.
    pub dropped: u64,
    /// Lanes whose outcome alone is kept.
    pub lanes: u64,
    /// Bytes of the files that were replaced.
    pub bytes_before: u64,
    /// Bytes of the checkpoint.
    pub bytes_after: u64,
}

/// Which segments are to be replaced.
#[derive(Debug)]
pub(super) struct Plan {
    found: Found,
    through: u64,
    position: Position,
    bytes: u64,
}

impl Plan {
    /// What is old enough at `now`, and worth it.
    pub(super) fn of(
        found: Found,
        retention: Retention,
        now: UnixMillis,
    ) -> Result<Option<Self>, LedgerError> {
        let keep = u64::try_from(retention.keep.as_millis()).unwrap_or(u64::MAX);
        let Some(cutoff) = now.get().checked_sub(keep) else { return Ok(None) };
        // A segment was full when the next one was made; version 0 does not say when that was.
        let last = found.segments.windows(2).rev().find_map(|pair| {
            let [full, next] = pair else { return None };
            let made = next.header.made.filter(|made| made.get() <= cutoff)?;
            let position = Position { records: next.header.records?, head: next.header.before };
            (made > UnixMillis::ZERO).then_some((full.number, position))
        });
        let Some((through, position)) = last else { return Ok(None) };
        let old = found.segments.iter().filter(|it| it.number <= through).map(|it| it.size).sum::<u64>();
        let base = match &found.base {
            Some((name, _)) => {
                let size = found.disk.open(name).and_then(|file| file.size());
                size.map_err(io_error("read", &found.disk.path(name)))?
            }
            None => 0,
        };
        let is_worth_it = old >= retention.worth_bytes.max(base / 2);
        Ok(is_worth_it.then_some(Self { found, through, position, bytes: old + base }))
    }

    /// The number of the last record that is to be replaced.
    pub(super) fn horizon(&self) -> u64 {
        self.position.records
    }

    /// Writes the checkpoint and gives it its name. The caller has set the horizon.
    pub(super) fn write(
        &self,
        index: &Index,
        key: &SigningKey,
        now: UnixMillis,
    ) -> Result<(Compacted, Base), CompactError> {
        fault::point(fault::COMPACTION_BEGUN);
        let name = checkpoint_name(self.through);
        let disk = &*self.found.disk;
        let written = self.draft(&name, index, key, now);
        if written.is_err() {
            // A leftover is only a nuisance, and the next open deletes it.
            let _ = disk.remove(&format!("{name}.new"));
        }
        let (compacted, base) = written?;
        let draft = format!("{name}.new");
        disk.rename(&draft, &name).map_err(io_error("rename", &disk.path(&draft)))?;
        fault::point(fault::CHECKPOINT_NAMED);
        disk.sync().map_err(io_error("sync", &disk.path("")))?;
        fault::point(fault::CHECKPOINT_DURABLE);
        Ok((compacted, base))
    }

    fn draft(
        &self,
        name: &str,
        index: &Index,
        key: &SigningKey,
        now: UnixMillis,
    ) -> Result<(Compacted, Base), CompactError> {
        let me = self.found.owner;
        let mut sieve = Sieve::new(index, me, self.horizon());
        let mut draft = Draft::begin(&*self.found.disk, name, me, (self.through, self.position), now)?;
        let (mut kept, mut dropped) = (0, 0);
        let mut gone = BTreeMap::new();
        let dropped_before = self.each_item(&mut |item| match item {
            Item::Object(number, _, checked) => {
                if sieve.keeps(&checked)? {
                    kept += 1;
                    draft.object(number, &checked)
                } else {
                    dropped += 1;
                    Ok(())
                }
            }
            Item::Lane(lane) => {
                _ = gone.insert(lane.lane, lane);
                Ok(())
            }
            // What the accounts come to is reckoned anew.
            Item::Pair(..) => Ok(()),
        })?;
        let (pairs, lanes) = self.lanes(index, &sieve, &gone, &mut |lane| draft.lane(lane))?;
        for (peer, part) in pairs {
            draft.pair(peer, part)?;
        }
        let base = Base { through: self.through, dropped: dropped_before + dropped };
        let bytes_after = draft.finish(base.dropped, key)?;
        checkpoint::read(&*self.found.disk, &format!("{name}.new"), me, &mut |_, _| Ok(()))?;
        Ok((Compacted { kept, dropped, lanes, bytes_before: self.bytes, bytes_after }, base))
    }

    /// Calls `visit` for each lane of which objects have gone, now or before; gives what their last
    /// vouchers among what is replaced come to, by peer, and how many lanes they are.
    fn lanes(
        &self,
        index: &Index,
        sieve: &Sieve<'_>,
        gone: &BTreeMap<LaneId, RetiredLane>,
        visit: &mut dyn FnMut(&RetiredLane) -> Result<(), LedgerError>,
    ) -> Result<(BTreeMap<PeerId, Part>, u64), LedgerError> {
        let me = self.found.owner;
        let (mut retired, mut pairs, mut count) = (BTreeMap::<PeerId, Part>::new(), BTreeMap::new(), 0);
        index.each_lane(|lane| {
            let sums = if lane.is_retired(self.horizon()) {
                visit(&lane.retire())?;
                &mut retired
            } else if let Some(gone) = gone.get(&lane.lane) {
                // Something came late, behind what is replaced: what is left of it stays.
                visit(gone)?;
                &mut pairs
            } else {
                return Ok(());
            };
            let part = sums.entry(lane.peer(me)).or_default();
            *part = part.and(sieve.part(&lane));
            count += 1;
            Ok::<_, LedgerError>(())
        })?;
        sieve.adds_up_to(&retired)?;
        for (peer, part) in retired {
            let sum = pairs.entry(peer).or_default();
            *sum = sum.exchange(Part::default(), part);
        }
        Ok((pairs, count))
    }

    /// Lets the index rest on the checkpoint: what is in it lies there now, and the rest has gone.
    pub(super) fn reindex(&self, index: &Index, base: Base) -> Result<(), LedgerError> {
        let Found { disk, owner, .. } = &self.found;
        let file = FileId::Checkpoint(self.through);
        let (mut kept, mut moved) = (Vec::new(), Vec::with_capacity(SLOT_GROUP));
        checkpoint::read(&**disk, &checkpoint_name(self.through), *owner, &mut |item, _| {
            let Item::Object(number, offset, checked) = item else { return Ok(()) };
            kept.push(number);
            let spot = Spot { file, offset };
            moved.push((checked.key, Filled { commitment: checked.commitment, number, spot }));
            if moved.len() >= SLOT_GROUP {
                index.move_slots(&moved, &[])?;
                moved.clear();
            }
            Ok(())
        })?;
        index.move_slots(&moved, &[])?;
        let mut gone: Vec<SlotKey> = Vec::with_capacity(SLOT_GROUP);
        self.each_item(&mut |item| {
            let Item::Object(number, _, checked) = item else { return Ok(()) };
            if kept.binary_search(&number).is_err() {
                gone.push(checked.key);
            }
            if gone.len() >= SLOT_GROUP {
                index.move_slots(&[], &gone)?;
                gone.clear();
            }
            Ok(())
        })?;
        index.move_slots(&[], &gone)?;
        index.set_base(base)?;
        index.flush();
        fault::point(fault::CHECKPOINT_INDEXED);
        Ok(())
    }

    /// Deletes what the checkpoint stands for.
    pub(super) fn sweep(self) -> Result<(), LedgerError> {
        let Self { mut found, through, .. } = self;
        let old = found.segments.iter().filter(|it| it.number <= through).map(|it| it.name.clone());
        let old: Vec<_> = found.base.take().map(|(name, _)| name).into_iter().chain(old).collect();
        for name in old {
            found.disk.remove(&name).map_err(io_error("delete", &found.disk.path(&name)))?;
            fault::point(fault::OLD_FILE_DELETED);
        }
        fault::point(fault::COMPACTION_ENDED);
        Ok(())
    }

    /// All that is to be replaced, objects in order; gives how many had been dropped before.
    fn each_item(&self, visit: &mut dyn FnMut(Item) -> Result<(), LedgerError>) -> Result<u64, LedgerError> {
        let Found { disk, owner, base, .. } = &self.found;
        let mut dropped = 0;
        if let Some((name, _)) = base {
            dropped = checkpoint::read(&**disk, name, *owner, &mut |item, _| visit(item))?.dropped;
        }
        let end = self.found.scan(None, self.horizon(), &mut |entry| {
            let Numbered { number, spot, checked } = decode(entry, *owner)?;
            visit(Item::Object(number, spot.offset, checked))
        })?;
        if end.position != self.position {
            let file = disk.path(&super::journal::segment_name(self.through + 1));
            let what = "it does not continue the segment before it";
            return Err(LedgerError::Damaged { file, offset: 0, what });
        }
        Ok(dropped)
    }
}

/// Decides what is kept, and watches that the index and the journal agree.
struct Sieve<'a> {
    index: &'a Index,
    me: PeerId,
    horizon: u64,
    /// The lane of the object before: objects of a lane lie close together.
    last: Option<LaneState>,
    /// What the last vouchers of retired lanes came to, by peer.
    money: BTreeMap<PeerId, Part>,
    /// The last voucher of each lane that was put away before and has had news since.
    late: BTreeMap<LaneId, (u32, Part)>,
}

impl<'a> Sieve<'a> {
    fn new(index: &'a Index, me: PeerId, horizon: u64) -> Self {
        Self { index, me, horizon, last: None, money: BTreeMap::new(), late: BTreeMap::new() }
    }

    fn contradiction(&self, what: &'static str) -> LedgerError {
        LedgerError::Contradiction { path: self.index.path().to_owned(), what }
    }

    fn lane(&mut self, lane: LaneId) -> Result<LaneState, LedgerError> {
        if let Some(state) = self.last.as_ref().filter(|state| state.lane == lane) {
            return Ok(state.clone());
        }
        let state = self.index.lane(&lane)?.ok_or_else(|| self.contradiction("a job is missing"))?;
        self.last = Some(state.clone());
        Ok(state)
    }

    fn keeps(&mut self, checked: &Checked) -> Result<bool, LedgerError> {
        let Slot { kind, k, .. } = checked.slot;
        let Some(lane) = checked.slot.lane() else { return Ok(true) };
        let state = self.lane(lane)?;
        if !state.is_retired(self.horizon) {
            if let Record::Voucher(voucher) = &checked.record
                && state.put_away
                && self.late.get(&lane).is_none_or(|(newest, _)| k > *newest)
            {
                self.late.insert(lane, (k, self.part_of(&state, voucher.body.amount)));
            }
            return Ok(true);
        }
        let needs = state.needs(kind, &checked.digest);
        if let Record::Voucher(voucher) = &checked.record {
            let newest = state.voucher.as_ref().map_or(0, |latest| latest.k);
            if k > newest || (k == newest && !needs) {
                return Err(self.contradiction("a job's last voucher is another"));
            }
            if needs {
                let part = self.part_of(&state, voucher.body.amount);
                let sum = self.money.entry(state.peer(self.me)).or_default();
                *sum = sum.and(part);
            }
        }
        Ok(needs)
    }

    fn part_of(&self, lane: &LaneState, amount: NanoCredit) -> Part {
        let amount = i128::from(amount.get());
        match lane.role(self.me) {
            LaneRole::Provider => Part { owed_to_us: amount, ..Part::default() },
            LaneRole::Renter => Part { we_owe: amount, ..Part::default() },
        }
    }

    /// What a lane comes to by its last voucher among what is replaced.
    fn part(&self, lane: &LaneState) -> Part {
        if lane.is_retired(self.horizon) {
            return lane.whole_part(self.me);
        }
        let money = self.late.get(&lane.lane).map(|(_, part)| *part).unwrap_or_default();
        Part { owed_to_us: money.owed_to_us, we_owe: money.we_owe, ..lane.whole_part(self.me) }
    }

    /// Do the vouchers that are kept come to what the index says the retired lanes do?
    fn adds_up_to(&self, retired: &BTreeMap<PeerId, Part>) -> Result<(), LedgerError> {
        let money = |parts: &BTreeMap<PeerId, Part>| -> BTreeMap<PeerId, (i128, i128)> {
            let all = parts.iter().map(|(peer, part)| (*peer, (part.owed_to_us, part.we_owe)));
            all.filter(|(_, money)| *money != (0, 0)).collect()
        };
        if money(&self.money) == money(retired) {
            Ok(())
        } else {
            Err(self.contradiction("the balances differ"))
        }
    }
}
