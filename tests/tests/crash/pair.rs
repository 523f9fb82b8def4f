//! One provider and one renter, real programs, of which one is killed at a chosen moment.
//!
//! Owns: their state folders, the provider's process through all its lives, and what was seen of each job
//! from outside. Never: judges anything (see [`crate::audit`]) or outlives a test. Called by the matrix
//! and by the random kills.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use potluck_node::fault;
use potluck_tests::error::KitError;
use potluck_tests::ledgers;
use potluck_tests::network::{LOOPBACK, Network, log_of};
use potluck_tests::process::Process;
use potluck_tests::programs::MODEL;
use potluck_tests::renter::{Ended, JOB, Renter};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::sleep_until;

/// What the provider asks, in dollars an hour.
const PRICE: &str = "0.04";
/// The owner trusts this renter with an hour: its lanes stay open for a while after each kill.
const CONFIG: &str = "new_peer_credit = 3600\n";
/// What one job may cost: about 45 seconds.
const BUDGET: &str = "0.0005";
/// How long a provider may take until it is found.
const START: Duration = Duration::from_secs(60);
/// What is told of a program that was killed.
const KILLED: &str = "signal: 9";
/// A program that is to die dies within this time after the other side is done with it.
const DEATH: Duration = Duration::from_secs(10);
/// What a program has written is read in this time.
pub(crate) const SAID: Duration = Duration::from_millis(200);
/// A provider gives up a renter that is gone in this time.
const CLOSING: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Renter,
    Provider,
}

/// One `potluck run`, and who is killed in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Job {
    /// Tokens to ask for.
    pub(crate) tokens: u32,
    /// The renter's fault point.
    pub(crate) fault: Option<String>,
    /// Who is killed, so long after the renter's start.
    pub(crate) kill: Option<(Who, Duration)>,
    /// Is the provider to die in this job?
    pub(crate) dies: bool,
    /// The fault point of the provider that is started when this one dies.
    pub(crate) heir: Option<String>,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) ended: Ended,
    pub(crate) provider_died: bool,
}

impl Run {
    pub(crate) fn renter_died(&self) -> bool {
        self.ended.status.signal() == Some(9)
    }

    /// Did the job go well?
    pub(crate) fn is_done(&self) -> bool {
        self.ended.code() == Some(0)
    }
}

/// What was seen of the jobs, besides what the ledgers say. Jobs by their name.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Tokens that the renter printed.
    pub(crate) printed: BTreeMap<String, u32>,
    /// The longest operation of a worker in milliseconds, as far as a renter lived to see it: up to the first
    /// token, or from one to the next.
    pub(crate) operation: u64,
    /// Worker time in milliseconds, as the provider said at the end of a job that gave any token: what came
    /// before the first is one operation, in flight.
    pub(crate) worked: BTreeMap<String, u64>,
    /// The same where the provider died: from the job's begin to that, stalls among it.
    pub(crate) outlived: BTreeMap<String, u64>,
    /// Jobs that the living provider has taken and not ended.
    open: BTreeSet<String>,
}

pub(crate) struct Pair {
    pub(crate) renter: Renter,
    pub(crate) provider_state: PathBuf,
    pub(crate) seen: Seen,
    network: Network,
    provider: Option<Process>,
    provider_peer: String,
    listen: String,
}

impl Pair {
    /// A bootstrap, a renter, and a provider that is not started yet.
    pub(crate) async fn new() -> Result<Self, KitError> {
        let network = Network::start().await?;
        let provider_state = network.folder("provider")?;
        std::fs::write(provider_state.join("potluckd.toml"), CONFIG)
            .map_err(|source| KitError::Io { action: "write potluckd.toml".into(), source })?;
        Ok(Self {
            renter: network.renter("renter")?,
            provider_state,
            seen: Seen::default(),
            provider: None,
            provider_peer: String::new(),
            listen: LOOPBACK.to_owned(),
            network,
        })
    }

