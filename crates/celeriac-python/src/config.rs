//! The application's own configuration as celeriac's settings.

use std::time::Duration;

use celeriac::Config;
use celeriac::config::Route;

use crate::error::Result;
use crate::manifest::{Manifest, OURS};
use crate::ways::Ways;

/// What the application's configuration says of where things are.
#[derive(Debug, Clone, Default)]
pub struct FromApp {
    /// Where messages are.
    pub broker: Option<String>,
    /// Whether it was the application that said so, not Celery for want of anything better.
    pub names_broker: bool,
    /// Where results are, when celeriac can read them there.
    pub result_backend: Option<String>,
    /// What stands before the broker's keys.
    pub broker_prefix: String,
    /// What stands before the keys of results.
    pub result_prefix: String,
    /// How the broker is reached.
    pub to_broker: Ways,
    /// How the result backend is reached.
    pub to_results: Ways,
}

impl FromApp {
    /// The address of the broker, whoever names it, with what the application says beside it: `broker_use_ssl`, and the
    /// options for Sentinel.
    #[must_use]
    pub fn broker_address(&self, url: &str) -> String {
        self.to_broker.over(url)
    }

    /// The same for results: `redis_backend_use_ssl`, and the options for Sentinel.
    #[must_use]
    pub fn result_address(&self, url: &str) -> String {
        self.to_results.over(url)
    }

    /// The settings by which the application says more of the broker than its address.
    #[must_use]
    pub fn broker_settings(&self) -> &[&'static str] {
        self.to_broker.settings()
    }
}

/// Where the application says that things are. A result backend that only Python knows is left out: its results are
/// read there.
///
/// # Errors
/// A setting says of a server what cannot be done here.
pub fn from_app(manifest: &Manifest) -> Result<FromApp> {
    let readable = |url: &&String| {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        matches!(scheme, "redis" | "rediss" | "sentinel" | "valkey" | "valkeys")
    };
    Ok(FromApp {
        // Who asks a server for its store says nothing of where that store is.
        broker: manifest.broker_url.clone().filter(|url| !url.starts_with(OURS)),
        names_broker: manifest.names_broker,
        result_backend: manifest.result_backend.as_ref().filter(readable).cloned(),
        broker_prefix: prefix(&manifest.broker_transport_options),
        result_prefix: prefix(&manifest.result_backend_transport_options),
        to_broker: Ways::to_broker(manifest)?,
        to_results: Ways::to_results(manifest)?,
    })
}

fn prefix(options: &serde_json::Map<String, serde_json::Value>) -> String {
    options.get("global_keyprefix").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
}

/// Options of the broker that lay its keys out in another way than is known here, with their defaults.
const LAYOUT: &[(&str, &str)] = &[
    ("sep", "\"\\u0006\\u0016\""),
    ("unacked_key", "\"unacked\""),
    ("unacked_index_key", "\"unacked_index\""),
    ("unacked_mutex_key", "\"unacked_mutex\""),
    ("priority_steps", "[0,3,6,9]"),
    ("queue_order_strategy", "\"round_robin\""),
    ("fanout_prefix", "true"),
    ("fanout_patterns", "true"),
    ("ack_emulation", "true"),
];

/// The options of the broker that the application has set and that celeriac cannot follow: with them its workers and
/// Python's would not find each other's messages.
#[must_use]
pub fn foreign_layout(manifest: &Manifest) -> Vec<&'static str> {
    let default = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    let differs = |(name, known): &&(&'static str, &str)| {
        manifest
            .broker_transport_options
            .get(*name)
            .is_some_and(|value| Some(value) != default(known).as_ref())
    };
    LAYOUT.iter().filter(differs).map(|(name, _)| *name).collect()
}

/// Whether the application's results are to be in the store at `url`, in the very form that celeriac writes.
#[must_use]
pub fn leaves_results(manifest: &Manifest, url: &str) -> bool {
    let backend = manifest.result_backend.as_deref().and_then(place);
    manifest.leaves_results && backend.is_some() && backend == place(url)
}

/// Where a plain Redis is: credentials, host, port and database; `None` where that takes more to say.
fn place(url: &str) -> Option<(String, String, u16, u32)> {
    let rest = url.strip_prefix("redis://")?;
    if rest.contains('?') {
        return None;
    }
    let (credentials, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
    let (place, db) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (place, 6379),
    };
    let host = if host.is_empty() { "localhost" } else { host };
    let db = db.trim_matches('/');
    let db = if db.is_empty() { 0 } else { db.parse().ok()? };
    Some((credentials.to_owned(), host.to_owned(), port, db))
}

/// How long a Python task that is told to stop may take to do so, unless celeriac's own configuration says otherwise.
const REVOKE_GRACE: Duration = Duration::from_secs(1);

/// As Celery, a warm shutdown waits for what runs as long as it takes; a cold one does not.
const AS_LONG_AS_IT_TAKES: Duration = Duration::from_secs(365 * 24 * 3600);

