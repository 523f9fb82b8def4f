//! Comparing ledgers with a peer: the side that asks.
//!
//! Owns: one sync from the first question to "both hold the same", and every question that we ask on the
//! pair protocol. Never: holds the books while it waits for an answer, believes a head, or goes on past
//! its time. Called by [`super::Accounts::sync`], with the account's turn held.
//!
//! ```text
//! Same ──equal──▶ synced          one round trip when nothing was missed
//!   └─▶ Steps ▶ Push steps ▶ Heads, Fetch, Push page by page ▶ (Raise) ▶ Same …   four rounds at most
//! ```

use std::time::Duration;

use potluck_protocol::fault::RefusalCode;
use potluck_protocol::id::{LaneId, PeerId};
use potluck_protocol::limits::MAX_SYNC_OBJECTS;
use potluck_protocol::pair::Link;
use potluck_protocol::statement::{Slot, Statement};
use potluck_protocol::sync::{LaneHead, compare};
use potluck_protocol::wire::{self, PairRequest, PairResponse};
use tokio::time::{Instant, sleep, timeout_at};

use super::Accounts;
use super::account::Account;
use super::error::SyncError;
use super::take::Taken;
use crate::fault;
use crate::net::AskError;

/// One question waits so long for its answer.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Times that one question is asked before a sync is given up.
const ATTEMPTS: u32 = 8;
/// Times that the outbox asks: it comes again by itself.
pub(super) const ONCE: u32 = 1;
/// The wait before a question is asked again; it doubles with each attempt.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Rounds of one sync. What one round leaves (the edges of pages, an epoch) the next mends.
const ROUNDS: u32 = 4;

/// A sync that we drive.
struct Session<'a> {
    accounts: &'a Accounts,
    account: &'a Account,
    /// The peer showed what we signed and no longer had.
    forgot: bool,
}

impl Accounts {
    /// Brings our ledger and that of `peer` to the same, `within` that time, and does what waited for it:
    /// ends lanes that were left open, answers and proposes balances. Finds and dials the peer when
    /// needed. Always asks, also when the two were synced before: one round trip when nothing is missing.
    /// When it returns, contracts may be signed.
    ///
    /// # Errors
    /// See [`SyncError`]: nothing is lost by it.
    pub async fn sync(&self, peer: PeerId, within: Duration) -> Result<(), SyncError> {
        let deadline = Instant::now() + within;
        let account = self.account(peer)?;
        let timed_out = |_| SyncError::TimedOut { peer, within };
        let _turn = timeout_at(deadline, account.turn.lock()).await.map_err(timed_out)?;
        let session = Session { accounts: self, account: &account, forgot: false };
        timeout_at(deadline, session.run()).await.map_err(timed_out)??;
        // What fails from here on is tried again by the outbox, or by the next sync.
        match timeout_at(deadline, self.after_sync(&account, true)).await {
            Ok(Ok(())) => {}
            Ok(Err(SyncError::Books(error))) => return Err(SyncError::Books(error)),
            Ok(Err(error)) => tracing::debug!(%peer, %error, "what waited for a sync waits on"),
            Err(_) => tracing::debug!(%peer, "no time was left for what waited for a sync"),
        }
        Ok(())
    }

    /// Does what had to wait until both hold the same. The turn is held. Whoever `drove` the sync proposes
    /// the balance that may be due, so that the two do not cross.
    pub(super) async fn after_sync(&self, account: &Account, drove: bool) -> Result<(), SyncError> {
        let mut news = Vec::new();
        {
            let books = self.books(account).await;
            self.fill_outbox(account)?;
            account.state().outbox.synced();
            news.extend(books.judge_open().await?);
            news.extend(books.close_left_open().await?);
        }
        for page in news.chunks(MAX_SYNC_OBJECTS) {
            self.push(account, page.to_vec()).await?;
        }
        if drove {
            self.go_on(account).await?;
        } else {
            self.pursue(account).await?;
        }
        self.inner.news.meet(account.peer);
        Ok(())
    }

