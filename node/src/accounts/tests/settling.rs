//! Outside payments, from either owner's word to a balance that both signed.

use super::*;

/// A pair with three seconds of work that are paid for by voucher.
async fn debtors() -> (Home, Home, Side, Side) {
    let (one, other, provider, renter) = strangers().await;
    let all = old_job(&provider.key, &renter.key, 1, 3);
    provider.keep(&all).await;
    renter.keep(&all).await;
    (one, other, provider, renter)
}

fn wish(peer: PeerId, we_paid: bool, reference: &str) -> SettleWish {
    let (amount, reference) = (NanoCredit::new(2_000), reference.to_owned());
    SettleWish { peer, we_paid, amount, reference, deny: false }
}

fn asks_owner(side: &Side) -> bool {
    side.accounts.waiting().unwrap().iter().any(|it| it.waits_for == WaitsFor::OurOwner)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_waits_for_its_receiver_and_is_agreed_by_both_words() {
    let (_one, _other, provider, renter) = debtors().await;
    let paying = renter.accounts.settle(wish(provider.peer(), true, "invoice 7"));
    let confirming = async {
        until("the owner is asked", || asks_owner(&provider)).await;
        provider.accounts.settle(wish(renter.peer(), false, "invoice 7")).await
    };
    let (paid, confirmed) = tokio::join!(paying, confirming);
    assert_eq!(confirmed.unwrap(), SettleOutcome::Agreed);
    // The payer may have stopped waiting by then: its own word again tells.
    let paid = paid.unwrap();
    assert!(matches!(paid, SettleOutcome::Agreed | SettleOutcome::Proposed), "{paid:?}");
    let again = renter.accounts.settle(wish(provider.peer(), true, "invoice 7")).await.unwrap();
    assert_eq!(again, SettleOutcome::Agreed, "the same word is the same payment");
    assert_eq!((provider.owed_by(&renter), renter.owed_by(&provider)), (1_000, -1_000));
    for side in [&provider, &renter] {
        assert_eq!(side.accounts.waiting().unwrap(), []);
    }
    assert_eq!(provider.ledger.standing(renter.peer(), wall_now()).unwrap().settled, NanoCredit::new(2_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_without_the_other_owner_says_that_it_waits() {
    let (_one, _other, provider, renter) = debtors().await;
    let paid = renter.accounts.settle(wish(provider.peer(), true, "a")).await.unwrap();
    assert_eq!(paid, SettleOutcome::Proposed);
    assert!(asks_owner(&provider));
    let waiting = renter.accounts.waiting().unwrap();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].waits_for, WaitsFor::TheirAnswer);
    assert_eq!(provider.owed_by(&renter), 3_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_credits_its_debtor_without_being_asked() {
    let (_one, _other, provider, renter) = debtors().await;
    renter.sync(&provider).await.unwrap();
    let credited = provider.accounts.settle(wish(renter.peer(), false, "cash")).await.unwrap();
    assert_eq!(credited, SettleOutcome::Agreed);
    until("the renter has it", || renter.owed_by(&provider) == -1_000).await;
    // The debtor's own word about it adds nothing.
    let paid = renter.accounts.settle(wish(provider.peer(), true, "cash")).await.unwrap();
    assert_eq!(paid, SettleOutcome::Agreed);
    assert_eq!((provider.owed_by(&renter), renter.owed_by(&provider)), (1_000, -1_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_that_did_not_arrive_is_denied() {
    let (_one, _other, provider, renter) = debtors().await;
    let deny = SettleWish { deny: true, ..wish(renter.peer(), false, "b") };
    let early = provider.accounts.settle(deny.clone()).await.unwrap_err();
    assert!(matches!(early, SettleError::NothingToDeny { .. }), "{early}");
    let paying = renter.accounts.settle(wish(provider.peer(), true, "b"));
    let denying = async {
        until("the owner is asked", || asks_owner(&provider)).await;
        provider.accounts.settle(deny).await
    };
    let (_, denied) = tokio::join!(paying, denying);
    assert_eq!(denied.unwrap(), SettleOutcome::Denied);
    until("the payer's side has it", || renter.accounts.waiting().unwrap().is_empty()).await;
    assert_eq!((provider.owed_by(&renter), renter.owed_by(&provider)), (3_000, -3_000));
    // The step is burned; the next is free.
    assert_eq!(renter.book(&provider).used(), 1);
    assert_eq!(renter.book(&provider).head().n, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_survives_restarts_until_the_two_meet() {
    let (one, other, provider, renter) = debtors().await;
    let (of_provider, of_renter) = (provider.peer(), renter.peer());
    provider.close().await;
    renter.network.shutdown().await;
    let noted = renter.accounts.settle(wish(of_provider, true, "c")).await.unwrap();
    assert!(matches!(noted, SettleOutcome::Noted { .. }), "{noted:?}");
    renter.close().await;
    let (provider, renter) = meet(&one, &other).await;
    assert_eq!(renter.accounts.waiting().unwrap()[0].waits_for, WaitsFor::Meeting);
    renter.sync(&provider).await.unwrap();
    until("the owner is asked", || asks_owner(&provider)).await;
    // What is proposed and not answered survives a restart of both as well.
    provider.close().await;
    renter.close().await;
    let (provider, renter) = meet(&one, &other).await;
    assert!(asks_owner(&provider));
    renter.sync(&provider).await.unwrap();
    let confirmed = provider.accounts.settle(wish(of_renter, false, "c")).await.unwrap();
    assert_eq!(confirmed, SettleOutcome::Agreed);
    until("both have it", || renter.owed_by(&provider) == -1_000 && provider.owed_by(&renter) == 1_000).await;
    until("nothing waits", || renter.accounts.waiting().unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_of_the_receiver_that_came_first_answers_the_proposal() {
    let (one, other, provider, renter) = debtors().await;
    let (of_provider, of_renter) = (provider.peer(), renter.peer());
    renter.close().await;
    let noted = provider.accounts.settle(wish(of_renter, false, "d")).await.unwrap();
    assert!(matches!(noted, SettleOutcome::Noted { .. }), "{noted:?}");
    provider.close().await;
    let (provider, renter) = meet(&one, &other).await;
    let paid = renter.accounts.settle(wish(of_provider, true, "d")).await.unwrap();
    assert!(matches!(paid, SettleOutcome::Agreed | SettleOutcome::Proposed), "{paid:?}");
    let once = |side: &Side, other: &Side| side.owed_by(other).unsigned_abs() == 1_000;
    until("it is agreed once", || once(&provider, &renter) && once(&renter, &provider)).await;
    until("nothing waits", || {
        [&provider, &renter].iter().all(|side| side.accounts.waiting().unwrap().is_empty())
    })
    .await;
    assert!(once(&provider, &renter) && once(&renter, &provider));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proposals_that_cross_burn_the_step_and_are_both_agreed_later() {
    let (_one, _other, provider, renter) = debtors().await;
    renter.sync(&provider).await.unwrap();
    // Each signs its own proposal of the same step before it hears of the other's.
    for (side, peer, reference) in [(&provider, renter.peer(), "e"), (&renter, provider.peer(), "f")] {
        let credit = SettleWish {
            amount: NanoCredit::new(500),
            ..wish(peer, side.peer() != provider.peer(), reference)
        };
        let me = side.peer();
        side.accounts.inner.wishes.change(|wishes| wishes.add(credit.clone(), me)).unwrap().unwrap();
        let account = side.accounts.account(peer).unwrap();
        let books = side.accounts.books(&account).await;
        books.propose(Some(credit.payment(me))).await.unwrap().unwrap();
    }
    for (side, peer) in [(&provider, renter.peer()), (&renter, provider.peer())] {
        side.accounts.parted(peer);
    }
    renter.sync(&provider).await.unwrap();
    // The receiver's crediting is countersigned by itself; the payer's word asks the receiver's owner.
    let confirmed = async {
        let fifth = SettleWish { amount: NanoCredit::new(500), ..wish(renter.peer(), false, "f") };
        until("the receiver's owner is asked", || asks_owner(&provider)).await;
        provider.accounts.settle(fifth).await
    };
    let confirmed = confirmed.await.unwrap();
    assert!(matches!(confirmed, SettleOutcome::Agreed), "{confirmed:?}");
    until("both are agreed", || provider.owed_by(&renter) == 2_000 && renter.owed_by(&provider) == -2_000)
        .await;
    assert_eq!(provider.book(&renter).head().n, 3, "step 1 is burned");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_payment_is_not_noted() {
    let (_one, _other, provider, renter) = debtors().await;
    let good = wish(provider.peer(), true, "g");
    let refused = |wish: SettleWish| {
        let accounts = renter.accounts.clone();
        async move { accounts.settle(wish).await.unwrap_err() }
    };
    let none = refused(SettleWish { amount: NanoCredit::ZERO, ..good.clone() }).await;
    assert!(matches!(none, SettleError::NoAmount), "{none}");
    let long = refused(SettleWish { reference: "x".repeat(129), ..good.clone() }).await;
    assert!(matches!(long, SettleError::BadReference { len: 129 }), "{long}");
    let oneself = refused(SettleWish { peer: renter.peer(), ..good.clone() }).await;
    assert!(matches!(oneself, SettleError::Oneself), "{oneself}");
    let denied = refused(SettleWish { deny: true, ..good }).await;
    assert!(matches!(denied, SettleError::NotOursToDeny), "{denied}");
    assert_eq!(renter.accounts.waiting().unwrap(), []);
}
