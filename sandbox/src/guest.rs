//! A renter's own program: a WebAssembly component, compiled and run in processes of their own.
//!
//! Owns: what a guest may be ([`limits`]), how the daemon talks to its two workers ([`wire`]), the
//! workers (`compile`, `run`) and the daemon's side ([`compiler`], [`cache`], [`supervisor`]).
//! Never: holds a model or a device, and never runs a component in the daemon. Called by `potluckd`
//! and by `potluck-wasm-worker`.
//!
//! ```text
//!   component --> compiler::Compiler --(compile worker)--> cache: artefact + MAC
//!                                                             |  one opened descriptor
//!   supervisor::Guest <-- wire::GuestEvent --- run worker <---+
//!        |            --- wire::GuestCommand->   wasmtime, WASI, potluck:job, wasi:nn
//!        +-- Call, reply: the daemon asks the model's worker
//! ```

#[allow(unsafe_code, reason = "compiled code can only be loaded unsafely")]
mod artefact;
pub mod cache;
mod clock;
mod compile;
pub mod compiler;
mod entry;
mod host;
pub mod limits;
pub mod order;
mod run;
mod runtime;
pub mod supervisor;
pub mod wire;

pub use entry::main;

/// The runtime that components run in, as an offer names it.
pub const RUNTIME: &str = "wasmtime 48.0.8";

#[cfg(test)]
mod tests {
    #[test]
    fn the_runtime_is_the_one_that_is_built_in() {
        let lock = include_str!("../../Cargo.lock");
        let version = super::RUNTIME.strip_prefix("wasmtime ").unwrap();
        assert!(lock.contains(&format!("name = \"wasmtime\"\nversion = \"{version}\"")), "{version}");
    }
}
