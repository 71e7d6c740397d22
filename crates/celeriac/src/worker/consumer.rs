//! Reserves messages, as many as there are free slots, and sends each on its way.
//!
//! ```text
//!  wait for a slot ─► reserve up to the free slots ─► examine each ─► run, settle or hand back
//!        ▲                 │ recalled: other queues, fewer slots   │
//!        └─────────────────┴───────────────────────────────────────┘
//! ```
//!
//! While some are sent on their way the next are being reserved, in halves of what there is room for: neither the store
//! nor the tasks wait for the other. Where a call has brought many, two are under way, so that the store has the next one at
//! hand when it is done with the first.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::ending::Count;
use super::examine::{Verdict, examine};
use super::{Shared, foreign, gate, pool, revocation, unknown};
use crate::broker::{Delivery, Reserve};
use crate::id::QueueName;
use crate::store::{self, Then, Transaction};
use crate::task::CancelSignal;

/// The most that one call reserves, whatever the number of free slots.
const RESERVE_MAX: usize = 512;
/// Where one call brings so many, there are more, and another one is made beside the next.
const BACKLOG: usize = 32;
/// How long one call waits; the loop goes on at once.
const RESERVE_WAIT: Duration = Duration::from_secs(5);
const STORE_AWAY_PAUSE: Duration = Duration::from_millis(500);

/// Ends a waiting reservation, so that the consumer looks anew at its queues and slots.
#[derive(Debug)]
pub(crate) struct Recall {
    stopping: CancellationToken,
    current: Mutex<CancellationToken>,
}

impl Recall {
    /// One that `stopping` ends for good.
    pub(super) fn new(stopping: &CancellationToken) -> Self {
        Self { current: Mutex::new(stopping.child_token()), stopping: stopping.clone() }
    }

