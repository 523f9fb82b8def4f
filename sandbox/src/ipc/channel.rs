//! The daemon's end of the socket pair, whichever worker is at the other one.
//!
//! Owns: bytes to events and commands to bytes on a non-blocking socket. Never: loses or doubles a
//! byte when the future that waits is dropped: all state is in the channel, so every method here is
//! cancel-safe. Called by [`crate::supervisor`] and by the supervisors of components.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::marker::PhantomData;
use std::os::unix::net::UnixStream as StdUnixStream;

use tokio::net::UnixStream;

use super::IpcError;
use super::frame::{LENGTH_BYTES, checked_len};

/// Bytes read from the socket at once.
const READ_BYTES: usize = 64 * 1024;
/// Memory that the buffers keep between messages; what a long message took beyond it is given back.
const KEPT_BYTES: usize = 128 * 1024;

/// What one kind of worker and the daemon say to each other.
pub(crate) trait Dialect {
    /// What the daemon says.
    type Command;
    /// What the worker says.
    type Event;
    /// Commands may wait for a worker that does not read, but not without end: so many bytes.
    const MAX_UNSENT: usize;

    /// A command's frame.
    fn encode(command: &Self::Command) -> Result<Vec<u8>, IpcError>;

    /// How long an event's body may be that begins with `tag`; the longest of all before that is here.
    fn most(tag: Option<&u8>) -> usize;

    /// The event in a frame's body.
    fn decode(body: &[u8]) -> Result<Self::Event, IpcError>;
}

/// A framed, bounded, cancel-safe channel to one worker.
#[derive(Debug)]
pub(crate) struct Channel<D> {
    socket: UnixStream,
    received: Received<D>,
    unsent: VecDeque<u8>,
}

impl<D: Dialect> Channel<D> {
    /// Takes the daemon's end of a socket pair.
    ///
    /// # Errors
    /// The socket's own. Must be called inside a tokio runtime.
    pub(crate) fn new(socket: StdUnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = UnixStream::from_std(socket)?;
        Ok(Self { socket, received: Received::new(), unsent: VecDeque::new() })
    }

    /// Queues a command and sends what the socket takes at once; the rest goes out during
    /// [`Channel::next`].
    ///
    /// # Errors
    /// [`IpcError`] when the socket is gone or the worker has not read for too long.
    pub(crate) fn send(&mut self, command: &D::Command) -> Result<(), IpcError> {
        self.send_frame(D::encode(command)?)
    }

    /// As [`Channel::send`], for a command that is encoded already.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub(crate) fn send_frame(&mut self, frame: Vec<u8>) -> Result<(), IpcError> {
        let len = self.unsent.len().saturating_add(frame.len());
        if len > D::MAX_UNSENT {
            return Err(IpcError::FrameTooLong { len, max: D::MAX_UNSENT });
        }
        self.unsent.extend(frame);
        self.flush()
    }

    /// Waits until all commands are on their way.
    ///
    /// # Errors
    /// When the socket is gone.
    pub(crate) async fn sent(&mut self) -> Result<(), IpcError> {
        while !self.unsent.is_empty() {
            self.socket.writable().await?;
            self.flush()?;
        }
        Ok(())
    }

    /// Waits for the next event; `None` when the worker closed the socket between two.
    ///
    /// # Errors
    /// [`IpcError`] when what comes is no event, or the socket fails.
    pub(crate) async fn next(&mut self) -> Result<Option<D::Event>, IpcError> {
        loop {
            if let Some(event) = self.received.pop()? {
                return Ok(Some(event));
            }
            let interest = if self.unsent.is_empty() {
                tokio::io::Interest::READABLE
            } else {
                tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE
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
                return if self.received.bytes.is_empty() { Ok(None) } else { Err(IpcError::Cut) };
            }
        }
    }

    fn flush(&mut self) -> Result<(), IpcError> {
        while !self.unsent.is_empty() {
            match self.socket.try_write(self.unsent.make_contiguous()) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        self.unsent.shrink_to(KEPT_BYTES);
        Ok(())
    }

    /// Reads once; false at the end of the stream.
    fn fill(&mut self) -> Result<bool, IpcError> {
        let mut chunk = [0; READ_BYTES];
        match self.socket.try_read(&mut chunk) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.received.bytes.extend(&chunk[..count]);
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

/// Bytes that came and are not yet events; at most one event and one read long. A long one grows it
/// only as its bytes come.
#[derive(Debug)]
struct Received<D> {
    bytes: Vec<u8>,
    dialect: PhantomData<D>,
}

impl<D: Dialect> Received<D> {
    fn new() -> Self {
        Self { bytes: Vec::new(), dialect: PhantomData }
    }

    fn pop(&mut self) -> Result<Option<D::Event>, IpcError> {
        let Some(head) = self.bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let end = LENGTH_BYTES + checked_len(*head, D::most(self.bytes.get(LENGTH_BYTES)))?;
        let Some(body) = self.bytes.get(LENGTH_BYTES..end) else { return Ok(None) };
        let event = D::decode(body)?;
        self.bytes.drain(..end);
        self.bytes.shrink_to(KEPT_BYTES);
        Ok(Some(event))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Event, ModelDialect, encode_event, tests as made};
    use super::*;

    proptest! {
        #[test]
        fn events_come_out_however_the_bytes_are_cut(
            events in prop::collection::vec(made::event(), 1..6), cut in 1usize..50,
        ) {
            let bytes: Vec<u8> = events.iter().flat_map(|e| encode_event(e).unwrap()).collect();
            let mut received = Received::<ModelDialect>::new();
            let mut out = Vec::new();
            for chunk in bytes.chunks(cut) {
                received.bytes.extend(chunk);
                while let Some(event) = received.pop().unwrap() {
                    out.push(event);
                }
            }
            prop_assert_eq!(out, events);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut received = Received::<ModelDialect>::new();
            received.bytes = bytes;
            while let Ok(Some(_)) = received.pop() {}
        }
    }

    #[tokio::test]
    async fn a_dropped_wait_loses_nothing() {
        use std::io::Write as _;
        let (ours, mut theirs) = StdUnixStream::pair().unwrap();
        let mut channel = Channel::<ModelDialect>::new(ours).unwrap();
        let frame = encode_event(&Event::Hello { version: 300 }).unwrap();
        for byte in &frame {
            let waited = tokio::time::timeout(std::time::Duration::from_millis(5), channel.next()).await;
            assert!(waited.is_err());
            theirs.write_all(&[*byte]).unwrap();
        }
        assert_eq!(channel.next().await.unwrap(), Some(Event::Hello { version: 300 }));
        theirs.write_all(&frame[..3]).unwrap();
        drop(theirs);
        assert!(matches!(channel.next().await, Err(IpcError::Cut)));
    }

    #[tokio::test]
    async fn what_a_deaf_worker_does_not_read_has_a_bound() {
        let (ours, _theirs) = StdUnixStream::pair().unwrap();
        let mut channel = Channel::<ModelDialect>::new(ours).unwrap();
        let frame = vec![7; 1 << 20];
        let refused = (0..1_000).find_map(|_| channel.send_frame(frame.clone()).err());
        assert!(matches!(refused, Some(IpcError::FrameTooLong { .. })));
    }
}
