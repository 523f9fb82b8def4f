//! The worker process: loads the model behind its descriptor and answers jobs until told to leave.
//!
//! Owns: the process's two threads (one listens, one computes) and the edge at which an engine panic
//! is caught. Never: opens a file, knows the network, keys, prices or the model's hash, and never
//! outlives its daemon: when the socket closes, it is gone within a second, in the middle of a token
//! if need be. Called by `potluck-gpu-worker`; sync, no tokio.
//!
//! Descriptors: 0 is its end of the socket pair, 1 is the model, opened read-only, 2 is its log.
//!
//! Before anything else it goes into its jail ([`crate::jail`]), and it closes that behind itself
//! before it looks at the model or a job.
//!
//! The parent-death signal does not tie it to the daemon: it fires when the *thread* that started the
//! process ends, and a daemon's runtime ends idle threads. The closed socket says the same and says it
//! reliably. (It does tie the process inside a jail to its launcher, which has one thread.)

mod serve;
mod switch;

use std::any::Any;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use potluck_protocol::job::JobSpec;

use crate::cpu::check_cpu;
use crate::engine::{DeviceChoice, Engine, EngineEvent, OpenDevice};
use crate::exit::WorkerExit;
use crate::ipc::order::CommandOrder;
use crate::ipc::{Command, Event, IPC_VERSION, read_command, write_event};
use crate::jail::{self, EnterError, Guard, Profile};
use crate::tensor::ModelRequest;
use crate::text;
use switch::Switch;

/// How long the computing thread may take to notice that the daemon is gone before the process is
/// killed under it.
const ORPHAN_GRACE: Duration = Duration::from_millis(500);

/// What a person who starts the program reads.
const USAGE: &str = "potluck-gpu-worker is started by potluckd and by nothing else: its standard input is the \
                     daemon's socket and its standard output the model. Run `potluckd run` to serve a model.";

/// What the listening thread hands to the computing one.
enum Task {
    Load(DeviceChoice),
    Generate(u64, Box<JobSpec>),
    Serve(u64),
    Call(Box<ModelRequest>),
    EndServing,
    Leave(WorkerExit),
}

/// Runs the worker to its end; the answer is the process's exit code.
#[must_use]
pub fn run() -> WorkerExit {
    let (guard, socket, model) = match begin(USAGE, |profile| matches!(profile, Profile::Gpu { .. })) {
        Ok(begun) => begun,
        Err(exit) => return exit,
    };
    // A card must be opened first, by name; the processor is there already.
    let guard = match guard.profile() {
        Some(Profile::Gpu { cuda: true }) => Some(guard),
        _ => match guard.seal() {
            Ok(()) => None,
            Err(error) => {
                log(&error.to_string());
                return WorkerExit::Jail;
            }
        },
    };
    let Ok(listener) = socket.try_clone() else { return WorkerExit::Protocol };
    let switch = Arc::new(Switch::default());
    // One task at a time, and the end of a run of calls behind one of them: the listener refuses
    // what is more before it is put here. The last place is for the order to leave.
    let (tasks, inbox) = sync_channel(3);
    let heard = Arc::clone(&switch);
    let listening = thread::Builder::new().name("listener".into()).spawn(move || {
        let exit = listen(listener, &heard, &tasks);
        leave(exit, &heard, &tasks);
    });
    if let Err(error) = listening {
        log(&format!("no second thread: {error}"));
        return WorkerExit::Protocol;
    }
    Worker { socket, switch, guard, card: None, engine: None }.work(model, &inbox)
}

