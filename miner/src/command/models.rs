//! `potluckd models`: fetch and list.
//!
//! Owns: the output of both. Never: touches the state folder.

use potluck_node::catalogue::MODELS;
use serde_json::json;

use super::print_line;
use crate::cli::ModelsVerb;
use crate::error::CommandError;
use crate::models::pull;

pub(super) fn run(verb: ModelsVerb) -> Result<(), CommandError> {
    match verb {
        ModelsVerb::Pull { name, json } => {
            let pulled = pull(&name)?;
            let words = if pulled.cached { "here already" } else { "fetched" };
            print_line(&if json {
                json!({"model": name, "path": pulled.path, "cached": pulled.cached}).to_string()
            } else {
                format!("{name}  {words}, sha256 ok\n  {}", pulled.path.display())
            });
        }
        ModelsVerb::List { json } => list(json),
    }
    Ok(())
}

fn list(json: bool) {
    for model in MODELS {
        let here = model.cached_path().exists();
        print_line(&if json {
            json!({
                "model": model.name,
                "title": model.title,
                "bytes": model.bytes,
                "hash": model.blake3,
                "sha256": model.sha256,
                "here": here,
            })
            .to_string()
        } else {
            let here = if here { "here" } else { "not here" };
            format!("{}  {}  {} MB  {here}", model.name, model.title, model.bytes / 1_000_000)
        });
    }
}
