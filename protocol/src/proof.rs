//! Equivocation: one signer, one slot, two different commitments; a proof that anyone can check.
//!
//! Owns: [`Equivocation`] (portable, checked with no other knowledge) and [`Convictions`] (who is
//! convicted, one proof each). Never: decides what follows; a pair that sees one is frozen by
//! [`crate::pair`]. Called by sync, gossip and `verify-proof`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec::{Bounded, WireError, encode};
use crate::id::{Digest, PeerId};
use crate::limits::MAX_CONVICTIONS;
use crate::sign::{digest_of, framed};
use crate::statement::{Slot, Statement, StatementError};

const PROOF_DOMAIN: &str = "potluck/v1/equivocation";

/// Two statements that no honest peer makes both. The one with the lower commitment goes first, so
/// that a proof has one form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Equivocation {
    /// One of them.
    pub first: Statement,
    /// The other.
    pub second: Statement,
}

/// What a proof proves: nothing else can make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::manual_non_exhaustive, reason = "nobody else makes one, in this crate either")]
pub struct Conviction {
    /// Who signed both.
    pub signer: PeerId,
    /// Which slot was filled twice.
    pub slot: Slot,
    sealed: (),
}

/// Why a proof proves nothing. Fault: whoever made or sent it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProofError {
    /// One of its statements is not believed.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// They fill no slot, or two slots.
    #[error("the two statements do not fill one slot")]
    OtherSlots,
    /// They say the same.
    #[error("the two statements commit their signer to the same")]
    Agree,
    /// They stand in the wrong order.
    #[error("the statement with the lower commitment must stand first")]
    OutOfOrder,
}

impl Equivocation {
    /// The proof that two statements make, if they do.
    ///
    /// # Errors
    /// Why they do not.
    pub fn of(one: Statement, other: Statement) -> Result<(Self, Conviction), ProofError> {
        let in_order = one.verify()?.commitment < other.verify()?.commitment;
        let (first, second) = if in_order { (one, other) } else { (other, one) };
        let proof = Self { first, second };
        let conviction = proof.verify()?;
        Ok((proof, conviction))
    }

    /// Checks everything, from the proof alone.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn verify(&self) -> Result<Conviction, ProofError> {
        let (Some(slot), Some(other)) = (self.first.slot(), self.second.slot()) else {
            return Err(ProofError::OtherSlots);
        };
        if slot != other {
            return Err(ProofError::OtherSlots);
        }
        let (first, second) = (self.first.verify()?.commitment, self.second.verify()?.commitment);
        if first == second {
            return Err(ProofError::Agree);
        }
        if first > second {
            return Err(ProofError::OutOfOrder);
        }
        Ok(Conviction { signer: slot.signer, slot, sealed: () })
    }

    /// The proof's name: blake3 of the preimage `potluck/v1/equivocation` over its canonical bytes.
    ///
    /// # Errors
    /// When it does not fit a frame.
    pub fn digest(&self) -> Result<Digest, WireError> {
        Ok(digest_of(&framed(PROOF_DOMAIN, &encode(self)?)))
    }
}

impl Bounded for Equivocation {
    fn check_bounds(&self) -> Result<(), WireError> {
        self.first.check_bounds()?;
        self.second.check_bounds()
    }
}

/// What a proof that arrived was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nobody had told of this signer: freeze its pair, keep the proof, pass it on.
    News(Conviction),
    /// This signer is convicted already; one proof is enough, so it goes no further.
    Known,
    /// The register is full; the proof is believed but neither kept nor passed on.
    Full(Conviction),
}

/// Who is convicted. Bounded, so that a flood of throw-away keys fills no memory: a key that never
/// dealt with us harms nobody here.
#[derive(Debug, Clone, Default)]
pub struct Convictions {
    proofs: BTreeMap<PeerId, Equivocation>,
}

