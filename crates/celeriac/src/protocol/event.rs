//! Celery's events: what workers and producers tell whoever listens, be it Flower, `celery events` or another worker.
//!
//! An event is a JSON object. Its type is its last field and names the routing key; events of tasks travel in batches,
//! as an array under the routing key `task.multi`. Nothing of this is stored: who does not listen misses it.

use std::borrow::Cow;

use super::letter::{self, Address, DeliveryMode, Fields};
use super::{DecodeError, Json, JsonMap, RawMessage, date, writer};
use crate::clock::Timestamp;

/// The exchange of events; Celery's `event_exchange`.
pub const EXCHANGE: &str = "celeryev";

/// So many events share a message at most.
pub const BATCH_MAX: usize = 256;

/// Something that happened, and who tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The node name of a worker, or `gen<pid>@<host>` of a producer.
    pub hostname: String,
    /// The sender's time zone, in hours west of UTC. Python shifts what it shows by the difference to its own zone,
    /// although `timestamp` is the same moment everywhere; so a sender tells its zone, and a reader here ignores it.
    pub utcoffset: f64,
    /// The sender's process; 0 when it does not say.
    pub pid: u32,
    /// The sender's [`LamportClock`](super::LamportClock); 0 when it does not say. That of [`EventKind::TaskSent`]
    /// orders nothing: producers do not hear other clocks.
    pub clock: u64,
    /// When.
    pub timestamp: Timestamp,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// A worker begins to listen.
    WorkerOnline(Heartbeat),
    /// A worker lives.
    WorkerHeartbeat(Heartbeat),
    /// A worker ends.
    WorkerOffline(Heartbeat),
    /// A worker stands for election.
    WorkerElect {
        /// The election.
        id: String,
        /// What the winner is to do: `task`.
        topic: String,
        /// With what: a signature.
        action: Json,
    },
    /// A worker has seen that another one stands.
    WorkerElectAck {
        /// The election.
        id: String,
    },
    /// A producer sent a task.
    TaskSent(Box<Sent>),
    /// A worker took a task.
    TaskReceived(Box<Received>),
    /// A task began.
    TaskStarted {
        /// The task's id.
        uuid: String,
    },
    /// A task returned.
    TaskSucceeded {
        /// The task's id.
        uuid: String,
        /// The value as Python prints it.
        result: String,
        /// Seconds; `None` when it ended before its worker was lost.
        runtime: Option<f64>,
    },
    /// A task failed.
    TaskFailed {
        /// The task's id.
        uuid: String,
        /// The error as Python prints it.
        exception: String,
        /// Where it came from; absent for a task nobody knows.
        traceback: Option<String>,
    },
    /// A task was refused, or is to run elsewhere.
    TaskRejected {
        /// The task's id.
        uuid: String,
        /// It goes back to its queue.
        requeue: bool,
    },
    /// A task was revoked or had expired.
    TaskRevoked {
        /// The task's id.
        uuid: String,
        /// It was stopped while it ran.
        terminated: bool,
        /// The signal that stopped it.
        signum: Option<i32>,
        /// Its time to expire had passed.
        expired: bool,
    },
    /// A task is to be tried again.
    TaskRetried {
        /// The task's id.
        uuid: String,
        /// The error as Python prints it.
        exception: String,
        /// Where it came from.
        traceback: Option<String>,
    },
    /// A task was stopped since its worker shut down or lost the broker.
    TaskCancelled {
        /// The task's id.
        uuid: String,
    },
    /// Anything else: an application's own events, which become states, and those of a later Celery.
    Other {
        /// The type: `task-progress`.
        name: String,
        /// All fields but those of every event.
        fields: JsonMap,
    },
}

/// How a worker stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    /// The next heartbeat comes after so many seconds; the worker counts as gone when twice as many have passed.
    pub freq: f64,
    /// What it does; a heartbeat that was asked for leaves it out.
    pub load: Option<Load>,
    /// What it is.
    pub software: Software,
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// How many tasks it runs.
    pub active: u64,
    /// How many it has run.
    pub processed: u64,
    /// The load averages of its machine over 1, 5 and 15 minutes.
    pub loadavg: [f64; 3],
}

