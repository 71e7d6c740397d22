//! Background tasks of a web application, in its own process: what FastAPI's `BackgroundTasks` is for, for axum.
//!
//! ```no_run
//! use axum::{Router, extract::Path, routing::post};
//! use celeriac::background::{Background, BackgroundTasks, Error};
//! use celeriac::Celeriac;
//!
//! #[celeriac::task(max_retries = 3, retry_backoff)]
//! async fn notify(email: String, message: String) {
//!     // It is sent here, after the response, on a runtime of its own.
//! }
//!
//! async fn send_notification(tasks: BackgroundTasks, Path(email): Path<String>) -> Result<String, Error> {
//!     let task = tasks.add(notify(email, "some notification".to_owned())).await?;
//!     Ok(format!("notification {} will be sent", task.id()))
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let app = Celeriac::connect("sqlite://celeriac.db").await?.register(notify);
//!     let background = Background::builder(app).concurrency(8).start().await?;
//!     let router = Router::new()
//!         .route("/send-notification/{email}", post(send_notification))
//!         .layer(background.layer());
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
//!     axum::serve(listener, router).await?;
//!     background.shutdown().await;
//!     Ok(())
//! }
//! ```
//!
//! # Two kinds of work
//!
//! [`BackgroundTasks::add`] sends a registered task: it is in the store before `add` returns, hence before the response,
//! and it is a task like any other, with an id, a state, a result, retries, streams and revocation. Whatever happens to
//! the process, it ends in exactly one final state. [`BackgroundTasks::spawn`] and
//! [`spawn_blocking`](BackgroundTasks::spawn_blocking) take closures: quick, with whatever they capture, and lost with
//! the process.
//!
//! Both start when the response has been handed over whole, or when it is sure that it never will be: the client is gone,
//! the handler has failed or was dropped. What was added runs, whatever becomes of its request: with an error response,
//! after a panic of the handler, with a client that disconnects at any moment.
//!
//! | | FastAPI's `BackgroundTasks` | this |
//! |---|---|---|
//! | several tasks | in order, and one that raises stops the rest | each alone, at once as far as slots go |
//! | an error | in the server's log | stored with traceback and retried; of a closure: logged by name and counted |
//! | where it runs | on the request loop, or its thread pool | on a runtime of its own; a watchdog tells of what blocks it |
//! | the client disconnects | with some middleware the task is cancelled | nothing changes |
//! | the handler raises | the tasks added are skipped | they run |
//! | id, status, result, stop | none | those of any task |
//! | the process ends | lost | drained; killed: registered tasks start again with the next process |
//! | how many | no limit | limits with names, [`Error::Full`] beyond |
//! | more than one process | rewrite for Celery | the same code, [`Background::without_worker`] |
//!
//! # Separate workers
//!
//! With [`Background::without_worker`] tasks are only sent, and `celeriac worker` processes run them; the handlers stay
//! as they are. A worker in another process knows nothing of responses, so there a task may start before the response
//! is out, though never before it is stored.
//!
//! # Responses that do not end
//!
//! A task waits for its response at most for [`Builder::response_timeout`]. A response that streams the events of a task
//! ends after the task, so one must not wait for the other: send such a task with
//! [`Signature::delay`](crate::Signature::delay).

mod builder;
mod closures;
mod error;
mod home;
mod layer;
mod tasks;
mod watchdog;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio_util::sync::DropGuard;

pub use self::builder::Builder;
pub use self::closures::ClosureOutput;
use self::closures::Closures;
pub use self::error::{Error, MissingLayer};
pub use self::layer::{BackgroundLayer, BackgroundService};
pub use self::tasks::BackgroundTasks;
use self::watchdog::Watchdog;
use crate::app::Celeriac;
use crate::worker::{self, Gate, Gates};

/// The background work of one application: its worker, unless that is elsewhere, and its closures. Clones share
/// everything.
///
/// When the last clone is dropped the work ends by itself, as after [`shutdown`](Self::shutdown), and nobody waits for
/// it.
#[derive(Debug, Clone)]
pub struct Background {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    app: Celeriac,
    /// What keeps the worker from starting a task too early; none where there is no worker.
    gates: Option<Arc<Gates>>,
    closures: Closures,
    watchdog: Arc<Watchdog>,
    tasks_added: AtomicU64,
    stop: DropGuard,
    ended: watch::Receiver<Option<Report>>,
}

/// What the background work did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Registered tasks that [`BackgroundTasks::add`] stored.
    pub tasks_added: u64,
    /// Closures taken.
    pub closures_added: u64,
    /// Those that returned, well or not.
    pub closures_finished: u64,
    /// Those of the finished that returned an error.
    pub closures_failed: u64,
    /// Those that panicked.
    pub closures_panicked: u64,
    /// Those that a shutdown did not wait for any longer.
    pub closures_abandoned: u64,
    /// How often something kept a thread of the runtime for longer than [`Builder::stall_after`].
    pub stalls: u64,
}

impl Stats {
    /// Closures that wait or run.
    #[must_use]
    pub fn closures_pending(&self) -> u64 {
        let ended = self.closures_finished + self.closures_panicked + self.closures_abandoned;
        self.closures_added.saturating_sub(ended)
    }
}

/// What there is to say at the end of a [`Background`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Report {
    /// What its worker did; all zero where there was none. `handed_back` are the registered tasks that go on in the
    /// next process.
    pub tasks: worker::Report,
    /// The counts at the end; `closures_abandoned` of them are lost.
    pub stats: Stats,
}

impl Background {
    /// Background work in this process.
    #[must_use]
    pub fn builder(app: Celeriac) -> Builder {
        Builder::new(app, true)
    }

    /// Tasks are sent, and left to workers in other processes; closures run here.
    #[must_use]
    pub fn without_worker(app: Celeriac) -> Builder {
        Builder::new(app, false)
    }

    /// The layer to put on a router whose handlers take [`BackgroundTasks`].
    #[must_use]
    pub fn layer(&self) -> BackgroundLayer {
        BackgroundLayer::new(self.clone())
    }

    /// For work that belongs to no request: what is added starts at once.
    #[must_use]
    pub fn tasks(&self) -> BackgroundTasks {
        BackgroundTasks::new(self.clone(), Arc::new(Gate::opened_already()))
    }

    /// The application.
    #[must_use]
    pub fn app(&self) -> &Celeriac {
        &self.inner.app
    }

    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            tasks_added: self.inner.tasks_added.load(Ordering::Relaxed),
            stalls: self.inner.watchdog.stalls(),
            ..self.inner.closures.stats()
        }
    }

    /// Ends the work, and says what became of it. To be called when the server has stopped, so that what its last
    /// requests added is in.
    ///
    /// Nothing more is reserved and no closure taken; what runs may finish, for up to
    /// [`worker_shutdown_timeout`](crate::Config::worker_shutdown_timeout). Then registered tasks are handed back to the
    /// store, where the next process finds them, and closures are dropped. A task added after this is stored, and waits
    /// for the next process as well.
    pub async fn shutdown(&self) -> Report {
        self.inner.stop.token().cancel();
        let mut ended = self.inner.ended.clone();
        // Without a report the thread has died, which was logged where it happened.
        let report =
            ended.wait_for(Option::is_some).await.ok().and_then(|report| *report).unwrap_or_default();
        Report { stats: self.stats(), ..report }
    }

    fn open(&self, gate: &Arc<Gate>) {
        match &self.inner.gates {
            Some(gates) => gates.open(gate),
            None => gate.open(),
        }
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}
