//! What the jail costs, and how fast a renter's component is there.
//!
//! Owns: the `sandbox` figures: tokens per second and the start of a model's worker with and without the
//! jail, the start of a component, and its compilation. Never: compares figures of different runs; the
//! two sides of a pair are measured in turn. Run by `make bench [ONLY=sandbox]`. Exit status 1 when a
//! target is missed.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use potluck_protocol::id::ContentHash;
use potluck_protocol::job::{ChatMessage, JobSpec, Role, Sampling};
use potluck_sandbox::engine::DeviceChoice;
use potluck_sandbox::guest::cache::{Artefact, ArtefactCache};
use potluck_sandbox::guest::compiler::{Compiled, Compiler};
use potluck_sandbox::guest::limits::GuestLimits;
use potluck_sandbox::guest::supervisor::{Guest, GuestSpec, GuestStep};
use potluck_sandbox::guest::wire::{Blob, GuestStart};
use potluck_sandbox::jail::{Jail, JailPlan};
use potluck_sandbox::supervisor::{RunEvent, Worker, WorkerLimits, WorkerSpec};
use potluck_tests::figures::{Figure, median, report, wanted};
use potluck_tests::programs::{build_folder, model, model_file, program};

type Outcome<T> = Result<T, Box<dyn Error>>;

const AREA: &str = "sandbox";
const TOKENS: u32 = 128;
/// Pairs of runs of a model, jailed and plain in turn. The fastest ones are compared: what else the
/// machine does can only slow a run down.
const ROUNDS: usize = 7;
/// Pairs of starts of a model's worker.
const STARTS: usize = 5;
/// Starts of a component.
const TRIES: usize = 30;
/// Nothing here takes longer.
const WITHIN: Duration = Duration::from_secs(600);
/// Functions of the component that is compiled when no real one was built here: 1.5 MB.
const GENERATED: usize = 20_000;
const ECHO: &str = include_str!("../../sandbox/tests/guests/echo.wat");

fn main() -> ExitCode {
    match measure() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn measure() -> Outcome<bool> {
    if wanted(&[AREA])?.is_empty() {
        return Ok(true);
    }
    let mut figures = Vec::new();
    tokens_per_second(&mut figures).await?;
    worker_starts(&mut figures).await?;
    small_component(&mut figures).await?;
    large_component(&mut figures).await?;
    Ok(report(&figures)?)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

async fn model_worker(jailed: bool) -> Outcome<Worker> {
    let file = fs::File::open(model_file()?)?;
    let bytes = file.metadata()?.len();
    let spec = WorkerSpec {
        program: program("potluck-gpu-worker")?,
        model: file,
        device: DeviceChoice::Cpu,
        threads: Some(1),
        jail: if jailed { Jail::for_model(DeviceChoice::Cpu, bytes, 1)? } else { Jail::Unsafe },
        limits: WorkerLimits::default(),
    };
    Ok(Worker::start(spec, |_, _| {}).await?)
}

/// Tokens per second between the first and the last piece of an answer.
async fn pace(worker: &mut Worker) -> Outcome<f64> {
    let content = "Tell me a long story about a fox and a crow.".into();
    let job = JobSpec {
        model: model()?.blake3,
        messages: vec![ChatMessage { role: Role::User, content }],
        sampling: Sampling { max_tokens: TOKENS, temperature_milli: 0, top_p_milli: 1_000, seed: 0 },
    };
    let mut run = worker.generate(&job).await?;
    let (mut first, mut tokens, mut last) = (None, 0, Instant::now());
    while let Some(event) = run.next().await? {
        if let RunEvent::Output { tokens: more, .. } = event {
            last = Instant::now();
            match first {
                None => first = Some(last),
                Some(_) => tokens += u32::try_from(more.len())?,
            }
        }
    }
    let first = first.ok_or("no token came")?;
    Ok(f64::from(tokens) / last.duration_since(first).as_secs_f64())
}

async fn tokens_per_second(figures: &mut Vec<Figure>) -> Outcome<()> {
    let (mut jailed, mut plain) = (model_worker(true).await?, model_worker(false).await?);
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Neither side is always the one that comes after the other.
        if round % 2 == 0 {
            inside.push(pace(&mut jailed).await?);
        }
        outside.push(pace(&mut plain).await?);
        if round % 2 == 1 {
            inside.push(pace(&mut jailed).await?);
        }
    }
    for worker in [jailed, plain] {
        worker.stop(Duration::from_secs(5)).await;
    }
    let fastest = |runs: Vec<f64>| runs.into_iter().fold(0.0, f64::max);
    let (inside, outside) = (fastest(inside), fastest(outside));
    figures.push(
        Figure::plain(AREA, "tokens per second, jailed", inside, "tok/s")
            .beside("the same worker without a jail", outside)
            .at_least(0.98, "at least 0.98 of plain"),
    );
    figures.push(Figure::plain(AREA, "tokens per second, without a jail", outside, "tok/s"));
    Ok(())
}

async fn worker_starts(figures: &mut Vec<Figure>) -> Outcome<()> {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        for (jailed, times) in [(true, &mut inside), (false, &mut outside)] {
            let began = Instant::now();
            let worker = model_worker(jailed).await?;
            times.push(milliseconds(began));
            worker.stop(Duration::from_secs(5)).await;
        }
    }
    let (inside, outside) = (median(inside), median(outside));
    let peer = "the same worker without a jail";
    figures.push(Figure::plain(AREA, "start to loaded model, jailed", inside, "ms").beside(peer, outside));
    figures.push(Figure::plain(AREA, "start to loaded model, without a jail", outside, "ms"));
    Ok(())
}

