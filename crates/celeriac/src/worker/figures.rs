//! What the worker tells of itself and of what it runs, in Celery's forms and order: as celery/worker/control.py, with
//! all that tools written for Celery look at.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::heartbeat::VERSION;
use super::held::Run;
use super::{Shared, builtin, machine};
use crate::control::Report;
use crate::protocol::pidbox::{DeliveryInfo, QueueInfo, TaskInfo};
use crate::protocol::{Json, JsonMap, args_repr, kwargs_repr};
use crate::task::TaskOptions;

/// A value of this program's own, as JSON: texts, numbers and what is JSON already.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Json {
    Json::from_value(value).unwrap_or_default()
}

/// An object with its fields in this order.
pub(super) fn object<const N: usize>(fields: [(&str, Json); N]) -> Json {
    JsonMap::from(fields).to_json()
}

/// What runs, the longest first; with `safe` the arguments are told as text.
pub(super) fn active(shared: &Shared, safe: bool) -> Json {
    let mut runs = shared.held.runs();
    runs.sort_by_key(|run| run.started);
    json(&runs.iter().map(|run| task_info(shared, run, safe)).collect::<Vec<_>>())
}

fn task_info(shared: &Shared, run: &Run, safe: bool) -> TaskInfo {
    let (context, headers) = (&run.context, run.context.headers());
    let text = |given: &str, of: &dyn Fn() -> String| {
        if given.is_empty() { Json::string(&of()) } else { Json::string(given) }
    };
    let (args, kwargs) = if safe {
        let args = text(&headers.argsrepr, &|| args_repr(&run.arguments.args));
        (args, text(&headers.kwargsrepr, &|| kwargs_repr(&run.arguments.kwargs)))
    } else {
        (Json::array(&run.arguments.args), run.arguments.kwargs.to_json())
    };
    TaskInfo {
        id: context.task_id().to_string(),
        name: context.task().to_owned(),
        args,
        kwargs,
        task_type: context.task().to_owned(),
        hostname: shared.node.to_string(),
        time_start: Some(Duration::try_from(run.started.as_duration()).unwrap_or_default().as_secs_f64()),
        acknowledged: !run.acks_late,
        delivery_info: DeliveryInfo {
            exchange: String::new(),
            routing_key: context.queue().to_string(),
            priority: Some(run.priority),
            redelivered: Some(context.deliveries() > 1),
        },
        worker_pid: Some(run.pid),
    }
}

/// Of the tasks named, those that run here: each with where it stands.
pub(super) fn query_task(shared: &Shared, ids: &[String]) -> Json {
    let runs = shared.held.runs();
    let asked = runs.iter().filter(|run| ids.iter().any(|id| id == run.context.task_id().as_str()));
    let found: JsonMap = asked
        .map(|run| (run.context.task_id().to_string(), json(&("active", task_info(shared, run, false)))))
        .collect();
    found.to_json()
}

/// The tasks it knows, each with those of the options named that it has: `name [rate_limit=10/m]`.
pub(super) fn registered(shared: &Shared, items: &[String], builtins: bool) -> Json {
    let items: Vec<&str> = match items {
        [] => vec!["rate_limit"],
        items => items.iter().map(String::as_str).collect(),
    };
    let mut names = shared.task_names();
    match &shared.executor {
        // They are the executor's.
        Some(_) if builtins => {}
        Some(_) => names.retain(|name| !name.starts_with("celery.")),
        None if builtins => names.extend(builtin::NAMES.map(Box::from)),
        None => {}
    }
    names.sort_unstable();
    let told: Vec<String> = names
        .into_iter()
        .map(|name| {
            let options = shared.options(&name).unwrap_or_default();
            let told = items.iter().filter_map(|item| {
                option_of(shared, &name, &options, item).map(|value| format!("{item}={value}"))
            });
            let told: Vec<String> = told.collect();
            if told.is_empty() { name.into_string() } else { format!("{name} [{}]", told.join(" ")) }
        })
        .collect();
    json(&told)
}

/// An option of a task as Python prints it; `None` where it has none.
fn option_of(shared: &Shared, name: &str, options: &TaskOptions, item: &str) -> Option<String> {
    let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64().to_string());
    let flag = |flag: Option<bool>| flag.map(|flag| if flag { "True" } else { "False" }.to_owned());
    match item {
        "rate_limit" => shared.overrides.rate_limit(name, options.rate_limit).map(|limit| limit.to_string()),
        "serializer" => Some("json".to_owned()),
        "max_retries" => options.max_retries.map(|retries| retries.to_string()),
        "default_retry_delay" => seconds(Some(options.default_retry_delay)),
        "time_limit" => seconds(options.time_limit),
        "soft_time_limit" => seconds(options.soft_time_limit),
        "acks_late" => flag(Some(options.acks_late.unwrap_or(shared.app.config().task_acks_late))),
        "ignore_result" => {
            flag(Some(options.ignore_result.unwrap_or(shared.app.config().task_ignore_result)))
        }
        "track_started" => {
            flag(Some(options.track_started.unwrap_or(shared.app.config().task_track_started)))
        }
        "priority" => options.priority.map(|priority| priority.to_string()),
        "expires" => seconds(options.expires),
        _ => None,
    }
}

/// The queues it consumes from.
pub(super) fn active_queues(shared: &Shared) -> Json {
    json(&shared.queues.borrow().iter().map(|queue| QueueInfo::direct(queue.as_str())).collect::<Vec<_>>())
}

