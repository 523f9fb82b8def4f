//! Getting outside payments agreed: what the owner says becomes a step that both sign.
//!
//! Owns: the way of a wish from the owner's word to its end, and the list of what waits. Never: believes
//! that a payment to us arrived unless our owner says so (being credited harms nobody, so that needs no
//! word). Called by the programs' `ledger settle`, and after each sync and each answer.
//!
//! ```text
//! wish ─▶ noted ──synced──▶ the other side's proposal of it: countersign (or, denied, cancel)
//!                  └ none ─▶ proposed by us ─▶ agreed │ refused │ burned, and proposed again
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use potluck_protocol::balance::{CancelReason, PairId, Settle};
use potluck_protocol::id::PeerId;
use potluck_protocol::limits::MAX_REFERENCE_BYTES;
use potluck_protocol::pair::{Link, PairBook};
use potluck_protocol::statement::{Place, Statement};
use potluck_protocol::unit::NanoCredit;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::Accounts;
use super::account::Account;
use super::books::Books;
use super::error::{AccountsError, BooksError, SettleError, SyncError};
use super::wishes::{Fate, MAX_TRIES, SettleWish, Step, WishFile, Wishes, fate};
use crate::ledger::{Ledger, ReadError};
use crate::state::StateDir;

/// How long a settlement waits to meet the peer.
const MEET_WITHIN: Duration = Duration::from_secs(10);
/// How long it waits for the other owner on top, before it says that it waits.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Times that all wishes about one peer are gone through in one go: one that is decided frees the step for
/// the next.
const PASSES: u32 = 8;
/// Steps, newest first, that are looked at for a payment that was agreed before.
const AGREED_LOOKED_AT: usize = 1_024;
/// Decided settlements remembered until whoever asked for them has looked.
const REMEMBERED: usize = 64;

/// How far a settlement came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettleOutcome {
    /// Both have signed it: the balance has taken it in.
    Agreed,
    /// Our owner's word that it did not arrive is signed; the balance stays as it was.
    Denied,
    /// The other side refused it; the balance stays as it was.
    Refused {
        /// Why.
        reason: CancelReason,
    },
    /// It is proposed and durable, and waits for the other side's owner. Nothing more is to be done here.
    Proposed,
    /// It is noted, and will be proposed when the two next meet.
    Noted {
        /// Why not yet.
        why: String,
    },
}

/// Whom something waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// Our owner: the peer says that it paid us.
    OurOwner,
    /// The other side's answer to what we proposed.
    TheirAnswer,
    /// The next time that the two meet.
    Meeting,
}

/// Something that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// With whom.
    pub peer: PeerId,
    /// The outside payment in it; `None` for a balance of jobs alone.
    pub payment: Option<Settle>,
    /// For whom.
    pub waits_for: WaitsFor,
}

/// What waits for the owner or for the other side, from a ledger and its state folder alone: for the
/// ledger's tables, with no network.
///
/// # Errors
/// When the file of settlements or the ledger's index cannot be read.
pub fn waiting(ledger: &Ledger, me: PeerId, state: &StateDir) -> Result<Vec<Waiting>, AccountsError> {
    let wishes = WishFile::open(state.path())?;
    Ok(wishes.look(|wishes| waiting_in(ledger, me, wishes))?)
}

pub(super) fn waiting_in(ledger: &Ledger, me: PeerId, wishes: &Wishes) -> Result<Vec<Waiting>, ReadError> {
    let mut waiting = Vec::new();
    for peer in ledger.peers()? {
        let Some(book) = ledger.book(peer)? else { continue };
        for state in book.open() {
            let payment = state.body().settle.clone();
            let ours = state.body().by == me;
            let to_us = payment.as_ref().is_some_and(|payment| payment.payer == peer);
            // Where both proposed, the step is burned: it takes another one.
            let crossed = book.open().len() > 1;
            let waits_for = match (ours, to_us) {
                (true, _) if !crossed => WaitsFor::TheirAnswer,
                (false, true) if !crossed => WaitsFor::OurOwner,
                _ => WaitsFor::Meeting,
            };
            waiting.push(Waiting { peer, payment, waits_for });
        }
    }
    for held in wishes.all() {
        let (peer, payment) = (held.wish.peer, Some(held.wish.payment(me)));
        if !waiting.iter().any(|it| it.peer == peer && it.payment == payment) {
            waiting.push(Waiting { peer, payment, waits_for: WaitsFor::Meeting });
        }
    }
    Ok(waiting)
}

/// What was decided lately.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    decided: Mutex<VecDeque<(SettleWish, SettleOutcome)>>,
}

