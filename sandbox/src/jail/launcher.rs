//! The half of the worker program that stays outside of the jail.
//!
//! Owns: making the process inside, telling it who it is, and then watching: the daemon's socket, the
//! daemon's SIGTERM, the worker's memory and the worker's end. Never: reads the socket or anything
//! else that a stranger wrote, and never outlives its worker or lets its worker outlive it. Called by
//! [`super::enter`].
//!
//! ```text
//!   launcher --fork--> middle: leaves the namespaces, becomes nobody --fork--> inside (pid 1)
//!      |  <- "left"      |                                                       |
//!      |  -> "mapped"    `-- says the inside's number, ends                      |
//!      |  -> "go" ---------------------------------------------------------------'
//! ```
//!
//! The middle one is needed because a process namespace begins with the next child. When it has
//! ended, the launcher (a subreaper) is the inside's parent: then it is told to go, and asks to be
//! killed when its parent ends. The launcher has one thread, so that signal is reliable.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, getpid,
    kill_process, pidfd_open, pidfd_send_signal, set_child_subreaper, set_parent_process_death_signal,
    setrlimit, waitid, waitpid,
};

use super::cgroup::{Cgroup, CgroupHad};
use super::layers::Layer;
use super::plan::JailPlan;
use super::watchdog::Watchdog;
use super::{JailError, namespaces, sys};
use crate::exit::WorkerExit;

/// How long a worker may take to end by itself when its daemon is gone. It gives itself half a second.
const ORPHAN_LIMIT: Duration = Duration::from_millis(750);
/// How often the watchdog looks, when it is what limits the memory.
const WATCH_EVERY: Duration = Duration::from_millis(100);

fn failed<E: Into<io::Error>>(act: &'static str) -> impl Fn(E) -> JailError {
    move |source| JailError::new(Layer::Namespaces, act, source)
}

/// Makes the process inside and returns in it, with the resource limits that it has. In the launcher
/// it returns an error or not at all.
pub(super) fn launch(plan: &JailPlan) -> Result<CgroupHad, JailError> {
    check_single_threaded()?;
    let term = sys::hold_term().map_err(failed("holding SIGTERM"))?;
    set_child_subreaper(Some(getpid())).map_err(failed("adopting the worker"))?;
    let (from_child, to_parent) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("making a pipe"))?;
    let (from_parent, to_child) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("making a pipe"))?;
    let Some(middle) = sys::fork().map_err(failed("starting a process"))? else {
        drop((term, from_child, to_child));
        sys::release_term().map_err(failed("releasing SIGTERM"))?;
        return become_inside(plan, &Line { hears: from_parent, says: to_parent });
    };
    drop((from_parent, to_parent));
    let line = Line { hears: from_child, says: to_child };
    let cgroup = place(plan, middle).inspect_err(|_| abandon(middle))?;
    match accompany(plan, middle, &line, &cgroup) {
        Ok(Some(inside)) => Err(Watch { plan, inside, term, cgroup, line }.until_the_end()),
        Ok(None) => Err(mirror_early_end(middle, cgroup)),
        Err(error) => {
            abandon(middle);
            cgroup.remove();
            Err(error)
        }
    }
}

/// A fork copies one thread; what another had locked would stay locked.
fn check_single_threaded() -> Result<(), JailError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(failed("counting threads"))?.count();
    if threads == 1 {
        return Ok(());
    }
    Err(failed("counting threads")(io::Error::other(format!("{threads} threads; the jail comes first"))))
}

/// The two pipes between the launcher and those that it makes.
struct Line {
    hears: OwnedFd,
    says: OwnedFd,
}

impl Line {
    fn say(&self, words: &[u8]) -> io::Result<()> {
        // A few bytes into an empty pipe: whole or not at all.
        match retry_on_intr(|| rustix::io::write(&self.says, words))? {
            count if count == words.len() => Ok(()),
            _ => Err(ErrorKind::WriteZero.into()),
        }
    }

