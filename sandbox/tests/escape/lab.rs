//! The place where hostile workers are let loose.
//!
//! Owns: what they must not reach (a home, another process, listeners, descriptors left open by a
//! careless parent), starting one for one act, and telling how it ended. Never: judges. Called by the
//! suite and by the mutation run.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use potluck_sandbox::exit::WorkerExit;
use potluck_sandbox::jail::{Jail, JailPlan, Layers, Profile};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, WaitOptions, set_child_subreaper, waitpid};
use tempfile::TempDir;

use super::acts::{Act, Errno, TEMPORARY, Target, temporary_file};
use super::hostile::{ACT, Said, TARGET};
use super::{raw, victim};

/// Memory that a jailed hostile may use, in bytes.
pub(crate) const MEMORY_LIMIT: usize = 256 << 20;
/// Threads and processes that a jailed hostile may have.
pub(crate) const PIDS_LIMIT: usize = 64;
/// The longest that one act may take; no act takes a tenth of it.
const ACT_LIMIT: Duration = Duration::from_secs(40);
/// How long what an act left behind may take to be gone.
const CLEAN_LIMIT: Duration = Duration::from_secs(5);

/// How an act ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It worked.
    Got(String),
    /// The system refused.
    Refused(Errno),
    /// The process was ended by this signal in the middle of it.
    Killed(i32),
    /// The process was ended for its use of memory, as its launcher says.
    TooMuchMemory,
    /// The process ended without a word, with this code.
    Ended(i32),
    /// It had not ended when the lab's patience did.
    Endless,
    /// The jail did not stand, so nothing was tried.
    NoJail(String),
}

impl Outcome {
    /// Whether the act was tried and did not work.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Killed(_) | Self::TooMuchMemory)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Got(what) => write!(f, "it worked: {what}"),
            Self::Refused(error) => write!(f, "{error}"),
            Self::Killed(libc::SIGSYS) => f.write_str("SIGSYS"),
            Self::Killed(libc::SIGKILL) => f.write_str("SIGKILL"),
            Self::Killed(libc::SIGXFSZ) => f.write_str("SIGXFSZ"),
            Self::Killed(signal) => write!(f, "signal {signal}"),
            Self::TooMuchMemory => f.write_str("killed for its memory"),
            Self::Ended(code) => write!(f, "it ended with {code}"),
            Self::Endless => f.write_str("it did not end"),
            Self::NoJail(why) => write!(f, "no jail: {why}"),
        }
    }
}

/// The kinds of workers, each with its own jail.
pub(crate) const PROFILES: [(&str, Profile); 4] = [
    ("gpu", Profile::Gpu { cuda: false }),
    ("cuda", Profile::Gpu { cuda: true }),
    ("wasm", Profile::Wasm),
    ("compile", Profile::Compile),
];

/// The jail of a worker of this kind, with low ceilings.
pub(crate) fn plan(profile: Profile, layers: Layers) -> JailPlan {
    let mut plan = match profile {
        Profile::Gpu { .. } => JailPlan::cpu(0, 1),
        Profile::Wasm => JailPlan::wasm(0),
        Profile::Compile => JailPlan::compile(),
    };
    plan.profile = profile;
    // A card's worker without a card: all of its jail but the device nodes.
    plan.procfs = profile == Profile::Gpu { cuda: true };
    plan.layers = layers;
    plan.limits.memory_bytes = u64::try_from(MEMORY_LIMIT).unwrap_or(u64::MAX);
    plan.limits.pids = u32::try_from(PIDS_LIMIT).unwrap_or(u32::MAX);
    plan
}

/// What hostile workers are let loose on.
pub(crate) struct Lab {
    home: TempDir,
    program: PathBuf,
    target: Target,
    victim: Child,
    terminal: Terminal,
    /// Open, and left to every child: the lab is a careless parent.
    _leftovers: Vec<OwnedFd>,
    listeners: Listeners,
    segment: i32,
    root: bool,
}

