//! Signals: the first asks for a warm shutdown, the second for a cold one.

use tokio_util::sync::CancellationToken;

use crate::output::Problem;

/// What signals ask for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    /// Stop when what runs has finished.
    pub(crate) warm: CancellationToken,
    /// Stop at once.
    pub(crate) cold: CancellationToken,
    /// Whether it was SIGINT that asked first.
    pub(crate) interrupted: CancellationToken,
}

/// Listens for SIGTERM, SIGINT (warm, then cold) and SIGQUIT (cold), as a Celery worker does.
#[cfg(unix)]
pub(crate) fn listen() -> Result<Shutdown, Problem> {
    use tokio::signal::unix::{SignalKind, signal};
    let shutdown = Shutdown::default();
    let told = shutdown.clone();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    tokio::spawn(async move {
        loop {
            let cold = tokio::select! {
                _ = term.recv() => told.warm.is_cancelled(),
                _ = int.recv() => {
                    if !told.warm.is_cancelled() {
                        told.interrupted.cancel();
                    }
                    told.warm.is_cancelled()
                }
                _ = quit.recv() => true,
            };
            told.warm.cancel();
            if cold {
                told.cold.cancel();
                return;
            }
        }
    });
    Ok(shutdown)
}

/// Listens for Ctrl-C: warm, then cold.
#[cfg(not(unix))]
pub(crate) fn listen() -> Result<Shutdown, Problem> {
    let shutdown = Shutdown::default();
    let told = shutdown.clone();
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            if told.warm.is_cancelled() {
                told.cold.cancel();
                return;
            }
            told.interrupted.cancel();
            told.warm.cancel();
        }
    });
    Ok(shutdown)
}
