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
use tokio::time::sleep_until;

use crate::clock::wall_now;
use crate::desk::{Desk, Place};
use crate::frames::JobWire;
use crate::gate::{YieldSignal, owner_needs_it};
use crate::intake::{AcceptedJob, ExecOrder, NotTaken, Task, take_job};
use crate::labour::{Labour, LabourEvent, Setback};
use crate::metered::{AccountFault, Closed, Ending, MeteredRun};
use crate::report::Reporter;
use crate::verify::started_late;
use crate::worker_slot::Lease;

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
pub async fn serve(desk: Arc<Desk>, mut wire: JobWire, stop: YieldSignal, reporter: Reporter) {
    let peer = wire.peer();
    match take_job(&desk, &mut wire, &stop).await {
        Ok(job) => {
            let _open = desk.gate().job_opened();
            reporter.job_accepted(job.admitted.verified().contract().lane);
            let closed = drive(&desk, wire, job, &stop).await;
            let completed = closed.reason == CloseReason::Completed;
            let counter = if completed { &desk.counts.done } else { &desk.counts.ended_early };
            counter.fetch_add(1, Ordering::Relaxed);
            if closed.reason == CloseReason::OwnerYield {
                desk.counts.yielded.fetch_add(1, Ordering::Relaxed);
            }
            reporter.job_closed(&closed);
        }
        Err(NotTaken::Refused(refusal)) => {
            reporter.job_refused(peer, &refusal);
            wire.finish(&ProviderFrame::Refuse(refusal)).await;
        }
        Err(NotTaken::Gone(error)) => tracing::debug!(peer = %peer.short(), %error, "no job came"),
    }
}

async fn drive(desk: &Arc<Desk>, wire: JobWire, job: AcceptedJob, stop: &YieldSignal) -> Closed {
    let AcceptedJob { admitted, place, task, live } = job;
    let books = MeteredRun::open(Arc::clone(desk), &admitted, Instant::now());
    let mut driver = Driver { wire, books, stop, cancelled_at: None, works: Phase::Run, stalled: false };
    let ending = match task {
        Task::Generate(spec) => driver.generate(desk, place, &spec).await,
        Task::Exec(order) => driver.exec(desk, place, *order).await,
    };
    let ending = driver.settle(ending).await;
    let closed = driver.books.close(driver.wire, ending).await;
    drop(live);
    closed
}

struct Driver<'a> {
    wire: JobWire,
    books: MeteredRun,
    stop: &'a YieldSignal,
    /// When the worker was told to stop.
    cancelled_at: Option<Instant>,
    /// What the work's time is billed as.
    works: Phase,
    /// Is the work held up until a voucher comes?
    stalled: bool,
}

/// What happened next.
enum Step {
    Stop,
    Tick,
    Frame(RenterFrame),
    Fault(AccountFault),
    Event(Result<Option<LabourEvent>, Setback>),
}

