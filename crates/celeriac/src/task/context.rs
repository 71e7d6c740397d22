//! What a running task knows of its request, and may do: report, stream, take durable steps, notice that it is to stop.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::cancel::CancelSignal;
use super::error::{CancelReason, Cancelled, Retry};
use super::request::Request;
use crate::app::Celeriac;
use crate::backend::{LogRecord, Record, StepRecord};
use crate::envelopes::Envelopes;
use crate::id::{DeliveryTag, GroupId, QueueName, TaskId};
use crate::protocol::{Headers, Json, ResultMeta, ResultTuple};
use crate::signal::ProcessSignal;
use crate::state::State;
use crate::store;

const STORE_AWAY_PAUSE: Duration = Duration::from_millis(200);

tokio::task_local! {
    static CURRENT: Context;
}

/// The context of the task that runs here, if one does: what is sent from within a task is its child.
pub(crate) fn current() -> Option<Context> {
    CURRENT.try_with(Clone::clone).ok()
}

/// A running task's view of its request. Cheap to clone; take it as the first parameter of an `async fn` task.
#[derive(Debug, Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

/// The same for an `fn` task, which runs on a thread of its own: its methods block rather than being awaited.
#[derive(Debug, Clone)]
pub struct BlockingContext {
    context: Context,
}

#[derive(Debug)]
struct Inner {
    app: Celeriac,
    request: Request,
    cancel: Arc<CancelSignal>,
    journal: Journal,
    children: Mutex<Vec<ResultTuple>>,
    /// What is to be written with the run's end.
    late: Mutex<Vec<Envelopes>>,
    steps: Mutex<HashMap<String, u32>>,
    /// A record that the run has begun goes before its first one, so that a task that never reports costs no write.
    announced: AtomicBool,
}

impl Context {
    pub(crate) fn new(app: Celeriac, request: Request, cancel: Arc<CancelSignal>, journal: Journal) -> Self {
        Self {
            inner: Arc::new(Inner {
                app,
                request,
                cancel,
                journal,
                children: Mutex::default(),
                late: Mutex::default(),
                steps: Mutex::default(),
                announced: AtomicBool::new(false),
            }),
        }
    }

    /// Runs `future` with this as the current context.
    pub(crate) async fn scope<F: Future>(&self, future: F) -> F::Output {
        CURRENT.scope(self.clone(), future).await
    }

    /// Runs `function` with this as the current context.
    pub(crate) fn scope_blocking<R>(&self, function: impl FnOnce() -> R) -> R {
        CURRENT.sync_scope(self.clone(), function)
    }

    /// The application the task belongs to. What is sent through it while the task runs becomes the task's child.
    #[must_use]
    pub fn app(&self) -> &Celeriac {
        &self.inner.app
    }

    /// The task's id.
    #[must_use]
    pub fn task_id(&self) -> &TaskId {
        &self.inner.request.task_id
    }

    /// The task's name.
    #[must_use]
    pub fn task(&self) -> &str {
        &self.inner.request.headers.task
    }

    /// The queue it came from.
    #[must_use]
    pub fn queue(&self) -> &QueueName {
        &self.inner.request.queue
    }

