//! What a ledger holds of a pair: its book, the heads of its lanes, and single statements.
//!
//! Owns: the answers that the law of a pair works with, from the index and, object by object, from the
//! journal. Never: judges a statement, or sends one. Called by whoever syncs and settles with a peer.

use std::ops::ControlFlow;
use std::sync::PoisonError;

use potluck_protocol::balance::{Fold, PairId};
use potluck_protocol::id::{LaneId, PeerId};
use potluck_protocol::life::{LaneFacts, LastWord};
use potluck_protocol::limits::LANE_LIFE_MS;
use potluck_protocol::pair::PairBook;
use potluck_protocol::statement::{self, Statement};
use potluck_protocol::sync::LaneHead;
use potluck_protocol::unit::UnixMillis;
use potluck_protocol::wire::WireError;

use super::account::book_of;
use super::error::{LedgerError, ReadError};
use super::index::{Filled, Index, Table};
use super::lane::LaneState;
use super::read::Reader;
use super::record::{Kind, Record};
use super::slot::{LANE_KEY_BYTES, Slot, Subject, lane_key, side};
use super::{Ledger, wall_now};

/// What the keys of the lanes between two peers begin with, in one direction.
type LanePrefix = [u8; 64];

impl Ledger {
    /// Everybody that we have an account with, or ever proposed one to.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn peers(&self) -> Result<Vec<PeerId>, ReadError> {
        Ok(self.shared.index.accounts()?.into_iter().map(|(peer, _)| peer).collect())
    }

    /// The account with `peer` as the statements that are kept make it: frozen when one of us two is
    /// convicted, and else not synced. `None` with oneself.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn book(&self, peer: PeerId) -> Result<Option<PairBook>, ReadError> {
        let me = self.shared.me;
        let Some(mut book) = book_of(me, peer, &self.shared.index.statements(peer)?) else { return Ok(None) };
        for peer in [peer, me] {
            if let Some(conviction) = self.proof_against(peer)?.and_then(|proof| proof.verify().ok()) {
                book.convicted(&conviction);
            }
        }
        Ok(Some(book))
    }

    /// Is one of the two convicted?
    pub(super) fn is_frozen(&self, peer: PeerId) -> Result<bool, ReadError> {
        let index = &self.shared.index;
        Ok(index.has(Table::Proofs, peer.as_bytes())? || index.has(Table::Proofs, index.me.as_bytes())?)
    }

    /// One page of the lanes with `peer` that a sync compares, in rising order: at most `most` after
    /// `after`, and whether more follow. Lanes that the agreed state took in, and contracts of which the
    /// other side has shown nothing, are not among them.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn heads(
        &self,
        peer: PeerId,
        after: Option<LaneId>,
        most: usize,
    ) -> Result<(Vec<LaneHead>, bool), ReadError> {
        let mut heads = Vec::new();
        let mut more = false;
        self.shared.index.each_listed(peer, after, &mut |lane| {
            if heads.len() == most {
                more = true;
                return Ok(ControlFlow::Break(()));
            }
            heads.push(lane.head());
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((heads, more))
    }

    /// Calls `visit` for each head that [`Ledger::heads`] gives, for the digest of all of them.
    ///
    /// # Errors
    /// When the index cannot be read, or `visit` fails.
    pub fn each_head(
        &self,
        peer: PeerId,
        visit: &mut dyn FnMut(&LaneHead) -> Result<(), WireError>,
    ) -> Result<(), ReadError> {
        let index = &self.shared.index;
        index.each_listed(peer, None, &mut |lane| {
            visit(&lane.head()).map_err(|error| index.read_error(error.to_string()))?;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// What is held of lanes with `peer` beyond `heads`: at most `most` statements, those of a lane in the
    /// order in which they were kept, and whether there are more. Reads those statements only.
    ///
    /// # Errors
    /// When the index or the journal cannot be read.
    pub fn beyond(
        &self,
        peer: PeerId,
        heads: &[LaneHead],
        most: usize,
    ) -> Result<(Vec<Statement>, bool), LedgerError> {
        let Some(pair) = PairId::of(self.shared.me, peer) else { return Ok((Vec::new(), false)) };
        let _files = self.shared.files.read().unwrap_or_else(PoisonError::into_inner);
        let index = &self.shared.index;
        let mut reader = Reader::new(&*self.shared.disk, index);
        let mut found = Vec::new();
        for head in heads.iter().filter(|it| PairId::of(it.lane.renter, it.lane.provider) == Some(pair)) {
            let mut slots = index.slots_of(&Subject::Lane(head.lane))?;
            slots.retain(|((kind, k), _)| {
                Kind::from_number(*kind).is_some_and(|kind| may_lack(head, kind, *k))
            });
            slots.sort_unstable_by_key(|(_, filled)| filled.number);
            for (_, filled) in slots {
                let statement = reader.record(&filled)?.statement();
                let Some(statement) = statement.filter(|statement| head.lacks(statement)) else { continue };
                if found.len() == most {
                    return Ok((found, true));
                }
                found.push(statement);
            }
        }
        Ok((found, false))
    }

    /// The lanes that a balance with this floor takes in.
    ///
    /// # Errors
    /// When the index cannot be read, `peer` is oneself, or there are more than 2^32 lanes.
    pub fn fold(&self, peer: PeerId, floor: UnixMillis) -> Result<Fold, ReadError> {
        let index = &self.shared.index;
        let pair = PairId::of(index.me, peer)
            .ok_or_else(|| index.read_error("there is no account with oneself".to_owned()))?;
        let mut fold = Fold::new(pair, floor);
        index.each_current(peer, None, &mut |lane| {
            if let Some(folded) = lane.folded().filter(|_| lane.opened() < floor) {
                fold.add(&folded).map_err(|error| index.read_error(error.to_string()))?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(fold)
    }

    /// When the contract of the oldest lane with `peer` was created that is open at `now`.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn oldest_open(&self, peer: PeerId, now: UnixMillis) -> Result<Option<UnixMillis>, ReadError> {
        let index = &self.shared.index;
        let (floor, mut oldest) = (index.floor(peer)?, None::<UnixMillis>);
        index.each_open_with(peer, &mut |lane| {
            let opened = lane.opened();
            if lane.is_listed() && opened >= floor && lane.facts().state(now).is_open() {
                oldest = Some(oldest.map_or(opened, |oldest| oldest.min(opened)));
            }
            Ok(())
        })?;
        Ok(oldest)
    }

    /// What the law of its life needs of a lane; `None` when nothing is held of it.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn lane_facts(&self, lane: &LaneId) -> Result<Option<LaneFacts>, ReadError> {
        Ok(self.shared.index.lane(lane)?.map(|lane| lane.facts()))
    }

    /// Lanes that are more than a contract and that nobody closed or abandoned: with `peer`, or all.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn open_lanes(&self, peer: Option<PeerId>) -> Result<Vec<LaneId>, ReadError> {
        let mut lanes = Vec::new();
        let mut note = |lane: &LaneState| {
            if lane.is_listed() {
                lanes.push(lane.lane);
            }
            Ok(())
        };
        match peer {
            Some(peer) => self.shared.index.each_open_with(peer, &mut note)?,
            None => self.shared.index.each_open(&mut note)?,
        }
        Ok(lanes)
    }

    /// The statement in a slot, if one is kept. Reads that statement only.
    ///
    /// # Errors
    /// When the index or the journal cannot be read.
    pub fn statement(&self, slot: &statement::Slot) -> Result<Option<Statement>, LedgerError> {
        let Some(slot) = Slot::of(slot) else { return Ok(None) };
        let _files = self.shared.files.read().unwrap_or_else(PoisonError::into_inner);
        let record = Reader::new(&*self.shared.disk, &self.shared.index).slot(&slot.key())?;
        Ok(record.as_ref().and_then(Record::statement))
    }

    /// The last voucher of a lane, or its contract while there is none; `None` without either.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn last_word(&self, lane: &LaneId) -> Result<Option<LastWord>, ReadError> {
        Ok(self.shared.index.lane(lane)?.and_then(|lane| lane.last_word()))
    }

    /// What we signed and `peer` has not confirmed, to fill an outbox after a start: last vouchers without
    /// their receipts, ends of the last day that the other side has not ended too, and our proposals and
    /// epoch. (What else it may lack, the sync after a start shows.)
    ///
    /// # Errors
    /// When the index or the journal cannot be read.
    pub fn unconfirmed(&self, peer: PeerId) -> Result<Vec<Statement>, LedgerError> {
        let (me, index) = (self.shared.me, &self.shared.index);
        let since = wall_now().saturating_sub(UnixMillis::new(LANE_LIFE_MS));
        let mut slots = Vec::new();
        index.each_current(peer, None, &mut |lane| {
            let head = lane.head();
            let mut add = |kind, k| slots.push(Slot { kind, subject: Subject::Lane(lane.lane), k });
            if lane.lane.renter == me && head.voucher > head.receipt {
                add(Kind::Voucher, head.voucher);
            }
            let ours = side(&lane.lane, me).unwrap_or(0);
            let (our_ends, their_ends) = (0b0101 << ours, 0b1010 >> ours);
            if head.ends & their_ends == 0 && head.ends & our_ends != 0 && lane.last_activity >= since {
                add(Kind::Close, ours);
                add(Kind::Abandon, ours);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let _files = self.shared.files.read().unwrap_or_else(PoisonError::into_inner);
        let mut reader = Reader::new(&*self.shared.disk, index);
        let mut found = Vec::with_capacity(slots.len());
        for slot in slots {
            found.extend(reader.slot(&slot.key())?.as_ref().and_then(Record::statement));
        }
        let Some(book) = book_of(me, peer, &index.statements(peer)?) else { return Ok(found) };
        let waits = |it: &Statement| match it {
            Statement::State(it) => it.body.by == me && it.body.n > book.head().n,
            Statement::Raise(it) => it.body.by == me && it.body.epoch == book.epoch(),
            _ => false,
        };
        found.extend(book.statements().into_iter().filter(waits));
        Ok(found)
    }

    /// The objects of a lane and the quote that it rests on, in the order in which they were kept; of a
    /// retired lane those that prove its outcome. Reads those objects only.
    ///
    /// # Errors
    /// When the index or the journal cannot be read.
    pub fn objects(&self, lane: &LaneId) -> Result<Vec<Record>, LedgerError> {
        let _files = self.shared.files.read().unwrap_or_else(PoisonError::into_inner);
        let index = &self.shared.index;
        let mut reader = Reader::new(&*self.shared.disk, index);
        index.filled(lane)?.iter().map(|filled| reader.record(filled)).collect()
    }
}

/// May an object of this kind and number lie beyond `head`?
fn may_lack(head: &LaneHead, kind: Kind, k: u32) -> bool {
    match kind {
        Kind::Contract => !head.contract,
        Kind::Accept => !head.accept,
        Kind::Meter => k > head.meter,
        Kind::Voucher => k > head.voucher,
        Kind::Receipt => k > head.receipt,
        Kind::Close => head.ends & (1 << k) == 0,
        Kind::Abandon => head.ends & (4 << k) == 0,
        _ => false,
    }
}

impl Index {
    /// Before when lanes with `peer` are in the agreed balance.
    fn floor(&self, peer: PeerId) -> Result<UnixMillis, ReadError> {
        Ok(self.account(peer)?.map(|account| account.floor).unwrap_or_default())
    }

    /// What lanes with `peer` begin with, in rising order.
    pub(super) fn lane_prefixes(&self, peer: PeerId) -> [LanePrefix; 2] {
        let prefix = |renter: PeerId, provider: PeerId| {
            let mut prefix = [0; 64];
            prefix[..32].copy_from_slice(renter.as_bytes());
            prefix[32..].copy_from_slice(provider.as_bytes());
            prefix
        };
        let mut both = [prefix(self.me, peer), prefix(peer, self.me)];
        both.sort_unstable();
        both
    }

    /// Calls `visit` for each lane with `peer` after `after` that `table` lists, in rising order, until it
    /// breaks.
    pub(super) fn each_lane_with(
        &self,
        peer: PeerId,
        table: Table,
        after: Option<LaneId>,
        visit: &mut dyn FnMut(&LaneState) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        let after = after.map(|after| lane_key(&after));
        for prefix in self.lane_prefixes(peer) {
            let mut first = [0; LANE_KEY_BYTES];
            first[..prefix.len()].copy_from_slice(&prefix);
            let first = after.map_or(first, |after| after.max(first));
            for entry in self.scan_from(table, &first) {
                let (key, _) = entry?;
                if !key.starts_with(&prefix) {
                    break;
                }
                let is_next = after.is_none_or(|after| key.as_ref() > after.as_slice());
                if is_next
                    && let Some(lane) = self.lane_at(&key)?
                    && visit(&lane)?.is_break()
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// As [`Index::each_lane_with`], of lanes that no agreed balance has taken in.
    fn each_current(
        &self,
        peer: PeerId,
        after: Option<LaneId>,
        visit: &mut dyn FnMut(&LaneState) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        self.each_lane_with(peer, Table::Current, after, visit)
    }

    /// As [`Index::each_current`], of lanes that a sync compares.
    fn each_listed(
        &self,
        peer: PeerId,
        after: Option<LaneId>,
        visit: &mut dyn FnMut(&LaneState) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        self.each_current(peer, after, &mut |lane| {
            if lane.is_listed() { visit(lane) } else { Ok(ControlFlow::Continue(())) }
        })
    }

    /// What fills the slots of a lane, its quote's among them, in the journal's order.
    fn filled(&self, lane: &LaneId) -> Result<Vec<Filled>, ReadError> {
        let slots = self.slots_of(&Subject::Lane(*lane))?;
        let is_of_lane = |kind: u8| kind != Kind::Quote.number();
        let mut all: Vec<_> =
            slots.into_iter().filter(|((kind, _), _)| is_of_lane(*kind)).map(|(_, filled)| filled).collect();
        if let Some(agreed) = self.lane(lane)?.and_then(|lane| lane.agreed)
            && let Some(quoted) = self.quoted(&agreed.quote)?
        {
            all.extend(self.slot(&quoted.key())?);
        }
        all.sort_unstable_by_key(|filled| filled.number);
        Ok(all)
    }
}
