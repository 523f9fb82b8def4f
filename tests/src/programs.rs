//! Where the programs and the model are.
//!
//! Owns: the paths of what `make build` and `make model` made. Never: builds or downloads. Called by
//! the kit, the demo and the benchmarks.

use std::path::PathBuf;

use potluck_node::catalogue::{self, CatalogueModel};

use crate::error::{KitError, io_error};

/// The model of the demo and the stories.
pub const MODEL: &str = "smollm2-135m";

/// The path of a program of this workspace, from the same build as the running one.
///
/// # Errors
/// When it was not built.
pub fn program(name: &str) -> Result<PathBuf, KitError> {
    let mut folder = std::env::current_exe().map_err(io_error("find the running program"))?;
    folder.pop();
    // Tests and benchmarks lie one folder deeper than programs.
    if folder.file_name().is_some_and(|name| name == "deps") {
        folder.pop();
    }
    let path = folder.join(name);
    if path.is_file() { Ok(path) } else { Err(KitError::NotBuilt { path }) }
}

/// The catalogue's entry of [`MODEL`].
///
/// # Errors
/// When the catalogue lost it.
pub fn model() -> Result<&'static CatalogueModel, KitError> {
    catalogue::find(MODEL).ok_or_else(|| KitError::NoModel { path: PathBuf::from(MODEL) })
}

/// The folder of all builds: where cargo puts its outputs, one profile in each folder below it.
///
/// # Errors
/// When the running program lies nowhere.
pub fn build_folder() -> Result<PathBuf, KitError> {
    let mut folder = std::env::current_exe().map_err(io_error("find the running program"))?;
    folder.pop();
    if folder.file_name().is_some_and(|name| name == "deps") {
        folder.pop();
    }
    folder.pop();
    Ok(folder)
}

/// The model's file.
///
/// # Errors
/// When it was not fetched.
pub fn model_file() -> Result<PathBuf, KitError> {
    let path = model()?.cached_path();
    if path.is_file() { Ok(path) } else { Err(KitError::NoModel { path }) }
}