impl Outcomes {
    fn note(&self, wish: SettleWish, outcome: SettleOutcome) {
        let mut decided = self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        if decided.len() == REMEMBERED {
            decided.pop_front();
        }
        decided.push_back((wish, outcome));
    }

    /// What was decided about `wish`, if it was; forgotten then.
    fn take(&self, wish: &SettleWish) -> Option<SettleOutcome> {
        let mut decided = self.decided.lock().unwrap_or_else(PoisonError::into_inner);
        let at = decided.iter().position(|(held, _)| held == wish)?;
        decided.remove(at).map(|(_, outcome)| outcome)
    }
}

/// What is to be done next for a wish.
enum Move {
    /// Nothing now.
    Wait,
    /// Send this, and look again.
    Say(Statement),
    /// It is decided.
    Done(SettleOutcome),
}

impl Accounts {
    /// Takes the owner's word about an outside payment: it is noted durably, then carried out as far as
    /// that goes within about 15 seconds. The same word twice is the same payment: two payments need two
    /// references.
    ///
    /// # Errors
    /// When it is not even noted; see [`SettleError`]. That the peer cannot be met is no error.
    pub async fn settle(&self, wish: SettleWish) -> Result<SettleOutcome, SettleError> {
        let account = self.check_wish(&wish)?;
        if !wish.deny && self.books(&account).await.was_agreed(&wish.payment(self.me()))? {
            self.inner.wishes.change(|wishes| wishes.done(&wish))?;
            return Ok(SettleOutcome::Agreed);
        }
        self.inner.outcomes.take(&wish);
        self.inner.wishes.change(|wishes| wishes.add(wish.clone(), self.me()))??;
        if !account.state().synced
            && let Err(error) = self.sync(wish.peer, MEET_WITHIN).await
        {
            return match error {
                SyncError::Books(error) => Err(SettleError::Books(error)),
                error => Ok(SettleOutcome::Noted { why: error.to_string() }),
            };
        }
        let deadline = Instant::now() + ANSWER_WITHIN;
        let carried = timeout_at(deadline, self.carry_out(&account, &wish)).await;
        match carried {
            Ok(outcome) => outcome,
            Err(_) => Ok(self.how_far(&account, &wish).await?),
        }
    }

    fn check_wish(&self, wish: &SettleWish) -> Result<Arc<Account>, SettleError> {
        let (peer, len) = (wish.peer, wish.reference.len());
        if wish.amount == NanoCredit::ZERO {
            return Err(SettleError::NoAmount);
        }
        if len == 0 || len > MAX_REFERENCE_BYTES {
            return Err(SettleError::BadReference { len });
        }
        if wish.deny && wish.we_paid {
            return Err(SettleError::NotOursToDeny);
        }
        let account = self.account(peer).map_err(|error| match error {
            SyncError::Full { limit } => SettleError::Full { limit },
            _ => SettleError::Oneself,
        })?;
        let book = self.book(&account)?;
        if book.link() == Link::Frozen {
            return Err(SettleError::Frozen { peer });
        }
        if wish.deny && !is_proposed(&book, peer, &wish.payment(self.me())) {
            return Err(SettleError::NothingToDeny { peer });
        }
        Ok(account)
    }

