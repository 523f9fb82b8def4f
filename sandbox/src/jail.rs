//! The jail: what a worker process shuts itself into before it meets a stranger's bytes.
//!
//! Owns: the order in which the layers go up, what each may leave out, and the one error that says
//! which of them failed and what helps. Never: parses a stranger's bytes, decides what a job may
//! cost, or goes on when a layer fails. Called first thing by every worker program ([`start`]) and,
//! for the plan alone, by the daemon's [`crate::supervisor`] and [`crate::protection`].
//!
//! ```text
//!   potluckd --spawn--> worker program, single-threaded
//!                         jail::start
//!                           |-- launcher (stays outside): cgroup, id maps, then waits:
//!                           |     daemon gone, SIGTERM or too much memory -> kills the worker;
//!                           |     worker ended -> ends the same way
//!                           `-- inside (pid 1 of its own namespace): empty root, limits,
//!                                 no capabilities, Landlock, seccomp A -> returns a Guard
//!                         guard.seal()  -- seccomp B, just before the first stranger's byte
//! ```
//!
//! No program is executed after the first one: what is inside is the worker program itself, forked.
//! The layers fail closed. A plan may leave layers out; that is for finding faults, it is reported
//! by [`crate::protection::EffectiveProtection`], and such a machine does not count as protected.

pub mod canary;
mod capabilities;
mod cgroup;
pub mod cuda;
mod descriptors;
mod landlock;
mod launcher;
mod layers;
mod namespaces;
mod plan;
mod remedy;
mod rlimits;
mod root;
mod seccomp;
#[allow(unsafe_code, reason = "the few system calls that no safe crate offers")]
mod sys;
mod watchdog;

pub use cgroup::{CgroupHad, CgroupVersion};
pub use layers::{Layer, Layers};
pub use plan::{Bind, BindKind, JailLimits, JailPlan, PlacedFile, Profile};
pub(crate) use remedy::remedy_when_absent;
pub(crate) use sys::exit_now;

use std::io;
use std::path::Path;

use thiserror::Error;

use crate::engine::DeviceChoice;
use canary::CanaryPlan;
use cuda::CudaError;

/// The argument that carries a [`JailPlan`] as JSON.
pub const JAIL_ARGUMENT: &str = "--jail=";
/// The argument that leaves the jail out. The owner's own choice; strangers see it in the offer.
pub const UNSAFE_ARGUMENT: &str = "--unsafe-no-jail";
/// The argument that carries a [`CanaryPlan`] as JSON.
pub const CANARY_ARGUMENT: &str = "--canary=";

/// How a worker is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Jail {
    /// In the jail that the plan describes.
    Jailed(Box<JailPlan>),
    /// With nothing between it and the machine but the process: the owner said so.
    Unsafe,
}

impl Jail {
    /// The one argument that tells a worker program so.
    #[must_use]
    pub fn argument(&self) -> String {
        match self {
            Self::Jailed(plan) => format!("{JAIL_ARGUMENT}{}", plan.to_json()),
            Self::Unsafe => UNSAFE_ARGUMENT.to_owned(),
        }
    }

    /// The jail of a worker that runs a model of `model_bytes` on `device` with `threads` engine
    /// threads. Inside, a chosen card is the only one and has the number 0.
    ///
    /// # Errors
    /// [`CudaError`] when a card is asked for that this machine cannot lend to a worker.
    pub fn for_model(device: DeviceChoice, model_bytes: u64, threads: usize) -> Result<Self, CudaError> {
        let cpu = || JailPlan::cpu(model_bytes, u32::try_from(threads).unwrap_or(u32::MAX));
        let card = |number| cuda::prepare(Path::new("/"), number).map(|p| JailPlan::cuda(model_bytes, p));
        let plan = match device {
            DeviceChoice::Cuda(number) => card(number)?,
            // As the engine will choose: the first card when this build and this machine have one.
            DeviceChoice::Auto if cfg!(feature = "cuda") => card(0).unwrap_or_else(|_| cpu()),
            DeviceChoice::Auto | DeviceChoice::Cpu => cpu(),
        };
        Ok(Self::Jailed(Box::new(plan)))
    }

    /// The device as the worker inside calls it.
    pub(crate) fn device_inside(&self, device: DeviceChoice) -> DeviceChoice {
        match self {
            Self::Jailed(plan) if plan.profile == (Profile::Gpu { cuda: true }) => DeviceChoice::Cuda(0),
            _ => device,
        }
    }

    /// Whether there is a jail.
    #[must_use]
    pub fn is_jailed(&self) -> bool {
        matches!(self, Self::Jailed(_))
    }
}

/// Why a layer of the jail cannot be set up. Fault: local (the machine, or its owner's settings).
#[derive(Debug, Error)]
#[error("the jail cannot be set up ({layer}: {act}: {source}){}", help(remedy))]
pub struct JailError {
    /// Which layer.
    pub layer: Layer,
    /// What was tried.
    pub act: String,
    /// The system's reason.
    pub source: io::Error,
    /// What the owner can do, when it is known.
    pub remedy: Option<String>,
}

/// What stands in a [`JailError`]'s words between the fault and what the owner can do.
pub(crate) const HELPS: &str = "; what helps: ";

fn help(remedy: &Option<String>) -> String {
    remedy.as_ref().map_or_else(String::new, |remedy| format!("{HELPS}{remedy}"))
}

