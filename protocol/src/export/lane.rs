//! One lane of an export file: its objects in order, each against the ones before it.
//!
//! Owns: [`LaneAudit`], which holds the newest of each kind and nothing else. Never: asks for an object
//! that is not there: a ledger leaves out the middle of old lanes, and a gap is counted, not blamed.
//! Called by [`super::audit`].

use super::At;
use super::audit::{Broken, Faults};
use crate::balance::Folded;
use crate::id::{Digest, LaneId};
use crate::settle::{Contract, Meter, Receipt, Usage, Voucher};
use crate::statement::{Proven, Statement};
use crate::unit::{NanoCredit, UnixMillis};

/// A lane so far.
#[derive(Debug)]
pub(super) struct LaneAudit {
    lane: LaneId,
    contract: Option<(Digest, Contract)>,
    meter: Option<(Digest, Meter)>,
    voucher: Option<(Digest, Voucher)>,
    receipt: u32,
    ended: bool,
    thinned: bool,
    unproven: bool,
}

impl LaneAudit {
    pub(super) fn new(lane: LaneId) -> Self {
        Self {
            lane,
            contract: None,
            meter: None,
            voucher: None,
            receipt: 0,
            ended: false,
            thinned: false,
            unproven: false,
        }
    }

    pub(super) fn lane(&self) -> LaneId {
        self.lane
    }

    /// Is an end on record?
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Are objects in the middle left out?
    pub(super) fn thinned(&self) -> bool {
        self.thinned
    }

    /// Is there anything that only an object that is left out could prove?
    pub(super) fn unproven(&self) -> bool {
        self.unproven || (self.contract.is_none() && self.voucher.is_some())
    }

    /// When its contract was created; the beginning of time when that is left out.
    pub(super) fn created(&self) -> UnixMillis {
        self.contract.as_ref().map_or(UnixMillis::ZERO, |(_, contract)| contract.created)
    }

    /// As a balance takes it in.
    pub(super) fn folded(&self) -> Option<Folded> {
        let (voucher, body) = self.voucher.as_ref()?;
        Some(Folded { lane: self.lane, k: body.k, amount: body.amount, voucher: *voucher })
    }

    /// Takes the next object of the lane.
    pub(super) fn take(&mut self, at: At, statement: &Statement, proven: &Proven, faults: &mut Faults) {
        let digest = proven.digest;
        let judged = match statement {
            Statement::Contract(it) => {
                self.contract = Some((digest, it.body.clone()));
                Ok(())
            }
            Statement::Accept(it) => self.is_contract(it.body.contract),
            Statement::Meter(it) => {
                let judged = self.judge_meter(&it.body);
                self.meter = Some((digest, it.body.clone()));
                judged
            }
            Statement::Voucher(it) => {
                let judged = self.judge_voucher(&it.body);
                self.voucher = Some((digest, it.body.clone()));
                judged
            }
            Statement::Receipt(it) => self.judge_receipt(&it.body),
            Statement::Close(it) => self.judge_end(it.body.k, it.body.amount, None),
            Statement::Abandon(it) => self.judge_end(it.body.k, it.body.amount, Some(it.body.voucher)),
            _ => Ok(()),
        };
        if let Err(broken) = judged {
            faults.add(at, statement.slot(), broken);
        }
    }

    fn is_contract(&self, named: Digest) -> Result<(), Broken> {
        match &self.contract {
            Some((contract, _)) if *contract != named => Err(Broken::OtherContract),
            _ => Ok(()),
        }
    }

    fn judge_meter(&mut self, meter: &Meter) -> Result<(), Broken> {
        self.is_contract(meter.contract)?;
        let (k, usage, tokens, last) = self
            .meter
            .as_ref()
            .map_or((0, Usage::default(), 0, false), |(_, it)| (it.k, it.usage, it.tokens, it.last));
        self.thinned |= k.checked_add(1) != Some(meter.k);
        if last {
            return Err(Broken::AfterLast);
        }
        if meter.usage.continues(&usage) && meter.tokens >= tokens { Ok(()) } else { Err(Broken::Backwards) }
    }

    fn judge_voucher(&mut self, voucher: &Voucher) -> Result<(), Broken> {
        match self.meter.as_ref().filter(|(_, meter)| meter.k == voucher.k) {
            Some((digest, meter)) if *digest != voucher.meter || meter.usage != voucher.usage => {
                return Err(Broken::Meter);
            }
            Some(_) => {}
            None => self.thinned = true,
        }
        self.judge_link(voucher)?;
        let Some((_, contract)) = &self.contract else { return Ok(()) };
        let price = voucher.usage.amount(&contract.terms);
        if price != voucher.amount {
            return Err(Broken::Price { price, got: voucher.amount });
        }
        let over = voucher.usage.total() > contract.max_ms || voucher.amount > contract.max_total;
        if over { Err(Broken::OverLimit) } else { Ok(()) }
    }

    /// I2: one after the other, each naming the one before, nothing falling.
    fn judge_link(&mut self, voucher: &Voucher) -> Result<(), Broken> {
        let before = match &self.voucher {
            Some((digest, before)) => {
                if !voucher.usage.continues(&before.usage) || voucher.amount < before.amount {
                    return Err(Broken::Backwards);
                }
                (before.k.checked_add(1) == Some(voucher.k)).then_some(*digest)
            }
            None if voucher.k == 1 => self.contract.as_ref().map(|(digest, _)| *digest),
            None => None,
        };
        match before {
            Some(before) if before != voucher.previous => Err(Broken::Link),
            Some(_) => Ok(()),
            None => {
                self.thinned |= voucher.k != 1;
                Ok(())
            }
        }
    }

    fn judge_receipt(&mut self, receipt: &Receipt) -> Result<(), Broken> {
        let before = std::mem::replace(&mut self.receipt, receipt.k);
        match self.voucher.as_ref().filter(|(_, voucher)| voucher.k == receipt.k) {
            Some((digest, voucher)) if *digest != receipt.voucher || voucher.amount != receipt.amount => {
                Err(Broken::Voucher)
            }
            Some(_) => {
                self.thinned |= before.checked_add(1) != Some(receipt.k);
                Ok(())
            }
            None => {
                self.thinned = true;
                Ok(())
            }
        }
    }

    fn judge_end(&mut self, k: u32, amount: NanoCredit, named: Option<Digest>) -> Result<(), Broken> {
        self.ended = true;
        let first = (0, NanoCredit::ZERO, self.contract.as_ref().map(|(digest, _)| *digest));
        let (last, due, digest) =
            self.voucher.as_ref().map_or(first, |(digest, it)| (it.k, it.amount, Some(*digest)));
        // Under an older voucher the end was signed before the last one came.
        self.unproven |= k > last;
        let other = named.is_some_and(|named| digest.is_some_and(|digest| digest != named));
        if k == last && (amount != due || other) { Err(Broken::Voucher) } else { Ok(()) }
    }
}
