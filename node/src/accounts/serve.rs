//! The task that answers peers, and does in the background what nobody waits for.
//!
//! Owns: the admission of questions, the outboxes' alarm, gossip, tidying, and the end of a link when its
//! connection ends. Never: waits for one peer while another asks, or runs more at once than its bounds.
//! Spawned once by each program that stays; ends when it is told to, or with the network.
//!
//! The order of work is fixed: the end, what is finished, connections, questions, then our own errands.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use potluck_protocol::id::PeerId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;

use super::Accounts;
use super::account::Account;
use super::answer::{self, Then};
use super::error::SyncError;
use super::gossip::Item;
use crate::net::InboundRequest;

/// Questions that are answered at the same time, of all peers together.
const ANSWERS_AT_ONCE: usize = 32;
/// Errands of our own under way at the same time: pushes, gossip, what follows a sync.
const ERRANDS_AT_ONCE: usize = 64;
/// How often the books are gone through.
const TIDY_EVERY: Duration = Duration::from_secs(1_800);
/// What follows an answer may take so long.
const AFTER_WITHIN: Duration = Duration::from_secs(60);

/// What a task of the server was.
#[derive(Debug, Clone, Copy)]
enum Done {
    /// An outbox was sent.
    Sent(PeerId),
    /// The books were gone through.
    Tidied,
    /// Anything else.
    Other,
}

/// A question that was admitted: counted until this is dropped.
struct Admitted(Arc<Account>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.answered();
    }
}

/// The server's own state.
struct Server {
    accounts: Accounts,
    answers: JoinSet<(Arc<Account>, Then)>,
    errands: JoinSet<Done>,
    /// Peers whose outbox is being sent.
    busy: HashSet<PeerId>,
    /// Connected peers that keep accounts.
    peers: BTreeSet<PeerId>,
    tidying: bool,
}

impl Accounts {
    /// Answers the questions of `inbound` until `stop`, or until the network ends; and meanwhile sends
    /// again what is not confirmed, passes proofs on, gives up dead lanes and proposes balances.
    pub async fn serve(self, mut inbound: mpsc::Receiver<InboundRequest>, stop: CancellationToken) {
        let mut connected = self.inner.network.pair_peers();
        let mut news = self.inner.news.take();
        let mut tidy = interval_at(Instant::now() + TIDY_EVERY, TIDY_EVERY);
        tidy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut server = Server::new(self);
        server.connections(&mut connected);
        server.begin();
        loop {
            let alarm = server.alarm();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(done) = server.errands.join_next() => server.finished(done.ok()),
                Some(answered) = server.answers.join_next() => server.answered(answered.ok()),
                changed = connected.changed() => match changed {
                    Ok(()) => server.connections(&mut connected),
                    Err(_) => return,
                },
                question = inbound.recv(), if server.answers.len() < ANSWERS_AT_ONCE => match question {
                    Some(question) => server.admit(question),
                    None => return,
                },
                Some(item) = next(&mut news), if server.has_room() => server.tell(item),
                () = server.accounts.inner.posted.notified() => server.refill(),
                peer = alarm, if server.has_room() => server.send(peer),
                _ = tidy.tick() => server.tidy(),
            }
        }
    }
}

/// The next thing to tell; never, when another task does the telling.
async fn next(news: &mut Option<mpsc::Receiver<Item>>) -> Option<Item> {
    match news {
        Some(news) => news.recv().await,
        None => std::future::pending().await,
    }
}

impl Server {
    fn new(accounts: Accounts) -> Self {
        Self {
            accounts,
            answers: JoinSet::new(),
            errands: JoinSet::new(),
            busy: HashSet::new(),
            peers: BTreeSet::new(),
            tidying: false,
        }
    }

    fn has_room(&self) -> bool {
        self.errands.len() < ERRANDS_AT_ONCE
    }

