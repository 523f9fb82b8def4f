//! A worker program as a process: started with or without its jail, followed and ended.
//!
//! Owns: the child, what it is given (three descriptors, one argument, an environment made anew), its
//! log, and how it is killed. Never: knows what the worker says or does. Called by
//! [`crate::supervisor`] for every kind of worker.
//!
//! A jailed worker is two processes: the child here is the launcher, which stays outside of the jail,
//! and the worker is its one child. The launcher ends exactly as the worker did.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::log::WorkerLog;
use crate::exit::Death;
use crate::ipc::channel::{Channel, Dialect};
use crate::jail::Jail;

/// How long a killed process may take to be reaped. One stuck in a driver takes longer; the worker
/// is then reported as not ending, and its device must not be used again.
const REAP_LIMIT: Duration = Duration::from_secs(10);

/// What of the daemon's environment a worker may know: where libraries are.
const KEPT_ENVIRONMENT: [&str; 1] = ["LD_LIBRARY_PATH"];
/// And without a jail also which cards it may use; inside of one there is only its own.
const KEPT_ENVIRONMENT_UNJAILED: [&str; 2] = ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"];

/// How to start a worker program.
#[derive(Debug)]
pub(crate) struct ProcessSpec<'a> {
    /// The program.
    pub(crate) program: &'a Path,
    /// Its jail.
    pub(crate) jail: &'a Jail,
    /// What it is to read, read-only: descriptor 1.
    pub(crate) input: Stdio,
    /// Its environment, beside what the jail adds.
    pub(crate) environment: &'a [(&'a str, String)],
    /// Bytes of its log that are passed on.
    pub(crate) max_log_bytes: u64,
}

/// A running worker program. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    child: Child,
    pid: u32,
    jailed: bool,
    log: WorkerLog,
}

impl WorkerProcess {
    /// Starts it; the channel is our end of the socket pair whose other end is its descriptor 0.
    ///
    /// # Errors
    /// The system's reason.
    pub(crate) fn start<D: Dialect>(spec: ProcessSpec<'_>) -> io::Result<(Self, Channel<D>)> {
        let (ours, socket) = UnixStream::pair()?;
        let channel = Channel::new(ours)?;
        let jailed = spec.jail.is_jailed();
        // The worker starts in the root folder, so that it holds no other one: a relative path to the
        // program would be looked up there.
        let mut command = Command::new(std::path::absolute(spec.program)?);
        // Descriptors of this program are close-on-exec: the worker gets these three and no more.
        command
            .arg(spec.jail.argument())
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .stdout(spec.input)
            .stderr(Stdio::piped())
            .env_clear()
            .envs(spec.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            // Ctrl-C at the daemon's terminal is for the daemon: it settles, then ends its workers.
            .process_group(0)
            // A launcher is asked to end instead: it takes its worker and its cgroup along.
            .kill_on_drop(!jailed);
        let unjailed: &[&str] = if jailed { &[] } else { &KEPT_ENVIRONMENT_UNJAILED };
        for name in KEPT_ENVIRONMENT.iter().chain(unjailed) {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Jail::Jailed(plan) = spec.jail {
            command.envs(plan.environment.iter().map(|(name, value)| (name, value)));
        }
        let mut child = command.spawn()?;
        let ended = || io::Error::other("it ended at once");
        let pid = child.id().ok_or_else(ended)?;
        let stderr = child.stderr.take().ok_or_else(ended)?;
        let log = WorkerLog::follow(stderr, pid, spec.max_log_bytes);
        Ok((Self { child, pid, jailed, log }, channel))
    }

    /// The worker's own process number, as the daemon sees it: the launcher's child when there is a
    /// jail and the worker has been heard from.
    pub(crate) fn worker_pid(&self) -> u32 {
        if !self.jailed {
            return self.pid;
        }
        // Missing on kernels built without it; then the launcher stands for both.
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid));
        let children = children.unwrap_or_default();
        children.split_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or(self.pid)
    }

    /// Whether it has not ended, as far as is known.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits up to `grace` for its end, then kills and reaps it within [`REAP_LIMIT`].
    pub(crate) async fn end(&mut self, grace: Duration) -> Death {
        let mut status = timeout(grace, self.child.wait()).await.ok().and_then(Result::ok);
        if status.is_none() {
            self.kill();
            status = timeout(REAP_LIMIT, self.child.wait()).await.ok().and_then(Result::ok);
        }
        Death::new(status, self.log.last_words().await)
    }

    /// Kills the worker now. Does nothing when it has been reaped.
    fn kill(&mut self) {
        if !self.jailed {
            // Fails only when it has ended meanwhile.
            let _ = self.child.start_kill();
            return;
        }
        // The number is still this child's: it has not been reaped.
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        if self.jailed {
            self.kill();
        }
    }
}
