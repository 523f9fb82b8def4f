//! Why a model cannot be served, and why a job failed.
//!
//! Owns: the two error types that cross from the worker to the daemon. Never: carries more than a
//! few hundred bytes of a stranger's text. Called by the engine (which makes them), the socket
//! protocol (which carries them) and the daemon (which decides whose fault it is).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::template::TemplateError;

/// Why a model cannot be served. Fault: local (the owner chose the file or the device), or whoever
/// made the file.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum LoadError {
    /// Neither a GGUF nor a safetensors file.
    #[error("the model is neither a GGUF nor a safetensors file")]
    UnknownFormat,
    /// A GGUF version that this engine does not read.
    #[error("GGUF version {found} is not supported (2 and 3 are)")]
    UnsupportedVersion {
        /// The version that the file names.
        found: u32,
    },
    /// The file ends before what its header declares.
    #[error("the model file is cut short: {what} is not all there")]
    Truncated {
        /// What is missing.
        what: String,
    },
    /// The file contradicts itself.
    #[error("the model file is corrupt: {what}")]
    Corrupt {
        /// What is wrong.
        what: String,
    },
    /// The file declares more than this engine takes on.
    #[error("the model file's {what} is over the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The largest value that is taken.
        limit: u64,
    },
    /// A network that this engine does not compute, or not exactly.
    #[error("the architecture is not supported: {found}")]
    UnsupportedArchitecture {
        /// What was found.
        found: String,
    },
    /// A tokenizer that this engine does not reproduce exactly.
    #[error("the tokenizer is not supported: {found}")]
    UnsupportedTokenizer {
        /// What was found.
        found: String,
    },
    /// A way to store numbers that this engine does not read.
    #[error("the quantization type {found} is not supported")]
    UnsupportedQuantization {
        /// The type's number in the file.
        found: u32,
    },
    /// The device cannot be used.
    #[error("the device cannot be used: {what}")]
    Device {
        /// Why.
        what: String,
    },
    /// The file cannot be read.
    #[error("the model file cannot be read: {what}")]
    Io {
        /// The system's reason.
        what: String,
    },
    /// The engine refused the weights or failed its first computation.
    #[error("the engine cannot run this model: {what}")]
    Engine {
        /// The engine's reason.
        what: String,
    },
}

/// Why a job failed. The engine stays usable.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum GenerateError {
    /// The prompt leaves no room for an answer. Fault: renter.
    #[error("the prompt has {prompt_tokens} tokens; the model's context holds {context}, answer included")]
    PromptTooLong {
        /// The prompt's length in tokens.
        prompt_tokens: u32,
        /// The context's length in tokens.
        context: u32,
    },
    /// The conversation does not fit the model's chat template. Fault: renter.
    #[error("the model's chat template refuses the conversation: {0}")]
    Template(#[from] TemplateError),
    /// The prompt could not be turned into tokens. Fault: provider.
    #[error("the prompt cannot be tokenized: {what}")]
    Tokenizer {
        /// Why.
        what: String,
    },
    /// The model computed no usable number. Fault: provider (or its model).
    #[error("the model computed no token that can be chosen, at position {position}")]
    NoToken {
        /// The absolute position in the context.
        position: u32,
    },
    /// The engine failed. Fault: provider.
    #[error("the engine failed: {what}")]
    Engine {
        /// The engine's reason.
        what: String,
    },
    /// This kind of model does no such job. Fault: renter.
    #[error("the model does not do this: {what}")]
    NotSupported {
        /// What it is instead.
        what: String,
    },
}
