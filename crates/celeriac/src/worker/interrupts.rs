//! Hears of revocations of what this worker holds, and stops the runs they mean.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::broker::Interrupt;
use crate::task::CancelReason;

const WAIT: Duration = Duration::from_secs(5);
const ON_ITS_WAY_PAUSE: Duration = Duration::from_millis(20);
const STORE_AWAY_PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn run(shared: Arc<Shared>, done: CancellationToken) {
    let mut known: Vec<Interrupt> = Vec::new();
    loop {
        // Dropping the wait loses nothing: a revocation stays in the store.
        let found = tokio::select! {
            () = done.cancelled() => return,
            found = shared.app.store().broker.interrupts(&shared.worker, &known, WAIT) => found,
        };
        match found {
            Ok(interrupts) => {
                for interrupt in &interrupts {
                    // What waits at a gate has not begun: to revoke it is to stop it.
                    let waits = || {
                        let in_process = shared.in_process.as_ref();
                        in_process.is_some_and(|in_process| in_process.gates.waits(&interrupt.tag))
                    };
                    if (interrupt.terminate || waits())
                        && shared.held.cancel_by(&interrupt.tag, CancelReason::Revoked, interrupt.signal)
                    {
                        tracing::info!(tag = %interrupt.tag, "revoked, telling its run to stop");
                    }
                }
                // Each answer is the whole of what is revoked and still runs.
                let all = interrupts.len();
                known = interrupts;
                known.retain(|interrupt| shared.held.revoke(&interrupt.tag));
                if known.len() < all {
                    // Reserved, and on its way to this worker: it is asked for again, but not in a spin.
                    tokio::time::sleep(ON_ITS_WAY_PAUSE).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot ask for revocations, trying again");
                tokio::time::sleep(STORE_AWAY_PAUSE).await;
            }
        }
    }
}
