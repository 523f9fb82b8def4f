//! What a denial by each layer looks like.
//!
//! Owns: the signatures by which an outcome is laid at a layer's door. Never: sets a layer up or
//! takes one away. Called by the suite with every outcome, so that an act that fails for another
//! reason than the claimed one is noticed, and by the mutation run to name the second layer.

use libc::{
    EACCES, EADDRNOTAVAIL, EAGAIN, EBADF, ECONNREFUSED, EFBIG, EINVAL, EMFILE, ENETUNREACH, ENODATA, ENODEV,
    ENOENT, ENOMEM, ENOSPC, ENOSYS, ENOTDIR, EPERM, EROFS, ESRCH, EUSERS, EXDEV, SIGBUS, SIGKILL, SIGSYS,
    SIGXFSZ,
};
use potluck_sandbox::jail::Layer;

use super::lab::Outcome;

/// Whether `outcome` is how `layer` denies things.
pub(crate) fn denies_like(layer: Layer, outcome: &Outcome) -> bool {
    let (errors, signals): (&[i32], &[i32]) = match layer {
        // What is in another namespace is not there: no such process, no route, nobody listening. And
        // whoever is somebody in a namespace of users is nobody outside.
        Layer::Namespaces => (
            &[
                ESRCH,
                ENETUNREACH,
                ECONNREFUSED,
                EADDRNOTAVAIL,
                ENOENT,
                ENODATA,
                ENODEV,
                EPERM,
                EACCES,
                EINVAL,
                ENOSPC,
                EUSERS,
            ],
            &[],
        ),
        Layer::Root => (&[ENOENT, EROFS, ENODATA, ENOTDIR, EACCES, ENOSPC], &[]),
        Layer::Landlock => (&[EACCES, EPERM, EXDEV], &[]),
        Layer::Seccomp => (&[EPERM, EACCES, ENOSYS], &[SIGSYS]),
        Layer::Capabilities => (&[EPERM, EACCES], &[]),
        Layer::Rlimits => (&[EAGAIN, EMFILE, EFBIG], &[SIGXFSZ]),
        Layer::Cgroup => (&[EAGAIN, ENOMEM], &[SIGKILL, SIGBUS]),
        Layer::Watchdog => (&[], &[SIGKILL]),
        Layer::Descriptors => (&[EBADF], &[]),
    };
    match outcome {
        Outcome::Refused(error) => errors.contains(&error.0),
        Outcome::Killed(signal) => signals.contains(signal),
        Outcome::TooMuchMemory => matches!(layer, Layer::Cgroup | Layer::Watchdog),
        _ => false,
    }
}
