//! What the end of a run means: one transaction that settles its message, stores its result, ends its log, counts its
//! chord part, and sends what follows. As celery/app/trace.py, with the lease as its fence.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Counters;
use super::pool::{Ended, Limits};
use crate::app::Celeriac;
use crate::backend::LogRecord;
use crate::broker::{Delivery, Routed};
use crate::canvas::{self, end_record};
use crate::client::WEBHOOK_TASK;
use crate::clock::{Timestamp, after};
use crate::id::{DeliveryTag, GroupId, TaskId};
use crate::protocol::{DecodeError, Exception, Extended, Json, Message, ResultMeta, ResultTuple};
use crate::state::State;
use crate::store::{Error, Then, Transaction};
use crate::task::{CancelReason, Ending, TaskError, TaskOptions};

/// When the next try is due.
#[derive(Debug, Clone, Copy, PartialEq)]
enum RetryAt {
    /// As the task's options say.
    Default,
    Countdown(Duration),
    Eta(Timestamp),
}

/// What an end counts as in the worker's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    Succeeded,
    Failed,
    Retried,
    Revoked,
    HandedBack,
    Lost,
    None,
}

pub(super) fn count(counters: &Counters, what: Count) {
    let counter = match what {
        Count::Succeeded => &counters.succeeded,
        Count::Failed => &counters.failed,
        Count::Retried => &counters.retried,
        Count::Revoked => &counters.revoked,
        Count::HandedBack => &counters.handed_back,
        Count::Lost => &counters.lost,
        Count::None => return,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Who ends a task.
#[derive(Clone, Copy)]
pub(super) struct Ender<'a> {
    pub(super) app: &'a Celeriac,
    /// The node name of the worker, or the origin of a client.
    pub(super) node: &'a str,
}

/// A run that ended.
pub(super) struct Run<'a> {
    pub(super) delivery: &'a Delivery,
    pub(super) message: &'a Message,
    pub(super) options: &'a TaskOptions,
    pub(super) limits: Limits,
    pub(super) acks_late: bool,
    pub(super) children: Vec<ResultTuple>,
}

/// What is to be written at the end of a run; nothing when its lease is lost.
pub(super) fn settle(by: Ender<'_>, run: Run<'_>, ended: Ended) -> Option<(Transaction, Count)> {
    let Ender { app, node } = by;
    let end = End { app, node, delivery: run.delivery, message: run.message, children: Some(run.children) };
    Some(match ended {
        Ended::Value(value) => end.success(value, run.options),
        Ended::Error(error) => match error.ending().clone() {
            Ending::Fatal => end.failure(error.exception(), Some(error.traceback())),
            Ending::Error if run.options.autoretry => end.retry(RetryAt::Default, None, &error, run.options),
            Ending::Error => end.failure(error.exception(), Some(error.traceback())),
            Ending::Retry { countdown, eta, max_retries } => {
                let at = match (eta, countdown) {
                    (Some(eta), _) => RetryAt::Eta(eta),
                    (None, Some(countdown)) => RetryAt::Countdown(countdown),
                    (None, None) => RetryAt::Default,
                };
                end.retry(at, max_retries, &error, run.options)
            }
            Ending::Ignore => end.ignored(),
            Ending::Reject { requeue: true } => {
                let due = after(app.clock().now(), REJECT_PAUSE);
                let then = Then::Requeue { due: Some(due), counted: true };
                (Transaction::fenced(run.delivery.tag.clone(), then), Count::HandedBack)
            }
            Ending::Reject { requeue: false } => {
                let mut exception = error.exception().clone();
                exception.exc_type = "Reject".to_owned();
                exception.exc_module = Some("celery.exceptions".to_owned());
                end.failure(&exception, Some(error.traceback()))
            }
            Ending::Cancelled(reason) => end.stopped(reason, false, run.limits, run.acks_late)?,
        },
        Ended::Stopped { reason, abandoned } => end.stopped(reason, abandoned, run.limits, run.acks_late)?,
    })
}

/// A task given back by `Reject` comes again after this, so that a task that always rejects does not spin.
pub(super) const REJECT_PAUSE: Duration = Duration::from_secs(1);

/// The end of a task that was revoked while it waited, by whoever revoked it.
pub(crate) fn settle_revoked(app: &Celeriac, delivery: &Delivery, why: &str) -> Transaction {
    match Message::decode(&delivery.message) {
        Ok(message) => revoked(Ender { app, node: app.origin() }, delivery, &message, why, false),
        Err(error) => undecodable(app, delivery, &error),
    }
}

