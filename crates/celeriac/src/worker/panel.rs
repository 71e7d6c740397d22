//! What the commands of remote control do, and how they are answered: as celery/worker/control.py, by its names and in
//! its shapes. What only tells how the worker stands is in `figures.rs`, what revokes in `revocation.rs`.

use std::time::Duration;

use super::figures::{self, json, object};
use super::pool::Limits;
use super::slots::SLOTS_MAX;
use super::{Shared, revocation};
use crate::control::Command;
use crate::id::QueueName;
use crate::protocol::{Json, JsonMap, pidbox};
use crate::task::RateLimit;

/// A worker consumes from so many queues at most; each one costs a look at every reservation.
const QUEUES_MAX: usize = 1_000;
/// The bound on a queue's name.
const QUEUE_NAME_BYTES_MAX: usize = 255;

/// Does what a command says, and answers it.
pub(super) async fn answer(shared: &Shared, command: &Command) -> Json {
    let done = match Given::read(&command.arguments) {
        Ok(given) => obey(shared, &command.method, &given).await,
        Err(refused) => Err(refused),
    };
    match done {
        Ok(answer) => answer,
        Err(Refused(why)) => {
            tracing::warn!(method = %command.method, %why, "command refused");
            pidbox::error(&why)
        }
    }
}

/// Why a command was not done.
pub(super) struct Refused(pub(super) String);

/// The answer to a command that was done.
pub(super) fn ok(what: &str) -> Json {
    pidbox::ok(&Json::string(what))
}

async fn obey(shared: &Shared, method: &str, given: &Given) -> Result<Json, Refused> {
    match method {
        "ping" => Ok(ok("pong")),
        "heartbeat" => {
            given.nothing()?;
            shared.changed.notify_one();
            Ok(Json::null())
        }
        "stats" => Ok(figures::stats(shared)),
        "active" | "dump_active" => Ok(figures::active(shared, given.flag("safe")?)),
        // Whatever waits, waits in the store: a worker holds no more than it runs.
        "reserved" | "dump_reserved" | "scheduled" | "dump_schedule" => Ok(json::<[u8; 0]>(&[])),
        "revoked" | "dump_revoked" => Ok(revoked(shared)),
        "registered" | "dump_tasks" => {
            let items: Vec<String> = match given.optional("taskinfoitems") {
                Some(_) => given.value("taskinfoitems", "a list of names of options")?,
                None => Vec::new(),
            };
            Ok(figures::registered(shared, &items, given.flag("builtins")?))
        }
        "active_queues" => Ok(figures::active_queues(shared)),
        "query_task" => {
            Ok(figures::query_task(shared, &given.value::<Vec<String>>("ids", "a list of task ids")?))
        }
        "conf" | "dump_conf" => Ok(figures::conf(shared).to_json()),
        "report" => {
            given.nothing()?;
            Ok(ok(&figures::report(shared)))
        }
        "clock" => {
            let clock = shared.app.store().control.announcer();
            Ok(object([("clock", json(&clock.map_or(0, |announcer| announcer.clock().value())))]))
        }
        "memsample" => Ok(figures::memory()),
        "memdump" => {
            let text = figures::memory().as_string().map_or_else(|| "(unknown)".to_owned(), Into::into);
            Ok(json(&format!("- rss: {text}.\n")))
        }
        "objgraph" => Err(Refused("there is no graph of objects in Rust".to_owned())),
        "add_consumer" => add_consumer(shared, given),
        "cancel_consumer" => cancel_consumer(shared, given),
        "pool_grow" => pool_grow(shared, given),
        "pool_shrink" => pool_shrink(shared, given),
        // Celery's words, where it has not been told to.
        "pool_restart" => Err(Refused("ValueError('Pool restarts not enabled')".to_owned())),
        "autoscale" => autoscale(shared, given),
        "rate_limit" => rate_limit(shared, given),
        "time_limit" => time_limit(shared, given),
        "enable_events" => {
            given.nothing()?;
            told_of_events(shared)?;
            let changed = shared.announcer.enable();
            Ok(ok(if changed { "task events enabled" } else { "task events already enabled" }))
        }
        "disable_events" => {
            given.nothing()?;
            told_of_events(shared)?;
            let changed = shared.announcer.disable();
            Ok(ok(if changed { "task events disabled" } else { "task events already disabled" }))
        }
        "revoke" => revocation::revoke(shared, given, false).await,
        "terminate" => revocation::revoke(shared, given, true).await,
        "revoke_by_stamped_headers" => revocation::revoke_by_stamps(shared, given),
        "hello" => revocation::hello(shared, given).await,
        // The store has stood for election in the name of the worker, where that has a meaning.
        "election" => Ok(Json::null()),
        "shutdown" => {
            tracing::warn!("told to shut down by remote control");
            shared.shutdown.cancel();
            Ok(ok("shutting down"))
        }
        unknown => Err(Refused(format!("unknown command {unknown:?}; known are {}", COMMANDS.join(", ")))),
    }
}

