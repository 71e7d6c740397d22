//! Cleans up behind workers that died: expired leases, chords that are complete and not fired, results out of date.

use std::future::Future;

use super::fire_chords;
use crate::app::Celeriac;
use crate::clock::Timestamp;

/// The most that one round takes of each kind; the rest waits for the next.
const CHORDS_MAX: usize = 100;
const SWEEP_MAX: usize = 1_000;

impl Celeriac {
    /// Cleans up behind workers that died, as every worker does beside its work, until `shutdown` is ready. For
    /// processes without one that want this done even while no worker lives.
    pub async fn restore(&self, shutdown: impl Future<Output = ()>) {
        let interval = self.config().worker_restore_interval;
        tokio::pin!(shutdown);
        loop {
            if let Err(error) = round(self).await {
                tracing::warn!(%error, "cannot clean up, trying again");
            }
            // Workers that started together do not come together for ever.
            let pause = interval.mul_f64(0.75 + fastrand::f64() / 2.0);
            tokio::select! {
                () = &mut shutdown => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

async fn round(app: &Celeriac) -> crate::store::Result<()> {
    let store = app.store();
    let restored = store.broker.restore().await?;
    if restored > 0 {
        tracing::warn!(restored, "leases expired, their tasks are queued again");
    }
    let chords = store.backend.ready_chords(CHORDS_MAX).await?;
    fire_chords(app, chords).await;
    if let Some(expires) = app.config().result_expires {
        let now = app.clock().now();
        let before = jiff::SignedDuration::try_from(expires).ok().and_then(|age| now.checked_sub(age).ok());
        store.backend.sweep(before.unwrap_or(Timestamp::MIN), SWEEP_MAX).await?;
    }
    Ok(())
}