/// What a worker is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Software {
    /// Its name: `py-celery`.
    pub ident: String,
    /// Its version.
    pub version: String,
    /// Its operating system: `Linux`.
    pub system: String,
}

/// A task that was sent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sent {
    /// The task's id.
    pub uuid: String,
    /// The first task of the workflow.
    pub root_id: Option<String>,
    /// The task that sent it.
    pub parent_id: Option<String>,
    /// The task's name.
    pub name: String,
    /// The positional arguments as Python prints them.
    pub args: String,
    /// The named arguments as Python prints them.
    pub kwargs: String,
    /// Retries made so far.
    pub retries: u32,
    /// Not before this time.
    pub eta: Option<Timestamp>,
    /// Not after this time.
    pub expires: Option<Timestamp>,
    /// The queue.
    pub queue: String,
    /// The exchange, empty for a plain queue.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
}

/// A task that a worker took.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Received {
    /// The task's id.
    pub uuid: String,
    /// The task's name.
    pub name: String,
    /// The positional arguments as Python prints them.
    pub args: String,
    /// The named arguments as Python prints them.
    pub kwargs: String,
    /// The first task of the workflow.
    pub root_id: Option<String>,
    /// The task that sent it.
    pub parent_id: Option<String>,
    /// Retries made so far.
    pub retries: u32,
    /// Not before this time.
    pub eta: Option<Timestamp>,
    /// Not after this time.
    pub expires: Option<Timestamp>,
}

/// Events as they travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventMessage {
    /// Under what they are published; on Redis a part of the channel's name.
    pub routing_key: String,
    /// What is published.
    pub message: RawMessage,
}

/// Puts events into messages, in order: those of tasks together, up to [`BATCH_MAX`], the others alone.
#[must_use]
pub fn encode(events: &[Event]) -> Vec<EventMessage> {
    let mut messages = Vec::new();
    let mut rest = events;
    while let Some(first) = rest.first() {
        let together = if first.kind.is_batched() {
            let alike = |event: &&Event| event.kind.is_batched() && event.hostname == first.hostname;
            rest.iter().take(BATCH_MAX).take_while(alike).count()
        } else {
            1
        };
        let (batch, others) = rest.split_at(together);
        rest = others;
        let mut body = String::with_capacity(256 * batch.len());
        let routing_key = if first.kind.is_batched() {
            body.push('[');
            for (index, event) in batch.iter().enumerate() {
                if index > 0 {
                    body.push_str(", ");
                }
                event.write(&mut body);
            }
            body.push(']');
            MULTI.to_owned()
        } else {
            first.write(&mut body);
            first.kind.routing_key()
        };
        let address =
            Address { exchange: EXCHANGE, routing_key: &routing_key, mode: DeliveryMode::Transient };
        let hostname = |headers: &mut writer::Object<'_>| headers.text("hostname", &first.hostname);
        let message = letter::write(address, &letter::fresh_tag(), hostname, body);
        messages.push(EventMessage { routing_key, message });
    }
    messages
}

/// Takes the events out of a message. One that cannot be read does not keep the others from being so.
///
/// # Errors
/// The message cannot be read at all.
pub fn decode(raw: &RawMessage) -> Result<Vec<Result<Event, DecodeError>>, DecodeError> {
    let body = letter::read(raw)?.body;
    match body.as_str().as_bytes().first() {
        Some(b'[') => {
            let items = body.array_items().map_err(|why| DecodeError::invalid("body", why))?;
            Ok(items.iter().map(Event::read).collect())
        }
        _ => Ok(vec![Event::read(&body)]),
    }
}

/// The routing key of a batch.
const MULTI: &str = "task.multi";
/// The version of the protocol of elections.
const ELECTION_VERSION: u8 = 1;

