//! `make demo`: the whole market on one machine, as a person would see it.
//!
//! Owns: the order of the show and its summary. Never: runs a model or keeps a ledger itself: it
//! starts the real programs and reads what they print. Called by the Makefile. Ends with every
//! program stopped: at the end, on a failure, on SIGINT and on SIGTERM. Exit status: 0 when both
//! ledgers agree, 1 otherwise, 130 when stopped.

use std::io::{Write as _, stdout};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use potluck_protocol::unit::{NanoCredit, Rate, dollars};
use potluck_tests::error::KitError;
use potluck_tests::ledgers;
use potluck_tests::network::{Network, Provider};
use potluck_tests::process::Process;
use potluck_tests::programs::{MODEL, model, program};
use potluck_tests::renter::{Ended, Renter};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

const QUESTION: &str = "Why is the sky blue?";
/// What the two providers ask, in $/h.
const PRICES: [&str; 2] = ["0.04", "0.05"];
/// The longest silence inside a job before the demo gives up.
const SILENCE: Duration = Duration::from_secs(60);

/// Why the demo failed.
#[derive(Debug, Error)]
enum DemoError {
    #[error(transparent)]
    Kit(#[from] KitError),
    #[error("the model could not be fetched (potluckd models pull {MODEL} failed)")]
    Model,
    #[error("the job failed: {message} ({hint})")]
    Job { message: String, hint: String },
    #[error("the ledgers disagree: the renter's says {renter}, the provider's {provider} nano-credits")]
    Disagree { renter: i64, provider: i64 },
    #[error("cannot {action}: {source}")]
    Io { action: String, source: std::io::Error },
}

fn io_error(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> DemoError {
    move |source| DemoError::Io { action: action.into(), source }
}

#[tokio::main]
async fn main() -> ExitCode {
    let stopped = async {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    // Dropping the demo drops its processes, and each is stopped before its drop returns.
    tokio::select! {
        result = demo() => match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}\n  everything was stopped; nothing outside this machine was touched");
                ExitCode::FAILURE
            }
        },
        () = stopped => {
            eprintln!("\nstopped: all of the demo's programs are ended");
            ExitCode::from(130)
        }
    }
}

async fn demo() -> Result<(), DemoError> {
    say("potluck demo: one bootstrap, two providers, one renter, on this machine only");
    for name in ["potluck", "potluckd", "potluck-bootstrap", "potluck-gpu-worker"] {
        program(name)?;
    }
    fetch_model().await?;
    let mut network = Network::start().await?;
    say(&format!("  bootstrap {}  listening", short(&network.bootstrap_peer)));
    for price in PRICES {
        let provider = network.add_provider(price).await?;
        say(&provider_line(provider, price));
    }
    let renter = network.renter("renter")?;
    let (job, elapsed) = ask(&renter).await?;
    let report = Report::of(&job, &renter, &network, elapsed).await?;
    report.print();
    report.write_json()?;
    if report.renter_balance != -report.provider_balance {
        return Err(DemoError::Disagree { renter: report.renter_balance, provider: report.provider_balance });
    }
    Ok(())
}

fn say(line: &str) {
    // A closed stdout ends the show later, when the answer cannot be written.
    let _ = writeln!(stdout().lock(), "{line}");
}

/// The first characters of a peer id: enough to tell peers on one screen apart.
fn short(peer: &str) -> String {
    format!("{}…", peer.get(..14).unwrap_or(peer))
}

/// Fetches the model with the owner's own command, whose progress bar is shown.
async fn fetch_model() -> Result<(), DemoError> {
    let mut pull = Command::new(program("potluckd")?);
    pull.args(["models", "pull", MODEL]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    let status = pull.status().await.map_err(io_error("start potluckd models pull"))?;
    if !status.success() {
        return Err(DemoError::Model);
    }
    let model = model()?;
    say(&format!("  model     {}   {} MB   sha256 ok", model.title, model.bytes / 1_000_000));
    Ok(())
}

fn provider_line(provider: &Provider, price: &str) -> String {
    let device = match provider.ready["device"].as_str() {
        Some("cpu") | None => "CPU (no GPU used)",
        Some(name) => name,
    };
    let warm = provider.ready["warm_ms"].as_u64().map(seconds).unwrap_or_default();
    format!("  provider  {}  {device}   ${price}/h   warm in {warm}", short(&provider.peer))
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1_000, ms % 1_000 / 100)
}

