//! What the benchmarks measured: one form, one table, one file.
//!
//! Owns: [`Figure`], which areas there are, and `bench.json` in the folder of all builds. Never:
//! measures, or compares figures of different runs: whoever measures an area replaces all of its
//! figures. Called by the benchmarks.

use std::fs;

use serde::Serialize;
use serde_json::Value;

use crate::error::{KitError, io_error};
use crate::programs::build_folder;

/// What `make bench ONLY=` may name.
pub const AREAS: [&str; 6] = ["market", "renter", "owner", "sandbox", "settlement", "store"];

/// One figure, in the form of `bench.json`.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// Which of [`AREAS`] it belongs to.
    pub area: &'static str,
    /// What was measured.
    pub name: String,
    /// How much it was.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it is compared with.
    pub peer: Option<&'static str>,
    /// How much that was.
    pub peer_value: Option<f64>,
    /// The first by the second.
    pub ratio: Option<f64>,
    /// What it is to be, in words, for the table.
    pub target: Option<&'static str>,
    /// Whether it is.
    pub holds: Option<bool>,
}

impl Figure {
    /// A figure without a target.
    pub fn plain(area: &'static str, name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        let name = name.into();
        Self { area, name, value, unit, peer: None, peer_value: None, ratio: None, target: None, holds: None }
    }

    /// The figure, which is to be at most `limit`.
    #[must_use]
    pub fn below(mut self, limit: f64, target: &'static str) -> Self {
        self.target = Some(target);
        self.holds = Some(self.value <= limit);
        self
    }

    /// The figure beside another one.
    #[must_use]
    pub fn beside(mut self, peer: &'static str, value: f64) -> Self {
        self.peer = Some(peer);
        self.peer_value = Some(value);
        self.ratio = Some(self.value / value);
        self
    }

    /// As [`Self::beside`], where the two took turns: the ratio is the median of each turn's, which is spared
    /// the machine's moods, as both had the same.
    #[must_use]
    pub fn beside_in_turns(mut self, peer: &'static str, ours: &[f64], theirs: &[f64]) -> Self {
        self = self.beside(peer, median(theirs.to_vec()));
        self.ratio = Some(median(ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()));
        self
    }

    /// The figure, which is to be at least `least` of the one that it is [`Self::beside`].
    #[must_use]
    pub fn at_least(mut self, least: f64, target: &'static str) -> Self {
        self.target = Some(target);
        self.holds = Some(self.ratio.is_some_and(|ratio| ratio >= least));
        self
    }
}

/// Those of `mine` that the command line asks for: all without an argument. Another benchmark's area is
/// none of them.
///
/// # Errors
/// When nobody's area is called so; in words.
pub fn wanted(mine: &[&'static str]) -> Result<Vec<&'static str>, String> {
    // Cargo itself passes `--bench`.
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    match only {
        Some(only) if !AREAS.contains(&only.as_str()) => {
            Err(format!("no area is called `{only}`: {}", AREAS.join(", ")))
        }
        only => {
            Ok(mine.iter().filter(|area| only.as_ref().is_none_or(|only| only == *area)).copied().collect())
        }
    }
}

/// The middle one of `values`.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Prints the figures and puts them into `bench.json`; whether every target was met.
///
/// # Errors
/// [`KitError`] when the file cannot be written.
pub fn report(figures: &[Figure]) -> Result<bool, KitError> {
    print(figures);
    let path = build_folder()?.join("bench.json");
    let known = fs::read(&path).unwrap_or_default();
    let merged = Value::from(merge(&known, figures));
    fs::write(&path, format!("{merged:#}\n")).map_err(io_error(format!("write {}", path.display())))?;
    println!("written to {}", path.display());
    Ok(figures.iter().all(|figure| figure.holds != Some(false)))
}

/// The `known` file's figures of other areas, and these.
fn merge(known: &[u8], figures: &[Figure]) -> Vec<Value> {
    let mut all: Vec<Value> = serde_json::from_slice(known).unwrap_or_default();
    all.retain(|old| !figures.iter().any(|new| old["area"] == new.area));
    // A figure is plain words and numbers: it always has a JSON form.
    all.extend(figures.iter().filter_map(|figure| serde_json::to_value(figure).ok()));
    all
}

fn print(figures: &[Figure]) {
    println!(
        "{:<9} {:<62} {:>10} {:<5} {:>10} {:>7} {:<24} holds",
        "area", "figure", "value", "unit", "peer", "ratio", "target"
    );
    for figure in figures {
        let holds = figure.holds.map_or("", |holds| if holds { "yes" } else { "NO" });
        let target = figure.target.unwrap_or_default();
        let Figure { area, name, value, unit, .. } = figure;
        let peer = figure.peer_value.map(|value| format!("{value:.2}")).unwrap_or_default();
        let ratio = figure.ratio.map(|ratio| format!("{ratio:.3} x")).unwrap_or_default();
        println!("{area:<9} {name:<62} {value:>10.2} {unit:<5} {peer:>10} {ratio:>7} {target:<24} {holds}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_that_is_measured_again_replaces_itself_alone() {
        let old = [Figure::plain("market", "a", 1.0, "x"), Figure::plain("owner", "b", 2.0, "x")];
        let file = serde_json::to_vec(&old).unwrap();
        let new = [Figure::plain("market", "c", 3.0, "x").beside("d", 2.0).at_least(2.0, "twice")];
        let merged = merge(&file, &new);
        let names: Vec<_> = merged.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["b", "c"]);
        assert_eq!((&merged[1]["ratio"], &merged[1]["holds"]), (&Value::from(1.5), &Value::from(false)));
        assert_eq!(merge(b"not json", &new).len(), 1);
    }

    #[test]
    fn turns_are_compared_one_by_one() {
        // The machine was half as fast in the second half of both: each turn was half as fast again.
        let (ours, theirs) = ([30.0, 30.0, 15.0, 15.0, 15.0], [20.0, 20.0, 10.0, 10.0, 10.0]);
        let figure = Figure::plain("market", "a", 15.0, "x").beside_in_turns("d", &ours, &theirs);
        assert_eq!((figure.peer_value, figure.ratio), (Some(10.0), Some(1.5)));
    }
}
