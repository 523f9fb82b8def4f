//! Taking statements in, each by its law.
//!
//! Owns: which statements of a peer are worth keeping, the receipts that vouchers bring, and who is
//! caught signing two things in one place. Never: lets a peer fill our ledger with what we had no part
//! in, or does more than a page's work. Called with every page that a peer sends, asked or not.
//!
//! A lane counts only with a word of our own: as renter our contract, as provider our accept or meter,
//! held or shown in the same page. Our own statements are always kept, and when we had lost one, the
//! epoch must be raised.

use std::collections::BTreeMap;

use potluck_protocol::id::{Digest, LaneId};
use potluck_protocol::lane::{ProviderLane, VoucherRefused};
use potluck_protocol::proof::Equivocation;
use potluck_protocol::settle::{Contract, Meter, Receipt, Voucher};
use potluck_protocol::sign::{Signable, Signed, Verified};
use potluck_protocol::statement::{Place, Statement};

use super::books::Books;
use super::error::BooksError;
use super::shown::Shown;
use crate::fault;
use crate::ledger::{AppendError, Kept};

/// Balance steps and epochs of the peer that one page may bring. An honest page has seven at most.
const STEPS_IN_PAGE: u32 = 8;

/// What a page came to.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// What it calls for, to be sent back.
    pub(super) answers: Vec<Statement>,
    /// It showed what we had signed and no longer held.
    pub(super) forgot: bool,
    /// The balance may have taken a step.
    pub(super) stepped: bool,
}

/// A lane as far as judging a page needs it.
#[derive(Debug, Clone, Copy)]
struct LaneView {
    /// Is there a word of ours?
    ours: bool,
    /// The last voucher, held or shown: its number (0 for none) and digest.
    last: (u32, Digest),
}

/// A page being taken in.
struct Page<'a> {
    books: &'a Books<'a>,
    shown: Shown,
    lanes: BTreeMap<LaneId, LaneView>,
    /// Judged worth keeping, in order, and not kept yet.
    pending: Vec<Statement>,
    steps: u32,
    taken: Taken,
}

impl Books<'_> {
    /// Takes `statements` of the peer in; all that is kept is durable then.
    pub(super) async fn take(&self, statements: Vec<Statement>) -> Result<Taken, BooksError> {
        let shown = Shown::of(self.me(), &statements);
        let mut page = Page {
            books: self,
            shown,
            lanes: BTreeMap::new(),
            pending: Vec::new(),
            steps: 0,
            taken: Taken::default(),
        };
        for statement in statements {
            page.take(statement).await?;
        }
        page.flush().await?;
        if page.taken.stepped {
            self.account.changed.notify_waiters();
        }
        Ok(page.taken)
    }

    /// Two statements of one signer in one slot convict it, whether or not a law lets the second be kept.
    async fn witness(&self, statement: Statement) -> Result<(), BooksError> {
        let Some(slot) = statement.slot() else { return Ok(()) };
        let Some(held) = self.ledger().statement(&slot)?.filter(|held| *held != statement) else {
            return Ok(());
        };
        if let Ok((proof, _)) = Equivocation::of(held, statement) {
            self.accounts.hear(proof).await?;
        }
        Ok(())
    }
}

