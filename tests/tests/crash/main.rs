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
use crate::pair::{Job, Pair, Run, SAID, Who};

/// Tokens of a job that passes every point of a job once.
const SHORT: u32 = 4;
/// Where a renter that finds its provider dead dies itself, and where the provider died.
const BOTH_DIE: [(Point, Point); 2] = [
    (fault::PROVIDER_METER_KEPT, fault::RENTER_OWN_CLOSE_SIGNED),
    (fault::PROVIDER_RECEIPT_KEPT, fault::RENTER_OWN_CLOSE_KEPT),
];
/// What only one who is asked passes.
const ASKED: [Point; 3] = [fault::PAIR_QUESTION_RECEIVED, fault::PAIR_ANSWER_READY, fault::PAIR_ANSWER_SENT];
/// One payment, in nano-credits.
const PAYMENT: u64 = 1_000;
/// Times that a difference is made until a program is killed where the two compare their ledgers: who
/// asks first is a matter of time.
const TRIES: usize = 4;

/// The two are brought together; what they say then.
async fn recovered(pair: &mut Pair, after: &str) -> Losses {
    let run = pair.rent(&Job { tokens: SHORT, ..Job::default() }).await.unwrap();
    let (error, logs) = (run.ended.event("error"), [&run.ended.stderr, &pair.provider_stderr()]);
    assert!(run.is_done(), "after {after}: {error}\n{}\n{}", logs[0], logs[1]);
    pair.hear(SAID).await;
    audit::together(pair).unwrap_or_else(|why| panic!("after {after}: {why}"))
}

/// The end of a pair: every job has ended, the two hold the very same, and all `payments` have counted once.
async fn at_rest(pair: &mut Pair, payments: u64) -> Losses {
    pair.until_all_ended().await.unwrap();
    recovered(pair, "all").await;
    pair.until_all_ended().await.unwrap();
    audit::at_rest(pair, payments).unwrap()
}

/// A voucher that the provider lacks, and a job that both hold open.
async fn differ(pair: &mut Pair) -> Run {
    let fault = Some(fault::RENTER_VOUCHER_KEPT.to_string());
    let run = pair.rent(&Job { tokens: SHORT, fault, ..Job::default() }).await.unwrap();
    assert!(run.renter_died() || run.provider_died, "{:?}\n{}", run.ended.events, run.ended.stderr);
    run
}

/// Who dies where.
#[derive(Debug, Clone, Copy)]
struct Cell {
    who: Who,
    point: Point,
    /// Where the renter dies when it finds its provider dead.
    own: Option<Point>,
    /// What the two have to compare before.
    before: Before,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// A voucher, and a job that is open on both sides.
    Voucher,
    /// The owner's word that a payment came.
    Payment,
}

impl Cell {
    fn of(who: Who, point: Point, before: Before) -> Self {
        Self { who, point, own: None, before }
    }

    /// One program dies at the cell's point; then the two are brought together again.
    async fn live(self, pair: &mut Pair, nth: usize) {
        if self.before == Before::Voucher {
            differ(pair).await;
        }
        if self.who == Who::Provider || self.before == Before::Payment {
            let armed = (self.who == Who::Provider).then(|| self.point.name());
            pair.kill_provider().await.unwrap();
            pair.provide(armed).await.unwrap();
        }
        if self.before == Before::Payment {
            // A provider that began anew has compared with nobody yet: it can only note the payment, and
            // signs when the two meet.
            pair.paid(PAYMENT, &format!("payment {nth}")).await.unwrap();
        }
        let mut died = false;
        for attempt in 1..=TRIES {
            let dies = self.who == Who::Provider && attempt == TRIES;
            died = self.dies(
                &pair
                    .rent(&Job { fault: self.fault(), tokens: SHORT, dies, ..Job::default() })
                    .await
                    .unwrap(),
            );
            if !died && self.before == Before::Voucher {
                died = differ(pair).await.provider_died && self.who == Who::Provider;
            }
            if died {
                break;
            }
        }
        assert!(died, "{self:?} was not passed");
        audit::alone(pair, self.who).unwrap();
        recovered(pair, &format!("{self:?}")).await;
    }

