//! A renter looks around: who offers the model, on what, at what price.
//!
//! Owns: the search by model and by hardware class. Never: a job. Run by the stories.

use potluck_tests::network::Network;
use potluck_tests::process::Process;
use potluck_tests::programs::{model, program};
use serde_json::Value;
use tokio::process::Command;

use crate::{number, turn};

async fn search(network: &Network, flags: &[&str]) -> (Option<i32>, Vec<Value>) {
    let renter = network.renter("looker").unwrap();
    let mut command = Command::new(program("potluck").unwrap());
    command.args(["search", "offers", "--json", "--bootstrap", &network.address]).args(flags);
    command.arg("--state-dir").arg(renter.state());
    let log = renter.state().with_extension("log");
    let process = Process::start("potluck", command, &log).unwrap();
    let ended = renter.finish(process).await.unwrap();
    (ended.code(), ended.events)
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_are_found_by_model_and_by_hardware_cheapest_first() {
    let _turn = turn().await;
    let network = Network::with_providers(&["0.05", "0.04"]).await.unwrap();
    for flags in [
        &["--model", "smollm2-135m"][..],
        &["--hardware", "cpu"],
        &["--model", "smollm2-135m", "--hardware", "cpu"],
    ] {
        let (code, rows) = search(&network, flags).await;
        assert_eq!((code, rows.len()), (Some(0), 2), "{flags:?} {rows:?}");
        let cheap = &network.providers[1].peer;
        assert_eq!(
            (rows[0]["provider"].as_str(), rows[1]["provider"].as_str()),
            (Some(cheap.as_str()), Some(network.providers[0].peer.as_str()))
        );
        assert_eq!(number(&rows[0], "run_nanocredits_per_second"), 11_111);
        assert_eq!(rows[0]["model"], model().unwrap().blake3.to_string());
        assert_eq!(
            (rows[0]["hardware_class"].as_str(), rows[0]["protection"].as_str()),
            (Some("cpu"), Some("full"))
        );
    }
    let (code, rows) = search(&network, &["--hardware", "cuda-9.9-999g"]).await;
    assert_eq!((code, rows[0]["code"].as_str()), (Some(3), Some("no_provider")), "{rows:?}");
}
