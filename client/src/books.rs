//! The renter's books while a command is on the network: ledger, accounts, and who answers for them.
//!
//! Owns: [`Books`], the order of their start and end, and what becomes of a conflict. Never: decides what
//! is owed (the laws of the protocol do) or talks to a peer itself (`node::accounts` does). Opened by
//! [`crate::rent`] and `potluck ledger settle`; whoever opens them closes them.

use std::time::Duration;

use potluck_node::accounts::{Accounts, SyncError};
use potluck_node::books;
use potluck_node::ledger::{AppendError, Ledger, Retention, VerifiedRecord};
use potluck_node::net::AskError;
use potluck_protocol::id::PeerId;
use potluck_protocol::sign::SigningKey;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::Failure;
use crate::joined::Joining;

/// Comparing ledgers with a provider takes no longer.
const SYNC_LIMIT: Duration = Duration::from_secs(10);

/// Ledger and accounts, in use.
#[derive(Debug)]
pub struct Books {
    /// What was signed.
    pub ledger: Ledger,
    /// What it means between us and each peer.
    pub accounts: Accounts,
    us: PeerId,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Books {
    /// Opens the ledger in the state folder and answers what peers ask about it. A person (`told`) sees how
    /// far a rebuild of the index is.
    ///
    /// # Errors
    /// When the ledger or the file of settlements cannot be opened.
    pub fn open(joining: &mut Joining, told: bool) -> Result<Self, Failure> {
        let us = joining.identity.peer();
        let (ledger, _report) = books::open(&joining.state.ledger_dir(), us, told)?;
        let key = || SigningKey::from_seed(joining.identity.signing_key().seed());
        // Nothing is due most times; and a program that ends meanwhile leaves the files as they were.
        ledger.tend(key(), Retention::default())?;
        let accounts = Accounts::open(key(), ledger.clone(), joining.network.clone(), &joining.state)?;
        let stop = CancellationToken::new();
        let serving = tokio::spawn(accounts.clone().serve(joining.questions(), stop.clone()));
        Ok(Self { ledger, accounts, us, stop, serving })
    }

    /// Is there a job with `peer` that has not ended on both sides, or something of ours that it has not
    /// confirmed?
    ///
    /// # Errors
    /// When our own ledger cannot be read.
    pub fn left_open(&self, peer: PeerId) -> Result<bool, Failure> {
        Ok(!self.ledger.open_lanes(Some(peer))?.is_empty() || !self.ledger.unconfirmed(peer)?.is_empty())
    }

    /// Brings our ledger and that of `peer` to the same: contracts may be signed when this returns.
    ///
    /// # Errors
    /// Why they differ still. Nothing is lost by it.
    pub async fn sync(&self, peer: PeerId) -> Result<(), Failure> {
        self.accounts.sync(peer, SYNC_LIMIT).await.map_err(|why| match why {
            SyncError::Ask(AskError::OtherVersion(version)) => version.into(),
            why => Failure::Sync { peer, why },
        })
    }

    /// Keeps what was just signed or verified. Of two different things that a peer signed in one place, the
    /// proof is kept and told.
    ///
    /// # Errors
    /// When the ledger takes it not.
    pub async fn keep(&self, records: Vec<VerifiedRecord>) -> Result<(), Failure> {
        let Err(error) = self.ledger.append_verified(records).await else { return Ok(()) };
        let AppendError::SlotTaken { what, proof: Some(proof), .. } = error else { return Err(error.into()) };
        let peer = proof.first.signer();
        if peer == self.us {
            // Ours never left: there is nobody to convict.
            return Err(Failure::Internal { what: format!("{what} was signed before and differs") });
        }
        if let Err(why) = self.accounts.hear(*proof).await {
            tracing::error!(%why, "the proof against a provider was not kept");
        }
        Err(Failure::Equivocated { peer, what })
    }

    /// Ends the answering, then lets go of the ledger.
    pub async fn close(self) {
        self.stop.cancel();
        if let Err(why) = self.serving.await {
            tracing::error!(%why, "the accounts ended abnormally");
        }
    }
}