impl EventKind {
    /// An event of the application's own, such as `task-progress`, with the task's id under `uuid`.
    ///
    /// # Errors
    /// The name is none that monitors read, or one of the fields would break them.
    pub fn custom(name: &str, fields: JsonMap) -> Result<Self, DecodeError> {
        let wrong = |why: String| Err(DecodeError::invalid(format!("event {name}"), why));
        match name.split_once('-') {
            Some(("task", custom)) if !custom.is_empty() => {
                if fields.get("uuid").and_then(Json::as_string).is_none_or(|uuid| uuid.is_empty()) {
                    return wrong("an event of a task needs the task's id under uuid".to_owned());
                }
            }
            Some((group, rest)) if !group.is_empty() && !rest.is_empty() => {}
            _ => return wrong("a name has a group and a word: task-progress".to_owned()),
        }
        // Attributes of Celery's `Worker` that cannot be set; Flower and `State` raise where an event names one.
        let taken = ["id", "alive", "status_string", "heartbeat_expires"];
        let common = COMMON.iter().find(|field| fields.contains_key(field));
        let taken = taken.iter().find(|field| name.starts_with("worker-") && fields.contains_key(field));
        if let Some(field) = common.or(taken) {
            return wrong(format!("the field {field} is taken; give it another name"));
        }
        Ok(Self::Other { name: name.to_owned(), fields })
    }

    /// The type, as on the wire: `task-received`.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::WorkerOnline(_) => "worker-online",
            Self::WorkerHeartbeat(_) => "worker-heartbeat",
            Self::WorkerOffline(_) => "worker-offline",
            Self::WorkerElect { .. } => "worker-elect",
            Self::WorkerElectAck { .. } => "worker-elect-ack",
            Self::TaskSent(_) => "task-sent",
            Self::TaskReceived(_) => "task-received",
            Self::TaskStarted { .. } => "task-started",
            Self::TaskSucceeded { .. } => "task-succeeded",
            Self::TaskFailed { .. } => "task-failed",
            Self::TaskRejected { .. } => "task-rejected",
            Self::TaskRevoked { .. } => "task-revoked",
            Self::TaskRetried { .. } => "task-retried",
            Self::TaskCancelled { .. } => "task-cancelled",
            Self::Other { name, .. } => name,
        }
    }

    /// The id of the task it is about.
    #[must_use]
    pub fn task_id(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::TaskSent(sent) => Some(Cow::Borrowed(&sent.uuid)),
            Self::TaskReceived(received) => Some(Cow::Borrowed(&received.uuid)),
            Self::TaskStarted { uuid }
            | Self::TaskSucceeded { uuid, .. }
            | Self::TaskFailed { uuid, .. }
            | Self::TaskRejected { uuid, .. }
            | Self::TaskRevoked { uuid, .. }
            | Self::TaskRetried { uuid, .. }
            | Self::TaskCancelled { uuid } => Some(Cow::Borrowed(uuid)),
            Self::Other { fields, .. } => fields.get("uuid")?.as_string(),
            _ => None,
        }
    }

    /// Under what it is published by itself.
    fn routing_key(&self) -> String {
        self.name().replace('-', ".")
    }

    /// As Celery's workers: what they tell of tasks goes in batches. Producers send theirs at once.
    fn is_batched(&self) -> bool {
        self.name().starts_with("task-") && !matches!(self, Self::TaskSent(_))
    }
}

/// The fields of every event.
const COMMON: [&str; 6] = ["hostname", "utcoffset", "pid", "clock", "timestamp", "type"];

impl Event {
    fn read(document: &Json) -> Result<Self, DecodeError> {
        let fields = Fields::of("event", document)?;
        let name = fields.text("type")?;
        let timestamp = fields.float("timestamp", "seconds since 1970")?;
        let timestamp = timestamp.and_then(date::from_epoch_seconds);
        Ok(Self {
            hostname: fields.text("hostname")?,
            utcoffset: fields.float("utcoffset", "hours").ok().flatten().unwrap_or_default(),
            pid: fields.optional("pid", "a process id").ok().flatten().unwrap_or_default(),
            // Python counts without end; what is past our numbers orders nothing.
            clock: fields.optional("clock", "a number").ok().flatten().unwrap_or_default(),
            timestamp: timestamp.ok_or_else(|| {
                DecodeError::invalid(
                    "event.timestamp",
                    "expected seconds since 1970, as time.time() has them",
                )
            })?,
            kind: EventKind::read(name, fields)?,
        })
    }