    /// How often it was retried: 0 in the first run.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.inner.request.headers.retries
    }

    /// How often this message was delivered: 1, unless a worker was lost with it.
    #[must_use]
    pub fn deliveries(&self) -> u32 {
        self.inner.request.deliveries
    }

    /// The headers of the message.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.inner.request.headers
    }

    /// Makes the error that asks for another run: `return Err(cx.retry().countdown(delay).because(error).into())`.
    #[must_use]
    pub fn retry(&self) -> Retry {
        Retry::new()
    }

    /// Whether the run is told to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancel.reason().is_some()
    }

    /// Ends with an error when the run is told to stop; for use between pieces of work.
    ///
    /// # Errors
    /// [`Cancelled`], with the reason.
    pub fn check(&self) -> Result<(), Cancelled> {
        match self.inner.cancel.reason() {
            Some(reason) => Err(Cancelled(reason)),
            None => Ok(()),
        }
    }

    /// Waits until the run is told to stop: revoked with `terminate`, a time limit, a lost lease, a shutdown. A run that
    /// does not stop by itself is dropped when its grace is over.
    pub async fn cancelled(&self) -> Cancelled {
        Cancelled(self.inner.cancel.cancelled().await)
    }

    /// Waits until the run is told to stop in earnest, which a soft time limit does not.
    pub async fn stopped(&self) -> CancelReason {
        self.inner.cancel.stopped().await
    }

    /// The signal that a run in a process of its own is to be stopped by, once it is told to: SIGTERM, unless who has revoked
    /// it named another.
    #[must_use]
    pub fn stop_signal(&self) -> ProcessSignal {
        self.inner.cancel.by()
    }

    /// Reports how far the task is, durably, as record `progress` of its log: `{"done": …, "total": …}`.
    pub async fn progress(&self, done: u64, total: impl Into<Option<u64>>) {
        self.progress_with(done, total, serde_json::Map::new()).await;
    }

    /// As [`progress`](Self::progress), with more to say.
    pub async fn progress_with(
        &self,
        done: u64,
        total: impl Into<Option<u64>>,
        mut more: serde_json::Map<String, serde_json::Value>,
    ) {
        more.insert("done".to_owned(), done.into());
        more.insert("total".to_owned(), total.into().into());
        self.emit("progress", &more).await;
    }

    /// Appends a record to the task's log, durably. Followers see it from any process. When the store is away the
    /// record waits, within bounds, and a run that lost its lease writes nothing. The name `end` is the store's own: it
    /// ends every stream of the task, and a record of a run by that name is left out.
    pub async fn emit<T: Serialize + ?Sized>(&self, event: &str, data: &T) {
        let Some(record) = self.record(event, data) else { return };
        let log = self.announce().into_iter().chain([record]).collect();
        // Nobody is left to tell when the worker is gone: the run's own end will say so.
        let _ = self.write(Record { log, ..Record::default() }).await;
    }

    /// Stores a state of the application's own, as `PROGRESS`, with data for whoever looks at the task's result meanwhile:
    /// Celery's `update_state`. It stands until the task sets another or ends. Its followers are told by a record `state`
    /// of its log. Where nothing is kept of the task's result, this is not kept either.
    ///
    /// Celery's own states are the worker's to set; one of them is left out.
    pub async fn update_state<T: Serialize + ?Sized>(&self, state: &str, meta: &T) {
        let state = State::from(state);
        if !matches!(state, State::Custom(_)) {
            tracing::warn!(task_id = %self.task_id(), %state, "this state is set by the worker, left out");
            return;
        }
        let data = serde_json::json!({ "state": state });
        let Some(record) = self.record("state", &data) else { return };
        // A record's bound, and its complaint, hold for the data as well.
        let Some(LogRecord { data: meta, .. }) = self.record("state", meta) else { return };
        let headers = self.headers();
        let results = vec![ResultMeta {
            children: Some(Vec::new()),
            group_id: headers.group.as_deref().map(GroupId::from),
            parent_id: headers.parent_id.as_deref().map(TaskId::from),
            ..ResultMeta::new(self.task_id(), state, meta)
        }];
        let results = if headers.ignore_result == Some(true) { Vec::new() } else { results };
        let log = self.announce().into_iter().chain([record]).collect();
        let _ = self.write(Record { log, results, ..Record::default() }).await;
    }

    /// Appends to the text that the task streams. Tokens that come close together share a record; the call waits only
    /// when the reader of the tokens, the store, falls behind.
    pub async fn token(&self, text: &str) {
        let first = self.announce();
        let request = &self.inner.request;
        self.inner.journal.token(request.tag.clone(), request.task_id.clone(), first, text.to_owned()).await;
    }

    /// Runs a durable step: once it has returned a value, neither a retry nor a redelivery of this task runs it again,
    /// but gets the value. A name used again in one run counts as `name#2`, `name#3` …, so give each its own name where
    /// the order of steps varies. A step cut in half is run again: pass an idempotency key to what must not be paid twice.
    ///
    /// # Errors
    /// What the step returned, the reason to stop when the run is told to, or why the value could not be recorded.
    pub async fn step<T, E, F>(&self, name: &str, step: impl FnOnce() -> F) -> Result<T, StepError>
    where
        T: Serialize + DeserializeOwned,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
        F: Future<Output = Result<T, E>>,
    {
        let name = self.step_name(name);
        if let Some(value) = self.finished_step(&name).await? {
            return Ok(value);
        }
        let value = step().await.map_err(|error| StepError::Failed(error.into()))?;
        self.finish_step(&name, &value).await?;
        Ok(value)
    }

    /// Waits until everything that the run has streamed is written, so that its end can follow.
    pub(crate) async fn flush(&self) {
        if self.inner.announced.load(Ordering::Relaxed) {
            let _ = self.write(Record::default()).await;
        }
    }

    pub(super) fn late(&self) -> &Mutex<Vec<Envelopes>> {
        &self.inner.late
    }

    pub(super) async fn write(&self, record: Record) -> JournalAnswer {
        self.inner.journal.write(self.inner.request.tag.clone(), record).await
    }

    /// The tasks sent while this one ran.
    pub(crate) fn take_children(&self) -> Vec<ResultTuple> {
        std::mem::take(&mut *self.inner.children.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn add_children(&self, children: Vec<ResultTuple>) {
        self.inner.children.lock().unwrap_or_else(PoisonError::into_inner).extend(children);
    }

    pub(super) fn record<T: Serialize + ?Sized>(&self, event: &str, data: &T) -> Option<LogRecord> {
        if event == crate::event::END {
            tracing::warn!(task_id = %self.task_id(), event, "this name is kept for the end of the task, record left out");
            return None;
        }
        let bound = self.inner.app.config().stream.record_bytes_max;
        let data = match Json::from_value(data) {
            Ok(data) if data.as_str().len() <= bound => data,
            Ok(data) => {
                let bytes = data.as_str().len();
                tracing::warn!(task_id = %self.task_id(), event, bytes, bound, "log record too large, left out");
                return None;
            }
            Err(why) => {
                tracing::warn!(task_id = %self.task_id(), event, %why, "log record cannot be written as JSON");
                return None;
            }
        };
        Some(LogRecord { task_id: self.task_id().clone(), event: event.into(), data })
    }

    /// The record that says the run has begun, the first time it is asked for.
    pub(crate) fn announce(&self) -> Option<LogRecord> {
        if self.inner.announced.swap(true, Ordering::Relaxed) {
            return None;
        }
        let state = serde_json::json!({
            "state": "STARTED",
            "retries": self.retries(),
            "deliveries": self.deliveries(),
        });
        self.record("state", &state)
    }

    pub(super) fn step_name(&self, name: &str) -> String {
        let mut steps = self.inner.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let count = steps.entry(name.to_owned()).or_default();
        *count += 1;
        if *count == 1 { name.to_owned() } else { format!("{name}#{count}") }
    }

    pub(super) async fn finished_step<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, StepError> {
        self.check()?;
        // Asked even in what looks like a first run: a revived dead letter, or a task sent again under its id, counts
        // from one.
        let found = loop {
            match self.inner.app.store().backend.step(self.task_id(), name).await {
                Ok(found) => break found,
                // A store that is away is no fault of the task, and what ran before this step may have been dear.
                Err(error) if error.is_transient() => {
                    tracing::warn!(task_id = %self.task_id(), step = name, %error, "cannot ask for a step, trying again");
                    tokio::select! {
                        () = tokio::time::sleep(STORE_AWAY_PAUSE) => {}
                        cancelled = self.cancelled() => return Err(cancelled.into()),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        };
        found
            .map(|value| {
                value.to().map_err(|why| StepError::Changed { name: name.to_owned(), why: why.to_string() })
            })
            .transpose()
    }

    pub(super) async fn finish_step<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StepError> {
        let value = Json::from_value(value)
            .map_err(|why| StepError::Encode { name: name.to_owned(), why: why.to_string() })?;
        let step = StepRecord { task_id: self.task_id().clone(), name: name.into(), value };
        let log =
            self.announce().into_iter().chain(self.record("step", &serde_json::json!({ "name": name })));
        match self.write(Record { log: log.collect(), steps: vec![step], ..Record::default() }).await {
            JournalAnswer::Written => Ok(()),
            JournalAnswer::Lost => Err(StepError::Cancelled(Cancelled(CancelReason::LeaseLost))),
        }
    }
}

impl BlockingContext {
    /// The same context, for use from a thread that may block.
    #[must_use]
    pub fn new(context: Context) -> Self {
        Self { context }
    }

    /// The task's id.
    #[must_use]
    pub fn task_id(&self) -> &TaskId {
        self.context.task_id()
    }

    /// How often it was retried: 0 in the first run.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.context.retries()
    }

    /// The context whose methods are awaited.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// As [`Context::retry`].
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.context.retry()
    }

    /// As [`Context::is_cancelled`]. A thread cannot be stopped from outside: a task that may run long should ask.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.context.is_cancelled()
    }

    /// As [`Context::check`].
    ///
    /// # Errors
    /// [`Cancelled`], with the reason.
    pub fn check(&self) -> Result<(), Cancelled> {
        self.context.check()
    }

    /// As [`Context::progress`].
    pub fn progress(&self, done: u64, total: impl Into<Option<u64>>) {
        block_on(self.context.progress(done, total));
    }

    /// As [`Context::emit`].
    pub fn emit<T: Serialize + ?Sized>(&self, event: &str, data: &T) {
        block_on(self.context.emit(event, data));
    }

    /// As [`Context::update_state`].
    pub fn update_state<T: Serialize + ?Sized>(&self, state: &str, meta: &T) {
        block_on(self.context.update_state(state, meta));
    }

    /// As [`Context::token`].
    pub fn token(&self, text: &str) {
        block_on(self.context.token(text));
    }

    /// As [`Context::step`].
    ///
    /// # Errors
    /// As [`Context::step`].
    pub fn step<T, E>(&self, name: &str, step: impl FnOnce() -> Result<T, E>) -> Result<T, StepError>
    where
        T: Serialize + DeserializeOwned,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let name = self.context.step_name(name);
        if let Some(value) = block_on(self.context.finished_step(&name))? {
            return Ok(value);
        }
        let value = step().map_err(|error| StepError::Failed(error.into()))?;
        block_on(self.context.finish_step(&name, &value))?;
        Ok(value)
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Handle::current().block_on(future)
}

/// Why a durable step has no value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The step itself failed; nothing is recorded, and the next run tries it again.
    #[error("{0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The run is told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The store cannot be asked.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The value cannot be kept.
    #[error("the value of step {name} cannot be written as JSON: {why}")]
    Encode {
        /// The step.
        name: String,
        /// Why.
        why: String,
    },
    /// The value kept is not of the type asked for: the code has changed since it was recorded.
    #[error(
        "the value recorded for step {name} has another type than the code expects ({why}); rename the step to run it anew"
    )]
    Changed {
        /// The step.
        name: String,
        /// How they differ.
        why: String,
    },
}

