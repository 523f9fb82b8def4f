//! What can go wrong on the network: one enum per operation.
//!
//! Owns: the errors' types and words. Never: decides what follows from one. Returned by the handle
//! ([`super::Network`]) and the job streams. Fault is said where it matters: *ours* is this
//! machine, *theirs* the peer, *nobody's* the network in between.

use std::fmt;
use std::io;
use std::time::Duration;

use libp2p::Multiaddr;
use potluck_protocol::id::PeerId;
use potluck_protocol::limits::MAX_FRAME_BYTES;
use potluck_protocol::version::WireVersion;
use thiserror::Error;

/// The task that owns the network has ended: after shutdown, or by a fault of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the network of this process has stopped")]
pub struct NetworkGone;

/// Why the network could not start. Fault: this machine or its configuration.
#[derive(Debug, Error)]
pub enum StartError {
    /// Another program, or another peer on this machine, holds the port.
    #[error("{socket} in use ({address})")]
    PortInUse {
        /// The socket for people: `udp port 4101`.
        socket: String,
        /// The address to listen on.
        address: Multiaddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {problem}")]
    Listen {
        /// The address to listen on.
        address: Multiaddr,
        /// What the system or the transport said.
        problem: String,
    },
    /// The socket did not report its address in time.
    #[error("{address} was not listening within {} s", within.as_secs())]
    ListenTimedOut {
        /// The address to listen on.
        address: Multiaddr,
        /// How long we waited.
        within: Duration,
    },
    /// Renters listen on nothing.
    #[error("a renter listens on nothing, but was given {address}")]
    RenterListens {
        /// The address to listen on.
        address: Multiaddr,
    },
    /// The identity's key does not make a libp2p key pair.
    #[error("the identity's key is not usable: {problem}")]
    Key {
        /// What libp2p said.
        problem: String,
    },
    /// The system's DNS configuration could not be read.
    #[error("the system's DNS configuration could not be read: {source}")]
    Resolver {
        /// What the system said.
        source: io::Error,
    },
}

/// One bootstrap that did not answer, and what happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The bootstrap's address.
    pub address: Multiaddr,
    /// What happened.
    pub problem: String,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.problem)
    }
}

fn list(tried: &[Tried]) -> String {
    tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why the network could not be joined.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JoinError {
    /// No bootstrap address is configured. Fault: the configuration.
    #[error("no bootstrap address is known")]
    NoBootstrap,
    /// No bootstrap answered. Fault: theirs, or the network's in between.
    #[error("no bootstrap answered within {:.1} s: {}", within.as_secs_f32(), list(tried))]
    Unreachable {
        /// Every bootstrap, and what happened to it last.
        tried: Vec<Tried>,
        /// How long we tried.
        within: Duration,
    },
    /// Too many callers wait to join. Fault: ours.
    #[error("{limit} callers wait to join already")]
    TooMany {
        /// How many may wait.
        limit: usize,
    },
    /// The network of this process has stopped.
    #[error(transparent)]
    Gone(#[from] NetworkGone),
}

/// Why a key could not be published.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProvideError {
    /// No directory peer is known: join first.
    #[error("no directory peer is known: this peer has not joined the network")]
    NotJoined,
    /// No directory peer took the record. It stays on the list and is published again later.
    #[error("no directory peer took the record")]
    NotStored,
    /// The publication did not end in time. It stays on the list and is published again later.
    #[error("the record was not published within {} s", within.as_secs())]
    TimedOut {
        /// How long we tried.
        within: Duration,
    },
    /// Too many keys, or too many publications at once. Fault: ours.
    #[error("too many records to publish (at most {limit})")]
    TooMany {
        /// How many are allowed.
        limit: usize,
    },
    /// The network of this process has stopped.
    #[error(transparent)]
    Gone(#[from] NetworkGone),
}

/// Why no providers could be looked up. An empty answer is not an error.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FindError {
    /// No directory peer is known: join first.
    #[error("no directory peer is known: this peer has not joined the network")]
    NotJoined,
    /// Every directory peer failed to answer. Fault: theirs, or the network's in between.
    #[error("no directory peer answered")]
    NoAnswer,
    /// The time was over before any provider was found.
    #[error("no provider was found within {:.1} s", within.as_secs_f32())]
    TimedOut {
        /// How long we waited.
        within: Duration,
    },
    /// Too many lookups at once. Fault: ours.
    #[error("{limit} lookups are under way already")]
    TooMany {
        /// How many may be under way.
        limit: usize,
    },
    /// The network of this process has stopped.
    #[error(transparent)]
    Gone(#[from] NetworkGone),
}

/// How far an operation had come when its time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Looking up the peer's addresses.
    LookingUp,
    /// Waiting for a connection.
    Connecting,
    /// Connected; waiting for the peer's answer.
    Waiting,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LookingUp => "looking up its address",
            Self::Connecting => "connecting",
            Self::Waiting => "waiting for its answer",
        })
    }
}

/// A peer speaks only another version of what was wanted. Nothing was sent. Fault: whoever is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "{peer} speaks version {theirs} of Potluck, this program version {ours}: {}",
    if self.is_theirs() { "it must be upgraded" } else { "this program must be upgraded" }
)]
pub struct OtherVersion {
    /// Who.
    pub peer: PeerId,
    /// The newest version that it speaks.
    pub theirs: u16,
    /// The newest version that we speak.
    pub ours: u16,
}

