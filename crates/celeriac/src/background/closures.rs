//! Closures: work that runs in this process or not at all, each alone.
//!
//! ```text
//!  taken ─► waits for its response ─┬─ future ────────────────────► polled ─┬─ finished, with an error or without
//!                                   └─ blocking ─► waits for a thread ─► run ┤
//!                                                                           ├─ panicked
//!                                              shutdown, out of patience ───┴─ abandoned
//! ```

use std::any::Any;
use std::borrow::Cow;
use std::fmt::Display;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Error, Stats};
use crate::task::TaskError;
use crate::worker::{Gate, Polls, caught};

/// What a closure may return: nothing, or a `Result` whose error is logged and counted.
pub trait ClosureOutput: Send + 'static {
    /// The error, in words.
    fn error(self) -> Option<String>;
}

impl ClosureOutput for () {
    fn error(self) -> Option<String> {
        None
    }
}

impl<E: Display + Send + 'static> ClosureOutput for Result<(), E> {
    fn error(self) -> Option<String> {
        self.err().map(|error| error.to_string())
    }
}

/// What is to be done.
pub(super) enum Work {
    /// To be polled.
    Future(Pin<Box<dyn Future<Output = Option<String>> + Send>>),
    /// To be called on a thread of its own.
    Blocking(Box<dyn FnOnce() -> Option<String> + Send>),
}

/// The closures of one application.
#[derive(Debug, Clone)]
pub(super) struct Closures {
    runtime: Handle,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max: usize,
    timeout: Duration,
    /// One for each that waits or runs; closed when no more are taken.
    places: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    polls: Arc<Polls>,
    tracker: TaskTracker,
    /// Drop what waits or runs.
    cold: CancellationToken,
    added: AtomicU64,
    finished: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    abandoned: AtomicU64,
}

impl Closures {
    pub(super) fn new(
        runtime: Handle,
        max: usize,
        blocking_max: usize,
        timeout: Duration,
        polls: Arc<Polls>,
    ) -> Self {
        let semaphore = |places: usize| Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        let shared = Shared {
            max,
            timeout,
            places: semaphore(max),
            threads: semaphore(blocking_max),
            polls,
            tracker: TaskTracker::new(),
            cold: CancellationToken::new(),
            added: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
        };
        Self { runtime, shared: Arc::new(shared) }
    }

    /// Takes a closure that starts when `gate` opens.
    pub(super) fn add(&self, name: Cow<'static, str>, gate: Arc<Gate>, work: Work) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        // Tracked before it is known to be taken: a drain that begins in between waits for it.
        let tracked = shared.tracker.token();
        let place = Arc::clone(&shared.places).try_acquire_owned().map_err(|refused| match refused {
            TryAcquireError::NoPermits => Error::Full { bound: "closures_max", max: shared.max },
            TryAcquireError::Closed => Error::Closed,
        })?;
        shared.added.fetch_add(1, Ordering::Relaxed);
        let until = Instant::now() + shared.timeout;
        self.runtime.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = shared.cold.cancelled() => None,
                ended = async {
                    gate.opened(until).await;
                    shared.run(&name, work).await
                } => Some(ended),
            };
            if let Some(ended) = ended {
                shared.count(&name, ended);
            }
            drop((place, tracked));
        });
        Ok(())
    }

    /// Takes no more, and waits until all have ended, or until `patience` is over and the rest is dropped.
    pub(super) async fn drain(&self, patience: Duration) {
        let shared = &self.shared;
        shared.places.close();
        shared.tracker.close();
        if tokio::time::timeout(patience, shared.tracker.wait()).await.is_ok() {
            return;
        }
        let pending = self.stats().closures_pending();
        tracing::warn!(pending, "closures have not ended in time, they are dropped");
        shared.cold.cancel();
        // Each is dropped at its next await point; one that has none goes with the process.
        let _ = tokio::time::timeout(DROP_GRACE, shared.tracker.wait()).await;
    }

    /// Counts what has not ended as abandoned.
    pub(super) fn abandon_rest(&self) {
        self.shared.abandoned.fetch_add(self.stats().closures_pending(), Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            closures_added: read(&self.shared.added),
            closures_finished: read(&self.shared.finished),
            closures_failed: read(&self.shared.failed),
            closures_panicked: read(&self.shared.panicked),
            closures_abandoned: read(&self.shared.abandoned),
            ..Stats::default()
        }
    }
}

/// How long closures that are dropped may take to be gone.
const DROP_GRACE: Duration = Duration::from_secs(1);

/// How a closure ended: returned, with an error or without, or panicked.
type Ended = Result<Option<String>, TaskError>;

impl Shared {
    async fn run(&self, name: &str, work: Work) -> Ended {
        match work {
            Work::Future(future) => {
                let future = self.polls.watch(name, None, future);
                AssertUnwindSafe(future).catch_unwind().await.map_err(panicked)
            }
            Work::Blocking(function) => {
                // Nobody closes this semaphore.
                let thread = Arc::clone(&self.threads).acquire_owned().await.ok();
                let run = tokio::task::spawn_blocking(move || {
                    let ended = catch_unwind(AssertUnwindSafe(function)).map_err(panicked);
                    drop(thread);
                    ended
                });
                run.await.unwrap_or_else(|error| Err(TaskError::panic(&error.to_string(), None)))
            }
        }
    }

    fn count(&self, name: &str, ended: Ended) {
        let one = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match ended {
            Ok(None) => {}
            Ok(Some(error)) => {
                tracing::error!(closure = name, error, "background closure failed");
                one(&self.failed);
            }
            Err(panic) => {
                tracing::error!(closure = name, traceback = panic.traceback(), "background closure panicked");
                one(&self.panicked);
                return;
            }
        }
        one(&self.finished);
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as `map_err` hands it over")]
fn panicked(payload: Box<dyn Any + Send>) -> TaskError {
    caught(&*payload)
}
