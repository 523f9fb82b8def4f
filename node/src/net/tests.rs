//! The network against itself: real swarms on 127.0.0.1, by QUIC and by TCP.
//!
//! Every wait is for a condition and bounded by [`SOON`], far above what a starved machine needs;
//! the bounds that are promised to callers are asserted where they are the point.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::io::AsyncWriteExt as _;
use potluck_protocol::id::ContentHash;
use tokio::time::{sleep, timeout};

use super::*;

const SOON: Duration = Duration::from_secs(20);
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const TCP: &str = "/ip4/127.0.0.1/tcp/0";

fn identity() -> Identity {
    let folder = tempfile::tempdir().expect("folder");
    Identity::load_or_create(&folder.path().join("identity")).expect("identity")
}

fn address(text: &str) -> Multiaddr {
    text.parse().expect(text)
}

fn config(role: Role, listen: &[&str], bootstrap: &[Multiaddr]) -> NetworkConfig {
    NetworkConfig {
        listen: listen.iter().map(|text| address(text)).collect(),
        bootstrap: bootstrap.to_vec(),
        external: Vec::new(),
        role,
        limits: NetworkLimits::for_role(role),
    }
}

async fn start(role: Role, listen: &[&str], bootstrap: &[Multiaddr]) -> (Network, Inbound) {
    Network::start(&identity(), config(role, listen, bootstrap)).await.expect("starts")
}

async fn joined(role: Role, listen: &[&str], bootstrap: &[Multiaddr]) -> (Network, Inbound) {
    let (network, inbound) = start(role, listen, bootstrap).await;
    network.join(SOON).await.expect("joins");
    (network, inbound)
}

/// A bootstrap, and how to reach it.
async fn bootstrap(listen: &str) -> (Network, Vec<Multiaddr>) {
    let (network, _) = start(Role::Bootstrap, &[listen], &[]).await;
    let listeners = network.listeners().await;
    assert_eq!(listeners.len(), 1);
    (network, listeners)
}

/// A provider and a renter that know each other's network.
async fn pair(listen: &str) -> (Network, Network, Inbound, Network) {
    let (boot, at) = bootstrap(listen).await;
    let (provider, inbound) = joined(Role::Provider, &[listen], &at).await;
    let (renter, _) = joined(Role::Renter, &[], &at).await;
    (boot, provider, inbound, renter)
}

