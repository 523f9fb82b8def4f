//! Which system calls each kind of worker may make, and why.
//!
//! Owns: the lists. Never: an entry without its reason. Called by [`super`].
//!
//! A list is what the code needs, found by running it (`strace -f`, and the record mode of
//! [`super::super::JailPlan`]), not what looks harmless.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, Error, SeccompCmpArgLen as Width, SeccompCmpOp as Op, SeccompCondition, SeccompRule,
};

use super::super::plan::Profile;

/// Calls and the arguments with which each is meant; no rule means any arguments.
pub(super) type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// One allowed call.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    call: i64,
    when: When,
}

/// For which arguments a call is allowed.
#[derive(Debug, Clone, Copy)]
enum When {
    /// For any.
    Always,
    /// When the 32 bits of an argument, masked, are this.
    Masked { argument: u8, mask: u32, value: u32 },
    /// When the first argument is this process's number.
    Own,
    /// When two arguments are 0 (`prlimit64` that only asks, and about this process).
    BothZero(u8, u8),
}

impl When {
    /// As the filter compiler takes it; `None` for any arguments.
    fn conditions(self) -> Result<Option<Vec<SeccompCondition>>, BackendError> {
        let is = SeccompCondition::new;
        Ok(Some(match self {
            Self::Always => return Ok(None),
            Self::Masked { argument, mask, value } => {
                vec![is(argument, Width::Dword, Op::MaskedEq(mask.into()), value.into())?]
            }
            Self::Own => {
                let own = rustix::process::getpid().as_raw_pid().unsigned_abs();
                vec![is(0, Width::Dword, Op::Eq, own.into())?]
            }
            Self::BothZero(one, other) => {
                vec![is(one, Width::Qword, Op::Eq, 0)?, is(other, Width::Qword, Op::Eq, 0)?]
            }
        }))
    }
}

const fn any(call: i64) -> Allowed {
    Allowed { call, when: When::Always }
}

const fn masked(call: i64, argument: u8, mask: u32, value: u32) -> Allowed {
    Allowed { call, when: When::Masked { argument, mask, value } }
}

/// When an argument of 32 bits is this.
const fn is(call: i64, argument: u8, value: i32) -> Allowed {
    masked(call, argument, u32::MAX, value.cast_unsigned())
}

const EXECUTABLE: u32 = libc::PROT_EXEC.cast_unsigned();
const WRITABLE: u32 = libc::PROT_WRITE.cast_unsigned();
const BY_DESCRIPTOR: u32 = libc::AT_EMPTY_PATH.cast_unsigned();
/// What glibc makes a thread with: everything shared, and no namespace flag.
const THREAD: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID)
    .cast_unsigned();
/// Set by some C libraries beside the above, and without meaning.
const IGNORED_BY_CLONE: u32 = libc::CLONE_DETACHED.cast_unsigned();
/// glibc names its heaps where the kernel can show that.
const PR_SET_VMA: i32 = 0x5356_4d41;

