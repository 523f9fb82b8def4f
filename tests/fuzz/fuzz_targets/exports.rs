//! Fuzzes the export file: its reader, and the audit of what is in it.
//!
//! Owns: nothing; the body is in `bodies/exports.rs`. Never: opens a file. Run by `make fuzz`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../bodies/exports.rs"]
mod body;
#[path = "../../../protocol/tests/common/books.rs"]
mod books;

fuzz_target!(|input: &[u8]| body::examine(input));
