//! Rate limits, each of one task in one worker: Celery's token bucket of capacity 1.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Timestamp, after};
use crate::id::TaskId;
use crate::task::RateLimit;

/// The buckets of a worker.
///
/// A task that may not start yet does not wait in a slot: it is given a time of its own, handed back until then, and
/// recognised when it comes again.
#[derive(Debug, Default)]
pub(crate) struct RateLimits {
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    /// When the next start is free.
    next: Timestamp,
    /// Tasks that were given a time.
    promised: HashSet<TaskId>,
}

/// How many promises a bucket remembers. A task whose promise was forgotten asks again.
const PROMISES_MAX: usize = 10_000;
/// How far ahead starts are given away; what comes beyond asks again then. Without it a burst would push everything
/// that follows out by hours, even after most of the burst was revoked.
const HORIZON: Duration = Duration::from_secs(60);

impl RateLimits {
    /// `None`: start now. Else: not before this time.
    pub(crate) fn take(
        &self,
        task: &str,
        limit: RateLimit,
        task_id: &TaskId,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket =
            buckets.entry(task.to_owned()).or_insert_with(|| Bucket { next: now, promised: HashSet::new() });
        if bucket.promised.remove(task_id) {
            return None;
        }
        if bucket.next <= now {
            bucket.next = after(now, limit.interval());
            return None;
        }
        let horizon = after(now, HORIZON);
        if bucket.next > horizon || bucket.promised.len() >= PROMISES_MAX {
            return Some(horizon);
        }
        let due = bucket.next;
        bucket.next = after(due, limit.interval());
        bucket.promised.insert(task_id.clone());
        Some(due)
    }

    /// Starts over with a task, whose limit has changed.
    pub(crate) fn forget(&self, task: &str) {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).remove(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_spaced_and_promises_kept() {
        let rates = RateLimits::default();
        let limit: RateLimit = "2/s".parse().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let half = Duration::from_millis(500);
        let ids: Vec<TaskId> = (0..3).map(|n| TaskId::from(format!("{n}"))).collect();
        assert_eq!(rates.take("t", limit, &ids[0], now), None);
        assert_eq!(rates.take("t", limit, &ids[1], now), Some(after(now, half)));
        assert_eq!(rates.take("t", limit, &ids[2], now), Some(after(now, half * 2)));
        assert_eq!(rates.take("other", limit, &ids[2], now), None);
        let later = after(now, half);
        assert_eq!(rates.take("t", limit, &ids[1], later), None, "its time has come");
        assert_eq!(
            rates.take("t", limit, &ids[0], later),
            Some(after(now, half * 3)),
            "a promise is for one start"
        );
    }

    #[test]
    fn a_burst_does_not_book_for_ever() {
        let rates = RateLimits::default();
        let limit: RateLimit = "1/h".parse().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(rates.take("t", limit, &TaskId::from("a"), now), None);
        assert_eq!(rates.take("t", limit, &TaskId::from("b"), now), Some(after(now, HORIZON)));
        assert_eq!(rates.take("t", limit, &TaskId::from("c"), now), Some(after(now, HORIZON)));
    }
}
