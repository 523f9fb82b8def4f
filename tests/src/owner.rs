//! `potluckd` as its owner calls it, while it runs.
//!
//! Owns: `pause`, `resume` and `status` with their JSON answers. Never: judges them. Called by the
//! stories and the benchmarks.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::error::KitError;
use crate::process::Process;
use crate::programs::program;

/// How long a command may take: a pause lets jobs settle, a resume loads models.
const COMMAND: Duration = Duration::from_secs(60);

/// `potluckd VERB --json` with `flags`, for the provider whose state is in `state`: its exit code and
/// its answer (or its error).
///
/// # Errors
/// When it does not start, prints no JSON, or does not end in time.
pub async fn tell(state: &Path, verb: &str, flags: &[&str]) -> Result<(Option<i32>, Value), KitError> {
    let mut command = Command::new(program("potluckd")?);
    command.arg(verb).arg("--json").args(flags).arg("--state-dir").arg(state);
    let mut process = Process::start("potluckd", command, &state.with_extension("owner-stderr"))?;
    let answer = process.next_event(COMMAND).await?.unwrap_or_default();
    Ok((process.exit(COMMAND).await?.code(), answer))
}
