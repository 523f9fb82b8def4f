//! Workers that break their word, and the supervisor that has to live with them.
//!
//! Owns: starting one through the supervisor as any worker is started, being one, and comparing what
//! the supervisor made of it with what it must. Never: replaces the supervisor, or tells these
//! processes more than a worker is told: which [`script`] it is to follow each knows by the name that
//! it was started under. Called by the suite and, in the process itself, by `main`.

mod script;

use std::fs;
use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use potluck_protocol::id::ContentHash;
use potluck_protocol::job::{ChatMessage, JobSpec, Role, Sampling};
use potluck_sandbox::engine::DeviceChoice;
use potluck_sandbox::exit::Death;
use potluck_sandbox::ipc::{read_command, write_event};
use potluck_sandbox::jail::{Jail, JailPlan};
use potluck_sandbox::supervisor::{RunError, RunEvent, StartError, Worker, WorkerLimits, WorkerSpec};
use rustix::stdio;
use tokio::signal::unix::{SignalKind, signal};

use super::lab::Lab;
use super::tiny::{self, TinyLlm};
use super::{acts, hostile, raw};
pub(crate) use script::ALL;
use script::{CLEAN, Step};

/// How the name of a peer's program begins.
const PREFIX: &str = "peer-";
/// The longest silence that the supervisor takes here.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a worker that was told to leave may take.
const GRACE: Duration = Duration::from_millis(300);
/// What a peer that floods its log writes, in bytes.
const FLOOD: usize = 16 << 20;
/// What of it the supervisor passes on, in bytes.
const LOG: u64 = 1 << 16;

/// A worker that breaks its word.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its name, as the suite prints it.
    pub(crate) name: &'static str,
    script: fn() -> Vec<Step>,
    /// Whether it stays out of the jail: for what the jail would deny it, and the supervisor must bear
    /// all the same.
    unjailed: bool,
    expected: fn(&Ending) -> bool,
}

/// What the supervisor made of it.
#[derive(Debug)]
enum Ending {
    /// It did not start.
    Start(StartError),
    /// A job failed.
    Run(RunError),
    /// Two jobs went well, and it was told to leave.
    Stopped(Death),
}

/// The variables that a worker may know.
const KNOWN: [&str; 5] = [
    "RAYON_NUM_THREADS",
    "CANDLE_BARRIER_POOL_SPIN_LIMIT",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
];

/// The peer that this process was started to be.
pub(crate) fn called() -> Option<&'static Peer> {
    let program = std::env::args_os().next()?;
    let name = Path::new(&program).file_name()?.to_str()?.strip_prefix(PREFIX)?;
    ALL.iter().find(|peer| peer.name == name)
}

/// Is that peer: in the jail, sealed, as any worker.
pub(crate) fn run(peer: &Peer) -> ExitCode {
    let guard = match hostile::enter() {
        Ok(guard) => guard,
        Err(exit) => return exit,
    };
    let found = leftovers();
    let socket: io::Result<OwnedFd> = io::stdin().as_fd().try_clone_to_owned();
    let Ok(mut socket) = socket.map(UnixStream::from) else { return ExitCode::FAILURE };
    raw::ignore_signals();
    if let Err(exit) = hostile::seal(guard) {
        return exit;
    }
    for step in (peer.script)() {
        if matches!(step, Step::Leave) {
            return ExitCode::SUCCESS;
        }
        if !follow(step, &mut socket, &found) {
            return ExitCode::FAILURE;
        }
    }
    // Waits for the supervisor's verdict: only one who is heard to the end has spoken.
    while matches!(socket.read(&mut [0; 64]), Ok(1..)) {}
    ExitCode::SUCCESS
}

/// Does one step; whether it could be done.
fn follow(step: Step, socket: &mut UnixStream, found: &str) -> bool {
    match step {
        Step::Say(event) => write_event(socket, &event).is_ok(),
        Step::Write(bytes) => socket.write_all(&bytes).is_ok(),
        Step::Hear => matches!(read_command(socket), Ok(Some(_))),
        Step::Leave => true,
        Step::Spin => loop {
            std::hint::spin_loop();
        },
        Step::Hang => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        Step::Flood => {
            let line = [b"flood ".repeat(1_000), b"\n".to_vec()].concat();
            (0..FLOOD / line.len()).all(|_| io::stderr().write_all(&line).is_ok())
        }
        Step::Recurse => recurse(0) == 0,
        Step::Confess => write_event(socket, &script::broken(found)).is_ok(),
        Step::Give => (0..64).all(|_| acts::give(socket.as_fd(), stdio::stderr()).is_ok()),
    }
}

