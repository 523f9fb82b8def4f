//! One job at one provider, from the signed contract to the closed lane: the renter's end.
//!
//! Owns: the conversation on a job's stream and what is written to the renter's ledger, in which
//! order (durable before sent). Never: decides what may be paid (`protocol::lane` does). Called by
//! `potluck run`. It ends when the lane is closed, the provider is silent for [`SILENCE`], or the
//! person stops it and the settlement of that is in or late.

use std::time::{Duration, Instant};

use potluck_node::accounts::LiveLane;
use potluck_node::fault;
use potluck_node::identity::Identity;
use potluck_node::net::{FrameReader, FrameWriter, Network, OpenError};
use potluck_protocol::fault::RefusalCode;
use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::job::{FinishReason, job_digest};
use potluck_protocol::lane::RenterLane;
use potluck_protocol::limits::{MAX_GUEST_OUTPUT_BYTES, MAX_JOB_PART_BYTES, SILENCE_MS};
use potluck_protocol::offer::Quote;
use potluck_protocol::settle::{Accept, Close, CloseReason, Contract, Meter, Phase, Receipt};
use potluck_protocol::sign::{Signed, Verified};
use potluck_protocol::unit::{GpuMillis, NANO, NanoCredit, Rate, UnixMillis};
use potluck_protocol::wire::{self, ProviderFrame, Refusal, RenterFrame};
use tokio_util::sync::CancellationToken;

use crate::books::Books;
use crate::error::Failure;
use crate::output::{Outcome, Printer};
use crate::search::{Candidate, wall_clock};

/// A provider silent this long inside a job is taken for dead.
const SILENCE: Duration = Duration::from_millis(SILENCE_MS);
/// Opening a stream and sending a frame take no longer on a working path.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// After the person stopped it, the last meter and the close take no longer.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// What a job may cost when the person names no budget.
const DEFAULT_BUDGET: NanoCredit = NanoCredit::new(NANO / 100);
/// A contract that is not started in this time is void.
const START_WITHIN_MS: u64 = 30_000;

/// What all jobs of one command share.
#[derive(Debug)]
pub struct Desk<'a> {
    /// Who we are.
    pub identity: &'a Identity,
    /// Our ledger and accounts.
    pub books: &'a Books,
    /// Our network.
    pub network: &'a Network,
    /// Cancelled when the person wants to stop.
    pub stop: &'a CancellationToken,
    /// When the command began.
    pub begun: Instant,
}

/// The most a job may cost.
#[derive(Debug, Clone, Copy)]
pub struct Spending {
    /// In money; [`DEFAULT_BUDGET`], or what the provider lends if that is less, when not set.
    pub budget: Option<NanoCredit>,
    /// In time, when less than the provider allows.
    pub max_ms: Option<GpuMillis>,
}

impl Spending {
    /// Does what the provider lends bound the job, because the person set no budget?
    #[must_use]
    pub fn is_lent(&self, candidate: &Candidate) -> bool {
        self.budget.is_none() && candidate.credit < DEFAULT_BUDGET
    }

    /// The most that a job at `candidate` may cost.
    ///
    /// # Errors
    /// When that does not pay for a millisecond at `rate`.
    fn at(&self, candidate: &Candidate, rate: Rate) -> Result<NanoCredit, JobFailure> {
        let provider = candidate.quote.body().provider;
        let most = self.budget.unwrap_or(DEFAULT_BUDGET.min(candidate.credit));
        if rate.amount(GpuMillis::new(1)) <= most {
            return Ok(most);
        }
        Err(match self.budget {
            Some(budget) => JobFailure::Final(Failure::BudgetTooSmall { budget, rate }),
            None => JobFailure::NotStarted(Failure::NoCredit { provider, credit: candidate.credit, rate }),
        })
    }
}

/// What is sent.
#[derive(Debug)]
pub struct Order {
    /// The job's canonical bytes.
    pub job_bytes: Vec<u8>,
    /// What follows it when it runs a component.
    pub payload: Option<Payload>,
}

/// A component and its input, as the job names them by hash.
#[derive(Debug)]
pub struct Payload {
    /// Binary wasm.
    pub component: Vec<u8>,
    /// Any bytes.
    pub input: Vec<u8>,
}

