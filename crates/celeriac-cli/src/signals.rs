//! Signals, and what they ask for.
//!
//! For a worker of Python tasks, as `celery worker` takes them:
//!
//! ```text
//!  SIGTERM, again and again ─► warm: what runs finishes, however long it takes
//!  SIGINT ───────────────────► warm; the second as SIGQUIT
//!  SIGQUIT ──────────────────► soft: for worker_soft_shutdown_timeout as warm, then cold; the next is cold at once
//!  and after cold SIGINT, SIGQUIT ─► the process ends
//! ```
//!
//! For all others the first signal is warm and the second cold, whichever they are.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::output::Problem;

/// What signals ask for.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown {
    /// Stop when what runs has finished.
    pub(crate) warm: CancellationToken,
    /// Stop at once.
    pub(crate) cold: CancellationToken,
    /// Whether it was SIGINT that asked first.
    pub(crate) interrupted: CancellationToken,
    /// What was asked for last, for who tells others.
    pub(crate) asked: watch::Sender<Option<Asked>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            warm: CancellationToken::new(),
            cold: CancellationToken::new(),
            interrupted: CancellationToken::new(),
            asked: watch::Sender::new(None),
        }
    }
}

/// A signal and what it means, in Celery's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// `SIGTERM`.
    pub(crate) sig: &'static str,
    /// `Warm` or `Cold`.
    pub(crate) how: &'static str,
}

/// How signals are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// The first is warm, the second cold; SIGQUIT is cold.
    Plain,
    /// As `celery worker`.
    Celery {
        /// How long a cold shutdown lets run what runs.
        soft: Duration,
        /// SIGTERM means what SIGQUIT does: Celery's `REMAP_SIGTERM=SIGQUIT`.
        remap_term: bool,
    },
}

/// A signal that is listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Term,
    Int,
    Quit,
}

/// What a signal makes of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// None was asked for.
    Works,
    Warm,
    /// Warm, until a time after which it is cold.
    Soft,
    Cold,
    /// The process is to end, whatever it does.
    Over,
}

fn next(manner: Manner, stage: Stage, heard: Heard) -> Stage {
    let Manner::Celery { soft, remap_term } = manner else {
        return match (stage, heard) {
            (Stage::Works, Heard::Term | Heard::Int) => Stage::Warm,
            (Stage::Cold | Stage::Over, _) => Stage::Over,
            _ => Stage::Cold,
        };
    };
    let heard = if remap_term && heard == Heard::Term { Heard::Quit } else { heard };
    match (stage, heard) {
        (Stage::Works, Heard::Term | Heard::Int) => Stage::Warm,
        // As Celery: who is told twice by two managers still finishes what runs.
        (stage, Heard::Term) => stage,
        (Stage::Works | Stage::Warm, _) if !soft.is_zero() => Stage::Soft,
        (Stage::Works | Stage::Warm | Stage::Soft, _) => Stage::Cold,
        (Stage::Cold | Stage::Over, _) => Stage::Over,
    }
}

/// Listens for SIGTERM, SIGINT and SIGQUIT.
#[cfg(unix)]
pub(crate) fn listen(manner: Manner) -> Result<Shutdown, Problem> {
    use tokio::signal::unix::{SignalKind, signal};
    let shutdown = Shutdown::default();
    let told = shutdown.clone();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    tokio::spawn(async move {
        let mut stage = Stage::Works;
        let soft_is_over = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(soft_is_over);
        loop {
            let heard = tokio::select! {
                _ = term.recv() => Heard::Term,
                _ = int.recv() => Heard::Int,
                _ = quit.recv() => Heard::Quit,
                () = &mut soft_is_over, if stage == Stage::Soft => {
                    tracing::warn!("the soft shutdown is over, handing back what still runs");
                    stage = Stage::Cold;
                    told.cold.cancel();
                    continue;
                }
            };
            let before = stage;
            stage = next(manner, before, heard);
            told.tell(before, stage, heard);
            if let (Stage::Soft, Manner::Celery { soft, .. }) = (stage, manner)
                && before != Stage::Soft
            {
                tracing::warn!(?soft, "soft shutdown");
                soft_is_over.as_mut().reset(tokio::time::Instant::now() + soft);
            }
            if stage == Stage::Over {
                // Leases pass and children go with this process, as after any crash.
                tracing::error!("told to end at once");
                std::process::exit(1);
            }
        }
    });
    Ok(shutdown)
}

impl Shutdown {
    #[cfg_attr(not(unix), allow(dead_code, reason = "there is one signal"))]
    fn tell(&self, before: Stage, stage: Stage, heard: Heard) {
        if before == Stage::Works && heard == Heard::Int {
            self.interrupted.cancel();
        }
        let sig = match heard {
            Heard::Term => "SIGTERM",
            Heard::Int => "SIGINT",
            Heard::Quit => "SIGQUIT",
        };
        let how = if stage == Stage::Warm { "Warm" } else { "Cold" };
        if before != stage {
            self.asked.send_replace(Some(Asked { sig, how }));
        }
        self.warm.cancel();
        if stage == Stage::Cold {
            self.cold.cancel();
        }
    }
}

/// Listens for Ctrl-C: warm, then cold.
#[cfg(not(unix))]
pub(crate) fn listen(_manner: Manner) -> Result<Shutdown, Problem> {
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

#[cfg(test)]
mod tests {
    use super::Heard::{Int, Quit, Term};
    use super::*;

    fn check(manner: Manner, signals: &[Heard], expected: &[Stage]) {
        let mut stage = Stage::Works;
        let stages: Vec<Stage> = signals
            .iter()
            .map(|heard| {
                stage = next(manner, stage, *heard);
                stage
            })
            .collect();
        assert_eq!(stages, expected, "{manner:?} {signals:?}");
    }

    #[test]
    fn the_second_signal_is_cold_and_the_third_ends() {
        use Stage::{Cold, Over, Warm};
        for signals in [[Term, Term, Term], [Int, Int, Int], [Term, Quit, Term]] {
            check(Manner::Plain, &signals, &[Warm, Cold, Over]);
        }
        check(Manner::Plain, &[Quit, Quit], &[Cold, Over]);
    }

    #[test]
    fn signals_mean_what_they_mean_to_celery() {
        use Stage::{Cold, Over, Soft, Warm};
        let celery = |seconds, remap_term| Manner::Celery { soft: Duration::from_secs(seconds), remap_term };
        check(celery(0, false), &[Term, Term, Term, Quit], &[Warm, Warm, Warm, Cold]);
        check(celery(0, false), &[Int, Int, Int], &[Warm, Cold, Over]);
        check(celery(0, false), &[Quit, Term, Quit], &[Cold, Cold, Over]);
        check(celery(9, false), &[Quit, Term, Quit, Quit], &[Soft, Soft, Cold, Over]);
        check(celery(9, false), &[Term, Quit, Int], &[Warm, Soft, Cold]);
        check(celery(9, true), &[Term, Term, Term], &[Soft, Cold, Over]);
    }
}
