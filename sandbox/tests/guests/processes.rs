//! The processes behind a guest: killed, stopped, paused, and many of them.
//!
//! Owns: that a worker's death at every step is a typed error, that a pause is one, and that nothing
//! of three hundred jobs is left. Never: believes the worker about itself: the kernel is asked. Run by
//! the guest tests.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use potluck_protocol::id::ContentHash;
use potluck_sandbox::guest::cache::ArtefactCache;
use potluck_sandbox::guest::compiler::CompileError;
use potluck_sandbox::guest::supervisor::{Guest, GuestRunError, GuestStep};
use potluck_sandbox::tensor::ModelCallError;
use rustix::process::{Pid, Signal, kill_process};

use crate::compiling::{branches, functions};
use crate::kit::{ECHO, EMBED, SPIN};
use crate::kit::{begin, brief, compiled, compiler, finish_with, limits, run, spec, start, wasm, within};
use crate::worker::turn;

/// How long a condition may take to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Looks until `found` gives something.
async fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// The processes whose parent is `parent`, the dead that it has not buried included.
fn children(parent: u32) -> BTreeSet<u32> {
    let of = |entry: &fs::DirEntry| -> Option<(u32, u32)> {
        let child = entry.file_name().to_str()?.parse().ok()?;
        Some((child, stat(child)?.get(1)?.parse().ok()?))
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| of(&entry)).filter(|(_, of)| *of == parent).map(|(pid, _)| pid).collect()
}

/// The fields of a process's account after its name, the first of which is its state.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// The processor time that a process has had, in ticks.
fn ticks(pid: u32) -> u64 {
    let stat = stat(pid).expect("it runs");
    stat[11].parse::<u64>().unwrap() + stat[12].parse::<u64>().unwrap()
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// Waits until this process has no child any more, living or dead.
pub(crate) async fn assert_no_children() {
    let me = std::process::id();
    wait_for("a worker is left", || children(me).is_empty().then_some(())).await;
}

/// Kills the worker inside its jail, as soon as it is there and has at least `threads` threads: the
/// child of this process's only child.
async fn kill_inside(threads: usize) {
    let worker = wait_for("no worker", || {
        let launcher = children(std::process::id()).into_iter().next()?;
        let worker = children(launcher).into_iter().next()?;
        let status = fs::read_to_string(format!("/proc/{worker}/status")).ok()?;
        let is = |line: &str| status.lines().any(|other| other == line);
        let ready = is("Seccomp:\t2") && !(1..threads).any(|fewer| is(&format!("Threads:\t{fewer}")));
        ready.then_some(worker)
    });
    signal(worker.await, Signal::KILL);
}

fn assert_killed(step: &str, error: &GuestRunError) {
    let GuestRunError::Died { death } = error else { panic!("{step}: {error}") };
    assert_eq!(death.signal, Some(9), "{step}: the launcher says how the worker died");
    assert!(!error.is_guests_fault(), "{step}: nobody blames the renter for a kill from outside");
}

/// The daemon's side is as good as new.
async fn assert_well() {
    assert_no_children().await;
    assert_eq!(run(&wasm(ECHO), b"well", limits()).await.unwrap().output, Ok(b"well".to_vec()));
}

#[tokio::test]
async fn a_worker_that_is_killed_is_a_typed_death_at_every_step() {
    let _turn = turn();
    // One thread listens from when the component is whole.
    let (heavy, compiler) = (functions(100_000, &branches(2)), compiler());
    let (error, ()) = tokio::join!(within(compiler.compile(&heavy)), kill_inside(2));
    let error = error.unwrap_err();
    let CompileError::Died { death } = &error else { panic!("while it compiles: {error}") };
    assert!(death.signal == Some(9) && !error.is_guests_fault(), "while it compiles: {error}");

    let echo = wasm(ECHO);
    let artefact = compiled(&echo).await;
    assert_no_children().await;
    let (started, ()) = tokio::join!(within(Guest::start(spec(artefact, limits()))), kill_inside(1));
    let error = match started {
        // It was faster than the kill.
        Ok(mut guest) => finish_with(&mut guest, b"", &[], [0; 32]).await.unwrap_err(),
        Err(error) => error,
    };
    assert_killed("while it loads", &error);

    let mut guest = start(&echo, limits()).await.unwrap();
    signal(guest.pid(), Signal::KILL);
    let error = finish_with(&mut guest, b"", &[], [0; 32]).await.unwrap_err();
    assert_killed("when it has loaded", &error);

    let mut guest = start(&wasm(SPIN), limits()).await.unwrap();
    guest.run(begin(b"", &[], [0; 32])).unwrap();
    let (pid, before) = (guest.pid(), ticks(guest.pid()));
    wait_for("it does not compute", || (ticks(pid) > before + 2).then_some(())).await;
    signal(pid, Signal::KILL);
    assert_killed("while it computes", &within(guest.next()).await.unwrap_err());

    let mut guest = start(&wasm(EMBED), limits()).await.unwrap();
    guest.run(begin(b"a", &["encoder"], [0; 32])).unwrap();
    let GuestStep::Call { call, .. } = within(guest.next()).await.unwrap() else { panic!("it asks first") };
    signal(guest.pid(), Signal::KILL);
    guest.reply(call, Err(ModelCallError::ModelLost)).unwrap();
    assert_killed("while it waits for a model", &within(guest.next()).await.unwrap_err());
    assert_well().await;
}

#[tokio::test]
async fn a_killed_launcher_takes_the_worker_along() {
    let _turn = turn();
    let mut guest = start(&wasm(SPIN), limits()).await.unwrap();
    guest.run(begin(b"", &[], [0; 32])).unwrap();
    let worker = guest.pid();
    let [launcher] = children(std::process::id()).into_iter().collect::<Vec<_>>()[..] else { panic!() };
    signal(launcher, Signal::KILL);
    assert_killed("without its launcher", &within(guest.next()).await.unwrap_err());
    wait_for("the worker outlives its launcher", || stat(worker).is_none_or(|s| s[0] == "Z").then_some(()))
        .await;
    assert_well().await;
}

#[tokio::test]
async fn a_worker_that_does_not_stop_itself_is_killed() {
    let _turn = turn();
    let mut guest = start(&wasm(SPIN), brief(200)).await.unwrap();
    guest.run(begin(b"", &[], [0; 32])).unwrap();
    // Its own clock stands still with it, and it does not hear a polite end either.
    signal(guest.pid(), Signal::STOP);
    let error = within(guest.next()).await.unwrap_err();
    let killed = matches!(error, GuestRunError::Overrun { limit_ms: 200 });
    assert!(killed && error.is_guests_fault(), "the daemon's own timer kills it: {error}");
    assert_no_children().await;
    // A dropped guest is no different.
    let guest = start(&wasm(SPIN), limits()).await.unwrap();
    signal(guest.pid(), Signal::STOP);
    drop(guest);
    assert_well().await;
}

/// Are all threads of a process asleep?
fn sleeps(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    threads
        .map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap())
        .all(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('S')))
}