/// A component that is compiled, in a folder of its own.
struct Shelf {
    folder: tempfile::TempDir,
    engine: [u8; 32],
    component: ContentHash,
}

impl Shelf {
    fn new(component: &[u8], compiled: &Compiled) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let component = ContentHash::of(component);
        let shelf = Self { folder, engine: compiled.engine, component };
        shelf.open()?.put(component, &compiled.artefact)?;
        Ok(shelf)
    }

    /// As a daemon finds it that has just started.
    fn open(&self) -> Outcome<ArtefactCache> {
        Ok(ArtefactCache::open(self.folder.path(), self.engine, 1 << 30)?)
    }

    fn artefact(&self, cache: &ArtefactCache) -> Outcome<Artefact> {
        Ok(cache.get(self.component).ok_or("the artefact is lost")?)
    }
}

async fn compile(wasm: &[u8]) -> Outcome<Compiled> {
    let program = program("potluck-wasm-worker")?;
    Ok(Compiler { program, jailed: true, within: WITHIN }.compile(wasm).await?)
}

/// A guest whose artefact is loaded.
async fn loaded(artefact: Artefact, jailed: bool) -> Outcome<Guest> {
    let limits = GuestLimits::default();
    let plan = || Jail::Jailed(Box::new(JailPlan::wasm(limits.memory_bytes)));
    let jail = if jailed { plan() } else { Jail::Unsafe };
    let spec = GuestSpec { program: program("potluck-wasm-worker")?, artefact, limits, jail };
    Ok(Guest::start(spec).await?)
}

/// Milliseconds from a known component to its answer. Its end is not counted.
async fn echo(shelf: &Shelf, cache: Option<&ArtefactCache>, jailed: bool) -> Outcome<f64> {
    let began = Instant::now();
    let artefact = match cache {
        Some(cache) => shelf.artefact(cache)?,
        None => shelf.artefact(&shelf.open()?)?,
    };
    let mut guest = loaded(artefact, jailed).await?;
    guest.run(GuestStart { models: Vec::new(), input: Blob(b"echo".to_vec()), seed: [0; 32] })?;
    loop {
        if let GuestStep::Finished { output, .. } = guest.next().await? {
            let took = milliseconds(began);
            guest.stop().await;
            return if output == Ok(b"echo".to_vec()) { Ok(took) } else { Err("no echo".into()) };
        }
    }
}