    /// Goes on with a wish until it is decided.
    async fn carry_out(&self, account: &Account, wish: &SettleWish) -> Result<SettleOutcome, SettleError> {
        loop {
            let changed = account.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let _turn = account.turn.lock().await;
                match self.pursue(account).await {
                    Err(SyncError::Books(error)) => return Err(SettleError::Books(error)),
                    Err(error) => tracing::debug!(peer = %account.peer, %error, "a settlement waits"),
                    Ok(()) => {}
                }
            }
            if let Some(outcome) = self.inner.outcomes.take(wish) {
                return Ok(outcome);
            }
            changed.await;
        }
    }

    /// How far a wish is when the time is over: our answer to the peer's proposal is good once it is durable,
    /// also while the peer cannot be told.
    async fn how_far(&self, account: &Account, wish: &SettleWish) -> Result<SettleOutcome, BooksError> {
        if let Some(outcome) = self.inner.outcomes.take(wish) {
            return Ok(outcome);
        }
        let held = self.inner.wishes.look(|wishes| wishes.of(wish.peer));
        let step = held.iter().find(|held| held.wish == *wish).and_then(|held| held.step);
        let Some(step) = step else {
            let why = if account.state().synced {
                "another balance waits for an answer first"
            } else {
                "the two ledgers must be compared first"
            };
            return Ok(SettleOutcome::Noted { why: why.to_owned() });
        };
        Ok(match self.books(account).await.fate(&wish.payment(self.me()), step)? {
            Fate::Agreed => SettleOutcome::Agreed,
            Fate::Denied => SettleOutcome::Denied,
            Fate::Refused(reason) => SettleOutcome::Refused { reason },
            Fate::Waits | Fate::Void => SettleOutcome::Proposed,
        })
    }

    /// Goes on with the balance: proposes one that is due, and then every wish. The turn is held.
    pub(super) async fn go_on(&self, account: &Account) -> Result<(), SyncError> {
        let due = self.books(account).await.propose(None).await?;
        if let Some(state) = due {
            self.push(account, vec![state]).await?;
        }
        self.pursue(account).await
    }

    /// Goes on with every wish about the account's peer, as far as that goes now. The turn is held.
    pub(super) async fn pursue(&self, account: &Account) -> Result<(), SyncError> {
        for _ in 0..PASSES {
            let mut moved = false;
            for held in self.inner.wishes.look(|wishes| wishes.of(account.peer)) {
                moved |= self.pursue_one(account, held.wish).await?;
            }
            if !moved {
                break;
            }
        }
        Ok(())
    }

    /// Makes the next move for a wish; whether there was one.
    async fn pursue_one(&self, account: &Account, wish: SettleWish) -> Result<bool, SyncError> {
        let next = self.books(account).await.next_move(&wish).await?;
        match next {
            Move::Wait => return Ok(false),
            Move::Say(statement) => drop(self.push(account, vec![statement]).await?),
            Move::Done(outcome) => {
                tracing::info!(peer = %account.peer, reference = wish.reference, ?outcome, "settled");
                self.inner.wishes.change(|wishes| wishes.done(&wish)).map_err(BooksError::from)?;
                self.inner.outcomes.note(wish, outcome);
                account.changed.notify_waiters();
            }
        }
        Ok(true)
    }
}

/// Has `peer` proposed `payment`, and waits? Where both proposed, the step is burned and nobody waits.
fn is_proposed(book: &PairBook, peer: PeerId, payment: &Settle) -> bool {
    let [state] = book.open() else { return false };
    state.body().by == peer && state.body().settle.as_ref() == Some(payment)
}

impl Books<'_> {
    async fn next_move(&self, wish: &SettleWish) -> Result<Move, BooksError> {
        let (peer, payment, wishes) = (self.peer(), wish.payment(self.me()), &self.accounts.inner.wishes);
        let held = wishes.look(|wishes| wishes.of(peer)).into_iter().find(|held| held.wish == *wish);
        let Some(held) = held else { return Ok(Move::Wait) };
        if let Some(step) = held.step {
            match self.fate(&payment, step)? {
                Fate::Waits => return Ok(Move::Wait),
                Fate::Agreed => return Ok(Move::Done(SettleOutcome::Agreed)),
                Fate::Denied => return Ok(Move::Done(SettleOutcome::Denied)),
                Fate::Refused(reason) if reason == CancelReason::NotPaid || held.tries >= MAX_TRIES => {
                    return Ok(Move::Done(SettleOutcome::Refused { reason }));
                }
                Fate::Refused(_) | Fate::Void => wishes.change(|wishes| wishes.void(wish))?,
            }
        }
        let book = self.book()?;
        if !wish.deny && self.was_agreed(&payment)? {
            return Ok(Move::Done(SettleOutcome::Agreed));
        }
        let said = if is_proposed(&book, peer, &payment) {
            self.judge_open().await?
        } else if wish.deny {
            // What was to be denied stands no more.
            return Ok(Move::Done(SettleOutcome::Denied));
        } else {
            self.propose(Some(payment)).await?
        };
        Ok(said.map_or(Move::Wait, Move::Say))
    }

    /// Did an agreed balance take this payment in? Looks through the newest: the owner speaks seldom, and a
    /// payment must not count twice. How far it looks is bounded, for a peer may jump to any epoch.
    fn was_agreed(&self, payment: &Settle) -> Result<bool, BooksError> {
        let head = self.book()?.head();
        let epochs = || (0..=head.epoch).rev();
        let steps = (1..=head.n).rev().flat_map(|n| epochs().map(move |epoch| Step { epoch, n }));
        for step in steps.take(AGREED_LOOKED_AT) {
            if self.fate(payment, step)? == Fate::Agreed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn fate(&self, payment: &Settle, step: Step) -> Result<Fate, BooksError> {
        let pair: PairId = self.pair();
        let place = Place::Step(pair, step.epoch, step.n);
        let (ours, theirs) = (self.held(self.me(), place)?, self.held(self.peer(), place)?);
        Ok(fate(payment, step, self.book()?.epoch(), ours.as_ref(), theirs.as_ref()))
    }
}
