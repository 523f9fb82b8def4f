//! Answering a peer's question about the pair: one question, one page of work.
//!
//! Owns: what each question is answered with. Never: does more than a page's work for one, or waits for
//! the peer. Called by [`super::serve`] for each question that was admitted.

use potluck_protocol::fault::RefusalCode;
use potluck_protocol::limits::MAX_SYNC_OBJECTS;
use potluck_protocol::statement::Statement;
use potluck_protocol::wire::{self, PairRequest, PairResponse, Refusal};

use super::Accounts;
use super::account::Account;
use super::error::BooksError;
use crate::fault;
use crate::net::InboundRequest;

/// What is to be done once the answer has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Then {
    /// The two hold the same, and did not before.
    pub(super) synced: bool,
    /// The balance may have taken a step.
    pub(super) stepped: bool,
}

impl Accounts {
    /// Answers a question of the account's peer.
    pub(super) async fn answer(&self, account: &Account, question: InboundRequest) -> Then {
        fault::point(fault::PAIR_QUESTION_RECEIVED);
        let (response, then) = match wire::decode_bounded(&question.bytes) {
            Ok(request) => self.respond(account, request).await,
            Err(error) => (refused(RefusalCode::Malformed, error.to_string()), Then::default()),
        };
        fault::point(fault::PAIR_ANSWER_READY);
        give(question, &response);
        fault::point(fault::PAIR_ANSWER_SENT);
        then
    }

    async fn respond(&self, account: &Account, request: PairRequest) -> (PairResponse, Then) {
        match self.respond_by_books(account, request).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(peer = %account.peer, %error, "a question could not be answered");
                let why = "this peer's ledger cannot be used now";
                (refused(RefusalCode::LedgerFailed, why), Then::default())
            }
        }
    }

    async fn respond_by_books(
        &self,
        account: &Account,
        request: PairRequest,
    ) -> Result<(PairResponse, Then), BooksError> {
        let mut then = Then::default();
        let response = match request {
            PairRequest::Same { heads: theirs } => {
                let books = self.books(account).await;
                let (partings, heads) = (account.partings(), books.digest()?);
                then.synced = heads == theirs && account.synced(partings) == Some(true);
                PairResponse::Same { heads }
            }
            PairRequest::Heads(theirs) => {
                PairResponse::Heads(Box::new(self.books(account).await.heads(theirs.after)?))
            }
            PairRequest::Steps => statements(self.book(account)?.statements()),
            PairRequest::Fetch(lanes) => {
                let (statements, more) = self.books(account).await.beyond(&lanes)?;
                PairResponse::Statements { statements, more }
            }
            PairRequest::Push(page) => {
                let books = self.books(account).await;
                let taken = books.take(page).await?;
                then.stepped = taken.stepped;
                let mut answers = taken.answers;
                // The other side drives the sync and showed us that our ledger is an old one.
                if taken.forgot
                    && let Some(raise) = books.raise().await?
                    && answers.len() < MAX_SYNC_OBJECTS
                {
                    answers.push(raise);
                }
                statements(answers)
            }
            PairRequest::Proof(proof) => {
                self.hear(*proof).await?;
                PairResponse::Noted
            }
        };
        Ok((response, then))
    }
}

fn statements(statements: Vec<Statement>) -> PairResponse {
    PairResponse::Statements { statements, more: false }
}

fn refused(code: RefusalCode, why: impl Into<String>) -> PairResponse {
    PairResponse::Refused(Refusal::new(code, why))
}

/// Refuses a question unread: its peer asks too fast, or too many wait.
pub(super) fn refuse(question: InboundRequest) {
    give(question, &refused(RefusalCode::Busy, "too many questions: ask again in a moment"));
}

fn give(question: InboundRequest, response: &PairResponse) {
    let peer = question.peer;
    // A question that is dropped reads as "busy".
    match wire::encode(response) {
        Ok(bytes) => {
            if let Err(error) = question.answer(bytes) {
                tracing::debug!(%peer, %error, "an answer was not given");
            }
        }
        Err(error) => tracing::error!(%peer, %error, "an answer does not fit a frame"),
    }
}
