//! The layer of the kernel's own resource limits.
//!
//! Owns: one cgroup (version 2) or one per controller (version 1) for each worker: made, filled,
//! asked and removed by the launcher. Never: keeps the daemon in a worker's cgroup, changes the
//! limits of anybody else's, or fails: what could not be had is reported in [`CgroupHad`]. Called by
//! [`super::launcher`].
//!
//! A folder that a killed launcher left behind is removed by the next one: each launcher holds a
//! lock on its own, which the kernel lets go of when the process ends.

mod hierarchy;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::plan::JailLimits;
use hierarchy::Hierarchies;

/// How our folders begin.
const PREFIX: &str = "potluck-worker-";
/// Folders that one start removes at most.
const MAX_SWEPT: usize = 64;
/// One period of the processor's quota in microseconds.
const PERIOD_US: u64 = 100_000;

/// The two kinds of cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupVersion {
    /// One folder per controller.
    V1,
    /// One folder.
    V2,
}

/// Which of the kernel's limits are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CgroupHad {
    /// Of which kind; `None` for none.
    pub version: Option<CgroupVersion>,
    /// Memory.
    pub memory: bool,
    /// Threads and processes.
    pub pids: bool,
    /// Processor time.
    pub cpu: bool,
}

impl CgroupHad {
    /// Whether a worker can eat neither the machine's memory nor its process numbers.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.memory && self.pids
    }

    /// For the launcher's pipe.
    pub(super) fn to_byte(self) -> u8 {
        let version = match self.version {
            None => 0,
            Some(CgroupVersion::V1) => 1,
            Some(CgroupVersion::V2) => 2,
        };
        version | u8::from(self.memory) << 2 | u8::from(self.pids) << 3 | u8::from(self.cpu) << 4
    }

    pub(super) fn from_byte(byte: u8) -> Self {
        let version = match byte & 3 {
            1 => Some(CgroupVersion::V1),
            2 => Some(CgroupVersion::V2),
            _ => None,
        };
        Self { version, memory: byte & 4 != 0, pids: byte & 8 != 0, cpu: byte & 16 != 0 }
    }
}

/// One worker's cgroup.
#[derive(Debug)]
pub(super) struct Cgroup {
    folders: Vec<Folder>,
    had: CgroupHad,
}

impl Cgroup {
    /// No limits.
    pub(super) fn none() -> Self {
        Self { folders: Vec::new(), had: CgroupHad::default() }
    }

    /// Puts a process, and whatever it will start, under `limits`, as far as they can be had.
    pub(super) fn around(process: Pid, limits: &JailLimits) -> Self {
        let hierarchies = Hierarchies::read();
        let second = Self::second(&hierarchies, process, limits);
        if second.had.is_enough() { second } else { Self::first(&hierarchies, process, limits) }
    }

    /// Version 2: memory and processes, or nothing.
    fn second(hierarchies: &Hierarchies, process: Pid, limits: &JailLimits) -> Self {
        for parent in hierarchies.unified_folders() {
            let (memory, pids) = (enable(&parent, "memory"), enable(&parent, "pids"));
            if !memory || !pids {
                continue;
            }
            enable(&parent, "cpu");
            let Ok(folder) = Folder::make(&parent, process) else { continue };
            let had = CgroupHad {
                version: Some(CgroupVersion::V2),
                memory: folder.set("memory.max", limits.memory_bytes),
                pids: folder.set("pids.max", limits.pids),
                cpu: limits.cores.is_some_and(|cores| folder.set("cpu.max", quota(cores))),
            };
            // Absent without swap accounting; then there is no swap to limit either.
            folder.set("memory.swap.max", 0);
            // One kill ends the whole worker, so that none goes on without some of its threads.
            folder.set("memory.oom.group", 1);
            if had.is_enough() && folder.set("cgroup.procs", process.as_raw_pid()) {
                return Self { folders: vec![folder], had };
            }
            folder.remove();
        }
        Self::none()
    }

    /// Version 1: each controller that can be had.
    fn first(hierarchies: &Hierarchies, process: Pid, limits: &JailLimits) -> Self {
        let mut cgroup = Self::none();
        for controller in ["memory", "pids", "cpu"] {
            for parent in hierarchies.folders_of(controller) {
                let Ok(folder) = Folder::make(&parent, process) else { continue };
                if !limit_v1(&folder, controller, limits) || !folder.set("cgroup.procs", process.as_raw_pid())
                {
                    folder.remove();
                    continue;
                }
                cgroup.folders.push(folder);
                cgroup.had.version = Some(CgroupVersion::V1);
                match controller {
                    "memory" => cgroup.had.memory = true,
                    "pids" => cgroup.had.pids = true,
                    _ => cgroup.had.cpu = true,
                }
                break;
            }
        }
        cgroup
    }