/// What both worker programs begin with: the processor is one that they are built for, the jail that the
/// daemon named is one of `profiles` and is entered, and descriptors 0 and 1 are what the daemon gives.
/// Whoever starts the program by hand reads `usage`.
pub(crate) fn begin(
    usage: &str,
    profiles: fn(Profile) -> bool,
) -> Result<(Guard, UnixStream, File), WorkerExit> {
    if let Err(error) = check_cpu() {
        log(&error.to_string());
        return Err(WorkerExit::Cpu);
    }
    let guard = match jail::start(profiles) {
        Ok(guard) => guard,
        Err(EnterError::Jail(error)) => {
            log(&error.to_string());
            return Err(WorkerExit::Jail);
        }
        Err(EnterError::Usage { .. }) => {
            log(usage);
            return Err(WorkerExit::Usage);
        }
    };
    let Some((socket, input)) = descriptors() else {
        log(usage);
        return Err(WorkerExit::Usage);
    };
    Ok((guard, socket, input))
}

/// The socket, and what there is to read, when this process was started by the daemon.
fn descriptors() -> Option<(UnixStream, File)> {
    let stdin: OwnedFd = io::stdin().as_fd().try_clone_to_owned().ok()?;
    let kind = rustix::fs::fstat(&stdin).ok()?.st_mode;
    if !rustix::fs::FileType::from_raw_mode(kind).is_socket() {
        return None;
    }
    let input: OwnedFd = io::stdout().as_fd().try_clone_to_owned().ok()?;
    Some((UnixStream::from(stdin), File::from(input)))
}

