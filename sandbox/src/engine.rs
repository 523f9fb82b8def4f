//! The engine: one model on one device, answering one job at a time.
//!
//! Owns: loading a GGUF llama model that may come from a stranger, its tokenizer and chat template,
//! and generation by the seeded sampler of the protocol. Never: opens a file by name, talks to a
//! socket, or spawns a process. Called by [`crate::worker`] inside the worker process, and directly
//! by a benchmark that wants to know what the process around it costs.
//!
//! It does not panic on a hostile file as far as its own code goes; candle's may, so the worker
//! catches panics at its edge and ends.

mod device;
mod error;
mod generate;
mod gguf;
mod model;
mod template;
mod tokens;

use std::fmt;
use std::fs::File;
use std::io::BufReader;

use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use potluck_protocol::job::JobSpec;
use serde::{Deserialize, Serialize};

pub use device::{DeviceChoice, EngineDevice};
pub use error::{GenerateError, LoadError};
pub use generate::{Control, Directive, RunToEnd, Summary};
pub use template::TemplateError;

use crate::text;
use gguf::Header;
use model::{Dimensions, ModelFile};
use template::ChatTemplate;
use tokens::Vocabulary;

/// The longest name out of a model file, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// What a loaded model is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The network's family, as GGUF names it.
    pub architecture: String,
    /// The model's own name for itself: a stranger's text, cut and cleaned, not a promise.
    pub name: String,
    /// Tokens that fit, prompt and answer together.
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
    /// Pristine: jobs run on clones, which share the numbers.
    weights: ModelWeights,
    device: Device,
    vocabulary: Vocabulary,
    template: ChatTemplate,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Engine {
    /// Loads the GGUF model in `file` onto the device that `choice` asks for. `on_progress` hears
    /// the bytes loaded so far and in all. The file is read by position; its offset is not touched.
    ///
    /// # Errors
    /// [`LoadError`]; memory use is bounded by the length of the file times a small constant
    /// whatever the file says (the embedding is kept as f32, others as they are stored).
    pub fn load(
        file: File,
        choice: DeviceChoice,
        on_progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, LoadError> {
        let mut file = ModelFile::new(file)?;
        let len = file.len();
        let mut header = Header::read(BufReader::with_capacity(1 << 16, &mut file), len)?;
        let vocabulary = Vocabulary::read(&mut header)?;
        let template = ChatTemplate::read(&header, &vocabulary)?;
        let dimensions = Dimensions::read(&header, vocabulary.len())?;
        let (device, engine_device) = device::open(choice)?;
        let weights = dimensions.load(&header, file, &device, on_progress)?;
        let engine = Self {
            info: ModelInfo {
                architecture: text::clean(header.text("general.architecture").unwrap_or_default(), 32),
                name: text::clean(header.text("general.name").unwrap_or("unnamed"), MAX_NAME_BYTES),
                context_tokens: dimensions.context,
                vocab: u32::try_from(vocabulary.len()).unwrap_or(u32::MAX),
                parameters: Dimensions::parameters(&header),
                device: engine_device,
            },
            weights,
            device,
            vocabulary,
            template,
        };
        engine.warm_up()?;
        Ok(engine)
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
    /// [`GenerateError`]; the engine stays usable. [`GenerateError::PromptTooLong`] comes before
    /// anything is computed.
    pub fn generate(
        &self,
        job: &JobSpec,
        control: &dyn Control,
        on_event: &mut dyn FnMut(EngineEvent<'_>),
    ) -> Result<Summary, GenerateError> {
        generate::run(self, job, control, on_event)
    }

    /// Runs every kernel once: a model that cannot run fails here and not in a renter's job, and the
    /// first job does not pay for what candle prepares on first use.
    fn warm_up(&self) -> Result<(), LoadError> {
        let mut weights = self.weights.clone();
        let mut feed = |ids: &[u32], at: usize| {
            let input = Tensor::new(ids, &self.device)?.unsqueeze(0)?;
            weights.forward(&input, at)?.flatten_all()?.to_vec1::<f32>()
        };
        let prompt = [0; generate::PREFILL_CHUNK];
        let logits = feed(&prompt[..self.warm_up_tokens()], 0)
            .and_then(|_| feed(&[0], self.warm_up_tokens()))
            .map_err(|e| LoadError::Engine { what: text::clean(&e.to_string(), 200) })?;
        if u32::try_from(logits.len()) != Ok(self.info.vocab) {
            return Err(LoadError::Engine { what: format!("it computes {} logits", logits.len()) });
        }
        Ok(())
    }

    /// A prefill's worth of tokens, or what the context holds beside one more.
    fn warm_up_tokens(&self) -> usize {
        let context = usize::try_from(self.info.context_tokens).unwrap_or(usize::MAX);
        context.saturating_sub(1).clamp(1, generate::PREFILL_CHUNK)
    }
}
