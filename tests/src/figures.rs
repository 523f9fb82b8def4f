//! Figures: what a benchmark measures, as a table and in `bench.json`.
//!
//! Owns: the form of a figure, the table, and the one file that all benchmarks of a target folder share.
//! Never: measures, or compares figures of different runs or machines. Called by the benchmarks.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::error::{KitError, io_error};

/// All areas that some benchmark measures.
pub const AREAS: [&str; 5] = ["market", "renter", "owner", "settlement", "store"];

/// Which of `mine` are asked for: all, or the one that the command line names, which must be some
/// benchmark's.
///
/// # Errors
/// The areas there are, when it names none of them.
pub fn wanted(mine: &[&'static str]) -> Result<Vec<&'static str>, String> {
    // Cargo itself passes `--bench`.
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    match only {
        Some(only) if !AREAS.contains(&only.as_str()) => {
            Err(format!("no area is called `{only}`: {}", AREAS.join(", ")))
        }
        Some(only) => Ok(mine.iter().copied().filter(|area| *area == only).collect()),
        None => Ok(mine.to_vec()),
    }
}

/// One figure, in the form of `bench.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Which part of Potluck it is about; a run replaces the figures of its areas.
    pub area: &'static str,
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// In what.
    pub unit: &'static str,
    /// What it is compared with.
    pub peer: Option<&'static str>,
    /// How much that was, in the same run.
    pub peer_value: Option<f64>,
    /// `value / peer_value`.
    pub ratio: Option<f64>,
    /// In words, for the table.
    pub target: Option<&'static str>,
    /// Is the target met?
    pub holds: Option<bool>,
}

impl Figure {
    /// A figure without a target.
    pub fn plain(area: &'static str, name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        let name = name.into();
        Self { area, name, value, unit, peer: None, peer_value: None, ratio: None, target: None, holds: None }
    }

    /// With a target: at most `limit`.
    #[must_use]
    pub fn below(mut self, limit: f64, target: &'static str) -> Self {
        self.target = Some(target);
        self.holds = Some(self.value <= limit);
        self
    }

    /// Beside a peer's figure of the same run.
    #[must_use]
    pub fn against(mut self, peer: &'static str, value: f64) -> Self {
        self.peer = Some(peer);
        self.peer_value = Some(value);
        self.ratio = Some(self.value / value);
        self
    }

    /// With a target: at least `least` times the peer's figure.
    #[must_use]
    pub fn at_least(mut self, least: f64, target: &'static str) -> Self {
        self.target = Some(target);
        self.holds = Some(self.ratio.is_some_and(|ratio| ratio >= least));
        self
    }
}

/// The figures as a table on stdout.
pub fn print(figures: &[Figure]) {
    println!(
        "{:<10} {:<52} {:>12} {:<8} {:<26} {:<22} holds",
        "area", "figure", "value", "unit", "peer", "target"
    );
    for figure in figures {
        let holds = figure.holds.map_or("", |holds| if holds { "yes" } else { "NO" });
        let target = figure.target.unwrap_or_default();
        let peer = match (figure.peer_value, figure.ratio) {
            (Some(value), Some(ratio)) => format!("{value:.2} ({ratio:.2} x)"),
            _ => String::new(),
        };
        let Figure { area, name, value, unit, .. } = figure;
        println!("{area:<10} {name:<52} {value:>12.2} {unit:<8} {peer:<26} {target:<22} {holds}");
    }
}

/// Writes the figures to `bench.json` of the target folder, beside those of other areas; gives its
/// path.
///
/// # Errors
/// When the target folder is not found or the file cannot be written.
pub fn save(figures: &[Figure]) -> Result<PathBuf, KitError> {
    let path = target_dir()?.join("bench.json");
    let writing = || format!("write {}", path.display());
    let is_ours = |figure: &Value| figures.iter().any(|ours| figure["area"] == ours.area);
    let mut all = read(&path);
    all.retain(|figure| !is_ours(figure));
    for figure in figures {
        all.push(serde_json::to_value(figure).map_err(|error| io_error(writing())(error.into()))?);
    }
    let text = serde_json::to_string_pretty(&all).map_err(|error| io_error(writing())(error.into()))?;
    fs::write(&path, format!("{text}\n")).map_err(io_error(writing()))?;
    Ok(path)
}

/// What is there already; nothing when it is missing or of another form.
fn read(path: &Path) -> Vec<Value> {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// The target folder: the running program lies in its `debug/deps`.
///
/// # Errors
/// When the system does not say where the running program lies.
pub fn target_dir() -> Result<PathBuf, KitError> {
    let mut folder = std::env::current_exe().map_err(io_error("find the running program"))?;
    for _ in ["the program", "deps", "debug"] {
        folder.pop();
    }
    Ok(folder)
}
