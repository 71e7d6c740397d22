//! What the tests of the engine share: applications with short times, and waiting for what a store tells.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use celeriac::backend::{FeedRecord, Watch};
use celeriac::worker::{Report, Worker};
use celeriac::{Celeriac, Config, TaskId};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a test waits for what must happen, before it calls it lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn sqlite_url(folder: &Path) -> String {
    format!("sqlite://{}/celeriac.db", folder.display())
}

/// The settings, with times so short that a test can wait for them.
pub(crate) fn config(lease: Duration) -> Config {
    let mut config = Config::default();
    config.visibility_timeout = lease;
    config.worker_restore_interval = Duration::from_millis(100);
    config.worker_revoke_grace = Duration::from_millis(100);
    config.worker_unknown_task_delay = Duration::from_millis(100);
    config
}

/// A worker in this process.
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    worker: JoinHandle<celeriac::Result<Report>>,
}

impl Running {
    pub(crate) fn start(worker: Worker) -> Self {
        let (stop, stopped) = oneshot::channel();
        let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));
        Self { stop, worker }
    }

    /// Begins the shutdown; the report comes when it is over.
    pub(crate) fn shut_down(self) -> impl Future<Output = Report> {
        let _ = self.stop.send(());
        async { self.worker.await.expect("the worker does not panic").expect("the worker ran") }
    }

    pub(crate) async fn stop(self) -> Report {
        self.shut_down().await
    }
}

/// All records of all logs, once `enough` says that what is awaited has been written.
pub(crate) async fn feed_until(app: &Celeriac, enough: impl Fn(&[FeedRecord]) -> bool) -> Vec<FeedRecord> {
    let backend = &app.store().backend;
    let deadline = Instant::now() + PATIENCE;
    let mut records: Vec<FeedRecord> = Vec::new();
    loop {
        let after = records.last().map_or(0, |record| record.number);
        let more = backend.feed(after, 1_000).await.unwrap();
        if more.is_empty() {
            if enough(&records) {
                return records;
            }
            assert!(Instant::now() < deadline, "what is awaited did not happen; the log: {records:#?}");
            backend.wait(&Watch::Feed { after }, Duration::from_secs(1)).await.unwrap();
        }
        records.extend(more);
    }
}

/// The records of one kind, of one task or of all.
pub(crate) fn count(records: &[FeedRecord], task_id: Option<&TaskId>, event: &str) -> usize {
    let of_task = |record: &&FeedRecord| task_id.is_none_or(|task_id| record.task_id == *task_id);
    records.iter().filter(of_task).filter(|record| &*record.entry.event == event).count()
}

/// Waits until a task has written so many records of one kind.
pub(crate) async fn events(app: &Celeriac, task_id: &TaskId, event: &str, times: usize) -> Vec<FeedRecord> {
    feed_until(app, |records| count(records, Some(task_id), event) >= times).await
}

/// That each task has ended exactly once, in this state.
pub(crate) async fn each_ended_once(app: &Celeriac, ids: &[TaskId], state: &str) {
    let records = feed_until(app, |_| true).await;
    let metas = app.store().backend.fetch(ids).await.unwrap();
    for (id, meta) in ids.iter().zip(metas) {
        assert_eq!(count(&records, Some(id), "end"), 1, "ends of {id}");
        let meta = meta.expect("a task that ended has a result");
        assert_eq!(meta.state.as_str(), state, "{id}: {}", meta.result.as_str());
    }
}
