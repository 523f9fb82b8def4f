//! One run of a renter's component: its artefact, its models' workers and itself, in that order.
//!
//! Owns: the task that starts these processes, relays between them (they never meet) and tells the
//! driver whose time it is: loading, the component's, or a model's. Never: bills, talks to the renter
//! or looks into a message. Called by [`crate::driver`], which follows an [`ExecRun`] like any labour.
//!
//! ```text
//! compile (or the cache) ──▶ a worker for each model ──▶ the component ──▶ finished
//!        Load                        Load                Guest ⇄ Run (a call is with a model)
//! ```
//!
//! The task ends when it is done, cancelled, or its [`ExecRun`] is dropped; its processes end with it.

use std::sync::Arc;
use std::time::Duration;

use potluck_protocol::job::FinishReason;
use potluck_protocol::limits::MAX_OUTPUT_BYTES;
use potluck_protocol::settle::Phase;
use potluck_sandbox::guest::supervisor::{Guest, GuestStep};
use potluck_sandbox::supervisor::{ModelRun, Worker};
use potluck_sandbox::tensor::{ModelCallError, ModelReply, ModelRequest};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::guests::{GuestHouse, GuestJob, NoArtefact};
use crate::intake::ExecOrder;
use crate::labour::{Labour, LabourEvent, Setback};
use crate::worker_slot::WorkerSlot;

/// Events that wait for the driver; a component that says more waits.
const MAX_WAITING: usize = 16;
/// What the processes get to end in, once they are killed.
const END_WITHIN: Duration = Duration::from_secs(10);

/// What the driver wants of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Go,
    Wait,
    End,
}

/// A component at work.
#[derive(Debug)]
pub(crate) struct ExecRun {
    events: mpsc::Receiver<Result<LabourEvent, Setback>>,
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl ExecRun {
    /// Starts it; the workers of `slots` must be idle and stay so.
    pub(crate) fn start(house: &GuestHouse, slots: &[Arc<WorkerSlot>], order: ExecOrder) -> Self {
        let (sender, events) = mpsc::channel(MAX_WAITING);
        let (wish, wished) = watch::channel(Wish::Go);
        let named = |hash| slots.iter().find(|slot| slot.model().hash == hash).cloned();
        let models = order.spec.models.iter().map(|model| named(model.model)).collect();
        let job = ExecJob { house: house.clone(), models, order, wished, out: sender.clone() };
        let task = tokio::spawn(async move {
            let ended = job.run().await;
            if let Err(setback) = ended {
                // A driver that is gone has no use for it.
                let _ = sender.send(Err(setback)).await;
            }
        });
        Self { events, wish, task }
    }

    /// Waits until its processes are gone.
    pub(crate) async fn end(self) {
        let Self { events, wish, mut task } = self;
        drop((events, wish));
        if timeout(END_WITHIN, &mut task).await.is_err() {
            tracing::error!("a component's processes do not end");
            task.abort();
        }
    }
}

impl Labour for ExecRun {
    async fn next(&mut self) -> Result<Option<LabourEvent>, Setback> {
        self.events.recv().await.transpose()
    }

    fn pause(&mut self) -> Result<(), Setback> {
        self.wish.send_replace(Wish::Wait);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Setback> {
        self.wish.send_replace(Wish::Go);
        Ok(())
    }

    fn cancel(&mut self) -> Result<(), Setback> {
        self.wish.send_replace(Wish::End);
        Ok(())
    }
}

/// The task's own side.
struct ExecJob {
    house: GuestHouse,
    /// One for each model that the job names, in its order.
    models: Vec<Option<Arc<WorkerSlot>>>,
    order: ExecOrder,
    wished: watch::Receiver<Wish>,
    out: mpsc::Sender<Result<LabourEvent, Setback>>,
}

/// Why the task stops early without a setback.
struct Ended;

/// What a wait came to.
type Waited<T> = Result<T, Ended>;

impl ExecJob {
    async fn run(mut self) -> Result<(), Setback> {
        match self.work().await? {
            Ok(()) => Ok(()),
            Err(Ended) => {
                self.say(LabourEvent::Finished(FinishReason::Cancelled)).await;
                Ok(())
            }
        }
    }

    async fn work(&mut self) -> Result<Waited<()>, Setback> {
        let component = self.order.component.take();
        let spec = self.order.spec.clone();
        let mut wished = self.wished.clone();
        let artefact = match or_ended(&mut wished, self.house.artefact(spec.component, component)).await {
            Ok(Ok(artefact)) => artefact,
            Ok(Err(refused)) => return self.not_compiled(&refused).await.map(Ok),
            Err(ended) => return Ok(Err(ended)),
        };
        let mut workers = Vec::new();
        for (slot, named) in self.models.iter().zip(&spec.models) {
            let Some(slot) = slot else {
                return Err(Setback::ours(format!("the model {} is not served any more", named.name)));
            };
            match or_ended(&mut wished, slot.start_another()).await {
                Ok(worker) => workers.push(worker.map_err(|error| Setback::ours(error.to_string()))?),
                Err(ended) => return Ok(Err(ended)),
            }
        }
        let job = GuestJob { spec: &spec, compute: self.order.compute };
        let guest = match or_ended(&mut wished, self.house.guest(artefact, &job)).await {
            Ok(Ok(guest)) => guest,
            Ok(Err(error)) if error.is_guests_fault() => {
                self.say(LabourEvent::GuestFailed { why: error.to_string() }).await;
                return Ok(Ok(()));
            }
            Ok(Err(error)) => return Err(Setback::ours(error.to_string())),
            Err(ended) => return Ok(Err(ended)),
        };
        self.serve(guest, &mut workers, &job).await
    }

