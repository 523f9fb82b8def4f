//! `potluck:job/report`: how far a guest is, and its log.
//!
//! Owns: how often progress is passed on. Never: waits, or keeps a note back for later. Called by the
//! guest.

use std::time::{Duration, Instant};

use potluck_protocol::limits::MAX_NOTE_BYTES;

use super::Host;
use super::bindings::potluck::job::report;
use crate::guest::wire::GuestEvent;
use crate::text;

/// Notes that come sooner after the last one are dropped.
const PACE: Duration = Duration::from_millis(100);

/// When the last note was passed on.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<Instant>,
}

impl Pace {
    /// Whether a note at `now` is passed on.
    fn allows(&mut self, now: Instant) -> bool {
        let soon = self.last.is_some_and(|last| now.saturating_duration_since(last) < PACE);
        if !soon {
            self.last = Some(now);
        }
        !soon
    }
}

impl report::Host for Host {
    fn progress(&mut self, permille: u32, note: String) -> wasmtime::Result<()> {
        if self.pace.allows(Instant::now()) {
            let permille = u16::try_from(permille.min(1_000)).unwrap_or(1_000);
            let note = text::clean(&note, MAX_NOTE_BYTES);
            self.outbox.tell(&GuestEvent::Progress { permille, note })?;
        }
        Ok(())
    }

    fn log(&mut self, line: String) -> wasmtime::Result<()> {
        Ok(self.log.line(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_ten_notes_a_second_pass() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let passed = (0..1_000).filter(|&ms| pace.allows(start + Duration::from_millis(ms))).count();
        assert_eq!(passed, 10);
    }
}
