//! An explanation as text.
//!
//! Owns: the words of `ledger explain`. Never: computes an amount. Called by [`super::print`].

use potluck_protocol::unit::{Rate, UnixMillis};

use super::{Printed, cost, short, word};
use crate::books::explain::{Cut, Explanation, Step};
use crate::books::table::{Column, number, table, text};
use crate::books::time::shown;
use crate::ledger::LaneRole;

const COLUMNS: [Column; 8] = [
    number("k"),
    number("loading"),
    number("running"),
    number("component"),
    number("tokens"),
    number("amount"),
    text("voucher"),
    text("receipt"),
];

pub(super) fn lines(it: &Explanation) -> Printed {
    let mut data = head(it);
    data.extend(terms(it));
    if !it.steps.is_empty() {
        data.push(String::new());
        data.extend(table(&COLUMNS, &rows(&it.steps)));
    }
    data.push(String::new());
    data.extend(bill(it));
    data.push(end(it));
    if let Some((epoch, step)) = it.agreed_in {
        data.push(format!("  agreed      both have signed a balance since (epoch {epoch}, step {step}): it is settled between you"));
    }
    let mut printed = Printed::data(data);
    if it.thinned {
        printed = printed.and("compaction left out the middle: the outcome is kept, and proves the amount");
    }
    printed
}

fn head(it: &Explanation) -> Vec<String> {
    let peer = it.peer;
    let who = match it.role {
        LaneRole::Renter => format!("we rented from {peer}"),
        LaneRole::Provider => format!("we worked for {peer}"),
    };
    let model = it.model.map(|model| short(&model.to_string()));
    let model = match (&it.model_name, model) {
        (Some(name), Some(hash)) => format!("{name} ({hash})"),
        (_, hash) => hash.unwrap_or_else(|| "unknown: the quote is not kept".into()),
    };
    let digest =
        |digest: Option<potluck_protocol::id::Digest>| digest.map_or("not kept".into(), |it| it.short());
    vec![
        format!("{}   {who}", it.job),
        format!("  opened      {}", shown(UnixMillis::new(it.opened_unix_ms))),
        format!("  model       {model}"),
        format!("  contract    {}   on quote {}", digest(it.contract), digest(it.quote)),
    ]
}

fn terms(it: &Explanation) -> Vec<String> {
    let Some(terms) = &it.terms else {
        return vec!["  prices      unknown: the contract is not kept".into()];
    };
    let price = |rate: Rate| format!("{} ({rate})", rate.get());
    vec![
        format!(
            "  prices      running {}, loading {}, component {}: nano-credits a second",
            price(terms.run),
            price(terms.load),
            price(terms.guest)
        ),
        format!(
            "  pace        a meter each {} ms of work; at most {} ms unpaid",
            terms.quantum.get(),
            terms.window.get()
        ),
        format!(
            "  limits      {} and {} ms",
            cost(it.max_total_nanocredits.unwrap_or(0)),
            it.max_ms.unwrap_or(0)
        ),
    ]
}

fn rows(steps: &[Step]) -> Vec<Vec<String>> {
    let mut rows = Vec::with_capacity(steps.len());
    let mut before = 0;
    for step in steps {
        if step.k != before + 1 {
            rows.push(vec!["…".to_owned()]);
        }
        before = step.k;
        rows.push(vec![
            step.k.to_string(),
            format!("{} ms", step.load_ms),
            format!("{} ms", step.run_ms),
            format!("{} ms", step.guest_ms),
            step.tokens.map_or("-".into(), |tokens| tokens.to_string()),
            step.amount_nanocredits.map_or("unpaid".into(), cost),
            step.voucher.map_or("-".into(), |voucher| voucher.short()),
            if step.receipt.is_some() { "yes".into() } else { "-".into() },
        ]);
    }
    rows
}

fn bill(it: &Explanation) -> Vec<String> {
    let amount = it.amount_nanocredits;
    let (Some(formula), Some(exact)) = (&it.formula, &it.exact_nanocredits) else {
        return vec![format!("  amount      {amount} nano-credits = {}", cost(amount))];
    };
    let mut lines = vec![
        format!("  amount      {formula} = floor({exact})"),
        format!("              = {amount} nano-credits = {}", cost(amount)),
    ];
    if !exact.ends_with(".000") {
        lines.push("              what is under one nano-credit is dropped, once for the whole job, in the renter's favour".into());
    }
    lines
}

fn end(it: &Explanation) -> String {
    let by = match (it.ended_by, it.role) {
        (Some(by), _) if by == it.peer => "them",
        (Some(_), _) => "us",
        (None, _) => return "  ended       not yet: no end is on record".into(),
    };
    if it.abandoned && it.reason.is_none() {
        return format!("  ended       given up by {by} after a day of silence; the last voucher is final");
    }
    let reason = it.reason.map(|reason| word(&reason)).unwrap_or_default();
    let cut = match it.cut_by {
        Some(Cut::Time) => "; the contract's time was used up",
        Some(Cut::Money) => "; the contract's money was used up",
        None => "",
    };
    let finish = it.finish.map(|finish| word(&finish)).unwrap_or_default();
    format!(
        "  ended       {reason} ({finish}), as said by {by}{cut}; {} tokens read, {} written",
        it.prompt_tokens, it.completion_tokens
    )
}
