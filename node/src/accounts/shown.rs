//! What a page of statements shows of our own word.
//!
//! Owns: [`Shown`], read off a page before anything of it is taken in. Never: believes a signature that
//! it did not check. Called for each page that a peer sends: a ledger that is lost, or an old one, learns
//! from our own signatures what it may believe of the rest.

use std::collections::{BTreeMap, BTreeSet};

use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::statement::Statement;

/// Our own signatures in a page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// Lanes that we had a part in.
    pub(super) lanes: BTreeSet<LaneId>,
    /// The last of our vouchers in each lane: number and digest.
    pub(super) vouchers: BTreeMap<LaneId, (u32, Digest)>,
    /// Vouchers that we gave a receipt for.
    pub(super) receipted: BTreeSet<Digest>,
    /// Balances that we countersigned.
    pub(super) countersigned: BTreeSet<Digest>,
}

impl Shown {
    /// What `page` shows of what `me` signed.
    pub(super) fn of(me: PeerId, page: &[Statement]) -> Self {
        let mut shown = Self::default();
        for statement in page.iter().filter(|statement| statement.signer() == me) {
            if let Ok(proven) = statement.verify() {
                shown.note(statement, proven.digest);
            }
        }
        shown
    }

    fn note(&mut self, statement: &Statement, digest: Digest) {
        self.lanes.extend(statement.lane());
        match statement {
            Statement::Voucher(it) => {
                let last = self.vouchers.entry(it.body.lane).or_insert((it.body.k, digest));
                if it.body.k > last.0 {
                    *last = (it.body.k, digest);
                }
            }
            Statement::Receipt(it) => {
                self.receipted.insert(it.body.voucher);
            }
            Statement::Countersign(it) => {
                self.countersigned.insert(it.body.state);
            }
            _ => {}
        }
    }
}
