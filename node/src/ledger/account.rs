//! The account with one peer as the index keeps it: sums, and the statements that make its book.
//!
//! Owns: [`Account`], what lanes add to it, and how balance statements become a [`PairBook`] and are
//! kept again. Never: reads a file, or decides whether anything may be signed (the law of the pair
//! does). Called by the index.
//!
//! ```text
//! what the peer owes us = the agreed state's balance + the last voucher of each lane from its floor on
//! ```

use potluck_protocol::balance::{Countersign, PairState, Settle};
use potluck_protocol::id::PeerId;
use potluck_protocol::pair::PairBook;
use potluck_protocol::sign::Signed;
use potluck_protocol::statement::Statement;
use potluck_protocol::unit::{NanoCredit, UnixMillis};
use serde::{Deserialize, Serialize};

use super::record::Record;

/// What lanes add up to, in nano-credits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    /// By lanes in which we work.
    pub(super) owed_to_us: i128,
    /// By lanes in which we pay.
    pub(super) we_owe: i128,
    /// How many there are.
    pub(super) lanes: i64,
    /// How many of them nobody ended.
    pub(super) open: i64,
}

impl Part {
    /// With one lane's part exchanged for another.
    pub(super) fn exchange(self, before: Self, after: Self) -> Self {
        Self {
            owed_to_us: self.owed_to_us + after.owed_to_us - before.owed_to_us,
            we_owe: self.we_owe + after.we_owe - before.we_owe,
            lanes: self.lanes + after.lanes - before.lanes,
            open: self.open + after.open - before.open,
        }
    }

    /// With one more lane's part.
    pub(super) fn and(self, part: Self) -> Self {
        self.exchange(Self::default(), part)
    }
}

/// The account with one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    /// What the peer owes us by the last agreed state, in nano-credits.
    pub(super) agreed: i128,
    /// That state's floor: lanes before it are in its balance.
    pub(super) floor: UnixMillis,
    /// All lanes; money only of those from the floor on.
    pub(super) part: Part,
    /// Outside payments of the peer to us in agreed states.
    pub(super) settled: NanoCredit,
    /// Statements of which its book is made.
    pub(super) book: u32,
    /// Balances that were proposed and not agreed.
    pub(super) proposed: u32,
}

impl Account {
    /// What the peer owes us, without what we owe it for lanes.
    pub(super) fn owed_to_us(&self) -> i128 {
        self.part.owed_to_us.saturating_add(self.agreed.max(0))
    }

    /// What we owe the peer, without what it owes us for lanes.
    pub(super) fn we_owe(&self) -> i128 {
        self.part.we_owe.saturating_sub(self.agreed.min(0))
    }

    /// Above zero when the peer owes us.
    pub(super) fn balance(&self) -> i128 {
        self.owed_to_us().saturating_sub(self.we_owe())
    }

    /// Takes over the head of `book`, and the payment of the state that became it.
    pub(super) fn agree(&mut self, book: &PairBook, settle: Option<&Settle>, me: PeerId) {
        let (pair, head) = (book.pair(), book.head());
        self.agreed = pair.owed_to(me, head.balance);
        self.floor = head.floor;
        if let Some(settle) = settle.filter(|settle| settle.payer != me) {
            self.settled = self.settled.saturating_add(settle.amount);
        }
    }
}

/// The book with `peer` that `statements` make, which come from [`statements_of`].
pub(super) fn book_of(me: PeerId, peer: PeerId, statements: &[Statement]) -> Option<PairBook> {
    let mut book = PairBook::new(me, peer)?;
    let mut agreed = None;
    for statement in statements {
        match statement {
            Statement::State(it) if agreed.is_none() => agreed = Some(it.as_ref()),
            Statement::Countersign(it) => {
                let state = agreed.filter(|state| state.body.n == it.body.n);
                _ = state.is_some_and(|state| note_agreed(&mut book, state, it));
            }
            _ => {}
        }
        note(&mut book, &Record::from(statement.clone()));
    }
    Some(book)
}

/// The statements that make the same book again: the agreed state, its countersignature, both epochs, the
/// last cancel while it counts, and what is open. In the order in which they are taken in.
pub(super) fn statements_of(book: &PairBook) -> Vec<Statement> {
    let mut all = book.statements();
    if matches!(all.last(), Some(Statement::Cancel(_)))
        && let Some(cancel) = all.pop()
        && matches!(&cancel, Statement::Cancel(it) if it.body.n > book.head().n)
    {
        // A state that stands beside a cancel counts after it.
        all.insert(all.len().saturating_sub(book.open().len()), cancel);
    }
    all
}

/// Takes a balance statement of a book's pair in; a countersignature needs [`note_agreed`].
pub(super) fn note(book: &mut PairBook, record: &Record) {
    match record {
        Record::State(it) => {
            if let Ok(state) = it.clone().verify() {
                book.note_state(&state);
            }
        }
        Record::Cancel(it) => {
            if let Ok(cancel) = it.clone().verify() {
                book.note_cancel(&cancel);
            }
        }
        Record::Raise(it) => {
            if let Ok(raise) = it.clone().verify() {
                book.note_raise(&raise);
            }
        }
        _ => {}
    }
}

/// Takes a countersignature in; says whether its state became the head.
pub(super) fn note_agreed(
    book: &mut PairBook,
    state: &Signed<PairState>,
    countersign: &Signed<Countersign>,
) -> bool {
    match (state.clone().verify(), countersign.clone().verify()) {
        (Ok(state), Ok(countersign)) => book.note_agreed(&state, &countersign),
        _ => false,
    }
}
