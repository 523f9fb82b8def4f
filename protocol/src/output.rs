//! Commitments to output: which tokens a meter stands for.
//!
//! Owns: the hash chain over token ids. Never: judges whether the tokens are right (an audit does).
//! Called by the provider (to commit) and the renter (to check what it was given).
//!
//! `h_0` = blake3 of the preimage `potluck/v1/output` over the contract's digest; for each token,
//! `h_{n+1}` = blake3 of the preimage `potluck/v1/output` over `h_n | token id as u32 LE`.

use crate::id::Digest;
use crate::sign::{digest_of, framed};

const OUTPUT_DOMAIN: &str = "potluck/v1/output";

/// The chain so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChain {
    head: Digest,
    tokens: u32,
}

impl OutputChain {
    /// The empty output under the contract with this digest.
    #[must_use]
    pub fn new(contract: Digest) -> Self {
        Self { head: digest_of(&framed(OUTPUT_DOMAIN, contract.as_bytes())), tokens: 0 }
    }

    /// Adds tokens in order.
    pub fn extend(&mut self, tokens: &[u32]) {
        for token in tokens {
            let mut link = [0; 36];
            link[..32].copy_from_slice(self.head.as_bytes());
            link[32..].copy_from_slice(&token.to_le_bytes());
            self.head = digest_of(&framed(OUTPUT_DOMAIN, &link));
            self.tokens = self.tokens.saturating_add(1);
        }
    }

    /// The commitment `h_n`.
    #[must_use]
    pub fn head(&self) -> Digest {
        self.head
    }

    /// How many tokens it covers, `n`.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_count_and_contract_all_matter() {
        let chain = |contract: u8, tokens: &[u32]| {
            let mut chain = OutputChain::new(Digest::from_bytes([contract; 32]));
            chain.extend(tokens);
            chain.head()
        };
        assert_eq!(chain(1, &[1, 2]), chain(1, &[1, 2]));
        assert_ne!(chain(1, &[1, 2]), chain(1, &[2, 1]));
        assert_ne!(chain(1, &[1, 2]), chain(1, &[1]));
        assert_ne!(chain(1, &[1, 2]), chain(2, &[1, 2]));
    }

    #[test]
    fn pieces_do_not_matter() {
        let mut whole = OutputChain::new(Digest::from_bytes([1; 32]));
        whole.extend(&[5, 6, 7]);
        let mut pieces = OutputChain::new(Digest::from_bytes([1; 32]));
        pieces.extend(&[5]);
        pieces.extend(&[]);
        pieces.extend(&[6, 7]);
        assert_eq!(whole, pieces);
        assert_eq!(whole.tokens(), 3);
    }
}
