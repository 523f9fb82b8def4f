//! The audit of a simulation: what must hold when all is over, whoever lied, crashed or vanished.
//!
//! Owns: the checks and the [`Report`]. Never: trusts what a node believes where the truth is known.
//! Called by [`super::run`].

use std::collections::BTreeMap;
use std::fmt;

use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::statement::Slot;
use potluck_protocol::unit::{GpuMillis, NanoCredit, UnixMillis};

use super::node::{Bought, Node, Worked};
use super::world::World;

/// The largest loss on one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// In nano-credits.
    pub amount: u64,
    /// Its bound in that lane, in nano-credits.
    pub bound: u64,
    /// The same as work at the run rate, in milliseconds.
    pub millis: u64,
}

/// What a simulation came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Nodes, and how many of them lied.
    pub nodes: usize,
    /// Liars among them.
    pub liars: usize,
    /// Lanes with a contract that was accepted.
    pub lanes: u64,
    /// Vouchers held by honest providers.
    pub vouchers: u64,
    /// Balances agreed by both.
    pub agreed: u64,
    /// Contracts refused.
    pub refused: u64,
    /// Peers convicted of signing twice, by anybody honest.
    pub convicted: usize,
    /// Messages delivered.
    pub messages: u64,
    /// Crashes, and how many came back with an old ledger.
    pub crashes: u64,
    /// Old ledgers among them.
    pub restores: u64,
    /// The sum of what all honest pairs read, in nano-credits: 0.
    pub sum: i128,
    /// The largest loss of an honest provider in one lane.
    pub provider: Loss,
    /// The largest loss of an honest renter in one lane.
    pub renter: Loss,
    /// Lanes without a bound: their provider came back with an old ledger, and their renter lies or did
    /// so too.
    pub without_bound: u64,
    /// What did not hold.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} nodes, {} of them liars; {} lanes, {} vouchers",
            self.nodes, self.liars, self.lanes, self.vouchers
        )?;
        writeln!(
            f,
            "{} messages, {} crashes, {} old ledgers restored; {} contracts refused",
            self.messages, self.crashes, self.restores, self.refused
        )?;
        writeln!(
            f,
            "{} balances agreed, {} liars convicted; all honest pairs sum to {}",
            self.agreed, self.convicted, self.sum
        )?;
        for (side, loss) in [("provider", self.provider), ("renter", self.renter)] {
            writeln!(
                f,
                "largest loss of an honest {side} in a lane: {} ms of work, {} (bound {})",
                loss.millis,
                NanoCredit::new(loss.amount),
                NanoCredit::new(loss.bound)
            )?;
        }
        writeln!(
            f,
            "{} lanes have no bound (an old ledger against a liar or another old one)",
            self.without_bound
        )?;
        for violation in &self.violations {
            writeln!(f, "VIOLATED: {violation}")?;
        }
        Ok(())
    }
}

/// Checks everything.
#[must_use]
pub fn audit(world: &World) -> Report {
    let honest: Vec<(usize, &Node)> =
        world.nodes.iter().enumerate().filter(|(_, node)| node.lie.is_none()).collect();
    let mut report = Report {
        nodes: world.nodes.len(),
        liars: world.nodes.len() - honest.len(),
        refused: world.commons.refused,
        messages: world.delivered,
        crashes: world.crashes,
        restores: world.restores,
        ..Report::default()
    };
    nobody_honest_signed_twice(world, &mut report);
    for (_, node) in &honest {
        pairs_agree(world, node, &mut report);
        lanes_have_ended(world, node, &mut report);
        losses_are_bounded(world, node, &mut report);
        credit_is_kept(world, node, &mut report);
    }
    let mut convicted: Vec<PeerId> = world.nodes.iter().map(Node::peer).collect();
    convicted.retain(|peer| honest.iter().any(|(_, node)| node.convictions.against(*peer).is_some()));
    report.convicted = convicted.len();
    for peer in convicted {
        if world.find(peer).is_some_and(|node| node.lie.is_none()) {
            report.violations.push(format!("I7: {} is honest and convicted", peer.short()));
        }
    }
    report
}

/// I7, over all ledgers together: one signer, one slot, one commitment.
fn nobody_honest_signed_twice(world: &World, report: &mut Report) {
    let mut slots: BTreeMap<Slot, Digest> = BTreeMap::new();
    let honest = |peer: PeerId| world.find(peer).is_some_and(|node| node.lie.is_none());
    for node in &world.nodes {
        for statement in node.store.statements().filter(|statement| honest(statement.signer())) {
            let (Some(slot), Ok(proven)) = (statement.slot(), statement.verify()) else { continue };
            let held = *slots.entry(slot).or_insert(proven.commitment);
            if held != proven.commitment {
                report.violations.push(format!("I7: {slot} is filled twice"));
            }
        }
    }
}

