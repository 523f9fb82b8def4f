//! The audit of an export file: every signature, every law that the file alone can show, and what two
//! peers owe each other by it.
//!
//! Owns: [`Audit`], which takes a file's entries in their order, and [`Examiner`], which reads and audits
//! a file that is fed to it. Never: needs a key, a clock or a ledger, or memory that grows with the
//! number of lanes. Called by the `ledger` verbs `verify` and `import`, and by the fuzzer.
//!
//! Two kinds of things can be wrong. What is *damaged* (a changed byte, a signature that does not hold,
//! a place that is filled twice) makes the file worth nothing: an error. What is *against the law* (a
//! wrong price, a broken link) is signed by somebody, and proves what that peer did: a [`Fault`], and the
//! file stands.

use std::collections::BTreeSet;
use std::fmt;

use thiserror::Error;

use super::lane::LaneAudit;
use super::steps::StepAudit;
use super::{At, Entry, ExportError, Header, Item, Reader};
use crate::balance::PairId;
use crate::id::{Digest, LaneId, PeerId};
use crate::limits::MAX_CONVICTIONS;
use crate::statement::{Proven, Slot, Statement};
use crate::unit::NanoCredit;

/// A law that a signed statement breaks, as the statements around it show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Broken {
    /// It names another contract than its lane's.
    #[error("it is for another contract")]
    OtherContract,
    /// Time, tokens or amount fell.
    #[error("it counts less than the one before")]
    Backwards,
    /// A meter follows the last one.
    #[error("it follows the last meter")]
    AfterLast,
    /// The amount is not the price of the time (I3).
    #[error("it says {got}; the price of the time is {price}")]
    Price {
        /// By the contract's terms.
        price: NanoCredit,
        /// What it says.
        got: NanoCredit,
    },
    /// More time or money than the contract allows.
    #[error("it goes past the contract's limit")]
    OverLimit,
    /// It does not name the voucher before it (I2).
    #[error("it does not name the voucher before it")]
    Link,
    /// It does not name the meter that it pays for.
    #[error("it does not name the meter of its number")]
    Meter,
    /// It names another voucher, or another amount, than the one of its number.
    #[error("it is not of the voucher of its number")]
    Voucher,
    /// One signer spent one step of a balance on two things (I7).
    #[error("its signer filled this place with something else, too")]
    SignedTwice,
    /// A balance is countersigned that is not there, or is its signer's own.
    #[error("the balance that it countersigns is not there")]
    NoState,
    /// Two agreed balances rest on the same one.
    #[error("it does not rest on the balance agreed before it")]
    Previous,
    /// A floor fell.
    #[error("its floor lies below that of the balance before it")]
    Floor,
    /// The balance is not the one before it, its lanes and its payment.
    #[error("it says {got} nano-credits; the balance before it, its lanes and its payment give {sum}")]
    Sum {
        /// What they give.
        sum: i128,
        /// What it says.
        got: i128,
    },
}

/// A law broken, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Where in the file.
    pub at: At,
    /// By which statement; its signer is at fault.
    pub slot: Slot,
    /// Which law.
    pub broken: Broken,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} (byte {}), {}: {}", self.at.entry, self.at.byte, self.slot, self.broken)
    }
}

/// Faults counted, the first kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// How many.
    pub count: u64,
    /// The first in the file.
    pub first: Option<Fault>,
}

impl Faults {
    pub(super) fn add(&mut self, at: At, slot: Option<Slot>, broken: Broken) {
        let first = slot.map(|slot| Fault { at, slot, broken });
        self.include(&Self { count: 1, first });
    }

    fn include(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        // A balance is only judged when all its lanes were seen.
        self.first = self.first.into_iter().chain(other.first).min_by_key(|fault| fault.at.entry);
    }
}