    /// Sends statements that are durable here, and takes in what they call for.
    pub(super) async fn push(&self, account: &Account, page: Vec<Statement>) -> Result<Taken, SyncError> {
        self.push_trying(account, page, ATTEMPTS).await
    }

    /// As [`Accounts::push`], with at most so many attempts.
    pub(super) async fn push_trying(
        &self,
        account: &Account,
        page: Vec<Statement>,
        attempts: u32,
    ) -> Result<Taken, SyncError> {
        let slots: Vec<Slot> = page.iter().filter_map(Statement::slot).collect();
        let response = self.ask(account.peer, &PairRequest::Push(page), attempts).await?;
        let PairResponse::Statements { statements, .. } = response else {
            return Err(off_script(account.peer, "no statements came in answer to a push"));
        };
        account.state().outbox.delivered(&slots);
        Ok(self.books(account).await.take(statements).await?)
    }

    /// Asks a question, again when the peer is busy or the answer is lost: every question may arrive
    /// twice.
    async fn ask(
        &self,
        peer: PeerId,
        request: &PairRequest,
        attempts: u32,
    ) -> Result<PairResponse, SyncError> {
        let mut wait = AGAIN_AFTER;
        for _ in 1..attempts {
            match self.ask_once(peer, request).await {
                Err(SyncError::Ask(
                    AskError::Busy { .. } | AskError::Broken { .. } | AskError::TimedOut { .. },
                )) => {}
                Ok(PairResponse::Refused(refusal)) if refusal.code == RefusalCode::Busy => {}
                answer => return answer.and_then(|answer| granted(peer, answer)),
            }
            sleep(wait).await;
            wait = wait.saturating_mul(2);
        }
        granted(peer, self.ask_once(peer, request).await?)
    }

    /// Asks a question once.
    pub(super) async fn ask_once(
        &self,
        peer: PeerId,
        request: &PairRequest,
    ) -> Result<PairResponse, SyncError> {
        let bytes = wire::encode(request)?;
        fault::point(fault::PAIR_QUESTION_READY);
        let answer = self.inner.network.ask_pair(peer, bytes, ANSWER_WITHIN).await?;
        fault::point(fault::PAIR_ANSWER_RECEIVED);
        wire::decode_bounded(&answer).map_err(|_| off_script(peer, "an answer could not be read"))
    }
}

fn granted(peer: PeerId, answer: PairResponse) -> Result<PairResponse, SyncError> {
    match answer {
        PairResponse::Refused(refusal) => Err(SyncError::Refused { peer, reason: refusal.reason }),
        answer => Ok(answer),
    }
}

fn off_script(peer: PeerId, what: &'static str) -> SyncError {
    SyncError::OffScript { peer, what }
}

