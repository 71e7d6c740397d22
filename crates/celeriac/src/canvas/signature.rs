//! Signatures with the type of their value, and the canvas made of them.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::app::Celeriac;
use crate::broker::Routed;
use crate::client::CallOptions;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::TaskId;
use crate::protocol::{self, Json, JsonMap};
use crate::result::AsyncResult;
use crate::task::{Dynamic, Task, TaskOptions, Typed, Value};

/// A call that can be sent, kept, or made part of something larger: Celery's signature. A task's own name makes one:
/// `digest("notes.md".into())`; one whose first argument is the value of what comes before it is `digest::s()`.
///
/// Options set here travel with the call; an error in one (a value that JSON cannot hold) is kept, and returned when it
/// is sent.
pub struct Signature<T: Typed = Dynamic> {
    wire: protocol::Signature,
    problem: Option<(String, String)>,
    of: PhantomData<fn() -> T>,
}

impl<T: Typed> Signature<T> {
    /// A signature as it stands on the wire; the caller vouches for the type of its value.
    #[must_use]
    pub fn from_wire(wire: protocol::Signature) -> Self {
        Self { wire, problem: None, of: PhantomData }
    }

    /// The signature as it stands on the wire.
    #[must_use]
    pub fn wire(&self) -> &protocol::Signature {
        &self.wire
    }

    /// The same call, its type forgotten.
    #[must_use]
    pub fn into_dynamic(self) -> Signature {
        Signature { wire: self.wire, problem: self.problem, of: PhantomData }
    }

    /// Sends it.
    ///
    /// # Errors
    /// When the message cannot be made or stored.
    pub async fn delay(&self, app: &Celeriac) -> Result<AsyncResult<T::Output>> {
        self.apply_async(app, CallOptions::default()).await
    }

    /// Sends it, with options that go before its own.
    ///
    /// # Errors
    /// When the message cannot be made or stored.
    pub async fn apply_async(&self, app: &Celeriac, options: CallOptions) -> Result<AsyncResult<T::Output>> {
        self.apply_noting(app, options, |_| Ok(())).await
    }

    /// Sends it, after `note` was told of the messages that are about to be; an error of it is returned, and nothing
    /// sent.
    pub(crate) async fn apply_noting<E: From<Error>>(
        &self,
        app: &Celeriac,
        options: CallOptions,
        note: impl FnOnce(&[Routed]) -> Result<(), E>,
    ) -> Result<AsyncResult<T::Output>, E> {
        if let Some((what, why)) = &self.problem {
            return Err(Error::invalid(what, why).into());
        }
        app.apply(&self.wire, options.into_wire()?, note).await
    }

    /// Whether it ignores the value of what comes before it: Celery's `.si()`.
    #[must_use]
    pub fn immutable(mut self) -> Self {
        self.wire.immutable = true;
        self
    }

    /// Sets an option under Celery's name.
    #[must_use]
    pub fn set<V: Serialize + ?Sized>(mut self, option: &str, value: &V) -> Self {
        match Json::from_value(value) {
            Ok(value) => {
                self.wire.options.insert(option.to_owned(), value);
            }
            Err(why) => self.problem = Some((format!("option {option}"), why.to_string())),
        }
        self
    }

    /// Sends it to this queue.
    #[must_use]
    pub fn queue(self, queue: &str) -> Self {
        self.set("queue", queue)
    }

    /// 0 is consumed first, 9 last.
    #[must_use]
    pub fn priority(self, priority: u8) -> Self {
        self.set("priority", &priority)
    }

    /// Runs it not before this much time has passed since it was sent.
    #[must_use]
    pub fn countdown(self, countdown: Duration) -> Self {
        self.set("countdown", &countdown.as_secs_f64())
    }

    /// Runs it not before this time.
    #[must_use]
    pub fn eta(self, eta: Timestamp) -> Self {
        self.set("eta", &eta.to_string())
    }

    /// Revokes it when it has not begun by this time.
    #[must_use]
    pub fn expires(self, expires: Timestamp) -> Self {
        self.set("expires", &expires.to_string())
    }

