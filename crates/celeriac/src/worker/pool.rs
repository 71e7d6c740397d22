//! Runs one task: as a future or on a thread, within its limits, until it ends or is stopped.
//!
//! ```text
//!  begin ─► run ─┬─ returns ────────────────────────────► ended
//!                ├─ soft limit: told to stop, goes on
//!                ├─ revoked, shutdown: told to stop ─ grace ─► dropped
//!                └─ hard limit, lease lost ──────────────────► dropped
//! ```
//!
//! A future is dropped at its next await point. A thread cannot be: its run is settled as stopped all the same, its
//! value is thrown away when it comes, and its slot stays taken until then.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::examine::{Call, Runnable};
use super::held::Run;
use super::{Shared, ending, foreign, panics};
use crate::backend::Record;
use crate::broker::Delivery;
use crate::protocol::{Json, Message, ResultMeta};
use crate::state::State;
use crate::store::{Outcome, Then, Transaction};
use crate::task::{Arguments, CancelReason, CancelSignal, Context, Execution, Request, TaskError};

/// How a run ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// With a value.
    Value(Json),
    /// With an error, or asking for something.
    Error(TaskError),
    /// It was stopped from outside.
    Stopped {
        /// Why.
        reason: CancelReason,
        /// It was on a thread, which goes on by itself.
        abandoned: bool,
    },
}

/// The limits on a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) soft: Option<Duration>,
    pub(super) hard: Option<Duration>,
}

/// Runs a call in a task of its own.
pub(super) fn start(
    shared: &Arc<Shared>,
    delivery: Delivery,
    call: Call,
    signal: Arc<CancelSignal>,
    slot: Option<OwnedSemaphorePermit>,
) {
    let runs = shared.runs.clone();
    // It is large, and the runtime moves what it is given more than once.
    runs.spawn(Box::pin(run(Arc::clone(shared), delivery, call, signal, slot)));
}

async fn run(
    shared: Arc<Shared>,
    delivery: Delivery,
    call: Call,
    signal: Arc<CancelSignal>,
    slot: Option<OwnedSemaphorePermit>,
) {
    let Call { mut message, task, acks_late } = call;
    if let Runnable::Foreign(task) = task {
        return foreign::run(&shared, &delivery, &message, &task, acks_late, &signal, slot).await;
    }
    let arguments = Arguments {
        args: std::mem::take(&mut message.body.args),
        kwargs: std::mem::take(&mut message.body.kwargs),
    };
    let context = Context::new(
        shared.app.clone(),
        Request::of(&delivery, message.headers.clone()),
        Arc::clone(&signal),
        shared.journal.clone(),
    );
    if !begin(&shared, &delivery, &message, &task, acks_late, &context).await {
        return;
    }
    let started = shared.app.clock().now();
    let run = Run {
        tag: delivery.tag.clone(),
        context: context.clone(),
        arguments: arguments.clone(),
        priority: delivery.priority,
        acks_late,
        pid: std::process::id(),
        started,
    };
    shared.held.begin(&delivery.tag, run);
    shared.tell_started(&delivery);
    let began = Instant::now();
    shared.counters.started(&message.headers.task);
    let limits = limits(&shared, &message, &task);
    // What follows the task may need its arguments again: a retry, an extended result.
    let bound = match &task {
        Runnable::Task(task) => (task.bind)(context.clone(), arguments.clone()),
        Runnable::Builtin(builtin) => builtin.bind(context.clone(), &arguments),
        Runnable::Foreign(_) => unreachable!("sent elsewhere above"),
    };
    message.body.args = arguments.args;
    message.body.kwargs = arguments.kwargs;
    let (ended, slot) = match bound {
        Err(error) => (Ended::Error(error), slot),
        Ok(Execution::Async(future)) => {
            let future = match &shared.in_process {
                Some(in_process) => {
                    in_process.polls.watch(&message.headers.task, Some(&delivery.task_id), future)
                }
                None => future,
            };
            let run = AssertUnwindSafe(context.scope(future)).catch_unwind();
            let run = async { run.await.unwrap_or_else(|panic| Err(panics::caught(&*panic))) };
            (ended(within_limits(&shared, run, limits, &signal).await, false), slot)
        }
        Ok(Execution::Blocking(function)) => {
            let scope = context.clone();
            // The slot goes with the thread: it is free when the thread is.
            let thread = tokio::task::spawn_blocking(move || {
                let ended = std::panic::catch_unwind(AssertUnwindSafe(|| scope.scope_blocking(function)));
                drop(slot);
                ended.unwrap_or_else(|panic| Err(panics::caught(&*panic)))
            });
            let run = async { thread.await.unwrap_or_else(|_| Err(panics::last("the task's thread"))) };
            (ended(within_limits(&shared, run, limits, &signal).await, true), None)
        }
    };
    context.flush().await;
    let children = context.take_children();
    let options = match &task {
        Runnable::Task(task) => task.options.clone(),
        Runnable::Builtin(_) | Runnable::Foreign(_) => crate::task::TaskOptions::default(),
    };
    let run = ending::Run {
        delivery: &delivery,
        message: &message,
        options: &options,
        limits,
        acks_late,
        children,
    };
    let settlement = ending::settle(shared.ender(), run, ended);
    // The next task may start while this one's end is written; the settler bounds how many wait for that.
    drop(slot);
    match settlement {
        Some((transaction, count)) => {
            shared.settler.settle(&delivery, transaction, count, Some(began.elapsed())).await;
        }
        None => {
            tracing::warn!(task_id = %delivery.task_id, "lease lost, the run is stopped and stores nothing");
            ending::count(&shared.counters, ending::Count::Lost);
            shared.held.remove(&delivery.tag);
        }
    }
}

