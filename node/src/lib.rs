//! What every Potluck peer embeds: identity, network, ledger, state folder, shutdown.
//!
//! Owns: libp2p and sled, which no other room may touch. Never: prices, admits, meters or runs a
//! job. Called by the renter, the provider and the bootstrap.

#![forbid(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("Potluck runs on Linux only for now: its worker processes and its ledger rely on Linux");

pub mod accounts;
pub mod books;
pub mod bootstrap;
pub mod catalogue;
pub mod config;
pub mod fault;
pub mod identity;
pub mod ledger;
pub mod net;
pub mod shutdown;
pub mod state;
pub mod telemetry;
