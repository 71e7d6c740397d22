//! Where background work lives: a thread with a runtime of its own, from the start to the last drain.
//!
//! ```text
//!  worker ready ─► runs until told to stop ─┬─ worker: warm shutdown ─┬─► runtime dropped ─► report
//!                                           └─ closures: drained ─────┘
//! ```

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Report;
use super::closures::Closures;
use crate::error::{Error, Result};
use crate::worker::{self, Worker};

/// What lives there.
pub(super) struct Home {
    pub(super) worker: Option<Worker>,
    pub(super) closures: Closures,
    /// How long what runs may take to finish once it is told to stop.
    pub(super) patience: Duration,
    pub(super) stop: CancellationToken,
    pub(super) report: watch::Sender<Option<Report>>,
}

impl Home {
    /// Starts the thread; `ready` hears when work is taken, or why it is not.
    pub(super) fn open(self, runtime: Runtime, ready: oneshot::Sender<Result<()>>) -> std::io::Result<()> {
        worker::remember_places();
        let thread = std::thread::Builder::new().name("celeriac-home".to_owned());
        thread.spawn(move || {
            let Self { worker, closures, patience, stop, report } = self;
            let tasks = runtime.block_on(async {
                let (tasks, ()) = tokio::join!(work(worker, stop.clone(), ready), async {
                    stop.cancelled().await;
                    closures.drain(patience).await;
                });
                tasks
            });
            // A thread that a closure blocks cannot be stopped, and is not waited for.
            runtime.shutdown_background();
            closures.abandon_rest();
            let _ = report.send(Some(Report { tasks, ..Report::default() }));
        })?;
        Ok(())
    }
}

/// Runs the worker until `stop`; without one there is nothing to do.
async fn work(
    worker: Option<Worker>,
    stop: CancellationToken,
    ready: oneshot::Sender<Result<()>>,
) -> worker::Report {
    let Some(worker) = worker else {
        let _ = ready.send(Ok(()));
        return worker::Report::default();
    };
    let (started, is_started) = oneshot::channel();
    // The worker asks for this first when all of its loops run.
    let until_stopped = {
        let stop = stop.clone();
        async move {
            let _ = started.send(());
            stop.cancelled().await;
        }
    };
    // In a task of its own, so that a panic of it is an end and not that of the closures.
    let mut running = tokio::spawn(worker.run(until_stopped));
    let ended = tokio::select! {
        Ok(()) = is_started => {
            let _ = ready.send(Ok(()));
            running.await
        }
        ended = &mut running => match ended {
            Ok(Err(error)) => {
                let _ = ready.send(Err(error));
                stop.cancel();
                return worker::Report::default();
            }
            ended => ended,
        },
    };
    match ended.map_err(|panic| Error::invalid("worker", panic)).flatten() {
        Ok(report) => report,
        Err(error) => {
            tracing::error!(%error, "the in-process worker has ended, tasks stay in the store");
            worker::Report::default()
        }
    }
}
