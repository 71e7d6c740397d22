//! Says that the worker lives, and how it stands: at the start, at intervals, when something changes, at the end.
//!
//! It shares a thread with remote control (`control.rs`), so that a task that never yields does not make a worker that
//! lives look dead. While the store is away nothing is said; the worker works on.

use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::app::hostname;
use crate::clock::after;
use crate::control::WorkerCard;
use crate::protocol::event::EventKind;

/// A card outlives the interval by this factor and this time: two beats may be lost, and one may be late.
const MISSED_BEATS: u32 = 3;
const LATENESS: Duration = Duration::from_secs(1);
/// How long the worker tries to say that it is gone. If it cannot, its card expires.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn run(shared: &Shared, done: &CancellationToken) {
    let control = &shared.app.store().control;
    let hostname = hostname();
    let mut ticks = tokio::time::interval(shared.app.config().worker_heartbeat_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut stopping, mut online) = (false, false);
    loop {
        tokio::select! {
            biased;
            () = done.cancelled() => break,
            () = shared.stopping.cancelled(), if !stopping => {}
            () = shared.changed.notified() => {}
            _ = ticks.tick() => {}
        }
        stopping = shared.stopping.is_cancelled();
        if let Err(error) = control.beat(&card(shared, &hostname, stopping)).await {
            tracing::warn!(%error, "cannot say that the worker lives, trying again");
        }
        let beat = shared.heartbeat();
        let kind = if online { EventKind::WorkerHeartbeat(beat) } else { EventKind::WorkerOnline(beat) };
        online = true;
        shared.announcer.tell(shared.app.clock().now(), kind);
    }
    shared.announcer.tell(shared.app.clock().now(), EventKind::WorkerOffline(shared.heartbeat()));
    match tokio::time::timeout(LEAVE_PATIENCE, control.leave(&shared.worker)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot say that the worker is gone"),
        Err(_) => tracing::warn!(patience = ?LEAVE_PATIENCE, "cannot say that the worker is gone in time"),
    }
}

fn card(shared: &Shared, hostname: &str, stopping: bool) -> WorkerCard {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let app = &shared.app;
    let now = app.clock().now();
    WorkerCard {
        worker: shared.worker.clone(),
        node: shared.node.clone(),
        hostname: hostname.into(),
        pid: std::process::id(),
        version: VERSION.into(),
        queues: shared.queues.borrow().clone(),
        tasks: shared.task_names(),
        concurrency: count(shared.slots.size()),
        running: count(shared.held.running()),
        started: shared.started,
        beat: now,
        expires: after(now, app.config().worker_heartbeat_interval * MISSED_BEATS + LATENESS),
        stopping,
        totals: shared.counters.report(),
    }
}

/// What this worker is.
pub(super) const VERSION: &str = concat!("celeriac ", env!("CARGO_PKG_VERSION"));
