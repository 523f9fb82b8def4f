//! What the daemon and a worker say to each other over their one socket pair.
//!
//! Owns: the messages, their bounds and their frames. Never: decides when a message may come (that
//! is [`order`]), and never allocates by a length that was not checked. Called by
//! [`crate::worker`] (the blocking halves below) and [`crate::supervisor`] (the async halves in
//! [`channel`]).
//!
//! A frame is a u32 length, little endian, and that many bytes of canonical postcard (the
//! protocol's codec: one value, one encoding, nothing after it). A command has at most
//! [`MAX_COMMAND_BYTES`], an event at most [`MAX_EVENT_BYTES`]; only [`Command::Call`] and
//! [`Event::Reply`] may have [`MAX_CALL_BYTES`], and their first byte must say so before the rest is
//! read. The two programs come from one build, so there is one version and no negotiation;
//! [`Event::Hello`] proves it.

pub mod channel;
pub(crate) mod frame;
pub mod order;

use std::io::{self, Read, Write};

use potluck_protocol::job::{FinishReason, JobError, JobSpec};
use potluck_protocol::limits::{MAX_JOB_BYTES, MAX_OUTPUT_BYTES, MAX_OUTPUT_TOKENS};
use potluck_protocol::wire::{self, WireError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::engine::{DeviceChoice, GenerateError, LoadError, ModelInfo};
use crate::tensor::{MAX_CALL_BYTES, ModelCallError, ModelReply, ModelRequest};
use channel::Dialect;
use frame::{frame, read_body};

/// Changes with every change to the messages.
pub const IPC_VERSION: u32 = 2;
/// The largest command in bytes: the largest job and room for the fields around it.
pub const MAX_COMMAND_BYTES: usize = MAX_JOB_BYTES + 64;
/// The largest event in bytes.
pub const MAX_EVENT_BYTES: usize = 64 * 1024;
/// The first byte of every [`Command::Call`]: its place in the enum.
const CALL_TAG: u8 = 7;
/// The first byte of every [`Event::Reply`].
const REPLY_TAG: u8 = 11;

/// What the daemon tells a worker. A run's number counts up from 1, so that a word about a run that
/// has ended meanwhile is told from one about the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Load the model behind the worker's descriptor. First, and once.
    Load {
        /// Where to.
        device: DeviceChoice,
    },
    /// Run a job.
    Generate {
        /// The run's number: one more than the last one's.
        run: u64,
        /// The job.
        job: Box<JobSpec>,
    },
    /// Stop computing until [`Command::Resume`].
    Pause {
        /// Which run.
        run: u64,
    },
    /// Go on.
    Resume {
        /// Which run.
        run: u64,
    },
    /// End the run now.
    Cancel {
        /// Which run.
        run: u64,
    },
    /// Leave, ending any run.
    Exit,
    /// Begin a run of calls: the model is this run's alone until [`Command::Cancel`].
    Serve {
        /// The run's number: one more than the last one's.
        run: u64,
    },
    /// Answer one request of a run of calls. The next may come after the reply.
    Call {
        /// Which run.
        run: u64,
        /// What is asked; its bounds are the engine's to check.
        request: Box<ModelRequest>,
    },
}

/// What a worker tells the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// First of all.
    Hello {
        /// [`IPC_VERSION`] of the worker.
        version: u32,
    },
    /// The model is being read.
    Loading {
        /// Bytes read.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// The model is ready: jobs may come.
    Loaded(ModelInfo),
    /// The model cannot be served; the worker ends.
    LoadFailed(LoadError),
    /// The run's prompt is accepted.
    Started {
        /// Which run.
        run: u64,
        /// The prompt's length in tokens.
        prompt_tokens: u32,
    },
    /// Part of the prompt is computed: a sign of life.
    Prefilled {
        /// Which run.
        run: u64,
        /// Prompt tokens computed so far.
        done_tokens: u32,
    },
    /// More of the answer.
    Output {
        /// Which run.
        run: u64,
        /// The new tokens, at most [`MAX_OUTPUT_TOKENS`].
        tokens: Vec<u32>,
        /// The text that they complete, at most [`MAX_OUTPUT_BYTES`].
        text: String,
    },
    /// The run ended.
    Finished {
        /// Which run.
        run: u64,
        /// How.
        reason: FinishReason,
        /// Tokens of the answer.
        completion_tokens: u32,
    },
    /// The run failed; the worker is ready for the next one.
    Failed {
        /// Which run.
        run: u64,
        /// Why.
        error: GenerateError,
    },
    /// The engine panicked; the worker ends.
    Broken {
        /// The panic's words, cut.
        what: String,
    },
    /// Part of a call is computed: a sign of life.
    Computing {
        /// Which run.
        run: u64,
    },
    /// The answer to [`Command::Call`].
    Reply {
        /// Which run.
        run: u64,
        /// The answer, within its bounds.
        result: Result<ModelReply, ModelCallError>,
    },
}

