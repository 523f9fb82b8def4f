//! What works for a renter while the meter runs: a model that answers, or a component.
//!
//! Owns: the trait [`Labour`] that the driver steers by, its events, and how a failure is laid at
//! somebody's door. Never: bills, or talks to the renter. Called by [`crate::driver`]; done by a
//! worker's run (below) and by [`crate::exec::ExecRun`].

use potluck_protocol::fault::RefusalCode;
use potluck_protocol::job::FinishReason;
use potluck_protocol::settle::{CloseReason, Phase};
use potluck_sandbox::engine::GenerateError;
use potluck_sandbox::supervisor::{Run, RunError, RunEvent};

/// Work that can be followed, held up and ended.
pub(crate) trait Labour {
    /// The next event; `None` after the last. Cancel-safe.
    ///
    /// # Errors
    /// [`Setback`]; nothing follows then.
    async fn next(&mut self) -> Result<Option<LabourEvent>, Setback>;

    /// Holds the work up until [`Self::resume`].
    ///
    /// # Errors
    /// When it cannot be told.
    fn pause(&mut self) -> Result<(), Setback>;

    /// Lets it go on.
    ///
    /// # Errors
    /// When it cannot be told.
    fn resume(&mut self) -> Result<(), Setback>;

    /// Ends it; [`Self::next`] soon says so.
    ///
    /// # Errors
    /// When it cannot be told.
    fn cancel(&mut self) -> Result<(), Setback>;
}

/// What happens while work goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LabourEvent {
    /// From here on the time is this phase's.
    Enters(Phase),
    /// A model read the prompt.
    Started {
        /// Its length in tokens.
        prompt_tokens: u32,
    },
    /// A model wrote more.
    Output {
        /// The new tokens.
        tokens: Vec<u32>,
        /// The text that they complete.
        text: String,
    },
    /// A component says how far it is.
    Progress {
        /// In thousandths.
        permille: u32,
        /// Doing what.
        note: String,
    },
    /// More of a component's log.
    Log(Vec<u8>),
    /// The next part of a component's output.
    Part(Vec<u8>),
    /// It is done.
    Finished(FinishReason),
    /// The component gave no result by its own fault: its time is owed.
    GuestFailed {
        /// In its own or the runtime's words.
        why: String,
    },
}

/// How work failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setback {
    /// As the books say it.
    pub(crate) reason: CloseReason,
    /// As the renter is told.
    pub(crate) code: RefusalCode,
    /// In words.
    pub(crate) why: String,
    /// Is the worker fit for the next job?
    pub(crate) sound: bool,
}

impl Setback {
    /// The provider's own fault.
    #[must_use]
    pub(crate) fn ours(why: impl Into<String>) -> Self {
        let (reason, code) = (CloseReason::ProviderFailed, RefusalCode::WorkerFailed);
        Self { reason, code, why: why.into(), sound: false }
    }
}

impl From<RunError> for Setback {
    fn from(error: RunError) -> Self {
        let (reason, code) = match &error {
            RunError::Job(GenerateError::PromptTooLong { .. }) => {
                (CloseReason::RenterFailed, RefusalCode::PromptTooLong)
            }
            RunError::Job(GenerateError::NotSupported { .. }) => {
                (CloseReason::RenterFailed, RefusalCode::NotSupported)
            }
            RunError::InvalidJob(_) => (CloseReason::RenterFailed, RefusalCode::Malformed),
            _ => (CloseReason::ProviderFailed, RefusalCode::WorkerFailed),
        };
        let sound = matches!(error, RunError::Job(_) | RunError::InvalidJob(_));
        Self { reason, code, why: error.to_string(), sound }
    }
}

impl Labour for Run<'_> {
    async fn next(&mut self) -> Result<Option<LabourEvent>, Setback> {
        let event = Run::next(self).await?;
        Ok(event.map(|event| match event {
            RunEvent::Started { prompt_tokens } => LabourEvent::Started { prompt_tokens },
            RunEvent::Output { tokens, text } => LabourEvent::Output { tokens, text },
            RunEvent::Finished { reason, .. } => LabourEvent::Finished(reason),
        }))
    }

    fn pause(&mut self) -> Result<(), Setback> {
        Ok(Run::pause(self)?)
    }

    fn resume(&mut self) -> Result<(), Setback> {
        Ok(Run::resume(self)?)
    }

    fn cancel(&mut self) -> Result<(), Setback> {
        Ok(Run::cancel(self)?)
    }
}
