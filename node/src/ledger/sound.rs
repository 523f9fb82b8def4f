//! Whether an index is to be believed after a crash.
//!
//! Owns: the counts and sums that every table is held against. Never: repairs anything, or compares with
//! the journal (a check does). Called when an index is opened without its seal; an unsound one is built
//! anew.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use potluck_protocol::id::PeerId;

use super::account::{Part, book_of};
use super::disk::length;
use super::error::ReadError;
use super::index::{Index, Table};
use super::page::Page;
use super::record::Kind;

impl Index {
    /// Does every record have its slot, and does all that is kept twice agree? (sled may come back
    /// from damage with some keys missing and no error.)
    pub(super) fn is_sound(&self) -> bool {
        let sound = || -> Result<bool, ReadError> {
            Ok(self.counts_slots()? && self.adds_up()? && self.keeps_books()?)
        };
        catch_unwind(AssertUnwindSafe(sound)).is_ok_and(|sound| sound.unwrap_or(false))
    }

    fn counts_slots(&self) -> Result<bool, ReadError> {
        let (mut slots, mut quotes, mut proofs) = (0_u64, 0, 0);
        for entry in self.scan(Table::Slots, &[]) {
            let page: Page = self.decode(&entry?.1)?;
            slots += length(page.len());
            quotes += length(page.of_kind(Kind::Quote.number()));
            proofs += length(page.of_kind(Kind::Proof.number()));
        }
        let records = self.place()?.map_or(0, |place| place.position.records);
        Ok(Some(slots) == records.checked_sub(self.base()?.dropped)
            && self.count(Table::Quotes)? == quotes
            && self.count(Table::Proofs)? == proofs)
    }

    fn adds_up(&self) -> Result<bool, ReadError> {
        let accounts: BTreeMap<_, _> = self.accounts()?.into_iter().collect();
        let (mut parts, mut lanes, mut open, mut current) = (BTreeMap::<PeerId, Part>::new(), 0, 0, 0);
        self.each_lane(|lane| {
            let peer = lane.peer(self.me);
            let floor = accounts.get(&peer).map(|account| account.floor).unwrap_or_default();
            let part = parts.entry(peer).or_default();
            *part = part.and(lane.part(self.me, floor));
            lanes += 1;
            open += u64::from(!lane.has_ended());
            current += u64::from(lane.opened() >= floor);
            Ok::<_, ReadError>(())
        })?;
        let agree = parts.keys().all(|peer| accounts.contains_key(peer))
            && accounts.iter().all(|(peer, it)| it.part == parts.get(peer).copied().unwrap_or_default());
        let counts = [(Table::Times, lanes), (Table::Open, open), (Table::Current, current)];
        counts.into_iter().try_fold(agree, |agree, (table, count)| Ok(agree && self.count(table)? == count))
    }

    fn keeps_books(&self) -> Result<bool, ReadError> {
        let mut proposed = 0;
        for (peer, account) in self.accounts()? {
            let statements = self.statements(peer)?;
            let Some(book) = book_of(self.me, peer, &statements) else { return Ok(false) };
            let head = (book.pair().owed_to(self.me, book.head().balance), book.head().floor);
            if u32::try_from(statements.len()).ok() != Some(account.book)
                || head != (account.agreed, account.floor)
            {
                return Ok(false);
            }
            proposed += u64::from(account.proposed);
        }
        Ok(self.count(Table::States)? == proposed)
    }
}
