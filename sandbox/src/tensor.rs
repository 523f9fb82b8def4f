//! What a component and a model say to each other, as the processes between them carry it.
//!
//! Owns: the typed tensors, requests and replies of the tensor channel, and every bound on them.
//! Never: runs a model, decides which model a job may use, or trusts a shape that it did not check.
//! Called by the guest's host functions (which make requests), by [`crate::ipc`] (which carries
//! them) and by the engine's worker (which answers); each checks what it takes from the others.
//!
//! Lists are bounded while they are decoded, not after: a frame of empty strings would otherwise
//! take twenty-four times its own length in memory. Debug forms show lengths only: what a guest asks
//! and a model answers stays out of logs.

use std::fmt;

use potluck_protocol::job::{ChatMessage, FinishReason};
use potluck_protocol::limits::{MAX_COMPLETION_TOKENS, MAX_JOB_BYTES, MAX_MESSAGES};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The largest tensor, in bytes of its numbers.
pub const MAX_TENSOR_BYTES: usize = 16 << 20;
/// Dimensions of one tensor.
pub const MAX_TENSOR_DIMS: usize = 8;
/// Tensors in one request or reply.
pub const MAX_TENSORS: usize = 16;
/// Bytes of a tensor's name.
pub const MAX_TENSOR_NAME_BYTES: usize = 128;
/// The largest request or reply in bytes: the largest tensor, and room for what is around it.
pub const MAX_CALL_BYTES: usize = 17 << 20;
/// Texts in one [`ModelRequest::Embed`].
pub const MAX_EMBED_TEXTS: usize = 256;
/// Bytes of one text to embed: far more than an encoder reads, so that tokenizing stays short.
pub const MAX_EMBED_TEXT_BYTES: usize = 64 << 10;
/// Tokens of one [`ModelRequest::Step`].
pub const MAX_STEP_TOKENS: u32 = 1_024;
/// Bytes of a prompt or of an answer's text.
pub const MAX_TEXT_BYTES: usize = MAX_JOB_BYTES;
/// Tokens of one prompt.
const MAX_PROMPT_TOKENS: usize = 1 << 17;
/// Bytes of an explanation inside a [`ModelCallError`].
const MAX_WHAT_BYTES: usize = 512;

const _: () = assert!(MAX_PROMPT_TOKENS == MAX_COMPLETION_TOKENS as usize);

/// What a tensor's numbers are. Every one is little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TensorType {
    /// Bytes.
    U8,
    /// 32-bit signed integers.
    I32,
    /// 64-bit signed integers.
    I64,
    /// 32-bit floats.
    F32,
}

impl TensorType {
    /// Bytes of one number.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I32 | Self::F32 => 4,
            Self::I64 => 8,
        }
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "U8",
            Self::I32 => "I32",
            Self::I64 => "I64",
            Self::F32 => "F32",
        }
    }

    /// The type of this name, in any case.
    ///
    /// # Errors
    /// [`TensorError::UnsupportedType`] for every other name, `F16`, `F64` and `BF16` among them.
    pub fn from_name(name: &str) -> Result<Self, TensorError> {
        [Self::U8, Self::I32, Self::I64, Self::F32]
            .into_iter()
            .find(|ty| ty.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| TensorError::UnsupportedType { name: crate::text::clean(name, 16) })
    }
}

/// Why a tensor is none. Fault: whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TensorError {
    /// Numbers of a kind that the channel does not carry.
    #[error("tensors of {name} are not carried: U8, I32, I64 and F32 are")]
    UnsupportedType {
        /// Its name, cut.
        name: String,
    },
    /// Too many dimensions.
    #[error("a tensor of {count} dimensions; at most {MAX_TENSOR_DIMS} are allowed")]
    TooManyDims {
        /// How many.
        count: usize,
    },
    /// More numbers than may cross.
    #[error("a tensor of more than {MAX_TENSOR_BYTES} bytes")]
    TooLarge,
    /// Shape and bytes do not belong together.
    #[error("a tensor of shape {dims:?} has {expected} bytes; this one has {found}")]
    WrongLength {
        /// The shape.
        dims: Vec<u32>,
        /// Bytes that the shape asks for.
        expected: u64,
        /// Bytes that are there.
        found: usize,
    },
    /// Numbers of another type than this use needs.
    #[error("a tensor of {found} where {needed} is needed")]
    WrongType {
        /// What it holds.
        found: &'static str,
        /// What it should hold.
        needed: &'static str,
    },
}

