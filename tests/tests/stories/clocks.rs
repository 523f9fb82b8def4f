//! Clocks that were set back or ahead: they move no bill and refuse no honest job.
//!
//! Owns: wall clocks that disagree by decades between the two sides of a job. Never: changes this
//! machine's clock; a peer whose clock is off is one that writes such times. Run by the stories.

use std::time::{SystemTime, UNIX_EPOCH};

use potluck_protocol::fault::RefusalCode;
use potluck_protocol::unit::UnixMillis;
use potluck_protocol::wire::{ProviderFrame, RenterFrame};
use potluck_tests::network::Network;

use crate::stranger::Stranger;
use crate::turn;

const DAY_MS: u64 = 86_400_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_back_or_ahead_moves_no_bill() {
    let _turn = turn().await;
    let network = Network::with_providers(&["0.04"]).await.unwrap();
    let home = network.folder("stranger").unwrap();
    let stranger = Stranger::enter(&home, &network.address, &network.providers[0].peer).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = UnixMillis::new(u64::try_from(now.as_millis()).unwrap());
    let day = UnixMillis::new(DAY_MS);

    // The renter's clock stands in 1970; then a day ahead, as seen by a provider set back a day.
    for (lane, created) in [(1, UnixMillis::ZERO), (2, now.saturating_add(day))] {
        let mut papers = stranger.papers(lane, 2).await;
        papers.contract.created = created;
        papers.contract.start_by = now.saturating_add(day).saturating_add(day);
        let contract = stranger.sign(papers.contract.clone()).into_signed();
        let mut talk = stranger.open(&papers, contract).await;
        let meter = loop {
            match talk.hear().await {
                ProviderFrame::Meter(meter) => break meter.verify().unwrap(),
                ProviderFrame::Refuse(refusal) => panic!("refused for its clock: {refusal:?}"),
                ProviderFrame::Close { refusal, .. } => panic!("closed for its clock: {refusal:?}"),
                _ => {}
            }
        };
        // Two tokens are seconds of work at most, whatever the wall clocks say.
        let billed = meter.body().usage.total().get();
        assert!((1..60_000).contains(&billed), "{billed} ms");
        talk.say(&RenterFrame::Cancel).await;
    }

    // A start that was due a day ago is late by any honest pair of clocks.
    let mut papers = stranger.papers(3, 2).await;
    papers.contract.start_by = now.saturating_sub(day);
    let contract = stranger.sign(papers.contract.clone()).into_signed();
    let refusal = stranger.open(&papers, contract).await.refusal().await;
    assert_eq!(refusal.code, RefusalCode::Expired, "{refusal:?}");
    stranger.leave().await;
}
