//! Potluck's vocabulary: everything two peers must agree on, byte for byte.
//!
//! Owns: ids, units, offers, quotes, jobs, contracts, meters, vouchers, receipts, balances, how they
//! are encoded and signed, the seeded sampler, and the *laws*: of a lane and of a pair (what each side may
//! sign next), of credit, of catching up after a restart, and of convicting who signs twice.
//! Never: touches a socket, a file, a clock, a source of randomness, or a thread. Time comes in as
//! an argument. Called by every other room. `SPEC.md` beside this crate says the same in prose, so
//! that a stranger can write a second implementation.

#![forbid(unsafe_code)]

pub mod balance;
pub mod codec;
pub mod credit;
pub mod export;
pub mod fault;
pub mod id;
pub mod job;
pub mod lane;
pub mod life;
pub mod limits;
pub mod offer;
pub mod outbox;
pub mod output;
pub mod pair;
pub mod proof;
pub mod sampler;
pub mod settle;
pub mod sign;
pub mod statement;
pub mod sync;
pub mod unit;
pub mod version;
pub mod wire;
