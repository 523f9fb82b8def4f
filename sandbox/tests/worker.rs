//! The real worker process with the real model, driven through the supervisor.
//!
//! Owns: the promises of the sandbox as they can be seen from outside: same answers as the engine
//! alone, fast pause and cancel, a typed error for every broken model, and no worker that outlives
//! its daemon. Never: replaces the process, the socket or the model.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]
#![allow(
    clippy::await_holding_lock,
    reason = "one worker at a time has the cores; each test has its own thread"
)]

#[path = "common/model.rs"]
mod model;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use potluck_protocol::id::ContentHash;
use potluck_protocol::job::{ChatMessage, FinishReason, JobSpec, Role, Sampling};
use potluck_sandbox::engine::{
    DeviceChoice, Engine, EngineDevice, EngineEvent, GenerateError, LoadError, RunToEnd,
};
use potluck_sandbox::exit::WorkerExit;
use potluck_sandbox::ipc::{self, Command, Event};
use potluck_sandbox::jail::{Jail, JailPlan};
use potluck_sandbox::supervisor::{Run, RunError, RunEvent, StartError, Worker, WorkerLimits, WorkerSpec};

const PROGRAM: &str = env!("CARGO_BIN_EXE_potluck-gpu-worker");

/// One worker at a time: the tests measure how fast it obeys.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spec(model: File) -> WorkerSpec {
    WorkerSpec {
        program: PathBuf::from(PROGRAM),
        model,
        device: DeviceChoice::Cpu,
        threads: Some(2),
        jail: jail(),
        limits: WorkerLimits { load_timeout: Duration::from_secs(60), ..WorkerLimits::default() },
    }
}

/// The jail of a worker that runs the model on the processor: what a user gets.
fn jail() -> Jail {
    Jail::Jailed(Box::new(JailPlan::cpu(whole(), 2)))
}

async fn start() -> Worker {
    Worker::start(spec(model::model()), |_, _| {}).await.expect("the worker starts")
}

fn job(prompt: &str, max_tokens: u32, temperature_milli: u32, seed: u64) -> JobSpec {
    JobSpec {
        model: ContentHash::from_bytes([0; 32]),
        messages: vec![ChatMessage { role: Role::User, content: prompt.to_owned() }],
        sampling: Sampling { max_tokens, temperature_milli, top_p_milli: 950, seed },
    }
}

/// A job that goes on until its limit, for tests that interrupt it.
fn long_job() -> JobSpec {
    job("Write a very long story about a lighthouse keeper and the sea.", 2_000, 900, 11)
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    prompt_tokens: u32,
    tokens: Vec<u32>,
    text: String,
    reason: Option<FinishReason>,
}

impl Answer {
    fn take(&mut self, event: RunEvent) {
        match event {
            RunEvent::Started { prompt_tokens } => self.prompt_tokens = prompt_tokens,
            RunEvent::Output { tokens, text } => {
                assert!(!text.contains(char::REPLACEMENT_CHARACTER));
                self.tokens.extend(tokens);
                self.text += &text;
            }
            RunEvent::Finished { reason, completion_tokens } => {
                assert_eq!(usize::try_from(completion_tokens).unwrap(), self.tokens.len());
                self.reason = Some(reason);
            }
        }
    }
}

/// Hears a run to its end, adding to what was heard before.
async fn finish(run: &mut Run<'_>, mut answer: Answer) -> Result<Answer, RunError> {
    while let Some(event) = run.next().await? {
        answer.take(event);
    }
    Ok(answer)
}

async fn answer(worker: &mut Worker, job: &JobSpec) -> Result<Answer, RunError> {
    finish(&mut worker.generate(job).await?, Answer::default()).await
}

/// Waits until the run has put out at least `count` tokens; what was heard.
async fn tokens(run: &mut Run<'_>, count: usize) -> Answer {
    let mut answer = Answer::default();
    while answer.tokens.len() < count {
        answer.take(run.next().await.expect("the run goes on").expect("the run has not ended"));
    }
    answer
}

fn in_process(job: &JobSpec) -> Answer {
    let engine = Engine::load(model::model(), DeviceChoice::Cpu, &mut |_, _| {}).expect("the model loads");
    let mut answer = Answer::default();
    let summary = engine
        .generate(job, &RunToEnd, &mut |event| match event {
            EngineEvent::Started { prompt_tokens } => answer.prompt_tokens = prompt_tokens,
            EngineEvent::Prefilled { .. } => {}
            EngineEvent::Output { tokens, text } => {
                answer.tokens.extend_from_slice(tokens);
                answer.text += text;
            }
        })
        .expect("the engine answers");
    answer.reason = Some(summary.reason);
    answer
}

