//! What the daemon and the wasm worker say to each other over their one socket pair.
//!
//! Owns: the messages, their bounds and their frames. Never: decides when a message may come (that
//! is [`super::order`]), and never allocates by a length that was not checked. Called by the workers
//! (the blocking halves below) and by the daemon's side (through [`crate::ipc::channel`]).
//!
//! Frames are those of [`crate::ipc`]: a u32 length, little endian, and that many bytes of canonical
//! postcard, at most [`MAX_GUEST_FRAME_BYTES`]. The two programs come from one build, so there is one
//! version and no negotiation; [`GuestEvent::Hello`] proves it.

use std::fmt;
use std::io::{Read, Write};

use potluck_protocol::id::ContentHash;
use potluck_protocol::limits::{
    MAX_COMPONENT_BYTES, MAX_GUEST_INPUT_BYTES, MAX_GUEST_MODELS, MAX_GUEST_OUTPUT_BYTES, MAX_NAME_BYTES,
    MAX_NOTE_BYTES,
};
use potluck_protocol::wire::{self, WireError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::limits::GuestLimits;
use crate::ipc::IpcError;
use crate::ipc::channel::Dialect;
use crate::ipc::frame::{frame, read_body};
use crate::tensor::{MAX_CALL_BYTES, ModelCallError, ModelReply, ModelRequest};

/// Changes with every change to the messages.
pub const GUEST_IPC_VERSION: u32 = 1;
/// The largest message in bytes: the largest call, and room for what is around it.
pub const MAX_GUEST_FRAME_BYTES: usize = MAX_CALL_BYTES + 64;
/// Bytes of a component or an artefact in one message.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// The largest artefact, in bytes: machine code is larger than the wasm that it came from.
pub const MAX_ARTEFACT_BYTES: u64 = 512 << 20;
/// Bytes of the words in a [`GuestError`] or a [`CompileRefusal`].
pub const MAX_WORDS_BYTES: usize = 2048;
/// Bytes of the log in one message.
pub const MAX_LOG_BYTES: usize = 8 * 1024;

/// Bytes that cross as they are. Its debug form is its length: what a job takes and gives stays out
/// of logs.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Blob(pub Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// A model that a job may call. Its place in the job's list is its number in
/// [`GuestEvent::Call`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestModel {
    /// The job's own name for it, 1 to [`MAX_NAME_BYTES`] bytes.
    pub name: String,
    /// What it is.
    pub hash: ContentHash,
}

/// What a run begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStart {
    /// The models that the job names, at most [`MAX_GUEST_MODELS`], each under another name.
    pub models: Vec<GuestModel>,
    /// What `run` is called with, at most 8 MiB.
    pub input: Blob,
    /// What its random numbers come from: equal seeds give equal numbers.
    pub seed: [u8; 32],
}

/// What the daemon tells a wasm worker. The first word decides what the worker is: a compile worker
/// after [`GuestCommand::Compile`], a run worker after [`GuestCommand::Load`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GuestCommand {
    /// Compile the component whose bytes follow in chunks.
    Compile {
        /// Its length in bytes, at most [`MAX_COMPONENT_BYTES`].
        component_bytes: u64,
        /// The compiler's address space, in bytes.
        memory_bytes: u64,
    },
    /// The component's next bytes, 1 to [`CHUNK_BYTES`].
    Chunk(Blob),
    /// Load the artefact behind the worker's descriptor.
    Load {
        /// What the run may use.
        limits: GuestLimits,
    },
    /// Run it. Once.
    Start(Box<GuestStart>),
    /// A model's answer.
    Reply {
        /// Which call.
        call: u64,
        /// The answer.
        result: Result<ModelReply, ModelCallError>,
    },
    /// Stop computing until [`GuestCommand::Resume`].
    Pause,
    /// Go on.
    Resume,
    /// Leave, ending any run.
    Exit,
}

/// What a wasm worker tells the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestEvent {
    /// First of all.
    Hello {
        /// [`GUEST_IPC_VERSION`] of the worker.
        version: u32,
        /// Names the compiler, its settings and this processor: artefacts fit only where it is equal.
        engine: [u8; 32],
    },
    /// The component is none that can be run. The worker ends.
    Refused(CompileRefusal),
    /// The component is compiled; its artefact follows in chunks.
    Compiled {
        /// The artefact's length in bytes.
        artefact_bytes: u64,
    },
    /// The artefact's next bytes, 1 to [`CHUNK_BYTES`].
    Chunk(Blob),
    /// The artefact is loaded and is a job: it can be started.
    Loaded,
    /// The component asks a model. It waits until the reply.
    Call {
        /// The call's number: one more than the last one's, from 1.
        call: u64,
        /// The model's place in the job's list.
        model: u8,
        /// What it asks.
        request: Box<ModelRequest>,
    },
    /// How far the component says it is.
    Progress {
        /// In thousandths, at most 1,000.
        permille: u16,
        /// What it does, at most [`MAX_NOTE_BYTES`].
        note: String,
    },
    /// The component's log, at most [`MAX_LOG_BYTES`] at once: what it wrote, byte for byte.
    Log(Blob),
    /// The component's own answer.
    Finished {
        /// What `run` gave: bytes or an error text.
        output: Result<Blob, String>,
        /// What it used.
        usage: GuestUsage,
    },
    /// The component gives no answer.
    Failed {
        /// Why.
        error: GuestError,
        /// What it used.
        usage: GuestUsage,
    },
    /// The worker itself panicked; it ends.
    Broken {
        /// The panic's words, cut.
        what: String,
    },
}