impl Lab {
    /// Makes the place.
    pub(crate) fn new() -> io::Result<Self> {
        // Whatever a worker leaves behind becomes the lab's own child, and is seen.
        set_child_subreaper(Some(rustix::process::getpid()))?;
        let program = std::env::current_exe()?;
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let at = |name: &str| home.path().join(name);
        let secret = format!("potluck-secret-{:08x}", std::process::id());
        fs::write(at("secret"), &secret)?;
        fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o600))?;
        fs::write(at("model"), "GGUF, as far as anybody looks")?;
        fs::create_dir(at("mount"))?;
        let (victim, victim_address) = victim::start(&program, &secret)?;
        let name = format!("potluck-escape-{}", std::process::id());
        let listeners = Listeners::new(&at("s"), &name)?;
        let target = Target {
            own_root: false,
            folder: home.path().to_path_buf(),
            secret_file: at("secret"),
            victim: i32::try_from(victim.id()).unwrap_or(-1),
            victim_address,
            parent: i32::try_from(std::process::id()).unwrap_or(-1),
            tcp: listeners.tcp.local_addr()?.port(),
            udp: listeners.udp.local_addr()?.port(),
            unix: at("s"),
            abstract_name: name,
            segment: i32::try_from(std::process::id()).unwrap_or(1) | 0x7000_0000,
            host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            interface: interface()?,
            secret,
        };
        Ok(Self {
            program,
            victim,
            terminal: Terminal::open()?,
            _leftovers: leftovers(home.path())?,
            listeners,
            segment: raw::make_segment(target.segment, target.secret.as_bytes())?,
            target,
            root: rustix::process::geteuid().is_root(),
            home,
        })
    }

    /// The folder with everything in it.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// This program.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Whether the suite runs as root.
    pub(crate) fn is_root(&self) -> bool {
        self.root
    }

    /// Lets a hostile worker do `act` in `jail`.
    pub(crate) fn run(&self, act: &Act, jail: &Jail) -> io::Result<Outcome> {
        let own_root = matches!(jail, Jail::Jailed(plan) if plan.layers.root);
        let target = Target { own_root, ..self.target.clone() };
        let (ours, theirs) = UnixStream::pair()?;
        let mut child = Command::new(&self.program)
            .arg(jail.argument())
            .env_clear()
            .env(ACT, act.name)
            .env(TARGET, serde_json::to_string(&target)?)
            .current_dir(self.home())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(File::open(self.home().join("model"))?))
            .stderr(Stdio::from(self.terminal.end.try_clone()?))
            .process_group(0)
            .spawn()?;
        let deadline = Instant::now() + ACT_LIMIT;
        let said = listen(&ours, deadline)?;
        // After its last word it has nothing left to do; without one it is dead or will be.
        let status = wait(&mut child, deadline)?;
        Ok(outcome(&said, status, &self.terminal.read()))
    }

    /// Whether everything is as it was: nobody is left over, and what was not to be reached was not
    /// changed.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        self.listeners.hear_all();
        for folder in TEMPORARY {
            // There only when the act was killed in the middle of it.
            let _ = fs::remove_file(temporary_file(folder, self.target.parent));
        }
        let deadline = Instant::now() + CLEAN_LIMIT;
        loop {
            let strays = self.strays();
            if strays.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("processes are left over: {strays:?}"));
            }
            thread::sleep(Duration::from_millis(2));
        }
        if !matches!(self.victim.try_wait(), Ok(None)) {
            return Err("the other process is gone".to_owned());
        }
        match fs::read_to_string(self.home().join("secret")) {
            Ok(text) if text == self.target.secret => Ok(()),
            _ => Err("the secret file was changed".to_owned()),
        }
    }

    /// The children beside the victim, reaping those that have ended.
    fn strays(&self) -> BTreeSet<u32> {
        let mut strays = children_of(std::process::id());
        strays.remove(&self.victim.id());
        for pid in &strays {
            let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            // One that has not ended yet is looked at again.
            let _ = waitpid(pid, WaitOptions::NOHANG);
        }
        strays
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        raw::remove_segment(self.segment);
        // It ends by itself too, when its standard input closes.
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

/// Those who listen on this machine.
struct Listeners {
    tcp: TcpListener,
    udp: UdpSocket,
    path: UnixListener,
    name: UnixListener,
    datagrams: UnixDatagram,
}

impl Listeners {
    fn new(path: &Path, name: &str) -> io::Result<Self> {
        let name = SocketAddr::from_abstract_name(name)?;
        let listeners = Self {
            tcp: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
            udp: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?,
            path: UnixListener::bind(path)?,
            name: UnixListener::bind_addr(&name)?,
            // Names are apart for each kind of socket.
            datagrams: UnixDatagram::bind_addr(&name)?,
        };
        listeners.tcp.set_nonblocking(true)?;
        listeners.udp.set_nonblocking(true)?;
        listeners.path.set_nonblocking(true)?;
        listeners.name.set_nonblocking(true)?;
        listeners.datagrams.set_nonblocking(true)?;
        Ok(listeners)
    }

    /// Takes whatever came: a full queue would deny the next act, and not the jail.
    fn hear_all(&self) {
        let mut bytes = [0; 64];
        while self.tcp.accept().is_ok() {}
        while self.udp.recv(&mut bytes).is_ok() {}
        while self.path.accept().is_ok() {}
        while self.name.accept().is_ok() {}
        while self.datagrams.recv(&mut bytes).is_ok() {}
    }
}

/// The processes whose parent is `pid`.
pub(crate) fn children_of(pid: u32) -> BTreeSet<u32> {
    let parent = |entry: &fs::DirEntry| -> Option<(u32, u32)> {
        let child = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in the middle may hold anything, spaces and brackets too.
        let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
        Some((child, parent))
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| parent(&entry)).filter(|(_, of)| *of == pid).map(|(child, _)| child).collect()
}

/// A network interface of this machine: not the loopback where there is another.
fn interface() -> io::Result<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_by_key(|name| name == "lo");
    names.into_iter().next().ok_or_else(|| io::Error::other("this machine has no network interface"))
}

