//! Keeps the worker beside the server alive: starts it, starts it again when it ends, and stops it.
//!
//! ```text
//!  start ─► runs ─┬─ ends by itself ─► wait (0.5 s, doubled up to 30 s) ─► start
//!                 ├─ silent for longer than a lease ─► KILL ─► wait ─► start
//!                 └─ shutdown ─► TERM (warm; QUIT when cold) ─► ended
//! ```
//!
//! What a worker that ended had held comes back by its lease; nothing is repaired here. A worker shows itself in the store
//! from a thread that its tasks cannot keep. One that has not done so for longer than a lease holds nothing any more, so
//! that nothing is lost with it.

use std::process::ExitStatus;
use std::time::Duration;

use celeriac::Celeriac;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::signals::Shutdown;

/// The pause before a worker that ended is started again, the first time and at most.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_LONGEST: Duration = Duration::from_secs(30);
/// A worker that lived so long had started well: the next pause is the first again.
const LIVED_WELL: Duration = Duration::from_secs(60);
/// How often the store is asked whether the worker has shown itself, and how long that may take.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// The supervisor of one worker process.
#[derive(Debug)]
pub(super) struct Supervisor {
    health: watch::Receiver<Option<String>>,
    running: JoinHandle<()>,
}

impl Supervisor {
    /// Starts the worker, which may take as long as `patience` to show itself, and keeps it running until `shutdown`.
    pub(super) fn start(
        app: &Celeriac,
        command: impl Fn() -> std::io::Result<Command> + Send + 'static,
        patience: Duration,
        shutdown: Shutdown,
    ) -> Self {
        let (health, watched) = watch::channel(Some(STARTING.to_owned()));
        let running = tokio::spawn(supervise(app.clone(), command, patience, shutdown, health));
        Self { health: watched, running }
    }

    /// What is wrong with the worker.
    pub(super) fn health(&self) -> watch::Receiver<Option<String>> {
        self.health.clone()
    }

    /// Waits for the end of the worker after a shutdown.
    pub(super) async fn ended(self) {
        if let Err(error) = self.running.await {
            tracing::error!(%error, "the supervisor ended badly");
        }
    }
}

const STARTING: &str = "the worker is starting";

async fn supervise(
    app: Celeriac,
    command: impl Fn() -> std::io::Result<Command>,
    patience: Duration,
    shutdown: Shutdown,
    health: watch::Sender<Option<String>>,
) {
    let mut pause = PAUSE_FIRST;
    let mut starts: u64 = 0;
    while !shutdown.warm.is_cancelled() {
        let started = Instant::now();
        let ended = match command().and_then(|mut command| command.spawn()) {
            Ok(child) => {
                starts += 1;
                tracing::info!(pid = child.id(), starts, "worker started");
                health.send_replace(Some(STARTING.to_owned()));
                match attend(&app, child, patience, &shutdown, &health).await {
                    Ended::AsTold => return,
                    Ended::ByItself(status) => format!("the worker ended by itself: {status}"),
                    Ended::Silent => {
                        "the worker was silent for longer than a lease, and was killed".to_owned()
                    }
                }
            }
            Err(error) => format!("the worker cannot be started: {error}"),
        };
        if started.elapsed() >= LIVED_WELL {
            pause = PAUSE_FIRST;
        }
        tracing::error!(%ended, starts, ?pause, "starting the worker again");
        health.send_replace(Some(ended));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.warm.cancelled() => return,
        }
        pause = (pause * 2).min(PAUSE_LONGEST);
    }
}

enum Ended {
    AsTold,
    ByItself(String),
    Silent,
}

/// Waits for the end of a worker, looks whether it lives, and hands on what it is told to do.
async fn attend(
    app: &Celeriac,
    mut child: Child,
    patience: Duration,
    shutdown: &Shutdown,
    health: &watch::Sender<Option<String>>,
) -> Ended {
    // Kept until the end: waiting for a child closes what is left of its input, which tells it that the server is gone.
    let _input = child.stdin.take();
    let id = child.id();
    let pid = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut presence = Presence::new(app, id, patience);
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.warm.cancelled() => break,
            status = child.wait() => {
                // What it left behind goes with it.
                kill_group(pid);
                return Ended::ByItself(describe(status));
            }
            _ = looks.tick() => {}
        }
        let trouble = presence.look().await;
        health.send_if_modified(|known| {
            let news = *known != trouble;
            known.clone_from(&trouble);
            news
        });
        if presence.is_lost() {
            kill_group(pid);
            let _ = child.wait().await;
            return Ended::Silent;
        }
    }
    tell(pid, Signal::TERM);
    tokio::select! {
        _ = child.wait() => {}
        () = shutdown.cold.cancelled() => {
            tell(pid, Signal::QUIT);
            let _ = child.wait().await;
        }
    }
    kill_group(pid);
    Ended::AsTold
}

/// Whether a worker shows itself in the store.
struct Presence<'a> {
    app: &'a Celeriac,
    id: Option<u32>,
    /// Since when it has not; and whether it ever had.
    missing: Option<Instant>,
    seen: bool,
    /// How long it may take to do so at first.
    patience: Duration,
}

impl<'a> Presence<'a> {
    fn new(app: &'a Celeriac, id: Option<u32>, patience: Duration) -> Self {
        Self { app, id, missing: Some(Instant::now()), seen: false, patience }
    }

    /// What is wrong with it.
    async fn look(&mut self) -> Option<String> {
        let asked = tokio::time::timeout(LOOK_PATIENCE, self.app.store().control.workers()).await;
        let Ok(Ok(cards)) = asked else {
            // A store that is away is not the worker's fault: its silence begins anew when it can be heard.
            self.missing = self.missing.map(|_| Instant::now());
            return self.trouble();
        };
        let hostname = celeriac::worker::hostname();
        if cards.iter().any(|card| Some(card.pid) == self.id && *card.hostname == *hostname) {
            self.seen = true;
            self.missing = None;
        } else {
            self.missing.get_or_insert_with(Instant::now);
        }
        self.trouble()
    }

    fn trouble(&self) -> Option<String> {
        let missing = self.missing?;
        Some(match self.seen {
            false => STARTING.to_owned(),
            true => format!("the worker has been silent for {} s", missing.elapsed().as_secs()),
        })
    }

    /// Whether it has been silent for so long that it holds nothing any more.
    fn is_lost(&self) -> bool {
        let patience = if self.seen { self.app.config().visibility_timeout } else { self.patience };
        self.missing.is_some_and(|missing| missing.elapsed() > patience)
    }
}

fn tell(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::warn!(%error, "cannot signal the worker");
    }
}

fn kill_group(pid: Option<Pid>) {
    if let Some(pid) = pid {
        // Mostly there is nobody left.
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}
