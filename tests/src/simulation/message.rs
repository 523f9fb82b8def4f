//! What simulated nodes say to each other, and what they ask of their world.
//!
//! Owns: the envelope around the protocol's own frames, and the effects of a step. Never: a frame of
//! its own: what is inside are the canonical bytes of the real ones. Called by nodes and world.

use potluck_protocol::id::{LaneId, PeerId};

/// A message on its way.
#[derive(Debug, Clone)]
pub enum Message {
    /// A `RenterFrame` on a job's stream.
    ToProvider(LaneId, Vec<u8>),
    /// A `ProviderFrame` on a job's stream.
    ToRenter(LaneId, Vec<u8>),
    /// A `PairRequest` on a stream of its own.
    Ask(u64, Vec<u8>),
    /// The `PairResponse` to it.
    Answer(u64, Vec<u8>),
}

impl Message {
    /// Must it arrive after what was said before it, as on a stream?
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        matches!(self, Self::ToProvider(..) | Self::ToRenter(..))
    }
}

/// What a node waits for.
#[derive(Debug, Clone, Copy)]
pub enum Timer {
    /// A new job with this peer is to be tried.
    Rent(PeerId),
    /// An operation of the worker is done.
    Operation(LaneId),
    /// Is the other end of this lane still there?
    Patience(LaneId),
    /// Did the answer to this question come?
    Question(PeerId, u64),
    /// Is anything in the outbox due?
    Outbox(PeerId),
    /// A balance with this peer is to be agreed.
    Balance(PeerId),
    /// The books are to be gone through: lanes to give up, peers to catch up with.
    Tidy,
}

/// What a step asks for. Whatever the node kept was durable before.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Send a message.
    Send(PeerId, Message),
    /// The same, held back for so many milliseconds.
    SendLate(PeerId, Message, u64),
    /// Wake up after so many milliseconds, unless crashed by then.
    Wake(u64, Timer),
}
