//! The daemon's side of a worker: start it, watch it, steer it, end it.
//!
//! Owns: the child process, its socket and its log, and every time limit on them. Never: parses
//! model bytes, touches a GPU, decides what a job costs or who may run one, and never waits for a
//! worker without a limit. Called by `potluckd`.
//!
//! ```text
//!   Worker::start --Loaded--> idle --generate--> Run --Finished | Failed--> idle
//!        |                      |---serve-----> ModelRun --end--> idle
//!        |                      |                 |
//!        +--- StartError        +--- stop         +--- breach, silence or death: killed and reaped
//! ```
//!
//! A [`Run`] that is dropped early cancels its job; the worker is usable again afterwards. A
//! [`Worker`] that is dropped is killed.

pub mod kill;
pub(crate) mod log;
pub(crate) mod process;
mod serve;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use potluck_protocol::job::{FinishReason, JobError, JobSpec};
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use crate::engine::{DeviceChoice, GenerateError, LoadError, ModelInfo};
use crate::exit::{Death, WorkerExit};
use crate::ipc::channel::Channel;
use crate::ipc::order::EventOrder;
use crate::ipc::{Command, Event, IpcError, ModelDialect};
use crate::jail::Jail;
use process::{ProcessSpec, WorkerProcess};
pub use serve::ModelRun;

/// How long a worker whose socket closed may take to end by itself.
const DEATH_GRACE: Duration = Duration::from_secs(2);

/// How often an idle engine thread looks for work before it sleeps (candle's own default is 25,000).
/// Measured on two cores with another busy process beside the worker: 23 tokens/s instead of 4, for
/// 5 % less when the machine is otherwise idle. An owner's machine is not otherwise idle.
const ENGINE_SPINS: &str = "1000";

/// Time and size limits of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerLimits {
    /// From start to a loaded model.
    pub load_timeout: Duration,
    /// The longest silence of a worker that runs a job and is not paused.
    pub silence_timeout: Duration,
    /// Bytes of its log that are passed on over its life; what follows is read and dropped.
    pub max_log_bytes: u64,
}

impl Default for WorkerLimits {
    fn default() -> Self {
        Self {
            load_timeout: Duration::from_secs(300),
            silence_timeout: Duration::from_secs(60),
            max_log_bytes: 1 << 20,
        }
    }
}

/// How to start a worker.
#[derive(Debug)]
pub struct WorkerSpec {
    /// The program `potluck-gpu-worker`.
    pub program: PathBuf,
    /// The model, opened read-only. Read by position, so clones of one descriptor may be shared.
    pub model: File,
    /// Where it runs.
    pub device: DeviceChoice,
    /// Threads of the CPU engine; one per core when absent.
    pub threads: Option<usize>,
    /// What it is shut into.
    pub jail: Jail,
    /// Its limits.
    pub limits: WorkerLimits,
}

