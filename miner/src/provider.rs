//! The run loop of `potluckd`.
//!
//! Owns: the tasks of a running provider and the order of start and stop. Never: decides anything
//! (policies do). Called by `potluckd run`; ends when `stop` is cancelled, after running jobs are
//! settled, offers withdrawn, workers reaped and peers' questions about their accounts answered no more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use potluck_node::net::{DhtKey, Inbound, InboundRequest, JobStream, Network};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::control::{Asked, Control};
use crate::desk::Desk;
use crate::driver;
use crate::frames::JobWire;
use crate::gate::YieldSignal;
use crate::pausing::Pausing;
use crate::report::Reporter;

/// Job streams served at once, the queued ones and those still sending their job included; each holds
/// at most one job of 1 MiB.
const MAX_STREAMS: usize = 32;
/// Running jobs get this long to settle at the end.
const SETTLE_WITHIN: Duration = Duration::from_secs(3);
/// An offer is renewed, and its directory entries with it, this often.
const OFFER_EVERY: Duration = Duration::from_secs(300);
/// What failed to be published is tried again after this.
const OFFER_RETRY: Duration = Duration::from_secs(10);
/// One try to join the network.
const JOIN_WITHIN: Duration = Duration::from_secs(10);
const JOIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_JOIN_BACKOFF: Duration = Duration::from_secs(30);
/// Withdrawing offers is a courtesy: stopping does not wait longer for it.
const WITHDRAW_WITHIN: Duration = Duration::from_secs(1);

/// A provider whose parts are started.
#[derive(Debug)]
pub struct Provider {
    /// The front desk.
    pub desk: Arc<Desk>,
    /// The network.
    pub network: Network,
    /// What comes from it.
    pub inbound: Inbound,
    /// The local socket.
    pub control: Control,
    /// The owner's pauses.
    pub pausing: Arc<Pausing>,
    /// Is there a bootstrap to join through?
    pub has_bootstrap: bool,
    /// Where the owner is told.
    pub reporter: Reporter,
}

impl Provider {
    /// Serves until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let Self { desk, network, inbound, control, pausing, has_bootstrap, reporter } = self;
        let mut helpers = JoinSet::new();
        // Workers outlive the jobs that are settled after `stop`.
        let keep = CancellationToken::new();
        for slot in desk.slots() {
            helpers.spawn(Arc::clone(slot).keep(Arc::clone(desk.gate()), keep.clone(), reporter));
        }
        helpers.spawn(Arc::clone(&pausing).watch(keep.clone()));
        let asked = Asked { desk: Arc::clone(&desk), network: network.clone(), pausing };
        helpers.spawn(control.serve(asked, keep.clone()));
        let Inbound { requests, pairs, jobs } = inbound;
        helpers.spawn(desk.accounts().clone().serve(pairs, keep.clone()));
        helpers.spawn(be_found(Arc::clone(&desk), network.clone(), has_bootstrap, stop.clone(), reporter));
        let mut jobs = serve(&desk, requests, jobs, &stop, reporter).await;
        reporter.stopping(jobs.len());
        let settled = async { while jobs.join_next().await.is_some() {} };
        if timeout(SETTLE_WITHIN, settled).await.is_err() {
            tracing::warn!(jobs = jobs.len(), "jobs not settled in time");
            jobs.shutdown().await;
        }
        withdraw(&network, keys(&desk)).await;
        keep.cancel();
        while helpers.join_next().await.is_some() {}
        network.shutdown().await;
    }
}

/// Takes questions and jobs until `stop`; the jobs that still run are returned.
async fn serve(
    desk: &Arc<Desk>,
    mut requests: mpsc::Receiver<InboundRequest>,
    mut streams: mpsc::Receiver<JobStream>,
    stop: &CancellationToken,
    reporter: Reporter,
) -> JoinSet<()> {
    let mut jobs = JoinSet::new();
    let places = Arc::new(Semaphore::new(MAX_STREAMS));
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return jobs,
            Some(_) = jobs.join_next(), if !jobs.is_empty() => {}
            request = requests.recv() => match request {
                Some(request) => answer(desk, request),
                None => return jobs,
            },
            stream = streams.recv() => match stream {
                Some(stream) => begin(desk, stream, &places, &mut jobs, reporter),
                None => return jobs,
            },
        }
    }
}

