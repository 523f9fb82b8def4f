//! From a component to an artefact: the daemon's side of a compile worker.
//!
//! Owns: one killable worker for each compilation, and every limit on it. Never: looks into the
//! component, keeps the artefact (see [`super::cache`]), or waits for a worker without a limit. Called
//! by `potluckd`.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use potluck_protocol::limits::MAX_COMPONENT_BYTES;
use thiserror::Error;
use tokio::time::timeout;

use super::order::{GuestEventOrder, GuestOrderError};
use super::wire::{Blob, CHUNK_BYTES, CompileRefusal, GuestCommand, GuestDialect, GuestEvent};
use crate::exit::{Death, WorkerExit};
use crate::ipc::IpcError;
use crate::ipc::channel::Channel;
use crate::jail::{Jail, JailPlan};
use crate::supervisor::process::{ProcessSpec, WorkerProcess};

/// How long a worker that closed its socket may take to end by itself.
const DEATH_GRACE: Duration = Duration::from_secs(2);
/// From start to the first word.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a worker's log that are passed on.
pub(super) const MAX_WORKER_LOG_BYTES: u64 = 64 << 10;

/// Compiles components, one process each.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// The program `potluck-wasm-worker`.
    pub program: PathBuf,
    /// Whether its workers are jailed.
    pub jailed: bool,
    /// How long a compilation may take.
    pub within: Duration,
}

/// Why a component is not compiled.
#[derive(Debug, Error)]
pub enum CompileError {
    /// It is none that can be run. Fault: renter.
    #[error("the component cannot be compiled: {0}")]
    Refused(CompileRefusal),
    /// It takes too long. Fault: renter.
    #[error("the component was not compiled within {} s", limit.as_secs())]
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// The worker died. Fault: renter when the death says so.
    #[error("the compile worker died ({death})")]
    Died {
        /// How.
        death: Death,
    },
    /// The compiler panicked. Fault: provider.
    #[error("the compiler broke: {what}")]
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
    /// The worker broke the protocol. Fault: provider.
    #[error("the compile worker broke the protocol: {0}")]
    Ipc(#[from] IpcError),
    /// It spoke out of turn. Fault: provider.
    #[error("the compile worker broke the protocol: {0}")]
    Order(#[from] GuestOrderError),
}

impl CompileError {
    /// Is it the component's own doing?
    #[must_use]
    pub fn is_guests_fault(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Timeout { .. } => true,
            Self::Died { death } => is_guests_death(death),
            Self::Broken { .. } | Self::Spawn { .. } | Self::Ipc(_) | Self::Order(_) => false,
        }
    }
}

/// Did a compiler die for want of memory? In a jail it is killed; outside of one its own allocator gives
/// up, and says so.
fn is_of_memory(death: &Death) -> bool {
    const SIGABRT: i32 = 6;
    let gave_up = death.signal == Some(SIGABRT) && death.last_words.contains("memory allocation of");
    gave_up || death.code == Some(i32::from(WorkerExit::Memory.code()))
}

/// Did a worker die of what it was given? Of memory, of a forbidden system call, or of an access that
/// the processor refuses: nothing in our own code does these.
pub(super) fn is_guests_death(death: &Death) -> bool {
    const SIGSEGV: i32 = 11;
    const SIGSYS: i32 = 31;
    death.code == Some(i32::from(WorkerExit::Memory.code())) || matches!(death.signal, Some(SIGSEGV | SIGSYS))
}

impl Compiler {
    /// The artefact of `component`, and the name of the engine that it fits. Dropping the future kills
    /// the worker.
    ///
    /// # Errors
    /// [`CompileError`].
    pub async fn compile(&self, component: &[u8]) -> Result<Compiled, CompileError> {
        let plan = JailPlan::compile();
        let memory_bytes = plan.limits.memory_bytes;
        let mut job = Job::spawn(self, &plan)?;
        match timeout(self.within, job.compile(component, memory_bytes)).await {
            Ok(Err(CompileError::Ipc(IpcError::Io(_) | IpcError::Cut))) => {
                let death = job.process.end(DEATH_GRACE).await;
                Err(if is_of_memory(&death) {
                    CompileError::Refused(CompileRefusal::TooHeavy { limit_bytes: memory_bytes })
                } else {
                    CompileError::Died { death }
                })
            }
            Ok(done) => {
                job.process.end(Duration::ZERO).await;
                done
            }
            Err(_) => {
                job.process.end(Duration::ZERO).await;
                Err(CompileError::Timeout { limit: self.within })
            }
        }
    }

