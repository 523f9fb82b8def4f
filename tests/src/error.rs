//! What can go wrong while a story is set up.
//!
//! Owns: [`KitError`]. Never: holds what a story found wrong (that is an assertion). Called by every
//! file of the kit.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Why the kit could not do its part. Fault: the build, or the program that is named.
#[derive(Debug, Error)]
pub enum KitError {
    /// A program was not built.
    #[error("{} is missing; build the workspace first: make build", path.display())]
    NotBuilt {
        /// Where it should be.
        path: PathBuf,
    },
    /// The model was not fetched.
    #[error("the model is not at {}; fetch it first: make model", path.display())]
    NoModel {
        /// Where it should be.
        path: PathBuf,
    },
    /// What builds a component cannot be had here, though it is required.
    #[error("the tools for the component `{what}` cannot be had: {why}")]
    NoTools {
        /// Which component.
        what: String,
        /// What was tried, and what it said.
        why: String,
    },
    /// A file or process could not be made.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A program said nothing for too long.
    #[error("{program} did not {what} within {within:?}; its stderr:\n{log}")]
    TooSlow {
        /// Which.
        program: String,
        /// What was waited for.
        what: String,
        /// How long.
        within: Duration,
        /// What it wrote to stderr.
        log: String,
    },
    /// A program ended before it said what was waited for.
    #[error("{program} ended before it could {what}; its stderr:\n{log}")]
    Ended {
        /// Which.
        program: String,
        /// What was waited for.
        what: String,
        /// What it wrote to stderr.
        log: String,
    },
    /// A program's output is not what its contract says.
    #[error("{program} printed `{line}`: {why}")]
    Unreadable {
        /// Which.
        program: String,
        /// The line.
        line: String,
        /// What is wrong with it.
        why: String,
    },
}

/// For `map_err`: an I/O error while doing `action`.
pub(crate) fn io_error(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> KitError {
    move |source| KitError::Io { action: action.into(), source }
}