/// Numbers in a shape, slowest dimension first. The fields are public because it crosses processes:
/// whoever takes one from another process calls [`Tensor::check`] before using it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// What the numbers are.
    pub ty: TensorType,
    /// The shape; empty for a single number. At most [`MAX_TENSOR_DIMS`].
    #[serde(deserialize_with = "within::<_, _, MAX_TENSOR_DIMS>")]
    pub dims: Vec<u32>,
    /// The numbers, little endian, at most [`MAX_TENSOR_BYTES`].
    #[serde(with = "blob")]
    pub data: Vec<u8>,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?}, {} bytes)", self.ty.name(), self.dims, self.data.len())
    }
}

impl Tensor {
    /// A checked tensor.
    ///
    /// # Errors
    /// As [`Tensor::check`].
    pub fn new(ty: TensorType, dims: Vec<u32>, data: Vec<u8>) -> Result<Self, TensorError> {
        let tensor = Self { ty, dims, data };
        tensor.check()?;
        Ok(tensor)
    }

    /// A tensor of these floats.
    ///
    /// # Errors
    /// As [`Tensor::check`].
    pub fn from_f32s(dims: Vec<u32>, numbers: &[f32]) -> Result<Self, TensorError> {
        if numbers.len() > MAX_TENSOR_BYTES / 4 {
            return Err(TensorError::TooLarge);
        }
        Self::new(TensorType::F32, dims, numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
    }

    /// Checks that shape and bytes belong together and keep every bound.
    ///
    /// # Errors
    /// [`TensorError`], the first bound broken.
    pub fn check(&self) -> Result<(), TensorError> {
        let count = self.dims.len();
        if count > MAX_TENSOR_DIMS {
            return Err(TensorError::TooManyDims { count });
        }
        let size = u64::try_from(self.ty.size()).unwrap_or(u64::MAX);
        let expected = self
            .dims
            .iter()
            .try_fold(size, |bytes, &dim| bytes.checked_mul(u64::from(dim)))
            .ok_or(TensorError::TooLarge)?;
        let limit = u64::try_from(MAX_TENSOR_BYTES).unwrap_or(u64::MAX);
        if expected > limit || self.data.len() > MAX_TENSOR_BYTES {
            return Err(TensorError::TooLarge);
        }
        if u64::try_from(self.data.len()) != Ok(expected) {
            return Err(TensorError::WrongLength {
                dims: self.dims.clone(),
                expected,
                found: self.data.len(),
            });
        }
        Ok(())
    }

    /// The floats of an F32 tensor.
    ///
    /// # Errors
    /// [`TensorError`] when it is no tensor, or one of another type.
    pub fn to_f32s(&self) -> Result<Vec<f32>, TensorError> {
        self.check()?;
        if self.ty != TensorType::F32 {
            return Err(TensorError::WrongType { found: self.ty.name(), needed: "F32" });
        }
        Ok(self.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// The integers of an I32 or I64 tensor.
    ///
    /// # Errors
    /// [`TensorError`] when it is no tensor, or one of another type.
    pub fn to_i64s(&self) -> Result<Vec<i64>, TensorError> {
        self.check()?;
        match self.ty {
            TensorType::I32 => {
                let chunks = self.data.as_chunks().0;
                Ok(chunks.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect())
            }
            TensorType::I64 => {
                let chunks = self.data.as_chunks().0;
                Ok(chunks.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
            }
            TensorType::U8 | TensorType::F32 => {
                Err(TensorError::WrongType { found: self.ty.name(), needed: "I32 or I64" })
            }
        }
    }
}

/// A tensor and what the model calls it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedTensor {
    /// The name, at most [`MAX_TENSOR_NAME_BYTES`].
    pub name: String,
    /// The numbers.
    pub tensor: Tensor,
}

/// What a session reads.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prompt {
    /// Plain text, at most [`MAX_TEXT_BYTES`].
    Text(String),
    /// A chat, written with the model's own template, ready for the assistant's answer.
    Chat(#[serde(deserialize_with = "within::<_, _, MAX_MESSAGES>")] Vec<ChatMessage>),
    /// Token ids; each is checked against the vocabulary by the worker.
    Tokens(#[serde(deserialize_with = "within::<_, _, MAX_PROMPT_TOKENS>")] Vec<u32>),
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Chat(messages) => write!(f, "Chat({messages:?})"),
            Self::Tokens(tokens) => write!(f, "Tokens({})", tokens.len()),
        }
    }
}

/// What is asked of a model.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelRequest {
    /// Opens a conversation with a language model. Answered by [`ModelReply::Session`].
    OpenSession {
        /// Temperature in thousandths; 0 is greedy; at most 2,000.
        temperature_milli: u32,
        /// Nucleus mass in thousandths, 1 to 1,000.
        top_p_milli: u32,
        /// The sampler's seed.
        seed: u64,
    },
    /// Reads a prompt. Answered by [`ModelReply::Prefilled`].
    Prefill {
        /// Which session.
        session: u32,
        /// What to read.
        prompt: Prompt,
    },
    /// Writes tokens. Answered by [`ModelReply::Stepped`].
    Step {
        /// Which session.
        session: u32,
        /// At most so many tokens, 1 to [`MAX_STEP_TOKENS`].
        tokens: u32,
    },
    /// Forgets a session. Answered by [`ModelReply::Closed`].
    CloseSession {
        /// Which session.
        session: u32,
    },
    /// Sentence vectors. Answered by [`ModelReply::Vectors`].
    Embed {
        /// 1 to [`MAX_EMBED_TEXTS`] texts of at most [`MAX_EMBED_TEXT_BYTES`] each.
        #[serde(deserialize_with = "within::<_, _, MAX_EMBED_TEXTS>")]
        texts: Vec<String>,
    },
    /// Runs the network on tensors. Answered by [`ModelReply::Tensors`].
    Compute {
        /// The session whose memory it continues: language models only.
        session: Option<u32>,
        /// At most [`MAX_TENSORS`], each under another name.
        #[serde(deserialize_with = "within::<_, _, MAX_TENSORS>")]
        inputs: Vec<NamedTensor>,
    },
}

impl fmt::Debug for ModelRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenSession { temperature_milli, top_p_milli, .. } => {
                write!(f, "OpenSession({temperature_milli}, {top_p_milli})")
            }
            Self::Prefill { session, prompt } => write!(f, "Prefill({session}, {prompt:?})"),
            Self::Step { session, tokens } => write!(f, "Step({session}, {tokens})"),
            Self::CloseSession { session } => write!(f, "CloseSession({session})"),
            Self::Embed { texts } => write!(f, "Embed({} texts)", texts.len()),
            Self::Compute { session, inputs } => write!(f, "Compute({session:?}, {inputs:?})"),
        }
    }
}

