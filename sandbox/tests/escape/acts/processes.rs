//! Acts on other processes.
//!
//! Owns: seeing, reading, steering and joining what runs beside the worker. Never: harms the victim:
//! the signals are those that change nothing, and a traced process goes on when the act ends. Called
//! through [`super::all`].

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;

use potluck_sandbox::jail::Layer::{Capabilities, Landlock, Namespaces, Root, Seccomp};

use super::super::raw::{Arg, call, is, read_memory, read_segment, write_memory};
use super::{Act, Attempt, Errno, Target, got, obeyed};

/// `PTRACE_SEIZE`: traces without stopping.
const SEIZE: i64 = 0x4206;

pub(super) const ACTS: &[Act] = &[
    Act::new("list_processes", &[Seccomp, Landlock, Root], list_processes),
    Act::new("probe_process", &[Seccomp, Namespaces], |target| {
        obeyed(call(libc::SYS_getpgid, [is(target.victim)]), &[])
    }),
    Act::new("read_limits_of_process", &[Seccomp, Namespaces], |target| {
        let mut old = [0; 16];
        let limit = [is(target.victim), is(libc::RLIMIT_CORE), is(0), Arg::Out(&mut old)];
        obeyed(call(libc::SYS_prlimit64, limit), &[])
    }),
    Act::new("signal_process", &[Seccomp, Landlock, Namespaces], |target| {
        obeyed(call(libc::SYS_kill, [is(target.victim), is(libc::SIGCONT)]), &[])
    }),
    Act::new("signal_thread", &[Seccomp, Landlock, Namespaces], |target| {
        obeyed(call(libc::SYS_tgkill, [is(target.victim), is(target.victim), is(libc::SIGCONT)]), &[])
    }),
    Act::new("signal_everybody", &[Seccomp, Namespaces], |_| {
        obeyed(call(libc::SYS_kill, [is(-1), is(0)]), &[])
    }),
    Act::new("signal_by_pidfd", &[Seccomp, Namespaces], |target| {
        let fd = pidfd(target)?;
        obeyed(call(libc::SYS_pidfd_send_signal, [is(fd), is(libc::SIGCONT), is(0), is(0)]), &[])
    }),
    Act::new("take_descriptor_of_process", &[Seccomp, Namespaces], |target| {
        let fd = pidfd(target)?;
        obeyed(call(libc::SYS_pidfd_getfd, [is(fd), is(0), is(0)]), &[])
    })
    .unless(&[libc::EPERM]),
    Act::new("trace_process", &[Seccomp, Landlock, Namespaces], |target| {
        obeyed(call(libc::SYS_ptrace, [is(SEIZE), is(target.victim), is(0), is(0)]), &[])
    })
    .unless(&[libc::EPERM]),
    Act::new("trace_parent", &[Seccomp, Landlock, Namespaces], |target| {
        obeyed(call(libc::SYS_ptrace, [is(SEIZE), is(target.parent), is(0), is(0)]), &[])
    })
    .unless(&[libc::EPERM]),
    Act::new("read_memory_of_process", &[Seccomp, Landlock, Namespaces], |target| {
        let mut bytes = vec![0; target.secret.len()];
        read_memory(target.victim, target.victim_address, &mut bytes)?;
        target.read(&bytes)
    })
    .unless(&[libc::EPERM]),
    Act::new("write_memory_of_process", &[Seccomp, Landlock, Namespaces], |target| {
        // The same bytes: the victim goes on as before.
        write_memory(target.victim, target.victim_address, target.secret.as_bytes())?;
        got("wrote into its memory")
    })
    .unless(&[libc::EPERM]),
    Act::new("open_memory_of_process", &[Seccomp, Landlock, Root], |target| {
        let mut bytes = vec![0; target.secret.len()];
        let memory = File::open(format!("/proc/{}/mem", target.victim))?;
        memory.read_exact_at(&mut bytes, target.victim_address)?;
        target.read(&bytes)
    })
    .unless(&[libc::EPERM, libc::EACCES]),
    Act::new("read_environment_of_process", &[Seccomp, Landlock, Root], |target| {
        target.read(&fs::read(format!("/proc/{}/environ", target.victim))?)
    }),
    Act::new("read_environment_of_parent", &[Seccomp, Landlock, Root], |target| {
        let bytes = fs::read(format!("/proc/{}/environ", target.parent))?;
        if bytes.is_empty() { Err(Errno(libc::ENODATA)) } else { got("read it") }
    }),
    Act::new("move_process_to_other_cores", &[Seccomp, Namespaces], |target| {
        // All of them: nothing changes for the victim.
        let mask = [0xff; 128];
        obeyed(call(libc::SYS_sched_setaffinity, [is(target.victim), is(128), Arg::In(&mask)]), &[])
    }),
    Act::new("score_process_for_killing", &[Seccomp, Landlock, Root], |target| {
        OpenOptions::new().write(true).open(format!("/proc/{}/oom_score_adj", target.victim))?;
        got("may choose who is killed when memory is short")
    }),
    Act::new("join_namespaces", &[Seccomp, Namespaces, Capabilities], |target| {
        let fd = pidfd(target)?;
        obeyed(call(libc::SYS_setns, [is(fd), is(libc::CLONE_NEWNET | libc::CLONE_NEWIPC)]), &[])
    })
    .by_root(),
    Act::new("read_shared_memory", &[Seccomp, Namespaces], |target| {
        target.read(&read_segment(target.segment, target.secret.len())?)
    }),
];

fn pidfd(target: &Target) -> Result<i64, Errno> {
    call(libc::SYS_pidfd_open, [is(target.victim), is(0)])
}

/// Finds the victim among the numbers in `/proc`.
fn list_processes(target: &Target) -> Attempt {
    let victim = target.victim.to_string();
    for entry in fs::read_dir("/proc")? {
        if entry?.file_name().to_string_lossy() == victim {
            return got("sees the victim");
        }
    }
    Err(Errno(libc::ESRCH))
}