/// I1 and sync: both honest sides of a pair hold the same and read the same balance.
fn pairs_agree(world: &World, node: &Node, report: &mut Report) {
    let me = node.peer();
    for peer in node.store.peers() {
        let Some(other) = world.find(peer).filter(|other| other.lie.is_none() && me < peer) else { continue };
        let (ours, theirs) = (node.store.balance_with(peer), other.store.balance_with(me));
        report.sum += ours + theirs;
        if ours + theirs != 0 {
            let who = (me.short(), peer.short());
            report.violations.push(format!("I1: {} reads {ours} and {} reads {theirs}", who.0, who.1));
        }
        if node.store.heads_digest(peer) != other.store.heads_digest(me) {
            report.violations.push(format!(
                "sync: {} and {} hold different things",
                me.short(),
                peer.short()
            ));
        }
        let head = node.store.book(peer).map(|book| book.head());
        report.agreed += u64::from(head.is_some_and(|head| head.n > 0));
    }
}

/// Every uncertain state has an end.
fn lanes_have_ended(world: &World, node: &Node, report: &mut Report) {
    let open = node.open_lanes(world.wall());
    if open > 0 {
        report.violations.push(format!("life: {} has {open} lanes open after a day", node.peer().short()));
    }
}

/// I6: nobody was lent more than the formula grants.
fn credit_is_kept(world: &World, node: &Node, report: &mut Report) {
    let now = world.wall();
    for peer in node.store.peers() {
        let standing = node.standing(peer, now);
        let limit = node.policy.limit(&potluck_protocol::credit::Standing { frozen: false, ..standing });
        if standing.exposure() > u128::from(limit.get()) {
            let owes = standing.exposure();
            report.violations.push(format!("I6: {} owes {owes} of {limit}", peer.short()));
        }
    }
}

fn losses_are_bounded(world: &World, node: &Node, report: &mut Report) {
    for (lane, worked) in &node.worked {
        report.lanes += 1;
        report.vouchers += u64::from(node.store.lane(lane).map_or(0, |record| record.head.voucher));
        let loss = provider_loss(world, node, lane, worked);
        let renter = world.find(lane.renter);
        let renter_keeps = renter.is_some_and(|renter| renter.lie.is_none() && renter.restored.is_none());
        if node.restored.is_some() && !renter_keeps {
            report.without_bound += 1;
            continue;
        }
        note(&mut report.provider, loss);
        if loss.amount > loss.bound {
            let line = format!(
                "loss: provider {} lost {} ms in {lane}, bound {}",
                node.peer().short(),
                loss.millis,
                loss.bound
            );
            report.violations.push(line);
        }
    }
    for (lane, bought) in &node.bought {
        let loss = renter_loss(bought);
        note(&mut report.renter, loss);
        if loss.amount > loss.bound {
            let line = format!(
                "loss: renter {} lost {} ms in {lane}, bound {}",
                node.peer().short(),
                loss.millis,
                loss.bound
            );
            report.violations.push(line);
        }
    }
}

fn note(largest: &mut Loss, loss: Loss) {
    if loss.amount > largest.amount {
        *largest = loss;
    }
}

/// Work truly done beyond what the vouchers held pay for; the bound is a window, a quantum and the
/// longest operation.
fn provider_loss(world: &World, node: &Node, lane: &LaneId, worked: &Worked) -> Loss {
    let due = worked.usage.amount(&worked.terms);
    let held = held_amount(world, node, lane);
    let amount = due.saturating_sub(held).get();
    let terms = &worked.terms;
    let most = terms.window.saturating_add(terms.quantum).saturating_add(worked.longest);
    Loss { amount, bound: terms.run.amount(most).get(), millis: millis_of(amount, worked.terms.run.get()) }
}

/// What the provider is owed for the lane: the last voucher that it holds; of a lane that an agreed
/// balance took in before the provider lost its records of it, what the renter's records say it took in.
fn held_amount(world: &World, node: &Node, lane: &LaneId) -> NanoCredit {
    let held = node.store.lane(lane).map_or(NanoCredit::ZERO, |record| record.amount());
    let floor = node.store.book(lane.renter).map_or(UnixMillis::ZERO, |book| book.head().floor);
    let renters = world.find(lane.renter).and_then(|renter| renter.store.lane(lane));
    match renters {
        Some(record) if record.created() < floor => held.max(record.amount()),
        _ => held,
    }
}

/// What was paid beyond the time that had passed, or beyond the last output; the bound is a quantum.
fn renter_loss(bought: &Bought) -> Loss {
    let right = bought.productive.min(bought.elapsed);
    let millis = bought.paid.saturating_sub(right);
    let terms = &bought.terms;
    Loss {
        amount: terms.run.amount(GpuMillis::new(millis)).get(),
        bound: terms.run.amount(terms.quantum).get(),
        millis,
    }
}

fn millis_of(amount: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(amount) * 1_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX)
}