impl JailError {
    /// The error of an act in a layer, with what is known to help.
    fn new(layer: Layer, act: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let remedy = remedy::remedy(layer, &source);
        Self { layer, act: act.into(), source, remedy }
    }
}

/// Why a worker program does not begin its work.
#[derive(Debug, Error)]
pub enum EnterError {
    /// Its arguments are not those that the daemon gives. Fault: whoever started it.
    #[error("not started by the daemon: {what}")]
    Usage {
        /// What is wrong.
        what: String,
    },
    /// The jail cannot be set up. Fault: local.
    #[error(transparent)]
    Jail(#[from] JailError),
}

/// A worker that is inside its jail, or outside of any because its owner said so. Whoever holds it
/// still owes [`Guard::seal`].
#[derive(Debug)]
#[must_use = "a worker must seal its jail before it touches a stranger's bytes"]
pub struct Guard {
    inside: Option<Inside>,
}

impl Guard {
    /// The profile of the jail; `None` outside of one.
    #[must_use]
    pub fn profile(&self) -> Option<Profile> {
        self.inside.as_ref().map(|inside| inside.plan.profile)
    }

    /// Closes the jail for good: from here on only the profile's listed system calls work, in every
    /// thread there is and every one to come. Call it when everything that opens a file has run and
    /// before the first stranger's byte is looked at. Outside of a jail it does nothing.
    ///
    /// # Errors
    /// [`JailError`]; the process must then end ([`crate::exit::WorkerExit::Jail`]).
    pub fn seal(self) -> Result<(), JailError> {
        match &self.inside {
            Some(inside) => inside.seal(seccomp::Hostile::Kill),
            None => Ok(()),
        }
    }
}

/// The process inside, after [`enter`].
#[derive(Debug)]
struct Inside {
    plan: JailPlan,
    /// The resource limits that could be had.
    cgroup: CgroupHad,
    /// The kernel's Landlock version; 0 when the plan leaves Landlock out.
    landlock_abi: u32,
}

impl Inside {
    fn seal(&self, hostile: seccomp::Hostile) -> Result<(), JailError> {
        if self.plan.layers.landlock && self.plan.profile.opens_files_before_seal() {
            landlock::close()?;
        }
        if self.plan.layers.seccomp {
            seccomp::stage_b(&self.plan, hostile)?;
        }
        Ok(())
    }

    /// The layers in force, not those hoped for.
    fn layers(&self) -> Layers {
        Layers {
            cgroup: self.plan.layers.cgroup && self.cgroup.is_enough(),
            watchdog: self.plan.layers.watchdog && !self.cgroup.memory,
            seccomp: self.plan.layers.seccomp && !self.plan.record,
            ..self.plan.layers
        }
    }
}

/// Reads the program's one argument and does what it says: enters the jail, stays outside, or plays
/// the canary (which reports and ends the process). `serves` says for which profiles this program is
/// made; a plan with another one is refused. Call it first of all, while there is one thread.
///
/// Returns in the process inside. The launcher does not return but for an error: it ends with the
/// inside process's own exit status.
///
/// # Errors
/// [`EnterError`]. Whatever process it is returned in must end at once, with
/// [`crate::exit::WorkerExit::Usage`] or [`crate::exit::WorkerExit::Jail`].
pub fn start(serves: fn(Profile) -> bool) -> Result<Guard, EnterError> {
    let usage = |what: &str| EnterError::Usage { what: what.to_owned() };
    let mut arguments = std::env::args().skip(1);
    let (Some(argument), None) = (arguments.next(), arguments.next()) else {
        return Err(usage("it takes one argument"));
    };
    let check = |plan: &JailPlan| {
        if serves(plan.profile) { Ok(()) } else { Err(usage("the plan is for another program")) }
    };
    if argument == UNSAFE_ARGUMENT {
        return Ok(Guard { inside: None });
    }
    if let Some(json) = argument.strip_prefix(JAIL_ARGUMENT) {
        let plan = JailPlan::from_json(json).map_err(|error| usage(&error.to_string()))?;
        check(&plan)?;
        return Ok(Guard { inside: Some(enter(plan)?) });
    }
    if let Some(json) = argument.strip_prefix(CANARY_ARGUMENT) {
        let canary: CanaryPlan = serde_json::from_str(json).map_err(|error| usage(&error.to_string()))?;
        check(&canary.jail)?;
        let inside = enter(canary.jail.clone())?;
        return Err(canary::sing(&canary, &inside).into());
    }
    Err(usage("an unknown argument"))
}

/// Enters the jail; returns in the process inside only.
fn enter(plan: JailPlan) -> Result<Inside, JailError> {
    if plan.layers.descriptors {
        descriptors::keep_the_standard_three()?;
    }
    let cgroup = launcher::launch(&plan)?;
    namespaces::become_session_leader()?;
    if plan.layers.namespaces {
        namespaces::forbid_more()?;
    }
    if plan.layers.root {
        root::build(&plan)?;
    }
    if plan.layers.rlimits {
        rlimits::lower(&plan)?;
    }
    if plan.layers.capabilities {
        capabilities::drop_all()?;
    }
    capabilities::no_new_privileges()?;
    let landlock_abi = if plan.layers.landlock { landlock::restrict(&plan)? } else { 0 };
    if plan.layers.seccomp {
        seccomp::stage_a(&plan)?;
    }
    Ok(Inside { plan, cgroup, landlock_abi })
}
