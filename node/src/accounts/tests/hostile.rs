//! Peers that break the rules: what they say is refused, bounded, or convicts them.

use potluck_protocol::balance::PairId;
use potluck_protocol::fault::RefusalCode;
use potluck_protocol::proof::Equivocation;
use potluck_protocol::settle::Voucher;
use potluck_protocol::sync::{Heads, LaneHead};

use super::*;

fn is_refused(response: &PairResponse, with: RefusalCode) -> bool {
    matches!(response, PairResponse::Refused(refusal) if refusal.code == with)
}

/// Another voucher in the slot of the first.
fn other_voucher(renter: &SigningKey, job: &[Statement]) -> Statement {
    let voucher = job.iter().find_map(|statement| match statement {
        Statement::Voucher(it) => Some(it.body.clone()),
        _ => None,
    });
    let other = Voucher { amount: NanoCredit::new(1), ..voucher.unwrap() };
    renter.sign(other).unwrap().into_signed().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_signs_twice_is_convicted_frozen_and_told_of() {
    let (_one, _other, provider, liar) = strangers().await;
    let home = Home::new();
    let third = home.open(Role::Renter, &provider.network.listeners().await).await;
    third.sync(&provider).await.unwrap();
    let all = job(&provider.key, &liar.key, 1, ago(HOUR), 1);
    provider.keep(&all).await;
    liar.keep(&all).await;
    liar.sync(&provider).await.unwrap();
    let Statement::Contract(contract) = &job(&provider.key, &liar.key, 2, wall_now(), 0)[0] else { panic!() };
    assert_eq!(provider.accounts.may_open(&contract.body), Ok(()));
    let lie = other_voucher(&liar.key, &all);
    liar.ask(&provider, &PairRequest::Push(vec![lie.clone()])).await;
    assert!(!provider.holds(&lie), "the voucher that was kept stands");
    let proof = provider.ledger.proof_against(liar.peer()).unwrap().expect("convicted");
    assert_eq!(proof.verify().unwrap().signer, liar.peer());
    let frozen = Err(LaneRefused::NotNow(NotNow::Frozen));
    assert_eq!(provider.accounts.may_open(&contract.body), frozen);
    let error = provider.sync(&liar).await.unwrap_err();
    assert!(matches!(error, SyncError::Frozen { .. }), "{error}");
    until("the third peer knows", || third.ledger.proof_against(liar.peer()).unwrap().is_some()).await;
    let error = third.sync(&liar).await.unwrap_err();
    assert!(matches!(error, SyncError::Frozen { .. }), "{error}");
    // Who comes later is told when it syncs.
    let home = Home::new();
    let fourth = home.open(Role::Renter, &provider.network.listeners().await).await;
    fourth.sync(&provider).await.unwrap();
    until("the fourth peer knows", || fourth.ledger.proof_against(liar.peer()).unwrap().is_some()).await;
    // What was owed is still owed.
    assert_eq!(provider.owed_by(&liar), 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_proof_convicts_nobody() {
    let (_one, _other, provider, liar) = strangers().await;
    let all = job(&provider.key, &liar.key, 1, ago(HOUR), 1);
    let proof = Equivocation { first: all[0].clone(), second: all[0].clone() };
    assert_eq!(liar.ask(&provider, &PairRequest::Proof(Box::new(proof))).await, PairResponse::Noted);
    assert!(provider.ledger.proofs().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_had_no_part_in_is_not_kept() {
    let (_one, _other, provider, stranger) = strangers().await;
    // Jobs that the provider never accepted: the stranger signs both sides with keys of its own.
    let impostor = SigningKey::from_seed([9; 32]);
    let mut page = Vec::new();
    for number in 0..32 {
        let made_up = job(&provider.key, &stranger.key, number, ago(HOUR), 0);
        page.push(made_up[0].clone());
        let Statement::Accept(mut accept) = made_up[1].clone() else { panic!() };
        // A signature that is not the provider's.
        accept.signature = impostor
            .sign(Accept {
                lane: LaneId { provider: impostor.peer(), ..accept.body.lane },
                ..accept.body.clone()
            })
            .unwrap()
            .into_signed()
            .signature;
        page.push(Statement::Accept(accept));
    }
    page.extend(job(&impostor, &stranger.key, 99, ago(HOUR), 1));
    let answer = stranger.ask(&provider, &PairRequest::Push(page[..64].to_vec())).await;
    assert_eq!(answer, PairResponse::Statements { statements: Vec::new(), more: false });
    let answer = stranger.ask(&provider, &PairRequest::Push(page[64..].to_vec())).await;
    assert_eq!(answer, PairResponse::Statements { statements: Vec::new(), more: false });
    assert!(provider.ledger.peers().unwrap().is_empty());
    assert_eq!(provider.book(&stranger).epoch(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn meters_that_run_ahead_and_vouchers_that_pay_for_nothing_are_not_kept() {
    let (_one, _other, provider, renter) = strangers().await;
    let all = job(&provider.key, &renter.key, 1, ago(HOUR), 4);
    let (meter_two, meter_three, voucher_three) = (&all[5], &all[8], &all[9]);
    renter.keep(&all[..4]).await;
    provider.keep(&all[..5]).await;
    let answer = provider.ask(&renter, &PairRequest::Steps).await;
    assert!(matches!(answer, PairResponse::Statements { .. }));
    provider.ask(&renter, &PairRequest::Push(vec![meter_two.clone(), meter_three.clone()])).await;
    assert!(renter.holds(meter_two) && !renter.holds(meter_three));
    let answer = renter.ask(&provider, &PairRequest::Push(vec![voucher_three.clone()])).await;
    assert_eq!(answer, PairResponse::Statements { statements: Vec::new(), more: false });
    assert!(!provider.holds(voucher_three), "no meter of ours asks for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_cannot_be_read_are_refused() {
    let (_one, _other, provider, liar) = strangers().await;
    for bytes in [vec![0xff; 10], vec![0; 60_000], vec![3, 0xff, 0xff, 0xff, 0xff, 0x0f]] {
        let answer = liar.network.ask_pair(provider.peer(), bytes, SOON).await.unwrap();
        let answer: PairResponse = wire::decode_bounded(&answer).unwrap();
        assert!(is_refused(&answer, RefusalCode::Malformed), "{answer:?}");
    }
    liar.sync(&provider).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_refused_and_others_are_served() {
    let (_one, _other, provider, flooder) = strangers().await;
    let began = std::time::Instant::now();
    let (mut served, mut refused) = (0u128, 0);
    while refused < 50 {
        match flooder.ask(&provider, &PairRequest::Steps).await {
            answer if is_refused(&answer, RefusalCode::Busy) => refused += 1,
            _ => served += 1,
        }
        assert!(served < 100_000, "nothing is refused");
    }
    // 256 at once, and 32 a second.
    assert!(served <= 256 + began.elapsed().as_micros() / 31_250 + 1, "{served}");
    let home = Home::new();
    let honest = home.open(Role::Renter, &provider.network.listeners().await).await;
    honest.sync(&provider).await.unwrap();
    // And so is the flooder, once it has paid for its questions.
    flooder.sync(&provider).await.unwrap();
}

/// A peer that answers what a test makes up, given who asks and who it is itself.
async fn liar(
    at: &Side,
    mut lie: impl FnMut(PairId, PairRequest) -> PairResponse + Send + 'static,
) -> (Home, Network) {
    let home = Home::new();
    let (network, mut inbound, state) =
        home.open_network(Role::Provider, &at.network.listeners().await).await;
    let pair = PairId::of(at.peer(), network.local_peer()).unwrap();
    tokio::spawn(async move {
        let _held = state;
        while let Some(question) = inbound.pairs.recv().await {
            let request = wire::decode_bounded(&question.bytes).unwrap();
            let answer = wire::encode(&lie(pair, request)).unwrap();
            let _gone = question.answer(answer);
        }
    });
    (home, network)
}

/// Syncs with a peer that answers with `lie`: it must end as `wanted`, and nothing may be kept.
async fn sync_with_liar(
    lie: impl FnMut(PairId, PairRequest) -> PairResponse + Send + 'static,
    wanted: impl FnOnce(&SyncError) -> bool,
) {
    let home = Home::new();
    let honest = home.open(Role::Provider, &[]).await;
    let (_home, network) = liar(&honest, lie).await;
    let error = honest.accounts.sync(network.local_peer(), SOON).await.unwrap_err();
    assert!(wanted(&error), "{error}");
    assert!(!honest.accounts.is_synced(network.local_peer()));
    assert!(honest.ledger.peers().unwrap().is_empty());
}

const OTHER: Digest = Digest::from_bytes([7; 32]);

fn nothing() -> PairResponse {
    PairResponse::Statements { statements: Vec::new(), more: false }
}

fn off_script(error: &SyncError) -> bool {
    matches!(error, SyncError::OffScript { .. })
}

fn head_of(pair: PairId, number: u64) -> LaneHead {
    let lane = LaneId { renter: pair.low(), provider: pair.high(), epoch: 0, lane: number };
    LaneHead { contract: true, accept: true, ..LaneHead::nothing(lane) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_another_kind_ends_the_sync() {
    sync_with_liar(|_, _| nothing(), off_script).await;
    sync_with_liar(|_, _| PairResponse::Noted, off_script).await;
    sync_with_liar(|_, _| PairResponse::Same { heads: OTHER }, off_script).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_holds_the_same_is_given_up() {
    let lie = |_, request| match request {
        PairRequest::Same { .. } => PairResponse::Same { heads: OTHER },
        PairRequest::Heads(heads) => PairResponse::Heads(heads),
        _ => nothing(),
    };
    sync_with_liar(lie, |error| matches!(error, SyncError::Unequal { .. })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_of_another_page_end_the_sync() {
    let lie = |pair, request| match request {
        PairRequest::Same { .. } => PairResponse::Same { heads: OTHER },
        PairRequest::Heads(ours) => {
            let (after, lanes) = (Some(head_of(pair, 1).lane), vec![head_of(pair, 2)]);
            PairResponse::Heads(Box::new(Heads { after, lanes, whole: false, ..*ours }))
        }
        _ => nothing(),
    };
    sync_with_liar(lie, off_script).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_without_end_are_given_up() {
    let lie = |pair, request| match request {
        PairRequest::Same { .. } => PairResponse::Same { heads: OTHER },
        PairRequest::Heads(ours) => {
            let next = ours.after.map_or(1, |after| after.lane + 1);
            let lanes = vec![head_of(pair, next)];
            PairResponse::Heads(Box::new(Heads { lanes, whole: false, ..*ours }))
        }
        _ => nothing(),
    };
    let home = Home::new();
    let honest = home.open(Role::Provider, &[]).await;
    let (_home, network) = liar(&honest, lie).await;
    let error = honest.accounts.sync(network.local_peer(), Duration::from_millis(500)).await.unwrap_err();
    assert!(matches!(error, SyncError::TimedOut { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_leads_nowhere_ends_the_sync() {
    let lie = |pair, request| match request {
        PairRequest::Same { .. } => PairResponse::Same { heads: OTHER },
        PairRequest::Heads(ours) => {
            PairResponse::Heads(Box::new(Heads { lanes: vec![head_of(pair, 1)], ..*ours }))
        }
        PairRequest::Fetch(_) => PairResponse::Statements { statements: Vec::new(), more: true },
        _ => nothing(),
    };
    sync_with_liar(lie, off_script).await;
}
