//! `potluck ledger …`: what we owe, for what, and how to prove it.
//!
//! Owns: opening the ledger for a question. Never: answers or words one itself (`potluck_node::books`
//! does, for both programs). Called by [`crate::cli`].

use std::path::{Path, PathBuf};

use potluck_node::books::args::{Form, Verb, Work};
use potluck_node::books::print::print;
use potluck_node::books::{self, Answer, Books, BooksError};
use potluck_node::identity::Identity;
use potluck_node::ledger::Ledger;
use potluck_node::state::{StateDir, default_dir};
use potluck_protocol::sign::SigningKey;

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
    let answer = match verb.work() {
        Work::Verify(file) => Answer::Verify(books::verify(&file)?),
        Work::VerifyProof(file) => Answer::VerifyProof(books::verify_proof(&file)?),
        Work::Import(file) => {
            let import =
                |ledger: &Ledger, key: &SigningKey| books::import(ledger, key, &file).map(Answer::Import);
            with_ledger(dir, form, import)?
        }
        Work::Ask(ask) => with_ledger(dir, form, |ledger, key| Books { ledger, key }.answer(&ask))?,
    };
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

fn with_ledger(
    dir: Option<&Path>,
    form: Form,
    work: impl FnOnce(&Ledger, &SigningKey) -> Result<Answer, BooksError>,
) -> Result<Answer, Failure> {
    let state = StateDir::open(&state_dir(dir))?;
    let identity = Identity::load_or_create(&state.key_path())?;
    let (ledger, _) = books::open(&state.ledger_dir(), identity.peer(), form == Form::Table)?;
    Ok(work(&ledger, identity.signing_key())?)
}
