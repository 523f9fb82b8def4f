//! One job from its stream to its close.
//!
//! Owns: when to meter, stall, cancel and give up. Never: what a bill says ([`crate::metered`]) or who
//! gets in ([`crate::intake`]). One task per job, started by [`crate::provider`]; every wait in it is
//! bounded, and it ends with a `Close` in our ledger once the job was accepted.
//!
//! ```text
//! intake ──▶ queued ──▶ running <──▶ stalled ──▶ settling ──▶ closed
//!    │          └──────────┴─────────────┴── renter gone, worker died ──▲
//!    └▶ refused (nothing recorded)
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use potluck_protocol::fault::RefusalCode;
use potluck_protocol::job::{FinishReason, JobSpec};
use potluck_protocol::limits::HEARTBEAT_MS;
use potluck_protocol::settle::{CloseReason, Phase};
use potluck_protocol::wire::{ProviderFrame, Refusal, RenterFrame};
use potluck_sandbox::engine::GenerateError;
use potluck_sandbox::supervisor::{Run, RunError, RunEvent};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::clock::wall_now;
use crate::desk::{Desk, Place};
use crate::frames::JobWire;
use crate::intake::{AcceptedJob, NotTaken, take_job};
use crate::metered::{AccountFault, Closed, Ending, MeteredRun};
use crate::report::Reporter;
use crate::verify::started_late;
use crate::worker_slot::{Lease, WorkerSlot};

/// A voucher that is not here by then does not come.
const VOUCHER_WITHIN: Duration = Duration::from_secs(10);
/// The same, when the owner wants the machine back.
const YIELD_VOUCHER_WITHIN: Duration = Duration::from_secs(2);
/// A worker that goes on for so long after a cancel is broken.
const CANCEL_WITHIN: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_millis(HEARTBEAT_MS);
/// A renter may be silent while it owes nothing; what bounds a job is its limit and its vouchers.
const NO_FRAME_DUE: Duration = Duration::from_secs(86_400);

/// Serves one job stream to its end.
pub async fn serve(desk: Arc<Desk>, mut wire: JobWire, stop: CancellationToken, reporter: Reporter) {
    let peer = wire.peer();
    match take_job(&desk, &mut wire, &stop).await {
        Ok(job) => {
            reporter.job_accepted(job.admitted.verified().contract().lane);
            let closed = drive(&desk, wire, job, &stop).await;
            let completed = closed.reason == CloseReason::Completed;
            let counter = if completed { &desk.counts.done } else { &desk.counts.ended_early };
            counter.fetch_add(1, Ordering::Relaxed);
            reporter.job_closed(&closed);
        }
        Err(NotTaken::Refused(refusal)) => {
            reporter.job_refused(peer, &refusal);
            wire.finish(&ProviderFrame::Refuse(refusal)).await;
        }
        Err(NotTaken::Gone(error)) => tracing::debug!(peer = %peer.short(), %error, "no job came"),
    }
}

async fn drive(desk: &Arc<Desk>, wire: JobWire, job: AcceptedJob, stop: &CancellationToken) -> Closed {
    let AcceptedJob { admitted, place, spec } = job;
    let books = MeteredRun::open(Arc::clone(desk), &admitted, Instant::now());
    let mut driver = Driver { wire, books, stop, cancelled_at: None };
    let ending = match desk.slot(spec.model) {
        Some(slot) => driver.queue_and_run(slot, place, &spec).await,
        None => worker_failed("the model is not served any more"),
    };
    let ending = driver.settle(ending).await;
    driver.books.close(driver.wire, ending).await
}

struct Driver<'a> {
    wire: JobWire,
    books: MeteredRun,
    stop: &'a CancellationToken,
    /// When the worker was told to stop.
    cancelled_at: Option<Instant>,
}

/// What happened next.
enum Step {
    Stop,
    Tick,
    Frame(RenterFrame),
    Fault(AccountFault),
    Event(Result<Option<RunEvent>, RunError>),
}

