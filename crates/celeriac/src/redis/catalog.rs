//! What people ask: lists of tasks, and all that is known of one.

use async_trait::async_trait;

use tokio_util::sync::CancellationToken;

use super::RedisStore;
use crate::catalog::{Catalog, TaskPage, TaskQuery, TaskRecord};
use crate::id::TaskId;
use crate::store::Result;

/// So many tasks are asked for at a time, at least.
const CHUNK_MIN: usize = 50;
const CHUNK_MAX: usize = 500;

#[async_trait]
impl Catalog for RedisStore {
    async fn tasks(&self, query: &TaskQuery) -> Result<TaskPage> {
        let now = self.now();
        let wanted = query.limit.max(1);
        let mut page = TaskPage::default();
        let (mut before, mut examined) = (query.before, 0);
        // A list without conditions finds what it wants at once; one with conditions looks further and further.
        let mut chunk = wanted.clamp(CHUNK_MIN, CHUNK_MAX);
        loop {
            let found = self.look_back(before, chunk, now).await?;
            if found.is_empty() {
                return Ok(page);
            }
            for known in found {
                if examined == TaskQuery::EXAMINED_MAX || page.tasks.len() >= wanted {
                    page.next = before;
                    return Ok(page);
                }
                page.tasks.extend(known.listed(now).filter(|listed| query.matches(listed)));
                before = Some(known.number);
                examined += 1;
            }
            chunk = CHUNK_MAX;
        }
    }

    async fn observe(&self, stop: &CancellationToken) {
        self.observe_until(stop).await;
    }

    async fn task(&self, task_id: &TaskId) -> Result<Option<TaskRecord>> {
        let now = self.now();
        let look =
            || async move { Ok(self.look_whole(task_id, now).await?.and_then(|known| known.record(now))) };
        match look().await? {
            None if self.seek_asked(task_id).await? => look().await,
            found => Ok(found),
        }
    }
}
