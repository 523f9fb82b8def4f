//! Fuzzes the parsers of model files: GGUF with its tokenizer and template, safetensors with its config
//! and tokenizer.
//!
//! Owns: nothing; the body is in `bodies/models.rs`. Never: runs a model. Run by `make fuzz`.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../bodies/models.rs"]
mod body;
#[path = "../../../sandbox/tests/common/tiny.rs"]
mod tiny;

fuzz_target!(|input: &[u8]| body::load(input));
