//! How `potluck-wasm-worker` begins, whichever of the two workers it becomes.
//!
//! Owns: the way into the jail, the first words to the daemon, and which of its words makes a compile
//! worker and which a run worker. Never: looks at a stranger's byte. Called by the program alone.
//!
//! Descriptors: 0 is its end of the socket pair, 1 is the artefact of a run worker, opened read-only,
//! 2 is its log.

use std::fs::File;
use std::os::unix::net::UnixStream;

use wasmtime::Engine;

use super::order::GuestCommandOrder;
use super::wire::{self, GUEST_IPC_VERSION, GuestCommand, GuestEvent};
use super::{compile, run, runtime};
use crate::exit::WorkerExit;
use crate::jail::{Guard, Profile};
use crate::worker::{begin, log};

/// What a person who starts the program reads.
const USAGE: &str = "potluck-wasm-worker is started by potluckd and by nothing else: its standard input is the \
                     daemon's socket and its standard output a compiled component. Run `potluck exec` to run one.";

/// Runs the worker to its end; the answer is the process's exit code.
#[must_use]
pub fn main() -> WorkerExit {
    let profiles = |profile| matches!(profile, Profile::Wasm | Profile::Compile);
    let (guard, socket, artefact) = match begin(USAGE, profiles) {
        Ok(begun) => begun,
        Err(exit) => return exit,
    };
    match runtime::engine() {
        Ok(engine) => greet(socket, artefact, guard, &engine),
        Err(error) => {
            log(&format!("the runtime does not serve this machine: {error:#}"));
            WorkerExit::Cpu
        }
    }
}

/// Says hello and becomes what the first command says.
fn greet(mut socket: UnixStream, artefact: File, guard: Guard, engine: &Engine) -> WorkerExit {
    let hello = GuestEvent::Hello { version: GUEST_IPC_VERSION, engine: runtime::engine_id(engine) };
    if let Err(error) = wire::write(&mut socket, &hello) {
        log(&format!("the daemon does not listen: {error}"));
        return WorkerExit::Orphaned;
    }
    let command = match wire::read::<GuestCommand>(&mut socket) {
        Ok(Some(command)) => command,
        Ok(None) => return WorkerExit::Done,
        Err(error) => {
            log(&format!("the daemon's words make no sense: {error}"));
            return WorkerExit::Protocol;
        }
    };
    let mut order = GuestCommandOrder::default();
    if let Err(error) = order.accept(&command) {
        log(&format!("the daemon's words make no sense: {error}"));
        return WorkerExit::Protocol;
    }
    match (command, guard.profile()) {
        (GuestCommand::Compile { component_bytes, memory_bytes }, Some(Profile::Compile) | None) => {
            compile::serve(&socket, guard, engine, order, (component_bytes, memory_bytes))
        }
        (GuestCommand::Load { limits }, Some(Profile::Wasm) | None) => {
            run::serve(socket, artefact, guard, engine, order, limits)
        }
        (GuestCommand::Exit, _) => WorkerExit::Done,
        _ => {
            log("the daemon asks for what this jail is not made for");
            WorkerExit::Protocol
        }
    }
}
