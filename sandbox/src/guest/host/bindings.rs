//! `potluck:job` in Rust, made from `wit/job.wit` when this is built.
//!
//! Owns: nothing that is written by hand. Never: decides what an import does. Called by the files
//! beside it, which implement the traits.

#![allow(missing_docs, unreachable_pub, missing_debug_implementations, dead_code, reason = "made by a macro")]

wasmtime::component::bindgen!({
    path: "wit",
    world: "job",
    imports: { default: trappable },
    with: { "potluck:job/llm.session": super::llm::Session },
});
