//! Which message may come when, as two pure state machines.
//!
//! Owns: the law of the conversation, one half for each side's ears. Never: reads a socket or a
//! clock. Called with every message before it is acted on: neither side trusts the other (the worker
//! handles strangers' bytes; a broken daemon must not confuse it either).
//!
//! ```text
//!   worker hears:  Load, then { Generate (Pause | Resume | Cancel)*
//!                             | Serve (Call | Pause | Resume)* Cancel }*, Exit at any time
//!   daemon hears:  Hello, Loading*, Loaded | LoadFailed,
//!                  then { Started (Prefilled | Output)* Finished | [Started ...] Failed
//!                       | (Computing* Reply)* [Computing*] Finished }*
//!                  Broken at any time
//! ```
//!
//! In a run of calls there is one reply to each call and no second call before it; only
//! [`Command::Cancel`] ends the run, and what a reply crosses on its way it may cross.

use thiserror::Error;

use super::{Command, Event, IPC_VERSION};
use crate::tensor::{CallKind, ModelCallError, ModelReply};

/// Why a message may not come. Fault: whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OrderError {
    /// It has no place at this point.
    #[error("{message} while {state}")]
    NotNow {
        /// What came.
        message: &'static str,
        /// Where the conversation was.
        state: &'static str,
    },
    /// It speaks of a run that is not, or not yet.
    #[error("{message} speaks of run {run}; the last one is {last}")]
    WrongRun {
        /// What came.
        message: &'static str,
        /// The run that it names.
        run: u64,
        /// The newest run.
        last: u64,
    },
    /// The worker comes from another build.
    #[error("the worker speaks version {found} of the protocol and not {IPC_VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// The worker's numbers contradict each other.
    #[error("the worker's count of {what} is {found} and cannot be")]
    Count {
        /// Of what.
        what: &'static str,
        /// What it said.
        found: u64,
    },
}

/// What the worker does while a command comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    Idle,
    /// It loads, runs a job or answers a call.
    Busy,
    /// It waits for the next call of a run of calls.
    Serving,
}

/// What the worker has heard so far.
#[derive(Debug, Default)]
pub struct CommandOrder {
    loading: bool,
    last_run: u64,
}

impl CommandOrder {
    /// Takes note of `command`, which comes while the worker does `work`.
    ///
    /// # Errors
    /// [`OrderError`] when it may not come now.
    pub fn accept(&mut self, command: &Command, work: Work) -> Result<(), OrderError> {
        match command {
            Command::Load { .. } if self.loading => not_now("Load", "loaded"),
            Command::Load { .. } => {
                self.loading = true;
                Ok(())
            }
            Command::Generate { run, .. } => self.begin("Generate", *run, work),
            Command::Serve { run } => self.begin("Serve", *run, work),
            Command::Call { .. } if work != Work::Serving => not_now("Call", "no call is awaited"),
            Command::Call { run, .. } if *run != self.last_run => self.wrong_run("Call", *run),
            Command::Call { .. } => Ok(()),
            Command::Pause { run } => self.about("Pause", *run),
            Command::Resume { run } => self.about("Resume", *run),
            Command::Cancel { run } => self.about("Cancel", *run),
            Command::Exit => Ok(()),
        }
    }

    fn begin(&mut self, message: &'static str, run: u64, work: Work) -> Result<(), OrderError> {
        if !self.loading {
            return not_now(message, "nothing is loaded");
        }
        if work != Work::Idle {
            return not_now(message, "busy");
        }
        if self.last_run.checked_add(1) != Some(run) {
            return self.wrong_run(message, run);
        }
        self.last_run = run;
        Ok(())
    }

    /// A word about a run: it may have ended while the word was on its way.
    fn about(&self, message: &'static str, run: u64) -> Result<(), OrderError> {
        if run == 0 || run > self.last_run { self.wrong_run(message, run) } else { Ok(()) }
    }

    fn wrong_run(&self, message: &'static str, run: u64) -> Result<(), OrderError> {
        Err(OrderError::WrongRun { message, run, last: self.last_run })
    }
}

fn not_now(message: &'static str, state: &'static str) -> Result<(), OrderError> {
    Err(OrderError::NotNow { message, state })
}

