//! Whose turn it is to append: the writer's thread's, or a caller's while nobody waits.
//!
//! Owns: [`Turn`], the lock on the writer, and [`Pace`], whether the disk is quick enough for a caller to wait
//! for it. Never: writes. Called by the ledger's front and the writer.
//!
//! A caller is an async task, and its thread has others to run: it waits itself only for a disk that is
//! quick, and for work that is short. All that takes longer is left to the thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::writer::Writer;

/// A write and its sync of at most so long, what checking some twenty signatures takes, may be waited for by
/// a thread that has other tasks to run: a lane asks for it a few times a second. A bound near to what a quick
/// disk takes would send every other append through the thread.
const QUICK: Duration = Duration::from_micros(1_000);
/// The last group counts for one part in so many: one sync that had to wait makes no slow disk of a quick
/// one.
const PARTS: u32 = 8;

/// Who has the writer: its thread, or a caller while nobody waits.
#[derive(Debug)]
pub(super) struct Turn {
    writer: Mutex<Writer>,
    /// Does the thread wait for its turn? Then no caller takes one.
    thread_waits: AtomicBool,
}

impl Turn {
    /// Nobody's turn yet.
    pub(super) fn new(writer: Writer) -> Self {
        Self { writer: Mutex::new(writer), thread_waits: AtomicBool::new(false) }
    }

    /// The thread's turn; never, if whoever had the last one panicked: what it was about to write is unknown.
    pub(super) fn of_thread(&self) -> Option<MutexGuard<'_, Writer>> {
        self.thread_waits.store(true, Ordering::Relaxed);
        let writer = self.writer.lock().ok();
        self.thread_waits.store(false, Ordering::Relaxed);
        writer
    }

    /// A caller's turn, if it is nobody's.
    pub(super) fn of_caller(&self) -> Option<MutexGuard<'_, Writer>> {
        if self.thread_waits.load(Ordering::Relaxed) { None } else { self.writer.try_lock().ok() }
    }
}

/// How long groups took to reach the disk lately.
#[derive(Debug, Default)]
pub(super) struct Pace(Option<Duration>);

impl Pace {
    /// A group was on the disk after `took`.
    pub(super) fn note(&mut self, took: Duration) {
        self.0 = Some(self.0.map_or(took, |usual| (usual * (PARTS - 1)).saturating_add(took) / PARTS));
    }

    /// May a thread with other tasks wait for the next one? Not before there was any.
    pub(super) fn is_quick(&self) -> bool {
        self.0.is_some_and(|usual| usual <= QUICK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(micros: &[u64]) -> bool {
        let mut pace = Pace::default();
        micros.iter().for_each(|it| pace.note(Duration::from_micros(*it)));
        pace.is_quick()
    }

    #[test]
    fn one_sync_that_waited_makes_no_slow_disk_and_a_slow_disk_shows_at_once() {
        assert!(!after(&[]));
        assert!(after(&[150]));
        assert!(after(&[150, 150, 2_000, 150]));
        assert!(!after(&[150, 150, 20_000]));
        assert!(!after(&[&[150][..], &[1_500; 16]].concat()));
        assert!(!after(&[20_000, 150, 150]));
        assert!(after(&[&[20_000][..], &[150; 40]].concat()));
    }
}
