//! One model kept in memory by one worker process, lent to one job at a time.
//!
//! Owns: the worker's start, its turn-taking (a fair lock: first come, first served), and its restart
//! after a failure or a pause. Never: bills (see [`crate::metered`]) or parses the model. Called by
//! [`crate::driver`] (leases), [`crate::provider`] (start, keep, stop) and [`crate::pausing`].
//!
//! ```text
//! Loading ──▶ Ready ──(a job broke it)──▶ Down ──backoff──▶ Loading
//!    ▲          └───────(the owner pauses)──▶ Down ──resume──▶ ┘
//! ```

use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use potluck_protocol::offer::Hardware;
use potluck_sandbox::engine::{DeviceChoice, EngineDevice};
use potluck_sandbox::supervisor::{Worker, WorkerLimits, WorkerSpec};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use crate::desk::hardware;
use crate::error::CommandError;
use crate::gate::Gate;
use crate::jailing::Jailing;
use crate::model_file::ModelFile;
use crate::owner::Owner;
use crate::pricing::Ware;
use crate::report::{ReadyModel, Reporter};

/// First wait before a worker is started anew; doubled each time up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(250);
/// A model that cannot be loaded is tried this often.
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// Progress of loading is told this often.
const LOADING_EVERY: Duration = Duration::from_millis(250);
/// An idle worker is looked after this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What a worker gets to leave by itself.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// How workers are started.
#[derive(Debug, Clone)]
pub struct WorkerPlan {
    /// The program.
    pub program: PathBuf,
    /// What models run on.
    pub device: DeviceChoice,
    /// CPU threads; all cores when `None`.
    pub threads: Option<usize>,
    /// Whether they are jailed.
    pub jailing: Jailing,
}

/// What is known of a worker that is ready.
#[derive(Debug, Clone)]
pub struct Ready {
    /// As it is offered.
    pub ware: Ware,
    /// What it runs on.
    pub hardware: Hardware,
    /// How long it took to load.
    pub warm: Duration,
}

/// One model and its worker.
#[derive(Debug)]
pub struct WorkerSlot {
    plan: WorkerPlan,
    model: ModelFile,
    worker: Arc<Mutex<Option<Worker>>>,
    ready: StdMutex<Option<Ready>>,
    broken: Notify,
}

/// The worker, for as long as one job has it.
#[derive(Debug)]
pub struct Lease {
    slot: Arc<WorkerSlot>,
    worker: OwnedMutexGuard<Option<Worker>>,
}

impl WorkerSlot {
    /// A slot without a worker yet.
    #[must_use]
    pub fn new(plan: WorkerPlan, model: ModelFile) -> Arc<Self> {
        Arc::new(Self {
            plan,
            model,
            worker: Arc::default(),
            ready: StdMutex::default(),
            broken: Notify::new(),
        })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &ModelFile {
        &self.model
    }

    /// What is known of the worker; `None` while there is none.
    #[must_use]
    pub fn ready(&self) -> Option<Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For the owner.
    #[must_use]
    pub fn as_ready_model(&self) -> Option<ReadyModel> {
        self.ready().map(|ready| ReadyModel {
            name: ready.ware.name,
            device: ready.hardware.class,
            hardware: ready.hardware.name,
            warm: ready.warm,
        })
    }

    /// Waits for the worker, in order of asking.
    pub async fn lease(self: &Arc<Self>) -> Lease {
        let worker = Arc::clone(&self.worker).lock_owned().await;
        Lease { slot: Arc::clone(self), worker }
    }

    /// Starts the worker and loads the model.
    ///
    /// # Errors
    /// When the program is missing, does not start, or cannot load the model.
    pub async fn start(&self, reporter: Reporter) -> Result<(), CommandError> {
        let mut held = self.worker.lock().await;
        self.start_in(&mut held, reporter).await
    }

    /// Starts one more worker with this model, for one job alone; it is the caller's.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_another(&self) -> Result<Worker, CommandError> {
        let failed = |source| CommandError::Worker { model: self.model.name.clone(), source };
        Worker::start(self.spec()?, |_, _| ()).await.map_err(failed)
    }

    fn spec(&self) -> Result<WorkerSpec, CommandError> {
        let WorkerPlan { program, device, threads, jailing } = self.plan.clone();
        Ok(WorkerSpec {
            program,
            model: self.model.reopen()?,
            device,
            threads,
            jail: jailing.for_model(device, self.model.bytes, threads)?,
            limits: WorkerLimits::default(),
        })
    }