#[tokio::test]
async fn a_paused_guest_computes_nothing_and_goes_on_afterwards() {
    let _turn = turn();
    let mut guest = start(&wasm(SPIN), limits()).await.unwrap();
    guest.run(begin(b"", &[], [0; 32])).unwrap();
    let pid = guest.pid();
    let before = ticks(pid);
    wait_for("it does not compute", || (ticks(pid) > before + 2).then_some(())).await;
    guest.pause().unwrap();
    wait_for("a pause stops nothing", || sleeps(pid).then_some(())).await;
    let (paused, mut looks) = (ticks(pid), 0);
    wait_for("it is not looked at", || {
        assert!(sleeps(pid) && ticks(pid) == paused, "the clock's checkpoint holds a paused guest");
        looks += 1;
        (looks == 100).then_some(())
    })
    .await;
    guest.resume().unwrap();
    wait_for("it does not go on", || (ticks(pid) > paused + 2).then_some(())).await;
    within(guest.stop()).await;
}

/// What this process has.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    children: BTreeSet<u32>,
}

impl Holdings {
    fn now() -> Self {
        let count = |path: &str| fs::read_dir(path).unwrap().count();
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            children: children(std::process::id()),
        }
    }
}

/// This process's memory that only it has, in bytes.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// Jobs of one component that is compiled already.
const JOBS: usize = 300;
/// Jobs before the first count: by then every lazy thing of this process has come to be.
const WARM_UP: usize = 20;
/// What the allocator may keep more of. One job's frames kept each time would be many times that.
const GROWTH: u64 = 6 << 20;

#[tokio::test]
async fn three_hundred_jobs_leave_nothing_behind() {
    let _turn = turn();
    let (echo, folder) = (wasm(ECHO), tempfile::tempdir().unwrap());
    let made = within(compiler().compile(&echo)).await.unwrap();
    let cache = ArtefactCache::open(folder.path(), made.engine, 1 << 30).unwrap();
    cache.put(ContentHash::of(&echo), &made.artefact).unwrap();
    drop(made);
    let input = vec![7; 64 << 10];
    let (mut before, mut had) = (None, 0);
    for job in 0..WARM_UP + JOBS {
        if job == WARM_UP {
            assert_no_children().await;
            (before, had) = (Some(Holdings::now()), memory());
        }
        let artefact = cache.get(ContentHash::of(&echo)).unwrap();
        let mut guest = within(Guest::start(spec(artefact, limits()))).await.unwrap();
        match job % 3 {
            0 => drop(guest),
            _ => {
                let ended = finish_with(&mut guest, &input, &[], [0; 32]).await.unwrap();
                assert!(ended.output.as_ref() == Ok(&input));
                within(guest.stop()).await;
            }
        }
    }
    let before = before.unwrap();
    let after = Holdings::now;
    wait_for("something is left", || (after() == before).then_some(())).await;
    let growth = memory().saturating_sub(had);
    assert!(growth < GROWTH, "{} KiB more memory after {JOBS} jobs", growth >> 10);
}
