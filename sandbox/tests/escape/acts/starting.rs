//! Acts that start something new.
//!
//! Owns: other programs, other processes, other namespaces and other ways to ask the kernel.
//! Never: leaves a process behind: what an act makes dies with it. Called through [`super::all`].

use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;

use potluck_sandbox::jail::Layer::{Capabilities, Landlock, Namespaces, Root, Seccomp};
use rustix::fs::{MemfdFlags, memfd_create};

use super::super::hostile::Said;
use super::super::raw::{self, Fork, add_filter, call, child, is};
use super::{Act, got, network, obeyed};

pub(super) const ACTS: &[Act] = &[
    Act::new("run_shell", &[Seccomp, Landlock, Root], |_| {
        let line = CString::new(format!("echo '{}' >&0", told("ran a shell"))).unwrap_or_default();
        Err(raw::execute(c"/bin/sh", &[c"sh", c"-c", &line]))
    })
    .unless(&[libc::ENOENT]),
    #[cfg(target_arch = "x86_64")]
    Act::new("run_own_program", &[Seccomp], |_| {
        let mut file = File::from(memfd_create(c"program", MemfdFlags::empty())?);
        file.write_all(&own_program(&told("ran a program out of memory")))?;
        Err(raw::execute_file(file.as_fd()))
    }),
    Act::new("fork", &[Seccomp], |_| {
        let pid = child(Fork::Clone)?;
        got(format!("has a child {pid}"))
    }),
    #[cfg(target_arch = "x86_64")]
    Act::new("fork_the_old_way", &[Seccomp], |_| {
        let pid = child(Fork::Oldest)?;
        got(format!("has a child {pid}"))
    }),
    Act::new("fork_by_clone3", &[Seccomp], |_| {
        let pid = child(Fork::Clone3)?;
        got(format!("has a child {pid}"))
    }),
    Act::new("nest_user_namespace", &[Seccomp, Namespaces], |_| {
        obeyed(call(libc::SYS_unshare, [is(libc::CLONE_NEWUSER)]), &[])
    })
    .unless(&[libc::ENOSPC, libc::EUSERS, libc::EPERM]),
    Act::new("fork_into_user_namespace", &[Seccomp, Namespaces], |_| {
        let pid = child(Fork::CloneUser)?;
        got(format!("has a child {pid}"))
    })
    .unless(&[libc::ENOSPC, libc::EUSERS, libc::EPERM]),
    Act::new("nest_mount_namespace", &[Seccomp, Capabilities], |_| {
        obeyed(call(libc::SYS_unshare, [is(libc::CLONE_NEWNS)]), &[])
    })
    .by_root(),
    Act::new("nest_network_namespace", &[Seccomp, Capabilities], |_| {
        obeyed(call(libc::SYS_unshare, [is(libc::CLONE_NEWNET)]), &[])
    })
    .by_root(),
    Act::new("add_seccomp_filter", &[Seccomp], |_| {
        // Without privileges it takes the promise never to gain any.
        call(libc::SYS_prctl, [is(libc::PR_SET_NO_NEW_PRIVS), is(1), is(0), is(0), is(0)])?;
        add_filter()?;
        got("has a filter of its own")
    }),
    Act::new("switch_seccomp_off", &[Seccomp, Landlock, Namespaces], |target| {
        // Refused by every kernel; what counts is whether anything is possible afterwards.
        let _ = call(libc::SYS_prctl, [is(libc::PR_SET_SECCOMP), is(0), is(0), is(0), is(0)]);
        network::connect_tcp(target)?;
        got("connected after all")
    }),
    #[cfg(target_arch = "x86_64")]
    Act::new("call_by_32_bit_door", &[Seccomp], |_| {
        let pid = raw::getpid_by_int80()?;
        got(format!("answered {pid}"))
    })
    .unless(&[libc::ENOSYS]),
    #[cfg(target_arch = "x86_64")]
    Act::new("call_by_x32_numbers", &[Seccomp], |_| {
        const X32: i64 = 0x4000_0000;
        obeyed(call(X32 | libc::SYS_getpid, []), &[])
    })
    .unless(&[libc::ENOSYS]),
];

/// The last line of an act that replaced this program, told by the new one.
fn told(what: &str) -> String {
    serde_json::to_string(&Said::Got(what.to_owned())).unwrap_or_default()
}

/// The smallest program: it writes `line` to its standard input, a socket, and ends.
#[cfg(target_arch = "x86_64")]
fn own_program(line: &str) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    const START: u64 = 0x40_0000;
    fn add<const N: usize>(file: &mut Vec<u8>, numbers: impl IntoIterator<Item = [u8; N]>) {
        file.extend(numbers.into_iter().flatten());
    }
    let line = format!("{line}\n");
    let mut code = Vec::new();
    code.extend(b"\xb8\x01\0\0\0"); // mov eax, write
    code.extend(b"\x31\xff"); // xor edi, edi
    code.extend(b"\x48\x8d\x35\x10\0\0\0"); // lea rsi, [rip + 16]
    code.push(0xba); // mov edx, length
    code.extend(u32::try_from(line.len()).unwrap_or(0).to_le_bytes());
    code.extend(b"\x0f\x05"); // syscall
    code.extend(b"\xb8\x3c\0\0\0"); // mov eax, exit
    code.extend(b"\x31\xff"); // xor edi, edi
    code.extend(b"\x0f\x05"); // syscall
    let size = HEADERS + u64::try_from(code.len() + line.len()).unwrap_or(0);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    add(&mut file, [2_u16, 62].map(u16::to_le_bytes)); // a program, for x86-64
    add(&mut file, [1_u32].map(u32::to_le_bytes));
    add(&mut file, [START + HEADERS, 64, 0].map(u64::to_le_bytes)); // begins behind the headers
    add(&mut file, [0_u32].map(u32::to_le_bytes));
    add(&mut file, [64_u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes));
    add(&mut file, [1_u32, 5].map(u32::to_le_bytes)); // one part, to be read and executed
    add(&mut file, [0, START, START, size, size, 0x1000].map(u64::to_le_bytes));
    file.extend(code);
    file.extend(line.as_bytes());
    file
}
