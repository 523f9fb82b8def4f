//! Where renters' components are run: the program for it, its cache of compiled components, and what
//! a component may have.
//!
//! Owns: how a component is compiled and started here. Never: runs one (see [`crate::exec`]), bills, or
//! looks into one. Called by [`crate::desk`] (what is offered), [`crate::intake`] (is it known here?)
//! and [`crate::exec`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use potluck_protocol::id::ContentHash;
use potluck_protocol::job::ExecSpec;
use potluck_sandbox::guest::RUNTIME;
use potluck_sandbox::guest::cache::{Artefact, ArtefactCache, CacheError, DEFAULT_CACHE_BYTES};
use potluck_sandbox::guest::compiler::{CompileError, Compiler};
use potluck_sandbox::guest::limits::GuestLimits;
use potluck_sandbox::guest::supervisor::{Guest, GuestRunError, GuestSpec};
use potluck_sandbox::guest::wire::{Blob, GuestModel, GuestStart};
use potluck_sandbox::jail::{Jail, JailPlan};
use thiserror::Error;

use crate::exec::ExecRun;
use crate::intake::ExecOrder;
use crate::worker_slot::WorkerSlot;

/// Compiling an 18 MB component takes 40 s on two busy cores.
const COMPILE_WITHIN: Duration = Duration::from_secs(300);
/// The cache's folder in the state folder.
const CACHE_FOLDER: &str = "components";

/// Why components cannot be run here. Fault: local.
#[derive(Debug, Error)]
pub enum GuestHouseError {
    /// The program does not say what it is.
    #[error("components cannot be run: {0}")]
    Program(#[from] CompileError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Why a component has no artefact.
#[derive(Debug, Error)]
pub enum NoArtefact {
    /// It cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// It was thought to be known here and is not any more: the cache dropped it. Fault: provider.
    #[error("the compiled component is not in the cache any more; send the job again")]
    Gone,
    /// It cannot be kept or handed over. Fault: provider.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A helper thread broke. Fault: provider.
    #[error("the cache of compiled components broke")]
    Broken,
}

impl NoArtefact {
    /// Is it the component's own doing?
    #[must_use]
    pub fn is_guests_fault(&self) -> bool {
        matches!(self, Self::Compile(error) if error.is_guests_fault())
    }
}

/// How components are run here. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GuestHouse {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    jailed: bool,
    memory_mib: u32,
    compiler: Compiler,
    cache: ArtefactCache,
}

impl GuestHouse {
    /// Prepares to run components with `program`, each with at most `memory_mib`.
    ///
    /// # Errors
    /// [`GuestHouseError`].
    pub async fn open(
        program: PathBuf,
        jailed: bool,
        state: &Path,
        memory_mib: u32,
    ) -> Result<Self, GuestHouseError> {
        let compiler = Compiler { program: program.clone(), jailed, within: COMPILE_WITHIN };
        let engine = compiler.engine().await?;
        let cache = ArtefactCache::open(&state.join(CACHE_FOLDER), engine, DEFAULT_CACHE_BYTES)?;
        Ok(Self { inner: Arc::new(Inner { program, jailed, memory_mib, compiler, cache }) })
    }

    /// The runtime's name and version.
    #[must_use]
    pub fn runtime(&self) -> String {
        RUNTIME.to_owned()
    }

    /// The most memory a component may have, in MiB.
    #[must_use]
    pub fn memory_mib(&self) -> u32 {
        self.inner.memory_mib
    }

    /// Was this component compiled here before?
    #[must_use]
    pub fn is_compiled(&self, component: ContentHash) -> bool {
        self.inner.cache.contains(component)
    }

    /// Starts a run; the workers of `slots` must be idle and stay so.
    pub(crate) fn start(&self, slots: &[Arc<WorkerSlot>], order: ExecOrder) -> ExecRun {
        ExecRun::start(self, slots, order)
    }

    /// The artefact of a component, compiled now when its bytes are given.
    pub(crate) async fn artefact(
        &self,
        component: ContentHash,
        bytes: Option<Vec<u8>>,
    ) -> Result<Artefact, NoArtefact> {
        let cache = self.inner.cache.clone();
        // Megabytes are read, hashed and written.
        let Some(bytes) = bytes else {
            let found = tokio::task::spawn_blocking(move || cache.get(component)).await;
            return found.map_err(|_| NoArtefact::Broken)?.ok_or(NoArtefact::Gone);
        };
        let compiled = self.inner.compiler.compile(&bytes).await?;
        let kept = tokio::task::spawn_blocking(move || cache.put(component, &compiled.artefact)).await;
        Ok(kept.map_err(|_| NoArtefact::Broken)??)
    }

    /// A component in its process, ready to be started.
    pub(crate) async fn guest(&self, artefact: Artefact, job: &GuestJob<'_>) -> Result<Guest, GuestRunError> {
        let memory_bytes = u64::from(job.spec.memory_mib) << 20;
        let jail = if self.inner.jailed {
            Jail::Jailed(Box::new(JailPlan::wasm(memory_bytes)))
        } else {
            Jail::Unsafe
        };
        let limits = GuestLimits::new(memory_bytes, job.compute);
        Guest::start(GuestSpec { program: self.inner.program.clone(), artefact, limits, jail }).await
    }
}

/// What a component is started with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestJob<'a> {
    /// What the renter asks.
    pub(crate) spec: &'a ExecSpec,
    /// How long it may compute.
    pub(crate) compute: Duration,
}

impl GuestJob<'_> {
    /// Its first words.
    pub(crate) fn start(&self, input: Vec<u8>) -> GuestStart {
        let named = |model: &potluck_protocol::job::NamedModel| GuestModel {
            name: model.name.clone(),
            hash: model.model,
        };
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.spec.seed.to_le_bytes());
        GuestStart { models: self.spec.models.iter().map(named).collect(), input: Blob(input), seed }
    }
}
