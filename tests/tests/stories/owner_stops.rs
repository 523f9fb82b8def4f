//! The owner presses Ctrl-C while a stranger's job runs: the job is settled, nobody is blamed.
//!
//! Owns: the polite end of a provider, as a terminal brings it about. Never: sudden death
//! ([`crate::lost_provider`]). Run by the stories.

use potluck_tests::network::Network;
use potluck_tests::process::Process;
use potluck_tests::programs::MODEL;
use potluck_tests::renter::JOB;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{LONG, assert_bill, assert_failed, assert_opposite, number, turn};

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_at_the_owners_terminal_settles_the_running_job() {
    let _turn = turn().await;
    let network = Network::start().await.unwrap();
    let state = network.folder("owner").unwrap();
    let mut command = network.provider_command(&state, MODEL, "0.04").unwrap();
    // A terminal signals the whole foreground group: the daemon, and whatever stayed in its group.
    command.arg("--json").process_group(0);
    let mut owner = Process::start("potluckd", command, &state.with_extension("stderr")).unwrap();
    owner.event("joined", JOB).await.unwrap();

    let renter = network.renter("renter").unwrap();
    let mut process = renter.start(LONG, &["--max-tokens", "4000"]).unwrap();
    let quote = process.event("quote", JOB).await.unwrap();
    let first = process.event("output", JOB).await.unwrap();
    let group = Pid::from_raw(owner.id().unwrap().try_into().unwrap()).unwrap();
    kill_process_group(group, Signal::INT).unwrap();
    // Whoever started the daemon passes the same wish on: it still settles.
    owner.signal(Signal::TERM).unwrap();

    let mut job = renter.finish(process).await.unwrap();
    job.events.splice(0..0, [quote, first]);
    assert_failed(&job, 1, "owner_yield", "nobody");
    assert!(owner.exit(JOB).await.unwrap().success(), "{}", owner.stderr());
    assert_bill(&job, u64::MAX);
    let amount = number(job.event("settled"), "amount_nanocredits");
    assert!(amount > 0);
    assert_eq!(assert_opposite(renter.state(), &state).await, amount);
}