/// Why a worker does not start. Fault: local, or whoever made the model file (see [`LoadError`]).
#[derive(Debug, Error)]
pub enum StartError {
    /// The process cannot be started.
    #[error("cannot start `{}`: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The worker cannot serve the model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The worker's jail cannot be set up on this machine. No stranger's work without it.
    #[error("{what}")]
    Jail {
        /// Which layer, why, and what helps.
        what: String,
    },
    /// The worker died before the model was loaded.
    #[error("the worker died while it loaded the model ({death})")]
    Died {
        /// How.
        death: Death,
    },
    /// The engine panicked on the model.
    #[error("the engine broke on this model: {what}")]
    Broken {
        /// The panic's words.
        what: String,
    },
    /// The model was not loaded in time.
    #[error("the model was not loaded within {} s", limit.as_secs())]
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// The worker broke the protocol.
    #[error("the worker broke the protocol: {0}")]
    Ipc(#[from] IpcError),
}

/// Why a job did not end well.
#[derive(Debug, Error)]
pub enum RunError {
    /// The job breaks a bound. Fault: renter. The worker stays usable.
    #[error(transparent)]
    InvalidJob(#[from] JobError),
    /// The job failed in the engine (see [`GenerateError`] for the fault). The worker stays usable.
    #[error(transparent)]
    Job(#[from] GenerateError),
    /// The worker died. Fault: provider.
    #[error("the worker died ({death})")]
    WorkerDied {
        /// How.
        death: Death,
    },
    /// The engine panicked; the worker has ended. Fault: provider.
    #[error("the engine broke: {what}")]
    Broken {
        /// The panic's words.
        what: String,
    },
    /// The worker said nothing for too long and was killed. Fault: provider.
    #[error("the worker said nothing for {} s and was killed", limit.as_secs())]
    Silent {
        /// The limit.
        limit: Duration,
    },
    /// The worker broke the protocol and was killed. Fault: provider.
    #[error("the worker broke the protocol: {0}")]
    Ipc(#[from] IpcError),
}

/// What a job's owner hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEvent {
    /// The prompt is accepted; computing begins.
    Started {
        /// Its length in tokens.
        prompt_tokens: u32,
    },
    /// More of the answer.
    Output {
        /// The new tokens.
        tokens: Vec<u32>,
        /// The text that they complete; may be empty.
        text: String,
    },
    /// The job ended; nothing follows.
    Finished {
        /// How.
        reason: FinishReason,
        /// Tokens of the answer.
        completion_tokens: u32,
    },
}

/// A worker process with its model loaded.
#[derive(Debug)]
pub struct Worker {
    process: WorkerProcess,
    pid: u32,
    channel: Channel<ModelDialect>,
    order: EventOrder,
    info: ModelInfo,
    limits: WorkerLimits,
    /// Ended, or to be treated so: it gets no more jobs.
    dead: bool,
}

impl Worker {
    /// Starts the process and waits until its model is loaded. `on_loading` hears the bytes loaded so
    /// far and in all.
    ///
    /// # Errors
    /// [`StartError`]; the process is then gone. Dropping the future also kills it.
    pub async fn start(
        spec: WorkerSpec,
        mut on_loading: impl FnMut(u64, u64) + Send,
    ) -> Result<Self, StartError> {
        let (device, limits) = (spec.jail.device_inside(spec.device), spec.limits.clone());
        let deadline = Instant::now() + limits.load_timeout;
        let mut starting = Starting::spawn(spec)?;
        let loaded = timeout_at(deadline, starting.load(device, &mut on_loading)).await;
        let result = match loaded {
            Ok(result) => result,
            Err(_) => Err(StartError::Timeout { limit: limits.load_timeout }),
        };
        match result {
            Ok(Some(info)) => {
                let Starting { process, channel, order } = starting;
                let pid = process.worker_pid();
                Ok(Self { process, pid, channel, order, info, limits, dead: false })
            }
            Ok(None) => Err(starting.died().await),
            Err(error) => {
                starting.process.end(Duration::ZERO).await;
                Err(error)
            }
        }
    }

    /// What was loaded.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The worker's process number: inside a jail, that of the process inside, as the daemon sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the worker can take jobs, as far as is known.
    pub fn is_alive(&mut self) -> bool {
        !self.dead && self.process.is_alive()
    }

    /// Its resident memory in bytes; `None` when it has ended.
    #[must_use]
    pub fn rss_bytes(&self) -> Option<u64> {
        if self.dead {
            return None;
        }
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid)).ok()?;
        let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
        pages.checked_mul(u64::try_from(rustix::param::page_size()).ok()?)
    }

    /// Hands the worker a job. If an earlier [`Run`] was dropped before its end, waits for that end
    /// first. Cancel-safe.
    ///
    /// # Errors
    /// [`RunError`]; after [`RunError::InvalidJob`] the worker stays usable.
    pub async fn generate(&mut self, job: &JobSpec) -> Result<Run<'_>, RunError> {
        job.check()?;
        self.until_idle().await?;
        let sent = self.order.begin(job.sampling.max_tokens).map_err(IpcError::from).and_then(|run| {
            self.channel.send(&Command::Generate { run, job: Box::new(job.clone()) })?;
            Ok(run)
        });
        match sent {
            Ok(run) => Ok(Run { run, last_heard: Instant::now(), paused: false, over: false, worker: self }),
            Err(error) => Err(self.after(error).await),
        }
    }

