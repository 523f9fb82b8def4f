//! Which message may come when between the daemon and a wasm worker, as two pure state machines.
//!
//! Owns: the law of the conversation, one half for each side's ears. Never: reads a socket or a clock.
//! Called with every message before it is acted on: neither side trusts the other.
//!
//! ```text
//!   worker hears:  Compile, Chunk*                                    (a compile worker)
//!               |  Load, Start, { Reply to the open call }            (a run worker)
//!                  Pause and Resume after Load, Exit at any time
//!   daemon hears:  Hello, then Refused | Compiled Chunk*              (a compile worker)
//!               |  Hello, Loaded | Failed, then { Call, Progress, Log }, Finished | Failed
//!                  no second call before the reply; Broken at any time
//! ```

use thiserror::Error;

use super::wire::{GUEST_IPC_VERSION, GuestCommand, GuestEvent};

/// Why a message may not come. Fault: whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GuestOrderError {
    /// It has no place at this point.
    #[error("{message} while {state}")]
    NotNow {
        /// What came.
        message: &'static str,
        /// Where the conversation was.
        state: &'static str,
    },
    /// It speaks of another call than the one that is due.
    #[error("{message} names call {call}; {due} is due")]
    WrongCall {
        /// What came.
        message: &'static str,
        /// The call that it names.
        call: u64,
        /// The call that is due.
        due: u64,
    },
    /// More bytes than were announced.
    #[error("{found} bytes came where {announced} were announced")]
    TooMuch {
        /// How many came.
        found: u64,
        /// How many were announced.
        announced: u64,
    },
    /// The worker comes from another build.
    #[error("the worker speaks version {found} of the protocol and not {GUEST_IPC_VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
}

fn not_now<T>(message: &'static str, state: &'static str) -> Result<T, GuestOrderError> {
    Err(GuestOrderError::NotNow { message, state })
}

/// Bytes that were announced and come in chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Announced {
    total: u64,
    have: u64,
}

impl Announced {
    fn add(&mut self, bytes: usize) -> Result<(), GuestOrderError> {
        let found = self.have.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        if found > self.total {
            return Err(GuestOrderError::TooMuch { found, announced: self.total });
        }
        self.have = found;
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Heard {
    #[default]
    Nothing,
    Compile(Announced),
    Load,
    Start,
}

/// What a worker has heard so far.
#[derive(Debug, Default)]
pub struct GuestCommandOrder {
    heard: Heard,
    /// Calls made so far.
    calls: u64,
    /// Is the last one open?
    open: bool,
}

impl GuestCommandOrder {
    /// Notes that the worker makes a call; its number.
    pub fn call(&mut self) -> u64 {
        self.calls += 1;
        self.open = true;
        self.calls
    }

    /// Takes note of `command`.
    ///
    /// # Errors
    /// [`GuestOrderError`] when it may not come now.
    pub fn accept(&mut self, command: &GuestCommand) -> Result<(), GuestOrderError> {
        match (command, &mut self.heard) {
            (GuestCommand::Exit, _) => Ok(()),
            (GuestCommand::Compile { component_bytes, .. }, heard @ Heard::Nothing) => {
                *heard = Heard::Compile(Announced { total: *component_bytes, have: 0 });
                Ok(())
            }
            (GuestCommand::Compile { .. }, _) => not_now("Compile", "the worker has its work"),
            (GuestCommand::Chunk(bytes), Heard::Compile(announced)) => announced.add(bytes.0.len()),
            (GuestCommand::Chunk(_), _) => not_now("Chunk", "nothing is compiled"),
            (GuestCommand::Load { .. }, heard @ Heard::Nothing) => {
                *heard = Heard::Load;
                Ok(())
            }
            (GuestCommand::Load { .. }, _) => not_now("Load", "the worker has its work"),
            (GuestCommand::Start(_), heard @ Heard::Load) => {
                *heard = Heard::Start;
                Ok(())
            }
            (GuestCommand::Start(_), _) => not_now("Start", "no component waits to be started"),
            (GuestCommand::Reply { call, .. }, Heard::Start) if self.open && *call == self.calls => {
                self.open = false;
                Ok(())
            }
            (GuestCommand::Reply { call, .. }, Heard::Start) => {
                Err(GuestOrderError::WrongCall { message: "Reply", call: *call, due: self.calls })
            }
            (GuestCommand::Reply { .. }, _) => not_now("Reply", "nothing runs"),
            (GuestCommand::Pause | GuestCommand::Resume, Heard::Load | Heard::Start) => Ok(()),
            (GuestCommand::Pause, _) => not_now("Pause", "nothing runs"),
            (GuestCommand::Resume, _) => not_now("Resume", "nothing runs"),
        }
    }

    /// Are all bytes of the component there?
    #[must_use]
    pub fn is_component_whole(&self) -> bool {
        matches!(self.heard, Heard::Compile(Announced { total, have }) if total == have)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Hello,
    Compiling,
    Sending(Announced),
    Loading,
    Ready,
    Running,
    Over,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Hello => "the worker has not said hello",
            Self::Compiling => "it compiles",
            Self::Sending(_) => "it sends an artefact",
            Self::Loading => "it loads an artefact",
            Self::Ready => "nothing runs",
            Self::Running => "a component runs",
            Self::Over => "all is said",
        }
    }
}

/// What the daemon has heard so far.
#[derive(Debug)]
pub struct GuestEventOrder {
    stage: Stage,
    /// What comes after the hello.
    compiles: bool,
    calls: u64,
    open: bool,
}

impl GuestEventOrder {
    /// The ears of whoever asked for a compilation.
    #[must_use]
    pub fn compiling() -> Self {
        Self { stage: Stage::Hello, compiles: true, calls: 0, open: false }
    }