    /// The name of the engine that the program carries: artefacts fit only where it is equal.
    ///
    /// # Errors
    /// [`CompileError`] when the program does not start or does not say.
    pub async fn engine(&self) -> Result<[u8; 32], CompileError> {
        let mut job = Job::spawn(self, &JailPlan::compile())?;
        let engine = match timeout(HELLO_WITHIN, job.hello()).await {
            Ok(Ok(engine)) => engine,
            Ok(Err(CompileError::Ipc(IpcError::Io(_) | IpcError::Cut))) => {
                return Err(CompileError::Died { death: job.process.end(DEATH_GRACE).await });
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(CompileError::Timeout { limit: HELLO_WITHIN }),
        };
        // It leaves by itself when it is told to; it holds nothing.
        let _ = job.channel.send(&GuestCommand::Exit);
        job.process.end(DEATH_GRACE).await;
        Ok(engine)
    }
}

/// What came of a compilation.
#[derive(Debug)]
pub struct Compiled {
    /// Machine code, to be loaded by the engine of that name only.
    pub artefact: Vec<u8>,
    /// The engine's name.
    pub engine: [u8; 32],
}

struct Job {
    process: WorkerProcess,
    channel: Channel<GuestDialect>,
    order: GuestEventOrder,
}

impl Job {
    fn spawn(compiler: &Compiler, plan: &JailPlan) -> Result<Self, CompileError> {
        let failed = |source| CompileError::Spawn { program: compiler.program.clone(), source };
        let jail = if compiler.jailed { Jail::Jailed(Box::new(plan.clone())) } else { Jail::Unsafe };
        let spec = ProcessSpec {
            program: &compiler.program,
            jail: &jail,
            input: Stdio::null(),
            environment: &[],
            max_log_bytes: MAX_WORKER_LOG_BYTES,
        };
        let (process, channel) = WorkerProcess::start(spec).map_err(failed)?;
        Ok(Self { process, channel, order: GuestEventOrder::compiling() })
    }

    async fn next(&mut self) -> Result<GuestEvent, CompileError> {
        let event = self.channel.next().await?.ok_or(IpcError::Cut)?;
        self.order.accept(&event)?;
        Ok(event)
    }

    async fn hello(&mut self) -> Result<[u8; 32], CompileError> {
        match self.next().await? {
            GuestEvent::Hello { engine, .. } => Ok(engine),
            GuestEvent::Broken { what } => Err(CompileError::Broken { what }),
            // The order lets nothing else come first.
            _ => Err(IpcError::Cut.into()),
        }
    }

    async fn compile(&mut self, component: &[u8], memory_bytes: u64) -> Result<Compiled, CompileError> {
        let component_bytes = u64::try_from(component.len()).unwrap_or(u64::MAX);
        if !(1..=MAX_COMPONENT_BYTES).contains(&component_bytes) {
            let what = format!("it has {component_bytes} bytes; 1 to {MAX_COMPONENT_BYTES} are taken");
            return Err(CompileError::Refused(CompileRefusal::NotAComponent { what }));
        }
        let engine = self.hello().await?;
        self.channel.send(&GuestCommand::Compile { component_bytes, memory_bytes })?;
        for chunk in component.chunks(CHUNK_BYTES) {
            self.channel.send(&GuestCommand::Chunk(Blob(chunk.to_vec())))?;
            self.channel.sent().await?;
        }
        let mut artefact = Vec::new();
        loop {
            match self.next().await? {
                GuestEvent::Chunk(bytes) => artefact.extend(bytes.0),
                GuestEvent::Refused(refusal) => return Err(CompileError::Refused(refusal)),
                GuestEvent::Broken { what } => return Err(CompileError::Broken { what }),
                _ => {}
            }
            if self.order.is_artefact_whole() {
                return Ok(Compiled { artefact, engine });
            }
        }
    }
}
