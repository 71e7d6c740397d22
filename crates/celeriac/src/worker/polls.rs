//! Which futures are being polled, and since when: one that is polled for long keeps a thread of the runtime.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::id::TaskId;

/// The futures of one runtime that are watched.
#[derive(Debug)]
pub(crate) struct Polls {
    began: Instant,
    next: AtomicU64,
    watched: Mutex<HashMap<u64, Arc<Watched>>>,
}

#[derive(Debug)]
struct Watched {
    name: String,
    task_id: Option<TaskId>,
    /// When the poll under way began, in milliseconds from 1; 0 while there is none.
    since: AtomicU64,
    /// The poll that was told of last.
    told: AtomicU64,
}

/// A poll that lasts too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Overdue {
    pub(crate) name: String,
    /// `None` for what is no task.
    pub(crate) task_id: Option<TaskId>,
    pub(crate) lasts: Duration,
    /// It was not among those named before.
    pub(crate) is_news: bool,
}

impl Polls {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), next: AtomicU64::new(0), watched: Mutex::default() })
    }

    /// The same future, watched until it is dropped.
    pub(crate) fn watch<T: 'static>(
        self: &Arc<Self>,
        name: &str,
        task_id: Option<&TaskId>,
        future: Pin<Box<dyn Future<Output = T> + Send>>,
    ) -> Pin<Box<dyn Future<Output = T> + Send>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let watched = Arc::new(Watched {
            name: name.to_owned(),
            task_id: task_id.cloned(),
            since: AtomicU64::new(0),
            told: AtomicU64::new(0),
        });
        self.lock().insert(number, Arc::clone(&watched));
        Box::pin(Watching { polls: Arc::clone(self), number, watched, future })
    }

    /// The polls that have lasted for `bound` or longer.
    pub(crate) fn overdue(&self, bound: Duration) -> Vec<Overdue> {
        let now = self.now();
        let overdue = |watched: &Arc<Watched>| {
            let since = watched.since.load(Ordering::Acquire);
            let lasts = Duration::from_millis(now.saturating_sub(since));
            if since == 0 || lasts < bound {
                return None;
            }
            let is_news = watched.told.swap(since, Ordering::Relaxed) != since;
            Some(Overdue { name: watched.name.clone(), task_id: watched.task_id.clone(), lasts, is_news })
        };
        self.lock().values().filter_map(overdue).collect()
    }

    /// Some of what is watched, by name.
    pub(crate) fn names(&self, max: usize) -> Vec<String> {
        self.lock().values().take(max).map(|watched| watched.name.clone()).collect()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Watched>>> {
        // Nothing that holds this lock can panic half-way through a change.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A future with an eye on it.
struct Watching<T> {
    polls: Arc<Polls>,
    number: u64,
    watched: Arc<Watched>,
    future: Pin<Box<dyn Future<Output = T> + Send>>,
}

impl<T> Future for Watching<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.watched.since.store(self.polls.now(), Ordering::Release);
        // A poll that panics is over as well; what caught it drops this.
        let polled = self.future.as_mut().poll(cx);
        self.watched.since.store(0, Ordering::Release);
        polled
    }
}

impl<T> Drop for Watching<T> {
    fn drop(&mut self) {
        self.polls.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const BOUND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_poll_that_lasts_is_news_once() {
        let polls = Polls::new();
        let within = Arc::clone(&polls);
        let id = TaskId::from("id");
        let slow = async move {
            assert_eq!(within.overdue(BOUND), []);
            // Time passes within the poll, as it does in a loop that never yields.
            let advanced = tokio::time::advance(BOUND);
            let _ = advanced.now_or_never();
            (within.overdue(BOUND), within.overdue(BOUND))
        };
        let (first, second) = polls.watch("burn", Some(&id), Box::pin(slow)).await;
        let overdue =
            |is_news| Overdue { name: "burn".to_owned(), task_id: Some(id.clone()), lasts: BOUND, is_news };
        assert_eq!(first, [overdue(true)]);
        assert_eq!(second, [overdue(false)]);
        assert_eq!(polls.lock().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_that_waits_is_no_concern() {
        let polls = Polls::new();
        let mut waits = polls.watch("sleeps", None, Box::pin(std::future::pending::<()>()));
        assert!(waits.as_mut().now_or_never().is_none());
        tokio::time::advance(BOUND * 10).await;
        assert_eq!(polls.overdue(BOUND), []);
    }
}
