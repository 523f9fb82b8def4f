//! Fault points: named places at which a test kills this process, to see what a restart finds.
//!
//! Owns: the points of the ledger's own durable steps, and the switch. Never: does anything unless
//! `POTLUCK_FAULT=<point>[:<n>]` was set when the first ledger was opened. Called at every durable
//! step, here and in the two programs. A point that is not armed costs one relaxed atomic load.
//!
//! The points are in every build, so that the crash matrix kills the very programs that people run:
//! a build with points would be another program than the one without. What the variable can do to
//! its setter is what `kill -9` can do.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The variable that arms one point: its name, and optionally `:n` for the n-th time (from 1).
pub const VARIABLE: &str = "POTLUCK_FAULT";

/// The ledger's own points, in the order in which a life passes them.
pub const POINTS: &[&str] = &[
    SEGMENT_CREATED,
    SEGMENT_SYNCED,
    SEGMENT_NAMED,
    SEGMENT_DURABLE,
    END_WRITTEN,
    END_SECURED,
    GROUP_TAKEN,
    GROUP_WRITTEN,
    GROUP_SYNCED,
    GROUP_INDEXED,
    GROUP_ANSWERED,
    INDEX_FLUSHED,
    COMPACTION_BEGUN,
    CHECKPOINT_WRITTEN,
    CHECKPOINT_SYNCED,
    CHECKPOINT_NAMED,
    CHECKPOINT_DURABLE,
    CHECKPOINT_INDEXED,
    OLD_FILE_DELETED,
    COMPACTION_ENDED,
];

/// A new segment has its zeros and its header, under its draft's name, unsynced.
pub const SEGMENT_CREATED: &str = "segment.created";
/// A new segment is synced, under its draft's name.
pub const SEGMENT_SYNCED: &str = "segment.synced";
/// A new segment has its name, and its folder is not synced.
pub const SEGMENT_NAMED: &str = "segment.named";
/// A new segment is durable and empty.
pub const SEGMENT_DURABLE: &str = "segment.durable";
/// The last group is written again and a torn tail overwritten, unsynced.
pub const END_WRITTEN: &str = "end.written";
/// The end that an open found is durable.
pub const END_SECURED: &str = "end.secured";
/// A group of records is checked, and not a byte of it is written.
pub const GROUP_TAKEN: &str = "group.taken";
/// A group is written, unsynced.
pub const GROUP_WRITTEN: &str = "group.written";
/// A group is durable, and the index does not know it.
pub const GROUP_SYNCED: &str = "group.synced";
/// A group is durable and in the index, and nobody was told.
pub const GROUP_INDEXED: &str = "group.indexed";
/// Those who wait for a group were told.
pub const GROUP_ANSWERED: &str = "group.answered";
/// The index was written out.
pub const INDEX_FLUSHED: &str = "index.flushed";
/// Old lanes take no more objects, and nothing else has changed.
pub const COMPACTION_BEGUN: &str = "compaction.begun";
/// A checkpoint is written under its draft's name, unsynced.
pub const CHECKPOINT_WRITTEN: &str = "checkpoint.written";
/// A checkpoint is synced under its draft's name.
pub const CHECKPOINT_SYNCED: &str = "checkpoint.synced";
/// A checkpoint has its name, and its folder is not synced.
pub const CHECKPOINT_NAMED: &str = "checkpoint.named";
/// A checkpoint is durable, beside all that it stands for.
pub const CHECKPOINT_DURABLE: &str = "checkpoint.durable";
/// The index rests on a checkpoint, beside all that it stands for.
pub const CHECKPOINT_INDEXED: &str = "checkpoint.indexed";
/// One of the files that a checkpoint stands for is deleted.
pub const OLD_FILE_DELETED: &str = "compaction.deleted";
/// All of them are.
pub const COMPACTION_ENDED: &str = "compaction.ended";

static ARMED: AtomicBool = AtomicBool::new(false);
static PLAN: OnceLock<Option<Plan>> = OnceLock::new();

/// Which point, and how many passes it still survives.
#[derive(Debug)]
struct Plan {
    point: String,
    left: AtomicU64,
}

impl Plan {
    /// `name` or `name:n` with n from 1; nothing else arms anything.
    fn parse(text: &str) -> Option<Self> {
        let (point, nth) = match text.split_once(':') {
            Some((point, nth)) => (point, nth.parse().ok().filter(|nth| *nth > 0)?),
            None => (text, 1),
        };
        (!point.is_empty()).then(|| Self { point: point.to_owned(), left: AtomicU64::new(nth) })
    }

    /// Is this the pass at which to die?
    fn is_due(&self, point: &str) -> bool {
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
pub fn point(name: &'static str) {
    if ARMED.load(Ordering::Relaxed) {
        passed(name);
    }
}

#[cold]
fn passed(name: &'static str) {
    if PLAN.get().and_then(Option::as_ref).is_some_and(|plan| plan.is_due(name)) {
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
        assert!(!plan.is_due("group.written"));
        assert_eq!([0; 4].map(|_| plan.is_due("group.synced")), [false, false, true, false]);
        assert!(Plan::parse("group.synced").unwrap().is_due("group.synced"));
        for text in ["", ":1", "group.synced:", "group.synced:0", "group.synced:x"] {
            assert!(Plan::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn points_have_names_of_their_own() {
        let mut names = POINTS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), POINTS.len());
        assert!(names.iter().all(|name| !name.contains(':')));
    }
}
