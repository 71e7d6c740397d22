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
//!  shutdown ── warm, cold ─────────────────────────┘        control, heartbeat (a thread of their own): what is asked of
//!                                                           the worker, and that it lives
//! ```
//!
//! A worker never holds more messages than it has free slots, and holds each only as long as its lease is renewed; in the
//! process of a web application, tasks that wait for a response do so between consumer and examine, without a slot (`gate`). What
//! it holds is listed in `held.rs`; everything that may stop a run goes through there.

mod announcer;
mod builtin;
mod chords;
mod consumer;
mod control;
mod ending;
mod examine;
mod figures;
mod foreign;
#[cfg_attr(not(feature = "axum"), allow(dead_code, reason = "only web applications have gates"))]
mod gate;
mod heartbeat;
mod held;
mod interrupts;
mod journal;
mod lease_keeper;
mod machine;
mod overrides;
mod pace;
mod panel;
mod panics;
#[cfg_attr(not(feature = "axum"), allow(dead_code, reason = "only the in-process worker is watched"))]
mod polls;
mod pool;
mod rate_limit;
mod restorer;
mod revocation;
mod revoked;
mod settler;
mod slots;
mod unknown;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::Celeriac;
pub use crate::app::hostname;
use crate::clock::Timestamp;
pub use crate::control::Report;
use crate::error::{Error, Result};
use crate::id::{QueueName, WorkerName};
use crate::task::{CancelReason, Executor, Journal, Registry};

pub(crate) use chords::fire_chords;
pub(crate) use ending::settle_revoked;
pub(crate) use gate::Gates;
#[cfg(feature = "axum")]
pub(crate) use gate::{Full, Gate};
#[cfg(feature = "axum")]
pub(crate) use panics::{caught, remember_places};
pub(crate) use polls::Polls;

/// Runs the tasks of an application. Made by [`Celeriac::worker`].
#[derive(Debug)]
pub struct Worker {
    app: Celeriac,
    queues: Vec<QueueName>,
    name: String,
    concurrency: usize,
    cold: CancellationToken,
    task_events: bool,
    mingles: bool,
    gossips: bool,
    in_process: Option<InProcess>,
    executor: Option<Arc<dyn Executor>>,
}

/// What a worker shares with the web application in whose process it runs.
#[derive(Debug, Clone)]
pub(crate) struct InProcess {
    /// What waits for responses.
    pub(crate) gates: Arc<Gates>,
    /// What keeps a thread of the runtime.
    pub(crate) polls: Arc<Polls>,
}

/// Counts for the [`Report`].
#[derive(Debug)]
pub(crate) struct Counters {
    /// Runs that began, by task.
    started: BTreeMap<Arc<str>, AtomicU64>,
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
    /// The node name.
    pub(crate) node: Box<str>,
    pub(crate) started: Timestamp,
    pub(crate) held: held::Held,
    pub(crate) slots: slots::Slots,
    pub(crate) pace: pace::Pace,
    /// Where it consumes from.
    pub(crate) queues: watch::Sender<Vec<QueueName>>,
    pub(crate) recall: consumer::Recall,
    pub(crate) settler: settler::Settler,
    pub(crate) journal: Journal,
    pub(crate) counters: Counters,
    pub(crate) rates: rate_limit::RateLimits,
    pub(crate) overrides: overrides::Overrides,
    pub(crate) revoked: revoked::Revoked,
    /// Tasks of names that nobody knows.
    pub(crate) unknown: unknown::Unknown,
    pub(crate) announcer: announcer::Announcer,
    /// It asks other workers what is revoked when it starts.
    pub(crate) mingles: bool,
    /// It stands for election where workers elect one.
    pub(crate) gossips: bool,
    /// Runs under way.
    pub(crate) runs: TaskTracker,
    /// Something of its card changed.
    pub(crate) changed: Notify,
    /// Remote control asks for the shutdown.
    pub(crate) shutdown: CancellationToken,
    /// Reserve nothing more.
    pub(crate) stopping: CancellationToken,
    /// Drop what runs.
    pub(crate) cold: CancellationToken,
    pub(crate) in_process: Option<InProcess>,
    /// Another runtime with tasks of its own.
    pub(crate) executor: Option<Arc<dyn Executor>>,
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
            task_events: false,
            mingles: true,
            gossips: true,
            in_process: None,
            executor: None,
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

    /// Whether it tells from the start what becomes of tasks, in Celery's events: Celery's `-E`. Without it, it does so
    /// from when remote control says `enable_events`, as Flower does. Where nobody can listen, nothing is told. Default
    /// false.
    #[must_use]
    pub fn task_events(mut self, task_events: bool) -> Self {
        self.task_events = task_events;
        self
    }

    /// Whether it asks other workers, Celery's too, what they know to be revoked when it starts: Celery's mingle. It
    /// works meanwhile. Default true.
    #[must_use]
    pub fn mingle(mut self, mingle: bool) -> Self {
        self.mingles = mingle;
        self
    }

    /// Whether it takes part where Celery's workers elect one of them: Celery's gossip. Default true.
    #[must_use]
    pub fn gossip(mut self, gossip: bool) -> Self {
        self.gossips = gossip;
        self
    }

