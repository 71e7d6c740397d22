//! The worker: reserves messages, runs their tasks, settles them.
//!
//! One loop, one file:
//!
//! ```text
//!            consumer ──reserve──► examine ──► pool ──► ending ──► settler ──commit──► store
//!  slots ──────┘ ▲                    │          ▲ ▲                  │  └► chords
//!                └── a slot is free ──┼──────────┘ │ stop             └► frees the lease
//!                                     └ hand back  │
//!  lease keeper (a thread of its own) ── lost ─────┤        journal: progress, tokens, steps
//!  interrupts ── revoked, terminate ───────────────┤        restorer: leases of the dead, chords, old results
//!  shutdown ── warm, cold ─────────────────────────┘
//! ```
//!
//! A worker never holds more messages than it has free slots, and holds each only as long as its lease is renewed. What
//! it holds is listed in `held.rs`; everything that may stop a run goes through there.

mod builtin;
mod chords;
mod consumer;
mod ending;
mod examine;
mod held;
mod interrupts;
mod journal;
mod lease_keeper;
mod panics;
mod pool;
mod rate_limit;
mod restorer;
mod settler;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::Celeriac;
pub use crate::app::hostname;
use crate::error::{Error, Result};
use crate::id::{QueueName, WorkerName};
use crate::task::{CancelReason, Journal};

pub(crate) use chords::fire_chords;
pub(crate) use ending::settle_revoked;

/// Runs the tasks of an application. Made by [`Celeriac::worker`].
#[derive(Debug)]
pub struct Worker {
    app: Celeriac,
    queues: Vec<QueueName>,
    name: String,
    concurrency: usize,
    cold: CancellationToken,
}

/// What a worker did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Runs that ended in SUCCESS.
    pub succeeded: u64,
    /// Runs that ended in FAILURE.
    pub failed: u64,
    /// Runs to be tried again.
    pub retried: u64,
    /// Tasks that ended in REVOKED here.
    pub revoked: u64,
    /// Messages handed back, at shutdown or for another worker.
    pub handed_back: u64,
    /// Runs whose end could not be stored since the lease had passed.
    pub lost: u64,
}

/// Counts for the [`Report`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    succeeded: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    revoked: AtomicU64,
    handed_back: AtomicU64,
    lost: AtomicU64,
}

/// What the loops of one worker share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) app: Celeriac,
    pub(crate) worker: WorkerName,
    pub(crate) held: held::Held,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) settler: settler::Settler,
    pub(crate) journal: Journal,
    pub(crate) counters: Counters,
    pub(crate) rates: rate_limit::RateLimits,
    /// Runs under way.
    pub(crate) runs: TaskTracker,
    /// Reserve nothing more.
    pub(crate) stopping: CancellationToken,
    /// Drop what runs.
    pub(crate) cold: CancellationToken,
}

impl Celeriac {
    /// A worker for this application's tasks.
    #[must_use]
    pub fn worker(&self) -> Worker {
        Worker {
            queues: vec![self.config().task_default_queue.clone()],
            name: format!("celeriac@{}", hostname()),
            concurrency: self.config().worker_concurrency,
            cold: CancellationToken::new(),
            app: self.clone(),
        }
    }
}

