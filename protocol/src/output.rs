//! Commitments to output: which tokens, or which parts of a component's output, a meter stands for.
//!
//! Owns: the hash chain over them. Never: judges whether the output is right (an audit does).
//! Called by the provider (to commit) and the renter (to check what it was given).
//!
//! `h_0` = blake3 of the preimage `potluck/v1/output` over the contract's digest; for each token,
//! `h_{n+1}` = blake3 of the preimage `potluck/v1/output` over `h_n | token id as u32 LE`.
//! A component's output crosses in parts; each is one link: blake3 of the preimage
//! `potluck/v1/output-part` over `h_n | blake3 of the part`.

use crate::id::Digest;
use crate::sign::{digest_of, framed};

const OUTPUT_DOMAIN: &str = "potluck/v1/output";
const PART_DOMAIN: &str = "potluck/v1/output-part";

/// One link's worth of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A model's token.
    Token(u32),
    /// The blake3 of a part of a component's output.
    Part(Digest),
}

impl Unit {
    /// The unit of a part of a component's output.
    #[must_use]
    pub fn part(bytes: &[u8]) -> Self {
        Self::Part(digest_of(bytes))
    }
}

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
            self.link(Unit::Token(*token));
        }
    }

    /// Adds tokens or parts in order.
    pub fn extend_units(&mut self, units: &[Unit]) {
        for unit in units {
            self.link(*unit);
        }
    }

    fn link(&mut self, unit: Unit) {
        let mut link = self.head.as_bytes().to_vec();
        let domain = match unit {
            Unit::Token(token) => {
                link.extend_from_slice(&token.to_le_bytes());
                OUTPUT_DOMAIN
            }
            Unit::Part(digest) => {
                link.extend_from_slice(digest.as_bytes());
                PART_DOMAIN
            }
        };
        self.head = digest_of(&framed(domain, &link));
        self.tokens = self.tokens.saturating_add(1);
    }

    /// The commitment `h_n`.
    #[must_use]
    pub fn head(&self) -> Digest {
        self.head
    }

    /// How many tokens or parts it covers, `n`.
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
    fn parts_are_links_of_their_own_kind() {
        let contract = Digest::from_bytes([1; 32]);
        let of = |units: &[Unit]| {
            let mut chain = OutputChain::new(contract);
            chain.extend_units(units);
            (chain.head(), chain.tokens())
        };
        assert_eq!(of(&[Unit::part(b"ab"), Unit::part(b"c")]).1, 2);
        assert_ne!(of(&[Unit::part(b"ab"), Unit::part(b"c")]), of(&[Unit::part(b"a"), Unit::part(b"bc")]));
        assert_ne!(of(&[Unit::Token(7)]), of(&[Unit::part(&7u32.to_le_bytes())]));
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
