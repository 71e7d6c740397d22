//! What people ask: lists of tasks, and all that is known of one.

use async_trait::async_trait;

use super::MemoryStore;
use super::contents::{Contents, Kept, Stand, Task};
use crate::catalog::{Catalog, Listed, TaskPage, TaskQuery, TaskRecord};
use crate::id::TaskId;
use crate::state::Phase;
use crate::store::Result;

#[async_trait]
impl Catalog for MemoryStore {
    async fn tasks(&self, query: &TaskQuery) -> Result<TaskPage> {
        Ok(self.read(|contents, _| contents.page(query)))
    }

    async fn task(&self, task_id: &TaskId) -> Result<Option<TaskRecord>> {
        Ok(self.read(|contents, _| contents.record_of(task_id)))
    }
}

impl Contents {
    fn page(&self, query: &TaskQuery) -> TaskPage {
        let mut page = TaskPage::default();
        let mut last = None;
        let older = self.accepted.range(..query.before.unwrap_or(u64::MAX)).rev();
        for (examined, (number, id)) in older.enumerate() {
            if examined == TaskQuery::EXAMINED_MAX || page.tasks.len() >= query.limit.max(1) {
                page.next = last;
                break;
            }
            page.tasks.extend(self.listed(id).filter(|listed| query.matches(listed)));
            last = Some(*number);
        }
        page
    }

    fn listed(&self, id: &TaskId) -> Option<Listed> {
        let task = self.tasks.get(id)?;
        let (number, accepted) = task.accepted?;
        let place = self.place(id)?;
        let over = task.is_finished() || matches!(place.phase, Phase::Settled | Phase::Dead);
        let last_run = task.last_run.as_ref().filter(|_| over);
        let (worker, started) = match task.message.as_ref().map(|kept| &kept.stand) {
            Some(Stand::Reserved(lease)) => (Some(lease.worker.clone()), lease.since),
            _ => (last_run.map(|run| run.worker.clone()), last_run.map(|run| run.started)),
        };
        Some(Listed {
            number,
            task_id: id.clone(),
            accepted,
            worker,
            started: started.or_else(|| task.attempts.back().map(|attempt| attempt.started)),
            finished: task.done.filter(|_| task.is_finished() || place.phase == Phase::Settled),
            tags: task.tags.clone(),
            place,
        })
    }

    fn record_of(&self, id: &TaskId) -> Option<TaskRecord> {
        let Task { message, attempts, log, .. } = self.tasks.get(id)?;
        Some(TaskRecord {
            listed: self.listed(id)?,
            message: message.as_ref().map(|kept| kept.bytes.clone()),
            attempts: attempts.iter().cloned().collect(),
            ahead: message.as_ref().and_then(|kept| self.ahead(kept, id)),
            progress: log.iter().rev().find(|entry| &*entry.event == "progress").cloned(),
        })
    }

    /// How many messages stand before one in its line; `None` where it stands in none.
    fn ahead(&self, kept: &Kept, id: &TaskId) -> Option<u64> {
        if !matches!(kept.stand, Stand::Queued) {
            return None;
        }
        let line = self.waiting.get(&kept.queue)?;
        let place = (kept.priority, kept.place, id.clone());
        let ahead = line.iter().take_while(|other| **other < place).count() as u64;
        Some(ahead.min(TaskRecord::AHEAD_MAX))
    }
}
