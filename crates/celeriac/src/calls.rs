//! Calls by name, many in one write: what a server sends for others.

use std::collections::HashMap;

use crate::app::Celeriac;
use crate::canvas::{Given, Planner, plan};
use crate::client::CallOptions;
use crate::clock;
use crate::error::Result;
use crate::id::{QueueName, TaskId};
use crate::protocol::{Json, JsonMap, Signature};
use crate::store::Transaction;

/// A call of a task by its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The task's name.
    pub task: String,
    /// Positional arguments.
    pub args: Vec<Json>,
    /// Named arguments.
    pub kwargs: JsonMap,
    /// How the call is to be made.
    pub options: CallOptions,
}

/// What became of a [`Call`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// The task's id.
    pub task_id: TaskId,
    /// Nothing was sent: a task of the call's key or id is known already, be it finished. After the store was away in the
    /// midst of the call, it may be what this very call sent.
    pub duplicate: bool,
}

impl Celeriac {
    /// The queue that a call of `task` goes to unless it names one: that of the task's own options when it is registered
    /// or known here, else that of `task_routes`, else the default.
    #[must_use]
    pub fn queue_of(&self, task: &str) -> QueueName {
        let own = self.registry().options_of_calls(task).and_then(|options| options.queue.as_deref());
        own.map_or_else(|| self.router().queue(task), QueueName::from)
    }

    /// Sends calls by name in one write, all or none, and says what became of each. The ids of several are those of a batch,
    /// see [`BatchIds`](crate::id::BatchIds). What a call leaves open is taken from the options of its task, when that is
    /// registered or known here, and then from the settings. An id that a call brings is a key as
    /// [`CallOptions::idempotency_key`] is: when a task of that id is known, the call is not sent.
    ///
    /// # Errors
    /// When one of the messages cannot be made, or they cannot be stored.
    pub async fn send_calls(&self, calls: Vec<Call>) -> Result<Vec<Sent>> {
        let count = calls.len();
        let mut transaction = Transaction::default();
        let mut sent = Vec::with_capacity(calls.len());
        let mut fresh = Vec::with_capacity(calls.len());
        let plan_all = |planner: &Planner<'_>| {
            for call in calls {
                let options = self.with_own_options(&call.task, call.options);
                let own_id = options.task_id.is_some();
                fresh.push(!own_id && options.idempotency_key.is_none());
                let signature = Signature::new(&call.task, call.args, call.kwargs);
                let given = Given { options: options.into_wire()?, ..Given::default() };
                let mut plan = plan(&signature, given, planner)?;
                sent.push(Sent { task_id: TaskId::from(plan.result.id.as_str()), duplicate: false });
                for message in &mut plan.publish {
                    message.unique |= own_id;
                }
                transaction.publish.extend(plan.publish);
                transaction.record.chords.extend(plan.chords);
            }
            Ok(())
        };
        self.plan_at_once(count, plan_all)?;
        let mut duplicates: HashMap<TaskId, usize> = HashMap::new();
        for task_id in self.send(transaction).await? {
            *duplicates.entry(task_id).or_default() += 1;
        }
        // Of several calls with one id the first is sent, if any is.
        for (sent, fresh) in sent.iter_mut().zip(fresh).rev() {
            if let Some(left) = duplicates.get_mut(&sent.task_id).filter(|left| **left > 0) {
                *left -= 1;
                sent.duplicate = !fresh;
            }
        }
        Ok(sent)
    }

    fn with_own_options(&self, task: &str, mut options: CallOptions) -> CallOptions {
        let Some(own) = self.registry().options_of_calls(task) else { return options };
        if options.queue.is_none() {
            options.queue.clone_from(&own.queue);
        }
        options.priority = options.priority.or(own.priority);
        options.ignore_result = options.ignore_result.or(own.ignore_result);
        options.expires =
            options.expires.or_else(|| own.expires.map(|expires| clock::after(self.clock().now(), expires)));
        options
    }
}
