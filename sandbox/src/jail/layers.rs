//! The layers of the jail, by name.
//!
//! Owns: their list and their words. Never: sets one up. Called by everything that plans, builds or
//! reports a jail.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One layer of the jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Layer {
    /// Own user, mount, process, network, IPC, host-name and cgroup namespaces.
    Namespaces,
    /// An empty root folder with nothing in it but what the plan lists.
    Root,
    /// No files may be opened and no ports used (Landlock).
    Landlock,
    /// Only listed system calls (seccomp).
    Seccomp,
    /// No privileges, and none to be had again.
    Capabilities,
    /// Ceilings on descriptors, threads, files and core dumps.
    Rlimits,
    /// The kernel's ceiling on memory, threads and processor time.
    Cgroup,
    /// The launcher's own ceiling on memory, where the kernel's cannot be had.
    Watchdog,
    /// Three descriptors and no more.
    Descriptors,
}

impl Layer {
    /// Every layer, in the order in which they are told.
    pub const ALL: [Self; 9] = [
        Self::Namespaces,
        Self::Root,
        Self::Landlock,
        Self::Seccomp,
        Self::Capabilities,
        Self::Rlimits,
        Self::Cgroup,
        Self::Watchdog,
        Self::Descriptors,
    ];

    /// As people read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Root => "empty root",
            Self::Landlock => "Landlock",
            Self::Seccomp => "seccomp",
            Self::Capabilities => "dropped capabilities",
            Self::Rlimits => "rlimits",
            Self::Cgroup => "cgroup",
            Self::Watchdog => "memory watchdog",
            Self::Descriptors => "named descriptors",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which layers are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layers {
    /// [`Layer::Namespaces`].
    pub namespaces: bool,
    /// [`Layer::Root`]; cannot be had without namespaces.
    pub root: bool,
    /// [`Layer::Landlock`].
    pub landlock: bool,
    /// [`Layer::Seccomp`].
    pub seccomp: bool,
    /// [`Layer::Capabilities`].
    pub capabilities: bool,
    /// [`Layer::Rlimits`].
    pub rlimits: bool,
    /// [`Layer::Cgroup`].
    pub cgroup: bool,
    /// [`Layer::Watchdog`].
    pub watchdog: bool,
    /// [`Layer::Descriptors`].
    pub descriptors: bool,
}

impl Layers {
    /// Every layer.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            namespaces: true,
            root: true,
            landlock: true,
            seccomp: true,
            capabilities: true,
            rlimits: true,
            cgroup: true,
            watchdog: true,
            descriptors: true,
        }
    }

    /// No layer.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            namespaces: false,
            root: false,
            landlock: false,
            seccomp: false,
            capabilities: false,
            rlimits: false,
            cgroup: false,
            watchdog: false,
            descriptors: false,
        }
    }

    /// These without one; without namespaces there is no own root either.
    #[must_use]
    pub const fn without(mut self, layer: Layer) -> Self {
        match layer {
            Layer::Namespaces => {
                self.namespaces = false;
                self.root = false;
            }
            Layer::Root => self.root = false,
            Layer::Landlock => self.landlock = false,
            Layer::Seccomp => self.seccomp = false,
            Layer::Capabilities => self.capabilities = false,
            Layer::Rlimits => self.rlimits = false,
            Layer::Cgroup => self.cgroup = false,
            Layer::Watchdog => self.watchdog = false,
            Layer::Descriptors => self.descriptors = false,
        }
        self
    }

    /// Whether a layer is on.
    #[must_use]
    pub const fn has(&self, layer: Layer) -> bool {
        match layer {
            Layer::Namespaces => self.namespaces,
            Layer::Root => self.root,
            Layer::Landlock => self.landlock,
            Layer::Seccomp => self.seccomp,
            Layer::Capabilities => self.capabilities,
            Layer::Rlimits => self.rlimits,
            Layer::Cgroup => self.cgroup,
            Layer::Watchdog => self.watchdog,
            Layer::Descriptors => self.descriptors,
        }
    }

    /// Whether every layer is on; the cgroup and the watchdog stand in for each other.
    #[must_use]
    pub fn is_full(&self) -> bool {
        (self.cgroup || self.watchdog)
            && Layer::ALL
                .into_iter()
                .filter(|layer| !matches!(layer, Layer::Cgroup | Layer::Watchdog))
                .all(|layer| self.has(layer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_one_layer_missing_is_not_full_but_for_the_two_that_stand_in_for_each_other() {
        assert!(Layers::all().is_full() && !Layers::none().is_full());
        for layer in Layer::ALL {
            let without = Layers::all().without(layer);
            assert!(!without.has(layer));
            assert_eq!(without.is_full(), matches!(layer, Layer::Cgroup | Layer::Watchdog), "{layer}");
        }
        assert!(!Layers::all().without(Layer::Cgroup).without(Layer::Watchdog).is_full());
        assert!(!Layers::all().without(Layer::Namespaces).root);
    }
}
