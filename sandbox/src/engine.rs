//! The engine: one model on one device, answering one job or one guest at a time.
//!
//! Owns: loading a model that may come from a stranger (a GGUF llama with its tokenizer and chat
//! template, or a BERT encoder in one safetensors file), generation by the seeded sampler of the
//! protocol, and the calls of a guest. Never: opens a file by name, talks to a socket, or spawns a
//! process. Called by [`crate::worker`] inside the worker process, and directly
//! by a benchmark that wants to know what the process around it costs.
//!
//! It does not panic on a hostile file as far as its own code goes; candle's may, so the worker
//! catches panics at its edge and ends.

mod calls;
mod device;
mod encoder;
mod error;
mod generate;
mod gguf;
mod llm;
mod model;
mod safetensors;
mod sessions;
mod template;
mod tokens;
mod wordpiece;

use std::fmt;
use std::fs::File;

use potluck_protocol::job::JobSpec;
use serde::{Deserialize, Serialize};

pub use calls::ModelCalls;
pub(crate) use device::OpenDevice;
pub use device::{DeviceChoice, EngineDevice};
pub use error::{GenerateError, LoadError};
pub use generate::{Control, Directive, RunToEnd, Summary};
pub use sessions::MAX_SESSIONS;
pub use template::TemplateError;

use encoder::Encoder;
use llm::Llm;
use model::ModelFile;

/// The longest name out of a model file, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// What a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ModelKind {
    /// Writes text: declarative jobs, and sessions of a component.
    Llm,
    /// Turns texts into vectors: a component's calls only.
    Encoder,
}

/// What a loaded model is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// What it does.
    pub kind: ModelKind,
    /// The network's family, as its file names it.
    pub architecture: String,
    /// The model's own name for itself: a stranger's text, cut and cleaned, not a promise.
    pub name: String,
    /// Tokens that fit: prompt and answer together, or an encoder's longest text.
    pub context_tokens: u32,
    /// Tokens in the vocabulary; every output token is below.
    pub vocab: u32,
    /// Numbers in the model.
    pub parameters: u64,
    /// What it runs on.
    pub device: EngineDevice,
}

/// What happens during a job, in order: one `Started`, `Prefilled` after each part of the prompt,
/// then `Output` as tokens come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineEvent<'a> {
    /// The prompt is accepted; computing begins.
    Started {
        /// Its length in tokens.
        prompt_tokens: u32,
    },
    /// Part of the prompt is computed.
    Prefilled {
        /// Prompt tokens computed so far.
        done_tokens: u32,
    },
    /// More of the answer.
    Output {
        /// The new tokens, control tokens included.
        tokens: &'a [u32],
        /// The text that they complete; never part of a character. May be empty.
        text: &'a str,
    },
}

/// One loaded model.
pub struct Engine {
    info: ModelInfo,
    backend: Backend,
}

enum Backend {
    Llm(Box<Llm>),
    Encoder(Box<Encoder>),
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Engine {
    /// Loads the model in `file` onto the device that `choice` asks for: a language model from a GGUF
    /// file, an encoder from a safetensors file with its configuration and tokenizer in it.
    /// `on_progress` hears the bytes loaded so far and in all. The file is read by position; its
    /// offset is not touched.
    ///
    /// # Errors
    /// [`LoadError`]; memory use is bounded by the length of the file times a small constant
    /// whatever the file says.
    pub fn load(
        file: File,
        choice: DeviceChoice,
        on_progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let mut file = ModelFile::new(file)?;
        match file.kind()? {
            ModelKind::Llm => {
                let (llm, info) = Llm::load(file, choice, on_progress)?;
                Ok(Self { info, backend: Backend::Llm(Box::new(llm)) })
            }
            ModelKind::Encoder => {
                let (encoder, info) = Encoder::load(file, choice, on_progress)?;
                Ok(Self { info, backend: Backend::Encoder(Box::new(encoder)) })
            }
        }
    }

    /// What was loaded.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Answers `job`. `control` is asked before every step; `on_event` hears what happens, in the
    /// calling thread. The job's `model` is not looked at: whoever started the engine chose the file.
    ///
    /// # Errors
    /// [`GenerateError`]; the engine stays usable. [`GenerateError::PromptTooLong`] and
    /// [`GenerateError::NotSupported`] come before anything is computed.
    pub fn generate(
        &self,
        job: &JobSpec,
        control: &dyn Control,
        on_event: &mut dyn FnMut(EngineEvent<'_>),
    ) -> Result<Summary, GenerateError> {
        match &self.backend {
            Backend::Llm(llm) => generate::run(llm, job, control, on_event),
            Backend::Encoder(_) => Err(GenerateError::NotSupported {
                what: "it is an encoder: it gives vectors to a component and writes no text".to_owned(),
            }),
        }
    }

    /// Begins a run of calls.
    #[must_use]
    pub fn calls(&self) -> ModelCalls<'_> {
        match &self.backend {
            Backend::Llm(llm) => ModelCalls::of_llm(llm),
            Backend::Encoder(encoder) => ModelCalls::of_encoder(encoder),
        }
    }
}
