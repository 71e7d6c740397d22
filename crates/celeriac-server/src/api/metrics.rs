//! Numbers for Prometheus.
//!
//! What the store and the workers are is read when it is asked for; what requests do is counted as they pass. No label is
//! without bound: queues and nodes past [`LABELS_MAX`] are summed as `other`, paths are those of the routes, and tasks are
//! no label at all.
//!
//! | name | kind | labels | unit and meaning |
//! |---|---|---|---|
//! | `celeriac_queue_ready` | gauge | `queue` | messages that wait for a worker |
//! | `celeriac_queue_delayed` | gauge | `queue` | messages that wait for their time |
//! | `celeriac_queue_reserved` | gauge | `queue` | messages that workers hold |
//! | `celeriac_queue_oldest_seconds` | gauge | `queue` | age of the oldest message that waits for a worker; 0 without one |
//! | `celeriac_queue_paused` | gauge | `queue` | 1 when paused |
//! | `celeriac_workers` | gauge | | live workers |
//! | `celeriac_worker_slots` | gauge | | tasks they run at once, together |
//! | `celeriac_worker_running` | gauge | | tasks they run now, together |
//! | `celeriac_worker_runs_total` | counter | `node`, `outcome` | runs of live workers, since they started |
//! | `celeriac_dead_letters` | gauge | | dead letters, counted up to 10,000 |
//! | `celeriac_streams` | gauge | | open streams of this server |
//! | `celeriac_http_requests_total` | counter | `method`, `route`, `status` | requests, by class of status: `2xx` … |
//! | `celeriac_http_request_duration_seconds` | histogram | `method`, `route` | time until the head of the answer |
//! | `celeriac_build_info` | gauge | `version` | always 1 |
//! | `process_start_time_seconds` | gauge | | when this process's server started, in seconds since 1970 |
//!
//! `outcome` is one of `succeeded`, `failed`, `retried`, `revoked`, `handed_back`, `lost`. `route` is a template such as
//! `/api/v1/tasks/{id}`, or `other`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use celeriac::broker::QueueStatus;
use celeriac::control::{Report, WorkerCard};
use celeriac::{Timestamp, clock};
use metrics::{Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio::time::Instant;

use crate::problem::Problem;
use crate::server::Server;

/// So many queues, and so many nodes, have a label of their own.
const LABELS_MAX: usize = 100;

/// Dead letters are counted up to this.
const DEAD_MAX: usize = 10_000;

/// Seconds; from what a store in memory takes to what a client gives up at.
const BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Samples of a histogram are kept one by one until they are put into buckets: at least after so many.
const UPKEEP_EVERY: u64 = 1_024;

/// What is counted of requests, for the life of a server.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    requests: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        // The buckets are a constant, and not empty, which is all that the builder refuses.
        let builder = PrometheusBuilder::new();
        let builder = builder.set_buckets(&BUCKETS).unwrap_or_default();
        let recorder = builder.build_recorder();
        describe_requests(&recorder);
        Self { handle: recorder.handle(), recorder, requests: AtomicU64::new(0) }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("requests", &self.requests).finish_non_exhaustive()
    }
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// Counts and times requests, around all routes.
pub(crate) async fn observe(State(server): State<Server>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = method_label(request.method());
    let route = match request.extensions().get::<MatchedPath>() {
        Some(path) if !path.as_str().starts_with("/docs") => path.as_str().to_owned(),
        Some(_) => "/docs".to_owned(),
        None => "other".to_owned(),
    };
    let response = next.run(request).await;
    let status = match response.status().as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    };
    server.metrics().count(method, route, status, begun.elapsed().as_secs_f64());
    response
}