    /// Ends what waits now.
    pub(super) fn recall(&self) {
        let next = self.stopping.child_token();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, next).cancel();
    }

    fn token(&self) -> CancellationToken {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What was reserved in one call, and the slots for it. All of it is held from then on: what has to wait until those before
/// it are on their way keeps its lease meanwhile.
struct Reserved {
    deliveries: Vec<(Delivery, Arc<CancelSignal>)>,
    slots: Option<OwnedSemaphorePermit>,
}

impl Reserved {
    /// What was reserved for `slots`.
    fn of(shared: &Shared, deliveries: Vec<Delivery>, mut slots: OwnedSemaphorePermit) -> Self {
        // The others are free again at once.
        let slots = slots.split(deliveries.len());
        let held = |delivery: Delivery| {
            let signal = shared.held.insert(delivery.tag.clone());
            (delivery, signal)
        };
        Self { deliveries: deliveries.into_iter().map(held).collect(), slots }
    }
}

/// What came of a call.
enum Called {
    /// Of the one that waits; nothing when the worker stops.
    Waiting(Option<Reserved>),
    /// Of one that takes what is there, which may be nothing.
    AtOnce(Option<Reserved>),
}

pub(super) async fn run(shared: Arc<Shared>) {
    // Once: what cannot be had of remote control keeps no task from running, and is asked for again there.
    revocation::learn(&shared).await;
    let queues = shared.queues.subscribe();
    // One that waits, until the worker stops, and at times another. None is dropped: what it has reserved nobody would
    // know of.
    let mut calls = FuturesUnordered::new();
    calls.push(call(&shared, queues.clone(), None));
    let mut reserved = None;
    loop {
        let (called, ()) = tokio::join!(calls.next(), dispatch_all(&shared, reserved.take()));
        reserved = match called {
            None => return,
            Some(Called::AtOnce(next) | Called::Waiting(next @ None)) => next,
            Some(Called::Waiting(next)) => {
                calls.push(call(&shared, queues.clone(), None));
                next
            }
        };
        let many = reserved.as_ref().is_some_and(|next| next.deliveries.len() >= BACKLOG);
        // Beside the one that waits, and not when that has ended.
        if many
            && calls.len() == 1
            && let Some(slots) = shared.slots.take_at_once(BACKLOG, most(&shared))
        {
            calls.push(call(&shared, queues.clone(), Some(slots)));
        }
    }
}

/// Reserves: for the slots at hand what is there, and without them as soon as there is a slot and something to reserve.
async fn call(
    shared: &Shared,
    mut queues: watch::Receiver<Vec<QueueName>>,
    slots: Option<OwnedSemaphorePermit>,
) -> Called {
    let Some(slots) = slots else { return Called::Waiting(reserve_next(shared, &mut queues).await) };
    let queues = queues.borrow_and_update().clone();
    let request = request(shared, queues, &slots, Duration::ZERO, shared.recall.token());
    Called::AtOnce(match shared.app.store().broker.reserve(&request).await {
        Ok(deliveries) if deliveries.is_empty() => None,
        Ok(deliveries) => Some(Reserved::of(shared, deliveries, slots)),
        // The one that waits meets the same, and says so.
        Err(error) => {
            tracing::debug!(%error, "cannot reserve more");
            None
        }
    })
}

/// How many one call reserves.
fn most(shared: &Shared) -> usize {
    RESERVE_MAX.min(shared.slots.half())
}

fn request(
    shared: &Shared,
    queues: Vec<QueueName>,
    slots: &OwnedSemaphorePermit,
    wait: Duration,
    stop: CancellationToken,
) -> Reserve {
    Reserve {
        worker: shared.worker.clone(),
        queues,
        limit: slots.num_permits(),
        lease: shared.app.config().visibility_timeout,
        wait,
        stop,
    }
}

/// Reserves as soon as there is a slot and something to reserve; `None` when the worker stops.
async fn reserve_next(shared: &Shared, queues: &mut watch::Receiver<Vec<QueueName>>) -> Option<Reserved> {
    loop {
        // Before what it is to end is looked at: a change from here on is heard.
        let stop = shared.recall.token();
        let Some(slots) = shared.slots.take(most(shared), &stop).await else {
            if shared.stopping.is_cancelled() {
                return None;
            }
            continue;
        };
        let queues_now = queues.borrow_and_update().clone();
        let request = request(shared, queues_now, &slots, RESERVE_WAIT, stop);
        if request.queues.is_empty() {
            drop(slots);
            tokio::select! {
                _ = queues.changed() => {}
                () = shared.stopping.cancelled() => {}
            }
            continue;
        }
        match reserve(shared, &request).await {
            Ok(deliveries) if deliveries.is_empty() => {}
            Ok(deliveries) => {
                return Some(Reserved::of(shared, deliveries, slots));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot reserve, trying again");
                tokio::select! {
                    () = tokio::time::sleep(STORE_AWAY_PAUSE) => {}
                    () = shared.stopping.cancelled() => {}
                }
            }
        }
    }
}

async fn dispatch_all(shared: &Arc<Shared>, reserved: Option<Reserved>) {
    let Some(Reserved { deliveries, mut slots }) = reserved else { return };
    for (delivery, signal) in deliveries {
        let slot = slots.as_mut().and_then(|slots| slots.split(1));
        // The worker may have been told meanwhile to consume from it no longer.
        if shared.queues.borrow().contains(&delivery.queue) {
            dispatch(shared, delivery, signal, slot).await;
        } else {
            give_back(shared, delivery).await;
        }
    }
}

/// Reserves; a task whose gate has opened ends the wait, since its slot may be among those held here.
async fn reserve(shared: &Shared, request: &Reserve) -> store::Result<Vec<Delivery>> {
    let broker = &shared.app.store().broker;
    let Some(in_process) = &shared.in_process else { return broker.reserve(request).await };
    let reserving = broker.reserve(request);
    tokio::pin!(reserving);
    tokio::select! {
        biased;
        reserved = &mut reserving => reserved,
        () = in_process.gates.slot_wanted() => {
            shared.recall.recall();
            reserving.await
        }
    }
}

async fn dispatch(
    shared: &Arc<Shared>,
    delivery: Delivery,
    signal: Arc<CancelSignal>,
    slot: Option<OwnedSemaphorePermit>,
) {
    if let Some(in_process) = &shared.in_process
        && let Some(gated) = in_process.gates.find(&delivery.task_id)
    {
        return gate::hold(shared, &in_process.gates, delivery, signal, gated);
    }
    proceed(shared, delivery, signal, slot).await;
}

/// Sends a delivery on its way, now that nothing keeps it from starting.
pub(super) async fn proceed(
    shared: &Arc<Shared>,
    delivery: Delivery,
    signal: Arc<CancelSignal>,
    slot: Option<OwnedSemaphorePermit>,
) {
    match examine(shared, &delivery).await {
        Verdict::Run(call) => pool::start(shared, delivery, *call, signal, slot),
        Verdict::Conclude(message, verdict, dead) => {
            foreign::start_conclusion(shared, delivery, *message, verdict, dead, slot);
        }
        Verdict::Settle(transaction, count) => {
            shared.settler.settle(&delivery, *transaction, count, None).await;
        }
        Verdict::Unknown(message) => unknown::start(shared, delivery, *message, slot),
    }
}

/// Gives back what was reserved just as the worker was told to consume no longer from its queue.
async fn give_back(shared: &Shared, delivery: Delivery) {
    let then = Then::Requeue { due: None, counted: false };
    let transaction = Transaction::fenced(delivery.tag.clone(), then);
    shared.settler.settle(&delivery, transaction, Count::HandedBack, None).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recall_ends_what_waits_and_not_what_comes_after() {
        let stopping = CancellationToken::new();
        let recall = Recall::new(&stopping);
        let waits = recall.token();
        assert!(!waits.is_cancelled());
        recall.recall();
        assert!(waits.is_cancelled());
        let next = recall.token();
        assert!(!next.is_cancelled());
        stopping.cancel();
        assert!(next.is_cancelled());
    }
}