/// The end of a task that never ran: `revoked`, `expired`; or that was stopped: `terminated`.
pub(super) fn revoked(
    by: Ender<'_>,
    delivery: &Delivery,
    message: &Message,
    why: &str,
    abandoned: bool,
) -> Transaction {
    let end = End { app: by.app, node: by.node, delivery, message, children: None };
    end.revoked(why, abandoned).0
}

/// The end of a task that never ran, in FAILURE; with `dead` its message joins the dead letters.
pub(super) fn failed_unrun(
    by: Ender<'_>,
    delivery: &Delivery,
    message: &Message,
    exception: &Exception,
    dead: Option<String>,
) -> Transaction {
    let end = End { app: by.app, node: by.node, delivery, message, children: None };
    let (mut transaction, _) = end.failure(exception, None);
    if let Some(reason) = dead
        && let Some(fence) = &mut transaction.fence
    {
        fence.then = Then::Bury { reason };
    }
    transaction
}

/// The end of a message that cannot be read: its bytes stay with the dead letters, and its caller sees a FAILURE.
pub(super) fn undecodable(app: &Celeriac, delivery: &Delivery, error: &DecodeError) -> Transaction {
    let reason = format!("message cannot be decoded: {error}");
    let mut transaction = Transaction::fenced(delivery.tag.clone(), Then::Bury { reason: reason.clone() });
    let exception = Exception::new("kombu.exceptions", "DecodeError", &reason);
    transaction.record.results = vec![ResultMeta {
        date_done: Some(app.clock().now()),
        ..ResultMeta::new(&delivery.task_id, State::Failure, exception.encode())
    }];
    transaction.record.log = transaction.record.results.iter().map(end_record).collect();
    transaction
}

/// The end of a task whose runtime has stored it: what is left to be done here. `meta` is what stands there, as far as it
/// is known; without one the task has not ended for those who follow it.
pub(super) fn stored(
    by: Ender<'_>,
    delivery: &Delivery,
    message: &Message,
    meta: Option<&ResultMeta>,
    then: Then,
) -> Transaction {
    let end = End { app: by.app, node: by.node, delivery, message, children: None };
    let mut transaction = end.transaction(then);
    if let Some(meta) = meta {
        transaction.record.log.push(end_record(meta));
        end.tell(meta, &mut transaction);
    }
    transaction
}

/// What is stored in place of an end that the store refuses.
pub(super) fn unstorable(tag: &DeliveryTag, refused: &Transaction, error: &Error) -> Transaction {
    let mut transaction = Transaction::fenced(tag.clone(), Then::Bury { reason: error.to_string() });
    if let Some(meta) = refused.record.results.first() {
        let exception =
            Exception::new("kombu.exceptions", "EncodeError", &format!("result cannot be stored: {error}"));
        let result = exception.encode();
        let failure =
            ResultMeta { state: State::Failure, result, traceback: None, children: None, ..meta.clone() };
        transaction.record.log = vec![end_record(&failure)];
        let about_it = |routed: &Routed| canvas::retold(routed, &failure);
        transaction.publish = refused
            .publish
            .iter()
            .filter(|routed| &*routed.task == WEBHOOK_TASK)
            .filter_map(about_it)
            .collect();
        transaction.record.results = vec![failure];
    }
    transaction
}

/// A meta with what the message says of the task.
pub(super) fn meta(message: &Message, task_id: &TaskId, state: State) -> ResultMeta {
    ResultMeta {
        task_id: task_id.clone(),
        state,
        result: Json::null(),
        traceback: None,
        children: Some(Vec::new()),
        date_done: None,
        group_id: message.headers.group.as_deref().map(GroupId::from),
        parent_id: message.headers.parent_id.as_deref().map(TaskId::from),
        extended: None,
    }
}

struct End<'a> {
    app: &'a Celeriac,
    node: &'a str,
    delivery: &'a Delivery,
    message: &'a Message,
    /// What the run sent; `None` when there was no run.
    children: Option<Vec<ResultTuple>>,
}

