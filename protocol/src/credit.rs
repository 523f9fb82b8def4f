//! Credit: how much a peer may owe, by a formula that everybody can compute.
//!
//! Owns: [`Standing`] (what a ledger knows of a peer), [`CreditPolicy`] (what the owner allows) and the
//! decision (invariant I6). Never: reads a ledger, a clock or a price list. Called before a contract is
//! admitted, and before a prepayment, which is a loan the other way.
//!
//! ```text
//! limit = min(cap, rate × new_peer + settled / 2 + audited / 4)
//! exposure = max(0, balance + what open contracts may still cost)
//! ```
//!
//! A peer that settles x and then vanishes takes at most x / 2 more than a new peer could: earning
//! credit in order to break it costs more than it brings. New peers cost nothing to make, so all of
//! them together have one cap.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::unit::{GpuMillis, NanoCredit, Rate};

/// Default of what a new peer may owe: so much work at the provider's run rate.
pub const NEW_PEER: GpuMillis = GpuMillis::new(60_000);
/// Default cap of one peer, as work at the provider's run rate: ten GPU-hours.
pub const DEFAULT_CAP: GpuMillis = GpuMillis::new(36_000_000);
/// How many new peers at their limit the default cap over all unknown peers bears.
pub const DEFAULT_UNKNOWN_PEERS: u64 = 20;
/// Of what a peer settled, one part in so many is added to its limit.
const SETTLED_PART: u64 = 2;
/// Of what a peer's audited work was worth, one part in so many is added to its limit.
const AUDITED_PART: u64 = 4;

/// What a ledger knows of one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// In nano-credits; above zero when the peer owes us, below when it has prepaid or worked for us.
    pub balance: i128,
    /// What the peer's open contracts with us may still cost beyond what is vouched.
    pub open_caps: NanoCredit,
    /// Outside payments by the peer to us in agreed states, all together.
    pub settled: NanoCredit,
    /// What the peer's work for us was worth whose result an audit confirmed.
    pub audited: NanoCredit,
    /// Is the pair frozen?
    pub frozen: bool,
}

impl Standing {
    /// Has the peer neither paid nor worked for us yet?
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.settled == NanoCredit::ZERO && self.audited == NanoCredit::ZERO
    }

    /// The most that the peer may come to owe us as things stand, in nano-credits.
    #[must_use]
    pub fn exposure(&self) -> u128 {
        self.balance.saturating_add(i128::from(self.open_caps.get())).max(0).unsigned_abs()
    }
}

/// What the owner allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreditPolicy {
    /// The provider's run rate: what the new peer's share is reckoned in.
    pub rate: Rate,
    /// What a peer may owe that never paid: so much work at that rate.
    pub new_peer: GpuMillis,
    /// The most that any one peer may owe.
    pub cap: NanoCredit,
    /// The most that all unknown peers together may owe.
    pub unknown_cap: NanoCredit,
}

/// Why a peer gets no more credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CreditRefused {
    /// Its own limit. Fault: the peer; settle first.
    #[error("this could bring the debt to {would} and the limit is {limit}")]
    OverLimit {
        /// The most that could be owed.
        would: NanoCredit,
        /// The peer's limit.
        limit: NanoCredit,
    },
    /// The cap over all unknown peers. Fault: nobody; prepay, or come back later.
    #[error("unknown peers could then owe {would} together and the owner lends them {limit}")]
    UnknownPeers {
        /// The most that all of them could owe.
        would: NanoCredit,
        /// The cap.
        limit: NanoCredit,
    },
    /// The pair is frozen. Fault: whoever signed twice.
    #[error("no credit: one of the two signed two different things in one place")]
    Frozen,
}

impl CreditPolicy {
    /// The default for a provider with this run rate.
    #[must_use]
    pub fn of_rate(rate: Rate) -> Self {
        let new_peer = rate.amount(NEW_PEER).get();
        let unknown_cap = NanoCredit::new(new_peer.saturating_mul(DEFAULT_UNKNOWN_PEERS));
        Self { rate, new_peer: NEW_PEER, cap: rate.amount(DEFAULT_CAP), unknown_cap }
    }

    /// How much a peer may owe (the formula at the head of this file).
    #[must_use]
    pub fn limit(&self, standing: &Standing) -> NanoCredit {
        if standing.frozen {
            return NanoCredit::ZERO;
        }
        self.rate
            .amount(self.new_peer)
            .saturating_add(NanoCredit::new(standing.settled.get() / SETTLED_PART))
            .saturating_add(NanoCredit::new(standing.audited.get() / AUDITED_PART))
            .min(self.cap)
    }

    /// May the peer come to owe `more`? `others` is the exposure of all *other* unknown peers
    /// together. The same rule bounds a prepayment of `more` by us to the peer.
    ///
    /// # Errors
    /// The first limit that would be passed.
    pub fn allows(&self, standing: &Standing, others: u128, more: NanoCredit) -> Result<(), CreditRefused> {
        if standing.frozen {
            return Err(CreditRefused::Frozen);
        }
        let after = Standing { open_caps: standing.open_caps.saturating_add(more), ..*standing };
        let limit = self.limit(standing);
        let would = after.exposure();
        if would > u128::from(limit.get()) {
            return Err(CreditRefused::OverLimit { would: shown(would), limit });
        }
        let together = others.saturating_add(would);
        if standing.is_unknown() && would > 0 && together > u128::from(self.unknown_cap.get()) {
            return Err(CreditRefused::UnknownPeers { would: shown(together), limit: self.unknown_cap });
        }
        Ok(())
    }

