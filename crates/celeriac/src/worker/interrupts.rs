//! Hears of revocations of what this worker holds, and stops the runs they mean.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::id::DeliveryTag;
use crate::task::CancelReason;

const WAIT: Duration = Duration::from_secs(5);
const STORE_AWAY_PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn run(shared: Arc<Shared>, done: CancellationToken) {
    let mut known: Vec<DeliveryTag> = Vec::new();
    loop {
        known.retain(|tag| shared.held.contains(tag));
        // Dropping the wait loses nothing: a revocation stays in the store.
        let found = tokio::select! {
            () = done.cancelled() => return,
            found = shared.app.store().broker.interrupts(&shared.worker, &known, WAIT) => found,
        };
        match found {
            Ok(interrupts) => {
                for interrupt in interrupts {
                    if interrupt.terminate && shared.held.cancel(&interrupt.tag, CancelReason::Revoked) {
                        tracing::info!(tag = %interrupt.tag, "revoked, telling its run to stop");
                    }
                    // A wait that ends for nothing new names the same ones again.
                    if !known.contains(&interrupt.tag) {
                        known.push(interrupt.tag);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot ask for revocations, trying again");
                tokio::time::sleep(STORE_AWAY_PAUSE).await;
            }
        }
    }
}
