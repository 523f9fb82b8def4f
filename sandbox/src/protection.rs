//! What truly stands between a job and this machine.
//!
//! Owns: [`EffectiveProtection`], the honest account: what a canary in the very jail that strangers'
//! jobs get could and could not do. Never: sets a layer up, and never reports one that was only hoped
//! for. Called by `potluckd`, which prints it, puts its level into its offers and takes no work
//! without it.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use potluck_protocol::offer::Protection;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command as Process;

use crate::jail::canary::{Attempt, CanaryPlan, CanaryReport};
use crate::jail::{
    CANARY_ARGUMENT, CgroupHad, CgroupVersion, HELPS, JailPlan, Layer, Layers, remedy_when_absent,
};
use crate::text;

/// How long a canary may take; it takes some milliseconds.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// The longest report and the longest log that are read, in bytes.
const MAX_REPORT_BYTES: u64 = 1 << 20;
const MAX_LOG_BYTES: u64 = 4 << 10;

/// What is in force around a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveProtection {
    /// Layers that are in force.
    pub layers: Layers,
    /// The kernel's resource limits that could be had.
    pub cgroup: CgroupHad,
    /// The kernel's Landlock version; 0 when there is none in force.
    pub landlock_abi: u32,
    /// What the canary tried, and how it fared.
    pub attempts: Vec<Attempt>,
    /// Why there is no jail at all.
    pub failure: Option<String>,
}

/// One line of a diagnosis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What the owner can do, when it is not and something is known.
    pub remedy: Option<String>,
}

impl EffectiveProtection {
    /// Sends a canary into the jail of `plan` with the worker program `program`. Never fails: a canary
    /// that cannot be sent or does not report is no protection, and [`Self::failure`] says why. Takes
    /// at most ten seconds.
    pub async fn probe(program: &Path, plan: &JailPlan) -> Self {
        match tokio::time::timeout(PROBE_LIMIT, send_canary(program, plan)).await {
            Ok(Ok(report)) => Self {
                layers: report.layers,
                cgroup: report.cgroup,
                landlock_abi: report.landlock_abi,
                attempts: report.attempts,
                failure: None,
            },
            Ok(Err(why)) => Self::none(why),
            Err(_) => Self::none(format!("the canary said nothing for {} s", PROBE_LIMIT.as_secs())),
        }
    }

    /// The protection of workers that the owner starts without a jail.
    #[must_use]
    pub fn unjailed() -> Self {
        Self::none("the owner switched it off (--unsafe-no-jail)".to_owned())
    }

    fn none(failure: String) -> Self {
        Self {
            layers: Layers::none(),
            cgroup: CgroupHad::default(),
            landlock_abi: 0,
            attempts: Vec::new(),
            failure: Some(failure),
        }
    }

    /// Whether a stranger's job is jailed: every layer is in force, and everything that the canary
    /// tried was denied.
    #[must_use]
    pub fn is_jailed(&self) -> bool {
        self.level() == Protection::Full
    }

    /// The word for it in offers.
    #[must_use]
    pub fn level(&self) -> Protection {
        if self.failure.is_some() || self.layers == Layers::none() {
            return Protection::None;
        }
        let denied = !self.attempts.is_empty() && self.undenied().next().is_none();
        if self.layers.is_full() && denied { Protection::Full } else { Protection::Partial }
    }

