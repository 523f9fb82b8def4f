//! The local socket through which `status` and `ledger` ask a running `potluckd`.
//!
//! Owns: `control.sock` (mode 0600 in a folder of mode 0700), one JSON object a line each way. Never:
//! changes anything: it only answers. Called by [`crate::provider`] (server) and the commands
//! (client). Ends with the provider; a file that a killed process left is replaced.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use potluck_node::ledger::report;
use potluck_node::net::Network;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::desk::Desk;
use crate::error::CommandError;
use crate::status;

/// The socket's name in the state folder.
const SOCKET: &str = "control.sock";
/// A question fits this many bytes.
const MAX_QUESTION_BYTES: u64 = 1_024;
/// An answer fits this many bytes: ten thousand receipts.
const MAX_ANSWER_BYTES: u64 = 8 << 20;
/// One question and its answer take no longer.
const EXCHANGE_WITHIN: Duration = Duration::from_secs(5);
/// Questions at once.
const MAX_ASKERS: usize = 8;

/// What can be asked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// How it goes.
    Status,
    /// What peers owe.
    Balance,
    /// The last jobs.
    Receipts {
        /// At most so many.
        limit: usize,
    },
}

/// The server's end.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
    started: Instant,
}

impl Control {
    /// Binds the socket; call it with the state folder locked and inside a tokio runtime.
    ///
    /// # Errors
    /// When it cannot be bound, for example because the folder's path is longer than about 95 bytes.
    pub fn bind(state_dir: &Path) -> Result<Self, CommandError> {
        let path = state_dir.join(SOCKET);
        let failed = |source| CommandError::System { doing: "open the control socket", source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        // Nobody else can come in between: the folder is ours alone.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(Self { listener, path, started: Instant::now() })
    }

    /// Answers until `stop`, then removes the socket.
    pub async fn serve(self, desk: Arc<Desk>, network: Network, stop: CancellationToken) {
        let askers = Arc::new(Semaphore::new(MAX_ASKERS));
        loop {
            let stream = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "the control socket accepts nothing");
                        // Mostly a want of descriptors, which passes.
                        let rest = tokio::time::sleep(Duration::from_secs(1));
                        stop.run_until_cancelled(rest).await;
                        continue;
                    }
                },
            };
            let Ok(permit) = Arc::clone(&askers).try_acquire_owned() else { continue };
            let (desk, network, started) = (Arc::clone(&desk), network.clone(), self.started);
            tokio::spawn(async move {
                let exchange = exchange(stream, &desk, &network, started);
                match timeout(EXCHANGE_WITHIN, exchange).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "control exchange failed"),
                    Err(_) => tracing::debug!("control exchange took too long"),
                }
                drop(permit);
            });
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "control socket not removed");
        }
    }
}

async fn exchange(
    stream: UnixStream,
    desk: &Desk,
    network: &Network,
    started: Instant,
) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    tokio::io::BufReader::new(reader.take(MAX_QUESTION_BYTES)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(Question::Status) => Ok(status::of(desk, network, started).await),
        Ok(Question::Balance) => report::balance(desk.ledger(), desk.me()),
        Ok(Question::Receipts { limit }) => {
            report::receipts(desk.ledger(), limit).map(|all| json!({"receipts": all}))
        }
        Err(error) => {
            let text = json!({"error": format!("not a question: {error}")});
            return write_line(&mut writer, &text).await;
        }
    };
    let answer = answer.unwrap_or_else(|error| json!({"error": error.to_string()}));
    write_line(&mut writer, &answer).await
}

async fn write_line(writer: &mut (impl tokio::io::AsyncWrite + Unpin), value: &Value) -> std::io::Result<()> {
    let mut line = value.to_string();
    line.push('\n');
    writer.write_all(line.as_bytes()).await?;
    writer.shutdown().await
}

/// Asks the potluckd that runs with `state_dir`; `None` when none runs.
///
/// # Errors
/// When one runs but does not answer as it should.
pub fn ask(state_dir: &Path, question: Question) -> Result<Option<Value>, CommandError> {
    let stream = match StdUnixStream::connect(state_dir.join(SOCKET)) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(no_answer(error)),
    };
    let line = ask_on(stream, question).map_err(no_answer)?;
    let answer: Value = serde_json::from_str(&line).map_err(no_answer)?;
    match answer.get("error").and_then(Value::as_str) {
        Some(why) => Err(no_answer(why)),
        None => Ok(Some(answer)),
    }
}

fn ask_on(mut stream: StdUnixStream, question: Question) -> std::io::Result<String> {
    stream.set_read_timeout(Some(EXCHANGE_WITHIN))?;
    stream.set_write_timeout(Some(EXCHANGE_WITHIN))?;
    let mut text = serde_json::to_string(&question)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_ANSWER_BYTES)).read_line(&mut line)?;
    Ok(line)
}

fn no_answer(why: impl std::fmt::Display) -> CommandError {
    CommandError::Control { why: why.to_string() }
}
