//! How long a guest has computed, and what interrupts it.
//!
//! Owns: the count of a run's computing time, its ticks and its pauses. Never: measures what is
//! billed (the daemon does). Called by the guest's thread, by the listening thread (pause, resume) and
//! by the ticking thread, all of the run worker.
//!
//! A tick moves the engine's epoch on; compiled code looks at the epoch in every loop and call, and
//! then [`Clock::checkpoint`] holds it while the run is paused and ends it when its time is over.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wasmtime::Engine;

/// How often a computing guest is looked at.
const TICK: Duration = Duration::from_millis(5);

/// The clock of one run.
#[derive(Debug)]
pub(super) struct Clock {
    engine: Engine,
    limit: Duration,
    state: Mutex<Count>,
    changed: Condvar,
    expired: Notify,
}

/// Computing time so far.
#[derive(Debug, Default)]
struct Count {
    used: Duration,
    /// The guest has the word, paused or not.
    computing: bool,
    paused: bool,
    /// Since when time has counted that is not in `used` yet.
    since: Option<Instant>,
    over: bool,
}

impl Count {
    fn change(&mut self, now: Instant, with: impl FnOnce(&mut Self)) {
        self.used = self.used_at(now);
        with(self);
        self.since = (self.computing && !self.paused).then_some(now);
    }

    fn used_at(&self, now: Instant) -> Duration {
        self.used + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

impl Clock {
    pub(super) fn new(engine: Engine, limit: Duration) -> Self {
        let state = Mutex::new(Count::default());
        Self { engine, limit, state, changed: Condvar::new(), expired: Notify::new() }
    }

    /// A panic in between leaves plain numbers behind.
    fn count(&self) -> MutexGuard<'_, Count> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, with: impl FnOnce(&mut Count)) {
        self.count().change(Instant::now(), with);
        self.changed.notify_all();
    }

    /// The guest gets the word: time counts. Waits while the run is paused.
    pub(super) fn go(&self) {
        self.wait_while_paused();
        self.change(|count| count.computing = true);
    }

    /// The guest waits for something that is not its own: no time counts.
    pub(super) fn stop(&self) {
        self.change(|count| count.computing = false);
    }

    /// The run is over: the ticks end.
    pub(super) fn finish(&self) {
        self.change(|count| (count.computing, count.over) = (false, true));
    }

    /// The guest is to stop at its next checkpoint.
    pub(super) fn pause(&self) {
        self.change(|count| count.paused = true);
        self.engine.increment_epoch();
    }

    /// The guest is to go on.
    pub(super) fn resume(&self) {
        self.change(|count| count.paused = false);
    }

    /// The guest passes here whenever the epoch has moved; false when its time is over.
    pub(super) fn checkpoint(&self) -> bool {
        self.wait_while_paused();
        !self.is_expired()
    }

    fn is_expired(&self) -> bool {
        self.count().used_at(Instant::now()) >= self.limit
    }

    fn wait_while_paused(&self) {
        // No time limit: the owner may pause for hours. A dead daemon is heard by the listener,
        // which ends the process.
        drop(
            self.changed
                .wait_while(self.count(), |count| count.paused)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Resolves when the time is over: for a guest that sleeps, whom no epoch interrupts.
    pub(super) async fn expired(&self) {
        self.expired.notified().await;
    }

    /// Ticks until the run is over. The ticking thread's whole life.
    pub(super) fn tick(&self) {
        loop {
            let idle = self.changed.wait_while(self.count(), |count| count.since.is_none() && !count.over);
            let count = idle.unwrap_or_else(PoisonError::into_inner);
            let (count, _) = self
                .changed
                .wait_timeout_while(count, TICK, |count| !count.over)
                .unwrap_or_else(PoisonError::into_inner);
            if count.over {
                return;
            }
            drop(count);
            self.engine.increment_epoch();
            if self.is_expired() {
                self.expired.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_computing_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut count = Count::default();
        count.change(at(0), |count| count.computing = true);
        assert_eq!(count.used_at(at(7)), Duration::from_millis(7));
        count.change(at(10), |count| count.computing = false);
        count.change(at(50), |count| count.computing = true);
        assert_eq!(count.used_at(at(55)), Duration::from_millis(15));
        count.change(at(60), |count| count.paused = true);
        assert_eq!(count.used_at(at(90)), Duration::from_millis(20));
        count.change(at(90), |count| count.computing = false);
        count.change(at(95), |count| count.paused = false);
        assert_eq!(count.used_at(at(99)), Duration::from_millis(20));
        count.change(at(100), |count| count.computing = true);
        assert_eq!(count.used_at(at(101)), Duration::from_millis(21));
    }

    #[test]
    fn a_checkpoint_holds_a_paused_guest_and_ends_a_late_one() {
        let engine = super::super::runtime::engine().unwrap();
        let clock = Arc::new(Clock::new(engine.clone(), Duration::from_secs(3_600)));
        clock.go();
        assert!(clock.checkpoint());
        clock.pause();
        let guest = Arc::clone(&clock);
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || tell.send(guest.checkpoint()));
        assert!(told.recv_timeout(Duration::from_millis(20)).is_err());
        clock.resume();
        assert_eq!(told.recv(), Ok(true));
        let late = Clock::new(engine, Duration::ZERO);
        late.go();
        assert!(!late.checkpoint());
    }
}
