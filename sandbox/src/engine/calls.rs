//! A run of calls: one guest's requests to one model, one after another.
//!
//! Owns: which request goes to which part of which kind of model, and what a run remembers between
//! calls. Never: decides who may call, or trusts a request (its bounds are checked here, again).
//! Called by [`crate::worker`], and by a benchmark that wants to know what the process costs.

use super::encoder::Encoder;
use super::error::GenerateError;
use super::generate::{Control, Directive};
use super::llm::Llm;
use super::sessions::Sessions;
use crate::tensor::{ModelCallError, ModelReply, ModelRequest};

/// One run of calls; its sessions end with it.
pub struct ModelCalls<'a> {
    model: Model<'a>,
}

enum Model<'a> {
    Llm(Sessions<'a>),
    Encoder(&'a Encoder),
}

impl std::fmt::Debug for ModelCalls<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelCalls").finish_non_exhaustive()
    }
}

impl<'a> ModelCalls<'a> {
    pub(super) fn of_llm(llm: &'a Llm) -> Self {
        Self { model: Model::Llm(Sessions::new(llm)) }
    }

    pub(super) fn of_encoder(encoder: &'a Encoder) -> Self {
        Self { model: Model::Encoder(encoder) }
    }

    /// Answers `request`. `control` is asked before every step of computation, `on_life` called
    /// after it.
    ///
    /// # Errors
    /// [`ModelCallError`]; the model stays usable. After [`ModelCallError::Cancelled`] a session may
    /// have read part of its prompt.
    pub fn answer(
        &mut self,
        request: &ModelRequest,
        control: &dyn Control,
        on_life: &mut dyn FnMut(),
    ) -> Result<ModelReply, ModelCallError> {
        request.check()?;
        obey(control)?;
        match &mut self.model {
            Model::Llm(sessions) => of_llm(sessions, request, control, on_life),
            Model::Encoder(encoder) => of_encoder(encoder, request, control, on_life),
        }
    }
}

fn of_llm(
    sessions: &mut Sessions<'_>,
    request: &ModelRequest,
    control: &dyn Control,
    on_life: &mut dyn FnMut(),
) -> Result<ModelReply, ModelCallError> {
    match request {
        ModelRequest::OpenSession { temperature_milli, top_p_milli, seed } => {
            sessions.open(*temperature_milli, *top_p_milli, *seed)
        }
        ModelRequest::Prefill { session, prompt } => sessions.prefill(*session, prompt, control, on_life),
        ModelRequest::Step { session, tokens } => sessions.step(*session, *tokens, control, on_life),
        ModelRequest::CloseSession { session } => sessions.close(*session),
        ModelRequest::Compute { session: Some(session), inputs } => {
            sessions.compute(*session, inputs, control, on_life)
        }
        ModelRequest::Compute { session: None, .. } => {
            Err(ModelCallError::invalid("a language model computes within a session"))
        }
        ModelRequest::Embed { .. } => {
            Err(ModelCallError::not_supported("a language model gives no sentence vectors"))
        }
    }
}

fn of_encoder(
    encoder: &Encoder,
    request: &ModelRequest,
    control: &dyn Control,
    on_life: &mut dyn FnMut(),
) -> Result<ModelReply, ModelCallError> {
    match request {
        ModelRequest::Embed { texts } => encoder.embed(texts, control, on_life),
        ModelRequest::Compute { session: None, inputs } => encoder.compute(inputs, control, on_life),
        ModelRequest::Compute { session: Some(_), .. } | ModelRequest::CloseSession { .. } => {
            Err(ModelCallError::UnknownSession)
        }
        ModelRequest::OpenSession { .. } | ModelRequest::Prefill { .. } | ModelRequest::Step { .. } => {
            Err(ModelCallError::not_supported("an encoder holds no conversation"))
        }
    }
}

/// Obeys the controller: waits while paused.
///
/// # Errors
/// [`ModelCallError::Cancelled`].
pub(super) fn obey(control: &dyn Control) -> Result<(), ModelCallError> {
    loop {
        match control.directive() {
            Directive::Continue => return Ok(()),
            Directive::Cancel => return Err(ModelCallError::Cancelled),
            Directive::Pause => control.wait_while_paused(),
        }
    }
}

impl From<GenerateError> for ModelCallError {
    fn from(error: GenerateError) -> Self {
        let what = error.to_string();
        match error {
            GenerateError::PromptTooLong { .. } => Self::ContextFull,
            GenerateError::Template(_) => Self::invalid(&what),
            GenerateError::NotSupported { what } => Self::not_supported(&what),
            GenerateError::Engine { what } => Self::engine(&what),
            GenerateError::Tokenizer { .. } | GenerateError::NoToken { .. } => Self::engine(&what),
        }
    }
}
