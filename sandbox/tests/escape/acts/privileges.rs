//! Acts that take a privilege, or use one.
//!
//! Owns: becoming somebody else, changing the machine, and the kernel's wide and rarely used doors.
//! Never: changes the machine when it works: what is set is what was set before, and what cannot be
//! taken back is asked for with arguments that the kernel refuses after it has checked who asks.
//! Called through [`super::all`].

use std::ffi::CString;

use potluck_sandbox::jail::Layer::{Capabilities, Landlock, Namespaces, Seccomp};

use super::super::raw::{Arg, call, is};
use super::{Act, Attempt, Errno, Target, got, obeyed};

pub(super) const ACTS: &[Act] = &[
    Act::new("change_user", &[Seccomp, Capabilities], |_| {
        obeyed(call(libc::SYS_setresuid, [is(12_345), is(12_345), is(12_345)]), &[])
    })
    .by_root(),
    Act::new("become_root", &[Seccomp, Namespaces], |target| {
        call(libc::SYS_setresuid, [is(0), is(0), is(0)])?;
        // Root of this machine, and not of a namespace only, may set its clock.
        set_clock(target)
    })
    .by_root(),
    Act::new("change_groups", &[Seccomp, Capabilities], |_| {
        let groups = 12_345_u32.to_ne_bytes();
        obeyed(call(libc::SYS_setgroups, [is(1), Arg::In(&groups)]), &[])
    })
    .by_root(),
    Act::new("take_capabilities", &[Seccomp, Capabilities], take_capabilities).by_root(),
    Act::new("mount", &[Seccomp, Landlock, Capabilities], mount).by_root(),
    Act::new("mount_by_descriptor", &[Seccomp, Capabilities], |_| {
        obeyed(call(libc::SYS_fsopen, [Arg::Text(c"tmpfs"), is(0)]), &[])
    })
    .by_root(),
    Act::new("copy_mounts", &[Seccomp, Capabilities], |_| {
        const CLONE_TREE: i64 = 1;
        obeyed(call(libc::SYS_open_tree, [is(libc::AT_FDCWD), Arg::Text(c"/"), is(CLONE_TREE)]), &[])
    })
    .by_root(),
    Act::new("use_keyrings", &[Seccomp], |_| {
        const GET_ID: i64 = 0;
        const OF_PROCESS: i64 = -2;
        obeyed(call(libc::SYS_keyctl, [is(GET_ID), is(OF_PROCESS), is(1)]), &[])
    })
    .unless(&[libc::ENOSYS]),
    Act::new("add_key", &[Seccomp], |_| {
        const OF_PROCESS: i64 = -2;
        let key = [Arg::Text(c"user"), Arg::Text(c"potluck"), Arg::In(b"x"), is(1), is(OF_PROCESS)];
        obeyed(call(libc::SYS_add_key, key), &[])
    })
    .unless(&[libc::ENOSYS]),
    Act::new("load_bpf", &[Seccomp, Capabilities], |_| {
        // An array of one value.
        let mut map = [0; 72];
        for (at, number) in [(0, 2_u32), (4, 4), (8, 8), (12, 1)] {
            map[at..at + 4].copy_from_slice(&number.to_ne_bytes());
        }
        obeyed(call(libc::SYS_bpf, [is(0), Arg::In(&map), is(72)]), &[])
    })
    .by_root()
    .unless(&[libc::ENOSYS]),
    Act::new("set_up_io_uring", &[Seccomp], |_| {
        obeyed(call(libc::SYS_io_uring_setup, [is(8), Arg::Out(&mut [0; 120])]), &[])
    })
    .unless(&[libc::ENOSYS, libc::EPERM]),
    Act::new("handle_page_faults", &[Seccomp], |_| {
        const USER_MODE_ONLY: i64 = 1;
        obeyed(call(libc::SYS_userfaultfd, [is(USER_MODE_ONLY)]), &[])
    })
    .unless(&[libc::ENOSYS]),
    Act::new("count_events", &[Seccomp], |_| {
        // Its own processor time, in software, outside of the kernel.
        let mut event = [0; 64];
        event[0] = 1;
        event[4] = 64;
        event[40] = 0b0110_0000;
        let open = [Arg::In(&event), is(0), is(-1), is(-1), is(0)];
        obeyed(call(libc::SYS_perf_event_open, open), &[])
    })
    .unless(&[libc::ENOSYS, libc::EACCES, libc::EPERM]),
    Act::new("reboot", &[Seccomp, Capabilities], |_| {
        // With the wrong magic numbers.
        obeyed(call(libc::SYS_reboot, [is(0), is(0), is(0), is(0)]), &[libc::EINVAL])
    })
    .by_root(),
    Act::new("replace_kernel", &[Seccomp, Capabilities], |_| {
        // More segments than there may be.
        obeyed(call(libc::SYS_kexec_load, [is(0), is(1 << 20), is(0), is(0)]), &[libc::EINVAL])
    })
    .by_root()
    .unless(&[libc::ENOSYS]),
    Act::new("load_module", &[Seccomp, Capabilities], |_| {
        let module = [Arg::In(b"x"), is(1), Arg::Text(c"")];
        obeyed(call(libc::SYS_init_module, module), &[libc::ENOEXEC, libc::EINVAL])
    })
    .by_root()
    .unless(&[libc::ENOSYS]),
    Act::new("add_swap", &[Seccomp, Capabilities], |_| {
        obeyed(call(libc::SYS_swapon, [Arg::Text(c"/nowhere"), is(0)]), &[libc::ENOENT])
    })
    .by_root()
    .unless(&[libc::ENOSYS]),
    Act::new("account_processes", &[Seccomp, Capabilities], |_| {
        obeyed(call(libc::SYS_acct, [Arg::Text(c"/nowhere")]), &[libc::ENOENT])
    })
    .by_root()
    .unless(&[libc::ENOSYS]),
    Act::new("set_clock", &[Seccomp, Capabilities], set_clock).by_root(),
    Act::new("set_host_name", &[Seccomp, Capabilities], set_host_name).by_root(),
    Act::new("read_kernel_log", &[Seccomp, Capabilities], |_| {
        const READ_ALL: i64 = 3;
        obeyed(call(libc::SYS_syslog, [is(READ_ALL), Arg::Out(&mut [0; 64]), is(64)]), &[])
    })
    .by_root(),
    #[cfg(target_arch = "x86_64")]
    Act::new("reach_ports_of_hardware", &[Seccomp, Capabilities], |_| {
        obeyed(call(libc::SYS_iopl, [is(3)]), &[])
    })
    .by_root()
    .unless(&[libc::ENOSYS]),
    Act::new("switch_personality", &[Seccomp], |_| {
        obeyed(call(libc::SYS_personality, [is(libc::ADDR_NO_RANDOMIZE | libc::READ_IMPLIES_EXEC)]), &[])
    }),
    Act::new("run_in_real_time", &[Seccomp, Capabilities], |_| {
        let priority = 1_u32.to_ne_bytes();
        let first = [is(0), is(libc::SCHED_FIFO), Arg::In(&priority)];
        obeyed(call(libc::SYS_sched_setscheduler, first), &[])
    })
    .by_root()
    .unless(&[libc::EPERM]),
    Act::new("raise_own_limits", &[Seccomp, Capabilities], |_| {
        let mut now = [0; 16];
        let which = i64::from(libc::RLIMIT_NPROC);
        call(libc::SYS_prlimit64, [is(0), is(which), is(0), Arg::Out(&mut now)])?;
        let hard = now[8..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let raised = hard.saturating_add(1).to_ne_bytes();
        let limits = [raised, raised].concat();
        obeyed(call(libc::SYS_prlimit64, [is(0), is(which), Arg::In(&limits), is(0)]), &[])
    })
    .by_root()
    // Root without that one privilege, as in most containers.
    .unless(&[libc::EPERM]),
    Act::new("lock_memory", &[Seccomp], |_| obeyed(call(libc::SYS_mlockall, [is(1)]), &[]))
        .unless(&[libc::ENOMEM]),
    Act::new("let_others_dump_it", &[Seccomp], |_| {
        obeyed(call(libc::SYS_prctl, [is(libc::PR_SET_DUMPABLE), is(1), is(0), is(0), is(0)]), &[])
    }),
    Act::new("outlive_its_launcher", &[Seccomp], |_| {
        obeyed(call(libc::SYS_prctl, [is(libc::PR_SET_PDEATHSIG), is(0), is(0), is(0), is(0)]), &[])
    }),
    Act::new("adopt_orphans", &[Seccomp], |_| {
        let adopt = [is(libc::PR_SET_CHILD_SUBREAPER), is(1), is(0), is(0), is(0)];
        obeyed(call(libc::SYS_prctl, adopt), &[])
    }),
];

fn take_capabilities(_: &Target) -> Attempt {
    // struct __user_cap_header_struct, version 3, this process.
    let mut header = [0; 8];
    header[..4].copy_from_slice(&0x2008_0522_u32.to_ne_bytes());
    let mut sets = [0; 24];
    call(libc::SYS_capget, [Arg::In(&header), Arg::Out(&mut sets)])?;
    // CAP_SYS_ADMIN, in the effective and the permitted set of the first half.
    for at in [0, 4] {
        sets[at + 2] |= 1 << (21 - 16);
    }
    obeyed(call(libc::SYS_capset, [Arg::In(&header), Arg::In(&sets)]), &[])
}

/// Mounts an empty file system where nothing is hurt by it, and takes it off again.
fn mount(target: &Target) -> Attempt {
    let folder = if target.own_root { "/".into() } else { target.folder.join("mount") };
    let path = CString::new(folder.as_os_str().as_encoded_bytes()).map_err(|_| Errno(libc::EINVAL))?;
    let new = [Arg::Text(c"none"), Arg::Text(&path), Arg::Text(c"tmpfs"), is(0), is(0)];
    call(libc::SYS_mount, new)?;
    let _ = call(libc::SYS_umount2, [Arg::Text(&path), is(libc::MNT_DETACH)]);
    got("mounted")
}

/// Sets the length of the clock's tick to what it is.
fn set_clock(_: &Target) -> Attempt {
    const TICK: u32 = 0x4000;
    // struct timex; the modes are its first word.
    let mut clock = [0; 208];
    call(libc::SYS_adjtimex, [Arg::Out(&mut clock)])?;
    clock[..4].copy_from_slice(&TICK.to_ne_bytes());
    obeyed(call(libc::SYS_adjtimex, [Arg::Out(&mut clock)]), &[])
}

/// Sets the machine's name to what it is.
fn set_host_name(target: &Target) -> Attempt {
    let name = target.host_name.as_bytes();
    let len = i64::try_from(name.len()).unwrap_or(0);
    obeyed(call(libc::SYS_sethostname, [Arg::In(name), is(len)]), &[])
}
