//! A market of strangers under a bad network, crashes and liars, in virtual time; see
//! `potluck_tests::simulation`.
//!
//! Owns: the sizes, the seeds, and what the audit must say. Never: waits for anything real. Run by
//! `make test` with a hundred nodes and by `make simulate` with `POTLUCK_SIMULATE` nodes.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]

use potluck_tests::simulation::{Config, Mutation, run};

const SMALL: Config = Config { seed: 1, nodes: 100, jobs: 6, mutation: None };

fn size() -> usize {
    std::env::var("POTLUCK_SIMULATE").map_or(SMALL.nodes, |nodes| nodes.parse().unwrap())
}

#[test]
fn value_is_conserved_and_nobody_honest_loses_over_the_bound() {
    let report = run(&Config { nodes: size(), ..SMALL });
    println!("{report}");
    assert_eq!(report.violations, Vec::<String>::new());
    assert_eq!(report.sum, 0);
    // The run was not an idle one: work was paid, balances were agreed, nodes crashed, liars were caught.
    assert!(report.vouchers > report.lanes && report.agreed > 0 && report.convicted > 0, "{report}");
    assert!(report.crashes > 0 && report.restores > 0 && report.provider.amount > 0, "{report}");
}

#[test]
fn one_seed_is_one_run() {
    let small = Config { nodes: 30, jobs: 3, ..SMALL };
    assert_eq!(run(&small), run(&small));
    assert_ne!(run(&small), run(&Config { seed: 2, ..small }));
}

/// The audit can fail: with any one law switched off, somebody honest loses too much or signs twice.
#[test]
fn a_law_switched_off_is_noticed() {
    for (mutation, expected) in [
        (Mutation::IgnoreWindow, "loss: provider"),
        (Mutation::PayAnything, "loss: renter"),
        (Mutation::SignBeforeSync, "I7:"),
    ] {
        let report = run(&Config { mutation: Some(mutation), ..SMALL });
        let noticed = report.violations.iter().any(|line| line.starts_with(expected));
        assert!(noticed, "{mutation:?} went unnoticed: {report}");
    }
}
