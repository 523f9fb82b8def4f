//! Kills at random: either program, at a random point or moment, `KILLS` times.
//!
//! Owns: the seeded plan of who dies when, and what is told of it. Never: waits for a person. Run by
//! `make crash`, with `KILLS` (1,000) and `SEED` (1); a pair's seed gives its plan again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use potluck_node::fault;
use potluck_tests::error::KitError;
use tokio::task::JoinSet;

use crate::audit::{self, Losses};
use crate::pair::{Job, Pair, SAID, Who};

/// Kills of one pair: longer ledgers make slower audits and find nothing new.
const KILLS_OF_A_PAIR: u64 = 40;
/// The longest wait before a kill that has no point: into the third quantum of a long job.
const LATEST_MS: u64 = 4_000;
/// Kills between two lines of progress.
const TOLD_EVERY: u64 = 25;
/// Times that the two are brought together after a kill; an armed provider may die in one more.
const ATTEMPTS: u32 = 6;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// A fault point that this side passes, or one of its ledger, and the n-th time.
    fn point(&mut self, who: Who) -> String {
        let own = match who {
            Who::Renter => [fault::RENTER_POINTS, &[]],
            Who::Provider => [fault::PROVIDER_POINTS, fault::PAID_LATE_POINTS],
        };
        let points = [&own.concat()[..], fault::PAIR_POINTS, fault::LEDGER_POINTS].concat();
        let at = usize::try_from(self.below(u64::try_from(points.len()).unwrap())).unwrap();
        format!("{}:{}", points[at], 1 + self.below(4))
    }
}

/// What all pairs came to.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    renter: u64,
    provider: u64,
    losses: Losses,
}

/// The life of one pair, until it has had its kills or its credit is used up.
struct Life {
    pair: Pair,
    rng: Rng,
    tally: Tally,
    killed: Arc<AtomicU64>,
    bar: ProgressBar,
}

impl Life {
    fn note(&mut self, renter: bool, provider: bool) {
        self.tally.renter += u64::from(renter);
        self.tally.provider += u64::from(provider);
        let kills = u64::from(renter) + u64::from(provider);
        let before = self.killed.fetch_add(kills, Ordering::Relaxed);
        self.bar.inc(kills);
        // Where no bar can be drawn, a line now and then.
        if self.bar.is_hidden() && before / TOLD_EVERY < (before + kills) / TOLD_EVERY {
            println!("{} kills", before + kills);
        }
    }

    fn next_job(&mut self) -> Job {
        let tokens = [4, 24, 100][usize::try_from(self.rng.below(3)).unwrap()];
        let mut job = Job { tokens, ..Job::default() };
        let after = Duration::from_millis(self.rng.below(LATEST_MS));
        match self.rng.below(4) {
            0 => job.kill = Some((Who::Renter, after)),
            1 => (job.kill, job.dies) = (Some((Who::Provider, after)), true),
            _ => job.fault = Some(self.rng.point(Who::Renter)),
        }
        job.heir = (self.rng.below(2) == 0).then(|| self.rng.point(Who::Provider));
        job
    }

    /// One job in which somebody dies, perhaps; then the two are brought together.
    async fn step(&mut self) -> Result<(), String> {
        let job = self.next_job();
        let run = self.pair.rent(&job).await.map_err(text)?;
        self.note(run.renter_died(), run.provider_died);
        for _ in 0..ATTEMPTS {
            let heir = (self.rng.below(3) == 0).then(|| self.rng.point(Who::Provider));
            let run = self.pair.rent(&Job { tokens: 4, heir, ..Job::default() }).await.map_err(text)?;
            self.note(false, run.provider_died);
            if run.is_done() {
                self.pair.hear(SAID).await;
                let losses = audit::together(&self.pair).map_err(|why| format!("{job:?}: {why}"))?;
                self.tally.losses = self.tally.losses.max(losses);
                return Ok(());
            }
            // An armed provider may have died in this one.
            if !run.provider_died {
                let logs = [&run.ended.stderr, &self.pair.provider_stderr()].map(String::as_str).join("\n");
                return Err(format!("{job:?}: {}\n{logs}", run.ended.event("error")));
            }
        }
        Err(format!("{job:?}: the two did not come together"))
    }

