//! The clock that a bill is made from.
//!
//! Owns: how much worker time a job has had, by phase. Never: reads a clock itself (`now` comes in,
//! always a monotonic instant), rounds up, or runs backwards. Called by [`crate::metered`].
//!
//! ```text
//! Queued ──▶ (Load ──▶) Run <──▶ Guest <──▶ Stalled ──▶ the last reading
//!  free       billed    billed    billed     free
//! ```

use std::time::{Duration, Instant};

use potluck_protocol::settle::{Phase, Usage};
use potluck_protocol::unit::GpuMillis;

/// Worker time of one job. It begins in [`Phase::Queued`], which is free.
#[derive(Debug, Clone)]
pub struct MeterClock {
    phase: Phase,
    since: Instant,
    spent: Spent,
}

/// Time in the billed phases.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    load: Duration,
    run: Duration,
    guest: Duration,
}

impl Spent {
    fn of(&mut self, phase: Phase) -> Option<&mut Duration> {
        match phase {
            Phase::Load => Some(&mut self.load),
            Phase::Run => Some(&mut self.run),
            Phase::Guest => Some(&mut self.guest),
            Phase::Queued | Phase::Stalled => None,
        }
    }
}

impl MeterClock {
    /// A clock that has measured nothing yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { phase: Phase::Queued, since: now, spent: Spent::default() }
    }

    /// Enters `phase`; what the phase before took is added up. An instant before the last one counts
    /// as the last one.
    pub fn enter(&mut self, phase: Phase, now: Instant) {
        let now = now.max(self.since);
        self.spent = self.read(now);
        self.phase = phase;
        self.since = now;
    }

    /// The phase it is in.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Billed time so far, in whole milliseconds, each phase rounded down.
    #[must_use]
    pub fn usage(&self, now: Instant) -> Usage {
        let spent = self.read(now);
        Usage { load: millis(spent.load), run: millis(spent.run), guest: millis(spent.guest) }
    }

    /// When `usage().total()` will have reached `total` if the phase does not change; `None` while the
    /// phase is free.
    #[must_use]
    pub fn reaches(&self, total: GpuMillis, now: Instant) -> Option<Instant> {
        let current = *self.read(now).of(self.phase)?;
        let left = Duration::from_millis(total.saturating_sub(self.usage(now).total()).get());
        // What the running phase has beyond its last whole millisecond is already behind us.
        let ahead = Duration::from_nanos(u64::from(current.subsec_nanos() % 1_000_000));
        Some(now + left.saturating_sub(ahead))
    }

    fn read(&self, now: Instant) -> Spent {
        let mut spent = self.spent;
        if let Some(current) = spent.of(self.phase) {
            *current += now.saturating_duration_since(self.since);
        }
        spent
    }
}

fn millis(duration: Duration) -> GpuMillis {
    GpuMillis::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn phase() -> impl Strategy<Value = Phase> {
        prop::sample::select(vec![Phase::Queued, Phase::Load, Phase::Run, Phase::Guest, Phase::Stalled])
    }

    proptest! {
        /// Whatever the phases, the bill never falls and never exceeds the time that passed in
        /// billed phases; free phases bill nothing.
        #[test]
        fn only_billed_phases_bill(steps in prop::collection::vec((phase(), 0..3_000_000_000_u64), 1..40)) {
            let mut now = Instant::now();
            let mut clock = MeterClock::new(now);
            let mut billed = Duration::ZERO;
            let mut last = GpuMillis::ZERO;
            for (phase, nanos) in steps {
                clock.enter(phase, now);
                let passed = Duration::from_nanos(nanos);
                now += passed;
                if matches!(phase, Phase::Load | Phase::Run | Phase::Guest) {
                    billed += passed;
                }
                let total = clock.usage(now).total();
                prop_assert!(total >= last);
                last = total;
                // Rounded down once per phase: at most three milliseconds are given away.
                let exact = u64::try_from(billed.as_millis()).unwrap();
                prop_assert!(total.get() <= exact && total.get() + 3 > exact);
            }
        }

        /// `reaches` is the first instant at which the total is there.
        #[test]
        fn a_limit_is_met_to_the_millisecond(before in 0..2_000_000_000_u64, more in 1..5_000_u64) {
            let start = Instant::now();
            let mut clock = MeterClock::new(start);
            clock.enter(Phase::Run, start);
            let now = start + Duration::from_nanos(before);
            let target = clock.usage(now).total().saturating_add(GpuMillis::new(more));
            let at = clock.reaches(target, now).unwrap();
            prop_assert_eq!(clock.usage(at).total(), target);
            prop_assert!(clock.usage(at - Duration::from_nanos(1)).total() < target);
        }
    }

    #[test]
    fn an_instant_from_the_past_takes_nothing_back() {
        let start = Instant::now();
        let mut clock = MeterClock::new(start);
        clock.enter(Phase::Run, start);
        let later = start + Duration::from_millis(500);
        clock.enter(Phase::Stalled, later);
        clock.enter(Phase::Run, start);
        assert_eq!(clock.usage(later).run, GpuMillis::new(500));
    }

    #[test]
    fn free_phases_reach_no_limit() {
        let now = Instant::now();
        assert_eq!(MeterClock::new(now).reaches(GpuMillis::new(1), now), None);
    }
}
