//! Lists over a broker and a backend that are two stores.
//!
//! The broker's half knows which tasks there are, where their messages stand and who ran them; the backend's half what
//! became of them. A list is made of the broker's, with the states of the backend laid over. The two are looked at one
//! after the other, so that a task may have moved on in between.

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::Result;
use crate::backend::{Backend, LogEntry};
use crate::catalog::{AttemptOutcome, Catalog, Listed, TaskPage, TaskQuery, TaskRecord};
use crate::id::TaskId;
use crate::protocol::ResultMeta;
use crate::state::State;

/// Tasks asked of the broker's half at a time where the backend's decides which of them match.
const TASKS_ASKED: usize = 200;

/// Log records read at a time in search of the newest report of progress.
const RECORDS_READ: usize = 500;

/// So far back that report is looked for; a task that reports progress does so more often.
const RECORDS_READ_MAX: u64 = 10_000;

/// The catalog of [`Split`](super::Split).
#[derive(Debug)]
pub(super) struct SplitCatalog {
    broker: Arc<dyn Catalog>,
    backend: Arc<dyn Backend>,
}

impl SplitCatalog {
    /// Over the catalog of the broker's store and the backend of another.
    pub(super) fn new(broker: Arc<dyn Catalog>, backend: Arc<dyn Backend>) -> Self {
        Self { broker, backend }
    }

    async fn progress(&self, task_id: &TaskId) -> Result<Option<LogEntry>> {
        let Some(page) = self.backend.log(task_id, u64::MAX, 1).await? else { return Ok(None) };
        let oldest = page.last.saturating_sub(RECORDS_READ_MAX).max(page.first.saturating_sub(1));
        let mut end = page.last;
        while end > oldest {
            let from = end.saturating_sub(RECORDS_READ as u64).max(oldest);
            let Some(page) = self.backend.log(task_id, from, RECORDS_READ).await? else { return Ok(None) };
            let newest = page.entries.into_iter().rfind(|entry| &*entry.event == "progress");
            if newest.is_some() {
                return Ok(newest);
            }
            end = from;
        }
        Ok(None)
    }
}

#[async_trait]
impl Catalog for SplitCatalog {
    async fn tasks(&self, query: &TaskQuery) -> Result<TaskPage> {
        let limit = query.limit.max(1);
        let mut asked = TaskQuery { states: Vec::new(), limit, ..query.clone() };
        if !query.states.is_empty() {
            asked.limit = limit.max(TASKS_ASKED);
        }
        let mut page = TaskPage::default();
        let mut examined = 0;
        loop {
            let found = self.broker.tasks(&asked).await?;
            // Fewer than asked: the broker's half has looked at as many as it may.
            let enough = found.tasks.len() < asked.limit;
            examined += found.tasks.len();
            let ids: Vec<TaskId> = found.tasks.iter().map(|listed| listed.task_id.clone()).collect();
            let metas = self.backend.fetch(&ids).await?;
            for (mut listed, meta) in found.tasks.into_iter().zip(metas) {
                if page.tasks.len() == limit {
                    return Ok(page);
                }
                lay_over(&mut listed, meta.as_ref());
                page.next = Some(listed.number);
                if query.matches(&listed) {
                    page.tasks.push(listed);
                }
            }
            page.next = found.next;
            let full = page.tasks.len() == limit || examined >= TaskQuery::EXAMINED_MAX;
            if enough || full || page.next.is_none() {
                return Ok(page);
            }
            asked.before = page.next;
        }
    }

    async fn observe(&self, stop: &CancellationToken) {
        self.broker.observe(stop).await;
    }

    async fn task(&self, task_id: &TaskId) -> Result<Option<TaskRecord>> {
        let Some(mut record) = self.broker.task(task_id).await? else { return Ok(None) };
        let meta = self.backend.fetch(std::slice::from_ref(task_id)).await?.pop().flatten();
        lay_over(&mut record.listed, meta.as_ref());
        // Only the error of the last attempt is kept, and by the other half.
        if let Some(last) = record.attempts.last_mut()
            && last.outcome == AttemptOutcome::Retried
            && last.error.is_none()
        {
            last.error = meta.filter(|meta| meta.state == State::Retry).map(|meta| meta.result);
        }
        record.progress = self.progress(task_id).await?;
        Ok(Some(record))
    }
}

/// Says of a task what the backend's half knows.
fn lay_over(listed: &mut Listed, meta: Option<&ResultMeta>) {
    listed.place.state = meta.map_or(State::Pending, |meta| meta.state.clone());
    let done = meta.filter(|meta| meta.state.is_ready()).and_then(|meta| meta.date_done);
    listed.finished = done.or(listed.finished);
}
