//! The system calls for which no safe crate has a door.
//!
//! Owns: every unsafe block of the jail, each behind a function whose use is safe, and the raw acts
//! of the canary. Never: decides anything, and never passes a pointer that is not to a live value of
//! the size that the kernel expects. Called by the other files of [`super`] only.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Turns a C result into a Rust one.
fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Makes a second process like this one; `None` in the new one. Only for a process with one thread
/// (the caller checks): a lock held by another would stay locked in the copy for ever.
pub(super) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: no arguments. glibc's fork, not the bare call, so that its own notes about the process
    // (thread id, heap locks) are right in the copy.
    let pid = checked(libc::c_long::from(unsafe { libc::fork() }))?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw))
}

/// Moves this process (its children, for the process namespace) into new namespaces.
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: the flags are of namespaces only; the descriptor table stays shared as it was.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Ends the process at once: no destructors, no handlers, which might wait for a thread that never
/// comes back. The first process of a namespace cannot be killed from inside, so this is also how a
/// worker ends itself.
pub(crate) fn exit_now(code: u8) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Closes every descriptor from 3 on. To be called before this program has opened any: what is open
/// then was inherited and nobody's.
pub(super) fn close_inherited() -> io::Result<()> {
    // SAFETY: at the start of the program no owner of these descriptors exists in this process.
    checked(unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) }).map(drop)
}

/// The signal set of SIGTERM alone.
fn term_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset writes the whole set; SIGTERM is a valid signal.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        set.assume_init()
    }
}

/// Makes SIGTERM readable from a descriptor instead of deadly.
pub(super) fn hold_term() -> io::Result<OwnedFd> {
    let set = term_set();
    // SAFETY: `set` lives across both calls; the descriptor is new and owned from here on.
    unsafe {
        checked(libc::c_long::from(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut())))?;
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        checked(libc::c_long::from(fd))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Takes [`hold_term`] back.
pub(super) fn release_term() -> io::Result<()> {
    let set = term_set();
    // SAFETY: `set` lives across the call; the old mask is not asked for.
    let result = unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
    checked(libc::c_long::from(result)).map(drop)
}

/// One call of mount(2).
fn mount(
    source: Option<&CStr>,
    target: &Path,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let target = c_path(target)?;
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: each pointer is null, where the kernel allows it, or to a C string that outlives the call.
    let result = unsafe {
        libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(options).cast())
    };
    checked(libc::c_long::from(result)).map(drop)
}

const PLAIN: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Nothing that is mounted from here on shows outside, and nothing outside shows here.
pub(super) fn make_mounts_private() -> io::Result<()> {
    mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE, None)
}

/// A small empty file system in memory.
pub(super) fn mount_tmpfs(target: &Path) -> io::Result<()> {
    mount(Some(c"tmpfs"), target, Some(c"tmpfs"), PLAIN, Some(c"size=1m,nr_inodes=1024,mode=0755"))
}

/// The processes of this process's namespace.
pub(super) fn mount_proc(target: &Path) -> io::Result<()> {
    mount(Some(c"proc"), target, Some(c"proc"), PLAIN, None)
}

/// Nothing can be written to the root folder any more.
pub(super) fn make_root_read_only() -> io::Result<()> {
    let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | PLAIN;
    mount(None, Path::new("/"), None, flags, None)
}

/// Lets go of what is mounted at the current folder.
pub(super) fn detach_here() -> io::Result<()> {
    // SAFETY: a constant path.
    checked(libc::c_long::from(unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })).map(drop)
}

/// What a bound path may be used for.
#[derive(Debug, Clone, Copy)]
pub(super) struct BindRights {
    pub(super) write: bool,
    pub(super) devices: bool,
    pub(super) execute: bool,
}

/// Makes what `source` refers to appear at what `target` refers to. By descriptor: no path is walked
/// between the check of a source and its use.
pub(super) fn bind(source: impl AsFd, target: impl AsFd, rights: BindRights) -> io::Result<()> {
    let empty = c"".as_ptr();
    let mut attributes = libc::MOUNT_ATTR_NOSUID;
    for (allowed, attribute) in [
        (rights.write, libc::MOUNT_ATTR_RDONLY),
        (rights.devices, libc::MOUNT_ATTR_NODEV),
        (rights.execute, libc::MOUNT_ATTR_NOEXEC),
    ] {
        if !allowed {
            attributes |= attribute;
        }
    }
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let by_descriptor = libc::AT_EMPTY_PATH.cast_unsigned();
    let tree_flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned() | by_descriptor;
    let move_flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to) = (source.as_fd().as_raw_fd(), target.as_fd().as_raw_fd());
    // SAFETY: the path is a constant C string, `attr` lives across the call and its size is given,
    // and the descriptor that open_tree returns is new and owned from here on.
    unsafe {
        let tree = checked(libc::syscall(libc::SYS_open_tree, from, empty, tree_flags))?;
        let tree = OwnedFd::from_raw_fd(i32::try_from(tree).map_err(io::Error::other)?);
        let (raw, size) = (tree.as_raw_fd(), size_of::<libc::mount_attr>());
        checked(libc::syscall(libc::SYS_mount_setattr, raw, empty, by_descriptor, &raw const attr, size))?;
        checked(libc::syscall(libc::SYS_move_mount, raw, empty, to, empty, move_flags)).map(drop)
    }
}

