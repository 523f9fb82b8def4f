//! Accounts against each other: two or three real networks on 127.0.0.1, and real ledgers.
//!
//! Every wait is for a condition and bounded by [`SOON`], far above what a starved machine needs.

mod hostile;
mod laws;
mod settling;
mod syncing;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use potluck_protocol::id::Digest;
use potluck_protocol::job::FinishReason;
use potluck_protocol::lane::{ProviderLane, RenterLane};
use potluck_protocol::offer::Terms;
use potluck_protocol::output::OutputChain;
use potluck_protocol::settle::{Accept, Close, CloseReason, Contract, Usage};
use potluck_protocol::statement::{Place, Slot, Statement};
use potluck_protocol::unit::{GpuMillis, NanoCredit, Rate};
use potluck_protocol::wire::{self, PairRequest, PairResponse};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::identity::Identity;
use crate::ledger::Kept;
use crate::net::{Inbound, InboundRequest, Multiaddr, NetworkConfig, NetworkLimits, Role};

const SOON: Duration = Duration::from_secs(30);
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const HOUR: UnixMillis = UnixMillis::new(3_600_000);

/// A node's folder; it may be opened again and again.
struct Home {
    folder: tempfile::TempDir,
}

/// A node that is up.
struct Side {
    key: SigningKey,
    ledger: Ledger,
    network: Network,
    accounts: Accounts,
    /// Questions that it was asked.
    asked: Arc<AtomicU64>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    _state: StateDir,
}

fn config(role: Role, bootstrap: &[Multiaddr]) -> NetworkConfig {
    let listen = if role == Role::Renter { Vec::new() } else { vec![QUIC.parse().unwrap()] };
    let limits = NetworkLimits::for_role(role);
    NetworkConfig { listen, bootstrap: bootstrap.to_vec(), external: Vec::new(), role, limits }
}

/// Does it again until it works.
async fn patiently<T, E: std::fmt::Display>(mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let trying = async {
        loop {
            match attempt() {
                Ok(done) => return done,
                Err(error) => {
                    tracing::debug!(%error, "not yet");
                    sleep(Duration::from_millis(5)).await;
                }
            }
        }
    };
    timeout(SOON, trying).await.expect("in time")
}

/// Waits until `wanted`.
async fn until(what: &str, mut wanted: impl FnMut() -> bool) {
    let waiting = async {
        while !wanted() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(SOON, waiting).await.is_ok(), "it never came: {what}");
}

impl Home {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn key(&self) -> SigningKey {
        let identity = Identity::load_or_create(&self.path().join("identity.key")).unwrap();
        SigningKey::from_seed(identity.signing_key().seed())
    }

    /// Brings the node up.
    async fn open(&self, role: Role, bootstrap: &[Multiaddr]) -> Side {
        let (network, inbound, state) = self.open_network(role, bootstrap).await;
        let Inbound { pairs, .. } = inbound;
        let key = self.key();
        // What an earlier life of the node held is let go of in the background.
        let (ledger, _) = patiently(|| Ledger::open(&state.ledger_dir(), key.peer())).await;
        let accounts = Accounts::open(self.key(), ledger.clone(), network.clone(), &state).unwrap();
        let (asked, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let counted = counted(pairs, asked.clone());
        let serving = tokio::spawn(accounts.clone().serve(counted, stop.clone()));
        Side { key, ledger, network, accounts, asked, stop, serving, _state: state }
    }

    async fn open_network(&self, role: Role, bootstrap: &[Multiaddr]) -> (Network, Inbound, StateDir) {
        let state = StateDir::open(self.path()).unwrap();
        let identity = Identity::load_or_create(&state.key_path()).unwrap();
        let (network, inbound) = Network::start(&identity, config(role, bootstrap)).await.unwrap();
        if !bootstrap.is_empty() {
            network.join(SOON).await.unwrap();
        }
        (network, inbound, state)
    }
}

/// Counts the questions that pass.
fn counted(
    mut pairs: mpsc::Receiver<InboundRequest>,
    asked: Arc<AtomicU64>,
) -> mpsc::Receiver<InboundRequest> {
    let (pass, passed) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(question) = pairs.recv().await {
            asked.fetch_add(1, Ordering::Relaxed);
            if pass.send(question).await.is_err() {
                return;
            }
        }
    });
    passed
}