    /// What the canary could do.
    fn undenied(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| !attempt.denied)
    }

    /// One line for people: what is there, and what is not.
    #[must_use]
    pub fn summary(&self) -> String {
        if let Some(failure) = &self.failure {
            return format!("no jail: {failure}");
        }
        let names = |on: bool| {
            let listed =
                move |layer: &Layer| self.layers.has(*layer) == on && (on || !self.stood_in_for(*layer));
            let named = Layer::ALL.into_iter().filter(listed).map(|layer| self.layer_name(layer));
            named.collect::<Vec<_>>()
        };
        let (there, absent) = (names(true).join(", "), names(false).join(", no "));
        let outcome = self.outcome();
        match (self.level(), absent.is_empty()) {
            (Protection::Full, _) => format!("jailed: {there}; {outcome}"),
            (_, true) => format!("partly jailed: {there}; {outcome}"),
            (_, false) => format!("partly jailed: {there}; no {absent}; {outcome}"),
        }
    }

    /// Whether the other limit on memory makes this one unnecessary.
    fn stood_in_for(&self, layer: Layer) -> bool {
        match layer {
            Layer::Cgroup => self.layers.watchdog,
            Layer::Watchdog => self.layers.cgroup,
            _ => false,
        }
    }

    fn layer_name(&self, layer: Layer) -> String {
        match layer {
            Layer::Landlock if self.landlock_abi > 0 => format!("Landlock (version {})", self.landlock_abi),
            Layer::Cgroup if self.layers.cgroup => self.cgroup_name(),
            _ => layer.name().to_owned(),
        }
    }

    fn cgroup_name(&self) -> String {
        let version = match self.cgroup.version {
            Some(CgroupVersion::V2) => "cgroup v2",
            Some(CgroupVersion::V1) => "cgroup v1",
            None => "cgroup",
        };
        let parts = [
            (self.cgroup.memory, "memory"),
            (self.cgroup.pids, "threads"),
            (self.cgroup.cpu, "processor time"),
        ];
        let had: Vec<_> = parts.into_iter().filter_map(|(had, name)| had.then_some(name)).collect();
        format!("{version} ({})", had.join(", "))
    }

    fn outcome(&self) -> String {
        let worked: Vec<_> = self.undenied().map(|attempt| attempt.act.as_str()).collect();
        let tried = self.attempts.len();
        match worked.len() {
            0 => format!("{tried} escapes tried, all denied"),
            count => format!("{count} of {tried} escapes were not denied: {}", worked.join(", ")),
        }
    }

    /// The account line by line, with what the owner can do about each that is not as it should be.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        let row = |name: &str, ok: bool, detail: String, remedy: Option<String>| {
            let remedy = remedy.filter(|_| !ok);
            Check { name: name.to_owned(), ok, detail, remedy }
        };
        if let Some(failure) = &self.failure {
            let (detail, remedy) = match failure.split_once(HELPS) {
                Some((detail, remedy)) => (detail, Some(remedy.to_owned())),
                None => (failure.as_str(), None),
            };
            return vec![row("jail", false, detail.to_owned(), remedy)];
        }
        let layers = Layer::ALL.into_iter().map(|layer| {
            let ok = self.layers.has(layer);
            let detail = match layer {
                _ if ok => match self.layer_name(layer) {
                    named if named == layer.name() => "in force".to_owned(),
                    named => named,
                },
                _ if self.stood_in_for(layer) => "not needed: the other memory limit is in force".to_owned(),
                _ => "not in force".to_owned(),
            };
            row(layer.name(), ok || self.stood_in_for(layer), detail, remedy_when_absent(layer))
        });
        let denied = !self.attempts.is_empty() && self.undenied().next().is_none();
        layers.chain([row("canary", denied, self.outcome(), None)]).collect()
    }
}

impl fmt::Display for EffectiveProtection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary())
    }
}