/// Asks the question and shows the answer as it comes.
async fn ask(renter: &Renter) -> Result<(Ended, Duration), DemoError> {
    say(&format!("> {QUESTION}"));
    let begin = Instant::now();
    let flags = ["--max-tokens", "96", "--temperature", "0", "--max-price", "0.10", "--json"];
    let command = renter.command(MODEL, QUESTION, &flags)?;
    let mut process = Process::start("potluck", command, &renter.state().with_extension("stderr"))?;
    let mut events = Vec::new();
    while let Some(event) = process.next_event(SILENCE).await? {
        if event["event"] == "output" {
            let mut out = stdout().lock();
            let text = event["text"].as_str().unwrap_or_default();
            out.write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .map_err(io_error("write the answer"))?;
        }
        events.push(event);
    }
    say("\n");
    let status = process.exit(SILENCE).await?;
    let job = Ended { status, events, stderr: process.stderr() };
    if status.success() {
        return Ok((job, begin.elapsed()));
    }
    let error = job.event("error");
    let text = |key: &str, otherwise: &str| error[key].as_str().unwrap_or(otherwise).to_owned();
    Err(DemoError::Job { message: text("message", &job.stderr), hint: text("hint", "no hint") })
}

/// What is told at the end.
struct Report {
    text: String,
    provider: String,
    quotes: u64,
    placed_ms: u64,
    rate: u64,
    gpu_ms: u64,
    amount: u64,
    vouchers: u64,
    receipt: String,
    completion_tokens: u64,
    ttft_ms: u64,
    elapsed_ms: u64,
    total: Duration,
    renter_balance: i64,
    provider_balance: i64,
}

impl Report {
    async fn of(job: &Ended, renter: &Renter, network: &Network, total: Duration) -> Result<Self, DemoError> {
        let (quote, settled, done) = (job.event("quote"), job.event("settled"), job.event("done"));
        let provider = settled["provider"].as_str().unwrap_or_default();
        let Some(ran) = network.providers.iter().find(|candidate| candidate.peer == provider) else {
            let message = format!("it ran on `{provider}`, which is not of this demo");
            return Err(DemoError::Job { message, hint: "see the ledger of the renter".into() });
        };
        let number = |event: &Value, key: &str| event[key].as_u64().unwrap_or_default();
        Ok(Self {
            text: job.text(),
            provider: provider.to_owned(),
            quotes: number(quote, "quotes"),
            placed_ms: number(quote, "elapsed_ms"),
            rate: number(quote, "run_nanocredits_per_second"),
            gpu_ms: number(settled, "gpu_ms"),
            amount: number(settled, "amount_nanocredits"),
            vouchers: number(settled, "vouchers"),
            receipt: settled["receipt"].as_str().unwrap_or_default().to_owned(),
            completion_tokens: number(done, "completion_tokens"),
            ttft_ms: number(done, "ttft_ms"),
            elapsed_ms: number(done, "elapsed_ms"),
            total,
            renter_balance: ledgers::balance("potluck", renter.state()).await?,
            provider_balance: ledgers::balance("potluckd", &ran.state).await?,
        })
    }

    fn print(&self) {
        let choice = format!("cheapest of {} quotes, {} ms to place", self.quotes, self.placed_ms);
        say(&format!("  ran on    {}  ({choice})", short(&self.provider)));
        let writing_ms = self.elapsed_ms.saturating_sub(self.ttft_ms).max(1);
        let speed = self.completion_tokens.saturating_sub(1) * 1_000 / writing_ms;
        say(&format!(
            "  speed     {speed} tok/s, first token {} ms, all in {}",
            self.ttft_ms,
            seconds(u64::try_from(self.total.as_millis()).unwrap_or(u64::MAX))
        ));
        say(&format!(
            "  metered   {}.{:03} s × {} = {} in {} vouchers",
            self.gpu_ms / 1_000,
            self.gpu_ms % 1_000,
            Rate::new(self.rate),
            NanoCredit::new(self.amount),
            self.vouchers
        ));
        let sign = if self.renter_balance == -self.provider_balance { "agree ✓" } else { "DISAGREE" };
        say(&format!(
            "  ledgers   renter {}   provider {}   {sign}",
            dollars(i128::from(self.renter_balance), true),
            dollars(i128::from(self.provider_balance), true)
        ));
        say(&format!("  receipt   {}…", self.receipt.get(..15).unwrap_or(&self.receipt)));
        say("  a provider can read your prompt; what is owed is an IOU between two peers");
    }

    /// Writes the figures to the file that `DEMO_JSON` names, if it does.
    fn write_json(&self) -> Result<(), DemoError> {
        let Some(path) = std::env::var_os("DEMO_JSON").filter(|path| !path.is_empty()) else { return Ok(()) };
        let report = json!({
            "text": self.text,
            "completion_tokens": self.completion_tokens,
            "provider": self.provider,
            "gpu_ms": self.gpu_ms,
            "amount_nanocredits": self.amount,
            "vouchers": self.vouchers,
            "renter_balance_nanocredits": self.renter_balance,
            "provider_balance_nanocredits": self.provider_balance,
            "ttft_ms": self.ttft_ms,
            "elapsed_ms": self.elapsed_ms,
        });
        let shown = path.to_string_lossy().into_owned();
        std::fs::write(&path, format!("{report:#}\n")).map_err(io_error(format!("write {shown}")))
    }
}
