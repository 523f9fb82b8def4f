//! The mutation run: every act with layers of the jail taken away.
//!
//! Owns: the proof that acts are denied for the reason that the suite gives. Never: trusts an error
//! number alone: a layer *catches* an act when the act works without a jail and fails in a jail of
//! that layer only. Run by `make escape-mutations`; takes minutes.
//!
//! For each act, in the jail of the processor's worker:
//!
//! 1. with every layer: it must be denied;
//! 2. with each layer alone: the layers that the act names must catch it;
//! 3. with each layer off in turn, and once more with seccomp off as well: it works, or another layer
//!    that catches it is named;
//! 4. with every layer off that catches it: it must work, or it was denied for no known reason.

use std::io;

use potluck_sandbox::jail::{Jail, Layer, Layers, Profile};

use super::acts::{self, Act};
use super::lab::{Lab, Outcome, plan};
use super::layer::denies_like;
use super::possible;

/// Runs it for the acts whose names are `wanted`; whether every claim held.
pub(crate) fn run(lab: &mut Lab, wanted: impl Fn(&str) -> bool) -> io::Result<bool> {
    let acts: Vec<_> = acts::all().into_iter().filter(|act| wanted(act.name)).collect();
    let mut wrong = Vec::new();
    println!("Each act with layers off: `works`, or the layer that still denies it, and how.\n");
    for act in &acts {
        let row = Row::measure(lab, act)?;
        row.print();
        wrong.extend(row.faults(lab));
        if let Err(left) = lab.check() {
            wrong.push(format!("{}: {left}", act.name));
        }
    }
    println!("\n{} acts, {} faults", acts.len(), wrong.len());
    wrong.iter().for_each(|fault| println!("FAULT {fault}"));
    Ok(wrong.is_empty())
}

/// What was seen of one act.
struct Row {
    act: &'static Act,
    control: Outcome,
    full: Outcome,
    /// The layers that deny it without any other.
    catching: Vec<Layer>,
    /// With these layers off.
    without: Vec<(Vec<Layer>, Outcome)>,
    bare: Outcome,
}

impl Row {
    fn measure(lab: &mut Lab, act: &'static Act) -> io::Result<Self> {
        let control = lab.run(act, &Jail::Unsafe)?;
        let mut jailed = |layers: Layers| {
            let plan = plan(Profile::Gpu { cuda: false }, layers);
            let outcome = lab.run(act, &Jail::Jailed(Box::new(plan)));
            // What one run leaves behind must not disturb the next; the end of the row is judged.
            let _ = lab.check();
            outcome
        };
        let full = jailed(Layers::all())?;
        let in_namespaces = jailed(only(&[Layer::Namespaces]))?;
        let mut catching = Vec::new();
        for layer in Layer::ALL {
            if catches(layer, &in_namespaces, &mut jailed)? {
                catching.push(layer);
            }
        }
        let mut without = Vec::new();
        for off in Layer::ALL.into_iter().map(|layer| vec![layer]).chain(pairs()) {
            let outcome = jailed(all_but(&off))?;
            without.push((off, outcome));
        }
        let bare = jailed(all_but(&catching))?;
        Ok(Self { act, control, full, catching, without, bare })
    }

    /// Who denied it, of the layers that catch it and were on: the first that denies in this way. The
    /// ones that the act names are asked first.
    fn laid_at(&self, outcome: &Outcome, off: &[Layer]) -> Option<Layer> {
        let named = self.act.guards.iter().filter(|guard| self.catching.contains(guard));
        let mut on = named.chain(&self.catching).copied().filter(|layer| !off.contains(layer));
        on.find(|layer| denies_like(*layer, outcome))
    }

    fn told(&self, outcome: &Outcome, off: &[Layer]) -> String {
        match outcome {
            Outcome::Got(_) => "works".to_owned(),
            denied if denied.is_denied() => {
                let by = self.laid_at(denied, off).map_or("nobody known", Layer::name);
                format!("{by} ({denied})")
            }
            other => other.to_string(),
        }
    }

    fn print(&self) {
        println!("{}", self.act.name);
        println!("  no jail: {}", self.control);
        println!("  every layer: {}", self.told(&self.full, &[]));
        println!("  each alone catches it: {}", names(&self.catching));
        for (off, outcome) in &self.without {
            println!("  without {}: {}", names(off), self.told(outcome, off));
        }
        println!("  without all that catch it: {}", self.told(&self.bare, &self.catching));
    }

    fn faults(&self, lab: &Lab) -> Vec<String> {
        let mut faults = Vec::new();
        match possible(lab, self.act, &self.control) {
            Err(what) => faults.push(what),
            Ok(_) if !self.full.is_denied() => faults.push(format!("with every layer: {}", self.full)),
            // Nothing can be taken from the jail so that it works here.
            Ok(_) if self.control.is_denied() => {}
            Ok(_) => self.judge(&mut faults),
        }
        faults.into_iter().map(|fault| format!("{}: {fault}", self.act.name)).collect()
    }

    fn judge(&self, faults: &mut Vec<String>) {
        for guard in self.act.guards.iter().filter(|guard| !self.catching.contains(guard)) {
            faults.push(format!("{guard} is said to deny it, and alone does not"));
        }
        if self.laid_at(&self.full, &[]).is_none() {
            faults.push(format!("with every layer: {}, which is no layer's way", self.full));
        }
        for (off, outcome) in &self.without {
            let known = outcome.is_denied() && self.laid_at(outcome, off).is_some();
            if !known && !matches!(outcome, Outcome::Got(_)) {
                faults.push(format!("without {}: {}", names(off), self.told(outcome, off)));
            }
        }
        if !matches!(self.bare, Outcome::Got(_)) {
            faults.push(format!("without all that catch it: {}", self.bare));
        }
    }
}

fn names(layers: &[Layer]) -> String {
    layers.iter().map(|layer| layer.name()).collect::<Vec<_>>().join(", ")
}

/// Seccomp, which stands in front of most, and one other.
fn pairs() -> impl Iterator<Item = Vec<Layer>> {
    Layer::ALL.into_iter().filter(|layer| *layer != Layer::Seccomp).map(|layer| vec![Layer::Seccomp, layer])
}

fn all_but(off: &[Layer]) -> Layers {
    off.iter().copied().fold(Layers::all(), Layers::without)
}

/// A jail of these layers and no other.
fn only(layers: &[Layer]) -> Layers {
    all_but(&Layer::ALL.into_iter().filter(|layer| !layers.contains(layer)).collect::<Vec<_>>())
}

/// Whether `layer` denies the act without any other. `in_namespaces` is what becomes of it in a jail
/// of namespaces only.
fn catches(
    layer: Layer,
    in_namespaces: &Outcome,
    jailed: &mut impl FnMut(Layers) -> io::Result<Outcome>,
) -> io::Result<bool> {
    if jailed(only(&[layer]))?.is_denied() {
        return Ok(true);
    }
    // A root of its own is not to be had without the namespaces; and the machine's root is bound by no
    // ceiling on processes, which nobody in a namespace is.
    if !matches!(layer, Layer::Root | Layer::Rlimits) {
        return Ok(false);
    }
    let both = jailed(only(&[Layer::Namespaces, layer]))?;
    // It denies what the namespaces do not, or denies it before they do.
    Ok(both.is_denied()
        && (!in_namespaces.is_denied() || (both != *in_namespaces && denies_like(layer, &both))))
}
