//! `potluck` as a person or a script calls it.
//!
//! Owns: one renter's state folder and the events of its jobs. Never: judges them. Called by the
//! demo, the stories and the benchmarks.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use crate::error::KitError;
use crate::network::log_of;
use crate::process::Process;
use crate::programs::{MODEL, program};

/// How long a story's job may take.
pub const JOB: Duration = Duration::from_secs(60);

/// A renter.
#[derive(Debug, Clone)]
pub struct Renter {
    state: PathBuf,
    bootstrap: String,
}

/// A job that is over.
#[derive(Debug)]
pub struct Ended {
    /// How the program ended.
    pub status: ExitStatus,
    /// All events, in order.
    pub events: Vec<Value>,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Ended {
    /// The first event of this kind; JSON null when there is none.
    #[must_use]
    pub fn event(&self, kind: &str) -> &Value {
        self.events.iter().find(|event| event["event"] == kind).unwrap_or(&Value::Null)
    }

    /// The whole answer.
    #[must_use]
    pub fn text(&self) -> String {
        self.events
            .iter()
            .filter(|event| event["event"] == "output")
            .filter_map(|event| event["text"].as_str())
            .collect()
    }

    /// The exit code; `None` when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl Renter {
    /// The renter whose state is in `state` and who enters the network at `bootstrap`.
    #[must_use]
    pub fn new(state: PathBuf, bootstrap: String) -> Self {
        Self { state, bootstrap }
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// `potluck run MODEL PROMPT` with `flags`; add `--json` for events.
    ///
    /// # Errors
    /// When the program was not built.
    pub fn command(&self, model: &str, prompt: &str, flags: &[&str]) -> Result<Command, KitError> {
        let mut command = Command::new(program("potluck")?);
        command
            .args(["run", model, prompt, "--bootstrap", &self.bootstrap])
            .arg("--state-dir")
            .arg(&self.state);
        command.args(flags).stdin(Stdio::piped());
        Ok(command)
    }

    /// Starts a job on the stories' model that prints events.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn start(&self, prompt: &str, flags: &[&str]) -> Result<Process, KitError> {
        self.start_on(MODEL, prompt, flags)
    }

    fn start_on(&self, model: &str, prompt: &str, flags: &[&str]) -> Result<Process, KitError> {
        let mut command = self.command(model, prompt, flags)?;
        command.arg("--json");
        Process::start("potluck", command, &log_of(&self.state))
    }

    /// Runs a job on the stories' model to its end.
    ///
    /// # Errors
    /// When the program does not start, prints no JSON, or does not end within [`JOB`].
    pub async fn run(&self, prompt: &str, flags: &[&str]) -> Result<Ended, KitError> {
        self.finish(self.start(prompt, flags)?).await
    }

    /// As [`Renter::run`], on another model.
    ///
    /// # Errors
    /// As there.
    pub async fn run_on(&self, model: &str, prompt: &str, flags: &[&str]) -> Result<Ended, KitError> {
        self.finish(self.start_on(model, prompt, flags)?).await
    }

    /// As [`Renter::run`], with the prompt on standard input.
    ///
    /// # Errors
    /// As there.
    pub async fn run_piped(&self, prompt: &str, flags: &[&str]) -> Result<Ended, KitError> {
        let mut process = self.start("-", flags)?;
        process.feed(prompt).await?;
        self.finish(process).await
    }

    /// Runs the component in the file `wasm` on `input` to its end; flags of `potluck exec` may follow.
    ///
    /// # Errors
    /// As [`Renter::run`].
    pub async fn exec(&self, wasm: &Path, input: &Path, flags: &[&str]) -> Result<Ended, KitError> {
        let mut command = Command::new(program("potluck")?);
        command.arg("exec").arg(wasm).arg("--input").arg(input);
        command.args(["--bootstrap", &self.bootstrap]).arg("--state-dir").arg(&self.state);
        command.args(flags).arg("--json").stdin(Stdio::null());
        self.finish(Process::start("potluck", command, &log_of(&self.state))?).await
    }

    /// Starts `potluck ledger settle` with `flags`, the provider, the amount and the reference among them.
    ///
    /// # Errors
    /// When the program does not start.
    pub fn settle(&self, flags: &[&str]) -> Result<Process, KitError> {
        let mut command = Command::new(program("potluck")?);
        command.args(["ledger", "settle", "--json", "--bootstrap", &self.bootstrap]).args(flags);
        command.arg("--state-dir").arg(&self.state).stdin(Stdio::null());
        Process::start("potluck", command, &log_of(&self.state))
    }

    /// Reads a started job to its end.
    ///
    /// # Errors
    /// When it prints no JSON, or does not end within [`JOB`].
    pub async fn finish(&self, mut process: Process) -> Result<Ended, KitError> {
        let mut events = Vec::new();
        while let Some(event) = process.next_event(JOB).await? {
            events.push(event);
        }
        let status = process.exit(JOB).await?;
        Ok(Ended { status, events, stderr: process.stderr() })
    }
}
