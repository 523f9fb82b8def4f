//! The layer that forbids opening files and using ports, whatever the root folder holds.
//!
//! Owns: the two Landlock rule sets. Never: goes on without Landlock: its first version is a hard
//! requirement, later rights (truncate, ports, device control, signals) are taken where the kernel
//! has them, and the version is reported. Called by [`super::enter`] and [`super::Guard::seal`].
//!
//! Workers without a card open nothing, so their one rule set has no exceptions from the start. A
//! CUDA worker may use what its plan lists until it is sealed. Landlock's second set binds the
//! calling thread and its children; for the driver's own threads it is seccomp that forbids opening.

use std::io;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError,
    RulesetStatus, Scope,
};

use super::JailError;
use super::layers::Layer;
use super::plan::{BindKind, JailPlan};

/// The newest version whose rights are asked for.
const NEWEST: ABI = ABI::V6;

fn failed<E: std::error::Error + Send + Sync + 'static>(act: &'static str) -> impl Fn(E) -> JailError {
    move |error| JailError::new(Layer::Landlock, act, io::Error::other(error))
}

/// Forbids everything but what the plan's binds need. The kernel's Landlock version.
pub(super) fn restrict(plan: &JailPlan) -> Result<u32, JailError> {
    let mut rules = everything_forbidden().map_err(failed("making the first rule set"))?;
    for (path, access) in exceptions(plan) {
        // A file that the plan covers may not be there (another driver version).
        let Ok(path) = PathFd::new(path) else { continue };
        rules =
            rules.add_rule(PathBeneath::new(path, access)).map_err(failed("adding to the first rule set"))?;
    }
    enforce(rules)
}

/// Forbids everything without exception.
pub(super) fn close() -> Result<(), JailError> {
    enforce(everything_forbidden().map_err(failed("making the last rule set"))?).map(drop)
}

fn everything_forbidden() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()
}

fn enforce(rules: RulesetCreated) -> Result<u32, JailError> {
    let status = rules.restrict_self().map_err(failed("enforcing a rule set"))?;
    let version = match status.landlock {
        LandlockStatus::Available { effective_abi, kernel_abi } => kernel_abi.unwrap_or(effective_abi as i32),
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => 0,
    };
    match u32::try_from(version) {
        Ok(version @ 1..) if status.ruleset != RulesetStatus::NotEnforced => Ok(version),
        _ => Err(failed("enforcing a rule set")(io::Error::from(io::ErrorKind::Unsupported))),
    }
}

/// What a plan's binds are for.
fn exceptions(plan: &JailPlan) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut exceptions: Vec<_> = plan
        .binds
        .iter()
        .map(|bind| {
            let access = match bind.kind {
                BindKind::ReadOnly | BindKind::Library if bind.target.is_dir() => read,
                BindKind::ReadOnly | BindKind::Library => AccessFs::ReadFile.into(),
                BindKind::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
            };
            (bind.target.clone(), access)
        })
        .collect();
    exceptions.extend(plan.files.iter().map(|file| (file.target.clone(), AccessFs::ReadFile.into())));
    if plan.procfs {
        // The driver reads about itself and names its threads.
        exceptions.push(("/proc".into(), read | AccessFs::WriteFile));
    }
    exceptions
}
