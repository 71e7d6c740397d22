//! The caller's handle of a task, a chain, a group or a chord.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::app::Celeriac;
use crate::broker::Place;
use crate::client::Revoked;
use crate::error::{Error, Result, TaskFailure};
use crate::id::{GroupId, TaskId};
use crate::protocol::{Exception, Json, ResultMeta, ResultTuple};
use crate::state::State;

/// The handle of something sent: Celery's `AsyncResult` and `GroupResult` in one. `R` is the type of its value; that of
/// a group is a `Vec` of its members' values.
pub struct AsyncResult<R = Json> {
    app: Celeriac,
    tuple: ResultTuple,
    value: PhantomData<fn() -> R>,
}

/// The handle of a group.
pub type GroupResult<R> = AsyncResult<Vec<R>>;

impl<R> AsyncResult<R> {
    pub(crate) fn new(app: Celeriac, tuple: ResultTuple) -> Self {
        Self { app, tuple, value: PhantomData }
    }

    /// The id of the task, or of the group. For a chain it is that of its last task, for a chord that of its body.
    #[must_use]
    pub fn id(&self) -> TaskId {
        TaskId::from(self.tuple.id.as_str())
    }

    /// The handle as Celery writes it, for keeping.
    #[must_use]
    pub fn as_tuple(&self) -> &ResultTuple {
        &self.tuple
    }

    /// The members of a group; none for a single task.
    #[must_use]
    pub fn results(&self) -> Vec<AsyncResult<Json>> {
        let members = self.tuple.children.iter().flatten();
        members.map(|tuple| AsyncResult::new(self.app.clone(), tuple.clone())).collect()
    }

    /// The handle of what came before it in a chain.
    #[must_use]
    pub fn parent(&self) -> Option<AsyncResult<Json>> {
        self.tuple.parent.as_deref().map(|parent| AsyncResult::new(self.app.clone(), parent.clone()))
    }

    /// What is stored of the task; `None` while nothing is, which Celery calls PENDING.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn info(&self) -> Result<Option<ResultMeta>> {
        Ok(self.app.store().backend.fetch(&[self.id()]).await?.pop().flatten())
    }

    /// Where the task's message stands; `None` when the store does not know the id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn place(&self) -> Result<Option<Place>> {
        Ok(self.app.store().find(&self.id()).await?)
    }

    /// The state: for a group, that of its members together: FAILURE or REVOKED if one is, SUCCESS if all are.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn state(&self) -> Result<State> {
        let leaves = leaves(&self.tuple);
        let metas = self.app.store().backend.fetch(&leaves).await?;
        let mut state = State::Success;
        for meta in metas {
            match meta.map_or(State::Pending, |meta| meta.state) {
                State::Success => {}
                ended @ (State::Failure | State::Revoked) => return Ok(ended),
                other => state = other,
            }
        }
        Ok(state)
    }

    /// Whether it has finished, well or not.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn ready(&self) -> Result<bool> {
        let metas = self.app.store().backend.fetch(&leaves(&self.tuple)).await?;
        Ok(metas.iter().all(|meta| meta.as_ref().is_some_and(|meta| meta.state.is_ready())))
    }

    /// How many members of a group have succeeded; for a task, whether it has.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn completed_count(&self) -> Result<usize> {
        let metas = self.app.store().backend.fetch(&leaves(&self.tuple)).await?;
        Ok(metas.iter().flatten().filter(|meta| meta.state == State::Success).count())
    }

    /// Where a failed task's error came from, for people.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn traceback(&self) -> Result<Option<String>> {
        Ok(self.info().await?.and_then(|meta| meta.traceback))
    }

    /// The tasks it sent while it ran, known once it has finished.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn children(&self) -> Result<Vec<AsyncResult<Json>>> {
        let children = self.info().await?.and_then(|meta| meta.children).unwrap_or_default();
        Ok(children.into_iter().map(|tuple| AsyncResult::new(self.app.clone(), tuple)).collect())
    }

    /// Waits until it has finished, however, at most for `timeout`.
    ///
    /// # Errors
    /// [`Error::Timeout`], or when the store cannot be read.
    pub async fn wait(&self, timeout: Duration) -> Result<State> {
        let deadline = Instant::now() + timeout.min(LONGEST_WAIT);
        for leaf in leaves(&self.tuple) {
            self.finished(&leaf, deadline).await?;
        }
        self.state().await
    }

    /// Forgets result, log and steps, once finished.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn forget(&self) -> Result<()> {
        Ok(self.app.store().backend.forget(&leaves(&self.tuple)).await?)
    }

    /// Revokes it, see [`Celeriac::revoke`]; for a group, each member.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn revoke(&self, terminate: bool) -> Result<Vec<Revoked>> {
        self.app.revoke(&leaves(&self.tuple), terminate).await
    }

    /// Keeps the shape of a group under its id, so that [`Celeriac::restore_group`] finds it: Celery's `save`.
    ///
    /// # Errors
    /// When this is no group, or the store cannot be written.
    pub async fn save(&self) -> Result<()> {
        if self.tuple.children.is_none() {
            return Err(Error::invalid(&*self.tuple.id, "only a group can be saved"));
        }
        let group_id = GroupId::from(self.tuple.id.as_str());
        Ok(self.app.store().backend.save_group(&group_id, &self.tuple.encode()).await?)
    }

    /// Forgets the shape of a group that was [saved](Self::save): Celery's `delete`. Its members stay.
    ///
    /// # Errors
    /// When this is no group, or the store cannot be written.
    pub async fn delete(&self) -> Result<()> {
        if self.tuple.children.is_none() {
            return Err(Error::invalid(&*self.tuple.id, "only a group can be deleted; a task is forgotten"));
        }
        let group_id = GroupId::from(self.tuple.id.as_str());
        Ok(self.app.store().backend.delete_group(&group_id).await?)
    }

    async fn finished(&self, id: &TaskId, deadline: Instant) -> Result<ResultMeta> {
        let backend = &self.app.store().backend;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let state = match backend.await_result(id, left.min(WAIT_CHUNK)).await {
                Ok(Some(meta)) if meta.state.is_ready() => return Ok(meta),
                Ok(other) => other.map_or(State::Pending, |meta| meta.state),
                Err(error) if error.is_transient() && Instant::now() < deadline => {
                    tracing::warn!(%error, task_id = %id, "result cannot be read, trying again");
                    tokio::time::sleep(STORE_AWAY_PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if left.is_zero() {
                return Err(Error::Timeout { task_id: id.clone(), state });
            }
        }
    }

    /// The value of a task, or of a group as a JSON array of its members' values.
    fn join<'a>(
        &'a self,
        tuple: &'a ResultTuple,
        deadline: Instant,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Json>> + Send + 'a>> {
        Box::pin(async move {
            if let Some(children) = &tuple.children {
                let mut values = Vec::with_capacity(children.len());
                for child in children {
                    values.push(self.join(child, deadline).await?);
                }
                return Ok(Json::array(&values));
            }
            let id = TaskId::from(tuple.id.as_str());
            let meta = self.finished(&id, deadline).await?;
            if meta.state == State::Success {
                return Ok(meta.result);
            }
            Err(Error::Task(Box::new(TaskFailure {
                task_id: id,
                state: meta.state,
                exception: Exception::decode(&meta.result).ok(),
                traceback: meta.traceback,
            })))
        })
    }
}

