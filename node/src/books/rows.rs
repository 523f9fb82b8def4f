//! Rows: balances, accounts, jobs and proofs as both programs show them.
//!
//! Owns: the typed rows and how the ledger's answers become them. Never: prints, or adds money up beyond
//! payments that both sides signed. Called by [`super::Books`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use potluck_protocol::balance::PairState;
use potluck_protocol::id::{ContentHash, Digest, PeerId};
use potluck_protocol::pair::PairBook;
use potluck_protocol::settle::CloseReason;
use potluck_protocol::sign::preimage;
use potluck_protocol::unit::{NanoCredit, UnixMillis};
use potluck_protocol::wire;
use serde::{Deserialize, Serialize};

use super::error::BooksError;
use super::{ReceiptsAsk, file, find};
use crate::catalogue;
use crate::ledger::{Filter, LaneRole, LaneSummary, Ledger, LedgerError, PairBalance, ReadError, Record};

/// What peers owe, in nano-credits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// Us.
    pub peer: PeerId,
    /// What peers owe us.
    pub owed_to_us_nanocredits: i64,
    /// What we owe peers.
    pub we_owe_nanocredits: i64,
    /// The difference: above zero when we are owed more.
    pub balance_nanocredits: i64,
    /// The same with each peer.
    pub pairs: Vec<PairLine>,
}

/// The balance with one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairLine {
    /// With whom.
    pub peer: PeerId,
    /// Above zero when the peer owes us.
    pub balance_nanocredits: i64,
    /// Jobs ever.
    pub lanes: u64,
    /// Jobs without an end on record.
    pub open: u64,
}

/// The account with one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// With whom.
    pub peer: PeerId,
    /// Above zero when the peer owes us.
    pub balance_nanocredits: i64,
    /// Outside payments by the peer to us in agreed balances.
    pub settled_nanocredits: u64,
    /// Outside payments by us to the peer in agreed balances.
    pub paid_nanocredits: u64,
    /// What the peer's open jobs with us may still cost.
    pub open_caps_nanocredits: u64,
    /// The most that the peer may come to owe us as things stand.
    pub credit_used_nanocredits: u64,
    /// Jobs ever.
    pub lanes: u64,
    /// Jobs without an end on record.
    pub open: u64,
    /// The account's epoch.
    pub epoch: u32,
    /// The step of the last agreed balance; 0 before the first.
    pub step: u32,
    /// Jobs from before then are in the agreed balance.
    pub floor_unix_ms: u64,
    /// Is one of the two convicted?
    pub frozen: bool,
    /// Balances that wait for an answer.
    pub waiting: Vec<Waiting>,
}

/// A balance that one side has signed and the other has not answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Its epoch.
    pub epoch: u32,
    /// Its step.
    pub step: u32,
    /// Who proposes it.
    pub by: PeerId,
    /// Who says to have paid, when it names a payment.
    pub payer: Option<PeerId>,
    /// How much was paid.
    pub amount_nanocredits: Option<u64>,
    /// The payment's reference: the proposer's text.
    pub reference: Option<String>,
    /// What the balance would be; above zero when the peer owes us.
    pub balance_nanocredits: i64,
    /// `us` (the owner's word is needed) or `them`.
    pub waits_for: Side,
}

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// We.
    Us,
    /// The peer.
    Them,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Its name in both ledgers.
    pub job: String,
    /// Our side of it.
    pub role: LaneRole,
    /// The other side.
    pub peer: PeerId,
    /// When the contract was signed; 0 when it is not kept.
    pub opened_unix_ms: u64,
    /// When it was closed, if it was.
    pub closed_unix_ms: Option<u64>,
    /// The model or component, when the quote is kept.
    pub model: Option<ContentHash>,
    /// What the catalogue calls it.
    pub model_name: Option<String>,
    /// Loading and running, in milliseconds that are paid for.
    pub gpu_ms: u64,
    /// Loading alone.
    pub load_ms: u64,
    /// Running alone.
    pub run_ms: u64,
    /// A component's own time.
    pub guest_ms: u64,
    /// What the renter owes for it.
    pub amount_nanocredits: u64,
    /// The most that it might have cost.
    pub max_total_nanocredits: u64,
    /// Vouchers signed.
    pub vouchers: u32,
    /// Receipts for them.
    pub receipts: u32,
    /// Tokens read.
    pub prompt_tokens: u32,
    /// Tokens written.
    pub completion_tokens: u32,
    /// Why it ended, if it did.
    pub reason: Option<CloseReason>,
    /// Digest of the contract.
    pub contract: Option<Digest>,
    /// Digest of the last receipt.
    pub receipt: Option<Digest>,
}

