//! What remote control has changed of tasks' options, in this worker and for as long as it lives.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use super::pool::Limits;
use crate::task::RateLimit;

/// The changes, by task.
#[derive(Debug, Default)]
pub(crate) struct Overrides {
    tasks: RwLock<HashMap<Box<str>, Override>>,
}

/// What is changed of one task; `None` is not.
#[derive(Debug, Clone, Copy, Default)]
struct Override {
    rate_limit: Option<Option<RateLimit>>,
    time_limits: Option<Limits>,
}

impl Overrides {
    /// The rate limit of a task whose own is `own`.
    pub(super) fn rate_limit(&self, task: &str, own: Option<RateLimit>) -> Option<RateLimit> {
        self.of(task).rate_limit.unwrap_or(own)
    }

    /// The time limits of a task whose own are `own`.
    pub(super) fn time_limits(&self, task: &str, own: Limits) -> Limits {
        self.of(task).time_limits.unwrap_or(own)
    }

    pub(super) fn set_rate_limit(&self, task: &str, limit: Option<RateLimit>) {
        self.change(task, |changed| changed.rate_limit = Some(limit));
    }

    pub(super) fn set_time_limits(&self, task: &str, limits: Limits) {
        self.change(task, |changed| changed.time_limits = Some(limits));
    }

    fn of(&self, task: &str) -> Override {
        self.tasks.read().unwrap_or_else(PoisonError::into_inner).get(task).copied().unwrap_or_default()
    }

    fn change(&self, task: &str, change: impl FnOnce(&mut Override)) {
        change(self.tasks.write().unwrap_or_else(PoisonError::into_inner).entry(task.into()).or_default());
    }
}