/// Figures. The first fields are Celery's, the others our own.
pub(super) fn stats(shared: &Shared) -> Json {
    let config = shared.app.config();
    let seconds = |limit: Option<Duration>| json(&limit.unwrap_or_default().as_secs_f64());
    let pid = std::process::id();
    let started: Vec<(&str, u64)> = shared
        .counters
        .started
        .iter()
        .map(|(name, count)| (&**name, count.load(Ordering::Relaxed)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let runs: u64 = started.iter().map(|(_, count)| count).sum();
    let total: JsonMap = started.into_iter().map(|(name, count)| (name.to_owned(), json(&count))).collect();
    let usage: JsonMap =
        machine::usage().into_iter().map(|(name, used)| (name.to_owned(), json(&used))).collect();
    let Report { succeeded, failed, retried, revoked, handed_back, lost } = shared.counters.report();
    let clock = shared.app.store().control.announcer().map_or(0, |announcer| announcer.clock().value());
    let pool = |fields: [(&'static str, Json); 7]| {
        let mut told = JsonMap::from(fields);
        for (name, value) in shared.executor.as_ref().map_or_else(Vec::new, |executor| executor.figures()) {
            told.insert(name, value);
        }
        told.to_json()
    };
    object([
        ("total", total.to_json()),
        ("pid", json(&pid)),
        // A text in Celery's answer as well.
        ("clock", json(&clock.to_string())),
        ("uptime", json(&crate::clock::until(shared.started, shared.app.clock().now()).as_secs())),
        (
            "pool",
            pool([
                ("implementation", json("celeriac")),
                ("max-concurrency", json(&shared.slots.size())),
                ("processes", json(&[pid])),
                ("max-tasks-per-child", json("N/A")),
                ("put-guarded-by-semaphore", json(&false)),
                ("timeouts", json(&[seconds(config.task_soft_time_limit), seconds(config.task_time_limit)])),
                (
                    "writes",
                    object([
                        ("total", json(&runs)),
                        ("avg", json("1.00")),
                        ("all", json("1.00")),
                        ("raw", json(&runs.to_string())),
                        ("strategy", json("fair")),
                        ("inqueues", object([("total", json(&0)), ("active", json(&0))])),
                    ]),
                ),
            ]),
        ),
        ("broker", broker(shared.app.url())),
        ("prefetch_count", json(&shared.slots.size())),
        ("rusage", usage.to_json()),
        ("running", json(&shared.held.running())),
        (
            "ends",
            object([
                ("succeeded", json(&succeeded)),
                ("failed", json(&failed)),
                ("retried", json(&retried)),
                ("revoked", json(&revoked)),
                ("handed_back", json(&handed_back)),
                ("lost", json(&lost)),
            ]),
        ),
    ])
}

/// The connection to the broker as kombu describes one, from a URL without credentials.
fn broker(url: &str) -> Json {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    let (place, virtual_host) = rest.split_once('/').unwrap_or((rest, ""));
    let (hostname, port) = match place.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok()),
        None => (place, None),
    };
    let null = Json::null;
    object([
        ("hostname", json(hostname)),
        ("userid", null()),
        ("virtual_host", json(virtual_host)),
        ("port", json(&port)),
        ("insist", json(&false)),
        ("ssl", json(&matches!(scheme, "rediss" | "valkeys"))),
        ("transport", json(scheme)),
        ("connect_timeout", null()),
        ("transport_options", object([])),
        ("login_method", null()),
        ("uri_prefix", null()),
        ("heartbeat", null()),
        ("failover_strategy", null()),
        ("alternates", json::<[u8; 0]>(&[])),
        ("credential_provider", null()),
        ("url", json(url)),
    ])
}

/// The settings.
pub(super) fn conf(shared: &Shared) -> JsonMap {
    let mut settings = JsonMap::from([("broker_url", json(shared.app.url()))]);
    settings.extend(shared.app.config().shown().iter().map(|(name, value)| (name.clone(), json(value))));
    settings
}

/// A text for reports of faults.
pub(super) fn report(shared: &Shared) -> String {
    let mut text = format!(
        "\nsoftware -> {VERSION}\nplatform -> {} {}\nworker -> {} pid {}\n",
        std::env::consts::OS,
        std::env::consts::ARCH,
        shared.worker,
        std::process::id(),
    );
    for (name, value) in conf(shared) {
        text.push_str(&format!("\n{name}: {value}"));
    }
    text.push('\n');
    text
}

/// The memory in use, as Celery prints it: `40.1MB`; null where the system does not tell.
pub(super) fn memory() -> Json {
    machine::resident_kilobytes().map_or_else(Json::null, |size| json(&format!("{:.1}MB", size / 1024.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_described_as_kombu_describes_them() {
        let field = |url: &str, name: &str| broker(url).entries().unwrap().get(name).unwrap().to_string();
        let url = "redis://***@example:6380/3?***";
        for (name, value) in [
            ("hostname", "\"example\""),
            ("port", "6380"),
            ("virtual_host", "\"3\""),
            ("transport", "\"redis\""),
            ("ssl", "false"),
            ("transport_options", "{}"),
            ("alternates", "[]"),
        ] {
            assert_eq!(field(url, name), value, "{name}");
        }
        assert_eq!(field("rediss://example", "ssl"), "true");
        assert_eq!(field("sqlite://celeriac.db", "hostname"), "\"celeriac.db\"");
        assert_eq!(field("memory://", "port"), "null");
    }
}
