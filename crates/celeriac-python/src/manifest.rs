//! What the zygote tells of the application when it has imported it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use celeriac::TaskOptions;
use celeriac::task::{ForeignTask, KnownTask};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::signature;

/// What an address begins with that leads to a store of celeriac's.
pub(crate) const OURS: &str = "celeriac+";

/// How long a child may take to be ready, where the application does not say.
const BIRTH_PATIENCE: Duration = Duration::from_secs(60);

/// What the application is.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// The version of the frames.
    pub version: u32,
    /// Celery's version.
    pub celery: String,
    /// Python's version.
    pub python: String,
    /// The application, as Celery's banner names it.
    pub app: String,
    /// Where messages are.
    pub broker_url: Option<String>,
    /// Whether the application says where messages are; the address is Celery's default where it does not.
    #[serde(default = "yes")]
    pub names_broker: bool,
    /// Whether it says where results are; Celery keeps none where it does not.
    #[serde(default = "yes")]
    pub names_backend: bool,
    /// Where it says itself that messages are, where that is a store of celeriac's, and its processes reach it otherwise.
    #[serde(default)]
    pub own_broker: Option<String>,
    /// Where results are, when that is a text.
    pub result_backend: Option<String>,
    /// The same without secrets.
    pub result_backend_shown: String,
    /// Whether its results can be stored by somebody else: a plain Redis backend with JSON.
    #[serde(default)]
    pub leaves_results: bool,
    /// Options of the broker.
    #[serde(default)]
    pub broker_transport_options: Map<String, Value>,
    /// Options of the result backend.
    #[serde(default)]
    pub result_backend_transport_options: Map<String, Value>,
    /// The queues that a worker of it consumes from.
    pub queues: Vec<String>,
    /// Where tasks go by name, as far as that can be told.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// How long a child may take to be ready, in seconds, where the application says so itself.
    #[serde(default)]
    pub birth_patience: Option<f64>,
    /// Its settings, those that concern a worker.
    pub conf: Map<String, Value>,
    /// Its tasks, with what they say of themselves.
    pub tasks: BTreeMap<String, Map<String, Value>>,
    /// Why tasks, or parameters of theirs, are not described, where they were to be.
    #[serde(default)]
    pub undescribed: BTreeMap<String, String>,
    /// The names of its schedules.
    #[serde(default)]
    pub beat_schedule: Vec<String>,
}

fn yes() -> bool {
    true
}

/// Where tasks go.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct Route {
    /// A task's name, or a glob.
    pub pattern: String,
    /// The queue.
    pub queue: String,
    /// The priority.
    pub priority: Option<u8>,
}

impl Manifest {
    /// The tasks as the worker wants them.
    #[must_use]
    pub fn foreign_tasks(&self) -> BTreeMap<Arc<str>, Arc<ForeignTask>> {
        let tasks = self.tasks.iter().map(|(name, told)| {
            let task = task(name, told);
            (Arc::clone(&task.name), Arc::new(task))
        });
        tasks.collect()
    }

    /// The tasks as those want them who send them by name: with the queue of their own, and what they take.
    pub fn known_tasks(&self) -> impl Iterator<Item = KnownTask> {
        self.tasks.iter().map(|(name, told)| {
            let ForeignTask { mut options, .. } = task(name, told);
            options.queue = told.get("queue").and_then(Value::as_str).map(ToOwned::to_owned);
            let description = told.get("signature").and_then(|told| signature::read(name, told));
            KnownTask { name: Box::from(name.as_str()), options, description }
        })
    }

    /// Whether its results are kept in the worker's own store, which its processes reach through the supervisor alone.
    #[must_use]
    pub fn results_are_ours(&self) -> bool {
        self.result_backend.as_deref().is_some_and(|url| url.starts_with(OURS))
    }

    /// Whether its own processes reach the worker's store, of celeriac's own, through a server.
    #[must_use]
    pub fn reaches_a_server(&self) -> bool {
        let server = |url: &str| url.starts_with("celeriac+http://") || url.starts_with("celeriac+https://");
        self.own_broker.as_deref().is_some_and(server)
    }

    /// How long a child may take to be ready: `worker_proc_alive_timeout` where the application has set it. Celery's own
    /// default is made for processes that import nothing any more, and too short for some that do.
    #[must_use]
    pub fn birth_patience(&self) -> Duration {
        let said = self.birth_patience.filter(|seconds| *seconds > 0.0);
        said.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(BIRTH_PATIENCE)
    }

