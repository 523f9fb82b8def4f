//! From an open stream to an accepted job.
//!
//! Owns: the order of the first frames, and what is made durable before `Accept` leaves. Never: runs
//! anything. Called by [`crate::driver`]; it ends with an [`AcceptedJob`] or a refusal.

use std::sync::Arc;
use std::time::Duration;

use potluck_node::accounts::LiveLane;
use potluck_node::fault;
use potluck_protocol::fault::RefusalCode;
use potluck_protocol::id::ContentHash;
use potluck_protocol::job::{ExecSpec, Job, JobSpec, job_digest};
use potluck_protocol::settle::Accept;
use potluck_protocol::unit::GpuMillis;
use potluck_protocol::wire::{ProviderFrame, Refusal, RenterFrame};
use thiserror::Error;
use tokio::time::timeout;

use crate::admission::AdmittedJob;
use crate::clock::wall_now;
use crate::desk::{Desk, Place, boxed};
use crate::frames::{JobWire, StreamFault};
use crate::gate::{YieldSignal, owner_needs_it};
use crate::keeping::NotKept;
use crate::verify::SignedJob;

/// The first frame and the whole job must be here within this time.
const INTAKE_WITHIN: Duration = Duration::from_secs(30);
/// A component may take longer: a renter that sends slower than this keeps others waiting.
const SLOWEST_BYTES_PER_SECOND: u64 = 262_144;
/// The longest silence before the job is here.
const FRAME_WITHIN: Duration = Duration::from_secs(10);

