//! The layer of system calls: only those that are listed.
//!
//! Owns: building and installing the filters from the lists in [`tables`]. Never: lists a call
//! without a reason beside it. Called by [`super::enter`] (stage A) and [`super::Guard::seal`]
//! (stage B).
//!
//! Filters add up: the strictest answer of all of them counts.
//!
//! | filter    | installed | answer                                                           |
//! |-----------|-----------|------------------------------------------------------------------|
//! | new clone | stage A   | `clone3` does not exist (ENOSYS): glibc then uses `clone`, whose flags a filter can read |
//! | A         | stage A   | what start-up needs is allowed, all else is refused (EPERM)      |
//! | hostile   | stage B   | calls that no worker and no library of one has a use for end the process (SIGSYS) |
//! | B         | stage B   | what the profile needs is allowed, all else is refused (EPERM)   |
//!
//! Refused and not killed by default, because libraries probe: they read `/sys` for the number of
//! cores, ask for the user's name, try a newer call first, and do without when they are told no. A
//! worker that died of that would be killed by its next update. Debugging, mounting, executing or
//! loading programs into the kernel is no probing: there the process ends and its death says so.

mod tables;

use std::collections::BTreeMap;
use std::io;

use seccompiler::{BpfProgram, Error, SeccompAction, SeccompFilter, TargetArch, apply_filter_all_threads};

use super::JailError;
use super::layers::Layer;
use super::plan::JailPlan;
use tables::Rules;

/// What happens on a call that only an attacker makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hostile {
    /// The process ends.
    Kill,
    /// The call is refused like any other, so that the canary can try the next one. Less strict than
    /// the real thing: what is refused here is refused there.
    Refuse,
}

fn failed(act: &'static str) -> impl Fn(Error) -> JailError {
    move |error| {
        let source = match error {
            Error::Prctl(source) | Error::Seccomp(source) => source,
            other => io::Error::other(other),
        };
        JailError::new(Layer::Seccomp, act, source)
    }
}

/// Allows what start-up needs.
pub(super) fn stage_a(plan: &JailPlan) -> Result<(), JailError> {
    let failed = failed("installing the first filter");
    let newer_clone = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let no_such_call = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    install(newer_clone, SeccompAction::Allow, no_such_call).map_err(&failed)?;
    let list = tables::start_up(plan.profile).map_err(&failed)?;
    install(list, otherwise(plan), SeccompAction::Allow).map_err(failed)
}

/// Allows what the profile needs once it works for strangers.
pub(super) fn stage_b(plan: &JailPlan, hostile: Hostile) -> Result<(), JailError> {
    let failed = failed("installing the last filter");
    // Compiled before the first of the two is in force.
    let list = compile(tables::work(plan.profile).map_err(&failed)?, otherwise(plan), SeccompAction::Allow);
    let list = list.map_err(&failed)?;
    if hostile == Hostile::Kill && !plan.record {
        let attacks = tables::HOSTILE.iter().map(|call| (*call, Vec::new())).collect();
        install(attacks, SeccompAction::Allow, SeccompAction::KillProcess).map_err(&failed)?;
    }
    apply_filter_all_threads(&list).map_err(failed)
}

/// The answer to a call that is not listed.
fn otherwise(plan: &JailPlan) -> SeccompAction {
    if plan.record { SeccompAction::Log } else { SeccompAction::Errno(libc::EPERM.cast_unsigned()) }
}

/// Installs one filter in every thread that there is.
fn install(list: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<(), Error> {
    apply_filter_all_threads(&compile(list, otherwise, listed)?)
}

fn compile(list: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(Error::Backend)?;
    let filter = SeccompFilter::new(list, otherwise, listed, arch).map_err(Error::Backend)?;
    filter.try_into().map_err(Error::Backend)
}

#[cfg(test)]
mod tests {
    use super::super::plan::Profile;
    use super::*;

    const PROFILES: [Profile; 4] =
        [Profile::Gpu { cuda: false }, Profile::Gpu { cuda: true }, Profile::Wasm, Profile::Compile];

    #[test]
    fn every_list_compiles_and_allows_nothing_hostile() {
        for profile in PROFILES {
            for list in [tables::start_up(profile).unwrap(), tables::work(profile).unwrap()] {
                assert!(tables::HOSTILE.iter().all(|call| !list.contains_key(call)), "{profile:?}");
                assert!(!compile(list, SeccompAction::Errno(1), SeccompAction::Allow).unwrap().is_empty());
            }
        }
    }

    #[test]
    fn nothing_opens_connects_or_forks_once_it_works() {
        let forbidden = [libc::SYS_openat, libc::SYS_openat2, libc::SYS_socket, libc::SYS_connect];
        let forbidden = [&forbidden[..], &[libc::SYS_kill, libc::SYS_setresuid, libc::SYS_seccomp]].concat();
        let conditional = [libc::SYS_clone, libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_tgkill];
        for profile in PROFILES {
            let list = tables::work(profile).unwrap();
            assert!(forbidden.iter().all(|call| !list.contains_key(call)), "{profile:?}");
            assert!(conditional.iter().all(|call| !list[call].is_empty()), "{profile:?}");
            assert_eq!(list.contains_key(&libc::SYS_ioctl), profile == Profile::Gpu { cuda: true });
        }
    }
}
