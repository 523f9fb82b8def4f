//! Keeping what was signed or verified, and what becomes of two things signed in one place.
//!
//! Owns: the way from a conflict in the ledger to a proof that is kept and told, and [`NotKept`]. Never:
//! signs, or judges what is kept (the laws of a lane are the protocol's). Called by [`crate::intake`]
//! and [`crate::metered`].

use potluck_node::ledger::{AppendError, Kept, VerifiedRecord};
use potluck_protocol::proof::Equivocation;
use potluck_protocol::settle::Contract;
use potluck_protocol::sign::Signed;
use thiserror::Error;

use crate::desk::Desk;

/// Why something was not kept.
#[derive(Debug, Error)]
pub enum NotKept {
    /// Our ledger takes no record. Fault: provider.
    #[error("the provider's ledger cannot be written: {0}")]
    Ledger(AppendError),
    /// It was signed otherwise before; the proof is kept. Fault: renter.
    #[error("the renter signed two different things in one place: {what}")]
    Equivocated {
        /// In which place.
        what: String,
    },
}

impl Desk {
    /// Makes durable what was just signed or verified, all or none.
    ///
    /// # Errors
    /// When the ledger takes it not; of two things that a renter signed in one place the proof is kept.
    pub async fn keep(&self, records: Vec<VerifiedRecord>) -> Result<(), NotKept> {
        match self.ledger().append_verified(records).await {
            Ok(()) => Ok(()),
            Err(AppendError::SlotTaken { what, proof: Some(proof), .. })
                if proof.first.signer() != self.me() =>
            {
                self.hear(*proof).await;
                Err(NotKept::Equivocated { what })
            }
            Err(error) => Err(NotKept::Ledger(error)),
        }
    }

    /// Looks whether a contract that came for a known lane is the one that is kept.
    pub async fn compare(&self, contract: Signed<Contract>) {
        match self.ledger().keep_each(vec![contract.into()]).await.as_deref() {
            Ok([Kept::Conflict(proof)]) => self.hear((**proof).clone()).await,
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "a contract that came again was not compared"),
        }
    }

    async fn hear(&self, proof: Equivocation) {
        if let Err(error) = self.accounts().hear(proof).await {
            tracing::error!(%error, "a proof was not kept");
        }
    }
}
