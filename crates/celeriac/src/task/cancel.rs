//! How a run is told to stop.

use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::CancelReason;
use crate::signal::ProcessSignal;

/// Tells a run that it is to stop, and why. A soft time limit only asks; what comes after it may still command.
#[derive(Debug, Default)]
pub(crate) struct CancelSignal {
    reason: Mutex<Option<CancelReason>>,
    /// What a process is to be stopped by, where somebody said.
    by: Mutex<Option<ProcessSignal>>,
    asked: CancellationToken,
    commanded: CancellationToken,
}

impl CancelSignal {
    /// Tells the run to stop; `false` when that is no news to it.
    pub(crate) fn cancel(&self, reason: CancelReason) -> bool {
        {
            let mut current = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
            let news = match *current {
                None => true,
                Some(CancelReason::SoftTimeLimit) => reason != CancelReason::SoftTimeLimit,
                Some(_) => false,
            };
            if !news {
                return false;
            }
            *current = Some(reason);
        }
        self.asked.cancel();
        if reason != CancelReason::SoftTimeLimit {
            self.commanded.cancel();
        }
        true
    }

    /// As [`cancel`](Self::cancel), by a signal of the caller's choice where the run is a process.
    pub(crate) fn cancel_by(&self, reason: CancelReason, by: Option<ProcessSignal>) -> bool {
        if self.reason().is_none_or(|reason| reason == CancelReason::SoftTimeLimit) {
            *self.by.lock().unwrap_or_else(PoisonError::into_inner) = by;
        }
        self.cancel(reason)
    }

    /// What a process is to be stopped by.
    pub(crate) fn by(&self) -> ProcessSignal {
        self.by.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(ProcessSignal::TERM)
    }

    pub(crate) fn reason(&self) -> Option<CancelReason> {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the run is told to stop, be it only asked.
    pub(crate) async fn cancelled(&self) -> CancelReason {
        self.asked.cancelled().await;
        self.reason().expect("the reason is set before the token is cancelled")
    }

    /// Waits until the run is told to stop in earnest.
    pub(crate) async fn stopped(&self) -> CancelReason {
        self.commanded.cancelled().await;
        self.reason().expect("the reason is set before the token is cancelled")
    }
}
