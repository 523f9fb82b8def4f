//! The front desk: answers for quotes and offers, and lets jobs in.
//!
//! Owns: the pure policies behind their locks, the signing key and the ledger's handle. Never: holds
//! a lock across a wait, or talks to a socket. Called by [`crate::provider`] (questions) and
//! [`crate::driver`] (jobs).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use potluck_node::identity::Identity;
use potluck_node::ledger::{Ledger, ReadError};
use potluck_protocol::fault::RefusalCode;
use potluck_protocol::id::{ContentHash, PeerId};
use potluck_protocol::offer::{Hardware, Offer, Protection};
use potluck_protocol::sign::{SignError, Signable, Signed, Verified};
use potluck_protocol::wire::{self, QuoteRequest, QuoteResponse, Refusal};

use crate::admission::{AdmissionBook, AdmissionPolicy, AdmittedJob, Credit};
use crate::clock::wall_now;
use crate::pricing::{self, PriceList, QuoteCase};
use crate::quotes::{IssuedQuotes, QuoteGone};
use crate::verify::{Between, SignedJob};
use crate::worker_slot::WorkerSlot;

/// What the desk is set up with.
#[derive(Debug)]
pub struct DeskSetup {
    /// Who we are.
    pub identity: Identity,
    /// Where promises are kept.
    pub ledger: Ledger,
    /// What the owner asks.
    pub prices: PriceList,
    /// What the owner allows.
    pub policy: AdmissionPolicy,
    /// The models and their workers.
    pub slots: Vec<Arc<WorkerSlot>>,
}

/// Jobs since the start, for `status`.
#[derive(Debug, Default)]
pub struct JobCounts {
    /// Completed.
    pub done: AtomicU64,
    /// Ended in any other way after they were accepted.
    pub ended_early: AtomicU64,
}

/// The front desk.
#[derive(Debug)]
pub struct Desk {
    setup: DeskSetup,
    quotes: Mutex<IssuedQuotes>,
    book: Mutex<AdmissionBook>,
    offer: Mutex<Option<Verified<Offer>>>,
    serial: AtomicU64,
    /// Jobs since the start.
    pub counts: JobCounts,
}

impl Desk {
    /// A desk with nothing on it. `first_serial` makes quotes differ from those of an earlier run.
    #[must_use]
    pub fn new(setup: DeskSetup, first_serial: u64) -> Arc<Self> {
        let book = AdmissionBook::new(setup.policy);
        Arc::new(Self {
            setup,
            quotes: Mutex::default(),
            book: Mutex::new(book),
            offer: Mutex::default(),
            serial: AtomicU64::new(first_serial),
            counts: JobCounts::default(),
        })
    }

    /// Who we are.
    #[must_use]
    pub fn me(&self) -> PeerId {
        self.setup.identity.peer()
    }