    async fn live(&mut self, most: u64) -> Result<(), String> {
        self.pair.provide(None).await.map_err(text)?;
        let dead = |tally: &Tally| tally.renter + tally.provider;
        while dead(&self.tally) < KILLS_OF_A_PAIR && self.killed.load(Ordering::Relaxed) < most {
            self.step().await?;
        }
        // One more provider, which lives, sees the end of every job.
        self.pair.kill_provider().await.map_err(text)?;
        self.pair.provide(None).await.map_err(text)?;
        let run = self.pair.rent(&Job { tokens: 4, ..Job::default() }).await.map_err(text)?;
        self.pair.until_all_ended().await.map_err(text)?;
        if !run.is_done() {
            return Err(format!("at the end: {}", run.ended.event("error")));
        }
        let losses = audit::at_rest(&self.pair, 0).map_err(|why| format!("at the end: {why}"))?;
        self.tally.losses = self.tally.losses.max(losses);
        Ok(())
    }
}

fn text(error: KitError) -> String {
    error.to_string()
}

/// Pairs one after the other, until all kills are done.
async fn work(seeds: Arc<AtomicU64>, killed: Arc<AtomicU64>, most: u64, bar: ProgressBar) -> Tally {
    let mut all = Tally::default();
    while killed.load(Ordering::Relaxed) < most {
        let seed = seeds.fetch_add(1, Ordering::Relaxed);
        let (rng, tally) = (Rng(seed), Tally::default());
        let pair = Pair::new().await.unwrap();
        let mut life = Life { pair, rng, tally, killed: killed.clone(), bar: bar.clone() };
        if let Err(why) = life.live(most).await {
            panic!("seed {seed}: {why}\nagain: make crash KILLS={KILLS_OF_A_PAIR} SEED={seed}");
        }
        all.renter += life.tally.renter;
        all.provider += life.tally.provider;
        all.losses = all.losses.max(life.tally.losses);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long; `make crash` runs it"]
async fn kills_at_random_cost_nobody_more_than_the_bound() {
    let (most, seed) = (setting("KILLS", 1_000), setting("SEED", 1));
    let begun = Instant::now();
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} kills, {elapsed_precise}, {eta} left");
    let bar = ProgressBar::new(most).with_style(style.unwrap());
    let (seeds, killed) = (Arc::new(AtomicU64::new(seed)), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    // A pair waits more than it works, and a failure's seed is found again with one pair alone.
    let pairs =
        if most <= KILLS_OF_A_PAIR { 1 } else { 2 * std::thread::available_parallelism().unwrap().get() };
    for _ in 0..pairs {
        workers.spawn(work(seeds.clone(), killed.clone(), most, bar.clone()));
    }
    let mut all = Tally::default();
    while let Some(tally) = workers.join_next().await {
        let tally = tally.unwrap();
        all.renter += tally.renter;
        all.provider += tally.provider;
        all.losses = all.losses.max(tally.losses);
    }
    bar.finish_and_clear();
    let Losses { renter, provider, outlived } = all.losses;
    println!(
        "{} kills ({} of the renter, {} of the provider) with {} pairs from seed {seed} in {:.0?}: both ledgers \
         agreed after each\nmost paid without output: {renter} ms (bound: a quantum, 1000)\nmost worked without \
         pay: {provider} ms, and {outlived} ms where the provider died itself, as seen from outside (bound: window \
         and quantum, 3000, and the operation in flight)",
        all.renter + all.provider,
        all.renter,
        all.provider,
        seeds.load(Ordering::Relaxed) - seed,
        begun.elapsed(),
    );
    assert!(all.renter + all.provider >= most);
}
