//! What the renter sees: text on stdout, prose on stderr, or one JSON object a line.
//!
//! Owns: the `--json` events (stable) and the human forms. Never: decides anything. Called by the
//! session and the commands.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use potluck_protocol::fault::Fault;
use potluck_protocol::id::{Digest, LaneId, PeerId};
use potluck_protocol::job::FinishReason;
use potluck_protocol::offer::Protection;
use potluck_protocol::settle::{Phase, Usage};
use potluck_protocol::unit::NanoCredit;
use serde::Serialize;

use crate::error::Failure;
use crate::search::Candidate;

/// One line of `--json`. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The quote that was chosen.
    Quote {
        /// By whom.
        provider: PeerId,
        /// Price of running, nano-credits per GPU-second.
        run_nanocredits_per_second: u64,
        /// Price of loading, nano-credits per GPU-second.
        load_nanocredits_per_second: u64,
        /// Price of a component's own time, nano-credits per second.
        guest_nanocredits_per_second: u64,
        /// Is the model in memory?
        warm: bool,
        /// Jobs that run first.
        ahead: u32,
        /// What it runs on.
        hardware: &'a str,
        /// What stands between the job and the owner's machine.
        protection: Protection,
        /// What we may still come to owe, by the provider's word.
        credit_nanocredits: u64,
        /// How many quotes there were.
        quotes: usize,
        /// Since the command began, in milliseconds.
        elapsed_ms: u64,
    },
    /// The provider took the job.
    Accepted {
        /// Who.
        provider: PeerId,
        /// The job's name in both ledgers.
        job: String,
        /// The epoch of the account; it rises when either side came back with an old ledger.
        epoch: u32,
        /// Digest of the contract.
        contract: Digest,
    },
    /// Where the job is.
    Phase {
        /// The phase.
        phase: Phase,
        /// Jobs ahead while queued.
        ahead: u32,
    },
    /// The next piece of the answer.
    Output {
        /// Its text.
        text: &'a str,
        /// How many tokens it took.
        tokens: usize,
    },
    /// How far a component says it is.
    Progress {
        /// In thousandths.
        permille: u32,
        /// Doing what.
        note: &'a str,
    },
    /// A piece of a component's log.
    Log {
        /// Its text; what is not UTF-8 is replaced.
        text: &'a str,
    },
    /// What a component gave.
    Result {
        /// `utf-8`, or `hex` when the bytes are not UTF-8.
        encoding: &'a str,
        /// The result in that encoding.
        data: &'a str,
    },
    /// What is owed, agreed by both.
    Settled {
        /// To whom.
        provider: PeerId,
        /// Worker time, load and run together, in milliseconds.
        gpu_ms: u64,
        /// A component's own time, in milliseconds.
        guest_ms: u64,
        /// What is owed for this job.
        amount_nanocredits: u64,
        /// Vouchers signed.
        vouchers: u32,
        /// Digest of the provider's last receipt.
        receipt: Option<Digest>,
    },
    /// The job is over.
    Done {
        /// How.
        finish: FinishReason,
        /// Tokens read.
        prompt_tokens: u32,
        /// Tokens written.
        completion_tokens: u32,
        /// From the command's begin to the first token, in milliseconds.
        ttft_ms: Option<u64>,
        /// From the command's begin to here, in milliseconds.
        elapsed_ms: u64,
    },
    /// It failed.
    Error {
        /// Stable code.
        code: &'a str,
        /// Whose fault.
        fault: Fault,
        /// What happened.
        message: String,
        /// What to do.
        hint: String,
    },
}

/// Milliseconds of a duration, for display.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Where output goes.
#[derive(Debug)]
pub struct Printer {
    json: bool,
    quiet: bool,
    terminal: bool,
    spinner: Option<ProgressBar>,
    line_open: bool,
}

