//! `potluck ledger …`: what we owe, for what, and how to prove it.
//!
//! Owns: where the ledger is, and printing the answer. Never: answers or words a question itself
//! (`potluck_node::books` does, for both programs). Called by [`crate::cli`].

use std::path::{Path, PathBuf};

use potluck_node::books;
use potluck_node::books::args::Verb;
use potluck_node::books::print::print;
use potluck_node::state::default_dir;

use crate::error::Failure;
use crate::output::{eprintln_prose, print_data};

/// The state folder: the flag's, or the default one.
#[must_use]
pub fn state_dir(flag: Option<&Path>) -> PathBuf {
    flag.map_or_else(|| default_dir("potluck"), Path::to_path_buf)
}

/// Runs the command.
///
/// # Errors
/// When the state folder or the ledger cannot be opened, the question has no answer, or stdout is closed.
pub fn run(dir: Option<&Path>, verb: Verb) -> Result<(), Failure> {
    let form = verb.form();
    let answer = books::work_here::<Failure>(&state_dir(dir), form, verb.work())?;
    let printed = print(&answer, form);
    let written = printed.data.iter().try_for_each(|line| print_data(line));
    written.map_err(|source| Failure::Io {
        action: "write",
        path: PathBuf::from("standard output"),
        source,
    })?;
    printed.prose.iter().for_each(|line| eprintln_prose(line));
    Ok(answer.verdict()?)
}
