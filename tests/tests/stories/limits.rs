//! Price, budget and context: the renter's limits hold to the millisecond.
//!
//! Owns: jobs that end at a limit. Never: a failure of the other side. Run by the stories.

use potluck_tests::ledgers;
use potluck_tests::network::Network;

use crate::{LONG, assert_bill, assert_failed, assert_opposite, number, turn};

#[tokio::test(flavor = "multi_thread")]
async fn the_renters_limits_hold() {
    let _turn = turn().await;
    let network = Network::with_providers(&["0.04"]).await.unwrap();
    let provider = &network.providers[0];

    // Too dear: nothing is signed.
    let careful = network.renter("careful").unwrap();
    let job = careful.run("hi", &["--max-price", "0.03"]).await.unwrap();
    assert_failed(&job, 4, "over_max_price", "renter");
    assert_eq!(ledgers::balance("potluck", careful.state()).await.unwrap(), 0);
    assert!(ledgers::receipts("potluck", careful.state()).await.unwrap().is_empty());

    // The prompt does not fit the context: told by the provider, nothing owed.
    let wordy = network.renter("wordy").unwrap();
    let prompt = "a long prompt ".repeat(8_000);
    let job = wordy.run_piped(&prompt, &[]).await.unwrap();
    assert_failed(&job, 1, "prompt_too_long", "renter");
    assert_eq!(assert_opposite(wordy.state(), &provider.state).await, 0);

    // The budget is reached in the middle: the answer so far, and the bill to the millisecond.
    let poor = network.renter("poor").unwrap();
    // 3.6 s of work: longer than reading the prompt on a busy machine, shorter than the answer.
    let budget = 40_000;
    let flags = ["--budget", "0.00004", "--max-tokens", "4000"];
    let job = poor.run(LONG, &flags).await.unwrap();
    assert_failed(&job, 4, "budget_reached", "renter");
    assert!(!job.text().is_empty(), "the tokens so far are lost");
    assert_bill(&job, budget);
    assert_eq!(job.event("done")["finish"], "cancelled");
    let amount = number(job.event("settled"), "amount_nanocredits");
    assert!(amount > budget / 2, "it stopped long before the budget: {amount} of {budget}");
    assert_eq!(assert_opposite(poor.state(), &provider.state).await, amount);
}
