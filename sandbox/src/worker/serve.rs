//! A run of calls in the worker: requests answered one by one until the run is cancelled.
//!
//! Owns: the loop between a [`Command::Serve`](crate::ipc::Command::Serve) and its end, and the signs
//! of life in between. Never: reads the socket (the listening thread does), or keeps a session past
//! its run. Called by the computing thread of [`super::Worker`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use potluck_protocol::job::FinishReason;

use super::{Task, Worker};
use crate::exit::WorkerExit;
use crate::ipc::{Event, write_event};

/// A sign of life is sent at most this often: a step may take a few milliseconds only.
const LIFE_EVERY: Duration = Duration::from_millis(500);

impl Worker {
    /// Answers the calls of `run` until it is told to end; the exit when that ends the worker.
    pub(super) fn serve(&mut self, run: u64, inbox: &Receiver<Task>) -> Option<WorkerExit> {
        let Some(engine) = &self.engine else { return Some(WorkerExit::Protocol) };
        let (mut socket, switch) = (&self.socket, &self.switch);
        let mut calls = engine.calls();
        loop {
            let request = match inbox.recv() {
                Ok(Task::Call(request)) => request,
                Ok(Task::EndServing) => break,
                Ok(Task::Leave(exit)) => return Some(exit),
                Ok(Task::Load(_) | Task::Generate(..) | Task::Serve(_)) => return Some(WorkerExit::Protocol),
                Err(_) => return Some(WorkerExit::Orphaned),
            };
            let mut last = Instant::now();
            let answered = catch_unwind(AssertUnwindSafe(|| {
                calls.answer(&request, &**switch, &mut || {
                    if last.elapsed() >= LIFE_EVERY {
                        last = Instant::now();
                        if write_event(&mut socket, &Event::Computing { run }).is_err() {
                            switch.cancel_all();
                        }
                    }
                })
            }));
            drop(request);
            match answered {
                Ok(result) => {
                    // Before the reply: the next call may come the moment the daemon hears it.
                    switch.set_calling(false);
                    if let Err(error) = write_event(&mut socket, &Event::Reply { run, result }) {
                        super::log(&format!("the daemon does not listen: {error}"));
                        return Some(WorkerExit::Orphaned);
                    }
                }
                Err(panic) => return Some(self.broken(&*panic)),
            }
        }
        drop(calls);
        let reason = FinishReason::Cancelled;
        self.finish(&Event::Finished { run, reason, completion_tokens: 0 })
    }
}
