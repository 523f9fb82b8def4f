//! One lane as the index keeps it: what its objects add up to.
//!
//! Owns: [`LaneState`], how an object changes it, and what the law and people are told of it. Never:
//! reads a file, or judges an object. Called by the index, by compaction, and by the writer, which asks
//! what a lane that was put away still takes.

use potluck_protocol::balance::Folded;
use potluck_protocol::id::{ContentHash, Digest, LaneId, PeerId};
use potluck_protocol::job::FinishReason;
use potluck_protocol::life::{LaneFacts, LastWord};
use potluck_protocol::offer::Terms;
use potluck_protocol::settle::{CloseReason, Usage};
use potluck_protocol::sync::LaneHead;
use potluck_protocol::unit::{NanoCredit, UnixMillis};
use serde::{Deserialize, Serialize};

use super::account::Part;
use super::record::{Checked, Keep, Kind, Record};
use super::slot::{Slot, side};
use super::view::{LaneRole, LaneSummary};

/// Both closes, of [`LaneState::ends`].
const CLOSES: u8 = 0b0011;
/// Both abandonings.
const ABANDONS: u8 = 0b1100;

/// What a lane's contract says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Agreed {
    pub(super) digest: Digest,
    pub(super) job: Digest,
    pub(super) quote: Digest,
    pub(super) terms: Terms,
    pub(super) max_total: NanoCredit,
    pub(super) created: UnixMillis,
}

/// The newest of a lane's numbered objects of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Latest<T> {
    pub(super) k: u32,
    pub(super) digest: Digest,
    pub(super) of: T,
    /// How many there are, or were.
    pub(super) count: u32,
}

/// What a lane's close says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Closed {
    pub(super) by: PeerId,
    pub(super) reason: CloseReason,
    pub(super) finish: FinishReason,
    pub(super) prompt_tokens: u32,
    pub(super) completion_tokens: u32,
    pub(super) at: UnixMillis,
}

/// How many objects of a retired lane a checkpoint does not hold any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RetiredLane {
    pub(super) lane: LaneId,
    pub(super) meters: u32,
    pub(super) vouchers: u32,
    pub(super) receipts: u32,
}

/// One lane as the index keeps it; the order in which its objects came does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LaneState {
    pub(super) lane: LaneId,
    /// Number of the newest record of it.
    pub(super) touched: u64,
    pub(super) agreed: Option<Agreed>,
    pub(super) accepted: bool,
    /// Of a meter: the tokens, and whether it is the last.
    pub(super) meter: Option<Latest<(u32, bool)>>,
    /// Of a voucher: time and amount.
    pub(super) voucher: Option<Latest<(Usage, NanoCredit)>>,
    pub(super) receipt: Option<Latest<()>>,
    pub(super) closed: Option<Closed>,
    /// As in [`LaneHead::ends`].
    pub(super) ends: u8,
    /// When we last heard of it, by our clock; when it was created, where that is not known.
    pub(super) last_activity: UnixMillis,
    /// Objects of it may have been dropped: an empty place for one may have been filled.
    pub(super) put_away: bool,
}

/// The side of a lane that is not `me`.
pub(super) fn other_side(lane: &LaneId, me: PeerId) -> PeerId {
    if lane.renter == me { lane.provider } else { lane.renter }
}

fn newer<T>(slot: &mut Option<Latest<T>>, k: u32, digest: Digest, of: T) {
    let count = slot.as_ref().map_or(0, |latest| latest.count).saturating_add(1);
    match slot {
        Some(latest) if latest.k > k => latest.count = count,
        _ => *slot = Some(Latest { k, digest, of, count }),
    }
}

fn number_of<T>(slot: Option<&Latest<T>>) -> u32 {
    slot.map_or(0, |latest| latest.k)
}

fn count_of<T>(slot: Option<&Latest<T>>) -> u32 {
    slot.map_or(0, |latest| latest.count)
}

fn digest_of<T>(slot: Option<&Latest<T>>) -> Option<&Digest> {
    slot.map(|latest| &latest.digest)
}

impl LaneState {
    /// A lane of which nothing is known yet.
    pub(super) fn new(lane: LaneId) -> Self {
        Self {
            lane,
            touched: 0,
            agreed: None,
            accepted: false,
            meter: None,
            voucher: None,
            receipt: None,
            closed: None,
            ends: 0,
            last_activity: UnixMillis::ZERO,
            put_away: false,
        }
    }

    /// Has it taken nothing in yet?
    pub(super) fn is_new(&self) -> bool {
        self.touched == 0
    }

