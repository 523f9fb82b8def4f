//! A job's stream as typed, bounded frames.
//!
//! Owns: encoding, bounds and the time limits of both directions. Never: judges an order of frames
//! ([`crate::driver`] does). Called by the driver and [`crate::metered`].

use std::time::{Duration, Instant};

use potluck_node::net::{FrameError, FrameReader, FrameWriter, JobStream};
use potluck_protocol::id::PeerId;
use potluck_protocol::wire::{self, ProviderFrame, RenterFrame, WireError};
use thiserror::Error;

/// A renter that takes no bytes for so long is gone.
const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// A farewell is worth no longer wait.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Why a stream is of no more use.
#[derive(Debug, Error)]
pub enum StreamFault {
    /// The other side ended it. Fault: renter or network.
    #[error("the renter closed the stream")]
    Closed,
    /// It broke, or nothing moved. Fault: network.
    #[error(transparent)]
    Broken(#[from] FrameError),
    /// What came is not a frame. Fault: renter.
    #[error(transparent)]
    Malformed(#[from] WireError),
}

/// The provider's end of a job's stream.
#[derive(Debug)]
pub struct JobWire {
    peer: PeerId,
    reader: FrameReader,
    writer: FrameWriter,
    last_said: Instant,
}

impl JobWire {
    /// Takes over a stream.
    #[must_use]
    pub fn new(stream: JobStream) -> Self {
        let peer = stream.peer();
        let (reader, writer) = stream.split();
        Self { peer, reader, writer, last_said: Instant::now() }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// When the last frame was sent.
    #[must_use]
    pub fn last_said(&self) -> Instant {
        self.last_said
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// When the renter takes it not in time, or the stream is gone.
    pub async fn send(&mut self, frame: &ProviderFrame) -> Result<(), StreamFault> {
        let bytes = wire::encode(frame)?;
        self.writer.write(&bytes, WRITE_WITHIN).await?;
        self.last_said = Instant::now();
        Ok(())
    }

    /// The next frame. Nothing is lost when this future is dropped.
    ///
    /// # Errors
    /// When the stream ended, broke, was silent for `within`, or carries something else.
    pub async fn receive(&mut self, within: Duration) -> Result<RenterFrame, StreamFault> {
        let bytes = self.reader.read(within).await?.ok_or(StreamFault::Closed)?;
        Ok(wire::decode_bounded(&bytes)?)
    }

    /// Says goodbye; whether the renter took it. One that did not loses nothing.
    pub async fn finish(mut self, last: &ProviderFrame) -> bool {
        let said = match self.send(last).await {
            Ok(()) => self.writer.close(CLOSE_WITHIN).await.map_err(StreamFault::from),
            Err(fault) => Err(fault),
        };
        if let Err(error) = &said {
            tracing::debug!(peer = %self.peer.short(), %error, "stream not closed in order");
        }
        said.is_ok()
    }
}
