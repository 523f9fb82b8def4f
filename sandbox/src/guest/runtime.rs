//! The WebAssembly runtime as both workers set it up.
//!
//! Owns: which parts of WebAssembly a guest may use, how the compiler is set, and the name that says
//! whether a compiled component fits. Never: compiles, loads or runs one. Called by the compile
//! worker, the run worker and (for the name) the daemon's cache.

use std::hash::{Hash as _, Hasher};

use wasmtime::{Config, Engine, OptLevel, Strategy, WasmBacktraceDetails};

use super::RUNTIME;
use super::limits::{FIBER_STACK_BYTES, WASM_STACK_BYTES};

/// Sets an engine's name apart from every other hash.
const ENGINE_DOMAIN: &str = "potluck 2026-11-24 guest engine";

/// The engine that compiles components and that compiled components fit.
///
/// # Errors
/// When this processor or system is one that the runtime does not serve. Fault: local.
pub(super) fn engine() -> wasmtime::Result<Engine> {
    Engine::new(&config())
}

/// Names the runtime, its settings and this processor: a compiled component fits where it is equal.
pub(super) fn engine_id(engine: &Engine) -> [u8; 32] {
    let mut hasher = Blake3(blake3::Hasher::new_derive_key(ENGINE_DOMAIN));
    RUNTIME.hash(&mut hasher);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    *hasher.0.finalize().as_bytes()
}

/// Garbage collection, exceptions, threads, stack switching and asynchronous components are not in
/// the build at all (see the features in `Cargo.toml`); what is, and is of no use here, is off.
fn config() -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .wasm_component_model(true)
        .gc_support(false)
        .shared_memory(false)
        .concurrency_support(false)
        .wasm_memory64(false)
        .wasm_tail_call(false)
        .wasm_relaxed_simd(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false);
    // Equal jobs run equally, on every processor.
    config.cranelift_nan_canonicalization(true);
    config.epoch_interruption(true).max_wasm_stack(WASM_STACK_BYTES).async_stack_size(FIBER_STACK_BYTES);
    // Names of functions are enough for a guest's author; tables of addresses are a third of the
    // compiled form.
    config
        .generate_address_map(false)
        .native_unwind_info(false)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable);
    // One guest in one process: its memory is filled once, and never shared through a file.
    config.memory_init_cow(false).memory_may_move(false);
    config
}

/// A hash of everything that is hashed into it.
struct Blake3(blake3::Hasher);

impl Hasher for Blake3 {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let hash = self.0.finalize();
        hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_has_one_name_and_other_settings_another() {
        let name = engine_id(&engine().unwrap());
        assert_eq!(name, engine_id(&engine().unwrap()));
        let mut other = config();
        other.cranelift_opt_level(OptLevel::None);
        assert_ne!(name, engine_id(&Engine::new(&other).unwrap()));
    }

    #[test]
    fn parts_of_webassembly_without_use_here_are_refused() {
        let engine = engine().unwrap();
        let compiles = |text: &str| engine.precompile_component(text.as_bytes()).is_ok();
        assert!(compiles("(component (core module (func (param i32) (result i32) local.get 0)))"));
        for module in [
            "(memory i64 1)",
            "(memory 1 1 shared)",
            "(func $f return_call $f)",
            "(type (struct))",
            "(tag)",
            "(func (param v128 v128) (result v128) local.get 0 local.get 1 i8x16.relaxed_swizzle)",
        ] {
            assert!(!compiles(&format!("(component (core module {module}))")), "{module}");
        }
    }
}