    /// Takes one object in, once; `number` is its place in the journal, and lanes that ended by record
    /// `horizon` are retired.
    pub(super) fn take(&mut self, number: u64, checked: &Checked, horizon: u64) {
        self.put_away = self.is_put_away(horizon);
        self.touched = self.touched.max(number);
        let digest = checked.digest;
        match &checked.record {
            Record::Contract(it) => {
                let it = &it.body;
                self.agreed = Some(Agreed {
                    digest,
                    job: it.job,
                    quote: it.quote,
                    terms: it.terms,
                    max_total: it.max_total,
                    created: it.created,
                });
            }
            Record::Accept(_) => self.accepted = true,
            Record::Meter(it) => newer(&mut self.meter, it.body.k, digest, (it.body.tokens, it.body.last)),
            Record::Voucher(it) => {
                newer(&mut self.voucher, it.body.k, digest, (it.body.usage, it.body.amount));
            }
            Record::Receipt(it) => newer(&mut self.receipt, it.body.k, digest, ()),
            Record::Close(it) => {
                let it = &it.body;
                self.ends |= 1 << side(&it.lane, it.by).unwrap_or(0);
                // Both sides may close; the provider's word counts tokens, so it goes first.
                if self.closed.as_ref().is_none_or(|closed| closed.by != it.lane.provider) {
                    self.closed = Some(Closed {
                        by: it.by,
                        reason: it.reason,
                        finish: it.finish,
                        prompt_tokens: it.prompt_tokens,
                        completion_tokens: it.completion_tokens,
                        at: it.at,
                    });
                }
            }
            Record::Abandon(it) => self.ends |= 4 << side(&it.body.lane, it.body.by).unwrap_or(0),
            Record::Quote(_)
            | Record::State(_)
            | Record::Countersign(_)
            | Record::Cancel(_)
            | Record::Raise(_)
            | Record::Proof(_) => {}
        }
        self.last_activity = self.last_activity.max(checked.heard.unwrap_or_else(|| self.opened()));
    }

    /// Has either side ended it?
    pub(super) fn has_ended(&self) -> bool {
        self.ends != 0
    }

    /// Ended, and nothing came after record `horizon`: what does not prove its outcome may go.
    pub(super) fn is_retired(&self, horizon: u64) -> bool {
        self.has_ended() && self.touched <= horizon
    }

    /// May some of its objects have gone?
    pub(super) fn is_put_away(&self, horizon: u64) -> bool {
        self.put_away || self.is_retired(horizon)
    }

    /// Of a lane that is put away: may the object of this empty slot have been there, and gone? What is
    /// of a kind that is always kept was never there, nor was what lies beyond the newest.
    pub(super) fn may_have_held(&self, slot: &Slot) -> bool {
        self.newest(slot.kind).is_some_and(|newest| slot.k <= newest)
    }

    /// Is the slot one of a numbered kind, beyond the newest of it?
    pub(super) fn is_beyond(&self, slot: &Slot) -> bool {
        self.newest(slot.kind).is_some_and(|newest| slot.k > newest)
    }

    /// The number of the newest object of a numbered kind; 0 when there is none.
    fn newest(&self, kind: Kind) -> Option<u32> {
        match kind {
            Kind::Meter => Some(number_of(self.meter.as_ref())),
            Kind::Voucher => Some(number_of(self.voucher.as_ref())),
            Kind::Receipt => Some(number_of(self.receipt.as_ref())),
            _ => None,
        }
    }

    /// How many of its objects go when it is retired.
    pub(super) fn retire(&self) -> RetiredLane {
        RetiredLane {
            lane: self.lane,
            meters: count_of(self.meter.as_ref()).saturating_sub(1),
            vouchers: count_of(self.voucher.as_ref()).saturating_sub(1),
            receipts: count_of(self.receipt.as_ref()).saturating_sub(1),
        }
    }

    /// Counts what has gone.
    pub(super) fn restore(&mut self, retired: &RetiredLane) {
        fn add<T>(slot: Option<&mut Latest<T>>, gone: u32) {
            if let Some(latest) = slot {
                latest.count = latest.count.saturating_add(gone);
            }
        }
        add(self.meter.as_mut(), retired.meters);
        add(self.voucher.as_mut(), retired.vouchers);
        add(self.receipt.as_mut(), retired.receipts);
        self.put_away = true;
    }

    /// Does the lane need this object of it once it is retired?
    pub(super) fn needs(&self, kind: Kind, digest: &Digest) -> bool {
        let newest = |held: Option<&Digest>| held == Some(digest);
        match (kind.keep(), kind) {
            (Keep::Apart | Keep::Evidence, _) => true,
            (Keep::Newest, Kind::Meter) => newest(digest_of(self.meter.as_ref())),
            (Keep::Newest, Kind::Voucher) => newest(digest_of(self.voucher.as_ref())),
            (Keep::Newest, Kind::Receipt) => newest(digest_of(self.receipt.as_ref())),
            // Of no other kind does a lane know the newest: better one object too many.
            (Keep::Newest, _) => true,
        }
    }

    /// Our side of it, given who we are.
    pub(super) fn role(&self, me: PeerId) -> LaneRole {
        if self.lane.renter == me { LaneRole::Renter } else { LaneRole::Provider }
    }

    /// The other side.
    pub(super) fn peer(&self, me: PeerId) -> PeerId {
        other_side(&self.lane, me)
    }

