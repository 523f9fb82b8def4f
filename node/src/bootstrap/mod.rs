//! The bootstrap: a small, bounded, powerless peer that introduces others to each other.
//!
//! Owns: its configuration file ([`config`]) and its life from start to stop ([`run`]). Never: takes
//! quotes or jobs, signs anything, holds a ledger, or prints but through [`run`]. Called by the
//! program `potluck-bootstrap`.

pub mod config;
pub mod run;
