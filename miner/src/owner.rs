//! Whether the owner lends the machine: a pure state machine.
//!
//! Owns: [`Owner`] and what each of its stages allows. Never: reads a clock (`now` comes in), stops a
//! job or a worker, or touches a disk ([`crate::pausing`] does). Called by [`crate::gate`].
//!
//! ```text
//!             pause            no job left            all workers gone
//!   Running ────────▶ Draining ───────────▶ Stopping ─────────────────▶ Paused
//!      │                  └──────pause --now──▲                            │
//!      └──────────────────────────pause --now─┘                            │
//!      ▲                                                                   │
//!      └──── resume, or the end of the pause, from any of the three ───────┘
//! ```

use std::time::Duration;

use potluck_protocol::unit::UnixMillis;
use serde::{Deserialize, Serialize};

/// What becomes of the jobs that run when the owner wants the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Haste {
    /// They are let finish.
    Finish,
    /// They are stopped and settled.
    Now,
}

/// How far the machine is the owner's own again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Lent: jobs are taken.
    Running,
    /// No job is taken; those that were go on.
    Draining,
    /// No job may go on; the workers are being ended.
    Stopping,
    /// No worker is left.
    Paused,
}

/// A pause as it is kept over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// When it ends by itself (wall clock, so that a restart keeps it); `None` for never.
    pub until_ms: Option<u64>,
}

/// Whether the machine is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    stage: Stage,
    until: Option<UnixMillis>,
}

impl Owner {
    /// The state to start in: paused when a pause was kept that has not ended at `now`.
    #[must_use]
    pub fn start(kept: Option<Pause>, now: UnixMillis) -> Self {
        let mut owner = match kept {
            Some(pause) => Self { stage: Stage::Paused, until: pause.until_ms.map(UnixMillis::new) },
            None => Self { stage: Stage::Running, until: None },
        };
        owner.tick(now);
        owner
    }

    /// The owner wants the machine, until `until` or for good. The last word counts for the end; what
    /// is under way never becomes slower.
    pub fn pause(&mut self, haste: Haste, until: Option<UnixMillis>) {
        self.until = until;
        self.stage = match (self.stage, haste) {
            (Stage::Running, Haste::Finish) => Stage::Draining,
            (Stage::Running | Stage::Draining, Haste::Now) => Stage::Stopping,
            (stage, _) => stage,
        };
    }

    /// The owner lends it again.
    pub fn resume(&mut self) {
        *self = Self { stage: Stage::Running, until: None };
    }

    /// No job has a worker or waits for one.
    pub fn idle(&mut self) {
        if self.stage == Stage::Draining {
            self.stage = Stage::Stopping;
        }
    }

    /// No worker is left.
    pub fn freed(&mut self) {
        if self.stage == Stage::Stopping {
            self.stage = Stage::Paused;
        }
    }

    /// Ends a pause whose time is over; says whether it did.
    pub fn tick(&mut self, now: UnixMillis) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.resume();
        }
        over
    }

    /// The stage.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// When the pause ends by itself.
    #[must_use]
    pub fn until(&self) -> Option<UnixMillis> {
        self.until
    }

    /// May a job be taken, or an offer stand?
    #[must_use]
    pub fn admits(&self) -> bool {
        self.stage == Stage::Running
    }

    /// Shall workers be up?
    #[must_use]
    pub fn wants_workers(&self) -> bool {
        matches!(self.stage, Stage::Running | Stage::Draining)
    }

    /// What a restart must know.
    #[must_use]
    pub fn kept(&self) -> Option<Pause> {
        (self.stage != Stage::Running).then(|| Pause { until_ms: self.until.map(UnixMillis::get) })
    }

    /// How long until [`Self::tick`] ends the pause; `None` when only the owner does.
    #[must_use]
    pub fn left(&self, now: UnixMillis) -> Option<Duration> {
        self.until.map(|until| Duration::from_millis(until.saturating_sub(now).get()))
    }

    /// For people: `paused until 18:00 UTC (29 min left)`.
    #[must_use]
    pub fn words(&self, now: UnixMillis) -> String {
        let stage = match self.stage {
            Stage::Running => return "lent".into(),
            Stage::Draining => "pausing: jobs are let finish",
            Stage::Stopping => "pausing: workers are being ended",
            Stage::Paused => "paused",
        };
        match (self.until, self.left(now)) {
            (Some(until), Some(left)) => {
                format!("{stage} until {} ({} left)", time_of_day(until), rounded(left))
            }
            _ => format!("{stage}; `potluckd resume` ends it"),
        }
    }
}

/// The wall clock at `at`, in UTC: the zone of this machine is not ours to guess.
fn time_of_day(at: UnixMillis) -> String {
    let minutes = at.get() / 60_000;
    format!("{:02}:{:02} UTC", minutes / 60 % 24, minutes % 60)
}