    /// The renter's fault point.
    fn fault(self) -> Option<String> {
        let point = if self.who == Who::Renter { Some(self.point) } else { self.own };
        point.map(|point| point.to_string())
    }

    fn dies(self, run: &Run) -> bool {
        if self.who == Who::Renter {
            return run.renter_died();
        }
        assert_eq!(
            run.renter_died(),
            self.own.is_some() && run.provider_died,
            "{self:?}: {:?}",
            run.ended.events
        );
        run.provider_died
    }
}

/// Goes through `cells` with `pairs` at a time: a crash is mostly waited for.
async fn go_through(cells: Vec<Cell>, pairs: usize) {
    let mut lives = JoinSet::new();
    for part in cells.chunks(cells.len().div_ceil(pairs)).map(<[Cell]>::to_vec) {
        lives.spawn(async move {
            let mut pair = Pair::new().await.unwrap();
            pair.provide(None).await.unwrap();
            recovered(&mut pair, "nothing").await;
            for (nth, cell) in part.iter().enumerate() {
                cell.live(&mut pair, nth).await;
            }
            let paid = part.iter().filter(|cell| cell.before == Before::Payment).count();
            at_rest(&mut pair, u64::try_from(paid).unwrap() * PAYMENT).await
        });
    }
    let losses = lives.join_all().await.into_iter().fold(Losses::default(), Losses::max);
    println!("{} deaths: {losses:?}", cells.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renter_may_die_at_any_point() {
    let alone = fault::RENTER_POINTS.iter().filter(|point| BOTH_DIE.iter().all(|(_, own)| own != *point));
    let alone = alone.map(|point| Cell::of(Who::Renter, *point, Before::Nothing));
    let compared = fault::PAIR_POINTS.iter().map(|point| {
        // A provider has a question of its own when there is a payment to be agreed.
        let before = if ASKED.contains(point) { Before::Payment } else { Before::Voucher };
        Cell::of(Who::Renter, *point, before)
    });
    go_through(alone.chain(compared).collect(), 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_may_die_at_any_point_of_a_job() {
    let alone = fault::PROVIDER_POINTS.iter().map(|point| Cell::of(Who::Provider, *point, Before::Nothing));
    let both = BOTH_DIE
        .map(|(point, own)| Cell { own: Some(own), ..Cell::of(Who::Provider, point, Before::Nothing) });
    go_through(alone.chain(both).collect(), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_may_die_while_ledgers_are_compared() {
    let points = [fault::PAIR_POINTS, fault::PAID_LATE_POINTS].concat();
    let cells = points.iter().map(|point| Cell::of(Who::Provider, *point, Before::Voucher));
    go_through(cells.collect(), 2).await;
}

/// The owner says that a payment came: the provider proposes, the renter countersigns; each dies before and
/// after its signature is durable.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_counts_once_whoever_dies_between_its_two_signatures() {
    let cells = [Who::Provider, Who::Renter].into_iter().flat_map(|who| {
        [fault::PAIR_WORD_SIGNED, fault::PAIR_WORD_KEPT].map(|point| Cell::of(who, point, Before::Payment))
    });
    go_through(cells.collect(), 1).await;
}

/// Every point of the two programs is in one of the tests above.
#[test]
fn every_point_has_its_cell() {
    for (at, own) in BOTH_DIE {
        assert!(fault::PROVIDER_POINTS.contains(&at) && fault::RENTER_POINTS.contains(&own));
    }
    let own = fault::RENTER_POINTS.iter().filter(|point| point.name().contains(".own_close."));
    assert_eq!(own.count(), BOTH_DIE.len(), "a renter's own close needs a provider that dies");
}
