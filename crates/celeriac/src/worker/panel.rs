//! What the commands of remote control do, and how they are answered: as celery/worker/control.py, by its names and in
//! its shapes.

use std::time::Duration;

use serde_json::{Value, json};

use super::Shared;
use super::heartbeat::VERSION;
use super::held::Run;
use super::pool::Limits;
use super::slots::SLOTS_MAX;
use crate::control::{Command, Report};
use crate::id::QueueName;
use crate::protocol::{Json, JsonMap};
use crate::task::RateLimit;

/// A worker consumes from so many queues at most; each one costs a look at every reservation.
const QUEUES_MAX: usize = 1_000;
/// The bound on a queue's name.
const QUEUE_NAME_BYTES_MAX: usize = 255;

/// Does what a command says, and answers it.
pub(super) fn answer(shared: &Shared, command: &Command) -> Json {
    let done = Given::read(&command.arguments).and_then(|given| obey(shared, &command.method, &given));
    match done {
        Ok(answer) => Json::from_value(&answer).unwrap_or_else(|why| refusal(&why.to_string())),
        Err(Refused(why)) => {
            tracing::warn!(method = %command.method, %why, "command refused");
            refusal(&why)
        }
    }
}

/// The answer to a command that was not done.
pub(super) fn refusal(why: &str) -> Json {
    Json::from_value(&json!({ "error": why })).unwrap_or_default()
}

/// Why a command was not done.
struct Refused(String);

fn ok(what: impl Into<Value>) -> Value {
    json!({ "ok": what.into() })
}

fn obey(shared: &Shared, method: &str, given: &Given) -> Result<Value, Refused> {
    match method {
        "ping" => Ok(ok("pong")),
        "heartbeat" => {
            shared.changed.notify_one();
            Ok(Value::Null)
        }
        "stats" => Ok(stats(shared)),
        "active" | "dump_active" => Ok(active(shared)),
        // Whatever waits, waits in the store: a worker holds no more than it runs.
        "reserved" | "dump_reserved" | "scheduled" | "dump_schedule" => Ok(json!([])),
        "revoked" | "dump_revoked" => Ok(json!(shared.held.revoked())),
        "registered" | "dump_tasks" => Ok(registered(shared)),
        "active_queues" => Ok(shared.queues.borrow().iter().map(queue_info).collect()),
        "query_task" => query_task(shared, given),
        "conf" | "dump_conf" => Ok(Value::Object(conf(shared))),
        "report" => Ok(ok(report(shared))),
        "add_consumer" => add_consumer(shared, given),
        "cancel_consumer" => cancel_consumer(shared, given),
        "pool_grow" => pool_grow(shared, given),
        "pool_shrink" => pool_shrink(shared, given),
        "rate_limit" => rate_limit(shared, given),
        "time_limit" => time_limit(shared, given),
        "shutdown" => {
            tracing::warn!("told to shut down by remote control");
            shared.shutdown.cancel();
            Ok(ok("shutting down"))
        }
        "revoke" | "terminate" => Err(Refused(format!(
            "{method} is no command to workers here: revocations are kept in the store, use `celeriac revoke`"
        ))),
        unknown => Err(Refused(format!("unknown command {unknown:?}; known are {}", COMMANDS.join(", ")))),
    }
}

/// The commands, without their older names.
const COMMANDS: &[&str] = &[
    "active",
    "active_queues",
    "add_consumer",
    "cancel_consumer",
    "conf",
    "heartbeat",
    "ping",
    "pool_grow",
    "pool_shrink",
    "query_task",
    "rate_limit",
    "registered",
    "report",
    "reserved",
    "revoked",
    "scheduled",
    "shutdown",
    "stats",
    "time_limit",
];

fn active(shared: &Shared) -> Value {
    let mut runs = shared.held.runs();
    runs.sort_by_key(|run| run.started);
    runs.iter().map(|run| task_info(shared, run)).collect()
}

fn task_info(shared: &Shared, run: &Run) -> Value {
    let (context, headers) = (&run.context, run.context.headers());
    json!({
        "id": context.task_id(),
        "name": context.task(),
        "args": headers.argsrepr,
        "kwargs": headers.kwargsrepr,
        "type": context.task(),
        "hostname": shared.node,
        "time_start": Duration::try_from(run.started.as_duration()).unwrap_or_default().as_secs_f64(),
        "acknowledged": !run.acks_late,
        "delivery_info": {
            "exchange": "",
            "routing_key": context.queue(),
            "priority": run.priority,
            "redelivered": context.deliveries() > 1,
        },
        "worker_pid": std::process::id(),
    })
}

