//! What the worker holds: every reservation from its delivery until it is settled, with the way to stop its run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;
use crate::id::{DeliveryTag, TaskId};
use crate::signal::ProcessSignal;
use crate::task::{Arguments, CancelReason, CancelSignal, Context};

/// The reservations of one worker.
#[derive(Debug, Default)]
pub(crate) struct Held {
    reservations: Mutex<HashMap<DeliveryTag, Reservation>>,
}

#[derive(Debug)]
struct Reservation {
    signal: Arc<CancelSignal>,
    /// None until its run begins, which not every one has.
    run: Option<Run>,
    /// The worker was told that the task is revoked.
    revoked: bool,
}

/// A run under way.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) tag: DeliveryTag,
    pub(crate) context: Context,
    pub(crate) arguments: Arguments,
    pub(crate) priority: u8,
    pub(crate) acks_late: bool,
    /// The process it is in.
    pub(crate) pid: u32,
    pub(crate) started: Timestamp,
}

impl Held {
    /// Notes a reservation, and gives the signal that will stop its run.
    pub(crate) fn insert(&self, tag: DeliveryTag) -> Arc<CancelSignal> {
        let signal = Arc::new(CancelSignal::default());
        let reservation = Reservation { signal: Arc::clone(&signal), run: None, revoked: false };
        self.lock().insert(tag, reservation);
        signal
    }

    /// Notes that its run begins.
    pub(crate) fn begin(&self, tag: &DeliveryTag, run: Run) {
        if let Some(reservation) = self.lock().get_mut(tag) {
            reservation.run = Some(run);
        }
    }

    pub(crate) fn remove(&self, tag: &DeliveryTag) {
        self.lock().remove(tag);
    }

    /// Stops one run; `false` when it is not held or was stopped before.
    pub(crate) fn cancel(&self, tag: &DeliveryTag, reason: CancelReason) -> bool {
        self.cancel_by(tag, reason, None)
    }

    /// Stops one run by a signal of the caller's choice, where it is a process.
    pub(crate) fn cancel_by(
        &self,
        tag: &DeliveryTag,
        reason: CancelReason,
        by: Option<ProcessSignal>,
    ) -> bool {
        let signal = self.lock().get(tag).map(|reservation| Arc::clone(&reservation.signal));
        signal.is_some_and(|signal| signal.cancel_by(reason, by))
    }

    pub(crate) fn cancel_all(&self, reason: CancelReason) {
        let signals: Vec<_> =
            self.lock().values().map(|reservation| Arc::clone(&reservation.signal)).collect();
        for signal in signals {
            signal.cancel(reason);
        }
    }

    /// Notes that a task is revoked; `false` when it is not held.
    pub(crate) fn revoke(&self, tag: &DeliveryTag) -> bool {
        let mut reservations = self.lock();
        let reservation = reservations.get_mut(tag);
        reservation.map(|reservation| reservation.revoked = true).is_some()
    }

    pub(crate) fn tags(&self) -> Vec<DeliveryTag> {
        self.lock().keys().cloned().collect()
    }

    /// What runs, in no order.
    pub(crate) fn runs(&self) -> Vec<Run> {
        self.lock().values().filter_map(|reservation| reservation.run.clone()).collect()
    }

    /// How many run.
    pub(crate) fn running(&self) -> usize {
        self.lock().values().filter(|reservation| reservation.run.is_some()).count()
    }

    /// What runs although it was revoked.
    pub(crate) fn revoked(&self) -> Vec<TaskId> {
        let reservations = self.lock();
        let revoked = reservations.values().filter(|reservation| reservation.revoked);
        revoked.filter_map(|reservation| Some(reservation.run.as_ref()?.context.task_id().clone())).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeliveryTag, Reservation>> {
        // Nothing that holds this lock can panic half-way through a change.
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
