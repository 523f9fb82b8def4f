//! The system calls that no library offers, for acts that no honest program does.
//!
//! Owns: every `unsafe` line of the escape suite: a call by number, memory that is mapped to be
//! filled, children that only wait, and the 32-bit door. Never: decides what an act means. Called by
//! the acts beside it, in a process that exists for one act and ends right after, and by the lab for
//! the shared memory that the act is to find.

#![allow(unsafe_code, reason = "the acts are system calls that no library offers")]

use std::ffi::{CStr, c_long};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;

use super::acts::Errno;

/// One argument of a system call. The pointers among them come from live borrows.
#[derive(Debug)]
pub(crate) enum Arg<'a> {
    /// A number.
    Is(i64),
    /// A path or name.
    Text(&'a CStr),
    /// Bytes that the kernel reads.
    In(&'a [u8]),
    /// Bytes that the kernel fills.
    Out(&'a mut [u8]),
}

impl Arg<'_> {
    fn word(self) -> c_long {
        let address = match self {
            Self::Is(number) => return number,
            Self::Text(text) => text.as_ptr().expose_provenance(),
            Self::In(bytes) => bytes.as_ptr().expose_provenance(),
            Self::Out(bytes) => bytes.as_mut_ptr().expose_provenance(),
        };
        c_long::try_from(address).unwrap_or(-1)
    }
}

/// A file descriptor or another small number as an argument.
pub(crate) fn is(number: impl Into<i64>) -> Arg<'static> {
    Arg::Is(number.into())
}

/// Makes the system call `number`.
pub(crate) fn call<const N: usize>(number: c_long, args: [Arg<'_>; N]) -> Result<i64, Errno> {
    const { assert!(N <= 6, "a system call has at most six arguments") };
    let mut words = [0; 6];
    for (word, arg) in words.iter_mut().zip(args) {
        *word = arg.word();
    }
    let [a, b, c, d, e, f] = words;
    // SAFETY: every pointer comes from a borrow that outlives the call and has the length that the
    // act passes beside it; the numbers are those of this suite's acts, none of which unmaps or
    // moves memory that this program uses.
    let answer = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if answer == -1 { Err(Errno::last()) } else { Ok(answer) }
}

/// Controls what is behind `fd`.
pub(crate) fn control(fd: BorrowedFd<'_>, number: u64, argument: &mut [u8]) -> Result<(), Errno> {
    let number = i64::try_from(number).unwrap_or(0);
    call(libc::SYS_ioctl, [is(fd.as_raw_fd()), is(number), Arg::Out(argument)])?;
    Ok(())
}

/// Reads `into.len()` bytes at `address` of the process `pid`.
pub(crate) fn read_memory(pid: i32, address: u64, into: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = remote(address, into.len())?;
    // SAFETY: `local` describes `into`, which is borrowed for the call; `remote` is an address of the
    // other process and is not followed in this one.
    let count = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(count).map_err(|_| Errno::last())
}

/// Writes `bytes` at `address` of the process `pid`.
pub(crate) fn write_memory(pid: i32, address: u64, bytes: &[u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = remote(address, bytes.len())?;
    // SAFETY: `local` describes `bytes`, which the kernel only reads; `remote` is an address of the
    // other process and is not followed in this one.
    let count = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(count).map_err(|_| Errno::last())
}

fn remote(address: u64, len: usize) -> Result<libc::iovec, Errno> {
    let address = usize::try_from(address).map_err(|_| Errno(libc::EINVAL))?;
    Ok(libc::iovec { iov_base: ptr::without_provenance_mut(address), iov_len: len })
}

/// Maps `len` bytes and writes to each page of them; they stay until the process ends.
pub(crate) fn fill_memory(len: usize, shared: bool) -> Result<(), Errno> {
    let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE } | libc::MAP_ANONYMOUS;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that is
    // there already.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, rights, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    for at in (0..len).step_by(4096) {
        // SAFETY: `at` is below the mapping's length; nobody else knows the mapping.
        unsafe { start.cast::<u8>().add(at).write_volatile(1) };
    }
    Ok(())
}

/// How a child is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fork {
    /// The oldest call.
    #[cfg(target_arch = "x86_64")]
    Oldest,
    /// The one that glibc uses, with a signal at its end.
    Clone,
    /// Into a user namespace of its own.
    CloneUser,
    /// The newest, whose flags no filter can read.
    Clone3,
}

