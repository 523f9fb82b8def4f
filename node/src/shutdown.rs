//! The end of a program, asked for by a signal.
//!
//! Owns: SIGINT and SIGTERM. Never: decides what ending means; it cancels a token that the
//! program's parts watch. Called once at start. A second signal, unless it comes right behind the
//! first, ends the process at once, with exit code 130, for whoever cannot wait.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a program that was told twice to end: 128 and SIGINT, as shells have it.
pub const EXIT_INTERRUPTED: i32 = 130;

/// A terminal signals a whole group of programs, and whoever started us may pass the same wish on:
/// what comes this soon after the first signal is that one again, not impatience.
const SAME_WISH: Duration = Duration::from_millis(300);

/// A token that is cancelled by the first SIGINT or SIGTERM. Must be called within a tokio runtime,
/// before anything is started that the signal should end in good order.
///
/// # Errors
/// When the system lets us watch no signals.
pub fn on_signals() -> io::Result<CancellationToken> {
    let interrupt = signal(SignalKind::interrupt())?;
    let terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    tokio::spawn(watch(interrupt, terminate, token.clone()));
    Ok(token)
}

async fn watch(mut interrupt: Signal, mut terminate: Signal, token: CancellationToken) {
    next(&mut interrupt, &mut terminate).await;
    tracing::info!("stopping; a second signal ends at once");
    token.cancel();
    let first = Instant::now();
    loop {
        next(&mut interrupt, &mut terminate).await;
        if first.elapsed() >= SAME_WISH {
            exit_at_once();
        }
    }
}

async fn next(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

#[expect(clippy::exit, reason = "the second signal means: now, whatever is left undone")]
fn exit_at_once() -> ! {
    std::process::exit(EXIT_INTERRUPTED)
}
