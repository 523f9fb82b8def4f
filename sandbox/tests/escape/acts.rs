//! What a hostile worker tries, and which layers of the jail deny it.
//!
//! Owns: the list of acts, each a function that truly does the thing. Never: starts a process or
//! judges the outcome. Called by [`super::hostile`] (to do one) and by the suite and
//! [`super::mutations`] (to know which layers must deny it).
//!
//! An act answers with what it got, or with the system's refusal. It is *possible* when it succeeds
//! without a jail on this machine; the suite runs that first, so that no act is called denied that
//! would have failed anyway.

mod bombs;
mod devices;
mod files;
mod network;
mod privileges;
mod processes;
mod starting;

use std::fmt;
use std::io;
use std::path::PathBuf;

use potluck_sandbox::jail::Layer;
use serde::{Deserialize, Serialize};

pub(crate) use files::{TEMPORARY, temporary_file};
pub(crate) use network::give;

/// What an act has before it: where the things are that it must not reach. It is told all of it, as
/// an attacker would be who knows the machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    /// Whether the root folder is the jail's own and not the machine's: what would hurt the machine is
    /// then tried there, and in the lab's folder otherwise.
    pub(crate) own_root: bool,
    /// A folder of the owner's that the owner may write to.
    pub(crate) folder: PathBuf,
    /// A file in the owner's home.
    pub(crate) secret_file: PathBuf,
    /// What the file, the victim's memory and its environment hold.
    pub(crate) secret: String,
    /// Another process of the owner's.
    pub(crate) victim: i32,
    /// The process that started this one, as the machine numbers it.
    pub(crate) parent: i32,
    /// Where the victim keeps the secret.
    pub(crate) victim_address: u64,
    /// A port on the loopback that somebody listens on.
    pub(crate) tcp: u16,
    /// A port that takes datagrams.
    pub(crate) udp: u16,
    /// A socket with a path.
    pub(crate) unix: PathBuf,
    /// A socket with a name only.
    pub(crate) abstract_name: String,
    /// The key of a shared memory segment with the secret.
    pub(crate) segment: i32,
    /// The machine's name.
    pub(crate) host_name: String,
    /// A network interface of the machine.
    pub(crate) interface: String,
}

impl Target {
    /// The answer of an act that read `bytes`.
    fn read(&self, bytes: &[u8]) -> Attempt {
        let found = bytes.windows(self.secret.len()).any(|window| window == self.secret.as_bytes());
        if found { got("read the secret") } else { Err(Errno(libc::ENODATA)) }
    }
}

/// The system's refusal, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    /// The refusal of the last call.
    pub(crate) fn last() -> Self {
        io::Error::last_os_error().into()
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<Errno> for io::Error {
    fn from(error: Errno) -> Self {
        Self::from_raw_os_error(error.0)
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        Self(error.raw_os_error())
    }
}

const NAMES: [(i32, &str); 33] = [
    (libc::EACCES, "EACCES"),
    (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL"),
    (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
    (libc::EAGAIN, "EAGAIN"),
    (libc::EBADF, "EBADF"),
    (libc::ECONNREFUSED, "ECONNREFUSED"),
    (libc::EEXIST, "EEXIST"),
    (libc::EFBIG, "EFBIG"),
    (libc::EINVAL, "EINVAL"),
    (libc::EIO, "EIO"),
    (libc::EMFILE, "EMFILE"),
    (libc::ENETUNREACH, "ENETUNREACH"),
    (libc::ENODATA, "ENODATA"),
    (libc::ENODEV, "ENODEV"),
    (libc::ENOENT, "ENOENT"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::ENOSYS, "ENOSYS"),
    (libc::ENOTCONN, "ENOTCONN"),
    (libc::ENOTDIR, "ENOTDIR"),
    (libc::ENOTSOCK, "ENOTSOCK"),
    (libc::ENOTTY, "ENOTTY"),
    (libc::ENXIO, "ENXIO"),
    (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::EPERM, "EPERM"),
    (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT"),
    (libc::EROFS, "EROFS"),
    (libc::ESRCH, "ESRCH"),
    (libc::ESTALE, "ESTALE"),
    (libc::ETIMEDOUT, "ETIMEDOUT"),
    (libc::ETXTBSY, "ETXTBSY"),
    (libc::EUSERS, "EUSERS"),
    (libc::EXDEV, "EXDEV"),
];

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

/// What came of an act: what it got, or why not.
pub(crate) type Attempt = Result<String, Errno>;

fn got(what: impl Into<String>) -> Attempt {
    Ok(what.into())
}

/// The answer of an act that is one call. A refusal in `past` is the kernel's own check of the
/// arguments, which comes after that of who asks: meant seriously, it would have been obeyed.
fn obeyed(answer: Result<i64, Errno>, past: &[i32]) -> Attempt {
    match answer {
        Err(error) if past.contains(&error.0) => got(format!("past every check of who asks ({error})")),
        Err(error) => Err(error),
        Ok(_) => got("done"),
    }
}

/// Tries `ways` until one works; the refusal of the first otherwise.
fn any_of<T: Copy>(ways: &[T], mut attempt: impl FnMut(T) -> Attempt) -> Attempt {
    let mut first = None;
    for way in ways {
        match attempt(*way) {
            Ok(what) => return Ok(what),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or(Errno(libc::ENOENT)))
}

/// One thing that a hostile worker tries.
#[derive(Debug)]
pub(crate) struct Act {
    /// Its name, as the suite prints it.
    pub(crate) name: &'static str,
    /// The layers that deny it, each without the others; the one that is met first stands in front.
    pub(crate) guards: &'static [Layer],
    /// Whether it takes root even without a jail.
    pub(crate) takes_root: bool,
    /// Refusals that say: this machine cannot do it for anybody.
    pub(crate) lacking: &'static [i32],
    /// Does it.
    pub(crate) attempt: fn(&Target) -> Attempt,
}

impl Act {
    const fn new(name: &'static str, guards: &'static [Layer], attempt: fn(&Target) -> Attempt) -> Self {
        Self { name, guards, takes_root: false, lacking: &[], attempt }
    }

    const fn by_root(self) -> Self {
        Self { takes_root: true, ..self }
    }

    const fn unless(self, lacking: &'static [i32]) -> Self {
        Self { lacking, ..self }
    }

    /// Whether a refusal without a jail says that this machine cannot do the act for this user.
    pub(crate) fn is_lacking(&self, error: Errno, root: bool) -> bool {
        let forbidden = [libc::EPERM, libc::EACCES].contains(&error.0);
        self.lacking.contains(&error.0) || (self.takes_root && !root && forbidden)
    }
}

/// Every act.
pub(crate) fn all() -> Vec<&'static Act> {
    [
        files::ACTS,
        processes::ACTS,
        network::ACTS,
        starting::ACTS,
        privileges::ACTS,
        devices::ACTS,
        bombs::ACTS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The act with this name.
pub(crate) fn named(name: &str) -> Option<&'static Act> {
    all().into_iter().find(|act| act.name == name)
}