    /// When it was opened; the beginning of time without a contract.
    pub(super) fn opened(&self) -> UnixMillis {
        self.agreed.as_ref().map_or(UnixMillis::ZERO, |agreed| agreed.created)
    }

    /// What the renter owes for it.
    pub(super) fn amount(&self) -> NanoCredit {
        self.voucher.as_ref().map_or(NanoCredit::ZERO, |latest| latest.of.1)
    }

    /// Is there more than a contract? Only then does the other side have a share in it.
    pub(super) fn is_listed(&self) -> bool {
        self.accepted || self.meter.is_some() || self.voucher.is_some()
    }

    /// What it may still cost beyond what is vouched, if it is open at `now`.
    pub(super) fn open_cap(&self, now: UnixMillis) -> NanoCredit {
        let max = self.agreed.as_ref().map_or(NanoCredit::ZERO, |agreed| agreed.max_total);
        if self.facts().state(now).is_open() { max.saturating_sub(self.amount()) } else { NanoCredit::ZERO }
    }

    /// What it adds to its pair's account, in which lanes before `floor` are done with.
    pub(super) fn part(&self, me: PeerId, floor: UnixMillis) -> Part {
        let amount = if self.opened() < floor { 0 } else { i128::from(self.amount().get()) };
        let common = Part { lanes: 1, open: i64::from(!self.has_ended()), ..Part::default() };
        match self.role(me) {
            LaneRole::Renter => Part { we_owe: amount, ..common },
            LaneRole::Provider => Part { owed_to_us: amount, ..common },
        }
    }

    /// What it comes to, whatever was agreed since.
    pub(super) fn whole_part(&self, me: PeerId) -> Part {
        self.part(me, UnixMillis::ZERO)
    }

    /// For the law of its life.
    pub(super) fn facts(&self) -> LaneFacts {
        LaneFacts {
            accepted: self.accepted,
            meters: number_of(self.meter.as_ref()),
            vouchers: number_of(self.voucher.as_ref()),
            last_meter: self.meter.as_ref().is_some_and(|latest| latest.of.1),
            closed: self.ends & CLOSES != 0,
            abandoned: self.ends & ABANDONS != 0,
            last_activity: self.last_activity,
        }
    }

    /// For a comparison with the other side.
    pub(super) fn head(&self) -> LaneHead {
        LaneHead {
            contract: self.agreed.is_some(),
            accept: self.accepted,
            meter: number_of(self.meter.as_ref()),
            voucher: number_of(self.voucher.as_ref()),
            receipt: number_of(self.receipt.as_ref()),
            ends: self.ends,
            last: self.voucher.as_ref().map_or(Digest::from_bytes([0; 32]), |latest| latest.digest),
            ..LaneHead::nothing(self.lane)
        }
    }

    /// As a balance takes it in; `None` without a voucher.
    pub(super) fn folded(&self) -> Option<Folded> {
        let latest = self.voucher.as_ref()?;
        Some(Folded { lane: self.lane, k: latest.k, amount: latest.of.1, voucher: latest.digest })
    }

    /// Its last voucher, or else its contract; `None` without either.
    pub(super) fn last_word(&self) -> Option<LastWord> {
        match (&self.voucher, &self.agreed) {
            (Some(latest), _) => Some(LastWord { k: latest.k, amount: latest.of.1, digest: latest.digest }),
            (None, Some(agreed)) => Some(LastWord { k: 0, amount: NanoCredit::ZERO, digest: agreed.digest }),
            (None, None) => None,
        }
    }

    /// For people.
    pub(super) fn summary(&self, me: PeerId, model: Option<ContentHash>) -> LaneSummary {
        let usage = self.voucher.as_ref().map_or_else(Usage::default, |latest| latest.of.0);
        let (agreed, closed) = (self.agreed.as_ref(), self.closed.as_ref());
        let metered = self.meter.as_ref().map_or(0, |latest| latest.of.0);
        LaneSummary {
            lane: self.lane,
            role: self.role(me),
            peer: self.peer(me),
            opened: self.opened(),
            closed: closed.map(|it| it.at),
            run_ms: usage.run.get(),
            load_ms: usage.load.get(),
            guest_ms: usage.guest.get(),
            amount: self.amount(),
            max_total: agreed.map_or(NanoCredit::ZERO, |it| it.max_total),
            terms: agreed.map(|it| it.terms),
            meters: count_of(self.meter.as_ref()),
            vouchers: count_of(self.voucher.as_ref()),
            receipts: count_of(self.receipt.as_ref()),
            prompt_tokens: closed.map_or(0, |it| it.prompt_tokens),
            completion_tokens: closed.map_or(metered, |it| it.completion_tokens),
            reason: closed.map(|it| it.reason),
            finish: closed.map(|it| it.finish),
            job: agreed.map(|it| it.job),
            contract: agreed.map(|it| it.digest),
            voucher: digest_of(self.voucher.as_ref()).copied(),
            receipt: digest_of(self.receipt.as_ref()).copied(),
            model,
        }
    }
}
