//! Components for the stories, built from the templates and the example by the tools that a renter has.
//!
//! Owns: fetching those tools once, building once per source, and saying when they cannot be had.
//! Never: runs a component, or writes outside the build's own folder. Called by the stories; ends
//! within [`TOOLS_LIMIT`] and [`BUILD_LIMIT`], and no tool outlives it.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{KitError, io_error};
use crate::programs::{build_folder, program};

/// The longest that fetching tools may take: zig is 80 MB.
pub const TOOLS_LIMIT: Duration = Duration::from_secs(300);
/// The longest that one build may take: zig compiles its C library first.
pub const BUILD_LIMIT: Duration = Duration::from_secs(300);
/// Set to 1, missing tools are a failure and not something to skip. So is `CI=true`.
pub const REQUIRE: &str = "POTLUCK_REQUIRE_GUEST_TOOLS";

/// How much of a tool's output is shown when it fails, in bytes.
const SHOWN: usize = 4_000;

/// A component that the kit can build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// `potluck new --lang python`.
    Python,
    /// `potluck new --lang c`.
    C,
    /// `potluck new --lang rust`.
    Rust,
    /// `client/examples/nearest-lines`.
    NearestLines,
}

impl Guest {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Python, Self::C, Self::Rust, Self::NearestLines];

    /// Its name among the built files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::C => "c",
            Self::Rust => "rust",
            Self::NearestLines => "nearest-lines",
        }
    }

    /// The file that its `make` makes.
    fn product(self) -> &'static str {
        if self == Self::NearestLines { "build/nearest-lines.wasm" } else { "my-job.wasm" }
    }
}

/// The component, built now or before from the same sources. `None` when its tools cannot be had here:
/// that was said on stderr, and the story ends.
///
/// # Errors
/// When it does not build, or its tools are missing although [`REQUIRE`] asks for them.
pub async fn component(guest: Guest) -> Result<Option<PathBuf>, KitError> {
    let root = build_folder()?.join("guest-tools");
    let built = root.join("built");
    fs::create_dir_all(&built).map_err(io_error(format!("create {}", built.display())))?;
    let _turn = lock(&root.join("lock")).await?;
    let scratch = tempfile::tempdir_in(&root).map_err(io_error("make a folder to build in"))?;
    let source = lay_out(guest, scratch.path()).await?;
    let wasm = built.join(format!("{}-{}.wasm", guest.name(), key(&source)?));
    if wasm.is_file() {
        return Ok(Some(wasm));
    }
    let workshop = Workshop { root: &root, source: &source };
    let ready = if guest == Guest::Rust {
        workshop.rust(&wasm.with_extension("checked")).await?
    } else {
        workshop.python(guest).await?
    };
    if !ready {
        return Ok(None);
    }
    let product = source.join(guest.product());
    // Under its last name only when it is whole.
    let whole = wasm.with_extension("part");
    fs::copy(&product, &whole)
        .and_then(|_| fs::rename(&whole, &wasm))
        .map_err(io_error(format!("keep {}", product.display())))?;
    Ok(Some(wasm))
}

/// Puts the sources where they are built: by `potluck new` as a renter would, or copied.
async fn lay_out(guest: Guest, scratch: &Path) -> Result<PathBuf, KitError> {
    let source = scratch.join("my-job");
    if guest != Guest::NearestLines {
        let mut command = Command::new(program("potluck")?);
        command.arg("new").arg(&source).args(["--lang", guest.name()]);
        return match run(command, "potluck new", BUILD_LIMIT).await? {
            (status, _) if status.success() => Ok(source),
            (_, log) => Err(ended("potluck new", "make a job", log)),
        };
    }
    let room = Path::new(env!("CARGO_MANIFEST_DIR"));
    let copies = [
        ("../client/examples/nearest-lines/app.py", "app.py"),
        ("../client/examples/nearest-lines/requirements.txt", "requirements.txt"),
        ("../client/examples/nearest-lines/Makefile", "Makefile"),
        ("../sandbox/wit/job.wit", "wit/job.wit"),
        ("../sandbox/wit/deps/wasi-nn.wit", "wit/deps/wasi-nn.wit"),
    ];
    fs::create_dir_all(source.join("wit/deps")).map_err(io_error("make a folder to build in"))?;
    for (from, to) in copies {
        fs::copy(room.join(from), source.join(to)).map_err(io_error(format!("copy {from}")))?;
    }
    Ok(source)
}

