//! What truly stands between a job and this machine.
//!
//! Owns: [`EffectiveProtection`], the honest account. Never: sets a layer up, and never reports one
//! that was only hoped for. Called by `potluckd`, which prints it and puts it into its offers. The
//! jail (namespaces, Landlock, seccomp, resource limits) gets its own rooms beside this one; each
//! layer then reports here only after it was set up and probed.

use std::fmt;

/// The layers that are in force around a worker started by [`crate::supervisor::Worker`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct EffectiveProtection {
    /// The worker is a process of its own: a crash in the engine does not take the daemon along.
    pub own_process: bool,
    /// Its environment is empty but for how the engine's threads behave and what CUDA needs.
    pub cleared_environment: bool,
    /// It is handed three descriptors: the socket, the model (read-only) and its log.
    pub named_descriptors: bool,
    /// It cannot see the machine's files, processes or network (Linux namespaces).
    pub namespaces: bool,
    /// It cannot open files (Landlock).
    pub landlock: bool,
    /// It can make only listed system calls (seccomp).
    pub seccomp: bool,
    /// Its memory and CPU use have a ceiling (cgroups or rlimits).
    pub resource_limits: bool,
}

impl EffectiveProtection {
    /// What this version enforces.
    #[must_use]
    pub const fn current() -> Self {
        Self {
            own_process: true,
            cleared_environment: true,
            named_descriptors: true,
            namespaces: false,
            landlock: false,
            seccomp: false,
            resource_limits: false,
        }
    }

    /// Whether a stranger's job is jailed: every layer is there.
    #[must_use]
    pub const fn is_jailed(&self) -> bool {
        self.own_process
            && self.cleared_environment
            && self.named_descriptors
            && self.namespaces
            && self.landlock
            && self.seccomp
            && self.resource_limits
    }

    /// One line for people: what is there, and what is not.
    #[must_use]
    pub fn summary(&self) -> String {
        let (mut there, mut absent) = (Vec::new(), Vec::new());
        for (enforced, name) in [
            (self.own_process, "own process"),
            (self.cleared_environment, "cleared environment"),
            (self.named_descriptors, "three descriptors"),
            (self.namespaces, "namespaces"),
            (self.landlock, "Landlock"),
            (self.seccomp, "seccomp"),
            (self.resource_limits, "resource limits"),
        ] {
            if enforced { there.push(name) } else { absent.push(name) }
        }
        if absent.is_empty() {
            return format!("jailed: {}", there.join(", "));
        }
        format!("no jail yet: {}; no {}", there.join(", "), absent.join(", no "))
    }
}

impl fmt::Display for EffectiveProtection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())
    }
}

#[cfg(test)]
mod tests {
    use super::EffectiveProtection;

    #[test]
    fn today_says_plainly_that_there_is_no_jail() {
        let today = EffectiveProtection::current();
        assert!(!today.is_jailed());
        assert_eq!(
            today.summary(),
            "no jail yet: own process, cleared environment, three descriptors; \
             no namespaces, no Landlock, no seccomp, no resource limits"
        );
    }

    #[test]
    fn one_missing_layer_is_no_jail() {
        let mut all = EffectiveProtection {
            namespaces: true,
            landlock: true,
            seccomp: true,
            resource_limits: true,
            ..EffectiveProtection::current()
        };
        assert!(all.is_jailed() && all.summary().starts_with("jailed"));
        all.landlock = false;
        assert!(!all.is_jailed() && all.summary().contains("no Landlock"));
    }
}
