//! A simulated node between jobs: catching up with a peer, balances, payments, proofs.
//!
//! Owns: the conversation on the pair protocol, from both ends. Never: signs anything that
//! [`potluck_protocol::pair`] does not hand out. Called by the node.

use std::collections::VecDeque;

use potluck_protocol::balance::Settle;
use potluck_protocol::id::{LaneId, PeerId};
use potluck_protocol::limits::MAX_SYNC_OBJECTS;
use potluck_protocol::pair::{Consent, StateRefused, Verdict};
use potluck_protocol::statement::Statement;
use potluck_protocol::sync::{LaneHead, compare};
use potluck_protocol::unit::{NanoCredit, UnixMillis};
use potluck_protocol::wire::{self, PairRequest, PairResponse};

use super::lie::{Lie, other_state};
use super::message::{Effect, Message, Timer};
use super::node::{Node, Step};
use super::store::Kept;

/// An answer that is not here by then is asked for again.
const ANSWER_WITHIN_MS: u64 = 2_000;
/// Attempts at one question before a sync is given up until the next occasion.
const ATTEMPTS: u32 = 8;
/// Pushes whose answers are waited for.
const PUSHED: usize = 256;
/// Rounds of one sync.
const ROUNDS: u32 = 4;

/// A sync that this node drives.
#[derive(Debug)]
pub(super) struct Session {
    queue: VecDeque<PairRequest>,
    awaited: u64,
    attempts: u32,
    rounds: u32,
    /// The other side showed what we signed and no longer had.
    forgot: bool,
}

impl Node {
    /// Sends a question of its own; the answer is taken in when it comes.
    pub(super) fn ask(&mut self, peer: PeerId, request: &PairRequest, step: &mut Step<'_>) -> u64 {
        self.questions += 1;
        if let Ok(bytes) = wire::encode(request) {
            step.out.push(Effect::Send(peer, Message::Ask(self.questions, bytes)));
        }
        self.questions
    }

    /// Begins to compare ledgers with `peer`, if that is due and not under way.
    pub(super) fn begin_sync_if_needed(&mut self, peer: PeerId, step: &mut Step<'_>) {
        let link = self.store.book(peer).map(|book| book.may_sign());
        if matches!(link, Some(Err(potluck_protocol::pair::NotNow::SyncNeeded))) {
            self.begin_sync(peer, step);
        }
    }

    /// Begins to compare ledgers with `peer`, if that is not under way.
    pub(super) fn begin_sync(&mut self, peer: PeerId, step: &mut Step<'_>) {
        if self.sessions.contains_key(&peer) || self.store.book_mut(peer).is_none() {
            return;
        }
        let Some(heads) = self.store.heads_digest(peer) else { return };
        let queue = VecDeque::from([PairRequest::Same { heads }]);
        let session = Session { queue, awaited: 0, attempts: 0, rounds: 0, forgot: false };
        self.sessions.insert(peer, session);
        self.put_question(peer, step);
    }