/// Descriptors that every child inherits unless something closes them.
fn leftovers(home: &Path) -> io::Result<Vec<OwnedFd>> {
    let (ours, theirs) = UnixStream::pair()?;
    let left = [OwnedFd::from(File::open(home.join("secret"))?), File::open(home)?.into(), theirs.into()];
    for fd in &left {
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    Ok(left.into_iter().chain([ours.into()]).collect())
}

/// A terminal for the hostile's log: a real one, so that there is something to control.
struct Terminal {
    master: File,
    end: File,
}

impl Terminal {
    fn open() -> io::Result<Self> {
        let open = |path: &str| {
            let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
        };
        let master = open("/dev/ptmx")?;
        let mut number = [0; 4];
        raw::control(master.as_fd(), libc::TIOCSPTLCK, &mut [0; 4])?;
        raw::control(master.as_fd(), libc::TIOCGPTN, &mut number)?;
        let end = open(&format!("/dev/pts/{}", u32::from_ne_bytes(number)))?;
        Ok(Self { master, end })
    }

    /// What was written since the last time.
    fn read(&self) -> String {
        let mut bytes = vec![0; 1 << 14];
        // Nothing there is no error worth telling.
        let len = (&self.master).read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..len]).trim().replace("\r\n", " | ")
    }
}

/// Hears the hostile until its last word, its end, or the deadline.
fn listen(socket: &UnixStream, deadline: Instant) -> io::Result<Vec<Said>> {
    let mut said = Vec::new();
    let mut lines = BufReader::new(socket);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut line = String::new();
        match lines.read_line(&mut line) {
            Ok(0) => return Ok(said),
            Ok(_) => said.extend(serde_json::from_str::<Said>(&line).ok()),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionReset => return Ok(said),
                _ => return Err(error),
            },
        }
        if matches!(said.last(), Some(Said::Got(_) | Said::Refused(_))) {
            return Ok(said);
        }
    }
}

/// Waits for the child's end; `None` when it had to be killed for not ending.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn outcome(said: &[Said], status: Option<ExitStatus>, log: &str) -> Outcome {
    match said.last() {
        Some(Said::Got(what)) => return Outcome::Got(what.clone()),
        Some(Said::Refused(error)) => return Outcome::Refused(*error),
        Some(Said::Sealed) => {}
        None => {
            let how = status.map_or_else(|| "it did not end".to_owned(), |status| status.to_string());
            return Outcome::NoJail(format!("{how}; {log}"));
        }
    }
    let Some(status) = status else { return Outcome::Endless };
    match (status.signal(), status.code()) {
        (Some(signal), _) => Outcome::Killed(signal),
        (None, Some(code)) if code == i32::from(WorkerExit::Memory.code()) => Outcome::TooMuchMemory,
        // As a launcher tells of a signal that cannot end it.
        (None, Some(code @ 129..=192)) => Outcome::Killed(code - 128),
        (None, code) => Outcome::Ended(code.unwrap_or(-1)),
    }
}