/// What a check of the journal found in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Objects ever kept.
    pub records: u64,
    /// Objects checked: all that are still kept.
    pub objects: u64,
    /// Objects that compaction dropped.
    pub dropped: u64,
}

/// A proof in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofLine {
    /// Whom it convicts.
    pub peer: PeerId,
    /// What was filled twice.
    pub place: String,
    /// The proof's digest.
    pub digest: Digest,
}

/// A proof in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofWritten {
    /// Where.
    pub file: PathBuf,
    /// The proof.
    #[serde(flatten)]
    pub proof: ProofLine,
    /// The file's length.
    pub bytes: u64,
}

/// JSON's numbers end at 64 bits; no ledger comes near 9 billion credits.
pub(super) fn number(nanos: i128) -> i64 {
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

impl Balance {
    /// As `ledger`, which is `me`'s, has it.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn of(ledger: &Ledger, me: PeerId) -> Result<Self, ReadError> {
        let totals = ledger.totals()?;
        let line = |pair: PairBalance| PairLine {
            peer: pair.peer,
            balance_nanocredits: number(pair.balance),
            lanes: pair.lanes,
            open: pair.open,
        };
        Ok(Self {
            peer: me,
            owed_to_us_nanocredits: number(totals.owed_to_us),
            we_owe_nanocredits: number(totals.we_owe),
            balance_nanocredits: number(totals.balance),
            pairs: ledger.pairs()?.into_iter().map(line).collect(),
        })
    }
}

/// See [`super::Ask::Pairs`].
pub(super) fn pairs(ledger: &Ledger, me: PeerId, now: UnixMillis) -> Result<Vec<Pair>, LedgerError> {
    let balances: BTreeMap<_, _> = ledger.pairs()?.into_iter().map(|pair| (pair.peer, pair)).collect();
    let paid = paid_by(ledger, me)?;
    let peers = ledger.peers()?.into_iter().chain(balances.keys().copied());
    let peers: BTreeSet<_> = peers.collect();
    let mut pairs = Vec::with_capacity(peers.len());
    for peer in peers {
        let Some(book) = ledger.book(peer)? else { continue };
        let standing = ledger.standing(peer, now)?;
        let (lanes, open) = balances.get(&peer).map_or((0, 0), |pair| (pair.lanes, pair.open));
        pairs.push(Pair {
            peer,
            balance_nanocredits: number(standing.balance),
            settled_nanocredits: standing.settled.get(),
            paid_nanocredits: paid.get(&peer).copied().unwrap_or_default().get(),
            open_caps_nanocredits: standing.open_caps.get(),
            credit_used_nanocredits: u64::try_from(standing.exposure()).unwrap_or(u64::MAX),
            lanes,
            open,
            epoch: book.epoch(),
            step: book.head().n,
            floor_unix_ms: book.head().floor.get(),
            frozen: standing.frozen,
            waiting: book.open().iter().map(|state| waiting(&book, state.body(), me)).collect(),
        });
    }
    Ok(pairs)
}

fn waiting(book: &PairBook, state: &PairState, me: PeerId) -> Waiting {
    let settle = state.settle.as_ref();
    Waiting {
        epoch: state.epoch,
        step: state.n,
        by: state.by,
        payer: settle.map(|settle| settle.payer),
        amount_nanocredits: settle.map(|settle| settle.amount.get()),
        reference: settle.map(|settle| settle.reference.clone()),
        balance_nanocredits: number(book.pair().owed_to(me, state.balance)),
        waits_for: if state.by == me { Side::Them } else { Side::Us },
    }
}