/// Calls itself until the stack ends.
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    let deeper = if black_box(true) { recurse(depth.wrapping_add(1)) } else { 0 };
    // The frame is looked at afterwards, so it must outlive the call.
    deeper.wrapping_add(black_box(frame)[0])
}

/// What this process finds that it was not meant to have.
fn leftovers() -> String {
    let is_open = |fd: &i32| raw::call(libc::SYS_fcntl, [raw::is(*fd), raw::is(libc::F_GETFD)]).is_ok();
    let open: Vec<i32> = (3..1024).filter(is_open).collect();
    let variables = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let unknown: Vec<String> = variables.filter(|name| !KNOWN.contains(&name.as_str())).collect();
    if open.is_empty() && unknown.is_empty() {
        return CLEAN.to_owned();
    }
    format!("descriptors {open:?}, variables {unknown:?}")
}

fn job() -> JobSpec {
    JobSpec {
        model: ContentHash::from_bytes([0; 32]),
        messages: vec![ChatMessage { role: Role::User, content: "hi".into() }],
        sampling: Sampling { max_tokens: 8, temperature_milli: 0, top_p_milli: 1000, seed: 0 },
    }
}

fn spec(program: &Path, jail: Jail) -> WorkerSpec {
    WorkerSpec {
        program: program.to_path_buf(),
        model: tiny::file(&TinyLlm::default().bytes()),
        device: DeviceChoice::Cpu,
        threads: Some(1),
        jail,
        limits: WorkerLimits { load_timeout: SILENCE, silence_timeout: SILENCE, max_log_bytes: LOG },
    }
}

/// Starts the peer as a worker, and hears what becomes of it.
pub(crate) fn trial(lab: &mut Lab, peer: &Peer) -> Result<String, String> {
    let failed = |error: io::Error| error.to_string();
    let program = lab.home().join(format!("{PREFIX}{}", peer.name));
    std::os::unix::fs::symlink(lab.program(), &program).map_err(failed)?;
    let jail = if peer.unjailed { Jail::Unsafe } else { Jail::Jailed(Box::new(JailPlan::cpu(0, 1))) };
    // The runtime's part that hears of ended children stays for good, from its first use on.
    block_on(async { signal(SignalKind::child()).map(drop) })?.map_err(failed)?;
    let before = descriptors();
    let ending = block_on(drive(spec(&program, jail)))?;
    if descriptors() != before {
        return Err(format!("{before} descriptors before, {} after", descriptors()));
    }
    let told = match &ending {
        Ending::Start(error) => error.to_string(),
        Ending::Run(error) => error.to_string(),
        Ending::Stopped(death) => format!("told to leave: {death}"),
    };
    let told: String = told.chars().take(160).collect();
    if (peer.expected)(&ending) { Ok(told) } else { Err(told) }
}

/// Runs `task` in a runtime of its own, which is gone afterwards.
fn block_on<T>(task: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(|error| error.to_string())?.block_on(task))
}

/// How many descriptors this process has open.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

async fn drive(spec: WorkerSpec) -> Ending {
    let mut worker = match Worker::start(spec, |_, _| {}).await {
        Ok(worker) => worker,
        Err(error) => return Ending::Start(error),
    };
    for _ in 0..2 {
        if let Err(error) = one_job(&mut worker).await {
            return Ending::Run(error);
        }
    }
    Ending::Stopped(worker.stop(GRACE).await)
}

/// Runs a job to its end; the tokens of its answer.
async fn one_job(worker: &mut Worker) -> Result<u32, RunError> {
    let mut run = worker.generate(&job()).await?;
    let mut tokens = 0;
    while let Some(event) = run.next().await? {
        if let RunEvent::Finished { completion_tokens, .. } = event {
            tokens = completion_tokens;
        }
    }
    Ok(tokens)
}

/// After all of them this same program can serve an honest worker's jobs.
pub(crate) fn serve_honestly(_: &mut Lab) -> Result<String, String> {
    let len = u64::try_from(TinyLlm::default().bytes().len()).unwrap_or(u64::MAX);
    let program = Path::new(env!("CARGO_BIN_EXE_potluck-gpu-worker"));
    let mut spec = spec(program, Jail::Jailed(Box::new(JailPlan::cpu(len, 1))));
    spec.limits = WorkerLimits::default();
    block_on(async {
        let mut worker = Worker::start(spec, |_, _| {}).await.map_err(|error| error.to_string())?;
        let tokens = one_job(&mut worker).await.map_err(|error| error.to_string())?;
        let death = worker.stop(Duration::from_secs(5)).await;
        if death.code == Some(0) { Ok(format!("{tokens} tokens")) } else { Err(death.to_string()) }
    })?
}
