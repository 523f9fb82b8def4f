//! Another process of the owner's, with a secret in its memory and its environment.
//!
//! Owns: starting one, and being one. Never: does anything but wait until its standard input
//! closes. Called by [`super::lab`] and, in the process itself, by `main`.

use std::hint::black_box;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use super::raw::{call, is};

/// The variable with the secret.
pub(crate) const SECRET: &str = "POTLUCK_ESCAPE_SECRET";

/// Starts one; the process and where in its memory the secret lies.
pub(crate) fn start(program: &Path, secret: &str) -> io::Result<(Child, u64)> {
    let mut child =
        Command::new(program).env(SECRET, secret).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let address = line.trim().parse().map_err(|_| io::Error::other("the other process does not speak"))?;
    Ok((child, address))
}

/// Is one.
pub(crate) fn run(secret: &str) -> ExitCode {
    // Where the system allows tracing among one's own children only, this one may be traced by all:
    // otherwise an act would fail for that reason. The call is unknown where nothing forbids it.
    let _ = call(libc::SYS_prctl, [is(libc::PR_SET_PTRACER), is(-1), is(0), is(0), is(0)]);
    let kept = secret.as_bytes().to_vec();
    let mut out = io::stdout();
    let told = writeln!(out, "{}", black_box(&kept).as_ptr().addr()).and_then(|()| out.flush());
    if told.is_err() {
        return ExitCode::FAILURE;
    }
    let mut rest = Vec::new();
    // The end, or an error, of the input is the end.
    let _ = io::stdin().read_to_end(&mut rest);
    black_box(&kept);
    ExitCode::SUCCESS
}
