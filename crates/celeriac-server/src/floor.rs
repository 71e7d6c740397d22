//! A picture of the workers and the queues, at most a second old.
//!
//! Submissions ask whether a task is known and a queue full, and views why a task waits. However many ask, the store is
//! read once a second for all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use celeriac::QueueName;
use celeriac::broker::QueueStatus;
use celeriac::control::WorkerCard;
use celeriac::store::{Result, Store};
use tokio::time::Instant;

/// The workers that live, and how the queues stand.
#[derive(Debug)]
pub(crate) struct Floor {
    pub(crate) workers: Vec<WorkerCard>,
    queues: HashMap<QueueName, QueueStatus>,
    /// What this server sent since the picture was taken, so that a burst within that second is counted.
    sent: Mutex<HashMap<QueueName, u64>>,
    taken: Instant,
}

impl Floor {
    pub(crate) fn queue(&self, queue: &QueueName) -> Option<&QueueStatus> {
        self.queues.get(queue)
    }

    /// How many messages wait on a queue, for a worker or for their time.
    pub(crate) fn waiting(&self, queue: &QueueName) -> u64 {
        let stood = self.queue(queue).map_or(0, |status| status.ready + status.delayed);
        stood + self.sent().get(queue).copied().unwrap_or(0)
    }

    /// Counts messages that were just sent.
    pub(crate) fn count_sent(&self, queue: &QueueName, messages: u64) {
        *self.sent().entry(queue.clone()).or_default() += messages;
    }

    fn sent(&self) -> std::sync::MutexGuard<'_, HashMap<QueueName, u64>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the newest picture.
#[derive(Debug, Default)]
pub(crate) struct FloorCache {
    // Held while the picture is taken: those who come meanwhile wait for it rather than take their own.
    newest: tokio::sync::Mutex<Option<Arc<Floor>>>,
}

impl FloorCache {
    /// A picture not older than [`FRESH`].
    pub(crate) async fn get(&self, store: &Store) -> Result<Arc<Floor>> {
        self.no_older_than(store, FRESH).await
    }

    /// A picture not older than `age`.
    pub(crate) async fn no_older_than(&self, store: &Store, age: Duration) -> Result<Arc<Floor>> {
        let mut newest = self.newest.lock().await;
        if let Some(floor) = newest.as_ref().filter(|floor| floor.taken.elapsed() < age) {
            return Ok(Arc::clone(floor));
        }
        let taken = Instant::now();
        let (workers, queues) = futures_util::try_join!(store.control.workers(), store.broker.queues())?;
        let queues = queues.into_iter().map(|status| (status.queue.clone(), status)).collect();
        let floor = Arc::new(Floor { workers, queues, sent: Mutex::default(), taken });
        *newest = Some(Arc::clone(&floor));
        Ok(floor)
    }

    /// The next to ask gets a new picture.
    pub(crate) async fn forget(&self) {
        *self.newest.lock().await = None;
    }
}

/// How old a picture may be.
pub(crate) const FRESH: Duration = Duration::from_secs(1);