    /// Runs the tasks of another runtime too. Of two tasks of one name, its own is run.
    #[must_use]
    pub fn executor(mut self, executor: Arc<dyn Executor>) -> Self {
        self.executor = Some(executor);
        self
    }

    #[cfg(feature = "axum")]
    pub(crate) fn in_process(mut self, in_process: InProcess) -> Self {
        self.in_process = Some(in_process);
        self
    }

    /// Works until `shutdown` is ready or remote control says `shutdown`, then shuts down warm: reserves nothing more,
    /// lets what runs finish for up to `worker_shutdown_timeout`, and hands the rest back, so that another worker starts it at once.
    ///
    /// Call it from a multi-threaded runtime: tasks run there. Leases are renewed from a thread of their own, whatever
    /// the tasks do to the runtime. To drop the future is to crash: nothing more is reserved, what runs is dropped, and
    /// other workers start it again when its leases have passed.
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
        if self.app.config().worker_heartbeat_interval.is_zero() {
            return Err(Error::invalid("worker_heartbeat_interval", "expected more than 0 seconds"));
        }
        panics::remember_places();
        let config = self.app.config().clone();
        let worker = WorkerName::from(format!("{}/{}", self.name, uuid::Uuid::new_v4().simple()));
        let (settler, settlements) = settler::channel();
        let (journal_sender, journal_writes) = mpsc::channel(journal::BOUND);
        let journal =
            Journal::new(journal_sender, config.stream.token_bytes_max, config.stream.token_interval);
        let stopping = CancellationToken::new();
        let (announcer, untold) = announcer::Announcer::new(self.task_events);
        let shared = Arc::new(Shared {
            worker: worker.clone(),
            node: self.name.into(),
            started: self.app.clock().now(),
            held: held::Held::default(),
            slots: slots::Slots::new(self.concurrency),
            pace: pace::Pace::default(),
            queues: watch::Sender::new(self.queues),
            recall: consumer::Recall::new(&stopping),
            settler,
            journal: journal.clone(),
            counters: Counters::of(self.app.registry(), self.executor.as_deref()),
            executor: self.executor,
            rates: rate_limit::RateLimits::default(),
            overrides: overrides::Overrides::default(),
            revoked: revoked::Revoked::default(),
            unknown: unknown::Unknown::default(),
            announcer,
            mingles: self.mingles,
            gossips: self.gossips,
            runs: TaskTracker::new(),
            changed: Notify::new(),
            shutdown: CancellationToken::new(),
            stopping,
            cold: self.cold,
            in_process: self.in_process,
            app: self.app,
        });
        // The loops that serve runs outlive the last of them.
        let done = CancellationToken::new();
        let _crash = Crash { shared: Arc::clone(&shared), done: done.clone() };
        let keeper = lease_keeper::spawn(Arc::clone(&shared), done.clone())
            .map_err(|error| Error::invalid("lease keeper thread", error))?;
        let controlling = control::spawn(Arc::clone(&shared), untold, done.clone())
            .map_err(|error| Error::invalid("remote control thread", error))?;
        let settling = tokio::spawn(settler::run(Arc::clone(&shared), settlements, done.clone()));
        let journalling = tokio::spawn(journal::run(Arc::clone(&shared), journal_writes, done.clone()));
        let interrupts = tokio::spawn(interrupts::run(Arc::clone(&shared), done.clone()));
        let restoring = {
            let (app, stopping) = (shared.app.clone(), shared.stopping.clone());
            tokio::spawn(async move { app.restore(stopping.cancelled_owned()).await })
        };
        let consuming = tokio::spawn(consumer::run(Arc::clone(&shared)));
        tracing::info!(%worker, concurrency = self.concurrency, "worker ready");

        tokio::select! {
            () = shutdown => {}
            () = shared.shutdown.cancelled() => {}
        }
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
        // These threads end by themselves; they are joined off the runtime, since each may be in the midst of a call.
        let _ = tokio::task::spawn_blocking(move || (keeper.join(), controlling.join())).await;
        let report = shared.counters.report();
        tracing::info!(%worker, ?report, "worker stopped");
        Ok(report)
    }
}

impl Shared {
    fn ender(&self) -> ending::Ender<'_> {
        ending::Ender { app: &self.app, node: &self.node }
    }
}

/// Ends the loops, which are tasks and threads of their own, when the worker's future is dropped in the midst. It does
/// nothing after a shutdown.
struct Crash {
    shared: Arc<Shared>,
    done: CancellationToken,
}

impl Drop for Crash {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
        // Nobody keeps their leases any more.
        self.shared.held.cancel_all(CancelReason::LeaseLost);
        self.done.cancel();
    }
}

async fn join(name: &str, handle: JoinHandle<()>) {
    if let Err(error) = handle.await {
        tracing::error!(loop_ = name, %error, "a loop of the worker ended badly");
    }
}

impl Counters {
    /// Counts for these tasks and those that every worker knows.
    fn of(registry: &Registry, executor: Option<&dyn Executor>) -> Self {
        let names = registry.names().chain(builtin::NAMES).map(Arc::from);
        let names = names.chain(executor.map_or_else(Vec::new, Executor::names));
        Self {
            started: names.map(|name| (name, AtomicU64::new(0))).collect(),
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            revoked: AtomicU64::new(0),
            handed_back: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Counts a run that begins.
    fn started(&self, task: &str) {
        if let Some(count) = self.started.get(task) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

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
