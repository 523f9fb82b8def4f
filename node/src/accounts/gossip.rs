//! Passing proofs of equivocation on.
//!
//! Owns: hearing a proof (checked, kept, told to everybody connected, once) and telling a peer that we
//! meet what we hold. Never: accuses without two signatures, or convicts ourselves. Called by whoever
//! takes statements in, and by [`super::serve`], which does the telling in the background.

use std::sync::{Mutex, PoisonError};

use futures::StreamExt as _;
use potluck_protocol::id::PeerId;
use potluck_protocol::proof::Equivocation;
use potluck_protocol::wire::PairRequest;
use tokio::sync::mpsc;

use super::Accounts;
use super::error::BooksError;

/// Things to tell that may wait; what finds no room is told to each peer at its next sync.
const QUEUE: usize = 64;
/// Peers that are told at the same time.
const TOLD_AT_ONCE: usize = 8;
/// Proofs that one peer is told when it is met.
const TOLD_ON_MEETING: usize = 16;

/// Something to tell.
#[derive(Debug)]
pub(super) enum Item {
    /// To everybody who is connected.
    Proof(Box<Equivocation>),
    /// What we hold, to a peer that was just met.
    Meet(PeerId),
}

/// What is to be told.
#[derive(Debug)]
pub(super) struct News {
    queue: mpsc::Sender<Item>,
    waiting: Mutex<Option<mpsc::Receiver<Item>>>,
}

impl Default for News {
    fn default() -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        Self { queue, waiting: Mutex::new(Some(waiting)) }
    }
}

impl News {
    /// The other end, for the one that does the telling.
    pub(super) fn take(&self) -> Option<mpsc::Receiver<Item>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Asks for `peer` to be told what we hold.
    pub(super) fn meet(&self, peer: PeerId) {
        self.put(Item::Meet(peer));
    }

    fn put(&self, item: Item) {
        if self.queue.try_send(item).is_err() {
            tracing::debug!("too much news to tell at once");
        }
    }
}

impl Accounts {
    /// Takes a proof in, such as an append to the ledger gives when two objects claim one place: when it
    /// holds and is news, it is kept, which freezes the account with that peer, and told to everybody who
    /// is connected. What proves nothing changes nothing.
    ///
    /// # Errors
    /// When our own ledger fails.
    pub async fn hear(&self, proof: Equivocation) -> Result<(), BooksError> {
        let signer = proof.first.signer();
        let known = self.inner.ledger.proof_against(signer)?.is_some();
        let Ok(conviction) = (if known { return Ok(()) } else { proof.verify() }) else {
            tracing::debug!("a proof that proves nothing was heard");
            return Ok(());
        };
        if signer == self.me() {
            tracing::error!(
                slot = %conviction.slot,
                "this node's key signed two different things in one place: is it in use elsewhere, or was \
                 an old ledger restored and used?"
            );
            return Ok(());
        }
        if self.inner.ledger.keep_proof(proof.clone()).await? {
            tracing::warn!(peer = %signer, slot = %conviction.slot, "a peer signed two different things in one place");
            self.inner.news.put(Item::Proof(Box::new(proof)));
        }
        Ok(())
    }

    /// Tells what there is to tell.
    pub(super) async fn tell(&self, item: Item) {
        match item {
            Item::Proof(proof) => self.tell_everybody(*proof).await,
            Item::Meet(peer) => {
                if let Err(error) = self.tell_on_meeting(peer).await {
                    tracing::debug!(%peer, %error, "a peer was not told of the proofs");
                }
            }
        }
    }

    async fn tell_everybody(&self, proof: Equivocation) {
        let signer = proof.first.signer();
        let peers = self.inner.network.pair_peers().borrow().clone();
        let request = &PairRequest::Proof(Box::new(proof));
        let others = peers.into_iter().filter(|peer| *peer != signer);
        futures::stream::iter(others)
            .for_each_concurrent(TOLD_AT_ONCE, async |peer| {
                if let Err(error) = self.ask_once(peer, request).await {
                    tracing::debug!(%peer, %error, "a peer was not told of a proof");
                }
            })
            .await;
    }

    async fn tell_on_meeting(&self, peer: PeerId) -> Result<(), super::SyncError> {
        let account = self.account(peer)?;
        if std::mem::replace(&mut account.state().told, true) {
            return Ok(());
        }
        let proofs = self.inner.ledger.proofs()?;
        let others = proofs.into_iter().filter(|proof| proof.first.signer() != peer);
        for proof in others.take(TOLD_ON_MEETING) {
            self.ask_once(peer, &PairRequest::Proof(Box::new(proof))).await?;
        }
        Ok(())
    }
}