    /// Starts the provider, to die at `fault`.
    pub(crate) async fn provide(&mut self, fault: Option<&str>) -> Result<(), KitError> {
        let state = &self.provider_state;
        let mut command = self.network.provider_command_at(&self.listen, state, MODEL, PRICE)?;
        command.arg("--json");
        if let Some(fault) = fault {
            command.env(fault::VARIABLE, fault);
        }
        let mut process = Process::start("potluckd", command, &log_of(state))?;
        let listening = process.event("listening", START).await?;
        let address = listening["addresses"][0].as_str().unwrap_or_default();
        // The next one listens there again, where the network remembers it.
        self.listen = address.split("/p2p/").next().unwrap_or_default().to_owned();
        self.provider_peer = listening["peer"].as_str().unwrap_or_default().to_owned();
        process.event("joined", START).await?;
        self.provider = Some(process);
        Ok(())
    }

    /// Starts the next provider. One that is to die at `fault` may pass it before it is there; then the one
    /// after it lives.
    async fn inherit(&mut self, fault: Option<&str>) -> Result<(), KitError> {
        match self.provide(fault).await {
            Err(KitError::Ended { log, .. }) if fault.is_some() && log.contains(KILLED) => {
                self.provide(None).await
            }
            begun => begun,
        }
    }

    /// Ends the provider as a power loss of its process would.
    pub(crate) async fn kill_provider(&mut self) -> Result<(), KitError> {
        if let Some(provider) = &self.provider {
            provider.signal(Signal::KILL)?;
        }
        self.provider_died(DEATH).await.map(drop)
    }

    /// What the provider has written to its stderr.
    pub(crate) fn provider_stderr(&self) -> String {
        self.provider.as_ref().map(Process::stderr).unwrap_or_default()
    }

    /// The owner says that the renter paid `amount` nano-credits: it counts when the two next meet.
    pub(crate) async fn paid(&self, amount: u64, reference: &str) -> Result<(), KitError> {
        let us = ledgers::ask("potluck", "balance", self.renter.state()).await?;
        let us = us.first().and_then(|line| line["peer"].as_str()).unwrap_or_default().to_owned();
        let amount = format!("0.{amount:09}");
        let (code, answer) =
            ledgers::settle(&self.provider_state, &[&us, "--amount", &amount, "--ref", reference]).await?;
        if code == Some(0) {
            return Ok(());
        }
        let (program, line) = ("potluckd ledger settle".into(), answer.to_string());
        Err(KitError::Unreadable { program, line, why: format!("it ended with {code:?}") })
    }

    /// Waits for the provider's death; whether it died.
    pub(crate) async fn provider_died(&mut self, within: Duration) -> Result<bool, KitError> {
        let Some(provider) = &mut self.provider else { return Ok(true) };
        let Ok(status) = provider.exit(within).await else { return Ok(false) };
        self.buried(status.signal()).await?;
        Ok(true)
    }

    /// The provider is dead: what it said until then is read.
    async fn buried(&mut self, signal: Option<i32>) -> Result<(), KitError> {
        self.hear(DEATH).await;
        self.seen.open.clear();
        let Some(provider) = self.provider.take() else { return Ok(()) };
        if signal == Some(9) {
            return Ok(());
        }
        let (program, what, log) = ("potluckd".into(), "be killed".into(), provider.stderr());
        Err(KitError::Ended { program, what, log })
    }

    /// Takes in what the provider has said of its jobs, until it is silent for `patience` or dead.
    pub(crate) async fn hear(&mut self, patience: Duration) {
        let Some(provider) = &mut self.provider else { return };
        while let Ok(Some(event)) = provider.next_event(patience).await {
            self.seen.provider_said(&event);
        }
    }

