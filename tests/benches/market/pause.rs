//! How fast an owner has the machine back: `potluckd pause --now` under a busy job, many times.
//!
//! Owns: the tries and their figures. Never: believes the daemon's own clock: ends and memory are seen
//! from outside, from before the command is started. Called by the `market` bench.

use std::time::{Duration, Instant};

use potluck_tests::network::{Network, Provider};
use potluck_tests::owner::tell;
use potluck_tests::process::{descendants, resident, wait_for_end};
use potluck_tests::renter::Renter;
use rustix::process::Pid;

use crate::{Figure, Outcome, PROMPT};

/// Tries unless `$POTLUCK_PAUSE_TRIES` says otherwise: with 200, the p99 is not the worst one.
const TRIES: usize = 200;
/// Nothing here takes longer.
const WITHIN: Duration = Duration::from_secs(60);

/// One try, in milliseconds since before the command was started.
struct Try {
    /// No thread of a worker can run.
    stopped: f64,
    /// Nothing of a worker is resident.
    freed: f64,
    /// The command has answered: the job is settled.
    answered: f64,
    /// From the daemon's hearing of it until no thread of a worker can run, as the daemon says.
    within_daemon: f64,
}

pub(crate) async fn pauses(network: &Network, figures: &mut Vec<Figure>) -> Outcome<()> {
    let provider = network.providers.first().ok_or("no provider")?;
    let renter = network.renter("paused")?;
    let count = match std::env::var("POTLUCK_PAUSE_TRIES") {
        Ok(text) => text.parse::<usize>()?.max(1),
        Err(_) => TRIES,
    };
    let mut tries = Vec::with_capacity(count);
    for _ in 0..count {
        tries.push(once(provider, &renter).await?);
    }
    type Part = fn(&Try) -> f64;
    type Limit = Option<(f64, &'static str)>;
    let parts: [(&str, Part, Limit); 4] = [
        ("stopped", |one| one.stopped, Some((250.0, "at most 250 ms"))),
        ("freed", |one| one.freed, Some((1_000.0, "at most 1000 ms"))),
        ("settled", |one| one.answered, None),
        ("stopped_in_daemon", |one| one.within_daemon, None),
    ];
    for (name, part, limit) in parts {
        let mut values: Vec<f64> = tries.iter().map(part).collect();
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| values[(values.len() * percent).div_ceil(100).max(1) - 1];
        figures.push(Figure::plain("owner", format!("pause_now_{name}_p50_ms"), at(50), "ms"));
        let p99 = Figure::plain("owner", format!("pause_now_{name}_p99_ms"), at(99), "ms");
        figures.push(match limit {
            Some((limit, target)) => p99.below(limit, target),
            None => p99,
        });
    }
    let tries = u32::try_from(count).map(f64::from)?;
    figures.push(Figure::plain("owner", "pause_now_tries", tries, "tries"));
    Ok(())
}

/// A job runs, the owner pauses at once, everything is gone; then the machine is lent again.
async fn once(provider: &Provider, renter: &Renter) -> Outcome<Try> {
    let mut job = renter.start(PROMPT, &["--max-tokens", "4000"])?;
    job.event("output", WITHIN).await?;
    let daemon = provider.process.id().ok_or("the provider has ended")?;
    let workers = descendants(daemon);
    if workers.iter().all(|worker| resident(*worker) == 0) {
        return Err("no worker holds any memory".into());
    }
    let began = Instant::now();
    let watched = workers.clone();
    let watch = tokio::task::spawn_blocking(move || watch(&watched, began));
    let (code, answer) = tell(&provider.state, "pause", &["--now"]).await?;
    let answered = milliseconds(began);
    let (stopped, freed) = watch.await??;
    let left = descendants(daemon).len();
    if code != Some(0) || left > 0 || answer["jobs_settled"] != 1 {
        return Err(format!("{left} processes are left after {answer}").into());
    }
    let ended = renter.finish(job).await?;
    if ended.event("error")["code"] != "owner_yield" {
        return Err(format!("the job did not end for the owner: {}", ended.event("error")).into());
    }
    let (_, resumed) = tell(&provider.state, "resume", &[]).await?;
    if resumed["warm"] != true {
        return Err(format!("the model did not come back: {resumed}").into());
    }
    let within_daemon = answer["stopped_ms"].as_f64().ok_or("no `stopped_ms`")?;
    Ok(Try { stopped, freed, answered, within_daemon })
}

/// When the last of `workers` had ended, and when the kernel held no page of theirs.
fn watch(workers: &[Pid], began: Instant) -> Result<(f64, f64), String> {
    if !workers.iter().all(|worker| wait_for_end(*worker, WITHIN)) {
        return Err("a worker did not end".into());
    }
    let stopped = milliseconds(began);
    if let Some(worker) = workers.iter().find(|worker| resident(**worker) > 0) {
        return Err(format!("worker {worker:?} has ended and still holds memory"));
    }
    Ok((stopped, milliseconds(began)))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}