    async fn start_in(&self, held: &mut Option<Worker>, reporter: Reporter) -> Result<(), CommandError> {
        let began = Instant::now();
        let spec = self.spec()?;
        let name = self.model.name.clone();
        let mut told: Option<Instant> = None;
        let on_loading = move |done, total| {
            if done == total || told.is_none_or(|at| at.elapsed() >= LOADING_EVERY) {
                reporter.loading(&name, done, total, told.is_none());
                told = Some(Instant::now());
            }
        };
        let failed = |source| CommandError::Worker { model: self.model.name.clone(), source };
        let worker = Worker::start(spec, on_loading).await.map_err(failed)?;
        let ready = describe(&worker, &self.model, began.elapsed());
        *held = Some(worker);
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(ready);
        Ok(())
    }

    /// Keeps the worker up while the owner wants it: starts it anew whenever a job broke it, and after a
    /// pause. Until `stop`; then ends it.
    pub async fn keep(self: Arc<Self>, gate: Arc<Gate>, stop: CancellationToken, reporter: Reporter) {
        let mut owner = gate.watch_owner();
        let mut lost = true;
        loop {
            let wanted = owner.borrow_and_update().wants_workers();
            if wanted && self.ready().is_none() {
                let why = if lost { Some("it died".to_owned()) } else { None };
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    () = unwanted(&mut owner) => {}
                    () = self.revive(why, reporter) => {
                        reporter.worker_back(&self.model.name);
                        gate.worker_ready();
                    }
                }
                continue;
            }
            lost = wanted;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // The sender lives as long as the gate.
                _ = owner.changed() => {}
                () = self.broken.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => self.look_after_idle(),
            }
        }
        self.take_down(STOP_WITHIN).await;
    }

    /// Nothing is known of the worker any more: it is not offered.
    pub fn withdraw(&self) {
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Ends the worker when its job is done with it: asked to leave, and killed after `grace`.
    pub async fn take_down(&self, grace: Duration) {
        self.withdraw();
        let worker = self.worker.lock().await.take();
        if let Some(worker) = worker {
            let death = worker.stop(grace).await;
            tracing::debug!(model = %self.model.name, %death, "worker stopped");
        }
    }

    /// Notes when the worker died between two jobs. One that a job has is that job's to watch.
    fn look_after_idle(&self) {
        let Ok(mut held) = self.worker.try_lock() else { return };
        if held.as_mut().is_some_and(|worker| !worker.is_alive()) {
            *held = None;
            self.withdraw();
        }
    }

    /// Starts the worker, as often as it takes; at once when it was not lost.
    async fn revive(&self, mut lost: Option<String>, reporter: Reporter) {
        let mut backoff = MIN_BACKOFF;
        loop {
            if let Some(why) = &lost {
                reporter.worker_lost(&self.model.name, why, backoff);
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
            // Held while it loads, so that jobs wait for it instead of failing.
            let mut held = self.worker.lock().await;
            match self.start_in(&mut held, reporter).await {
                Ok(()) => return,
                Err(error) => lost = Some(error.to_string()),
            }
        }
    }
}

/// Resolves when the owner wants no worker.
async fn unwanted(owner: &mut watch::Receiver<Owner>) {
    let _gone = owner.wait_for(|owner| !owner.wants_workers()).await.is_err();
}

impl Lease {
    /// The worker; `None` while it is started anew.
    pub fn worker(&mut self) -> Option<&mut Worker> {
        self.worker.as_mut()
    }

    /// Ends a worker that is fit for nothing more; another one is started.
    pub fn discard(&mut self) {
        // Dropping it kills and reaps the process.
        drop(self.worker.take());
        self.slot.withdraw();
        self.slot.broken.notify_one();
    }
}

fn describe(worker: &Worker, model: &ModelFile, warm: Duration) -> Ready {
    let info = worker.info();
    let ware = Ware { model: model.hash, name: model.name.clone(), context_tokens: info.context_tokens };
    let class = match info.device {
        EngineDevice::Cpu { .. } => "cpu",
        EngineDevice::Cuda { .. } => "cuda",
    };
    let memory_mib = u32::try_from(model.bytes >> 20).unwrap_or(u32::MAX);
    Ready { ware, hardware: hardware(class, &info.device.to_string(), memory_mib), warm }
}