/// What a run used beside time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestUsage {
    /// The most memory that it had at once, in bytes.
    pub peak_memory_bytes: u64,
    /// Bytes of its log that were not kept.
    pub log_dropped_bytes: u64,
}

/// Why a component gives no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum GuestError {
    /// It is no job: an export is missing or of another type, or an import is not to be had here.
    /// Fault: renter.
    #[error("the component is no Potluck job: {what}")]
    NoJob {
        /// What is missing, wrong or not to be had.
        what: String,
    },
    /// It trapped: its own panic, an unreachable instruction, an access out of bounds. Fault: renter.
    #[error("the component trapped: {what}")]
    Trapped {
        /// The trap and where, in the runtime's words.
        what: String,
    },
    /// It asked for more memory than the job names, and could not go on without. Fault: renter.
    #[error("the component needs more than its {limit_bytes} bytes of memory")]
    OutOfMemory {
        /// The job's limit in bytes.
        limit_bytes: u64,
    },
    /// It called itself too deeply. Fault: renter.
    #[error("the component's calls are nested too deeply")]
    StackOverflow,
    /// It was not done in the time that the job names. Fault: renter.
    #[error("the component was not done within {limit_ms} ms")]
    Deadline {
        /// The job's limit in milliseconds.
        limit_ms: u64,
    },
    /// Its result is too large. Fault: renter.
    #[error("the component gave {bytes} bytes; at most {max} are allowed")]
    OutputTooLarge {
        /// How much it gave.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// It holds more handles, or hands over more at once, than a component may. Fault: renter.
    #[error("the component went past a limit of its runtime: {what}")]
    OverLimit {
        /// Which.
        what: String,
    },
    /// The artefact cannot be loaded. Fault: provider.
    #[error("the compiled component cannot be loaded: {what}")]
    Artefact {
        /// Why, in the runtime's words.
        what: String,
    },
}

impl GuestError {
    /// Is it the component's own doing? Its time is owed then.
    #[must_use]
    pub fn is_guests_fault(&self) -> bool {
        !matches!(self, Self::Artefact { .. })
    }

    fn words(&self) -> &str {
        match self {
            Self::NoJob { what }
            | Self::Trapped { what }
            | Self::OverLimit { what }
            | Self::Artefact { what } => what,
            Self::OutOfMemory { .. }
            | Self::StackOverflow
            | Self::Deadline { .. }
            | Self::OutputTooLarge { .. } => "",
        }
    }
}

/// Why a component is not compiled. Fault: renter.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum CompileRefusal {
    /// The text form, a core module, or no wasm at all.
    #[error("it is not a binary component: {what}")]
    NotAComponent {
        /// What it is instead.
        what: String,
    },
    /// The validator or the compiler does not take it.
    #[error("it is not a valid component: {what}")]
    Invalid {
        /// Why, in the compiler's words.
        what: String,
    },
    /// The compiler ran out of memory on it.
    #[error("it takes more than {limit_bytes} bytes of memory to compile")]
    TooHeavy {
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// What comes out is too large to keep.
    #[error("its compiled form has {bytes} bytes; at most {max} are kept")]
    ArtefactTooLarge {
        /// How much it is.
        bytes: u64,
        /// The limit.
        max: u64,
    },
}

impl CompileRefusal {
    fn words(&self) -> &str {
        match self {
            Self::NotAComponent { what } | Self::Invalid { what } => what,
            Self::TooHeavy { .. } | Self::ArtefactTooLarge { .. } => "",
        }
    }
}

/// Somebody's words, cut to [`MAX_WORDS_BYTES`] between two characters.
#[must_use]
pub fn cut_words(mut words: String) -> String {
    words.truncate(words.floor_char_boundary(MAX_WORDS_BYTES));
    words
}

/// A message with bounds of its own, beyond the frame's.
pub trait Bounded {
    /// Checks every field that the other side could blow up.
    ///
    /// # Errors
    /// [`WireError::OverLimit`] names the first bound broken.
    fn check(&self) -> Result<(), WireError>;
}

fn within(ok: bool, what: &'static str) -> Result<(), WireError> {
    if ok { Ok(()) } else { Err(WireError::OverLimit { what }) }
}