impl ModelRequest {
    /// Checks every bound that does not depend on the model.
    ///
    /// # Errors
    /// [`ModelCallError::InvalidInput`], the first bound broken.
    pub fn check(&self) -> Result<(), ModelCallError> {
        match self {
            Self::OpenSession { temperature_milli, top_p_milli, .. } => {
                within_bound(*temperature_milli <= 2_000, "temperature (in thousandths) must be 0 to 2000")?;
                let top_p = (1..=1_000).contains(top_p_milli);
                within_bound(top_p, "top_p (in thousandths) must be 1 to 1000")
            }
            Self::Prefill { prompt, .. } => check_prompt(prompt),
            Self::Step { tokens, .. } => {
                within_bound((1..=MAX_STEP_TOKENS).contains(tokens), "a step writes 1 to 1024 tokens")
            }
            Self::CloseSession { .. } => Ok(()),
            Self::Embed { texts } => {
                let count = (1..=MAX_EMBED_TEXTS).contains(&texts.len());
                within_bound(count, "1 to 256 texts are embedded at once")?;
                let short = texts.iter().all(|text| text.len() <= MAX_EMBED_TEXT_BYTES);
                within_bound(short, "a text to embed has at most 65536 bytes")
            }
            Self::Compute { inputs, .. } => check_tensors(inputs),
        }
    }

    /// What it asks.
    #[must_use]
    pub fn kind(&self) -> CallKind {
        match self {
            Self::OpenSession { .. } => CallKind::Open,
            Self::Prefill { .. } => CallKind::Prefill,
            Self::Step { .. } => CallKind::Step,
            Self::CloseSession { .. } => CallKind::Close,
            Self::Embed { .. } => CallKind::Embed,
            Self::Compute { .. } => CallKind::Compute,
        }
    }
}

