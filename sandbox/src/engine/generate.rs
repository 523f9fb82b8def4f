//! One answer: prompt in, tokens out, obedient to its controller at every step.
//!
//! Owns: the loop of prefill, choice, output and stop. Never: keeps anything of a job after it (the
//! weights are shared, the attention cache is the job's own and dies with it). Called by
//! [`super::Engine::generate`].

use std::time::{Duration, Instant};

use potluck_protocol::job::{FinishReason, JobSpec, Sampling};
use potluck_protocol::limits::{MAX_OUTPUT_BYTES, MAX_OUTPUT_TOKENS};
use potluck_protocol::sampler::SeededSampler;

use super::EngineEvent;
use super::error::GenerateError;
use super::llm::{Llm, Memory};
use super::tokens::TextStream;

/// Prompt tokens computed at once: large enough for the matrix kernels to pay, small enough that a
/// cancel or a pause takes effect within a fraction of a second on two slow cores.
pub(crate) const PREFILL_CHUNK: usize = 32;
/// The longest that a finished token waits for company before it is handed out.
const FLUSH_AFTER: Duration = Duration::from_millis(20);
/// Leaves room in one event for the longest single token.
const FLUSH_BYTES: usize = MAX_OUTPUT_BYTES - 4 * 1_024;

/// What the controller wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directive {
    /// Go on.
    Continue,
    /// Stop computing, and call [`Control::wait_while_paused`].
    Pause,
    /// End the job; what was output stays.
    Cancel,
}

/// Whoever may pause or cancel a running job. Asked before every step of computation.
pub trait Control {
    /// What to do next; returns at once.
    fn directive(&self) -> Directive;

    /// Blocks until the job is resumed or cancelled. Called only after [`Directive::Pause`].
    fn wait_while_paused(&self);
}

/// A controller that never interferes.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunToEnd;

impl Control for RunToEnd {
    fn directive(&self) -> Directive {
        Directive::Continue
    }

    fn wait_while_paused(&self) {}
}

/// How a job went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// How it ended.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer, the end token not counted.
    pub completion_tokens: u32,
    /// Time until the prompt was computed, pauses included.
    pub prefill: Duration,
    /// Time from there to the end, pauses included.
    pub decode: Duration,
}

/// Tokens on their way out.
struct Output<'a> {
    on_event: &'a mut dyn FnMut(EngineEvent<'_>),
    stream: TextStream,
    tokens: Vec<u32>,
    text: String,
    last: Option<Instant>,
    count: u32,
}

impl Output<'_> {
    fn push(&mut self, id: u32, piece: &[u8]) {
        self.tokens.push(id);
        self.count = self.count.saturating_add(1);
        self.stream.push(piece, &mut self.text);
        let due = self.last.is_none_or(|last| last.elapsed() >= FLUSH_AFTER);
        if due || self.tokens.len() >= MAX_OUTPUT_TOKENS || self.text.len() >= FLUSH_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.tokens.is_empty() {
            (self.on_event)(EngineEvent::Output { tokens: &self.tokens, text: &self.text });
            self.tokens.clear();
            self.text.clear();
            self.last = Some(Instant::now());
        }
    }

    /// Obeys the controller; false when the job is cancelled.
    fn may_go_on(&mut self, control: &dyn Control) -> bool {
        loop {
            match control.directive() {
                Directive::Continue => return true,
                Directive::Cancel => return false,
                Directive::Pause => {
                    // What is ready is not held back by a pause.
                    self.flush();
                    control.wait_while_paused();
                }
            }
        }
    }
}

/// Runs `job` on `llm` (see [`Engine::generate`]).
pub(super) fn run(
    llm: &Llm,
    job: &JobSpec,
    control: &dyn Control,
    on_event: &mut dyn FnMut(EngineEvent<'_>),
) -> Result<Summary, GenerateError> {
    let begun = Instant::now();
    let prompt = llm.vocabulary.encode(&llm.template.render(&job.messages)?)?;
    let context = llm.context;
    let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
    if prompt_tokens >= context {
        return Err(GenerateError::PromptTooLong { prompt_tokens, context });
    }
    if prompt.is_empty() {
        return Err(GenerateError::Tokenizer { what: "the prompt is empty".to_owned() });
    }
    on_event(EngineEvent::Started { prompt_tokens });
    let mut output = Output {
        on_event,
        stream: TextStream::default(),
        tokens: Vec::new(),
        text: String::new(),
        last: None,
        count: 0,
    };
    let mut memory = llm.memory();
    let prefilled = prefill(&mut memory, &prompt, control, &mut output)?;
    let prefill = begun.elapsed();
    let room = job.sampling.max_tokens.min(context - prompt_tokens);
    let reason = match prefilled {
        None => FinishReason::Cancelled,
        Some(logits) => decode(llm, &mut memory, logits, &job.sampling, room, control, &mut output)?,
    };
    output.flush();
    Ok(Summary {
        reason,
        prompt_tokens,
        completion_tokens: output.count,
        prefill,
        decode: begun.elapsed().saturating_sub(prefill),
    })
}

/// Computes the prompt; the logits after it, or `None` when cancelled.
fn prefill(
    memory: &mut Memory<'_>,
    prompt: &[u32],
    control: &dyn Control,
    output: &mut Output<'_>,
) -> Result<Option<Vec<f32>>, GenerateError> {
    let mut logits = Vec::new();
    for chunk in prompt.chunks(PREFILL_CHUNK) {
        if !output.may_go_on(control) {
            return Ok(None);
        }
        logits = memory.feed(chunk)?;
        (output.on_event)(EngineEvent::Prefilled { done_tokens: memory.tokens() });
    }
    Ok(Some(logits))
}

/// Chooses up to `room` tokens, the first from `logits`.
fn decode(
    llm: &Llm,
    memory: &mut Memory<'_>,
    mut logits: Vec<f32>,
    sampling: &Sampling,
    room: u32,
    control: &dyn Control,
    output: &mut Output<'_>,
) -> Result<FinishReason, GenerateError> {
    let mut sampler = SeededSampler::new(sampling);
    while output.count < room {
        if !output.may_go_on(control) {
            return Ok(FinishReason::Cancelled);
        }
        let position = memory.tokens();
        let id =
            sampler.pick(&logits, u64::from(position)).map_err(|_| GenerateError::NoToken { position })?;
        if llm.vocabulary.is_end(id) {
            return Ok(FinishReason::Stop);
        }
        let Some(piece) = llm.vocabulary.piece(id) else {
            return Err(GenerateError::Engine { what: format!("it chose token {id}, which is none") });
        };
        output.push(id, piece);
        if output.count < room {
            logits = memory.feed(&[id])?;
        }
    }
    Ok(FinishReason::Length)
}
