//! Reserves messages, as many as there are free slots, and sends each on its way.
//!
//! ```text
//!  wait for a slot ─► reserve up to the free slots ─► examine each ─► run, settle or hand back ─┐
//!        ▲──────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::examine::{Verdict, examine};
use super::{Shared, pool};
use crate::broker::{Delivery, Reserve};
use crate::id::QueueName;

/// The most that one call reserves, whatever the number of free slots.
const RESERVE_MAX: usize = 512;
/// How long one call waits; the loop goes on at once.
const RESERVE_WAIT: Duration = Duration::from_secs(5);
const STORE_AWAY_PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn run(shared: Arc<Shared>, queues: Vec<QueueName>) {
    let mut request = Reserve {
        worker: shared.worker.clone(),
        queues,
        limit: 0,
        lease: shared.app.config().visibility_timeout,
        wait: RESERVE_WAIT,
        stop: shared.stopping.clone(),
    };
    while let Some(mut permits) = free_slots(&shared).await {
        request.limit = permits.num_permits();
        match shared.app.store().broker.reserve(&request).await {
            Ok(deliveries) => {
                for delivery in deliveries {
                    let slot = permits.split(1);
                    dispatch(&shared, delivery, slot).await;
                }
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

/// Waits for a free slot and takes all that are free; `None` when the worker is stopping.
async fn free_slots(shared: &Shared) -> Option<OwnedSemaphorePermit> {
    let mut first = tokio::select! {
        biased;
        () = shared.stopping.cancelled() => return None,
        permit = Arc::clone(&shared.slots).acquire_owned() => permit.ok()?,
    };
    let more = shared.slots.available_permits().min(RESERVE_MAX - 1);
    if more > 0
        && let Ok(rest) =
            Arc::clone(&shared.slots).try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX))
    {
        first.merge(rest);
    }
    Some(first)
}

async fn dispatch(shared: &Arc<Shared>, delivery: Delivery, slot: Option<OwnedSemaphorePermit>) {
    let signal = shared.held.insert(delivery.tag.clone());
    match examine(shared, &delivery).await {
        Verdict::Run(call) => pool::start(shared, delivery, *call, signal, slot),
        Verdict::Settle(transaction, count) => {
            shared.settler.settle(delivery.tag, *transaction, count).await;
        }
    }
}
