//! A worker's log, on its way into the daemon's.
//!
//! Owns: reading the worker's standard error to its end. Never: keeps more than a few lines, passes
//! on more than the limit, or lets control characters through: candle may print a stranger's text.
//! Called by [`crate::supervisor`] and [`crate::guest`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStderr;
use tokio::task::JoinHandle;

use crate::text;

/// The longest line that is passed on, in bytes; longer ones are cut into several.
const LINE_BYTES: usize = 512;
/// Lines kept for a death's report.
const LAST_LINES: usize = 3;
/// How long to wait for the last lines of a process that has ended.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

/// Follows one worker's log until its end.
#[derive(Debug)]
pub(crate) struct WorkerLog {
    last: Arc<Mutex<VecDeque<String>>>,
    reader: JoinHandle<()>,
}

impl WorkerLog {
    /// Starts to read `stderr` of the process `pid`, passing on at most `max_bytes`.
    pub(crate) fn follow(mut stderr: ChildStderr, pid: u32, max_bytes: u64) -> Self {
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&last);
        let reader = tokio::spawn(async move {
            let mut lines = Lines { pid, left: max_bytes, line: Vec::new(), kept };
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
                lines.push(&chunk[..count]);
            }
            lines.close();
        });
        Self { last, reader }
    }

    /// The last lines, after giving the reader a moment to see them.
    pub(crate) async fn last_words(&self) -> String {
        let deadline = tokio::time::Instant::now() + DRAIN_LIMIT;
        while !self.reader.is_finished() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        locked(&self.last).iter().cloned().collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for WorkerLog {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn locked(lines: &Mutex<VecDeque<String>>) -> MutexGuard<'_, VecDeque<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes to lines, within bounds.
struct Lines {
    pid: u32,
    left: u64,
    line: Vec<u8>,
    kept: Arc<Mutex<VecDeque<String>>>,
}

impl Lines {
    fn push(&mut self, chunk: &[u8]) {
        for byte in chunk {
            if *byte != b'\n' {
                self.line.push(*byte);
            }
            if *byte == b'\n' || self.line.len() >= LINE_BYTES {
                self.close();
            }
        }
    }

    /// Passes on the line in hand.
    fn close(&mut self) {
        let line = text::clean(&String::from_utf8_lossy(&self.line), LINE_BYTES);
        let len = u64::try_from(self.line.len()).unwrap_or(u64::MAX);
        self.line.clear();
        if line.trim().is_empty() || self.left == 0 {
            return;
        }
        if self.left < len {
            self.left = 0;
            tracing::warn!(pid = self.pid, "the worker's log is over its limit; the rest is dropped");
            return;
        }
        self.left -= len;
        tracing::info!(target: "potluck_worker", pid = self.pid, "{line}");
        let mut kept = locked(&self.kept);
        while kept.len() >= LAST_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_without_end_keeps_three_short_lines() {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let mut lines = Lines { pid: 1, left: 10_000, line: Vec::new(), kept: Arc::clone(&kept) };
        lines.push(b"first\n\nsecond \x1b[31m\n");
        lines.push(&[b'x'; 600]);
        lines.push(b"\nlast");
        lines.close();
        let words: Vec<String> = locked(&kept).iter().cloned().collect();
        assert_eq!(words, ["x".repeat(512), "x".repeat(88), "last".to_owned()]);
        lines.push(&[b'y'; 100_000]);
        assert_eq!(lines.left, 0);
        assert!(lines.line.len() < LINE_BYTES && locked(&kept).len() == LAST_LINES);
    }
}
