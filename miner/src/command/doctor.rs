//! `potluckd doctor`: can this machine take strangers' work, and if not, what helps?
//!
//! Owns: the list of checks and how it is shown. Never: changes the machine, or calls a check passed
//! that it did not make. Ends within half a minute.

use std::path::Path;

use potluck_node::state::{StateDir, StateError};
use potluck_sandbox::cpu::check_cpu;
use potluck_sandbox::engine::DeviceChoice;
use potluck_sandbox::protection::{Check, EffectiveProtection};
use serde_json::json;

use super::print_line;
use crate::config::Config;
use crate::error::CommandError;
use crate::jailing::{Jailing, Programs, has_card};
use crate::model_file::ModelFile;

pub(super) fn run(state_dir: &Path, json: bool) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CommandError::System { doing: "start the runtime", source })?;
    let checks = runtime.block_on(all(state_dir));
    for check in &checks {
        print_line(&if json { as_json(check) } else { as_prose(check) });
    }
    let failed = checks.iter().filter(|check| !check.ok).count();
    if failed == 0 {
        return Ok(());
    }
    Err(CommandError::Unfit { failed, checks: checks.len() })
}

async fn all(state_dir: &Path) -> Vec<Check> {
    let mut checks = vec![processor(), state(state_dir), card()];
    let config = Config::load(state_dir);
    let device = config.as_ref().map_or(DeviceChoice::Auto, |config| config.device);
    match config {
        Ok(config) => {
            checks.push(passed("configuration", "every line is understood".into()));
            checks.extend(config.models.iter().map(|named| model(named)));
        }
        Err(error) => checks.push(failed("configuration", &error, Some("mend the line it names"))),
    }
    match Programs::find() {
        Ok(programs) => {
            match Jailing::Full.probe_models(&programs, device).await {
                Ok(protection) => checks.extend(named("models", &protection)),
                Err(error) => checks.push(failed("models: jail", &error, None)),
            }
            checks.extend(named("components", &Jailing::Full.probe_guests(&programs).await));
        }
        Err(error) => checks.push(failed("worker programs", &error, error.hint().as_deref())),
    }
    checks
}

fn passed(name: &str, detail: String) -> Check {
    Check { name: name.to_owned(), ok: true, detail, remedy: None }
}

fn failed(name: &str, error: &impl std::fmt::Display, remedy: Option<&str>) -> Check {
    Check { name: name.to_owned(), ok: false, detail: error.to_string(), remedy: remedy.map(str::to_owned) }
}

fn processor() -> Check {
    match check_cpu() {
        Ok(()) => passed("processor", "has what the engine's kernels need".into()),
        Err(error) => failed("processor", &error, None),
    }
}

/// A folder that another potluckd holds is a good one.
fn state(state_dir: &Path) -> Check {
    if !state_dir.exists() {
        return passed("state folder", format!("{} will be made", state_dir.display()));
    }
    match StateDir::open(state_dir) {
        Ok(_) => passed("state folder", state_dir.display().to_string()),
        Err(StateError::Locked { .. }) => {
            passed("state folder", format!("{} (a potluckd runs with it)", state_dir.display()))
        }
        Err(error) => failed("state folder", &error, Some("give another one with --state-dir")),
    }
}

fn card() -> Check {
    let found = if has_card() {
        "there is one; `potluckd self-test --gpu` tries it"
    } else {
        "none found: models run on the processor"
    };
    passed("NVIDIA card", found.into())
}

fn model(named: &str) -> Check {
    let name = format!("model {named}");
    match ModelFile::open(named) {
        Ok(model) => passed(&name, format!("{} MiB, hash known", model.bytes >> 20)),
        Err(error) => {
            let error = CommandError::from(error);
            failed(&name, &error, error.hint().as_deref())
        }
    }
}

fn named(of: &str, protection: &EffectiveProtection) -> Vec<Check> {
    let mut checks = protection.checks();
    for check in &mut checks {
        check.name = format!("{of}: {}", check.name);
    }
    checks
}

fn as_json(check: &Check) -> String {
    json!({"check": check.name, "ok": check.ok, "detail": check.detail, "remedy": check.remedy}).to_string()
}

fn as_prose(check: &Check) -> String {
    let mark = if check.ok { "✓" } else { "✗" };
    let line = format!("{mark} {:<26} {}", check.name, check.detail);
    match &check.remedy {
        Some(remedy) => format!("{line}\n    what helps: {remedy}"),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_says_what_helps() {
        let check = failed("models: landlock", &"not in force", Some("a kernel of 5.13 or newer"));
        let shown = as_prose(&check);
        assert!(shown.starts_with("✗ models: landlock"), "{shown}");
        assert!(shown.ends_with("what helps: a kernel of 5.13 or newer"), "{shown}");
        assert!(as_json(&check).contains("\"ok\":false"));
    }
}
