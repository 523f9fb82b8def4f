//! A compiled component becomes one that can be run.
//!
//! Owns: the one step at which bytes become this process's own code. Never: takes such bytes from
//! anywhere but the run worker's descriptor. Called by the run worker, sealed in its jail. The only
//! file of the guest with `unsafe`.

use wasmtime::Engine;
use wasmtime::component::Component;

/// The component that `artefact` is the compiled form of. Its settings and its version are checked;
/// whether its code is the compiler's cannot be.
///
/// # Errors
/// When it is no compiled component, or one of another engine.
pub(super) fn load(engine: &Engine, artefact: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: whoever makes these bytes controls this process. They come from the descriptor that
    // the daemon opened; it keeps there what our own compile worker gave it, under a key of its own
    // that it verifies on the opened descriptor, and takes no compiled form from the network. The
    // bytes are a private copy, so nobody changes them any more. Should a stranger break the
    // compiler's worker, it is this worker's jail that holds, as it must for any guest.
    unsafe { Component::deserialize(engine, artefact) }
}
