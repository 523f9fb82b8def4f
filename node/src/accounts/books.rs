//! The books of one pair, held by one task at a time: what both sides compare, and what we sign.
//!
//! Owns: [`Books`], the order "sign, make durable, queue" and what is signed between jobs (answers to
//! balances, new balances, epochs, ends of lanes). Never: talks to the peer, or signs what a law of the
//! protocol does not hand out. Called by sessions, answers, settlements and tidying.

use potluck_protocol::balance::{PairId, Settle};
use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::job::FinishReason;
use potluck_protocol::life::{LastWord, abandon};
use potluck_protocol::limits::{MAX_SYNC_LANES, MAX_SYNC_OBJECTS};
use potluck_protocol::output::OutputChain;
use potluck_protocol::pair::{Consent, PairBook, ProposeRefused, StateRefused, Verdict};
use potluck_protocol::settle::{Close, CloseReason};
use potluck_protocol::sign::{Signable, Signed, Verified};
use potluck_protocol::statement::{Place, Slot, Statement};
use potluck_protocol::sync::{Heads, HeadsDigest, LaneHead, StepHead};
use tokio::sync::MutexGuard;

use super::account::Account;
use super::error::BooksError;
use super::wishes::Step;
use super::{Accounts, wall_now};
use crate::fault;
use crate::ledger::{AppendError, Ledger, VerifiedRecord};

/// Lanes that one tidying ends; the next goes on from there.
const ENDS_AT_ONCE: usize = 1_024;
/// Lanes that have ended and are not in the balance: from here on a new balance is proposed, so that
/// comparing stays cheap.
const FOLD_FROM: u32 = 256;

/// The books of one pair. While one task holds them, no other takes in, judges or signs for that pair;
/// running jobs keep their own meters and vouchers beside.
pub(super) struct Books<'a> {
    pub(super) accounts: &'a Accounts,
    pub(super) account: &'a Account,
    pub(super) _alone: MutexGuard<'a, ()>,
}