impl<R: DeserializeOwned> AsyncResult<R> {
    /// Waits for the value.
    ///
    /// # Errors
    /// [`Error::Task`] when the task failed or was revoked, [`Error::Value`] when the value is of another type, or when
    /// the store cannot be read.
    pub async fn get(&self) -> Result<R> {
        self.get_timeout(LONGEST_WAIT).await
    }

    /// Waits for the value, at most for `timeout`.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`Error::Timeout`].
    pub async fn get_timeout(&self, timeout: Duration) -> Result<R> {
        let deadline = Instant::now() + timeout.min(LONGEST_WAIT);
        let value = self.join(&self.tuple, deadline).await?;
        value.to().map_err(|why| Error::Value { task_id: self.id(), why })
    }
}

impl Celeriac {
    /// The handle of a group saved before.
    ///
    /// # Errors
    /// When the store cannot be read, or what it holds is no group.
    pub async fn restore_group<R>(&self, group_id: &GroupId) -> Result<Option<GroupResult<R>>> {
        let Some(saved) = self.store().backend.group(group_id).await? else { return Ok(None) };
        let tuple = ResultTuple::decode(&saved)?;
        Ok(Some(AsyncResult::new(self.clone(), tuple)))
    }
}

impl<R> Clone for AsyncResult<R> {
    fn clone(&self) -> Self {
        Self::new(self.app.clone(), self.tuple.clone())
    }
}

impl<R> fmt::Debug for AsyncResult<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResult").field("id", &self.tuple.id).finish_non_exhaustive()
    }
}

/// The tasks whose ends make the result.
fn leaves(tuple: &ResultTuple) -> Vec<TaskId> {
    let mut found = Vec::new();
    let mut open = vec![tuple];
    while let Some(next) = open.pop() {
        match &next.children {
            None => found.push(TaskId::from(next.id.as_str())),
            Some(children) => open.extend(children.iter().rev()),
        }
    }
    found
}

/// A wait is cut into pieces, so that a wake lost with a connection costs seconds and not for ever.
const WAIT_CHUNK: Duration = Duration::from_secs(5);
const STORE_AWAY_PAUSE: Duration = Duration::from_millis(200);
/// "For ever", within what an `Instant` can hold.
const LONGEST_WAIT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
