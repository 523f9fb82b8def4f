//! Conversations with a language model that live between calls.
//!
//! Owns: the open sessions of one run of calls, each with its own memory, sampler and half-written
//! character. Never: computes for long without asking its controller, feeds a token id that is not in
//! the vocabulary, or keeps anything past the run. Called by [`super::calls`].
//!
//! A session reads (`prefill`, or `compute` with its tokens) and writes (`step`) in any order. Equal
//! settings and equal calls give equal tokens, and a session that reads a chat and steps to its end
//! writes exactly what a declarative job with that chat writes. An end token is chosen, not read: the
//! next step chooses it again, and whoever goes on with the conversation reads it in.

use potluck_protocol::job::{FinishReason, Sampling};
use potluck_protocol::limits::MAX_COMPLETION_TOKENS;
use potluck_protocol::sampler::SeededSampler;

use super::calls::obey;
use super::error::GenerateError;
use super::generate::{Control, PREFILL_CHUNK};
use super::llm::{Llm, Memory};
use super::tokens::TextStream;
use crate::tensor::{MAX_TEXT_BYTES, ModelCallError, ModelReply, NamedTensor, Prompt, Tensor};

/// Sessions that may be open at once.
pub const MAX_SESSIONS: usize = 4;
/// What all sessions of a run may take together if each fills its context; the first is always
/// allowed.
const MAX_MEMORY_BYTES: u64 = 1 << 30;
/// Leaves room in a reply for the longest single token, each byte of it replaced by U+FFFD.
const FULL_TEXT_BYTES: usize = MAX_TEXT_BYTES - 4 * 1_024;

/// The sessions of one run of calls.
pub(super) struct Sessions<'a> {
    llm: &'a Llm,
    open: Vec<Session<'a>>,
    last: u32,
}

struct Session<'a> {
    number: u32,
    memory: Memory<'a>,
    sampler: SeededSampler,
    stream: TextStream,
    /// For the token that follows; `None` while nothing was read.
    logits: Option<Vec<f32>>,
}

impl<'a> Sessions<'a> {
    pub(super) fn new(llm: &'a Llm) -> Self {
        Self { llm, open: Vec::new(), last: 0 }
    }

    /// Opens a session whose settings keep their bounds.
    ///
    /// # Errors
    /// [`ModelCallError::TooManySessions`].
    pub(super) fn open(
        &mut self,
        temperature_milli: u32,
        top_p_milli: u32,
        seed: u64,
    ) -> Result<ModelReply, ModelCallError> {
        if self.open.len() >= self.limit() {
            return Err(ModelCallError::TooManySessions);
        }
        let number = self.last.checked_add(1).ok_or(ModelCallError::TooManySessions)?;
        let max_tokens = MAX_COMPLETION_TOKENS;
        let sampler = SeededSampler::new(&Sampling { max_tokens, temperature_milli, top_p_milli, seed });
        self.open.push(Session {
            number,
            memory: self.llm.memory(),
            sampler,
            stream: TextStream::default(),
            logits: None,
        });
        self.last = number;
        Ok(ModelReply::Session { session: number, context_tokens: self.llm.context })
    }

    /// How many sessions may be open with this model.
    fn limit(&self) -> usize {
        let full = u64::from(self.llm.context).saturating_mul(self.llm.token_bytes).max(1);
        usize::try_from(MAX_MEMORY_BYTES / full).unwrap_or(MAX_SESSIONS).clamp(1, MAX_SESSIONS)
    }

    /// Forgets a session.
    ///
    /// # Errors
    /// [`ModelCallError::UnknownSession`].
    pub(super) fn close(&mut self, session: u32) -> Result<ModelReply, ModelCallError> {
        let at = self.find(session)?;
        drop(self.open.swap_remove(at));
        Ok(ModelReply::Closed)
    }

    fn find(&self, session: u32) -> Result<usize, ModelCallError> {
        self.open.iter().position(|open| open.number == session).ok_or(ModelCallError::UnknownSession)
    }

    /// Reads a prompt that keeps its bounds.
    ///
    /// # Errors
    /// [`ModelCallError`]; the session is as it was, except after [`ModelCallError::Engine`], which
    /// closes it.
    pub(super) fn prefill(
        &mut self,
        session: u32,
        prompt: &Prompt,
        control: &dyn Control,
        on_life: &mut dyn FnMut(),
    ) -> Result<ModelReply, ModelCallError> {
        let at = self.find(session)?;
        let is_first = self.open[at].logits.is_none();
        let vocabulary = &self.llm.vocabulary;
        let encode = |text: &str| {
            if is_first { vocabulary.encode(text) } else { vocabulary.encode_more(text) }
        };
        let ids = match prompt {
            Prompt::Text(text) => encode(text)?,
            Prompt::Chat(messages) => {
                let text = self.llm.template.render(messages).map_err(GenerateError::from)?;
                encode(&text)?
            }
            Prompt::Tokens(tokens) => {
                self.check_ids(tokens)?;
                tokens.clone()
            }
        };
        let total_tokens = self.read(at, &ids, control, on_life)?;
        Ok(ModelReply::Prefilled { total_tokens })
    }

