//! The jail as it is, seen from outside: who the worker is, what ends it, and what is left of it.
//!
//! Owns: the promises that are not about an escape: the kernel's own account of the process inside,
//! the account that the canary gives, the memory limits, and that nothing stays behind. Never: fakes
//! the worker or a layer. (What an escaped worker can do is tried in `escape`.)

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]

#[path = "common/model.rs"]
mod model;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use potluck_protocol::offer::Protection;
use potluck_sandbox::engine::DeviceChoice;
use potluck_sandbox::exit::WorkerExit;
use potluck_sandbox::jail::{CgroupVersion, Jail, JailPlan, Layer};
use potluck_sandbox::protection::EffectiveProtection;
use potluck_sandbox::supervisor::{StartError, Worker, WorkerLimits, WorkerSpec};
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_potluck-gpu-worker");
const NOBODY: u32 = 65_534;

fn plan() -> JailPlan {
    JailPlan::cpu(100 << 20, 2)
}

/// A jailed worker that waits for its first command, and the daemon's end of its socket.
struct Bare {
    launcher: Child,
    socket: UnixStream,
    worker: u32,
}

impl Bare {
    fn start(program: &Path, plan: &JailPlan, user: Option<u32>) -> Self {
        let (mut socket, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(program);
        command
            .arg(Jail::Jailed(Box::new(plan.clone())).argument())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(File::open("/dev/null").unwrap())
            .stderr(Stdio::null())
            .env_clear()
            .current_dir("/");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let launcher = command.spawn().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The first event: it is inside, and sealed.
        let mut head = [0; 4];
        socket.read_exact(&mut head).unwrap();
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", launcher.id())).unwrap();
        let worker = children.trim().parse().expect("the launcher has one child");
        Self { launcher, socket, worker }
    }

    /// The kernel's account of the worker.
    fn status(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.worker)).unwrap();
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It has ended already in the tests that are about that.
        let _ = self.launcher.kill();
        let _ = self.launcher.wait();
    }
}

fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