impl Printer {
    /// `json`: events on stdout instead of text. `quiet`: no prose on stderr but errors.
    #[must_use]
    pub fn new(json: bool, quiet: bool) -> Self {
        let spinner = (!json && !quiet && io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { json, quiet, terminal: io::stdout().is_terminal(), spinner, line_open: false }
    }

    /// Is a person told, in prose?
    #[must_use]
    pub fn tells(&self) -> bool {
        !self.json && !self.quiet
    }

    /// Shows what is being waited for.
    pub fn waiting(&self, message: String) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(message);
            spinner.tick();
        }
    }

    fn event(&self, event: &Event<'_>) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        let mut line = serde_json::to_string(event)?;
        line.push('\n');
        let mut stdout = io::stdout().lock();
        stdout.write_all(line.as_bytes())?;
        stdout.flush()
    }

    /// The quote that was chosen.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn quote(&self, candidate: &Candidate, quotes: usize, elapsed: Duration) -> io::Result<()> {
        let quote = candidate.quote.body();
        self.waiting(format!("{} at {}", quote.provider.short(), quote.terms.run));
        self.event(&Event::Quote {
            provider: quote.provider,
            run_nanocredits_per_second: quote.terms.run.get(),
            load_nanocredits_per_second: quote.terms.load.get(),
            guest_nanocredits_per_second: quote.terms.guest.get(),
            warm: quote.warm,
            ahead: quote.ahead,
            hardware: &quote.hardware.name,
            protection: quote.protection,
            credit_nanocredits: candidate.credit.get(),
            quotes,
            elapsed_ms: millis(elapsed),
        })
    }

    /// The provider took the job.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn accepted(&self, lane: &LaneId, contract: Digest) -> io::Result<()> {
        self.event(&Event::Accepted {
            provider: lane.provider,
            job: lane.to_string(),
            epoch: lane.epoch,
            contract,
        })
    }

    /// The job moved to another phase.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn phase(&self, phase: Phase, ahead: u32) -> io::Result<()> {
        self.waiting(match phase {
            Phase::Queued => format!("queued, {ahead} ahead"),
            Phase::Load => "loading the model".into(),
            Phase::Run => "running".into(),
            Phase::Guest => "the component works".into(),
            Phase::Stalled => "waiting for payment to cross".into(),
        });
        self.event(&Event::Phase { phase, ahead })
    }

    /// A piece of the answer. On a terminal, control characters are left out: the text is a
    /// stranger's.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn text(&mut self, text: &str, tokens: usize) -> io::Result<()> {
        if self.json {
            return self.event(&Event::Output { text, tokens });
        }
        if text.is_empty() {
            return Ok(());
        }
        self.stop_spinner();
        let mut stdout = io::stdout().lock();
        if self.terminal {
            let harmless: String =
                text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
            stdout.write_all(harmless.as_bytes())?;
        } else {
            stdout.write_all(text.as_bytes())?;
        }
        self.line_open = !text.ends_with('\n');
        stdout.flush()
    }

    /// How far a component is.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn progress(&self, permille: u32, note: &str) -> io::Result<()> {
        self.waiting(format!("{}.{} % {}", permille / 10, permille % 10, harmless(note)));
        self.event(&Event::Progress { permille, note })
    }

    /// A piece of a component's log: prose, so on stderr.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn log(&mut self, bytes: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(bytes);
        if self.json {
            return self.event(&Event::Log { text: &text });
        }
        if !self.quiet {
            self.stop_spinner();
            let mut stderr = io::stderr().lock();
            let text = if stderr.is_terminal() { harmless(&text).into() } else { text };
            // A closed stderr is nobody's concern.
            let _ = stderr.write_all(text.as_bytes());
        }
        Ok(())
    }

    /// What a component gave, whole. Bytes that are not text are not sent to a terminal.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn result(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stop_spinner();
        let text = std::str::from_utf8(bytes).ok();
        if self.json {
            let hex = if text.is_some() { String::new() } else { potluck_protocol::id::hex(bytes) };
            let (encoding, data) = text.map_or(("hex", hex.as_str()), |text| ("utf-8", text));
            return self.event(&Event::Result { encoding, data });
        }
        let mut stdout = io::stdout().lock();
        match text {
            Some(text) if self.terminal => {
                stdout.write_all(harmless(text).as_bytes())?;
                if !text.ends_with('\n') {
                    stdout.write_all(b"\n")?;
                }
            }
            None if self.terminal => {
                eprintln_prose(&format!(
                    "{} bytes that are not text: keep them with --output FILE",
                    bytes.len()
                ));
            }
            _ => stdout.write_all(bytes)?,
        }
        stdout.flush()
    }

    fn stop_spinner(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    /// Ends the line of the answer, so that prose begins on its own.
    pub fn end_text(&mut self) {
        self.stop_spinner();
        if std::mem::take(&mut self.line_open) && !self.json {
            let mut stdout = io::stdout().lock();
            // A closed stdout was noticed when the text was written.
            let _ = stdout.write_all(b"\n").and_then(|()| stdout.flush());
        }
    }

    /// The bill and how it ended.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn settled(&mut self, outcome: &Outcome) -> io::Result<()> {
        self.end_text();
        self.event(&Event::Settled {
            provider: outcome.provider,
            gpu_ms: outcome.usage.load.saturating_add(outcome.usage.run).get(),
            guest_ms: outcome.usage.guest.get(),
            amount_nanocredits: outcome.amount.get(),
            vouchers: outcome.vouchers,
            receipt: outcome.receipt,
        })?;
        self.event(&Event::Done {
            finish: outcome.finish,
            prompt_tokens: outcome.prompt_tokens,
            completion_tokens: outcome.completion_tokens,
            ttft_ms: outcome.ttft.map(millis),
            elapsed_ms: millis(outcome.elapsed),
        })?;
        if !self.json && !self.quiet {
            let did = if outcome.is_component {
                let usage = outcome.usage;
                format!(
                    "wasm {} ms, models {} ms, loading {} ms",
                    usage.guest.get(),
                    usage.run.get(),
                    usage.load.get()
                )
            } else {
                format!("{} tokens", outcome.completion_tokens)
            };
            eprintln_prose(&format!(
                "[{} · {:.2} s · {} · {did} · jail: {}]",
                outcome.provider.short(),
                outcome.elapsed.as_secs_f64(),
                outcome.amount,
                outcome.protection.name(),
            ));
        }
        Ok(())
    }

    /// A failure: one line what, one line what next.
    pub fn failure(&mut self, failure: &Failure) {
        self.end_text();
        let event = Event::Error {
            code: failure.code(),
            fault: failure.fault(),
            message: failure.to_string(),
            hint: failure.hint(),
        };
        // Nothing is left to tell when even this cannot be written.
        let _ = self.event(&event);
        if !self.json {
            let blameless = matches!(
                failure,
                Failure::BudgetReached { .. } | Failure::CreditReached { .. } | Failure::OwnerYielded { .. }
            );
            let opening = if blameless { "stopped" } else { "error" };
            eprintln_prose(&format!("{opening}: {failure}\n  {}", failure.hint()));
        }
    }
}

