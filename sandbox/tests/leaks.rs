//! A thousand jobs, and nothing of them left in the process that supervised them.
//!
//! Owns: the promise that a daemon that runs for months neither fills up nor collects the dead. Never:
//! replaces the worker, its jail or the supervisor: the model is small, and real.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]

#[path = "common/tiny.rs"]
mod tiny;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use potluck_protocol::id::ContentHash;
use potluck_protocol::job::{ChatMessage, JobSpec, Role, Sampling};
use potluck_sandbox::engine::DeviceChoice;
use potluck_sandbox::jail::{Jail, JailPlan};
use potluck_sandbox::supervisor::{RunEvent, Worker, WorkerLimits, WorkerSpec};
use rustix::process::Signal;
use tiny::TinyLlm;

/// Workers that are started and ended, and jobs of each: a thousand jobs in all.
const WORKERS: usize = 200;
const JOBS: usize = 5;
/// Workers before the first count: by then every lazy thing of this process has come to be.
const WARM_UP: usize = 20;
/// What the allocator may keep more of after a thousand jobs, in bytes. One descriptor's buffers, or
/// one job's prompt and answer, kept each time would be many times that.
const GROWTH: u64 = 6 << 20;
/// How long the last of the dead may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

fn spec() -> WorkerSpec {
    let bytes = TinyLlm::default().bytes();
    let plan = JailPlan::cpu(u64::try_from(bytes.len()).unwrap(), 1);
    WorkerSpec {
        program: env!("CARGO_BIN_EXE_potluck-gpu-worker").into(),
        model: tiny::file(&bytes),
        device: DeviceChoice::Cpu,
        threads: Some(1),
        jail: Jail::Jailed(Box::new(plan)),
        limits: WorkerLimits::default(),
    }
}

fn job(seed: u64) -> JobSpec {
    JobSpec {
        model: ContentHash::from_bytes([0; 32]),
        messages: vec![ChatMessage { role: Role::User, content: "hello ".repeat(8) }],
        sampling: Sampling { max_tokens: 4, temperature_milli: 900, top_p_milli: 950, seed },
    }
}

/// One worker's life, which ends in one of the four ways that there are.
async fn live(number: usize) {
    let mut worker = Worker::start(spec(), |_, _| {}).await.unwrap();
    for seed in 0..JOBS {
        let mut run = worker.generate(&job(u64::try_from(seed).unwrap())).await.unwrap();
        let mut finished = false;
        while let Some(event) = run.next().await.unwrap() {
            finished = matches!(event, RunEvent::Finished { .. });
        }
        assert!(finished);
    }
    match number % 4 {
        0 | 1 => assert_eq!(worker.stop(Duration::from_secs(10)).await.code, Some(0)),
        2 => {
            let pid = rustix::process::Pid::from_raw(i32::try_from(worker.pid()).unwrap()).unwrap();
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
            assert_eq!(worker.stop(Duration::from_secs(10)).await.signal, Some(9));
        }
        _ => {
            // In the middle of a job, by a daemon that has lost interest.
            drop(worker.generate(&job(9)).await.unwrap());
            drop(worker);
        }
    }
}

/// What this process has.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    children: BTreeSet<u32>,
    cgroups: BTreeSet<PathBuf>,
}

impl Holdings {
    fn now() -> Self {
        let count = |path: &str| fs::read_dir(path).unwrap().count();
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            children: children(),
            cgroups: cgroups(Path::new("/sys/fs/cgroup")),
        }
    }
}

/// The children of this process, the dead that it has not buried included.
fn children() -> BTreeSet<u32> {
    let parent = |entry: &fs::DirEntry| -> Option<(u32, u32)> {
        let child = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        Some((child, stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?))
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| parent(&entry))
        .filter(|(_, of)| *of == std::process::id())
        .map(|(pid, _)| pid)
        .collect()
}

/// The folders of workers' cgroups whose makers are gone: others may be at work on this machine.
fn cgroups(below: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let maker = name
            .strip_prefix("potluck-worker-")
            .and_then(|rest| rest.split('-').next_back()?.parse::<u32>().ok());
        if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            found.insert(entry.path());
        }
        found.extend(cgroups(&entry.path()));
    }
    found
}

/// This process's memory that only it has, in bytes.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_thousand_jobs_leave_nothing_behind() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let lives = |from: usize, to: usize| {
        runtime.block_on(async {
            for number in from..to {
                live(number).await;
            }
        })
    };
    lives(0, WARM_UP);
    let settled = |expected: Option<&Holdings>| {
        let begun = Instant::now();
        loop {
            // Dropped workers are killed at once and reaped when the runtime next looks.
            runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
            let now = Holdings::now();
            let done = now.children.is_empty() && expected.is_none_or(|expected| *expected == now);
            if done || begun.elapsed() > PATIENCE {
                return now;
            }
        }
    };
    let before = settled(None);
    assert_eq!(before.children, BTreeSet::new());
    let memory_before = memory();
    lives(WARM_UP, WARM_UP + WORKERS);
    assert_eq!(settled(Some(&before)), before);
    let growth = memory().saturating_sub(memory_before);
    assert!(growth < GROWTH, "{} KiB more memory after {} jobs", growth >> 10, WORKERS * JOBS);
}
