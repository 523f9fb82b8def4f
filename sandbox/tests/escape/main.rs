//! The escape suite: hostile workers in the real jail, each doing one act in earnest.
//!
//! Owns: the program, which is the suite, and, started again by it, every process that the suite
//! needs: the hostile worker, the peer that breaks the protocol, another process to attack, a daemon
//! to kill. So nothing of this is in any program that ships. Never: replaces the jail: a hostile
//! process enters it by the same library door as a worker. Run by `cargo test -p potluck-sandbox
//! --test escape [FILTER]`; `--mutations` (see [`mutations`]) is run by `make escape-mutations`.
//!
//! Every act is done without a jail first. Only one that then works, or that this machine cannot do
//! at all (said in its line), may count as denied by the jail.

#![allow(clippy::unwrap_used, reason = "a test says by panicking")]

mod acts;
mod daemon;
mod hostile;
mod lab;
mod layer;
mod mutations;
mod peers;
mod raw;
#[path = "../common/tiny.rs"]
mod tiny;
mod victim;

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use potluck_sandbox::jail::{Jail, Layers, Profile};

use acts::Act;
use lab::{Lab, Outcome, PROFILES, plan};

/// How a test program of this toolchain says that a test failed.
const FAILED: u8 = 101;

fn main() -> ExitCode {
    if let Ok(act) = std::env::var(hostile::ACT) {
        return hostile::run(&act);
    }
    if let Ok(secret) = std::env::var(victim::SECRET) {
        return victim::run(&secret);
    }
    if let Some(peer) = peers::called() {
        return peers::run(peer);
    }
    if std::env::var_os(daemon::DAEMON).is_some() {
        return daemon::run();
    }
    match Options::read().run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            eprintln!("error: the suite cannot begin: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// What of the test harness's usual arguments is understood; others change nothing here.
#[derive(Debug, Default)]
struct Options {
    filters: Vec<String>,
    exact: bool,
    list: bool,
    mutations: bool,
}

impl Options {
    fn read() -> Self {
        let mut options = Self::default();
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--mutations" => options.mutations = true,
                word if word.starts_with('-') => {}
                word => options.filters.push(word.to_owned()),
            }
        }
        options
    }

    fn wants(&self, name: &str) -> bool {
        let fits = |filter: &String| if self.exact { name == filter } else { name.contains(filter.as_str()) };
        self.filters.is_empty() || self.filters.iter().any(fits)
    }

    fn run(&self) -> io::Result<bool> {
        let trials: Vec<Trial> = trials().into_iter().filter(|trial| self.wants(&trial.name)).collect();
        if self.list {
            trials.iter().for_each(|trial| println!("{}: test", trial.name));
            return Ok(true);
        }
        let mut lab = Lab::new()?;
        if self.mutations {
            return mutations::run(&mut lab, |name| self.wants(name));
        }
        Ok(run_all(&mut lab, trials))
    }
}

/// One line of the suite.
struct Trial {
    name: String,
    kind: Kind,
}

enum Kind {
    Act(&'static Act, Profile),
    Peer(&'static peers::Peer),
    Other(fn(&mut Lab) -> Result<String, String>),
}

fn trials() -> Vec<Trial> {
    let acts = PROFILES.iter().flat_map(|(kind, profile)| {
        acts::all().into_iter().map(move |act| Trial {
            name: format!("escape::{kind}::{}", act.name),
            kind: Kind::Act(act, *profile),
        })
    });
    let peers = peers::ALL
        .iter()
        .map(|peer| Trial { name: format!("escape::peer::{}", peer.name), kind: Kind::Peer(peer) });
    let others = [
        Trial {
            name: "escape::peer::after_all_that_an_honest_worker_serves".to_owned(),
            kind: Kind::Other(peers::serve_honestly),
        },
        Trial {
            name: "escape::daemon::killed_takes_every_worker_along".to_owned(),
            kind: Kind::Other(daemon::trial),
        },
    ];
    acts.chain(peers).chain(others).collect()
}

fn run_all(lab: &mut Lab, trials: Vec<Trial>) -> bool {
    let begun = Instant::now();
    let mut controls = Controls::default();
    let mut failures = Vec::new();
    let count = trials.len();
    println!("\nrunning {count} tests");
    for trial in trials {
        let result = catch_unwind(AssertUnwindSafe(|| match trial.kind {
            Kind::Act(act, profile) => controls.of(lab, act).and_then(|c| try_act(lab, &c, act, profile)),
            Kind::Peer(peer) => peers::trial(lab, peer),
            Kind::Other(run) => run(lab),
        }));
        let result = result.unwrap_or_else(|_| Err("it panicked".to_owned()));
        match result.and_then(|words| lab.check().map(|()| words)) {
            Ok(words) => println!("test {} ... ok ({words})", trial.name),
            Err(words) => {
                println!("test {} ... FAILED ({words})", trial.name);
                failures.push(trial.name);
            }
        }
    }
    let word = if failures.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {} failed; 0 ignored; finished in {:.2}s\n",
        count - failures.len(),
        failures.len(),
        begun.elapsed().as_secs_f64()
    );
    failures.is_empty()
}

/// What every act does without a jail; each is tried once.
#[derive(Debug, Default)]
struct Controls(BTreeMap<&'static str, Outcome>);

impl Controls {
    fn of(&mut self, lab: &mut Lab, act: &'static Act) -> Result<Outcome, String> {
        if let Some(known) = self.0.get(act.name) {
            return Ok(known.clone());
        }
        let outcome = lab.run(act, &Jail::Unsafe).map_err(not_started)?;
        lab.check()?;
        self.0.insert(act.name, outcome.clone());
        Ok(outcome)
    }
}

fn not_started(error: io::Error) -> String {
    format!("the hostile process cannot be started: {error}")
}

/// Whether the act is possible here without a jail: what it got then, or why nobody can.
fn possible(lab: &Lab, act: &Act, control: &Outcome) -> Result<String, String> {
    match control {
        Outcome::Got(what) => Ok(format!("without a jail: {what}")),
        Outcome::Refused(error) if act.is_lacking(*error, lab.is_root()) => {
            Ok(format!("not to be had on this machine anyway: {error}"))
        }
        other => Err(format!("without a jail it should work, but: {other}")),
    }
}

fn try_act(lab: &Lab, control: &Outcome, act: &Act, profile: Profile) -> Result<String, String> {
    let control = possible(lab, act, control)?;
    let jail = Jail::Jailed(Box::new(plan(profile, Layers::all())));
    let outcome = lab.run(act, &jail).map_err(not_started)?;
    if !outcome.is_denied() {
        return Err(outcome.to_string());
    }
    match act.guards.iter().find(|guard| layer::denies_like(**guard, &outcome)) {
        Some(guard) => Ok(format!("denied by {guard}: {outcome}; {control}")),
        None => Err(format!("{outcome}, which is not how {:?} deny it", act.guards)),
    }
}