impl Session<'_> {
    async fn run(mut self) -> Result<(), SyncError> {
        let peer = self.account.peer;
        for round in 0..=ROUNDS {
            if self.accounts.book(self.account)?.link() == Link::Frozen {
                return Err(SyncError::Frozen { peer });
            }
            if self.same().await? {
                return Ok(());
            }
            if round < ROUNDS {
                self.steps().await?;
                self.lanes().await?;
                self.raise_if_forgotten().await?;
            }
        }
        Err(SyncError::Unequal { peer, rounds: ROUNDS })
    }

    /// Do both hold the same? Then they are synced.
    async fn same(&self) -> Result<bool, SyncError> {
        let (partings, heads) = {
            let books = self.accounts.books(self.account).await;
            (self.account.partings(), books.digest()?)
        };
        match self.ask(&PairRequest::Same { heads }).await? {
            PairResponse::Same { heads: theirs } => {
                Ok(theirs == heads && self.account.synced(partings).is_some())
            }
            _ => Err(self.off_script("no digest came in answer to a digest")),
        }
    }

    /// Fetches the balance's steps, and pushes ours.
    async fn steps(&mut self) -> Result<(), SyncError> {
        let PairResponse::Statements { statements, .. } = self.ask(&PairRequest::Steps).await? else {
            return Err(self.off_script("no statements came in answer to a question for the balance"));
        };
        self.take(statements).await?;
        let ours = self.accounts.book(self.account)?.statements();
        self.push(ours).await
    }

    /// Compares all lanes, page by page, and sends either side what it misses.
    async fn lanes(&mut self) -> Result<(), SyncError> {
        let pair = self.account.fresh.pair();
        let mut after: Option<LaneId> = None;
        loop {
            let ours = self.accounts.books(self.account).await.heads(after)?;
            let response = self.ask(&PairRequest::Heads(Box::new(ours.clone()))).await?;
            let PairResponse::Heads(theirs) = response else {
                return Err(self.off_script("no heads came in answer to heads"));
            };
            if theirs.after != after {
                return Err(self.off_script("another page of heads came than was asked for"));
            }
            let difference = compare(pair, &ours, &theirs);
            for lanes in difference.fetch.chunks(MAX_SYNC_OBJECTS) {
                self.fetch(lanes.to_vec()).await?;
            }
            self.push_beyond(difference.push).await?;
            match difference.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Fetches what the peer holds beyond `heads`.
    async fn fetch(&mut self, mut heads: Vec<LaneHead>) -> Result<(), SyncError> {
        loop {
            let response = self.ask(&PairRequest::Fetch(heads.clone())).await?;
            let PairResponse::Statements { statements, more } = response else {
                return Err(self.off_script("no statements came in answer to a fetch"));
            };
            let moved = advance(&mut heads, &statements);
            self.take(statements).await?;
            match (more, moved) {
                (true, true) => {}
                (true, false) => return Err(self.off_script("a page of statements leads nowhere")),
                (false, _) => return Ok(()),
            }
        }
    }

    /// Pushes what we hold beyond `heads`.
    async fn push_beyond(&mut self, mut heads: Vec<LaneHead>) -> Result<(), SyncError> {
        loop {
            let (page, more) = self.accounts.books(self.account).await.beyond(&heads)?;
            let moved = advance(&mut heads, &page);
            if !moved {
                return Ok(());
            }
            self.push(page).await?;
            if !more {
                return Ok(());
            }
        }
    }

    async fn raise_if_forgotten(&mut self) -> Result<(), SyncError> {
        if !std::mem::take(&mut self.forgot) {
            return Ok(());
        }
        let raise = self.accounts.books(self.account).await.raise().await?;
        self.push(raise.into_iter().collect()).await
    }

    async fn ask(&self, request: &PairRequest) -> Result<PairResponse, SyncError> {
        self.accounts.ask(self.account.peer, request, ATTEMPTS).await
    }

    async fn push(&mut self, page: Vec<Statement>) -> Result<(), SyncError> {
        if !page.is_empty() {
            self.forgot |= self.accounts.push(self.account, page).await?.forgot;
        }
        Ok(())
    }

    async fn take(&mut self, statements: Vec<Statement>) -> Result<(), SyncError> {
        self.forgot |= self.accounts.books(self.account).await.take(statements).await?.forgot;
        Ok(())
    }

    fn off_script(&self, what: &'static str) -> SyncError {
        off_script(self.account.peer, what)
    }
}

/// Moves `heads` past what `page` holds; whether any moved. A statement whose signature does not hold
/// moves nothing.
fn advance(heads: &mut [LaneHead], page: &[Statement]) -> bool {
    let mut moved = false;
    for statement in page {
        let head = heads.iter_mut().find(|head| Some(head.lane) == statement.lane());
        if let Some(head) = head.filter(|head| head.lacks(statement))
            && let Ok(proven) = statement.verify()
        {
            head.hold(statement, &proven);
            moved = true;
        }
    }
    moved
}
