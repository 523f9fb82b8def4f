//! The layer of the empty root folder.
//!
//! Owns: a file system in memory with nothing in it but what the plan lists, and letting go of the
//! machine's own. Never: follows a symbolic link in a source, leaves anything writable, or keeps a
//! way back. Called by [`super::enter`], inside the new namespaces.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::process::{chdir, pivot_root};

use super::JailError;
use super::layers::Layer;
use super::plan::{Bind, BindKind, JailPlan, PlacedFile};
use super::sys::{self, BindRights};

/// Where the new root stands until it is the root; the first that this machine has.
const STAGING: [&str; 3] = ["/tmp", "/mnt", "/dev"];
/// Where files that are to lie over another mount are kept.
const PLACED: &str = ".placed";
const READ: BindRights = BindRights { write: false, devices: false, execute: false };

fn failed<E: Into<io::Error>>(act: impl Into<String>) -> impl FnOnce(E) -> JailError {
    move |source| JailError::new(Layer::Root, act, source)
}

/// Builds the root and moves into it.
pub(super) fn build(plan: &JailPlan) -> Result<(), JailError> {
    sys::make_mounts_private().map_err(failed("separating the mounts"))?;
    // Before anything is covered: a source may lie where the new root is put up.
    let sources: Vec<_> = plan.binds.iter().map(open_source).collect::<Result<_, _>>()?;
    let staging = STAGING.into_iter().map(Path::new).find(|path| path.is_dir());
    let staging = staging.ok_or(io::ErrorKind::NotFound).map_err(failed("finding a place for the root"))?;
    sys::mount_tmpfs(staging).map_err(failed("mounting an empty root"))?;
    if plan.procfs {
        let proc = staging.join("proc");
        fs::create_dir(&proc).map_err(failed("making /proc"))?;
        sys::mount_proc(&proc).map_err(failed("mounting /proc"))?;
    }
    for (bind, source) in plan.binds.iter().zip(sources) {
        place(staging, bind, &source).map_err(failed(format!("placing {}", bind.target.display())))?;
    }
    for (number, file) in plan.files.iter().enumerate() {
        write_file(staging, number, file).map_err(failed(format!("writing {}", file.target.display())))?;
    }
    enter(staging)
}

/// A source by descriptor. The plan's sources are without symbolic links, and stay so.
fn open_source(bind: &Bind) -> Result<OwnedFd, JailError> {
    open_path(&bind.source).map_err(failed(format!("opening {}", bind.source.display())))
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    // Without NOFOLLOW, which would make a last link be opened as what it is instead of refused.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(CWD, path, flags, Mode::empty(), resolve)?)
}

/// Makes a source appear in the new root.
fn place(staging: &Path, bind: &Bind, source: &OwnedFd) -> io::Result<()> {
    let is_folder = FileType::from_raw_mode(fstat(source)?.st_mode).is_dir();
    let target = inside(staging, &bind.target)?;
    if is_folder {
        fs::create_dir_all(&target)?;
    } else {
        make_file(&target)?;
    }
    let rights = match bind.kind {
        BindKind::ReadOnly => READ,
        BindKind::Library => BindRights { execute: true, ..READ },
        BindKind::Device => BindRights { write: true, devices: true, ..READ },
    };
    sys::bind(source, open_path(&target)?, rights)
}

/// Writes one of the plan's own files; over another mount (`/proc`) by binding it there.
fn write_file(staging: &Path, number: usize, file: &PlacedFile) -> io::Result<()> {
    let target = inside(staging, &file.target)?;
    if !file.target.starts_with("/proc") {
        make_file(&target)?;
        return fs::write(&target, &file.content);
    }
    if !target.exists() {
        // This driver has no such file; there is nothing to cover.
        return Ok(());
    }
    let kept = staging.join(PLACED).join(number.to_string());
    make_file(&kept)?;
    fs::write(&kept, &file.content)?;
    sys::bind(open_path(&kept)?, open_path(&target)?, READ)
}

/// `target` under `staging`. A plan's targets are absolute and plain.
fn inside(staging: &Path, target: &Path) -> io::Result<PathBuf> {
    let mut path = staging.to_path_buf();
    for part in target.components() {
        match part {
            Component::RootDir => {}
            Component::Normal(name) => path.push(name),
            _ => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    }
    Ok(path)
}

/// An empty file and the folders that it needs.
fn make_file(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::options().create(true).append(true).open(path).map(drop)
}

/// Makes `staging` the root and lets go of the old one.
fn enter(staging: &Path) -> Result<(), JailError> {
    chdir(staging).map_err(failed("entering the new root"))?;
    // The old root is put on top of the new one and then taken away: no folder for it is needed.
    pivot_root(".", ".").map_err(failed("changing the root"))?;
    sys::detach_here().map_err(failed("letting go of the old root"))?;
    chdir("/").map_err(failed("entering the new root"))?;
    sys::make_root_read_only().map_err(failed("write-protecting the root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_stays_inside_and_a_source_is_no_link() {
        let root = Path::new("/new");
        assert_eq!(inside(root, Path::new("/dev/nvidia0")).unwrap(), Path::new("/new/dev/nvidia0"));
        assert!(inside(root, Path::new("/dev/../../etc")).is_err());
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        fs::write(folder.join("real"), "x").unwrap();
        std::os::unix::fs::symlink("real", folder.join("link")).unwrap();
        assert!(open_path(&folder.join("real")).is_ok());
        assert!(open_path(&folder.join("link")).is_err());
    }
}
