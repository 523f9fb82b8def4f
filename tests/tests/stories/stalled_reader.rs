//! Whoever reads potluckd's stdout has stopped reading: jobs are taken and settled all the same.
//!
//! Owns: a full pipe from the first line on. Never: a closed one, which is a plain write error. Run by
//! the stories.

use std::fs::File;
use std::io::Write as _;
use std::time::Instant;

use potluck_tests::network::Network;
use potluck_tests::owner::tell;
use potluck_tests::process::GRACE;
use potluck_tests::programs::MODEL;
use potluck_tests::renter::JOB;
use rustix::process::{Pid, Signal, kill_process};

use crate::{assert_opposite, number, turn};

/// What a pipe takes before a writer waits.
const PIPE_BYTES: usize = 65_536;

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_of_its_stdout_does_not_stop_the_provider() {
    let _turn = turn().await;
    let network = Network::start().await.unwrap();
    let state = network.folder("owner").unwrap();
    let (_unread, mut full) = std::io::pipe().unwrap();
    full.write_all(&vec![b'\n'; PIPE_BYTES]).unwrap();
    let mut command = network.provider_command(&state, MODEL, "0.04").unwrap();
    command.arg("--json").stdout(full).kill_on_drop(true);
    command.stderr(File::create(state.with_extension("stderr")).unwrap());
    let mut owner = command.spawn().unwrap();
    drop(command);

    let renter = network.renter("renter").unwrap();
    let begun = Instant::now();
    let job = loop {
        let job = renter.run("Say hello.", &["--max-tokens", "8"]).await.unwrap();
        // Until the model is loaded and the offer is out, nobody is found.
        if job.code() == Some(0) || begun.elapsed() > JOB {
            break job;
        }
    };
    assert_eq!(job.code(), Some(0), "{}", job.stderr);
    let amount = number(job.event("settled"), "amount_nanocredits");
    let (_, status) = tell(&state, "status", &[]).await.unwrap();
    assert_eq!(status["jobs"]["done"], 1, "{status}");

    kill_process(Pid::from_raw(owner.id().unwrap().try_into().unwrap()).unwrap(), Signal::TERM).unwrap();
    assert!(tokio::time::timeout(GRACE, owner.wait()).await.unwrap().unwrap().success());
    assert_eq!(assert_opposite(renter.state(), &state).await, amount);
}