    /// Waits for the end of a run that was dropped before it.
    async fn until_idle(&mut self) -> Result<(), RunError> {
        if self.dead {
            return Err(RunError::WorkerDied { death: self.bury(Duration::ZERO).await });
        }
        let deadline = Instant::now() + self.limits.silence_timeout;
        while !self.order.is_idle() {
            match self.hear(Some(deadline)).await {
                Ok(_) | Err(RunError::Job(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Asks the worker to leave, and kills it after `grace`. How it ended.
    pub async fn stop(mut self, grace: Duration) -> Death {
        let asked = !self.dead && self.channel.send(&Command::Exit).is_ok();
        self.bury(if asked { grace } else { Duration::ZERO }).await
    }

    /// Waits for the next event that may come; the worker has ended after an error.
    async fn hear_event(&mut self, deadline: Option<Instant>) -> Result<Event, RunError> {
        let next = match deadline {
            Some(deadline) => timeout_at(deadline, self.channel.next()).await,
            None => Ok(self.channel.next().await),
        };
        let event = match next {
            Ok(Ok(Some(event))) => event,
            Ok(Ok(None)) => return Err(RunError::WorkerDied { death: self.bury(DEATH_GRACE).await }),
            Ok(Err(error)) => return Err(self.after(error).await),
            Err(_) => {
                self.bury(Duration::ZERO).await;
                return Err(RunError::Silent { limit: self.limits.silence_timeout });
            }
        };
        if let Err(error) = self.order.accept(&event) {
            return Err(self.after(error.into()).await);
        }
        match event {
            Event::Broken { what } => {
                self.bury(DEATH_GRACE).await;
                Err(RunError::Broken { what })
            }
            event => Ok(event),
        }
    }

    /// Waits for the next event of a run; `Ok(None)` for one that only shows life.
    async fn hear(&mut self, deadline: Option<Instant>) -> Result<Option<RunEvent>, RunError> {
        match self.hear_event(deadline).await? {
            Event::Started { prompt_tokens, .. } => Ok(Some(RunEvent::Started { prompt_tokens })),
            Event::Output { tokens, text, .. } => Ok(Some(RunEvent::Output { tokens, text })),
            Event::Finished { reason, completion_tokens, .. } => {
                Ok(Some(RunEvent::Finished { reason, completion_tokens }))
            }
            Event::Failed { error, .. } => Err(error.into()),
            Event::Prefilled { .. }
            | Event::Computing { .. }
            | Event::Reply { .. }
            | Event::Broken { .. }
            | Event::Hello { .. }
            | Event::Loading { .. }
            | Event::Loaded(_)
            | Event::LoadFailed(_) => Ok(None),
        }
    }

    /// The error after the conversation failed: a death when the worker died of its own accord.
    async fn after(&mut self, error: IpcError) -> RunError {
        if matches!(error, IpcError::Io(_) | IpcError::Cut) {
            return RunError::WorkerDied { death: self.bury(DEATH_GRACE).await };
        }
        self.bury(Duration::ZERO).await;
        error.into()
    }

    /// Waits up to `grace`, kills, reaps. It gets no more jobs.
    async fn bury(&mut self, grace: Duration) -> Death {
        self.dead = true;
        self.process.end(grace).await
    }
}

/// A worker between its start and its loaded model.
struct Starting {
    process: WorkerProcess,
    channel: Channel<ModelDialect>,
    order: EventOrder,
}

impl Starting {
    fn spawn(spec: WorkerSpec) -> Result<Self, StartError> {
        let WorkerSpec { program, model, threads, jail, limits, .. } = spec;
        let failed = |source| StartError::Spawn { program: program.clone(), source };
        let threads = threads
            .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
            .unwrap_or(1)
            .max(1);
        let spec = ProcessSpec {
            program: &program,
            jail: &jail,
            input: Stdio::from(model),
            environment: &[
                ("RAYON_NUM_THREADS", threads.to_string()),
                ("CANDLE_BARRIER_POOL_SPIN_LIMIT", ENGINE_SPINS.to_owned()),
            ],
            max_log_bytes: limits.max_log_bytes,
        };
        let (process, channel) = WorkerProcess::start(spec).map_err(failed)?;
        Ok(Self { process, channel, order: EventOrder::default() })
    }

    /// Why a worker that closed its socket without a word did so.
    async fn died(&mut self) -> StartError {
        let death = self.process.end(DEATH_GRACE).await;
        if death.code == Some(i32::from(WorkerExit::Jail.code())) && !death.last_words.is_empty() {
            return StartError::Jail { what: death.last_words };
        }
        StartError::Died { death }
    }

    /// Waits for the model; `None` when the worker closed the socket without a word.
    async fn load(
        &mut self,
        device: DeviceChoice,
        on_loading: &mut (impl FnMut(u64, u64) + Send),
    ) -> Result<Option<ModelInfo>, StartError> {
        match self.channel.send(&Command::Load { device }) {
            // Gone already: what it said before it went is heard below.
            Ok(()) | Err(IpcError::Io(_)) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            let event = match self.channel.next().await {
                Ok(Some(event)) => event,
                Ok(None) | Err(IpcError::Cut | IpcError::Io(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            self.order.accept(&event).map_err(IpcError::from)?;
            match event {
                Event::Loading { done_bytes, total_bytes } => on_loading(done_bytes, total_bytes),
                Event::Loaded(info) => return Ok(Some(info)),
                Event::LoadFailed(error) => return Err(error.into()),
                Event::Broken { what } => return Err(StartError::Broken { what }),
                _ => {}
            }
        }
    }
}

/// A job on its worker. Dropping it before its end cancels it.
#[derive(Debug)]
pub struct Run<'a> {
    worker: &'a mut Worker,
    run: u64,
    last_heard: Instant,
    paused: bool,
    over: bool,
}

impl Run<'_> {
    /// The next event; `None` after [`RunEvent::Finished`] or an error. Cancel-safe: a dropped wait
    /// loses nothing.
    ///
    /// # Errors
    /// [`RunError`] ends the run; only after [`RunError::Job`] is the worker usable again.
    pub async fn next(&mut self) -> Result<Option<RunEvent>, RunError> {
        while !self.over {
            let deadline = (!self.paused).then(|| self.last_heard + self.worker.limits.silence_timeout);
            let heard = self.worker.hear(deadline).await;
            self.last_heard = Instant::now();
            self.over = matches!(heard, Err(_) | Ok(Some(RunEvent::Finished { .. })));
            if let Some(event) = heard? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Stops the computation until [`Run::resume`], after the step in hand (tens of milliseconds).
    /// What was output before still comes.
    ///
    /// # Errors
    /// [`RunError::Ipc`] when the worker cannot be told; [`Run::next`] then says how it died.
    pub fn pause(&mut self) -> Result<(), RunError> {
        self.say(Command::Pause { run: self.run })?;
        self.paused = true;
        Ok(())
    }

    /// Goes on after [`Run::pause`]. The answer is the one that it would have been.
    ///
    /// # Errors
    /// As [`Run::pause`].
    pub fn resume(&mut self) -> Result<(), RunError> {
        self.say(Command::Resume { run: self.run })?;
        self.heard_now();
        Ok(())
    }

    /// Ends the job after the step in hand: the rest of the output comes, then
    /// [`RunEvent::Finished`].
    ///
    /// # Errors
    /// As [`Run::pause`].
    pub fn cancel(&mut self) -> Result<(), RunError> {
        self.say(Command::Cancel { run: self.run })?;
        self.heard_now();
        Ok(())
    }

    /// From now on the worker must speak again: silence counts from here.
    fn heard_now(&mut self) {
        self.paused = false;
        self.last_heard = Instant::now();
    }

    fn say(&mut self, command: Command) -> Result<(), RunError> {
        if self.over {
            return Ok(());
        }
        Ok(self.worker.channel.send(&command)?)
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if !self.over && !self.worker.dead {
            // A worker that cannot be told is found dead by the next job.
            let _ = self.worker.channel.send(&Command::Cancel { run: self.run });
        }
    }
}
