//! One job's execution, in a process of its own.
//!
//! Owns: the supervisor side (start, watch, pause, cancel, kill, reap a worker), the typed protocol
//! over the socket pair between the two, the worker itself with its candle engine, and the jail that
//! every worker shuts itself into ([`jail`], accounted for by [`protection`]). Never: talks
//! to the network, holds a key, knows a price or writes a ledger. Called by `potluckd` through
//! [`supervisor`] and by `potluck-gpu-worker` through [`worker`]. The daemon parses no model bytes:
//! everything under [`engine`] runs in the worker (or in a benchmark that wants the engine alone).
//!
//! ```text
//!   potluckd                                potluck-gpu-worker
//!   supervisor::Worker  <-- ipc::Event ---  worker::run --> engine::Engine
//!        |                -- ipc::Command->      ^
//!        +-- reads its log (stderr)              +-- the model: one read-only descriptor
//! ```

#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("Potluck runs on Linux only for now: its workers rely on Linux processes and descriptors");

pub mod cpu;
pub mod engine;
pub mod exit;
pub mod guest;
pub mod ipc;
pub mod jail;
pub mod protection;
pub mod supervisor;
pub mod tensor;
#[cfg(test)]
#[path = "../tests/common/model.rs"]
mod test_model;
mod text;
pub mod worker;