fn check_prompt(prompt: &Prompt) -> Result<(), ModelCallError> {
    match prompt {
        Prompt::Text(text) => within_bound(text.len() <= MAX_TEXT_BYTES, "the prompt is longer than 1 MiB"),
        Prompt::Chat(messages) => {
            let count = (1..=MAX_MESSAGES).contains(&messages.len());
            within_bound(count, "a chat has 1 to 1024 messages")?;
            let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
            within_bound(bytes <= MAX_TEXT_BYTES, "the chat is longer than 1 MiB")
        }
        Prompt::Tokens(tokens) => {
            within_bound(tokens.len() <= MAX_PROMPT_TOKENS, "the prompt has more than 131072 tokens")
        }
    }
}

fn check_tensors(tensors: &[NamedTensor]) -> Result<(), ModelCallError> {
    within_bound(tensors.len() <= MAX_TENSORS, "more than 16 tensors at once")?;
    for (at, NamedTensor { name, tensor }) in tensors.iter().enumerate() {
        within_bound(name.len() <= MAX_TENSOR_NAME_BYTES, "a tensor's name is longer than 128 bytes")?;
        let is_new = tensors.iter().take(at).all(|earlier| earlier.name != *name);
        within_bound(is_new, "two tensors have the same name")?;
        tensor.check()?;
    }
    Ok(())
}

fn within_bound(ok: bool, what: &str) -> Result<(), ModelCallError> {
    if ok { Ok(()) } else { Err(ModelCallError::invalid(what)) }
}

/// What a model answers.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub enum ModelReply {
    /// To [`ModelRequest::OpenSession`].
    Session {
        /// The session's number, not used before in this run.
        session: u32,
        /// Tokens that fit into it.
        context_tokens: u32,
    },
    /// To [`ModelRequest::Prefill`].
    Prefilled {
        /// Tokens that the session holds now.
        total_tokens: u32,
    },
    /// To [`ModelRequest::Step`].
    Stepped {
        /// The new tokens; the end token is not among them.
        #[serde(deserialize_with = "within::<_, _, { MAX_STEP_TOKENS as usize }>")]
        tokens: Vec<u32>,
        /// The text that they complete; never part of a character.
        text: String,
        /// Set when the model ended its answer or its context is full.
        finish: Option<FinishReason>,
    },
    /// To [`ModelRequest::CloseSession`].
    Closed,
    /// To [`ModelRequest::Embed`].
    Vectors {
        /// Numbers in one vector.
        dim: u32,
        /// Vectors.
        rows: u32,
        /// The numbers, row after row.
        #[serde(deserialize_with = "within::<_, _, { MAX_TENSOR_BYTES / 4 }>")]
        data: Vec<f32>,
    },
    /// To [`ModelRequest::Compute`].
    Tensors(#[serde(deserialize_with = "within::<_, _, MAX_TENSORS>")] Vec<NamedTensor>),
}

impl fmt::Debug for ModelReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session { session, context_tokens } => write!(f, "Session({session}, {context_tokens})"),
            Self::Prefilled { total_tokens } => write!(f, "Prefilled({total_tokens})"),
            Self::Stepped { tokens, finish, .. } => write!(f, "Stepped({}, {finish:?})", tokens.len()),
            Self::Closed => f.write_str("Closed"),
            Self::Vectors { dim, rows, .. } => write!(f, "Vectors({rows} of {dim})"),
            Self::Tensors(tensors) => write!(f, "Tensors({tensors:?})"),
        }
    }
}

impl ModelReply {
    /// Checks every bound: whoever takes a reply from another process does this first.
    ///
    /// # Errors
    /// [`ModelCallError::InvalidInput`], the first bound broken. Fault: the model's worker.
    pub fn check(&self) -> Result<(), ModelCallError> {
        match self {
            Self::Session { .. } | Self::Prefilled { .. } | Self::Closed => Ok(()),
            Self::Stepped { text, .. } => {
                within_bound(text.len() <= MAX_TEXT_BYTES, "the answer is longer than 1 MiB")
            }
            Self::Vectors { dim, rows, data } => {
                let numbers = u64::from(*dim) * u64::from(*rows);
                let fits = u64::try_from(data.len()) == Ok(numbers);
                within_bound(fits, "the vectors are not as many numbers as they say")
            }
            Self::Tensors(tensors) => check_tensors(tensors),
        }
    }

