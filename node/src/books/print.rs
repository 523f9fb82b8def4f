//! Answers as text: tables, JSON lines, comma-separated values.
//!
//! Owns: the columns and the words. Never: computes anything, or writes to a stream: lines go out. Called
//! by both programs, with what the ledger or the running provider answered.

mod explanation;

use potluck_protocol::unit::{UnixMillis, dollars};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::Form;
use super::table::{Column, csv, harmless, number, table, text};
use super::time::shown;
use super::{
    Answer, Balance, Exported, Imported, Object, Pair, ProofLine, Receipt, Verified, VerifiedPair, Waiting,
};
use crate::ledger::LaneRole;

/// An answer as lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Printed {
    /// For stdout: data.
    pub data: Vec<String>,
    /// For stderr: prose.
    pub prose: Vec<String>,
}

impl Printed {
    fn data(data: Vec<String>) -> Self {
        Self { data, prose: Vec::new() }
    }

    fn line(line: impl Into<String>) -> Self {
        Self::data(vec![line.into()])
    }

    fn and(mut self, prose: impl Into<String>) -> Self {
        self.prose.push(prose.into());
        self
    }
}

/// `answer` in `form`. A verb without columns prints its text for [`Form::Csv`].
#[must_use]
pub fn print(answer: &Answer, form: Form) -> Printed {
    match (form, answer) {
        (Form::Json, _) => Printed::data(json_lines(answer)),
        (Form::Csv, Answer::Balance(balance)) => {
            Printed::data(csv(&BALANCE_COLUMNS, &balance_values(balance)))
        }
        (Form::Csv, Answer::Pairs(pairs)) => Printed::data(csv(&PAIR_COLUMNS, &pair_values(pairs))),
        (Form::Csv, Answer::Receipts(all)) => Printed::data(csv(&RECEIPT_COLUMNS, &receipt_values(all))),
        (_, Answer::Balance(balance)) => balance_table(balance),
        (_, Answer::Pairs(pairs)) => pairs_table(pairs),
        (_, Answer::Receipts(all)) => receipts_table(all),
        (_, Answer::Show(objects)) => Printed::data(objects.iter().flat_map(object_lines).collect()),
        (_, Answer::Explain(it)) => explanation::lines(it),
        (_, Answer::Check(it)) => Printed::line(format!(
            "whole: {} objects checked, {} ever kept, {} put away by compaction",
            it.objects, it.records, it.dropped
        )),
        (_, Answer::Proofs(all)) => proofs_table(all),
        (_, Answer::Proof(it)) => Printed::line(format!("{} ({} bytes)", it.file.display(), it.bytes))
            .and(format!("it convicts {}: {}", it.proof.peer, it.proof.place)),
        (_, Answer::Export(it)) => exported(it),
        (_, Answer::Import(it)) => imported(it),
        (_, Answer::Verify(it)) => verified(it),
        (_, Answer::VerifyProof(it)) => {
            Printed::line(format!("{} signed two different things: {}", it.proof.peer, it.proof.place))
        }
    }
}

fn json_lines(answer: &Answer) -> Vec<String> {
    match answer {
        Answer::Balance(it) => vec![plain(it)],
        Answer::Pairs(all) => all.iter().map(plain).collect(),
        Answer::Receipts(all) => all.iter().map(plain).collect(),
        Answer::Show(all) => all.iter().map(plain).collect(),
        Answer::Explain(it) => vec![plain(it)],
        Answer::Check(it) => vec![plain(it)],
        Answer::Proofs(all) => all.iter().map(plain).collect(),
        Answer::Proof(it) => vec![plain(it)],
        Answer::Export(it) => vec![plain(it)],
        Answer::Import(it) => vec![plain(it)],
        Answer::Verify(it) => verified_json(it),
        Answer::VerifyProof(it) => vec![plain(it)],
    }
}

fn plain(row: &impl Serialize) -> String {
    // Rows are structs of plain fields: nothing in them can fail to be written.
    serde_json::to_string(row).unwrap_or_default()
}

fn money(nanos: i64) -> String {
    dollars(i128::from(nanos), true)
}

fn cost(nanos: u64) -> String {
    dollars(i128::from(nanos), false)
}