/// Waits until the snapshot of `network` is as wanted.
async fn eventually(network: &Network, wanted: impl Fn(&NetSnapshot) -> bool) -> NetSnapshot {
    let waiting = async {
        loop {
            let snapshot = network.snapshot().await.expect("alive");
            if wanted(&snapshot) {
                return snapshot;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    match timeout(SOON, waiting).await {
        Ok(snapshot) => snapshot,
        Err(_) => panic!("it never came: {:?}", network.snapshot().await),
    }
}

/// Looks `key` up until `count` providers are found: records take a moment to arrive.
async fn find(network: &Network, key: DhtKey, count: usize) -> Vec<PeerId> {
    let finding = async {
        loop {
            let found = network.find_providers(key, 8, SOON).await.expect("the directory answers");
            if found.len() == count {
                return found;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, finding).await.expect("found in time")
}

async fn two_providers_are_found(listen: &str) {
    let (_boot, at) = bootstrap(listen).await;
    let key = DhtKey::model(ContentHash::from_bytes([7; 32]));
    let (one, mut inbound) = joined(Role::Provider, &[listen], &at).await;
    let (two, _inbound) = joined(Role::Provider, &[listen], &at).await;
    one.provide(key).await.expect("published");
    two.provide(key).await.expect("published");
    let (renter, _) = start(Role::Renter, &[], &at).await;
    let began = Instant::now();
    let via = renter.join(SOON).await.expect("joins");
    assert_eq!(at[0].to_string(), format!("{}/p2p/{}", via.address, via.via));
    let join_took = began.elapsed();
    let mut found = find(&renter, key, 2).await;
    let find_took = began.elapsed() - join_took;
    found.sort();
    let mut wanted = vec![one.local_peer(), two.local_peer()];
    wanted.sort();
    assert_eq!(found, wanted);
    // What was found can be called.
    let answering = async {
        let request = inbound.requests.recv().await.expect("asked");
        assert_eq!(request.peer, renter.local_peer());
        assert_eq!(request.bytes, b"price?");
        request.answer(b"cheap".to_vec()).expect("waits");
    };
    let began = Instant::now();
    let asking = renter.ask(one.local_peer(), b"price?".to_vec(), SOON);
    let (answer, ()) = tokio::join!(asking, answering);
    assert_eq!(answer.expect("answered"), b"cheap");
    eprintln!("{listen}: join {join_took:?}, find {find_took:?}, ask {:?}", began.elapsed());
    // A provider does not find itself, a stranger's key finds nobody.
    assert_eq!(find(&one, key, 1).await, [two.local_peer()]);
    let other = DhtKey::hardware("cuda-89-12g");
    assert_eq!(renter.find_providers(other, 8, SOON).await, Ok(Vec::new()));
    assert!(renter.listeners().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_providers_are_found_by_quic() {
    two_providers_are_found(QUIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_providers_are_found_by_tcp() {
    two_providers_are_found(TCP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_ends_as_soon_as_enough_are_found() {
    let (_boot, at) = bootstrap(QUIC).await;
    let key = DhtKey::hardware("any");
    let mut providers = Vec::new();
    for _ in 0..3 {
        let (provider, inbound) = joined(Role::Provider, &[QUIC], &at).await;
        provider.provide(key).await.expect("published");
        providers.push((provider, inbound));
    }
    let (renter, _) = joined(Role::Renter, &[], &at).await;
    find(&renter, key, 3).await;
    assert_eq!(renter.find_providers(key, 2, SOON).await.map(|found| found.len()), Ok(2));
    assert_eq!(renter.find_providers(key, 0, SOON).await, Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_providers_than_a_bucket_holds_are_found_in_turn_and_can_be_called() {
    // Kademlia keeps 20 peers per bucket and names 20 providers per answer.
    const PROVIDERS: usize = 26;
    let (_boot, at) = bootstrap(QUIC).await;
    let key = DhtKey::hardware("any");
    let mut providers = HashMap::new();
    for _ in 0..PROVIDERS {
        let (provider, inbound) = joined(Role::Provider, &[QUIC], &at).await;
        provider.provide(key).await.expect("published");
        providers.insert(provider.local_peer(), (provider, inbound));
    }
    let (renter, _) = joined(Role::Renter, &[], &at).await;
    let mut found = HashSet::new();
    let finding = async {
        while found.len() < PROVIDERS {
            found.extend(renter.find_providers(key, 16, SOON).await.expect("answers"));
        }
    };
    timeout(SOON, finding).await.expect("all get their turn");
    for (peer, (_, inbound)) in &mut providers {
        let answering = async {
            inbound.requests.recv().await.expect("asked").answer(vec![1]).expect("waits");
        };
        let (answer, ()) = tokio::join!(renter.ask(*peer, vec![9], SOON), answering);
        assert_eq!(answer, Ok(vec![1]), "{peer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_key_is_published_no_more() {
    let (boot, provider, _inbound, _renter) = pair(QUIC).await;
    let key = DhtKey::hardware("any");
    provider.provide(key).await.expect("published");
    eventually(&boot, |snapshot| snapshot.records_kept == 1).await;
    provider.withdraw(key).await.expect("alive");
    assert_eq!(provider.snapshot().await.expect("alive").providing, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_was_never_looked_up_is_found_by_its_name() {
    let (_boot, provider, mut inbound, renter) = pair(QUIC).await;
    let answering = async {
        inbound.requests.recv().await.expect("asked").answer(vec![1]).expect("waits");
    };
    let (answer, ()) = tokio::join!(renter.ask(provider.local_peer(), vec![9], SOON), answering);
    assert_eq!(answer, Ok(vec![1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_and_ourselves_cannot_be_called() {
    let (_boot, _provider, _inbound, renter) = pair(QUIC).await;
    let nobody = identity().peer();
    let asked = renter.ask(nobody, vec![1], SOON).await;
    assert!(matches!(asked, Err(AskError::Unreachable { peer, .. }) if peer == nobody), "{asked:?}");
    let opened = renter.open_job(renter.local_peer(), SOON).await;
    assert!(matches!(opened, Err(OpenError::Unreachable { .. })), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_questions_is_refused_and_not_queued() {
    const ROOM: usize = 4;
    const FLOOD: usize = 12;
    let (_boot, at) = bootstrap(QUIC).await;
    let mut config = config(Role::Provider, &[QUIC], &at);
    config.limits.inbound_requests = ROOM;
    let (provider, mut inbound) = Network::start(&identity(), config).await.expect("starts");
    provider.join(SOON).await.expect("joins");
    let (renter, _) = joined(Role::Renter, &[], &at).await;
    let peer = provider.local_peer();
    let asking = join_all((0..FLOOD).map(|_| renter.ask(peer, vec![1], SOON)));
    let answering = async {
        let refused = u64::try_from(FLOOD - ROOM).expect("fits");
        eventually(&provider, |snapshot| snapshot.counters.requests_refused == refused).await;
        for _ in 0..ROOM {
            inbound.requests.recv().await.expect("waits").answer(vec![2]).expect("waits");
        }
    };
    let (answers, ()) = tokio::join!(asking, answering);
    let answered = answers.iter().filter(|answer| **answer == Ok(vec![2])).count();
    let busy = answers.iter().filter(|answer| **answer == Err(AskError::Busy { peer })).count();
    assert_eq!((answered, busy), (ROOM, FLOOD - ROOM), "{answers:?}");
    assert!(inbound.requests.try_recv().is_err(), "nothing was queued beyond the room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_is_dropped_reads_as_busy() {
    let (_boot, provider, mut inbound, renter) = pair(QUIC).await;
    let peer = provider.local_peer();
    let dropping = async { drop(inbound.requests.recv().await.expect("asked")) };
    let (answer, ()) = tokio::join!(renter.ask(peer, vec![1], SOON), dropping);
    assert_eq!(answer, Err(AskError::Busy { peer }));
    eventually(&provider, |snapshot| snapshot.counters.requests_unanswered == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_without_an_answer_ends_on_time() {
    let (_boot, provider, mut inbound, renter) = pair(QUIC).await;
    let within = Duration::from_millis(300);
    let began = Instant::now();
    let answer = renter.ask(provider.local_peer(), vec![1], within).await;
    assert!(began.elapsed() >= within);
    assert!(began.elapsed() < within + Duration::from_secs(3), "{:?}", began.elapsed());
    let stage = Stage::Waiting;
    assert_eq!(answer, Err(AskError::TimedOut { peer: provider.local_peer(), within, stage }));
    // An answer for nobody is counted, not lost without a word.
    inbound.requests.recv().await.expect("asked").answer(vec![1]).expect("the loop waits");
    eventually(&renter, |snapshot| snapshot.counters.replies_late == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_and_answers_keep_to_a_frame() {
    let (_boot, provider, mut inbound, renter) = pair(TCP).await;
    let peer = provider.local_peer();
    let largest = vec![3; MAX_FRAME_BYTES];
    let answering = async {
        let request = inbound.requests.recv().await.expect("asked");
        let bytes = request.bytes.clone();
        request.answer(bytes).expect("waits");
        let request = inbound.requests.recv().await.expect("asked");
        request.answer(vec![3; MAX_FRAME_BYTES + 1]).expect_err("too long")
    };
    let asking = async {
        let first = renter.ask(peer, largest.clone(), SOON).await;
        (first, renter.ask(peer, vec![1], SOON).await)
    };
    let ((first, second), refused) = tokio::join!(asking, answering);
    assert_eq!(first, Ok(largest.clone()));
    assert_eq!(refused, AnswerError::BadAnswer { len: MAX_FRAME_BYTES + 1 });
    assert_eq!(second, Err(AskError::Busy { peer }));
    let len = MAX_FRAME_BYTES + 1;
    let asked = renter.ask(peer, vec![3; len], SOON).await;
    assert_eq!(asked, Err(AskError::BadRequest { len }));
    assert_eq!(renter.ask(peer, Vec::new(), SOON).await, Err(AskError::BadRequest { len: 0 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_takes_no_quotes_and_no_jobs() {
    let (boot, _provider, _inbound, renter) = pair(QUIC).await;
    let peer = boot.local_peer();
    assert_eq!(renter.ask(peer, vec![1], SOON).await, Err(AskError::Unsupported { peer }));
    let opened = renter.open_job(peer, SOON).await.expect_err("refused");
    assert_eq!(opened, OpenError::Unsupported { peer });
}

async fn frames_go_both_ways(listen: &str) {
    const FRAMES: u32 = 200;
    let (_boot, provider, mut inbound, renter) = pair(listen).await;
    let job = renter.open_job(provider.local_peer(), SOON).await.expect("opens");
    assert_eq!(job.peer(), provider.local_peer());
    let (mut reader, mut writer) = job.split();
    let sending = async {
        for number in 0..FRAMES {
            writer.write(&number.to_be_bytes(), SOON).await.expect("sent");
        }
        writer.close(SOON).await.expect("closed");
    };
    let echoing = async {
        let job = inbound.jobs.recv().await.expect("opened");
        assert_eq!(job.peer(), renter.local_peer());
        let (mut reader, mut writer) = job.split();
        while let Some(frame) = reader.read(SOON).await.expect("whole frames") {
            writer.write(&frame, SOON).await.expect("sent");
        }
        writer.close(SOON).await.expect("closed");
    };
    let receiving = async {
        for number in 0..FRAMES {
            let frame = reader.read(SOON).await.expect("whole").expect("not the end");
            assert_eq!(frame, number.to_be_bytes());
        }
        assert!(matches!(reader.read(SOON).await, Ok(None)), "a clean end");
    };
    tokio::join!(sending, echoing, receiving);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_go_both_ways_by_quic() {
    frames_go_both_ways(QUIC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_go_both_ways_by_tcp() {
    frames_go_both_ways(TCP).await;
}

/// A peer that does not read holds up who writes to it, after a bounded number of bytes.
async fn a_slow_reader_holds_up_the_writer(listen: &str, most_bytes: usize) {
    let (_boot, provider, mut inbound, renter) = pair(listen).await;
    let (_reader, mut writer) = renter.open_job(provider.local_peer(), SOON).await.expect("opens").split();
    let job = inbound.jobs.recv().await.expect("opened");
    let frame = vec![5; MAX_FRAME_BYTES];
    let mut frames = 0;
    let held_up = loop {
        match writer.write(&frame, Duration::from_secs(1)).await {
            Ok(()) => frames += 1,
            Err(error) => break error,
        }
        assert!(frames * MAX_FRAME_BYTES <= most_bytes, "{frames} frames and no end");
    };
    assert!(matches!(held_up, FrameError::TimedOut { .. }), "{held_up}");
    eprintln!("{listen}: held up after {frames} frames");
    // What was taken arrives whole; the frame that was cut off does not pass for one.
    let (mut reader, _writer) = job.split();
    for _ in 0..frames {
        assert_eq!(reader.read(SOON).await.expect("whole").expect("a frame"), frame);
    }
    drop((writer, _reader));
    assert!(!matches!(reader.read(SOON).await, Ok(Some(_))), "the torn frame is no frame");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_up_the_writer_by_quic() {
    // One stream window, and what quinn buffers for sending.
    a_slow_reader_holds_up_the_writer(QUIC, 16 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_up_the_writer_by_tcp() {
    // The kernel's buffers come on top.
    a_slow_reader_holds_up_the_writer(TCP, 64 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_over_the_limit_is_refused_by_its_length() {
    let (_boot, provider, mut inbound, renter) = pair(QUIC).await;
    let mut job = renter.open_job(provider.local_peer(), SOON).await.expect("opens");
    job.stream.write_all(&u32::MAX.to_be_bytes()).await.expect("written");
    job.stream.flush().await.expect("flushed");
    let (mut reader, _writer) = inbound.jobs.recv().await.expect("opened").split();
    let read = reader.read(SOON).await;
    assert!(matches!(read, Err(FrameError::TooLarge { len: 4_294_967_295 })), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn job_streams_beyond_the_bound_are_reset() {
    let (_boot, at) = bootstrap(QUIC).await;
    let mut config = config(Role::Provider, &[QUIC], &at);
    config.limits.inbound_jobs = 1;
    let (provider, mut inbound) = Network::start(&identity(), config).await.expect("starts");
    provider.join(SOON).await.expect("joins");
    let (renter, _) = joined(Role::Renter, &[], &at).await;
    let opening = (0..3).map(|_| renter.open_job(provider.local_peer(), SOON));
    let jobs: Vec<JobStream> = join_all(opening).await.into_iter().map(|job| job.expect("opens")).collect();
    eventually(&provider, |snapshot| snapshot.counters.jobs_refused == 2).await;
    let taken = inbound.jobs.recv().await.expect("one waits");
    let (_keep_reader, mut writer) = taken.split();
    writer.write(b"yours", SOON).await.expect("sent");
    let reading = jobs.into_iter().map(|job| async move { job.split().0.read(SOON).await });
    let outcomes = join_all(reading).await;
    let served = outcomes.iter().filter(|read| matches!(read, Ok(Some(_)))).count();
    assert_eq!(served, 1, "{outcomes:?}");
    assert!(!outcomes.iter().any(|read| matches!(read, Err(FrameError::TimedOut { .. }))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_goodbye_is_gone_at_once() {
    let (_boot, provider, mut inbound, renter) = pair(QUIC).await;
    let job = renter.open_job(provider.local_peer(), SOON).await.expect("opens");
    let (mut reader, mut writer) = job.split();
    writer.write(b"work", SOON).await.expect("sent");
    let theirs = inbound.jobs.recv().await.expect("opened");
    let began = Instant::now();
    provider.shutdown().await;
    let read = reader.read(SOON).await;
    assert!(matches!(read, Err(FrameError::PeerGone { .. })), "{read:?}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    drop(theirs);
}

/// Runs a provider in a runtime of its own, which can be cut off without a goodbye.
async fn mortal_provider(at: Vec<Multiaddr>, listen: &'static str) -> (tokio::runtime::Runtime, Network) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let provider = runtime.spawn(async move {
        let (provider, mut inbound) = joined(Role::Provider, &[listen], &at).await;
        tokio::spawn(async move {
            // Takes streams and keeps them open for as long as the runtime lives.
            let mut jobs = Vec::new();
            while let Some(job) = inbound.jobs.recv().await {
                jobs.push(job);
            }
        });
        provider
    });
    let provider = provider.await.expect("starts");
    (runtime, provider)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_dies_without_a_word_is_noticed_within_seconds() {
    let (_boot, at) = bootstrap(QUIC).await;
    let (runtime, provider) = mortal_provider(at.clone(), QUIC).await;
    let (renter, _) = joined(Role::Renter, &[], &at).await;
    let job = renter.open_job(provider.local_peer(), SOON).await.expect("opens");
    let (mut reader, mut writer) = job.split();
    writer.write(b"work", SOON).await.expect("sent");
    let began = Instant::now();
    runtime.shutdown_background();
    let read = reader.read(SOON).await;
    assert!(matches!(read, Err(FrameError::PeerGone { .. })), "{read:?}");
    eprintln!("noticed after {:?}", began.elapsed());
    assert!(began.elapsed() < limits::QUIC_SILENCE * 2, "{:?}", began.elapsed());
    // And calling it ends with a typed error, within its bound.
    let began = Instant::now();
    let within = Duration::from_secs(2);
    let asked = renter.ask(provider.local_peer(), vec![1], within).await;
    assert!(asked.is_err(), "{asked:?}");
    assert!(began.elapsed() < within + Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_provider_does_not_hold_up_a_lookup() {
    let (_boot, at) = bootstrap(QUIC).await;
    let key = DhtKey::hardware("any");
    let (runtime, dead) = mortal_provider(at.clone(), QUIC).await;
    dead.provide(key).await.expect("published");
    let (alive, _inbound) = joined(Role::Provider, &[QUIC], &at).await;
    alive.provide(key).await.expect("published");
    let (watcher, _) = joined(Role::Renter, &[], &at).await;
    find(&watcher, key, 2).await;
    runtime.shutdown_background();
    let (renter, _) = joined(Role::Renter, &[], &at).await;
    let began = Instant::now();
    let found = renter.find_providers(key, 8, SOON).await.expect("answered");
    assert!(found.contains(&alive.local_peer()), "{found:?}");
    eprintln!("found beside a dead provider after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    for listen in [QUIC, TCP] {
        let (_boot, at) = bootstrap(listen).await;
        let mut taken = at[0].clone();
        taken.pop();
        let listen = taken.to_string();
        let config = config(Role::Provider, &[&listen], &[]);
        let error = Network::start(&identity(), config).await.expect_err("refused");
        let kind = if listen.contains("udp") { "udp" } else { "tcp" };
        let text = error.to_string();
        assert!(matches!(error, StartError::PortInUse { .. }), "{text}");
        assert!(text.starts_with(&format!("{kind} port ")) && text.contains(" in use"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_are_not_ours_cannot_be_listened_on() {
    for listen in ["/ip4/203.0.113.7/udp/0/quic-v1", "/ip4/127.0.0.1/udp/9", "/memory/1"] {
        let config = config(Role::Provider, &[listen], &[]);
        let error = Network::start(&identity(), config).await.expect_err("refused");
        assert!(matches!(error, StartError::Listen { .. }), "{error}");
    }
    let config = config(Role::Renter, &[QUIC], &[]);
    let error = Network::start(&identity(), config).await.expect_err("refused");
    assert!(matches!(error, StartError::RenterListens { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_bootstrap_is_named_within_the_bound() {
    // Bound, so that nobody else gets the port, and silent.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    let port = socket.local_addr().expect("address").port();
    let silent = address(&format!("/ip4/127.0.0.1/udp/{port}/quic-v1"));
    let refusing = address("/ip4/127.0.0.1/tcp/1");
    let (renter, _) = start(Role::Renter, &[], &[silent.clone(), refusing.clone()]).await;
    let within = Duration::from_secs(1);
    let began = Instant::now();
    let error = renter.join(within).await.expect_err("nobody is there");
    assert!(began.elapsed() < within + Duration::from_secs(2), "{:?}", began.elapsed());
    let JoinError::Unreachable { tried, .. } = &error else { panic!("{error}") };
    assert_eq!(tried.iter().map(|tried| &tried.address).collect::<Vec<_>>(), [&silent, &refusing]);
    assert!(tried[1].problem.contains("refused"), "{error}");
    let key = DhtKey::hardware("any");
    assert_eq!(renter.find_providers(key, 1, SOON).await, Err(FindError::NotJoined));
    assert_eq!(renter.provide(key).await, Err(ProvideError::NotJoined));
    let (alone, _) = start(Role::Renter, &[], &[]).await;
    assert_eq!(alone.join(SOON).await, Err(JoinError::NoBootstrap));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_peer_at_the_bootstraps_address_is_not_taken_for_it() {
    let (_boot, at) = bootstrap(QUIC).await;
    let mut imposter = at[0].clone();
    imposter.pop();
    let expected = identity().peer();
    let imposter = address(&format!("{imposter}/p2p/{expected}"));
    let (renter, _) = start(Role::Renter, &[], &[imposter]).await;
    let error = renter.join(Duration::from_secs(2)).await.expect_err("not the one");
    assert!(error.to_string().contains("another peer answered"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_without_its_name_will_do() {
    let (boot, at) = bootstrap(QUIC).await;
    let mut nameless = at[0].clone();
    nameless.pop();
    let (renter, _) = start(Role::Renter, &[], &[nameless]).await;
    assert_eq!(renter.join(SOON).await.map(|joined| joined.via), Ok(boot.local_peer()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_that_comes_back_is_rejoined_and_told_again() {
    let key = DhtKey::hardware("any");
    let identity = identity();
    let boot_config = config(Role::Bootstrap, &[QUIC], &[]);
    let (boot, _) = Network::start(&identity, boot_config).await.expect("starts");
    let at = boot.listeners().await;
    let (provider, _inbound) = joined(Role::Provider, &[QUIC], &at).await;
    provider.provide(key).await.expect("published");
    eventually(&boot, |snapshot| snapshot.records_kept == 1).await;
    boot.shutdown().await;
    eventually(&provider, |snapshot| snapshot.counters.bootstraps_lost == 1).await;
    // It comes back at the same port, and has forgotten everything.
    let mut same_port = at[0].clone();
    same_port.pop();
    let boot_config = config(Role::Bootstrap, &[&same_port.to_string()], &[]);
    let starting = async {
        loop {
            // QUIC lets go of its port when its last goodbye is over.
            match Network::start(&identity, boot_config.clone()).await {
                Err(StartError::PortInUse { .. }) => sleep(Duration::from_millis(5)).await,
                started => return started.expect("starts again").0,
            }
        }
    };
    let boot = timeout(SOON, starting).await.expect("starts in time");
    eventually(&boot, |snapshot| snapshot.records_kept == 1).await;
    let (renter, _) = joined(Role::Renter, &[], &at).await;
    assert_eq!(find(&renter, key, 1).await, [provider.local_peer()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_refused_and_counted() {
    let mut config = config(Role::Bootstrap, &[QUIC], &[]);
    config.limits.connections_in = 1;
    let (boot, _) = Network::start(&identity(), config).await.expect("starts");
    let at = boot.listeners().await;
    let (_first, _) = joined(Role::Renter, &[], &at).await;
    let (second, _) = start(Role::Renter, &[], &at).await;
    let refused = second.join(Duration::from_secs(2)).await;
    assert!(matches!(refused, Err(JoinError::Unreachable { .. })), "{refused:?}");
    let snapshot = eventually(&boot, |snapshot| snapshot.counters.connections_refused > 0).await;
    assert_eq!(snapshot.links.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_shutdown_every_call_says_gone() {
    let (_boot, provider, _inbound, renter) = pair(QUIC).await;
    let peer = provider.local_peer();
    let key = DhtKey::hardware("any");
    // A call under way ends as well.
    let (asked, ()) = tokio::join!(renter.ask(peer, vec![1], SOON), async {
        eventually(&renter, |snapshot| snapshot.links.len() > 1).await;
        renter.shutdown().await;
    });
    assert_eq!(asked, Err(AskError::Gone(NetworkGone)));
    assert_eq!(renter.ask(peer, vec![1], SOON).await, Err(AskError::Gone(NetworkGone)));
    let opened = renter.open_job(peer, SOON).await.expect_err("gone");
    assert_eq!(opened, OpenError::Gone(NetworkGone));
    assert_eq!(renter.join(SOON).await, Err(JoinError::Gone(NetworkGone)));
    assert_eq!(renter.provide(key).await, Err(ProvideError::Gone(NetworkGone)));
    assert_eq!(renter.withdraw(key).await, Err(NetworkGone));
    assert_eq!(renter.find_providers(key, 1, SOON).await, Err(FindError::Gone(NetworkGone)));
    assert_eq!(renter.snapshot().await, Err(NetworkGone));
    assert!(renter.listeners().await.is_empty());
    renter.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renters_and_providers_ask_each_other_about_their_accounts() {
    let (_boot, at) = bootstrap(QUIC).await;
    let (provider, mut of_provider) = joined(Role::Provider, &[QUIC], &at).await;
    let (renter, mut of_renter) = joined(Role::Renter, &[], &at).await;
    for (asks, answers, inbound) in
        [(&renter, &provider, &mut of_provider), (&provider, &renter, &mut of_renter)]
    {
        let answering = async {
            let question = inbound.pairs.recv().await.expect("asked");
            assert_eq!((question.peer, question.bytes.as_slice()), (asks.local_peer(), &b"same?"[..]));
            question.answer(b"same".to_vec()).expect("waits");
        };
        let asking = asks.ask_pair(answers.local_peer(), b"same?".to_vec(), SOON);
        let (answer, ()) = tokio::join!(asking, answering);
        assert_eq!(answer, Ok(b"same".to_vec()));
    }
    assert!(of_provider.requests.try_recv().is_err(), "no question about a price");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_keeps_no_accounts() {
    let (boot, _provider, _inbound, renter) = pair(QUIC).await;
    let peer = boot.local_peer();
    assert_eq!(renter.ask_pair(peer, vec![1], SOON).await, Err(AskError::Unsupported { peer }));
    let peer = renter.local_peer();
    assert_eq!(boot.ask_pair(peer, vec![1], SOON).await, Err(AskError::Unsupported { peer }));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_keeps_accounts_is_listed_while_it_is_connected() {
    let (_boot, provider, _inbound, renter) = pair(QUIC).await;
    let (mut listed, peer) = (provider.pair_peers(), renter.local_peer());
    // Neither bootstrap nor renter is connected to the provider on this topic yet.
    assert!(!listed.borrow().contains(&peer));
    let asking = tokio::spawn({
        let (renter, provider) = (renter.clone(), provider.local_peer());
        async move { renter.ask_pair(provider, vec![1], SOON).await }
    });
    timeout(SOON, listed.wait_for(|peers| peers.contains(&peer))).await.expect("in time").expect("alive");
    renter.shutdown().await;
    timeout(SOON, listed.wait_for(|peers| peers.is_empty())).await.expect("in time").expect("alive");
    asking.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_on_one_topic_holds_up_none_of_the_other() {
    let (_boot, at) = bootstrap(QUIC).await;
    let mut config = config(Role::Provider, &[QUIC], &at);
    config.limits.inbound_requests = 2;
    let (provider, mut inbound) = Network::start(&identity(), config).await.expect("starts");
    provider.join(SOON).await.expect("joins");
    let (renter, _) = joined(Role::Renter, &[], &at).await;
    let peer = provider.local_peer();
    let flood = join_all((0..6).map(|_| renter.ask_pair(peer, vec![1], SOON)));
    let answering = async {
        eventually(&provider, |snapshot| snapshot.counters.requests_refused == 4).await;
        let price = async { inbound.requests.recv().await.expect("asked").answer(vec![2]).expect("waits") };
        let (answer, ()) = tokio::join!(renter.ask(peer, vec![1], SOON), price);
        assert_eq!(answer, Ok(vec![2]));
        for _ in 0..2 {
            inbound.pairs.recv().await.expect("waits").answer(vec![3]).expect("waits");
        }
    };
    let (answers, ()) = tokio::join!(flood, answering);
    assert_eq!(answers.iter().filter(|answer| **answer == Ok(vec![3])).count(), 2, "{answers:?}");
    assert_eq!(answers.iter().filter(|it| **it == Err(AskError::Busy { peer })).count(), 4, "{answers:?}");
}