/// A forbidden act that the canary tries. None does harm when it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RawAct {
    /// Attach to a process as a debugger would.
    Ptrace(Pid),
    /// Read a word of a process's memory.
    ReadMemory(Pid),
    /// Run a program (one that does not exist).
    Execute,
    /// Make a second process, which ends at once.
    Fork,
    /// Make a new user namespace.
    UserNamespace,
    /// Mount a file system in memory over the root.
    Mount,
    /// Ask for the session's keyring.
    Keyring,
    /// Load a program into the kernel.
    Bpf,
    /// Open a ring of asynchronous calls.
    IoUring,
    /// Take over this process's page faults.
    UserFaults,
    /// Open a performance counter.
    PerfEvent,
    /// Open a socket of this family and kind.
    Socket(libc::c_int, libc::c_int),
    /// Map memory that is writable and executable.
    ExecutableMemory,
    /// Become the user 0.
    BecomeRoot,
    /// Make an anonymous file.
    AnonymousFile,
}

/// Tries a forbidden act.
///
/// # Errors
/// The kernel's answer: it was refused, or was let through to where its empty arguments fail.
pub(super) fn attempt(act: RawAct) -> io::Result<()> {
    let null = ptr::null::<libc::c_void>();
    let mut word = 0u64;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: size_of::<u64>() };
    let remote = libc::iovec { iov_base: ptr::without_provenance_mut(0x1000), iov_len: size_of::<u64>() };
    let nothing = [ptr::null::<libc::c_char>()];
    // SAFETY: every pointer is null or to a value on this stack that outlives the call; numbers are
    // numbers. What works leaves a descriptor, a mapping or a namespace in a process that is about
    // to end; a forked copy ends in its next instruction.
    let result = unsafe {
        match act {
            RawAct::Ptrace(pid) => {
                libc::syscall(libc::SYS_ptrace, libc::PTRACE_SEIZE, pid.as_raw_pid(), null, null)
            }
            RawAct::ReadMemory(pid) => {
                let (pid, one) = (pid.as_raw_pid(), 1usize);
                let (local, remote) = (&raw const local, &raw const remote);
                libc::syscall(libc::SYS_process_vm_readv, pid, local, one, remote, one, 0usize)
            }
            RawAct::Execute => {
                let nothing = nothing.as_ptr();
                libc::syscall(libc::SYS_execve, c"/nothing".as_ptr(), nothing, nothing)
            }
            RawAct::Fork => {
                let pid = libc::syscall(libc::SYS_clone, libc::SIGCHLD, null, null, null, null);
                if pid == 0 {
                    libc::_exit(0);
                }
                pid
            }
            RawAct::UserNamespace => libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER),
            RawAct::Mount => {
                let tmpfs = c"tmpfs".as_ptr();
                libc::syscall(libc::SYS_mount, tmpfs, c"/".as_ptr(), tmpfs, 0usize, null)
            }
            RawAct::Keyring => libc::syscall(libc::SYS_keyctl, 0usize, -3isize, 0usize),
            RawAct::Bpf => libc::syscall(libc::SYS_bpf, 5usize, null, 0usize),
            RawAct::IoUring => libc::syscall(libc::SYS_io_uring_setup, 1usize, null),
            RawAct::UserFaults => libc::syscall(libc::SYS_userfaultfd, 1usize),
            RawAct::PerfEvent => {
                libc::syscall(libc::SYS_perf_event_open, null, 0isize, -1isize, -1isize, 0usize)
            }
            RawAct::Socket(family, kind) => libc::syscall(libc::SYS_socket, family, kind, 0usize),
            RawAct::ExecutableMemory => {
                let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
                let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::syscall(libc::SYS_mmap, null, 4096usize, rights, kind, -1isize, 0usize)
            }
            RawAct::BecomeRoot => libc::syscall(libc::SYS_setresuid, 0usize, 0usize, 0usize),
            RawAct::AnonymousFile => libc::syscall(libc::SYS_memfd_create, c"x".as_ptr(), 0usize),
        }
    };
    checked(result).map(drop)
}