    /// Runs a job until the renter's program ends, by itself or not.
    pub(crate) async fn rent(&mut self, job: &Job) -> Result<Run, KitError> {
        let tokens = job.tokens.to_string();
        let flags = ["--max-tokens", &tokens, "--budget", BUDGET, "--provider", &self.provider_peer];
        let mut command = self.renter.command(MODEL, "Tell me a very long story about a fox.", &flags)?;
        command.arg("--json");
        if let Some(fault) = &job.fault {
            command.env(fault::VARIABLE, fault);
        }
        let mut renter = Process::start("potluck", command, &log_of(self.renter.state()))?;
        let mut kill = job.kill.map(|(who, after)| (who, tokio::time::Instant::now() + after));
        let (mut events, mut begun, mut provider_died) = (Vec::new(), None, false);
        let mut worked_since = Instant::now();
        loop {
            let due = kill.map_or_else(tokio::time::Instant::now, |(_, due)| due);
            tokio::select! {
                event = renter.next_event(JOB) => match event? {
                    Some(event) => {
                        if event["event"] == "accepted" {
                            begun = Some((name_of(&event), Instant::now()));
                        }
                        if let (true, Some((_, begun))) = (event["phase"] == "queued", &mut begun) {
                            *begun = Instant::now();
                        }
                        if event["event"] == "output" {
                            self.seen.operation = self.seen.operation.max(millis(worked_since.elapsed()));
                        }
                        if event["phase"] != "run" {
                            worked_since = Instant::now();
                        }
                        events.push(event);
                    }
                    None => break,
                },
                signal = death(&mut self.provider), if !provider_died => {
                    if let Some((job, begun)) = begun.take() {
                        self.seen.outlived.insert(job, millis(begun.elapsed()));
                    }
                    self.buried(signal).await?;
                    provider_died = true;
                    self.inherit(job.heir.as_deref()).await?;
                }
                () = sleep_until(due), if kill.is_some() => match kill.take() {
                    Some((Who::Renter, _)) => renter.signal(Signal::KILL)?,
                    _ => self.provider.iter().try_for_each(|provider| provider.signal(Signal::KILL))?,
                },
            }
        }
        let status = renter.exit(JOB).await?;
        let ended = Ended { status, events, stderr: renter.stderr() };
        self.note(&ended);
        if let (Some((Who::Provider, _)), Some(provider)) = (kill, &self.provider) {
            provider.signal(Signal::KILL)?;
        }
        if job.dies && !provider_died {
            provider_died = self.provider_died(DEATH).await?;
            if provider_died {
                self.inherit(job.heir.as_deref()).await?;
            }
        }
        Ok(Run { ended, provider_died })
    }

    fn note(&mut self, ended: &Ended) {
        let tokens = ended.events.iter().filter(|event| event["event"] == "output");
        let tokens = tokens.filter_map(|event| event["tokens"].as_u64()).sum::<u64>();
        if let Some(job) = ended.events.iter().find(|event| event["event"] == "accepted") {
            self.seen.printed.insert(name_of(job), u32::try_from(tokens).unwrap_or(u32::MAX));
        }
    }

    /// Waits until the provider has ended all jobs that it took.
    pub(crate) async fn until_all_ended(&mut self) -> Result<(), KitError> {
        self.hear(SAID).await;
        while !self.seen.open.is_empty() {
            let Some(provider) = &mut self.provider else { return Ok(()) };
            match provider.next_event(CLOSING).await? {
                Some(event) => self.seen.provider_said(&event),
                None => return Ok(()),
            }
        }
        Ok(())
    }
}

impl Seen {
    fn provider_said(&mut self, event: &Value) {
        let job = name_of(event);
        match event["state"].as_str() {
            Some("accepted") => drop(self.open.insert(job)),
            Some("closed") => {
                self.open.remove(&job);
                if event["completion_tokens"] == 0 {
                    return;
                }
                self.worked.insert(job, event["worked_ms"].as_u64().unwrap_or_default());
            }
            _ => {}
        }
    }
}

fn name_of(event: &Value) -> String {
    event["job"].as_str().unwrap_or_default().to_owned()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The end of a process, and the signal that brought it; never, when there is none.
async fn death(process: &mut Option<Process>) -> Option<i32> {
    match process {
        Some(process) => process.exit(Duration::MAX / 4).await.ok().and_then(|status| status.signal()),
        None => std::future::pending().await,
    }
}
