//! What the daemon and a worker say to each other over their one socket pair.
//!
//! Owns: the messages, their bounds and their frames. Never: decides when a message may come (that
//! is [`order`]), and never allocates by a length that was not checked. Called by
//! [`crate::worker`] (the blocking halves below) and [`crate::supervisor`] (the async halves in
//! [`channel`]).
//!
//! A frame is a u32 length, little endian, and that many bytes of canonical postcard (the
//! protocol's codec: one value, one encoding, nothing after it). A command has at most
//! [`MAX_COMMAND_BYTES`], an event at most [`MAX_EVENT_BYTES`]. The two programs come from one build,
//! so there is one version and no negotiation; [`Event::Hello`] proves it.

pub mod channel;
pub mod order;

use std::io::{self, ErrorKind, Read, Write};

use potluck_protocol::job::{FinishReason, JobError, JobSpec};
use potluck_protocol::limits::{MAX_JOB_BYTES, MAX_OUTPUT_BYTES, MAX_OUTPUT_TOKENS};
use potluck_protocol::wire::{self, WireError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::engine::{DeviceChoice, GenerateError, LoadError, ModelInfo};

/// Changes with every change to the messages.
pub const IPC_VERSION: u32 = 1;
/// The largest command in bytes: the largest job and room for the fields around it.
pub const MAX_COMMAND_BYTES: usize = MAX_JOB_BYTES + 64;
/// The largest event in bytes.
pub const MAX_EVENT_BYTES: usize = 64 * 1024;
const LENGTH_BYTES: usize = 4;

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
}

/// What a worker tells the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    frame(wire::encode_within(command, MAX_COMMAND_BYTES)?)
}

/// The frame of an event.
///
/// # Errors
/// [`IpcError::Wire`] when it is too large.
pub fn encode_event(event: &Event) -> Result<Vec<u8>, IpcError> {
    frame(wire::encode_within(event, MAX_EVENT_BYTES)?)
}

/// The command in a frame's body.
///
/// # Errors
/// [`IpcError`] when it is none, or its job breaks a bound.
pub fn decode_command(body: &[u8]) -> Result<Command, IpcError> {
    let command: Command = wire::decode_within(body, MAX_COMMAND_BYTES)?;
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
    let event: Event = wire::decode_within(body, MAX_EVENT_BYTES)?;
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
    let mut head = [0; LENGTH_BYTES];
    let mut have = 0;
    while have < head.len() {
        match reader.read(&mut head[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(IpcError::Cut),
            Ok(count) => have += count,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    let mut body = vec![0; checked_len(head, MAX_COMMAND_BYTES)?];
    reader.read_exact(&mut body).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => IpcError::Cut,
        _ => e.into(),
    })?;
    decode_command(&body).map(Some)
}

/// Writes an event.
///
/// # Errors
/// [`IpcError`] when it is too large or the socket is gone.
pub fn write_event(writer: &mut impl Write, event: &Event) -> Result<(), IpcError> {
    writer.write_all(&encode_event(event)?)?;
    Ok(())
}

fn frame(body: Vec<u8>) -> Result<Vec<u8>, IpcError> {
    let too_long = IpcError::FrameTooLong { len: body.len(), max: MAX_COMMAND_BYTES };
    let len = u32::try_from(body.len()).map_err(|_| too_long)?;
    let mut frame = Vec::with_capacity(LENGTH_BYTES + body.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

fn checked_len(head: [u8; LENGTH_BYTES], max: usize) -> Result<usize, IpcError> {
    let len = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if len > max {
        return Err(IpcError::FrameTooLong { len, max });
    }
    Ok(len)
}

#[cfg(test)]
pub(crate) mod tests {
    use potluck_protocol::id::ContentHash;
    use potluck_protocol::job::{ChatMessage, Role, Sampling};
    use proptest::prelude::*;

    use super::*;
    use crate::engine::EngineDevice;

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
        ]
    }

    pub(crate) fn event() -> impl Strategy<Value = Event> {
        let info =
            ("\\PC{0,20}", any::<u32>(), any::<u64>()).prop_map(|(name, number, parameters)| ModelInfo {
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
        ]
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
