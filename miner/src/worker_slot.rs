//! One model kept in memory by one worker process, lent to one job at a time.
//!
//! Owns: the worker's start, its turn-taking (a fair lock: first come, first served), and its restart
//! after a failure. Never: bills (see [`crate::metered`]) or parses the model. Called by
//! [`crate::driver`] (leases) and [`crate::provider`] (start, keep, stop).
//!
//! ```text
//! Loading ──▶ Ready ──(a job broke it)──▶ Down ──backoff──▶ Loading
//! ```

use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use potluck_protocol::offer::Hardware;
use potluck_sandbox::engine::{DeviceChoice, EngineDevice};
use potluck_sandbox::supervisor::{Worker, WorkerLimits, WorkerSpec};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use crate::desk::hardware;
use crate::error::CommandError;
use crate::model_file::ModelFile;
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
            protection: protection_summary(),
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

    async fn start_in(&self, held: &mut Option<Worker>, reporter: Reporter) -> Result<(), CommandError> {
        let began = Instant::now();
        let spec = WorkerSpec {
            program: self.plan.program.clone(),
            model: self.model.reopen()?,
            device: self.plan.device,
            threads: self.plan.threads,
            limits: WorkerLimits::default(),
        };
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

    /// Starts the worker anew whenever a job broke it, until `stop`; then stops it.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken, reporter: Reporter) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.broken.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => if !self.died_idle() { continue },
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.revive(reporter) => reporter.worker_back(&self.model.name),
            }
        }
        let worker = self.worker.lock().await.take();
        if let Some(worker) = worker {
            let death = worker.stop(STOP_WITHIN).await;
            tracing::debug!(model = %self.model.name, %death, "worker stopped");
        }
    }

    /// Did the worker die between two jobs? One that a job has is that job's to watch.
    fn died_idle(&self) -> bool {
        let Ok(mut held) = self.worker.try_lock() else { return false };
        if held.as_mut().is_none_or(Worker::is_alive) {
            return false;
        }
        *held = None;
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = None;
        true
    }

    async fn revive(&self, reporter: Reporter) {
        let mut backoff = MIN_BACKOFF;
        let mut why = "it died".to_owned();
        loop {
            reporter.worker_lost(&self.model.name, &why, backoff);
            tokio::time::sleep(backoff).await;
            // Held while it loads, so that jobs wait for it instead of failing.
            let mut held = self.worker.lock().await;
            match self.start_in(&mut held, reporter).await {
                Ok(()) => return,
                Err(error) => why = error.to_string(),
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }
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
        *self.slot.ready.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.slot.broken.notify_one();
    }
}

/// What stands between a job and the machine, for people.
#[must_use]
pub fn protection_summary() -> String {
    potluck_sandbox::protection::EffectiveProtection::current().summary()
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