    /// The ears of whoever asked for a run.
    #[must_use]
    pub fn running() -> Self {
        Self { compiles: false, ..Self::compiling() }
    }

    /// Notes that the component is started.
    ///
    /// # Errors
    /// [`GuestOrderError`] when none waits for it.
    pub fn start(&mut self) -> Result<(), GuestOrderError> {
        if self.stage != Stage::Ready {
            return not_now("Start", self.stage.name());
        }
        self.stage = Stage::Running;
        Ok(())
    }

    /// Notes that call `call` is answered.
    ///
    /// # Errors
    /// [`GuestOrderError`] when it is not the open one.
    pub fn reply(&mut self, call: u64) -> Result<(), GuestOrderError> {
        if self.stage != Stage::Running || !self.open || call != self.calls {
            return Err(GuestOrderError::WrongCall { message: "Reply", call, due: self.calls });
        }
        self.open = false;
        Ok(())
    }

    /// Takes note of `event`.
    ///
    /// # Errors
    /// [`GuestOrderError`] when it may not come now.
    pub fn accept(&mut self, event: &GuestEvent) -> Result<(), GuestOrderError> {
        let stage = self.stage;
        match (event, &mut self.stage) {
            (GuestEvent::Broken { .. }, stage) => {
                *stage = Stage::Over;
                Ok(())
            }
            (GuestEvent::Hello { version, .. }, Stage::Hello) => {
                if *version != GUEST_IPC_VERSION {
                    return Err(GuestOrderError::Version { found: *version });
                }
                self.stage = if self.compiles { Stage::Compiling } else { Stage::Loading };
                Ok(())
            }
            (GuestEvent::Hello { .. }, _) => not_now("Hello", stage.name()),
            (GuestEvent::Refused(_), it @ Stage::Compiling) => {
                *it = Stage::Over;
                Ok(())
            }
            (GuestEvent::Refused(_), _) => not_now("Refused", stage.name()),
            (GuestEvent::Compiled { artefact_bytes }, it @ Stage::Compiling) => {
                *it = Stage::Sending(Announced { total: *artefact_bytes, have: 0 });
                Ok(())
            }
            (GuestEvent::Compiled { .. }, _) => not_now("Compiled", stage.name()),
            (GuestEvent::Chunk(bytes), Stage::Sending(announced)) => announced.add(bytes.0.len()),
            (GuestEvent::Chunk(_), _) => not_now("Chunk", stage.name()),
            (GuestEvent::Loaded, it @ Stage::Loading) => {
                *it = Stage::Ready;
                Ok(())
            }
            (GuestEvent::Loaded, _) => not_now("Loaded", stage.name()),
            (GuestEvent::Call { call, .. }, Stage::Running) => {
                let due = self.calls + 1;
                if self.open || *call != due {
                    return Err(GuestOrderError::WrongCall { message: "Call", call: *call, due });
                }
                (self.calls, self.open) = (due, true);
                Ok(())
            }
            (GuestEvent::Call { .. }, _) => not_now("Call", stage.name()),
            (GuestEvent::Progress { .. } | GuestEvent::Log(_), Stage::Running) => Ok(()),
            (GuestEvent::Progress { .. }, _) => not_now("Progress", stage.name()),
            (GuestEvent::Log(_), _) => not_now("Log", stage.name()),
            (GuestEvent::Finished { .. }, it @ Stage::Running) if !self.open => {
                *it = Stage::Over;
                Ok(())
            }
            (GuestEvent::Finished { .. }, _) => not_now("Finished", stage.name()),
            (GuestEvent::Failed { .. }, it @ (Stage::Running | Stage::Loading)) => {
                *it = Stage::Over;
                Ok(())
            }
            (GuestEvent::Failed { .. }, _) => not_now("Failed", stage.name()),
        }
    }

