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
use potluck_protocol::offer::{Protection, Quote};
use potluck_protocol::settle::{Phase, Usage};
use potluck_protocol::unit::NanoCredit;
use serde::Serialize;

use crate::error::Failure;

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
        /// Is the model in memory?
        warm: bool,
        /// Jobs that run first.
        ahead: u32,
        /// What it runs on.
        hardware: &'a str,
        /// What stands between the job and the owner's machine.
        protection: Protection,
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
    /// What is owed, agreed by both.
    Settled {
        /// To whom.
        provider: PeerId,
        /// Worker time, load and run together, in milliseconds.
        gpu_ms: u64,
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
    pub fn quote(&self, quote: &Quote, quotes: usize, elapsed: Duration) -> io::Result<()> {
        self.waiting(format!("{} at {}", quote.provider.short(), quote.terms.run));
        self.event(&Event::Quote {
            provider: quote.provider,
            run_nanocredits_per_second: quote.terms.run.get(),
            load_nanocredits_per_second: quote.terms.load.get(),
            warm: quote.warm,
            ahead: quote.ahead,
            hardware: &quote.hardware.name,
            protection: quote.protection,
            quotes,
            elapsed_ms: millis(elapsed),
        })
    }

    /// The provider took the job.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn accepted(&self, lane: &LaneId, contract: Digest) -> io::Result<()> {
        self.event(&Event::Accepted { provider: lane.provider, job: lane.to_string(), contract })
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
            gpu_ms: outcome.usage.total().get(),
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
            eprintln_prose(&format!(
                "[{} · {:.2} s · {} · {} tokens · protection: {}]",
                outcome.provider.short(),
                outcome.elapsed.as_secs_f64(),
                outcome.amount,
                outcome.completion_tokens,
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
            let opening = if matches!(failure, Failure::BudgetReached { .. }) { "stopped" } else { "error" };
            eprintln_prose(&format!("{opening}: {failure}\n  {}", failure.hint()));
        }
    }
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
