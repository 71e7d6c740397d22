//! Gates: tasks that this process's worker must not start before a response has been sent.
//!
//! A web handler sends a task before it answers, so that it cannot be lost; the gate of its request keeps the worker in
//! the same process from starting it before the answer is out.
//!
//! ```text
//!  reserved ─► gate shut? ── no ─► examine …
//!                 │ yes: the slot is given back
//!                 ▼
//!              waits ─┬─ opened, or its time is over ─► takes a slot ─► examine …
//!                     ├─ revoked ────► settled
//!                     ├─ shutdown ───► handed back
//!                     └─ lease lost ─► forgotten
//! ```
//!
//! What waits here holds its lease, which is renewed like any other, and no slot: a client that reads its response
//! slowly must not keep other tasks from running. The bound on how many wait is that of [`Gates`].

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ending::{self, Count};
use super::{Shared, consumer};
use crate::broker::Delivery;
use crate::id::{DeliveryTag, TaskId};
use crate::store::{Then, Transaction};
use crate::task::{CancelReason, CancelSignal};

/// The gate of one request.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    open: CancellationToken,
    /// The tasks noted under it.
    ids: Mutex<Vec<TaskId>>,
}

impl Gate {
    /// Waits until it is open, or until `until`.
    pub(crate) async fn opened(&self, until: Instant) {
        let _ = tokio::time::timeout_at(until, self.open.cancelled()).await;
    }

    /// Opens a gate that no task waits at.
    pub(crate) fn open(&self) {
        self.open.cancel();
    }

    /// A gate that was never shut.
    pub(crate) fn opened_already() -> Self {
        let gate = Self::default();
        gate.open.cancel();
        gate
    }
}

/// Which tasks have a gate that is shut, of all requests of a process.
#[derive(Debug)]
pub(crate) struct Gates {
    max: usize,
    timeout: Duration,
    gated: Mutex<HashMap<TaskId, Gated>>,
    /// The reservations that wait at one.
    waiting: Mutex<HashSet<DeliveryTag>>,
    /// A task whose gate has opened is in line for a slot, and the consumer may be holding all of them while it waits
    /// for messages.
    slot_wanted: Notify,
}

/// A gate that is shut, and when it counts as open at the latest.
#[derive(Debug, Clone)]
pub(super) struct Gated {
    gate: Arc<Gate>,
    until: Instant,
}

/// So many tasks have a gate that is shut that no more can be noted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) max: usize,
}

impl Gates {
    /// For at most `max` tasks, each of which waits at most `timeout`.
    pub(crate) fn new(max: usize, timeout: Duration) -> Self {
        Self { max, timeout, gated: Mutex::default(), waiting: Mutex::default(), slot_wanted: Notify::new() }
    }

    /// Notes that these tasks, which are about to be sent, wait for `gate`; does nothing when it is open.
    pub(crate) fn shut(&self, gate: &Arc<Gate>, ids: Vec<TaskId>) -> Result<(), Full> {
        let mut gated = lock(&self.gated);
        if gate.open.is_cancelled() {
            return Ok(());
        }
        let now = Instant::now();
        if gated.len() + ids.len() > self.max {
            // A response that is never dropped leaves its tasks here.
            gated.retain(|_, gated| gated.until > now);
        }
        if gated.len() + ids.len() > self.max {
            return Err(Full { max: self.max });
        }
        let until = now + self.timeout;
        for id in ids {
            // A task sent twice under one id is one task, and the first request's.
            if let Entry::Vacant(vacant) = gated.entry(id) {
                lock(&gate.ids).push(vacant.key().clone());
                vacant.insert(Gated { gate: Arc::clone(gate), until });
            }
        }
        Ok(())
    }

    /// Opens a gate for good.
    pub(crate) fn open(&self, gate: &Arc<Gate>) {
        let mut gated = lock(&self.gated);
        gate.open.cancel();
        for id in lock(&gate.ids).drain(..) {
            if gated.get(&id).is_some_and(|gated| Arc::ptr_eq(&gated.gate, gate)) {
                gated.remove(&id);
            }
        }
    }

    /// The gate of a task, if it is shut.
    pub(super) fn find(&self, task_id: &TaskId) -> Option<Gated> {
        let mut gated = lock(&self.gated);
        let found = gated.get(task_id)?;
        if found.until <= Instant::now() {
            gated.remove(task_id);
            return None;
        }
        Some(found.clone())
    }

    /// Whether this reservation waits at a gate: nothing of its task has begun.
    pub(super) fn waits(&self, tag: &DeliveryTag) -> bool {
        lock(&self.waiting).contains(tag)
    }

    /// Returns when a task whose gate has opened is in line for a slot.
    pub(super) async fn slot_wanted(&self) {
        self.slot_wanted.notified().await;
    }
}

/// Lets a delivery wait in a task of its own, and sends it on its way when its gate has opened.
pub(super) fn hold(
    shared: &Arc<Shared>,
    gates: &Arc<Gates>,
    delivery: Delivery,
    signal: Arc<CancelSignal>,
    gated: Gated,
) {
    let (shared, gates) = (Arc::clone(shared), Arc::clone(gates));
    let runs = shared.runs.clone();
    let waiting = Waiting::new(&gates, &delivery.tag);
    runs.spawn(async move {
        let slot = tokio::select! {
            biased;
            reason = signal.stopped() => Err(reason),
            slot = async {
                gated.gate.opened(gated.until).await;
                take_slot(&shared, &gates).await
            } => Ok(slot),
        };
        drop(waiting);
        match slot {
            Ok(slot) => consumer::proceed(&shared, delivery, signal, slot).await,
            Err(reason) => stop(&shared, delivery, reason).await,
        }
    });
}

