//! Looks at a delivery and decides what is to be done with it, before anything runs.

use std::sync::Arc;

use super::builtin::{self, Builtin};
use super::ending::{self, Count};
use super::{Shared, foreign};
use crate::broker::Delivery;
use crate::protocol::{Exception, Message};
use crate::store::{Then, Transaction};
use crate::task::{ForeignTask, RegisteredTask, Verdict as Ending};

/// What is to be done with a delivery.
pub(super) enum Verdict {
    /// Run it.
    Run(Box<Call>),
    /// Settle or hand back without running.
    Settle(Box<Transaction>, Count),
    /// No task of its name is known here.
    Unknown(Box<Message>),
    /// Have its runtime store an end that it did not see, and settle; with a reason its message joins the dead letters.
    Conclude(Box<Message>, Ending, Option<String>),
}

/// A delivery that is to run.
pub(super) struct Call {
    pub(super) message: Message,
    pub(super) task: Runnable,
    pub(super) acks_late: bool,
}

/// What runs.
pub(super) enum Runnable {
    /// A task of the application.
    Task(Arc<RegisteredTask>),
    /// One of another runtime's.
    Foreign(Arc<ForeignTask>),
    /// One that every worker knows.
    Builtin(Builtin),
}

pub(super) async fn examine(shared: &Shared, delivery: &Delivery) -> Verdict {
    let app = &shared.app;
    let config = app.config();
    let now = app.clock().now();
    let settle = |transaction: Transaction, count| Verdict::Settle(Box::new(transaction), count);

    let (message, foreign) = match foreign::read(shared, &delivery.message) {
        Ok(read) => read,
        Err(error) => {
            tracing::error!(task_id = %delivery.task_id, %error, "message cannot be decoded, put with the dead letters");
            return settle(ending::undecodable(app, delivery, &error), Count::Failed);
        }
    };
    let task_id = &delivery.task_id;
    // Another worker may have finished it and been lost before the acknowledgement, where broker and backend are two
    // stores: the result says so. As celery/app/trace.py, `successful`, with `worker_deduplicate_successful_tasks`.
    if delivery.deliveries > 1
        && let Ok(found) = app.store().backend.fetch(std::slice::from_ref(task_id)).await
        && found.first().is_some_and(|meta| meta.as_ref().is_some_and(|meta| meta.state.is_ready()))
    {
        tracing::info!(%task_id, "finished before, acknowledged without running");
        return settle(Transaction::fenced(delivery.tag.clone(), Then::Ack), Count::None);
    }
    let refused = if delivery.revoked || shared.revoked.has(&message.headers, now) {
        Some("revoked")
    } else if message.headers.expires.is_some_and(|expires| expires <= now) {
        Some("expired")
    } else {
        None
    };
    if let Some(why) = refused {
        return match foreign {
            Some(_) => Verdict::Conclude(Box::new(message), Ending::Revoked(why), None),
            None => settle(ending::revoked(shared.ender(), delivery, &message, why, false), Count::Revoked),
        };
    }
    let Some(task) = foreign.map(Runnable::Foreign).or_else(|| runnable(shared, &message)) else {
        return Verdict::Unknown(Box::new(message));
    };
    let options = match &task {
        Runnable::Task(task) => Some(&task.options),
        Runnable::Foreign(task) => Some(&task.options),
        Runnable::Builtin(_) => None,
    };
    let acks_late = options.and_then(|options| options.acks_late).unwrap_or(config.task_acks_late);
    if delivery.begun && !acks_late {
        let why = "the worker was lost after it had begun the task, which runs at most once";
        if matches!(task, Runnable::Foreign(_)) {
            return Verdict::Conclude(Box::new(message), Ending::Lost(why.to_owned()), None);
        }
        let lost = Exception::worker_lost(why);
        return settle(ending::failed_unrun(shared.ender(), delivery, &message, &lost, None), Count::Failed);
    }
    if delivery.deliveries > config.task_max_deliveries {
        let reason = format!(
            "{} workers were lost with this task, or it was rejected as often: no more deliveries",
            delivery.deliveries - 1
        );
        tracing::error!(%task_id, task = %message.headers.task, %reason, "put with the dead letters");
        if matches!(task, Runnable::Foreign(_)) {
            let lost = Ending::Lost(reason.clone());
            return Verdict::Conclude(Box::new(message), lost, Some(reason));
        }
        let lost = Exception::worker_lost(&reason);
        return settle(
            ending::failed_unrun(shared.ender(), delivery, &message, &lost, Some(reason)),
            Count::Failed,
        );
    }
    shared.tell_received(&message);
    if message.headers.eta.is_some_and(|eta| eta > now) {
        let then = Then::Requeue { due: message.headers.eta, counted: false };
        return settle(Transaction::fenced(delivery.tag.clone(), then), Count::None);
    }
    let limited = match &task {
        Runnable::Task(task) => shared.overrides.rate_limit(task.name, task.options.rate_limit),
        Runnable::Foreign(task) => shared.overrides.rate_limit(&task.name, task.options.rate_limit),
        Runnable::Builtin(_) => None,
    };
    if let Some(limit) = limited
        && let Some(due) = shared.rates.take(&message.headers.task, limit, task_id, now)
    {
        let then = Then::Requeue { due: Some(due), counted: false };
        return settle(Transaction::fenced(delivery.tag.clone(), then), Count::None);
    }
    Verdict::Run(Box::new(Call { message, task, acks_late }))
}

fn runnable(shared: &Shared, message: &Message) -> Option<Runnable> {
    let registry = shared.app.registry();
    if builtin::is_builtin(&message.headers.task) {
        return Builtin::resolve(message, registry).map(Runnable::Builtin);
    }
    registry.task(&message.headers.task).cloned().map(Runnable::Task)
}
