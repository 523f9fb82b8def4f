//! The kit: real Potluck programs, started with their own state folders and always stopped.
//!
//! Owns: where the programs are, how they are started, waited for and stopped, and reading what they
//! print. Never: fakes a program, or knows what a story expects. Called by the demo, the stories and
//! the benchmarks. Ends when a [`process::Process`] is dropped: no program outlives it.

#![forbid(unsafe_code)]

pub mod error;
pub mod figures;
pub mod guest_tools;
pub mod ledgers;
pub mod network;
pub mod owner;
pub mod process;
pub mod programs;
pub mod renter;
pub mod simulation;
