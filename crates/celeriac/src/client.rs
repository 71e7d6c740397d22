//! Sending: a signature becomes messages on queues.

use std::time::Duration;

use crate::app::Celeriac;
use crate::backend::Record;
use crate::broker::{Revocation, Revoke, Routed};
use crate::canvas::{Given, Plan, Planner, Signature, plan};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::{BatchIds, QueueName, TaskId, WorkerName};
use crate::protocol::{self, Json, JsonMap, ResultMeta, ResultTuple};
use crate::result::AsyncResult;
use crate::signal::ProcessSignal;
use crate::state::{Phase, State};
use crate::store::{Outcome, Transaction};
use crate::task::{self, Dynamic, Typed};

/// How a call is to be made: Celery's options of `apply_async`. What is `None` is left to the signature, the task and
/// the settings, in this order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CallOptions {
    /// Not before this time.
    pub eta: Option<Timestamp>,
    /// Not before this much time has passed.
    pub countdown: Option<Duration>,
    /// Revoked when not begun by this time.
    pub expires: Option<Timestamp>,
    /// 0 is consumed first, 9 last.
    pub priority: Option<u8>,
    /// The queue.
    pub queue: Option<String>,
    /// The id; by default a fresh one.
    pub task_id: Option<TaskId>,
    /// Makes calls of one task with the same key one call: those after the first are not sent, and get the same id, for
    /// as long as the result is kept.
    pub idempotency_key: Option<String>,
    /// The hard time limit.
    pub time_limit: Option<Duration>,
    /// The soft time limit.
    pub soft_time_limit: Option<Duration>,
    /// Keep no result.
    pub ignore_result: Option<bool>,
    /// The name to show.
    pub shadow: Option<String>,
    /// Applied with the value after success.
    pub link: Vec<protocol::Signature>,
    /// Applied with the task's id after failure.
    pub link_error: Vec<protocol::Signature>,
    /// Words to find the task by: the header `tags`.
    pub tags: Vec<String>,
    /// Where the end of the task is told, by HTTP: the header `celeriac_webhook`. A server delivers it, see
    /// [`WEBHOOK_TASK`]. Of a chain it is the end of the last step, of a chord that of the
    /// body, of a group that of each member.
    pub webhook: Option<String>,
    /// Headers of the application's own.
    pub headers: JsonMap,
}

impl CallOptions {
    /// The options under the names of the wire.
    pub(crate) fn into_wire(self) -> Result<JsonMap> {
        let mut options = JsonMap::new();
        let mut set = |name: &str, value: Result<Json, protocol::JsonError>| {
            let value = value.map_err(|why| Error::invalid(name, why))?;
            options.insert(name.to_owned(), value);
            Ok::<_, Error>(())
        };
        let seconds = |duration: Duration| Json::from_value(&duration.as_secs_f64());
        if let Some(eta) = self.eta {
            set("eta", Json::from_value(&eta.to_string()))?;
        }
        if let Some(countdown) = self.countdown {
            set("countdown", seconds(countdown))?;
        }
        if let Some(expires) = self.expires {
            set("expires", Json::from_value(&expires.to_string()))?;
        }
        if let Some(priority) = self.priority {
            set("priority", Json::from_value(&priority))?;
        }
        if let Some(queue) = self.queue {
            set("queue", Json::from_value(&queue))?;
        }
        if let Some(task_id) = self.task_id {
            set("task_id", Json::from_value(&task_id))?;
        }
        if let Some(key) = self.idempotency_key {
            set("idempotency_key", Json::from_value(&key))?;
        }
        if let Some(limit) = self.time_limit {
            set("time_limit", seconds(limit))?;
        }
        if let Some(limit) = self.soft_time_limit {
            set("soft_time_limit", seconds(limit))?;
        }
        if let Some(ignore) = self.ignore_result {
            set("ignore_result", Json::from_value(&ignore))?;
        }
        if let Some(shadow) = self.shadow {
            set("shadow", Json::from_value(&shadow))?;
        }
        if !self.link.is_empty() {
            set("link", Json::from_value(&self.link))?;
        }
        if !self.link_error.is_empty() {
            set("link_error", Json::from_value(&self.link_error))?;
        }
        let mut headers = self.headers;
        let mut header = |name: &str, value: Result<Json, protocol::JsonError>| {
            headers.insert(name, value.map_err(|why| Error::invalid(name, why))?);
            Ok::<_, Error>(())
        };
        if !self.tags.is_empty() {
            header(crate::canvas::TAGS, Json::from_value(&self.tags))?;
        }
        if let Some(url) = &self.webhook {
            header(WEBHOOK_HEADER, Json::from_value(url))?;
        }
        if !headers.is_empty() {
            set("headers", Json::from_value(&headers))?;
        }
        Ok(options)
    }
}