async fn take_slot(shared: &Shared, gates: &Gates) -> Option<OwnedSemaphorePermit> {
    let mut slot = pin!(shared.slots.one());
    if let Poll::Ready(slot) = poll_fn(|cx| Poll::Ready(slot.as_mut().poll(cx))).await {
        return slot;
    }
    // In line first, and then told: the slots that the consumer lets go of come here before they go back to it.
    gates.slot_wanted.notify_one();
    slot.await
}

async fn stop(shared: &Shared, delivery: Delivery, reason: CancelReason) {
    let (transaction, count) = match reason {
        CancelReason::LeaseLost => {
            tracing::warn!(task_id = %delivery.task_id, "lease lost before the start");
            ending::count(&shared.counters, Count::Lost);
            shared.held.remove(&delivery.tag);
            return;
        }
        CancelReason::Shutdown => {
            let then = Then::Requeue { due: None, counted: false };
            (Transaction::fenced(delivery.tag.clone(), then), Count::HandedBack)
        }
        // Limits begin with the run, so this is a revocation.
        CancelReason::Revoked | CancelReason::SoftTimeLimit | CancelReason::TimeLimit => {
            (ending::settle_revoked(&shared.app, &delivery, "revoked"), Count::Revoked)
        }
    };
    shared.settler.settle(&delivery, transaction, count, None).await;
}

/// A reservation that waits; dropping it says that it does no longer.
#[derive(Debug)]
struct Waiting {
    gates: Arc<Gates>,
    tag: DeliveryTag,
}

impl Waiting {
    fn new(gates: &Arc<Gates>, tag: &DeliveryTag) -> Self {
        lock(&gates.waiting).insert(tag.clone());
        Self { gates: Arc::clone(gates), tag: tag.clone() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        lock(&self.gates.waiting).remove(&self.tag);
    }
}

/// Nothing that holds one of these locks can panic half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Arguments, Context, Execution, Task, TaskError, Typed};
    #[cfg(feature = "axum")]
    use crate::worker::{InProcess, Polls};
    use crate::{Celeriac, Json, Signature};

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn ids(names: &[&str]) -> Vec<TaskId> {
        names.iter().copied().map(TaskId::from).collect()
    }

    fn shut(gates: &Gates) -> Vec<TaskId> {
        let mut shut: Vec<TaskId> = lock(&gates.gated).keys().cloned().collect();
        shut.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        shut
    }

    #[test]
    fn a_gate_opens_for_its_own_tasks_and_for_good() {
        let gates = Gates::new(10, TIMEOUT);
        let (first, second) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
        gates.shut(&first, ids(&["a", "b"])).unwrap();
        gates.shut(&second, ids(&["b", "c"])).unwrap();
        assert_eq!(shut(&gates), ids(&["a", "b", "c"]));
        gates.open(&second);
        assert_eq!(shut(&gates), ids(&["a", "b"]), "b is the first request's");
        gates.open(&first);
        gates.shut(&first, ids(&["d"])).unwrap();
        assert_eq!(shut(&gates), [], "what is sent after the response waits for nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_the_bound_is_refused_until_what_is_there_is_too_old() {
        let gates = Gates::new(2, TIMEOUT);
        let gate = Arc::new(Gate::default());
        gates.shut(&gate, ids(&["a", "b"])).unwrap();
        assert_eq!(gates.shut(&gate, ids(&["c"])), Err(Full { max: 2 }));
        assert_eq!(shut(&gates), ids(&["a", "b"]));
        tokio::time::advance(TIMEOUT).await;
        assert!(gates.find(&TaskId::from("a")).is_none(), "its time is over");
        gates.shut(&gate, ids(&["c", "d"])).unwrap();
        assert_eq!(shut(&gates), ids(&["c", "d"]));
    }

    /// A task that returns at once.
    enum Quick {}

    impl Typed for Quick {
        type Output = ();
    }

    impl Task for Quick {
        const NAME: &'static str = "gate.quick";

        fn bind(_: Context, _: Arguments) -> Result<Execution, TaskError> {
            Ok(Execution::Async(Box::pin(async { Ok(Json::default()) })))
        }
    }

    fn quick() -> Signature<Quick> {
        Signature::of_task(Ok(Vec::new()))
    }

    // Time stands still while anything has to be done, so that a wait for the consumer's next look would show.
    #[cfg(feature = "axum")]
    #[tokio::test(start_paused = true)]
    async fn a_task_starts_as_soon_as_its_gate_opens() {
        let app = Celeriac::connect("memory://").await.unwrap().register(quick);
        let in_process = InProcess { gates: Arc::new(Gates::new(10, TIMEOUT)), polls: Polls::new() };
        let gates = Arc::clone(&in_process.gates);
        let gate = Arc::new(Gate::default());
        let ids = ids(&["a", "b"]);
        gates.shut(&gate, ids.clone()).unwrap();
        let sent = [quick().task_id(&ids[0]), quick().task_id(&ids[1])];
        let results = app.publish_batch(&sent).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let worker = app.worker().concurrency(1).in_process(in_process);
        let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));
        // The one slot is with the consumer, which waits for messages, and both tasks wait here.
        while lock(&gates.waiting).len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(quick().delay(&app).await.unwrap().get().await.unwrap(), ());
        let opened = Instant::now();
        gates.open(&gate);
        for result in results {
            result.get().await.unwrap();
        }
        assert_eq!(opened.elapsed(), Duration::ZERO);
        drop(stop);
        assert_eq!(worker.await.unwrap().unwrap().succeeded, 3);
        assert_eq!(lock(&gates.waiting).len(), 0);
    }
}
