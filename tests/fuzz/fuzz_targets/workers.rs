//! Fuzzes what the daemon and its workers say to each other, the tensor channel included.
//!
//! Owns: nothing; the body is in `bodies/workers.rs`. Never: starts a worker. Run by `make fuzz`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../bodies/workers.rs"]
mod body;

fuzz_target!(|input: &[u8]| body::hear(input));
