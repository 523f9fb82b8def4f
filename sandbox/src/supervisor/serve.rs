//! A run of calls: one guest's requests to one worker's model.
//!
//! Owns: the run from its begin to its end, and the wait for each reply. Never: looks into a request
//! (the worker checks it), relays between processes, or waits for a worker without a limit. Called by
//! whoever runs a component, once for each model that its job names.
//!
//! ```text
//!   Worker::serve --> ModelRun --call--> reply ... --end--> the worker is idle again
//!                         |  +--- a dropped call ---+
//!                         |                         v
//!                         +--- dropped -------> cancelled; the next job waits for its end
//! ```

use potluck_protocol::wire::WireError;
use tokio::time::Instant;

use super::{RunError, Worker};
use crate::ipc::{Command, Event, IpcError, encode_command};
use crate::tensor::{MAX_CALL_BYTES, ModelCallError, ModelReply, ModelRequest};

/// A worker's model, for the calls of one guest alone. Dropping it ends the run and whatever
/// computes in it; its sessions are gone then.
#[derive(Debug)]
pub struct ModelRun<'a> {
    worker: &'a mut Worker,
    run: u64,
    /// The worker was told to end the run, or cannot be told anything any more.
    over: bool,
}

impl Worker {
    /// Begins a run of calls. If an earlier run was dropped before its end, waits for that end first.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`RunError`]; the worker has ended then.
    pub async fn serve(&mut self) -> Result<ModelRun<'_>, RunError> {
        self.until_idle().await?;
        let sent = self.order.begin_serving().map_err(IpcError::from).and_then(|run| {
            self.channel.send(&Command::Serve { run })?;
            Ok(run)
        });
        match sent {
            Ok(run) => Ok(ModelRun { worker: self, run, over: false }),
            Err(error) => Err(self.after(error).await),
        }
    }

    /// Ends a run of calls, if there is one.
    fn end_serving(&mut self, run: u64) {
        if !self.dead && self.order.end_serving() {
            // A worker that cannot be told is found dead by whoever hears it next.
            let _ = self.channel.send(&Command::Cancel { run });
        }
    }
}

impl ModelRun<'_> {
    /// Asks the model; the answer, or why the model gives none. The worker may compute as long as it
    /// shows signs of life: how long a call may take is the caller's to limit. Dropping the future
    /// cancels the call and with it the run: every later call is answered by
    /// [`ModelCallError::Cancelled`].
    ///
    /// # Errors
    /// [`RunError`] when the worker is lost; it has ended then, and so has the run.
    pub async fn call(
        &mut self,
        request: ModelRequest,
    ) -> Result<Result<ModelReply, ModelCallError>, RunError> {
        if self.over {
            return Ok(Err(ModelCallError::Cancelled));
        }
        let mut call = Call { run: self, answered: false };
        let result = call.ask(request).await;
        call.answered = true;
        drop(call);
        self.over = result.is_err();
        result
    }

    /// Ends the run and waits until the worker is idle: it may take the next job then.
    ///
    /// # Errors
    /// [`RunError`] when the worker is lost.
    pub async fn end(mut self) -> Result<(), RunError> {
        self.over = true;
        self.worker.end_serving(self.run);
        self.worker.until_idle().await
    }
}

impl Drop for ModelRun<'_> {
    fn drop(&mut self) {
        self.worker.end_serving(self.run);
    }
}

/// One call on its way; cancels the run when it is dropped without an answer.
struct Call<'r, 'a> {
    run: &'r mut ModelRun<'a>,
    answered: bool,
}

impl Call<'_, '_> {
    async fn ask(&mut self, request: ModelRequest) -> Result<Result<ModelReply, ModelCallError>, RunError> {
        let run = self.run.run;
        let worker = &mut *self.run.worker;
        let kind = request.kind();
        let frame = match encode_command(&Command::Call { run, request: Box::new(request) }) {
            Ok(frame) => frame,
            Err(IpcError::Wire(WireError::TooLarge { .. })) => {
                let what = format!("the request is larger than {MAX_CALL_BYTES} bytes");
                return Ok(Err(ModelCallError::invalid(&what)));
            }
            Err(error) => return Err(worker.after(error).await),
        };
        let begun = worker.order.begin_call(kind).map_err(IpcError::from);
        if let Err(error) = begun.and_then(|()| worker.channel.send_frame(frame)) {
            return Err(worker.after(error).await);
        }
        loop {
            let deadline = Instant::now() + worker.limits.silence_timeout;
            if let Event::Reply { result, .. } = worker.hear_event(Some(deadline)).await? {
                return Ok(result);
            }
        }
    }
}

impl Drop for Call<'_, '_> {
    fn drop(&mut self) {
        if !self.answered {
            self.run.over = true;
            self.run.worker.end_serving(self.run.run);
        }
    }
}
