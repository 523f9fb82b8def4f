//! Acts on the owner's files.
//!
//! Owns: reading what is the owner's, writing anywhere, and turning the descriptors that a worker
//! has, or finds left over, into more than was meant. Never: changes a file that the lab did not
//! make: others are opened, and no more. Called through [`super::all`].

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use potluck_sandbox::jail::Layer::{Capabilities, Descriptors, Landlock, Root, Seccomp};

use super::super::raw::{Arg, call, is};
use super::{Act, Attempt, Errno, Target, any_of, got, obeyed};

pub(super) const ACTS: &[Act] = &[
    Act::new("read_home", &[Seccomp, Landlock, Root], |target| read(target, &target.secret_file)),
    Act::new("read_shadow", &[Seccomp, Landlock, Root], |_| {
        let bytes = fs::read("/etc/shadow")?;
        got(format!("read {} bytes", bytes.len()))
    })
    .by_root()
    .unless(&[libc::ENOENT]),
    Act::new("read_past_the_root", &[Seccomp, Landlock, Root], |target| {
        let below = target.secret_file.strip_prefix("/").unwrap_or(&target.secret_file);
        read(target, &up().join(below))
    }),
    Act::new("break_out_of_chroot", &[Seccomp, Landlock, Root, Capabilities], break_out_of_chroot).by_root(),
    Act::new("open_by_handle", &[Seccomp, Capabilities], open_by_handle)
        .by_root()
        .unless(&[libc::EOPNOTSUPP]),
    Act::new("read_about_the_machine", &[Seccomp, Landlock, Root], |_| {
        any_of(&["/proc/mounts", "/etc/passwd", "/proc/1/cmdline", "/sys/class/net"], |path| {
            opened(File::open(path), path)
        })
    }),
    Act::new("write_home", &[Seccomp, Landlock, Root], |target| write(&target.folder.join("written"))),
    Act::new("write_temporary_folders", &[Seccomp, Landlock, Root], |target| {
        any_of(&TEMPORARY, |folder| {
            let path = temporary_file(folder, target.parent);
            let wrote = write(&path);
            let _ = fs::remove_file(path);
            wrote
        })
    }),
    Act::new("write_own_folder", &[Seccomp, Landlock, Root], |_| write(Path::new("written-here"))),
    Act::new("change_kernel_settings", &[Seccomp, Landlock, Root], |_| {
        any_of(
            &["/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger"],
            |path| opened(OpenOptions::new().write(true).open(path), path),
        )
    })
    .by_root(),
    Act::new("reopen_model_for_writing", &[Seccomp, Landlock, Root], |_| {
        any_of(&["/proc/self/fd/1", "/proc/thread-self/fd/1", "/dev/fd/1", "/dev/stdout"], |path| {
            opened(OpenOptions::new().write(true).open(path), path)
        })
    }),
    Act::new("change_mode_of_model", &[Seccomp], |_| obeyed(call(libc::SYS_fchmod, [is(1), is(0o666)]), &[])),
    Act::new("change_flags_of_model", &[Seccomp], |_| {
        // Its description is shared with the daemon and with other workers, who do not expect that
        // their reads must be aligned.
        obeyed(call(libc::SYS_fcntl, [is(1), is(libc::F_SETFL), is(libc::O_DIRECT)]), &[])
    })
    .unless(&[libc::EINVAL]),
    Act::new("mark_model", &[Seccomp], |_| {
        let set = [is(1), Arg::Text(c"user.potluck"), Arg::In(b"potluck"), is(7), is(0)];
        obeyed(call(libc::SYS_fsetxattr, set), &[])
    })
    .unless(&[libc::EOPNOTSUPP]),
    Act::new("date_model", &[Seccomp], |_| {
        let times = [0; 32];
        obeyed(call(libc::SYS_utimensat, [is(1), is(0), Arg::In(&times), is(0)]), &[])
    }),
    Act::new("read_leftover_file", &[Descriptors], |target| {
        each_leftover(|fd| {
            let mut bytes = [0; 256];
            let len = call(libc::SYS_pread64, [is(fd), Arg::Out(&mut bytes), is(256), is(0)])?;
            target.read(&bytes[..usize::try_from(len).unwrap_or(0)])
        })
    }),
    Act::new("open_in_leftover_folder", &[Descriptors, Seccomp, Landlock], |target| {
        each_leftover(|fd| {
            let file = call(libc::SYS_openat, [is(fd), Arg::Text(c"secret"), is(libc::O_RDONLY)])?;
            let mut bytes = [0; 256];
            let len = call(libc::SYS_read, [is(file), Arg::Out(&mut bytes), is(256)])?;
            target.read(&bytes[..usize::try_from(len).unwrap_or(0)])
        })
    }),
    Act::new("enter_leftover_folder", &[Descriptors, Seccomp, Landlock], |target| {
        each_leftover(|fd| {
            call(libc::SYS_fchdir, [is(fd)])?;
            read(target, Path::new("secret"))
        })
    }),
    Act::new("write_to_leftover_socket", &[Descriptors], |_| {
        each_leftover(|fd| {
            call(libc::SYS_write, [is(fd), Arg::In(b"stolen"), is(6)])?;
            got(format!("wrote to descriptor {fd}"))
        })
    }),
    Act::new("watch_files", &[Seccomp, Root], |target| {
        let watch = call(libc::SYS_inotify_init1, [is(0)])?;
        let path = path_of(&target.secret_file)?;
        let mask = i64::from(libc::IN_ACCESS | libc::IN_MODIFY);
        obeyed(call(libc::SYS_inotify_add_watch, [is(watch), Arg::Text(&path), is(mask)]), &[])
    }),
    Act::new("watch_whole_mounts", &[Seccomp, Capabilities], |target| {
        let group = call(libc::SYS_fanotify_init, [is(0), is(libc::O_RDONLY)])?;
        let path = path_of(&target.folder)?;
        let flags = i64::from(libc::FAN_MARK_ADD | libc::FAN_MARK_MOUNT);
        let mark = [is(group), is(flags), is(2), is(libc::AT_FDCWD), Arg::Text(&path)];
        obeyed(call(libc::SYS_fanotify_mark, mark), &[])
    })
    .by_root()
    .unless(&[libc::ENOSYS]),
];