/// Where the daemon's side of the conversation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Hello,
    Loading,
    Idle,
    /// A job was sent; its prompt is not accepted yet.
    Asked,
    Running {
        prompt_tokens: u32,
    },
    /// In a run of calls, none of which waits for its reply.
    Serving,
    /// A call waits for its reply.
    Calling {
        kind: CallKind,
    },
    /// The end of a run of calls was asked for; `owed` is a reply that may still come.
    Ending {
        owed: Option<CallKind>,
    },
    Over,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Hello => "waiting for Hello",
            Self::Loading => "loading",
            Self::Idle => "idle",
            Self::Asked => "waiting for Started",
            Self::Running { .. } => "running",
            Self::Serving => "between calls",
            Self::Calling { .. } => "waiting for a reply",
            Self::Ending { .. } => "ending a run of calls",
            Self::Over => "over",
        }
    }
}

/// What the daemon has heard so far.
#[derive(Debug)]
pub struct EventOrder {
    stage: Stage,
    run: u64,
    max_tokens: u32,
    tokens: u32,
    vocab: u32,
}

impl Default for EventOrder {
    fn default() -> Self {
        Self { stage: Stage::Hello, run: 0, max_tokens: 0, tokens: 0, vocab: 0 }
    }
}

impl EventOrder {
    /// Takes note that a job for at most `max_tokens` is being sent; the number of its run.
    ///
    /// # Errors
    /// [`OrderError::NotNow`] unless the worker is idle.
    pub fn begin(&mut self, max_tokens: u32) -> Result<u64, OrderError> {
        self.begin_run("Generate", Stage::Asked)?;
        self.max_tokens = max_tokens;
        Ok(self.run)
    }

    /// Takes note that a run of calls is begun; its number.
    ///
    /// # Errors
    /// [`OrderError::NotNow`] unless the worker is idle.
    pub fn begin_serving(&mut self) -> Result<u64, OrderError> {
        self.begin_run("Serve", Stage::Serving)?;
        Ok(self.run)
    }

    fn begin_run(&mut self, message: &'static str, next: Stage) -> Result<(), OrderError> {
        if self.stage != Stage::Idle {
            return not_now(message, self.stage.name());
        }
        self.run = self.run.saturating_add(1);
        self.tokens = 0;
        self.stage = next;
        Ok(())
    }

    /// Takes note that a call of this kind is being sent.
    ///
    /// # Errors
    /// [`OrderError::NotNow`] outside a run of calls, and while a reply is due.
    pub fn begin_call(&mut self, kind: CallKind) -> Result<(), OrderError> {
        if self.stage != Stage::Serving {
            return not_now("Call", self.stage.name());
        }
        self.stage = Stage::Calling { kind };
        Ok(())
    }

    /// Takes note that a run of calls is asked to end: false when there is none.
    pub fn end_serving(&mut self) -> bool {
        self.stage = match self.stage {
            Stage::Serving => Stage::Ending { owed: None },
            Stage::Calling { kind } => Stage::Ending { owed: Some(kind) },
            _ => return false,
        };
        true
    }

