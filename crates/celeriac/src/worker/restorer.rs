//! Cleans up behind workers that died: expired leases, chords that are complete and not fired, results out of date.
//!
//! Leases that passed while the store was away say nothing of their workers, which could not renew them. So after an outage
//! nothing is restored for a while, in which those who live renew what they hold.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::fire_chords;
use crate::app::Celeriac;
use crate::clock::Timestamp;

/// The most that one round takes of each kind; the rest waits for the next.
const CHORDS_MAX: usize = 100;
const SWEEP_MAX: usize = 1_000;
/// A store that takes so long to answer was away.
const AWAY: Duration = Duration::from_secs(1);
/// How long those who live have to renew their leases after an outage: until they are connected again, and have done so.
/// No longer than a lease.
const RENEWAL: Duration = Duration::from_secs(5);

impl Celeriac {
    /// Cleans up behind workers that died, as every worker does beside its work, until `shutdown` is ready. For
    /// processes without one that want this done even while no worker lives.
    pub async fn restore(&self, shutdown: impl Future<Output = ()>) {
        let interval = self.config().worker_restore_interval;
        tokio::pin!(shutdown);
        let mut away = false;
        loop {
            if let Err(error) = round(self, &mut away).await {
                tracing::warn!(%error, "cannot clean up, trying again");
                away = true;
            }
            // Never later than is set; and workers that started together do not come together for ever.
            let pause = interval.mul_f64(0.5 + fastrand::f64() / 2.0);
            tokio::select! {
                () = &mut shutdown => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// `away` is whether the store was, when it was last asked.
async fn round(app: &Celeriac, away: &mut bool) -> crate::store::Result<()> {
    let store = app.store();
    let asked = Instant::now();
    // A look first, which finds out whether the store is there and does nothing if it is carried out late.
    let chords = store.backend.ready_chords(CHORDS_MAX).await?;
    if std::mem::take(away) || asked.elapsed() > AWAY {
        tokio::time::sleep(RENEWAL.min(app.config().visibility_timeout)).await;
    }
    let restored = store.broker.restore().await?;
    if restored > 0 {
        tracing::warn!(restored, "leases expired, their tasks are queued again");
    }
    fire_chords(app, chords).await;
    if let Some(expires) = app.config().result_expires {
        let now = app.clock().now();
        let before = jiff::SignedDuration::try_from(expires).ok().and_then(|age| now.checked_sub(age).ok());
        store.backend.sweep(before.unwrap_or(Timestamp::MIN), SWEEP_MAX).await?;
    }
    Ok(())
}