/// Folders that everybody may write to.
pub(crate) const TEMPORARY: [&str; 4] = ["/tmp", "/dev/shm", "/var/tmp", "/run"];

/// What the act writes in one of them. It may be killed before it takes it away, so the lab that
/// started it (`by`) does too.
pub(crate) fn temporary_file(folder: &str, by: i32) -> PathBuf {
    Path::new(folder).join(format!(".potluck-escape-{by}"))
}

fn path_of(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno(libc::EINVAL))
}

fn read(target: &Target, path: &Path) -> Attempt {
    target.read(&fs::read(path)?)
}

fn write(path: &Path) -> Attempt {
    fs::write(path, "stolen")?;
    got(format!("wrote {}", path.display()))
}

fn opened(file: std::io::Result<File>, path: &str) -> Attempt {
    file?;
    got(format!("opened {path}"))
}

/// More steps up than any folder is deep.
fn up() -> PathBuf {
    PathBuf::from("../".repeat(64))
}

/// The classic: a second chroot leaves the working folder outside of the first.
fn break_out_of_chroot(target: &Target) -> Attempt {
    let folder = if target.own_root { PathBuf::from("/") } else { target.folder.clone() };
    let inner = folder.join("chroot");
    // There may be no leave to make it: any folder will do.
    let inner = if fs::create_dir_all(&inner).is_ok() { inner } else { folder };
    call(libc::SYS_chroot, [Arg::Text(&path_of(&inner)?)])?;
    call(libc::SYS_chdir, [Arg::Text(&path_of(&up())?)])?;
    call(libc::SYS_chroot, [Arg::Text(c".")])?;
    read(target, &target.secret_file)
}

/// Opens a file by its number on the disk, past every folder on the way.
fn open_by_handle(_: &Target) -> Attempt {
    // struct file_handle: room for the handle's bytes, its kind, the bytes.
    let mut handle = [0_u8; 136];
    handle[..4].copy_from_slice(&128_u32.to_ne_bytes());
    let mut mount = [0_u8; 4];
    let name = [is(libc::AT_FDCWD), Arg::Text(c"."), Arg::Out(&mut handle), Arg::Out(&mut mount), is(0)];
    call(libc::SYS_name_to_handle_at, name)?;
    let open = [is(libc::AT_FDCWD), Arg::In(&handle), is(libc::O_RDONLY)];
    obeyed(call(libc::SYS_open_by_handle_at, open), &[])
}

/// Tries `act` on every descriptor that a careless parent may have left open.
fn each_leftover(mut act: impl FnMut(i64) -> Attempt) -> Attempt {
    // What is not open says EBADF, and what is of another kind something else; the word of whoever
    // forbids it tells more than both.
    let mut told = Errno(libc::EBADF);
    for fd in 3..256 {
        match act(fd) {
            Ok(what) => return Ok(what),
            Err(error) if error.0 == libc::EBADF || [libc::EPERM, libc::EACCES].contains(&told.0) => {}
            Err(error) => told = error,
        }
    }
    Err(told)
}
