//! Sending again what is signed and not confirmed.
//!
//! Owns: when a peer's outbox is filled from the ledger, and one attempt at what is due. Never: keeps
//! statements (the ledger does) or knows the times ([`potluck_protocol::outbox`] does). Called by
//! [`super::serve`] when something is due, and by a sync.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use potluck_protocol::id::PeerId;

use super::Accounts;
use super::account::Account;
use super::error::{BooksError, SyncError};
use super::session::ONCE;

impl Accounts {
    /// Fills the outbox of a peer that is met with what the ledger holds without an answer, once until the
    /// two part.
    pub(super) fn fill_outbox(&self, account: &Account) -> Result<(), BooksError> {
        if account.state().filled {
            return Ok(());
        }
        let waiting = self.inner.ledger.unconfirmed(account.peer)?;
        let now = self.now();
        let mut state = account.state();
        for statement in &waiting {
            state.outbox.sent(statement, now);
        }
        state.filled = true;
        Ok(())
    }

    /// Fills the outboxes of `peers`, as far as they have an account with us.
    pub(super) fn fill_outboxes(&self, peers: &BTreeSet<PeerId>) {
        for peer in peers {
            let filled = self.account(*peer).and_then(|account| Ok(self.fill_outbox(&account)?));
            if let Err(error) = filled {
                tracing::warn!(%peer, %error, "what waits for a peer's answer is not known");
            }
        }
    }

    /// The next time that something is due for one of `peers` that is not `busy`, and for whom.
    pub(super) fn next_due(
        &self,
        peers: &BTreeSet<PeerId>,
        busy: &HashSet<PeerId>,
    ) -> Option<(Duration, PeerId)> {
        let free = peers.iter().filter(|peer| !busy.contains(*peer));
        let due = free.filter_map(|peer| Some((self.known(*peer)?.state().outbox.next_due()?, *peer)));
        due.min()
    }

    /// Sends what is due for `peer`, once.
    pub(super) async fn send_due(&self, peer: PeerId) -> Result<(), SyncError> {
        let account = self.account(peer)?;
        let _turn = account.turn.lock().await;
        let due = account.state().outbox.due(self.now());
        let mut page = Vec::new();
        for slot in &due {
            page.extend(self.inner.ledger.statement(slot)?);
        }
        if !page.is_empty() && self.push_trying(&account, page, ONCE).await?.stepped {
            self.go_on(&account).await?;
        }
        Ok(())
    }
}
