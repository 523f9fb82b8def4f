//! Providers who break the protocol: the renter says so, blames them, and pays for nothing false.
//!
//! Owns: tampered, forged, replayed and inflated accepts, meters, receipts and closes. Never: an
//! honest provider's failures. Run by the stories.

use potluck_protocol::unit::{GpuMillis, Rate};
use potluck_tests::ledgers;
use potluck_tests::network::Network;

use crate::impostor::{FIRST_MS, Impostor, Lie, RATE};
use crate::{assert_failed, turn};

/// Each lie, what the renter calls it, and whether the first, true meter was paid before.
const LIES: [(Lie, &str, bool); 9] = [
    (Lie::AcceptByAnother, "protocol_violation", false),
    (Lie::MoreTime, "overclaimed", false),
    (Lie::MoreTokens, "overclaimed", false),
    (Lie::MeterTampered, "protocol_violation", false),
    (Lie::MeterAgain, "overclaimed", true),
    (Lie::ReceiptForLess, "protocol_violation", true),
    (Lie::ReceiptByAnother, "protocol_violation", true),
    (Lie::CloseForMore, "protocol_violation", true),
    (Lie::Silence, "provider_lost", false),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_provider_is_named_and_paid_nothing_for_its_lie() {
    let _turn = turn().await;
    let network = Network::start().await.unwrap();
    let impostor = Impostor::enter(&network.folder("impostor").unwrap(), &network.address).await;
    let peer = impostor.peer.to_string();
    let first = i64::try_from(Rate::new(RATE).amount(GpuMillis::new(FIRST_MS)).get()).unwrap();

    let honest = network.renter("honest").unwrap();
    impostor.tell(Lie::None);
    let job = honest.run("hello", &["--provider", &peer]).await.unwrap();
    assert_eq!(job.code(), Some(0), "{:?} {}", job.events, job.stderr);
    assert_eq!(ledgers::balance("potluck", honest.state()).await.unwrap(), -first);

    for (lie, code, paid) in LIES {
        let renter = network.renter(&format!("{lie:?}")).unwrap();
        impostor.tell(lie);
        let job = renter.run("hello", &["--provider", &peer]).await.unwrap();
        assert_failed(&job, 1, code, "provider");
        let owed = -ledgers::balance("potluck", renter.state()).await.unwrap();
        assert_eq!(owed, if paid { first } else { 0 }, "{lie:?}");
        let receipts = ledgers::receipts("potluck", renter.state()).await.unwrap();
        assert!(!receipts[0]["reason"].is_null(), "{lie:?} left the lane open: {receipts:?}");
    }
    impostor.leave().await;
}
