//! Why a job costs what it costs: its terms, every meter and voucher, the formula, its end.
//!
//! Owns: [`Explanation`], made of a lane's objects alone. Never: computes a price in another way than the
//! protocol does. Called by [`super::Books`].

use std::collections::BTreeMap;

use potluck_protocol::id::{ContentHash, Digest, PeerId};
use potluck_protocol::job::FinishReason;
use potluck_protocol::offer::Terms;
use potluck_protocol::settle::{CloseReason, Contract, Meter, Usage, Voucher};
use serde::{Deserialize, Serialize};

use super::error::BooksError;
use super::find;
use crate::catalogue;
use crate::ledger::{LaneRole, LaneSummary, Ledger, Record};

/// One step of a job: a meter, its voucher and its receipt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// 1, 2, 3 …
    pub k: u32,
    /// Loading so far, in milliseconds.
    pub load_ms: u64,
    /// Running so far.
    pub run_ms: u64,
    /// A component's own time so far.
    pub guest_ms: u64,
    /// Output so far, when the meter is kept.
    pub tokens: Option<u32>,
    /// What the voucher promises for the whole job so far, when there is one.
    pub amount_nanocredits: Option<u64>,
    /// Digest of the meter, when it is kept.
    pub meter: Option<Digest>,
    /// Digest of the voucher, when it is kept.
    pub voucher: Option<Digest>,
    /// Digest of the receipt, when it is kept.
    pub receipt: Option<Digest>,
}

/// Why a job costs what it costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
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
    /// Digest of the contract.
    pub contract: Option<Digest>,
    /// Digest of the quote that it rests on.
    pub quote: Option<Digest>,
    /// Prices (nano-credits a second) and pace (milliseconds).
    pub terms: Option<Terms>,
    /// The most that it might cost.
    pub max_total_nanocredits: Option<u64>,
    /// The most time that it might take.
    pub max_ms: Option<u64>,
    /// In order.
    pub steps: Vec<Step>,
    /// Has compaction left out some of them?
    pub thinned: bool,
    /// How the amount comes to be.
    pub formula: Option<String>,
    /// The amount before it is rounded down: digits with a point.
    pub exact_nanocredits: Option<String>,
    /// What the renter owes for it.
    pub amount_nanocredits: u64,
    /// `time` or `money`, when the contract's limit ended the job.
    pub cut_by: Option<Cut>,
    /// Who ended it.
    pub ended_by: Option<PeerId>,
    /// Why.
    pub reason: Option<CloseReason>,
    /// How the answer ended.
    pub finish: Option<FinishReason>,
    /// Was it given up after a day of silence?
    pub abandoned: bool,
    /// Tokens read.
    pub prompt_tokens: u32,
    /// Tokens written.
    pub completion_tokens: u32,
    /// Digest of the last receipt.
    pub receipt: Option<Digest>,
    /// The agreed balance that it is in, or that came after: epoch and step.
    pub agreed_in: Option<(u32, u32)>,
}

/// Which limit ended a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// The contract's longest time.
    Time,
    /// The contract's most money.
    Money,
}

/// See [`super::Ask::Explain`].
pub(super) fn explain(ledger: &Ledger, id: &str) -> Result<Explanation, BooksError> {
    let summary = find::lane(ledger, id, &find::job(id)?)?;
    let objects = ledger.objects(&summary.lane)?;
    let head = ledger.book(summary.peer)?.map(|book| book.head()).filter(|head| head.n > 0);
    let agreed_in = head.filter(|head| summary.opened < head.floor).map(|head| (head.epoch, head.n));
    let mut kept = Kept::default();
    for object in objects {
        kept.take(object).map_err(BooksError::Encoding)?;
    }
    Ok(kept.explain(&summary, agreed_in))
}

/// The objects of a lane, by what they say.
#[derive(Debug, Default)]
struct Kept {
    contract: Option<Contract>,
    meters: BTreeMap<u32, (Digest, Meter)>,
    vouchers: BTreeMap<u32, (Digest, Voucher)>,
    receipts: BTreeMap<u32, Digest>,
    ended_by: Option<PeerId>,
    abandoned: bool,
}

impl Kept {
    fn take(&mut self, object: Record) -> Result<(), potluck_protocol::codec::WireError> {
        let digest = object.digest()?;
        match object {
            Record::Contract(it) => self.contract = Some(it.body),
            Record::Meter(it) => _ = self.meters.insert(it.body.k, (digest, it.body)),
            Record::Voucher(it) => _ = self.vouchers.insert(it.body.k, (digest, it.body)),
            Record::Receipt(it) => _ = self.receipts.insert(it.body.k, digest),
            // The provider's word counts tokens, so it goes first.
            Record::Close(it) if self.ended_by.is_none() || it.body.by == it.body.lane.provider => {
                self.ended_by = Some(it.body.by);
            }
            Record::Abandon(it) => {
                self.abandoned = true;
                self.ended_by = self.ended_by.or(Some(it.body.by));
            }
            _ => {}
        }
        Ok(())
    }

