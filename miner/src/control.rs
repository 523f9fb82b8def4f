//! The local socket through which the owner's commands reach a running `potluckd`.
//!
//! Owns: `control.sock` (mode 0600 in a folder of mode 0700), one JSON object a line each way. Never:
//! changes anything itself ([`crate::pausing`] does), or hears anybody but the folder's owner. Called by
//! [`crate::provider`] (server) and the commands (client). Ends with the provider; a file that a killed process left is replaced.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use potluck_node::accounts::SettleWish;
use potluck_node::accounts::report::settlement;
use potluck_node::books::{self, Failed};
use potluck_node::net::Network;
use potluck_protocol::id::PeerId;
use potluck_protocol::unit::NanoCredit;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::clock::wall_now;
use crate::desk::Desk;
use crate::error::CommandError;
use crate::owner::Haste;
use crate::pausing::Pausing;
use crate::status;

/// The socket's name in the state folder.
const SOCKET: &str = "control.sock";
/// A question fits this many bytes: the longest path and some words.
const MAX_QUESTION_BYTES: u64 = 8 << 10;
/// An answer fits this many bytes: all of a job that took a day.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// One question and its answer take no longer.
const EXCHANGE_WITHIN: Duration = Duration::from_secs(5);
/// The same for what the ledger is asked: some questions read all of its journal.
const READ_WITHIN: Duration = Duration::from_secs(600);
/// The same for a pause (jobs settle), a resume (models are loaded) and a settlement (the renter is asked),
/// whose own waits are shorter.
const CHANGE_WITHIN: Duration = Duration::from_secs(45);
/// Questions at once.
const MAX_ASKERS: usize = 8;

/// What can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// How it goes.
    Status,
    /// What the ledger says.
    Ledger {
        /// The question.
        of: books::Ask,
    },
    /// Take the machine back.
    Pause {
        /// Stop running jobs.
        now: bool,
        /// Lend it again after so many milliseconds.
        for_ms: Option<u64>,
    },
    /// Lend the machine again.
    Resume,
    /// A renter paid outside of Potluck, or did not.
    Settle {
        /// Who.
        peer: PeerId,
        /// How much.
        amount: NanoCredit,
        /// By what reference both sides know the payment.
        reference: String,
        /// It did not arrive.
        deny: bool,
    },
}

impl Question {
    fn within(&self) -> Duration {
        match self {
            Self::Status => EXCHANGE_WITHIN,
            Self::Ledger { .. } => READ_WITHIN,
            Self::Pause { .. } | Self::Resume | Self::Settle { .. } => CHANGE_WITHIN,
        }
    }
}

/// What answers.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) desk: Arc<Desk>,
    pub(crate) network: Network,
    pub(crate) pausing: Arc<Pausing>,
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
    pub(crate) async fn serve(self, asked: Asked, stop: CancellationToken) {
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
            let (asked, started) = (asked.clone(), self.started);
            tokio::spawn(async move {
                if let Err(error) = exchange(stream, &asked, started).await {
                    tracing::debug!(%error, "control exchange failed");
                }
                drop(permit);
            });
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "control socket not removed");
        }
    }
}

async fn exchange(stream: UnixStream, asked: &Asked, started: Instant) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(MAX_QUESTION_BYTES));
    timeout(EXCHANGE_WITHIN, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Question>(&line) {
        Ok(question) => timeout(question.within(), answer(question, asked, started)).await?,
        Err(error) => json!({"error": format!("not a question: {error}")}),
    };
    timeout(EXCHANGE_WITHIN, write_line(&mut writer, &answer)).await?
}

async fn answer(question: Question, asked: &Asked, started: Instant) -> Value {
    let Asked { desk, network, pausing } = asked;
    match question {
        Question::Status => status::of(desk, network, started).await,
        Question::Ledger { of } => read(Arc::clone(desk), of).await,
        Question::Pause { now, for_ms } => {
            let haste = if now { Haste::Now } else { Haste::Finish };
            json!(pausing.pause(haste, for_ms.map(Duration::from_millis)).await)
        }
        Question::Resume => json!(pausing.resume().await),
        Question::Settle { peer, amount, reference, deny } => {
            let wish = SettleWish { peer, we_paid: false, amount, reference, deny };
            settle(desk, wish).await
        }
    }
}

/// Some questions read the whole journal, and some write a file: not on a thread that serves jobs.
async fn read(desk: Arc<Desk>, of: books::Ask) -> Value {
    let read = tokio::task::spawn_blocking(move || desk.books().answer(&of).map_err(Failed::from));
    match read.await {
        Ok(Ok(answer)) => json!(answer),
        Ok(Err(failed)) => json!({"failed": failed}),
        Err(error) => json!({"error": error.to_string()}),
    }
}

async fn settle(desk: &Desk, wish: SettleWish) -> Value {
    let settled = match desk.accounts().settle(wish.clone()).await {
        Ok(outcome) => desk
            .ledger()
            .standing(wish.peer, wall_now())
            .map(|standing| settlement(&wish, &outcome, standing.balance))
            .map_err(|error| error.to_string()),
        Err(error) => Err(format!("{error}; {}", error.advice())),
    };
    // What the owner got wrong is no fault of the daemon: it is shown as the verb's own error.
    settled.unwrap_or_else(|why| json!({"refused": why}))
}

async fn write_line(writer: &mut (impl tokio::io::AsyncWrite + Unpin), value: &Value) -> std::io::Result<()> {
    let mut line = value.to_string();
    if u64::try_from(line.len()).unwrap_or(u64::MAX) >= MAX_ANSWER_BYTES {
        let why = format!("the answer takes {} bytes; stop potluckd and ask again", line.len());
        line = json!({"error": why}).to_string();
    }
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
    let line = ask_on(stream, &question).map_err(no_answer)?;
    let answer: Value = serde_json::from_str(&line).map_err(no_answer)?;
    match answer.get("error").and_then(Value::as_str) {
        Some(why) => Err(no_answer(why)),
        None => Ok(Some(answer)),
    }
}

fn ask_on(mut stream: StdUnixStream, question: &Question) -> std::io::Result<String> {
    stream.set_read_timeout(Some(EXCHANGE_WITHIN + question.within()))?;
    stream.set_write_timeout(Some(EXCHANGE_WITHIN))?;
    let mut text = serde_json::to_string(question)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_ANSWER_BYTES)).read_line(&mut line)?;
    Ok(line)
}

fn no_answer(why: impl std::fmt::Display) -> CommandError {
    CommandError::Control { why: why.to_string() }
}