/// A name for all files below `source`, by their content.
fn key(source: &Path) -> Result<String, KitError> {
    let mut files = Vec::new();
    let mut folders = vec![source.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(io_error("read the sources"))? {
            let path = entry.map_err(io_error("read the sources"))?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let text = fs::read(&path).map_err(io_error(format!("read {}", path.display())))?;
        let name = path.strip_prefix(source).unwrap_or(&path).as_os_str().as_encoded_bytes();
        for part in [name, text.as_slice()] {
            hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes()).update(part);
        }
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

/// Where one component is built, and with what.
struct Workshop<'a> {
    root: &'a Path,
    source: &'a Path,
}

impl Workshop<'_> {
    /// Builds with tools from PyPI; false when they cannot be had.
    async fn python(&self, guest: Guest) -> Result<bool, KitError> {
        let pins = self.source.join("requirements.txt");
        let pins = fs::read(&pins).map_err(io_error(format!("read {}", pins.display())))?;
        let tools = self.root.join(format!("tools-{}", &blake3::hash(&pins).to_hex()[..16]));
        let ready = tools.join("ready");
        if let Ok(marker) = File::options().write(true).open(&ready) {
            // Make compares it with the sources, which were laid out just now.
            marker.set_modified(SystemTime::now()).map_err(io_error("mark the tools as fetched"))?;
        } else if let Err(why) = self.fetch(&tools, &ready).await? {
            return missing(guest, &why, true);
        }
        let (status, log) = run(self.make(&tools, &[]), "make", BUILD_LIMIT).await?;
        if status.success() { Ok(true) } else { Err(ended("make", "build a component", log)) }
    }

    async fn fetch(&self, tools: &Path, ready: &Path) -> Result<Result<(), String>, KitError> {
        let ready = ready.to_string_lossy();
        match run(self.make(tools, &[&ready]), "make", TOOLS_LIMIT).await {
            Ok((status, _)) if status.success() => Ok(Ok(())),
            Ok((_, log)) => Ok(Err(log)),
            Err(KitError::TooSlow { within, .. }) => Ok(Err(format!("not fetched within {within:?}"))),
            Err(KitError::Io { action, source }) => Ok(Err(format!("cannot {action}: {source}"))),
            Err(other) => Err(other),
        }
    }

    fn make(&self, tools: &Path, goals: &[&str]) -> Command {
        let mut command = Command::new("make");
        command.current_dir(self.source).arg(format!("TOOLS={}", tools.display())).arg("WIT=wit").args(goals);
        // The outer make's goals and flags are not this one's.
        command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env_remove("MFLAGS");
        command.env("ZIG_GLOBAL_CACHE_DIR", self.root.join("zig"));
        command.env("CARGO_TARGET_DIR", self.root.join("rust"));
        command
    }

    /// Builds with cargo. Where Rust has no wasm target, it is only seen to compile, once; false then.
    async fn rust(&self, checked: &Path) -> Result<bool, KitError> {
        let mut ask = Command::new("rustc");
        ask.args(["--print", "target-libdir", "--target", "wasm32-wasip2"]);
        let (_, libraries) = run(ask, "rustc", BUILD_LIMIT).await?;
        let has_target = Path::new(libraries.trim()).is_dir();
        if !has_target && checked.is_file() {
            return missing(Guest::Rust, NO_TARGET, false);
        }
        let mut fetch = Command::new("cargo");
        fetch.current_dir(self.source).args(["fetch", "--quiet"]);
        let (status, log) = run(fetch, "cargo fetch", TOOLS_LIMIT).await?;
        if !status.success() {
            return missing(Guest::Rust, &log, true);
        }
        let goals: &[&str] = if has_target { &[] } else { &["check"] };
        let (status, log) = run(self.make(Path::new("build/tools"), goals), "make", BUILD_LIMIT).await?;
        if !status.success() {
            return Err(ended("make", "compile the Rust template", log));
        }
        if has_target {
            return Ok(true);
        }
        File::create(checked).map_err(io_error("note that the Rust template compiles"))?;
        missing(Guest::Rust, NO_TARGET, false)
    }
}

