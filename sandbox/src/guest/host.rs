//! What a guest finds outside of itself.
//!
//! Owns: the state behind one guest's imports, and the list of them: `potluck:job`, WASI 0.2 and
//! `wasi:nn`. Never: opens a file or a socket, or lets a guest hold more than its limits. Called by
//! the run worker.
//!
//! ```text
//!   component --> report, log --------> Outbox --> the daemon
//!             --> llm, embeddings, nn -> Outbox::ask, waits for the daemon's reply
//!             --> wasi:* --------------> clocks, random numbers and an empty world (wasi.rs)
//! ```

mod bindings;
mod budget;
mod embeddings;
mod llm;
mod log;
mod models;
mod nn;
mod outbox;
mod report;
mod wasi;

use std::sync::Arc;

use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_nn::wit::{WasiNnCtx, WasiNnView};

use super::limits::{GuestLimits, MAX_HANDLES, MAX_HOSTCALL_BYTES};
use super::wire::{GuestStart, GuestUsage};
pub(super) use budget::OutOfMemory;
use budget::{Budget, Limiter};
use log::Log;
use models::Models;
pub(super) use outbox::{Gone, Outbox};
use report::Pace;

/// Everything behind one guest's imports.
pub(super) struct Host {
    wasi: WasiCtx,
    nn: WasiNnCtx,
    table: ResourceTable,
    limiter: Limiter,
    budget: Arc<Budget>,
    models: Arc<Models>,
    outbox: Arc<Outbox>,
    log: Arc<Log>,
    pace: Pace,
}

impl Host {
    /// A store with the host of a run that begins with `start`.
    pub(super) fn store(
        engine: &Engine,
        limits: &GuestLimits,
        start: &GuestStart,
        outbox: &Arc<Outbox>,
    ) -> Store<Self> {
        let budget = Arc::new(Budget::new(limits.memory_bytes));
        let log = Arc::new(Log::new(limits.log_bytes, Arc::clone(outbox)));
        let models = Arc::new(Models::new(start.models.clone()));
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_HANDLES);
        let host = Self {
            wasi: wasi::context(&start.seed, &log),
            nn: nn::context(&models, outbox, &budget, &log),
            table,
            limiter: Limiter::new(Arc::clone(&budget)),
            budget,
            models,
            outbox: Arc::clone(outbox),
            log,
            pace: Pace::default(),
        };
        let mut store = Store::new(engine, host);
        store.limiter(|host| &mut host.limiter);
        store.set_hostcall_fuel(MAX_HOSTCALL_BYTES);
        store.set_max_component_handles(MAX_HANDLES);
        store
    }

    /// What the guest has used so far; sends what is left of its log.
    ///
    /// # Errors
    /// [`Gone`].
    pub(super) fn usage(&self) -> Result<GuestUsage, Gone> {
        let log_dropped_bytes = self.log.close()?;
        Ok(GuestUsage { peak_memory_bytes: self.budget.peak(), log_dropped_bytes })
    }

    /// Whether the guest has ever asked for more memory than it may have.
    pub(super) fn was_refused_memory(&self) -> bool {
        self.budget.was_refused()
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Everything that a guest can import.
///
/// # Errors
/// When two of them have the same name, which is a fault of this build.
pub(super) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    bindings::Job::add_to_linker::<_, HasSelf<Host>>(&mut linker, |host| host)?;
    wasmtime_wasi_nn::wit::add_to_linker(&mut linker, |host: &mut Host| {
        WasiNnView::new(&mut host.table, &mut host.nn)
    })?;
    nn::count_tensors(&mut linker)?;
    Ok(linker)
}
