//! One running program: its lines, its end, and the promise that it does not outlive us.
//!
//! Owns: a child process with its stdout as lines and its stderr in a file. Its stdout is read as it
//! comes, whether anybody asks for it or not: a full pipe would stop the program. Never: waits without
//! a bound, or ends a process that it did not start. Called by the rest of the kit. Ends on drop:
//! SIGTERM, [`GRACE`], SIGKILL.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::error::{KitError, io_error};

/// How long a program may take to stop by itself.
pub const GRACE: Duration = Duration::from_secs(5);
/// Lines that may wait to be asked for; a program that prints more than that waits.
const UNREAD_LINES: usize = 65_536;
/// How often a log is looked at for words that are waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A program that we started.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    lines: mpsc::Receiver<std::io::Result<String>>,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it writes to stderr goes to the file `log`.
    ///
    /// # Errors
    /// When the file or the process cannot be made.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self, KitError> {
        let stderr = File::create(log).map_err(io_error(format!("create {}", log.display())))?;
        command.stdout(Stdio::piped()).stderr(stderr).kill_on_drop(true);
        let mut child = command.spawn().map_err(io_error(format!("start {name}")))?;
        let stdout = child.stdout.take().ok_or_else(|| KitError::Ended {
            program: name.to_owned(),
            what: "open its stdout".into(),
            log: String::new(),
        })?;
        Ok(Self { name: name.to_owned(), child, lines: read_lines(stdout), log: log.to_owned() })
    }

    /// Writes `text` to its stdin and closes it; the command must have a piped stdin.
    ///
    /// # Errors
    /// When it does not read.
    pub async fn feed(&mut self, text: &str) -> Result<(), KitError> {
        if let Some(mut stdin) = self.child.stdin.take() {
            stdin.write_all(text.as_bytes()).await.map_err(io_error(format!("write to {}", self.name)))?;
        }
        Ok(())
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// What it has written to stderr.
    #[must_use]
    pub fn stderr(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Its next line; `None` when it closed its stdout.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn line(&mut self, within: Duration) -> Result<Option<String>, KitError> {
        match timeout(within, self.lines.recv()).await {
            Ok(line) => line.transpose().map_err(io_error(format!("read from {}", self.name))),
            Err(_) => Err(self.too_slow("print a line", within)),
        }
    }

    /// Its next line as a JSON object; `None` when it closed its stdout.
    ///
    /// # Errors
    /// When none comes in time, or it is no JSON.
    pub async fn next_event(&mut self, within: Duration) -> Result<Option<Value>, KitError> {
        let Some(line) = self.line(within).await? else { return Ok(None) };
        serde_json::from_str(&line).map(Some).map_err(|error| KitError::Unreadable {
            program: self.name.clone(),
            line,
            why: error.to_string(),
        })
    }

    /// The next JSON line whose `event` is `event`; those before it are passed over.
    ///
    /// # Errors
    /// When it does not come in time, or the program ends first.
    pub async fn event(&mut self, event: &str, within: Duration) -> Result<Value, KitError> {
        let what = format!("say `{event}`");
        let deadline = Instant::now() + within;
        let mut said = String::new();
        loop {
            let next = timeout_at(deadline, self.next_event(within)).await;
            match next.map_err(|_| self.too_slow(&what, within))?? {
                Some(value) if value["event"] == event => return Ok(value),
                Some(value) => said = value.to_string(),
                None => {
                    // The end of the output is seen before the last words on stderr are whole.
                    let status = self.exit(GRACE).await?;
                    // A program that was asked for JSON says there why it ends.
                    let log = format!("{}\n{status}, and its last line: {said}", self.stderr());
                    let program = self.name.clone();
                    return Err(KitError::Ended { program, what, log });
                }
            }
        }
    }

    /// Waits until what it wrote to stderr holds all of `words`. Its prose has no order that a test may rely
    /// on: a peer can hear its answer before the line about it is written.
    ///
    /// # Errors
    /// When it does not in time; the error holds what it wrote instead.
    pub async fn says(&self, words: &[&str], within: Duration) -> Result<(), KitError> {
        let deadline = Instant::now() + within;
        loop {
            let said = self.stderr();
            if words.iter().all(|word| said.contains(word)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.too_slow(&format!("say {words:?} on stderr"), within));
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    fn too_slow(&self, what: &str, within: Duration) -> KitError {
        KitError::TooSlow { program: self.name.clone(), what: what.into(), within, log: self.stderr() }
    }

    /// Sends `signal` to it, if it still runs.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn signal(&self, signal: Signal) -> Result<(), KitError> {
        let Some(pid) = self.pid() else { return Ok(()) };
        kill_process(pid, signal).map_err(|errno| io_error(format!("signal {}", self.name))(errno.into()))
    }

    fn pid(&self) -> Option<Pid> {
        self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn exit(&mut self, within: Duration) -> Result<ExitStatus, KitError> {
        match timeout(within, self.child.wait()).await {
            Ok(status) => status.map_err(io_error(format!("wait for {}", self.name))),
            Err(_) => Err(self.too_slow("end", within)),
        }
    }

    /// Asks it to stop (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// When it does not stop within [`GRACE`]; it is killed then.
    pub async fn stop(mut self) -> Result<ExitStatus, KitError> {
        self.signal(Signal::TERM)?;
        self.exit(GRACE).await
    }
}

/// Reads `stdout` to its end, or to the first error.
fn read_lines(stdout: ChildStdout) -> mpsc::Receiver<std::io::Result<String>> {
    let (read, lines) = mpsc::channel(UNREAD_LINES);
    tokio::spawn(async move {
        let mut stdout = BufReader::new(stdout).lines();
        while let Some(line) = stdout.next_line().await.transpose() {
            let failed = line.is_err();
            if read.send(line).await.is_err() || failed {
                return;
            }
        }
    });
    lines
}

impl Drop for Process {
    fn drop(&mut self) {
        // `id` is None once the exit status was collected: the number may be somebody else's then.
        let Some(pid) = self.pid() else { return };
        for signal in [Signal::TERM, Signal::KILL] {
            if kill_process(pid, signal).is_err() || wait_for_end(pid, GRACE) {
                return;
            }
        }
    }
}

/// Every process below `parent`, as the kernel lists them: a daemon's workers, and what they started.
#[must_use]
pub fn descendants(parent: u32) -> Vec<Pid> {
    let mut found = Vec::new();
    let mut of = vec![i32::try_from(parent).unwrap_or_default()];
    while let Some(parent) = of.pop() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        let lists = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
        for child in lists.flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()) {
            let Some(pid) = child.parse().ok().and_then(Pid::from_raw) else { continue };
            found.push(pid);
            of.push(pid.as_raw_pid());
        }
    }
    found
}

/// Resident memory of a process in bytes; 0 when it has ended (a zombie holds none).
#[must_use]
pub fn resident(pid: Pid) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{}/statm", pid.as_raw_pid())).unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * u64::try_from(rustix::param::page_size()).unwrap_or(1)
}

/// Waits for the end of any process, not only of a child; true when it ended in time.
#[must_use]
pub fn wait_for_end(pid: Pid, within: Duration) -> bool {
    // No handle means no such process.
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return true };
    let Ok(timeout) = Timespec::try_from(within) else { return false };
    let mut fds = [PollFd::new(&handle, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&timeout)), Ok(ready) if ready > 0)
}