/// What every worker needs.
const COMMON: &[Allowed] = &[
    // The socket to the daemon, the model, the log.
    any(libc::SYS_read),
    any(libc::SYS_write),
    any(libc::SYS_readv),
    any(libc::SYS_writev),
    any(libc::SYS_pread64),
    any(libc::SYS_recvfrom),
    any(libc::SYS_sendto),
    any(libc::SYS_shutdown),
    any(libc::SYS_close),
    any(libc::SYS_lseek),
    any(libc::SYS_dup),
    // Copies of the three descriptors, and whether they block. Not to set that: the model's flags are
    // shared with the daemon and with every other worker on the same file.
    is(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC),
    is(libc::SYS_fcntl, 1, libc::F_GETFL),
    is(libc::SYS_fcntl, 1, libc::F_GETFD),
    is(libc::SYS_fcntl, 1, libc::F_SETFD),
    // How long the model is: by descriptor, not by name.
    any(libc::SYS_fstat),
    masked(libc::SYS_newfstatat, 3, BY_DESCRIPTOR, BY_DESCRIPTOR),
    masked(libc::SYS_statx, 2, BY_DESCRIPTOR, BY_DESCRIPTOR),
    // Memory that holds data. Executable memory is a profile's own matter.
    masked(libc::SYS_mmap, 2, EXECUTABLE, 0),
    masked(libc::SYS_mprotect, 2, EXECUTABLE, 0),
    any(libc::SYS_munmap),
    any(libc::SYS_mremap),
    any(libc::SYS_madvise),
    any(libc::SYS_brk),
    // Threads of this process, never another process.
    masked(libc::SYS_clone, 0, !IGNORED_BY_CLONE, THREAD),
    // Answered "no such call" by a filter of its own, so that glibc asks for the above.
    any(libc::SYS_clone3),
    any(libc::SYS_set_robust_list),
    any(libc::SYS_rseq),
    any(libc::SYS_futex),
    any(libc::SYS_sched_yield),
    // How many cores there are, and which this is.
    any(libc::SYS_sched_getaffinity),
    any(libc::SYS_getcpu),
    any(libc::SYS_getpid),
    any(libc::SYS_gettid),
    any(libc::SYS_membarrier),
    is(libc::SYS_prctl, 0, libc::PR_SET_NAME),
    is(libc::SYS_prctl, 0, PR_SET_VMA),
    // How large the stack may be: only to ask, only about itself.
    Allowed { call: libc::SYS_prlimit64, when: When::BothZero(0, 2) },
    // Stack overflows and panics are caught; abort() signals this process.
    any(libc::SYS_rt_sigaction),
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_rt_sigreturn),
    any(libc::SYS_sigaltstack),
    Allowed { call: libc::SYS_tgkill, when: When::Own },
    any(libc::SYS_restart_syscall),
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
    // Time and waiting.
    any(libc::SYS_clock_gettime),
    any(libc::SYS_clock_getres),
    any(libc::SYS_clock_nanosleep),
    any(libc::SYS_nanosleep),
    any(libc::SYS_gettimeofday),
    any(libc::SYS_ppoll),
    // Seeds of hash tables.
    any(libc::SYS_getrandom),
    // Older forms of the above that only this architecture has.
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_poll),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_time),
];

/// Installing the second filter.
const SEALING: &[Allowed] =
    &[is(libc::SYS_prctl, 0, libc::PR_SET_NO_NEW_PRIVS), is(libc::SYS_seccomp, 0, SET_FILTER)];
const SET_FILTER: i32 = libc::SECCOMP_SET_MODE_FILTER.cast_signed();

/// What a CUDA worker does before it is sealed: load the driver's libraries and open the card, inside
/// of what the root and Landlock leave.
const CUDA_START: &[Allowed] = &[
    // The second Landlock set.
    any(libc::SYS_landlock_create_ruleset),
    any(libc::SYS_landlock_restrict_self),
    // Libraries, device nodes and /sys.
    any(libc::SYS_openat),
    any(libc::SYS_newfstatat),
    any(libc::SYS_statx),
    any(libc::SYS_statfs),
    any(libc::SYS_faccessat),
    any(libc::SYS_faccessat2),
    any(libc::SYS_readlinkat),
    any(libc::SYS_getdents64),
    // Libraries are mapped executable.
    any(libc::SYS_mmap),
    any(libc::SYS_mprotect),
    // The driver asks who it runs as, where and how.
    any(libc::SYS_uname),
    any(libc::SYS_getuid),
    any(libc::SYS_geteuid),
    any(libc::SYS_getgid),
    any(libc::SYS_getegid),
    any(libc::SYS_sysinfo),
    any(libc::SYS_sched_getparam),
    any(libc::SYS_sched_getscheduler),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_open),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_stat),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_lstat),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_access),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_readlink),
];

/// What the CUDA driver does while it works.
const CUDA: &[Allowed] = &[
    // Its staging buffers are anonymous files.
    any(libc::SYS_memfd_create),
    any(libc::SYS_ftruncate),
    // Events from the card.
    any(libc::SYS_eventfd2),
    any(libc::SYS_pipe2),
    any(libc::SYS_epoll_create1),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_epoll_pwait),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_epoll_wait),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_pipe),
    // Its threads stay near the card's memory, and its buffers in memory.
    any(libc::SYS_sched_setaffinity),
    any(libc::SYS_get_mempolicy),
    any(libc::SYS_mbind),
    any(libc::SYS_mlock),
    any(libc::SYS_munlock),
    any(libc::SYS_msync),
    any(libc::SYS_mincore),
];

