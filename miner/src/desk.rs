//! The front desk: answers for quotes and offers, and lets jobs in.
//!
//! Owns: the pure policies behind their locks, the signing key and the ledger's handle. Never: holds
//! a lock across a wait, or talks to a socket. Called by [`crate::provider`] (questions) and
//! [`crate::driver`] (jobs).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use potluck_node::accounts::Accounts;
use potluck_node::books::Books;
use potluck_node::identity::Identity;
use potluck_node::ledger::{Ledger, ReadError};
use potluck_protocol::fault::RefusalCode;
use potluck_protocol::id::{ContentHash, PeerId};
use potluck_protocol::offer::{GuestNeeds, Hardware, Offer};
use potluck_protocol::pair::{LaneRefused, NotNow};
use potluck_protocol::settle::Contract;
use potluck_protocol::sign::{SignError, Signable, Signed, Verified};
use potluck_protocol::wire::{self, QuoteRequest, QuoteResponse, Refusal};
use potluck_sandbox::protection::EffectiveProtection;

use crate::admission::{AdmissionBook, AdmissionPolicy, AdmittedJob, Known, Uses};
use crate::clock::wall_now;
use crate::gate::Gate;
use crate::guests::GuestHouse;
use crate::pricing::{self, Display, PriceList, QuoteCase};
use crate::quotes::{IssuedQuotes, QuoteGone};
use crate::verify::{Between, SignedJob, VerifiedJob};
use crate::worker_slot::WorkerSlot;

/// What the desk is set up with.
#[derive(Debug)]
pub struct DeskSetup {
    /// Who we are.
    pub identity: Identity,
    /// Where promises are kept.
    pub ledger: Ledger,
    /// What they mean between us and each peer.
    pub accounts: Accounts,
    /// What the owner asks.
    pub prices: PriceList,
    /// What the owner allows.
    pub policy: AdmissionPolicy,
    /// The models and their workers.
    pub slots: Vec<Arc<WorkerSlot>>,
    /// Whether the machine is lent.
    pub gate: Arc<Gate>,
    /// How components are run, if they are.
    pub guests: Option<GuestHouse>,
    /// What stands between a job and this machine.
    pub protection: EffectiveProtection,
}

/// Jobs since the start, for `status`.
#[derive(Debug, Default)]
pub struct JobCounts {
    /// Completed.
    pub done: AtomicU64,
    /// Ended in any other way after they were accepted.
    pub ended_early: AtomicU64,
    /// Of those, the ones that were stopped for the owner and settled.
    pub yielded: AtomicU64,
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

