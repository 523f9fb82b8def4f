//! Getting to a peer and doing one thing there: a question, or a job stream.
//!
//! Owns: the errands under way, from the wish to the answer. Never: decides whom to call, or tries
//! a task twice (a question may have been heard). Called by the event loop, of which this is a part.
//!
//! ```text
//!   wanted --connected?--yes------------------------------> underway --> answered
//!     '--no--> dialing --fails--> locating --found--> dialing --fails--> unreachable
//!   underway --not spoken there--> puzzled --the peer says what it speaks--> other version, or unsupported
//! ```
//!
//! At every point the errand's own deadline ends it.

use std::collections::HashMap;

use libp2p::request_response::{OutboundFailure, OutboundRequestId};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{DialError, Swarm};
use libp2p::{Multiaddr, PeerId, Stream};
use potluck_protocol::version::Skew;
use tokio::time::Instant;

use super::behaviour::{Behaviour, to_libp2p};
use super::command::{Errand, Failure, Task};
use super::discovery::Discovery;
use super::error::Stage;
use super::framing::JobStream;
use super::jobs::{OpenId, Refusal};
use super::limits::PENDING_PER_PEER;
use super::question::{Answer, Topic};

/// A peer that we want to be connected to, and what for.
struct Wanted {
    errands: Vec<Errand>,
    stage: Stage,
    /// The directory was asked already: a further failure is final.
    located: bool,
    /// What went wrong last.
    problem: String,
}

/// See the module's card.
pub(super) struct Errands {
    limit: usize,
    wanted: HashMap<PeerId, Wanted>,
    asked: HashMap<(Topic, OutboundRequestId), Errand>,
    opening: HashMap<OpenId, Errand>,
    /// Their peers speak nothing of the kind, and have not said yet what they speak instead.
    puzzled: Vec<Errand>,
    /// What connected and identified peers speak instead of ours.
    skews: HashMap<potluck_protocol::id::PeerId, Skew>,
    next_open: u64,
}

