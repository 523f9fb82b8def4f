//! A language model: its weights, its tokenizer and its chat template, and one conversation's memory.
//!
//! Owns: loading the parts of a GGUF file in an order in which each is checked before the next uses
//! it. Never: chooses a token (see [`super::generate`] and [`super::sessions`]). Called by
//! [`super::Engine`].

use std::io::BufReader;

use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

use super::device::{self, DeviceChoice};
use super::error::{GenerateError, LoadError};
use super::generate::PREFILL_CHUNK;
use super::gguf::Header;
use super::model::{Dimensions, ModelFile};
use super::template::ChatTemplate;
use super::tokens::Vocabulary;
use super::{MAX_NAME_BYTES, ModelInfo, ModelKind};
use crate::text;

/// One loaded language model.
pub(crate) struct Llm {
    /// Pristine: jobs run on clones, which share the numbers.
    weights: ModelWeights,
    device: Device,
    pub(super) vocabulary: Vocabulary,
    pub(super) template: ChatTemplate,
    /// Tokens that fit, prompt and answer together.
    pub(super) context: u32,
    /// What one token takes in a conversation's memory, in bytes.
    pub(super) token_bytes: u64,
}

impl Llm {
    /// Loads the file onto the device that `choice` asks for.
    ///
    /// # Errors
    /// [`LoadError`]; memory use is bounded by the length of the file times a small constant
    /// whatever the file says (the embedding is kept as f32, others as they are stored).
    pub(super) fn load(
        mut file: ModelFile,
        choice: DeviceChoice,
        on_progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(Self, ModelInfo), LoadError> {
        let len = file.len();
        let mut header = Header::read(BufReader::with_capacity(1 << 16, &mut file), len)?;
        let vocabulary = Vocabulary::read(&mut header)?;
        let template = ChatTemplate::read(&header, &vocabulary)?;
        let dimensions = Dimensions::read(&header, vocabulary.len())?;
        let (device, engine_device) = device::open(choice)?;
        let weights = dimensions.load(&header, file, &device, on_progress)?;
        let info = ModelInfo {
            kind: ModelKind::Llm,
            architecture: text::clean(header.text("general.architecture").unwrap_or_default(), 32),
            name: text::clean(header.text("general.name").unwrap_or("unnamed"), MAX_NAME_BYTES),
            context_tokens: dimensions.context,
            vocab: u32::try_from(vocabulary.len()).unwrap_or(u32::MAX),
            parameters: Dimensions::parameters(&header),
            device: engine_device,
        };
        let (context, token_bytes) = (dimensions.context, dimensions.token_bytes());
        let llm = Self { weights, device, vocabulary, template, context, token_bytes };
        llm.warm_up()?;
        Ok((llm, info))
    }

    /// Runs every kernel once: a model that cannot run fails here and not in a renter's job, and the
    /// first job does not pay for what candle prepares on first use.
    fn warm_up(&self) -> Result<(), LoadError> {
        let mut memory = self.memory();
        let prompt = [0; PREFILL_CHUNK];
        let logits = memory
            .feed(&prompt[..self.warm_up_tokens()])
            .and_then(|_| memory.feed(&[0]))
            .map_err(|e| LoadError::Engine { what: text::clean(&e.to_string(), 200) })?;
        if logits.len() != self.vocabulary.len() {
            return Err(LoadError::Engine { what: format!("it computes {} logits", logits.len()) });
        }
        Ok(())
    }

    /// A prefill's worth of tokens, or what the context holds beside one more.
    fn warm_up_tokens(&self) -> usize {
        let context = usize::try_from(self.context).unwrap_or(usize::MAX);
        context.saturating_sub(1).clamp(1, PREFILL_CHUNK)
    }

    /// An empty memory. A clone shares the weights and starts with an empty cache; candle's own cache
    /// of masks also dies with it, so a long-lived worker does not grow.
    pub(super) fn memory(&self) -> Memory<'_> {
        Memory { weights: self.weights.clone(), device: &self.device, at: 0 }
    }
}

/// What a model has read and written in one conversation: the weights with an attention cache of its
/// own.
pub(super) struct Memory<'a> {
    weights: ModelWeights,
    device: &'a Device,
    /// Tokens computed so far.
    at: usize,
}

impl Memory<'_> {
    /// Tokens computed so far.
    pub(super) fn tokens(&self) -> u32 {
        u32::try_from(self.at).unwrap_or(u32::MAX)
    }

    /// Computes `ids`, each of which is in the vocabulary, after what is there already; the logits
    /// for the token that follows.
    ///
    /// # Errors
    /// [`GenerateError::Engine`]; the memory is then good for nothing.
    pub(super) fn feed(&mut self, ids: &[u32]) -> Result<Vec<f32>, GenerateError> {
        let logits = Tensor::new(ids, self.device)
            .and_then(|input| input.unsqueeze(0))
            .and_then(|input| self.weights.forward(&input, self.at))
            .and_then(|logits| logits.flatten_all()?.to_vec1::<f32>())
            .map_err(|e| GenerateError::Engine { what: text::clean(&e.to_string(), 200) })?;
        self.at += ids.len();
        Ok(logits)
    }
}