    /// Whether a job may be sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// Takes note of `event`.
    ///
    /// # Errors
    /// [`OrderError`] when it may not come now, or its numbers cannot be.
    pub fn accept(&mut self, event: &Event) -> Result<(), OrderError> {
        let next = match (self.stage, event) {
            (Stage::Hello, Event::Hello { version: IPC_VERSION }) => Stage::Loading,
            (Stage::Hello, Event::Hello { version }) => return Err(OrderError::Version { found: *version }),
            (Stage::Loading, Event::Loading { .. }) => Stage::Loading,
            (Stage::Loading, Event::Loaded(info)) => {
                self.vocab = info.vocab;
                Stage::Idle
            }
            (Stage::Loading, Event::LoadFailed(_)) => Stage::Over,
            (Stage::Asked, Event::Started { run, prompt_tokens }) => {
                self.same_run("Started", *run)?;
                Stage::Running { prompt_tokens: *prompt_tokens }
            }
            (Stage::Running { prompt_tokens }, Event::Prefilled { run, done_tokens }) => {
                self.same_run("Prefilled", *run)?;
                count("prompt tokens", *done_tokens, *done_tokens <= prompt_tokens)?;
                self.stage
            }
            (Stage::Running { .. }, Event::Output { run, tokens, .. }) => {
                self.same_run("Output", *run)?;
                self.take_tokens(tokens)?;
                self.stage
            }
            (Stage::Running { .. }, Event::Finished { run, completion_tokens, .. }) => {
                self.same_run("Finished", *run)?;
                count("completion tokens", *completion_tokens, *completion_tokens == self.tokens)?;
                Stage::Idle
            }
            (Stage::Asked | Stage::Running { .. }, Event::Failed { run, .. }) => {
                self.same_run("Failed", *run)?;
                Stage::Idle
            }
            (Stage::Calling { .. } | Stage::Ending { owed: Some(_) }, Event::Computing { run }) => {
                self.same_run("Computing", *run)?;
                self.stage
            }
            (Stage::Calling { kind }, Event::Reply { run, result }) => {
                self.take_reply(kind, *run, result)?;
                Stage::Serving
            }
            (Stage::Ending { owed: Some(kind) }, Event::Reply { run, result }) => {
                self.take_reply(kind, *run, result)?;
                Stage::Ending { owed: None }
            }
            (Stage::Ending { .. }, Event::Finished { run, completion_tokens, .. }) => {
                self.same_run("Finished", *run)?;
                count("completion tokens", *completion_tokens, *completion_tokens == 0)?;
                Stage::Idle
            }
            (stage, Event::Broken { .. }) if stage != Stage::Over => Stage::Over,
            (stage, event) => {
                return Err(OrderError::NotNow { message: name(event), state: stage.name() });
            }
        };
        self.stage = next;
        Ok(())
    }

    fn take_reply(
        &self,
        kind: CallKind,
        run: u64,
        result: &Result<ModelReply, ModelCallError>,
    ) -> Result<(), OrderError> {
        self.same_run("Reply", run)?;
        match result {
            Ok(reply) if reply.kind() != kind => not_now("a reply to another call", self.stage.name()),
            Ok(ModelReply::Stepped { tokens, .. }) => self.known_tokens(tokens),
            _ => Ok(()),
        }
    }

    fn known_tokens(&self, tokens: &[u32]) -> Result<(), OrderError> {
        match tokens.iter().find(|id| **id >= self.vocab) {
            Some(id) => count("the vocabulary", *id, false),
            None => Ok(()),
        }
    }

    fn take_tokens(&mut self, tokens: &[u32]) -> Result<(), OrderError> {
        self.known_tokens(tokens)?;
        let new = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(new);
        count("completion tokens", self.tokens, self.tokens <= self.max_tokens)
    }

    fn same_run(&self, message: &'static str, run: u64) -> Result<(), OrderError> {
        if run == self.run { Ok(()) } else { Err(OrderError::WrongRun { message, run, last: self.run }) }
    }
}

fn count(what: &'static str, found: u32, can_be: bool) -> Result<(), OrderError> {
    if can_be { Ok(()) } else { Err(OrderError::Count { what, found: u64::from(found) }) }
}

fn name(event: &Event) -> &'static str {
    match event {
        Event::Hello { .. } => "Hello",
        Event::Loading { .. } => "Loading",
        Event::Loaded(_) => "Loaded",
        Event::LoadFailed(_) => "LoadFailed",
        Event::Started { .. } => "Started",
        Event::Prefilled { .. } => "Prefilled",
        Event::Output { .. } => "Output",
        Event::Finished { .. } => "Finished",
        Event::Failed { .. } => "Failed",
        Event::Broken { .. } => "Broken",
        Event::Computing { .. } => "Computing",
        Event::Reply { .. } => "Reply",
    }
}

#[cfg(test)]
mod tests {
    use potluck_protocol::id::ContentHash;
    use potluck_protocol::job::{ChatMessage, FinishReason, JobSpec, Role, Sampling};
    use proptest::prelude::*;

    use super::super::tests as made;
    use super::*;
    use crate::engine::{DeviceChoice, EngineDevice, GenerateError, ModelInfo, ModelKind};
    use crate::tensor::ModelRequest;

    fn generate(run: u64) -> Command {
        let job = JobSpec {
            model: ContentHash::from_bytes([0; 32]),
            messages: vec![ChatMessage { role: Role::User, content: "hi".into() }],
            sampling: Sampling { max_tokens: 1, temperature_milli: 0, top_p_milli: 1, seed: 0 },
        };
        Command::Generate { run, job: Box::new(job) }
    }