    fn write(&self, out: &mut String) {
        let mut object = writer::Object::new(out);
        object.text("hostname", &self.hostname);
        object.float("utcoffset", self.utcoffset);
        object.integer("pid", self.pid);
        object.integer("clock", self.clock);
        self.kind.write(&mut object);
        object.float("timestamp", date::epoch_seconds(self.timestamp));
        object.text("type", self.kind.name());
        object.end();
    }
}

impl EventKind {
    fn read(name: String, fields: Fields) -> Result<Self, DecodeError> {
        let uuid = || fields.text("uuid");
        let shown = |key| fields.loose_text(key).unwrap_or_default();
        let flag = |key| fields.optional::<bool>(key, "a boolean").map(Option::unwrap_or_default);
        Ok(match &*name {
            "worker-online" => Self::WorkerOnline(Heartbeat::read(&fields)?),
            "worker-heartbeat" => Self::WorkerHeartbeat(Heartbeat::read(&fields)?),
            "worker-offline" => Self::WorkerOffline(Heartbeat::read(&fields)?),
            "worker-elect" => Self::WorkerElect {
                id: fields.text("id")?,
                topic: fields.text("topic")?,
                action: fields.json("action"),
            },
            "worker-elect-ack" => Self::WorkerElectAck { id: fields.text("id")? },
            "task-sent" => Self::TaskSent(Box::new(Sent {
                uuid: uuid()?,
                root_id: fields.optional_text("root_id")?,
                parent_id: fields.optional_text("parent_id")?,
                name: shown("name"),
                args: shown("args"),
                kwargs: shown("kwargs"),
                retries: retries(&fields)?,
                eta: fields.time("eta")?,
                expires: fields.time("expires")?,
                queue: shown("queue"),
                exchange: shown("exchange"),
                routing_key: shown("routing_key"),
            })),
            "task-received" => Self::TaskReceived(Box::new(Received {
                uuid: uuid()?,
                name: shown("name"),
                args: shown("args"),
                kwargs: shown("kwargs"),
                root_id: fields.optional_text("root_id")?,
                parent_id: fields.optional_text("parent_id")?,
                retries: retries(&fields)?,
                eta: fields.time("eta")?,
                expires: fields.time("expires")?,
            })),
            "task-started" => Self::TaskStarted { uuid: uuid()? },
            "task-succeeded" => Self::TaskSucceeded {
                uuid: uuid()?,
                result: shown("result"),
                runtime: fields.float("runtime", "seconds")?,
            },
            "task-failed" => Self::TaskFailed {
                uuid: uuid()?,
                exception: shown("exception"),
                traceback: fields.loose_text("traceback"),
            },
            "task-rejected" => Self::TaskRejected { uuid: uuid()?, requeue: flag("requeue")? },
            "task-revoked" => Self::TaskRevoked {
                uuid: uuid()?,
                terminated: flag("terminated")?,
                // A signal may be named; its number is all that is shown.
                signum: fields.optional("signum", "a number").ok().flatten(),
                expired: flag("expired")?,
            },
            "task-retried" => Self::TaskRetried {
                uuid: uuid()?,
                exception: shown("exception"),
                traceback: fields.loose_text("traceback"),
            },
            "task-cancelled" => Self::TaskCancelled { uuid: uuid()? },
            _ => {
                let mut map = fields.into_map();
                map.retain(|key, _| !COMMON.contains(&key));
                Self::Other { name, fields: map }
            }
        })
    }

