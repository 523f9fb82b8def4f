//! The verbs of `potluck`, one a file.
//!
//! Owns: nothing itself. Called by [`crate::cli`].

pub mod exec;
pub mod ledger;
pub mod new;
pub mod run;
pub mod search;
pub mod settle;