/// Rounded up, for people.
fn rounded(left: Duration) -> String {
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    let minutes = seconds.div_ceil(60);
    match (seconds, minutes) {
        (0..=90, _) => format!("{seconds} s"),
        (_, 0..=120) => format!("{minutes} min"),
        (_, 121..=2_880) => format!("{} h", minutes.div_ceil(60)),
        _ => format!("{} days", minutes.div_ceil(60 * 24)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything that can happen to an owner's machine.
    #[derive(Debug, Clone, Copy)]
    enum Act {
        Pause(Haste, Option<u64>),
        Resume,
        Idle,
        Freed,
        Tick,
    }

    fn act() -> impl Strategy<Value = Act> {
        let haste = prop_oneof![Just(Haste::Finish), Just(Haste::Now)];
        prop_oneof![
            3 => (haste, prop::option::of(1..2_000_u64)).prop_map(|(haste, length)| Act::Pause(haste, length)),
            1 => Just(Act::Resume),
            2 => Just(Act::Idle),
            2 => Just(Act::Freed),
            2 => Just(Act::Tick),
        ]
    }

    fn life() -> impl Strategy<Value = Vec<(u64, Act)>> {
        prop::collection::vec((0..1_000_u64, act()), 0..60)
    }

    fn apply(owner: &mut Owner, act: Act, now: u64) {
        match act {
            Act::Pause(haste, length) => owner.pause(haste, length.map(|ms| UnixMillis::new(now + ms))),
            Act::Resume => owner.resume(),
            Act::Idle => owner.idle(),
            Act::Freed => owner.freed(),
            Act::Tick => {
                owner.tick(UnixMillis::new(now));
            }
        }
    }

    /// The owner after `life`, and the time then.
    fn after(life: &[(u64, Act)]) -> (Owner, u64) {
        let (mut owner, mut now) = (Owner::start(None, UnixMillis::ZERO), 0);
        for (passed, act) in life {
            now += passed;
            apply(&mut owner, *act, now);
        }
        (owner, now)
    }

    proptest! {
        /// Only the owner's word or the end of the pause lends the machine again.
        #[test]
        fn nothing_is_lent_before_a_resume_or_the_end(life in life()) {
            let (mut owner, mut now) = (Owner::start(None, UnixMillis::ZERO), 0);
            for (passed, act) in life {
                now += passed;
                let before = owner;
                apply(&mut owner, act, now);
                if !before.admits() && owner.admits() {
                    let ended = before.until().is_some_and(|until| until.get() <= now);
                    prop_assert!(matches!(act, Act::Resume) || (matches!(act, Act::Tick) && ended), "{act:?}");
                }
                if before.admits() && !owner.admits() {
                    prop_assert!(matches!(act, Act::Pause(..)), "{act:?}");
                }
                prop_assert!(!owner.admits() || owner.until().is_none());
            }
        }

        /// "Paused" is said only after the workers were told to end and were seen gone.
        #[test]
        fn paused_is_reached_through_stopping(life in life()) {
            let (mut owner, mut now) = (Owner::start(None, UnixMillis::ZERO), 0);
            for (passed, act) in life {
                now += passed;
                let before = owner.stage();
                apply(&mut owner, act, now);
                if before != Stage::Paused && owner.stage() == Stage::Paused {
                    prop_assert!(before == Stage::Stopping && matches!(act, Act::Freed));
                }
                let wanted = matches!(owner.stage(), Stage::Running | Stage::Draining);
                prop_assert_eq!(owner.wants_workers(), wanted);
            }
        }

        /// The same word twice is the same word once; a softer one does not slow a harder one down.
        #[test]
        fn words_are_idempotent_and_haste_stays(life in life(), until in prop::option::of(0..100_000_u64)) {
            let (owner, _) = after(&life);
            let until = until.map(UnixMillis::new);
            for haste in [Haste::Finish, Haste::Now] {
                let mut once = owner;
                once.pause(haste, until);
                prop_assert!(!once.admits() && once.until() == until);
                let mut twice = once;
                twice.pause(haste, until);
                prop_assert_eq!(once, twice);
                if haste == Haste::Now {
                    twice.pause(Haste::Finish, until);
                    prop_assert_eq!(once, twice);
                    prop_assert!(!once.wants_workers());
                }
            }
            let mut once = owner;
            once.resume();
            let mut twice = once;
            twice.resume();
            prop_assert!(once == twice && once.admits());
        }

        /// A daemon that is restarted is paused exactly if it would be without the restart.
        #[test]
        fn a_restart_keeps_a_pause_until_its_end(life in life(), off in 0..5_000_u64) {
            let (mut owner, now) = after(&life);
            let later = UnixMillis::new(now + off);
            let restarted = Owner::start(owner.kept(), later);
            owner.tick(later);
            prop_assert_eq!(restarted.admits(), owner.admits());
            prop_assert_eq!(restarted.until(), owner.until());
            prop_assert!(restarted.admits() || restarted.stage() == Stage::Paused);
        }

        /// A pause with an end is over at that millisecond and not one before.
        #[test]
        fn a_pause_ends_on_time(now in 0..1_000_000_u64, length in 1..1_000_000_u64) {
            let mut owner = Owner::start(None, UnixMillis::new(now));
            owner.pause(Haste::Now, Some(UnixMillis::new(now + length)));
            prop_assert_eq!(owner.left(UnixMillis::new(now)), Some(Duration::from_millis(length)));
            prop_assert!(!owner.tick(UnixMillis::new(now + length - 1)));
            prop_assert!(owner.tick(UnixMillis::new(now + length)) && owner.admits());
        }
    }

    #[test]
    fn people_read_when_it_ends() {
        let at = |hours: u64, minutes: u64| UnixMillis::new((hours * 60 + minutes) * 60_000);
        let mut owner = Owner::start(Some(Pause { until_ms: Some(at(18, 0).get()) }), at(17, 31));
        assert_eq!(owner.words(at(17, 31)), "paused until 18:00 UTC (29 min left)");
        assert_eq!(owner.words(at(14, 0)), "paused until 18:00 UTC (4 h left)");
        owner.pause(Haste::Now, None);
        assert_eq!(owner.words(at(17, 31)), "paused; `potluckd resume` ends it");
        assert_eq!(rounded(Duration::from_millis(1)), "1 s");
        assert_eq!(rounded(Duration::from_secs(3 * 86_400)), "3 days");
    }
}