/// What [`Celeriac::revoke`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revoked {
    /// It waited for its time, and is revoked.
    Scheduled,
    /// It waited for a worker, and is revoked.
    Queued,
    /// A worker holds it. With `terminate` it has been told to stop the run; without, the run goes on, and only another
    /// attempt of the task would be refused.
    Running {
        /// The worker.
        worker: WorkerName,
        /// Whether it was told to stop the run.
        terminate: bool,
    },
    /// A worker of Celery's has taken it, to run it or to wait for its time. The workers that live were told: one that has
    /// not begun the task refuses it when its time comes, and with `terminate` one that runs it stops it. What a worker of
    /// Celery's was told it remembers for as long as it lives.
    Elsewhere {
        /// Who runs it or waits with it, where that is known.
        worker: Option<WorkerName>,
        /// So many workers that live, ours and Celery's, have answered.
        workers: usize,
        /// Whether the worker that has it answered that it stops it; only asked with `terminate`.
        stopped: bool,
    },
    /// It was finished already.
    Finished,
    /// The store does not know the id. Celery may have sent it all the same, or may run it; so it is noted, and workers
    /// that meet it refuse it.
    Noted {
        /// So many workers that live, ours and Celery's, have answered.
        workers: usize,
    },
    /// No store knows the id.
    Unknown,
}

impl Celeriac {
    /// Calls a task by name, be it written in Rust or not, with positional arguments.
    ///
    /// # Errors
    /// When the message cannot be made or stored.
    pub async fn send_task(
        &self,
        task: &str,
        args: Vec<Json>,
        kwargs: JsonMap,
        options: CallOptions,
    ) -> Result<AsyncResult<Json>> {
        let signature = protocol::Signature::new(task, args, kwargs);
        Signature::<Dynamic>::from_wire(signature).apply_async(self, options).await
    }

    /// Sends many calls in one write, all or none. Their ids differ in the last digits alone: see [`BatchIds`].
    ///
    /// # Errors
    /// When one of the messages cannot be made, or they cannot be stored.
    pub async fn publish_batch<T: Typed>(
        &self,
        signatures: &[Signature<T>],
    ) -> Result<Vec<AsyncResult<T::Output>>> {
        let mut transaction = Transaction::default();
        let mut results = Vec::with_capacity(signatures.len());
        self.plan_at_once(signatures.len(), |planner| {
            for signature in signatures {
                let plan = plan(signature.wire(), Given::default(), planner)?;
                transaction.publish.extend(plan.publish);
                transaction.record.chords.extend(plan.chords);
                results.push((plan.result, plan.children));
            }
            Ok(())
        })?;
        self.send(transaction).await?;
        Ok(results.into_iter().map(|(result, children)| self.sent(result, children)).collect())
    }

    /// Sends a call, after `note` was told of the messages that are about to be.
    pub(crate) async fn apply<R, E: From<Error>>(
        &self,
        signature: &protocol::Signature,
        options: JsonMap,
        note: impl FnOnce(&[Routed]) -> Result<(), E>,
    ) -> Result<AsyncResult<R>, E> {
        let plan = self.plan(signature, options)?;
        note(&plan.publish)?;
        let mut transaction = Transaction::publish(plan.publish);
        transaction.record.chords = plan.chords;
        self.send(transaction).await?;
        Ok(self.sent(plan.result, plan.children))
    }

    pub(crate) fn plan(&self, signature: &protocol::Signature, options: JsonMap) -> Result<Plan> {
        Ok(plan(signature, Given { options, ..Given::default() }, &self.planner_here())?)
    }

    /// Plans `count` calls that go out at once: the ids of several are those of a batch.
    pub(crate) fn plan_at_once<T>(
        &self,
        count: usize,
        plan: impl FnOnce(&Planner<'_>) -> Result<T>,
    ) -> Result<T> {
        let planner = self.planner_here();
        if count < 2 {
            return plan(&planner);
        }
        let ids = BatchIds::random();
        plan(&Planner { ids: &|| ids.next().as_str().to_owned(), ..planner })
    }

    /// Plans in the name of the task that runs here, if one does.
    fn planner_here(&self) -> Planner<'_> {
        let parent = task::current();
        Planner {
            parent_id: parent.as_ref().map(|cx| cx.task_id().clone()),
            root_id: parent
                .as_ref()
                .map(|cx| cx.headers().root_id.as_deref().map_or_else(|| cx.task_id().clone(), TaskId::from)),
            ..self.planner()
        }
    }