/// Why bytes are not a conversation. Fault: the other process, which ends.
#[derive(Debug, Error)]
pub enum IpcError {
    /// A frame longer than its kind may be.
    #[error("a frame of {len} bytes; at most {max} are allowed")]
    FrameTooLong {
        /// The declared length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The socket closed inside a frame.
    #[error("the socket closed in the middle of a frame")]
    Cut,
    /// A frame that is no message.
    #[error("not a message: {0}")]
    Wire(#[from] WireError),
    /// A job that breaks a bound.
    #[error("not a job: {0}")]
    Job(#[from] JobError),
    /// A message that may not come now.
    #[error("out of order: {0}")]
    Order(#[from] order::OrderError),
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
}

/// The frame of a command.
///
/// # Errors
/// [`IpcError::Wire`] when it is too large.
pub fn encode_command(command: &Command) -> Result<Vec<u8>, IpcError> {
    let max = if matches!(command, Command::Call { .. }) { MAX_CALL_BYTES } else { MAX_COMMAND_BYTES };
    frame(&wire::encode_within(command, max)?)
}

/// The frame of an event.
///
/// # Errors
/// [`IpcError::Wire`] when it is too large.
pub fn encode_event(event: &Event) -> Result<Vec<u8>, IpcError> {
    let max = if matches!(event, Event::Reply { .. }) { MAX_CALL_BYTES } else { MAX_EVENT_BYTES };
    frame(&wire::encode_within(event, max)?)
}

/// The command in a frame's body.
///
/// # Errors
/// [`IpcError`] when it is none, or its job breaks a bound.
pub fn decode_command(body: &[u8]) -> Result<Command, IpcError> {
    let command: Command = wire::decode_within(body, max_command_bytes(body.first()))?;
    if let Command::Generate { job, .. } = &command {
        job.check()?;
    }
    Ok(command)
}

/// The event in a frame's body.
///
/// # Errors
/// [`IpcError`] when it is none, or its output is past a bound.
pub fn decode_event(body: &[u8]) -> Result<Event, IpcError> {
    let event: Event = wire::decode_within(body, max_event_bytes(body.first()))?;
    if let Event::Reply { result: Ok(reply), .. } = &event
        && reply.check().is_err()
    {
        return Err(WireError::OverLimit { what: "a reply's own bounds" }.into());
    }
    if let Event::Output { tokens, text, .. } = &event {
        if tokens.len() > MAX_OUTPUT_TOKENS {
            return Err(WireError::OverLimit { what: "tokens in one event" }.into());
        }
        if text.len() > MAX_OUTPUT_BYTES {
            return Err(WireError::OverLimit { what: "text in one event" }.into());
        }
    }
    Ok(event)
}

/// Reads the next command; `None` when the socket closed between two.
///
/// # Errors
/// [`IpcError`] when what comes is no command.
pub fn read_command(reader: &mut impl Read) -> Result<Option<Command>, IpcError> {
    let body = read_body(reader, max_command_bytes, MAX_CALL_BYTES)?;
    body.map(|body| decode_command(&body)).transpose()
}

/// Writes an event.
///
/// # Errors
/// [`IpcError`] when it is too large or the socket is gone.
pub fn write_event(writer: &mut impl Write, event: &Event) -> Result<(), IpcError> {
    writer.write_all(&encode_event(event)?)?;
    Ok(())
}

/// How long a command may be whose first byte is `tag`.
fn max_command_bytes(tag: Option<&u8>) -> usize {
    if tag == Some(&CALL_TAG) { MAX_CALL_BYTES } else { MAX_COMMAND_BYTES }
}

/// How long an event may be whose first byte is `tag`.
fn max_event_bytes(tag: Option<&u8>) -> usize {
    if tag == Some(&REPLY_TAG) { MAX_CALL_BYTES } else { MAX_EVENT_BYTES }
}

/// What a model worker and the daemon say to each other.
#[derive(Debug)]
pub(crate) struct ModelDialect;

impl Dialect for ModelDialect {
    type Command = Command;
    type Event = Event;

    /// One call and some words.
    const MAX_UNSENT: usize = MAX_CALL_BYTES + 2 * MAX_COMMAND_BYTES;

    fn encode(command: &Command) -> Result<Vec<u8>, IpcError> {
        encode_command(command)
    }

    fn most(tag: Option<&u8>) -> usize {
        // Without its first byte a long frame is not known to be one that may be long.
        if tag.is_none() { MAX_CALL_BYTES } else { max_event_bytes(tag) }
    }

    fn decode(body: &[u8]) -> Result<Event, IpcError> {
        decode_event(body)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use potluck_protocol::id::ContentHash;
    use potluck_protocol::job::{ChatMessage, Role, Sampling};
    use proptest::prelude::*;

    use super::frame::LENGTH_BYTES;
    use super::*;
    use crate::engine::{EngineDevice, ModelKind};
    use crate::tensor::tests::{request as requests, result as results};
    use crate::tensor::{NamedTensor, Tensor, TensorType};

    fn job() -> impl Strategy<Value = JobSpec> {
        let message = ("\\PC{0,40}", prop::sample::select(vec![Role::System, Role::User, Role::Assistant]))
            .prop_map(|(content, role)| ChatMessage { role, content });
        let sampling = (1u32..4096, 0u32..=2000, 1u32..=1000, any::<u64>()).prop_map(
            |(max_tokens, temperature_milli, top_p_milli, seed)| Sampling {
                max_tokens,
                temperature_milli,
                top_p_milli,
                seed,
            },
        );
        (any::<[u8; 32]>(), prop::collection::vec(message, 1..6), sampling).prop_map(
            |(model, messages, sampling)| JobSpec {
                model: ContentHash::from_bytes(model),
                messages,
                sampling,
            },
        )
    }

    pub(crate) fn command() -> impl Strategy<Value = Command> {
        prop_oneof![
            any::<u32>().prop_map(|n| Command::Load { device: DeviceChoice::Cuda(n) }),
            Just(Command::Load { device: DeviceChoice::Auto }),
            (any::<u64>(), job()).prop_map(|(run, job)| Command::Generate { run, job: Box::new(job) }),
            any::<u64>().prop_map(|run| Command::Pause { run }),
            any::<u64>().prop_map(|run| Command::Resume { run }),
            any::<u64>().prop_map(|run| Command::Cancel { run }),
            Just(Command::Exit),
            any::<u64>().prop_map(|run| Command::Serve { run }),
            (any::<u64>(), requests())
                .prop_map(|(run, request)| Command::Call { run, request: Box::new(request) }),
        ]
    }

    pub(crate) fn event() -> impl Strategy<Value = Event> {
        let info =
            ("\\PC{0,20}", any::<u32>(), any::<u64>()).prop_map(|(name, number, parameters)| ModelInfo {
                kind: ModelKind::Llm,
                architecture: "llama".into(),
                name,
                context_tokens: number,
                vocab: number,
                parameters,
                device: EngineDevice::Cpu { threads: 2 },
            });
        let reason =
            prop::sample::select(vec![FinishReason::Stop, FinishReason::Length, FinishReason::Cancelled]);
        prop_oneof![
            any::<u32>().prop_map(|version| Event::Hello { version }),
            (any::<u64>(), any::<u64>())
                .prop_map(|(done_bytes, total_bytes)| Event::Loading { done_bytes, total_bytes }),
            info.prop_map(Event::Loaded),
            "\\PC{0,20}".prop_map(|what| Event::LoadFailed(LoadError::Corrupt { what })),
            (any::<u64>(), any::<u32>())
                .prop_map(|(run, prompt_tokens)| Event::Started { run, prompt_tokens }),
            (any::<u64>(), prop::collection::vec(any::<u32>(), 0..20), "\\PC{0,20}")
                .prop_map(|(run, tokens, text)| Event::Output { run, tokens, text }),
            (any::<u64>(), reason, any::<u32>()).prop_map(|(run, reason, completion_tokens)| {
                Event::Finished { run, reason, completion_tokens }
            }),
            (any::<u64>(), any::<u32>()).prop_map(|(run, prompt_tokens)| Event::Failed {
                run,
                error: GenerateError::PromptTooLong { prompt_tokens, context: 1 },
            }),
            "\\PC{0,20}".prop_map(|what| Event::Broken { what }),
            any::<u64>().prop_map(|run| Event::Computing { run }),
            (any::<u64>(), results()).prop_map(|(run, result)| Event::Reply { run, result }),
        ]
    }

    #[test]
    fn only_calls_and_replies_may_be_long() {
        let long = |ty| Tensor { ty, dims: vec![1 << 20], data: vec![7; ty.size() << 20] };
        let named = NamedTensor { name: "x".into(), tensor: long(TensorType::I64) };
        let request = Box::new(ModelRequest::Compute { session: None, inputs: vec![named.clone()] });
        let call = encode_command(&Command::Call { run: 1, request }).unwrap();
        assert!(call.len() > MAX_COMMAND_BYTES && call[LENGTH_BYTES] == CALL_TAG);
        assert!(matches!(read_command(&mut call.as_slice()), Ok(Some(Command::Call { .. }))));
        let result = Ok(ModelReply::Tensors(vec![named]));
        let reply = encode_event(&Event::Reply { run: 1, result }).unwrap();
        assert_eq!(reply[LENGTH_BYTES], REPLY_TAG);
        assert!(matches!(decode_event(&reply[LENGTH_BYTES..]), Ok(Event::Reply { .. })));
        // The same length under another first byte is refused before the rest is read.
        for tag in (0..=u8::MAX).filter(|tag| *tag != CALL_TAG) {
            let mut start: &[u8] = &[call[0], call[1], call[2], call[3], tag];
            let refused = read_command(&mut start);
            assert!(matches!(refused, Err(IpcError::FrameTooLong { max: MAX_COMMAND_BYTES, .. })), "{tag}");
        }
    }

    #[test]
    fn a_reply_that_lies_about_its_shape_is_no_event() {
        let lie = ModelReply::Vectors { dim: 3, rows: 2, data: vec![0.0; 5] };
        let body = wire::encode_within(&Event::Reply { run: 1, result: Ok(lie) }, MAX_CALL_BYTES).unwrap();
        assert!(matches!(decode_event(&body), Err(IpcError::Wire(WireError::OverLimit { .. }))));
    }

    #[test]
    fn a_long_frame_is_refused_by_its_length_alone() {
        let mut bytes: &[u8] = &[0xff; 8];
        assert!(matches!(read_command(&mut bytes), Err(IpcError::FrameTooLong { .. })));
    }

    #[test]
    fn an_end_between_frames_is_an_end_and_inside_one_is_a_cut() {
        let frame = encode_command(&Command::Pause { run: 300 }).unwrap();
        assert!(matches!(read_command(&mut &frame[..0]), Ok(None)));
        for len in 1..frame.len() {
            assert!(matches!(read_command(&mut &frame[..len]), Err(IpcError::Cut)), "{len}");
        }
    }

    #[test]
    fn bounds_inside_messages_are_kept() {
        let long = Event::Output { run: 1, tokens: vec![0; MAX_OUTPUT_TOKENS + 1], text: String::new() };
        let body = wire::encode_within(&long, MAX_EVENT_BYTES).unwrap();
        assert!(matches!(decode_event(&body), Err(IpcError::Wire(WireError::OverLimit { .. }))));
        let body = wire::encode_within(
            &Command::Generate {
                run: 1,
                job: Box::new(JobSpec {
                    model: ContentHash::from_bytes([0; 32]),
                    messages: vec![],
                    sampling: Sampling { max_tokens: 1, temperature_milli: 0, top_p_milli: 1, seed: 0 },
                }),
            },
            MAX_COMMAND_BYTES,
        )
        .unwrap();
        assert!(matches!(decode_command(&body), Err(IpcError::Job(_))));
    }

    proptest! {
        #[test]
        fn commands_come_back(command in command()) {
            let frame = encode_command(&command).unwrap();
            prop_assert_eq!(read_command(&mut frame.as_slice()).unwrap(), Some(command));
        }

        #[test]
        fn events_come_back_and_nothing_may_follow(event in event()) {
            let frame = encode_event(&event).unwrap();
            prop_assert_eq!(&decode_event(&frame[LENGTH_BYTES..]).unwrap(), &event);
            let mut long = frame[LENGTH_BYTES..].to_vec();
            long.push(0);
            prop_assert!(decode_event(&long).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_command(&bytes);
            let _ = decode_event(&bytes);
            let _ = read_command(&mut bytes.as_slice());
        }

        #[test]
        fn flipped_and_cut_frames_never_panic_and_never_alias(
            command in command(), at: prop::sample::Index, with in 1u8.., cut: prop::sample::Index,
        ) {
            let frame = encode_command(&command).unwrap();
            let mut flipped = frame[LENGTH_BYTES..].to_vec();
            let at = at.index(flipped.len());
            flipped[at] ^= with;
            // One value has one encoding: other bytes are another command or none.
            if let Ok(other) = decode_command(&flipped) {
                prop_assert_ne!(other, command);
            }
            let _ = decode_command(&frame[LENGTH_BYTES..][..cut.index(frame.len() - LENGTH_BYTES)]);
        }
    }
}