/// The way of a run's records to the store: see `worker/journal.rs` for the other end.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    sender: mpsc::Sender<JournalWrite>,
    tokens: Arc<Mutex<VecDeque<TokenBuffer>>>,
    token_bytes_max: usize,
    token_interval: Duration,
}

/// What a run asks the journal to write.
#[derive(Debug)]
pub(crate) enum JournalWrite {
    /// This, now; the sender waits for the answer.
    Record {
        tag: DeliveryTag,
        /// An empty one waits until what came before it is written.
        record: Record,
        answer: oneshot::Sender<JournalAnswer>,
    },
    /// There are tokens to write, at once or within the token interval.
    Tokens { now: bool },
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JournalAnswer {
    Written,
    Lost,
}

/// The tokens of one run that are not written yet.
#[derive(Debug)]
pub(crate) struct TokenBuffer {
    pub(crate) tag: DeliveryTag,
    pub(crate) task_id: TaskId,
    pub(crate) first: Option<LogRecord>,
    pub(crate) text: String,
}

impl TokenBuffer {
    /// The records that the buffer becomes.
    pub(crate) fn into_records(self) -> Vec<LogRecord> {
        let data = Json::from_value(&serde_json::json!({ "text": self.text })).unwrap_or_default();
        let token = LogRecord { task_id: self.task_id, event: "token".into(), data };
        self.first.into_iter().chain([token]).collect()
    }
}

impl Journal {
    pub(crate) fn new(
        sender: mpsc::Sender<JournalWrite>,
        token_bytes_max: usize,
        token_interval: Duration,
    ) -> Self {
        Self { sender, tokens: Arc::default(), token_bytes_max, token_interval }
    }