fn gone_within(pid: u32, limit: Duration) -> bool {
    let begun = Instant::now();
    while is_running(pid) {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn the_process_inside_is_nobody_alone_and_without_powers() {
    let bare = Bare::start(Path::new(PROGRAM), &plan(), None);
    let status = bare.status();
    let field = |name: &str| status.get(name).map(String::as_str).unwrap_or_default();
    if is_root() {
        assert_eq!(field("Uid"), format!("{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}"));
        assert_eq!(field("Gid"), format!("{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}"));
        assert_eq!(field("Groups"), "");
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1", "2"));
    // First of its own namespace.
    assert!(field("NSpid").ends_with("\t1"), "{}", field("NSpid"));
    let (mine, its) = (rustix::process::getpid().as_raw_pid().unsigned_abs(), bare.worker);
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        if let Ok(inside) = of(its) {
            assert_ne!(inside, of(mine).unwrap(), "{kind}");
        } else {
            // Another user's process: root may look, others may not.
            assert!(!is_root(), "{kind}");
        }
    }
    if is_root() {
        let limits = fs::read_to_string(format!("/proc/{its}/limits")).unwrap();
        let limit = |name: &str| {
            let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].split_whitespace().take(2).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(limit("Max core file size"), "0 0");
        assert_eq!(limit("Max open files"), "256 256");
        assert_eq!(limit("Max processes"), "64 64");
        // Nothing in the root, and only the three descriptors and copies of them.
        assert_eq!(fs::read_dir(format!("/proc/{its}/root")).unwrap().count(), 0);
        for descriptor in fs::read_dir(format!("/proc/{its}/fd")).unwrap() {
            let target = fs::read_link(descriptor.unwrap().path()).unwrap();
            let target = target.to_string_lossy();
            assert!(target.starts_with("socket:") || target == "/dev/null", "{target}");
        }
    }
}

#[test]
fn a_killed_launcher_takes_the_worker_along() {
    let mut bare = Bare::start(Path::new(PROGRAM), &plan(), None);
    bare.launcher.kill().unwrap();
    assert!(gone_within(bare.worker, Duration::from_secs(1)));
}

#[test]
fn a_killed_worker_is_the_launchers_death_too() {
    use std::os::unix::process::ExitStatusExt as _;
    let mut bare = Bare::start(Path::new(PROGRAM), &plan(), None);
    let worker = Pid::from_raw(i32::try_from(bare.worker).unwrap()).unwrap();
    kill_process(worker, Signal::KILL).unwrap();
    assert_eq!(bare.launcher.wait().unwrap().signal(), Some(9));
}

#[test]
fn a_gone_daemon_ends_both_even_when_the_worker_does_not_listen() {
    let mut bare = Bare::start(Path::new(PROGRAM), &plan(), None);
    let worker = Pid::from_raw(i32::try_from(bare.worker).unwrap()).unwrap();
    // Stopped, it cannot notice by itself.
    kill_process(worker, Signal::STOP).unwrap();
    bare.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(gone_within(bare.worker, Duration::from_secs(1)));
    bare.launcher.wait().unwrap();
}

#[test]
fn a_term_ends_both_and_leaves_no_cgroup() {
    let mut bare = Bare::start(Path::new(PROGRAM), &plan(), None);
    let groups = cgroups_of(bare.worker);
    let launcher = Pid::from_raw(i32::try_from(bare.launcher.id()).unwrap()).unwrap();
    kill_process(launcher, Signal::TERM).unwrap();
    bare.launcher.wait().unwrap();
    assert!(!is_running(bare.worker));
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
}

/// The folders of ours that a process is in.
fn cgroups_of(pid: u32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let ours = text.lines().filter(|line| line.contains("potluck-worker-"));
    let folder = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        ["", "unified"]
            .into_iter()
            .chain([names])
            .map(|mount| Path::new("/sys/fs/cgroup").join(mount).join(path))
            .find(|p| p.is_dir())
    };
    ours.filter_map(folder).collect()
}

#[test]
fn a_folder_that_a_killed_launcher_left_is_removed_by_the_next() {
    let mut killed = Bare::start(Path::new(PROGRAM), &plan(), None);
    let left = cgroups_of(killed.worker);
    killed.launcher.kill().unwrap();
    assert!(gone_within(killed.worker, Duration::from_secs(1)));
    killed.launcher.wait().unwrap();
    let begun = Instant::now();
    // The kernel empties the folder a moment after the last process has ended.
    while left.iter().any(|folder| folder.exists()) && begun.elapsed() < Duration::from_secs(10) {
        drop(Bare::start(Path::new(PROGRAM), &plan(), None));
    }
    assert!(left.iter().all(|folder| !folder.exists()), "{left:?}");
}

#[test]
fn a_user_without_privileges_gets_the_same_jail() {
    if !is_root() {
        // Then every other test here is this one.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("worker");
    fs::copy(PROGRAM, &program).unwrap();
    let user = 54_321;
    let bare = Bare::start(&program, &plan(), Some(user));
    let status = bare.status();
    assert_eq!(status["Uid"], format!("{user}\t{user}\t{user}\t{user}"));
    assert_eq!(
        (status["CapEff"].as_str(), status["CapBnd"].as_str()),
        ("0000000000000000", "0000000000000000")
    );
    assert_eq!((status["Seccomp"].as_str(), status["NoNewPrivs"].as_str()), ("2", "1"));
    assert!(status["NSpid"].ends_with("\t1"));
    assert_eq!(fs::read_dir(format!("/proc/{}/root", bare.worker)).unwrap().count(), 0);
}

#[tokio::test]
async fn the_canary_finds_the_whole_jail_and_every_gap_in_it() {
    let program = Path::new(PROGRAM);
    let full = EffectiveProtection::probe(program, &plan()).await;
    assert_eq!(full.level(), Protection::Full, "{full}");
    assert!(full.attempts.len() > 30 && full.landlock_abi > 0);
    assert!(full.checks().iter().all(|check| check.ok), "{:?}", full.checks());

    for layer in [Layer::Seccomp, Layer::Landlock, Layer::Root, Layer::Capabilities, Layer::Rlimits] {
        let mut gap = plan();
        gap.layers = gap.layers.without(layer);
        let partial = EffectiveProtection::probe(program, &gap).await;
        assert_eq!(partial.level(), Protection::Partial, "{layer}: {partial}");
        assert!(!partial.layers.has(layer));
    }
    let mut open = plan();
    open.layers = open.layers.without(Layer::Seccomp);
    let without_seccomp = EffectiveProtection::probe(program, &open).await;
    assert!(without_seccomp.attempts.iter().any(|attempt| !attempt.denied), "{without_seccomp}");

    let mut recording = plan();
    recording.record = true;
    assert_eq!(EffectiveProtection::probe(program, &recording).await.level(), Protection::Partial);

    let none = EffectiveProtection::probe(Path::new("/no/such/program"), &plan()).await;
    assert_eq!(none.level(), Protection::None);
    let mut other = plan();
    other.profile = potluck_sandbox::jail::Profile::Wasm;
    assert_eq!(EffectiveProtection::probe(program, &other).await.level(), Protection::None);
}

/// Starts a worker whose model does not fit into its memory.
async fn starved(change: impl FnOnce(&mut JailPlan)) -> StartError {
    let mut plan = plan();
    plan.limits.memory_bytes = 60 << 20;
    change(&mut plan);
    let spec = WorkerSpec {
        program: PathBuf::from(PROGRAM),
        model: model::model(),
        device: DeviceChoice::Cpu,
        threads: Some(2),
        jail: Jail::Jailed(Box::new(plan)),
        limits: WorkerLimits { load_timeout: Duration::from_secs(60), ..WorkerLimits::default() },
    };
    Worker::start(spec, |_, _| {}).await.expect_err("it does not fit")
}

#[tokio::test]
async fn too_much_memory_is_a_death_that_says_so() {
    let died_of_memory = |error: &StartError| {
        let StartError::Died { death } = error else { return false };
        death.code == Some(i32::from(WorkerExit::Memory.code())) && death.last_words.contains("60 MiB")
    };
    // By the watchdog.
    let error = starved(|plan| plan.layers = plan.layers.without(Layer::Cgroup)).await;
    assert!(died_of_memory(&error), "{error}");
    // By the kernel, where it lends a limit.
    let had = EffectiveProtection::probe(Path::new(PROGRAM), &plan()).await.cgroup;
    if had.memory {
        let error = starved(|plan| plan.layers = plan.layers.without(Layer::Watchdog)).await;
        assert!(died_of_memory(&error), "{error}");
        assert!(matches!(had.version, Some(CgroupVersion::V1 | CgroupVersion::V2)));
    }
}

#[tokio::test]
async fn a_jail_that_cannot_be_had_is_a_typed_error() {
    let error = starved(|plan| {
        plan.binds.push(potluck_sandbox::jail::Bind {
            source: "/no/such/device".into(),
            target: "/dev/nvidia0".into(),
            kind: potluck_sandbox::jail::BindKind::Device,
        });
    })
    .await;
    let StartError::Jail { what } = &error else { panic!("{error}") };
    assert!(what.contains("empty root: opening /no/such/device"), "{what}");
}