    /// Peers came or went: who went must be compared with again, who came is sent what waits for it.
    fn connections(&mut self, connected: &mut watch::Receiver<BTreeSet<PeerId>>) {
        let now = connected.borrow_and_update().clone();
        for gone in self.peers.difference(&now) {
            self.accounts.parted(*gone);
        }
        self.peers = now;
        self.refill();
    }

    fn refill(&self) {
        self.accounts.fill_outboxes(&self.peers);
    }

    /// Takes a question, or refuses it when its peer asks too much.
    fn admit(&mut self, question: InboundRequest) {
        let accounts = self.accounts.clone();
        let account = match accounts.account(question.peer) {
            Ok(account) if account.admit(accounts.now()) => account,
            Ok(_) | Err(_) => return answer::refuse(question),
        };
        let admitted = Admitted(account.clone());
        self.answers.spawn(async move {
            let then = accounts.answer(&account, question).await;
            drop(admitted);
            (account, then)
        });
    }

    /// An answer has left: what follows from it is an errand, for which there may be no room; then it
    /// waits for the next sync.
    fn answered(&mut self, answered: Option<(Arc<Account>, Then)>) {
        let Some((account, then)) = answered.filter(|(_, then)| *then != Then::default()) else { return };
        if !self.has_room() {
            tracing::debug!(peer = %account.peer, "too much follows from answers at once");
            return;
        }
        let accounts = self.accounts.clone();
        self.errands.spawn(async move {
            let follow = async {
                let _turn = account.turn.lock().await;
                if then.synced {
                    accounts.after_sync(&account, false).await
                } else {
                    accounts.go_on(&account).await
                }
            };
            log(account.peer, tokio::time::timeout(AFTER_WITHIN, follow).await.unwrap_or(Ok(())));
            Done::Other
        });
    }

    fn finished(&mut self, done: Option<Done>) {
        match done {
            Some(Done::Sent(peer)) => {
                self.busy.remove(&peer);
            }
            Some(Done::Tidied) => self.tidying = false,
            Some(Done::Other) => {}
            None => {
                tracing::error!("a task of the accounts ended abnormally");
                // Which one it was is not known: sending twice harms nobody.
                self.busy.clear();
                self.tidying = false;
            }
        }
    }

    fn tell(&mut self, item: Item) {
        let accounts = self.accounts.clone();
        self.errands.spawn(async move {
            accounts.tell(item).await;
            Done::Other
        });
    }

    /// Waits until something is due, and says for whom.
    fn alarm(&self) -> impl Future<Output = PeerId> + use<> {
        let due = self.accounts.next_due(&self.peers, &self.busy);
        let now = self.accounts.now();
        async move {
            match due {
                Some((due, peer)) => {
                    sleep(due.saturating_sub(now)).await;
                    peer
                }
                None => std::future::pending().await,
            }
        }
    }

    fn send(&mut self, peer: PeerId) {
        self.busy.insert(peer);
        let accounts = self.accounts.clone();
        self.errands.spawn(async move {
            log(peer, accounts.send_due(peer).await);
            Done::Sent(peer)
        });
    }

    /// What was left undone before this process: nobody need be there for it.
    fn begin(&mut self) {
        let accounts = self.accounts.clone();
        self.errands.spawn(async move {
            accounts.give_up_old_lanes().await;
            Done::Other
        });
    }

    fn tidy(&mut self) {
        if std::mem::replace(&mut self.tidying, true) {
            return;
        }
        let accounts = self.accounts.clone();
        self.errands.spawn(async move {
            accounts.tidy().await;
            Done::Tidied
        });
    }
}

/// Nobody waits for an errand: what failed is tried again.
fn log(peer: PeerId, done: Result<(), SyncError>) {
    match done {
        Ok(()) => {}
        Err(SyncError::Books(error)) => tracing::error!(%peer, %error, "our own books failed"),
        Err(error) => tracing::debug!(%peer, %error, "an errand waits for its next time"),
    }
}
