//! The compile worker: a stranger's component in, its compiled form out.
//!
//! Owns: what is taken as a component, and the edge at which a compiler's panic is caught. Never: runs
//! anything of the component, or opens a file. Called by [`super::entry`], in a process that ends with
//! this; single-threaded but for the compiler's own threads and one that listens for the end.

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use rustix::process::{Resource, Rlimit, setrlimit};
use wasmtime::Engine;

use super::order::GuestCommandOrder;
use super::wire::{
    self, Blob, CHUNK_BYTES, CompileRefusal, GuestCommand, GuestEvent, MAX_ARTEFACT_BYTES, cut_words,
};
use crate::exit::WorkerExit;
use crate::jail::{self, Guard};
use crate::text;
use crate::worker::log;

/// How binary wasm begins.
const MAGIC: &[u8] = b"\0asm";
/// What follows in a component: its version, and that it is one.
const COMPONENT: &[u8] = &[0x0d, 0x00, 0x01, 0x00];

/// Compiles one component of `component_bytes`, whose chunks follow on `socket`; the exit.
pub(super) fn serve(
    socket: &UnixStream,
    guard: Guard,
    engine: &Engine,
    mut order: GuestCommandOrder,
    (component_bytes, memory_bytes): (u64, u64),
) -> WorkerExit {
    if guard.profile().is_none() {
        limit_memory(memory_bytes);
    }
    if let Err(error) = guard.seal() {
        log(&error.to_string());
        return WorkerExit::Jail;
    }
    let component = match receive(socket, &mut order, component_bytes) {
        Ok(component) => component,
        Err(exit) => return exit,
    };
    if let Err(error) = listen(socket, order) {
        log(&format!("no second thread: {error}"));
        return WorkerExit::Protocol;
    }
    match catch_unwind(AssertUnwindSafe(|| compile(engine, &component))) {
        Ok(Ok(artefact)) => send(socket, &artefact),
        Ok(Err(refusal)) => tell(socket, &GuestEvent::Refused(refusal)),
        Err(panic) => {
            let what = text::panic_words(&*panic);
            match tell(socket, &GuestEvent::Broken { what }) {
                WorkerExit::Done => WorkerExit::EngineBroken,
                other => other,
            }
        }
    }
}

/// A jail has its own ceiling; outside of one this is all there is.
fn limit_memory(bytes: u64) {
    let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
    if let Err(errno) = setrlimit(Resource::As, limit) {
        log(&format!("the compiler's memory cannot be limited: {errno}"));
    }
}

/// Takes the component's chunks.
fn receive(
    mut socket: &UnixStream,
    order: &mut GuestCommandOrder,
    component_bytes: u64,
) -> Result<Vec<u8>, WorkerExit> {
    // Checked: at most 64 MiB.
    let mut component = Vec::with_capacity(usize::try_from(component_bytes).unwrap_or(0));
    while !order.is_component_whole() {
        let command = match wire::read::<GuestCommand>(&mut socket) {
            Ok(Some(command)) => command,
            Ok(None) => return Err(WorkerExit::Orphaned),
            Err(error) => {
                log(&format!("the daemon's words make no sense: {error}"));
                return Err(WorkerExit::Protocol);
            }
        };
        if let Err(error) = order.accept(&command) {
            log(&format!("the daemon's words make no sense: {error}"));
            return Err(WorkerExit::Protocol);
        }
        match command {
            GuestCommand::Chunk(Blob(bytes)) => component.extend_from_slice(&bytes),
            _ => return Err(WorkerExit::Done),
        }
    }
    Ok(component)
}

/// Ends the process when the daemon says so or goes away: the compiler looks at nothing.
fn listen(socket: &UnixStream, mut order: GuestCommandOrder) -> std::io::Result<()> {
    let mut socket = socket.try_clone()?;
    let listening = move || {
        let exit = match wire::read::<GuestCommand>(&mut socket) {
            Ok(None) => WorkerExit::Orphaned,
            Ok(Some(command)) if order.accept(&command).is_ok() => WorkerExit::Done,
            Ok(Some(_)) | Err(_) => WorkerExit::Protocol,
        };
        jail::exit_now(exit.code());
    };
    thread::Builder::new().name("listener".into()).spawn(listening).map(drop)
}

/// The compiled form of `component`.
fn compile(engine: &Engine, component: &[u8]) -> Result<Vec<u8>, CompileRefusal> {
    let not = |what: &str| Err(CompileRefusal::NotAComponent { what: what.to_owned() });
    // The runtime would take the text form as well, and parse it with far more code.
    let Some(version) = component.strip_prefix(MAGIC) else {
        return not("it does not begin as binary WebAssembly does");
    };
    if !version.starts_with(COMPONENT) {
        return not("it is a core module, or a component of another version");
    }
    let artefact = engine
        .precompile_component(component)
        .map_err(|error| CompileRefusal::Invalid { what: cut_words(format!("{error:#}")) })?;
    let bytes = u64::try_from(artefact.len()).unwrap_or(u64::MAX);
    if bytes > MAX_ARTEFACT_BYTES {
        return Err(CompileRefusal::ArtefactTooLarge { bytes, max: MAX_ARTEFACT_BYTES });
    }
    Ok(artefact)
}

fn send(socket: &UnixStream, artefact: &[u8]) -> WorkerExit {
    let artefact_bytes = u64::try_from(artefact.len()).unwrap_or(u64::MAX);
    let announced = tell(socket, &GuestEvent::Compiled { artefact_bytes });
    if announced != WorkerExit::Done {
        return announced;
    }
    let chunks = artefact.chunks(CHUNK_BYTES);
    let mut told = chunks.map(|chunk| tell(socket, &GuestEvent::Chunk(Blob(chunk.to_vec()))));
    told.find(|exit| *exit != WorkerExit::Done).unwrap_or(WorkerExit::Done)
}

/// Says `event`; [`WorkerExit::Done`] when the daemon listens.
fn tell(mut socket: &UnixStream, event: &GuestEvent) -> WorkerExit {
    match wire::write(&mut socket, event) {
        Ok(()) => WorkerExit::Done,
        Err(error) => {
            log(&format!("the daemon does not listen: {error}"));
            WorkerExit::Orphaned
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::runtime;
    use super::*;

    #[test]
    fn only_binary_components_are_taken() {
        let engine = runtime::engine().unwrap();
        let refused = |bytes: &[u8]| compile(&engine, bytes).unwrap_err();
        let no_component: [&[u8]; 5] =
            [b"", b"\0asm", b"(component)", b"\0asm\x01\0\0\0", b"\0asm\x0e\0\x01\0"];
        for bytes in no_component {
            assert!(matches!(refused(bytes), CompileRefusal::NotAComponent { .. }), "{bytes:?}");
        }
        assert!(matches!(refused(b"\0asm\x0d\0\x01\0\xff"), CompileRefusal::Invalid { .. }));
        assert!(compile(&engine, b"\0asm\x0d\0\x01\0").is_ok());
    }
}