    /// A setting that is yes or no.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.conf.get(name).and_then(Value::as_bool)
    }

    /// A setting that is a time, in seconds there.
    #[must_use]
    pub fn seconds(&self, name: &str) -> Option<Duration> {
        seconds(self.conf.get(name))
    }

    /// A setting that is a number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.conf.get(name).and_then(Value::as_u64)
    }

    /// A setting that is a text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.conf.get(name).and_then(Value::as_str)
    }
}

fn seconds(value: Option<&Value>) -> Option<Duration> {
    let seconds = value.and_then(Value::as_f64).filter(|seconds| *seconds > 0.0)?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn task(name: &str, told: &Map<String, Value>) -> ForeignTask {
    let flag = |name: &str| told.get(name).and_then(Value::as_bool);
    let number = |name: &str| told.get(name).and_then(Value::as_u64);
    let mut options = TaskOptions::default();
    options.max_retries = number("max_retries").and_then(|retries| u32::try_from(retries).ok());
    options.default_retry_delay = seconds(told.get("default_retry_delay")).unwrap_or_default();
    options.time_limit = seconds(told.get("time_limit"));
    options.soft_time_limit = seconds(told.get("soft_time_limit"));
    options.acks_late = flag("acks_late");
    options.ignore_result = flag("ignore_result");
    options.track_started = flag("track_started");
    options.priority = number("priority").and_then(|priority| u8::try_from(priority).ok());
    options.expires = seconds(told.get("expires"));
    options.rate_limit = match told.get("rate_limit") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    }
    .filter(|text| !matches!(text.trim(), "" | "0"))
    .and_then(|text| match text.parse() {
        Ok(limit) => Some(limit),
        Err(why) => {
            tracing::warn!(task = name, %why, "rate_limit is left out");
            None
        }
    });
    let mut task = ForeignTask::new(name, options);
    task.acks_on_failure = flag("acks_on_failure").unwrap_or(true);
    task.acks_on_timeout = flag("acks_on_timeout").unwrap_or(true);
    task.reject_on_worker_lost = flag("reject_on_worker_lost").unwrap_or(false);
    task.retry_on_worker_lost = flag("retry_on_worker_lost").unwrap_or(false);
    task
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_read_with_what_they_say() {
        let told = serde_json::json!({
            "acks_late": true, "time_limit": 1.5, "rate_limit": "10/m", "acks_on_timeout": false,
            "reject_on_worker_lost": true, "max_retries": 5, "soft_time_limit": 0, "expires": "repr",
        });
        let task = task("app.add", told.as_object().unwrap());
        assert_eq!(task.options.acks_late, Some(true));
        assert_eq!(task.options.time_limit, Some(Duration::from_millis(1500)));
        assert_eq!(task.options.soft_time_limit, None);
        assert_eq!(task.options.rate_limit.unwrap().to_string(), "10/m");
        assert_eq!((task.options.max_retries, task.options.expires), (Some(5), None));
        assert!(task.reject_on_worker_lost && task.acks_on_failure && !task.acks_on_timeout);
    }

    #[test]
    fn senders_know_the_queue_of_a_task_and_what_it_takes() {
        let told = serde_json::json!({
            "version": 1, "celery": "5.7.0", "python": "3.11", "app": "a", "broker_url": null, "result_backend": null,
            "result_backend_shown": "", "queues": [], "conf": {},
            "tasks": {
                "a.plain": { "queue": null },
                "a.told": { "queue": "gpu", "priority": 3, "signature": {
                    "summary": "Adds.", "details": "", "more_args": false, "more_kwargs": true, "checked": true,
                    "parameters": [
                        { "name": "x", "kind": "positional", "required": true, "schema": { "type": "integer" } },
                        { "name": "who", "kind": "named", "required": false, "schema": {}, "loose": true },
                    ],
                } },
                "a.unheard_of": { "signature": { "parameters": 7 } },
            },
        });
        let manifest: Manifest = serde_json::from_value(told).unwrap();
        assert!(manifest.names_broker, "as one says that knows of no other");
        let tasks: Vec<KnownTask> = manifest.known_tasks().collect();
        assert_eq!((tasks[0].options.queue.as_deref(), &tasks[0].description), (None, &None));
        assert_eq!((tasks[1].options.queue.as_deref(), tasks[1].options.priority), (Some("gpu"), Some(3)));
        let description = tasks[1].description.as_ref().unwrap();
        assert!(description.more_kwargs && description.checked && description.summary == "Adds.");
        let exact: Vec<bool> = description.parameters.iter().map(|parameter| parameter.exact).collect();
        assert_eq!(exact, [true, false]);
        assert_eq!(tasks[2].description, None, "what is not understood is left out");
    }
}