    /// Where promises are kept.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.setup.ledger
    }

    /// The models and their workers.
    #[must_use]
    pub fn slots(&self) -> &[Arc<WorkerSlot>] {
        &self.setup.slots
    }

    /// What the owner asks.
    #[must_use]
    pub fn prices(&self) -> &PriceList {
        &self.setup.prices
    }

    /// The slot that serves `model`.
    #[must_use]
    pub fn slot(&self, model: ContentHash) -> Option<&Arc<WorkerSlot>> {
        self.setup.slots.iter().find(|slot| slot.model().hash == model)
    }

    /// Jobs admitted and not done with a worker.
    #[must_use]
    pub fn running(&self) -> usize {
        self.setup.slots.iter().map(|slot| lock(&self.book).waiting_for(slot.model().hash)).sum()
    }

    /// Signs with our key.
    ///
    /// # Errors
    /// When the object names another signer or does not fit a frame.
    pub fn sign<T: Signable>(&self, body: T) -> Result<Verified<T>, SignError> {
        self.setup.identity.signing_key().sign(body)
    }

    /// Signs a new offer of every model that is ready; `None` while there is none.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn renew_offer(&self) -> Result<Option<Verified<Offer>>, SignError> {
        let ready: Vec<_> = self.setup.slots.iter().filter_map(|slot| slot.ready()).collect();
        let Some(hardware) = ready.first().map(|ready| ready.hardware.clone()) else {
            *lock(&self.offer) = None;
            return Ok(None);
        };
        let wares: Vec<_> = ready.into_iter().map(|ready| ready.ware).collect();
        let last = lock(&self.offer).as_ref().map_or(0, |offer| offer.body().epoch);
        let now = wall_now();
        let body =
            pricing::offer(self.me(), &self.setup.prices, &wares, hardware, Protection::None, last, now);
        let offer = self.sign(body)?;
        *lock(&self.offer) = Some(offer.clone());
        Ok(Some(offer))
    }

    /// Answers one question of `renter`; `None` when the answer cannot be encoded.
    #[must_use]
    pub fn answer(&self, renter: PeerId, question: &[u8]) -> Option<Vec<u8>> {
        let response = match wire::decode::<QuoteRequest>(question) {
            Ok(QuoteRequest::Offer) => self.answer_offer(),
            Ok(QuoteRequest::Quote { model }) => self.answer_quote(renter, model),
            Err(error) => refused(RefusalCode::Malformed, error.to_string()),
        };
        wire::encode(&response).ok()
    }

    fn answer_offer(&self) -> QuoteResponse {
        match lock(&self.offer).as_ref() {
            Some(offer) => QuoteResponse::Offer(Box::new(offer.signed().clone())),
            None => refused(RefusalCode::Busy, "no model is ready yet"),
        }
    }

    fn answer_quote(&self, renter: PeerId, model: ContentHash) -> QuoteResponse {
        let Some(slot) = self.slot(model) else {
            return refused(RefusalCode::UnknownModel, format!("{model} is not served here"));
        };
        let Some(ready) = slot.ready() else {
            return refused(RefusalCode::Busy, "the model is not in memory yet");
        };
        let case = QuoteCase {
            provider: self.me(),
            renter,
            serial: self.serial.fetch_add(1, Ordering::Relaxed),
            model,
            hardware: ready.hardware,
            protection: Protection::None,
            ahead: self.waiting_for(model),
        };
        match self.sign(pricing::quote(&self.setup.prices, case, wall_now())) {
            Ok(quote) => {
                lock(&self.quotes).issue(quote.digest(), renter, Instant::now());
                QuoteResponse::Quote(Box::new(quote.into_signed()))
            }
            Err(error) => refused(RefusalCode::WorkerFailed, error.to_string()),
        }
    }

    fn waiting_for(&self, model: ContentHash) -> u32 {
        u32::try_from(lock(&self.book).waiting_for(model)).unwrap_or(u32::MAX)
    }

    /// Verifies and admits a job that `renter` sent.
    ///
    /// # Errors
    /// What to tell the renter; nothing is kept of the job then.
    pub fn take(self: &Arc<Self>, renter: PeerId, job: SignedJob) -> Result<(AdmittedJob, Place), Refusal> {
        let between = Between { provider: self.me(), renter, now: wall_now() };
        let verified = job.verify(between).map_err(|error| error.refusal())?;
        if self.slot(verified.model()).is_none() {
            return Err(Refusal::new(RefusalCode::UnknownModel, "the model is not served here any more"));
        }
        let ledger = &self.setup.ledger;
        if ledger.has_lane(&verified.contract().lane).map_err(unreadable)? {
            return Err(Refusal::new(RefusalCode::Replayed, "this job was sent before"));
        }
        lock(&self.quotes).redeem(&verified.signed_quote().digest(), Instant::now()).map_err(quote_gone)?;
        let standing = ledger.standing(renter).map_err(unreadable)?;
        let credit = Credit { balance: standing.balance, open_caps: standing.open_caps };
        let admitted =
            lock(&self.book).admit(verified, credit).map_err(|not_admitted| not_admitted.refusal())?;
        let place = Place { desk: Arc::clone(self), ticket: admitted.ticket() };
        Ok((admitted, place))
    }
}

fn unreadable(error: ReadError) -> Refusal {
    tracing::error!(%error, "the ledger cannot be read");
    Refusal::new(RefusalCode::LedgerFailed, "the provider's ledger cannot be read")
}

fn quote_gone(gone: QuoteGone) -> Refusal {
    match gone {
        QuoteGone::Unknown => {
            Refusal::new(RefusalCode::QuoteMismatch, "the quote was not issued in this run, or was used")
        }
        QuoteGone::Expired => Refusal::new(RefusalCode::Expired, "the quote has expired; ask for a new one"),
    }
}

fn refused(code: RefusalCode, reason: impl Into<String>) -> QuoteResponse {
    QuoteResponse::Refused(Refusal::new(code, reason))
}

/// A poisoned lock guards plain data that each policy leaves whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A job's place in the queue; given back when dropped.
#[derive(Debug)]
pub struct Place {
    desk: Arc<Desk>,
    ticket: u64,
}

impl Place {
    /// Jobs that go first.
    #[must_use]
    pub fn ahead(&self) -> u32 {
        u32::try_from(lock(&self.desk.book).ahead(self.ticket)).unwrap_or(u32::MAX)
    }

    /// The ledger now counts the job's limit itself.
    pub fn recorded(&self) {
        lock(&self.desk.book).recorded(self.ticket);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.desk.book).release(self.ticket);
    }
}

/// Keeps the two hardware figures that an offer needs next to what the worker said.
#[must_use]
pub fn hardware(class: &str, name: &str, memory_mib: u32) -> Hardware {
    Hardware { class: class.to_owned(), name: pricing::cut_name(name), memory_mib }
}

/// A signed object as it crosses the wire.
#[must_use]
pub fn boxed<T: Clone>(verified: &Verified<T>) -> Box<Signed<T>> {
    Box::new(verified.signed().clone())
}
