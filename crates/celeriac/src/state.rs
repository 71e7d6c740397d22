//! The states of a task, where its message may stand, and the legal moves between them, as pure functions.
//!
//! Two things are kept apart. A [`State`] is what a caller sees under a task's id, in Celery's words and on Celery's
//! wire. A [`Phase`] is where the message stands in a store. The stores enforce the moves, each in one atomic step;
//! this file says which moves there are, and the conformance suite holds the stores to it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a task as Celery names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum State {
    /// Accepted and not begun, or never heard of: Celery does not tell them apart, `Broker::locate` does.
    Pending,
    /// Reserved by a worker.
    Received,
    /// Running; stored only for tasks with `track_started`.
    Started,
    /// To be run again.
    Retry,
    /// Finished with a value. Never overwritten.
    Success,
    /// Finished with an error.
    Failure,
    /// Stopped before or during its run.
    Revoked,
    /// A state of the application's own, as `PROGRESS`.
    Custom(Box<str>),
}

impl State {
    /// Celery's spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "PENDING",
            Self::Received => "RECEIVED",
            Self::Started => "STARTED",
            Self::Retry => "RETRY",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Revoked => "REVOKED",
            Self::Custom(name) => name,
        }
    }

    /// Whether a task in this state is finished: Celery's `READY_STATES`.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Revoked)
    }

    /// Whether a result with this state carries an exception: Celery's `EXCEPTION_STATES`.
    #[must_use]
    pub fn is_exception(&self) -> bool {
        matches!(self, Self::Retry | Self::Failure | Self::Revoked)
    }

    /// Whether `new` may be stored over `self`. A finished state never moves back, and stays what it is: stricter than
    /// Celery, which protects only SUCCESS.
    #[must_use]
    pub fn may_become(&self, new: &State) -> bool {
        !self.is_ready() || self == new
    }
}

impl From<&str> for State {
    fn from(text: &str) -> Self {
        match text {
            "PENDING" => Self::Pending,
            "RECEIVED" => Self::Received,
            "STARTED" => Self::Started,
            "RETRY" => Self::Retry,
            "SUCCESS" => Self::Success,
            "FAILURE" => Self::Failure,
            "REVOKED" => Self::Revoked,
            custom => Self::Custom(custom.into()),
        }
    }
}

impl From<String> for State {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<State> for String {
    fn from(state: State) -> Self {
        state.as_str().to_owned()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The state to show for a task whose `stored` state is what a store has, and whose message stands in `phase`. A worker
/// holds no more than it runs, so what is held has started, whether or not that was written down.
#[must_use]
pub fn shown(stored: &State, phase: Phase) -> State {
    match (stored, phase) {
        (State::Pending | State::Received | State::Retry, Phase::Reserved) => State::Started,
        // Its worker was lost or handed it back: it waits again.
        (State::Started | State::Received, Phase::Queued | Phase::Delayed) => State::Pending,
        (stored, _) => stored.clone(),
    }
}

/// Where the message of a task stands in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Waits for its time: eta, countdown, the delay of a retry.
    Delayed,
    /// Waits for a worker.
    Queued,
    /// Held by a worker under a lease.
    Reserved,
    /// Gone: its result, if any, is all that is left.
    Settled,
    /// Put aside with its bytes, for a person to look at.
    Dead,
}

/// What may happen to the message of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Move {
    /// A producer, a retry or a canvas step sends it, due now.
    Publish,
    /// The same, due later.
    PublishLater,
    /// Its time has come.
    Due,
    /// A worker takes it under a lease.
    Reserve,
    /// The worker that holds it gives it back, or its lease has passed.
    Requeue,
    /// The worker that holds it gives it back for later.
    RequeueLater,
    /// The worker that holds it is done with it.
    Settle,
    /// The worker that holds it puts it aside.
    Bury,
    /// An operator sends a dead letter back to its queue.
    Revive,
    /// An operator drops it.
    Drop,
}

/// The phase after `what` happened in phase `from` (`None`: the id was never seen), or `None` when that cannot happen.
///
/// ```text
///  Publish ─► Queued ─Reserve─► Reserved ─Settle─► Settled
///               ▲ ▲                │ │ └───Bury──► Dead ─Revive─► Queued
///  PublishLater │ └──── Requeue ───┘ │
///      └► Delayed ◄── RequeueLater ──┘
/// ```
#[must_use]
pub fn next(from: Option<Phase>, what: Move) -> Option<Phase> {
    use Phase::{Dead, Delayed, Queued, Reserved, Settled};
    match (from, what) {
        // A settled id may be sent again: that is a person's retry, or Celery's `apply_async(task_id=…)` used twice.
        (None | Some(Settled), Move::Publish) => Some(Queued),
        (None | Some(Settled), Move::PublishLater) => Some(Delayed),
        (Some(Delayed), Move::Due) => Some(Queued),
        // A revoker reserves what waits, delayed or queued, in order to settle it.
        (Some(Queued | Delayed), Move::Reserve) => Some(Reserved),
        (Some(Reserved), Move::Requeue) => Some(Queued),
        (Some(Reserved), Move::RequeueLater) => Some(Delayed),
        (Some(Reserved), Move::Settle) => Some(Settled),
        (Some(Reserved), Move::Bury) => Some(Dead),
        (Some(Dead), Move::Revive) => Some(Queued),
        (Some(Queued | Delayed | Dead), Move::Drop) => Some(Settled),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_holder_can_finish() {
        for phase in
            [None, Some(Phase::Delayed), Some(Phase::Queued), Some(Phase::Settled), Some(Phase::Dead)]
        {
            assert_eq!(next(phase, Move::Settle), None, "{phase:?}");
            assert_eq!(next(phase, Move::Bury), None, "{phase:?}");
        }
        assert_eq!(next(Some(Phase::Reserved), Move::Settle), Some(Phase::Settled));
    }

    #[test]
    fn a_finished_state_stays() {
        for done in [State::Success, State::Failure, State::Revoked] {
            for other in [State::Started, State::Retry, State::Success, State::Failure, State::Revoked] {
                assert_eq!(done.may_become(&other), done == other);
            }
        }
        assert!(State::Retry.may_become(&State::Success));
    }

    #[test]
    fn names_round_trip() {
        for name in ["PENDING", "RECEIVED", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "PROGRESS"] {
            assert_eq!(State::from(name).as_str(), name);
        }
    }
}
