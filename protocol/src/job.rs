//! What is asked of a model: messages, sampling, and how it ended.
//!
//! Owns: the job's types, their bounds, and the job's digest. Never: renders a chat template or
//! counts tokens (the worker does). Called by the renter (compose), the provider (check) and the
//! worker (run).

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec::{self, WireError};
use crate::id::{ContentHash, Digest};
use crate::limits::{MAX_COMPLETION_TOKENS, MAX_JOB_BYTES, MAX_MESSAGES};
use crate::sign::{digest_of, framed};

const JOB_DOMAIN: &str = "potluck/v1/job";

/// Who speaks in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// The person who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates know.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation. Its Debug form shows lengths only: prompts stay out of logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl fmt::Debug for ChatMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChatMessage({}, {} bytes)", self.role.name(), self.content.len())
    }
}

/// How tokens are chosen. Integers, because it is hashed and must read the same everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampling {
    /// Stop after so many tokens, 1 to [`MAX_COMPLETION_TOKENS`].
    pub max_tokens: u32,
    /// Temperature in thousandths; 0 is greedy; at most 2,000.
    pub temperature_milli: u32,
    /// Nucleus mass in thousandths, 1 to 1,000.
    pub top_p_milli: u32,
    /// The renter's seed; with it the tokens are forced (see [`crate::sampler`]).
    pub seed: u64,
}

/// A job: declarative inference on one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Which model, by content.
    pub model: ContentHash,
    /// The conversation so far; the model answers.
    pub messages: Vec<ChatMessage>,
    /// How.
    pub sampling: Sampling,
}

/// Why a job cannot be asked for. Fault: renter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JobError {
    /// No message, or too many.
    #[error("a job has 1 to {MAX_MESSAGES} messages; this one has {count}")]
    Messages {
        /// How many it has.
        count: usize,
    },
    /// A parameter is out of range.
    #[error("{name} must be {range}; it is {value}")]
    Parameter {
        /// Which.
        name: &'static str,
        /// What is allowed.
        range: &'static str,
        /// What was given.
        value: u64,
    },
    /// The job is too long to send, or its bytes are not a job.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl JobSpec {
    /// Checks every bound of the job.
    ///
    /// # Errors
    /// The first bound broken.
    pub fn check(&self) -> Result<(), JobError> {
        let count = self.messages.len();
        if count == 0 || count > MAX_MESSAGES {
            return Err(JobError::Messages { count });
        }
        let sampling = &self.sampling;
        let parameter = |ok: bool, name, range, value: u32| {
            if ok { Ok(()) } else { Err(JobError::Parameter { name, range, value: u64::from(value) }) }
        };
        parameter(
            (1..=MAX_COMPLETION_TOKENS).contains(&sampling.max_tokens),
            "max_tokens",
            "1 to 131072",
            sampling.max_tokens,
        )?;
        parameter(
            sampling.temperature_milli <= 2_000,
            "temperature (in thousandths)",
            "0 to 2000",
            sampling.temperature_milli,
        )?;
        parameter(
            (1..=1_000).contains(&sampling.top_p_milli),
            "top_p (in thousandths)",
            "1 to 1000",
            sampling.top_p_milli,
        )
    }

    /// The canonical bytes, as they cross in parts.
    ///
    /// # Errors
    /// When the job breaks a bound or is longer than [`MAX_JOB_BYTES`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, JobError> {
        self.check()?;
        Ok(codec::encode_within(self, MAX_JOB_BYTES)?)
    }

    /// Reads and checks a job.
    ///
    /// # Errors
    /// When the bytes are not a job within its bounds.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, JobError> {
        let job: Self = codec::decode_within(bytes, MAX_JOB_BYTES)?;
        job.check()?;
        Ok(job)
    }
}

/// What a contract binds: blake3 of the preimage `potluck/v1/job` over the job's canonical bytes.
#[must_use]
pub fn job_digest(job_bytes: &[u8]) -> Digest {
    digest_of(&framed(JOB_DOMAIN, job_bytes))
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model said it was done.
    Stop,
    /// The token limit or the context ended it.
    Length,
    /// The renter, the budget or the provider ended it.
    Cancelled,
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> JobSpec {
        JobSpec {
            model: ContentHash::from_bytes([3; 32]),
            messages: vec![ChatMessage { role: Role::User, content: "hi".into() }],
            sampling: Sampling { max_tokens: 16, temperature_milli: 0, top_p_milli: 1_000, seed: 7 },
        }
    }

    #[test]
    fn bounds_are_checked_both_ways() {
        let good = sample().to_bytes().unwrap();
        assert_eq!(JobSpec::from_bytes(&good), Ok(sample()));
        let mut none = sample();
        none.messages.clear();
        let mut hot = sample();
        hot.sampling.temperature_milli = 2_001;
        let mut long = sample();
        long.messages[0].content = "x".repeat(MAX_JOB_BYTES);
        for bad in [none, hot, long] {
            assert!(bad.to_bytes().is_err());
        }
    }

    #[test]
    fn prompts_stay_out_of_debug_output() {
        let mut job = sample();
        job.messages[0].content = "a secret".into();
        assert!(!format!("{job:?}").contains("secret"));
    }
}