impl Worker {
    /// How many tasks run at once, of whatever kind. Default: the setting `worker_concurrency`.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// The queues to consume from; within one priority they take turns. Default: `task_default_queue`.
    #[must_use]
    pub fn queues<Q: Into<QueueName>>(mut self, queues: impl IntoIterator<Item = Q>) -> Self {
        self.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// The node name. Default `celeriac@<host>`. Two workers of one name are told apart all the same.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The node name.
    #[must_use]
    pub fn node_name(&self) -> &str {
        &self.name
    }

    /// The names of the queues it consumes from.
    #[must_use]
    pub fn queue_names(&self) -> Vec<&str> {
        self.queues.iter().map(QueueName::as_str).collect()
    }

    /// When `token` is cancelled, the shutdown becomes cold: what runs is dropped and handed back at once.
    #[must_use]
    pub fn cold_shutdown(mut self, token: CancellationToken) -> Self {
        self.cold = token;
        self
    }

    /// Works until `shutdown` is ready, then shuts down warm: reserves nothing more, lets what runs finish for up to
    /// `worker_shutdown_timeout`, and hands the rest back, so that another worker starts it at once.
    ///
    /// Call it from a multi-threaded runtime: tasks run there. Leases are renewed from a thread of their own, whatever
    /// the tasks do to the runtime.
    ///
    /// # Errors
    /// When it cannot start. A store that goes away later does not end it.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<Report> {
        if self.concurrency == 0 {
            return Err(Error::invalid("concurrency", "at least one slot is needed"));
        }
        if self.queues.is_empty() {
            return Err(Error::invalid("queues", "name at least one queue to consume from"));
        }
        panics::remember_places();
        let config = self.app.config().clone();
        let worker = WorkerName::from(format!("{}/{}", self.name, uuid::Uuid::new_v4().simple()));
        let (settler, settlements) = settler::channel();
        let (journal_sender, journal_writes) = mpsc::channel(journal::BOUND);
        let journal =
            Journal::new(journal_sender, config.stream.token_bytes_max, config.stream.token_interval);
        let shared = Arc::new(Shared {
            worker: worker.clone(),
            held: held::Held::default(),
            slots: Arc::new(Semaphore::new(self.concurrency.min(Semaphore::MAX_PERMITS))),
            settler,
            journal: journal.clone(),
            counters: Counters::default(),
            rates: rate_limit::RateLimits::default(),
            runs: TaskTracker::new(),
            stopping: CancellationToken::new(),
            cold: self.cold,
            app: self.app,
        });
        // The loops that serve runs outlive the last of them.
        let done = CancellationToken::new();
        let keeper = lease_keeper::spawn(Arc::clone(&shared), done.clone())
            .map_err(|error| Error::invalid("lease keeper thread", error))?;
        let settling = tokio::spawn(settler::run(Arc::clone(&shared), settlements, done.clone()));
        let journalling = tokio::spawn(journal::run(Arc::clone(&shared), journal_writes, done.clone()));
        let interrupts = tokio::spawn(interrupts::run(Arc::clone(&shared), done.clone()));
        let restoring = tokio::spawn(restorer::run(Arc::clone(&shared)));
        let consuming = tokio::spawn(consumer::run(Arc::clone(&shared), self.queues));
        tracing::info!(%worker, concurrency = self.concurrency, "worker ready");

        shutdown.await;
        tracing::info!(%worker, running = shared.held.len(), "warm shutdown");
        shared.stopping.cancel();
        join("consumer", consuming).await;
        join("restorer", restoring).await;
        shared.runs.close();
        let finished = tokio::select! {
            () = shared.runs.wait() => true,
            () = tokio::time::sleep(config.worker_shutdown_timeout) => false,
            () = shared.cold.cancelled() => false,
        };
        if !finished {
            tracing::warn!(%worker, running = shared.held.len(), "handing back what still runs");
            shared.held.cancel_all(CancelReason::Shutdown);
            shared.runs.wait().await;
        }
        done.cancel();
        join("journal", journalling).await;
        join("settler", settling).await;
        // Chords that the last ends completed.
        shared.runs.wait().await;
        join("interrupts", interrupts).await;
        // The keeper's thread ends by itself; it is joined off the runtime, since it may be in the midst of a call.
        let _ = tokio::task::spawn_blocking(move || keeper.join()).await;
        let report = shared.counters.report();
        tracing::info!(%worker, ?report, "worker stopped");
        Ok(report)
    }
}

async fn join(name: &str, handle: JoinHandle<()>) {
    if let Err(error) = handle.await {
        tracing::error!(loop_ = name, %error, "a loop of the worker ended badly");
    }
}

impl Counters {
    fn report(&self) -> Report {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Report {
            succeeded: read(&self.succeeded),
            failed: read(&self.failed),
            retried: read(&self.retried),
            revoked: read(&self.revoked),
            handed_back: read(&self.handed_back),
            lost: read(&self.lost),
        }
    }
}
