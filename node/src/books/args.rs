//! The words of `ledger`, the same in `potluck` and `potluckd`.
//!
//! Owns: the verbs, their flags, their help, and what each comes to: a question to the ledger, a change
//! of it, or work on a file alone. Never: does any of it. Parsed by both programs' command lines.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use potluck_protocol::id::PeerId;
use potluck_protocol::unit::UnixMillis;

use super::time::parse_since;
use super::{Ask, ReceiptsAsk};

/// Receipts shown unless told otherwise.
const RECEIPTS: usize = 100;
/// Receipts shown at most.
const MAX_RECEIPTS: usize = 10_000;

/// In which form an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Tables on stdout for people, prose on stderr.
    Table,
    /// JSON on stdout: one object a line.
    Json,
    /// Comma-separated values on stdout, the names of the columns first.
    Csv,
}

/// The flag of verbs whose answer is no table.
#[derive(Debug, Clone, Copy, Args)]
pub struct JsonFlag {
    /// JSON on stdout instead of text: one object a line
    #[arg(long)]
    pub json: bool,
}

/// The flags of verbs whose answer is a table.
#[derive(Debug, Clone, Copy, Args)]
pub struct TableFlags {
    /// JSON on stdout instead of a table: one object a line
    #[arg(long)]
    pub json: bool,
    /// Comma-separated values on stdout instead of a table
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

/// What can be asked of a ledger, and done with it.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// What peers owe us, and what we owe them
    #[command(after_help = "Examples (potluckd takes the same words):\n\
        \x20 potluck ledger balance\n\
        \x20 potluck ledger balance --json | jq .balance_nanocredits\n\
        \x20 potluck ledger balance --csv > balances.csv\n\
        \n\
        JSON: one object: peer (us), owed_to_us_nanocredits, we_owe_nanocredits, balance_nanocredits,\n\
        pairs: [{peer, balance_nanocredits, lanes, open}]\n\
        CSV: peer, balance_nanocredits, lanes, open. Above zero: the peer owes us")]
    Balance(TableFlags),
    /// The account with each peer: balance, payments, credit used, epoch, agreed step, what waits
    #[command(after_help = "Examples (potluckd takes the same words):\n\
        \x20 potluck ledger pairs\n\
        \x20 potluck ledger pairs --json | jq 'select(.frozen)'\n\
        \n\
        JSON: one object a peer: peer, balance_nanocredits, settled_nanocredits (by the peer to us),\n\
        paid_nanocredits (by us to the peer), open_caps_nanocredits, credit_used_nanocredits, lanes,\n\
        open, epoch, step, floor_unix_ms, frozen, waiting: [{epoch, step, by, payer, amount_nanocredits,\n\
        reference, balance_nanocredits, waits_for}]\n\
        CSV: the same without waiting, of which waiting_for_us and waiting_for_them are the numbers")]
    Pairs(TableFlags),
    /// The jobs, newest first
    #[command(after_help = "Examples (potluckd takes the same words):\n\
        \x20 potluck ledger receipts --since 7d\n\
        \x20 potluck ledger receipts --since 2026-11-01 --csv > november.csv\n\
        \x20 potluck ledger receipts --json | jq .amount_nanocredits\n\
        \n\
        JSON: one object a job: job, role, peer, opened_unix_ms, closed_unix_ms, model, model_name,\n\
        gpu_ms, load_ms, run_ms, guest_ms, amount_nanocredits, max_total_nanocredits, vouchers,\n\
        receipts, prompt_tokens, completion_tokens, reason, contract, receipt\n\
        CSV: the same columns in that order")]
    Receipts {
        /// Only jobs from then on: 2026-11-24, 2026-11-24T16:00:00Z, or so long ago: 90s, 30m, 12h, 7d
        #[arg(long, value_name = "DATE|DURATION", value_parser = parse_since)]
        since: Option<UnixMillis>,
        /// Only jobs with this peer
        #[arg(long, value_name = "ID")]
        peer: Option<PeerId>,
        /// Only this job
        #[arg(long, value_name = "ID")]
        job: Option<String>,
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = RECEIPTS, value_parser = parse_limit)]
        limit: usize,
        /// How.
        #[command(flatten)]
        form: TableFlags,
    },
    /// Every object that is kept of a job, or that a digest names
    #[command(after_help = "Examples (potluckd takes the same words):\n\
        \x20 potluck ledger show job_0123456789abcdef\n\
        \x20 potluck ledger show b3:9f2c01 --json\n\
        \n\
        ID is a job, or the beginning of an object's digest (at least 4 digits).\n\
        JSON: one object each: kind, digest, signer, job, about, body, signed (its canonical bytes, in\n\
        hexadecimal)")]
    Show {
        /// A job, or the beginning of a digest
        #[arg(value_name = "ID")]
        id: String,
        /// How.
        #[command(flatten)]
        form: JsonFlag,
    },
    /// Why a job costs what it costs
    #[command(after_help = "Example (potluckd takes the same words):\n\
        \x20 potluck ledger explain job_0123456789abcdef\n\
        \n\
        JSON: one object: job, role, peer, opened_unix_ms, closed_unix_ms, model, model_name, contract,\n\
        quote, terms, max_total_nanocredits, max_ms, steps: [{k, load_ms, run_ms, guest_ms, tokens,\n\
        amount_nanocredits, meter, voucher, receipt}], thinned, formula, exact_nanocredits,\n\
        amount_nanocredits, cut_by, ended_by, reason, finish, abandoned, prompt_tokens,\n\
        completion_tokens, receipt, agreed_in: [epoch, step]")]
    Explain {
        /// The job
        #[arg(value_name = "JOB")]
        job: String,
        /// How.
        #[command(flatten)]
        form: JsonFlag,
    },
    /// Write the whole ledger to one file that anybody can verify offline
    #[command(after_help = "Examples (potluckd takes the same words):\n\
        \x20 potluck ledger export backup.potluck\n\
        \x20 potluck ledger export with-one.potluck --peer 12D3KooW...\n\
        \n\
        The file is whole or not there. An older export of that name is replaced; any other file is not.\n\
        JSON: one object: file, owner, peer, entries, bytes, chain")]
    Export {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Only what is between us and this peer
        #[arg(long, value_name = "ID")]
        peer: Option<PeerId>,
        /// How.
        #[command(flatten)]
        form: JsonFlag,
    },
    /// Take in an export of this ledger: what is missing here is kept
    #[command(after_help = "Example (potluckd takes the same words; stop it first):\n\
        \x20 potluck ledger import backup.potluck\n\
        \n\
        A damaged file, or another owner's, changes nothing. Whatever conflicts with what is kept here\n\
        becomes a proof. Where the file brings back what we had signed, the epoch with that peer is\n\
        raised.\n\
        JSON: one object: file, new, known, conflicting, foreign, put_away, proofs, epochs_raised,\n\
        faults")]
    Import {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// How.
        #[command(flatten)]
        form: JsonFlag,
    },
    /// Check an export file: every signature, price, link and sum. Needs nothing but the file
    #[command(after_help = "Example (potluckd takes the same words):\n\
        \x20 potluck ledger verify backup.potluck\n\
        \n\
        JSON: one object a peer (kind \"pair\"): peer, balance_nanocredits, settled_nanocredits,\n\
        paid_nanocredits, epoch, step, agreed, agreed_unproven, lanes, open, thinned, unproven, frozen,\n\
        faults, first_fault; then one (kind \"file\"): file, owner, peer, made_unix_ms, statements,\n\
        proofs, pairs, balance_nanocredits, faults, first_fault.\n\
        Exit codes: 0 all is as it must be, 1 the file is damaged or a law is broken in it")]
    Verify {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// How.
        #[command(flatten)]
        form: JsonFlag,
    },
    /// Check the whole journal of this ledger, and its index
    #[command(after_help = "Example (potluckd takes the same words):\n\
        \x20 potluck ledger check\n\
        \n\
        JSON: one object: records (ever kept), objects (checked), dropped (by compaction)")]
    Check(JsonFlag),
    /// Who is known to have signed two things in one place
    #[command(after_help = "Example (potluckd takes the same words):\n\
        \x20 potluck ledger proofs --json\n\
        \n\
        JSON: one object a proof: peer, place, digest")]
    Proofs(JsonFlag),
    /// Write the proof against a peer to a file that convicts it anywhere
    #[command(after_help = "Example (potluckd takes the same words):\n\
        \x20 potluck ledger proof 12D3KooW... --out cheat.proof\n\
        \n\
        JSON: one object: file, peer, place, digest, bytes")]
    Proof {
        /// Whom it convicts
        #[arg(value_name = "PEER")]
        peer: PeerId,
        /// The file
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// How.
        #[command(flatten)]
        form: JsonFlag,
    },
    /// Check a proof. Needs nothing but the file
    #[command(after_help = "Example (potluckd takes the same words):\n\
        \x20 potluck ledger verify-proof cheat.proof\n\
        \n\
        JSON: one object: file, peer, place, digest\n\
        Exit codes: 0 it convicts the peer, 1 it proves nothing")]
    VerifyProof {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// How.
        #[command(flatten)]
        form: JsonFlag,
    },
}

