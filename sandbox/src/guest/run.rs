//! The run worker: one compiled component, one call of its `run`.
//!
//! Owns: the process's threads (one runs the guest, one listens, one ticks), the order of a run, and
//! what each way to fail is called. Never: compiles, holds a model, or outlives its daemon: when the
//! socket closes, it is gone. Called by [`super::entry`], in a process that ends with this.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use thiserror::Error;
use wasmtime::component::{Component, InstancePre, ResourceTableError};
use wasmtime::{Engine, Store, Trap, UpdateDeadline};
use wasmtime_wasi::I32Exit;

use super::artefact;
use super::clock::Clock;
use super::host::{self, Gone, Host, OutOfMemory, Outbox};
use super::limits::GuestLimits;
use super::order::GuestCommandOrder;
use super::wire::{self, Blob, GuestCommand, GuestError, GuestEvent, GuestStart, GuestUsage, cut_words};
use crate::exit::WorkerExit;
use crate::jail::{self, Guard};
use crate::text;
use crate::worker::log;

/// What a job exports.
const RUN: &str = "run";

/// What `run` gives: a copy, since the guest takes its memory back before the call returns. How much
/// is copied at most is the store's limit on what crosses at once.
type Given = Result<Vec<u8>, String>;
type Output = Result<Blob, String>;

/// Limits of the runtime for which it has no type, by its words; and ours. Without them the guest is
/// said to have trapped, in the runtime's words.
const OVER_LIMITS: [(&str, &str); 2] = [
    ("fuel allocated for hostcalls", "it hands over too much at once"),
    ("store handle limit", "it holds too many handles"),
];

/// The guest's time is over.
#[derive(Debug, Error)]
#[error("the time is over")]
struct Late;

/// Runs the component behind `artefact` once; the exit.
pub(super) fn serve(
    socket: UnixStream,
    artefact: File,
    guard: Guard,
    engine: &Engine,
    order: GuestCommandOrder,
    limits: GuestLimits,
) -> WorkerExit {
    let Ok(listener) = socket.try_clone() else { return WorkerExit::Protocol };
    let clock = Arc::new(Clock::new(engine.clone(), limits.compute()));
    let outbox = Arc::new(Outbox::new(socket, order, Arc::clone(&clock)));
    let (starts, inbox) = sync_channel(1);
    if let Err(error) = spawn_threads(listener, &outbox, &clock, starts) {
        log(&format!("no further thread: {error}"));
        return WorkerExit::Protocol;
    }
    if let Err(error) = guard.seal() {
        log(&error.to_string());
        return WorkerExit::Jail;
    }
    let guest = Guest { engine, limits, clock: &clock, outbox: &outbox };
    match catch_unwind(AssertUnwindSafe(|| guest.live(artefact, &inbox))) {
        Ok(Ok(())) => wait_for_the_end(&inbox),
        Ok(Err(gone)) => {
            log(&gone.to_string());
            WorkerExit::Orphaned
        }
        Err(panic) => {
            // The exit says it as well.
            let _ = outbox.tell(&GuestEvent::Broken { what: text::panic_words(&*panic) });
            WorkerExit::EngineBroken
        }
    }
}

fn spawn_threads(
    socket: UnixStream,
    outbox: &Arc<Outbox>,
    clock: &Arc<Clock>,
    starts: SyncSender<Box<GuestStart>>,
) -> io::Result<()> {
    let (outbox, heard, ticking) = (Arc::clone(outbox), Arc::clone(clock), Arc::clone(clock));
    let listen = move || jail::exit_now(listen(socket, &outbox, &heard, &starts).code());
    thread::Builder::new().name("listener".into()).spawn(listen)?;
    thread::Builder::new().name("clock".into()).spawn(move || ticking.tick())?;
    Ok(())
}

