//! my-job: counts a text and, when it is given a model, asks it for one sentence about the text.
//!
//! Owns: one call of `run`. Never: panics on an input (a panic is a trap, and its message is in the
//! job's log). Called by the host through the world in `wit/job.wit`.

use potluck::job::errors::Error;
use potluck::job::llm::{Message, Role, Sampling, Session};
use potluck::job::report;
use serde_json::json;

wit_bindgen::generate!({ world: "job", path: "wit" });

/// The name that the job gives its model: `potluck exec ... --model chat=smollm2-135m`.
const MODEL: &str = "chat";
/// How much of the text the model reads, in characters: a small model's context is short.
const MAX_READ: usize = 2_000;
/// The longest summary, in tokens.
const MAX_TOKENS: u32 = 64;

struct Job;

impl Guest for Job {
    fn run(input: Vec<u8>) -> Result<Vec<u8>, String> {
        let text = std::str::from_utf8(&input).map_err(|_| "the input is not UTF-8 text")?;
        report::progress(100, "counting");
        let lines = input.split_inclusive(|byte| *byte == b'\n').count();
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
        let words = input.split(is_space).filter(|word| !word.is_empty()).count();
        let output =
            json!({ "lines": lines, "words": words, "bytes": input.len(), "summary": summary(text)? });
        Ok(output.to_string().into_bytes())
    }
}

/// One sentence about `text`; `None` when the job has no model.
fn summary(text: &str) -> Result<Option<String>, String> {
    let sampling = Sampling { temperature_milli: 0, top_p_milli: 1_000, seed: 0 };
    let session = match Session::open(MODEL, sampling) {
        Ok(session) => session,
        Err(Error::UnknownModel(_)) => {
            report::log(&format!("no model is named {MODEL}: counted only"));
            return Ok(None);
        }
        Err(why) => return Err(failed(&why)),
    };
    let read: String = text.chars().take(MAX_READ).collect();
    let content = format!("Say in one short sentence what this text is about:\n\n{read}");
    session.prefill_chat(&[Message { role: Role::User, content }]).map_err(|why| failed(&why))?;
    answer(&session).map(Some)
}

/// What the model says, at most [`MAX_TOKENS`] long.
fn answer(session: &Session) -> Result<String, String> {
    let (mut text, mut tokens) = (String::new(), 0);
    while tokens < MAX_TOKENS {
        let chunk = session.step((MAX_TOKENS - tokens).min(16)).map_err(|why| failed(&why))?;
        text.push_str(&chunk.text);
        tokens += u32::try_from(chunk.tokens.len()).unwrap_or(u32::MAX);
        report::progress(100 + 900 * tokens / MAX_TOKENS, "asking the model");
        if chunk.finish.is_some() {
            break;
        }
    }
    Ok(text.trim().to_owned())
}

/// The model's error as the job's own.
fn failed(why: &Error) -> String {
    let (kind, what) = match why {
        Error::UnknownModel(what) => ("UnknownModel", what),
        Error::InvalidInput(what) => ("InvalidInput", what),
        Error::LimitReached(what) => ("LimitReached", what),
        Error::NotSupported(what) => ("NotSupported", what),
        Error::Engine(what) => ("Engine", what),
    };
    format!("the model failed ({kind}): {what}")
}

export!(Job);
