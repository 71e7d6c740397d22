use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::closures::Closures;
use super::home::Home;
use super::watchdog::Watchdog;
use super::{Background, Inner};
use crate::app::Celeriac;
use crate::error::{Error, Result};
use crate::id::QueueName;
use crate::worker::{Gates, InProcess, Polls, Worker};

/// Builds a [`Background`].
#[derive(Debug)]
pub struct Builder {
    app: Celeriac,
    worker: Option<Worker>,
    threads: usize,
    response_timeout: Duration,
    tasks_max: usize,
    closures_max: usize,
    blocking_max: usize,
    stall_after: Duration,
}

impl Builder {
    pub(super) fn new(app: Celeriac, worker: bool) -> Self {
        Self {
            worker: worker.then(|| app.worker()),
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            response_timeout: RESPONSE_TIMEOUT,
            tasks_max: TASKS_MAX,
            closures_max: CLOSURES_MAX,
            blocking_max: BLOCKING_MAX,
            stall_after: STALL_AFTER,
            app,
        }
    }

    /// How many registered tasks run at once, see [`Worker::concurrency`]. Closures do not count. Without a worker it
    /// means nothing, as do [`queues`](Self::queues) and [`name`](Self::name).
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.worker = self.worker.map(|worker| worker.concurrency(concurrency));
        self
    }

    /// The queues whose tasks run in this process, see [`Worker::queues`].
    #[must_use]
    pub fn queues<Q: Into<QueueName>>(mut self, queues: impl IntoIterator<Item = Q>) -> Self {
        self.worker = self.worker.map(|worker| worker.queues(queues));
        self
    }

    /// The node name of the worker, see [`Worker::name`].
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.worker = self.worker.map(|worker| worker.name(name));
        self
    }

    /// How many threads the runtime of the background work has. Default: the number of cores.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// How long what was added waits for its response at most. Default 60 s.
    #[must_use]
    pub fn response_timeout(mut self, timeout: Duration) -> Self {
        self.response_timeout = timeout;
        self
    }

    /// How many registered tasks may wait for responses; beyond, [`Error::Full`](super::Error::Full). Default 10,000.
    #[must_use]
    pub fn tasks_max(mut self, max: usize) -> Self {
        self.tasks_max = max;
        self
    }

    /// How many closures may wait or run; beyond, [`Error::Full`](super::Error::Full). Default 10,000.
    #[must_use]
    pub fn closures_max(mut self, max: usize) -> Self {
        self.closures_max = max;
        self
    }

    /// How many blocking closures run at once, each on a thread of its own. Default 40.
    #[must_use]
    pub fn blocking_max(mut self, max: usize) -> Self {
        self.blocking_max = max;
        self
    }

    /// After how long something that keeps a thread of the runtime, or all of them, is warned of. Default 1 s.
    #[must_use]
    pub fn stall_after(mut self, bound: Duration) -> Self {
        self.stall_after = bound;
        self
    }

    /// Starts it: threads, runtime, worker.
    ///
    /// # Errors
    /// When a setting is wrong or a thread cannot be started.
    pub async fn start(self) -> Result<Background> {
        let positive = [
            ("threads", self.threads),
            ("closures_max", self.closures_max),
            ("blocking_max", self.blocking_max),
        ];
        for (name, number) in positive {
            if number == 0 {
                return Err(Error::invalid(name, "at least one is needed"));
            }
        }
        if self.stall_after < STALL_AFTER_MIN {
            return Err(Error::invalid("stall_after", format!("at least {STALL_AFTER_MIN:?} is needed")));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.threads)
            .thread_name("celeriac-background")
            .enable_all()
            .build()
            .map_err(|error| Error::invalid("background runtime", error))?;
        let polls = Polls::new();
        let watchdog = Watchdog::start(Arc::clone(&polls), self.stall_after, runtime.handle())
            .map_err(|error| Error::invalid("background watchdog thread", error))?;
        let gates = Arc::new(Gates::new(self.tasks_max, self.response_timeout));
        let closures = Closures::new(
            runtime.handle().clone(),
            self.closures_max,
            self.blocking_max,
            self.response_timeout,
            Arc::clone(&polls),
        );
        let stop = CancellationToken::new();
        let in_process = InProcess { gates: Arc::clone(&gates), polls };
        let (report, ended) = watch::channel(None);
        let (ready, started) = oneshot::channel();
        let home = Home {
            worker: self.worker.map(|worker| worker.in_process(in_process)),
            closures: closures.clone(),
            patience: self.app.config().worker_shutdown_timeout,
            stop: stop.clone(),
            report,
        };
        let gates = home.worker.is_some().then_some(gates);
        home.open(runtime, ready).map_err(|error| Error::invalid("background thread", error))?;
        started.await.map_err(|_| Error::invalid("background thread", "it ended before it began"))??;
        Ok(Background {
            inner: Arc::new(Inner {
                app: self.app,
                gates,
                closures,
                watchdog,
                tasks_added: 0.into(),
                stop: stop.drop_guard(),
                ended,
            }),
        })
    }
}

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
const TASKS_MAX: usize = 10_000;
const CLOSURES_MAX: usize = 10_000;
/// As the thread pool that FastAPI's tasks share.
const BLOCKING_MAX: usize = 40;
const STALL_AFTER: Duration = Duration::from_secs(1);
/// Below this a busy machine alone would make the watchdog bark.
const STALL_AFTER_MIN: Duration = Duration::from_millis(10);