    /// The most `more` that [`Self::allows`] lets this peer come to owe.
    #[must_use]
    pub fn room(&self, standing: &Standing, others: u128) -> NanoCredit {
        if standing.frozen {
            return NanoCredit::ZERO;
        }
        let mut most = u128::from(self.limit(standing).get());
        if standing.is_unknown() {
            most = most.min(u128::from(self.unknown_cap.get()).saturating_sub(others));
        }
        let owed = standing.balance.saturating_add(i128::from(standing.open_caps.get()));
        let room = i128::try_from(most).unwrap_or(i128::MAX).saturating_sub(owed).max(0);
        NanoCredit::new(u64::try_from(room).unwrap_or(u64::MAX))
    }
}

/// For a message: the largest amount stands for all beyond it.
fn shown(amount: u128) -> NanoCredit {
    NanoCredit::new(u64::try_from(amount).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // $0.14 an hour.
    const RATE: Rate = Rate::new(38_888);

    fn nano(amount: u64) -> NanoCredit {
        NanoCredit::new(amount)
    }

    #[test]
    fn the_worked_example_of_the_specification() {
        let policy = CreditPolicy::of_rate(RATE);
        assert_eq!(policy.limit(&Standing::default()), nano(2_333_280));
        assert_eq!(policy.unknown_cap, nano(46_665_600));
        assert_eq!(policy.cap, nano(1_399_968_000));
        let known = Standing { settled: nano(10_000_000), audited: nano(1_000_003), ..Standing::default() };
        assert_eq!(policy.limit(&known), nano(2_333_280 + 5_000_000 + 250_000));
        let owing = Standing { balance: 7_000_000, open_caps: nano(500_000), ..known };
        assert_eq!(policy.allows(&owing, 0, nano(83_280)), Ok(()));
        let refused = CreditRefused::OverLimit { would: nano(7_583_281), limit: nano(7_583_280) };
        assert_eq!(policy.allows(&owing, 0, nano(83_281)), Err(refused));
    }

    #[test]
    fn unknown_peers_share_one_cap_and_a_prepaid_one_needs_none_of_it() {
        let policy = CreditPolicy::of_rate(RATE);
        let full = u128::from(policy.unknown_cap.get());
        let stranger = Standing::default();
        assert!(policy.allows(&stranger, full - 1_000, nano(1_000)).is_ok());
        let refused = policy.allows(&stranger, full - 1_000, nano(1_001)).unwrap_err();
        assert!(matches!(refused, CreditRefused::UnknownPeers { .. }));
        let prepaid = Standing { balance: -5_000, ..stranger };
        assert!(policy.allows(&prepaid, full, nano(5_000)).is_ok());
        assert!(policy.allows(&prepaid, full, nano(5_001)).is_err());
        let known = Standing { settled: nano(1), ..stranger };
        assert!(policy.allows(&known, full, nano(1_000)).is_ok());
    }

    #[test]
    fn a_frozen_pair_gets_nothing() {
        let frozen =
            Standing { frozen: true, balance: -5_000, settled: nano(1 << 40), ..Standing::default() };
        let policy = CreditPolicy::of_rate(RATE);
        assert_eq!(policy.allows(&frozen, 0, nano(1)), Err(CreditRefused::Frozen));
        assert_eq!(policy.limit(&frozen), NanoCredit::ZERO);
    }

    #[test]
    fn the_owner_may_lend_strangers_nothing() {
        let policy = CreditPolicy { new_peer: GpuMillis::ZERO, ..CreditPolicy::of_rate(RATE) };
        assert_eq!(policy.room(&Standing::default(), 0), NanoCredit::ZERO);
        let paid = Standing { settled: nano(10), balance: -10, ..Standing::default() };
        assert_eq!(policy.room(&paid, 0), nano(15));
    }

    proptest! {
        /// There is room for exactly what is allowed.
        #[test]
        fn room_is_what_is_allowed(
            balance in -5_000_000..5_000_000i64, open in 0..3_000_000u64, settled in 0..2u64, others in 0..60_000_000u64
        ) {
            let policy = CreditPolicy::of_rate(RATE);
            let (balance, settled) = (i128::from(balance), nano(settled * 1_000_000));
            let standing = Standing { balance, open_caps: nano(open), settled, ..Standing::default() };
            let others = u128::from(others);
            let room = policy.room(&standing, others);
            let over = room.saturating_add(nano(1));
            prop_assert!(policy.allows(&standing, others, over).is_err());
            prop_assert!(room == NanoCredit::ZERO || policy.allows(&standing, others, room).is_ok());
        }

        /// Settling more never lowers the limit, and never raises it by more than half of it.
        #[test]
        fn credit_is_earned_at_less_than_it_cost(settled in 0..1u64 << 50, more in 0..1u64 << 50) {
            let policy = CreditPolicy { cap: nano(u64::MAX), ..CreditPolicy::of_rate(RATE) };
            let limit = |settled| policy.limit(&Standing { settled: nano(settled), ..Standing::default() }).get();
            let gain = limit(settled + more) - limit(settled);
            prop_assert!(gain <= more.div_ceil(2));
        }
    }
}
