//! The hard stop: every process below one of ours, ended at once.
//!
//! Owns: finding those processes (a jailed worker has a child of its own), killing them through handles
//! that cannot come to mean another process, and knowing when the last of them is gone. Never: decides
//! on it, asks politely, or reaps (whoever started a process does). Called by `potluckd` when the owner
//! wants the machine back now.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Processes that were sent SIGKILL.
#[derive(Debug)]
pub struct Doomed {
    processes: Vec<(Pid, OwnedFd)>,
}

/// Kills every process below `root`, but not `root` itself. A process that is born meanwhile is not
/// seen: see to it first that none is started.
///
/// # Errors
/// When `/proc` cannot be read. Nothing was killed then.
pub fn kill_below(root: u32) -> io::Result<Doomed> {
    let root = i32::try_from(root).ok().and_then(Pid::from_raw);
    let root = root.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a process id"))?;
    let parents = parents()?;
    let mut processes = Vec::new();
    for pid in below(root, &parents) {
        // One that has ended meanwhile needs no killing.
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // Its number may have gone to a stranger before the handle was made, not after: look once more.
        if parent_of(pid).as_ref() == parents.get(&pid) {
            processes.push((pid, handle));
        }
    }
    for (pid, handle) in &processes {
        if let Err(error) = pidfd_send_signal(handle, Signal::KILL) {
            tracing::debug!(pid = pid.as_raw_pid(), %error, "it was gone already");
        }
    }
    Ok(Doomed { processes })
}

impl Doomed {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.processes.len()
    }

    /// Waits until all have ended: no thread of theirs can run, and the kernel has taken back their
    /// memory and closed their devices. False when one has not ended `within` that time (it is stuck in
    /// a driver).
    ///
    /// # Errors
    /// When a handle cannot be watched.
    pub async fn ended(self, within: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + within;
        let watch = move || {
            for (pid, handle) in &self.processes {
                if !ended_by(handle, deadline)? {
                    tracing::error!(pid = pid.as_raw_pid(), ?within, "a killed process does not end");
                    return Ok(false);
                }
            }
            Ok(true)
        };
        tokio::task::spawn_blocking(watch).await.map_err(io::Error::other)?
    }
}

fn ended_by(handle: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()));
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&left.map_err(io::Error::other)?)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Every process's parent, as the kernel lists them now.
fn parents() -> io::Result<HashMap<Pid, Pid>> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(number) else { continue };
        // One that ended between the two reads has no parent any more.
        if let Some(parent) = parent_of(pid) {
            parents.insert(pid, parent);
        }
    }
    Ok(parents)
}

fn parent_of(pid: Pid) -> Option<Pid> {
    parent_in(&fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?)
}

fn number(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}

/// The parent in a line of `/proc/<pid>/stat`: `pid (name) state parent …`, where the name may hold
/// anything.
fn parent_in(stat: &str) -> Option<Pid> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1).and_then(number)
}

/// Who descends from `root`.
fn below(root: Pid, parents: &HashMap<Pid, Pid>) -> Vec<Pid> {
    let mut found = vec![root];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        let children = parents.iter().filter(|(_, of)| **of == parent).map(|(child, _)| *child);
        // The table is not read at one instant: a number that came twice must not loop for ever.
        let new: Vec<_> = children.filter(|child| !found.contains(child)).collect();
        found.extend(new);
        at += 1;
    }
    found.remove(0);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn pid(raw: i32) -> Pid {
        Pid::from_raw(raw).unwrap()
    }

    #[test]
    fn the_parent_is_read_whatever_the_name() {
        assert_eq!(parent_in("12 (a) b) (c) S 7 12 12 0"), Some(pid(7)));
        assert_eq!(parent_in("1 (init) S 0 1 1"), None);
        assert_eq!(parent_in("nonsense"), None);
    }

    #[test]
    fn descendants_of_every_depth_and_nobody_else() {
        let parents = HashMap::from([
            (pid(2), pid(1)),
            (pid(3), pid(2)),
            (pid(4), pid(3)),
            (pid(5), pid(1)),
            // A loop, as two reads at different times may show it.
            (pid(8), pid(9)),
            (pid(9), pid(8)),
        ]);
        assert_eq!(below(pid(2), &parents), [pid(3), pid(4)]);
        assert_eq!(below(pid(8), &parents), [pid(9)]);
        assert_eq!(below(pid(5), &parents), []);
    }

    #[tokio::test]
    async fn children_and_their_children_are_ended_and_the_root_lives() {
        // `wait` keeps the shell; its inner shell has a child of its own.
        let script = "(sleep 600 & echo up; wait) & wait; echo bereft; read line";
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().unwrap();
        let mut said = std::io::BufReader::new(shell.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(line, "up\n");
        let doomed = kill_below(shell.id()).unwrap();
        assert_eq!(doomed.count(), 2);
        assert!(doomed.ended(Duration::from_secs(10)).await.unwrap());
        line.clear();
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(line, "bereft\n", "the root itself was killed");
        assert_eq!(kill_below(shell.id()).unwrap().count(), 0);
        drop(shell.stdin.take());
        shell.wait().unwrap();
    }
}
