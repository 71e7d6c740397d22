//! Celery's beat beside a worker: a process that is started again when it ends, and ended with the worker.
//!
//! ```text
//!  start ─► runs ──ends──► pause, longer each time ─┐
//!            ▲                                      │
//!            └──────────────────────────────────────┘     close: SIGTERM, SIGKILL
//! ```
//!
//! A thread of its own starts it and waits for it. The process asks the system for a SIGTERM when that thread is gone: so it
//! ends with the worker, however that ends.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::source::{self, Source};
use crate::zygote::send_signal;

/// After one end it is started again after this, and then after twice as long, up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(60);
/// One that ran so long is started again as if it had never ended.
const STEADY: Duration = Duration::from_secs(120);
/// How long it may take to write down what it knows and to go.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// How beat is started.
#[derive(Debug, Clone, Default)]
pub struct BeatOptions {
    /// The application, as Celery's `-A` names it.
    pub app: String,
    /// A folder to work in.
    pub workdir: Option<PathBuf>,
    /// Variables of the environment to set, or to take away.
    pub environment: Vec<(String, Option<String>)>,
    /// The file in which it keeps when each entry ran last.
    pub schedule: Option<String>,
    /// The class of the scheduler.
    pub scheduler: Option<String>,
    /// What to log, in Celery's words.
    pub loglevel: Option<String>,
    /// Where to.
    pub logfile: Option<String>,
}

impl BeatOptions {
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["-A".to_owned(), self.app.clone()];
        if let Some(workdir) = &self.workdir {
            arguments.extend(["--workdir".to_owned(), workdir.display().to_string()]);
        }
        // As one that is embedded in a worker, it has no pidfile of its own.
        arguments.extend(["beat", "--pidfile="].map(str::to_owned));
        let more = [
            ("--schedule", &self.schedule),
            ("--scheduler", &self.scheduler),
            ("--loglevel", &self.loglevel),
            ("--logfile", &self.logfile),
        ];
        for (name, value) in more {
            arguments.extend(value.iter().flat_map(|value| [name.to_owned(), value.clone()]));
        }
        arguments
    }
}

/// The process, for as long as it is wanted.
#[derive(Debug)]
pub struct Beat {
    state: Arc<Mutex<State>>,
    /// Ends the pause before the next start.
    closing: Option<Sender<()>>,
    over: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    closing: bool,
    /// While it runs.
    pid: Option<u32>,
}

impl Beat {
    /// Has it started, and kept running.
    ///
    /// # Errors
    /// Its thread cannot be started, or the package cannot be written for it.
    pub fn start(python: &Path, options: &BeatOptions) -> Result<Self> {
        let source = source::unpack()?;
        let mut command = Command::new(python);
        command
            .args(["-c", source::BOOT_BEAT])
            .arg(source.path())
            .arg(std::process::id().to_string())
            .args(options.arguments())
            .stdin(Stdio::null())
            // What it prints is no data of this program's.
            .stdout(Stdio::from(std::io::stderr().as_fd().try_clone_to_owned()?))
            // A Ctrl-C of the terminal is for the worker, which ends it then.
            .process_group(0);
        for (name, value) in &options.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let (closing, closed) = std::sync::mpsc::channel();
        let (state, over) = (Arc::<Mutex<State>>::default(), CancellationToken::new());
        let supervised = Supervised {
            command,
            state: Arc::clone(&state),
            closed,
            over: over.clone().drop_guard(),
            _source: source,
        };
        std::thread::Builder::new().name("python-beat".to_owned()).spawn(move || supervised.run())?;
        Ok(Self { state, closing: Some(closing), over })
    }

    /// Tells it to go. What is due from now on is another beat's.
    pub fn end(&mut self) {
        let pid = {
            let mut state = lock(&self.state);
            state.closing = true;
            state.pid
        };
        self.closing = None;
        if let Some(pid) = pid {
            send_signal(pid, Signal::TERM);
        }
    }

    /// Tells it to go, and waits until it is gone.
    pub async fn close(mut self) {
        self.end();
        if tokio::time::timeout(CLOSE_PATIENCE, self.over.cancelled()).await.is_err() {
            tracing::warn!("beat does not end by itself, killed");
            if let Some(pid) = lock(&self.state).pid {
                send_signal(pid, Signal::KILL);
            }
            self.over.cancelled().await;
        }
    }
}

/// Dropped, it ends without being waited for.
impl Drop for Beat {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Nothing that holds this lock can panic half-way through a change.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Supervised {
    command: Command,
    state: Arc<Mutex<State>>,
    closed: Receiver<()>,
    over: tokio_util::sync::DropGuard,
    _source: Source,
}

impl Supervised {
    fn run(mut self) {
        let mut pause = PAUSE;
        loop {
            let began = Instant::now();
            match self.spawn() {
                Ok(None) => break,
                Ok(Some(mut process)) => {
                    tracing::info!(pid = process.id(), "beat started");
                    let status = process.wait();
                    let closing = {
                        let mut state = lock(&self.state);
                        state.pid = None;
                        state.closing
                    };
                    if closing {
                        break;
                    }
                    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
                    tracing::error!(status, again_in = ?pause, "beat has ended");
                }
                Err(error) => tracing::error!(%error, again_in = ?pause, "beat cannot be started"),
            }
            if began.elapsed() >= STEADY {
                pause = PAUSE;
            }
            if self.closed.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            pause = (pause * 2).min(PAUSE_LONGEST);
        }
        drop(self.over);
    }

    /// Starts it, unless it is not wanted any more.
    fn spawn(&mut self) -> std::io::Result<Option<Child>> {
        let mut state = lock(&self.state);
        if state.closing {
            return Ok(None);
        }
        let process = self.command.spawn()?;
        state.pid = Some(process.id());
        Ok(Some(process))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beat_is_told_what_the_worker_was() {
        let options = BeatOptions {
            app: "proj".to_owned(),
            workdir: Some("/w".into()),
            schedule: Some("/var/s".to_owned()),
            loglevel: Some("INFO".to_owned()),
            ..BeatOptions::default()
        };
        let expected = "-A proj --workdir /w beat --pidfile= --schedule /var/s --loglevel INFO"
            .split(' ')
            .collect::<Vec<_>>();
        assert_eq!(options.arguments(), expected);
    }

    #[tokio::test]
    async fn what_cannot_be_started_can_be_closed() {
        let beat = Beat::start(Path::new("/no/such/python"), &BeatOptions::default()).unwrap();
        beat.close().await;
    }
}