    fn idle() -> EventOrder {
        let mut order = EventOrder::default();
        order.accept(&Event::Hello { version: IPC_VERSION }).unwrap();
        order.accept(&Event::Loading { done_bytes: 1, total_bytes: 2 }).unwrap();
        let info = ModelInfo {
            kind: ModelKind::Llm,
            architecture: "llama".into(),
            name: "x".into(),
            context_tokens: 64,
            vocab: 100,
            parameters: 1,
            device: EngineDevice::Cpu { threads: 1 },
        };
        order.accept(&Event::Loaded(info)).unwrap();
        order
    }

    #[test]
    fn the_worker_hears_things_in_order() {
        let load = Command::Load { device: DeviceChoice::Cpu };
        let mut order = CommandOrder::default();
        assert!(order.accept(&generate(1), Work::Idle).is_err());
        assert!(order.accept(&Command::Cancel { run: 0 }, Work::Idle).is_err());
        order.accept(&load, Work::Idle).unwrap();
        assert!(order.accept(&load, Work::Idle).is_err());
        assert!(order.accept(&generate(1), Work::Busy).is_err());
        assert!(order.accept(&generate(2), Work::Idle).is_err());
        order.accept(&generate(1), Work::Idle).unwrap();
        assert!(order.accept(&Command::Pause { run: 2 }, Work::Busy).is_err());
        order.accept(&Command::Pause { run: 1 }, Work::Busy).unwrap();
        order.accept(&generate(2), Work::Idle).unwrap();
        // About a run that ended while the word was on its way.
        order.accept(&Command::Cancel { run: 1 }, Work::Busy).unwrap();
        assert!(order.accept(&generate(2), Work::Idle).is_err());
    }

    #[test]
    fn calls_come_one_at_a_time_and_only_within_their_run() {
        let call = |run| Command::Call { run, request: Box::new(ModelRequest::CloseSession { session: 1 }) };
        let mut order = CommandOrder::default();
        assert!(order.accept(&Command::Serve { run: 1 }, Work::Idle).is_err());
        order.accept(&Command::Load { device: DeviceChoice::Cpu }, Work::Idle).unwrap();
        assert!(order.accept(&call(0), Work::Idle).is_err());
        order.accept(&Command::Serve { run: 1 }, Work::Idle).unwrap();
        order.accept(&call(1), Work::Serving).unwrap();
        assert!(order.accept(&call(1), Work::Busy).is_err());
        assert!(order.accept(&call(2), Work::Serving).is_err());
        assert!(order.accept(&generate(2), Work::Serving).is_err());
        assert!(order.accept(&Command::Serve { run: 2 }, Work::Serving).is_err());
        order.accept(&Command::Cancel { run: 1 }, Work::Serving).unwrap();
        order.accept(&generate(2), Work::Idle).unwrap();
    }

    #[test]
    fn a_run_of_calls_has_one_reply_to_each_and_ends_when_asked() {
        let reply = |run| Event::Reply { run, result: Ok(ModelReply::Closed) };
        let finished = Event::Finished { run: 1, reason: FinishReason::Cancelled, completion_tokens: 0 };
        let mut order = idle();
        assert!(order.begin_call(CallKind::Close).is_err() && !order.end_serving());
        assert_eq!(order.begin_serving(), Ok(1));
        assert!(order.begin(1).is_err() && order.begin_serving().is_err());
        assert!(order.accept(&reply(1)).is_err());
        order.begin_call(CallKind::Close).unwrap();
        assert!(order.begin_call(CallKind::Close).is_err());
        assert!(order.accept(&finished).is_err());
        assert!(order.accept(&reply(2)).is_err());
        order.accept(&Event::Computing { run: 1 }).unwrap();
        order.accept(&Event::Reply { run: 1, result: Err(ModelCallError::ContextFull) }).unwrap();
        assert!(order.accept(&Event::Computing { run: 1 }).is_err());
        order.begin_call(CallKind::Step).unwrap();
        assert!(order.accept(&reply(1)).is_err());
        let stranger = ModelReply::Stepped { tokens: vec![100], text: String::new(), finish: None };
        assert!(order.accept(&Event::Reply { run: 1, result: Ok(stranger) }).is_err());
        // The reply and the end cross.
        assert!(order.end_serving());
        let stepped = ModelReply::Stepped { tokens: vec![99], text: String::new(), finish: None };
        let stepped = Event::Reply { run: 1, result: Ok(stepped) };
        order.accept(&stepped).unwrap();
        assert!(order.accept(&stepped).is_err());
        order.accept(&finished).unwrap();
        assert!(order.is_idle() && order.begin(3) == Ok(2));
    }