    /// The fields that are not of every event, in Celery's order.
    fn write(&self, object: &mut writer::Object<'_>) {
        match self {
            Self::WorkerOnline(beat) | Self::WorkerHeartbeat(beat) | Self::WorkerOffline(beat) => {
                beat.write(object);
            }
            Self::WorkerElect { id, topic, action } => {
                object.text("id", id);
                object.text("topic", topic);
                object.raw("action", action.as_str());
                object.integer("cver", ELECTION_VERSION);
            }
            Self::WorkerElectAck { id } => object.text("id", id),
            Self::TaskSent(sent) => {
                object.text("uuid", &sent.uuid);
                object.optional_text("root_id", sent.root_id.as_deref());
                object.optional_text("parent_id", sent.parent_id.as_deref());
                object.text("name", &sent.name);
                object.text("args", &sent.args);
                object.text("kwargs", &sent.kwargs);
                object.integer("retries", sent.retries);
                object.time("eta", sent.eta);
                object.time("expires", sent.expires);
                object.text("queue", &sent.queue);
                object.text("exchange", &sent.exchange);
                object.text("routing_key", &sent.routing_key);
            }
            Self::TaskReceived(received) => {
                object.text("uuid", &received.uuid);
                object.text("name", &received.name);
                object.text("args", &received.args);
                object.text("kwargs", &received.kwargs);
                object.optional_text("root_id", received.root_id.as_deref());
                object.optional_text("parent_id", received.parent_id.as_deref());
                object.integer("retries", received.retries);
                object.time("eta", received.eta);
                object.time("expires", received.expires);
            }
            Self::TaskStarted { uuid } | Self::TaskCancelled { uuid } => object.text("uuid", uuid),
            Self::TaskSucceeded { uuid, result, runtime } => {
                object.text("uuid", uuid);
                object.text("result", result);
                match runtime {
                    Some(runtime) => object.float("runtime", *runtime),
                    None => object.raw("runtime", "null"),
                }
            }
            Self::TaskFailed { uuid, exception, traceback } => {
                object.text("uuid", uuid);
                object.text("exception", exception);
                // Celery leaves it out where there is none.
                if let Some(traceback) = traceback {
                    object.text("traceback", traceback);
                }
            }
            Self::TaskRejected { uuid, requeue } => {
                object.text("uuid", uuid);
                object.boolean("requeue", *requeue);
            }
            Self::TaskRevoked { uuid, terminated, signum, expired } => {
                object.text("uuid", uuid);
                object.boolean("terminated", *terminated);
                match signum {
                    Some(signum) => object.integer("signum", *signum),
                    None => object.raw("signum", "null"),
                }
                object.boolean("expired", *expired);
            }
            Self::TaskRetried { uuid, exception, traceback } => {
                object.text("uuid", uuid);
                object.text("exception", exception);
                object.optional_text("traceback", traceback.as_deref());
            }
            Self::Other { fields, .. } => {
                for (key, value) in fields {
                    object.raw(key, value.as_str());
                }
            }
        }
    }
}

impl Heartbeat {
    fn read(fields: &Fields) -> Result<Self, DecodeError> {
        let load = if fields.json("active").is_null() {
            None
        } else {
            Some(Load {
                active: fields.optional("active", "a number")?.unwrap_or_default(),
                processed: fields.optional("processed", "a number")?.unwrap_or_default(),
                loadavg: fields.optional("loadavg", "three numbers").ok().flatten().unwrap_or_default(),
            })
        };
        let shown = |key| fields.loose_text(key).unwrap_or_default();
        Ok(Self {
            freq: fields.float("freq", "seconds")?.unwrap_or_default(),
            load,
            software: Software {
                ident: shown("sw_ident"),
                version: shown("sw_ver"),
                system: shown("sw_sys"),
            },
        })
    }

    fn write(&self, object: &mut writer::Object<'_>) {
        match &self.load {
            Some(load) => {
                object.float("freq", self.freq);
                object.integer("active", load.active);
                object.integer("processed", load.processed);
                let loadavg = object.key("loadavg");
                for (index, average) in load.loadavg.iter().enumerate() {
                    loadavg.push_str(if index == 0 { "[" } else { ", " });
                    writer::float(loadavg, *average);
                }
                loadavg.push(']');
            }
            // As Celery writes the answer to the command, a whole number without a fraction.
            None => writer::seconds(object.key("freq"), Some(self.freq)),
        }
        object.text("sw_ident", &self.software.ident);
        object.text("sw_ver", &self.software.version);
        object.text("sw_sys", &self.software.system);
    }
}

fn retries(fields: &Fields) -> Result<u32, DecodeError> {
    fields.optional("retries", "a number of retries").map(Option::unwrap_or_default)
}
