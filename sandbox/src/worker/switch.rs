//! How the listening thread steers the computing one.
//!
//! Owns: whether work goes on, and whether it is paused or cancelled. Never: computes or reads the
//! socket. Called by both threads of [`crate::worker`].

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::engine::{Control, Directive};
use crate::ipc::order::Work;

/// Shared between the two threads.
#[derive(Debug, Default)]
pub(super) struct Switch {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The work in hand: a run's number, 0 for loading.
    run: Option<u64>,
    /// In a run of calls: whether one is in hand.
    calling: Option<bool>,
    paused: bool,
    cancelled: bool,
    /// The process is about to end: nothing starts any more.
    closing: bool,
}

impl Switch {
    /// A panic in between leaves plain flags behind, which are as good as any.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work is handed over: `run`, or 0 for loading. Before it is, so that a cancel is never early.
    pub(super) fn begin(&self, run: u64) {
        let mut state = self.state();
        *state = State { run: Some(run), closing: state.closing, ..State::default() };
    }

    /// As [`Self::begin`], for a run of calls.
    pub(super) fn begin_serving(&self, run: u64) {
        self.begin(run);
        self.state().calling = Some(false);
    }

    /// A call of the run is handed over, or answered.
    pub(super) fn set_calling(&self, calling: bool) {
        self.state().calling = Some(calling);
    }

    /// What is in hand. A run of calls that was cancelled awaits no further one.
    pub(super) fn work(&self) -> Work {
        let state = self.state();
        match (state.run, state.calling) {
            (None, _) => Work::Idle,
            (Some(_), Some(false)) if !state.cancelled => Work::Serving,
            (Some(_), _) => Work::Busy,
        }
    }

    /// The work is over.
    pub(super) fn end(&self) {
        self.state().run = None;
    }

    /// Whether work is in hand.
    pub(super) fn is_busy(&self) -> bool {
        self.state().run.is_some()
    }

    pub(super) fn pause(&self, run: u64) {
        self.change(run, |state| state.paused = true);
    }

    pub(super) fn resume(&self, run: u64) {
        self.change(run, |state| state.paused = false);
    }

    /// Cancels the run; true when it is a run of calls that must be told to end, which is once.
    pub(super) fn cancel(&self, run: u64) -> bool {
        let mut ends = false;
        self.change(run, |state| {
            ends = state.calling.is_some() && !state.cancelled;
            state.cancelled = true;
        });
        ends
    }

    /// Ends whatever runs and whatever would start.
    pub(super) fn cancel_all(&self) {
        self.state().closing = true;
        self.changed.notify_all();
    }

    /// Changes the state if `run` is what runs: a word about an earlier one comes too late.
    fn change(&self, run: u64, with: impl FnOnce(&mut State)) {
        let mut state = self.state();
        if state.run == Some(run) {
            with(&mut state);
            self.changed.notify_all();
        }
    }
}

impl State {
    fn directive(&self) -> Directive {
        if self.cancelled || self.closing {
            Directive::Cancel
        } else if self.paused {
            Directive::Pause
        } else {
            Directive::Continue
        }
    }
}

impl Control for Switch {
    fn directive(&self) -> Directive {
        self.state().directive()
    }

    fn wait_while_paused(&self) {
        let paused = |state: &mut State| state.directive() == Directive::Pause;
        // No time limit: the owner may pause for hours. A dead daemon is heard by the listener,
        // which ends the pause.
        drop(self.changed.wait_while(self.state(), paused).unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn a_word_about_another_run_changes_nothing() {
        let switch = Switch::default();
        switch.begin(2);
        switch.cancel(1);
        switch.pause(1);
        assert_eq!(switch.directive(), Directive::Continue);
        switch.pause(2);
        assert_eq!(switch.directive(), Directive::Pause);
        switch.cancel(2);
        assert_eq!(switch.directive(), Directive::Cancel);
        switch.end();
        switch.begin(3);
        assert_eq!(switch.directive(), Directive::Continue);
        switch.cancel_all();
        switch.begin(4);
        assert_eq!(switch.directive(), Directive::Cancel);
    }

    #[test]
    fn a_run_of_calls_awaits_one_after_another_and_is_told_to_end_once() {
        let switch = Switch::default();
        assert_eq!(switch.work(), Work::Idle);
        switch.begin_serving(1);
        assert_eq!(switch.work(), Work::Serving);
        switch.set_calling(true);
        assert_eq!(switch.work(), Work::Busy);
        switch.set_calling(false);
        assert_eq!(switch.work(), Work::Serving);
        assert!(!switch.cancel(2) && switch.cancel(1) && !switch.cancel(1));
        assert_eq!(switch.work(), Work::Busy);
        switch.end();
        assert!(!switch.cancel(1));
        switch.begin(2);
        assert_eq!((switch.work(), switch.cancel(2)), (Work::Busy, false));
    }

    #[test]
    fn a_pause_ends_by_resume_cancel_or_closing() {
        let cancel = |switch: &Switch| assert!(!switch.cancel(1));
        let enders: [fn(&Switch); 3] = [|switch| switch.resume(1), cancel, Switch::cancel_all];
        for end in enders {
            let switch = Arc::new(Switch::default());
            switch.begin(1);
            switch.pause(1);
            let waiting = Arc::clone(&switch);
            let thread = thread::spawn(move || waiting.wait_while_paused());
            end(&switch);
            thread.join().unwrap();
            assert_ne!(switch.directive(), Directive::Pause);
        }
    }
}
