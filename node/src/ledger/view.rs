//! What a ledger can be asked: totals, balances between two peers, lanes.
//!
//! Owns: the answers' types and how one lane's objects add up to a [`LaneState`]. Never: reads a
//! file. Called by the index, and by every program that shows money.

use potluck_protocol::id::{ContentHash, Digest, LaneId, PeerId};
use potluck_protocol::job::FinishReason;
use potluck_protocol::offer::Terms;
use potluck_protocol::settle::{CloseReason, Usage};
use potluck_protocol::unit::{NanoCredit, UnixMillis};
use serde::{Deserialize, Serialize};

use super::record::{Checked, Keep, Kind, Record};

/// Which side of a lane we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaneRole {
    /// We pay.
    Renter,
    /// We are paid.
    Provider,
}

/// All lanes together, in nano-credits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// What renters owe us.
    pub owed_to_us: i128,
    /// What we owe providers.
    pub we_owe: i128,
    /// `owed_to_us - we_owe`.
    pub balance: i128,
}

/// All lanes with one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PairBalance {
    /// With whom.
    pub peer: PeerId,
    /// In nano-credits; above zero when the peer owes us.
    pub balance: i128,
    /// Lanes ever.
    pub lanes: u64,
    /// Lanes without a close.
    pub open: u64,
}

/// What stands between us and one peer, for deciding on credit (invariant I6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// In nano-credits; above zero when the peer owes us.
    pub balance: i128,
    /// What the peer's open contracts with us as provider may still cost beyond what is vouched.
    pub open_caps: NanoCredit,
}

/// Which lanes to list; the default lists all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter {
    /// Opened then or later.
    pub since: Option<UnixMillis>,
    /// With this peer.
    pub peer: Option<PeerId>,
    /// At most so many, the newest.
    pub limit: Option<usize>,
}

/// One lane: who, when, how long, how much and why it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LaneSummary {
    /// Which.
    pub lane: LaneId,
    /// Our side of it.
    pub role: LaneRole,
    /// The other side.
    pub peer: PeerId,
    /// When the contract was signed (wall clock).
    pub opened: UnixMillis,
    /// When it was closed (wall clock), if it was.
    pub closed: Option<UnixMillis>,
    /// Milliseconds of running that are vouched.
    pub run_ms: u64,
    /// Milliseconds of loading that are vouched.
    pub load_ms: u64,
    /// Time paid for in which a component worked, in milliseconds.
    pub guest_ms: u64,
    /// What is vouched: what the renter owes for this lane.
    pub amount: NanoCredit,
    /// The most that it may cost.
    pub max_total: NanoCredit,
    /// Its prices and pace.
    pub terms: Option<Terms>,
    /// Number of meters kept.
    pub meters: u32,
    /// Number of vouchers kept.
    pub vouchers: u32,
    /// Number of receipts kept.
    pub receipts: u32,
    /// Tokens read; 0 until it is closed.
    pub prompt_tokens: u32,
    /// Tokens written, as the close or else the last meter says.
    pub completion_tokens: u32,
    /// Why it ended, if it did.
    pub reason: Option<CloseReason>,
    /// How the answer ended, if it did.
    pub finish: Option<FinishReason>,
    /// Digest of the job.
    pub job: Option<Digest>,
    /// Digest of the contract.
    pub contract: Option<Digest>,
    /// Digest of the last voucher.
    pub voucher: Option<Digest>,
    /// Digest of the last receipt.
    pub receipt: Option<Digest>,
    /// The model, when the quote is kept.
    pub model: Option<ContentHash>,
}

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
    /// How many there are.
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

/// What a retired lane was, where the objects that are kept of it do not say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RetiredLane {
    pub(super) lane: LaneId,
    pub(super) meter: Option<Latest<u32>>,
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
    /// Of a meter: the tokens.
    pub(super) meter: Option<Latest<u32>>,
    /// Of a voucher: time and amount.
    pub(super) voucher: Option<Latest<(Usage, NanoCredit)>>,
    pub(super) receipt: Option<Latest<()>>,
    pub(super) closed: Option<Closed>,
}

/// What one lane adds to its pair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PairState {
    pub(super) owed_to_us: i128,
    pub(super) we_owe: i128,
    pub(super) lanes: i64,
    pub(super) open: i64,
    pub(super) open_caps: i128,
}

impl PairState {
    /// With one lane's part exchanged for another.
    pub(super) fn exchange(self, before: Self, after: Self) -> Self {
        Self {
            owed_to_us: self.owed_to_us + after.owed_to_us - before.owed_to_us,
            we_owe: self.we_owe + after.we_owe - before.we_owe,
            lanes: self.lanes + after.lanes - before.lanes,
            open: self.open + after.open - before.open,
            open_caps: self.open_caps + after.open_caps - before.open_caps,
        }
    }

    /// Above zero when the peer owes us.
    pub(super) fn balance(&self) -> i128 {
        self.owed_to_us - self.we_owe
    }
}

fn newer<T>(slot: &mut Option<Latest<T>>, k: u32, digest: Digest, of: T) {
    let count = slot.as_ref().map_or(0, |latest| latest.count).saturating_add(1);
    match slot {
        Some(latest) if latest.k > k => latest.count = count,
        _ => *slot = Some(Latest { k, digest, of, count }),
    }
}

