//! The hostile worker: enters the jail as every worker does, seals it, and does one act.
//!
//! Owns: the process on the inside and its few words to the lab. Never: knows which layers are on, or
//! gives up its act because it is in a jail. Called by `main` when the lab started this program.
//!
//! Descriptors are those of a real worker: 0 its socket, 1 the model (read-only), 2 its log. Which
//! act it is to do it has in its environment, read before the jail stands.

use std::process::ExitCode;

use potluck_sandbox::exit::WorkerExit;
use potluck_sandbox::jail::{self, EnterError, Guard};
use serde::{Deserialize, Serialize};

use super::acts::{self, Errno, Target};
use super::raw::{Arg, call, is};

/// The variable with the name of the act.
pub(crate) const ACT: &str = "POTLUCK_ESCAPE_ACT";
/// The variable with the [`Target`] as JSON.
pub(crate) const TARGET: &str = "POTLUCK_ESCAPE_TARGET";

/// A line that the hostile process writes to its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Said {
    /// The jail stands; the act begins.
    Sealed,
    /// The act worked.
    Got(String),
    /// The act was refused.
    Refused(Errno),
}

/// Does the act named `act`.
pub(crate) fn run(act: &str) -> ExitCode {
    let target = std::env::var(TARGET).ok().and_then(|json| serde_json::from_str::<Target>(&json).ok());
    let (Some(act), Some(target)) = (acts::named(act), target) else {
        eprintln!("no act is called that, or there is nothing to do it to");
        return ExitCode::from(WorkerExit::Usage.code());
    };
    if let Err(exit) = enter().and_then(seal) {
        return exit;
    }
    say(&Said::Sealed);
    say(&match (act.attempt)(&target) {
        Ok(what) => Said::Got(what),
        Err(error) => Said::Refused(error),
    });
    ExitCode::SUCCESS
}

/// Enters the jail by the door of every worker.
pub(crate) fn enter() -> Result<Guard, ExitCode> {
    jail::start(|_| true).map_err(|error| {
        eprintln!("{error}");
        let exit = match error {
            EnterError::Usage { .. } => WorkerExit::Usage,
            EnterError::Jail(_) => WorkerExit::Jail,
        };
        ExitCode::from(exit.code())
    })
}

/// Closes it for good.
pub(crate) fn seal(guard: Guard) -> Result<(), ExitCode> {
    guard.seal().map_err(|error| {
        eprintln!("{error}");
        ExitCode::from(WorkerExit::Jail.code())
    })
}

/// Writes one line by a call that every worker may make.
fn say(said: &Said) {
    let line = serde_json::to_string(said).unwrap_or_default() + "\n";
    let len = i64::try_from(line.len()).unwrap_or(0);
    // A lab that does not listen has given up on this process already.
    let _ = call(libc::SYS_write, [is(0), Arg::In(line.as_bytes()), is(len)]);
}
