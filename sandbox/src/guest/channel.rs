//! The daemon's end of the socket pair to a wasm worker.
//!
//! Owns: bytes to events and commands to bytes on a non-blocking socket. Never: loses or doubles a
//! byte when the future that waits is dropped (all state is in the channel), and never holds more
//! than two frames unsent. Called by [`super::compiler`] and [`super::supervisor`].

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream as StdUnixStream;

use tokio::io::Interest;
use tokio::net::UnixStream;

use super::wire::{
    GuestCommand, GuestEvent, LENGTH_BYTES, MAX_GUEST_FRAME_BYTES, checked_len, decode, encode,
};
use crate::ipc::IpcError;

/// Bytes read from the socket at once.
const READ_BYTES: usize = 64 * 1024;
/// Commands may wait for a worker that does not read, but not without end.
const MAX_UNSENT_BYTES: usize = 2 * MAX_GUEST_FRAME_BYTES;

/// A framed, bounded, cancel-safe channel to one wasm worker.
#[derive(Debug)]
pub(super) struct GuestChannel {
    socket: UnixStream,
    received: Vec<u8>,
    unsent: VecDeque<u8>,
}

impl GuestChannel {
    /// Takes the daemon's end of a socket pair. Must be called inside a tokio runtime.
    pub(super) fn new(socket: StdUnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = UnixStream::from_std(socket)?;
        Ok(Self { socket, received: Vec::new(), unsent: VecDeque::new() })
    }

    /// Queues a command and sends what the socket takes at once; the rest goes out during
    /// [`Self::next`] or [`Self::sent`].
    pub(super) fn send(&mut self, command: &GuestCommand) -> Result<(), IpcError> {
        let frame = encode(command)?;
        let len = self.unsent.len().saturating_add(frame.len());
        if len > MAX_UNSENT_BYTES {
            return Err(IpcError::FrameTooLong { len, max: MAX_UNSENT_BYTES });
        }
        self.unsent.extend(frame);
        self.flush()
    }

    /// Waits until all commands are on their way.
    pub(super) async fn sent(&mut self) -> Result<(), IpcError> {
        while !self.unsent.is_empty() {
            self.socket.writable().await?;
            self.flush()?;
        }
        Ok(())
    }

    /// Waits for the next event; `None` when the worker closed the socket between two.
    pub(super) async fn next(&mut self) -> Result<Option<GuestEvent>, IpcError> {
        loop {
            if let Some(event) = self.pop()? {
                return Ok(Some(event));
            }
            let interest = if self.unsent.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            let ready = self.socket.ready(interest).await?;
            if ready.is_writable() {
                // A worker that is gone shows below, after its last words were read.
                match self.flush() {
                    Err(IpcError::Io(e)) if is_gone(&e) => self.unsent.clear(),
                    other => other?,
                }
            }
            if (ready.is_readable() || ready.is_read_closed()) && !self.fill()? {
                return if self.received.is_empty() { Ok(None) } else { Err(IpcError::Cut) };
            }
        }
    }

    fn pop(&mut self) -> Result<Option<GuestEvent>, IpcError> {
        let Some(head) = self.received.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let end = LENGTH_BYTES + checked_len(*head)?;
        let Some(body) = self.received.get(LENGTH_BYTES..end) else { return Ok(None) };
        let event = decode(body)?;
        self.received.drain(..end);
        Ok(Some(event))
    }

    fn flush(&mut self) -> Result<(), IpcError> {
        while !self.unsent.is_empty() {
            match self.socket.try_write(self.unsent.as_slices().0) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Reads once; false at the end of the stream.
    fn fill(&mut self) -> Result<bool, IpcError> {
        let mut chunk = [0; READ_BYTES];
        match self.socket.try_read(&mut chunk) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.received.extend(&chunk[..count]);
                Ok(true)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(e) if is_gone(&e) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::super::wire::{Blob, GUEST_IPC_VERSION};
    use super::*;

    #[tokio::test]
    async fn a_dropped_wait_loses_nothing_and_a_cut_is_told() {
        let (ours, mut theirs) = StdUnixStream::pair().unwrap();
        let mut channel = GuestChannel::new(ours).unwrap();
        let hello = GuestEvent::Hello { version: GUEST_IPC_VERSION, engine: [3; 32] };
        let frame = encode(&hello).unwrap();
        for byte in &frame {
            let waited = tokio::time::timeout(Duration::from_millis(2), channel.next()).await;
            assert!(waited.is_err());
            theirs.write_all(&[*byte]).unwrap();
        }
        assert_eq!(channel.next().await.unwrap(), Some(hello));
        theirs.write_all(&frame[..3]).unwrap();
        drop(theirs);
        assert!(matches!(channel.next().await, Err(IpcError::Cut)));
    }

    #[tokio::test]
    async fn what_a_deaf_worker_does_not_read_has_a_bound() {
        let (ours, _theirs) = StdUnixStream::pair().unwrap();
        let mut channel = GuestChannel::new(ours).unwrap();
        let chunk = GuestCommand::Chunk(Blob(vec![7; super::super::wire::CHUNK_BYTES]));
        let refused = (0..1_000).find_map(|_| channel.send(&chunk).err());
        assert!(matches!(refused, Some(IpcError::FrameTooLong { .. })));
    }
}