fn query_task(shared: &Shared, given: &Given) -> Result<Value, Refused> {
    let ids: Vec<String> = given.value("ids", "a list of task ids")?;
    let runs = shared.held.runs();
    let asked = runs.iter().filter(|run| ids.iter().any(|id| id == run.context.task_id().as_str()));
    let found = asked
        .map(|run| (run.context.task_id().as_str().to_owned(), json!(["active", task_info(shared, run)])));
    Ok(Value::Object(found.collect()))
}

fn registered(shared: &Shared) -> Value {
    let registry = shared.app.registry();
    let told = |name: &'static str| {
        let own = registry.options(name).and_then(|options| options.rate_limit);
        match shared.overrides.rate_limit(name, own) {
            Some(limit) => format!("{name} [rate_limit={limit}]"),
            None => name.to_owned(),
        }
    };
    registry.names().map(told).collect()
}

/// A queue as kombu describes one, with all that tools written for Celery look at.
fn queue_info(queue: &QueueName) -> Value {
    json!({
        "name": queue,
        "exchange": {
            "name": queue,
            "type": "direct",
            "arguments": null,
            "durable": true,
            "passive": false,
            "auto_delete": false,
            "delivery_mode": null,
            "no_declare": false,
        },
        "routing_key": queue,
        "queue_arguments": null,
        "binding_arguments": null,
        "consumer_arguments": null,
        "durable": true,
        "exclusive": false,
        "auto_delete": false,
        "no_ack": false,
        "alias": null,
        "bindings": [],
        "no_declare": null,
        "expires": null,
        "message_ttl": null,
        "max_length": null,
        "max_length_bytes": null,
        "max_priority": null,
    })
}

fn stats(shared: &Shared) -> Value {
    let config = shared.app.config();
    let seconds = |limit: Option<Duration>| limit.unwrap_or_default().as_secs_f64();
    let url = shared.app.url();
    let started = shared.counters.started.iter();
    let total = started.map(|(name, count)| (*name, count.load(std::sync::atomic::Ordering::Relaxed)));
    let total: serde_json::Map<String, Value> =
        total.filter(|(_, count)| *count > 0).map(|(name, count)| (name.to_owned(), count.into())).collect();
    let Report { succeeded, failed, retried, revoked, handed_back, lost } = shared.counters.report();
    json!({
        "total": total,
        "pid": std::process::id(),
        "clock": "0",
        "uptime": crate::clock::until(shared.started, shared.app.clock().now()).as_secs(),
        "pool": {
            "implementation": "celeriac",
            "max-concurrency": shared.slots.size(),
            "processes": [std::process::id()],
            "max-tasks-per-child": "N/A",
            "timeouts": [seconds(config.task_soft_time_limit), seconds(config.task_time_limit)],
        },
        "broker": {
            "transport": url.split_once("://").map_or("", |(scheme, _)| scheme),
            "url": url,
        },
        "prefetch_count": shared.slots.size(),
        "rusage": {},
        "running": shared.held.running(),
        "ends": {
            "succeeded": succeeded,
            "failed": failed,
            "retried": retried,
            "revoked": revoked,
            "handed_back": handed_back,
            "lost": lost,
        },
    })
}

fn conf(shared: &Shared) -> serde_json::Map<String, Value> {
    let mut settings = shared.app.config().shown();
    settings.insert("broker_url".to_owned(), shared.app.url().into());
    settings
}

fn report(shared: &Shared) -> String {
    let mut text = format!(
        "software -> {VERSION}\nplatform -> {} {}\nworker -> {} pid {}\n",
        std::env::consts::OS,
        std::env::consts::ARCH,
        shared.worker,
        std::process::id(),
    );
    for (name, value) in conf(shared) {
        text.push_str(&format!("\n{name}: {value}"));
    }
    text
}

fn add_consumer(shared: &Shared, given: &Given) -> Result<Value, Refused> {
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
        return Ok(ok(format!("already consuming from {queue}")));
    }
    Ok(ok(format!("add consumer {queue}")))
}

