//! The launcher's own ceiling on memory, for machines whose kernel lends none.
//!
//! Owns: adding up what a worker's processes hold. Never: kills (the launcher does). Called by
//! [`super::launcher`] ten times a second, and only where no cgroup limits the memory: between two
//! looks a worker can take what it can write in a tenth of a second.

use std::fs;

use rustix::process::Pid;

/// Processes that are looked at; one that makes more has broken other layers already, and what is
/// counted is enough.
const MAX_PROCESSES: usize = 256;

/// Watches one worker.
#[derive(Debug)]
pub(super) struct Watchdog {
    root: Pid,
    limit_bytes: u64,
    page_bytes: u64,
}

impl Watchdog {
    pub(super) fn new(root: Pid, limit_bytes: u64) -> Self {
        let page_bytes = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        Self { root, limit_bytes, page_bytes }
    }

    /// What the worker uses, in bytes, if that is past its limit.
    pub(super) fn over_limit(&self) -> Option<u64> {
        let used = self.used();
        (used > self.limit_bytes).then_some(used)
    }

    /// Resident memory of the worker and everything below it, shared pages included, in bytes.
    fn used(&self) -> u64 {
        let mut pages = 0u64;
        let mut found = vec![self.root.as_raw_pid()];
        let mut at = 0;
        while let Some(pid) = found.get(at).copied().filter(|_| at < MAX_PROCESSES) {
            pages = pages.saturating_add(resident_pages(pid));
            found.extend(children(pid));
            at += 1;
        }
        pages.saturating_mul(self.page_bytes)
    }
}

fn resident_pages(pid: i32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

/// The children of all of a process's threads. None where the kernel does not list them: seccomp
/// lets a worker make threads only.
fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists =
        threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_child_counts_with_its_parent() {
        let me = rustix::process::getpid();
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(children(me.as_raw_pid()).contains(&pid));
        let watchdog = Watchdog::new(me, 1);
        let alone = resident_pages(me.as_raw_pid()) * watchdog.page_bytes;
        assert!(watchdog.over_limit().is_some_and(|used| used > 1 << 20 && used >= alone / 2));
        assert!(Watchdog::new(me, 1 << 50).over_limit().is_none());
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