impl Errands {
    /// At most `limit` errands at once.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            wanted: HashMap::new(),
            asked: HashMap::new(),
            opening: HashMap::new(),
            puzzled: Vec::new(),
            skews: HashMap::new(),
            next_open: 0,
        }
    }

    fn len(&self) -> usize {
        let waiting: usize = self.wanted.values().map(|wanted| wanted.errands.len()).sum();
        waiting + self.asked.len() + self.opening.len() + self.puzzled.len()
    }

    /// Takes up an errand; whether there was room for it.
    pub(super) fn run(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        discovery: &mut Discovery,
        errand: Errand,
    ) -> bool {
        let Some(peer) = to_libp2p(errand.peer).filter(|peer| peer != swarm.local_peer_id()) else {
            errand.fail(Failure::Unreachable("that is no peer to call".to_owned()));
            return true;
        };
        let waiting = self.wanted.get(&peer).map_or(0, |wanted| wanted.errands.len());
        if self.len() >= self.limit || waiting >= PENDING_PER_PEER {
            errand.fail(Failure::TooMany(self.limit));
            return false;
        }
        if swarm.is_connected(&peer) {
            self.start(swarm, peer, errand);
        } else if let Some(wanted) = self.wanted.get_mut(&peer) {
            wanted.errands.push(errand);
        } else {
            let errands = vec![errand];
            let (stage, problem) = (Stage::Connecting, String::new());
            self.wanted.insert(peer, Wanted { errands, stage, located: false, problem });
            self.dial(swarm, discovery, peer, Vec::new());
        }
        true
    }

    /// Does at a connected peer what the errand is about.
    fn start(&mut self, swarm: &mut Swarm<Behaviour>, peer: PeerId, mut errand: Errand) {
        match &mut errand.task {
            Task::Ask { topic, request, .. } => {
                let (topic, request) = (*topic, std::mem::take(request));
                let id = swarm.behaviour_mut().questions(topic).send_request(&peer, request);
                self.asked.insert((topic, id), errand);
            }
            Task::Open { .. } => {
                let id = OpenId(self.next_open);
                self.next_open = self.next_open.wrapping_add(1);
                swarm.behaviour_mut().jobs.open(peer, id);
                self.opening.insert(id, errand);
            }
        }
    }

    fn dial(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        discovery: &mut Discovery,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    ) {
        let dial = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        match swarm.dial(dial) {
            // Somebody else's dial is under way: its outcome is ours as well.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => self.dial_failed(swarm, discovery, peer, describe(&error)),
        }
    }

    /// A connection to `peer` came up.
    pub(super) fn connected(&mut self, swarm: &mut Swarm<Behaviour>, peer: PeerId) {
        let Some(wanted) = self.wanted.remove(&peer) else { return };
        for errand in wanted.errands {
            self.start(swarm, peer, errand);
        }
    }

    /// A dial of `peer` failed: once, the directory may know better addresses.
    pub(super) fn dial_failed(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        discovery: &mut Discovery,
        peer: PeerId,
        problem: String,
    ) {
        let Some(wanted) = self.wanted.get_mut(&peer) else { return };
        if wanted.stage == Stage::LookingUp {
            // A dial by the lookup itself; the lookup will tell.
            wanted.problem = problem;
            return;
        }
        if !wanted.located && discovery.locate(&mut swarm.behaviour_mut().kad, peer) {
            wanted.stage = Stage::LookingUp;
            wanted.problem = problem;
            return;
        }
        if let Some(wanted) = self.wanted.remove(&peer) {
            for errand in wanted.errands {
                errand.fail(Failure::Unreachable(problem.clone()));
            }
        }
    }

    /// The directory told what it knows about where `peer` is.
    pub(super) fn located(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        discovery: &mut Discovery,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    ) {
        if swarm.is_connected(&peer) {
            self.connected(swarm, peer);
            return;
        }
        let Some(wanted) = self.wanted.get_mut(&peer) else { return };
        wanted.located = true;
        wanted.stage = Stage::Connecting;
        if addresses.is_empty() {
            let problem = format!("nobody knows its address now ({})", wanted.problem);
            self.dial_failed(swarm, discovery, peer, problem);
        } else {
            self.dial(swarm, discovery, peer, addresses);
        }
    }

    /// The last connection to `peer` closed: streams that were being opened go with it. Questions
    /// hear of it from their own protocol.
    pub(super) fn disconnected(&mut self, peer: potluck_protocol::id::PeerId) {
        self.skews.remove(&peer);
        let opening = self.opening.extract_if(|_, errand| errand.peer == peer).map(|(_, errand)| errand);
        for errand in opening.chain(self.puzzled.extract_if(.., |errand| errand.peer == peer)) {
            errand.fail(Failure::Broken("the connection closed".to_owned()));
        }
    }

    /// A connected peer said what it speaks, or will not say.
    pub(super) fn identified(&mut self, peer: potluck_protocol::id::PeerId, skew: Skew) {
        self.skews.insert(peer, skew);
        for errand in self.puzzled.extract_if(.., |errand| errand.peer == peer) {
            let failure = not_spoken(skew, &errand);
            errand.fail(failure);
        }
    }

    /// The peer does not speak what the errand needs.
    fn unsupported(&mut self, errand: Errand) {
        match self.skews.get(&errand.peer) {
            Some(skew) => {
                let failure = not_spoken(*skew, &errand);
                errand.fail(failure);
            }
            None => self.puzzled.push(errand),
        }
    }

    /// An answer came; whether anybody still waited for it.
    pub(super) fn answered(&mut self, topic: Topic, id: OutboundRequestId, answer: Answer) -> bool {
        let Some(errand) = self.asked.remove(&(topic, id)) else { return false };
        match (errand.task, answer) {
            (Task::Ask { reply, .. }, Answer::Bytes(bytes)) => reply.send(Ok(bytes)).is_ok(),
            (task, _) => {
                Errand { task, ..errand }.fail(Failure::Busy);
                true
            }
        }
    }

    /// No answer will come.
    pub(super) fn ask_failed(&mut self, topic: Topic, id: OutboundRequestId, failure: OutboundFailure) {
        let Some(errand) = self.asked.remove(&(topic, id)) else { return };
        let failure = match failure {
            OutboundFailure::UnsupportedProtocols => return self.unsupported(errand),
            OutboundFailure::Timeout => Failure::TimedOut(Stage::Waiting),
            OutboundFailure::DialFailure => Failure::Unreachable("the dial failed".to_owned()),
            OutboundFailure::ConnectionClosed => Failure::Broken("the connection closed".to_owned()),
            OutboundFailure::Io(error) => Failure::Broken(error.to_string()),
        };
        errand.fail(failure);
    }

    /// A stream is open; whether anybody still waited for it.
    pub(super) fn opened(&mut self, id: OpenId, stream: Stream) -> bool {
        match self.opening.remove(&id) {
            Some(Errand { peer, task: Task::Open { reply }, .. }) => {
                reply.send(Ok(JobStream::new(peer, stream))).is_ok()
            }
            _ => false,
        }
    }

    /// A stream did not open.
    pub(super) fn open_failed(&mut self, id: OpenId, refusal: Refusal) {
        let Some(errand) = self.opening.remove(&id) else { return };
        match refusal {
            Refusal::Unsupported => self.unsupported(errand),
            Refusal::Broken(problem) => errand.fail(Failure::Broken(problem)),
        }
    }

    /// When [`Self::sweep`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.wanted.values().flat_map(|wanted| &wanted.errands);
        let errands = waiting.chain(self.asked.values()).chain(self.opening.values()).chain(&self.puzzled);
        errands.map(|errand| errand.patience.deadline).min()
    }

    /// Ends what has taken long enough by `now`, or is waited for by nobody; returns how many ran
    /// out of time.
    pub(super) fn sweep(&mut self, now: Instant) -> u64 {
        let over = |errand: &Errand| errand.patience.deadline <= now || errand.is_abandoned();
        let mut ended: Vec<(Stage, Errand)> = Vec::new();
        for wanted in self.wanted.values_mut() {
            let stage = wanted.stage;
            ended.extend(wanted.errands.extract_if(.., |errand| over(errand)).map(|errand| (stage, errand)));
        }
        self.wanted.retain(|_, wanted| !wanted.errands.is_empty());
        let asked = self.asked.extract_if(|_, errand| over(errand)).map(|(_, errand)| errand);
        ended.extend(asked.map(|errand| (Stage::Waiting, errand)));
        let opening = self.opening.extract_if(|_, errand| over(errand)).map(|(_, errand)| errand);
        ended.extend(opening.map(|errand| (Stage::Waiting, errand)));
        for errand in self.puzzled.extract_if(.., |errand| over(errand)) {
            errand.fail(Failure::Unsupported);
        }
        let mut timed_out = 0;
        for (stage, errand) in ended {
            timed_out += u64::from(!errand.is_abandoned());
            errand.fail(Failure::TimedOut(stage));
        }
        timed_out
    }
}

/// Why an errand cannot be done at a peer that speaks no protocol of ours for it.
fn not_spoken(skew: Skew, errand: &Errand) -> Failure {
    skew.instead_of(errand.protocol().as_ref()).map_or(Failure::Unsupported, Failure::OtherVersion)
}

/// A failed dial, for people.
pub(super) fn describe(error: &DialError) -> String {
    match error {
        DialError::NoAddresses => "no address of it is known".to_owned(),
        DialError::LocalPeerId { .. } => "that address is our own".to_owned(),
        DialError::WrongPeerId { obtained, .. } => {
            format!("another peer answered there: {obtained}")
        }
        DialError::Denied { cause } => format!("our own limits: {cause}"),
        DialError::Aborted => "the dial was broken off".to_owned(),
        DialError::DialPeerConditionFalse(_) => "it is being dialed already".to_owned(),
        DialError::Transport(attempts) => attempts
            .iter()
            .map(|(address, error)| format!("{address}: {}", root_cause(error)))
            .collect::<Vec<_>>()
            .join("; "),
    }
}

/// The innermost cause of an error: what the system said.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