/// Hears commands until it is time to leave.
fn listen(
    mut socket: UnixStream,
    outbox: &Outbox,
    clock: &Clock,
    starts: &SyncSender<Box<GuestStart>>,
) -> WorkerExit {
    loop {
        let command = match wire::read::<GuestCommand>(&mut socket) {
            Ok(Some(command)) => command,
            Ok(None) if outbox.is_closed() => return WorkerExit::Done,
            Ok(None) => return WorkerExit::Orphaned,
            Err(error) => {
                log(&format!("the daemon's words make no sense: {error}"));
                return WorkerExit::Protocol;
            }
        };
        if let Err(error) = outbox.hear(&command) {
            log(&format!("the daemon's words make no sense: {error}"));
            return WorkerExit::Protocol;
        }
        match command {
            // The order lets one pass, for which there is room.
            GuestCommand::Start(start) => drop(starts.try_send(start)),
            GuestCommand::Reply { result, .. } => outbox.answer(result),
            GuestCommand::Pause => clock.pause(),
            GuestCommand::Resume => clock.resume(),
            GuestCommand::Exit => return WorkerExit::Done,
            GuestCommand::Compile { .. } | GuestCommand::Chunk(_) | GuestCommand::Load { .. } => {
                return WorkerExit::Protocol;
            }
        }
    }
}

/// All is said: the listening thread ends the process when the daemon has read it.
fn wait_for_the_end(inbox: &Receiver<Box<GuestStart>>) -> WorkerExit {
    match inbox.recv() {
        Ok(_) => WorkerExit::Protocol,
        Err(_) => WorkerExit::Done,
    }
}

/// What the guest's thread works with.
struct Guest<'a> {
    engine: &'a Engine,
    limits: GuestLimits,
    clock: &'a Arc<Clock>,
    outbox: &'a Arc<Outbox>,
}