    /// What could be had.
    pub(super) fn had(&self) -> CgroupHad {
        self.had
    }

    /// Whether the kernel killed for want of memory inside.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let killed = |file: PathBuf| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let mut counts = text.lines().filter_map(|line| line.strip_prefix("oom_kill "));
            counts.any(|count| count.trim().parse::<u64>().is_ok_and(|count| count > 0))
        };
        self.folders
            .iter()
            .any(|f| killed(f.path.join("memory.events")) || killed(f.path.join("memory.oom_control")))
    }

    /// Removes the folders; the worker must have ended.
    pub(super) fn remove(self) {
        for folder in self.folders {
            folder.remove();
        }
    }
}

fn quota(cores: u32) -> String {
    format!("{} {PERIOD_US}", u64::from(cores) * PERIOD_US)
}

/// Sets a version 1 controller's limit.
fn limit_v1(folder: &Folder, controller: &str, limits: &JailLimits) -> bool {
    match controller {
        "memory" => {
            let set = folder.set("memory.limit_in_bytes", limits.memory_bytes);
            // Absent without swap accounting; then there is no swap to limit either.
            folder.set("memory.memsw.limit_in_bytes", limits.memory_bytes);
            set
        }
        "pids" => folder.set("pids.max", limits.pids),
        _ => limits.cores.is_some_and(|cores| {
            folder.set("cpu.cfs_period_us", PERIOD_US)
                && folder.set("cpu.cfs_quota_us", u64::from(cores) * PERIOD_US)
        }),
    }
}

/// Whether folders under `parent` have a controller, after asking for it.
fn enable(parent: &Path, controller: &str) -> bool {
    let file = parent.join("cgroup.subtree_control");
    let has =
        || fs::read_to_string(&file).is_ok_and(|text| text.split_whitespace().any(|name| name == controller));
    has() || (fs::write(&file, format!("+{controller}")).is_ok() && has())
}

/// One folder of ours. The lock says that its launcher lives.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder for a process, after removing what dead launchers left beside it.
    fn make(parent: &Path, process: Pid) -> io::Result<Self> {
        sweep(parent);
        let path = parent.join(format!("{PREFIX}{}", process.as_raw_pid()));
        // Another launcher may take the new folder for a dead one's before it is locked: once more then.
        for _ in 0..3 {
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            let Ok(lock) = File::open(&path) else { continue };
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && path.is_dir() {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(io::Error::from(io::ErrorKind::ResourceBusy))
    }

    fn set(&self, file: &str, value: impl ToString) -> bool {
        fs::write(self.path.join(file), value.to_string()).is_ok()
    }

    fn remove(self) {
        // The kernel may take a moment to see that the last process has ended.
        for _ in 0..20 {
            match fs::remove_dir(&self.path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                // Removed, or not ours to remove any more: the next sweep sees to what is left.
                _ => return,
            }
        }
    }
}

/// Removes the folders of launchers that are no more.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let ours = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX));
    for entry in ours.take(MAX_SWEPT) {
        let Ok(folder) = File::open(entry.path()) else { continue };
        if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // Refused while processes are in it: they are ending, and a later sweep comes.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_had_survives_the_pipe() {
        for byte in (0..32).filter(|byte| byte & 3 != 3) {
            let had = CgroupHad::from_byte(byte);
            assert_eq!(had.to_byte(), byte);
            assert_eq!(had.is_enough(), byte & 12 == 12);
        }
        assert_eq!(CgroupHad::from_byte(0), CgroupHad::default());
    }

    #[test]
    fn a_dead_launchers_folder_is_swept_and_a_living_ones_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let pid = |raw| Pid::from_raw(raw).unwrap();
        let living = Folder::make(parent.path(), pid(1)).unwrap();
        let dead = parent.path().join(format!("{PREFIX}2"));
        fs::create_dir(&dead).unwrap();
        let foreign = parent.path().join("user.slice");
        fs::create_dir(&foreign).unwrap();
        let next = Folder::make(parent.path(), pid(3)).unwrap();
        assert!(living.path.is_dir() && next.path.is_dir() && foreign.is_dir() && !dead.exists());
        // A number that has come round to a living launcher's folder is not taken.
        assert!(Folder::make(parent.path(), pid(1)).is_err());
        living.remove();
        assert!(!parent.path().join(format!("{PREFIX}1")).exists());
    }
}