/// Our outside payments in agreed balances, by peer: an agreed one has both its state and its
/// countersignature in the journal.
fn paid_by(ledger: &Ledger, me: PeerId) -> Result<BTreeMap<PeerId, NanoCredit>, LedgerError> {
    let (mut proposed, mut paid) = (BTreeMap::new(), BTreeMap::<PeerId, NanoCredit>::new());
    ledger.each_object(|record| match record {
        Record::State(it) => {
            let ours = it.body.settle.as_ref().filter(|settle| settle.payer == me);
            let digest = preimage(&it.body).map(|bytes| Digest::from_bytes(*blake3::hash(&bytes).as_bytes()));
            if let (Some(settle), Ok(digest)) = (ours, digest) {
                proposed.insert(digest, settle.amount);
            }
        }
        Record::Countersign(it) => {
            let amount = proposed.remove(&it.body.state);
            if let (Some(amount), Some(peer)) = (amount, it.body.pair.other(me)) {
                let sum = paid.entry(peer).or_default();
                *sum = sum.saturating_add(amount);
            }
        }
        _ => {}
    })?;
    Ok(paid)
}

/// See [`super::Ask::Receipts`].
pub(super) fn receipts(ledger: &Ledger, which: &ReceiptsAsk) -> Result<Vec<Receipt>, BooksError> {
    let ReceiptsAsk { since, peer, job, limit } = which;
    let wanted = job.as_deref().map(find::job).transpose()?;
    // A job is looked for among all.
    let filter = Filter { since: *since, peer: *peer, limit: wanted.is_none().then_some(*limit) };
    let mut lanes = ledger.lanes(&filter)?;
    if let Some(wanted) = wanted {
        lanes.retain(|lane| wanted.is(&lane.lane));
    }
    Ok(lanes.iter().take(*limit).map(receipt).collect())
}

fn receipt(lane: &LaneSummary) -> Receipt {
    Receipt {
        job: lane.lane.to_string(),
        role: lane.role,
        peer: lane.peer,
        opened_unix_ms: lane.opened.get(),
        closed_unix_ms: lane.closed.map(UnixMillis::get),
        model: lane.model,
        model_name: lane.model.and_then(catalogue::name_of).map(str::to_owned),
        gpu_ms: lane.run_ms.saturating_add(lane.load_ms),
        load_ms: lane.load_ms,
        run_ms: lane.run_ms,
        guest_ms: lane.guest_ms,
        amount_nanocredits: lane.amount.get(),
        max_total_nanocredits: lane.max_total.get(),
        vouchers: lane.vouchers,
        receipts: lane.receipts,
        prompt_tokens: lane.prompt_tokens,
        completion_tokens: lane.completion_tokens,
        reason: lane.reason,
        contract: lane.contract,
        receipt: lane.receipt,
    }
}

/// See [`super::Ask::Check`].
pub(super) fn check(ledger: &Ledger) -> Result<Checked, LedgerError> {
    let found = ledger.check()?;
    Ok(Checked { records: found.records, objects: found.objects, dropped: found.dropped })
}

/// See [`super::Ask::Proofs`].
pub(super) fn proofs(ledger: &Ledger) -> Result<Vec<ProofLine>, BooksError> {
    ledger.proofs()?.iter().map(file::proof_line).collect()
}

/// See [`super::Ask::Proof`].
pub(super) fn proof(ledger: &Ledger, peer: PeerId, out: &Path) -> Result<ProofWritten, BooksError> {
    let proof = ledger.proof_against(peer)?.ok_or(BooksError::NoProof { peer })?;
    let bytes = wire::encode(&proof).map_err(BooksError::Encoding)?;
    let mut draft = file::Draft::begin(out, file::Replaces::Proof)?;
    draft.write(&bytes)?;
    let length = draft.finish()?;
    Ok(ProofWritten { file: out.to_owned(), proof: file::proof_line(&proof)?, bytes: length })
}
