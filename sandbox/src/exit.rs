//! Every way a worker can end, by number.
//!
//! Owns: the exit codes of `potluck-gpu-worker` and their words. Never: ends a process. Called by
//! the worker (to end) and by the supervisor (to say what happened). The numbers are stable: logs
//! and dashboards keep them; none is ever reused for another meaning.

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// Why a worker ended of its own accord.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkerExit {
    /// It was told to, or its daemon closed the socket between jobs.
    Done,
    /// It was started by hand, not by the daemon.
    Usage,
    /// This processor cannot run the engine.
    Cpu,
    /// The daemon said something the protocol does not allow.
    Protocol,
    /// The model cannot be served; the event before says why.
    Load,
    /// The engine panicked: its state is not to be trusted any more.
    EngineBroken,
    /// The socket closed during a job: the daemon died.
    Orphaned,
    /// The jail could not be set up or sealed; the log says which layer and what helps.
    Jail,
    /// It was killed for its use of memory, by the kernel or by its launcher.
    Memory,
}

impl WorkerExit {
    /// Every exit, for whoever lists them.
    pub const ALL: [Self; 9] = [
        Self::Done,
        Self::Usage,
        Self::Cpu,
        Self::Protocol,
        Self::Load,
        Self::EngineBroken,
        Self::Orphaned,
        Self::Jail,
        Self::Memory,
    ];

    /// The process exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Usage => 2,
            Self::Cpu => 3,
            Self::Protocol => 4,
            Self::Load => 5,
            Self::EngineBroken => 6,
            Self::Orphaned => 7,
            Self::Jail => 70,
            Self::Memory => 71,
        }
    }

    /// The exit with this code, if it is one of a worker's own.
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| i32::from(exit.code()) == code)
    }
}

impl fmt::Display for WorkerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "it was done",
            Self::Usage => "it was not started by the daemon",
            Self::Cpu => "this processor cannot run the engine",
            Self::Protocol => "the daemon and the worker do not understand each other",
            Self::Load => "the model could not be loaded",
            Self::EngineBroken => "the engine panicked",
            Self::Orphaned => "its daemon went away",
            Self::Jail => "its jail could not be set up",
            Self::Memory => "it used more memory than it may",
        })
    }
}

/// The signal of seccomp's verdict, on every architecture that we run on.
const SIGSYS: i32 = 31;

/// How a worker process died, as its parent saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// The exit code, unless a signal ended it or it could not be reaped.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The last lines of its log, oldest first; at most a few hundred bytes.
    pub last_words: String,
}

impl Death {
    pub(crate) fn new(status: Option<ExitStatus>, last_words: String) -> Self {
        let (code, signal) = (status.and_then(|s| s.code()), status.and_then(|s| s.signal()));
        match code {
            // A jail's launcher that its worker's signal did not end says it as shells do.
            Some(code @ 129..=192) => Self { code: None, signal: Some(code - 128), last_words },
            code => Self { code, signal, last_words },
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => match WorkerExit::from_code(code) {
                Some(exit) => write!(f, "exit {code}: {exit}")?,
                None => write!(f, "exit {code}")?,
            },
            (None, Some(9)) => f.write_str("killed (signal 9)")?,
            (None, Some(SIGSYS)) => {
                write!(f, "it made a system call that the jail punishes (signal {SIGSYS})")?;
            }
            (None, Some(signal)) => write!(f, "signal {signal}")?,
            (None, None) => f.write_str("it does not end")?,
        }
        if !self.last_words.is_empty() {
            write!(f, "; its last words: {}", self.last_words)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_read_back() {
        for exit in WorkerExit::ALL {
            assert_eq!(WorkerExit::from_code(i32::from(exit.code())), Some(exit));
        }
        assert_eq!(WorkerExit::from_code(101), None);
    }

    #[test]
    fn a_death_says_what_is_known() {
        let killed = Death::new(Some(ExitStatus::from_raw(9)), String::new());
        assert_eq!(killed.to_string(), "killed (signal 9)");
        let overflowed = Death::new(Some(ExitStatus::from_raw((128 + 11) << 8)), String::new());
        assert_eq!(overflowed.to_string(), "signal 11");
        let broken = Death::new(Some(ExitStatus::from_raw(6 << 8)), "boom".into());
        assert_eq!(broken.to_string(), "exit 6: the engine panicked; its last words: boom");
        let caught = Death::new(Some(ExitStatus::from_raw(31)), String::new());
        assert!(caught.to_string().contains("system call"), "{caught}");
    }
}
