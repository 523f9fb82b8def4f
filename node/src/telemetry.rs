//! What a program says about itself while it runs.
//!
//! Owns: the log on stderr and the variable that sets how much of it there is. Never: writes to
//! stdout, which is for data, or logs a payload or a key. Called once at start by every program.
//!
//! Quiet by default: warnings and errors of Potluck's own crates. `POTLUCK_LOG=info`,
//! `POTLUCK_LOG=potluck_node=debug,libp2p_kad=debug` and so on show more, one line per event.

use std::io::{self, IsTerminal as _};

use thiserror::Error;
use tracing_subscriber::EnvFilter;

/// The environment variable with the filter.
pub const LOG_VARIABLE: &str = "POTLUCK_LOG";

/// Libraries warn of what is everyday business in a network of strangers.
const QUIET: &str = "error,potluck=warn,potluckd=warn,potluck_bootstrap=warn,potluck_node=warn,\
                     potluck_miner=warn,potluck_client=warn,potluck_sandbox=warn,\
                     potluck_protocol=warn";

/// Why there is no log.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The variable is not a filter. Fault: whoever set it.
    #[error("{LOG_VARIABLE}={filter} is not a log filter: {problem}")]
    BadFilter {
        /// What it is set to.
        filter: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The process has a log already. Fault: ours.
    #[error("the log was started twice")]
    Twice,
}

/// Starts the log.
///
/// # Errors
/// When [`LOG_VARIABLE`] is not a filter, or the log was started before.
pub fn start() -> Result<(), TelemetryError> {
    let filter = match std::env::var(LOG_VARIABLE) {
        Ok(filter) if !filter.is_empty() => filter,
        _ => QUIET.to_owned(),
    };
    let parsed = EnvFilter::try_new(&filter)
        .map_err(|error| TelemetryError::BadFilter { filter, problem: error.to_string() })?;
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .compact()
        .try_init()
        .map_err(|_| TelemetryError::Twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quiet_filter_is_one() {
        let filter = EnvFilter::try_new(QUIET).expect("a filter");
        assert_eq!(filter.max_level_hint(), Some(tracing::level_filters::LevelFilter::WARN));
    }
}
