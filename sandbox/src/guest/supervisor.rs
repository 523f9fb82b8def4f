//! One run of a component: the daemon's side of a run worker.
//!
//! Owns: the process, its time (what it computes beyond its limit ends it, also inside a call to its
//! host), and the conversation. Never: answers a model's call itself, bills, or waits for a worker
//! without a limit. Called by `potluckd`.
//!
//! ```text
//!   Guest::start --Loaded--> run --{ Call / reply, Progress, Log }--> Finished | error
//!                             |  pause, resume at any time; dropped: killed
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, timeout, timeout_at};

use super::cache::Artefact;
use super::compiler::{MAX_WORKER_LOG_BYTES, is_guests_death};
use super::limits::GuestLimits;
use super::order::{GuestEventOrder, GuestOrderError};
use super::wire::{GuestCommand, GuestDialect, GuestError, GuestEvent, GuestStart, GuestUsage};
use crate::exit::Death;
use crate::ipc::IpcError;
use crate::ipc::channel::Channel;
use crate::jail::Jail;
use crate::supervisor::process::{ProcessSpec, WorkerProcess};
use crate::tensor::{ModelCallError, ModelReply, ModelRequest};

/// From start to a loaded artefact.
const LOAD_WITHIN: Duration = Duration::from_secs(30);
/// How much longer than its limit a guest may compute before the process is killed: its own clock ends
/// it first, unless it hides in a call to its host.
const OVERRUN: Duration = Duration::from_secs(2);
/// How long a worker that closed its socket may take to end by itself.
const DEATH_GRACE: Duration = Duration::from_secs(2);

/// How to start a run worker.
#[derive(Debug)]
pub struct GuestSpec {
    /// The program `potluck-wasm-worker`.
    pub program: PathBuf,
    /// The compiled component.
    pub artefact: Artefact,
    /// What it may use.
    pub limits: GuestLimits,
    /// Its jail.
    pub jail: Jail,
}

