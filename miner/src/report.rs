//! What `potluckd run` tells its owner as things happen.
//!
//! Owns: the lines, as prose on stderr or as one JSON object a line on stdout, and the thread that
//! writes them. Never: logs (tracing does), fails or waits: an owner who closed the terminal, or a
//! program that reads our stdout and has stopped doing so, stops nothing. Called by the run loop and
//! jobs.

use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use potluck_protocol::id::{LaneId, PeerId};
use potluck_protocol::unit::{Rate, UnixMillis};
use potluck_protocol::wire::Refusal;
use potluck_sandbox::protection::EffectiveProtection;
use serde_json::{Value, json};

use crate::metered::Closed;
use crate::owner::{Owner, Stage};

/// Lines that may wait for a slow reader; later ones are dropped and counted.
const WAITING_LINES: usize = 1_024;
/// How long the last lines may take to be written when we stop.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(1);

/// The writer: a process has one stdout and one stderr.
static WRITER: OnceLock<Writer> = OnceLock::new();

#[derive(Debug)]
struct Writer {
    lines: SyncSender<Line>,
    dropped: AtomicU64,
}

#[derive(Debug)]
enum Line {
    Data(String),
    Prose(String),
    /// Answer when all before it is written.
    Flush(SyncSender<()>),
}

/// Tells the owner; clones tell the same.
#[derive(Debug, Clone, Copy)]
pub struct Reporter {
    json: bool,
}

/// A model that is ready, for [`Reporter::ready`].
#[derive(Debug, Clone)]
pub struct ReadyModel {
    /// As people call it.
    pub name: String,
    /// What it is filed under: `cpu` or `cuda`.
    pub device: String,
    /// What it runs on, as people call it.
    pub hardware: String,
    /// How long it took to load.
    pub warm: Duration,
}

impl Reporter {
    /// Prose, or JSON lines.
    ///
    /// # Errors
    /// When the system gives no thread for the writer.
    pub fn start(json: bool) -> std::io::Result<Self> {
        let (lines, waiting) = sync_channel(WAITING_LINES);
        if WRITER.set(Writer { lines, dropped: AtomicU64::new(0) }).is_ok() {
            thread::Builder::new().name("reports".to_owned()).spawn(move || write_lines(&waiting))?;
        }
        Ok(Self { json })
    }

    /// We can be dialled at these addresses.
    pub fn listening(&self, peer: PeerId, addresses: &[String]) {
        self.tell(json!({"event": "listening", "peer": peer, "addresses": addresses}), || {
            format!("listening as {peer}\n  at {}", addresses.join("\n  at "))
        });
    }

    /// No bootstrap is set.
    pub fn alone(&self) {
        self.tell(json!({"event": "alone"}), || {
            "no bootstrap is set: only renters that dial this address directly find this machine".into()
        });
    }

    /// We are in the network.
    pub fn joined(&self, via: PeerId, address: &str) {
        self.tell(json!({"event": "joined", "via": via, "address": address}), || {
            format!("joined the network through {} at {address}", via.short())
        });
    }

    /// No bootstrap answers yet.
    pub fn not_joined(&self, why: &str, retry: Duration) {
        self.tell(json!({"event": "not_joined", "reason": why, "retry_ms": millis(retry)}), || {
            format!("not in the network yet: {why}; trying again in {} s", retry.as_secs())
        });
    }

    /// A model is being read; `first` says that this is the first word of it.
    pub fn loading(&self, model: &str, done_bytes: u64, total_bytes: u64, first: bool) {
        let event = json!({
            "event": "loading", "model": model, "done_bytes": done_bytes, "total_bytes": total_bytes,
        });
        // Prose says only the beginning: nothing scrolls for a spinner.
        if self.json || first {
            self.tell(event, || format!("loading {model} ({} MB)", total_bytes / 1_000_000));
        }
    }

    /// Jobs are taken from now on.
    pub fn ready(&self, peer: PeerId, models: &[ReadyModel], price: Rate, jail: &EffectiveProtection) {
        let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
        let first = models.first();
        let warm = models.iter().map(|model| model.warm).max().unwrap_or_default();
        let event = json!({
            "event": "ready",
            "peer": peer,
            "models": names,
            "device": first.map(|model| &model.device),
            "hardware": first.map(|model| &model.hardware),
            "price_per_hour": price.to_string(),
            "warm_ms": millis(warm),
            "protection": jail.level(),
            "protection_detail": jail.summary(),
        });
        self.tell(event, || {
            let device = first.map_or("", |model| model.hardware.as_str());
            let names = names.join(", ");
            format!(
                "ready: {names} on {device} at {price}, warm in {:.1} s\n{}",
                warm.as_secs_f32(),
                jail.summary()
            )
        });
    }

    /// Components are not run, though the owner allows them.
    pub fn no_guests(&self, why: &str) {
        self.tell(json!({"event": "no_components", "why": why}), || {
            format!("components are not run: {why}\n  `potluckd doctor` says what helps")
        });
    }

    /// We are up, and the owner has the machine: no job is taken.
    pub fn ready_paused(&self, peer: PeerId, models: &[&str], owner: &Owner, now: UnixMillis) {
        let until = owner.until().map(UnixMillis::get);
        let event = json!({
            "event": "ready", "peer": peer, "models": models, "paused": true, "until_ms": until,
        });
        self.tell(event, || format!("ready, but {}: no jobs are taken", owner.words(now)));
    }