impl End<'_> {
    fn success(mut self, value: Json, options: &TaskOptions) -> (Transaction, Count) {
        let bound = self.app.config().task_body_bytes_max;
        if value.as_str().len() > bound {
            let bytes = value.as_str().len();
            let why = format!(
                "it has {bytes} bytes, and task_body_bytes_max is {bound}; store it elsewhere and return its address"
            );
            let error = TaskError::unencodable("the returned value", &why);
            return self.failure(error.exception(), Some(error.traceback()));
        }
        let follow = match canvas::after_success(self.message, &value, &self.app.planner()) {
            Ok(follow) => follow,
            Err(error) => {
                let why = format!("what follows the task cannot be sent: {error}");
                return self.failure(&Exception::new("celeriac", "CanvasError", &why), None);
            }
        };
        self.children.get_or_insert_default().extend(follow.children.iter().cloned());
        let ignored = self.ignores_result(options);
        let mut transaction = self.transaction(Then::Ack);
        let shown = if ignored { Json::null() } else { value };
        // A task whose result is ignored still ends: only its value is not kept.
        self.store(ResultMeta { result: shown, ..self.meta(State::Success) }, &mut transaction);
        follow.merge_into(&mut transaction);
        (transaction, Count::Succeeded)
    }

    fn failure(self, exception: &Exception, traceback: Option<&str>) -> (Transaction, Count) {
        let task_id = &self.delivery.task_id;
        tracing::warn!(%task_id, task = %self.message.headers.task, %exception, "task failed");
        let mut transaction = self.transaction(Then::Ack);
        let meta = ResultMeta {
            result: exception.encode(),
            traceback: traceback.map(str::to_owned),
            ..self.meta(State::Failure)
        };
        let follow = canvas::after_failure(self.message, exception, traceback, &self.app.planner());
        for problem in &follow.problems {
            tracing::error!(%task_id, %problem, "something that follows the failure cannot be sent");
        }
        transaction.record.log.extend(self.errbacks_elsewhere(&follow.publish));
        self.store(meta, &mut transaction);
        follow.merge_into(&mut transaction);
        (transaction, Count::Failed)
    }

    /// Tells of errbacks that this worker has not got. Celery calls one that takes a request, an exception and a traceback
    /// as a function, where a task of its own fails; as a task, which is all that can be sent, it fails for want of them.
    fn errbacks_elsewhere(&self, follow: &[Routed]) -> Option<LogRecord> {
        let is_elsewhere = |task: &&str| *task != WEBHOOK_TASK && self.app.registry().options(task).is_none();
        let names: Vec<&str> = follow.iter().map(|routed| &*routed.task).filter(is_elsewhere).collect();
        if names.is_empty() {
            return None;
        }
        let message = format!(
            "errbacks sent as tasks with the id of this one: {}; one in Python that takes (request, exc, traceback) fails, \
             let it take the id and ask for the result",
            names.join(", ")
        );
        let data = Json::from_value(&serde_json::json!({ "level": "info", "message": message }));
        Some(LogRecord {
            task_id: self.delivery.task_id.clone(),
            event: "log".into(),
            data: data.unwrap_or_default(),
        })
    }

    fn retry(
        self,
        at: RetryAt,
        max_retries: Option<u32>,
        error: &TaskError,
        options: &TaskOptions,
    ) -> (Transaction, Count) {
        let retries = self.message.headers.retries;
        if max_retries.or(options.max_retries).is_some_and(|max| retries >= max) {
            return self.failure(error.exception(), Some(error.traceback()));
        }
        let now = self.app.clock().now();
        let due = match at {
            RetryAt::Eta(eta) => eta,
            RetryAt::Countdown(countdown) => after(now, countdown),
            RetryAt::Default => after(now, options.retry_delay(retries, |bound| fastrand::u64(0..=bound))),
        };
        let due = Some(due).filter(|due| *due > now);
        let task_id = &self.delivery.task_id;
        let retry = match canvas::retry(self.message, due, &self.app.planner()) {
            Ok(retry) => retry,
            Err(why) => {
                tracing::error!(%task_id, %why, "the retry cannot be sent");
                return self.failure(error.exception(), Some(error.traceback()));
            }
        };
        tracing::info!(%task_id, retries, due = ?retry.due, exception = %error, "task will be retried");
        let mut transaction = self.transaction(Then::Ack);
        let data = serde_json::json!({
            "state": "RETRY",
            "retries": retries + 1,
            "due": retry.due.map(|due| due.to_string()),
            "error": error.to_string(),
        });
        transaction.record.log.push(LogRecord {
            task_id: task_id.clone(),
            event: "state".into(),
            data: Json::from_value(&data).unwrap_or_default(),
        });
        transaction.record.results.push(ResultMeta {
            result: error.exception().encode(),
            traceback: Some(error.traceback().to_owned()),
            ..self.meta(State::Retry)
        });
        transaction.publish.push(retry);
        (transaction, Count::Retried)
    }

    fn ignored(self) -> (Transaction, Count) {
        let mut transaction = self.transaction(Then::Ack);
        // As Celery, nothing is stored: a task that was replaced goes on under its id. Its followers hear of the end.
        let meta = self.meta(State::from("IGNORED"));
        transaction.record.log.push(end_record(&meta));
        self.tell(&meta, &mut transaction);
        (transaction, Count::Succeeded)
    }

    fn stopped(
        self,
        reason: CancelReason,
        abandoned: bool,
        limits: Limits,
        acks_late: bool,
    ) -> Option<(Transaction, Count)> {
        let task_id = &self.delivery.task_id;
        if abandoned && reason != CancelReason::LeaseLost {
            tracing::warn!(%task_id, %reason, "a thread cannot be stopped: its task is settled, its slot stays taken until it returns");
        }
        Some(match reason {
            CancelReason::Revoked => self.revoked("terminated", abandoned),
            CancelReason::SoftTimeLimit => {
                self.failure(&Exception::soft_time_limit(), Some("the task stopped at its soft time limit"))
            }
            CancelReason::TimeLimit => {
                let seconds = limits.hard.unwrap_or_default().as_secs_f64();
                self.failure(&Exception::time_limit(seconds), None)
            }
            CancelReason::Shutdown if acks_late => {
                let then = Then::Requeue { due: None, counted: false };
                (self.transaction(then), Count::HandedBack)
            }
            CancelReason::Shutdown => {
                let why = "the worker shut down in the midst of the task, which runs at most once";
                self.failure(&Exception::worker_lost(why), None)
            }
            CancelReason::LeaseLost => return None,
        })
    }

    fn revoked(self, why: &str, abandoned: bool) -> (Transaction, Count) {
        let exception =
            Exception::with_args("celery.exceptions", "TaskRevokedError", vec![Json::string(why)]);
        let mut transaction = self.transaction(Then::Ack);
        let task_id = &self.delivery.task_id;
        if abandoned {
            let data = serde_json::json!({
                "level": "warning",
                "message": "the task's thread goes on until it returns by itself; what it returns is thrown away",
            });
            let data = Json::from_value(&data).unwrap_or_default();
            transaction.record.log.push(LogRecord { task_id: task_id.clone(), event: "log".into(), data });
        }
        self.store(ResultMeta { result: exception.encode(), ..self.meta(State::Revoked) }, &mut transaction);
        canvas::after_revoke(self.message, &exception).merge_into(&mut transaction);
        (transaction, Count::Revoked)
    }

    /// Stores a final state, ends the log with it, and sends word of it.
    fn store(&self, meta: ResultMeta, transaction: &mut Transaction) {
        transaction.record.log.push(end_record(&meta));
        self.tell(&meta, transaction);
        transaction.record.results.push(meta);
    }

    /// Sends word of the end to whoever the message names.
    fn tell(&self, meta: &ResultMeta, transaction: &mut Transaction) {
        let headers = &self.message.headers;
        // One reservation ends a task at most once. Where a crash may leave an end half written, its next reservation
        // writes it again, so there the message itself names the run.
        let run = match self.app.store().transact.is_atomic() {
            true => self.delivery.tag.as_str(),
            false => &self.message.properties.delivery_tag,
        };
        let ended = canvas::Ended {
            task: &headers.task,
            headers: &headers.custom,
            retries: headers.retries,
            meta,
            run,
        };
        match canvas::webhook(&ended, &self.app.planner()) {
            Ok(told) => transaction.publish.extend(told),
            Err(why) => tracing::error!(task_id = %meta.task_id, %why, "the end cannot be told by HTTP"),
        }
    }

    fn transaction(&self, then: Then) -> Transaction {
        Transaction::fenced(self.delivery.tag.clone(), then)
    }

    fn ignores_result(&self, options: &TaskOptions) -> bool {
        let of_task = options.ignore_result.unwrap_or(self.app.config().task_ignore_result);
        self.message.headers.ignores_result(of_task)
    }

    fn meta(&self, state: State) -> ResultMeta {
        let done = state.is_ready().then(|| self.app.clock().now());
        let extended = self.app.config().result_extended.then(|| Extended {
            name: self.message.headers.task.clone(),
            args: Json::array(&self.message.body.args),
            kwargs: Json::from_value(&self.message.body.kwargs).unwrap_or_default(),
            worker: self.node.to_owned(),
            retries: self.message.headers.retries,
            queue: Some(self.delivery.queue.to_string()),
            ..Extended::default()
        });
        ResultMeta {
            date_done: done,
            children: self.children.clone(),
            extended,
            ..meta(self.message, &self.delivery.task_id, state)
        }
    }
}