    async fn not_compiled(&self, why: &NoArtefact) -> Result<(), Setback> {
        if !why.is_guests_fault() {
            return Err(Setback::ours(why.to_string()));
        }
        self.say(LabourEvent::GuestFailed { why: why.to_string() }).await;
        Ok(())
    }

    /// Relays until the component is done.
    async fn serve(
        &mut self,
        mut guest: Guest,
        workers: &mut [Worker],
        job: &GuestJob<'_>,
    ) -> Result<Waited<()>, Setback> {
        let mut models = Vec::new();
        for worker in workers {
            models.push(worker.serve().await?);
        }
        let input = std::mem::take(&mut self.order.input);
        if let Err(error) = guest.run(job.start(input)) {
            return Err(Setback::ours(error.to_string()));
        }
        self.say(LabourEvent::Enters(Phase::Guest)).await;
        let mut wished = self.wished.clone();
        loop {
            let step = tokio::select! {
                biased;
                changed = wished.changed() => {
                    let wish = *wished.borrow_and_update();
                    let told = match wish {
                        _ if changed.is_err() => return Ok(Err(Ended)),
                        Wish::End => return Ok(Err(Ended)),
                        Wish::Wait => guest.pause(),
                        Wish::Go => guest.resume(),
                    };
                    told.map_err(|error| Setback::ours(error.to_string()))?;
                    continue;
                }
                step = guest.next() => step,
            };
            match step {
                Ok(GuestStep::Call { call, model, request }) => {
                    let reply = match self.call(&mut models, model, request).await? {
                        Ok(reply) => reply,
                        Err(ended) => return Ok(Err(ended)),
                    };
                    guest.reply(call, reply).map_err(|error| Setback::ours(error.to_string()))?;
                }
                Ok(step) => {
                    if self.pass_on(step).await {
                        return Ok(Ok(()));
                    }
                }
                Err(error) if error.is_guests_fault() => {
                    self.say(LabourEvent::GuestFailed { why: error.to_string() }).await;
                    return Ok(Ok(()));
                }
                Err(error) => return Err(Setback::ours(error.to_string())),
            }
        }
    }

    /// Asks a model, on the model's time. A call that is held up waits before it begins and before its
    /// answer is handed over.
    async fn call(
        &mut self,
        models: &mut [ModelRun<'_>],
        model: u8,
        request: ModelRequest,
    ) -> Result<Waited<Result<ModelReply, ModelCallError>>, Setback> {
        let mut wished = self.wished.clone();
        if let Err(ended) = until_go(&mut wished).await {
            return Ok(Err(ended));
        }
        let Some(model) = models.get_mut(usize::from(model)) else {
            return Err(Setback::ours("the component's worker asked for a model that the job does not name"));
        };
        self.say(LabourEvent::Enters(Phase::Run)).await;
        let reply = match or_ended(&mut wished, model.call(request)).await {
            Ok(reply) => reply?,
            Err(ended) => return Ok(Err(ended)),
        };
        self.say(LabourEvent::Enters(Phase::Guest)).await;
        Ok(until_go(&mut wished).await.map(|()| reply))
    }

    /// Tells the driver; true after the last word.
    async fn pass_on(&mut self, step: GuestStep) -> bool {
        match step {
            GuestStep::Progress { permille, note } => {
                self.say(LabourEvent::Progress { permille: u32::from(permille), note }).await;
            }
            GuestStep::Log(bytes) => self.say(LabourEvent::Log(bytes)).await,
            GuestStep::Finished { output: Ok(output), .. } => {
                for part in output.chunks(MAX_OUTPUT_BYTES) {
                    self.say(LabourEvent::Part(part.to_vec())).await;
                }
                self.say(LabourEvent::Finished(FinishReason::Stop)).await;
                return true;
            }
            GuestStep::Finished { output: Err(why), .. } => {
                self.say(LabourEvent::GuestFailed { why }).await;
                return true;
            }
            GuestStep::Call { .. } => {}
        }
        false
    }

    async fn say(&self, event: LabourEvent) {
        // A driver that is gone is noticed by its wish.
        let _ = self.out.send(Ok(event)).await;
    }
}

/// `work`, unless the run is to end first.
async fn or_ended<T>(wished: &mut watch::Receiver<Wish>, work: impl Future<Output = T>) -> Waited<T> {
    tokio::select! {
        biased;
        _ended = wished.wait_for(|wish| *wish == Wish::End) => Err(Ended),
        done = work => Ok(done),
    }
}

/// Waits while the run is held up.
async fn until_go(wished: &mut watch::Receiver<Wish>) -> Waited<()> {
    match wished.wait_for(|wish| *wish != Wish::Wait).await {
        Ok(wish) if *wish == Wish::Go => Ok(()),
        _ => Err(Ended),
    }
}