/// What a file shows of the owner and one peer. Amounts in nano-credits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairReport {
    /// The other than the owner.
    pub peer: PeerId,
    /// Above zero when the peer owes the owner: the last agreed balance and what was vouched since.
    pub balance: i128,
    /// The pair's epoch.
    pub epoch: u32,
    /// The step of the last agreed balance; 0 when there is none.
    pub step: u32,
    /// Agreed balances in the file.
    pub agreed: u64,
    /// Of these, those whose lanes are not all in the file as they were taken in.
    pub agreed_unproven: u64,
    /// Outside payments by the peer in agreed balances.
    pub paid_to_owner: NanoCredit,
    /// Outside payments by the owner in agreed balances.
    pub paid_by_owner: NanoCredit,
    /// Lanes in the file.
    pub lanes: u64,
    /// Of these, those without an end on record.
    pub open: u64,
    /// Of these, those of which meters, vouchers or receipts in the middle are left out.
    pub thinned: u64,
    /// Of these, those whose price cannot be checked: the contract, or the voucher that an end names,
    /// is not in the file.
    pub unproven: u64,
    /// Is one of the two convicted by a proof in the file?
    pub frozen: bool,
    /// Laws broken by what the two signed.
    pub faults: Faults,
}

/// Takes the entries of a file in their order.
#[derive(Debug)]
pub struct Audit {
    owner: PeerId,
    convicted: BTreeSet<PeerId>,
    pair: Option<PairAudit>,
    statements: u64,
    pairs: u64,
    balance: i128,
    faults: Faults,
}

#[derive(Debug)]
struct PairAudit {
    peer: PeerId,
    steps: StepAudit,
    lane: Option<LaneAudit>,
    report: PairReport,
}

/// What a whole file shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What it says of itself.
    pub header: Header,
    /// Statements in it.
    pub statements: u64,
    /// Proofs in it, each of which convicts somebody.
    pub proofs: u64,
    /// Peers that the owner has an account with.
    pub pairs: u64,
    /// What all peers together owe the owner, in nano-credits.
    pub balance: i128,
    /// The chain that the seal signs: two files with the same one hold the same.
    pub chain: Digest,
    /// Laws broken.
    pub faults: Faults,
}

impl Audit {
    /// An audit of a file of `owner`.
    #[must_use]
    pub fn new(owner: PeerId) -> Self {
        Self {
            owner,
            convicted: BTreeSet::new(),
            pair: None,
            statements: 0,
            pairs: 0,
            balance: 0,
            faults: Faults::default(),
        }
    }

    /// Takes the next entry, in the order in which a [`Reader`] gives them; what it says of the pair
    /// before, when the entry begins another.
    ///
    /// # Errors
    /// When a signature does not hold, a proof proves nothing, or there is more than is held in memory.
    pub fn take(&mut self, at: At, entry: Entry) -> Result<Option<PairReport>, ExportError> {
        let At { entry: number, byte } = at;
        match entry {
            Entry::Proof(proof) => {
                let proven = proof.verify();
                let proven =
                    proven.map_err(|source| ExportError::Proof { entry: number, at: byte, source })?;
                if self.convicted.len() >= MAX_CONVICTIONS {
                    return Err(ExportError::TooMany { what: "proofs", most: MAX_CONVICTIONS });
                }
                self.convicted.insert(proven.signer);
                Ok(None)
            }
            Entry::Statement(statement) => {
                let proven = statement.verify();
                let proven =
                    proven.map_err(|source| ExportError::Statement { entry: number, at: byte, source })?;
                self.statements += 1;
                let done = self.enter(proven.pair);
                self.judge(at, &statement, &proven)?;
                Ok(done)
            }
        }
    }

    /// Begins the account of `pair`, unless it is the present one.
    fn enter(&mut self, pair: PairId) -> Option<PairReport> {
        if self.pair.as_ref().is_some_and(|at| at.steps.pair() == pair) {
            return None;
        }
        let done = self.leave();
        let peer = pair.other(self.owner).unwrap_or(self.owner);
        let frozen = self.convicted.contains(&peer) || self.convicted.contains(&self.owner);
        self.pair = Some(PairAudit::new(pair, peer, frozen));
        done
    }

    fn leave(&mut self) -> Option<PairReport> {
        let report = self.pair.take()?.finish(self.owner);
        self.pairs += 1;
        self.balance = self.balance.saturating_add(report.balance);
        self.faults.include(&report.faults);
        Some(report)
    }

    fn judge(&mut self, at: At, statement: &Statement, proven: &Proven) -> Result<(), ExportError> {
        let Some(pair) = &mut self.pair else { return Ok(()) };
        match (statement, statement.lane()) {
            // It binds its provider to nothing that money follows from.
            (Statement::Quote(_), _) => Ok(()),
            (_, None) => pair.steps.take(at, statement, proven, &mut pair.report.faults),
            (_, Some(lane)) => {
                pair.take(lane, at, statement, proven);
                Ok(())
            }
        }
    }

