//! Acts on devices.
//!
//! Owns: opening and making device nodes, and controls that are on no worker's list. Never: uses a
//! device that opens. Called through [`super::all`].

use std::fs::OpenOptions;

use potluck_sandbox::jail::Layer::{Capabilities, Landlock, Root, Seccomp};
use rustix::stdio;

use super::super::raw::{Arg, call, control, is};
use super::{Act, any_of, got, obeyed};

pub(super) const ACTS: &[Act] = &[
    Act::new("open_devices", &[Seccomp, Landlock, Root], |_| {
        let nodes = ["/dev/kmsg", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/loop0", "/dev/ptmx"];
        any_of(&nodes, |path| {
            OpenOptions::new().read(true).write(true).open(path)?;
            got(format!("opened {path}"))
        })
    }),
    Act::new("open_memory_or_disk_of_machine", &[Seccomp, Landlock, Root], |_| {
        any_of(&["/dev/mem", "/dev/port", "/proc/kcore", "/dev/vda", "/dev/sda"], |path| {
            OpenOptions::new().read(true).open(path)?;
            got(format!("opened {path}"))
        })
    })
    .by_root()
    .unless(&[libc::ENOENT]),
    Act::new("make_device", &[Seccomp, Landlock, Capabilities], |_| {
        // The null device.
        let node = [is(libc::AT_FDCWD), Arg::Text(c"made"), is(libc::S_IFCHR | 0o666), is(0x103)];
        let made = obeyed(call(libc::SYS_mknodat, node), &[]);
        let _ = std::fs::remove_file("made");
        made
    })
    .by_root(),
    Act::new("type_into_terminal", &[Seccomp], |_| {
        control(stdio::stderr(), libc::TIOCSTI, &mut [b'x'])?;
        got("typed a letter")
    })
    .unless(&[libc::EIO, libc::EPERM]),
    Act::new("resize_terminal", &[Seccomp], |_| {
        control(stdio::stderr(), libc::TIOCSWINSZ, &mut [0; 8])?;
        got("resized it")
    }),
    Act::new("control_model_file", &[Seccomp], |_| {
        // Reads the flags by which a file is made unchangeable.
        const GET_FLAGS: u64 = 0x8008_6601;
        control(stdio::stdout(), GET_FLAGS, &mut [0; 8])?;
        got("read its flags")
    })
    .unless(&[libc::ENOTTY]),
    Act::new("control_by_unlisted_number", &[Seccomp], |_| {
        // How much of its socket's queue is unsent: harmless, and on nobody's list.
        control(stdio::stdin(), libc::TIOCOUTQ, &mut [0; 8])?;
        got("was answered")
    }),
];
