//! The layer of namespaces: nobody else's processes, network, mounts, users or queues.
//!
//! Owns: which namespaces, the maps of users and groups, and that no further ones can be made inside.
//! Never: gives the worker a user of the machine's when it can have nobody. Called by
//! [`super::launcher`] (from outside and in the middle process) and by [`super::enter`].
//!
//! Root is no exception: its workers get a user namespace as well, in which there is one user, and
//! outside that is nobody (65534). One that broke out would own no file and could signal nobody.
//! When the launcher itself may not map others, the one user inside is the launcher's own.

use std::fs;
use std::io::{self, Write as _};

use rustix::process::{Gid, Pid, Uid, getegid, geteuid, setsid};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::layers::Layer;
use super::{JailError, sys};

/// The user and the group inside, and outside where the launcher may choose.
const NOBODY: u32 = 65_534;

fn failed<E: Into<io::Error>>(act: &'static str) -> impl Fn(E) -> JailError {
    move |source| JailError::new(Layer::Namespaces, act, source)
}

/// Leaves the machine's namespaces. The process namespace is for children made after.
pub(super) fn leave() -> Result<(), JailError> {
    let all = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    sys::unshare(all).map_err(failed("making new namespaces"))
}

/// Says who the process `pid`, which has just left, is. Whether it may forget its groups.
pub(super) fn map_ids(pid: Pid) -> Result<bool, JailError> {
    let write = |file: &str, text: &str| {
        let path = format!("/proc/{}/{file}", pid.as_raw_pid());
        // One write: the kernel takes a map whole or not at all.
        fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
    };
    let to_nobody = format!("{NOBODY} {NOBODY} 1");
    if geteuid().is_root() && write("uid_map", &to_nobody).is_ok() {
        write("gid_map", &to_nobody).map_err(failed("mapping the group"))?;
        return Ok(true);
    }
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    write("uid_map", &format!("{NOBODY} {user} 1")).map_err(failed("mapping the user"))?;
    write("setgroups", "deny").map_err(failed("giving up groups"))?;
    write("gid_map", &format!("{NOBODY} {group} 1")).map_err(failed("mapping the group"))?;
    Ok(false)
}

/// Becomes the one user that there is.
pub(super) fn become_nobody(may_forget_groups: bool) -> Result<(), JailError> {
    if may_forget_groups {
        set_thread_groups(&[]).map_err(failed("giving up groups"))?;
    }
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_res_gid(group, group, group).map_err(failed("becoming nobody"))?;
    set_thread_res_uid(user, user, user).map_err(failed("becoming nobody"))
}

/// No terminal, no job control: its own session.
pub(super) fn become_session_leader() -> Result<(), JailError> {
    setsid().map(drop).map_err(failed("starting a session"))
}

/// No namespaces inside this one (a new user namespace is the door to most of the kernel's faults),
/// and a host name that says nothing.
pub(super) fn forbid_more() -> Result<(), JailError> {
    fs::write("/proc/sys/user/max_user_namespaces", "0").map_err(failed("forbidding further namespaces"))?;
    rustix::system::sethostname(b"potluck").map_err(failed("hiding the host name"))
}