impl Convictions {
    /// Checks a proof and takes it in. A proof about a peer that we deal with (`ours`) always has a
    /// place: the last stranger's proof gives way to it.
    ///
    /// # Errors
    /// When it proves nothing; whoever sent it is at fault.
    pub fn hear(&mut self, proof: Equivocation, ours: impl Fn(PeerId) -> bool) -> Result<Heard, ProofError> {
        let signer = proof.first.signer();
        if self.proofs.contains_key(&signer) {
            return Ok(Heard::Known);
        }
        let conviction = proof.verify()?;
        if self.proofs.len() >= MAX_CONVICTIONS {
            let stranger = self.proofs.keys().rev().find(|peer| !ours(**peer)).copied();
            match stranger {
                Some(stranger) if ours(signer) => drop(self.proofs.remove(&stranger)),
                _ => return Ok(Heard::Full(conviction)),
            }
        }
        self.proofs.insert(signer, proof);
        Ok(Heard::News(conviction))
    }

    /// The proof against `peer`, if there is one.
    #[must_use]
    pub fn against(&self, peer: PeerId) -> Option<&Equivocation> {
        self.proofs.get(&peer)
    }

    /// How many are convicted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.proofs.len()
    }

    /// Is nobody convicted?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.proofs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{Cancel, CancelReason, Countersign, PairId};
    use crate::settle::tests::sample_voucher;
    use crate::sign::SigningKey;
    use crate::unit::NanoCredit;

    fn key() -> SigningKey {
        SigningKey::from_seed([1; 32])
    }

    fn voucher(amount: u64) -> Statement {
        let mut voucher = sample_voucher();
        voucher.amount = NanoCredit::new(amount);
        key().sign(voucher).unwrap().into_signed().into()
    }

    #[test]
    fn two_vouchers_of_one_number_convict_their_signer_alone_and_in_small() {
        let (proof, conviction) = Equivocation::of(voucher(1), voucher(2)).unwrap();
        assert_eq!(conviction.signer, key().peer());
        assert_eq!(proof, Equivocation::of(voucher(2), voucher(1)).unwrap().0);
        assert!(encode(&proof).unwrap().len() < 700, "{}", encode(&proof).unwrap().len());
    }

    #[test]
    fn what_proves_nothing_is_refused() {
        assert_eq!(Equivocation::of(voucher(1), voucher(1)).unwrap_err(), ProofError::Agree);
        let mut next = sample_voucher();
        next.k = 2;
        let next = Statement::from(key().sign(next).unwrap().into_signed());
        assert_eq!(Equivocation::of(voucher(1), next).unwrap_err(), ProofError::OtherSlots);
        let (proof, _) = Equivocation::of(voucher(1), voucher(2)).unwrap();
        let turned = Equivocation { first: proof.second.clone(), second: proof.first.clone() };
        assert_eq!(turned.verify(), Err(ProofError::OutOfOrder));
        let Statement::Voucher(mut forged) = proof.first.clone() else { unreachable!("made above") };
        forged.body.amount = NanoCredit::new(3);
        let forged = Equivocation { first: Statement::Voucher(forged), second: proof.second };
        assert!(matches!(forged.verify(), Err(ProofError::Statement(_))));
    }

    #[test]
    fn a_countersignature_and_a_cancel_of_one_step_convict() {
        let pair = PairId::of(key().peer(), PeerId::from_bytes([3; 32])).unwrap();
        let (by, state) = (key().peer(), Digest::from_bytes([4; 32]));
        let sign = key().sign(Countersign { pair, by, epoch: 0, n: 1, state }).unwrap();
        let cancel = Cancel { pair, by, epoch: 0, n: 1, proposal: state, reason: CancelReason::NotPaid };
        let cancel = key().sign(cancel).unwrap();
        assert!(Equivocation::of(sign.into_signed().into(), cancel.into_signed().into()).is_ok());
    }

    #[test]
    fn a_signer_is_news_once() {
        let mut convictions = Convictions::default();
        let (proof, _) = Equivocation::of(voucher(1), voucher(2)).unwrap();
        assert!(matches!(convictions.hear(proof, |_| true), Ok(Heard::News(_))));
        let (other, _) = Equivocation::of(voucher(5), voucher(6)).unwrap();
        assert_eq!(convictions.hear(other, |_| true), Ok(Heard::Known));
        assert!(convictions.against(key().peer()).is_some());
    }
}