impl Books<'_> {
    pub(super) fn ledger(&self) -> &Ledger {
        &self.accounts.inner.ledger
    }

    pub(super) fn me(&self) -> PeerId {
        self.accounts.me()
    }

    pub(super) fn peer(&self) -> PeerId {
        self.account.peer
    }

    pub(super) fn pair(&self) -> PairId {
        self.account.fresh.pair()
    }

    /// The pair's book as it is now.
    pub(super) fn book(&self) -> Result<PairBook, BooksError> {
        Ok(self.accounts.book(self.account)?)
    }

    /// All that we hold with the peer, in one digest.
    pub(super) fn digest(&self) -> Result<Digest, BooksError> {
        let mut digest = HeadsDigest::new(&StepHead::of(&self.book()?))?;
        self.ledger().each_head(self.peer(), &mut |head| digest.add(head))?;
        Ok(digest.get())
    }

    /// One page of what we hold with the peer.
    pub(super) fn heads(&self, after: Option<LaneId>) -> Result<Heads, BooksError> {
        let step = StepHead::of(&self.book()?);
        let (lanes, more) = self.ledger().heads(self.peer(), after, MAX_SYNC_LANES)?;
        Ok(Heads { step, after, lanes, whole: !more })
    }

    /// One page of what we hold beyond `heads`, and whether more follows.
    pub(super) fn beyond(&self, heads: &[LaneHead]) -> Result<(Vec<Statement>, bool), BooksError> {
        Ok(self.ledger().beyond(self.peer(), heads, MAX_SYNC_OBJECTS)?)
    }

    /// What `signer` said about `place`, if we hold it.
    pub(super) fn held(&self, signer: PeerId, place: Place) -> Result<Option<Statement>, BooksError> {
        Ok(self.ledger().statement(&Slot { signer, place })?)
    }

    /// Signs `body`, makes it durable and leaves it to the outbox. `None` when its slot is filled with
    /// something else, or its lane was put away: then it must never leave.
    pub(super) async fn sign<T>(&self, body: T) -> Result<Option<Statement>, BooksError>
    where
        T: Signable + Clone,
        VerifiedRecord: From<Verified<T>>,
        Statement: From<Signed<T>>,
    {
        let signed = self.accounts.inner.key.sign(body)?;
        fault::point(fault::PAIR_WORD_SIGNED);
        // Should nobody wait for the end of this, the outbox is filled from the ledger once more.
        let before = self.account.posting();
        let statement = Statement::from(signed.signed().clone());
        match self.ledger().append_verified(vec![signed.into()]).await {
            Ok(()) => fault::point(fault::PAIR_WORD_KEPT),
            Err(error @ (AppendError::SlotTaken { .. } | AppendError::Retired { .. })) => {
                tracing::debug!(peer = %self.peer(), %error, "nothing more is signed there");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
        self.account.posted(&statement, self.accounts.now(), before);
        self.accounts.inner.posted.notify_one();
        Ok(Some(statement))
    }

    /// Begins a new epoch: our ledger had forgotten what we signed. The two must compare again.
    pub(super) async fn raise(&self) -> Result<Option<Statement>, BooksError> {
        self.account.parted();
        let Some(raise) = self.book()?.raise() else { return Ok(None) };
        tracing::warn!(
            peer = %self.peer(), epoch = raise.epoch,
            "the peer showed statements that this node signed and no longer had: a new epoch begins"
        );
        self.sign(raise).await
    }

    /// Answers the balance that the peer proposes, if there is one and it may be answered now.
    pub(super) async fn judge_open(&self) -> Result<Option<Statement>, BooksError> {
        let (book, peer, now) = (self.book()?, self.peer(), wall_now());
        let Some(state) = book.open().iter().find(|open| open.body().by == peer).cloned() else {
            return Ok(None);
        };
        let body = state.body();
        let step = Step { epoch: body.epoch, n: body.n };
        let fold = self.ledger().fold(peer, body.floor)?;
        let oldest = self.ledger().oldest_open(peer, now)?;
        let wishes = &self.accounts.inner.wishes;
        let consent = body
            .settle
            .as_ref()
            .map_or(Consent::Unasked, |payment| wishes.look(|wishes| wishes.consent(peer, payment, step)));
        let verdict = book.judge(&state, &fold, oldest, now, consent);
        if let (Some(payment), Ok(Verdict::Countersign(_) | Verdict::Cancel(_))) = (&body.settle, &verdict) {
            wishes.change(|wishes| wishes.begin(peer, payment, step))?;
        }
        match verdict {
            Ok(Verdict::Countersign(answer)) => self.sign(answer).await,
            Ok(Verdict::Cancel(answer)) => {
                tracing::warn!(%peer, reason = ?answer.reason, "a balance was refused");
                self.sign(answer).await
            }
            Ok(Verdict::Clash | Verdict::AskOwner(_)) => Ok(None),
            Err(refused) => {
                tracing::debug!(%peer, %refused, "a balance cannot be judged now");
                if matches!(refused, StateRefused::Gap { .. }) {
                    self.account.parted();
                }
                Ok(None)
            }
        }
    }

    /// Proposes a balance that takes in `payment`; `None` when that cannot be done now.
    pub(super) async fn propose(&self, payment: Option<Settle>) -> Result<Option<Statement>, BooksError> {
        let (book, peer, now) = (self.book()?, self.peer(), wall_now());
        let safe = book.safe_floor(now, self.ledger().oldest_open(peer, now)?);
        let fold = self.ledger().fold(peer, safe)?;
        if payment.is_none() && fold.count() < FOLD_FROM {
            return Ok(None);
        }
        let state = match book.propose(&fold, payment, safe) {
            Ok(state) => state,
            Err(refused @ (ProposeRefused::NotNow(_) | ProposeRefused::StepOpen { .. })) => {
                tracing::debug!(%peer, %refused, "no balance is proposed now");
                return Ok(None);
            }
            Err(refused) => {
                tracing::warn!(%peer, %refused, "no balance can be proposed");
                return Ok(None);
            }
        };
        if let Some(payment) = &state.settle {
            let step = Step { epoch: state.epoch, n: state.n };
            self.accounts.inner.wishes.change(|wishes| wishes.begin(peer, payment, step))?;
        }
        self.sign(state).await
    }

    /// Ends the lanes that this process knows nothing of any more. Only once the two are synced: until
    /// then vouchers may be on their way.
    pub(super) async fn close_left_open(&self) -> Result<Vec<Statement>, BooksError> {
        if self.book()?.may_sign().is_err() {
            return Ok(Vec::new());
        }
        let mut ends = Vec::new();
        for lane in self.ledger().open_lanes(Some(self.peer()))? {
            if ends.len() == ENDS_AT_ONCE {
                break;
            }
            if self.accounts.is_live(&lane) {
                continue;
            }
            if let Some(close) = self.close_of(lane)? {
                ends.extend(self.sign(close).await?);
            }
        }
        Ok(ends)
    }

    /// Our close of a lane that ended without one.
    fn close_of(&self, lane: LaneId) -> Result<Option<Close>, BooksError> {
        let Some(last) = self.ledger().last_word(&lane)? else { return Ok(None) };
        let now = wall_now();
        let before_us = self
            .ledger()
            .lane_facts(&lane)?
            .is_some_and(|facts| facts.last_activity < self.accounts.inner.began_wall);
        // A provider that began anew since is the one that failed.
        let failed = lane.provider == self.me() && before_us;
        let reason = if failed { CloseReason::ProviderFailed } else { CloseReason::PeerLost };
        let (completion_tokens, result) = match self.held(lane.provider, Place::Meter(lane, last.k))? {
            Some(Statement::Meter(meter)) => (meter.body.tokens, meter.body.commitment),
            _ => (0, OutputChain::new(last.digest).head()),
        };
        let LastWord { k, amount, .. } = last;
        let (by, finish) = (self.me(), FinishReason::Cancelled);
        Ok(Some(Close {
            lane,
            by,
            k,
            amount,
            reason,
            finish,
            prompt_tokens: 0,
            completion_tokens,
            result,
            at: now,
        }))
    }

    /// Gives up the lanes among `lanes` in which nothing happened for a day.
    pub(super) async fn abandon(&self, lanes: &[LaneId]) -> Result<(), BooksError> {
        for lane in lanes.iter().filter(|lane| !self.accounts.is_live(lane)).take(ENDS_AT_ONCE) {
            let facts = self.ledger().lane_facts(lane)?;
            let (Some(facts), Some(last)) = (facts, self.ledger().last_word(lane)?) else { continue };
            if let Some(body) = abandon(*lane, self.me(), &facts, last, wall_now()) {
                self.sign(body).await?;
            }
        }
        Ok(())
    }
}