impl Side {
    fn peer(&self) -> PeerId {
        self.key.peer()
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Ends the node in good order.
    async fn close(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
        self.network.shutdown().await;
    }

    async fn keep(&self, statements: &[Statement]) {
        for kept in self.ledger.keep_each(statements.to_vec()).await.unwrap() {
            // What one sends again may have been there first.
            assert!(matches!(kept, Kept::New | Kept::Known), "{kept:?}");
        }
    }

    async fn sync(&self, other: &Self) -> Result<(), SyncError> {
        self.accounts.sync(other.peer(), SOON).await
    }

    fn holds(&self, statement: &Statement) -> bool {
        let slot = statement.slot().unwrap();
        self.ledger.statement(&slot).unwrap().as_ref() == Some(statement)
    }

    fn held(&self, signer: &Self, place: Place) -> Option<Statement> {
        self.ledger.statement(&Slot { signer: signer.peer(), place }).unwrap()
    }

    /// All that it holds with `other`, in one digest.
    async fn digest(&self, other: &Self) -> Digest {
        let account = self.accounts.account(other.peer()).unwrap();
        let books = self.accounts.books(&account).await;
        books.digest().unwrap()
    }

    /// The pair's book.
    fn book(&self, other: &Self) -> PairBook {
        self.accounts.book(&self.accounts.account(other.peer()).unwrap()).unwrap()
    }

    /// What `other` owes it, in nano-credits.
    fn owed_by(&self, other: &Self) -> i128 {
        self.ledger.standing(other.peer(), wall_now()).unwrap().balance
    }

    /// Asks a question of its own making.
    async fn ask(&self, other: &Self, request: &PairRequest) -> PairResponse {
        let bytes = wire::encode(request).unwrap();
        let answer = self.network.ask_pair(other.peer(), bytes, SOON).await.unwrap();
        wire::decode_bounded(&answer).unwrap()
    }
}

/// Brings a provider and a renter up that know where to find each other.
async fn meet(provider: &Home, renter: &Home) -> (Side, Side) {
    let provider = provider.open(Role::Provider, &[]).await;
    let renter = renter.open(Role::Renter, &provider.network.listeners().await).await;
    (provider, renter)
}

/// A provider and a renter that never met.
async fn strangers() -> (Home, Home, Side, Side) {
    let (one, other) = (Home::new(), Home::new());
    let (provider, renter) = meet(&one, &other).await;
    (one, other, provider, renter)
}

fn ago(age: UnixMillis) -> UnixMillis {
    wall_now().saturating_sub(age)
}

/// The statements of a job of `meters` seconds, in the order in which they were made: a contract, an accept,
/// and a meter, a voucher and a receipt a second.
fn job(
    provider: &SigningKey,
    renter: &SigningKey,
    number: u64,
    created: UnixMillis,
    meters: u32,
) -> Vec<Statement> {
    let lane = LaneId { renter: renter.peer(), provider: provider.peer(), epoch: 0, lane: number };
    let rate = Rate::new(1_000);
    let zero = Digest::from_bytes([0; 32]);
    let (quantum, window) = (GpuMillis::new(1_000), GpuMillis::new(2_000));
    let contract = Contract {
        lane,
        job: zero,
        quote: zero,
        terms: Terms { run: rate, load: rate, guest: rate, quantum, window },
        max_total: NanoCredit::new(1_000_000),
        max_ms: GpuMillis::new(600_000),
        created,
        start_by: created.saturating_add(HOUR),
    };
    let contract = renter.sign(contract).unwrap();
    let accept = provider.sign(Accept { lane, contract: contract.digest(), at: created }).unwrap();
    let (mut earns, mut pays) = (ProviderLane::new(&contract), RenterLane::new(&contract));
    let mut chain = OutputChain::new(contract.digest());
    let mut all: Vec<Statement> = vec![contract.into_signed().into(), accept.into_signed().into()];
    for k in 1..=meters {
        chain.extend(&[k]);
        pays.delivered(&[k]);
        let usage = Usage { run: GpuMillis::new(u64::from(k) * 1_000), ..Usage::default() };
        let meter = provider.sign(earns.meter(usage, &chain, false).unwrap()).unwrap();
        earns.metered(&meter);
        let elapsed = Duration::from_secs(u64::from(k));
        let voucher = renter.sign(pays.pay(&meter, elapsed, Duration::ZERO).unwrap()).unwrap();
        pays.signed(&voucher);
        let receipt = provider.sign(earns.accept(&voucher).unwrap()).unwrap();
        all.extend([
            Statement::from(meter.into_signed()),
            voucher.into_signed().into(),
            receipt.into_signed().into(),
        ]);
    }
    all
}

/// The provider's close of a job.
fn close_of(provider: &SigningKey, job: &[Statement]) -> Statement {
    let lane = job[0].lane().unwrap();
    let last = job.iter().rev().find_map(|statement| match statement {
        Statement::Voucher(it) => Some((it.body.k, it.body.amount)),
        _ => None,
    });
    let (k, amount) = last.unwrap_or_default();
    let close = Close {
        lane,
        by: provider.peer(),
        k,
        amount,
        reason: CloseReason::Completed,
        finish: FinishReason::Stop,
        prompt_tokens: 1,
        completion_tokens: k,
        result: Digest::from_bytes([0; 32]),
        at: wall_now(),
    };
    provider.sign(close).unwrap().into_signed().into()
}

/// A job of an hour ago that was paid and closed.
fn old_job(provider: &SigningKey, renter: &SigningKey, number: u64, meters: u32) -> Vec<Statement> {
    let mut all = job(provider, renter, number, ago(HOUR), meters);
    all.push(close_of(provider, &all));
    all
}
