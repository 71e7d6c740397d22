//! What the worker holds: every reservation from its delivery until it is settled, with the way to stop its run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::DeliveryTag;
use crate::task::{CancelReason, CancelSignal};

/// The reservations of one worker.
#[derive(Debug, Default)]
pub(crate) struct Held {
    reservations: Mutex<HashMap<DeliveryTag, Arc<CancelSignal>>>,
}

impl Held {
    /// Notes a reservation, and gives the signal that will stop its run.
    pub(crate) fn insert(&self, tag: DeliveryTag) -> Arc<CancelSignal> {
        let signal = Arc::new(CancelSignal::default());
        self.lock().insert(tag, Arc::clone(&signal));
        signal
    }

    pub(crate) fn remove(&self, tag: &DeliveryTag) {
        self.lock().remove(tag);
    }

    /// Stops one run; `false` when it is not held or was stopped before.
    pub(crate) fn cancel(&self, tag: &DeliveryTag, reason: CancelReason) -> bool {
        let signal = self.lock().get(tag).cloned();
        signal.is_some_and(|signal| signal.cancel(reason))
    }

    pub(crate) fn cancel_all(&self, reason: CancelReason) {
        let signals: Vec<_> = self.lock().values().cloned().collect();
        for signal in signals {
            signal.cancel(reason);
        }
    }

    pub(crate) fn tags(&self) -> Vec<DeliveryTag> {
        self.lock().keys().cloned().collect()
    }

    pub(crate) fn contains(&self, tag: &DeliveryTag) -> bool {
        self.lock().contains_key(tag)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeliveryTag, Arc<CancelSignal>>> {
        // Nothing that holds this lock can panic half-way through a change.
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