    /// What it answers.
    #[must_use]
    pub fn kind(&self) -> CallKind {
        match self {
            Self::Session { .. } => CallKind::Open,
            Self::Prefilled { .. } => CallKind::Prefill,
            Self::Stepped { .. } => CallKind::Step,
            Self::Closed => CallKind::Close,
            Self::Vectors { .. } => CallKind::Embed,
            Self::Tensors(_) => CallKind::Compute,
        }
    }
}

/// What is asked and answered, without what is said: a reply of another kind is a breach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// [`ModelRequest::OpenSession`] and [`ModelReply::Session`].
    Open,
    /// [`ModelRequest::Prefill`] and [`ModelReply::Prefilled`].
    Prefill,
    /// [`ModelRequest::Step`] and [`ModelReply::Stepped`].
    Step,
    /// [`ModelRequest::CloseSession`] and [`ModelReply::Closed`].
    Close,
    /// [`ModelRequest::Embed`] and [`ModelReply::Vectors`].
    Embed,
    /// [`ModelRequest::Compute`] and [`ModelReply::Tensors`].
    Compute,
}

/// Why a model does not answer a request. The model stays usable, except after
/// [`ModelCallError::ModelLost`].
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ModelCallError {
    /// No such session is open. Fault: the component.
    #[error("no such session is open")]
    UnknownSession,
    /// No further session can be opened. Fault: the component.
    #[error("too many sessions are open")]
    TooManySessions,
    /// The session cannot hold that much. It is as it was before. Fault: the component.
    #[error("the model's context is full")]
    ContextFull,
    /// An argument breaks a bound or makes no sense to this model. Fault: the component.
    #[error("{what}")]
    InvalidInput {
        /// What is wrong.
        what: String,
    },
    /// This kind of model cannot do that. Fault: the component.
    #[error("this model cannot do that: {what}")]
    NotSupported {
        /// What was asked.
        what: String,
    },
    /// The engine failed. Fault: provider.
    #[error("the engine failed: {what}")]
    Engine {
        /// The engine's reason.
        what: String,
    },
    /// The run was cancelled while the call was on its way.
    #[error("the call was cancelled")]
    Cancelled,
    /// The model's worker is gone; no further call will be answered. Fault: provider.
    #[error("the model's worker was lost")]
    ModelLost,
}

impl ModelCallError {
    /// An [`ModelCallError::InvalidInput`] with its words cut and cleaned.
    #[must_use]
    pub fn invalid(what: &str) -> Self {
        Self::InvalidInput { what: crate::text::clean(what, MAX_WHAT_BYTES) }
    }

    /// A [`ModelCallError::NotSupported`] with its words cut and cleaned.
    #[must_use]
    pub fn not_supported(what: &str) -> Self {
        Self::NotSupported { what: crate::text::clean(what, MAX_WHAT_BYTES) }
    }

    /// An [`ModelCallError::Engine`] with its words cut and cleaned.
    #[must_use]
    pub fn engine(what: &str) -> Self {
        Self::Engine { what: crate::text::clean(what, MAX_WHAT_BYTES) }
    }
}

impl From<TensorError> for ModelCallError {
    fn from(error: TensorError) -> Self {
        Self::invalid(&error.to_string())
    }
}

/// Reads a list of at most `N`, refusing the first element too many before it takes memory.
fn within<'de, D, T, const N: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const N: usize>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const N: usize> serde::de::Visitor<'de> for List<T, N> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {N}")
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut values = Vec::new();
            while let Some(value) = list.next_element()? {
                if values.len() == N {
                    return Err(serde::de::Error::invalid_length(N + 1, &self));
                }
                values.push(value);
            }
            Ok(values)
        }
    }

    deserializer.deserialize_seq(List::<T, N>(std::marker::PhantomData))
}

/// Bytes as bytes: the same encoding as a list of them, in one copy instead of millions of steps.
mod blob {
    use std::fmt;

    use serde::de::Visitor;
    use serde::{Deserializer, Serializer};

    use super::MAX_TENSOR_BYTES;

    pub(super) fn serialize<S: Serializer>(data: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(data)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_byte_buf(Bytes)
    }

    struct Bytes;

    impl Visitor<'_> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_TENSOR_BYTES} bytes")
        }

        fn visit_bytes<E: serde::de::Error>(self, data: &[u8]) -> Result<Vec<u8>, E> {
            if data.len() > MAX_TENSOR_BYTES {
                return Err(E::invalid_length(data.len(), &self));
            }
            Ok(data.to_vec())
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