fn optional(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// A name as JSON has it.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

const BALANCE_COLUMNS: [&str; 4] = ["peer", "balance_nanocredits", "lanes", "open"];

fn balance_values(balance: &Balance) -> Vec<Vec<String>> {
    let row = |pair: &super::PairLine| {
        let numbers = [pair.balance_nanocredits.to_string(), pair.lanes.to_string(), pair.open.to_string()];
        [pair.peer.to_string()].into_iter().chain(numbers).collect()
    };
    balance.pairs.iter().map(row).collect()
}

fn balance_table(balance: &Balance) -> Printed {
    const COLUMNS: [Column; 4] = [text("peer"), number("balance"), number("jobs"), number("open")];
    let row = |pair: &super::PairLine| {
        let balance = money(pair.balance_nanocredits);
        vec![pair.peer.to_string(), balance, pair.lanes.to_string(), pair.open.to_string()]
    };
    let mut data = vec![format!(
        "balance   {}   (owed to us {}, we owe {})",
        money(balance.balance_nanocredits),
        money(balance.owed_to_us_nanocredits),
        money(balance.we_owe_nanocredits)
    )];
    let rows: Vec<_> = balance.pairs.iter().map(row).collect();
    if !rows.is_empty() {
        data.extend(table(&COLUMNS, &rows));
    }
    Printed::data(data).and("balances are IOUs between two peers, not money held by anybody")
}

const PAIR_COLUMNS: [&str; 14] = [
    "peer",
    "balance_nanocredits",
    "settled_nanocredits",
    "paid_nanocredits",
    "open_caps_nanocredits",
    "credit_used_nanocredits",
    "lanes",
    "open",
    "epoch",
    "step",
    "floor_unix_ms",
    "frozen",
    "waiting_for_us",
    "waiting_for_them",
];

fn waiting_for(pair: &Pair, side: super::Side) -> usize {
    pair.waiting.iter().filter(|it| it.waits_for == side).count()
}

fn pair_values(pairs: &[Pair]) -> Vec<Vec<String>> {
    let row = |pair: &Pair| {
        vec![
            pair.peer.to_string(),
            pair.balance_nanocredits.to_string(),
            pair.settled_nanocredits.to_string(),
            pair.paid_nanocredits.to_string(),
            pair.open_caps_nanocredits.to_string(),
            pair.credit_used_nanocredits.to_string(),
            pair.lanes.to_string(),
            pair.open.to_string(),
            pair.epoch.to_string(),
            pair.step.to_string(),
            pair.floor_unix_ms.to_string(),
            pair.frozen.to_string(),
            waiting_for(pair, super::Side::Us).to_string(),
            waiting_for(pair, super::Side::Them).to_string(),
        ]
    };
    pairs.iter().map(row).collect()
}

fn pairs_table(pairs: &[Pair]) -> Printed {
    const COLUMNS: [Column; 9] = [
        text("peer"),
        number("balance"),
        number("settled"),
        number("paid"),
        number("credit used"),
        number("jobs"),
        number("epoch"),
        number("step"),
        text("state"),
    ];
    if pairs.is_empty() {
        return Printed::default().and("no account with anybody yet");
    }
    let row = |pair: &Pair| {
        let (us, them) = (waiting_for(pair, super::Side::Us), waiting_for(pair, super::Side::Them));
        let state = match (pair.frozen, us, them) {
            (true, ..) => "frozen",
            (_, 1.., _) => "waits for you",
            (_, _, 1..) => "waits for them",
            _ => "",
        };
        vec![
            pair.peer.to_string(),
            money(pair.balance_nanocredits),
            cost(pair.settled_nanocredits),
            cost(pair.paid_nanocredits),
            cost(pair.credit_used_nanocredits),
            pair.lanes.to_string(),
            pair.epoch.to_string(),
            pair.step.to_string(),
            state.to_owned(),
        ]
    };
    let rows: Vec<_> = pairs.iter().map(row).collect();
    let prose = pairs.iter().flat_map(|pair| pair.waiting.iter().map(|it| waits(pair, it))).collect();
    Printed { data: table(&COLUMNS, &rows), prose }
}

fn waits(pair: &Pair, waiting: &Waiting) -> String {
    let peer = pair.peer.short();
    let balance = money(waiting.balance_nanocredits);
    let what = match (waiting.payer, waiting.amount_nanocredits) {
        (Some(payer), Some(amount)) => format!(
            "that {} paid {} ({})",
            if payer == pair.peer { &peer } else { "we" },
            cost(amount),
            harmless(waiting.reference.as_deref().unwrap_or_default())
        ),
        _ => format!("a balance of {balance}"),
    };
    match waiting.waits_for {
        super::Side::Us => format!("{peer} proposes {what}: confirm or deny it with `ledger settle`"),
        super::Side::Them => format!("we proposed {what} to {peer}, which has not answered yet"),
    }
}

const RECEIPT_COLUMNS: [&str; 20] = [
    "job",
    "role",
    "peer",
    "opened_unix_ms",
    "closed_unix_ms",
    "model",
    "model_name",
    "gpu_ms",
    "load_ms",
    "run_ms",
    "guest_ms",
    "amount_nanocredits",
    "max_total_nanocredits",
    "vouchers",
    "receipts",
    "prompt_tokens",
    "completion_tokens",
    "reason",
    "contract",
    "receipt",
];

fn receipt_values(all: &[Receipt]) -> Vec<Vec<String>> {
    let row = |it: &Receipt| {
        vec![
            it.job.clone(),
            word(&it.role),
            it.peer.to_string(),
            it.opened_unix_ms.to_string(),
            optional(it.closed_unix_ms),
            optional(it.model),
            optional(it.model_name.as_ref()),
            it.gpu_ms.to_string(),
            it.load_ms.to_string(),
            it.run_ms.to_string(),
            it.guest_ms.to_string(),
            it.amount_nanocredits.to_string(),
            it.max_total_nanocredits.to_string(),
            it.vouchers.to_string(),
            it.receipts.to_string(),
            it.prompt_tokens.to_string(),
            it.completion_tokens.to_string(),
            it.reason.map(|reason| word(&reason)).unwrap_or_default(),
            optional(it.contract),
            optional(it.receipt),
        ]
    };
    all.iter().map(row).collect()
}

fn receipts_table(all: &[Receipt]) -> Printed {
    const COLUMNS: [Column; 9] = [
        text("job"),
        text("opened"),
        text("we"),
        text("peer"),
        text("what"),
        number("time"),
        number("amount"),
        number("tokens"),
        text("ended"),
    ];
    if all.is_empty() {
        return Printed::default().and("no such job; the first: potluck run smollm2-135m \"hello\"");
    }
    let row = |it: &Receipt| {
        vec![
            it.job.clone(),
            shown(UnixMillis::new(it.opened_unix_ms)),
            match it.role {
                LaneRole::Renter => "pay".into(),
                LaneRole::Provider => "worked".into(),
            },
            it.peer.short(),
            it.model_name.clone().unwrap_or_else(|| it.model.map_or("-".into(), |it| short(&it.to_string()))),
            format!("{} ms", it.gpu_ms.saturating_add(it.guest_ms)),
            cost(it.amount_nanocredits),
            it.completion_tokens.to_string(),
            it.reason.map_or("open".into(), |reason| word(&reason)),
        ]
    };
    Printed::data(table(&COLUMNS, &all.iter().map(row).collect::<Vec<_>>()))
}

/// The beginning of a hash.
fn short(hash: &str) -> String {
    format!("{}…", hash.chars().take(19).collect::<String>())
}

fn object_lines(object: &Object) -> Vec<String> {
    let mut lines = vec![format!("{}   {}", object.kind, object.digest)];
    lines.push(format!("  signed by   {}", object.signer));
    lines.extend(object.about.as_ref().map(|about| format!("  it is       {about}")));
    fields("  ", &object.body, &mut lines);
    lines.push(String::new());
    lines
}

/// A value's fields, one a line; strangers' texts are made harmless.
fn fields(indent: &str, value: &Value, lines: &mut Vec<String>) {
    let Value::Object(map) = value else {
        lines.push(format!("{indent}{}", harmless(&value.to_string())));
        return;
    };
    for (key, value) in map {
        match value {
            Value::Object(_) => {
                lines.push(format!("{indent}{key}"));
                fields(&format!("{indent}  "), value, lines);
            }
            Value::String(value) => lines.push(format!("{indent}{key}   {}", harmless(value))),
            other => lines.push(format!("{indent}{key}   {}", harmless(&other.to_string()))),
        }
    }
}

fn proofs_table(all: &[ProofLine]) -> Printed {
    if all.is_empty() {
        return Printed::default().and("nobody is known to have signed two things in one place");
    }
    let row = |it: &ProofLine| vec![it.peer.to_string(), it.digest.short(), it.place.clone()];
    let rows: Vec<_> = all.iter().map(row).collect();
    Printed::data(table(&[text("peer"), text("proof"), text("filled twice")], &rows))
}

fn exported(it: &Exported) -> Printed {
    Printed::line(format!("{} ({} entries, {} bytes)", it.file.display(), it.entries, it.bytes))
        .and(format!("anybody can check it: potluck ledger verify {}", it.file.display()))
        .and("it holds no secret key, and all of your dealings: keep it to yourself")
}

fn imported(it: &Imported) -> Printed {
    let mut printed = Printed::line(format!(
        "{} new, {} known, {} conflicting, {} foreign, {} of jobs that are put away; {} new proofs",
        it.new, it.known, it.conflicting, it.foreign, it.put_away, it.proofs
    ));
    if it.epochs_raised > 0 {
        printed = printed.and(format!(
            "the epoch with {} peers was raised: what was signed after the export was made can come back from them",
            it.epochs_raised
        ));
    }
    if it.faults > 0 {
        printed = printed
            .and(format!("{} laws are broken by what the file holds: `ledger verify` says which", it.faults));
    }
    printed
}

fn verified_json(it: &Verified) -> Vec<String> {
    let tagged = |kind: &str, row: &dyn Fn() -> Result<Value, serde_json::Error>| {
        let mut value = row().unwrap_or_default();
        if let Some(map) = value.as_object_mut() {
            map.insert("kind".into(), json!(kind));
            map.remove("each");
        }
        value.to_string()
    };
    let pairs = it.each.iter().map(|pair| tagged("pair", &|| serde_json::to_value(pair)));
    let file = tagged("file", &|| serde_json::to_value(it));
    pairs.chain([file]).collect()
}

fn verified(it: &Verified) -> Printed {
    const COLUMNS: [Column; 9] = [
        text("peer"),
        number("balance"),
        number("settled"),
        number("paid"),
        number("step"),
        number("jobs"),
        number("open"),
        number("thinned"),
        text("faults"),
    ];
    let row = |pair: &VerifiedPair| {
        let state = match (pair.faults, pair.frozen) {
            (0, true) => "frozen".into(),
            (0, false) => String::new(),
            (faults, _) => faults.to_string(),
        };
        vec![
            pair.peer.to_string(),
            money(pair.balance_nanocredits),
            cost(pair.settled_nanocredits),
            cost(pair.paid_nanocredits),
            pair.step.to_string(),
            pair.lanes.to_string(),
            pair.open.to_string(),
            pair.thinned.to_string(),
            state,
        ]
    };
    let made = shown(UnixMillis::new(it.made_unix_ms));
    let mut data = vec![format!("the ledger of {}, made {made}", it.owner)];
    data.push(format!(
        "whole: {} statements, {} proofs; {} peers, who owe it {} together",
        it.statements,
        it.proofs,
        it.pairs,
        money(it.balance_nanocredits)
    ));
    if !it.each.is_empty() {
        data.extend(table(&COLUMNS, &it.each.iter().map(row).collect::<Vec<_>>()));
    }
    let left_out = it.pairs.saturating_sub(u64::try_from(it.each.len()).unwrap_or(u64::MAX));
    let mut printed = Printed::data(data);
    if left_out > 0 {
        printed = printed.and(format!("and {left_out} more peers"));
    }
    printed.prose.extend(it.each.iter().filter_map(remark));
    if it.faults == 0 {
        printed = printed.and("every signature, price, link and sum in it holds");
    }
    printed
}

/// What a pair's numbers leave open.
fn remark(pair: &VerifiedPair) -> Option<String> {
    let mut parts = Vec::new();
    if pair.thinned > 0 {
        parts.push(format!("of {} jobs only the outcome is kept", pair.thinned));
    }
    if pair.unproven > 0 {
        parts.push(format!(
            "the price of {} jobs cannot be checked: their contracts are not there",
            pair.unproven
        ));
    }
    if pair.agreed_unproven > 0 {
        parts.push(format!(
            "{} of {} agreed balances stand by their two signatures alone: not all of their jobs are there",
            pair.agreed_unproven, pair.agreed
        ));
    }
    (!parts.is_empty()).then(|| format!("{}: {}", pair.peer.short(), parts.join("; ")))
}
