//! Every setting under Celery's name, with its meaning, unit and default.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::id::QueueName;

/// The settings of an application. Names are Celery's where Celery has the setting.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The queue of a task that no route sends elsewhere. Default `celery`.
    pub task_default_queue: QueueName,
    /// The priority of a task that names none: 0 is consumed first, 9 last. Default 0.
    pub task_default_priority: u8,
    /// Where tasks go by name; the first match wins, exact names before globs. Default none.
    pub task_routes: Vec<Route>,
    /// Whether a message is acknowledged after its task ended, so that a lost worker's task runs again. Default true;
    /// Celery's is false. With false a task runs at most once, and a lost worker's task ends in FAILURE.
    pub task_acks_late: bool,
    /// Whether results are not kept, unless the task or the call says otherwise. Default false.
    pub task_ignore_result: bool,
    /// Whether FAILURE is stored even where results are ignored. Default false.
    pub task_store_errors_even_if_ignored: bool,
    /// Whether STARTED is stored when a task begins, one more write for each. Default false.
    pub task_track_started: bool,
    /// The hard time limit of a task that names none. Default none.
    pub task_time_limit: Option<Duration>,
    /// The soft time limit of a task that names none. Default none.
    pub task_soft_time_limit: Option<Duration>,
    /// How often a task may be delivered before it is put with the dead letters: a worker that dies with it counts, a
    /// hand-back at shutdown does not. Default 3.
    pub task_max_deliveries: u32,
    /// The bound on one message's body, and on a result. Default 16 MiB.
    pub task_body_bytes_max: usize,
    /// How long results, logs and steps of finished tasks are kept; `None` for ever. Default one day.
    pub result_expires: Option<Duration>,
    /// Whether results tell name, arguments, worker, retries and queue too. Default false.
    pub result_extended: bool,
    /// On Redis, what goes before every key and channel but the results': `global_keyprefix` of Celery's
    /// `broker_transport_options`, verbatim. A cluster needs one with a hash tag, as `{celery}:`. Default none.
    pub global_keyprefix: String,
    /// On Redis, what goes before the results': `global_keyprefix` of Celery's `result_backend_transport_options`. In a
    /// cluster it must have the same hash tag. Default none.
    pub result_keyprefix: String,
    /// How long a worker's hold on a message lasts without being renewed; it is renewed at a third of this. A crashed
    /// worker's tasks start elsewhere after this and `worker_restore_interval`; those of one that was killed while it shut
    /// down after 5 s, if that is less. Celery's `visibility_timeout`. Default 20 s.
    pub visibility_timeout: Duration,
    /// How many tasks a worker runs at once. Default: the number of cores.
    pub worker_concurrency: usize,
    /// How often at least a worker looks for expired leases, unfired chords and expired results. Default 5 s.
    pub worker_restore_interval: Duration,
    /// How often a worker says that it lives. One that was not heard of for three times as long and a second is listed
    /// no more; leases do not depend on it. Default 2 s.
    pub worker_heartbeat_interval: Duration,
    /// How long a warm shutdown waits for running tasks before it hands them back. Celery's
    /// `worker_soft_shutdown_timeout`. Default 30 s.
    pub worker_shutdown_timeout: Duration,
    /// How long a task that is told to stop may take to do so, before it is dropped. Default 5 s.
    pub worker_revoke_grace: Duration,
    /// After how long a message whose task a worker did not know is tried again. Default 5 s.
    pub worker_unknown_task_delay: Duration,
    /// How long a worker that runs another runtime's tasks goes on trying a message whose task no worker that lives knows,
    /// before the task fails as `NotRegistered`. Default 10 s.
    pub worker_unknown_task_timeout: Duration,
    /// How long a task of another runtime may wait for a process of that, where none can be had. One that has not begun then
    /// goes back to its queue, and the worker takes none in its stead until there is a process again; one whose end cannot
    /// be stored is given up, and found by whoever finds its lease expired. Default 60 s.
    pub worker_seat_timeout: Duration,
    /// Bounds of what tasks may write to their logs.
    pub stream: StreamConfig,
}

/// Bounds and timing of streams.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StreamConfig {
    /// Tokens written within this time share one record. Default 20 ms.
    pub token_interval: Duration,
    /// Tokens share a record up to this many bytes. Default 1 KiB.
    pub token_bytes_max: usize,
    /// The bound on one record's data. Default 256 KiB.
    pub record_bytes_max: usize,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            token_interval: Duration::from_millis(20),
            token_bytes_max: 1024,
            record_bytes_max: 256 * 1024,
        }
    }
}