impl Page<'_> {
    async fn take(&mut self, statement: Statement) -> Result<(), BooksError> {
        if statement.pair() != Some(self.books.pair()) || statement.slot().is_none() {
            return Ok(());
        }
        if statement.signer() == self.books.me() {
            self.pending.push(statement);
            return Ok(());
        }
        match &statement {
            Statement::Voucher(voucher) => return self.voucher(voucher.as_ref().clone()).await,
            Statement::State(_) | Statement::Countersign(_) | Statement::Cancel(_) | Statement::Raise(_) => {
                return self.step(statement).await;
            }
            _ => {}
        }
        let Some(lane) = statement.lane() else { return Ok(()) };
        let view = self.view(lane)?;
        let lawful = match &statement {
            // A meter waits for the voucher of the one before.
            Statement::Meter(meter) => meter.body.k <= view.last.0.saturating_add(1),
            Statement::Receipt(receipt) => {
                let (k, digest) = view.last;
                receipt.body.k < k || (receipt.body.k == k && receipt.body.voucher == digest)
            }
            _ => true,
        };
        match (view.ours, lawful) {
            (true, true) => self.pending.push(statement),
            (true, false) => self.books.witness(statement).await?,
            (false, _) => {}
        }
        Ok(())
    }

    fn view(&mut self, lane: LaneId) -> Result<LaneView, BooksError> {
        if let Some(view) = self.lanes.get(&lane) {
            return Ok(*view);
        }
        let ledger = self.books.ledger();
        let (facts, last) = (ledger.lane_facts(&lane)?, ledger.last_word(&lane)?);
        let held = if lane.renter == self.books.me() {
            last.is_some()
        } else {
            facts.is_some_and(|facts| facts.accepted || facts.meters > 0)
        };
        let none = (0, Digest::from_bytes([0; 32]));
        let last = last.filter(|last| last.k > 0).map_or(none, |last| (last.k, last.digest));
        let shown = self.shown.vouchers.get(&lane).copied().unwrap_or(none);
        let last = if shown.0 > last.0 { shown } else { last };
        let view = LaneView { ours: held || self.shown.lanes.contains(&lane), last };
        self.lanes.insert(lane, view);
        Ok(view)
    }

    /// A voucher for us. With our own receipt in the same page it is simply kept; else it must pay for
    /// our meter, and brings a receipt.
    async fn voucher(&mut self, voucher: Signed<Voucher>) -> Result<(), BooksError> {
        let lane = voucher.body.lane;
        if !self.view(lane)?.ours {
            return Ok(());
        }
        let Ok(voucher) = voucher.verify() else { return Ok(()) };
        let statement = Statement::from(voucher.signed().clone());
        if self.shown.receipted.contains(&voucher.digest()) {
            self.pending.push(statement);
            return Ok(());
        }
        self.flush().await?;
        let Some(receipt) = self.receipt_for(&voucher)? else {
            return self.books.witness(statement).await;
        };
        let receipt = self.books.accounts.inner.key.sign(receipt)?;
        fault::point(fault::LATE_RECEIPT_SIGNED);
        let answer = Statement::from(receipt.signed().clone());
        match self.books.ledger().append_verified(vec![voucher.into(), receipt.into()]).await {
            Ok(()) => {
                fault::point(fault::LATE_RECEIPT_KEPT);
                self.taken.answers.push(answer);
            }
            // A job of ours has taken another one in the meantime.
            Err(AppendError::SlotTaken { .. }) => self.books.witness(statement).await?,
            Err(AppendError::Retired { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn receipt_for(&self, voucher: &Verified<Voucher>) -> Result<Option<Receipt>, BooksError> {
        let Voucher { lane, k, .. } = *voucher.body();
        let books = self.books;
        let Some(Statement::Contract(contract)) = books.held(lane.renter, Place::Contract(lane))? else {
            return Ok(None);
        };
        let Ok(contract) = contract.verify() else { return Ok(None) };
        let last_k = books.ledger().last_word(&lane)?.map_or(0, |last| last.k);
        let last = match books.held(lane.renter, Place::Voucher(lane, last_k))? {
            Some(Statement::Voucher(last)) => verified(*last),
            _ => None,
        };
        let meter = match books.held(lane.provider, Place::Meter(lane, k))? {
            Some(Statement::Meter(meter)) => verified(*meter),
            _ => None,
        };
        Ok(receipt_for(&contract, last.as_ref(), meter.as_ref(), voucher).ok())
    }

    /// A step of the balance, or an epoch.
    async fn step(&mut self, statement: Statement) -> Result<(), BooksError> {
        self.steps = self.steps.saturating_add(1);
        if self.steps > STEPS_IN_PAGE {
            return Ok(());
        }
        self.flush().await?;
        let Statement::State(state) = &statement else {
            self.pending.push(statement);
            return self.flush().await;
        };
        let book = self.books.book()?;
        let (body, digest) = match statement.verify() {
            Ok(proven) => (&state.body, proven.digest),
            Err(_) => return Ok(()),
        };
        // A state of another epoch counts only when we had agreed to it.
        if body.epoch != book.epoch() && !self.shown.countersigned.contains(&digest) {
            return self.books.witness(statement).await;
        }
        // A new state that does not follow what we have: somebody is behind.
        let follows = body.n <= book.used().saturating_add(1) && body.previous == book.head().digest;
        if body.n > book.head().n && !follows {
            self.books.account.parted();
        }
        self.pending.push(statement);
        self.flush().await?;
        self.taken.answers.extend(self.books.judge_open().await?);
        Ok(())
    }

    /// Keeps what was judged worth it.
    async fn flush(&mut self) -> Result<(), BooksError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let statements = std::mem::take(&mut self.pending);
        fault::point(fault::PAIR_PAGE_JUDGED);
        let kept = self.books.ledger().keep_each(statements.clone()).await?;
        fault::point(fault::PAIR_PAGE_KEPT);
        for (statement, kept) in statements.into_iter().zip(kept) {
            let ours = statement.signer() == self.books.me();
            match kept {
                Kept::New | Kept::Known if !ours => {
                    self.books.account.state().outbox.answered(&statement);
                    self.taken.stepped |= statement.lane().is_none();
                }
                Kept::New => self.taken.forgot = true,
                Kept::Conflict(proof) => self.books.accounts.hear(*proof).await?,
                Kept::Known | Kept::Worthless(_) | Kept::Retired => {}
            }
        }
        Ok(())
    }
}

fn verified<T: Signable>(signed: Signed<T>) -> Option<Verified<T>> {
    signed.verify().ok()
}

/// The receipt for a voucher that comes outside of its job. `last` is the lane's last voucher that is
/// held, `meter` our meter of the voucher's number. Vouchers between may be lost on both sides (they are
/// cumulative, and a ledger that was made smaller keeps only the newest): then the link to the one before
/// cannot be checked, and need not be.
pub(super) fn receipt_for(
    contract: &Verified<Contract>,
    last: Option<&Verified<Voucher>>,
    meter: Option<&Verified<Meter>>,
    voucher: &Verified<Voucher>,
) -> Result<Receipt, VoucherRefused> {
    let refused = match ProviderLane::resumed(contract, last, meter).accept(voucher) {
        Ok(receipt) => return Ok(receipt),
        Err(refused) => refused,
    };
    let (body, held) = (voucher.body(), last.map_or(0, |last| last.body().k));
    let Some(meter) = meter.filter(|meter| meter.body().k == body.k && body.k > held.saturating_add(1))
    else {
        return Err(refused);
    };
    let pays = body.lane == contract.body().lane
        && body.meter == meter.digest()
        && body.usage == meter.body().usage
        && body.amount == body.usage.amount(&contract.body().terms);
    let Voucher { lane, k, amount, .. } = *body;
    if pays { Ok(Receipt { lane, k, amount, voucher: voucher.digest() }) } else { Err(refused) }
}