    /// Asks what stands first in the queue.
    fn put_question(&mut self, peer: PeerId, step: &mut Step<'_>) {
        let Some(request) = self.sessions.get(&peer).and_then(|session| session.queue.front().cloned())
        else {
            return;
        };
        let id = self.ask(peer, &request, step);
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.awaited = id;
        }
        step.out.push(Effect::Wake(ANSWER_WITHIN_MS, Timer::Question(peer, id)));
    }

    pub(super) fn question_unanswered(&mut self, peer: PeerId, id: u64, step: &mut Step<'_>) {
        let Some(session) = self.sessions.get_mut(&peer).filter(|session| session.awaited == id) else {
            return;
        };
        session.attempts += 1;
        if session.attempts >= ATTEMPTS {
            self.sessions.remove(&peer);
        } else {
            self.put_question(peer, step);
        }
    }

    /// Takes an answer.
    pub(super) fn on_answer(&mut self, from: PeerId, id: u64, response: PairResponse, step: &mut Step<'_>) {
        let awaited = self.sessions.get(&from).is_some_and(|session| session.awaited == id);
        if !awaited {
            // To something outside of a sync: what was pushed.
            if let PairResponse::Statements { statements, .. } = response {
                if let Some(slots) = self.pushed.remove(&id) {
                    self.outboxes.entry(from).or_default().delivered(&slots);
                }
                self.take(from, &statements, step);
            }
            return;
        }
        let Some(session) = self.sessions.get_mut(&from) else { return };
        let asked = session.queue.pop_front();
        session.attempts = 0;
        match (asked, response) {
            (Some(PairRequest::Same { .. }), PairResponse::Same { heads }) => {
                if self.store.heads_digest(from) == Some(heads) {
                    self.sessions.remove(&from);
                    self.now_synced(from, step);
                    return;
                }
                if session.rounds >= ROUNDS {
                    self.sessions.remove(&from);
                    return;
                }
                session.rounds += 1;
                session.queue.push_back(PairRequest::Steps);
            }
            (Some(PairRequest::Steps), PairResponse::Statements { statements, .. }) => {
                self.adopt(from, &statements, step);
                let ours = self.store.book(from).map(|book| book.statements()).unwrap_or_default();
                self.queue(from, [PairRequest::Push(ours)]);
                self.queue_heads(from, None);
            }
            (Some(PairRequest::Heads(ours)), PairResponse::Heads(theirs)) => {
                let Some(pair) = self.store.book(from).map(|book| book.pair()) else { return };
                let difference = compare(pair, &ours, &theirs);
                self.queue(
                    from,
                    difference.fetch.chunks(MAX_SYNC_OBJECTS).map(|lanes| PairRequest::Fetch(lanes.to_vec())),
                );
                self.queue_pushes(from, &difference.push);
                match difference.next {
                    Some(next) => self.queue_heads(from, Some(next)),
                    None => self.queue_last(from),
                }
            }
            (Some(PairRequest::Fetch(lanes)), PairResponse::Statements { statements, more }) => {
                self.adopt(from, &statements, step);
                if more {
                    let held = |head: &LaneHead| {
                        self.store.lane(&head.lane).map_or(LaneHead::nothing(head.lane), |record| record.head)
                    };
                    let again = PairRequest::Fetch(lanes.iter().map(held).collect());
                    if let Some(session) = self.sessions.get_mut(&from) {
                        session.queue.push_front(again);
                    }
                }
            }
            (Some(PairRequest::Push(_)), PairResponse::Statements { statements, .. }) => {
                self.take(from, &statements, step);
            }
            (Some(PairRequest::Same { .. }), _) | (None, _) => {}
            _ => {
                self.sessions.remove(&from);
                return;
            }
        }
        self.refresh_last(from, step);
        self.put_question(from, step);
    }

    fn queue(&mut self, peer: PeerId, requests: impl IntoIterator<Item = PairRequest>) {
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.queue.extend(requests);
        }
    }

    fn queue_heads(&mut self, peer: PeerId, after: Option<LaneId>) {
        if let Some(heads) = self.store.heads(peer, after) {
            self.queue(peer, [PairRequest::Heads(Box::new(heads))]);
        }
    }

    fn queue_pushes(&mut self, peer: PeerId, lanes: &[LaneHead]) {
        let mut heads = lanes.to_vec();
        loop {
            let (page, more) = self.store.beyond(peer, &heads);
            for statement in &page {
                if let Some(head) = heads.iter_mut().find(|head| Some(head.lane) == statement.lane())
                    && let Ok(proven) = statement.verify()
                {
                    head.hold(statement, &proven);
                }
            }
            if !page.is_empty() {
                self.queue(peer, [PairRequest::Push(page)]);
            }
            if !more {
                return;
            }
        }
    }

    fn queue_last(&mut self, peer: PeerId) {
        if let Some(heads) = self.store.heads_digest(peer) {
            self.queue(peer, [PairRequest::Same { heads }]);
        }
    }

    /// Before the closing question: raises the epoch if need be, and brings the digest up to date.
    fn refresh_last(&mut self, peer: PeerId, step: &mut Step<'_>) {
        let Some(session) = self.sessions.get_mut(&peer) else { return };
        if !matches!(session.queue.front(), Some(PairRequest::Same { .. })) {
            return;
        }
        if std::mem::take(&mut session.forgot)
            && let Some(raise) = self.store.book(peer).and_then(|book| book.raise())
            && let Some(raise) = self.sign(raise)
        {
            let raise = Statement::from(raise.into_signed());
            if self.keep_and_queue(peer, &raise, step)
                && let Some(session) = self.sessions.get_mut(&peer)
            {
                session.queue.push_front(PairRequest::Push(vec![raise]));
                return;
            }
        }
        let heads = self.store.heads_digest(peer);
        if let Some(session) = self.sessions.get_mut(&peer)
            && let Some(heads) = heads
        {
            session.queue.clear();
            session.queue.push_back(PairRequest::Same { heads });
        }
    }

    /// Takes statements in a sync, and notes whether one of them is ours and was forgotten.
    fn adopt(&mut self, peer: PeerId, statements: &[Statement], step: &mut Step<'_>) {
        let (_, forgot) = self.take(peer, statements, step);
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.forgot |= forgot;
        }
    }

    /// Takes statements in, each by its own law. Gives what they call for in answer, and whether any was
    /// ours and no longer held.
    fn take(
        &mut self,
        peer: PeerId,
        statements: &[Statement],
        step: &mut Step<'_>,
    ) -> (Vec<Statement>, bool) {
        let (mut answers, mut forgot) = (Vec::new(), false);
        for statement in statements {
            let between_us = statement.pair().is_some_and(|pair| pair.other(self.peer()) == Some(peer));
            let known = self.store.holds(statement);
            if !between_us || (!known && statement.verify().is_err()) {
                continue;
            }
            if statement.signer() == self.peer() {
                forgot |= matches!(self.store.keep(statement, step.wall()), Kept::New);
                continue;
            }
            match statement {
                Statement::Voucher(voucher) => {
                    answers.extend(self.on_voucher(voucher.as_ref().clone(), step))
                }
                Statement::Receipt(_) => self.on_receipt(peer, statement.clone(), step),
                Statement::State(_) => {
                    self.note_gap(peer, statement);
                    if self.keep_theirs(statement, step) {
                        answers.extend(self.judge_open(peer, step));
                    }
                }
                _ => {
                    if self.keep_theirs(statement, step) {
                        self.outboxes.entry(peer).or_default().answered(statement);
                    }
                }
            }
        }
        (answers, forgot)
    }

    /// A state that does not follow what we have: somebody is behind.
    fn note_gap(&mut self, peer: PeerId, statement: &Statement) {
        let (Statement::State(state), Some(book)) = (statement, self.store.book_mut(peer)) else { return };
        if state.body.n > book.used().saturating_add(1) || state.body.previous != book.head().digest {
            book.parted();
        }
    }

    /// Answers to the other side's open state, when the two may deal.
    fn judge_open(&mut self, peer: PeerId, step: &mut Step<'_>) -> Option<Statement> {
        if self.lies(Lie::Refuse) {
            return None;
        }
        let book = self.store.book(peer)?;
        let state = book.open().iter().find(|open| open.body().by == peer)?.clone();
        let fold = self.store.fold(book.pair(), peer, state.body().floor)?;
        let oldest = self.store.oldest_open(peer, step.wall());
        let settle = state.body().settle.clone();
        let consent = match &settle {
            None => Consent::Unasked,
            // The owner looks at the bank now and then.
            Some(_) if step.rng.chance(300) => Consent::Unasked,
            Some(settle) if step.commons.bank.contains(&settle.reference) => Consent::Given,
            Some(_) => Consent::Denied,
        };
        let answer = match book.judge(&state, &fold, oldest, step.wall(), consent) {
            Ok(Verdict::Countersign(body)) => Statement::from(self.sign(body)?.into_signed()),
            Ok(Verdict::Cancel(body)) => Statement::from(self.sign(body)?.into_signed()),
            Ok(Verdict::Clash | Verdict::AskOwner(_))
            | Err(StateRefused::NotNow(_) | StateRefused::NotTheirs | StateRefused::WrongEpoch { .. }) => {
                return None;
            }
            Err(StateRefused::Gap { .. }) => {
                self.store.book_mut(peer)?.parted();
                return None;
            }
        };
        self.keep_and_queue(peer, &answer, step).then_some(answer)
    }

    /// Both sides hold the same: what waited for that goes on.
    fn now_synced(&mut self, peer: PeerId, step: &mut Step<'_>) {
        if let Some(book) = self.store.book_mut(peer) {
            book.synced();
        }
        self.outboxes.entry(peer).or_default().synced();
        if let Some(answer) = self.judge_open(peer, step) {
            self.ask(peer, &PairRequest::Push(vec![answer]), step);
        }
        self.try_rent(peer, step);
    }

    /// Answers a question of the other side.
    pub(super) fn on_ask(&mut self, from: PeerId, id: u64, request: PairRequest, step: &mut Step<'_>) {
        if self.store.book_mut(from).is_none() {
            return;
        }
        let response = match request {
            PairRequest::Same { heads } => {
                let Some(ours) = self.store.heads_digest(from) else { return };
                if ours == heads {
                    self.now_synced(from, step);
                }
                PairResponse::Same { heads: ours }
            }
            PairRequest::Heads(theirs) => match self.store.heads(from, theirs.after) {
                Some(heads) => PairResponse::Heads(Box::new(heads)),
                None => return,
            },
            PairRequest::Steps => {
                let statements = self.store.book(from).map(|book| book.statements()).unwrap_or_default();
                PairResponse::Statements { statements, more: false }
            }
            PairRequest::Fetch(lanes) => {
                let (statements, more) = self.store.beyond(from, &lanes);
                PairResponse::Statements { statements, more }
            }
            PairRequest::Push(statements) => {
                let (answers, forgot) = self.take(from, &statements, step);
                if forgot {
                    self.raise_now(from, step);
                }
                PairResponse::Statements { statements: answers, more: false }
            }
            PairRequest::Proof(proof) => {
                self.hear_proof(*proof, step);
                PairResponse::Noted
            }
        };
        if let Ok(bytes) = wire::encode(&response) {
            step.out.push(Effect::Send(from, Message::Answer(id, bytes)));
        }
    }

    /// The other side drives the sync and showed us that our ledger is an old one.
    fn raise_now(&mut self, peer: PeerId, step: &mut Step<'_>) {
        if let Some(book) = self.store.book_mut(peer) {
            book.parted();
        }
        let raise = self.store.book(peer).and_then(|book| book.raise());
        if let Some(raise) = raise.and_then(|raise| self.sign(raise)) {
            self.keep_and_queue(peer, &raise.into_signed().into(), step);
        }
    }

    /// Sends what has no answer yet, again.
    pub(super) fn send_outbox(&mut self, peer: PeerId, step: &mut Step<'_>) {
        let Some(outbox) = self.outboxes.get_mut(&peer) else { return };
        let due = outbox.due(step.monotonic());
        let next = outbox.next_due();
        let statements: Vec<_> = due.iter().filter_map(|slot| self.store.in_slot(slot).cloned()).collect();
        if !statements.is_empty() {
            let id = self.ask(peer, &PairRequest::Push(statements), step);
            self.pushed.insert(id, due);
            if self.pushed.len() > PUSHED {
                self.pushed.pop_first();
            }
            if let Some(next) = next {
                let wait =
                    u64::try_from(next.saturating_sub(step.monotonic()).as_millis()).unwrap_or(u64::MAX);
                step.out.push(Effect::Wake(wait.max(1), Timer::Outbox(peer)));
            }
        }
    }

    /// Proposes a balance to `peer`; whoever owes pays its debt outside at times.
    pub(super) fn propose_balance(&mut self, peer: PeerId, step: &mut Step<'_>) {
        let owed = self.store.balance_with(peer);
        let (Some(book), wall) = (self.store.book(peer), step.wall()) else { return };
        if book.may_sign().is_err() {
            self.begin_sync_if_needed(peer, step);
            return;
        }
        let oldest = self.store.oldest_open(peer, wall);
        let safe = book.safe_floor(wall, oldest);
        let Some(fold) = self.store.fold(book.pair(), peer, safe) else { return };
        let settle = if step.rng.chance(500) { self.payment(owed, step) } else { None };
        let Some(book) = self.store.book(peer) else { return };
        let Ok(state) = book.propose(&fold, settle, safe) else { return };
        let other = (self.lies(Lie::Equivocate) && step.rng.chance(500)).then(|| other_state(&state));
        let Some(state) = self.sign(state) else { return };
        let state = Statement::from(state.into_signed());
        if self.keep_and_queue(peer, &state, step) {
            self.ask(peer, &PairRequest::Push(vec![state]), step);
        }
        if let Some(other) = other.and_then(|other| self.sign(other)) {
            self.ask(peer, &PairRequest::Push(vec![other.into_signed().into()]), step);
        }
    }

    /// Pays outside what we owe. A liar says so and does not pay.
    fn payment(&self, owed: i128, step: &mut Step<'_>) -> Option<Settle> {
        let amount = u64::try_from(-owed).ok().filter(|amount| *amount > 0)?;
        let reference = format!("transfer {}", step.rng.next());
        if !self.lies(Lie::Overclaim) {
            step.commons.bank.insert(reference.clone());
        }
        Some(Settle { payer: self.peer(), amount: NanoCredit::new(amount), reference })
    }

    /// Lanes that may still come to cost more.
    #[must_use]
    pub fn open_lanes(&self, now: UnixMillis) -> usize {
        self.store
            .lanes()
            .filter(|(_, record)| record.head.accept && record.facts().state(now).is_open())
            .count()
    }
}
