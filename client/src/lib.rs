//! The renter: finds a provider, signs a contract, countersigns its meters, prints the answer.
//!
//! Owns: search and choice among quotes, the renter's end of a job, and the `potluck` command line.
//! Never: loads a model, sandboxes anything, or touches libp2p or sled except through `node`.
//! Called by the `potluck` program.

#![forbid(unsafe_code)]

pub mod books;
pub mod cli;
pub mod command;
pub mod compose;
pub mod error;
pub mod joined;
pub mod output;
pub mod rent;
pub mod search;
pub mod session;
