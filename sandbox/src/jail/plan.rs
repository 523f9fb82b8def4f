//! What a jail is to look like.
//!
//! Owns: [`JailPlan`], which the daemon makes and the worker program obeys, and its JSON form on the
//! command line. Never: touches the machine. Called by the daemon (to make one) and by
//! [`super::start`] (to read one).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::layers::Layers;

/// Threads and processes of one worker: engine threads on the largest machines, with room.
const DEFAULT_PIDS: u32 = 64;
/// What a worker needs beside its model: the engine's buffers, a context, code, stacks.
const BESIDE_THE_MODEL: u64 = 2 << 30;
/// What a compile worker may use: cranelift on the largest component that is taken.
const COMPILE_BYTES: u64 = 2 << 30;
/// Cores of a guest: its one thread, and the runtime's timer.
const GUEST_CORES: u32 = 2;
/// Cores of a compile worker, however many the machine has: the owner's other work goes on.
const COMPILE_CORES: u32 = 4;
/// What the wasm worker needs beside its guest's memory.
const BESIDE_THE_GUEST: u64 = 512 << 20;

/// Which kind of worker, and with it which system calls it may make once it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Profile {
    /// Runs a model on strangers' prompts.
    Gpu {
        /// On an NVIDIA card; otherwise on the processor.
        cuda: bool,
    },
    /// Runs strangers' compiled code: may make memory executable.
    Wasm,
    /// Compiles strangers' code and never runs it.
    Compile,
}

impl Profile {
    /// Whether this worker opens anything between start and seal. The others never open a file.
    #[must_use]
    pub fn opens_files_before_seal(self) -> bool {
        matches!(self, Self::Gpu { cuda: true })
    }
}

/// Ceilings on what a worker uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailLimits {
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Threads and processes.
    pub pids: u32,
    /// Processor time, in whole cores; no ceiling when absent.
    pub cores: Option<u32>,
}

/// How a path of the machine appears in the worker's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BindKind {
    /// A file or folder that can be read.
    ReadOnly,
    /// A library: can be read and mapped executable.
    Library,
    /// A device node that can be opened, read, written and controlled.
    Device,
}

/// A path of the machine that appears in the worker's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Where it is: absolute, without symbolic links.
    pub source: PathBuf,
    /// Where the worker finds it: absolute.
    pub target: PathBuf,
    /// As what.
    pub kind: BindKind,
}

/// A file with given words in the worker's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedFile {
    /// Where: absolute. Under `/proc` only if there is such a file there: it is then covered.
    pub target: PathBuf,
    /// Its words.
    pub content: String,
}

/// The whole plan of one jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailPlan {
    /// Which worker it is for.
    pub profile: Profile,
    /// Which layers go up. All of them, but for finding faults.
    pub layers: Layers,
    /// Its ceilings.
    pub limits: JailLimits,
    /// What of the machine is in its root; nothing for workers without a card.
    pub binds: Vec<Bind>,
    /// Files made for it.
    pub files: Vec<PlacedFile>,
    /// Environment variables of the worker beside those that every worker has.
    pub environment: Vec<(String, String)>,
    /// Whether it gets a `/proc` of its own process namespace (CUDA needs one).
    pub procfs: bool,
    /// Let calls that are not listed through and have the kernel's audit log name them (`dmesg`, or
    /// `ausearch -m seccomp`: `type=1326 ... syscall=N`). For finding out what a new driver needs;
    /// such a jail does not count as one.
    pub record: bool,
}

impl JailPlan {
    /// A jail with every layer for `profile` with nothing in its root.
    fn bare(profile: Profile, memory_bytes: u64) -> Self {
        Self {
            profile,
            layers: Layers::all(),
            limits: JailLimits { memory_bytes, pids: DEFAULT_PIDS, cores: None },
            binds: Vec::new(),
            files: Vec::new(),
            environment: Vec::new(),
            procfs: false,
            record: false,
        }
    }

    /// For a worker that runs a model of `model_bytes` on the processor, with `threads` engine
    /// threads: the model three times over (as read, as stored, and what the engine keeps as f32)
    /// and 2 GiB.
    #[must_use]
    pub fn cpu(model_bytes: u64, threads: u32) -> Self {
        let memory = model_bytes.saturating_mul(3).saturating_add(BESIDE_THE_MODEL);
        let mut plan = Self::bare(Profile::Gpu { cuda: false }, memory);
        plan.limits.pids = DEFAULT_PIDS.max(threads.saturating_add(16));
        // One more than it computes with, for the thread that listens: the ceiling never slows it.
        plan.limits.cores = Some(threads.saturating_add(1));
        plan
    }

    /// For a worker that runs a model of `model_bytes` on a card, with what
    /// [`super::cuda::prepare`] found. The driver's threads and its pinned buffers come on top.
    #[must_use]
    pub fn cuda(model_bytes: u64, prepared: super::cuda::Prepared) -> Self {
        let memory = model_bytes.saturating_mul(3).saturating_add(4 * BESIDE_THE_MODEL);
        let mut plan = Self::bare(Profile::Gpu { cuda: true }, memory);
        plan.limits.pids = 4 * DEFAULT_PIDS;
        plan.binds = prepared.binds;
        plan.files = prepared.files;
        plan.environment = prepared.environment;
        plan.procfs = true;
        plan
    }

    /// For a worker that runs a guest with at most `guest_bytes` of memory of its own.
    #[must_use]
    pub fn wasm(guest_bytes: u64) -> Self {
        let mut plan = Self::bare(Profile::Wasm, guest_bytes.saturating_add(BESIDE_THE_GUEST));
        plan.limits.cores = Some(GUEST_CORES);
        plan
    }

    /// For a worker that compiles one component.
    #[must_use]
    pub fn compile() -> Self {
        let mut plan = Self::bare(Profile::Compile, COMPILE_BYTES);
        plan.limits.cores = Some(COMPILE_CORES);
        plan
    }

    /// The plan as the worker's argument carries it.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Numbers, names and paths that were text before: there is nothing in it that JSON cannot
        // say but a path that is not Unicode, which the worker then refuses as no plan at all.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads [`JailPlan::to_json`].
    ///
    /// # Errors
    /// When it is not a plan.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_come_back_from_their_argument() {
        let mut plan = JailPlan::cpu(92_000_000, 96);
        assert_eq!(plan.limits.pids, 112);
        plan.binds.push(Bind {
            source: "/dev/nvidiactl".into(),
            target: "/dev/nvidiactl".into(),
            kind: BindKind::Device,
        });
        plan.files.push(PlacedFile { target: "/etc/x".into(), content: "a \"b\"\n".into() });
        assert_eq!(JailPlan::from_json(&plan.to_json()).unwrap(), plan);
        for other in [JailPlan::wasm(512 << 20), JailPlan::compile()] {
            assert_eq!(JailPlan::from_json(&other.to_json()).unwrap(), other);
        }
        assert!(JailPlan::from_json("{}").is_err() && JailPlan::from_json("").is_err());
    }
}