/// Makes a child that waits until its parent ends; its process id.
pub(crate) fn child(how: Fork) -> Result<i64, Errno> {
    const NONE: c_long = 0;
    let mut clone3 = [0_u64; 8];
    clone3[4] = u64::from(libc::SIGCHLD.unsigned_abs());
    let signal = c_long::from(libc::SIGCHLD);
    let user = c_long::from(libc::CLONE_NEWUSER);
    let parent = std::process::id();
    // SAFETY: no flag shares memory, so the child runs on a copy of this stack, and below makes plain
    // system calls only: no lock that another thread held can matter to it.
    let pid = unsafe {
        match how {
            #[cfg(target_arch = "x86_64")]
            Fork::Oldest => libc::syscall(libc::SYS_fork),
            Fork::Clone => libc::syscall(libc::SYS_clone, signal, NONE, NONE, NONE, NONE),
            Fork::CloneUser => libc::syscall(libc::SYS_clone, signal | user, NONE, NONE, NONE, NONE),
            Fork::Clone3 => libc::syscall(libc::SYS_clone3, clone3.as_ptr(), size_of_val(&clone3)),
        }
    };
    match pid {
        -1 => Err(Errno::last()),
        0 => wait_for_the_end_of(parent),
        pid => Ok(pid),
    }
}

fn wait_for_the_end_of(parent: u32) -> ! {
    // SAFETY: numbers only; `_exit` does not return.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        // A parent that ended before the line above sends no signal any more.
        if libc::getppid().unsigned_abs() == parent {
            libc::pause();
        }
        libc::_exit(0)
    }
}

/// Replaces this program by the one at `path`; the refusal when it is not.
pub(crate) fn execute(path: &CStr, arguments: &[&CStr]) -> Errno {
    let mut words: Vec<_> = arguments.iter().map(|word| word.as_ptr()).collect();
    words.push(ptr::null());
    let environment = [ptr::null()];
    // SAFETY: two lists of pointers to live words, each ended by a null.
    unsafe { libc::execve(path.as_ptr(), words.as_ptr(), environment.as_ptr()) };
    Errno::last()
}

/// Replaces this program by the one in `file`; the refusal when it is not.
pub(crate) fn execute_file(file: BorrowedFd<'_>) -> Errno {
    let words = [c"own".as_ptr(), ptr::null()];
    let environment = [ptr::null::<libc::c_char>()];
    // SAFETY: an empty path and two lists of pointers to live words, each ended by a null.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            words.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::last()
}

/// Adds a seccomp filter of its own that allows everything.
pub(crate) fn add_filter() -> Result<(), Errno> {
    const ALLOW: u32 = 0x7fff_0000;
    let mut allow = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: ALLOW };
    let program = libc::sock_fprog { len: 1, filter: &raw mut allow };
    // SAFETY: the program and its one instruction live until the call returns; the kernel copies it.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program) };
    if answer == 0 { Ok(()) } else { Err(Errno::last()) }
}

/// Makes a System V shared memory segment under `key` with `secret` in it; its number.
pub(crate) fn make_segment(key: i32, secret: &[u8]) -> io::Result<i32> {
    // SAFETY: numbers only.
    let id = unsafe { libc::shmget(key, secret.len(), libc::IPC_CREAT | libc::IPC_EXCL | 0o600) };
    if id < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel chooses the address; the mapping holds at least `secret.len()` bytes.
    unsafe {
        let start = libc::shmat(id, ptr::null(), 0);
        if start.addr() == usize::MAX {
            return Err(io::Error::last_os_error());
        }
        start.cast::<u8>().copy_from_nonoverlapping(secret.as_ptr(), secret.len());
        libc::shmdt(start);
    }
    Ok(id)
}

/// What the segment under `key` holds, `len` bytes of it.
pub(crate) fn read_segment(key: i32, len: usize) -> Result<Vec<u8>, Errno> {
    // SAFETY: numbers only.
    let id = unsafe { libc::shmget(key, len, 0o600) };
    if id < 0 {
        return Err(Errno::last());
    }
    let mut found = vec![0; len];
    // SAFETY: the kernel chooses the address; a segment found with `len` holds at least that many.
    unsafe {
        let start = libc::shmat(id, ptr::null(), 0);
        if start.addr() == usize::MAX {
            return Err(Errno::last());
        }
        start.cast::<u8>().copy_to_nonoverlapping(found.as_mut_ptr(), len);
    }
    Ok(found)
}

/// Marks the segment for removal.
pub(crate) fn remove_segment(id: i32) {
    // SAFETY: numbers and a null pointer that this command does not follow.
    unsafe { libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()) };
}

/// Asks for the process id through the 32-bit door, where every call has another number.
#[cfg(target_arch = "x86_64")]
pub(crate) fn getpid_by_int80() -> Result<i64, Errno> {
    const GETPID: i32 = 20;
    let answer: i32;
    // SAFETY: the call reads no memory; the kernel keeps every register but eax and r8 to r11.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("eax") GETPID => answer,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if answer < 0 { Err(Errno(-answer)) } else { Ok(i64::from(answer)) }
}

/// Takes note of no signal that can be ignored.
pub(crate) fn ignore_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1] {
        // SAFETY: no handler is installed: the signal is ignored.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
