//! What the index says of money and jobs: totals, accounts, credit, and lists of lanes.
//!
//! Owns: how accounts and lanes become the answers of view.rs. Never: changes anything. Called by
//! [`super::Ledger`], for the programs' tables and for the provider's decision on credit.

use std::collections::BTreeMap;

use potluck_protocol::credit::Standing;
use potluck_protocol::id::{ContentHash, LaneId, PeerId};
use potluck_protocol::unit::{NanoCredit, UnixMillis};

use super::Ledger;
use super::account::Account;
use super::error::ReadError;
use super::index::{Index, Table};
use super::lane::LaneState;
use super::view::{Filter, LaneRole, LaneSummary, PairBalance, Totals};

impl Ledger {
    /// What all accounts add up to: agreed balances, and the latest voucher of each lane after them.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn totals(&self) -> Result<Totals, ReadError> {
        let mut totals = Totals::default();
        for (_, account) in self.shared.index.accounts()? {
            totals.owed_to_us = totals.owed_to_us.saturating_add(account.owed_to_us());
            totals.we_owe = totals.we_owe.saturating_add(account.we_owe());
            totals.balance = totals.balance.saturating_add(account.balance());
        }
        Ok(totals)
    }

    /// The balance with each peer that we ever had an account with.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn pairs(&self) -> Result<Vec<PairBalance>, ReadError> {
        let balance = |(peer, account): (PeerId, Account)| PairBalance {
            peer,
            balance: account.balance(),
            lanes: u64::try_from(account.part.lanes).unwrap_or(0),
            open: u64::try_from(account.part.open).unwrap_or(0),
        };
        Ok(self.shared.index.accounts()?.into_iter().map(balance).collect())
    }

    /// Lanes that pass `filter`, newest first.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn lanes(&self, filter: &Filter) -> Result<Vec<LaneSummary>, ReadError> {
        self.shared.index.lanes(filter)
    }

    /// Is anything kept of this lane?
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn has_lane(&self, lane: &LaneId) -> Result<bool, ReadError> {
        self.shared.index.lane(lane).map(|lane| lane.is_some())
    }

    /// Where we stand with `peer` at `now` (wall clock), for deciding on credit (invariant I6); all zeros
    /// for a stranger. A lane that nobody ended counts until it is a day old.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn standing(&self, peer: PeerId, now: UnixMillis) -> Result<Standing, ReadError> {
        let index = &self.shared.index;
        let account = index.account(peer)?.unwrap_or_default();
        let mut caps = NanoCredit::ZERO;
        index.each_open_with(peer, &mut |lane| {
            caps = caps.saturating_add(cap(lane, index.me, now));
            Ok(())
        })?;
        Ok(standing_of(&account, caps, self.is_frozen(peer)?))
    }

    /// What all peers but `except` that are unknown (they never paid) may come to owe us together at
    /// `now`, in nano-credits.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn unknown_exposure(&self, except: PeerId, now: UnixMillis) -> Result<u128, ReadError> {
        let index = &self.shared.index;
        let mut caps = BTreeMap::<PeerId, NanoCredit>::new();
        index.each_open(&mut |lane| {
            let sum = caps.entry(lane.peer(index.me)).or_default();
            *sum = sum.saturating_add(cap(lane, index.me, now));
            Ok(())
        })?;
        let mut exposure = 0_u128;
        for (peer, account) in index.accounts()? {
            let caps = caps.get(&peer).copied().unwrap_or(NanoCredit::ZERO);
            let standing = standing_of(&account, caps, false);
            if peer != except && standing.is_unknown() {
                exposure = exposure.saturating_add(standing.exposure());
            }
        }
        Ok(exposure)
    }
}

fn standing_of(account: &Account, open_caps: NanoCredit, frozen: bool) -> Standing {
    let (balance, settled, audited) = (account.balance(), account.settled, NanoCredit::ZERO);
    Standing { balance, open_caps, settled, audited, frozen }
}

/// What the peer may still come to owe us for a lane.
fn cap(lane: &LaneState, me: PeerId, now: UnixMillis) -> NanoCredit {
    match lane.role(me) {
        LaneRole::Provider => lane.open_cap(now),
        LaneRole::Renter => NanoCredit::ZERO,
    }
}

impl Index {
    fn lanes(&self, filter: &Filter) -> Result<Vec<LaneSummary>, ReadError> {
        let from = filter.since.unwrap_or_default().get().to_be_bytes();
        let limit = filter.limit.unwrap_or(usize::MAX);
        let mut found = Vec::new();
        for entry in self.scan_from(Table::Times, &from).rev() {
            if found.len() >= limit {
                break;
            }
            let (key, _) = entry?;
            let lane = self.lane_at(key.get(8..).unwrap_or_default())?.ok_or_else(|| self.broken())?;
            if filter.peer.is_none_or(|peer| peer == lane.peer(self.me)) {
                found.push(lane.summary(self.me, self.model(&lane)?));
            }
        }
        Ok(found)
    }

    fn model(&self, lane: &LaneState) -> Result<Option<ContentHash>, ReadError> {
        let Some(agreed) = &lane.agreed else { return Ok(None) };
        Ok(self.quoted(&agreed.quote)?.map(|quoted| quoted.model))
    }

    /// Calls `visit` for each lane that nobody ended.
    pub(super) fn each_open(
        &self,
        visit: &mut dyn FnMut(&LaneState) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        self.open_from(&[], visit)
    }

    /// Calls `visit` for each lane with `peer` that nobody ended, in rising order.
    pub(super) fn each_open_with(
        &self,
        peer: PeerId,
        visit: &mut dyn FnMut(&LaneState) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        for prefix in self.lane_prefixes(peer) {
            self.open_from(&prefix, visit)?;
        }
        Ok(())
    }

    fn open_from(
        &self,
        prefix: &[u8],
        visit: &mut dyn FnMut(&LaneState) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        for entry in self.scan(Table::Open, prefix) {
            // The writer may have ended and be ending lanes meanwhile.
            if let Some(lane) = self.lane_at(&entry?.0)? {
                visit(&lane)?;
            }
        }
        Ok(())
    }
}