    /// The owner took the machine back, or lends it again.
    pub fn owner(&self, owner: &Owner, now: UnixMillis) {
        let event = json!({
            "event": "owner", "state": owner.stage(), "until_ms": owner.until().map(UnixMillis::get),
        });
        self.tell(event, || match owner.stage() {
            Stage::Running => "lent again: loading models".into(),
            _ => owner.words(now),
        });
    }

    /// A worker died.
    pub fn worker_lost(&self, model: &str, why: &str, retry: Duration) {
        let event = json!({"event": "worker_lost", "model": model, "reason": why, "retry_ms": millis(retry)});
        self.tell(event, || {
            format!("the worker of {model} is down ({why}); starting it anew in {:.1} s", retry.as_secs_f32())
        });
    }

    /// A worker is back.
    pub fn worker_back(&self, model: &str) {
        self.tell(json!({"event": "worker_back", "model": model}), || {
            format!("the worker of {model} is back")
        });
    }

    /// A job was accepted.
    pub fn job_accepted(&self, lane: LaneId) {
        let event = json!({
            "event": "job", "job": lane.to_string(), "renter": lane.renter, "state": "accepted",
        });
        self.tell(event, || format!("{lane} from {} accepted", lane.renter.short()));
    }

    /// A job was refused.
    pub fn job_refused(&self, renter: PeerId, refusal: &Refusal) {
        let (code, reason) = (refusal.code.name(), refusal.reason.as_str());
        let event = json!({
            "event": "job", "renter": renter, "state": "refused", "code": code, "reason": reason,
        });
        self.tell(event, || format!("a job from {} was refused: {reason}", renter.short()));
    }

    /// A job is over.
    pub fn job_closed(&self, closed: &Closed) {
        let event = json!({
            "event": "job",
            "job": closed.lane.to_string(),
            "renter": closed.lane.renter,
            "state": "closed",
            "reason": closed.reason,
            "gpu_ms": closed.run.get(),
            "worked_ms": closed.worked.get(),
            "amount_nanocredits": closed.amount.get(),
            "completion_tokens": closed.completion_tokens,
            "why": closed.why,
        });
        self.tell(event, || {
            let why = closed.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            let unpaid = closed.worked.saturating_sub(closed.run).get();
            let unpaid = if unpaid > 0 { format!(", {unpaid} ms more unpaid") } else { String::new() };
            format!(
                "{} {}{why} ({} ms{unpaid}, {}, {} tokens)",
                closed.lane,
                reason_words(closed),
                closed.run.get(),
                closed.amount,
                closed.completion_tokens
            )
        });
    }

    /// The owner asked us to stop.
    pub fn stopping(&self, jobs: usize) {
        self.tell(json!({"event": "stopping", "jobs": jobs}), || format!("stopping ({jobs} jobs to settle)"));
    }

    /// We are done.
    pub fn stopped(&self) {
        self.tell(json!({"event": "stopped"}), || "stopped".into());
    }

    /// Gives the lines that wait a moment to be written, before the process ends.
    pub fn flush(&self) {
        let (written, done) = sync_channel(1);
        let flush = WRITER.get().is_some_and(|writer| writer.lines.try_send(Line::Flush(written)).is_ok());
        if flush && done.recv_timeout(LAST_LINES_WITHIN).is_err() {
            tracing::debug!("nobody reads the last reports");
        }
    }

    fn tell(&self, event: Value, prose: impl FnOnce() -> String) {
        let Some(writer) = WRITER.get() else { return };
        let dropped = writer.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            let told = if self.json {
                Line::Data(json!({"event": "dropped", "lines": dropped}).to_string())
            } else {
                Line::Prose(format!("{dropped} lines were not shown: nobody read them"))
            };
            if writer.lines.try_send(told).is_ok() {
                writer.dropped.fetch_sub(dropped, Ordering::Relaxed);
            }
        }
        let line = if self.json { Line::Data(event.to_string()) } else { Line::Prose(prose()) };
        if writer.lines.try_send(line).is_err() {
            writer.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_lines(lines: &Receiver<Line>) {
    while let Ok(line) = lines.recv() {
        let written = match line {
            Line::Data(line) => {
                let mut out = std::io::stdout().lock();
                writeln!(out, "{line}").and_then(|()| out.flush())
            }
            Line::Prose(line) => writeln!(std::io::stderr().lock(), "{line}"),
            Line::Flush(done) => {
                // Who asked may have stopped waiting: nothing is lost by that.
                done.try_send(()).or(Ok(()))
            }
        };
        if let Err(error) = written {
            tracing::debug!(%error, "nobody reads the reports");
        }
    }
}

fn reason_words(closed: &Closed) -> &'static str {
    use potluck_protocol::settle::CloseReason as Reason;
    match closed.reason {
        Reason::Completed => "completed",
        Reason::RenterCancelled => "cancelled by the renter",
        Reason::LimitReached => "reached its limit",
        Reason::OwnerYield => "stopped for the owner",
        Reason::ProviderFailed => "failed here",
        Reason::RenterFailed => "failed at the renter",
        Reason::PeerLost => "lost its renter",
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
