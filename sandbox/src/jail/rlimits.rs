//! The layer of per-process ceilings.
//!
//! Owns: descriptors, threads, file size, queues and core dumps. Never: limits address space, which
//! CUDA and wasmtime reserve by the terabyte (memory has its ceiling in [`super::cgroup`] or
//! [`super::watchdog`]). Called by [`super::enter`].

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use super::JailError;
use super::layers::Layer;
use super::plan::{JailPlan, Profile};

/// Open descriptors: three, the engine's few, a driver's dozens.
const DESCRIPTORS: u64 = 256;

/// Lowers the ceilings, for good: the hard limit goes down with the soft one.
pub(super) fn lower(plan: &JailPlan) -> Result<(), JailError> {
    let mut ceilings = vec![
        // A core dump would write a stranger's prompt to the owner's disk.
        (Resource::Core, 0, "forbidding core dumps"),
        (Resource::Nofile, DESCRIPTORS, "limiting descriptors"),
        (Resource::Nproc, u64::from(plan.limits.pids), "limiting threads"),
        (Resource::Msgqueue, 0, "forbidding message queues"),
    ];
    if plan.profile != (Profile::Gpu { cuda: true }) {
        // The driver grows anonymous files; nobody else writes to any.
        ceilings.push((Resource::Fsize, 0, "forbidding files to grow"));
    }
    for (resource, ceiling, act) in ceilings {
        let limit = Rlimit { current: Some(ceiling), maximum: Some(ceiling) };
        setrlimit(resource, limit).map_err(|errno| JailError::new(Layer::Rlimits, act, errno))?;
    }
    // Debuggers of the same user stay out. Not with a procfs: the driver names its threads there,
    // and the kernel gives the files of an undumpable process to root.
    let dumpable = if plan.procfs { DumpableBehavior::Dumpable } else { DumpableBehavior::NotDumpable };
    set_dumpable_behavior(dumpable)
        .map_err(|errno| JailError::new(Layer::Rlimits, "shutting debuggers out", errno))
}
