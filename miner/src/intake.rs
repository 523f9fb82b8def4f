//! From an open stream to an accepted job.
//!
//! Owns: the order of the first frames, and what is made durable before `Accept` leaves. Never: runs
//! anything. Called by [`crate::driver`]; it ends with an [`AcceptedJob`] or a refusal.

use std::sync::Arc;
use std::time::Duration;

use potluck_node::ledger::{AppendError, Record};
use potluck_protocol::fault::RefusalCode;
use potluck_protocol::job::{JobSpec, job_digest};
use potluck_protocol::settle::Accept;
use potluck_protocol::wire::{ProviderFrame, Refusal, RenterFrame};
use thiserror::Error;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::admission::AdmittedJob;
use crate::clock::wall_now;
use crate::desk::{Desk, Place, boxed};
use crate::frames::{JobWire, StreamFault};
use crate::verify::SignedJob;

/// The first frame and the whole job must be here within this time.
const INTAKE_WITHIN: Duration = Duration::from_secs(30);
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
    pub spec: JobSpec,
}

/// Reads, checks, admits, records and accepts a job.
///
/// # Errors
/// A refusal for the renter, or the stream's fault. An error of the stream after the job was recorded
/// is not one of these: it shows at the next frame, when its books can be closed.
pub async fn take_job(
    desk: &Arc<Desk>,
    wire: &mut JobWire,
    stop: &CancellationToken,
) -> Result<AcceptedJob, NotTaken> {
    let late = |_| refused(RefusalCode::Malformed, "the job did not arrive in time");
    let (admitted, place, spec) = tokio::select! {
        () = stop.cancelled() => return Err(refused(RefusalCode::OwnerYield, "the provider is stopping")),
        received = timeout(INTAKE_WITHIN, receive(desk, wire)) => received.map_err(late)??,
    };
    let accept = Accept {
        lane: admitted.verified().contract().lane,
        contract: admitted.verified().signed_contract().digest(),
        at: wall_now(),
    };
    let accept = desk.sign(accept).map_err(|error| refused(RefusalCode::WorkerFailed, error.to_string()))?;
    let records = vec![
        Record::Quote(admitted.verified().signed_quote().signed().clone()),
        Record::Contract(admitted.verified().signed_contract().signed().clone()),
        Record::Accept(accept.signed().clone()),
    ];
    desk.ledger().append(records).await.map_err(not_recorded)?;
    place.recorded();
    if let Err(error) = wire.send(&ProviderFrame::Accept(boxed(&accept))).await {
        tracing::debug!(job = %admitted.verified().contract().lane, %error, "accept not delivered");
    }
    Ok(AcceptedJob { admitted, place, spec })
}

async fn receive(desk: &Arc<Desk>, wire: &mut JobWire) -> Result<(AdmittedJob, Place, JobSpec), NotTaken> {
    let RenterFrame::Open { contract, quote, job_bytes } = next(wire).await? else {
        return Err(refused(RefusalCode::Malformed, "a job begins with its contract"));
    };
    let signed = SignedJob { contract: *contract, quote: *quote, job_bytes };
    let (admitted, place) = desk.take(wire.peer(), signed).map_err(NotTaken::Refused)?;
    let bytes = receive_parts(wire, admitted.verified().job_bytes()).await?;
    if job_digest(&bytes) != admitted.verified().contract().job {
        return Err(refused(RefusalCode::Malformed, "the job is not the one in the contract"));
    }
    let spec =
        JobSpec::from_bytes(&bytes).map_err(|error| refused(RefusalCode::Malformed, error.to_string()))?;
    if spec.model != admitted.verified().model() {
        return Err(refused(RefusalCode::QuoteMismatch, "the job is for another model than the quote"));
    }
    Ok((admitted, place, spec))
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

fn not_recorded(error: AppendError) -> NotTaken {
    match error {
        AppendError::SlotTaken { .. } => refused(RefusalCode::Replayed, "this job was sent before"),
        other => refused(RefusalCode::LedgerFailed, other.to_string()),
    }
}