/// Sends tasks to a queue by name: Celery's `task_routes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// A task name, or a glob: `*` stands for any text.
    pub pattern: String,
    /// The queue; `None` leaves the default.
    pub queue: Option<QueueName>,
    /// The priority; `None` leaves the default.
    pub priority: Option<u8>,
}

impl Route {
    /// Tasks named `pattern` go to `queue`.
    pub fn to(pattern: impl Into<String>, queue: impl Into<QueueName>) -> Self {
        Self { pattern: pattern.into(), queue: Some(queue.into()), priority: None }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            task_default_queue: QueueName::from("celery"),
            task_default_priority: 0,
            task_routes: Vec::new(),
            task_acks_late: true,
            task_ignore_result: false,
            task_store_errors_even_if_ignored: false,
            task_track_started: false,
            task_time_limit: None,
            task_soft_time_limit: None,
            task_max_deliveries: 3,
            task_body_bytes_max: 16 << 20,
            result_expires: Some(Duration::from_secs(24 * 3600)),
            result_extended: false,
            global_keyprefix: String::new(),
            result_keyprefix: String::new(),
            visibility_timeout: Duration::from_secs(20),
            worker_concurrency: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            worker_restore_interval: Duration::from_secs(5),
            worker_heartbeat_interval: Duration::from_secs(2),
            worker_shutdown_timeout: Duration::from_secs(30),
            worker_revoke_grace: Duration::from_secs(5),
            worker_unknown_task_delay: Duration::from_secs(5),
            worker_unknown_task_timeout: Duration::from_secs(10),
            worker_seat_timeout: Duration::from_secs(60),
            stream: StreamConfig::default(),
        }
    }
}

impl Config {
    /// The settings for people to read, times in seconds. None of them is a secret: URLs are no part of them.
    #[must_use]
    pub fn shown(&self) -> Map<String, Value> {
        // Taken apart, so that a new setting is not forgotten here.
        let Self {
            task_default_queue,
            task_default_priority,
            task_routes,
            task_acks_late,
            task_ignore_result,
            task_store_errors_even_if_ignored,
            task_track_started,
            task_time_limit,
            task_soft_time_limit,
            task_max_deliveries,
            task_body_bytes_max,
            result_expires,
            result_extended,
            global_keyprefix,
            result_keyprefix,
            visibility_timeout,
            worker_concurrency,
            worker_restore_interval,
            worker_heartbeat_interval,
            worker_shutdown_timeout,
            worker_revoke_grace,
            worker_unknown_task_delay,
            worker_unknown_task_timeout,
            worker_seat_timeout,
            stream: StreamConfig { token_interval, token_bytes_max, record_bytes_max },
        } = self;
        let seconds = |time: &Duration| json!(time.as_secs_f64());
        let limit = |time: &Option<Duration>| time.as_ref().map_or(Value::Null, seconds);
        let routes = task_routes.iter().map(|Route { pattern, queue, priority }| {
            json!({ "task": pattern, "queue": queue, "priority": priority })
        });
        [
            ("task_default_queue", json!(task_default_queue)),
            ("task_default_priority", json!(task_default_priority)),
            ("task_routes", routes.collect()),
            ("task_acks_late", json!(task_acks_late)),
            ("task_ignore_result", json!(task_ignore_result)),
            ("task_store_errors_even_if_ignored", json!(task_store_errors_even_if_ignored)),
            ("task_track_started", json!(task_track_started)),
            ("task_time_limit", limit(task_time_limit)),
            ("task_soft_time_limit", limit(task_soft_time_limit)),
            ("task_max_deliveries", json!(task_max_deliveries)),
            ("task_body_bytes_max", json!(task_body_bytes_max)),
            ("result_expires", limit(result_expires)),
            ("result_extended", json!(result_extended)),
            ("global_keyprefix", json!(global_keyprefix)),
            ("result_keyprefix", json!(result_keyprefix)),
            ("visibility_timeout", seconds(visibility_timeout)),
            ("worker_concurrency", json!(worker_concurrency)),
            ("worker_restore_interval", seconds(worker_restore_interval)),
            ("worker_heartbeat_interval", seconds(worker_heartbeat_interval)),
            ("worker_shutdown_timeout", seconds(worker_shutdown_timeout)),
            ("worker_revoke_grace", seconds(worker_revoke_grace)),
            ("worker_unknown_task_delay", seconds(worker_unknown_task_delay)),
            ("worker_unknown_task_timeout", seconds(worker_unknown_task_timeout)),
            ("worker_seat_timeout", seconds(worker_seat_timeout)),
            ("stream.token_interval", seconds(token_interval)),
            ("stream.token_bytes_max", json!(token_bytes_max)),
            ("stream.record_bytes_max", json!(record_bytes_max)),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}
