//! A daemon that dies, and its workers.
//!
//! Owns: a process that supervises real workers as `potluckd` does, and the proof that they end when
//! it is killed. Never: ends them itself. Called by the suite and, in the process itself, by `main`.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use potluck_protocol::id::ContentHash;
use potluck_protocol::job::{ChatMessage, JobSpec, Role, Sampling};
use potluck_sandbox::engine::DeviceChoice;
use potluck_sandbox::jail::{Jail, JailPlan};
use potluck_sandbox::supervisor::{Worker, WorkerLimits, WorkerSpec};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::lab::{Lab, children_of};
use super::tiny::{self, TinyLlm};

/// The variable that asks this program to be the daemon.
pub(crate) const DAEMON: &str = "POTLUCK_ESCAPE_DAEMON";
/// Workers that it starts.
const WORKERS: usize = 3;
/// How long its workers may outlive it.
const PROMISE: Duration = Duration::from_secs(1);
/// How long they may take on a machine that is busy with other things; tried again then.
const PATIENCE: Duration = Duration::from_secs(10);
const TRIES: usize = 3;

/// Is the daemon: says a line when its workers work, and then does nothing.
pub(crate) fn run() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            let model = tiny::file(&TinyLlm::default().bytes());
            let jail = Jail::Jailed(Box::new(JailPlan::cpu(model.metadata().unwrap().len(), 1)));
            let spec = WorkerSpec {
                program: env!("CARGO_BIN_EXE_potluck-gpu-worker").into(),
                model,
                device: DeviceChoice::Cpu,
                threads: Some(1),
                jail,
                limits: WorkerLimits::default(),
            };
            workers.push(Worker::start(spec, |_, _| {}).await.unwrap());
        }
        // One of them is in the middle of a job.
        let job = JobSpec {
            model: ContentHash::from_bytes([0; 32]),
            messages: vec![ChatMessage { role: Role::User, content: "hi".into() }],
            sampling: Sampling { max_tokens: 100, temperature_milli: 900, top_p_milli: 950, seed: 1 },
        };
        let mut run = workers[0].generate(&job).await.unwrap();
        run.next().await.unwrap();
        println!("ready");
        io::stdout().flush().unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
    ExitCode::FAILURE
}

/// Kills a daemon and watches its workers go.
pub(crate) fn trial(lab: &mut Lab) -> Result<String, String> {
    let mut slowest = Duration::ZERO;
    for _ in 0..TRIES {
        let took = kill_one(lab).map_err(|error| error.to_string())?;
        if took <= PROMISE {
            return Ok(format!("all gone after {} ms", took.as_millis()));
        }
        slowest = slowest.max(took);
    }
    Err(format!("they took {} ms", slowest.as_millis()))
}

fn kill_one(lab: &Lab) -> io::Result<Duration> {
    let mut daemon =
        Command::new(lab.program()).env(DAEMON, "1").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    if let Some(stdout) = daemon.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let workers = descendants(daemon.id());
    let gone = end(&mut daemon, &workers);
    if line.trim() != "ready" || workers.len() < 2 * WORKERS {
        return Err(io::Error::other(format!(
            "the daemon has {} processes and says `{}`",
            workers.len(),
            line.trim()
        )));
    }
    gone
}

/// Kills the daemon and waits until the workers are gone.
fn end(daemon: &mut Child, workers: &BTreeSet<u32>) -> io::Result<Duration> {
    daemon.kill()?;
    let begun = Instant::now();
    daemon.wait()?;
    loop {
        let left = workers.iter().filter(|pid| !is_gone(**pid)).count();
        if left == 0 {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("{left} processes outlive their daemon")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the process has ended. The lab is whom the orphans fall to.
fn is_gone(pid: u32) -> bool {
    // An error says that it is nobody's child here: another's, or gone.
    let _ = waitpid(i32::try_from(pid).ok().and_then(Pid::from_raw), WaitOptions::NOHANG);
    !Path::new(&format!("/proc/{pid}")).exists()
}

fn descendants(pid: u32) -> BTreeSet<u32> {
    let children = children_of(pid);
    let deeper = children.iter().flat_map(|child| descendants(*child)).collect::<Vec<_>>();
    children.into_iter().chain(deeper).collect()
}
