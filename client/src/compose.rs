//! From what a person typed to a job: prompt, system text, sampling.
//!
//! Owns: reading the prompt within its bound, and the integer forms of the sampling flags. Never:
//! talks to the network. Called by `potluck run`.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;

use potluck_protocol::id::ContentHash;
use potluck_protocol::job::{ChatMessage, JobSpec, Role, Sampling};
use potluck_protocol::limits::MAX_JOB_BYTES;

use crate::error::Failure;

/// The prompt: the argument, or standard input for `-` and for no argument.
///
/// # Errors
/// When there is none, it is empty, longer than a job may be, or not UTF-8.
pub fn prompt(argument: Option<&str>) -> Result<String, Failure> {
    let text = match argument {
        Some(text) if text != "-" => text.to_owned(),
        None if std::io::stdin().is_terminal() => {
            return Err(usage("there is no prompt", "write it after the model, or pipe it in"));
        }
        _ => read_stdin()?,
    };
    if text.trim().is_empty() {
        return Err(usage("the prompt is empty", "write it after the model, or pipe it in"));
    }
    Ok(text)
}

fn read_stdin() -> Result<String, Failure> {
    let limit = u64::try_from(MAX_JOB_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    std::io::stdin().take(limit + 1).read_to_end(&mut bytes).map_err(|source| Failure::Io {
        action: "read",
        path: PathBuf::from("standard input"),
        source,
    })?;
    if bytes.len() > MAX_JOB_BYTES {
        return Err(usage("the prompt is longer than 1 MiB", "shorten it"));
    }
    String::from_utf8(bytes).map_err(|_| usage("the prompt is not UTF-8 text", "convert it first"))
}

fn usage(message: &str, hint: &str) -> Failure {
    Failure::Usage { message: message.into(), hint: hint.into() }
}

/// A decimal flag like `0.8` in thousandths.
///
/// # Errors
/// When it is not a plain decimal with at most three decimals.
pub fn thousandths(text: &str) -> Result<u32, String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let empty = whole.is_empty() && fraction.is_empty();
    if empty || !digits(whole) || !digits(fraction) || fraction.len() > 3 || whole.len() > 4 {
        return Err("expected a number with at most three decimals, like 0.8".into());
    }
    format!("{whole}{fraction:0<3}").parse().map_err(|_| "too large".into())
}

/// The seed as given, or one drawn at random.
///
/// # Errors
/// When the system gives no randomness.
pub fn seed(given: Option<u64>) -> Result<u64, Failure> {
    given.map_or_else(
        || getrandom::u64().map_err(|why| Failure::Internal { what: format!("no randomness: {why}") }),
        Ok,
    )
}

/// The job for one prompt.
#[must_use]
pub fn job(model: ContentHash, system: Option<String>, prompt: String, sampling: Sampling) -> JobSpec {
    let system = system.map(|content| ChatMessage { role: Role::System, content });
    let user = ChatMessage { role: Role::User, content: prompt };
    JobSpec { model, messages: system.into_iter().chain([user]).collect(), sampling }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_become_thousandths() {
        assert_eq!(thousandths("0.8"), Ok(800));
        assert_eq!(thousandths("1"), Ok(1_000));
        assert_eq!(thousandths(".05"), Ok(50));
        for bad in ["", ".", "-1", "1e3", "0.0001", "inf", "NaN", "99999"] {
            assert!(thousandths(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_system_text_comes_first() {
        let sampling = Sampling { max_tokens: 1, temperature_milli: 0, top_p_milli: 1_000, seed: 0 };
        let job = job(ContentHash::of(b"m"), Some("be brief".into()), "hi".into(), sampling);
        let roles: Vec<_> = job.messages.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User]);
    }
}