    /// What it says of the last pair.
    pub fn end(&mut self) -> Option<PairReport> {
        self.leave()
    }

    fn report(&self, header: Header, chain: Digest) -> Report {
        Report {
            chain,
            header,
            statements: self.statements,
            proofs: u64::try_from(self.convicted.len()).unwrap_or(u64::MAX),
            pairs: self.pairs,
            balance: self.balance,
            faults: self.faults,
        }
    }
}

impl PairAudit {
    fn new(pair: PairId, peer: PeerId, frozen: bool) -> Self {
        let report = PairReport {
            peer,
            balance: 0,
            epoch: 0,
            step: 0,
            agreed: 0,
            agreed_unproven: 0,
            paid_to_owner: NanoCredit::ZERO,
            paid_by_owner: NanoCredit::ZERO,
            lanes: 0,
            open: 0,
            thinned: 0,
            unproven: 0,
            frozen,
            faults: Faults::default(),
        };
        Self { peer, steps: StepAudit::new(pair), lane: None, report }
    }

    fn take(&mut self, lane: LaneId, at: At, it: &Statement, proven: &Proven) {
        if self.lane.as_ref().is_some_and(|at| at.lane() != lane) {
            self.end_lane();
        }
        let audit = self.lane.get_or_insert_with(|| LaneAudit::new(lane));
        audit.take(at, it, proven, &mut self.report.faults);
    }

    fn end_lane(&mut self) {
        let Some(lane) = self.lane.take() else { return };
        self.report.lanes += 1;
        self.report.open += u64::from(!lane.ended());
        self.report.thinned += u64::from(lane.thinned());
        self.report.unproven += u64::from(lane.unproven());
        if let Some(folded) = lane.folded() {
            self.steps.fold(&folded, lane.created());
        }
    }

    fn finish(mut self, owner: PeerId) -> PairReport {
        self.end_lane();
        let Self { peer, steps, mut report, .. } = self;
        let pair = steps.pair();
        (report.epoch, report.step, report.agreed) = (steps.epoch(), steps.step(), steps.agreed());
        (report.paid_to_owner, report.paid_by_owner) = (steps.paid_by(peer), steps.paid_by(owner));
        report.agreed_unproven = steps.prove(&mut report.faults);
        report.balance = pair.owed_to(owner, steps.balance());
        report
    }
}

/// Reads and audits a file that is fed to it piece by piece.
#[derive(Debug, Default)]
pub struct Examiner {
    reader: Reader,
    audit: Option<Audit>,
    sealed: Option<Digest>,
}

impl Examiner {
    /// What the file says of itself, once that was read.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        self.reader.header()
    }

    /// Takes the next bytes of the file; `visit` hears of each pair that is done.
    ///
    /// # Errors
    /// The first thing found damaged: nothing in the file is to be believed then.
    pub fn feed(&mut self, bytes: &[u8], visit: &mut dyn FnMut(PairReport)) -> Result<(), ExportError> {
        self.reader.feed(bytes);
        while let Some(item) = self.reader.next()? {
            let done = match (item, &mut self.audit) {
                (Item::Entry(at, entry), Some(audit)) => audit.take(at, entry)?,
                (Item::Seal(seal), Some(audit)) => {
                    self.sealed = Some(seal.body().chain);
                    audit.end()
                }
                (Item::Header(header), audit) => {
                    *audit = Some(Audit::new(header.owner));
                    None
                }
                (_, None) => return Err(ExportError::NotAnExport),
            };
            if let Some(done) = done {
                visit(done);
            }
        }
        Ok(())
    }

    /// Says that nothing more will be fed.
    ///
    /// # Errors
    /// When the file has no seal.
    pub fn finish(self) -> Result<Report, ExportError> {
        self.reader.finish()?;
        match (self.audit, self.reader.header(), self.sealed) {
            (Some(audit), Some(header), Some(chain)) => Ok(audit.report(header.clone(), chain)),
            _ => Err(ExportError::NotAnExport),
        }
    }
}