    /// What can be asked of them.
    #[must_use]
    pub fn books(&self) -> Books<'_> {
        Books { ledger: &self.setup.ledger, key: self.setup.identity.signing_key() }
    }

    /// What they mean between us and each peer.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.setup.accounts
    }

    /// The models and their workers.
    #[must_use]
    pub fn slots(&self) -> &[Arc<WorkerSlot>] {
        &self.setup.slots
    }

    /// Whether the machine is lent.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.setup.gate
    }

    /// How components are run, if they are.
    #[must_use]
    pub fn guests(&self) -> Option<&GuestHouse> {
        self.setup.guests.as_ref()
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
        lock(&self.book).len()
    }

    /// Signs with our key.
    ///
    /// # Errors
    /// When the object names another signer or does not fit a frame.
    pub fn sign<T: Signable>(&self, body: T) -> Result<Verified<T>, SignError> {
        self.setup.identity.signing_key().sign(body)
    }

    /// Signs a new offer of every model that is ready; `None` while there is none, or the machine is not
    /// lent.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn renew_offer(&self) -> Result<Option<Verified<Offer>>, SignError> {
        let lent = self.gate().owner().admits();
        let ready: Vec<_> =
            self.setup.slots.iter().filter(|_| lent).filter_map(|slot| slot.ready()).collect();
        let Some(hardware) = ready.first().map(|ready| ready.hardware.clone()) else {
            *lock(&self.offer) = None;
            return Ok(None);
        };
        let display = Display {
            wares: ready.into_iter().map(|ready| ready.ware).collect(),
            hardware,
            protection: self.protection().level(),
            guests: self.setup.guests.as_ref().map(|guests| (guests.runtime(), guests.memory_mib())),
        };
        let last = lock(&self.offer).as_ref().map_or(0, |offer| offer.body().epoch);
        let offer = self.sign(pricing::offer(self.me(), &self.setup.prices, display, last, wall_now()))?;
        *lock(&self.offer) = Some(offer.clone());
        Ok(Some(offer))
    }

    /// Answers one question of `renter`; `None` when the answer cannot be encoded.
    #[must_use]
    pub fn answer(&self, renter: PeerId, question: &[u8]) -> Option<Vec<u8>> {
        let response = match (wire::decode::<QuoteRequest>(question), self.gate().refusal()) {
            (Err(error), _) => refused(RefusalCode::Malformed, error.to_string()),
            (Ok(_), Some(refusal)) => QuoteResponse::Refused(refusal),
            (Ok(QuoteRequest::Offer), None) => self.answer_offer(),
            (Ok(QuoteRequest::Quote { model }), None) => self.answer_quote(renter, model),
            (Ok(QuoteRequest::Exec { component, needs }), None) => self.answer_exec(renter, component, needs),
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
        self.quote(renter, model, None, ready.hardware)
    }

    fn answer_exec(&self, renter: PeerId, component: ContentHash, needs: GuestNeeds) -> QuoteResponse {
        if let Err(error) = needs.check() {
            return refused(RefusalCode::Malformed, error.to_string());
        }
        if let Err(refusal) = self.can_run(&needs) {
            return QuoteResponse::Refused(refusal);
        }
        let hardware = self.setup.slots.iter().find_map(|slot| slot.ready()).map(|ready| ready.hardware);
        match hardware {
            Some(hardware) => self.quote(renter, component, Some(needs), hardware),
            None => refused(RefusalCode::Busy, "no model is in memory yet"),
        }
    }

    /// Can a component with such needs run here?
    fn can_run(&self, needs: &GuestNeeds) -> Result<(), Refusal> {
        let no = |why: String| Err(Refusal::new(RefusalCode::NoGuests, why));
        let Some(guests) = &self.setup.guests else {
            return no("components are not run here".into());
        };
        let most = guests.memory_mib();
        if needs.memory_mib > most {
            return no(format!(
                "components get at most {most} MiB here; {} were asked for",
                needs.memory_mib
            ));
        }
        match needs.models.iter().find(|model| self.slot(**model).is_none()) {
            Some(model) => {
                Err(Refusal::new(RefusalCode::UnknownModel, format!("{model} is not served here")))
            }
            None => Ok(()),
        }
    }

    /// What stands between a job and this machine.
    #[must_use]
    pub fn protection(&self) -> &EffectiveProtection {
        &self.setup.protection
    }

    fn quote(
        &self,
        renter: PeerId,
        runs: ContentHash,
        guest: Option<GuestNeeds>,
        hardware: Hardware,
    ) -> QuoteResponse {
        let known = match self.known(renter) {
            Ok(known) => known,
            Err(refusal) => return QuoteResponse::Refused(refusal),
        };
        let credit = lock(&self.book).room(renter, known);
        let uses = if guest.is_some() { Uses::All } else { Uses::Model(runs) };
        let case = QuoteCase {
            provider: self.me(),
            renter,
            serial: self.serial.fetch_add(1, Ordering::Relaxed),
            runs,
            guest,
            hardware,
            protection: self.protection().level(),
            ahead: u32::try_from(lock(&self.book).waiting_for(uses)).unwrap_or(u32::MAX),
        };
        match self.sign(pricing::quote(&self.setup.prices, case, wall_now())) {
            Ok(quote) => {
                lock(&self.quotes).issue(quote.digest(), renter, Instant::now());
                QuoteResponse::Quote { quote: Box::new(quote.into_signed()), credit }
            }
            Err(error) => refused(RefusalCode::WorkerFailed, error.to_string()),
        }
    }

    /// What the ledger knows of `renter`, and of the other strangers.
    fn known(&self, renter: PeerId) -> Result<Known, Refusal> {
        let (ledger, now) = (&self.setup.ledger, wall_now());
        let standing = ledger.standing(renter, now).map_err(unreadable)?;
        let others = ledger.unknown_exposure(renter, now).map_err(unreadable)?;
        Ok(Known { standing, others })
    }

    /// Verifies and admits a job that `renter` sent.
    ///
    /// # Errors
    /// What to tell the renter; nothing is kept of the job then.
    pub fn take(self: &Arc<Self>, renter: PeerId, job: SignedJob) -> Result<(AdmittedJob, Place), Refusal> {
        let between = Between { provider: self.me(), renter, now: wall_now() };
        let verified = job.verify(between).map_err(|error| error.refusal())?;
        match verified.guest() {
            Some(needs) => self.can_run(needs)?,
            None if self.slot(verified.model()).is_none() => {
                return Err(Refusal::new(RefusalCode::UnknownModel, "the model is not served here any more"));
            }
            None => {}
        }
        let ledger = &self.setup.ledger;
        if ledger.has_lane(&verified.contract().lane).map_err(unreadable)? {
            return Err(Refusal::new(RefusalCode::Replayed, "this job was sent before"));
        }
        self.may_open(verified.contract())?;
        lock(&self.quotes).redeem(&verified.signed_quote().digest(), Instant::now()).map_err(quote_gone)?;
        let admitted = self.admit(verified, self.known(renter)?)?;
        let place = Place { desk: Arc::clone(self), ticket: admitted.ticket() };
        Ok((admitted, place))
    }

    /// May this contract be accepted now? The two ledgers must hold the same, and nobody be convicted.
    ///
    /// # Errors
    /// What to tell the renter.
    pub fn may_open(&self, contract: &Contract) -> Result<(), Refusal> {
        self.setup.accounts.may_open(contract).map_err(|why| Refusal::new(code_of(why), why.to_string()))
    }

    /// The gate is asked with the book locked: a job is either refused, or seen by whoever closed the
    /// gate and then looks for running jobs.
    fn admit(&self, job: VerifiedJob, known: Known) -> Result<AdmittedJob, Refusal> {
        let mut book = lock(&self.book);
        if let Some(refusal) = self.gate().refusal() {
            return Err(refusal);
        }
        book.admit(job, known).map_err(|not_admitted| not_admitted.refusal())
    }
}

fn unreadable(error: ReadError) -> Refusal {
    tracing::error!(%error, "the ledger cannot be read");
    Refusal::new(RefusalCode::LedgerFailed, "the provider's ledger cannot be read")
}

fn code_of(why: LaneRefused) -> RefusalCode {
    match why {
        LaneRefused::NotNow(NotNow::SyncNeeded) | LaneRefused::WrongEpoch { .. } => RefusalCode::SyncNeeded,
        LaneRefused::NotNow(NotNow::Frozen) => RefusalCode::Frozen,
        LaneRefused::OtherPair => RefusalCode::QuoteMismatch,
        LaneRefused::BelowFloor => RefusalCode::Expired,
    }
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
        self.desk.gate().place_left();
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