/// Why a run gives no answer.
#[derive(Debug, Error)]
pub enum GuestRunError {
    /// By the component's own doing, or because its artefact cannot be loaded (see
    /// [`GuestError::is_guests_fault`]).
    #[error("{0}")]
    Guest(GuestError),
    /// It computed for longer than it may and did not let itself be stopped. Fault: renter.
    #[error("the component was not done within {limit_ms} ms and was killed")]
    Overrun {
        /// The limit in milliseconds.
        limit_ms: u64,
    },
    /// The worker died; of the component when the death says so.
    #[error("the component's worker died ({death})")]
    Died {
        /// How.
        death: Death,
    },
    /// The worker panicked. Fault: provider.
    #[error("the component's worker broke: {what}")]
    Broken {
        /// The panic's words.
        what: String,
    },
    /// The worker cannot be started. Fault: provider.
    #[error("cannot start `{}`: {source}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The artefact was not loaded in time. Fault: provider.
    #[error("the component was not loaded within {} s", limit.as_secs())]
    LoadTimeout {
        /// The limit.
        limit: Duration,
    },
    /// The worker broke the protocol. Fault: provider.
    #[error("the component's worker broke the protocol: {0}")]
    Ipc(#[from] IpcError),
    /// It spoke out of turn. Fault: provider.
    #[error("the component's worker broke the protocol: {0}")]
    Order(#[from] GuestOrderError),
}

impl GuestRunError {
    /// Is it the component's own doing? Its time is owed then.
    #[must_use]
    pub fn is_guests_fault(&self) -> bool {
        match self {
            Self::Guest(error) => error.is_guests_fault(),
            Self::Overrun { .. } => true,
            Self::Died { death } => is_guests_death(death),
            Self::Broken { .. }
            | Self::Spawn { .. }
            | Self::LoadTimeout { .. }
            | Self::Ipc(_)
            | Self::Order(_) => false,
        }
    }
}

/// What a run comes to next.
#[derive(Debug, Clone, PartialEq)]
pub enum GuestStep {
    /// The component asks a model; it computes nothing until [`Guest::reply`].
    Call {
        /// The call's number.
        call: u64,
        /// The model's place in the job's list.
        model: u8,
        /// What it asks.
        request: ModelRequest,
    },
    /// How far it says it is.
    Progress {
        /// In thousandths.
        permille: u16,
        /// What it does.
        note: String,
    },
    /// More of its log.
    Log(Vec<u8>),
    /// It is done; nothing follows.
    Finished {
        /// What it gave, or its own error.
        output: Result<Vec<u8>, String>,
        /// What it used.
        usage: GuestUsage,
    },
}

/// A component in its process. Dropping it ends the process.
#[derive(Debug)]
pub struct Guest {
    process: WorkerProcess,
    channel: Channel<GuestDialect>,
    order: GuestEventOrder,
    clock: ComputeClock,
    limits: GuestLimits,
}

impl Guest {
    /// Starts the process and loads the artefact.
    ///
    /// # Errors
    /// [`GuestRunError`]; the process is then gone.
    pub async fn start(spec: GuestSpec) -> Result<Self, GuestRunError> {
        let mut guest = Self::spawn(spec)?;
        let sent = guest.tell(&GuestCommand::Load { limits: guest.limits });
        let loaded = match sent {
            Ok(()) => timeout(LOAD_WITHIN, guest.loaded()).await,
            Err(error) => Ok(Err(error)),
        };
        match loaded {
            Ok(Ok(())) => Ok(guest),
            Ok(Err(error)) => Err(guest.after(error).await),
            Err(_) => {
                guest.process.end(Duration::ZERO).await;
                Err(GuestRunError::LoadTimeout { limit: LOAD_WITHIN })
            }
        }
    }

    fn spawn(spec: GuestSpec) -> Result<Self, GuestRunError> {
        let GuestSpec { program, artefact, limits, jail } = spec;
        let failed = |source| GuestRunError::Spawn { program: program.clone(), source };
        let (process, channel) = WorkerProcess::start(ProcessSpec {
            program: &program,
            jail: &jail,
            input: Stdio::from(OwnedFd::from(artefact.into_file())),
            environment: &[],
            max_log_bytes: MAX_WORKER_LOG_BYTES,
        })
        .map_err(failed)?;
        let clock = ComputeClock::new(limits.compute());
        Ok(Self { process, channel, order: GuestEventOrder::running(), clock, limits })
    }

    async fn loaded(&mut self) -> Result<(), GuestRunError> {
        loop {
            match self.hear().await? {
                GuestEvent::Loaded => return Ok(()),
                GuestEvent::Failed { error, .. } => return Err(GuestRunError::Guest(error)),
                GuestEvent::Broken { what } => return Err(GuestRunError::Broken { what }),
                _ => {}
            }
        }
    }

    /// The worker's process number, as the daemon sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.worker_pid()
    }

    /// Starts the component. Once.
    ///
    /// # Errors
    /// [`GuestRunError`] when it was started before, or the worker is gone.
    pub fn run(&mut self, start: GuestStart) -> Result<(), GuestRunError> {
        self.order.start()?;
        self.tell(&GuestCommand::Start(Box::new(start)))?;
        self.clock.go(Instant::now());
        Ok(())
    }

    /// What comes next. Cancel-safe.
    ///
    /// # Errors
    /// [`GuestRunError`]; the process has ended then.
    pub async fn next(&mut self) -> Result<GuestStep, GuestRunError> {
        let heard = match self.clock.ends_at() {
            Some(at) => timeout_at(at + OVERRUN, self.hear()).await,
            None => Ok(self.hear().await),
        };
        let event = match heard {
            Ok(Ok(event)) => event,
            Ok(Err(error)) => return Err(self.after(error).await),
            Err(_) => {
                self.process.end(Duration::ZERO).await;
                return Err(GuestRunError::Overrun { limit_ms: self.limits.compute_ms });
            }
        };
        match event {
            GuestEvent::Call { call, model, request } => {
                self.clock.hold(Instant::now());
                Ok(GuestStep::Call { call, model, request: *request })
            }
            GuestEvent::Progress { permille, note } => Ok(GuestStep::Progress { permille, note }),
            GuestEvent::Log(bytes) => Ok(GuestStep::Log(bytes.0)),
            GuestEvent::Finished { output, usage } => {
                Ok(GuestStep::Finished { output: output.map(|bytes| bytes.0), usage })
            }
            GuestEvent::Failed { error, .. } => Err(self.after(GuestRunError::Guest(error)).await),
            GuestEvent::Broken { what } => Err(self.after(GuestRunError::Broken { what }).await),
            // The order lets none of these come now.
            GuestEvent::Hello { .. }
            | GuestEvent::Refused(_)
            | GuestEvent::Compiled { .. }
            | GuestEvent::Chunk(_)
            | GuestEvent::Loaded => Err(self.after(IpcError::Cut.into()).await),
        }
    }

    /// Answers the open call.
    ///
    /// # Errors
    /// [`GuestRunError`] when it is not open, or the worker is gone.
    pub fn reply(
        &mut self,
        call: u64,
        result: Result<ModelReply, ModelCallError>,
    ) -> Result<(), GuestRunError> {
        self.order.reply(call)?;
        self.tell(&GuestCommand::Reply { call, result })?;
        self.clock.go(Instant::now());
        Ok(())
    }

    /// Holds the component up; it computes nothing until [`Self::resume`].
    ///
    /// # Errors
    /// [`GuestRunError`] when the worker is gone.
    pub fn pause(&mut self) -> Result<(), GuestRunError> {
        self.clock.pause(Instant::now());
        self.tell(&GuestCommand::Pause)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// [`GuestRunError`] when the worker is gone.
    pub fn resume(&mut self) -> Result<(), GuestRunError> {
        self.clock.resume(Instant::now());
        self.tell(&GuestCommand::Resume)
    }

    /// Ends the process; how it ended.
    pub async fn stop(mut self) -> Death {
        self.process.end(Duration::ZERO).await
    }

    fn tell(&mut self, command: &GuestCommand) -> Result<(), GuestRunError> {
        match self.channel.send(command) {
            // A worker that is gone is heard of by whoever listens next, with its last words.
            Ok(()) | Err(IpcError::Io(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn hear(&mut self) -> Result<GuestEvent, GuestRunError> {
        let event = self.channel.next().await?.ok_or(IpcError::Cut)?;
        self.order.accept(&event)?;
        Ok(event)
    }

    /// The error after the conversation failed: a death when the worker died of its own accord.
    async fn after(&mut self, error: GuestRunError) -> GuestRunError {
        if matches!(error, GuestRunError::Ipc(IpcError::Io(_) | IpcError::Cut)) {
            return GuestRunError::Died { death: self.process.end(DEATH_GRACE).await };
        }
        self.process.end(Duration::ZERO).await;
        error
    }
}

/// How long a guest has computed: not while a call of its is open, nor while it is paused.
#[derive(Debug)]
struct ComputeClock {
    left: Duration,
    since: Option<Instant>,
    wants: bool,
    paused: bool,
}

impl ComputeClock {
    fn new(limit: Duration) -> Self {
        Self { left: limit, since: None, wants: false, paused: false }
    }

    fn settle(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.left = self.left.saturating_sub(now.saturating_duration_since(since));
        }
        self.since = (self.wants && !self.paused).then_some(now);
    }

    fn go(&mut self, now: Instant) {
        self.wants = true;
        self.settle(now);
    }

    fn hold(&mut self, now: Instant) {
        self.wants = false;
        self.settle(now);
    }

    fn pause(&mut self, now: Instant) {
        self.paused = true;
        self.settle(now);
    }

    fn resume(&mut self, now: Instant) {
        self.paused = false;
        self.settle(now);
    }

    /// When its time is up, if nothing changes; `None` while it does not compute.
    fn ends_at(&self) -> Option<Instant> {
        self.since.map(|since| since + self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_computing_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut clock = ComputeClock::new(Duration::from_millis(1_000));
        assert_eq!(clock.ends_at(), None);
        clock.go(at(0));
        assert_eq!(clock.ends_at(), Some(at(1_000)));
        clock.hold(at(400));
        assert_eq!(clock.ends_at(), None);
        clock.pause(at(450));
        clock.go(at(500));
        assert_eq!(clock.ends_at(), None, "a paused guest does not compute when its call is answered");
        clock.resume(at(900));
        assert_eq!(clock.ends_at(), Some(at(1_500)));
        // Nothing is counted twice.
        clock.resume(at(1_000));
        assert_eq!(clock.ends_at(), Some(at(1_500)));
    }
}
