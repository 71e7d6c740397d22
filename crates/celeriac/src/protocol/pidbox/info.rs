//! What workers tell of tasks, queues and themselves, in Celery's forms and order.

use serde::{Deserialize, Serialize};

use crate::protocol::Json;

/// A task that a worker holds, as in the answers to `active`, `reserved`, `scheduled` and `query_task`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// The task's id.
    pub id: String,
    /// The task's name.
    pub name: String,
    /// The positional arguments: a list, or as Python prints them where `safe` was asked for.
    pub args: Json,
    /// The named arguments: an object, or as Python prints them.
    pub kwargs: Json,
    /// The task's name again.
    #[serde(rename = "type")]
    pub task_type: String,
    /// The node name of the worker.
    pub hostname: String,
    /// When it began, in seconds since 1970.
    pub time_start: Option<f64>,
    /// Its message is acknowledged.
    pub acknowledged: bool,
    /// Where it came from.
    pub delivery_info: DeliveryInfo,
    /// The process that runs it.
    pub worker_pid: Option<u32>,
}

/// Where a task came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryInfo {
    /// The exchange, empty for a plain queue.
    pub exchange: String,
    /// The routing key: the queue for an empty exchange.
    pub routing_key: String,
    /// 0 is consumed first.
    pub priority: Option<u8>,
    /// Delivered before.
    pub redelivered: Option<bool>,
}

/// A task that waits for its time in a worker, as in the answer to `scheduled`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScheduledInfo {
    /// When: ISO 8601.
    pub eta: Option<String>,
    /// The priority of the worker's timer, not of the task.
    pub priority: u8,
    /// The task.
    pub request: TaskInfo,
}

/// The answer to `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReply {
    /// Ids of revoked tasks. Celery 5.5 reads a list too.
    pub revoked: Vec<String>,
    /// The clock.
    pub clock: u64,
}

/// A queue that a worker consumes from, as in the answer to `active_queues`: kombu's description of a queue, of which
/// Flower shows most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Its name.
    pub name: String,
    /// The exchange it is bound to.
    pub exchange: ExchangeInfo,
    /// Under what.
    pub routing_key: String,
    queue_arguments: Json,
    binding_arguments: Json,
    consumer_arguments: Json,
    durable: bool,
    exclusive: bool,
    auto_delete: bool,
    no_ack: bool,
    alias: Json,
    bindings: Vec<Json>,
    no_declare: Json,
    expires: Json,
    message_ttl: Json,
    max_length: Json,
    max_length_bytes: Json,
    max_priority: Json,
}

/// An exchange, as in [`QueueInfo`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExchangeInfo {
    /// Its name.
    pub name: String,
    /// `direct`, `topic` or `fanout`.
    #[serde(rename = "type")]
    pub exchange_type: String,
    arguments: Json,
    durable: bool,
    passive: bool,
    auto_delete: bool,
    delivery_mode: Json,
    no_declare: bool,
}

impl QueueInfo {
    /// A durable queue with a direct exchange of its own name: all that is consumed from here.
    #[must_use]
    pub fn direct(name: &str) -> Self {
        let null = Json::null;
        Self {
            name: name.to_owned(),
            exchange: ExchangeInfo {
                name: name.to_owned(),
                exchange_type: "direct".to_owned(),
                arguments: null(),
                durable: true,
                passive: false,
                auto_delete: false,
                delivery_mode: null(),
                no_declare: false,
            },
            routing_key: name.to_owned(),
            queue_arguments: null(),
            binding_arguments: null(),
            consumer_arguments: null(),
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_ack: false,
            alias: null(),
            bindings: Vec::new(),
            no_declare: null(),
            expires: null(),
            message_ttl: null(),
            max_length: null(),
            max_length_bytes: null(),
            max_priority: null(),
        }
    }
}
