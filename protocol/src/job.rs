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
use crate::limits::{
    MAX_COMPLETION_TOKENS, MAX_COMPONENT_BYTES, MAX_GUEST_INPUT_BYTES, MAX_GUEST_MEMORY_MIB,
    MAX_GUEST_MODELS, MAX_JOB_BYTES, MAX_MESSAGES, MAX_NAME_BYTES,
};
use crate::offer::GuestNeeds;
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

/// A model under the name that the component calls it by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedModel {
    /// Letters, digits, `-`, `_` and `.`; at most [`MAX_NAME_BYTES`].
    pub name: String,
    /// Which.
    pub model: ContentHash,
}

/// One run of a component: what `potluck exec` sends. Its bytes and its input follow the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The blake3 of the component.
    pub component: ContentHash,
    /// Its length in bytes.
    pub component_bytes: u64,
    /// The blake3 of the input.
    pub input: ContentHash,
    /// Its length in bytes.
    pub input_bytes: u32,
    /// The models it may call.
    pub models: Vec<NamedModel>,
    /// Memory it may have, in MiB.
    pub memory_mib: u32,
    /// What its randomness is made from: equal jobs run equally.
    pub seed: u64,
}

/// What a renter asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Job {
    /// An answer of a model.
    Generate(JobSpec),
    /// A run of a component.
    Exec(ExecSpec),
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
    /// A component's own figures are out of range.
    #[error("{what}")]
    Exec {
        /// Which, and what is allowed.
        what: &'static str,
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
}

impl ExecSpec {
    /// Checks every bound of the job.
    ///
    /// # Errors
    /// The first bound broken.
    pub fn check(&self) -> Result<(), JobError> {
        let exec = |ok: bool, what| if ok { Ok(()) } else { Err(JobError::Exec { what }) };
        exec((1..=MAX_COMPONENT_BYTES).contains(&self.component_bytes), "a component has 1 byte to 64 MiB")?;
        exec(self.input_bytes <= MAX_GUEST_INPUT_BYTES, "an input has at most 8 MiB")?;
        exec(
            (1..=MAX_GUEST_MEMORY_MIB).contains(&self.memory_mib),
            "a component has 1 to 4096 MiB of memory",
        )?;
        exec(self.models.len() <= MAX_GUEST_MODELS, "a component calls at most 4 models")?;
        let named = |name: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(allowed)
        };
        exec(
            self.models.iter().all(|model| named(&model.name)),
            "a model's name has 1 to 64 letters, digits, '-', '_' or '.'",
        )?;
        let twice = (1..self.models.len())
            .any(|at| self.models[..at].iter().any(|before| before.name == self.models[at].name));
        exec(!twice, "two models have one name")
    }

    /// What the machine must have for it.
    #[must_use]
    pub fn needs(&self) -> GuestNeeds {
        GuestNeeds {
            models: self.models.iter().map(|model| model.model).collect(),
            memory_mib: self.memory_mib,
        }
    }
}

impl Job {
    /// Checks every bound of the job.
    ///
    /// # Errors
    /// The first bound broken.
    pub fn check(&self) -> Result<(), JobError> {
        match self {
            Self::Generate(spec) => spec.check(),
            Self::Exec(spec) => spec.check(),
        }
    }

    /// What runs: the model or the component.
    #[must_use]
    pub fn runs(&self) -> ContentHash {
        match self {
            Self::Generate(spec) => spec.model,
            Self::Exec(spec) => spec.component,
        }
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
    /// The component gave an error.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> JobSpec {
        JobSpec {
            model: ContentHash::from_bytes([3; 32]),
            messages: vec![ChatMessage { role: Role::User, content: "hi".into() }],
            sampling: Sampling { max_tokens: 16, temperature_milli: 0, top_p_milli: 1_000, seed: 7 },
        }
    }

    fn exec() -> ExecSpec {
        let named = |name: &str| NamedModel { name: name.into(), model: ContentHash::from_bytes([4; 32]) };
        ExecSpec {
            component: ContentHash::from_bytes([5; 32]),
            component_bytes: 1_000,
            input: ContentHash::from_bytes([6; 32]),
            input_bytes: 0,
            models: vec![named("chat"), named("embed")],
            memory_mib: 256,
            seed: 7,
        }
    }

    #[test]
    fn a_components_figures_are_bounded() {
        let good = Job::Exec(exec());
        assert_eq!(Job::from_bytes(&good.to_bytes().unwrap()), Ok(good));
        let spoil = |with: fn(&mut ExecSpec)| {
            let mut spec = exec();
            with(&mut spec);
            assert!(spec.check().is_err(), "{spec:?}");
        };
        spoil(|spec| spec.component_bytes = 0);
        spoil(|spec| spec.component_bytes = MAX_COMPONENT_BYTES + 1);
        spoil(|spec| spec.input_bytes = MAX_GUEST_INPUT_BYTES + 1);
        spoil(|spec| spec.memory_mib = 0);
        spoil(|spec| spec.models[1].name = "chat".into());
        spoil(|spec| spec.models[1].name = "a b".into());
        spoil(|spec| spec.models[0].name.clear());
        spoil(|spec| spec.models = vec![spec.models[0].clone(); MAX_GUEST_MODELS + 1]);
    }

    #[test]
    fn bounds_are_checked_both_ways() {
        let good = Job::Generate(spec());
        assert_eq!(Job::from_bytes(&good.to_bytes().unwrap()), Ok(good));
        let mut none = spec();
        none.messages.clear();
        let mut hot = spec();
        hot.sampling.temperature_milli = 2_001;
        let mut long = spec();
        long.messages[0].content = "x".repeat(MAX_JOB_BYTES);
        for bad in [none, hot, long] {
            assert!(Job::Generate(bad).to_bytes().is_err());
        }
    }

    #[test]
    fn prompts_stay_out_of_debug_output() {
        let mut job = spec();
        job.messages[0].content = "a secret".into();
        assert!(!format!("{job:?}").contains("secret"));
    }
}