/// What a verb comes to.
#[derive(Debug, Clone)]
pub enum Work {
    /// A question: for whoever holds the ledger.
    Ask(Ask),
    /// A change: for this process, when nobody else holds the ledger.
    Import(PathBuf),
    /// Work on an export file alone.
    Verify(PathBuf),
    /// Work on a proof alone.
    VerifyProof(PathBuf),
}

impl Verb {
    /// In which form its answer is printed.
    #[must_use]
    pub fn form(&self) -> Form {
        match self {
            Self::Balance(form) | Self::Pairs(form) | Self::Receipts { form, .. } => match form {
                TableFlags { json: true, .. } => Form::Json,
                TableFlags { csv: true, .. } => Form::Csv,
                TableFlags { .. } => Form::Table,
            },
            Self::Show { form, .. }
            | Self::Explain { form, .. }
            | Self::Export { form, .. }
            | Self::Import { form, .. }
            | Self::Verify { form, .. }
            | Self::Check(form)
            | Self::Proofs(form)
            | Self::Proof { form, .. }
            | Self::VerifyProof { form, .. } => {
                if form.json {
                    Form::Json
                } else {
                    Form::Table
                }
            }
        }
    }

    /// What it comes to.
    #[must_use]
    pub fn work(self) -> Work {
        Work::Ask(match self {
            Self::Balance(_) => Ask::Balance,
            Self::Pairs(_) => Ask::Pairs,
            Self::Receipts { since, peer, job, limit, .. } => {
                Ask::Receipts(ReceiptsAsk { since, peer, job, limit })
            }
            Self::Show { id, .. } => Ask::Show { id },
            Self::Explain { job, .. } => Ask::Explain { job },
            Self::Export { file, peer, .. } => Ask::Export { file: absolute(file), peer },
            Self::Check(_) => Ask::Check,
            Self::Proofs(_) => Ask::Proofs,
            Self::Proof { peer, out, .. } => Ask::Proof { peer, out: absolute(out) },
            Self::Import { file, .. } => return Work::Import(file),
            Self::Verify { file, .. } => return Work::Verify(file),
            Self::VerifyProof { file, .. } => return Work::VerifyProof(file),
        })
    }
}

