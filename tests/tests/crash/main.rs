//! The crash matrix: real programs killed at every fault point, started again and brought together, after
//! which both ledgers must be sound and say the same, and nobody may have lost over the bound.
//!
//! Owns: which program dies where. Never: simulates a death or a disk (the ledger's own tests do). The
//! points come from `node::fault`, which lists all that there are; a point that is listed and not passed
//! fails here. Run by `make test`; `make crash` kills at random.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]

mod audit;
mod pair;
mod random;

use potluck_node::fault::{self, Point};
use tokio::task::JoinSet;

use crate::audit::Losses;
use crate::pair::{Job, Pair, Run};

/// Tokens of a job that passes every point of a job once.
const SHORT: u32 = 4;
/// Where a renter that finds its provider dead dies itself, and where the provider died.
const BOTH_DIE: [(Point, Point); 2] = [
    (fault::PROVIDER_METER_KEPT, fault::RENTER_OWN_CLOSE_SIGNED),
    (fault::PROVIDER_RECEIPT_KEPT, fault::RENTER_OWN_CLOSE_KEPT),
];
/// Times that a difference is made until a program is killed where the two compare their ledgers: who
/// asks first is a matter of time.
const TRIES: usize = 4;

/// The two are brought together; what they say then.
async fn recovered(pair: &mut Pair, after: &str) -> Losses {
    let run = pair.rent(&Job { tokens: SHORT, ..Job::default() }).await.unwrap();
    let (error, logs) = (run.ended.event("error"), [&run.ended.stderr, &pair.provider_stderr()]);
    assert!(run.is_done(), "after {after}: {error}\n{}\n{}", logs[0], logs[1]);
    audit::together(pair).unwrap_or_else(|why| panic!("after {after}: {why}"))
}

/// The end of a test: every job has ended, and the two hold the very same.
async fn at_rest(pair: &mut Pair) -> Losses {
    pair.until_all_ended().await.unwrap();
    recovered(pair, "all").await;
    pair.until_all_ended().await.unwrap();
    audit::at_rest(pair).unwrap()
}

/// A voucher that the provider lacks, and a job that both hold open.
async fn differ(pair: &mut Pair) -> Run {
    let fault = Some(fault::RENTER_VOUCHER_KEPT.to_string());
    let run = pair.rent(&Job { tokens: SHORT, fault, ..Job::default() }).await.unwrap();
    assert!(run.renter_died() || run.provider_died, "{:?}\n{}", run.ended.events, run.ended.stderr);
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renter_may_die_at_any_point() {
    let mut pair = Pair::new().await.unwrap();
    pair.provide(None).await.unwrap();
    let alone = fault::RENTER_POINTS.iter().filter(|point| BOTH_DIE.iter().all(|(_, own)| own != *point));
    for point in alone {
        let fault = Some(point.to_string());
        let run = pair.rent(&Job { tokens: SHORT, fault, ..Job::default() }).await.unwrap();
        assert!(run.renter_died(), "{point} was not passed: {:?}", run.ended.events);
        audit::alone(&pair).unwrap();
        recovered(&mut pair, point.name()).await;
    }
    for point in fault::PAIR_POINTS {
        let mut died = false;
        for _ in 0..TRIES {
            differ(&mut pair).await;
            let fault = Some(point.to_string());
            let run = pair.rent(&Job { tokens: SHORT, fault, ..Job::default() }).await.unwrap();
            died = run.renter_died();
            if died {
                break;
            }
        }
        assert!(died, "{point} was not passed");
        audit::alone(&pair).unwrap();
        recovered(&mut pair, point.name()).await;
    }
    let losses = at_rest(&mut pair).await;
    println!("a renter died at {} points: {losses:?}", fault::RENTER_POINTS.len() + fault::PAIR_POINTS.len());
}

/// Where a provider dies, and where its renter does when it finds that.
#[derive(Clone, Copy)]
struct Cell {
    point: Point,
    own: Option<Point>,
    /// Must there be something to compare before?
    compares: bool,
}

/// A provider is started to die at the cell's point, and both come together again after it did.
async fn provider_dies_at(pair: &mut Pair, Cell { point, own, compares }: Cell) {
    if compares {
        differ(pair).await;
    }
    pair.kill_provider().await.unwrap();
    pair.provide(Some(point.name())).await.unwrap();
    let mut died = false;
    for nth in 1..=TRIES {
        let fault = own.map(|own| own.to_string());
        let run =
            pair.rent(&Job { tokens: SHORT, fault, dies: nth == TRIES, ..Job::default() }).await.unwrap();
        assert_eq!(run.renter_died(), own.is_some() && run.provider_died, "{own:?}: {:?}", run.ended.events);
        died = run.provider_died || (compares && differ(pair).await.provider_died);
        if died {
            break;
        }
    }
    assert!(died, "{point} was not passed");
    audit::alone(pair).unwrap();
    recovered(pair, point.name()).await;
}

/// Goes through `cells` with two pairs at a time: a crash is mostly waited for.
async fn go_through(cells: Vec<Cell>) -> Losses {
    let mut lives = JoinSet::new();
    for half in cells.chunks(cells.len().div_ceil(2)).map(<[Cell]>::to_vec) {
        lives.spawn(async move {
            let mut pair = Pair::new().await.unwrap();
            pair.provide(None).await.unwrap();
            for cell in half {
                provider_dies_at(&mut pair, cell).await;
            }
            at_rest(&mut pair).await
        });
    }
    lives.join_all().await.into_iter().fold(Losses::default(), Losses::max)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_may_die_at_any_point_of_a_job() {
    let cell = |point, own| Cell { point, own, compares: false };
    let alone = fault::PROVIDER_POINTS.iter().map(|point| cell(*point, None));
    let cells = alone.chain(BOTH_DIE.map(|(point, own)| cell(point, Some(own))));
    let losses = go_through(cells.collect()).await;
    println!("a provider died at {} points of a job: {losses:?}", fault::PROVIDER_POINTS.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_may_die_while_ledgers_are_compared() {
    let points = [fault::PAIR_POINTS, fault::PAID_LATE_POINTS].concat();
    let cells = points.iter().map(|point| Cell { point: *point, own: None, compares: true });
    let losses = go_through(cells.collect()).await;
    println!("a provider died at {} points between jobs: {losses:?}", points.len());
}

/// Every point of the two programs is in one of the three tests: those that are not among the lists
/// above would be dead at none.
#[test]
fn every_point_has_its_cell() {
    for (at, own) in BOTH_DIE {
        assert!(fault::PROVIDER_POINTS.contains(&at) && fault::RENTER_POINTS.contains(&own));
    }
    let own = fault::RENTER_POINTS.iter().filter(|point| point.name().contains(".own_close."));
    assert_eq!(own.count(), BOTH_DIE.len(), "a renter's own close needs a provider that dies");
}