    /// The other side's next words; `None` when it has ended.
    fn hear<const LEN: usize>(&self) -> io::Result<Option<[u8; LEN]>> {
        let mut words = [0; LEN];
        match retry_on_intr(|| rustix::io::read(&self.hears, &mut words))? {
            0 => Ok(None),
            count if count == LEN => Ok(Some(words)),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    /// [`Line::hear`] in a process that has no reason to live without the other side.
    fn hear_or_end<const LEN: usize>(&self) -> [u8; LEN] {
        match self.hear() {
            Ok(Some(words)) => words,
            Ok(None) | Err(_) => sys::exit_now(WorkerExit::Jail.code()),
        }
    }

    /// Whether the other side has ended.
    fn is_cut(&self) -> bool {
        let mut asked = [PollFd::new(&self.hears, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut asked, Some(&now)).is_ok() && asked[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }
}

/// The middle process's life and, after its fork, the inside one's beginning, in which this returns.
fn become_inside(plan: &JailPlan, line: &Line) -> Result<CgroupHad, JailError> {
    let [had] = line.hear_or_end();
    if plan.layers.namespaces {
        namespaces::leave()?;
        line.say(b"l").map_err(failed("reporting"))?;
        let [may_forget_groups] = line.hear_or_end();
        namespaces::become_nobody(may_forget_groups == 1)?;
    }
    if let Some(inside) = sys::fork().map_err(failed("starting the worker's process"))? {
        let told = line.say(&inside.as_raw_pid().to_le_bytes());
        sys::exit_now(if told.is_ok() { 0 } else { WorkerExit::Jail.code() });
    }
    let [_go] = line.hear_or_end();
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(failed("tying the worker to its launcher"))?;
    if line.is_cut() {
        // The launcher ended before the line above could tie this process to it.
        sys::exit_now(WorkerExit::Jail.code());
    }
    Ok(CgroupHad::from_byte(had))
}

/// The resource limits around the process that is to become the worker.
fn place(plan: &JailPlan, process: Pid) -> Result<Cgroup, JailError> {
    if !plan.layers.cgroup {
        return Ok(Cgroup::none());
    }
    let cgroup = Cgroup::around(process, &plan.limits);
    if cgroup.had().is_enough() || plan.layers.watchdog {
        return Ok(cgroup);
    }
    cgroup.remove();
    let source = io::Error::from(ErrorKind::Unsupported);
    Err(JailError::new(Layer::Cgroup, "limiting memory and threads", source))
}

/// Sees the middle process through to its end. The inside one's number; `None` when the middle one
/// ended early, having said why.
fn accompany(plan: &JailPlan, middle: Pid, line: &Line, cgroup: &Cgroup) -> Result<Option<Pid>, JailError> {
    // A child that has ended hears nothing: what it left is looked at by the caller.
    if line.say(&[cgroup.had().to_byte()]).is_err() {
        return Ok(None);
    }
    if plan.layers.namespaces {
        let Some([_left]) = line.hear().map_err(failed("hearing the worker"))? else { return Ok(None) };
        let may_forget_groups = namespaces::map_ids(middle)?;
        if line.say(&[u8::from(may_forget_groups)]).is_err() {
            return Ok(None);
        }
    }
    let Some(number) = line.hear().map_err(failed("hearing the worker"))? else { return Ok(None) };
    let inside = Pid::from_raw(i32::from_le_bytes(number)).ok_or(ErrorKind::InvalidData);
    let inside = inside.map_err(failed("hearing the worker"))?;
    // Only when it has ended is this process the inside one's parent.
    retry_on_intr(|| waitpid(Some(middle), WaitOptions::empty()))
        .map_err(failed("waiting for the middle process"))?;
    Ok(Some(inside))
}

/// Ends a process whose jail cannot be finished.
fn abandon(process: Pid) {
    // Both fail only when it has ended and been waited for.
    let _ = kill_process(process, Signal::KILL);
    let _ = waitpid(Some(process), WaitOptions::empty());
}

/// Ends as the middle process did, which has said why in the log. The error is for the case that it
/// did not.
fn mirror_early_end(middle: Pid, cgroup: Cgroup) -> JailError {
    let ended = waitpid(Some(middle), WaitOptions::empty());
    cgroup.remove();
    let code = ended.ok().flatten().and_then(|(_, status)| status.exit_status());
    match code.and_then(|code| u8::try_from(code).ok()) {
        Some(code @ 1..) => sys::exit_now(code),
        _ => failed("starting the worker's process")(io::Error::other("it ended at once")),
    }
}

/// Why the launcher's wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The worker has ended.
    Ended,
    /// The daemon asked for its end, or is gone.
    Unwanted,
    /// It is past its memory limit.
    TooLarge { used: u64 },
}

/// The launcher's long wait.
struct Watch<'a> {
    plan: &'a JailPlan,
    inside: Pid,
    term: OwnedFd,
    cgroup: Cgroup,
    line: Line,
}

impl Watch<'_> {
    /// Lets the worker go, waits for its end and ends likewise. Returns only an error from before.
    fn until_the_end(self) -> JailError {
        let handle = match self.let_go() {
            Ok(handle) => handle,
            Err(error) => {
                abandon(self.inside);
                self.cgroup.remove();
                return error;
            }
        };
        let verdict = self.wait(&handle);
        if verdict != Verdict::Ended {
            // Fails only when it has ended by itself meanwhile.
            let _ = pidfd_send_signal(&handle, Signal::KILL);
        }
        // No time limit: the supervisor has one, and while a driver holds the process, ending here
        // would say that the device is free.
        let status = retry_on_intr(|| waitid(WaitId::PidFd(handle.as_fd()), WaitIdOptions::EXITED));
        let killed_by_kernel = self.cgroup.ran_out_of_memory();
        self.cgroup.remove();
        let limit = self.plan.limits.memory_bytes >> 20;
        match verdict {
            Verdict::TooLarge { used } => {
                eprintln!("killed: the worker used {} MiB of memory; its limit is {limit} MiB", used >> 20);
                sys::exit_now(WorkerExit::Memory.code())
            }
            Verdict::Ended if killed_by_kernel => {
                eprintln!("killed: the worker wanted more than its limit of {limit} MiB of memory");
                sys::exit_now(WorkerExit::Memory.code())
            }
            Verdict::Ended | Verdict::Unwanted => end_like(status.ok().flatten()),
        }
    }

    /// Tells the worker to go; the handle by which it is held.
    fn let_go(&self) -> Result<OwnedFd, JailError> {
        let handle = pidfd_open(self.inside, PidfdFlags::empty()).map_err(failed("holding the worker"))?;
        // The model is the worker's alone.
        rustix::stdio::dup2_stdout(rustix::stdio::stderr()).map_err(failed("letting go of the model"))?;
        self.line.say(b"g").map_err(failed("starting the worker"))?;
        Ok(handle)
    }

    /// Waits until the worker has ended or must.
    fn wait(&self, handle: &OwnedFd) -> Verdict {
        let watchdog = (self.plan.layers.watchdog && !self.cgroup.had().memory)
            .then(|| Watchdog::new(self.inside, self.plan.limits.memory_bytes));
        let mut orphaned: Option<Instant> = None;
        loop {
            let left = orphaned.map(|since| ORPHAN_LIMIT.saturating_sub(since.elapsed()));
            if left == Some(Duration::ZERO) {
                return Verdict::Unwanted;
            }
            let patience = left.or(watchdog.as_ref().map(|_| WATCH_EVERY));
            let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
            let mut asked = vec![PollFd::new(handle, PollFlags::IN), PollFd::new(&self.term, PollFlags::IN)];
            if orphaned.is_none() {
                asked.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::RDHUP));
            }
            match poll(&mut asked, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                // Without eyes there is no watching.
                Err(_) => return Verdict::Unwanted,
            }
            let spoke = |index: usize| asked.get(index).is_some_and(|fd| !fd.revents().is_empty());
            if spoke(0) {
                return Verdict::Ended;
            }
            if spoke(1) {
                return Verdict::Unwanted;
            }
            if spoke(2) {
                orphaned = Some(Instant::now());
            }
            if let Some(used) = watchdog.as_ref().and_then(Watchdog::over_limit) {
                return Verdict::TooLarge { used };
            }
        }
    }
}

/// Ends as the worker did: with its code, or by its signal.
fn end_like(status: Option<WaitIdStatus>) -> ! {
    if let Some(signal) = status.as_ref().and_then(WaitIdStatus::terminating_signal) {
        // This process's core is of no use to anybody.
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
        if let Some(signal) = Signal::from_named_raw(signal) {
            let _ = kill_process(getpid(), signal);
        }
        // A signal that does not end this process, as shells write it.
        sys::exit_now(u8::try_from(128 + signal).unwrap_or(u8::MAX));
    }
    let code = status.as_ref().and_then(WaitIdStatus::exit_status);
    sys::exit_now(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(WorkerExit::Jail.code()))
}