/// The commands, without their older names.
const COMMANDS: &[&str] = &[
    "active",
    "active_queues",
    "add_consumer",
    "autoscale",
    "cancel_consumer",
    "clock",
    "conf",
    "disable_events",
    "election",
    "enable_events",
    "heartbeat",
    "hello",
    "memdump",
    "memsample",
    "objgraph",
    "ping",
    "pool_grow",
    "pool_restart",
    "pool_shrink",
    "query_task",
    "rate_limit",
    "registered",
    "report",
    "reserved",
    "revoke",
    "revoke_by_stamped_headers",
    "revoked",
    "scheduled",
    "shutdown",
    "stats",
    "terminate",
    "time_limit",
];

/// What runs although it was revoked, and what is to be refused when it comes.
fn revoked(shared: &Shared) -> Json {
    let mut ids = shared.held.revoked();
    ids.extend(shared.revoked.ids(shared.app.clock().now()));
    json(&ids)
}

fn told_of_events(shared: &Shared) -> Result<(), Refused> {
    match shared.app.store().control.announcer() {
        Some(_) => Ok(()),
        None => Err(Refused(
            "nobody can listen to events on this store; see `celeriac events --follow`".to_owned(),
        )),
    }
}

fn add_consumer(shared: &Shared, given: &Given) -> Result<Json, Refused> {
    let queue = given.queue()?;
    let mut full = false;
    let added = shared.queues.send_if_modified(|queues| {
        full = queues.len() >= QUEUES_MAX;
        let add = !full && !queues.contains(&queue);
        if add {
            queues.push(queue.clone());
        }
        add
    });
    if added {
        consumers_changed(shared);
        tracing::info!(%queue, "consuming from one queue more");
    } else if full {
        return Err(Refused(format!("this worker consumes from {QUEUES_MAX} queues, and takes no more")));
    } else {
        return Ok(ok(&format!("already consuming from {queue}")));
    }
    Ok(ok(&format!("add consumer {queue}")))
}

fn cancel_consumer(shared: &Shared, given: &Given) -> Result<Json, Refused> {
    let queue = given.queue()?;
    let removed = shared.queues.send_if_modified(|queues| {
        let before = queues.len();
        queues.retain(|known| *known != queue);
        queues.len() < before
    });
    if removed {
        consumers_changed(shared);
        tracing::info!(%queue, "consuming from one queue less");
    }
    Ok(ok(&format!("no longer consuming from {queue}")))
}

fn consumers_changed(shared: &Shared) {
    shared.recall.recall();
    shared.changed.notify_one();
}

fn pool_grow(shared: &Shared, given: &Given) -> Result<Json, Refused> {
    let by = given.count("n")?;
    if shared.slots.size().saturating_add(by) > SLOTS_MAX {
        return Err(Refused(format!("n: a worker has at most {SLOTS_MAX} slots")));
    }
    let slots = shared.slots.grow(by);
    shared.resized(slots);
    shared.changed.notify_one();
    tracing::info!(slots, "pool grows");
    Ok(ok("pool will grow"))
}

fn pool_shrink(shared: &Shared, given: &Given) -> Result<Json, Refused> {
    let by = given.count("n")?;
    if shared.slots.size() <= by {
        return Err(Refused(format!(
            "n: a worker keeps at least one slot, and this one has {}",
            shared.slots.size()
        )));
    }
    let slots = shared.slots.shrink(by);
    shared.resized(slots);
    // The consumer may hold free slots while it waits.
    shared.recall.recall();
    shared.changed.notify_one();
    tracing::info!(slots, "pool shrinks");
    Ok(ok("pool will shrink"))
}

fn autoscale(shared: &Shared, given: &Given) -> Result<Json, Refused> {
    let disabled = || Refused("ValueError('Autoscale not enabled')".to_owned());
    let executor = shared.executor.as_ref().ok_or_else(disabled)?;
    let (most, least) = (given.count("max")?, given.optional("min").map_or(Ok(1), |_| given.count("min"))?);
    if least > most || most > SLOTS_MAX {
        return Err(Refused(format!("min: should be from 1 to max, and max to {SLOTS_MAX}")));
    }
    if !executor.autoscale(least, most) {
        return Err(disabled());
    }
    let slots = shared.slots.size();
    if most > slots {
        shared.slots.grow(most - slots);
    } else if most < slots {
        shared.slots.shrink(slots - most);
    }
    shared.recall.recall();
    shared.changed.notify_one();
    tracing::info!(least, most, "autoscale changed");
    Ok(ok(&format!("autoscale now max={most} min={least}")))
}