/// Whether a process is there (a zombie is not).
fn is_running(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

fn gone_within(pid: u32, limit: Duration) -> bool {
    let begun = Instant::now();
    while is_running(pid) {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

#[tokio::test]
async fn answers_are_sensible_repeatable_and_those_of_the_engine_alone() {
    let _turn = turn();
    let mut progress = Vec::new();
    let mut worker =
        Worker::start(spec(model::model()), |done, total| progress.push((done, total))).await.unwrap();
    let info = worker.info().clone();
    assert_eq!((info.architecture.as_str(), info.vocab, info.context_tokens), ("llama", 49_152, 4_096));
    assert_eq!(info.device, EngineDevice::Cpu { threads: 2 });
    assert!(progress.len() > 10 && progress.is_sorted(), "{progress:?}");
    assert!(progress.last().is_some_and(|(done, total)| done == total));
    assert!(worker.rss_bytes().unwrap() > 90_000_000);

    let greedy = job("What is the capital of France? Answer in one short sentence.", 48, 0, 0);
    let first = answer(&mut worker, &greedy).await.unwrap();
    assert!(first.text.contains("Paris"), "{}", first.text);
    assert_eq!(first.reason, Some(FinishReason::Stop));
    assert_eq!(answer(&mut worker, &greedy).await.unwrap(), first);
    assert_eq!(in_process(&greedy), first);

    let seeded = job("Tell me a joke.", 40, 900, 1);
    let warm = answer(&mut worker, &seeded).await.unwrap();
    assert_eq!(answer(&mut worker, &seeded).await.unwrap(), warm);
    assert_eq!(in_process(&seeded), warm);
    let other = job("Tell me a joke.", 40, 900, 2);
    assert_ne!(answer(&mut worker, &other).await.unwrap().tokens, warm.tokens);

    let death = worker.stop(Duration::from_secs(2)).await;
    assert_eq!(death.code, Some(0), "{death}");
}

#[tokio::test]
async fn a_cancel_takes_effect_at_once_and_the_next_job_runs() {
    let _turn = turn();
    let mut worker = start().await;
    let mut run = worker.generate(&long_job()).await.unwrap();
    let heard = tokens(&mut run, 5).await;
    run.cancel().unwrap();
    let asked = Instant::now();
    let rest = finish(&mut run, heard).await.unwrap();
    assert_eq!(rest.reason, Some(FinishReason::Cancelled));
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    drop(run);

    // Also while the prompt is still being computed.
    let long_prompt = job(&"lighthouse keeper ".repeat(1_200), 10, 0, 0);
    let mut run = worker.generate(&long_prompt).await.unwrap();
    assert!(matches!(run.next().await, Ok(Some(RunEvent::Started { .. }))));
    run.cancel().unwrap();
    let asked = Instant::now();
    let rest = finish(&mut run, Answer::default()).await.unwrap();
    assert_eq!((rest.tokens.len(), rest.reason), (0, Some(FinishReason::Cancelled)));
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    drop(run);

    // A run that is dropped is cancelled too.
    let mut run = worker.generate(&long_job()).await.unwrap();
    tokens(&mut run, 1).await;
    drop(run);
    let short = answer(&mut worker, &job("Say hello.", 8, 0, 0)).await.unwrap();
    assert!(!short.tokens.is_empty());
}

#[tokio::test]
async fn a_pause_stops_the_output_and_the_answer_stays_the_same() {
    let _turn = turn();
    let mut worker = start().await;
    let mut story = long_job();
    story.sampling.max_tokens = 80;
    let whole = answer(&mut worker, &story).await.unwrap();

    let mut run = worker.generate(&story).await.unwrap();
    let mut heard = tokens(&mut run, 5).await;
    run.pause().unwrap();
    // What was on its way comes; then there is silence.
    while let Ok(event) = tokio::time::timeout(Duration::from_millis(400), run.next()).await {
        heard.take(event.unwrap().unwrap());
    }
    assert!(heard.tokens.len() < whole.tokens.len(), "the pause came too late");
    let silence = tokio::time::timeout(Duration::from_millis(600), run.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    run.resume().unwrap();
    assert_eq!(finish(&mut run, heard).await.unwrap(), whole);
    drop(run);

    // A pause does not hide a cancel.
    let mut run = worker.generate(&long_job()).await.unwrap();
    let heard = tokens(&mut run, 2).await;
    run.pause().unwrap();
    run.cancel().unwrap();
    assert_eq!(finish(&mut run, heard).await.unwrap().reason, Some(FinishReason::Cancelled));
}

#[tokio::test]
async fn a_prompt_past_the_context_is_refused_before_anything_is_computed() {
    let _turn = turn();
    let mut worker = start().await;
    let begun = Instant::now();
    let too_long = answer(&mut worker, &job(&"word ".repeat(5_000), 10, 0, 0)).await;
    let Err(RunError::Job(GenerateError::PromptTooLong { prompt_tokens, context })) = too_long else {
        panic!("{too_long:?}");
    };
    assert!(prompt_tokens > 5_000 && context == 4_096);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let invalid = worker.generate(&job("x", 0, 0, 0)).await;
    assert!(matches!(invalid, Err(RunError::InvalidJob(_))));
    drop(invalid);
    assert!(worker.is_alive());
    assert!(!answer(&mut worker, &job("Say hello.", 4, 0, 0)).await.unwrap().tokens.is_empty());
}

#[tokio::test]
async fn a_killed_worker_is_a_death_and_not_a_hang() {
    let _turn = turn();
    let mut worker = start().await;
    let pid = worker.pid();
    let mut run = worker.generate(&long_job()).await.unwrap();
    let heard = tokens(&mut run, 3).await;
    signal(pid, rustix::process::Signal::KILL);
    let died = finish(&mut run, heard).await;
    let Err(RunError::WorkerDied { death }) = died else { panic!("{died:?}") };
    assert_eq!(death.signal, Some(9));
    assert!(matches!(run.next().await, Ok(None)));
    drop(run);
    assert!(!worker.is_alive() && worker.rss_bytes().is_none());
    assert!(matches!(worker.generate(&long_job()).await, Err(RunError::WorkerDied { .. })));
}

#[tokio::test]
async fn a_stopped_worker_is_noticed_by_its_silence() {
    let _turn = turn();
    let mut slow = spec(model::model());
    slow.limits.silence_timeout = Duration::from_secs(2);
    let mut worker = Worker::start(slow, |_, _| {}).await.unwrap();
    let pid = worker.pid();
    let mut run = worker.generate(&long_job()).await.unwrap();
    let heard = tokens(&mut run, 1).await;
    signal(pid, rustix::process::Signal::STOP);
    let silent = finish(&mut run, heard).await;
    assert!(matches!(silent, Err(RunError::Silent { .. })), "{silent:?}");
    assert!(!is_running(pid));
}

#[tokio::test]
async fn a_dropped_supervisor_takes_its_worker_along() {
    let _turn = turn();
    let mut worker = start().await;
    let pid = worker.pid();
    let mut run = worker.generate(&long_job()).await.unwrap();
    tokens(&mut run, 1).await;
    drop(run);
    drop(worker);
    assert!(gone_within(pid, Duration::from_secs(1)));
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// A worker on a bare socket, with nobody but the test to end it.
fn bare(model: File) -> (std::process::Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Process::new(PROGRAM)
        .arg(jail().argument())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(model))
        .stderr(Stdio::null())
        .env_clear()
        .env("RAYON_NUM_THREADS", "2")
        .spawn()
        .unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    (child, ours)
}

fn hear(socket: &mut UnixStream) -> Event {
    let mut head = [0; 4];
    socket.read_exact(&mut head).unwrap();
    let mut body = vec![0; usize::try_from(u32::from_le_bytes(head)).unwrap()];
    socket.read_exact(&mut body).unwrap();
    ipc::decode_event(&body).unwrap()
}

fn say(socket: &mut UnixStream, command: &Command) {
    socket.write_all(&ipc::encode_command(command).unwrap()).unwrap();
}

fn exit_code(mut child: std::process::Child, limit: Duration) -> Option<i32> {
    assert!(gone_within(child.id(), limit), "the worker is still there");
    child.wait().unwrap().code()
}

#[test]
fn a_worker_outlives_its_daemon_by_less_than_a_second() {
    let _turn = turn();
    let (child, mut socket) = bare(model::model());
    say(&mut socket, &Command::Load { device: DeviceChoice::Cpu });
    while !matches!(hear(&mut socket), Event::Loaded(_)) {}
    say(&mut socket, &Command::Generate { run: 1, job: Box::new(long_job()) });
    while !matches!(hear(&mut socket), Event::Output { .. }) {}
    drop(socket);
    let code = exit_code(child, Duration::from_secs(1));
    assert!(code.is_none() || code == Some(i32::from(WorkerExit::Orphaned.code())), "{code:?}");

    // While it loads, and while it has nothing to do.
    let (child, mut socket) = bare(model::model());
    say(&mut socket, &Command::Load { device: DeviceChoice::Cpu });
    while !matches!(hear(&mut socket), Event::Loading { .. }) {}
    drop(socket);
    exit_code(child, Duration::from_secs(1));
    let (child, mut socket) = bare(model::model());
    assert!(matches!(hear(&mut socket), Event::Hello { .. }));
    drop(socket);
    assert_eq!(exit_code(child, Duration::from_secs(1)), Some(0));
}

#[test]
fn garbage_and_untimely_commands_end_the_worker_with_a_code() {
    let _turn = turn();
    let untimely = ipc::encode_command(&Command::Pause { run: 1 }).unwrap();
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[2, 0, 0, 0, 0x7f, 0x7f], &untimely] {
        let (child, mut socket) = bare(model::model());
        assert!(matches!(hear(&mut socket), Event::Hello { .. }));
        socket.write_all(bytes).unwrap();
        let code = exit_code(child, Duration::from_secs(1));
        assert_eq!(code, Some(i32::from(WorkerExit::Protocol.code())), "{bytes:?}");
    }
}

#[test]
fn started_by_hand_it_says_so() {
    let output = Process::new(PROGRAM).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(WorkerExit::Usage.code())));
    assert!(String::from_utf8_lossy(&output.stderr).contains("potluckd"));
}

/// The model's true header (1.7 MB), changed by `change`, in a file of `len` bytes whose tensors are
/// zero: what is wrong with a header shows before any tensor is read.
fn broken(folder: &Path, len: u64, change: impl FnOnce(&mut Vec<u8>)) -> File {
    let mut bytes = Vec::new();
    model::model().take(2 << 20).read_to_end(&mut bytes).unwrap();
    change(&mut bytes);
    let mut file = tempfile::tempfile_in(folder).unwrap();
    file.write_all(&bytes).unwrap();
    file.set_len(len).unwrap();
    file
}

/// Length of the model file in bytes.
fn whole() -> u64 {
    std::fs::metadata(model::model_path()).unwrap().len()
}

/// How a worker takes a model that it cannot serve.
async fn refusal(model: File) -> LoadError {
    let begun = Instant::now();
    let started = Worker::start(spec(model), |_, _| {}).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    match started {
        Err(StartError::Load(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_cut_model_is_a_typed_error() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    for len in [0, 3, 10, 24, 100, 5_000, 500_000, 1_700_000, 50_000_000, whole() - 1] {
        let error = refusal(broken(folder.path(), len, |_| {})).await;
        if len < 4 {
            assert_eq!(error, LoadError::UnknownFormat, "{len}");
        } else {
            assert!(matches!(error, LoadError::Truncated { .. }), "{len}: {error}");
        }
    }
}

#[tokio::test]
async fn a_lying_header_is_a_typed_error() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let find = |bytes: &[u8], needle: &str| {
        bytes.windows(needle.len()).position(|w| w == needle.as_bytes()).unwrap() + needle.len()
    };
    // After a scalar's key come its type (4 bytes) and its value.
    let set = |key: &'static str, value: u32| {
        move |bytes: &mut Vec<u8>| {
            let at = find(bytes, key) + 4;
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    };
    let mut errors = Vec::new();
    for (key, value) in [
        ("llama.block_count", u32::MAX),
        ("llama.block_count", 31),
        ("llama.block_count", 0),
        ("llama.embedding_length", 1 << 30),
        ("llama.embedding_length", 575),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count", 7),
        ("llama.attention.head_count_kv", 2),
        ("llama.rope.dimension_count", u32::MAX),
        ("llama.feed_forward_length", 1_000_000),
        ("llama.context_length", 0),
    ] {
        errors.push((key, refusal(broken(folder.path(), whole(), set(key, value))).await));
    }
    let error = refusal(broken(folder.path(), whole(), |bytes| bytes[4] = 9)).await;
    assert_eq!(error, LoadError::UnsupportedVersion { found: 9 });
    let error = refusal(broken(folder.path(), whole(), |bytes| {
        bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    }))
    .await;
    assert!(matches!(error, LoadError::TooLarge { .. }));
    let error = refusal(broken(folder.path(), whole(), |bytes| {
        let at = find(bytes, "tokenizer.ggml.pre") + 12;
        bytes[at..at + 6].copy_from_slice(b"tekken");
    }))
    .await;
    assert_eq!(error, LoadError::UnsupportedTokenizer { found: "tekken".into() });
    for (key, error) in errors {
        let fits = matches!(
            error,
            LoadError::Corrupt { .. }
                | LoadError::TooLarge { .. }
                | LoadError::Truncated { .. }
                | LoadError::UnsupportedArchitecture { .. }
        );
        assert!(fits, "{key}: {error}");
    }
}

#[test]
fn flipped_header_bytes_never_panic_the_engine() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    // The header of this model is 1.7 MB; most of it is vocabulary, where a flip only changes text.
    for step in 0..24_usize {
        let file = broken(folder.path(), whole(), |bytes| {
            for k in 0..4 {
                let at = (step * 61 + k * 17) % 1_400;
                bytes[at] ^= 1 << (step % 8);
            }
        });
        // Either it loads (a name changed) or it says why not; a panic fails the test.
        if let Err(error) = Engine::load(file, DeviceChoice::Cpu, &mut |_, _| {}) {
            assert!(!error.to_string().is_empty());
        }
    }
}
