//! The provider's room: what an owner's machine offers, admits, meters and is paid for.
//!
//! Owns: `potluckd`. Pure policy: [`pricing`], [`quotes`], [`verify`], [`admission`], [`meter`],
//! [`owner`]. Mechanism: [`gate`], [`desk`], [`intake`], [`driver`], [`metered`], [`worker_slot`], [`provider`],
//! [`control`]. Never: parses a model, touches a GPU or runs a stranger's bytes (the worker does, in
//! its own process), or speaks libp2p or sled (`node` does).
//!
//! ```text
//! question ──▶ desk ──▶ signed quote
//! stream ──▶ intake: SignedJob ─▶ VerifiedJob ─▶ AdmittedJob ──▶ driver: MeteredRun ──▶ Close
//! ```

#![forbid(unsafe_code)]

pub mod admission;
pub mod cli;
mod clock;
mod command;
pub mod config;
pub mod control;
pub mod desk;
pub mod driver;
pub mod error;
mod exec;
pub mod frames;
pub mod gate;
pub mod guests;
pub mod intake;
pub mod jailing;
pub mod keeping;
mod labour;
pub mod meter;
pub mod metered;
pub mod model_file;
pub mod models;
pub mod owner;
pub mod pause_file;
pub mod pausing;
pub mod pricing;
pub mod provider;
pub mod quotes;
pub mod report;
mod status;
pub mod verify;
pub mod worker_slot;
