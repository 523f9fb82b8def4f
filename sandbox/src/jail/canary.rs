//! The canary: a worker that tries what an escaped one would try, from inside the same jail.
//!
//! Owns: the list of forbidden acts and the report on each. Never: does harm when an act works, runs
//! a stranger's bytes, or says "denied" about what it did not try. Called by [`super::start`] in a
//! process that the daemon starts with [`super::CANARY_ARGUMENT`] before it takes work, and read by
//! [`crate::protection`].

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

use super::cgroup::CgroupHad;
use super::layers::Layers;
use super::plan::{JailPlan, Profile};
use super::sys::{self, RawAct};
use super::{Inside, JailError, seccomp};

/// What the canary is to try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryPlan {
    /// The jail to try it in.
    pub jail: JailPlan,
    /// Files and folders that the daemon can read and a worker must not.
    pub secrets: Vec<PathBuf>,
    /// The daemon's process number.
    pub daemon: i32,
    /// A port that the daemon listens on while the canary sings.
    pub tcp: SocketAddr,
    /// The name of an abstract socket that the daemon listens on meanwhile.
    pub abstract_socket: String,
}

/// One forbidden act and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What was tried, in a few words.
    pub act: String,
    /// Whether it was refused.
    pub denied: bool,
    /// The system's answer.
    pub how: String,
}

/// What the canary found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryReport {
    /// Every act.
    pub attempts: Vec<Attempt>,
    /// The layers that are in force.
    pub layers: Layers,
    /// The kernel's resource limits that could be had.
    pub cgroup: CgroupHad,
    /// The kernel's Landlock version; 0 when it is left out.
    pub landlock_abi: u32,
}

/// Seals the jail, tries everything, reports on descriptor 1 and ends. Returns only when the jail
/// cannot be sealed.
pub(super) fn sing(plan: &CanaryPlan, inside: &Inside) -> JailError {
    if let Err(error) = inside.seal(seccomp::Hostile::Refuse) {
        return error;
    }
    let report = CanaryReport {
        attempts: attempts(plan),
        layers: inside.layers(),
        cgroup: inside.cgroup,
        landlock_abi: inside.landlock_abi,
    };
    let written = serde_json::to_vec(&report).map_err(io::Error::from);
    let written = written.and_then(|json| io::stdout().write_all(&json).and_then(|()| io::stdout().flush()));
    sys::exit_now(u8::from(written.is_err()))
}

/// Tries everything, the acts that would change this process last.
fn attempts(plan: &CanaryPlan) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut note = |act: String, outcome: Outcome| {
        attempts.push(Attempt { act, denied: outcome.denied, how: outcome.how });
    };
    for secret in &plan.secrets {
        note(format!("read {}", secret.display()), tried(read(secret)));
    }
    for path in
        ["/etc/shadow", "/proc/1/environ", "/dev/mem", "/dev/kmsg", "/dev/dri/card0", "/dev/nvidia-modeset"]
    {
        note(format!("open {path}"), tried(File::open(path)));
    }
    for path in ["/canary", "/tmp/canary", "/dev/shm/canary"] {
        note(format!("write {path}"), tried(File::create(path)));
    }
    note("connect to the daemon's TCP port".into(), tried(TcpStream::connect(plan.tcp)));
    note("connect to the daemon's abstract socket".into(), tried(connect(&plan.abstract_socket)));
    note("make a Unix socket".into(), tried(UnixStream::pair()));
    for (name, family, kind) in [
        ("UDP", libc::AF_INET, libc::SOCK_DGRAM),
        ("UDP over IPv6", libc::AF_INET6, libc::SOCK_DGRAM),
        ("netlink", libc::AF_NETLINK, libc::SOCK_RAW),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW),
        ("kernel crypto", libc::AF_ALG, libc::SOCK_SEQPACKET),
    ] {
        note(format!("make a {name} socket"), forbidden(RawAct::Socket(family, kind)));
    }
    if let Some(daemon) = Pid::from_raw(plan.daemon) {
        note("see the daemon's process".into(), tried(test_kill_process(daemon)));
        note("debug the daemon".into(), forbidden(RawAct::Ptrace(daemon)));
        note("read the daemon's memory".into(), forbidden(RawAct::ReadMemory(daemon)));
    }
    for (name, act) in raw_acts(plan.jail.profile) {
        note(name.to_owned(), forbidden(act));
    }
    attempts
}

/// Acts of one system call. Only CUDA's driver may make anonymous files.
fn raw_acts(profile: Profile) -> Vec<(&'static str, RawAct)> {
    let mut acts = vec![
        ("use the keyring", RawAct::Keyring),
        ("load a program into the kernel", RawAct::Bpf),
        ("open an io_uring", RawAct::IoUring),
        ("handle page faults", RawAct::UserFaults),
        ("open a performance counter", RawAct::PerfEvent),
        ("map writable executable memory", RawAct::ExecutableMemory),
        ("run a program", RawAct::Execute),
        ("start another process", RawAct::Fork),
        ("mount a file system", RawAct::Mount),
        ("become root", RawAct::BecomeRoot),
        ("make a user namespace", RawAct::UserNamespace),
    ];
    if profile != (Profile::Gpu { cuda: true }) {
        acts.push(("make an anonymous file", RawAct::AnonymousFile));
    }
    acts
}

fn read(secret: &PathBuf) -> io::Result<()> {
    // A folder is read by listing it.
    fs::read_dir(secret).map(drop).or_else(|_| File::open(secret).map(drop))
}

fn connect(name: &str) -> io::Result<UnixStream> {
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    UnixStream::connect_addr(&address)
}

struct Outcome {
    denied: bool,
    how: String,
}

/// An act that is denied however it fails.
fn tried<T, E: std::fmt::Display>(result: Result<T, E>) -> Outcome {
    match result {
        Ok(_) => Outcome { denied: false, how: "it worked".to_owned() },
        Err(error) => Outcome { denied: true, how: error.to_string() },
    }
}

/// A call that is denied when the kernel refuses it, and not when it was let through to where its
/// arguments are found to be empty.
fn forbidden(act: RawAct) -> Outcome {
    match sys::attempt(act) {
        Ok(()) => Outcome { denied: false, how: "it worked".to_owned() },
        Err(error) => {
            let denied = error.raw_os_error().is_some_and(|errno| REFUSALS.contains(&errno));
            Outcome { denied, how: error.to_string() }
        }
    }
}

/// Not permitted, no such call, no such process to be seen, no such network, none left to be had.
const REFUSALS: [i32; 6] =
    [libc::EPERM, libc::EACCES, libc::ENOSYS, libc::ESRCH, libc::EAFNOSUPPORT, libc::ENOSPC];
