//! Renews the lease of everything held, and stops what has lost it.
//!
//! It has a thread and a runtime of its own, so that a task that never yields cannot keep it from its work: what runs,
//! runs once, for however long.
//!
//! A worker that stops keeps short leases: who stops it may lose patience and kill it, and what it then still holds is to
//! begin elsewhere soon.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::task::CancelReason;

/// How soon a renewal that failed is tried again: what ran all through an outage must be renewed before others find its
/// leases passed (see `restorer.rs`).
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The longest lease of a worker that stops.
const STOPPING_LEASE_MAX: Duration = Duration::from_secs(5);
/// The most that one call renews.
const EXTEND_MAX: usize = 1_000;

pub(super) fn spawn(shared: Arc<Shared>, done: CancellationToken) -> std::io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new()
        .name("celeriac-lease".to_owned())
        .spawn(move || runtime.block_on(keep(&shared, &done)))
}

async fn keep(shared: &Shared, done: &CancellationToken) {
    let mut lease = shared.app.config().visibility_timeout;
    let mut stopping = false;
    // Two renewals may fail before a lease passes.
    let mut ticks = tokio::time::interval(lease / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = done.cancelled() => return,
            () = shared.stopping.cancelled(), if !stopping => {
                stopping = true;
                lease = lease.min(STOPPING_LEASE_MAX);
                ticks = tokio::time::interval(lease / 3);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                continue;
            }
            _ = ticks.tick() => {}
        }
        let mut failed = false;
        for tags in shared.held.tags().chunks(EXTEND_MAX) {
            match shared.app.store().broker.extend(tags, lease).await {
                Ok(lost) => {
                    for tag in lost {
                        // Or settled since the tags were listed, in which case there is no run left to hear of it.
                        // The run that does hear of it warns.
                        shared.held.cancel(&tag, CancelReason::LeaseLost);
                    }
                }
                // The runs go on: while the store is away nobody else can reserve, and their ends are fenced.
                Err(error) => {
                    tracing::warn!(%error, "cannot renew leases, trying again");
                    failed = true;
                }
            }
        }
        if failed {
            ticks.reset_after(RETRY_PAUSE.min(lease / 3));
        }
    }
}
