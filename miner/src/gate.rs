//! The owner's gate: whether the machine is lent, as every task of the daemon sees it.
//!
//! Owns: the current [`Owner`], the signal that stops jobs, and the count of jobs that are not closed.
//! Never: waits, signs, or ends a process ([`crate::pausing`] does). Called by the desk (may a job come
//! in?), the driver (must it stop?), the worker slots (shall a worker be up?) and the run loop.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use potluck_protocol::fault::RefusalCode;
use potluck_protocol::wire::Refusal;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::owner::Owner;

/// Tells jobs to stop for the owner's sake: the daemon ends, or the machine is wanted now.
#[derive(Debug, Clone)]
pub struct YieldSignal {
    token: CancellationToken,
    killed_at: Arc<OnceLock<Instant>>,
}

impl YieldSignal {
    fn below(stop: &CancellationToken) -> Self {
        Self { token: stop.child_token(), killed_at: Arc::default() }
    }

    /// Resolves when jobs must stop.
    pub fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.token.cancelled()
    }

    /// Must jobs stop?
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// When the workers were killed under their jobs: nothing after it is billed. `None` while a worker
    /// is still to be told to stop.
    #[must_use]
    pub fn killed_at(&self) -> Option<Instant> {
        self.killed_at.get().copied()
    }
}

/// The gate.
#[derive(Debug)]
pub struct Gate {
    owner: watch::Sender<Owner>,
    stop: CancellationToken,
    signal: Mutex<YieldSignal>,
    /// Jobs accepted and not closed.
    open_jobs: watch::Sender<usize>,
    /// Rises when a worker becomes ready.
    workers_ready: watch::Sender<u64>,
    job_left: Notify,
}

impl Gate {
    /// A gate in the state of `owner`; `stop` ends the daemon and all jobs with it.
    #[must_use]
    pub fn new(owner: Owner, stop: &CancellationToken) -> Self {
        Self {
            owner: watch::Sender::new(owner),
            stop: stop.clone(),
            signal: Mutex::new(YieldSignal::below(stop)),
            open_jobs: watch::Sender::new(0),
            workers_ready: watch::Sender::new(0),
            job_left: Notify::new(),
        }
    }

    /// The state now.
    #[must_use]
    pub fn owner(&self) -> Owner {
        *self.owner.borrow()
    }

    /// The state as it changes.
    #[must_use]
    pub fn watch_owner(&self) -> watch::Receiver<Owner> {
        self.owner.subscribe()
    }

    /// Changes the state; the state then. Nobody is woken when it stays the same.
    pub fn change(&self, change: impl FnOnce(&mut Owner)) -> Owner {
        self.owner.send_if_modified(|owner| {
            let before = *owner;
            change(owner);
            *owner != before
        });
        self.owner()
    }

    /// Why no job is taken; `None` while the machine is lent.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        (!self.owner().admits()).then(owner_needs_it)
    }

    /// What tells a job that begins now to stop.
    #[must_use]
    pub fn signal(&self) -> YieldSignal {
        self.signal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops every job that runs: its workers are killed from `now` on.
    pub fn stop_jobs(&self, now: Instant) {
        let signal = self.signal();
        // Before the token, so that whoever wakes by it knows. A second stop changes nothing.
        signal.killed_at.get_or_init(|| now);
        signal.token.cancel();
    }

    /// Jobs that begin from now on may go on.
    pub fn let_jobs(&self) {
        let mut signal = self.signal.lock().unwrap_or_else(PoisonError::into_inner);
        if signal.killed_at().is_some() {
            *signal = YieldSignal::below(&self.stop);
        }
    }

    /// A job was accepted; it counts as open until the guard is dropped.
    #[must_use]
    pub fn job_opened(self: &Arc<Self>) -> OpenJob {
        self.open_jobs.send_modify(|open| *open += 1);
        OpenJob { gate: Arc::clone(self) }
    }

    /// Jobs accepted and not closed, as they change.
    #[must_use]
    pub fn watch_open_jobs(&self) -> watch::Receiver<usize> {
        self.open_jobs.subscribe()
    }

    /// Notes that a worker is ready.
    pub fn worker_ready(&self) {
        self.workers_ready.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Changes when a worker becomes ready.
    #[must_use]
    pub fn watch_workers(&self) -> watch::Receiver<u64> {
        self.workers_ready.subscribe()
    }

    /// Notes that a job gave its place back.
    pub fn place_left(&self) {
        self.job_left.notify_one();
    }

    /// Resolves after a job gave its place back; for one waiter.
    pub async fn place_has_left(&self) {
        self.job_left.notified().await;
    }
}

/// What a renter is told, in a quote's stead or at the end of a job. It blames nobody.
#[must_use]
pub fn owner_needs_it() -> Refusal {
    Refusal::new(RefusalCode::OwnerYield, "the owner needs the machine")
}

/// An accepted job that is not closed yet.
#[derive(Debug)]
pub struct OpenJob {
    gate: Arc<Gate>,
}

impl Drop for OpenJob {
    fn drop(&mut self) {
        self.gate.open_jobs.send_modify(|open| *open = open.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owner::Haste;
    use potluck_protocol::unit::UnixMillis;
    use std::time::Duration;

    fn gate() -> (Arc<Gate>, CancellationToken) {
        let stop = CancellationToken::new();
        (Arc::new(Gate::new(Owner::start(None, UnixMillis::ZERO), &stop)), stop)
    }

    #[test]
    fn a_stop_reaches_the_jobs_before_it_and_none_after_the_resume() {
        let (gate, stop) = gate();
        let before = gate.signal();
        let now = Instant::now();
        gate.stop_jobs(now);
        gate.stop_jobs(now + Duration::from_secs(9));
        assert!(before.is_cancelled());
        assert_eq!(before.killed_at(), Some(now), "the first stop is when the work ended");
        assert!(gate.signal().is_cancelled(), "a job that slips in during the pause would run");
        gate.let_jobs();
        let after = gate.signal();
        assert!(!after.is_cancelled() && after.killed_at().is_none());
        assert!(before.is_cancelled());
        // The daemon's own end reaches all, and kills no worker.
        stop.cancel();
        assert!(after.is_cancelled() && after.killed_at().is_none());
    }

    #[test]
    fn a_resume_without_a_stop_leaves_running_jobs_their_signal() {
        let (gate, _stop) = gate();
        let running = gate.signal();
        gate.let_jobs();
        gate.stop_jobs(Instant::now());
        assert!(running.is_cancelled());
    }

    #[test]
    fn the_refusal_blames_nobody_and_open_jobs_are_counted() {
        let (gate, _stop) = gate();
        assert_eq!(gate.refusal(), None);
        gate.change(|owner| owner.pause(Haste::Finish, None));
        let refusal = gate.refusal().unwrap();
        assert_eq!(refusal.code.fault(), potluck_protocol::fault::Fault::Nobody);
        let jobs = gate.watch_open_jobs();
        let (first, second) = (gate.job_opened(), gate.job_opened());
        assert_eq!(*jobs.borrow(), 2);
        drop((first, second));
        assert_eq!(*jobs.borrow(), 0);
    }
}