/// A line for the daemon's log.
pub(crate) fn log(line: &str) {
    // A log that nobody reads any more is no reason to die.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Hears commands until it is time to leave.
fn listen(mut socket: UnixStream, switch: &Switch, tasks: &SyncSender<Task>) -> WorkerExit {
    let mut order = CommandOrder::default();
    loop {
        let command = match read_command(&mut socket) {
            Ok(Some(command)) => command,
            Ok(None) if switch.is_busy() => return WorkerExit::Orphaned,
            Ok(None) => return WorkerExit::Done,
            Err(error) => {
                log(&format!("the daemon's words make no sense: {error}"));
                return WorkerExit::Protocol;
            }
        };
        if let Err(error) = order.accept(&command, switch.work()) {
            log(&format!("the daemon's words make no sense: {error}"));
            return WorkerExit::Protocol;
        }
        let task = match command {
            Command::Load { device } => {
                switch.begin(0);
                Task::Load(device)
            }
            Command::Generate { run, job } => {
                switch.begin(run);
                Task::Generate(run, job)
            }
            Command::Pause { run } => {
                switch.pause(run);
                continue;
            }
            Command::Resume { run } => {
                switch.resume(run);
                continue;
            }
            Command::Cancel { run } if switch.cancel(run) => Task::EndServing,
            Command::Cancel { .. } => continue,
            Command::Serve { run } => {
                switch.begin_serving(run);
                Task::Serve(run)
            }
            Command::Call { request, .. } => {
                switch.set_calling(true);
                Task::Call(request)
            }
            Command::Exit => return WorkerExit::Done,
        };
        if tasks.send(task).is_err() {
            return WorkerExit::Done;
        }
    }
}

/// Ends the process: asks the computing thread first, then does not ask.
fn leave(exit: WorkerExit, switch: &Switch, tasks: &SyncSender<Task>) {
    switch.cancel_all();
    let _ = tasks.try_send(Task::Leave(exit));
    thread::sleep(ORPHAN_GRACE);
    jail::exit_now(exit.code());
}

/// The computing thread's state.
struct Worker {
    socket: UnixStream,
    switch: Arc<Switch>,
    /// The jail's last door, while it is still open.
    guard: Option<Guard>,
    /// Keeps the driver loaded and the card open from before the seal.
    card: Option<OpenDevice>,
    engine: Option<Engine>,
}

impl Worker {
    fn work(mut self, model: File, inbox: &Receiver<Task>) -> WorkerExit {
        if self.tell(&Event::Hello { version: IPC_VERSION }).is_err() {
            return WorkerExit::Orphaned;
        }
        let mut model = Some(model);
        while let Ok(task) = inbox.recv() {
            let ended = match task {
                Task::Leave(exit) => Some(exit),
                Task::Load(device) => match model.take() {
                    Some(file) => self.load(file, device),
                    None => Some(WorkerExit::Protocol),
                },
                Task::Generate(run, job) => self.generate(run, &job),
                Task::Serve(run) => self.serve(run, inbox),
                Task::Call(_) | Task::EndServing => Some(WorkerExit::Protocol),
            };
            if let Some(exit) = ended {
                return exit;
            }
        }
        WorkerExit::Orphaned
    }

    /// Opens the card while there is still something to open, and then closes the jail, before the
    /// first byte of the model is looked at; the exit when that ends the worker.
    fn seal(&mut self, device: DeviceChoice) -> Option<WorkerExit> {
        let guard = self.guard.take()?;
        match OpenDevice::warm(device) {
            Ok(card) => self.card = Some(card),
            Err(error) => {
                log(&error.to_string());
                let _ = self.tell(&Event::LoadFailed(error));
                return Some(WorkerExit::Load);
            }
        }
        let error = guard.seal().err()?;
        log(&error.to_string());
        Some(WorkerExit::Jail)
    }

    /// Loads the model; the exit when that ends the worker.
    fn load(&mut self, file: File, device: DeviceChoice) -> Option<WorkerExit> {
        if let Some(exit) = self.seal(device) {
            return Some(exit);
        }
        let mut socket = &self.socket;
        let loaded = catch_unwind(AssertUnwindSafe(|| {
            Engine::load(file, device, &mut |done_bytes, total_bytes| {
                // A daemon that is gone is the listener's business.
                let _ = write_event(&mut socket, &Event::Loading { done_bytes, total_bytes });
            })
        }));
        match loaded {
            Ok(Ok(engine)) => {
                let info = engine.info().clone();
                self.engine = Some(engine);
                self.finish(&Event::Loaded(info))
            }
            Ok(Err(error)) => {
                log(&error.to_string());
                let _ = self.tell(&Event::LoadFailed(error));
                Some(WorkerExit::Load)
            }
            Err(panic) => Some(self.broken(&*panic)),
        }
    }

    /// Runs one job; the exit when that ends the worker.
    fn generate(&mut self, run: u64, job: &JobSpec) -> Option<WorkerExit> {
        let Some(engine) = &self.engine else { return Some(WorkerExit::Protocol) };
        let (mut socket, switch) = (&self.socket, &self.switch);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            engine.generate(job, &**switch, &mut |event| {
                if write_event(&mut socket, &told(run, &event)).is_err() {
                    switch.cancel_all();
                }
            })
        }));
        match outcome {
            Ok(Ok(summary)) => self.finish(&Event::Finished {
                run,
                reason: summary.reason,
                completion_tokens: summary.completion_tokens,
            }),
            Ok(Err(error)) => self.finish(&Event::Failed { run, error }),
            Err(panic) => Some(self.broken(&*panic)),
        }
    }

    /// Says that the work is over. Idle first: the next job may come the moment the daemon hears it.
    fn finish(&mut self, event: &Event) -> Option<WorkerExit> {
        self.switch.end();
        self.tell(event).err()
    }

    fn tell(&mut self, event: &Event) -> Result<(), WorkerExit> {
        write_event(&mut self.socket, event).map_err(|error| {
            log(&format!("the daemon does not listen: {error}"));
            WorkerExit::Orphaned
        })
    }

    fn broken(&mut self, panic: &(dyn Any + Send)) -> WorkerExit {
        let _ = self.tell(&Event::Broken { what: text::panic_words(panic) });
        WorkerExit::EngineBroken
    }
}

/// The engine's event as the daemon hears it.
fn told(run: u64, event: &EngineEvent<'_>) -> Event {
    match *event {
        EngineEvent::Started { prompt_tokens } => Event::Started { run, prompt_tokens },
        EngineEvent::Prefilled { done_tokens } => Event::Prefilled { run, done_tokens },
        EngineEvent::Output { tokens, text } => {
            Event::Output { run, tokens: tokens.to_vec(), text: text.to_owned() }
        }
    }
}
