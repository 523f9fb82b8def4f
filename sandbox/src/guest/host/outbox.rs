//! What the guest's thread says to the daemon, and the answers that it waits for.
//!
//! Owns: the writing end of the socket, the numbers of calls and the place where a reply is put down.
//! Never: reads the socket (the listening thread does) and never trusts a reply's shape. Called by
//! the guest's imports and by both threads of the run worker.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::guest::clock::Clock;
use crate::guest::order::{GuestCommandOrder, GuestOrderError};
use crate::guest::wire::{self, GuestCommand, GuestEvent};
use crate::ipc::IpcError;
use crate::tensor::{ModelCallError, ModelReply, ModelRequest};

/// A model's answer to one call.
pub(in crate::guest) type Answer = Result<ModelReply, ModelCallError>;

/// The daemon does not listen any more: the run has no purpose left.
#[derive(Debug, Error)]
#[error("the daemon does not listen: {source}")]
pub(in crate::guest) struct Gone {
    /// What the socket says.
    source: IpcError,
}

/// One run's way to the daemon.
#[derive(Debug)]
pub(in crate::guest) struct Outbox {
    socket: Mutex<UnixStream>,
    state: Mutex<State>,
    answered: Condvar,
    clock: Arc<Clock>,
}

#[derive(Debug)]
struct State {
    order: GuestCommandOrder,
    answer: Option<Answer>,
    /// Nothing is asked any more.
    closed: bool,
}

impl Outbox {
    /// To the daemon behind `socket`, from which `order` was heard.
    pub(in crate::guest) fn new(socket: UnixStream, order: GuestCommandOrder, clock: Arc<Clock>) -> Self {
        let state = Mutex::new(State { order, answer: None, closed: false });
        Self { socket: Mutex::new(socket), state, answered: Condvar::new(), clock }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what the listening thread hears.
    ///
    /// # Errors
    /// When it may not come now.
    pub(in crate::guest) fn hear(&self, command: &GuestCommand) -> Result<(), GuestOrderError> {
        self.state().order.accept(command)
    }

    /// Puts down the reply to the open call.
    pub(in crate::guest) fn answer(&self, answer: Answer) {
        self.state().answer = Some(answer);
        self.answered.notify_all();
    }

    /// Ends all asking: handles that the guest left open are dropped without a word.
    pub(in crate::guest) fn close(&self) {
        self.state().closed = true;
    }

    /// Whether all is said.
    pub(in crate::guest) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Says `event`.
    ///
    /// # Errors
    /// [`Gone`].
    pub(in crate::guest) fn tell(&self, event: &GuestEvent) -> Result<(), Gone> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        wire::write(&mut *socket, event).map_err(|source| Gone { source })
    }

    /// Asks the model at place `model` and waits. The guest's clock stands still meanwhile.
    ///
    /// # Errors
    /// [`Gone`]; the answer has the model's own errors.
    pub(super) fn ask(&self, model: u8, request: ModelRequest) -> Result<Answer, Gone> {
        if let Err(error) = request.check() {
            return Ok(Err(error));
        }
        let kind = request.kind();
        let call = {
            let mut state = self.state();
            if state.closed {
                return Ok(Err(ModelCallError::Cancelled));
            }
            state.order.call()
        };
        self.clock.stop();
        self.tell(&GuestEvent::Call { call, model, request: Box::new(request) })?;
        let answer = self.wait();
        self.clock.go();
        Ok(answer.and_then(|reply| {
            if reply.kind() == kind {
                Ok(reply)
            } else {
                Err(ModelCallError::engine("the model answered something else than it was asked"))
            }
        }))
    }

    fn wait(&self) -> Answer {
        // No time limit: a model may compute long, and the owner may pause it. A dead daemon is heard
        // by the listener, which ends the process.
        let waited = self.answered.wait_while(self.state(), |state| state.answer.is_none());
        let answer = waited.unwrap_or_else(PoisonError::into_inner).answer.take();
        answer.unwrap_or(Err(ModelCallError::Cancelled))
    }
}
