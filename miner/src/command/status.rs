//! `potluckd status`: how the running provider is doing.
//!
//! Owns: the choice of JSON or prose. Never: reads the state folder itself.

use std::path::Path;

use super::print_line;
use crate::control::{Question, ask};
use crate::error::CommandError;
use crate::status::prose;

pub(super) fn run(state_dir: &Path, json: bool) -> Result<(), CommandError> {
    let Some(status) = ask(state_dir, Question::Status)? else {
        return Err(CommandError::NotRunning { state_dir: state_dir.to_owned() });
    };
    print_line(&if json { status.to_string() } else { prose(&status) });
    Ok(())
}