/// Whoever answers may have another working folder.
fn absolute(file: PathBuf) -> PathBuf {
    std::path::absolute(&file).unwrap_or(file)
}

fn parse_limit(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|limit| (1..=MAX_RECEIPTS).contains(limit))
        .ok_or_else(|| format!("expected 1 to {MAX_RECEIPTS}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser};

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        verb: Verb,
    }

    fn parse(words: &[&str]) -> Result<Verb, clap::Error> {
        Cli::try_parse_from(["ledger"].into_iter().chain(words.iter().copied())).map(|cli| cli.verb)
    }

    #[test]
    fn the_words_are_sound_and_wrong_ones_are_usage_errors() {
        Cli::command().debug_assert();
        for wrong in [
            &["receipts", "--limit", "0"][..],
            &["receipts", "--since", "yesterday"],
            &["receipts", "--peer", "me"],
            &["balance", "--json", "--csv"],
            &["show"],
            &["explain", "--csv", "job_1"],
            &["proof", "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"],
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }

    #[test]
    fn files_are_named_for_whoever_answers() {
        let Work::Ask(Ask::Export { file, .. }) = parse(&["export", "here"]).unwrap().work() else {
            panic!("an export is a question");
        };
        assert!(file.is_absolute());
        assert_eq!(parse(&["balance", "--csv"]).unwrap().form(), Form::Csv);
        assert_eq!(parse(&["check", "--json"]).unwrap().form(), Form::Json);
    }
}
