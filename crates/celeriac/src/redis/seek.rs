//! Tasks that a Python producer sent and none of ours has had in hand: they are looked for where their messages wait.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::pack::Pack;
use super::{RedisStore, script, value};
use crate::id::TaskId;
use crate::store::Result;

/// So many messages are looked at, the newest of each queue first.
const SOUGHT_MAX: i64 = 20_000;
/// The same for who only asks; people ask often, and of what was sent just now.
const ASKED_MAX: i64 = 5_000;
/// What was sought in vain is not sought again for so long.
const AGAIN: Duration = Duration::from_millis(500);
/// Queues that nobody here has heard of are looked for after so long.
const QUEUES_AGAIN: Duration = Duration::from_secs(1);
/// So many ids are remembered as sought in vain.
const REMEMBERED_MAX: usize = 10_000;

/// What was sought in vain, and when.
#[derive(Debug, Default)]
pub(super) struct Sought {
    in_vain: Mutex<HashMap<TaskId, Instant>>,
    /// When queues were last looked for; held while a search for who only asks is under way, so that there is one.
    queues: tokio::sync::Mutex<Option<Instant>>,
}

impl Sought {
    fn was_in_vain(&self, id: &TaskId) -> bool {
        let in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        in_vain.get(id).is_some_and(|at| at.elapsed() < AGAIN)
    }

    fn note(&self, id: &TaskId) {
        let mut in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        if in_vain.len() >= REMEMBERED_MAX {
            in_vain.retain(|_, at| at.elapsed() < AGAIN);
        }
        if in_vain.len() < REMEMBERED_MAX {
            in_vain.insert(id.clone(), Instant::now());
        }
    }
}

impl RedisStore {
    /// Looks for the messages of `ids`, of which nothing is known; says how many were found, and are known now.
    pub(super) async fn seek(&self, ids: &[TaskId]) -> Result<usize> {
        self.find_queues().await?;
        self.seek_among(ids, SOUGHT_MAX).await
    }

    /// The same for one that somebody asks for, who may ask again and again.
    pub(super) async fn seek_asked(&self, id: &TaskId) -> Result<bool> {
        if self.sought.was_in_vain(id) {
            return Ok(false);
        }
        let mut queues = self.sought.queues.lock().await;
        if self.sought.was_in_vain(id) {
            return Ok(false);
        }
        if queues.is_none_or(|at| at.elapsed() > QUEUES_AGAIN) {
            self.find_queues().await?;
            *queues = Some(Instant::now());
        }
        let found = self.seek_among(std::slice::from_ref(id), ASKED_MAX).await? > 0;
        if !found {
            self.sought.note(id);
        }
        Ok(found)
    }

    async fn seek_among(&self, ids: &[TaskId], count: i64) -> Result<usize> {
        let mut order = Pack::array(2);
        order.int(count).texts(ids.iter().map(TaskId::as_str));
        let answer = self.order(&script::SEEK, self.now(), order).await?;
        Ok(usize::try_from(value::integer(&answer)).unwrap_or(0))
    }
}
