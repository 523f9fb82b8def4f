//! What the handles ask of the event loop. Every command carries the channel of its answer.
//!
//! Owns: the commands and the errands that wait for a peer. Never: acts. Made by
//! [`super::Network`], consumed by the event loop.

use std::time::Duration;

use libp2p::{Multiaddr, StreamProtocol};
use potluck_protocol::id::PeerId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Joined;
use super::directory::DhtKey;
use super::error::{AskError, FindError, JoinError, OpenError, OtherVersion, ProvideError, Stage};
use super::framing::JobStream;
use super::jobs;
use super::question::Topic;
use super::snapshot::NetSnapshot;

/// How long a call may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// From the call on.
    pub(super) within: Duration,
    /// When that is over.
    pub(super) deadline: Instant,
}

impl Patience {
    pub(super) fn starting_now(within: Duration) -> Self {
        Self { within, deadline: Instant::now() + within }
    }
}

/// One request to the event loop.
pub(super) enum Command {
    Join {
        patience: Patience,
        reply: oneshot::Sender<Result<Joined, JoinError>>,
    },
    Provide {
        key: DhtKey,
        patience: Patience,
        reply: oneshot::Sender<Result<(), ProvideError>>,
    },
    Withdraw {
        key: DhtKey,
        reply: oneshot::Sender<()>,
    },
    Find {
        key: DhtKey,
        want: usize,
        patience: Patience,
        reply: oneshot::Sender<Result<Vec<PeerId>, FindError>>,
    },
    Run(Errand),
    Listeners {
        reply: oneshot::Sender<Vec<Multiaddr>>,
    },
    Snapshot {
        reply: oneshot::Sender<NetSnapshot>,
    },
}

/// Something to do at another peer, once there is a connection.
pub(super) struct Errand {
    pub(super) peer: PeerId,
    pub(super) patience: Patience,
    pub(super) task: Task,
}

/// What to do there.
pub(super) enum Task {
    Ask { topic: Topic, request: Vec<u8>, reply: oneshot::Sender<Result<Vec<u8>, AskError>> },
    Open { reply: oneshot::Sender<Result<JobStream, OpenError>> },
}

/// Why an errand came to nothing.
pub(super) enum Failure {
    Unreachable(String),
    TimedOut(Stage),
    Busy,
    Unsupported,
    /// It speaks this one only.
    OtherVersion(u16),
    Broken(String),
    TooMany(usize),
}

impl Errand {
    /// Tells whoever waits. That they may wait no longer is theirs to know.
    pub(super) fn fail(self, failure: Failure) {
        let Self { peer, patience: Patience { within, .. }, task } = self;
        match task {
            Task::Ask { reply, .. } => {
                let _ = reply.send(Err(match failure {
                    Failure::Unreachable(problem) => AskError::Unreachable { peer, problem },
                    Failure::TimedOut(stage) => AskError::TimedOut { peer, within, stage },
                    Failure::Busy => AskError::Busy { peer },
                    Failure::OtherVersion(theirs) => OtherVersion::of(peer, theirs).into(),
                    Failure::Unsupported => AskError::Unsupported { peer },
                    Failure::Broken(problem) => AskError::Broken { peer, problem },
                    Failure::TooMany(limit) => AskError::TooMany { limit },
                }));
            }
            Task::Open { reply } => {
                let _ = reply.send(Err(match failure {
                    Failure::Unreachable(problem) => OpenError::Unreachable { peer, problem },
                    Failure::TimedOut(stage) => OpenError::TimedOut { peer, within, stage },
                    Failure::Unsupported => OpenError::Unsupported { peer },
                    Failure::OtherVersion(theirs) => OtherVersion::of(peer, theirs).into(),
                    Failure::Broken(problem) => OpenError::Broken { peer, problem },
                    Failure::TooMany(limit) => OpenError::TooMany { limit },
                    // A stream is refused by closing it, which its reader sees.
                    Failure::Busy => OpenError::Broken { peer, problem: "it is busy".to_owned() },
                }));
            }
        }
    }

    /// The name of the protocol that it needs.
    pub(super) fn protocol(&self) -> StreamProtocol {
        match &self.task {
            Task::Ask { topic, .. } => topic.protocol(),
            Task::Open { .. } => jobs::PROTOCOL,
        }
    }

    /// Whether whoever waited has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.task {
            Task::Ask { reply, .. } => reply.is_closed(),
            Task::Open { reply } => reply.is_closed(),
        }
    }
}
