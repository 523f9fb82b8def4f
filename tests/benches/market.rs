//! What the market costs: tokens per second through it against the same engine called directly, the
//! time to a first token, and what idle programs use.
//!
//! Owns: the measurements of the areas market, renter and owner. Never: compares figures of
//! different runs or machines. Run by `make bench [ONLY=market|renter|owner]`. Exit status 1 when a
//! target is missed.

use std::error::Error;
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use potluck_protocol::job::{ChatMessage, JobSpec, Role, Sampling};
use potluck_sandbox::engine::DeviceChoice;
use potluck_sandbox::supervisor::{RunEvent, Worker, WorkerLimits, WorkerSpec};
use potluck_tests::figures::{self, Figure};
use potluck_tests::network::Network;
use potluck_tests::process::Process;
use potluck_tests::programs::{model, model_file, program};
use potluck_tests::renter::Ended;

type Outcome<T> = Result<T, Box<dyn Error>>;

const PROMPT: &str = "Tell me a long story about a fox and a crow.";
const TOKENS: u32 = 128;
/// Pairs of runs, market and engine in turn; the medians are compared.
const ROUNDS: usize = 5;
/// How long idle programs are watched.
const IDLE: Duration = Duration::from_secs(10);

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
    let areas = figures::wanted(&["market", "renter", "owner"])?;
    if areas.is_empty() {
        return Ok(true);
    }
    let wanted = |area: &str| areas.contains(&area);
    let mut figures = Vec::new();
    let network = Network::with_providers(&["0.04"]).await?;
    if wanted("renter") {
        latency(&network, &mut figures).await?;
    }
    if wanted("market") {
        overhead(&network, &mut figures).await?;
    }
    if wanted("owner") {
        idle(&network, &mut figures).await?;
    }
    drop(network);
    figures::print(&figures);
    let path = figures::save(&figures)?;
    println!("written to {}", path.display());
    Ok(figures.iter().all(|figure| figure.holds != Some(false)))
}

fn milliseconds(event: &serde_json::Value, key: &str) -> Outcome<f64> {
    event[key].as_f64().ok_or_else(|| format!("`{key}` is missing in {event}").into())
}

fn succeeded(job: Ended) -> Outcome<Ended> {
    if job.status.success() { Ok(job) } else { Err(format!("a job failed: {}", job.stderr).into()) }
}

async fn latency(network: &Network, figures: &mut Vec<Figure>) -> Outcome<()> {
    let renter = network.renter("renter")?;
    for run in ["first", "second"] {
        let job = succeeded(renter.run("Name a planet.", &["--max-tokens", "8"]).await?)?;
        let ttft = milliseconds(job.event("done"), "ttft_ms")?;
        figures.push(
            Figure::plain("renter", format!("{run} run: command to first token"), ttft, "ms")
                .below(2_000.0, "at most 2000 ms"),
        );
        let placed = milliseconds(job.event("quote"), "elapsed_ms")?;
        figures.push(Figure::plain("renter", format!("{run} run: of which until the quote"), placed, "ms"));
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Tokens per second from the first to the last piece of the answer, both ways in turn.
async fn overhead(network: &Network, figures: &mut Vec<Figure>) -> Outcome<()> {
    let renter = network.renter("market")?;
    let spec = WorkerSpec {
        program: program("potluck-gpu-worker")?,
        model: fs::File::open(model_file()?)?,
        device: DeviceChoice::Cpu,
        threads: Some(1),
        limits: WorkerLimits::default(),
    };
    let mut worker = Worker::start(spec, |_, _| {}).await?;
    let (mut market, mut engine) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        market.push(through_market(renter.start(PROMPT, &["--max-tokens", &TOKENS.to_string()])?).await?);
        engine.push(directly(&mut worker).await?);
    }
    worker.stop(Duration::from_secs(5)).await;
    let (market, engine) = (median(market), median(engine));
    figures.push(
        Figure::plain("market", "tokens per second through the market", market, "tok/s")
            .against("the engine called directly", engine)
            .at_least(0.95, "at least 0.95 of direct"),
    );
    figures.push(Figure::plain("market", "tokens per second, engine called directly", engine, "tok/s"));
    figures.push(Figure::plain("market", "what the market costs", (1.0 - market / engine) * 100.0, "%"));
    Ok(())
}

/// Counts tokens after the first piece and the time they took.
#[derive(Default)]
struct Pace {
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: u32,
}

impl Pace {
    fn note(&mut self, tokens: u32) {
        let now = Instant::now();
        if self.first.is_some() {
            self.tokens += tokens;
        } else {
            self.first = Some(now);
        }
        self.last = Some(now);
    }

    fn per_second(&self) -> Outcome<f64> {
        let (Some(first), Some(last)) = (self.first, self.last) else { return Err("no token came".into()) };
        Ok(f64::from(self.tokens) / last.duration_since(first).as_secs_f64())
    }
}

async fn through_market(mut process: Process) -> Outcome<f64> {
    let mut pace = Pace::default();
    while let Some(event) = process.next_event(Duration::from_secs(60)).await? {
        if event["event"] == "output" {
            pace.note(u32::try_from(event["tokens"].as_u64().unwrap_or_default())?);
        }
    }
    process.exit(Duration::from_secs(10)).await?;
    pace.per_second()
}

async fn directly(worker: &mut Worker) -> Outcome<f64> {
    let job = JobSpec {
        model: model()?.blake3,
        messages: vec![ChatMessage { role: Role::User, content: PROMPT.into() }],
        sampling: Sampling { max_tokens: TOKENS, temperature_milli: 0, top_p_milli: 1_000, seed: 0 },
    };
    let mut run = worker.generate(&job).await?;
    let mut pace = Pace::default();
    while let Some(event) = run.next().await? {
        if let RunEvent::Output { tokens, .. } = event {
            pace.note(u32::try_from(tokens.len())?);
        }
    }
    pace.per_second()
}

/// Resident memory (MiB) and processor time (s) of a process, as the kernel counts them.
fn usage(pid: u32) -> Outcome<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .ok_or("no VmRSS")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the name in parentheses: fields 14 and 15 of the whole line are user and system ticks.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).ok_or("no such field");
    let per_second = rustix::param::clock_ticks_per_second();
    let seconds = (ticks(11)? + ticks(12)?) / f64::from(u32::try_from(per_second)?);
    Ok((kib.parse::<f64>()? / 1_024.0, seconds))
}

async fn idle(network: &Network, figures: &mut Vec<Figure>) -> Outcome<()> {
    let watched = [("potluckd", &network.providers[0].process), ("potluck-bootstrap", &network.bootstrap)];
    let mut before = Vec::new();
    for (name, process) in watched {
        let pid = process.id().ok_or_else(|| format!("{name} has ended"))?;
        before.push((name, pid, usage(pid)?.1));
    }
    // The measurement is over this time; nothing is waited for.
    tokio::time::sleep(IDLE).await;
    for (name, pid, spent) in before {
        let (memory, now) = usage(pid)?;
        let percent = (now - spent) / IDLE.as_secs_f64() * 100.0;
        figures.push(
            Figure::plain("owner", format!("{name}: resident"), memory, "MiB").below(64.0, "at most 64 MiB"),
        );
        figures.push(
            Figure::plain("owner", format!("{name}: processor"), percent, "%").below(1.0, "at most 1 %"),
        );
    }
    Ok(())
}