    /// Revokes it when it has not begun this much time after it was sent.
    #[must_use]
    pub fn expires_in(self, expires: Duration) -> Self {
        self.set("expires", &expires.as_secs_f64())
    }

    /// Gives it an id.
    #[must_use]
    pub fn task_id(self, task_id: &TaskId) -> Self {
        self.set("task_id", task_id)
    }

    /// See [`CallOptions::idempotency_key`].
    #[must_use]
    pub fn idempotency_key(self, key: &str) -> Self {
        self.set("idempotency_key", key)
    }

    /// Stops the run after this.
    #[must_use]
    pub fn time_limit(self, limit: Duration) -> Self {
        self.set("time_limit", &limit.as_secs_f64())
    }

    /// Asks the run to stop after this.
    #[must_use]
    pub fn soft_time_limit(self, limit: Duration) -> Self {
        self.set("soft_time_limit", &limit.as_secs_f64())
    }

    /// Keeps no result.
    #[must_use]
    pub fn ignore_result(self) -> Self {
        self.set("ignore_result", &true)
    }

    /// Adds a header of the application's own.
    #[must_use]
    pub fn header<V: Serialize + ?Sized>(self, name: &str, value: &V) -> Self {
        let mut headers: JsonMap = self.wire.option("headers").ok().flatten().unwrap_or_default();
        match Json::from_value(value) {
            Ok(value) => {
                headers.insert(name.to_owned(), value);
                self.set("headers", &headers)
            }
            Err(why) => Self { problem: Some((format!("header {name}"), why.to_string())), ..self },
        }
    }

    /// Applies `callback` with its value after success.
    #[must_use]
    pub fn link<U: Typed>(self, callback: Signature<U>) -> Self {
        self.append("link", callback)
    }

    /// Applies `errback` with its id after failure.
    #[must_use]
    pub fn link_error<U: Typed>(self, errback: Signature<U>) -> Self {
        self.append("link_error", errback)
    }

    /// Then `next`, with this one's value as its first argument unless it is immutable: a chain.
    #[must_use]
    pub fn then<U: Typed>(self, next: Signature<U>) -> Signature<U> {
        let problem = self.problem.clone().or(next.problem.clone());
        let mut steps = chain_steps(self.wire);
        steps.extend(chain_steps(next.wire));
        Signature { wire: protocol::Signature::chain(&steps), problem, of: PhantomData }
    }

    fn append<U: Typed>(self, option: &str, signature: Signature<U>) -> Self {
        let mut all: Vec<protocol::Signature> = self.wire.option(option).ok().flatten().unwrap_or_default();
        all.push(signature.wire);
        let problem = signature.problem;
        let mut this = self.set(option, &all);
        this.problem = this.problem.or(problem);
        this
    }
}

impl<T: Task> Signature<T> {
    /// A call of `T`; used by what `#[celeriac::task]` generates.
    #[doc(hidden)]
    #[must_use]
    pub fn of_task(arguments: std::result::Result<Vec<Json>, protocol::JsonError>) -> Self {
        let (args, problem) = match arguments {
            Ok(args) => (args, None),
            Err(why) => (Vec::new(), Some((format!("arguments of {}", T::NAME), why.to_string()))),
        };
        let wire = protocol::Signature::new(T::NAME, args, JsonMap::new());
        let mut signature = Self { wire, problem, of: PhantomData };
        let TaskOptions { priority, queue, expires, ignore_result, .. } = T::options();
        if let Some(priority) = priority {
            signature = signature.priority(priority);
        }
        if let Some(queue) = queue {
            signature = signature.queue(&queue);
        }
        if let Some(expires) = expires {
            signature = signature.expires_in(expires);
        }
        if let Some(ignore) = ignore_result {
            signature = signature.set("ignore_result", &ignore);
        }
        signature
    }
}

/// A call by name, of a task of any language.
#[must_use]
pub fn signature(task: &str, args: Vec<Json>) -> Signature {
    Signature::from_wire(protocol::Signature::new(task, args, JsonMap::new()))
}