fn chunk(bytes: &Blob) -> Result<(), WireError> {
    within(!bytes.0.is_empty() && bytes.0.len() <= CHUNK_BYTES, "length of a chunk")
}

impl GuestStart {
    fn check(&self) -> Result<(), WireError> {
        let named = |model: &GuestModel| !model.name.is_empty() && model.name.len() <= MAX_NAME_BYTES;
        within(self.models.len() <= MAX_GUEST_MODELS, "models of a job")?;
        within(self.models.iter().all(named), "length of a model's name")?;
        let most = usize::try_from(MAX_GUEST_INPUT_BYTES).unwrap_or(usize::MAX);
        within(self.input.0.len() <= most, "length of an input")
    }
}

impl Bounded for GuestCommand {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Compile { component_bytes, .. } => {
                within((1..=MAX_COMPONENT_BYTES).contains(component_bytes), "length of a component")
            }
            Self::Chunk(bytes) => chunk(bytes),
            Self::Load { limits } => within(limits.check().is_ok(), "limits of a guest"),
            Self::Start(start) => start.check(),
            Self::Reply { result: Ok(reply), .. } => within(reply.check().is_ok(), "a reply's own bounds"),
            Self::Reply { .. } | Self::Pause | Self::Resume | Self::Exit => Ok(()),
        }
    }
}

impl Bounded for GuestEvent {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Chunk(bytes) => chunk(bytes),
            Self::Compiled { artefact_bytes } => {
                within((1..=MAX_ARTEFACT_BYTES).contains(artefact_bytes), "length of an artefact")
            }
            Self::Call { model, request, .. } => {
                within(usize::from(*model) < MAX_GUEST_MODELS, "number of a model")?;
                within(request.check().is_ok(), "a request's own bounds")
            }
            Self::Progress { permille, note } => {
                within(*permille <= 1_000 && note.len() <= MAX_NOTE_BYTES, "progress")
            }
            Self::Log(bytes) => within(bytes.0.len() <= MAX_LOG_BYTES, "length of a log"),
            Self::Finished { output: Ok(output), .. } => {
                let most = usize::try_from(MAX_GUEST_OUTPUT_BYTES).unwrap_or(usize::MAX);
                within(output.0.len() <= most, "length of an output")
            }
            Self::Finished { output: Err(words), .. } | Self::Broken { what: words } => {
                within(words.len() <= MAX_WORDS_BYTES, "length of words")
            }
            Self::Failed { error, .. } => within(error.words().len() <= MAX_WORDS_BYTES, "length of words"),
            Self::Refused(refusal) => within(refusal.words().len() <= MAX_WORDS_BYTES, "length of words"),
            Self::Hello { .. } | Self::Loaded => Ok(()),
        }
    }
}

/// The frame of a message.
///
/// # Errors
/// [`IpcError::Wire`] when it is too large.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, IpcError> {
    frame(&wire::encode_within(message, MAX_GUEST_FRAME_BYTES)?)
}

/// The message in a frame's body.
///
/// # Errors
/// [`IpcError::Wire`] when it is none, or breaks a bound.
pub fn decode<T: Serialize + DeserializeOwned + Bounded>(body: &[u8]) -> Result<T, IpcError> {
    let message: T = wire::decode_within(body, MAX_GUEST_FRAME_BYTES)?;
    message.check()?;
    Ok(message)
}

/// Reads the next message; `None` when the socket closed between two. The worker's half.
///
/// # Errors
/// [`IpcError`] when what comes is no message.
pub fn read<T: Serialize + DeserializeOwned + Bounded>(
    reader: &mut impl Read,
) -> Result<Option<T>, IpcError> {
    let body = read_body(reader, |_| MAX_GUEST_FRAME_BYTES, MAX_GUEST_FRAME_BYTES)?;
    body.map(|body| decode(&body)).transpose()
}

/// Writes a message. The worker's half.
///
/// # Errors
/// [`IpcError`] when it is too large or the socket is gone.
pub fn write<T: Serialize>(writer: &mut impl Write, message: &T) -> Result<(), IpcError> {
    writer.write_all(&encode(message)?)?;
    Ok(())
}

/// What a wasm worker and the daemon say to each other.
#[derive(Debug)]
pub(crate) struct GuestDialect;

impl Dialect for GuestDialect {
    type Command = GuestCommand;
    type Event = GuestEvent;

    const MAX_UNSENT: usize = 2 * MAX_GUEST_FRAME_BYTES;

    fn encode(command: &GuestCommand) -> Result<Vec<u8>, IpcError> {
        encode(command)
    }

    fn most(_: Option<&u8>) -> usize {
        MAX_GUEST_FRAME_BYTES
    }

    fn decode(body: &[u8]) -> Result<GuestEvent, IpcError> {
        decode(body)
    }
}
