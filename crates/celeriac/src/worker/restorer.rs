//! Cleans up behind workers that died: expired leases, chords that are complete and not fired, results out of date.

use std::sync::Arc;

use super::{Shared, fire_chords};
use crate::clock::Timestamp;

/// The most that one round takes of each kind; the rest waits for the next.
const CHORDS_MAX: usize = 100;
const SWEEP_MAX: usize = 1_000;

pub(super) async fn run(shared: Arc<Shared>) {
    let interval = shared.app.config().worker_restore_interval;
    loop {
        if let Err(error) = round(&shared).await {
            tracing::warn!(%error, "cannot clean up, trying again");
        }
        // Workers that started together do not come together for ever.
        let pause = interval.mul_f64(0.75 + fastrand::f64() / 2.0);
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn round(shared: &Shared) -> crate::store::Result<()> {
    let store = shared.app.store();
    let restored = store.broker.restore().await?;
    if restored > 0 {
        tracing::warn!(restored, "leases expired, their tasks are queued again");
    }
    let chords = store.backend.ready_chords(CHORDS_MAX).await?;
    fire_chords(&shared.app, chords).await;
    if let Some(expires) = shared.app.config().result_expires {
        let now = shared.app.clock().now();
        let before = jiff::SignedDuration::try_from(expires).ok().and_then(|age| now.checked_sub(age).ok());
        store.backend.sweep(before.unwrap_or(Timestamp::MIN), SWEEP_MAX).await?;
    }
    Ok(())
}