fn cancel_consumer(shared: &Shared, given: &Given) -> Result<Value, Refused> {
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
    Ok(ok(format!("no longer consuming from {queue}")))
}

fn consumers_changed(shared: &Shared) {
    shared.recall.recall();
    shared.changed.notify_one();
}

fn pool_grow(shared: &Shared, given: &Given) -> Result<Value, Refused> {
    let by = given.count("n")?;
    if shared.slots.size().saturating_add(by) > SLOTS_MAX {
        return Err(Refused(format!("n: a worker has at most {SLOTS_MAX} slots")));
    }
    let slots = shared.slots.grow(by);
    shared.changed.notify_one();
    tracing::info!(slots, "pool grows");
    Ok(ok("pool will grow"))
}

fn pool_shrink(shared: &Shared, given: &Given) -> Result<Value, Refused> {
    let by = given.count("n")?;
    if shared.slots.size() <= by {
        return Err(Refused(format!(
            "n: a worker keeps at least one slot, and this one has {}",
            shared.slots.size()
        )));
    }
    let slots = shared.slots.shrink(by);
    // The consumer may hold free slots while it waits.
    shared.recall.recall();
    shared.changed.notify_one();
    tracing::info!(slots, "pool shrinks");
    Ok(ok("pool will shrink"))
}

fn rate_limit(shared: &Shared, given: &Given) -> Result<Value, Refused> {
    let task = given.task(shared)?;
    let limit = given.get("rate_limit")?;
    // As Celery, 0 and nothing mean none.
    let text = limit.as_string().map_or_else(|| limit.as_str().to_owned(), std::borrow::Cow::into_owned);
    let limit = match text.trim() {
        "" | "null" | "0" => None,
        text => Some(text.parse::<RateLimit>().map_err(|why| Refused(format!("rate_limit: {why}")))?),
    };
    shared.overrides.set_rate_limit(task, limit);
    // Starts that were given away at the old rate may lie far off.
    shared.rates.forget(task);
    tracing::info!(task, rate_limit = %text, "rate limit changed");
    Ok(ok(match limit {
        Some(_) => "new rate limit set successfully",
        None => "rate limit disabled successfully",
    }))
}

fn time_limit(shared: &Shared, given: &Given) -> Result<Value, Refused> {
    let task = given.task(shared)?;
    let limits = Limits { soft: given.seconds("soft")?, hard: given.seconds("hard")? };
    shared.overrides.set_time_limits(task, limits);
    tracing::info!(task, soft = ?limits.soft, hard = ?limits.hard, "time limits changed");
    Ok(ok("time limits set successfully"))
}

/// The arguments of a command.
struct Given(JsonMap);

impl Given {
    fn read(arguments: &Json) -> Result<Self, Refused> {
        if arguments.is_null() {
            return Ok(Self(JsonMap::new()));
        }
        arguments.entries().map(Self).map_err(|why| Refused(format!("arguments are no JSON object: {why}")))
    }

    fn optional(&self, name: &str) -> Option<&Json> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// An argument that must be there, be it null.
    fn get(&self, name: &str) -> Result<&Json, Refused> {
        self.0.get(name).ok_or_else(|| Refused(format!("{name}: is missing")))
    }

    fn value<T: serde::de::DeserializeOwned>(&self, name: &str, what: &str) -> Result<T, Refused> {
        self.get(name)?.to().map_err(|why| Refused(format!("{name}: should be {what}: {why}")))
    }

    fn queue(&self) -> Result<QueueName, Refused> {
        let queue: String = self.value("queue", "the name of a queue")?;
        if queue.is_empty() || queue.len() > QUEUE_NAME_BYTES_MAX {
            return Err(Refused(format!("queue: a name has 1 to {QUEUE_NAME_BYTES_MAX} bytes")));
        }
        Ok(QueueName::from(queue))
    }

    /// The name of a task that this worker knows.
    fn task(&self, shared: &Shared) -> Result<&'static str, Refused> {
        let name: String = self.value("task_name", "the name of a task")?;
        let task = shared.app.registry().task(&name);
        // Celery's words.
        task.map(|task| task.name).ok_or_else(|| Refused("unknown task".to_owned()))
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