/// What a guest's runtime needs.
const WASM: &[Allowed] = &[
    // Compiled code becomes executable when it is no longer writable.
    masked(libc::SYS_mprotect, 2, WRITABLE, 0),
    // tokio waits for timers and its own wake-ups.
    any(libc::SYS_epoll_create1),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_epoll_pwait),
    #[cfg(target_arch = "x86_64")]
    any(libc::SYS_epoll_wait),
    any(libc::SYS_eventfd2),
];

/// An ioctl number without the size of its argument, which differs between driver versions.
const WITHOUT_SIZE: u32 = !(0x3fff << 16);
/// Both directions, type 'F': every call to NVIDIA's front end.
const NVIDIA: u32 = 3 << 30 | 0x46 << 8;

/// NVIDIA's front end, as gVisor's proxy lists it: memory, objects and control (0x27 to 0x5e), then
/// files, events, versions and attaching cards (200 to 218).
const NVIDIA_CALLS: [u8; 19] =
    [0x27, 0x29, 0x2a, 0x2b, 0x34, 0x35, 0x4a, 0x4e, 0x4f, 0x5e, 200, 201, 206, 207, 210, 212, 214, 215, 218];

/// NVIDIA's unified memory, whose numbers are bare. 0x30000001 and 2 begin and end its use; the rest
/// map, register, migrate and pin.
const UVM_CALLS: [u32; 30] = [
    0x3000_0001,
    0x3000_0002,
    23,
    24,
    25,
    26,
    27,
    28,
    29,
    30,
    31,
    33,
    34,
    37,
    38,
    39,
    42,
    43,
    44,
    45,
    46,
    47,
    51,
    53,
    65,
    66,
    68,
    72,
    73,
    75,
];

/// Windows' side of WSL2 answers through one device, whose calls are all of type 'G'.
const WINDOWS: u32 = 3 << 30 | 0x47 << 8;
const WITHOUT_SIZE_AND_NUMBER: u32 = 3 << 30 | 0xff << 8;

/// What may be asked of a card, as rules.
fn device_calls() -> Vec<Allowed> {
    let front =
        NVIDIA_CALLS.map(|number| masked(libc::SYS_ioctl, 1, WITHOUT_SIZE, NVIDIA | u32::from(number)));
    let memory = UVM_CALLS.map(|number| masked(libc::SYS_ioctl, 1, u32::MAX, number));
    let windows = masked(libc::SYS_ioctl, 1, WITHOUT_SIZE_AND_NUMBER, WINDOWS);
    front.into_iter().chain(memory).chain([windows]).collect()
}

/// Stage A: what it takes to get ready.
pub(super) fn start_up(profile: Profile) -> Result<Rules, Error> {
    let start: &[Allowed] = if profile.opens_files_before_seal() { CUDA_START } else { &[] };
    rules(COMMON.iter().chain(profile_list(profile)).chain(SEALING).chain(start), profile)
}

/// Stage B: what it takes to work.
pub(super) fn work(profile: Profile) -> Result<Rules, Error> {
    rules(COMMON.iter().chain(profile_list(profile)), profile)
}

fn profile_list(profile: Profile) -> &'static [Allowed] {
    match profile {
        Profile::Gpu { cuda: true } => CUDA,
        Profile::Wasm => WASM,
        Profile::Gpu { cuda: false } | Profile::Compile => &[],
    }
}

/// A list as the filter compiler takes it. A call that is listed more than once is allowed in any of
/// the ways.
fn rules<'a>(list: impl Iterator<Item = &'a Allowed>, profile: Profile) -> Result<Rules, Error> {
    let devices = if profile == (Profile::Gpu { cuda: true }) { device_calls() } else { Vec::new() };
    let mut rules = Rules::new();
    let mut always = Vec::new();
    for Allowed { call, when } in list.copied().chain(devices) {
        let ways = rules.entry(call).or_default();
        match when.conditions().map_err(Error::Backend)? {
            None => always.push(call),
            Some(conditions) => ways.push(SeccompRule::new(conditions).map_err(Error::Backend)?),
        }
    }
    for call in always {
        rules.insert(call, Vec::new());
    }
    Ok(rules)
}

/// Calls that neither a worker nor a library of one has a use for: an attempt is an attack.
pub(super) const HOSTILE: &[i64] = &[
    // Running another program.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes' memory and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_process_madvise,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_mount_setattr,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_mknodat,
    // Programs inside the kernel, and its rarely trodden corners.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // The machine itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_quotactl,
    libc::SYS_syslog,
];
