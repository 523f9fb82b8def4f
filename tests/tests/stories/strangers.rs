//! Strangers who break the protocol: each is refused with its code, and the provider goes on serving.
//!
//! Owns: tampered, forged, replayed and oversized messages. Never: an honest renter, but for the one
//! who comes after all of them. Run by the stories.

use potluck_protocol::fault::RefusalCode;
use potluck_protocol::limits::MAX_JOB_PART_BYTES;
use potluck_protocol::sign::{Signed, SigningKey};
use potluck_protocol::unit::{NanoCredit, Rate};
use potluck_protocol::wire::{ProviderFrame, RenterFrame};
use potluck_tests::ledgers;
use potluck_tests::network::Network;

use crate::stranger::Stranger;
use crate::turn;

async fn market() -> (Network, Stranger) {
    let network = Network::with_providers(&["0.04"]).await.unwrap();
    let home = network.folder("stranger").unwrap();
    let stranger = Stranger::enter(&home, &network.address, &network.providers[0].peer).await;
    (network, stranger)
}

/// After all that, an honest renter is served by the same process.
async fn assert_still_serving(network: &mut Network, stranger: Stranger) {
    stranger.leave().await;
    let renter = network.renter("honest").unwrap();
    let job = renter.run("Name a planet.", &["--max-tokens", "8"]).await.unwrap();
    assert_eq!(job.code(), Some(0), "{}", job.stderr);
    let provider = &network.providers[0];
    assert!(provider.process.id().is_some(), "the provider is gone");
    assert!(!provider.process.stderr().contains("panicked"), "{}", provider.process.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn contracts_that_are_not_what_was_signed_are_refused() {
    let _turn = turn().await;
    let (mut network, stranger) = market().await;
    let papers = stranger.papers(1, 4).await;

    // Signed, then changed.
    let mut tampered = stranger.sign(papers.contract.clone()).into_signed();
    tampered.body.max_total = NanoCredit::new(1);
    let refusal = stranger.open(&papers, tampered).await.refusal().await;
    assert_eq!(refusal.code, RefusalCode::BadSignature, "{refusal:?}");

    // Signed by another key than the one it names.
    let mut foreign = papers.contract.clone();
    let thief = SigningKey::from_seed([9; 32]);
    foreign.lane.renter = thief.peer();
    let signature = thief.sign(foreign).unwrap().into_signed().signature;
    let forged = Signed { body: papers.contract.clone(), signature };
    let refusal = stranger.open(&papers, forged).await.refusal().await;
    assert_eq!(refusal.code, RefusalCode::BadSignature, "{refusal:?}");

    // Well signed, for a price that was never quoted.
    let mut cheap = papers.contract.clone();
    cheap.terms.run = Rate::new(1);
    let refusal = stranger.open(&papers, stranger.sign(cheap).into_signed()).await.refusal().await;
    assert_eq!(refusal.code, RefusalCode::QuoteMismatch, "{refusal:?}");

    // Another job than the one that was signed.
    let mut other = papers.clone();
    *other.job.last_mut().unwrap() ^= 1;
    let contract = stranger.sign(papers.contract.clone()).into_signed();
    let refusal = stranger.open(&other, contract).await.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Malformed, "{refusal:?}");

    let provider = network.providers[0].state.clone();
    assert_eq!(ledgers::balance("potluckd", &provider).await.unwrap(), 0, "a refused contract left a debt");
    assert_still_serving(&mut network, stranger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_frame_end_one_stream_only() {
    let _turn = turn().await;
    let (mut network, stranger) = market().await;

    let mut talk = stranger.connect().await;
    talk.say_bytes(&[0xff; 300]).await;
    let refusal = talk.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Malformed, "{refusal:?}");

    // A frame within the frame's limit whose part is over the part's.
    let papers = stranger.papers(2, 4).await;
    let contract = stranger.sign(papers.contract.clone()).into_signed();
    let mut talk = stranger.connect().await;
    talk.say(&RenterFrame::Open {
        contract: Box::new(contract),
        quote: Box::new(papers.quote),
        job_bytes: 61_000,
    })
    .await;
    talk.say(&RenterFrame::JobPart(vec![0; MAX_JOB_PART_BYTES + 1])).await;
    let refusal = talk.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Malformed, "{refusal:?}");

    // The right words in the wrong order.
    let mut talk = stranger.connect().await;
    talk.say(&RenterFrame::Cancel).await;
    let refusal = talk.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Malformed, "{refusal:?}");
    assert_still_serving(&mut network, stranger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_runs_once() {
    let _turn = turn().await;
    let (mut network, stranger) = market().await;
    let papers = stranger.papers(3, 4).await;
    let contract = stranger.sign(papers.contract.clone()).into_signed();
    let mut first = stranger.open(&papers, contract.clone()).await;
    loop {
        match first.hear().await {
            ProviderFrame::Accept(_) => break,
            ProviderFrame::Refuse(refusal) => panic!("an honest job was refused: {refusal:?}"),
            _ => {}
        }
    }
    first.say(&RenterFrame::Cancel).await;
    drop(first);
    let refusal = stranger.open(&papers, contract).await.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Replayed, "{refusal:?}");
    assert_still_serving(&mut network, stranger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_signs_two_contracts_in_one_place_gets_no_job_any_more() {
    let _turn = turn().await;
    let (mut network, stranger) = market().await;
    let papers = stranger.papers(7, 4).await;
    let mut first = stranger.open(&papers, stranger.sign(papers.contract.clone()).into_signed()).await;
    loop {
        match first.hear().await {
            ProviderFrame::Accept(_) => break,
            ProviderFrame::Refuse(refusal) => panic!("an honest job was refused: {refusal:?}"),
            _ => {}
        }
    }
    // Another contract under the same number: refused like the same one again, but it proves something.
    let other = stranger.papers(7, 8).await;
    let contract = stranger.sign(other.contract.clone()).into_signed();
    let refusal = stranger.open(&other, contract).await.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Replayed, "{refusal:?}");
    first.say(&RenterFrame::Cancel).await;
    drop(first);

    let papers = stranger.papers(8, 4).await;
    let contract = stranger.sign(papers.contract.clone()).into_signed();
    let refusal = stranger.open(&papers, contract).await.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Frozen, "{refusal:?}");
    assert_still_serving(&mut network, stranger).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vouchers_that_pay_too_little_or_twice_end_the_job() {
    let _turn = turn().await;
    let (mut network, stranger) = market().await;
    let key = stranger.identity.signing_key();

    // One nano-credit too little.
    let mut debt = stranger.until_first_meter(4).await;
    let mut short = debt.due();
    short.amount = NanoCredit::new(short.amount.get() - 1);
    debt.talk.say(&RenterFrame::Voucher(Box::new(key.sign(short).unwrap().into_signed()))).await;
    let refusal = debt.talk.refusal().await;
    assert_eq!(refusal.code, RefusalCode::VoucherMissing, "{refusal:?}");

    // Changed after it was signed.
    let mut debt = stranger.until_first_meter(5).await;
    let mut changed = key.sign(debt.due()).unwrap().into_signed();
    changed.body.amount = NanoCredit::new(changed.body.amount.get() + 1);
    debt.talk.say(&RenterFrame::Voucher(Box::new(changed))).await;
    let refusal = debt.talk.refusal().await;
    assert_eq!(refusal.code, RefusalCode::BadSignature, "{refusal:?}");

    // The same voucher again, where the next one is due: it pays once.
    let mut debt = stranger.until_first_meter(6).await;
    let due = debt.due();
    let voucher = RenterFrame::Voucher(Box::new(key.sign(due.clone()).unwrap().into_signed()));
    debt.talk.say(&voucher).await;
    loop {
        match debt.talk.hear().await {
            ProviderFrame::Receipt(receipt) => {
                assert_eq!(receipt.verify().unwrap().body().amount, due.amount)
            }
            ProviderFrame::Meter(meter) if meter.body.k == 2 => break,
            ProviderFrame::Close { refusal, .. } => panic!("it closed before the second meter: {refusal:?}"),
            _ => {}
        }
    }
    debt.talk.say(&voucher).await;
    let close = debt.talk.closed().await;
    assert_eq!((close.k, close.amount), (1, due.amount), "a replayed voucher was counted twice");

    let provider = network.providers[0].state.clone();
    let balance = ledgers::balance("potluckd", &provider).await.unwrap();
    assert_eq!(u64::try_from(balance).unwrap(), due.amount.get(), "only the good voucher counts");
    assert_still_serving(&mut network, stranger).await;
}
