//! The guest's log: what it writes to its standard output and errors, and what it logs.
//!
//! Owns: how much of it is kept, and its way to the daemon. Never: reads or changes a byte of it
//! (whoever shows it cleans it). Called by wasmtime-wasi (as a stream) and by the files beside.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::outbox::{Gone, Outbox};
use crate::guest::wire::{Blob, GuestEvent, MAX_LOG_BYTES};

/// Bytes that a stream takes at once.
const PERMIT_BYTES: usize = 64 * 1024;

/// One run's log.
#[derive(Debug)]
pub(super) struct Log {
    kept: Mutex<Kept>,
    outbox: Arc<Outbox>,
}

/// What is kept of a log, and what waits to be sent.
#[derive(Debug)]
struct Kept {
    left: usize,
    dropped: u64,
    waiting: Vec<u8>,
}

impl Kept {
    fn new(limit: u32) -> Self {
        Self { left: usize::try_from(limit).unwrap_or(usize::MAX), dropped: 0, waiting: Vec::new() }
    }

    /// Keeps what there is room for, counts the rest, and gives what is to be sent now: whole lines,
    /// or more than fits into a message.
    fn add(&mut self, bytes: &[u8]) -> Vec<u8> {
        let (kept, dropped) = bytes.split_at(bytes.len().min(self.left));
        self.left -= kept.len();
        self.dropped = self.dropped.saturating_add(u64::try_from(dropped.len()).unwrap_or(u64::MAX));
        self.waiting.extend_from_slice(kept);
        if self.waiting.len() >= MAX_LOG_BYTES || kept.ends_with(b"\n") {
            std::mem::take(&mut self.waiting)
        } else {
            Vec::new()
        }
    }
}

impl Log {
    /// A log of which the first `limit` bytes are kept.
    pub(super) fn new(limit: u32, outbox: Arc<Outbox>) -> Self {
        Self { kept: Mutex::new(Kept::new(limit)), outbox }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `bytes`, as far as there is room.
    ///
    /// # Errors
    /// [`Gone`].
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), Gone> {
        let ready = self.kept().add(bytes);
        self.send(&ready)
    }

    /// Writes one line.
    ///
    /// # Errors
    /// [`Gone`].
    pub(super) fn line(&self, line: &str) -> Result<(), Gone> {
        self.write(line.as_bytes())?;
        self.write(b"\n")
    }

    /// Sends what waits; the number of bytes that were not kept.
    ///
    /// # Errors
    /// [`Gone`].
    pub(super) fn close(&self) -> Result<u64, Gone> {
        let (rest, dropped) = {
            let mut kept = self.kept();
            (std::mem::take(&mut kept.waiting), kept.dropped)
        };
        self.send(&rest)?;
        Ok(dropped)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Gone> {
        bytes
            .chunks(MAX_LOG_BYTES)
            .try_for_each(|chunk| self.outbox.tell(&GuestEvent::Log(Blob(chunk.to_vec()))))
    }
}

/// The guest's standard output, or its errors.
#[derive(Debug, Clone)]
pub(super) struct LogStream(pub(super) Arc<Log>);

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.write(&bytes).map_err(|gone| StreamError::Trap(gone.into()))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT_BYTES)
    }
}

impl AsyncWrite for LogStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = self.0.write(bytes).map(|()| bytes.len());
        Poll::Ready(written.map_err(std::io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_bytes_are_kept_in_order_and_the_rest_is_counted(
            limit in 0u32..20_000,
            writes in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..6_000), 0..8),
        ) {
            let mut kept = Kept::new(limit);
            let mut sent = Vec::new();
            for write in &writes {
                sent.extend(kept.add(write));
                prop_assert!(kept.waiting.len() < MAX_LOG_BYTES);
            }
            sent.extend(&kept.waiting);
            let all = writes.concat();
            let most = all.len().min(limit as usize);
            prop_assert_eq!(&sent, &all[..most]);
            prop_assert_eq!(kept.dropped, (all.len() - most) as u64);
        }
    }

    #[test]
    fn a_line_is_sent_when_it_ends() {
        let mut kept = Kept::new(100);
        assert!(kept.add(b"half ").is_empty());
        assert_eq!(kept.add(b"a line\n"), b"half a line\n");
    }
}