    /// Reads the ids of the input `tokens`, I32 or I64 of the shape (tokens) or (1, tokens), and
    /// answers `logits`, F32 (vocabulary), for the token that follows.
    ///
    /// # Errors
    /// As [`Sessions::prefill`].
    pub(super) fn compute(
        &mut self,
        session: u32,
        inputs: &[NamedTensor],
        control: &dyn Control,
        on_life: &mut dyn FnMut(),
    ) -> Result<ModelReply, ModelCallError> {
        let at = self.find(session)?;
        let [NamedTensor { name, tensor }] = inputs else {
            return Err(ModelCallError::invalid("a language model has one input, `tokens`"));
        };
        if name != "tokens" || !matches!(tensor.dims.as_slice(), [_] | [1, _]) {
            let what = "a language model's input is `tokens`, of the shape (tokens) or (1, tokens)";
            return Err(ModelCallError::invalid(what));
        }
        let unknown = |id: &i64| ModelCallError::invalid(&format!("token {id} is not in the vocabulary"));
        let ids = tensor
            .to_i64s()?
            .iter()
            .map(|id| u32::try_from(*id).map_err(|_| unknown(id)))
            .collect::<Result<Vec<_>, _>>()?;
        self.check_ids(&ids)?;
        self.read(at, &ids, control, on_life)?;
        let logits = self.open[at].logits.as_deref().unwrap_or_default();
        let vocab = u32::try_from(logits.len()).unwrap_or(u32::MAX);
        let tensor = Tensor::from_f32s(vec![vocab], logits)?;
        Ok(ModelReply::Tensors(vec![NamedTensor { name: "logits".to_owned(), tensor }]))
    }

    fn check_ids(&self, ids: &[u32]) -> Result<(), ModelCallError> {
        // On a GPU an id past the table is an assertion in the kernel that poisons the device.
        match ids.iter().find(|id| self.llm.vocabulary.piece(**id).is_none()) {
            Some(id) => Err(ModelCallError::invalid(&format!("token {id} is not in the vocabulary"))),
            None => Ok(()),
        }
    }

    /// Computes `ids`, all of which are in the vocabulary; the tokens that the session then holds.
    fn read(
        &mut self,
        at: usize,
        ids: &[u32],
        control: &dyn Control,
        on_life: &mut dyn FnMut(),
    ) -> Result<u32, ModelCallError> {
        if ids.is_empty() {
            return Err(ModelCallError::invalid("the prompt has no tokens"));
        }
        let session = &mut self.open[at];
        let new = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        if session.memory.tokens().saturating_add(new) > self.llm.context {
            return Err(ModelCallError::ContextFull);
        }
        session.stream = TextStream::default();
        for chunk in ids.chunks(PREFILL_CHUNK) {
            obey(control)?;
            match session.memory.feed(chunk) {
                Ok(logits) => session.logits = Some(logits),
                Err(error) => {
                    self.open.swap_remove(at);
                    return Err(error.into());
                }
            }
            on_life();
        }
        Ok(session.memory.tokens())
    }

    /// Writes at most `count` tokens, which is within its bound.
    ///
    /// # Errors
    /// As [`Sessions::prefill`]; [`ModelCallError::InvalidInput`] before anything was read.
    pub(super) fn step(
        &mut self,
        session: u32,
        count: u32,
        control: &dyn Control,
        on_life: &mut dyn FnMut(),
    ) -> Result<ModelReply, ModelCallError> {
        let at = self.find(session)?;
        if self.open[at].logits.is_none() {
            return Err(ModelCallError::invalid("the session has read nothing yet"));
        }
        let (mut tokens, mut text) = (Vec::new(), String::new());
        let mut finish = None;
        for _ in 0..count {
            if self.is_full(at) || text.len() > FULL_TEXT_BYTES {
                break;
            }
            obey(control)?;
            match self.open[at].write(self.llm, &mut text) {
                Ok(Some(id)) => tokens.push(id),
                Ok(None) => {
                    finish = Some(FinishReason::Stop);
                    break;
                }
                Err(error) => {
                    self.open.swap_remove(at);
                    return Err(error.into());
                }
            }
            on_life();
        }
        if finish.is_none() && self.is_full(at) {
            finish = Some(FinishReason::Length);
        }
        Ok(ModelReply::Stepped { tokens, text, finish })
    }

    fn is_full(&self, at: usize) -> bool {
        self.open[at].memory.tokens() >= self.llm.context
    }
}

impl Session<'_> {
    /// Chooses one token and reads it in; `None` for an end token, which is not read.
    fn write(&mut self, llm: &Llm, text: &mut String) -> Result<Option<u32>, GenerateError> {
        let position = self.memory.tokens();
        let logits = self.logits.as_deref().unwrap_or_default();
        let id = self
            .sampler
            .pick(logits, u64::from(position))
            .map_err(|_| GenerateError::NoToken { position })?;
        if llm.vocabulary.is_end(id) {
            return Ok(None);
        }
        let Some(piece) = llm.vocabulary.piece(id) else {
            return Err(GenerateError::Engine { what: format!("it chose token {id}, which is none") });
        };
        self.stream.push(piece, text);
        self.logits = Some(self.memory.feed(&[id])?);
        Ok(Some(id))
    }
}