impl Metrics {
    fn count(&self, method: &'static str, route: String, status: &'static str, seconds: f64) {
        let labels = vec![Label::new("method", method), Label::new("route", route)];
        let duration = Key::from_parts("celeriac_http_request_duration_seconds", labels.clone());
        self.recorder.register_histogram(&duration, &METADATA).record(seconds);
        let labels = [labels, vec![Label::new("status", status)]].concat();
        let requests = Key::from_parts("celeriac_http_requests_total", labels);
        self.recorder.register_counter(&requests, &METADATA).increment(1);
        if self.requests.fetch_add(1, Ordering::Relaxed) % UPKEEP_EVERY == UPKEEP_EVERY - 1 {
            self.handle.run_upkeep();
        }
    }
}

/// Methods are the client's to invent; labels are not.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Metrics for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "process", operation_id = "metrics",
    responses((status = 200, description = "In the text format of Prometheus", body = String, content_type = "text/plain")),
)]
pub(crate) async fn scrape(State(server): State<Server>) -> Result<Response, Problem> {
    let store = server.app().store();
    let (queues, workers, dead) =
        futures_util::try_join!(store.broker.queues(), store.control.workers(), count_dead(&server))?;
    // Made anew for each scrape, so that a queue that is gone is gone from here, too.
    let gauges = Gauges(PrometheusBuilder::new().build_recorder());
    gauges.queues(&queues, server.app().clock().now());
    gauges.workers(&workers);
    gauges.set("celeriac_dead_letters", "Dead letters, counted up to 10,000.", &[], dead as f64);
    let streams = server.streams().load(Ordering::Relaxed);
    gauges.set("celeriac_streams", "Open streams of this server.", &[], streams as f64);
    let version = [("version", env!("CARGO_PKG_VERSION").to_owned())];
    gauges.set("celeriac_build_info", "Always 1.", &version, 1.0);
    let started = server.started().as_duration().as_secs_f64();
    gauges.set("process_start_time_seconds", "When the server started, in seconds since 1970.", &[], started);
    let mut text = gauges.0.handle().render();
    text.push_str(&server.metrics().handle.render());
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn count_dead(server: &Server) -> celeriac::store::Result<usize> {
    let mut count = 0;
    let mut after = 0;
    while count < DEAD_MAX {
        let letters = server.app().store().broker.dead(after, DEAD_PAGE).await?;
        let Some(last) = letters.last() else { break };
        after = last.number;
        count += letters.len();
    }
    Ok(count)
}

const DEAD_PAGE: usize = 500;

fn describe_requests(recorder: &PrometheusRecorder) {
    recorder.describe_counter(
        "celeriac_http_requests_total".into(),
        None,
        "Requests, by class of status.".into(),
    );
    recorder.describe_histogram(
        "celeriac_http_request_duration_seconds".into(),
        None,
        "Seconds until the head of the answer.".into(),
    );
}

/// What is so at the moment of a scrape.
struct Gauges(PrometheusRecorder);

impl Gauges {
    fn queues(&self, queues: &[QueueStatus], now: Timestamp) {
        let mut shown: BTreeMap<&str, [f64; 5]> = BTreeMap::new();
        for (index, status) in queues.iter().enumerate() {
            let name = if index < LABELS_MAX { status.queue.as_str() } else { OTHER };
            let age = status.oldest.map_or(0.0, |oldest| clock::until(oldest, now).as_secs_f64());
            let sum = shown.entry(name).or_default();
            sum[0] += status.ready as f64;
            sum[1] += status.delayed as f64;
            sum[2] += status.reserved as f64;
            sum[3] = sum[3].max(age);
            sum[4] = sum[4].max(f64::from(u8::from(status.paused)));
        }
        for (name, values) in shown {
            for ((metric, help), value) in QUEUE_GAUGES.iter().zip(values) {
                self.set(metric, help, &[("queue", name.to_owned())], value);
            }
        }
    }

    fn workers(&self, workers: &[WorkerCard]) {
        let sum = |of: fn(&WorkerCard) -> u32| workers.iter().map(|card| f64::from(of(card))).sum();
        self.set("celeriac_workers", "Live workers.", &[], workers.len() as f64);
        let slots = sum(|card| card.concurrency);
        self.set("celeriac_worker_slots", "Tasks that live workers run at once, together.", &[], slots);
        let running = sum(|card| card.running);
        self.set("celeriac_worker_running", "Tasks that live workers run now, together.", &[], running);
        self.0.describe_counter(
            RUNS.into(),
            None,
            "Runs of live workers since they started, by how they ended.".into(),
        );
        let mut nodes: BTreeMap<&str, [u64; 6]> = BTreeMap::new();
        for card in workers {
            let known = nodes.len() < LABELS_MAX || nodes.contains_key(&*card.node);
            let node = nodes.entry(if known { &card.node } else { OTHER }).or_default();
            let Report { succeeded, failed, retried, revoked, handed_back, lost } = card.totals;
            for (sum, count) in node.iter_mut().zip([succeeded, failed, retried, revoked, handed_back, lost])
            {
                *sum += count;
            }
        }
        for (node, counts) in nodes {
            for (outcome, count) in OUTCOMES.iter().zip(counts) {
                let labels = vec![Label::new("node", node.to_owned()), Label::new("outcome", *outcome)];
                let key = Key::from_parts(RUNS, labels);
                self.0.register_counter(&key, &METADATA).absolute(count);
            }
        }
    }

    fn set(&self, name: &'static str, help: &'static str, labels: &[(&'static str, String)], value: f64) {
        self.0.describe_gauge(name.into(), None, help.into());
        let labels: Vec<Label> =
            labels.iter().map(|(name, value)| Label::new(*name, value.clone())).collect();
        self.0.register_gauge(&Key::from_parts(name, labels), &METADATA).set(value);
    }
}

const OTHER: &str = "other";
const RUNS: &str = "celeriac_worker_runs_total";
const OUTCOMES: [&str; 6] = ["succeeded", "failed", "retried", "revoked", "handed_back", "lost"];
const QUEUE_GAUGES: [(&str, &str); 5] = [
    ("celeriac_queue_ready", "Messages that wait for a worker."),
    ("celeriac_queue_delayed", "Messages that wait for their time."),
    ("celeriac_queue_reserved", "Messages that workers hold."),
    ("celeriac_queue_oldest_seconds", "Age of the oldest message that waits for a worker, in seconds."),
    ("celeriac_queue_paused", "1 when the queue is paused."),
];

#[cfg(test)]
mod tests {
    use super::*;
    use celeriac::QueueName;

    #[test]
    fn labels_are_bounded() {
        let queues: Vec<QueueStatus> = (0..LABELS_MAX + 50)
            .map(|number| QueueStatus {
                queue: QueueName::from(format!("q{number:03}\n\"")),
                ready: 2,
                delayed: 0,
                reserved: 0,
                oldest: Some(Timestamp::UNIX_EPOCH),
                paused: false,
            })
            .collect();
        let gauges = Gauges(PrometheusBuilder::new().build_recorder());
        gauges.queues(&queues, clock::after(Timestamp::UNIX_EPOCH, std::time::Duration::from_secs(7)));
        let text = gauges.0.handle().render();
        let ready = text.lines().filter(|line| line.starts_with("celeriac_queue_ready{")).count();
        assert_eq!(ready, LABELS_MAX + 1);
        assert!(text.contains("celeriac_queue_ready{queue=\"other\"} 100"), "{text}");
        assert!(text.contains("celeriac_queue_oldest_seconds{queue=\"other\"} 7"), "{text}");
    }

    #[test]
    fn requests_are_counted_by_template_and_class() {
        let metrics = Metrics::default();
        for _ in 0..2 {
            metrics.count("GET", "/api/v1/tasks/{id}".to_owned(), "2xx", 0.004);
        }
        let text = metrics.handle.render();
        let counted =
            "celeriac_http_requests_total{method=\"GET\",route=\"/api/v1/tasks/{id}\",status=\"2xx\"} 2";
        assert!(text.contains(counted), "{text}");
        let below = "celeriac_http_request_duration_seconds_bucket{method=\"GET\",route=\"/api/v1/tasks/{id}\",le=\"0.005\"} 2";
        assert!(text.contains(below), "{text}");
    }
}