impl Driver<'_> {
    async fn queue_and_run(&mut self, slot: &Arc<WorkerSlot>, place: Place, spec: &JobSpec) -> Ending {
        let mut lease = match self.wait_turn(slot, &place).await {
            Ok(lease) => lease,
            Err(ending) => return ending,
        };
        if started_late(self.books.contract(), wall_now()) {
            let why = "the job's turn came after its start deadline";
            return Ending::failed(CloseReason::ProviderFailed, RefusalCode::Expired, why);
        }
        let (ending, sound) = self.run(&mut lease, spec).await;
        if !sound {
            lease.discard();
        }
        drop(lease);
        drop(place);
        ending
    }

    /// Waits for the worker, first come, first served; free of charge.
    async fn wait_turn(&mut self, slot: &Arc<WorkerSlot>, place: &Place) -> Result<Lease, Ending> {
        let lease = slot.lease();
        tokio::pin!(lease);
        loop {
            self.say_phase(Phase::Queued, place.ahead()).await?;
            let next = Instant::now() + HEARTBEAT;
            let step = tokio::select! {
                biased;
                () = self.stop.cancelled() => Step::Stop,
                lease = &mut lease => return Ok(lease),
                frame = self.wire.receive(NO_FRAME_DUE) => frame_step(frame),
                () = sleep_until(next.into()) => Step::Tick,
            };
            match step {
                Step::Stop => return Err(yielded()),
                Step::Frame(RenterFrame::Cancel) => return Err(cancelled()),
                Step::Frame(_) => return Err(out_of_place()),
                Step::Fault(fault) => return Err(Ending::of_fault(&fault)),
                Step::Tick | Step::Event(_) => {}
            }
        }
    }

    /// Runs the job; also says whether the worker is fit for the next one.
    async fn run(&mut self, lease: &mut Lease, spec: &JobSpec) -> (Ending, bool) {
        let Some(worker) = lease.worker() else {
            return (worker_failed("the worker is being started anew"), true);
        };
        self.books.clock.enter(Phase::Run, Instant::now());
        let outcome = match worker.generate(spec).await {
            Ok(mut run) => self.follow(&mut run).await,
            Err(error) => Err(self.run_failed(&error)),
        };
        self.books.clock.enter(Phase::Stalled, Instant::now());
        match outcome {
            Ok(ending) => (ending, true),
            Err(Broken { ending, sound }) => (ending, sound),
        }
    }

    /// Follows a run until the worker is done with it.
    async fn follow(&mut self, run: &mut Run<'_>) -> Result<Ending, Broken> {
        let mut ending: Option<Ending> = None;
        loop {
            let tick = self.next_tick(Instant::now());
            let step = tokio::select! {
                biased;
                () = self.stop.cancelled(), if ending.is_none() => Step::Stop,
                () = sleep_until(tick.into()) => Step::Tick,
                frame = self.wire.receive(NO_FRAME_DUE), if ending.as_ref().is_none_or(listens) => {
                    frame_step(frame)
                }
                event = run.next() => Step::Event(event),
            };
            let decided = match step {
                Step::Stop => Some(yielded()),
                Step::Tick => self.tick(run).await?,
                Step::Frame(frame) => self.frame(run, frame).await,
                Step::Fault(fault) => Some(Ending::of_fault(&fault)),
                Step::Event(Ok(Some(event))) => match self.event(event).await {
                    Ok(None) => None,
                    Ok(Some(finish)) => return Ok(ending.unwrap_or(Ending::completed(finish))),
                    Err(fault) => Some(Ending::of_fault(&fault)),
                },
                Step::Event(Ok(None)) => return Err(broken("the worker ended the job without a word")),
                Step::Event(Err(error)) => match ending {
                    Some(ending) => return Err(Broken { ending, sound: is_sound(&error) }),
                    None => return Err(self.run_failed(&error)),
                },
            };
            if let Some(decided) = decided
                && ending.as_ref().is_none_or(|before| before.bill_rest && !decided.bill_rest)
            {
                self.cancel(run);
                ending = Some(decided);
            }
        }
    }

    /// The worker's time ends here, whatever it still does.
    fn cancel(&mut self, run: &mut Run<'_>) {
        let now = Instant::now();
        self.books.clock.enter(Phase::Stalled, now);
        if self.cancelled_at.is_none() {
            self.cancelled_at = Some(now);
            // A paused worker hears a cancel too.
            if let Err(error) = run.cancel() {
                tracing::debug!(job = %self.books.lane_id(), %error, "cancel not delivered");
            }
        }
    }

    /// The next instant at which something is due.
    fn next_tick(&self, now: Instant) -> Instant {
        if let Some(at) = self.cancelled_at {
            return at + CANCEL_WITHIN;
        }
        let (books, account) = (&self.books, self.books.account());
        let terms = &books.contract().terms;
        let load = books.clock.usage(now).load;
        let limit = books.clock.reaches(load.saturating_add(books.run_limit(now)), now);
        let due = match books.waiting_since() {
            Some(since) => {
                let stall = books.clock.reaches(account.paid().total().saturating_add(terms.window), now);
                stall.into_iter().chain([since + VOUCHER_WITHIN]).min()
            }
            None => books.clock.reaches(account.paid().total().saturating_add(terms.quantum), now),
        };
        let heartbeat = self.wire.last_said() + HEARTBEAT;
        limit.into_iter().chain(due).fold(heartbeat, Instant::min)
    }

    /// Does what is due; says so when the job must end.
    async fn tick(&mut self, run: &mut Run<'_>) -> Result<Option<Ending>, Broken> {
        let now = Instant::now();
        if let Some(at) = self.cancelled_at {
            let stuck = now >= at + CANCEL_WITHIN;
            return if stuck { Err(broken("the worker did not stop")) } else { Ok(None) };
        }
        if self.books.waiting_since().is_some_and(|since| now >= since + VOUCHER_WITHIN) {
            return Ok(Some(voucher_missing()));
        }
        let usage = self.books.clock.usage(now);
        if usage.run >= self.books.run_limit(now) {
            return Ok(Some(Ending::stopped(CloseReason::LimitReached, None)));
        }
        let running = self.books.clock.phase() == Phase::Run;
        if running && self.books.account().must_stall(usage) {
            self.books.clock.enter(Phase::Stalled, now);
            if let Err(error) = run.pause() {
                return Err(self.run_failed(&error));
            }
            return Ok(self.say_phase(Phase::Stalled, 0).await.err());
        }
        let due = self.books.account().paid().total().saturating_add(self.books.contract().terms.quantum);
        if !self.books.account().is_unpaid() && usage.total() >= due {
            let claimed = self.books.claim(&mut self.wire, false).await;
            return Ok(claimed.err().map(|fault| Ending::of_fault(&fault)));
        }
        if now >= self.wire.last_said() + HEARTBEAT {
            return Ok(self.say_phase(self.books.clock.phase(), 0).await.err());
        }
        Ok(None)
    }

    /// Takes a renter's frame while the job runs.
    async fn frame(&mut self, run: &mut Run<'_>, frame: RenterFrame) -> Option<Ending> {
        match frame {
            RenterFrame::Voucher(voucher) => {
                if let Err(fault) = self.books.paid(&mut self.wire, *voucher).await {
                    return Some(Ending::of_fault(&fault));
                }
                let now = Instant::now();
                let stalled = self.cancelled_at.is_none() && self.books.clock.phase() == Phase::Stalled;
                if stalled && !self.books.account().must_stall(self.books.clock.usage(now)) {
                    if let Err(error) = run.resume() {
                        return Some(self.run_failed(&error).ending);
                    }
                    self.books.clock.enter(Phase::Run, now);
                    return self.say_phase(Phase::Run, 0).await.err();
                }
                None
            }
            RenterFrame::Cancel => Some(cancelled()),
            RenterFrame::Open { .. } | RenterFrame::JobPart(_) => Some(out_of_place()),
        }
    }

    /// Passes the worker's word on; the finish when that was the last.
    async fn event(&mut self, event: RunEvent) -> Result<Option<FinishReason>, AccountFault> {
        match event {
            RunEvent::Started { prompt_tokens } => {
                self.books.started(prompt_tokens);
                self.wire.send(&ProviderFrame::Started { prompt_tokens }).await?;
                Ok(None)
            }
            RunEvent::Output { tokens, text } => {
                self.books.produced(&tokens);
                self.wire.send(&ProviderFrame::Output { tokens, text }).await?;
                Ok(None)
            }
            RunEvent::Finished { reason, .. } => {
                self.books.clock.enter(Phase::Stalled, Instant::now());
                Ok(Some(reason))
            }
        }
    }

    /// Claims what is left, waits for its voucher, and says how the job ends then.
    async fn settle(&mut self, ending: Ending) -> Ending {
        let lost = |ending: &Ending| !listens(ending);
        loop {
            if lost(&ending) || (!self.books.account().is_unpaid() && self.books.account().ended()) {
                return ending;
            }
            if !self.books.account().is_unpaid() {
                if !ending.bill_rest || !self.books.has_rest(Instant::now()) {
                    return ending;
                }
                if let Err(fault) = self.books.claim(&mut self.wire, true).await {
                    return Ending::of_fault(&fault);
                }
            }
            let asked = self.books.waiting_since().unwrap_or_else(Instant::now);
            let patience = if self.stop.is_cancelled() { YIELD_VOUCHER_WITHIN } else { VOUCHER_WITHIN };
            let step = tokio::select! {
                biased;
                frame = self.wire.receive(NO_FRAME_DUE) => frame_step(frame),
                () = self.stop.cancelled(), if !self.stop.is_cancelled() => Step::Stop,
                () = sleep_until((asked + patience).into()) => Step::Tick,
            };
            match step {
                Step::Frame(RenterFrame::Voucher(voucher)) => {
                    if let Err(fault) = self.books.paid(&mut self.wire, *voucher).await {
                        return Ending::of_fault(&fault);
                    }
                }
                // It crossed the end of the job on its way.
                Step::Frame(RenterFrame::Cancel) | Step::Stop | Step::Event(_) => {}
                Step::Frame(_) => return out_of_place(),
                Step::Fault(fault) => return Ending::of_fault(&fault),
                Step::Tick => return voucher_missing(),
            }
        }
    }

    async fn say_phase(&mut self, phase: Phase, ahead: u32) -> Result<(), Ending> {
        self.wire
            .send(&ProviderFrame::Phase { phase, ahead })
            .await
            .map_err(|fault| Ending::of_fault(&AccountFault::Stream(fault)))
    }

    fn run_failed(&self, error: &RunError) -> Broken {
        tracing::warn!(job = %self.books.lane_id(), %error, "run failed");
        let (reason, code) = match error {
            RunError::Job(GenerateError::PromptTooLong { .. }) => {
                (CloseReason::RenterFailed, RefusalCode::PromptTooLong)
            }
            RunError::InvalidJob(_) => (CloseReason::RenterFailed, RefusalCode::Malformed),
            _ => (CloseReason::ProviderFailed, RefusalCode::WorkerFailed),
        };
        Broken { ending: Ending::failed(reason, code, error.to_string()), sound: is_sound(error) }
    }
}