    pub(crate) fn token_interval(&self) -> Duration {
        self.token_interval
    }

    async fn write(&self, tag: DeliveryTag, mut record: Record) -> JournalAnswer {
        // Order within a run: what it streamed before goes first.
        record.log.splice(..0, self.take_tokens(&tag));
        let (answer, answered) = oneshot::channel();
        let write = JournalWrite::Record { tag, record, answer };
        if self.sender.send(write).await.is_err() {
            return JournalAnswer::Lost;
        }
        answered.await.unwrap_or(JournalAnswer::Lost)
    }

    async fn token(&self, tag: DeliveryTag, task_id: TaskId, first: Option<LogRecord>, text: String) {
        let (begun, bytes) = {
            let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            match tokens.iter_mut().find(|buffer| buffer.tag == tag) {
                Some(buffer) => {
                    buffer.text.push_str(&text);
                    (false, buffer.text.len())
                }
                None => {
                    let bytes = text.len();
                    tokens.push_back(TokenBuffer { tag, task_id, first, text });
                    (true, bytes)
                }
            }
        };
        let full = bytes >= self.token_bytes_max;
        if begun || full {
            let _ = self.sender.send(JournalWrite::Tokens { now: full }).await;
        }
    }

    /// The records of the tokens that a run has not written yet; its settlement takes them along.
    pub(crate) fn take_tokens(&self, tag: &DeliveryTag) -> Vec<LogRecord> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = tokens.iter().position(|buffer| buffer.tag == *tag) else { return Vec::new() };
        tokens.remove(place).map(TokenBuffer::into_records).unwrap_or_default()
    }

    /// Every buffer there is.
    pub(crate) fn drain_tokens(&self) -> Vec<TokenBuffer> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}
