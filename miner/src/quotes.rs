//! The quotes that are out: bounded, expiring, each good for one job.
//!
//! Owns: which quotes this provider still stands by. Never: signs, or reads a clock (`now` comes in,
//! monotonic, so that setting the wall clock moves nothing). Called by [`crate::desk`].

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use potluck_protocol::id::{Digest, PeerId};

use crate::pricing::QUOTE_LIFE_MS;

/// Quotes remembered for one renter; its oldest makes room.
const MAX_PER_PEER: usize = 16;
/// Quotes remembered in all; the oldest makes room. About 100 KiB.
const MAX_QUOTES: usize = 1_024;

/// Why a contract cannot rest on a quote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuoteGone {
    /// Never issued, already used, or pushed out by newer ones.
    Unknown,
    /// Its time has passed.
    Expired,
}

/// Quotes issued and not yet used.
#[derive(Debug, Default)]
pub struct IssuedQuotes {
    /// In order of issue, which is the order of expiry as all live equally long.
    order: VecDeque<(Digest, PeerId)>,
    issued: HashMap<Digest, Instant>,
}

impl IssuedQuotes {
    /// Remembers a quote.
    pub fn issue(&mut self, digest: Digest, renter: PeerId, now: Instant) {
        self.forget_old(now);
        let of_renter = self.order.iter().filter(|(_, peer)| *peer == renter).count();
        if of_renter >= MAX_PER_PEER {
            self.drop_first(|peer| peer == renter);
        } else if self.order.len() >= MAX_QUOTES {
            self.drop_first(|_| true);
        }
        self.order.push_back((digest, renter));
        self.issued.insert(digest, now);
    }

    /// Takes a quote out for the one job it is good for.
    ///
    /// # Errors
    /// When it is not known (any more) or has expired.
    pub fn redeem(&mut self, digest: &Digest, now: Instant) -> Result<(), QuoteGone> {
        let at = self.issued.remove(digest).ok_or(QuoteGone::Unknown)?;
        self.order.retain(|(known, _)| known != digest);
        if expired(at, now) { Err(QuoteGone::Expired) } else { Ok(()) }
    }

    /// Quotes remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Is none remembered?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Expired quotes stay known for one more life, so that a late renter is told the right thing.
    fn forget_old(&mut self, now: Instant) {
        while let Some((digest, _)) = self.order.front() {
            let at = self.issued.get(digest).copied();
            if at.is_some_and(|at| now.saturating_duration_since(at) < 2 * life()) {
                break;
            }
            self.issued.remove(digest);
            self.order.pop_front();
        }
    }

    fn drop_first(&mut self, whose: impl Fn(PeerId) -> bool) {
        if let Some(index) = self.order.iter().position(|(_, peer)| whose(*peer))
            && let Some((digest, _)) = self.order.remove(index)
        {
            self.issued.remove(&digest);
        }
    }
}

fn life() -> Duration {
    Duration::from_millis(QUOTE_LIFE_MS)
}

fn expired(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) > life()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: usize) -> Digest {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        Digest::from_bytes(bytes)
    }

    fn peer(byte: u8) -> PeerId {
        PeerId::from_bytes([byte; 32])
    }

    #[test]
    fn a_quote_is_good_for_one_job() {
        let (mut quotes, now) = (IssuedQuotes::default(), Instant::now());
        quotes.issue(digest(1), peer(1), now);
        assert_eq!(quotes.redeem(&digest(1), now), Ok(()));
        assert_eq!(quotes.redeem(&digest(1), now), Err(QuoteGone::Unknown));
        assert_eq!(quotes.len(), 0);
    }

    #[test]
    fn a_quote_binds_for_sixty_seconds() {
        let (mut quotes, now) = (IssuedQuotes::default(), Instant::now());
        quotes.issue(digest(1), peer(1), now);
        quotes.issue(digest(2), peer(1), now);
        assert_eq!(quotes.redeem(&digest(1), now + Duration::from_secs(60)), Ok(()));
        assert_eq!(quotes.redeem(&digest(2), now + Duration::from_millis(60_001)), Err(QuoteGone::Expired));
    }

    #[test]
    fn one_renter_cannot_push_out_anothers_quote() {
        let (mut quotes, now) = (IssuedQuotes::default(), Instant::now());
        quotes.issue(digest(0), peer(9), now);
        for n in 1..=10 * MAX_QUOTES {
            quotes.issue(digest(n), peer(1), now);
        }
        assert_eq!(quotes.len(), MAX_PER_PEER + 1);
        assert_eq!(quotes.redeem(&digest(0), now), Ok(()));
    }

    #[test]
    fn many_renters_cannot_grow_memory_and_time_empties_it() {
        let (mut quotes, now) = (IssuedQuotes::default(), Instant::now());
        for n in 0..3 * MAX_QUOTES {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            quotes.issue(digest(n), PeerId::from_bytes(key), now);
        }
        assert_eq!((quotes.len(), quotes.issued.len()), (MAX_QUOTES, MAX_QUOTES));
        quotes.issue(digest(usize::MAX), peer(1), now + 2 * life());
        assert_eq!((quotes.len(), quotes.issued.len()), (1, 1));
    }
}
