//! Going through the books now and then.
//!
//! Owns: giving up lanes in which nothing happened for a day, and the syncs and balances that nobody else
//! brings about. Never: ends a lane that a job of this process works on, or closes one before a sync.
//! Called by [`super::serve`]: lanes at its start, everything every half hour.

use std::collections::BTreeMap;
use std::time::Duration;

use potluck_protocol::id::{LaneId, PeerId};

use super::Accounts;
use super::error::SyncError;

/// How long one sync of a tidying may take.
const SYNC_WITHIN: Duration = Duration::from_secs(30);

impl Accounts {
    /// Goes through the books once.
    pub(super) async fn tidy(&self) {
        self.give_up_old_lanes().await;
        let connected = self.inner.network.pair_peers().borrow().clone();
        let peers = self.inner.ledger.peers().unwrap_or_else(|error| {
            tracing::warn!(%error, "the books were not gone through");
            Vec::new()
        });
        for peer in peers.into_iter().filter(|peer| connected.contains(peer)) {
            let tidied = if self.is_synced(peer) {
                self.balance(peer).await
            } else {
                self.sync(peer, SYNC_WITHIN).await
            };
            if let Err(error) = tidied {
                tracing::debug!(%peer, %error, "an account was not tidied");
            }
        }
    }

    /// Gives up the lanes in which nothing happened for a day.
    pub(super) async fn give_up_old_lanes(&self) {
        if let Err(error) = self.abandon_old_lanes().await {
            tracing::warn!(%error, "old lanes were not given up");
        }
    }

    async fn abandon_old_lanes(&self) -> Result<(), SyncError> {
        let mut by_peer: BTreeMap<PeerId, Vec<LaneId>> = BTreeMap::new();
        for lane in self.inner.ledger.open_lanes(None)? {
            let peer = if lane.renter == self.me() { lane.provider } else { lane.renter };
            by_peer.entry(peer).or_default().push(lane);
        }
        for (peer, lanes) in by_peer {
            let account = self.account(peer)?;
            self.books(&account).await.abandon(&lanes).await?;
        }
        Ok(())
    }

    async fn balance(&self, peer: PeerId) -> Result<(), SyncError> {
        let account = self.account(peer)?;
        let _turn = account.turn.lock().await;
        self.go_on(&account).await
    }
}