/// Starts the canary and hears its report; the error is a sentence.
async fn send_canary(program: &Path, plan: &JailPlan) -> Result<CanaryReport, String> {
    let failed = |error: io::Error| format!("the canary cannot be sent: {error}");
    let traps = Traps::set().map_err(failed)?;
    let canary = CanaryPlan {
        jail: plan.clone(),
        secrets: secrets(),
        daemon: rustix::process::getpid().as_raw_pid(),
        tcp: traps.tcp.local_addr().map_err(failed)?,
        abstract_socket: traps.abstract_name.clone(),
    };
    let json = serde_json::to_string(&canary).map_err(|error| failed(error.into()))?;
    // Held to the end: when it closes, the launcher takes its worker down.
    let (_ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut child = Process::new(std::path::absolute(program).map_err(failed)?)
        .arg(format!("{CANARY_ARGUMENT}{json}"))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_clear()
        .envs(plan.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (mut report, mut log) = (Vec::new(), Vec::new());
    if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
        let (mut stdout, mut stderr) = (stdout.take(MAX_REPORT_BYTES), stderr.take(MAX_LOG_BYTES));
        let (read, heard) = tokio::join!(stdout.read_to_end(&mut report), stderr.read_to_end(&mut log));
        read.and(heard).map_err(failed)?;
    }
    let status = child.wait().await.map_err(failed)?;
    let words = text::clean(String::from_utf8_lossy(&log).trim(), 1_000);
    match serde_json::from_slice(&report) {
        Ok(report) if status.success() => Ok(report),
        _ if words.is_empty() => Err(format!("the canary did not report ({status})")),
        _ => Err(words),
    }
}

/// What the daemon can read and a worker must not.
fn secrets() -> Vec<PathBuf> {
    let program = std::env::current_exe().ok();
    [std::env::home_dir(), program].into_iter().flatten().collect()
}

/// Doors of the daemon's that are open while the canary tries them.
struct Traps {
    tcp: TcpListener,
    abstract_name: String,
    _abstract_door: UnixListener,
}

impl Traps {
    fn set() -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let abstract_name = format!("potluck-canary-{}-{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(&abstract_name)?;
        Ok(Self {
            tcp: TcpListener::bind(("127.0.0.1", 0))?,
            _abstract_door: UnixListener::bind_addr(&address)?,
            abstract_name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> EffectiveProtection {
        let attempt = Attempt { act: "read /root".into(), denied: true, how: "No such file".into() };
        EffectiveProtection {
            layers: Layers { watchdog: false, ..Layers::all() },
            cgroup: CgroupHad { version: Some(CgroupVersion::V2), memory: true, pids: true, cpu: false },
            landlock_abi: 7,
            attempts: vec![attempt],
            failure: None,
        }
    }

    #[test]
    fn every_layer_and_every_denial_make_a_jail() {
        let full = full();
        assert!(full.is_jailed());
        assert_eq!(
            full.summary(),
            "jailed: namespaces, empty root, Landlock (version 7), seccomp, dropped capabilities, \
             rlimits, cgroup v2 (memory, threads), named descriptors; 1 escapes tried, all denied"
        );
        assert!(full.checks().iter().all(|check| check.ok && check.remedy.is_none()));
    }

    #[test]
    fn one_missing_layer_one_success_or_no_attempt_is_no_full_jail() {
        for layer in [Layer::Landlock, Layer::Seccomp, Layer::Namespaces, Layer::Cgroup] {
            let mut some = full();
            some.layers = some.layers.without(layer);
            assert_eq!(some.level(), Protection::Partial, "{layer}");
            assert!(some.summary().contains(&format!("no {layer}")), "{some}");
            let missing: Vec<_> = some.checks().into_iter().filter(|check| !check.ok).collect();
            assert!(!missing.is_empty() && missing.iter().any(|check| check.name == layer.name()));
        }
        let mut escaped = full();
        escaped.attempts[0].denied = false;
        assert_eq!(escaped.level(), Protection::Partial);
        assert!(escaped.summary().contains("1 of 1 escapes were not denied: read /root"));
        assert_eq!(EffectiveProtection { attempts: vec![], ..full() }.level(), Protection::Partial);
    }

    #[test]
    fn no_jail_says_why_and_what_helps() {
        let unsafe_one = EffectiveProtection::unjailed();
        assert_eq!(unsafe_one.level(), Protection::None);
        assert!(unsafe_one.summary().contains("--unsafe-no-jail"));
        let none = EffectiveProtection::none(format!("cannot (Landlock: x){HELPS}a newer kernel"));
        let [check] = none.checks().try_into().unwrap();
        assert_eq!(
            (check.detail.as_str(), check.remedy.as_deref()),
            ("cannot (Landlock: x)", Some("a newer kernel"))
        );
    }
}
