//! Acts that use up what all share.
//!
//! Owns: processes, threads, memory of every kind, descriptors and disk. Never: takes more than an
//! ordinary machine has to spare when no jail stops it: each stops by itself past a few times what a
//! jail allows. Called through [`super::all`].

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::thread;

use potluck_sandbox::jail::Layer::{Cgroup, Landlock, Rlimits, Root, Seccomp, Watchdog};
use rustix::fs::{MemfdFlags, memfd_create};

use super::super::lab::{MEMORY_LIMIT, PIDS_LIMIT};
use super::super::raw::{Fork, call, child, fill_memory, is};
use super::{Act, Attempt, Errno, Target, got};

/// What a bomb reaches for: well past the limit, and little for a machine.
const MEMORY: usize = 3 * MEMORY_LIMIT;
/// Threads or children that a bomb reaches for.
const MANY: usize = 4 * PIDS_LIMIT;
/// Descriptors that a jailed worker must not have at once.
const DESCRIPTORS: usize = 512;
/// What fills a disk: more than a worker may write to any file.
const DISK: usize = 64 << 20;

pub(super) const ACTS: &[Act] = &[
    Act::new("fork_bomb", &[Seccomp, Cgroup, Rlimits], |_| {
        many(MANY, || child(Fork::Clone).map(drop))?;
        got(format!("has {MANY} children"))
    }),
    Act::new("thread_bomb", &[Cgroup, Rlimits], |_| {
        many(MANY, || {
            thread::Builder::new().stack_size(1 << 16).spawn(thread::park)?;
            Ok(())
        })?;
        got(format!("has {MANY} threads"))
    }),
    Act::new("fill_private_memory", &[Cgroup, Watchdog], |_| {
        fill_memory(MEMORY, false)?;
        got("filled it")
    }),
    Act::new("fill_shared_memory", &[Cgroup, Watchdog], |_| {
        fill_memory(MEMORY, true)?;
        got("filled it")
    }),
    Act::new("fill_memory_in_parts", &[Cgroup, Watchdog], |_| {
        many(MEMORY >> 16, || fill_memory(1 << 16, false))?;
        got("filled it")
    }),
    Act::new("fill_memory_files", &[Seccomp, Rlimits, Cgroup], |_| {
        fill(File::from(memfd_create(c"filled", MemfdFlags::empty())?), MEMORY)?;
        got("filled it")
    }),
    Act::new("use_up_descriptors", &[Rlimits], |_| {
        many(DESCRIPTORS, || call(libc::SYS_dup, [is(0)]).map(drop))?;
        got(format!("has {DESCRIPTORS} descriptors"))
    }),
    Act::new("fill_disk", &[Seccomp, Landlock, Root, Rlimits], fill_disk),
];

/// Does `act` so many times.
fn many(count: usize, mut act: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    (0..count).try_for_each(|_| act())
}

fn fill(mut file: File, len: usize) -> Result<(), Errno> {
    let block = vec![1; 1 << 20];
    many(len >> 20, || Ok(file.write_all(&block)?))
}

fn fill_disk(_: &Target) -> Attempt {
    let path = "filled";
    let filled = OpenOptions::new().create(true).write(true).truncate(true).open(path);
    let filled = filled.map_err(Errno::from).and_then(|file| fill(file, DISK));
    let _ = fs::remove_file(path);
    filled?;
    got(format!("wrote {} MiB", DISK >> 20))
}