impl OtherVersion {
    pub(super) fn of(peer: PeerId, theirs: u16) -> Self {
        Self { peer, theirs, ours: WireVersion::NEWEST.number() }
    }

    /// Is it the peer who is behind?
    #[must_use]
    pub fn is_theirs(&self) -> bool {
        self.theirs < self.ours
    }
}

/// Why a question got no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AskError {
    /// The peer cannot be reached. Fault: theirs, or the network's in between.
    #[error("{peer} cannot be reached: {problem}")]
    Unreachable {
        /// Who was asked.
        peer: PeerId,
        /// What happened.
        problem: String,
    },
    /// The time was over. Fault: theirs, or the network's in between.
    #[error("{peer} did not answer within {:.1} s (while {stage})", within.as_secs_f32())]
    TimedOut {
        /// Who was asked.
        peer: PeerId,
        /// How long we waited.
        within: Duration,
        /// How far it had come.
        stage: Stage,
    },
    /// The peer is there and has no capacity for the question now. Fault: nobody's.
    #[error("{peer} is busy and takes no more questions now")]
    Busy {
        /// Who was asked.
        peer: PeerId,
    },
    /// The peer does not answer this kind of question. Fault: theirs, or ours for asking.
    #[error("{peer} does not answer questions of this kind")]
    Unsupported {
        /// Who was asked.
        peer: PeerId,
    },
    /// The peer speaks another version.
    #[error(transparent)]
    OtherVersion(#[from] OtherVersion),
    /// The connection broke, or the answer broke the framing. Fault: theirs.
    #[error("the answer of {peer} broke off: {problem}")]
    Broken {
        /// Who was asked.
        peer: PeerId,
        /// What happened.
        problem: String,
    },
    /// The question does not fit a frame, or is empty. Fault: ours.
    #[error("a question has 1 to {MAX_FRAME_BYTES} bytes, this one {len}")]
    BadRequest {
        /// Bytes of the question.
        len: usize,
    },
    /// Too many questions and streams wait for their peers. Fault: ours.
    #[error("{limit} questions and streams wait for their peers already")]
    TooMany {
        /// How many may wait.
        limit: usize,
    },
    /// The network of this process has stopped.
    #[error(transparent)]
    Gone(#[from] NetworkGone),
}

/// Why a job stream could not be opened. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The peer cannot be reached. Fault: theirs, or the network's in between.
    #[error("{peer} cannot be reached: {problem}")]
    Unreachable {
        /// Who was called.
        peer: PeerId,
        /// What happened.
        problem: String,
    },
    /// The time was over. Fault: theirs, or the network's in between.
    #[error("{peer} opened no stream within {:.1} s (while {stage})", within.as_secs_f32())]
    TimedOut {
        /// Who was called.
        peer: PeerId,
        /// How long we waited.
        within: Duration,
        /// How far it had come.
        stage: Stage,
    },
    /// The peer takes no jobs. Fault: theirs, or ours for asking.
    #[error("{peer} takes no jobs")]
    Unsupported {
        /// Who was called.
        peer: PeerId,
    },
    /// The peer speaks another version.
    #[error(transparent)]
    OtherVersion(#[from] OtherVersion),
    /// The connection broke while the stream was opened. Fault: theirs, or nobody's.
    #[error("the stream to {peer} broke off: {problem}")]
    Broken {
        /// Who was called.
        peer: PeerId,
        /// What happened.
        problem: String,
    },
    /// Too many questions and streams wait for their peers. Fault: ours.
    #[error("{limit} questions and streams wait for their peers already")]
    TooMany {
        /// How many may wait.
        limit: usize,
    },
    /// The network of this process has stopped.
    #[error(transparent)]
    Gone(#[from] NetworkGone),
}

/// Why an answer could not be given.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AnswerError {
    /// The answer does not fit a frame, or is empty. Fault: ours.
    #[error("an answer has 1 to {MAX_FRAME_BYTES} bytes, this one {len}")]
    BadAnswer {
        /// Bytes of the answer.
        len: usize,
    },
    /// Whoever asked waits no longer. Fault: ours if we were slow, else theirs.
    #[error("whoever asked waits no longer")]
    NobodyWaits,
}

/// Why a frame could not be read or written.
#[derive(Debug, Error)]
pub enum FrameError {
    /// A frame over the limit: what the peer announced, or what we were told to write.
    /// Fault: whoever made the frame. The stream is of no use any more when it was the peer.
    #[error("a frame of {len} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLarge {
        /// Bytes of the frame.
        len: u64,
    },
    /// A frame without a byte. Fault: whoever made the frame.
    #[error("an empty frame")]
    Empty,
    /// The peer stopped inside a frame. Fault: theirs.
    #[error("the peer stopped after {got} of {want} bytes of a frame")]
    CutShort {
        /// Bytes that came, the length's four included.
        got: usize,
        /// Bytes that were announced, the length's four included.
        want: usize,
    },
    /// Nothing (more) came or went in time. A reader may try again: what came is kept.
    #[error("nothing moved on the stream for {:.1} s", within.as_secs_f32())]
    TimedOut {
        /// How long we waited.
        within: Duration,
    },
    /// The connection to the peer is gone. Fault: theirs, or the network's in between.
    #[error("the connection to the peer is gone: {source}")]
    PeerGone {
        /// What the transport said.
        source: io::Error,
    },
    /// An earlier write was given up half-way, so that a further frame would be read as part of it.
    /// Fault: ours.
    #[error("an earlier frame was only partly written")]
    Torn,
}
