//! `potluckd init`: an identity and a configuration file that explains itself.
//!
//! Owns: what a fresh state folder holds. Never: overwrites a key or a ledger.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use potluck_node::identity::Identity;
use potluck_node::state::StateDir;

use super::print_line;
use crate::config::{CONFIG_FILE, template};
use crate::error::CommandError;

pub(super) fn run(dir: &Path, force: bool) -> Result<(), CommandError> {
    let state = StateDir::open(dir)?;
    let path = state.path().join(CONFIG_FILE);
    let identity = Identity::load_or_create(&state.key_path())?;
    let failed = |source| CommandError::System { doing: "write potluckd.toml", source };
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = match options.open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(CommandError::ConfigExists { path });
        }
        Err(error) => return Err(failed(error)),
    };
    file.write_all(template().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    print_line(&format!("peer    {}", identity.peer()));
    print_line(&format!("config  {}", path.display()));
    eprintln!("next: potluckd models pull smollm2-135m, then potluckd run");
    Ok(())
}