/// How a job at one provider failed: may the next one be tried?
#[derive(Debug)]
pub enum JobFailure {
    /// Nothing was started or owed: another provider may do it.
    NotStarted(Failure),
    /// It is over.
    Final(Failure),
}

impl<E: Into<Failure>> From<E> for JobFailure {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

/// Runs the job at the provider of `candidate`, printing as it goes.
///
/// # Errors
/// See [`JobFailure`]. Whatever was vouched is in the ledger.
pub async fn run(
    desk: &Desk<'_>,
    candidate: &Candidate,
    order: &Order,
    spending: Spending,
    printer: &mut Printer,
) -> Result<Outcome, JobFailure> {
    let quote = candidate.quote.body();
    // A component works before its models do.
    let rate = if order.payload.is_some() { quote.terms.guest } else { quote.terms.run };
    let max_total = spending.at(candidate, rate)?;
    let contract = sign_contract(desk, &candidate.quote, &order.job_bytes, max_total, spending.max_ms)
        .map_err(|failure| match failure {
            Failure::NoLane { .. } => JobFailure::NotStarted(failure),
            failure => JobFailure::Final(failure),
        })?;
    let provider = quote.provider;
    let unreachable = |why: String| JobFailure::NotStarted(Failure::Unreachable { provider, why });
    let stream = desk.network.open_job(provider, SEND_LIMIT).await.map_err(|why| match why {
        OpenError::OtherVersion(version) => JobFailure::NotStarted(version.into()),
        other => unreachable(other.to_string()),
    })?;
    let records = vec![candidate.quote.clone().into(), contract.clone().into()];
    let live = desk.books.accounts.live(contract.body().lane);
    fault::point(fault::RENTER_CONTRACT_SIGNED);
    desk.books.keep(records).await?;
    fault::point(fault::RENTER_CONTRACT_KEPT);
    let (reader, writer) = stream.split();
    let lane = RenterLane::new(&contract);
    let lane = if order.payload.is_some() { lane.of_component() } else { lane };
    let mut session = Session {
        desk,
        provider,
        lane,
        quote,
        rtt: candidate.rtt,
        reader,
        writer,
        accepted: None,
        sent: Instant::now(),
        prompt_tokens: 0,
        ttft: None,
        receipt: None,
        contract,
        stopping: None,
        output_gone: false,
        closed: false,
        payload: order.payload.as_ref(),
        wanted: false,
        output: Vec::new(),
        lent: spending.is_lent(candidate),
        _live: live,
    };
    let outcome = session.converse(&order.job_bytes, &candidate.quote, printer).await;
    if let Err(JobFailure::Final(failure) | JobFailure::NotStarted(failure)) = &outcome {
        session.abandon(failure).await;
    }
    if !session.closed {
        // Only the two ledgers together tell what came of it.
        desk.books.accounts.parted(provider);
    }
    outcome
}

fn sign_contract(
    desk: &Desk<'_>,
    quote: &Verified<Quote>,
    job_bytes: &[u8],
    max_total: NanoCredit,
    max_ms: Option<GpuMillis>,
) -> Result<Verified<Contract>, Failure> {
    let lane = getrandom::u64().map_err(|why| internal(&format!("no randomness: {why}")))?;
    let (body, provider) = (quote.body(), quote.body().provider);
    let now = wall_clock();
    let contract = Contract {
        lane: LaneId { renter: body.renter, provider, epoch: desk.books.accounts.epoch(provider), lane },
        job: job_digest(job_bytes),
        quote: quote.digest(),
        terms: body.terms,
        max_total,
        max_ms: max_ms.map_or(body.max_ms, |ours| ours.min(body.max_ms)),
        created: now,
        start_by: now.saturating_add(UnixMillis::new(START_WITHIN_MS)),
    };
    desk.books.accounts.may_open(&contract).map_err(|why| Failure::NoLane { peer: provider, why })?;
    desk.identity.signing_key().sign(contract).map_err(|why| internal(&why.to_string()))
}

fn internal(what: &str) -> Failure {
    Failure::Internal { what: what.to_owned() }
}

struct Session<'a> {
    desk: &'a Desk<'a>,
    provider: PeerId,
    quote: &'a Quote,
    contract: Verified<Contract>,
    lane: RenterLane,
    rtt: Duration,
    reader: FrameReader,
    writer: FrameWriter,
    accepted: Option<Verified<Accept>>,
    /// When the contract went out: no work can have begun before.
    sent: Instant,
    prompt_tokens: u32,
    ttft: Option<Duration>,
    receipt: Option<Digest>,
    /// When the person stopped it.
    stopping: Option<Instant>,
    /// Nobody reads our stdout any more.
    output_gone: bool,
    /// The provider's close is in our ledger.
    closed: bool,
    /// The component, when the job runs one.
    payload: Option<&'a Payload>,
    /// The provider asked for the component or its input.
    wanted: bool,
    /// What the component gave so far.
    output: Vec<u8>,
    /// Is the contract's limit what the provider lends, not what the person set?
    lent: bool,
    /// No sync ends the lane while we work on it.
    _live: LiveLane,
}

