//! How tests start the real worker.
//!
//! Owns: one specification, and the turn that keeps one worker at a time on the cores. Never: replaces
//! the process or its limits beyond a shorter load. Called by the tests of calls and of models.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use potluck_sandbox::engine::DeviceChoice;
use potluck_sandbox::jail::{Jail, JailPlan};
use potluck_sandbox::supervisor::{WorkerLimits, WorkerSpec};

/// One worker at a time: the tests measure how fast it obeys.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A worker for `model` on two threads of the CPU, jailed as a user's is.
pub(crate) fn spec(model: File) -> WorkerSpec {
    let bytes = model.metadata().unwrap().len();
    WorkerSpec {
        program: PathBuf::from(env!("CARGO_BIN_EXE_potluck-gpu-worker")),
        model,
        device: DeviceChoice::Cpu,
        threads: Some(2),
        jail: Jail::Jailed(Box::new(JailPlan::cpu(bytes, 2))),
        limits: WorkerLimits { load_timeout: Duration::from_secs(60), ..WorkerLimits::default() },
    }
}
