//! How this machine's workers are jailed, and what that is worth.
//!
//! Owns: the programs of the workers, the choice between the jail and none, the plan for each worker,
//! and the canaries that are sent before any work is taken. Never: sets a layer up (the worker program
//! does) or decides by hope. Called by the commands `run`, `doctor` and `self-test`.

use std::path::{Path, PathBuf};

use potluck_sandbox::engine::DeviceChoice;
use potluck_sandbox::jail::cuda::CudaError;
use potluck_sandbox::jail::{Jail, JailPlan};
use potluck_sandbox::protection::EffectiveProtection;

use crate::error::CommandError;

const MODEL_WORKER: &str = "potluck-gpu-worker";
const GUEST_WORKER: &str = "potluck-wasm-worker";
/// A canary's jail is that of a small model: the ceilings on memory are all that differs.
const CANARY_MODEL_BYTES: u64 = 64 << 20;
const CANARY_GUEST_BYTES: u64 = 64 << 20;

/// The programs that do strangers' work.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Runs models.
    pub model: PathBuf,
    /// Compiles and runs components.
    pub guest: PathBuf,
}

impl Programs {
    /// `$POTLUCK_WORKER` and `$POTLUCK_WASM_WORKER`, else the programs next to this one.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn find() -> Result<Self, CommandError> {
        Ok(Self {
            model: find("POTLUCK_WORKER", MODEL_WORKER)?,
            guest: find("POTLUCK_WASM_WORKER", GUEST_WORKER)?,
        })
    }
}

fn find(variable: &'static str, name: &'static str) -> Result<PathBuf, CommandError> {
    let path = match std::env::var_os(variable).filter(|path| !path.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => {
            let me = std::env::current_exe()
                .map_err(|source| CommandError::System { doing: "find this program", source })?;
            me.parent().unwrap_or(Path::new(".")).join(name)
        }
    };
    if path.is_file() { Ok(path) } else { Err(CommandError::NoWorkerProgram { path, name, variable }) }
}

/// Whether workers are jailed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jailing {
    /// They are, or no work is taken.
    Full,
    /// They are not: the owner said so.
    Off,
}

impl Jailing {
    /// The jail of a worker that runs a model of `model_bytes` on `device` with `threads` threads (all
    /// cores when `None`).
    ///
    /// # Errors
    /// [`CudaError`] when a card was asked for by name and cannot be taken into a jail.
    pub fn for_model(
        self,
        device: DeviceChoice,
        model_bytes: u64,
        threads: Option<usize>,
    ) -> Result<Jail, CudaError> {
        match self {
            Self::Off => Ok(Jail::Unsafe),
            Self::Full => model_jail(device, model_bytes, threads),
        }
    }

    /// What the jail of model workers is worth on this machine.
    ///
    /// # Errors
    /// As [`Self::for_model`].
    pub async fn probe_models(
        self,
        programs: &Programs,
        device: DeviceChoice,
    ) -> Result<EffectiveProtection, CudaError> {
        match self.for_model(device, CANARY_MODEL_BYTES, None)? {
            Jail::Unsafe => Ok(EffectiveProtection::unjailed()),
            Jail::Jailed(plan) => Ok(EffectiveProtection::probe(&programs.model, &plan).await),
        }
    }

    /// What the jail of components is worth on this machine.
    pub async fn probe_guests(self, programs: &Programs) -> EffectiveProtection {
        match self {
            Self::Off => EffectiveProtection::unjailed(),
            Self::Full => {
                EffectiveProtection::probe(&programs.guest, &JailPlan::wasm(CANARY_GUEST_BYTES)).await
            }
        }
    }

    /// Are workers jailed?
    #[must_use]
    pub fn is_on(self) -> bool {
        self == Self::Full
    }
}

fn model_jail(device: DeviceChoice, model_bytes: u64, threads: Option<usize>) -> Result<Jail, CudaError> {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    Jail::for_model(device, model_bytes, threads.unwrap_or_else(all))
}

/// Is there an NVIDIA card, or Windows' way to one?
#[must_use]
pub fn has_card() -> bool {
    ["/dev/nvidiactl", "/dev/dxg"].iter().any(|node| Path::new(node).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_is_off_and_nothing_else_is() {
        assert_eq!(Jailing::Off.for_model(DeviceChoice::Cpu, 1, Some(1)), Ok(Jail::Unsafe));
        let jail = Jailing::Full.for_model(DeviceChoice::Cpu, 1_000, Some(2)).unwrap();
        assert!(jail.is_jailed());
        let nowhere = Jailing::Full.for_model(DeviceChoice::Cuda(99), 1, None);
        assert!(nowhere.is_err(), "a card that is asked for by name is never replaced");
    }
}
