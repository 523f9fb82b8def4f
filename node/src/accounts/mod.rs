//! The accounts of this process with all its peers: ledger, law and network brought together.
//!
//! Owns: [`Accounts`], which keeps what two peers hold the same (sync), says when they may deal, gets
//! payments agreed, ends what was left open, and passes proofs of equivocation on. Never: decides a
//! question of money (the protocol's laws do) or signs what is not durable first. Called by the renter
//! and the provider. Ends with [`Accounts::serve`], or when the last clone is dropped.
//!
//! ```text
//! peer ──question──▶ serve ─▶ answer ─▶ take (each statement by its law) ─▶ ledger
//! sync ─▶ session ──question──▶ peer      │
//!            └─ after it: close what was left open (tidy), wishes (settle), proofs (gossip)
//! outbox: what is signed and not confirmed, sent again
//! ```

mod account;
mod answer;
mod books;
mod error;
mod gossip;
mod outbox;
pub mod report;
mod serve;
mod session;
mod settle;
mod shown;
mod take;
#[cfg(test)]
mod tests;
mod tidy;
mod wishes;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use potluck_protocol::id::{LaneId, PeerId};
use potluck_protocol::pair::{LaneRefused, NotNow, PairBook};
use potluck_protocol::settle::Contract;
use potluck_protocol::sign::SigningKey;
use potluck_protocol::unit::UnixMillis;
use tokio::sync::Notify;

pub use error::{AccountsError, BooksError, SettleError, SyncError, WishError};
pub use settle::{SettleOutcome, Waiting, WaitsFor, waiting};
pub use wishes::SettleWish;

use account::Account;
use books::Books;
use gossip::News;
use settle::Outcomes;
use wishes::WishFile;

use crate::ledger::{Ledger, ReadError};
use crate::net::Network;
use crate::state::StateDir;

/// Peers remembered at once; beyond it those that are not connected are forgotten, the longest unused
/// first.
const MAX_ACCOUNTS: usize = 1_024;

/// The books of this process with all its peers. Clones share them.
#[derive(Clone)]
pub struct Accounts {
    inner: Arc<Inner>,
}

struct Inner {
    key: SigningKey,
    ledger: Ledger,
    network: Network,
    wishes: WishFile,
    outcomes: Outcomes,
    accounts: Mutex<BTreeMap<PeerId, Arc<Account>>>,
    /// Lanes that a job of this process works on.
    live: Mutex<HashMap<LaneId, u32>>,
    news: News,
    /// Something new waits in an outbox.
    posted: Notify,
    /// The zero of our monotonic clock, and what the wall clock said then.
    began: Instant,
    began_wall: UnixMillis,
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Accounts(of {})", self.me())
    }
}