impl Guest<'_> {
    /// The whole of one run; everything but a lost daemon is told.
    fn live(&self, artefact: File, inbox: &Receiver<Box<GuestStart>>) -> Result<(), Gone> {
        let event = match self.load(&artefact) {
            Ok(job) => {
                self.outbox.tell(&GuestEvent::Loaded)?;
                // The listening thread lives as long as the process.
                let Ok(start) = inbox.recv() else { return Ok(()) };
                self.run(&job, *start)?
            }
            Err(error) => GuestEvent::Failed { error, usage: GuestUsage::default() },
        };
        self.clock.finish();
        self.outbox.close();
        self.outbox.tell(&event)
    }

    /// Loads the artefact and looks whether it is a job.
    fn load(&self, artefact: &File) -> Result<InstancePre<Host>, GuestError> {
        let broken = |what: String| GuestError::Artefact { what: cut_words(what) };
        let no_job = |what: String| GuestError::NoJob { what: cut_words(what) };
        let bytes = read_whole(artefact).map_err(|error| broken(error.to_string()))?;
        let component = artefact::load(self.engine, &bytes).map_err(|error| broken(format!("{error:#}")))?;
        drop(bytes);
        if !exports_run(self.engine, &component) {
            return Err(no_job("it exports no function called run".into()));
        }
        let linker = host::linker(self.engine).map_err(|error| broken(format!("{error:#}")))?;
        linker.instantiate_pre(&component).map_err(|error| no_job(format!("{error:#}")))
    }

    /// Runs `job`; what is to be told.
    fn run(&self, job: &InstancePre<Host>, start: GuestStart) -> Result<GuestEvent, Gone> {
        let mut store = Host::store(self.engine, &self.limits, &start, self.outbox);
        let clock = Arc::clone(self.clock);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |_| {
            if clock.checkpoint() { Ok(UpdateDeadline::Continue(1)) } else { Err(Late.into()) }
        });
        let result = self.compute(&mut store, job, &start.input.0);
        // The handles that it leaves are dropped with the store, and nobody is asked about them.
        self.outbox.close();
        let usage = store.data().usage()?;
        Ok(match result {
            Ok(Ok(output)) => GuestEvent::Finished { output, usage },
            Ok(Err(error)) => GuestEvent::Failed { error, usage },
            Err(error) => {
                let error = match error.downcast::<Gone>() {
                    Ok(gone) => return Err(gone),
                    Err(error) => self.failure(&error, store.data().was_refused_memory()),
                };
                GuestEvent::Failed { error, usage }
            }
        })
    }

    /// Lets the guest have the word until it is done or its time is over.
    fn compute(
        &self,
        store: &mut Store<Host>,
        job: &InstancePre<Host>,
        input: &[u8],
    ) -> wasmtime::Result<Result<Output, GuestError>> {
        // For timers only; a guest that waits for one does so here.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        self.clock.go();
        let done = runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.clock.expired() => Err(Late.into()),
                given = self.call(store, job, input) => given,
            }
        });
        self.clock.stop();
        done
    }

    async fn call(
        &self,
        store: &mut Store<Host>,
        job: &InstancePre<Host>,
        input: &[u8],
    ) -> wasmtime::Result<Result<Output, GuestError>> {
        let instance = job.instantiate_async(&mut *store).await?;
        let run = match instance.get_typed_func::<(&[u8],), (Given,)>(&mut *store, RUN) {
            Ok(run) => run,
            Err(error) => {
                let what = cut_words(format!("its run is of another type: {error:#}"));
                return Ok(Err(GuestError::NoJob { what }));
            }
        };
        let (given,) = run.call_async(&mut *store, (input,)).await?;
        Ok(self.take(given))
    }

    /// What the guest gave, if it is not too much.
    fn take(&self, given: Given) -> Result<Output, GuestError> {
        let max = u64::from(self.limits.output_bytes);
        match given {
            Ok(list) => {
                let bytes = u64::try_from(list.len()).unwrap_or(u64::MAX);
                if bytes > max {
                    return Err(GuestError::OutputTooLarge { bytes, max });
                }
                Ok(Ok(Blob(list)))
            }
            Err(words) => Ok(Err(cut_words(words))),
        }
    }

    /// What went wrong, by name.
    fn failure(&self, error: &wasmtime::Error, was_refused_memory: bool) -> GuestError {
        let limit_bytes = self.limits.memory_bytes;
        if error.is::<Late>() {
            return GuestError::Deadline { limit_ms: self.limits.compute_ms };
        }
        if error.is::<OutOfMemory>() {
            return GuestError::OutOfMemory { limit_bytes };
        }
        if let Some(ResourceTableError::Full) = error.downcast_ref() {
            return GuestError::OverLimit { what: "it holds too many handles".into() };
        }
        if let Some(I32Exit(code)) = error.downcast_ref() {
            return GuestError::Trapped {
                what: format!("it left with exit code {code} instead of an answer"),
            };
        }
        let words = format!("{error:#}");
        if let Some((_, what)) = OVER_LIMITS.iter().find(|(said, _)| words.contains(said)) {
            return GuestError::OverLimit { what: (*what).to_owned() };
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::StackOverflow) => GuestError::StackOverflow,
            // A program that is refused memory mostly gives up by a trap, or cannot even be made.
            Some(Trap::UnreachableCodeReached) | None if was_refused_memory => {
                GuestError::OutOfMemory { limit_bytes }
            }
            _ => GuestError::Trapped { what: cut_words(words) },
        }
    }
}

/// All bytes of `file`, whose place for reading is shared with every other worker that has it: the
/// daemon hands out copies of one descriptor.
fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Whether there is a `run` at all; its type is looked at when there is an instance.
fn exports_run(engine: &Engine, component: &Component) -> bool {
    let ty = component.component_type();
    let run = ty.get_export(engine, RUN);
    run.is_some_and(|run| matches!(run.ty, wasmtime::component::types::ComponentItem::ComponentFunc(_)))
}
