//! Any bytes as a model file, or over one place of a small true one.
//!
//! Owns: the law: loading gives a model or a typed error. Never: a time limit (the fuzzer has one).
//! Called by the fuzz target `models` and by `sandbox/tests/fuzz.rs`.

use potluck_sandbox::engine::{DeviceChoice, Engine};

use super::tiny::{self, TinyEncoder, TinyLlm};

/// The first byte says as what: a file, a change of a small model in either form, or its chat template.
pub(crate) fn load(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let bytes = match kind % 4 {
        0 => rest.to_vec(),
        1 => changed(TinyLlm::default().bytes(), rest),
        2 => changed(TinyEncoder::default().bytes(), rest),
        _ => TinyLlm { template: Some(String::from_utf8_lossy(rest).into_owned()), ..TinyLlm::default() }
            .bytes(),
    };
    let _ = Engine::load(tiny::file(&bytes), DeviceChoice::Cpu, &mut |_, _| ());
}

/// `change` over the place that its first two bytes name.
fn changed(mut bytes: Vec<u8>, change: &[u8]) -> Vec<u8> {
    let Some((at, change)) = change.split_first_chunk::<2>() else { return bytes };
    let at = usize::from(u16::from_le_bytes(*at)) % bytes.len();
    let end = bytes.len().min(at + change.len());
    bytes[at..end].copy_from_slice(&change[..end - at]);
    bytes
}