fn answer(desk: &Arc<Desk>, request: InboundRequest) {
    let Some(bytes) = desk.answer(request.peer, &request.bytes) else { return };
    if let Err(error) = request.answer(bytes) {
        tracing::debug!(%error, "an answer was not delivered");
    }
}

/// Starts a job's task; a stream over the limit is dropped, which the renter sees at once.
fn begin(
    desk: &Arc<Desk>,
    stream: JobStream,
    places: &Arc<Semaphore>,
    jobs: &mut JoinSet<()>,
    reporter: Reporter,
) {
    let Ok(permit) = Arc::clone(places).try_acquire_owned() else {
        tracing::warn!(peer = %stream.peer().short(), "too many job streams; one was dropped");
        return;
    };
    let (desk, stop): (_, YieldSignal) = (Arc::clone(desk), desk.gate().signal());
    jobs.spawn(async move {
        driver::serve(desk, JobWire::new(stream), stop, reporter).await;
        drop(permit);
    });
}

/// Joins the network, then keeps the offer fresh and findable while the machine is lent.
async fn be_found(
    desk: Arc<Desk>,
    network: Network,
    has_bootstrap: bool,
    stop: CancellationToken,
    reporter: Reporter,
) {
    let work = async {
        if has_bootstrap {
            join(&network, reporter).await;
        } else {
            reporter.alone();
        }
        let (mut owner, mut workers) = (desk.gate().watch_owner(), desk.gate().watch_workers());
        let mut filed = Vec::new();
        loop {
            let _ready = *workers.borrow_and_update();
            let done = if owner.borrow_and_update().admits() {
                filed = keys(&desk);
                publish(&desk, &network, has_bootstrap, &filed).await
            } else {
                withdraw(&network, std::mem::take(&mut filed)).await;
                true
            };
            tokio::select! {
                () = sleep(if done { OFFER_EVERY } else { OFFER_RETRY }) => {}
                // Both senders live as long as the desk.
                _ = owner.changed() => {}
                _ = workers.changed() => {}
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn join(network: &Network, reporter: Reporter) {
    let mut backoff = JOIN_BACKOFF;
    loop {
        match network.join(JOIN_WITHIN).await {
            Ok(joined) => {
                return reporter.joined(joined.via, &joined.address.to_string());
            }
            Err(error) => reporter.not_joined(&error.to_string(), backoff),
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(MAX_JOIN_BACKOFF);
    }
}

/// Renews the offer and its directory entries; false when something is to be tried again soon.
async fn publish(desk: &Desk, network: &Network, in_network: bool, keys: &[DhtKey]) -> bool {
    match desk.renew_offer() {
        Ok(Some(_)) => {}
        Ok(None) => return false,
        Err(error) => {
            tracing::error!(%error, "the offer cannot be signed");
            return false;
        }
    }
    if !in_network {
        return true;
    }
    let began = Instant::now();
    let mut all = true;
    for key in keys {
        if let Err(error) = network.provide(*key).await {
            tracing::warn!(%error, "a directory entry was not published");
            all = false;
        }
    }
    tracing::debug!(elapsed = ?began.elapsed(), all, "offer published");
    all
}

/// Where the offer is to be found: by model, by hardware class, by both.
fn keys(desk: &Desk) -> Vec<DhtKey> {
    let mut keys = Vec::new();
    for ready in desk.slots().iter().filter_map(|slot| slot.ready()) {
        let class = ready.hardware.class.as_str();
        keys.extend([
            DhtKey::model(ready.ware.model),
            DhtKey::model_on(ready.ware.model, class),
            DhtKey::hardware(class),
        ]);
    }
    if desk.guests().is_some() && !keys.is_empty() {
        keys.push(DhtKey::guests());
    }
    keys
}

async fn withdraw(network: &Network, keys: Vec<DhtKey>) {
    let all = async {
        for key in keys {
            if let Err(error) = network.withdraw(key).await {
                tracing::debug!(%error, "a directory entry was not withdrawn");
            }
        }
    };
    if timeout(WITHDRAW_WITHIN, all).await.is_err() {
        tracing::debug!("directory entries were left to expire");
    }
}