    /// Is the artefact whole?
    #[must_use]
    pub fn is_artefact_whole(&self) -> bool {
        matches!(self.stage, Stage::Sending(Announced { total, have }) if total == have)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::guest::wire::{Blob, GuestUsage};
    use crate::tensor::{ModelCallError, ModelRequest};

    fn hello() -> GuestEvent {
        GuestEvent::Hello { version: GUEST_IPC_VERSION, engine: [0; 32] }
    }

    fn call(call: u64) -> GuestEvent {
        GuestEvent::Call { call, model: 0, request: Box::new(ModelRequest::CloseSession { session: 1 }) }
    }

    fn finished() -> GuestEvent {
        GuestEvent::Finished { output: Ok(Blob::default()), usage: GuestUsage::default() }
    }

    fn event() -> impl Strategy<Value = GuestEvent> {
        prop_oneof![
            Just(hello()),
            Just(GuestEvent::Loaded),
            (0u64..4).prop_map(call),
            Just(GuestEvent::Log(Blob(b"x".to_vec()))),
            Just(GuestEvent::Progress { permille: 1, note: String::new() }),
            Just(finished()),
            Just(GuestEvent::Compiled { artefact_bytes: 2 }),
            Just(GuestEvent::Chunk(Blob(b"x".to_vec()))),
        ]
    }

    fn started() -> GuestEventOrder {
        let mut order = GuestEventOrder::running();
        order.accept(&hello()).unwrap();
        order.accept(&GuestEvent::Loaded).unwrap();
        order.start().unwrap();
        order
    }

    #[test]
    fn a_call_waits_for_its_reply() {
        let mut order = started();
        order.accept(&call(1)).unwrap();
        assert!(order.accept(&call(2)).is_err() && order.accept(&finished()).is_err());
        assert!(order.reply(2).is_err());
        order.reply(1).unwrap();
        assert!(order.reply(1).is_err());
        order.accept(&call(2)).unwrap();
    }

    #[test]
    fn a_worker_answers_only_the_call_that_it_made() {
        let mut order = GuestCommandOrder::default();
        let limits = crate::guest::limits::GuestLimits::default();
        order.accept(&GuestCommand::Load { limits }).unwrap();
        assert!(order.accept(&GuestCommand::Compile { component_bytes: 1, memory_bytes: 1 }).is_err());
        let reply = |call| GuestCommand::Reply { call, result: Err(ModelCallError::Cancelled) };
        assert!(order.accept(&reply(0)).is_err());
    }

    #[test]
    fn what_was_announced_is_not_passed() {
        let mut order = GuestCommandOrder::default();
        order.accept(&GuestCommand::Compile { component_bytes: 3, memory_bytes: 1 }).unwrap();
        order.accept(&GuestCommand::Chunk(Blob(vec![0; 2]))).unwrap();
        assert!(!order.is_component_whole());
        let more = order.accept(&GuestCommand::Chunk(Blob(vec![0; 2])));
        assert_eq!(more, Err(GuestOrderError::TooMuch { found: 4, announced: 3 }));
        order.accept(&GuestCommand::Chunk(Blob(vec![0; 1]))).unwrap();
        assert!(order.is_component_whole());
    }

    proptest! {
        /// Whatever a worker says: at most one hello, one end, and nothing after the end.
        #[test]
        fn nothing_follows_the_end(events in prop::collection::vec(event(), 0..40)) {
            let mut order = started();
            let mut over = false;
            for event in events {
                let accepted = order.accept(&event).is_ok();
                prop_assert!(!(accepted && over), "{event:?} after the end");
                let begins = matches!(event, GuestEvent::Hello { .. } | GuestEvent::Loaded);
                prop_assert!(!(accepted && begins));
                over |= accepted && matches!(event, GuestEvent::Finished { .. });
            }
        }
    }
}
