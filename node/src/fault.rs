//! Fault points: named places at which a test kills this process, to see what a restart finds.
//!
//! Owns: every point there is, by name, and the switch. Never: does anything unless
//! `POTLUCK_FAULT=<point>[:<n>]` was set when the first ledger was opened. Called at every durable
//! step of the ledger and of the two programs, before and after what they send, and after what they
//! receive. A point that is not armed costs one relaxed atomic load.
//!
//! The points are in every build, so that the crash matrix kills the very programs that people run:
//! a build with points would be another program than the one without. What the variable can do to
//! its setter is what `kill -9` can do.
//!
//! Only this file makes a [`Point`], and what it makes it lists: none can be passed that the matrix
//! does not know. The matrix fails for one that is listed and never passed.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The variable that arms one point: its name, and optionally `:n` for the n-th time (from 1).
pub const VARIABLE: &str = "POTLUCK_FAULT";

/// A place at which a process can be told to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point(&'static str);

impl Point {
    /// As [`VARIABLE`] names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Makes points, and the list of them.
macro_rules! points {
    ($(#[$about:meta])+ $list:ident: $($(#[$doc:meta])+ $point:ident = $name:literal,)+) => {
        $(#[$about])+
        pub const $list: &[Point] = &[$($point),+];
        $($(#[$doc])+ pub const $point: Point = Point($name);)+
    };
}

points! {
    /// The ledger's own points, in the order in which a life passes them.
    LEDGER_POINTS:
    /// A new segment has its zeros and its header, under its draft's name, unsynced.
    SEGMENT_CREATED = "segment.created",
    /// A new segment is synced, under its draft's name.
    SEGMENT_SYNCED = "segment.synced",
    /// A new segment has its name, and its folder is not synced.
    SEGMENT_NAMED = "segment.named",
    /// A new segment is durable and empty.
    SEGMENT_DURABLE = "segment.durable",
    /// The last group is written again and a torn tail overwritten, unsynced.
    END_WRITTEN = "end.written",
    /// The end that an open found is durable.
    END_SECURED = "end.secured",
    /// A group of records is checked, and not a byte of it is written.
    GROUP_TAKEN = "group.taken",
    /// A group is written, and not synced where that takes a second step.
    GROUP_WRITTEN = "group.written",
    /// A group is durable, and the index does not know it.
    GROUP_SYNCED = "group.synced",
    /// Those who wait for a group were told, and the index does not know it.
    GROUP_ANSWERED = "group.answered",
    /// A group is in the index.
    GROUP_INDEXED = "group.indexed",
    /// The index was written out.
    INDEX_FLUSHED = "index.flushed",
    /// Old lanes take no more objects, and nothing else has changed.
    COMPACTION_BEGUN = "compaction.begun",
    /// A checkpoint is written under its draft's name, unsynced.
    CHECKPOINT_WRITTEN = "checkpoint.written",
    /// A checkpoint is synced under its draft's name.
    CHECKPOINT_SYNCED = "checkpoint.synced",
    /// A checkpoint has its name, and its folder is not synced.
    CHECKPOINT_NAMED = "checkpoint.named",
    /// A checkpoint is durable, beside all that it stands for.
    CHECKPOINT_DURABLE = "checkpoint.durable",
    /// The index rests on a checkpoint, beside all that it stands for.
    CHECKPOINT_INDEXED = "checkpoint.indexed",
    /// One of the files that a checkpoint stands for is deleted.
    OLD_FILE_DELETED = "compaction.deleted",
    /// All of them are.
    COMPACTION_ENDED = "compaction.ended",
}

points! {
    /// What a provider passes in a job, in that order.
    PROVIDER_POINTS:
    /// A job is here whole and is admitted; nothing of it is kept.
    PROVIDER_CONTRACT_RECEIVED = "provider.contract.received",
    /// The accept is signed, and not kept.
    PROVIDER_ACCEPT_SIGNED = "provider.accept.signed",
    /// The contract and the accept are durable; the accept is not sent.
    PROVIDER_ACCEPT_KEPT = "provider.accept.kept",
    /// The accept is sent.
    PROVIDER_ACCEPT_SENT = "provider.accept.sent",
    /// A meter is signed, and not kept.
    PROVIDER_METER_SIGNED = "provider.meter.signed",
    /// A meter is durable, and not sent.
    PROVIDER_METER_KEPT = "provider.meter.kept",
    /// A meter is sent.
    PROVIDER_METER_SENT = "provider.meter.sent",
    /// A voucher came and is good; it is not kept.
    PROVIDER_VOUCHER_RECEIVED = "provider.voucher.received",
    /// A voucher and its receipt are durable; the receipt is not sent.
    PROVIDER_RECEIPT_KEPT = "provider.receipt.kept",
    /// A receipt is sent.
    PROVIDER_RECEIPT_SENT = "provider.receipt.sent",
    /// The close is signed, and not kept.
    PROVIDER_CLOSE_SIGNED = "provider.close.signed",
    /// The close is durable, and not sent.
    PROVIDER_CLOSE_KEPT = "provider.close.kept",
    /// The close is sent.
    PROVIDER_CLOSE_SENT = "provider.close.sent",
}

points! {
    /// What a renter passes in a job, in that order; the last two when its provider is lost.
    RENTER_POINTS:
    /// The contract is signed, and not kept.
    RENTER_CONTRACT_SIGNED = "renter.contract.signed",
    /// The contract is durable, and not sent.
    RENTER_CONTRACT_KEPT = "renter.contract.kept",
    /// The contract and the job are sent.
    RENTER_CONTRACT_SENT = "renter.contract.sent",
    /// The accept came and is good; it is not kept.
    RENTER_ACCEPT_RECEIVED = "renter.accept.received",
    /// The accept is durable.
    RENTER_ACCEPT_KEPT = "renter.accept.kept",
    /// A meter came; nothing is signed.
    RENTER_METER_RECEIVED = "renter.meter.received",
    /// A voucher is signed, and not kept.
    RENTER_VOUCHER_SIGNED = "renter.voucher.signed",
    /// A voucher is durable, and not sent.
    RENTER_VOUCHER_KEPT = "renter.voucher.kept",
    /// A voucher is sent.
    RENTER_VOUCHER_SENT = "renter.voucher.sent",
    /// A receipt came and is good; it is not kept.
    RENTER_RECEIPT_RECEIVED = "renter.receipt.received",
    /// A receipt is durable.
    RENTER_RECEIPT_KEPT = "renter.receipt.kept",
    /// The provider's close came and is good; it is not kept.
    RENTER_CLOSE_RECEIVED = "renter.close.received",
    /// The provider's close is durable.
    RENTER_CLOSE_KEPT = "renter.close.kept",
    /// A close of the renter's own is signed, and not kept.
    RENTER_OWN_CLOSE_SIGNED = "renter.own_close.signed",
    /// A close of the renter's own is durable.
    RENTER_OWN_CLOSE_KEPT = "renter.own_close.kept",
}

static ARMED: AtomicBool = AtomicBool::new(false);
static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

points! {
    /// What either side passes when the two compare ledgers and end what was left open.
    PAIR_POINTS:
    /// A question is ready, and not sent.
    PAIR_QUESTION_READY = "pair.question.ready",
    /// The answer came, and nothing of it is taken in.
    PAIR_ANSWER_RECEIVED = "pair.answer.received",
    /// A question came, and nothing is done about it.
    PAIR_QUESTION_RECEIVED = "pair.question.received",
    /// What a question calls for is durable; the answer is not sent.
    PAIR_ANSWER_READY = "pair.answer.ready",
    /// The answer is handed to the network.
    PAIR_ANSWER_SENT = "pair.answer.sent",
    /// Statements of the other side are judged worth keeping, and not kept.
    PAIR_PAGE_JUDGED = "pair.page.judged",
    /// Statements of the other side are durable.
    PAIR_PAGE_KEPT = "pair.page.kept",
    /// Our end of a lane, or our step of the balance, is signed, and not kept.
    PAIR_WORD_SIGNED = "pair.word.signed",
    /// Our end of a lane, or our step of the balance, is durable, and not sent.
    PAIR_WORD_KEPT = "pair.word.kept",
}

points! {
    /// What only a provider passes there: a voucher that comes after its job.
    PAID_LATE_POINTS:
    /// A late voucher's receipt is signed, and neither is kept.
    LATE_RECEIPT_SIGNED = "pair.receipt.signed",
    /// A late voucher and its receipt are durable; the receipt is not sent.
    LATE_RECEIPT_KEPT = "pair.receipt.kept",
}

/// Every point, by whose it is.
const ALL: [&[Point]; 5] = [LEDGER_POINTS, PROVIDER_POINTS, RENTER_POINTS, PAIR_POINTS, PAID_LATE_POINTS];

/// Which point, and how many passes it still survives.
#[derive(Debug)]
struct Plan {
    point: Point,
    left: AtomicU64,
}

impl Plan {
    /// `name` or `name:n` with n from 1; nothing else arms anything.
    fn parse(text: &str) -> Option<Self> {
        let (name, nth) = match text.split_once(':') {
            Some((name, nth)) => (name, nth.parse().ok().filter(|nth| *nth > 0)?),
            None => (text, 1),
        };
        let point = ALL.into_iter().flatten().find(|point| point.name() == name)?;
        Some(Self { point: *point, left: AtomicU64::new(nth) })
    }

    /// Is this the pass at which to die?
    fn is_due(&self, point: Point) -> bool {
        self.point == point && self.left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

/// Reads [`VARIABLE`], once in a process; opening a ledger does it.
pub fn arm() {
    let plan = PLAN.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty())?;
        let plan = Plan::parse(&text);
        tracing::warn!(point = %text, understood = plan.is_some(), "a fault point is set for this process");
        plan
    });
    ARMED.store(plan.is_some(), Ordering::Relaxed);
}

/// Passes a point: does nothing, or ends this process as SIGKILL does.
#[inline]
pub fn point(point: Point) {
    if ARMED.load(Ordering::Relaxed) {
        passed(point);
    }
}

#[cold]
fn passed(point: Point) {
    if PLAN.get().and_then(Option::as_ref).is_some_and(|plan| plan.is_due(point)) {
        // Nothing is flushed and nobody is told, which is the purpose.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_a_name_and_a_count() {
        let plan = Plan::parse("group.synced:3").unwrap();
        assert!(!plan.is_due(GROUP_WRITTEN));
        assert_eq!([0; 4].map(|_| plan.is_due(GROUP_SYNCED)), [false, false, true, false]);
        assert!(Plan::parse("group.synced").unwrap().is_due(GROUP_SYNCED));
        for text in ["", ":1", "group.synced:", "group.synced:0", "group.synced:x", "group"] {
            assert!(Plan::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn points_have_names_of_their_own() {
        let all = ALL.concat();
        let mut names: Vec<_> = all.iter().map(|point| point.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        assert!(names.iter().all(|name| !name.contains(':')));
    }
}