    #[test]
    fn a_run_goes_from_started_to_finished() {
        let mut order = idle();
        assert_eq!(order.begin(3), Ok(1));
        assert!(order.begin(3).is_err());
        let output = |tokens: Vec<u32>| Event::Output { run: 1, tokens, text: String::new() };
        assert!(order.accept(&output(vec![1])).is_err());
        order.accept(&Event::Started { run: 1, prompt_tokens: 4 }).unwrap();
        assert!(order.accept(&Event::Prefilled { run: 1, done_tokens: 5 }).is_err());
        order.accept(&Event::Prefilled { run: 1, done_tokens: 4 }).unwrap();
        order.accept(&output(vec![1, 99])).unwrap();
        assert!(order.accept(&output(vec![100])).is_err());
        let finished =
            |run, completion_tokens| Event::Finished { run, reason: FinishReason::Stop, completion_tokens };
        assert!(order.accept(&finished(1, 3)).is_err());
        assert!(order.accept(&finished(2, 2)).is_err());
        order.accept(&finished(1, 2)).unwrap();
        assert!(order.is_idle() && order.begin(3) == Ok(2));
    }

    #[test]
    fn more_tokens_than_asked_for_are_a_breach() {
        let mut order = idle();
        order.begin(2).unwrap();
        order.accept(&Event::Started { run: 1, prompt_tokens: 4 }).unwrap();
        let three = Event::Output { run: 1, tokens: vec![1, 2, 3], text: String::new() };
        assert!(matches!(order.accept(&three), Err(OrderError::Count { .. })));
    }

    #[test]
    fn a_failed_run_leaves_the_worker_idle_and_another_version_ends_it() {
        let mut order = idle();
        order.begin(2).unwrap();
        let error = GenerateError::PromptTooLong { prompt_tokens: 9, context: 8 };
        order.accept(&Event::Failed { run: 1, error }).unwrap();
        assert!(order.is_idle());
        let other = EventOrder::default().accept(&Event::Hello { version: IPC_VERSION + 1 });
        assert!(matches!(other, Err(OrderError::Version { .. })));
    }

    fn work() -> impl Strategy<Value = Work> {
        prop::sample::select(vec![Work::Idle, Work::Busy, Work::Serving])
    }

    proptest! {
        #[test]
        fn any_talk_keeps_the_counts(
            events in prop::collection::vec(made::event(), 0..30),
            commands in prop::collection::vec((made::command(), work()), 0..30),
        ) {
            let mut order = idle();
            for event in &events {
                if order.is_idle() {
                    order.begin(4).unwrap();
                }
                let _ = order.accept(event);
            }
            let mut order = CommandOrder::default();
            for (command, work) in &commands {
                let before = order.last_run;
                let accepted = order.accept(command, *work);
                prop_assert!(order.last_run == before || (accepted.is_ok() && order.last_run == before + 1));
                // A call is heard when one is awaited, and never otherwise.
                let is_call = matches!(command, Command::Call { .. });
                prop_assert!(!is_call || accepted.is_err() || *work == Work::Serving);
            }
        }

        #[test]
        fn replies_never_outnumber_calls(
            steps in prop::collection::vec((0u8..3, made::event(), any::<bool>()), 0..60),
        ) {
            let mut order = idle();
            let (mut calls, mut replies) = (0u32, 0u32);
            for (step, event, ours) in steps {
                match step {
                    0 => {
                        let _ = order.begin_serving();
                        calls += u32::from(order.begin_call(CallKind::Close).is_ok());
                    }
                    1 if ours => {
                        order.end_serving();
                    }
                    _ => {
                        // A worker that knows the run's number can say the most.
                        let event = if ours { Event::Reply { run: order.run, result: Ok(ModelReply::Closed) } } else { event };
                        let accepted = order.accept(&event).is_ok();
                        replies += u32::from(accepted && matches!(event, Event::Reply { .. }));
                    }
                }
                prop_assert!(replies <= calls && calls <= replies + 1);
            }
        }
    }
}
