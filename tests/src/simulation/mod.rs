//! A deterministic simulation of a whole market of strangers: the protocol's own laws under virtual
//! time, a bad network, crashes, old backups, and one liar in five.
//!
//! Owns: [`run`]. Never: opens a socket or a file, reads a clock or real randomness: one seed is one
//! run. Called by `tests/simulation.rs` (a hundred nodes in each test run, over a thousand by
//! `make simulate`).

pub mod audit;
pub mod lie;
pub mod message;
pub mod node;
mod pairing;
mod providing;
mod renting;
pub mod rng;
pub mod store;
pub mod world;

use audit::Report;
use world::World;

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// One seed is one run.
    pub seed: u64,
    /// How many; every fifth lies.
    pub nodes: usize,
    /// Jobs that each one wants.
    pub jobs: u32,
    /// A law that honest nodes do not keep, to see that the audit notices.
    pub mutation: Option<Mutation>,
}

/// A law switched off in every honest node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// Providers work on whatever is unpaid (I4).
    IgnoreWindow,
    /// Renters pay whatever is claimed (I5).
    PayAnything,
    /// Who restored an old ledger signs at once (I7).
    SignBeforeSync,
}

/// Runs a world to its end and audits it.
#[must_use]
pub fn run(config: &Config) -> Report {
    let mut world = World::new(config);
    world.run();
    audit::audit(&world)
}
