//! What becomes of a message whose task this worker does not know.
//!
//! A worker of Rust tasks alone hands it back for as long as it takes. One that runs another runtime's tasks stands where a
//! worker of Celery's stood, whose callers are told `NotRegistered`: it hands the message back while a worker that lives
//! knows the task, and for a while longer, since the one that will may just be starting; then the task fails, and its
//! message stays with the dead letters, to be sent again once there is a worker for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

use super::ending::Count;
use super::{Shared, foreign};
use crate::broker::Delivery;
use crate::clock::{Timestamp, after};
use crate::id::TaskId;
use crate::protocol::Message;
use crate::store::{Then, Transaction};
use crate::task::Verdict;

/// So many tasks are remembered; of more, it is not known how long they have been waited for.
const MET_MAX: usize = 10_000;

/// When tasks that nobody knows were first met.
#[derive(Debug, Default)]
pub(crate) struct Unknown {
    met: Mutex<HashMap<TaskId, Timestamp>>,
}

impl Unknown {
    /// Since when this one is waited for.
    fn since(&self, id: &TaskId, now: Timestamp, forget: Timestamp) -> Timestamp {
        let mut met = self.lock();
        if met.len() >= MET_MAX && !met.contains_key(id) {
            // What was not met again is with another worker.
            met.retain(|_, since| *since > forget);
            if met.len() >= MET_MAX {
                return now;
            }
        }
        *met.entry(id.clone()).or_insert(now)
    }

    fn forget(&self, id: &TaskId) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, Timestamp>> {
        // Nothing that holds this lock can panic half-way through a change.
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deals with one, in a task of its own: to ask who lives may take a moment.
pub(super) fn start(
    shared: &Arc<Shared>,
    delivery: Delivery,
    message: Message,
    slot: Option<OwnedSemaphorePermit>,
) {
    let shared = Arc::clone(shared);
    let runs = shared.runs.clone();
    runs.spawn(async move {
        if shared.executor.is_none() || is_waited_for(&shared, &delivery, &message).await {
            hand_back(&shared, &delivery, &message).await;
        } else {
            let name = message.headers.task.clone();
            let reason = format!("no worker has a task {name}");
            tracing::error!(task_id = %delivery.task_id, task = %name, "received a task that no worker has registered");
            let verdict = Verdict::NotRegistered(name);
            foreign::start_conclusion(&shared, delivery, message, verdict, Some(reason), slot);
        }
    });
}

async fn hand_back(shared: &Shared, delivery: &Delivery, message: &Message) {
    let delay = shared.app.config().worker_unknown_task_delay;
    let (task_id, name) = (&delivery.task_id, &message.headers.task);
    tracing::warn!(%task_id, task = %name, ?delay, "no such task here, handed back for a worker that knows it");
    let due = Some(after(shared.app.clock().now(), delay));
    let then = Then::Requeue { due, counted: false };
    let transaction = Transaction::fenced(delivery.tag.clone(), then);
    shared.settler.settle(delivery, transaction, Count::HandedBack, None).await;
}

/// Whether a worker that lives knows the task and consumes from its queue, or one still may come.
async fn is_waited_for(shared: &Shared, delivery: &Delivery, message: &Message) -> bool {
    let workers = match shared.app.store().control.workers().await {
        Ok(workers) => workers,
        Err(error) => {
            tracing::warn!(%error, "cannot ask which workers live, taken as if one knew the task");
            return true;
        }
    };
    let id = &delivery.task_id;
    let known = workers.iter().any(|card| {
        card.worker != shared.worker
            && !card.stopping
            && card.queues.contains(&delivery.queue)
            && card.tasks.iter().any(|task| **task == *message.headers.task)
    });
    if known {
        shared.unknown.forget(id);
        return true;
    }
    let config = shared.app.config();
    let (now, patience) = (shared.app.clock().now(), config.worker_unknown_task_timeout);
    let forget = now.checked_sub(patience + config.worker_unknown_task_delay * 2).unwrap_or(Timestamp::MIN);
    if after(shared.unknown.since(id, now, forget), patience) > now {
        return true;
    }
    shared.unknown.forget(id);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_the_old_goes_first() {
        let unknown = Unknown::default();
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let id = |number: usize| TaskId::from(format!("{number}"));
        for number in 0..MET_MAX {
            assert_eq!(unknown.since(&id(number), at(10), at(0)), at(10));
        }
        assert_eq!(unknown.since(&id(0), at(20), at(0)), at(10), "it was met before");
        assert_eq!(unknown.since(&id(MET_MAX), at(20), at(0)), at(20), "no room, and not remembered");
        assert_eq!(unknown.since(&id(MET_MAX), at(21), at(0)), at(21));
        assert_eq!(unknown.since(&id(MET_MAX), at(22), at(15)), at(22), "the old ones are forgotten");
        assert_eq!(unknown.since(&id(MET_MAX), at(23), at(15)), at(22));
        unknown.forget(&id(MET_MAX));
        assert_eq!(unknown.since(&id(MET_MAX), at(24), at(15)), at(24));
    }
}
