//! Taking the machine back from strangers, and lending it again.
//!
//! Owns: the order of a pause (refuse, stop, free, settle, keep) and of a resume, one at a time. Never:
//! decides who asks, or what a stopped job owes ([`crate::driver`] settles it). Called by
//! [`crate::control`] for the owner's word, and by [`crate::provider`] to watch for the last job's end
//! and the end of a pause. Every wait in it is bounded.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use potluck_protocol::unit::UnixMillis;
use potluck_sandbox::supervisor::kill::kill_below;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::clock::wall_now;
use crate::desk::Desk;
use crate::owner::{Haste, Owner, Pause, Stage};
use crate::pause_file::PauseFile;
use crate::report::Reporter;

/// A killed process that is not gone by then is stuck in a driver.
const END_WITHIN: Duration = Duration::from_secs(10);
/// A worker has ended when its turn comes here: only a job's task may still hold what is left of it,
/// while a slow renter takes the last output.
const REAP_WITHIN: Duration = Duration::from_millis(500);
/// A worker that is asked to leave between two jobs.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// Stopped jobs get this long to settle before the owner is answered; they go on settling after it.
const SETTLE_WITHIN: Duration = Duration::from_secs(4);
/// An owner who resumes is answered after this, also when a large model is still being loaded.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// The wall clock is looked at this often: it may be set, and a machine may sleep.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Takes the machine back and lends it again.
#[derive(Debug)]
pub struct Pausing {
    desk: Arc<Desk>,
    file: PauseFile,
    reporter: Reporter,
    /// Held by the change that is under way.
    turn: Mutex<()>,
}

/// What a pause came to.
#[derive(Debug, Clone, Serialize)]
pub struct PauseReport {
    /// How far it is.
    pub state: Stage,
    /// When it ends by itself, in milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// For people.
    pub words: String,
    /// Jobs that are let finish.
    pub jobs_left: usize,
    /// Jobs that were stopped.
    pub jobs_stopped: usize,
    /// Of those, the ones that are settled: the renter has vouched for what was done.
    pub jobs_settled: u64,
    /// Processes that were killed.
    pub processes_killed: usize,
    /// From the order until no thread of a worker could run, in milliseconds.
    pub stopped_ms: Option<u64>,
    /// From the order until nothing of a worker was left, in milliseconds.
    pub freed_ms: Option<u64>,
    /// Does a restart keep the pause? Not when the disk refused.
    pub survives_restart: bool,
}

/// What a resume came to.
#[derive(Debug, Clone, Serialize)]
pub struct ResumeReport {
    /// How far it is.
    pub state: Stage,
    /// Are all models in memory?
    pub warm: bool,
    /// From the order to this answer, in milliseconds.
    pub elapsed_ms: u64,
    /// Does a restart keep it? Not when the disk refused.
    pub survives_restart: bool,
}

/// What the kill did.
struct Killed {
    processes: usize,
    /// When all of them had ended; `None` when one does not.
    stopped: Option<Duration>,
    freed: Option<Duration>,
}

impl Pausing {
    /// Over the machine of `desk`; pauses are kept in `file`.
    #[must_use]
    pub fn new(desk: Arc<Desk>, file: PauseFile, reporter: Reporter) -> Arc<Self> {
        Arc::new(Self { desk, file, reporter, turn: Mutex::default() })
    }

    /// Takes the machine back for `length`, or for good. Answers when it is free, or when jobs are let
    /// finish.
    pub async fn pause(&self, haste: Haste, length: Option<Duration>) -> PauseReport {
        let until = length.map(|length| {
            let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
            wall_now().saturating_add(UnixMillis::new(length))
        });
        match haste {
            Haste::Finish => self.pause_gently(until).await,
            Haste::Now => self.pause_now(until).await,
        }
    }

    async fn pause_gently(&self, until: Option<UnixMillis>) -> PauseReport {
        let survives_restart = {
            let _turn = self.turn.lock().await;
            self.change(|owner| owner.pause(Haste::Finish, until));
            self.keep().await
        };
        let mut owner = self.desk.gate().watch_owner();
        if self.desk.running() == 0 {
            // The watch ends the idle workers; it says so itself when that takes longer.
            let ended = owner.wait_for(|owner| matches!(owner.stage(), Stage::Paused | Stage::Running));
            let _late = timeout(2 * LEAVE_WITHIN, ended).await.is_err();
        }
        PauseReport { survives_restart, ..self.report() }
    }

    async fn pause_now(&self, until: Option<UnixMillis>) -> PauseReport {
        let began = Instant::now();
        let turn = self.turn.lock().await;
        let gate = self.desk.gate();
        let mut open = gate.watch_open_jobs();
        let jobs_stopped = *open.borrow();
        let settled_before = self.desk.counts.yielded.load(Ordering::Relaxed);
        gate.change(|owner| owner.pause(Haste::Now, until));
        for slot in self.desk.slots() {
            slot.withdraw();
        }
        gate.stop_jobs(Instant::now());
        let killed = self.kill(began).await;
        if killed.freed.is_some() {
            gate.change(Owner::freed);
        }
        self.reporter.owner(&gate.owner(), wall_now());
        let survives_restart = self.keep().await;
        drop(turn);
        let late = timeout(SETTLE_WITHIN, open.wait_for(|open| *open == 0)).await.is_err();
        if late {
            tracing::warn!("not every stopped job is settled yet");
        }
        PauseReport {
            jobs_left: 0,
            jobs_stopped,
            jobs_settled: self.desk.counts.yielded.load(Ordering::Relaxed).saturating_sub(settled_before),
            processes_killed: killed.processes,
            stopped_ms: killed.stopped.map(millis),
            freed_ms: killed.freed.map(millis),
            survives_restart,
            ..self.report()
        }
    }