fn rate_limit(shared: &Shared, given: &Given) -> Result<Json, Refused> {
    let task = given.task(shared)?;
    let limit = given.get("rate_limit")?;
    // As Celery, 0 and nothing mean none.
    let text = limit.as_string().map_or_else(|| limit.as_str().to_owned(), std::borrow::Cow::into_owned);
    let limit = match text.trim() {
        "" | "null" | "0" => None,
        text => Some(text.parse::<RateLimit>().map_err(|why| Refused(format!("rate_limit: {why}")))?),
    };
    shared.overrides.set_rate_limit(&task, limit);
    // Starts that were given away at the old rate may lie far off.
    shared.rates.forget(&task);
    tracing::info!(%task, rate_limit = %text, "rate limit changed");
    Ok(ok(match limit {
        Some(_) => "new rate limit set successfully",
        None => "rate limit disabled successfully",
    }))
}

fn time_limit(shared: &Shared, given: &Given) -> Result<Json, Refused> {
    let task = given.task(shared)?;
    let limits = Limits { soft: given.seconds("soft")?, hard: given.seconds("hard")? };
    shared.overrides.set_time_limits(&task, limits);
    tracing::info!(%task, soft = ?limits.soft, hard = ?limits.hard, "time limits changed");
    Ok(ok("time limits set successfully"))
}

/// The arguments of a command.
pub(super) struct Given(JsonMap);

impl Given {
    fn read(arguments: &Json) -> Result<Self, Refused> {
        if arguments.is_null() {
            return Ok(Self(JsonMap::new()));
        }
        arguments.entries().map(Self).map_err(|why| Refused(format!("arguments are no JSON object: {why}")))
    }

    /// Refuses arguments where there are to be none.
    fn nothing(&self) -> Result<(), Refused> {
        match self.0.keys().next() {
            Some(name) => Err(Refused(format!("{name}: is no argument of this command, which takes none"))),
            None => Ok(()),
        }
    }

    pub(super) fn optional(&self, name: &str) -> Option<&Json> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// An argument that must be there, be it null.
    pub(super) fn get(&self, name: &str) -> Result<&Json, Refused> {
        self.0.get(name).ok_or_else(|| Refused(format!("{name}: is missing")))
    }

    pub(super) fn value<T: serde::de::DeserializeOwned>(&self, name: &str, what: &str) -> Result<T, Refused> {
        self.get(name)?.to().map_err(|why| Refused(format!("{name}: should be {what}: {why}")))
    }

    /// Yes or no; no when it is not said.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Refused> {
        let Some(value) = self.optional(name) else { return Ok(false) };
        match value.as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(Refused(format!("{name}: should be true or false, is {other}"))),
        }
    }

    fn queue(&self) -> Result<QueueName, Refused> {
        let queue: String = self.value("queue", "the name of a queue")?;
        if queue.is_empty() || queue.len() > QUEUE_NAME_BYTES_MAX {
            return Err(Refused(format!("queue: a name has 1 to {QUEUE_NAME_BYTES_MAX} bytes")));
        }
        Ok(QueueName::from(queue))
    }

    /// The name of a task that this worker knows.
    fn task(&self, shared: &Shared) -> Result<String, Refused> {
        let name: String = self.value("task_name", "the name of a task")?;
        let known = shared.options(&name).is_some();
        // Celery's words.
        if known { Ok(name) } else { Err(Refused("unknown task".to_owned())) }
    }

    /// A number of slots; 1 when it is not said.
    fn count(&self, name: &str) -> Result<usize, Refused> {
        let Some(value) = self.optional(name) else { return Ok(1) };
        let wrong = || Refused(format!("{name}: should be a number from 1, is {}", value.as_str()));
        // The command line of Celery sends numbers, some tools send them as text.
        let text = value.as_string().map_or_else(|| value.as_str().to_owned(), std::borrow::Cow::into_owned);
        text.trim().parse().ok().filter(|count| *count > 0).ok_or_else(wrong)
    }

    /// A time; `None` when it is not said.
    fn seconds(&self, name: &str) -> Result<Option<Duration>, Refused> {
        let Some(value) = self.optional(name) else { return Ok(None) };
        let seconds = value.to::<f64>().ok().filter(|seconds| *seconds > 0.0);
        let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let wrong = || Refused(format!("{name}: should be seconds above 0, is {}", value.as_str()));
        time.ok_or_else(wrong).map(Some)
    }
}
