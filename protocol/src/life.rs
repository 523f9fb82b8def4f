//! The life of a lane, as its signed objects and the time since the last of them tell it.
//!
//! Owns: [`LaneState`] and the rule that no lane stays open past a day. Never: reads a clock; the wall
//! clock's time comes in, because the rule must hold over restarts, and has slack. Called by the
//! ledger and by whoever looks for lanes to give up.
//!
//! ```text
//! Offered ─▶ Accepted ─▶ Running <─▶ Stalled ─▶ Closing ─▶ Closed
//!    └───────────┴──────────┴───────────┴──────────┴─ a day of silence ─▶ Abandoned (last voucher final)
//! ```

use serde::{Deserialize, Serialize};

use crate::id::{Digest, LaneId, PeerId};
use crate::limits::{CLOCK_SLACK_MS, LANE_LIFE_MS};
use crate::settle::Abandon;
use crate::unit::{NanoCredit, UnixMillis};

/// Where a lane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaneState {
    /// A contract without an accept: nothing is owed.
    Offered,
    /// The provider took it; no work is metered yet.
    Accepted,
    /// Every meter is paid.
    Running,
    /// A meter waits for its voucher.
    Stalled,
    /// The last meter is paid; a close is to come.
    Closing,
    /// Either side closed it.
    Closed,
    /// Nothing happened for a day, or either side says so.
    Abandoned,
}

impl LaneState {
    /// May the lane still come to cost more?
    #[must_use]
    pub fn is_open(self) -> bool {
        !matches!(self, Self::Closed | Self::Abandoned)
    }
}

/// What a ledger holds of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneFacts {
    /// Is there an accept?
    pub accepted: bool,
    /// The last meter's number; 0 when there is none.
    pub meters: u32,
    /// The last voucher's number; 0 when there is none.
    pub vouchers: u32,
    /// Was the newest meter the last one?
    pub last_meter: bool,
    /// Is there a close by either side?
    pub closed: bool,
    /// Is there an abandoning by either side?
    pub abandoned: bool,
    /// When the newest object was kept, by our own wall clock; of a lane that came by sync or import,
    /// when its contract was created.
    pub last_activity: UnixMillis,
}

impl LaneFacts {
    /// Where the lane is at `now`.
    #[must_use]
    pub fn state(&self, now: UnixMillis) -> LaneState {
        if self.closed {
            LaneState::Closed
        } else if self.abandoned || now >= self.ends_at() {
            LaneState::Abandoned
        } else if !self.accepted && self.meters == 0 {
            LaneState::Offered
        } else if self.meters > self.vouchers {
            LaneState::Stalled
        } else if self.last_meter {
            LaneState::Closing
        } else if self.vouchers == 0 {
            LaneState::Accepted
        } else {
            LaneState::Running
        }
    }

    /// When it is abandoned if nothing more happens: a day after the last activity, and the slack of
    /// two wall clocks.
    #[must_use]
    pub fn ends_at(&self) -> UnixMillis {
        self.last_activity.saturating_add(UnixMillis::new(LANE_LIFE_MS + CLOCK_SLACK_MS))
    }
}

/// The last voucher of a lane, or its contract while there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastWord {
    /// The voucher's number; 0 for the contract.
    pub k: u32,
    /// The voucher's amount; nothing for the contract.
    pub amount: NanoCredit,
    /// Its digest.
    pub digest: Digest,
}

/// What `by` signs of a lane that has come to [`LaneState::Abandoned`] without an end on record;
/// `None` in every other case, and for strangers.
#[must_use]
pub fn abandon(
    lane: LaneId,
    by: PeerId,
    facts: &LaneFacts,
    last: LastWord,
    now: UnixMillis,
) -> Option<Abandon> {
    let due = !facts.abandoned && facts.state(now) == LaneState::Abandoned;
    let party = by == lane.renter || by == lane.provider;
    (due && party).then_some(Abandon { lane, by, k: last.k, amount: last.amount, voucher: last.digest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settle::tests::sample_lane;
    use proptest::prelude::*;

    const NEW: LaneFacts = LaneFacts {
        accepted: false,
        meters: 0,
        vouchers: 0,
        last_meter: false,
        closed: false,
        abandoned: false,
        last_activity: UnixMillis::new(1_000_000),
    };

    #[test]
    fn a_lane_goes_through_its_states() {
        let at = |facts: LaneFacts| facts.state(UnixMillis::new(2_000_000));
        assert_eq!(at(NEW), LaneState::Offered);
        assert_eq!(at(LaneFacts { accepted: true, ..NEW }), LaneState::Accepted);
        let running = LaneFacts { accepted: true, meters: 1, ..NEW };
        assert_eq!(at(running), LaneState::Stalled);
        assert_eq!(at(LaneFacts { vouchers: 1, ..running }), LaneState::Running);
        let last = LaneFacts { last_meter: true, ..running };
        assert_eq!(at(last), LaneState::Stalled);
        assert_eq!(at(LaneFacts { vouchers: 1, ..last }), LaneState::Closing);
        assert_eq!(at(LaneFacts { closed: true, ..last }), LaneState::Closed);
        assert_eq!(at(LaneFacts { abandoned: true, ..last }), LaneState::Abandoned);
    }

    #[test]
    fn one_abandons_once_and_only_ones_own_lane() {
        let (lane, late) = (sample_lane(), UnixMillis::new(u64::MAX));
        let last = LastWord { k: 0, amount: NanoCredit::ZERO, digest: Digest::from_bytes([1; 32]) };
        assert!(abandon(lane, lane.renter, &NEW, last, late).is_some());
        assert!(abandon(lane, PeerId::from_bytes([9; 32]), &NEW, last, late).is_none());
        assert!(abandon(lane, lane.renter, &LaneFacts { abandoned: true, ..NEW }, last, late).is_none());
        assert!(abandon(lane, lane.renter, &LaneFacts { closed: true, ..NEW }, last, late).is_none());
    }

    proptest! {
        /// Every lane has an end: a day and the clocks' slack after its last activity it is not open,
        /// whatever is on record, and before that time alone ends none.
        #[test]
        fn no_lane_stays_open_past_a_day(
            accepted: bool, meters in 0..3u32, vouchers in 0..3u32, last_meter: bool, at in 0..1u64 << 50, more: u32
        ) {
            let last_activity = UnixMillis::new(at);
            let facts = LaneFacts { accepted, meters, vouchers, last_meter, last_activity, ..NEW };
            prop_assert!(facts.state(UnixMillis::new(facts.ends_at().get() - 1)).is_open());
            let late = UnixMillis::new(facts.ends_at().get() + u64::from(more));
            prop_assert_eq!(facts.state(late), LaneState::Abandoned);
        }
    }
}