/// A stranger's text without what could steer a terminal.
fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// Writes prose to stderr; a closed stderr is nobody's concern.
pub fn eprintln_prose(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes a line of data to stdout.
///
/// # Errors
/// When stdout is closed.
pub fn print_data(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// How a job ended, for the summary.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Who ran it.
    pub provider: PeerId,
    /// Behind what.
    pub protection: Protection,
    /// Time paid.
    pub usage: Usage,
    /// What is owed.
    pub amount: NanoCredit,
    /// Vouchers signed.
    pub vouchers: u32,
    /// Digest of the last receipt.
    pub receipt: Option<Digest>,
    /// How the answer ended.
    pub finish: FinishReason,
    /// Tokens read.
    pub prompt_tokens: u32,
    /// Tokens written.
    pub completion_tokens: u32,
    /// Was it a component?
    pub is_component: bool,
    /// What the component gave.
    pub output: Vec<u8>,
    /// From the begin to the first token.
    pub ttft: Option<Duration>,
    /// From the begin to the end.
    pub elapsed: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_their_names() {
        let event = Event::Settled {
            provider: PeerId::from_bytes([1; 32]),
            gpu_ms: 1_284,
            guest_ms: 0,
            amount_nanocredits: 14_266,
            vouchers: 2,
            receipt: None,
        };
        let line = serde_json::to_value(&event).unwrap();
        assert_eq!(line["event"], "settled");
        assert_eq!(line["gpu_ms"], 1_284);
        assert_eq!(line["amount_nanocredits"], 14_266);
        let done = Event::Done {
            finish: FinishReason::Length,
            prompt_tokens: 1,
            completion_tokens: 2,
            ttft_ms: Some(3),
            elapsed_ms: 4,
        };
        assert_eq!(serde_json::to_value(&done).unwrap()["finish"], "length");
    }
}