/// One after the other, each with the value of the one before it. For steps whose types differ, see
/// [`Signature::then`].
#[must_use]
pub fn chain<T: Typed>(steps: impl IntoIterator<Item = Signature<T>>) -> Signature<T> {
    let (steps, problem) = collect(steps);
    let steps: Vec<_> = steps.into_iter().flat_map(chain_steps).collect();
    Signature { wire: protocol::Signature::chain(&steps), problem, of: PhantomData }
}

/// All at once; the value is that of each member, in order.
#[must_use]
pub fn group<T: Typed>(members: impl IntoIterator<Item = Signature<T>>) -> Signature<Value<Vec<T::Output>>> {
    let (members, problem) = collect(members);
    Signature { wire: protocol::Signature::group(&members), problem, of: PhantomData }
}

/// All members of `header` at once, then `body` with the list of their values as its first argument.
///
/// The body runs when all have succeeded. When one fails the body fails with `ChordError` once all have ended, as with
/// Celery.
#[must_use]
pub fn chord<T: Typed, U: Typed>(
    header: impl IntoIterator<Item = Signature<T>>,
    body: Signature<U>,
) -> Signature<U> {
    let (header, problem) = collect(header);
    let problem = problem.or(body.problem);
    Signature {
        wire: protocol::Signature::chord(&protocol::Signature::group(&header), &body.wire),
        problem,
        of: PhantomData,
    }
}

/// One message that applies a task to each item, one after the other; the value is the list of theirs.
#[must_use]
pub fn map<T: Task, I: Serialize>(task: Signature<T>, items: &[I]) -> Signature<Value<Vec<T::Output>>> {
    over_items(task, items, protocol::Signature::xmap)
}

/// As [`map`], each item being the list of a call's arguments.
#[must_use]
pub fn starmap<T: Task, I: Serialize>(task: Signature<T>, items: &[I]) -> Signature<Value<Vec<T::Output>>> {
    over_items(task, items, protocol::Signature::xstarmap)
}

/// As [`starmap`], cut into messages of `size` calls each; the value is a list of lists.
#[must_use]
pub fn chunks<T: Task, I: Serialize>(
    task: Signature<T>,
    items: &[I],
    size: usize,
) -> Signature<Value<Vec<Vec<T::Output>>>> {
    over_items(task, items, |task, items| protocol::Signature::chunks(task, items, size.max(1)))
}

fn over_items<T: Task, I: Serialize, R: DeserializeOwned + Send + 'static>(
    task: Signature<T>,
    items: &[I],
    make: impl FnOnce(&protocol::Signature, &[Json]) -> protocol::Signature,
) -> Signature<Value<R>> {
    let items: std::result::Result<Vec<Json>, _> = items.iter().map(Json::from_value).collect();
    match items {
        Ok(items) => Signature { wire: make(&task.wire, &items), problem: task.problem, of: PhantomData },
        Err(why) => {
            let problem = Some((format!("items for {}", T::NAME), why.to_string()));
            Signature { wire: task.wire, problem, of: PhantomData }
        }
    }
}

type Problem = Option<(String, String)>;

fn collect<T: Typed>(
    signatures: impl IntoIterator<Item = Signature<T>>,
) -> (Vec<protocol::Signature>, Problem) {
    let mut problem = None;
    let mut wires = Vec::new();
    for signature in signatures {
        problem = problem.or(signature.problem);
        wires.push(signature.wire);
    }
    (wires, problem)
}

/// The steps that a signature adds to a chain: those of a chain without options of its own, or itself.
fn chain_steps(wire: protocol::Signature) -> Vec<protocol::Signature> {
    if wire.options.is_empty()
        && wire.subtask_type.as_deref() == Some("chain")
        && let Ok(steps) = wire.tasks()
    {
        return steps;
    }
    vec![wire]
}

impl<T: Typed> Clone for Signature<T> {
    fn clone(&self) -> Self {
        Self { wire: self.wire.clone(), problem: self.problem.clone(), of: PhantomData }
    }
}

impl<T: Typed> fmt::Debug for Signature<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.wire.fmt(f)
    }
}