impl Session<'_> {
    async fn converse(
        &mut self,
        job_bytes: &[u8],
        quote: &Verified<Quote>,
        printer: &mut Printer,
    ) -> Result<Outcome, JobFailure> {
        self.open(job_bytes, quote).await?;
        loop {
            let frame = self.next_frame().await?;
            if let Some(outcome) = self.on_frame(frame, printer).await? {
                return Ok(outcome);
            }
            if self.output_gone && self.stopping.is_none() {
                self.cancel().await?;
            }
        }
    }

    async fn open(&mut self, job_bytes: &[u8], quote: &Verified<Quote>) -> Result<(), JobFailure> {
        let open = RenterFrame::Open {
            contract: Box::new(self.contract.signed().clone()),
            quote: Box::new(quote.signed().clone()),
            job_bytes: u32::try_from(job_bytes.len()).unwrap_or(u32::MAX),
        };
        self.sent = Instant::now();
        self.send(&open).await?;
        for part in job_bytes.chunks(MAX_JOB_PART_BYTES) {
            self.send(&RenterFrame::JobPart(part.to_vec())).await?;
        }
        fault::point(fault::RENTER_CONTRACT_SENT);
        Ok(())
    }

    async fn send(&mut self, frame: &RenterFrame) -> Result<(), JobFailure> {
        let bytes = wire::encode(frame).map_err(|why| internal(&why.to_string()))?;
        match self.writer.write(&bytes, SEND_LIMIT).await {
            Ok(()) => Ok(()),
            Err(why) => Err(self.lost(why.to_string())),
        }
    }

    /// A dead provider: before the accept nothing is owed and another may be tried.
    fn lost(&self, why: String) -> JobFailure {
        let (provider, tokens) = (self.provider, self.lane.received());
        if self.accepted.is_none() {
            JobFailure::NotStarted(Failure::Unreachable { provider, why })
        } else {
            JobFailure::Final(Failure::ProviderLost { provider, tokens, why })
        }
    }

    /// The next frame; meanwhile the person may stop the job.
    async fn next_frame(&mut self) -> Result<ProviderFrame, JobFailure> {
        let bytes = loop {
            let left = match self.stopping {
                None => SILENCE,
                Some(since) => STOP_LIMIT.saturating_sub(since.elapsed()),
            };
            tokio::select! {
                biased;
                () = self.desk.stop.cancelled(), if self.stopping.is_none() => self.cancel().await?,
                read = self.reader.read(left) => break read,
            }
        };
        match bytes {
            Ok(Some(bytes)) => wire::decode_bounded(&bytes).map_err(|why| self.misbehaved(why.to_string())),
            _ if self.stopping.is_some() => {
                Err(JobFailure::Final(Failure::Cancelled { tokens: self.lane.received() }))
            }
            Ok(None) => Err(self.lost("it closed the stream before the job was settled".into())),
            Err(why) => Err(self.lost(why.to_string())),
        }
    }

    async fn cancel(&mut self) -> Result<(), JobFailure> {
        self.stopping = Some(Instant::now());
        self.send(&RenterFrame::Cancel).await
    }

    fn misbehaved(&self, what: String) -> JobFailure {
        JobFailure::Final(Failure::Misbehaved { provider: self.provider, what })
    }

    async fn on_frame(
        &mut self,
        frame: ProviderFrame,
        printer: &mut Printer,
    ) -> Result<Option<Outcome>, JobFailure> {
        let early =
            matches!(frame, ProviderFrame::Accept(_) | ProviderFrame::Refuse(_) | ProviderFrame::Want { .. });
        if self.accepted.is_none() && !early {
            return Err(self.misbehaved("it worked before it accepted".into()));
        }
        let printed = match frame {
            ProviderFrame::Accept(accept) => self.on_accept(*accept, printer).await?,
            ProviderFrame::Refuse(refusal) => return Err(self.on_refuse(refusal)),
            ProviderFrame::Phase { phase, ahead } => self.on_phase(phase, ahead, printer),
            ProviderFrame::Started { prompt_tokens } => {
                self.prompt_tokens = prompt_tokens;
                Ok(())
            }
            ProviderFrame::Output { tokens, text } => self.on_output(&tokens, &text, printer),
            ProviderFrame::Meter(meter) => {
                self.on_meter(*meter).await?;
                Ok(())
            }
            ProviderFrame::Receipt(receipt) => {
                self.on_receipt(*receipt).await?;
                Ok(())
            }
            ProviderFrame::Want { component } => {
                self.on_want(component, printer).await?;
                Ok(())
            }
            ProviderFrame::Progress { .. } | ProviderFrame::Log(_) | ProviderFrame::OutputPart(_)
                if self.payload.is_none() =>
            {
                return Err(self.misbehaved("it spoke of a component; none was sent".into()));
            }
            ProviderFrame::Progress { permille, note } => printer.progress(permille, &note),
            ProviderFrame::Log(bytes) => printer.log(&bytes),
            ProviderFrame::OutputPart(part) => {
                self.on_part(&part)?;
                Ok(())
            }
            ProviderFrame::Close { close, refusal } => {
                return self.on_close(*close, refusal, printer).await.map(Some);
            }
        };
        self.output_gone |= printed.is_err();
        Ok(None)
    }

    async fn on_accept(
        &mut self,
        accept: Signed<Accept>,
        printer: &Printer,
    ) -> Result<std::io::Result<()>, JobFailure> {
        let accept = accept.verify().map_err(|why| self.misbehaved(why.to_string()))?;
        let body = accept.body();
        if body.lane != self.contract.body().lane || body.contract != self.contract.digest() {
            return Err(self.misbehaved("it accepted another contract".into()));
        }
        if self.accepted.is_some() {
            return Err(self.misbehaved("it accepted twice".into()));
        }
        fault::point(fault::RENTER_ACCEPT_RECEIVED);
        self.desk.books.keep(vec![accept.clone().into()]).await?;
        fault::point(fault::RENTER_ACCEPT_KEPT);
        let printed = printer.accepted(&body.lane, self.contract.digest());
        self.accepted = Some(accept);
        Ok(printed)
    }

    fn on_refuse(&self, refusal: Refusal) -> JobFailure {
        let started = self.accepted.is_some();
        let failure =
            Failure::Refused { provider: self.provider, code: refusal.code, reason: refusal.reason, started };
        let elsewhere = matches!(
            refusal.code,
            RefusalCode::UnknownModel
                | RefusalCode::Busy
                | RefusalCode::WorkerFailed
                | RefusalCode::LedgerFailed
                | RefusalCode::OwnerYield
                | RefusalCode::Expired
                | RefusalCode::CreditExhausted
                | RefusalCode::NoGuests
                | RefusalCode::SyncNeeded
                | RefusalCode::Frozen
        );
        if elsewhere && !started { JobFailure::NotStarted(failure) } else { JobFailure::Final(failure) }
    }

    /// Sends the component, if the provider lacks it, and the input.
    async fn on_want(&mut self, component: bool, printer: &Printer) -> Result<(), JobFailure> {
        let Some(payload) = self.payload.filter(|_| !self.wanted && self.accepted.is_none()) else {
            return Err(self.misbehaved("it asked for a component that is not its to ask for".into()));
        };
        self.wanted = true;
        if component {
            printer.waiting(format!("sending the component, {} KiB", payload.component.len() / 1024));
        }
        let component = if component { payload.component.as_slice() } else { &[] };
        for part in component.chunks(MAX_JOB_PART_BYTES).chain(payload.input.chunks(MAX_JOB_PART_BYTES)) {
            if self.desk.stop.is_cancelled() {
                return self.cancel().await;
            }
            self.send(&RenterFrame::JobPart(part.to_vec())).await?;
        }
        Ok(())
    }

    fn on_part(&mut self, part: &[u8]) -> Result<(), JobFailure> {
        let most = usize::try_from(MAX_GUEST_OUTPUT_BYTES).unwrap_or(usize::MAX);
        if self.output.len().saturating_add(part.len()) > most {
            return Err(self.misbehaved("it sent more output than a component may give".into()));
        }
        self.lane.delivered_part(part);
        self.output.extend_from_slice(part);
        self.ttft.get_or_insert_with(|| self.desk.begun.elapsed());
        Ok(())
    }

    fn on_phase(&mut self, phase: Phase, ahead: u32, printer: &Printer) -> std::io::Result<()> {
        printer.phase(phase, ahead)
    }

    fn on_output(&mut self, tokens: &[u32], text: &str, printer: &mut Printer) -> std::io::Result<()> {
        self.lane.delivered(tokens);
        if !tokens.is_empty() && self.ttft.is_none() {
            self.ttft = Some(self.desk.begun.elapsed());
        }
        if self.output_gone { Ok(()) } else { printer.text(text, tokens.len()) }
    }

    async fn on_meter(&mut self, meter: Signed<Meter>) -> Result<(), JobFailure> {
        fault::point(fault::RENTER_METER_RECEIVED);
        let meter = meter.verify().map_err(|why| self.misbehaved(why.to_string()))?;
        let voucher = self
            .lane
            .pay(&meter, self.sent.elapsed(), self.rtt)
            .map_err(|why| Failure::Overclaimed { provider: self.provider, why })?;
        let key = self.desk.identity.signing_key();
        let voucher = key.sign(voucher).map_err(|why| internal(&why.to_string()))?;
        fault::point(fault::RENTER_VOUCHER_SIGNED);
        // Durable before it leaves (I8); the ledger refuses a second voucher for this slot (I7).
        self.desk.books.keep(vec![meter.into(), voucher.clone().into()]).await?;
        fault::point(fault::RENTER_VOUCHER_KEPT);
        self.lane.signed(&voucher);
        self.send(&RenterFrame::Voucher(Box::new(voucher.into_signed()))).await?;
        fault::point(fault::RENTER_VOUCHER_SENT);
        Ok(())
    }

    async fn on_receipt(&mut self, receipt: Signed<Receipt>) -> Result<(), JobFailure> {
        let receipt = receipt.verify().map_err(|why| self.misbehaved(why.to_string()))?;
        if !self.lane.is_receipt(receipt.body()) {
            return Err(self.misbehaved("its receipt is not for our voucher".into()));
        }
        let digest = receipt.digest();
        fault::point(fault::RENTER_RECEIPT_RECEIVED);
        self.desk.books.keep(vec![receipt.into()]).await?;
        fault::point(fault::RENTER_RECEIPT_KEPT);
        self.receipt = Some(digest);
        Ok(())
    }

    async fn on_close(
        &mut self,
        close: Signed<Close>,
        refusal: Option<Refusal>,
        printer: &mut Printer,
    ) -> Result<Outcome, JobFailure> {
        let close = close.verify().map_err(|why| self.misbehaved(why.to_string()))?;
        let body = close.body();
        let ours = body.lane == self.contract.body().lane && body.by == self.provider;
        if !ours || body.k != self.lane.vouchers() || body.amount != self.lane.amount() {
            return Err(self.misbehaved("its close is not what was vouched".into()));
        }
        fault::point(fault::RENTER_CLOSE_RECEIVED);
        self.desk.books.keep(vec![close.clone().into()]).await?;
        fault::point(fault::RENTER_CLOSE_KEPT);
        self.closed = true;
        let outcome = self.outcome(body);
        printer.end_text();
        // The job is settled whether or not anybody reads of it.
        let _ = printer.settled(&outcome);
        // We are done with the stream; the provider knows.
        let _ = self.writer.close(SEND_LIMIT).await;
        self.verdict(body, refusal, outcome)
    }

    fn outcome(&mut self, close: &Close) -> Outcome {
        Outcome {
            provider: self.provider,
            protection: self.quote.protection,
            usage: self.lane.usage(),
            amount: self.lane.amount(),
            vouchers: self.lane.vouchers(),
            receipt: self.receipt,
            finish: close.finish,
            prompt_tokens: close.prompt_tokens.max(self.prompt_tokens),
            completion_tokens: if self.payload.is_some() { 0 } else { self.lane.received() },
            is_component: self.payload.is_some(),
            output: std::mem::take(&mut self.output),
            ttft: self.ttft,
            elapsed: self.desk.begun.elapsed(),
        }
    }

    /// Is this end of the job what the person asked for?
    fn verdict(
        &self,
        close: &Close,
        refusal: Option<Refusal>,
        outcome: Outcome,
    ) -> Result<Outcome, JobFailure> {
        if self.stopping.is_some() {
            return Err(JobFailure::Final(Failure::Cancelled { tokens: outcome.completion_tokens }));
        }
        if close.reason == CloseReason::Completed && close.finish == FinishReason::Failed {
            let reason = refusal.map_or_else(|| "it gave no reason".to_owned(), |refusal| refusal.reason);
            return Err(JobFailure::Final(Failure::GuestFailed { reason }));
        }
        let ended = |code, reason: &str| {
            let (code, reason) = match refusal {
                Some(refusal) => (refusal.code, refusal.reason),
                None => (code, reason.to_owned()),
            };
            JobFailure::Final(Failure::Refused { provider: self.provider, code, reason, started: true })
        };
        match close.reason {
            CloseReason::Completed => Ok(outcome),
            CloseReason::LimitReached => Err(JobFailure::Final(self.limit_reached(&outcome))),
            CloseReason::OwnerYield => Err(JobFailure::Final(Failure::OwnerYielded {
                provider: self.provider,
                tokens: outcome.completion_tokens,
                paid_ms: outcome.usage.total().get(),
                amount: outcome.amount,
            })),
            CloseReason::ProviderFailed => Err(ended(RefusalCode::WorkerFailed, "its worker failed")),
            CloseReason::RenterFailed => Err(ended(RefusalCode::VoucherMissing, "it misses a voucher")),
            CloseReason::RenterCancelled | CloseReason::PeerLost => {
                Err(ended(RefusalCode::Malformed, "it closed the job as if we had"))
            }
        }
    }

    /// Which of the contract's two limits ended it: the one that has no millisecond left.
    fn limit_reached(&self, outcome: &Outcome) -> Failure {
        let (contract, tokens) = (self.contract.body(), outcome.completion_tokens);
        let paid_ms = outcome.usage.total().get();
        if outcome.usage.total() >= contract.max_ms {
            return Failure::TimeReached { provider: self.provider, tokens, paid_ms };
        }
        if self.lent {
            let (provider, credit) = (self.provider, contract.max_total);
            return Failure::CreditReached { provider, credit, tokens, paid_ms };
        }
        Failure::BudgetReached { budget: contract.max_total, tokens, paid_ms }
    }

    /// Closes the lane in our own ledger when the provider did not: the last voucher is final.
    async fn abandon(&mut self, failure: &Failure) {
        if self.closed || matches!(failure, Failure::Append(_)) {
            return;
        }
        let reason = match failure {
            Failure::Cancelled { .. } => CloseReason::RenterCancelled,
            Failure::Misbehaved { .. }
            | Failure::Equivocated { .. }
            | Failure::Overclaimed { .. }
            | Failure::Refused { .. } => CloseReason::ProviderFailed,
            _ => CloseReason::PeerLost,
        };
        let close = Close {
            lane: self.contract.body().lane,
            by: self.desk.identity.peer(),
            k: self.lane.vouchers(),
            amount: self.lane.amount(),
            reason,
            finish: FinishReason::Cancelled,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.lane.received(),
            result: self.contract.digest(),
            at: wall_clock(),
        };
        if let Ok(close) = self.desk.identity.signing_key().sign(close) {
            fault::point(fault::RENTER_OWN_CLOSE_SIGNED);
            // A lane that is closed already keeps its first close; either way it is closed.
            if let Err(why) = self.desk.books.keep(vec![close.into()]).await {
                tracing::warn!(%why, "the lane stays open in our ledger");
            }
            fault::point(fault::RENTER_OWN_CLOSE_KEPT);
        }
        if !matches!(failure, Failure::Unreachable { .. } | Failure::ProviderLost { .. }) {
            let _ = self.send(&RenterFrame::Cancel).await;
        }
        let _ = self.writer.close(SEND_LIMIT).await;
    }
}