    fn steps(&self) -> Vec<Step> {
        let numbers: std::collections::BTreeSet<u32> =
            self.meters.keys().chain(self.vouchers.keys()).chain(self.receipts.keys()).copied().collect();
        let step = |k| {
            let (meter, voucher) = (self.meters.get(&k), self.vouchers.get(&k));
            let usage = meter.map(|(_, it)| it.usage).or(voucher.map(|(_, it)| it.usage)).unwrap_or_default();
            Step {
                k,
                load_ms: usage.load.get(),
                run_ms: usage.run.get(),
                guest_ms: usage.guest.get(),
                tokens: meter.map(|(_, it)| it.tokens),
                amount_nanocredits: voucher.map(|(_, it)| it.amount.get()),
                meter: meter.map(|(digest, _)| *digest),
                voucher: voucher.map(|(digest, _)| *digest),
                receipt: self.receipts.get(&k).copied(),
            }
        };
        numbers.into_iter().map(step).collect()
    }

    /// Is there a number below the last meter of which nothing, or not all, is kept?
    fn thinned(&self) -> bool {
        let last = self.meters.keys().next_back().max(self.vouchers.keys().next_back()).copied().unwrap_or(0);
        let kept = u32::try_from(self.meters.len()).unwrap_or(u32::MAX);
        kept < last
    }

    fn explain(self, summary: &LaneSummary, agreed_in: Option<(u32, u32)>) -> Explanation {
        let last = self.vouchers.values().next_back().map(|(_, voucher)| voucher);
        let priced = self.contract.as_ref().zip(last);
        let cut_by =
            priced.filter(|_| summary.reason == Some(CloseReason::LimitReached)).map(|(contract, last)| {
                if last.usage.total() >= contract.max_ms { Cut::Time } else { Cut::Money }
            });
        let contract = self.contract.as_ref();
        Explanation {
            job: summary.lane.to_string(),
            role: summary.role,
            peer: summary.peer,
            opened_unix_ms: summary.opened.get(),
            closed_unix_ms: summary.closed.map(|at| at.get()),
            model: summary.model,
            model_name: summary.model.and_then(catalogue::name_of).map(str::to_owned),
            contract: summary.contract,
            quote: contract.map(|it| it.quote),
            terms: contract.map(|it| it.terms),
            max_total_nanocredits: contract.map(|it| it.max_total.get()),
            max_ms: contract.map(|it| it.max_ms.get()),
            steps: self.steps(),
            thinned: self.thinned(),
            formula: priced.map(|(contract, last)| formula(&contract.terms, &last.usage)),
            exact_nanocredits: priced.map(|(contract, last)| exact(&contract.terms, &last.usage)),
            amount_nanocredits: summary.amount.get(),
            cut_by,
            ended_by: self.ended_by,
            reason: summary.reason,
            finish: summary.finish,
            abandoned: self.abandoned,
            prompt_tokens: summary.prompt_tokens,
            completion_tokens: summary.completion_tokens,
            receipt: summary.receipt,
            agreed_in,
        }
    }
}

fn phases(terms: &Terms, usage: &Usage) -> [(u64, u64); 3] {
    [
        (terms.run.get(), usage.run.get()),
        (terms.load.get(), usage.load.get()),
        (terms.guest.get(), usage.guest.get()),
    ]
}

/// `floor((38888 × 1284 + 13888 × 250) / 1000)`; what took no time is left out.
fn formula(terms: &Terms, usage: &Usage) -> String {
    let all = phases(terms, usage);
    let parts: Vec<_> =
        all.iter().filter(|(_, ms)| *ms > 0).map(|(rate, ms)| format!("{rate} × {ms}")).collect();
    let sum = if parts.is_empty() { "0".to_owned() } else { parts.join(" + ") };
    format!("floor(({sum}) / 1000)")
}

/// The sum with its three decimals, before they are dropped.
fn exact(terms: &Terms, usage: &Usage) -> String {
    let thousandths = phases(terms, usage)
        .iter()
        .fold(0_u128, |sum, (rate, ms)| sum.saturating_add(u128::from(*rate) * u128::from(*ms)));
    format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use potluck_protocol::unit::{GpuMillis, Rate};

    #[test]
    fn the_formula_reads_as_it_is_computed() {
        let terms = Terms {
            run: Rate::new(38_888),
            load: Rate::new(13_888),
            guest: Rate::new(5_555),
            quantum: GpuMillis::new(1_000),
            window: GpuMillis::new(2_000),
        };
        let usage = Usage { load: GpuMillis::new(250), run: GpuMillis::new(1_284), guest: GpuMillis::ZERO };
        assert_eq!(formula(&terms, &usage), "floor((38888 × 1284 + 13888 × 250) / 1000)");
        assert_eq!(exact(&terms, &usage), "53404.192");
        assert_eq!(usage.amount(&terms).get(), 53_404);
        assert_eq!(formula(&terms, &Usage::default()), "floor((0) / 1000)");
        assert_eq!(exact(&terms, &Usage::default()), "0.000");
    }
}