async fn small_component(figures: &mut Vec<Figure>) -> Outcome<()> {
    let wasm = wat::parse_str(ECHO)?;
    let shelf = Shelf::new(&wasm, &compile(&wasm).await?)?;
    let kept = shelf.open()?;
    shelf.artefact(&kept)?;
    let (mut cold, mut warm, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TRIES {
        cold.push(echo(&shelf, None, true).await?);
        warm.push(echo(&shelf, Some(&kept), true).await?);
        plain.push(echo(&shelf, Some(&kept), false).await?);
    }
    let (cold, warm, plain) = (median(cold), median(warm), median(plain));
    figures.push(
        Figure::plain(AREA, "component, from disk to its answer (cold)", cold, "ms")
            .beside("Cerebrium's claim for a container, 2 to 4 s", 2_000.0),
    );
    figures.push(
        Figure::plain(AREA, "component, from memory to its answer (warm)", warm, "ms")
            .beside("Fermyon's claim for an instance in a running process", 0.5),
    );
    figures.push(Figure::plain(AREA, "component, warm, without a jail", plain, "ms"));
    Ok(())
}

/// The largest component that the stories have built.
fn built() -> Outcome<Option<PathBuf>> {
    let Ok(entries) = fs::read_dir(build_folder()?.join("guest-tools/built")) else { return Ok(None) };
    let wasm = entries.flatten().map(|entry| entry.path()).filter(|path| is_wasm(path));
    Ok(wasm.max_by_key(|path| fs::metadata(path).map_or(0, |about| about.len())))
}

fn is_wasm(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "wasm")
}

/// A component of [`GENERATED`] functions, each of which counts, branches and stores.
fn generated() -> Outcome<Vec<u8>> {
    let function = |n: usize| {
        format!(
            "(func (param $a i32) (result i32) (local $b i32)
               (loop $more
                 (local.set $b (i32.add (i32.mul (local.get $b) (i32.const {n})) (local.get $a)))
                 (i32.store offset={n} (i32.and (local.get $b) (i32.const 1020)) (local.get $a))
                 (if (i32.gt_u (local.get $b) (i32.const 77)) (then (local.set $b (i32.load (local.get $a)))))
                 (local.set $a (i32.sub (local.get $a) (i32.const 1)))
                 (br_if $more (local.get $a)))
               (local.get $b))"
        )
    };
    let functions: String = (0..GENERATED).map(function).collect();
    let run = "(func (export \"run\") (param $at i32)";
    Ok(wat::parse_str(ECHO.replacen(run, &format!("{functions}\n{run}"), 1))?)
}

async fn large_component(figures: &mut Vec<Figure>) -> Outcome<()> {
    let (kind, wasm) = match built()? {
        Some(path) => ("a built component", fs::read(path)?),
        None => ("a generated component", generated()?),
    };
    let megabytes = f64::from(u32::try_from(wasm.len())?) / 1e6;
    let began = Instant::now();
    let compiled = compile(&wasm).await?;
    let seconds = began.elapsed().as_secs_f64();
    figures.push(Figure::plain(AREA, format!("{kind}: its size"), megabytes, "MB"));
    figures.push(Figure::plain(AREA, format!("{kind}: compilation"), seconds / megabytes, "s/MB"));
    let shelf = Shelf::new(&wasm, &compiled)?;
    drop(compiled);
    let kept = shelf.open()?;
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let began = Instant::now();
        let guest = loaded(shelf.artefact(&shelf.open()?)?, true).await?;
        cold.push(milliseconds(began));
        guest.stop().await;
        shelf.artefact(&kept)?;
        let began = Instant::now();
        let guest = loaded(shelf.artefact(&kept)?, true).await?;
        warm.push(milliseconds(began));
        guest.stop().await;
    }
    figures.push(Figure::plain(AREA, format!("{kind}: from disk to loaded"), median(cold), "ms"));
    figures.push(Figure::plain(AREA, format!("{kind}: from memory to loaded"), median(warm), "ms"));
    Ok(())
}