impl Accounts {
    /// Opens the accounts of `key` over its `ledger`, with the settlements that `state` holds. Cheap:
    /// nothing is read of a peer before it is met.
    ///
    /// # Errors
    /// When the file of settlements cannot be read.
    pub fn open(
        key: SigningKey,
        ledger: Ledger,
        network: Network,
        state: &StateDir,
    ) -> Result<Self, AccountsError> {
        let inner = Inner {
            key,
            ledger,
            network,
            wishes: WishFile::open(state.path())?,
            outcomes: Outcomes::default(),
            accounts: Mutex::default(),
            live: Mutex::default(),
            news: News::default(),
            posted: Notify::new(),
            began: Instant::now(),
            began_wall: wall_now(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// May this contract be signed, or accepted, now? `SyncNeeded` also when our own ledger cannot be
    /// read.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn may_open(&self, contract: &Contract) -> Result<(), LaneRefused> {
        let LaneId { renter, provider, .. } = contract.lane;
        let peer = if renter == self.me() { provider } else { renter };
        let account = self.account(peer).map_err(|_| LaneRefused::OtherPair)?;
        self.book(&account)
            .map_err(|error| {
                tracing::error!(%peer, %error, "the account cannot be read");
                NotNow::SyncNeeded
            })?
            .may_open(contract)
    }

    /// The epoch of new contracts with `peer`.
    #[must_use]
    pub fn epoch(&self, peer: PeerId) -> u32 {
        match self.inner.ledger.book(peer) {
            Ok(book) => book.map_or(0, |book| book.epoch()),
            Err(error) => {
                tracing::error!(%peer, %error, "the account cannot be read");
                0
            }
        }
    }

    /// Do we and `peer` hold the same, as far as we know? What it does not know is a peer that has begun
    /// anew since: a provider then refuses the contract, and [`Accounts::sync`] mends that.
    #[must_use]
    pub fn is_synced(&self, peer: PeerId) -> bool {
        self.known(peer).is_some_and(|account| account.state().synced)
    }

    /// A job with `peer` broke off or ended without both closes, or the connection was lost: the two must
    /// compare before anything new is signed.
    pub fn parted(&self, peer: PeerId) {
        if let Some(account) = self.known(peer) {
            account.parted();
            self.inner.posted.notify_one();
        }
    }

    /// Says that a job of this process works on `lane`: until the guard is dropped, no sync and no tidying
    /// ends the lane. To be taken before anything of the lane is kept.
    pub fn live(&self, lane: LaneId) -> LiveLane {
        *self.live_lanes().entry(lane).or_default() += 1;
        LiveLane { lane, inner: self.inner.clone() }
    }

    /// What waits for the owner or for the other side, for the ledger's tables.
    ///
    /// # Errors
    /// When the ledger's index cannot be read.
    pub fn waiting(&self) -> Result<Vec<Waiting>, ReadError> {
        self.inner.wishes.look(|wishes| settle::waiting_in(&self.inner.ledger, self.me(), wishes))
    }

    fn me(&self) -> PeerId {
        self.inner.key.peer()
    }

    /// Our monotonic clock.
    fn now(&self) -> Duration {
        self.inner.began.elapsed()
    }

    fn live_lanes(&self) -> MutexGuard<'_, HashMap<LaneId, u32>> {
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_live(&self, lane: &LaneId) -> bool {
        self.live_lanes().contains_key(lane)
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<PeerId, Arc<Account>>> {
        self.inner.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account with `peer`, if it was met.
    fn known(&self, peer: PeerId) -> Option<Arc<Account>> {
        self.accounts().get(&peer).cloned()
    }

    /// The account with `peer`.
    fn account(&self, peer: PeerId) -> Result<Arc<Account>, SyncError> {
        let now = self.now();
        let mut accounts = self.accounts();
        let account = match accounts.get(&peer) {
            Some(account) => account.clone(),
            None => {
                let account = Arc::new(Account::new(self.me(), peer).ok_or(SyncError::Oneself)?);
                if accounts.len() >= MAX_ACCOUNTS {
                    let connected = self.inner.network.pair_peers().borrow().clone();
                    let idle = accounts.values().filter(|it| !connected.contains(&it.peer));
                    let idle = idle.filter(|it| Arc::strong_count(it) == 1);
                    let oldest = idle.min_by_key(|it| it.state().used).map(|it| it.peer);
                    accounts.remove(&oldest.ok_or(SyncError::Full { limit: MAX_ACCOUNTS })?);
                }
                accounts.insert(peer, account.clone());
                account
            }
        };
        account.state().used = now;
        Ok(account)
    }

    /// The pair's book, as the ledger and the link have it.
    fn book(&self, account: &Account) -> Result<PairBook, ReadError> {
        let mut book = self.inner.ledger.book(account.peer)?.unwrap_or_else(|| account.fresh.clone());
        if account.state().synced {
            book.synced();
        }
        Ok(book)
    }

    /// Waits for the books of `account` and takes them.
    async fn books<'a>(&'a self, account: &'a Account) -> Books<'a> {
        let alone = account.books.lock().await;
        Books { accounts: self, account, _alone: alone }
    }
}

/// A job of this process works on a lane for as long as this lives.
#[must_use]
pub struct LiveLane {
    lane: LaneId,
    inner: Arc<Inner>,
}

impl fmt::Debug for LiveLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LiveLane({})", self.lane)
    }
}

impl Drop for LiveLane {
    fn drop(&mut self) {
        let mut live = self.inner.live.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = live.get_mut(&self.lane) {
            *jobs -= 1;
            if *jobs == 0 {
                live.remove(&self.lane);
            }
        }
    }
}

/// The wall clock; zero when it stands before 1970.
fn wall_now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