/// A run that did not end by its own word.
struct Broken {
    ending: Ending,
    /// Is the worker fit for the next job?
    sound: bool,
}

fn broken(why: &str) -> Broken {
    Broken { ending: worker_failed(why), sound: false }
}

fn is_sound(error: &RunError) -> bool {
    matches!(error, RunError::Job(_) | RunError::InvalidJob(_))
}

/// Is the renter still worth listening to?
fn listens(ending: &Ending) -> bool {
    !matches!(ending.reason, CloseReason::PeerLost | CloseReason::RenterFailed)
}

fn frame_step(frame: Result<RenterFrame, crate::frames::StreamFault>) -> Step {
    frame.map_or_else(|fault| Step::Fault(AccountFault::Stream(fault)), Step::Frame)
}

fn cancelled() -> Ending {
    Ending::stopped(CloseReason::RenterCancelled, None)
}

fn yielded() -> Ending {
    let refusal = Refusal::new(RefusalCode::OwnerYield, "the owner wants the machine back");
    Ending::stopped(CloseReason::OwnerYield, Some(refusal))
}

fn worker_failed(why: &str) -> Ending {
    Ending::failed(CloseReason::ProviderFailed, RefusalCode::WorkerFailed, why)
}

fn voucher_missing() -> Ending {
    let why = format!("no voucher came within {} s", VOUCHER_WITHIN.as_secs());
    Ending::failed(CloseReason::RenterFailed, RefusalCode::VoucherMissing, why)
}

fn out_of_place() -> Ending {
    let why = "a frame came where none of its kind is due";
    Ending::failed(CloseReason::RenterFailed, RefusalCode::Malformed, why)
}
