//! Two sides explain one bill in the same words, one of them while it runs, and their exports hold.
//!
//! Owns: the ledger verbs through the running provider's control socket. Never: looks into a ledger's
//! files. Run by the stories.

use potluck_tests::ledgers::{ask_of, balance};
use potluck_tests::network::Network;
use serde_json::json;

use crate::{number, turn};

#[tokio::test(flavor = "multi_thread")]
async fn both_explain_the_bill_alike_and_export_it_while_one_runs() {
    let _turn = turn().await;
    let network = Network::with_providers(&["0.04"]).await.unwrap();
    let (renter, provider) = (network.renter("renter").unwrap(), &network.providers[0]);
    let job = renter.run("Name a planet.", &["--max-tokens", "16"]).await.unwrap();
    assert_eq!(job.code(), Some(0), "{}", job.stderr);
    let id = job.event("accepted")["job"].as_str().unwrap().to_owned();
    let amount = number(job.event("settled"), "amount_nanocredits");

    let ours = ask_of("potluck", &["explain", &id], renter.state()).await.unwrap().remove(0);
    let theirs = ask_of("potluckd", &["explain", &id], &provider.state).await.unwrap().remove(0);
    for key in ["formula", "exact_nanocredits", "steps", "terms", "contract", "quote", "reason", "receipt"] {
        assert_eq!(ours[key], theirs[key], "{key}");
        assert!(!ours[key].is_null(), "{key} is missing: {ours}");
    }
    assert_eq!((&ours["amount_nanocredits"], &ours["thinned"]), (&json!(amount), &json!(false)));
    assert_eq!((&ours["role"], &theirs["role"]), (&json!("renter"), &json!("provider")));

    let pairs = ask_of("potluckd", &["pairs"], &provider.state).await.unwrap();
    assert_eq!((pairs.len(), &pairs[0]["peer"]), (1, &theirs["peer"]));
    assert_eq!(pairs[0]["balance_nanocredits"], json!(amount));
    let objects = ask_of("potluckd", &["show", &id], &provider.state).await.unwrap();
    assert!(objects.iter().any(|object| object["kind"] == "voucher"), "{objects:?}");
    ask_of("potluckd", &["check"], &provider.state).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    for (name, state) in [("potluck", renter.state()), ("potluckd", provider.state.as_path())] {
        let file = folder.path().join(name);
        let file = file.to_str().unwrap();
        ask_of(name, &["export", file], state).await.unwrap();
        let rows = ask_of("potluck", &["verify", file], &folder.path().join("nobody")).await.unwrap();
        let whole = rows.last().unwrap();
        assert_eq!(whole["balance_nanocredits"], json!(balance(name, state).await.unwrap()));
        assert_eq!(whole["faults"], json!(0), "{rows:?}");
    }
    // Who runs holds the ledger: nothing is taken in behind its back.
    let own = folder.path().join("potluckd");
    let refused = ask_of("potluckd", &["import", own.to_str().unwrap()], &provider.state).await;
    assert!(refused.is_err(), "{refused:?}");
}