/// Writes that the run begins, where somebody wants to know; `false` when the lease is lost.
async fn begin(
    shared: &Shared,
    delivery: &Delivery,
    message: &Message,
    task: &Runnable,
    acks_late: bool,
    context: &Context,
) -> bool {
    let config = shared.app.config();
    let (track, ignore) = match task {
        Runnable::Task(task) => (task.options.track_started, task.options.ignore_result),
        Runnable::Builtin(_) | Runnable::Foreign(_) => (None, None),
    };
    let ignored = message.headers.ignores_result(ignore.unwrap_or(config.task_ignore_result));
    let track = track.unwrap_or(config.task_track_started) && !ignored;
    if acks_late && !track {
        return true;
    }
    let then = if acks_late { Then::Keep } else { Then::Begin };
    let mut transaction = Transaction::fenced(delivery.tag.clone(), then);
    if track {
        let started = serde_json::json!({ "pid": std::process::id(), "hostname": shared.worker.as_str() });
        transaction.record = Record {
            results: vec![ResultMeta {
                result: Json::from_value(&started).unwrap_or_default(),
                ..ending::meta(message, &delivery.task_id, State::Started)
            }],
            log: context.announce().into_iter().collect(),
            ..Record::default()
        };
    }
    match shared.settler.commit(transaction).await {
        Some(Outcome::Committed { .. }) => true,
        _ => {
            tracing::warn!(task_id = %delivery.task_id, "lease lost before the start");
            ending::count(&shared.counters, ending::Count::Lost);
            shared.held.remove(&delivery.tag);
            false
        }
    }
}

/// As celery/app/task.py: the message's own limits go before the task's, and those before the application's.
pub(super) fn limits(shared: &Shared, message: &Message, task: &Runnable) -> Limits {
    let config = shared.app.config();
    let of_message = |seconds: Option<f64>| seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    let of_task = match task {
        Runnable::Task(task) => {
            let own = Limits { soft: task.options.soft_time_limit, hard: task.options.time_limit };
            shared.overrides.time_limits(task.name, own)
        }
        Runnable::Foreign(task) => {
            let own = Limits { soft: task.options.soft_time_limit, hard: task.options.time_limit };
            shared.overrides.time_limits(&task.name, own)
        }
        Runnable::Builtin(_) => Limits { soft: None, hard: None },
    };
    Limits {
        soft: of_message(message.headers.timelimit.soft).or(of_task.soft).or(config.task_soft_time_limit),
        hard: of_message(message.headers.timelimit.hard).or(of_task.hard).or(config.task_time_limit),
    }
}

fn ended(run: Within<Result<Json, TaskError>>, thread: bool) -> Ended {
    match run {
        Within::Over(Ok(value)) => Ended::Value(value),
        Within::Over(Err(error)) => Ended::Error(error),
        Within::Stopped(reason) => Ended::Stopped { reason, abandoned: thread },
    }
}

/// What became of a run within its limits.
pub(super) enum Within<T> {
    /// It ended by itself.
    Over(T),
    /// It was stopped.
    Stopped(CancelReason),
}

/// Waits for the end of a run, tells it to stop, and drops it when it does not.
pub(super) async fn within_limits<T>(
    shared: &Shared,
    run: impl Future<Output = T>,
    limits: Limits,
    signal: &CancelSignal,
) -> Within<T> {
    let started = Instant::now();
    let at = |limit: Option<Duration>| limit.and_then(|limit| started.checked_add(limit));
    let (soft, hard) = (at(limits.soft), at(limits.hard));
    let mut soft_passed = false;
    // Set once the run has been told to stop for good.
    let mut stop: Option<(CancelReason, Instant)> = None;
    tokio::pin!(run);
    loop {
        tokio::select! {
            biased;
            ended = &mut run => return Within::Over(ended),
            () = sleep_until(hard.unwrap_or_else(Instant::now)), if hard.is_some() => {
                signal.cancel(CancelReason::TimeLimit);
                return Within::Stopped(CancelReason::TimeLimit);
            }
            () = sleep_until(soft.unwrap_or_else(Instant::now)), if soft.is_some() && !soft_passed => {
                soft_passed = true;
                signal.cancel(CancelReason::SoftTimeLimit);
            }
            reason = signal.stopped(), if stop.is_none() => {
                let grace = match reason {
                    // Another worker may be running it by now: every moment more is a moment of two.
                    CancelReason::LeaseLost => Duration::ZERO,
                    _ => shared.app.config().worker_revoke_grace,
                };
                stop = Some((reason, Instant::now() + grace));
            }
            () = async {
                let (reason, until) = stop.expect("checked by the branch's condition");
                if reason == CancelReason::Shutdown {
                    tokio::select! { () = sleep_until(until) => {} () = shared.cold.cancelled() => {} }
                } else {
                    sleep_until(until).await;
                }
            }, if stop.is_some() => {
                let (reason, _) = stop.expect("checked by the branch's condition");
                return Within::Stopped(reason);
            }
        }
    }
}