impl Driver<'_> {
    async fn generate(&mut self, desk: &Arc<Desk>, place: Place, spec: &JobSpec) -> Ending {
        let Some(slot) = desk.slot(spec.model) else {
            return worker_failed("the model is not served any more");
        };
        let mut lease = match self.wait_turn(slot.lease(), &place).await {
            Ok(lease) => lease,
            Err(ending) => return ending,
        };
        let (ending, sound) = self.run(&mut lease, spec).await;
        if !sound {
            lease.discard();
        }
        drop(lease);
        drop(place);
        ending
    }

    /// A component has the device to itself: every worker is held and idle while it runs.
    async fn exec(&mut self, desk: &Arc<Desk>, place: Place, order: ExecOrder) -> Ending {
        let Some(guests) = desk.guests() else {
            return worker_failed("components are not run any more");
        };
        let all = async {
            let mut leases = Vec::new();
            // Always in one order, so that two such jobs cannot wait for each other.
            for slot in desk.slots() {
                leases.push(slot.lease().await);
            }
            leases
        };
        let leases = match self.wait_turn(all, &place).await {
            Ok(leases) => leases,
            Err(ending) => return ending,
        };
        self.enter(Phase::Load);
        let mut run = guests.start(desk.slots(), order);
        let outcome = self.follow(&mut run).await;
        self.books.stop_clock(self.worked_until());
        run.end().await;
        drop(leases);
        drop(place);
        outcome.unwrap_or_else(|broken| broken.ending)
    }

    /// Waits for the turn that `lease` gives, first come, first served; free of charge.
    async fn wait_turn<T>(&mut self, lease: impl Future<Output = T>, place: &Place) -> Result<T, Ending> {
        tokio::pin!(lease);
        let lease = loop {
            self.say_phase(Phase::Queued, place.ahead()).await?;
            let next = Instant::now() + HEARTBEAT;
            let step = tokio::select! {
                biased;
                () = self.stop.cancelled() => Step::Stop,
                lease = &mut lease => break lease,
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
        };
        if started_late(self.books.contract(), wall_now()) {
            let why = "the job's turn came after its start deadline";
            return Err(Ending::failed(CloseReason::ProviderFailed, RefusalCode::Expired, why));
        }
        Ok(lease)
    }

    /// Runs the job; also says whether the worker is fit for the next one.
    async fn run(&mut self, lease: &mut Lease, spec: &JobSpec) -> (Ending, bool) {
        let Some(worker) = lease.worker() else {
            let ending = match self.stop.killed_at() {
                Some(_) => yielded(),
                None => worker_failed("the worker is being started anew"),
            };
            return (ending, true);
        };
        self.enter(Phase::Run);
        let outcome = match worker.generate(spec).await {
            Ok(mut run) => self.follow(&mut run).await,
            Err(error) => Err(self.set_back(error.into())),
        };
        self.books.stop_clock(self.worked_until());
        match outcome {
            Ok(ending) => (ending, true),
            Err(Broken { ending, sound }) => (ending, sound),
        }
    }

    /// The work's time is `phase`'s from now on; at once, unless a voucher is waited for.
    fn enter(&mut self, phase: Phase) {
        self.works = phase;
        if self.cancelled_at.is_none() && !self.stalled {
            self.books.clock.enter(phase, Instant::now());
        }
    }

    /// Follows a run until the worker is done with it.
    async fn follow(&mut self, run: &mut impl Labour) -> Result<Ending, Broken> {
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
                    Ok(Some(done)) => return Ok(ending.unwrap_or(done)),
                    Err(fault) => Some(Ending::of_fault(&fault)),
                },
                Step::Event(Ok(None)) => return Err(broken("the worker ended the job without a word")),
                Step::Event(Err(setback)) => match ending {
                    Some(ending) => return Err(Broken { ending, sound: setback.sound }),
                    None => return Err(self.set_back(setback)),
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
    fn cancel(&mut self, run: &mut impl Labour) {
        let now = Instant::now();
        self.books.stop_clock(self.worked_until());
        if self.cancelled_at.is_none() {
            self.cancelled_at = Some(now);
            // A paused worker hears a cancel too.
            if let Err(setback) = run.cancel() {
                tracing::debug!(job = %self.books.lane_id(), why = setback.why, "cancel not delivered");
            }
        }
    }

    /// Until when the worker can have worked: now, unless it was killed before.
    fn worked_until(&self) -> Instant {
        self.stop.killed_at().unwrap_or_else(Instant::now)
    }

    /// The next instant at which something is due.
    fn next_tick(&self, now: Instant) -> Instant {
        if let Some(at) = self.cancelled_at {
            return at + CANCEL_WITHIN;
        }
        let (books, account) = (&self.books, self.books.account());
        let terms = &books.contract().terms;
        let limit = books.ends_at(now);
        let due = match books.waiting_since() {
            Some(since) => {
                let stall = books.clock.reaches(account.paid().total().saturating_add(terms.window), now);
                stall.into_iter().chain([since + VOUCHER_WITHIN]).min()
            }
            None => books.meter_due().and_then(|due| books.clock.reaches(due, now)),
        };
        let heartbeat = self.wire.last_said() + HEARTBEAT;
        limit.into_iter().chain(due).fold(heartbeat, Instant::min)
    }

    /// Does what is due; says so when the job must end.
    async fn tick(&mut self, run: &mut impl Labour) -> Result<Option<Ending>, Broken> {
        let now = Instant::now();
        if let Some(at) = self.cancelled_at {
            let stuck = now >= at + CANCEL_WITHIN;
            return if stuck { Err(broken("the worker did not stop")) } else { Ok(None) };
        }
        if self.books.waiting_since().is_some_and(|since| now >= since + VOUCHER_WITHIN) {
            return Ok(Some(voucher_missing()));
        }
        let usage = self.books.clock.usage(now);
        if self.books.is_used_up(now) {
            return Ok(Some(Ending::stopped(CloseReason::LimitReached, None)));
        }
        if !self.stalled && self.books.account().must_stall(usage) {
            self.stalled = true;
            self.books.clock.enter(Phase::Stalled, now);
            if let Err(setback) = run.pause() {
                return Err(self.set_back(setback));
            }
            return Ok(self.say_phase(Phase::Stalled, 0).await.err());
        }
        if self.books.meter_due().is_some_and(|due| usage.total() >= due) {
            let claimed = self.books.claim(&mut self.wire, false).await;
            return Ok(claimed.err().map(|fault| Ending::of_fault(&fault)));
        }
        if now >= self.wire.last_said() + HEARTBEAT {
            return Ok(self.say_phase(self.books.clock.phase(), 0).await.err());
        }
        Ok(None)
    }

    /// Takes a renter's frame while the job runs.
    async fn frame(&mut self, run: &mut impl Labour, frame: RenterFrame) -> Option<Ending> {
        match frame {
            RenterFrame::Voucher(voucher) => {
                if let Err(fault) = self.books.paid(&mut self.wire, *voucher).await {
                    return Some(Ending::of_fault(&fault));
                }
                let now = Instant::now();
                let stalled = self.cancelled_at.is_none() && self.stalled;
                if stalled && !self.books.account().must_stall(self.books.clock.usage(now)) {
                    if let Err(setback) = run.resume() {
                        return Some(self.set_back(setback).ending);
                    }
                    self.stalled = false;
                    self.books.clock.enter(self.works, now);
                    return self.say_phase(self.works, 0).await.err();
                }
                None
            }
            RenterFrame::Cancel => Some(cancelled()),
            RenterFrame::Open { .. } | RenterFrame::JobPart(_) => Some(out_of_place()),
        }
    }

    /// Passes the work's word on; how the job ended when that was the last.
    async fn event(&mut self, event: LabourEvent) -> Result<Option<Ending>, AccountFault> {
        let frame = match event {
            LabourEvent::Enters(phase) => {
                let told = self.works != phase && !self.stalled;
                self.enter(phase);
                // Only the two long phases are told: a component's calls may be thousands a second.
                if !told || phase == Phase::Run {
                    return Ok(None);
                }
                ProviderFrame::Phase { phase, ahead: 0 }
            }
            LabourEvent::Started { prompt_tokens } => {
                self.books.started(prompt_tokens);
                ProviderFrame::Started { prompt_tokens }
            }
            LabourEvent::Output { tokens, text } => {
                self.books.produced(&tokens);
                ProviderFrame::Output { tokens, text }
            }
            LabourEvent::Progress { permille, note } => ProviderFrame::Progress { permille, note },
            LabourEvent::Log(bytes) => ProviderFrame::Log(bytes),
            LabourEvent::Part(bytes) => {
                self.books.produced_part(&bytes);
                ProviderFrame::OutputPart(bytes)
            }
            LabourEvent::Finished(finish) => {
                self.books.clock.enter(Phase::Stalled, Instant::now());
                return Ok(Some(Ending::completed(finish)));
            }
            LabourEvent::GuestFailed { why } => {
                self.books.clock.enter(Phase::Stalled, Instant::now());
                let refusal = Some(Refusal::new(RefusalCode::GuestFailed, why));
                return Ok(Some(Ending { refusal, ..Ending::completed(FinishReason::Failed) }));
            }
        };
        self.wire.send(&frame).await?;
        Ok(None)
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

    fn set_back(&self, setback: Setback) -> Broken {
        if self.stop.killed_at().is_some() && !setback.sound {
            return Broken { ending: yielded(), sound: false };
        }
        let Setback { reason, code, why, sound } = setback;
        tracing::warn!(job = %self.books.lane_id(), why, "work failed");
        Broken { ending: Ending::failed(reason, code, why), sound }
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
    Ending::stopped(CloseReason::OwnerYield, Some(owner_needs_it()))
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
