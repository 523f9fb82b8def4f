//! What two honest peers bring to the same, whatever one of them lost.

use super::*;

fn statements_of(job: &[Statement], wanted: impl Fn(&Statement) -> bool) -> Vec<Statement> {
    job.iter().filter(|statement| wanted(statement)).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_the_same_syncs_in_one_round_trip() {
    let (_one, _other, provider, renter) = strangers().await;
    for held in [Vec::new(), old_job(&provider.key, &renter.key, 1, 3)] {
        provider.keep(&held).await;
        renter.keep(&held).await;
        let (before, began) = (provider.asked(), std::time::Instant::now());
        renter.sync(&provider).await.unwrap();
        eprintln!("the same: {:?}", began.elapsed());
        assert_eq!(provider.asked(), before + 1);
        assert!(provider.accounts.is_synced(renter.peer()) && renter.accounts.is_synced(provider.peer()));
    }
    // The renter pays 1,000 nano-credits a second.
    assert_eq!((provider.owed_by(&renter), renter.owed_by(&provider)), (3_000, -3_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_needs_a_sync_and_the_pairs_epoch() {
    let (_one, _other, provider, renter) = strangers().await;
    let Statement::Contract(contract) = &job(&provider.key, &renter.key, 1, wall_now(), 0)[0] else {
        panic!()
    };
    let contract = &contract.body;
    let needed = Err(LaneRefused::NotNow(NotNow::SyncNeeded));
    for side in [&provider, &renter] {
        assert_eq!(side.accounts.may_open(contract), needed);
    }
    renter.sync(&provider).await.unwrap();
    for (side, peer) in [(&provider, renter.peer()), (&renter, provider.peer())] {
        assert_eq!(side.accounts.may_open(contract), Ok(()));
        assert_eq!(side.accounts.epoch(peer), 0);
        side.accounts.parted(peer);
        assert_eq!(side.accounts.may_open(contract), needed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_ends_with_its_connection() {
    let (_one, _other, provider, renter) = strangers().await;
    renter.sync(&provider).await.unwrap();
    let peer = renter.peer();
    until("the provider knows the renter", || provider.network.pair_peers().borrow().contains(&peer)).await;
    renter.network.shutdown().await;
    until("the link ends", || !provider.accounts.is_synced(peer)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_either_lost_on_the_way_is_brought_to_both() {
    let (_one, _other, provider, renter) = strangers().await;
    let all = old_job(&provider.key, &renter.key, 1, 3);
    // The last voucher never came to the provider, nor its receipts and its close to the renter.
    let last = |statement: &Statement| match statement {
        Statement::Voucher(it) => it.body.k == 3,
        Statement::Receipt(it) => it.body.k == 3,
        Statement::Close(_) => true,
        _ => false,
    };
    provider.keep(&statements_of(&all, |it| !last(it))).await;
    let of_provider = |it: &Statement| matches!(it, Statement::Receipt(_) | Statement::Close(_));
    renter.keep(&statements_of(&all, |it| !of_provider(it))).await;
    assert_eq!(provider.owed_by(&renter), 2_000);
    renter.sync(&provider).await.unwrap();
    for side in [&provider, &renter] {
        for statement in all.iter().filter(|it| !matches!(it, Statement::Close(_))) {
            assert!(side.holds(statement), "{statement:?}");
        }
    }
    assert_eq!((provider.owed_by(&renter), renter.owed_by(&provider)), (3_000, -3_000));
    assert_eq!(provider.accounts.epoch(renter.peer()), 0, "nobody forgot what it had signed");
    assert_eq!(provider.digest(&renter).await, renter.digest(&provider).await);
}

/// One side comes back with an old ledger, of which the first `held` statements are left.
async fn restored(provider_forgets: bool, held: usize) {
    let (_one, _other, provider, renter) = strangers().await;
    let all = old_job(&provider.key, &renter.key, 1, 3);
    let (whole, old) = if provider_forgets { (&renter, &provider) } else { (&provider, &renter) };
    whole.keep(&all).await;
    old.keep(&all[..held]).await;
    renter.sync(&provider).await.unwrap();
    assert_eq!(provider.digest(&renter).await, renter.digest(&provider).await);
    for statement in &all {
        assert!(old.holds(statement), "{statement:?}");
    }
    for (side, peer) in [(&provider, renter.peer()), (&renter, provider.peer())] {
        assert_eq!(side.accounts.epoch(peer), 1, "what else was forgotten is of an epoch that is over");
        assert!(side.accounts.is_synced(peer));
    }
    assert_eq!(provider.owed_by(&renter), 3_000);
    // The next time is the usual round trip.
    until("what follows a sync is done", || renter.book(&provider).link() == provider.book(&renter).link())
        .await;
    renter.sync(&provider).await.unwrap();
    assert_eq!(provider.accounts.epoch(renter.peer()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_with_an_old_ledger_begins_a_new_epoch() {
    restored(true, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renter_with_an_old_ledger_begins_a_new_epoch() {
    restored(false, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_lost_everything_gets_it_back() {
    restored(true, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renter_that_lost_everything_gets_it_back() {
    restored(false, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_of_many_pages_is_fetched_back_by_who_lost_it() {
    let (_one, _other, provider, renter) = strangers().await;
    let mut all = Vec::new();
    for number in 0..300 {
        all.extend(old_job(&provider.key, &renter.key, number, 1));
    }
    for page in all.chunks(500) {
        renter.keep(page).await;
    }
    let began = std::time::Instant::now();
    renter.sync(&provider).await.unwrap();
    eprintln!("{} statements in {} questions, {:?}", all.len(), provider.asked(), began.elapsed());
    assert_eq!(provider.owed_by(&renter), 300_000);
    // So many lanes that ended are taken into a balance at once.
    until("the lanes are in the balance", || {
        [(&provider, &renter), (&renter, &provider)]
            .iter()
            .all(|(side, other)| side.book(other).head().n == 1)
    })
    .await;
    assert_eq!((provider.owed_by(&renter), renter.owed_by(&provider)), (300_000, -300_000));
    assert_eq!(renter.ledger.heads(provider.peer(), None, 10).unwrap().0, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_left_open_are_closed_after_a_sync_but_not_those_at_work() {
    let (_one, _other, provider, renter) = strangers().await;
    let jobs: Vec<_> = (1..=2).map(|number| job(&provider.key, &renter.key, number, ago(HOUR), 2)).collect();
    for all in &jobs {
        provider.keep(all).await;
        renter.keep(all).await;
    }
    let lanes: Vec<LaneId> = jobs.iter().filter_map(|all| all[0].lane()).collect();
    let guards = [provider.accounts.live(lanes[1]), renter.accounts.live(lanes[1])];
    renter.sync(&provider).await.unwrap();
    let closes = |side: &Side, lane: LaneId| {
        let ends = [&provider, &renter].map(|by| side.held(by, Place::Close(lane)));
        ends.into_iter().flatten().collect::<Vec<_>>()
    };
    // Whoever hears the other's close before its own turn has come has nothing left to close.
    let ended = |lane: LaneId| {
        let ends = closes(&provider, lane);
        !ends.is_empty() && ends == closes(&renter, lane)
    };
    until("both hold the same end of the lane", || ended(lanes[0])).await;
    for close in closes(&provider, lanes[0]) {
        let Statement::Close(close) = close else { panic!() };
        assert_eq!((close.body.k, close.body.amount), (2, NanoCredit::new(2_000)));
        let by_provider = close.body.by == provider.peer();
        assert!(by_provider || close.body.reason == CloseReason::PeerLost);
    }
    assert_eq!([closes(&provider, lanes[1]), closes(&renter, lanes[1])].concat(), []);
    drop(guards);
    for (side, peer) in [(&provider, renter.peer()), (&renter, provider.peer())] {
        side.accounts.parted(peer);
    }
    renter.sync(&provider).await.unwrap();
    until("the other lane ends too", || ended(lanes[1])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_in_which_nothing_happened_for_a_day_is_given_up_by_both() {
    let (one, other, provider, renter) = strangers().await;
    let all = job(&provider.key, &renter.key, 1, ago(UnixMillis::new(48 * HOUR.get())), 2);
    provider.keep(&all).await;
    renter.keep(&all).await;
    let lane = all[0].lane().unwrap();
    provider.close().await;
    renter.close().await;
    // What both do when they begin, without a word to each other.
    let (provider, renter) = meet(&one, &other).await;
    let given_up = |side: &Side| {
        let ends = [&provider, &renter].map(|by| side.held(by, Place::Abandon(lane)));
        ends.into_iter().flatten().collect::<Vec<_>>()
    };
    until("both know of both", || given_up(&provider).len() == 2 && given_up(&renter).len() == 2).await;
    for end in given_up(&provider) {
        let Statement::Abandon(end) = end else { panic!() };
        assert_eq!((end.body.k, end.body.amount), (2, NanoCredit::new(2_000)));
    }
    assert_eq!(provider.owed_by(&renter), 2_000, "the last voucher is final");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_confirmed_is_sent_again_without_a_sync() {
    let (_one, _other, provider, renter) = strangers().await;
    let all = job(&provider.key, &renter.key, 1, ago(HOUR), 1);
    provider.keep(&all[..3]).await;
    renter.keep(&all[..4]).await;
    // A job that broke off is what leaves a voucher without its receipt.
    renter.accounts.parted(provider.peer());
    until("voucher and receipt are with both", || {
        all.iter().all(|it| provider.holds(it) && renter.holds(it))
    })
    .await;
    assert!(!renter.accounts.is_synced(provider.peer()));
}

#[tokio::test(flavor = "multi_thread")]
async fn both_may_ask_at_once() {
    let (_one, _other, provider, renter) = strangers().await;
    let all = old_job(&provider.key, &renter.key, 1, 5);
    renter.keep(&all).await;
    renter.ask(&provider, &PairRequest::Steps).await;
    let (one, other) = tokio::join!(renter.sync(&provider), provider.sync(&renter));
    one.unwrap();
    other.unwrap();
    assert_eq!(provider.owed_by(&renter), 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_synced_with_is_named_with_what_to_do() {
    let (_one, _other, provider, renter) = strangers().await;
    let oneself = renter.accounts.sync(renter.peer(), SOON).await.unwrap_err();
    assert!(matches!(oneself, SyncError::Oneself), "{oneself}");
    let home = Home::new();
    let boot = home.open_network(Role::Bootstrap, &provider.network.listeners().await).await;
    let error = provider.accounts.sync(boot.0.local_peer(), SOON).await.unwrap_err();
    assert!(matches!(error, SyncError::Ask(crate::net::AskError::Unsupported { .. })), "{error}");
    let nobody = Home::new().key().peer();
    let error = renter.accounts.sync(nobody, SOON).await.unwrap_err();
    assert!(matches!(error, SyncError::Ask(crate::net::AskError::Unreachable { .. })), "{error}");
    assert_eq!(
        error.fault(potluck_protocol::fault::Fault::Provider),
        potluck_protocol::fault::Fault::Network
    );
}