impl LaneState {
    /// A lane of which nothing is known yet.
    pub(super) fn new(lane: LaneId) -> Self {
        Self { lane, touched: 0, agreed: None, meter: None, voucher: None, receipt: None, closed: None }
    }

    /// Has it taken nothing in yet?
    pub(super) fn is_new(&self) -> bool {
        self.touched == 0
    }

    /// Takes one object in, once; `number` is its place in the journal.
    pub(super) fn take(&mut self, number: u64, checked: &Checked) {
        self.touched = self.touched.max(number);
        let digest = checked.digest;
        match &checked.record {
            Record::Quote(_) | Record::Accept(_) => {}
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
            Record::Meter(it) => newer(&mut self.meter, it.body.k, digest, it.body.tokens),
            Record::Voucher(it) => {
                newer(&mut self.voucher, it.body.k, digest, (it.body.usage, it.body.amount));
            }
            Record::Receipt(it) => newer(&mut self.receipt, it.body.k, digest, ()),
            Record::Close(it) => {
                let it = &it.body;
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
        }
    }

    /// Closed, and nothing came after record `horizon`: its passing objects may go, and it takes no
    /// others.
    pub(super) fn is_retired(&self, horizon: u64) -> bool {
        self.closed.is_some() && self.touched <= horizon
    }

    /// What the objects that a checkpoint keeps of it do not say.
    pub(super) fn retire(&self) -> RetiredLane {
        RetiredLane {
            lane: self.lane,
            meter: self.meter.clone(),
            vouchers: self.voucher.as_ref().map_or(0, |latest| latest.count),
            receipts: self.receipt.as_ref().map_or(0, |latest| latest.count),
        }
    }

    /// Puts back what the kept objects did not say.
    pub(super) fn restore(&mut self, retired: RetiredLane) {
        self.meter = retired.meter;
        if let Some(latest) = &mut self.voucher {
            latest.count = retired.vouchers;
        }
        if let Some(latest) = &mut self.receipt {
            latest.count = retired.receipts;
        }
    }

    /// Does the lane need this object of it once it is retired?
    pub(super) fn needs(&self, kind: Kind, digest: &Digest) -> bool {
        let newest = |held: Option<&Digest>| held == Some(digest);
        match (kind.keep(), kind) {
            (Keep::Apart | Keep::Evidence, _) => true,
            (Keep::Newest, Kind::Voucher) => newest(self.voucher.as_ref().map(|it| &it.digest)),
            (Keep::Newest, Kind::Receipt) => newest(self.receipt.as_ref().map(|it| &it.digest)),
            // Of no other kind does a lane know the newest: better one object too many.
            (Keep::Newest, _) => true,
            (Keep::Passing, _) => false,
        }
    }

    /// Our side of it, given who we are.
    pub(super) fn role(&self, me: PeerId) -> LaneRole {
        if self.lane.renter == me { LaneRole::Renter } else { LaneRole::Provider }
    }

    /// The other side.
    pub(super) fn peer(&self, me: PeerId) -> PeerId {
        match self.role(me) {
            LaneRole::Renter => self.lane.provider,
            LaneRole::Provider => self.lane.renter,
        }
    }

    /// When it was opened; the beginning of time without a contract.
    pub(super) fn opened(&self) -> UnixMillis {
        self.agreed.as_ref().map_or(UnixMillis::ZERO, |agreed| agreed.created)
    }

    /// What the renter owes for it.
    pub(super) fn amount(&self) -> NanoCredit {
        self.voucher.as_ref().map_or(NanoCredit::ZERO, |latest| latest.of.1)
    }

    /// What it adds to its pair.
    pub(super) fn part(&self, me: PeerId) -> PairState {
        let amount = i128::from(self.amount().get());
        let is_open = self.closed.is_none();
        let max = self.agreed.as_ref().map_or(NanoCredit::ZERO, |agreed| agreed.max_total);
        let left = i128::from(max.saturating_sub(self.amount()).get());
        let common = PairState { lanes: 1, open: i64::from(is_open), ..PairState::default() };
        match self.role(me) {
            LaneRole::Renter => PairState { we_owe: amount, ..common },
            LaneRole::Provider => {
                PairState { owed_to_us: amount, open_caps: if is_open { left } else { 0 }, ..common }
            }
        }
    }

    /// For people.
    pub(super) fn summary(&self, me: PeerId, model: Option<ContentHash>) -> LaneSummary {
        let usage = self.voucher.as_ref().map_or_else(Usage::default, |latest| latest.of.0);
        let (agreed, closed) = (self.agreed.as_ref(), self.closed.as_ref());
        let metered = self.meter.as_ref().map_or(0, |latest| latest.of);
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
            meters: self.meter.as_ref().map_or(0, |it| it.count),
            vouchers: self.voucher.as_ref().map_or(0, |it| it.count),
            receipts: self.receipt.as_ref().map_or(0, |it| it.count),
            prompt_tokens: closed.map_or(0, |it| it.prompt_tokens),
            completion_tokens: closed.map_or(metered, |it| it.completion_tokens),
            reason: closed.map(|it| it.reason),
            finish: closed.map(|it| it.finish),
            job: agreed.map(|it| it.job),
            contract: agreed.map(|it| it.digest),
            voucher: self.voucher.as_ref().map(|it| it.digest),
            receipt: self.receipt.as_ref().map(|it| it.digest),
            model,
        }
    }
}