    /// Ends every process that this one started; a model that is being loaded is one too.
    async fn kill(&self, began: Instant) -> Killed {
        let (mut processes, mut all_ended) = (0, true);
        match kill_below(std::process::id()) {
            Ok(doomed) => {
                processes = doomed.count();
                all_ended = doomed.ended(END_WITHIN).await.unwrap_or_else(|error| {
                    tracing::error!(%error, "killed processes cannot be watched");
                    false
                });
            }
            // Their own slots and jobs end them below.
            Err(error) => tracing::error!(%error, "the workers cannot be listed"),
        }
        let stopped = all_ended.then(|| began.elapsed());
        if timeout(REAP_WITHIN, self.take_down(Duration::ZERO)).await.is_err() {
            tracing::debug!("a job's task still holds its ended worker");
        }
        Killed { processes, stopped, freed: all_ended.then(|| began.elapsed()) }
    }

    async fn take_down(&self, grace: Duration) {
        for slot in self.desk.slots() {
            slot.take_down(grace).await;
        }
    }

    /// Lends the machine again. Answers when its models are in memory, or late.
    pub async fn resume(&self) -> ResumeReport {
        let began = Instant::now();
        let resume = |owner: &mut Owner| {
            owner.resume();
            true
        };
        let survives_restart = self.lend(resume).await;
        let warm = timeout(READY_WITHIN, self.all_ready()).await.unwrap_or(false);
        let state = self.desk.gate().owner().stage();
        ResumeReport { state, warm, elapsed_ms: millis(began.elapsed()), survives_restart }
    }

    /// Lends the machine again if `ends` says that the pause has ended; is it kept so?
    async fn lend(&self, ends: impl FnOnce(&mut Owner) -> bool) -> bool {
        let _turn = self.turn.lock().await;
        let mut owner = self.desk.gate().owner();
        if !ends(&mut owner) {
            return true;
        }
        // Before a job can be taken: it must find a signal that lets it run.
        self.desk.gate().let_jobs();
        self.change(|now| *now = owner);
        self.keep().await
    }

    /// Waits until all models are in memory; false when the owner takes the machine back first.
    async fn all_ready(&self) -> bool {
        let (mut owner, mut workers) = (self.desk.gate().watch_owner(), self.desk.gate().watch_workers());
        loop {
            workers.mark_unchanged();
            if self.desk.slots().iter().all(|slot| slot.ready().is_some()) {
                return true;
            }
            tokio::select! {
                biased;
                _ = owner.wait_for(|owner| !owner.admits()) => return false,
                _ = workers.changed() => {}
            }
        }
    }

    /// Frees the machine after the last job of a gentle pause, and ends a pause on time; until `stop`.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let gate = self.desk.gate();
        let mut owner = gate.watch_owner();
        loop {
            let (state, now) = (*owner.borrow_and_update(), wall_now());
            if state.left(now) == Some(Duration::ZERO) {
                self.lend(|owner| owner.tick(now)).await;
                continue;
            }
            if state.stage() == Stage::Draining && self.desk.running() == 0 {
                self.free_idle().await;
                continue;
            }
            let wait = state.left(now).map_or(LOOK_EVERY, |left| left.min(LOOK_EVERY));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                // The sender lives as long as the desk, which is ours.
                _ = owner.changed() => {}
                () = gate.place_has_left() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Ends the workers of a gentle pause, politely.
    async fn free_idle(&self) {
        let _turn = self.turn.lock().await;
        // The owner may have changed its mind while the turn was waited for.
        if self.desk.gate().owner().stage() == Stage::Draining && self.desk.running() == 0 {
            self.desk.gate().change(Owner::idle);
            self.take_down(LEAVE_WITHIN).await;
            self.change(Owner::freed);
        }
    }

    /// Changes the state and tells the owner, if that changed anything.
    fn change(&self, change: impl FnOnce(&mut Owner)) {
        let before = self.desk.gate().owner();
        let owner = self.desk.gate().change(change);
        if owner != before {
            self.reporter.owner(&owner, wall_now());
        }
    }

    /// Makes the state durable; false when the disk refused.
    async fn keep(&self) -> bool {
        let (file, pause): (_, Option<Pause>) = (self.file.clone(), self.desk.gate().owner().kept());
        let saved = tokio::task::spawn_blocking(move || file.save(pause)).await;
        match saved.map_err(std::io::Error::other).and_then(|saved| saved) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "a restart will not know of this");
                false
            }
        }
    }

    /// The state now, nothing stopped.
    fn report(&self) -> PauseReport {
        let owner = self.desk.gate().owner();
        PauseReport {
            state: owner.stage(),
            until_ms: owner.until().map(UnixMillis::get),
            words: owner.words(wall_now()),
            jobs_left: self.desk.running(),
            jobs_stopped: 0,
            jobs_settled: 0,
            processes_killed: 0,
            stopped_ms: None,
            freed_ms: None,
            survives_restart: true,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