/// Why a stream brought no job. Nothing was recorded.
#[derive(Debug, Error)]
pub enum NotTaken {
    /// It is to be told so.
    #[error("{}: {}", .0.code.name(), .0.reason)]
    Refused(Refusal),
    /// Nobody is there to be told.
    #[error(transparent)]
    Gone(#[from] StreamFault),
}

/// A job that was promised to the renter and is in the ledger.
#[derive(Debug)]
pub struct AcceptedJob {
    /// Its contract and place.
    pub admitted: AdmittedJob,
    /// Holds its place in the queue.
    pub place: Place,
    /// What is asked.
    pub task: Task,
    /// No sync ends the lane while we work on it.
    pub live: LiveLane,
}

/// What is asked of the workers.
#[derive(Debug)]
pub enum Task {
    /// An answer of a model.
    Generate(JobSpec),
    /// A run of a component.
    Exec(Box<ExecOrder>),
}

/// A component's run, with all that it takes.
#[derive(Debug)]
pub struct ExecOrder {
    /// What the renter asks.
    pub spec: ExecSpec,
    /// The component, when it was not compiled here before.
    pub component: Option<Vec<u8>>,
    /// Its input.
    pub input: Vec<u8>,
    /// How long it may compute: the contract's longest time.
    pub compute: Duration,
}

/// Reads, checks, admits, records and accepts a job.
///
/// # Errors
/// A refusal for the renter, or the stream's fault. An error of the stream after the job was recorded
/// is not one of these: it shows at the next frame, when its books can be closed.
pub async fn take_job(
    desk: &Arc<Desk>,
    wire: &mut JobWire,
    stop: &YieldSignal,
) -> Result<AcceptedJob, NotTaken> {
    let late = |_| refused(RefusalCode::Malformed, "the job did not arrive in time");
    let (admitted, place, job) = tokio::select! {
        biased;
        () = stop.cancelled() => return Err(NotTaken::Refused(owner_needs_it())),
        received = timeout(INTAKE_WITHIN, receive(desk, wire)) => received.map_err(late)??,
    };
    let task = match job {
        Job::Generate(spec) => Task::Generate(spec),
        Job::Exec(spec) => tokio::select! {
            () = stop.cancelled() => return Err(NotTaken::Refused(owner_needs_it())),
            order = receive_payload(desk, wire, spec, admitted.verified().contract().max_ms) => {
                Task::Exec(Box::new(order?))
            }
        },
    };
    // The component took its time, in which the two may have parted.
    desk.may_open(admitted.verified().contract()).map_err(NotTaken::Refused)?;
    fault::point(fault::PROVIDER_CONTRACT_RECEIVED);
    let accept = Accept {
        lane: admitted.verified().contract().lane,
        contract: admitted.verified().signed_contract().digest(),
        at: wall_now(),
    };
    let accept = desk.sign(accept).map_err(|error| refused(RefusalCode::WorkerFailed, error.to_string()))?;
    let records = vec![
        admitted.verified().signed_quote().clone().into(),
        admitted.verified().signed_contract().clone().into(),
        accept.clone().into(),
    ];
    let live = desk.accounts().live(admitted.verified().contract().lane);
    fault::point(fault::PROVIDER_ACCEPT_SIGNED);
    desk.keep(records).await.map_err(not_recorded)?;
    fault::point(fault::PROVIDER_ACCEPT_KEPT);
    place.recorded();
    if let Err(error) = wire.send(&ProviderFrame::Accept(boxed(&accept))).await {
        tracing::debug!(job = %admitted.verified().contract().lane, %error, "accept not delivered");
    }
    fault::point(fault::PROVIDER_ACCEPT_SENT);
    Ok(AcceptedJob { admitted, place, task, live })
}

async fn receive(desk: &Arc<Desk>, wire: &mut JobWire) -> Result<(AdmittedJob, Place, Job), NotTaken> {
    let RenterFrame::Open { contract, quote, job_bytes } = next(wire).await? else {
        return Err(refused(RefusalCode::Malformed, "a job begins with its contract"));
    };
    let signed = SignedJob { contract: *contract, quote: *quote, job_bytes };
    let again = signed.contract.clone();
    let (admitted, place) = match desk.take(wire.peer(), signed) {
        Ok(taken) => taken,
        Err(refusal) => {
            if refusal.code == RefusalCode::Replayed {
                desk.compare(again).await;
            }
            return Err(NotTaken::Refused(refusal));
        }
    };
    let bytes = receive_parts(wire, admitted.verified().job_bytes()).await?;
    if job_digest(&bytes) != admitted.verified().contract().job {
        return Err(refused(RefusalCode::Malformed, "the job is not the one in the contract"));
    }
    let job = Job::from_bytes(&bytes).map_err(|error| refused(RefusalCode::Malformed, error.to_string()))?;
    let needs = match &job {
        Job::Generate(_) => None,
        Job::Exec(spec) => Some(spec.needs()),
    };
    if job.runs() != admitted.verified().model() || needs.as_ref() != admitted.verified().guest() {
        return Err(refused(RefusalCode::QuoteMismatch, "the job is for something else than the quote"));
    }
    Ok((admitted, place, job))
}

/// The component, unless it is known here, and its input: as the job announced them, to the byte.
async fn receive_payload(
    desk: &Desk,
    wire: &mut JobWire,
    spec: ExecSpec,
    max_ms: GpuMillis,
) -> Result<ExecOrder, NotTaken> {
    let known = desk.guests().is_some_and(|guests| guests.is_compiled(spec.component));
    wire.send(&ProviderFrame::Want { component: !known }).await?;
    let component_bytes = if known { 0 } else { usize::try_from(spec.component_bytes).unwrap_or(usize::MAX) };
    let input_bytes = usize::try_from(spec.input_bytes).unwrap_or(usize::MAX);
    let total = u64::try_from(component_bytes.saturating_add(input_bytes)).unwrap_or(u64::MAX);
    let within = INTAKE_WITHIN + Duration::from_secs(total / SLOWEST_BYTES_PER_SECOND);
    let receive = async {
        let component = receive_parts(wire, component_bytes).await?;
        Ok::<_, NotTaken>((component, receive_parts(wire, input_bytes).await?))
    };
    let late = |_| refused(RefusalCode::Malformed, "the component did not arrive in time");
    let (component, input) = timeout(within, receive).await.map_err(late)??;
    let is = |bytes: &[u8], hash: ContentHash| ContentHash::of(bytes) == hash;
    if !is(&input, spec.input) || (!known && !is(&component, spec.component)) {
        return Err(refused(RefusalCode::Malformed, "the component or its input is not the one in the job"));
    }
    let compute = Duration::from_millis(max_ms.get());
    Ok(ExecOrder { spec, component: (!known).then_some(component), input, compute })
}

/// The job's bytes: never more are held than the contract announced, which is within bounds.
async fn receive_parts(wire: &mut JobWire, length: usize) -> Result<Vec<u8>, NotTaken> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let RenterFrame::JobPart(part) = next(wire).await? else {
            return Err(refused(RefusalCode::Malformed, "the rest of the job is missing"));
        };
        if part.len() > length - bytes.len() {
            return Err(refused(RefusalCode::Malformed, "the job is longer than announced"));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

async fn next(wire: &mut JobWire) -> Result<RenterFrame, NotTaken> {
    wire.receive(FRAME_WITHIN).await.map_err(|fault| match fault {
        StreamFault::Malformed(error) => refused(RefusalCode::Malformed, error.to_string()),
        gone => NotTaken::Gone(gone),
    })
}

fn refused(code: RefusalCode, reason: impl Into<String>) -> NotTaken {
    NotTaken::Refused(Refusal::new(code, reason))
}

fn not_recorded(error: NotKept) -> NotTaken {
    let code = match &error {
        NotKept::Ledger(_) => RefusalCode::LedgerFailed,
        NotKept::Equivocated { .. } => RefusalCode::Frozen,
    };
    refused(code, error.to_string())
}