    /// Plans in the name of nobody.
    pub(crate) fn planner(&self) -> Planner<'_> {
        Planner {
            now: self.clock().now(),
            parent_id: None,
            root_id: None,
            origin: self.origin(),
            router: self.router(),
            inherited_priority: None,
            ids: &fresh_id,
        }
    }

    fn sent<R>(&self, result: ResultTuple, children: Vec<ResultTuple>) -> AsyncResult<R> {
        if let Some(parent) = task::current() {
            parent.add_children(children);
        }
        AsyncResult::new(self.clone(), result)
    }

    /// Publishes, and tries again while the store is away: Celery's `task_publish_retry`. What is repeated is sent as
    /// `unique`, so that a reply that was lost does not become a task that runs twice. Returns what was not sent, being
    /// there already; after such a repetition that may be what the first attempt sent.
    pub(crate) async fn send(&self, mut transaction: Transaction) -> Result<Vec<TaskId>> {
        let mut attempt = 0;
        loop {
            match self.store().transact.commit(vec![transaction.clone()]).await {
                Ok(outcomes) => match outcomes.into_iter().next() {
                    Some(Outcome::Committed { duplicates, .. }) => return Ok(duplicates),
                    other => {
                        let what = format!("publish answered {other:?}");
                        return Err(crate::store::Error::unavailable("publish", what).into());
                    }
                },
                Err(error) if error.is_transient() && attempt < PUBLISH_RETRIES => {
                    tracing::warn!(%error, attempt, "publish failed, trying again");
                    tokio::time::sleep(PUBLISH_RETRY_STEP * attempt).await;
                    attempt += 1;
                    for message in &mut transaction.publish {
                        message.unique = true;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The handle of a task sent before, perhaps by another process.
    #[must_use]
    pub fn async_result<R>(&self, task_id: impl Into<TaskId>) -> AsyncResult<R> {
        let id = task_id.into().as_str().to_owned();
        AsyncResult::new(self.clone(), ResultTuple { id, parent: None, children: None })
    }

    /// Drops everything that waits on `queue`, due or not, and says how many messages there were. Their tasks end in
    /// REVOKED; nothing that would follow them is told, as with Celery's `purge`.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn purge(&self, queue: &QueueName) -> Result<usize> {
        let purged = self.store().broker.purge(queue).await?;
        let now = self.clock().now();
        let exception = protocol::Exception::with_args(
            "celery.exceptions",
            "TaskRevokedError",
            vec![Json::string("purged")],
        );
        for ids in purged.chunks(PURGE_BATCH) {
            let results: Vec<ResultMeta> = ids
                .iter()
                .map(|task_id| ResultMeta {
                    date_done: Some(now),
                    ..ResultMeta::new(task_id, State::Revoked, exception.encode())
                })
                .collect();
            let log = results.iter().map(crate::canvas::end_record).collect();
            self.store().backend.record(vec![Record { results, log, ..Record::default() }]).await?;
        }
        Ok(purged.len())
    }

    /// Revokes tasks: what waits ends in REVOKED at once; what runs is stopped when `terminate` is set. Says what
    /// happened to each, in order. On Redis, workers are told of what Celery's may have: what the store does not know, and
    /// what has gone from its queue by no hand of ours.
    ///
    /// # Errors
    /// When the store cannot be written; revoking again is safe.
    pub async fn revoke(&self, ids: &[TaskId], terminate: bool) -> Result<Vec<Revoked>> {
        self.revoke_all(ids, terminate, None).await
    }

    /// Revokes tasks as [`revoke`](Self::revoke) with `terminate`, and stops those that are processes, as Python's are, by
    /// this signal.
    ///
    /// # Errors
    /// As [`revoke`](Self::revoke).
    pub async fn terminate(&self, ids: &[TaskId], signal: ProcessSignal) -> Result<Vec<Revoked>> {
        self.revoke_all(ids, true, Some(signal)).await
    }

    async fn revoke_all(
        &self,
        ids: &[TaskId],
        terminate: bool,
        signal: Option<ProcessSignal>,
    ) -> Result<Vec<Revoked>> {
        let mut answers = self.revoke_known(ids, terminate, signal).await?;
        let told = |answer: &Revoked| matches!(answer, Revoked::Unknown | Revoked::Elsewhere { .. });
        let those = |which: &dyn Fn(&Revoked) -> bool| -> Vec<TaskId> {
            ids.iter().zip(&answers).filter(|(_, answer)| which(answer)).map(|(id, _)| id.clone()).collect()
        };
        let (unknown, to_tell) = (those(&|answer| *answer == Revoked::Unknown), those(&told));
        if to_tell.is_empty() || self.store().control.announcer().is_none() {
            return Ok(answers);
        }
        self.store().control.note_revoked(&unknown).await?;
        let unwritable = |why| Error::invalid("task ids", why);
        let arguments = JsonMap::from([
            ("task_id", Json::from_value(&to_tell).map_err(unwritable)?),
            ("terminate", Json::from_value(&terminate).map_err(unwritable)?),
            ("signal", Json::string(&signal.unwrap_or(ProcessSignal::TERM).to_string())),
        ]);
        let replies = self.control("revoke", arguments, None, crate::inspect::REPLY_TIMEOUT).await?;
        for (id, answer) in ids.iter().zip(&mut answers).filter(|(_, answer)| told(answer)) {
            let by = replies.iter().find(|reply| terminate && has_terminated(&reply.content, id));
            let workers = replies.len();
            *answer = match std::mem::replace(answer, Revoked::Unknown) {
                Revoked::Elsewhere { worker, .. } => Revoked::Elsewhere {
                    worker: by.map(|reply| reply.worker.clone()).or(worker),
                    workers,
                    stopped: by.is_some(),
                },
                _ => match by {
                    Some(by) => {
                        Revoked::Elsewhere { worker: Some(by.worker.clone()), workers, stopped: true }
                    }
                    None => Revoked::Noted { workers },
                },
            };
        }
        Ok(answers)
    }

    /// Revokes what the store knows, for workers, which were told by somebody who tells all of them.
    pub(crate) async fn revoke_known(
        &self,
        ids: &[TaskId],
        terminate: bool,
        signal: Option<ProcessSignal>,
    ) -> Result<Vec<Revoked>> {
        let worker = WorkerName::from(self.origin());
        let lease = self.config().visibility_timeout;
        let request = Revoke { ids: ids.to_vec(), terminate, signal, worker, lease };
        let found = self.store().broker.revoke(&request).await?;
        let mut settlements = Vec::new();
        let mut answers = Vec::with_capacity(found.len());
        for revocation in found {
            answers.push(match revocation {
                Revocation::Taken { phase, delivery } => {
                    settlements.push(crate::worker::settle_revoked(self, &delivery, "revoked"));
                    if phase == Phase::Delayed { Revoked::Scheduled } else { Revoked::Queued }
                }
                Revocation::Held { worker } => Revoked::Running { worker, terminate },
                Revocation::Elsewhere { worker } => Revoked::Elsewhere { worker, workers: 0, stopped: false },
                Revocation::Finished => Revoked::Finished,
                Revocation::Unknown => Revoked::Unknown,
            });
        }
        if !settlements.is_empty() {
            let outcomes = self.store().transact.commit(settlements).await?;
            for outcome in outcomes {
                if let Outcome::Committed { ready, .. } = outcome {
                    crate::worker::fire_chords(self, ready).await;
                }
            }
        }
        Ok(answers)
    }
}

/// Whether a worker answers that it terminates the task: Celery's words are `terminate: <id>, <id>`.
fn has_terminated(answer: &Json, id: &TaskId) -> bool {
    let said =
        answer.entries().ok().and_then(|answer| answer.get("ok")?.as_string().map(|said| said.into_owned()));
    let ids = said.as_deref().and_then(|said| said.strip_prefix("terminate: "));
    ids.is_some_and(|ids| ids.split(", ").any(|one| one == id.as_str()))
}

fn fresh_id() -> String {
    TaskId::random().as_str().to_owned()
}

/// The header that says where the end of a task is told.
pub const WEBHOOK_HEADER: &str = "celeriac_webhook";
/// The task that tells it, sent by the worker in the same step as the end, with the URL and what is told. The server
/// brings it; a message waits on [`WEBHOOK_QUEUE`] until there is one.
pub const WEBHOOK_TASK: &str = "celeriac.webhook";
/// The queue of [`WEBHOOK_TASK`], apart from the application's, whose workers do not know it.
pub const WEBHOOK_QUEUE: &str = "celeriac.webhook";

const PURGE_BATCH: usize = 1_000;
const PUBLISH_RETRIES: u32 = 3;
const PUBLISH_RETRY_STEP: Duration = Duration::from_millis(200);