/// Lays the application's settings over `config`, and names in warnings those that have no meaning here; `beats` says that
/// beat runs beside the worker.
#[must_use]
pub fn overlay(manifest: &Manifest, beats: bool, mut config: Config) -> Config {
    if let Some(queue) = manifest.text("task_default_queue") {
        config.task_default_queue = queue.into();
    }
    if let Some(priority) = manifest.number("task_default_priority") {
        config.task_default_priority = u8::try_from(priority).unwrap_or(9);
    }
    config.task_routes = manifest
        .routes
        .iter()
        .map(|route| Route {
            pattern: route.pattern.clone(),
            queue: Some(route.queue.as_str().into()),
            priority: route.priority,
        })
        .collect();
    // Celery's default is false, and what a Python application does not say means that.
    config.task_acks_late = manifest.flag("task_acks_late").unwrap_or(false);
    config.task_ignore_result = manifest.flag("task_ignore_result").unwrap_or(false);
    config.task_store_errors_even_if_ignored =
        manifest.flag("task_store_errors_even_if_ignored").unwrap_or(false);
    config.task_track_started = manifest.flag("task_track_started").unwrap_or(false);
    config.task_time_limit = manifest.seconds("task_time_limit");
    config.task_soft_time_limit = manifest.seconds("task_soft_time_limit");
    config.result_extended = manifest.flag("result_extended").unwrap_or(false);
    // None there means for ever, and so does 0.
    config.result_expires = manifest.seconds("result_expires");
    if let Some(concurrency) = manifest.number("worker_concurrency").filter(|concurrency| *concurrency > 0) {
        config.worker_concurrency = usize::try_from(concurrency).unwrap_or(1);
    }
    // A process that is told to stop and does not is killed soon: what it does meanwhile, such as a call to a language
    // model, is paid for.
    config.worker_revoke_grace = REVOKE_GRACE;
    config.worker_shutdown_timeout = AS_LONG_AS_IT_TAKES;
    for (setting, why) in unsupported(manifest, beats) {
        tracing::warn!(setting, why, "a setting of the application has no effect");
    }
    config
}

/// The settings that the application has made and that have no effect here, with why.
fn unsupported(manifest: &Manifest, beats: bool) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    let mut check = |given: bool, setting, why| {
        if given {
            found.push((setting, why));
        }
    };
    let set = |name: &str| manifest.conf.get(name).is_some_and(|value| !value.is_null());
    let own = |name: &str, default: &str| manifest.text(name).is_some_and(|value| value != default);
    check(
        own("worker_autoscaler", "celery.worker.autoscale:Autoscaler"),
        "worker_autoscaler",
        "the pool is scaled by the supervisor itself",
    );
    check(
        own("worker_consumer", "celery.worker.consumer:Consumer"),
        "worker_consumer",
        "messages are consumed by the supervisor, which is no Python",
    );
    check(set("worker_agent"), "worker_agent", "there is no agent");
    check(set("worker_timer"), "worker_timer", "timers are the supervisor's own");
    check(
        manifest.flag("worker_pool_restarts") == Some(true),
        "worker_pool_restarts",
        "children are replaced one by one, and a new application is a new worker",
    );
    check(set("worker_state_db"), "worker_state_db", "revoked tasks are kept in the store itself");
    check(
        manifest.flag("worker_direct") == Some(true),
        "worker_direct",
        "a worker has no queue of its own; give it one by -Q",
    );
    check(
        manifest.flag("worker_disable_rate_limits") == Some(true),
        "worker_disable_rate_limits",
        "rate limits are kept",
    );
    check(
        manifest.flag("worker_enable_remote_control") == Some(false),
        "worker_enable_remote_control",
        "remote control stays on",
    );
    check(
        manifest.flag("broker_use_ssl") == Some(true),
        "broker_use_ssl",
        "with Redis it is a dictionary, for Celery as well; or use a rediss:// address",
    );
    check(
        !beats && !manifest.beat_schedule.is_empty(),
        "beat_schedule",
        "this worker schedules nothing; start one with -B, or beat itself",
    );
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(options: &serde_json::Value) -> Manifest {
        let told = serde_json::json!({
            "version": 1, "celery": "5.7.0", "python": "3.11", "app": "a", "broker_url": "redis://h",
            "result_backend": "redis://h", "result_backend_shown": "redis://h", "queues": ["celery"], "conf": {},
            "tasks": {}, "broker_transport_options": options,
        });
        serde_json::from_value(told).unwrap()
    }

    #[test]
    fn another_layout_of_keys_is_named() {
        let ours = serde_json::json!({
            "visibility_timeout": 5, "global_keyprefix": "p:", "sep": "\u{6}\u{16}", "priority_steps": [0, 3, 6, 9],
        });
        let ours = manifest(&ours);
        assert!(foreign_layout(&ours).is_empty());
        assert_eq!(from_app(&ours).unwrap().broker_prefix, "p:");
        assert!(from_app(&ours).unwrap().names_broker);
        let theirs = serde_json::json!({ "sep": ":", "priority_steps": [0, 1, 2], "unacked_key": "unacked" });
        assert_eq!(foreign_layout(&manifest(&theirs)), ["sep", "priority_steps"]);
    }

    #[test]
    fn what_an_application_does_not_say_is_celery_s_default() {
        let config = overlay(&manifest(&serde_json::json!({})), false, Config::default());
        assert!(!config.task_acks_late, "acknowledged early");
        assert_eq!(config.result_expires, None);
        assert_eq!(config.worker_shutdown_timeout, AS_LONG_AS_IT_TAKES);
    }

    #[test]
    fn one_redis_is_known_by_its_place() {
        let same = |one: &str, other: &str| place(one).is_some() && place(one) == place(other);
        assert!(same("redis://", "redis://localhost:6379/0"));
        assert!(same("redis://h/", "redis://h:6379//"));
        assert!(!same("redis://h/1", "redis://h/2"));
        assert!(!same("redis://u:p@h", "redis://h"));
        assert!(!same("redis://h?ssl=1", "redis://h?ssl=1"), "more is said there than is known here");
        assert!(!same("db+sqlite:///x", "db+sqlite:///x"));
    }
}