const NO_TARGET: &str = "rustup target add wasm32-wasip2 was not run here; the template was only seen to compile for this machine";

/// Says that a guest is skipped; an error where `strict` and tools are required. Rust's wasm target is
/// never required: only rustup has it, and not every machine that builds Potluck has rustup.
fn missing(guest: Guest, why: &str, strict: bool) -> Result<bool, KitError> {
    let set = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if strict && (set("CI", "true") || set(REQUIRE, "1")) {
        return Err(KitError::NoTools { what: guest.name().into(), why: why.trim().into() });
    }
    // Not by a macro: the test harness would keep it for itself when the test passes.
    let _ = writeln!(std::io::stderr(), "SKIPPED: no {} component: {}", guest.name(), why.trim());
    Ok(false)
}

fn ended(program: &str, what: &str, log: String) -> KitError {
    KitError::Ended { program: program.into(), what: what.into(), log }
}

/// Waits until no other test builds.
async fn lock(path: &Path) -> Result<File, KitError> {
    let file = File::create(path).map_err(io_error(format!("create {}", path.display())))?;
    let within = TOOLS_LIMIT + BUILD_LIMIT;
    let deadline = Instant::now() + within;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::Error(why)) => return Err(io_error("lock the guest tools")(why)),
            Err(fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                let (program, what) = ("another test".into(), "finish building components".into());
                return Err(KitError::TooSlow { program, what, within, log: String::new() });
            }
            Err(fs::TryLockError::WouldBlock) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Runs a tool to its end; gives how it ended and the end of what it said. Its own group of processes
/// is killed when it is too slow.
async fn run(mut command: Command, name: &str, within: Duration) -> Result<(ExitStatus, String), KitError> {
    let said = tempfile::tempfile().map_err(io_error("make a log"))?;
    let copy = || said.try_clone().map_err(io_error("make a log"));
    command.stdin(Stdio::null()).stdout(copy()?).stderr(copy()?).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(io_error(format!("start {name}")))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let ended = timeout(within, child.wait()).await;
    let log = tail(&said);
    match ended {
        Ok(status) => Ok((status.map_err(io_error(format!("wait for {name}")))?, log)),
        Err(_) => {
            if let Some(group) = group {
                // The child is not reaped yet, so the number is still its own.
                let _ = kill_process_group(group, Signal::KILL);
            }
            Err(KitError::TooSlow { program: name.into(), what: "end".into(), within, log })
        }
    }
}

/// The end of what a tool said.
fn tail(said: &File) -> String {
    use std::os::unix::fs::FileExt as _;
    let length = said.metadata().map(|about| about.len()).unwrap_or_default();
    let shown = u64::try_from(SHOWN).unwrap_or(u64::MAX).min(length);
    let mut bytes = vec![0; usize::try_from(shown).unwrap_or(SHOWN)];
    match said.read_exact_at(&mut bytes, length - shown) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(why) => format!("(its output cannot be read: {why})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_sources_apart() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("a", "one");
        let first = key(folder.path()).unwrap();
        assert_eq!(first, key(folder.path()).unwrap());
        write("a", "two");
        let second = key(folder.path()).unwrap();
        write("b", "");
        let third = key(folder.path()).unwrap();
        assert!(first != second && second != third && first != third, "{first} {second} {third}");
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("sleep 1000 & echo $! > {}; echo begun; wait", pid.display()));
        let within = Duration::from_millis(500);
        let why = run(command, "sh", within).await.unwrap_err();
        assert!(matches!(&why, KitError::TooSlow { log, .. } if log == "begun\n"), "{why}");
        let child = fs::read_to_string(&pid).unwrap().trim().parse().ok().and_then(Pid::from_raw).unwrap();
        assert!(crate::process::wait_for_end(child, Duration::from_secs(5)));
    }
}
