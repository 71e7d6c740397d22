//! Live workers, and what is said to them.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use celeriac::clock::SystemClock;
use celeriac::control::{Command, WorkerCard};
use celeriac::memory::MemoryStore;
use celeriac::protocol::JsonMap;
use celeriac::state::Phase;
use celeriac::store::Store;
use celeriac::testing::{Fault, FaultPlan, Faulty, ManualClock};
use celeriac::{CallOptions, Celeriac, Clock, Context, Error, Json, State, TaskId};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::redis_server::RedisServer;
use super::support::{PATIENCE, Running, config, events, sqlite_url};

/// What the runs of one test share: how many run, how many ran at most, and the gate that they wait at.
#[derive(Debug, Default)]
struct Meter {
    now: Mutex<(usize, usize)>,
    gate: CancellationToken,
}

fn meter(name: &str) -> Arc<Meter> {
    static METERS: LazyLock<Mutex<HashMap<String, Arc<Meter>>>> = LazyLock::new(Mutex::default);
    METERS.lock().unwrap().entry(name.to_owned()).or_default().clone()
}

/// A meter of one test.
fn fresh() -> (String, Arc<Meter>) {
    let name = TaskId::random().to_string();
    (name.clone(), meter(&name))
}

impl Meter {
    fn enter(self: Arc<Self>) -> Inside {
        let mut now = self.now.lock().unwrap();
        now.0 += 1;
        now.1 = now.1.max(now.0);
        drop(now);
        Inside(self)
    }

    fn running(&self) -> usize {
        self.now.lock().unwrap().0
    }

    fn most(&self) -> usize {
        self.now.lock().unwrap().1
    }
}

struct Inside(Arc<Meter>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.now.lock().unwrap().0 -= 1;
    }
}

#[celeriac::task(name = "control.metered")]
async fn metered(cx: Context, name: String) -> u32 {
    let meter = meter(&name);
    let inside = Arc::clone(&meter).enter();
    cx.emit("began", &1).await;
    meter.gate.cancelled().await;
    drop(inside);
    cx.deliveries()
}

#[celeriac::task(name = "control.add")]
async fn add(x: i64, y: i64) -> i64 {
    x + y
}

const LEASE: Duration = Duration::from_secs(60);

async fn app(url: &str) -> Celeriac {
    with_tasks(Celeriac::connect(url).await.unwrap().with_config(config(LEASE)))
}

fn with_tasks(app: Celeriac) -> Celeriac {
    app.register(metered).register(add)
}

/// Each test on each store.
macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::app("memory://").await).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let folder = tempfile::tempdir().unwrap();
                super::$test(super::app(&super::sqlite_url(folder.path())).await).await;
            })*
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let server = super::RedisServer::start().await;
                super::$test(super::app(&server.url()).await).await;
            })*
        }
    };
}

on_every_store!(
    a_worker_shows_itself_until_it_leaves,
    what_runs_is_told,
    what_is_wrong_is_named,
    the_pool_grows_and_shrinks,
    consumers_are_added_and_cancelled,
    a_rate_limit_is_changed,
    a_time_limit_is_changed,
    a_worker_is_shut_down,
    only_those_named_answer,
);

/// Looks again and again until there is what is awaited.
pub(crate) async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come about");
        tokio::task::yield_now().await;
    }
}

/// The one worker, once its card is as awaited.
async fn card_that(app: &Celeriac, what: &str, awaited: impl Fn(&WorkerCard) -> bool) -> WorkerCard {
    until(what, async || app.workers().await.unwrap().into_iter().find(|card| awaited(card))).await
}

/// A worker, once it can be reached.
async fn running(app: &Celeriac, concurrency: usize) -> Running {
    let worker = Running::start(app.worker().concurrency(concurrency));
    card_that(app, "a worker", |_| true).await;
    worker
}

/// What the one worker answers.
pub(crate) async fn tell(app: &Celeriac, method: &str, arguments: Value) -> Value {
    let arguments: JsonMap = Json::from_value(&arguments).unwrap().entries().unwrap();
    let mut replies = app.control(method, arguments, None, PATIENCE).await.unwrap();
    assert_eq!(replies.len(), 1, "{replies:?}");
    replies.remove(0).content.to().unwrap()
}

pub(crate) async fn phase(app: &Celeriac, id: &TaskId) -> Phase {
    app.store().broker.locate(std::slice::from_ref(id)).await.unwrap()[0].as_ref().unwrap().phase
}

async fn a_worker_shows_itself_until_it_leaves(app: Celeriac) {
    assert!(app.workers().await.unwrap().is_empty());
    assert!(app.control("ping", JsonMap::new(), None, PATIENCE).await.unwrap().is_empty(), "at once");
    let before = app.clock().now();
    let worker = Running::start(app.worker().concurrency(3).name("node@here").queues(["celery", "q"]));
    let card = card_that(&app, "a worker", |_| true).await;
    assert!(card.worker.as_str().starts_with("node@here/"), "{card:?}");
    assert_eq!((&*card.node, card.pid), ("node@here", std::process::id()));
    assert_eq!(card.queues.iter().map(|queue| queue.as_str()).collect::<Vec<_>>(), ["celery", "q"]);
    assert_eq!(card.tasks, [Box::from("control.add"), Box::from("control.metered")]);
    assert_eq!((card.concurrency, card.running, card.stopping), (3, 0, false));
    assert!(card.version.starts_with("celeriac "));
    assert!(before <= card.started && card.started <= card.beat && card.beat < card.expires);

    let (name, meter) = fresh();
    let result = metered(name).delay(&app).await.unwrap();
    add(1, 2).delay(&app).await.unwrap().get_timeout(PATIENCE).await.unwrap();
    events(&app, &result.id(), "began", 1).await;
    tell(&app, "heartbeat", json!({})).await;
    card_that(&app, "a card that tells what runs", |card| card.running == 1 && card.totals.succeeded == 1)
        .await;

    // While it shuts down it says so, and still answers.
    let report = worker.shut_down();
    card_that(&app, "a card that tells of the shutdown", |card| card.stopping).await;
    assert_eq!(tell(&app, "active", json!({})).await[0]["id"], result.id().as_str());
    meter.gate.cancel();
    assert_eq!(report.await.succeeded, 2);
    assert!(app.workers().await.unwrap().is_empty());
}

async fn what_runs_is_told(app: Celeriac) {
    let worker = running(&app, 2).await;
    assert_eq!(tell(&app, "ping", json!({})).await, json!({ "ok": "pong" }));
    assert_eq!(tell(&app, "active", json!({})).await, json!([]));
    let (name, meter) = fresh();
    let options = CallOptions { priority: Some(3), ..CallOptions::default() };
    let result = metered(name.clone()).apply_async(&app, options).await.unwrap();
    events(&app, &result.id(), "began", 1).await;

    let active = tell(&app, "active", json!({})).await;
    assert_eq!((&active[0]["args"], &active[0]["kwargs"]), (&json!([name]), &json!({})));
    let asked = json!({ "ids": [result.id(), "unknown"] });
    let found = tell(&app, "query_task", asked).await;
    assert_eq!(found, json!({ result.id().as_str(): ["active", active[0]] }));
    let active = tell(&app, "dump_active", json!({ "safe": true })).await;
    let info = &active[0];
    assert_eq!((&info["id"], &info["name"]), (&json!(result.id()), &json!("control.metered")));
    assert_eq!((&info["args"], &info["kwargs"]), (&json!(format!("('{name}',)")), &json!("{}")));
    assert_eq!(info["worker_pid"], std::process::id());
    assert_eq!(
        info["delivery_info"],
        json!({ "exchange": "", "routing_key": "celery", "priority": 3, "redelivered": false })
    );
    assert!(info["time_start"].as_f64().unwrap() > 1e9, "{info}");
    for nothing in ["reserved", "scheduled", "revoked"] {
        assert_eq!(tell(&app, nothing, json!({})).await, json!([]), "{nothing}");
    }
    result.revoke(false).await.unwrap();
    until("the news of the revocation", async || {
        (tell(&app, "revoked", json!({})).await == json!([result.id()])).then_some(())
    })
    .await;

    let stats = tell(&app, "stats", json!({})).await;
    assert_eq!(stats["total"], json!({ "control.metered": 1 }));
    assert_eq!((&stats["pid"], &stats["pool"]["max-concurrency"]), (&json!(std::process::id()), &json!(2)));
    assert!(
        stats["clock"].is_string()
            && stats["uptime"].is_u64()
            && stats["broker"].is_object()
            && stats["rusage"].is_object()
    );
    assert_eq!(tell(&app, "registered", json!({})).await, json!(["control.add", "control.metered"]));
    let items = json!({ "taskinfoitems": ["serializer", "max_retries", "colour"], "builtins": true });
    let registered = tell(&app, "dump_tasks", items).await;
    assert_eq!(registered[0], "celery.accumulate [serializer=json max_retries=3]");
    assert_eq!(registered[3], "control.add [serializer=json max_retries=3]");
    let memory = tell(&app, "memsample", json!({})).await;
    assert!(memory.as_str().unwrap().ends_with("MB"), "{memory}");
    assert!(tell(&app, "memdump", json!({ "samples": 10 })).await.as_str().unwrap().starts_with("- rss: "));
    assert!(tell(&app, "clock", json!({})).await["clock"].is_u64());
    assert_eq!(tell(&app, "election", json!({ "id": "e", "topic": "task" })).await, json!(null));
    let queues = tell(&app, "active_queues", json!({})).await;
    assert_eq!((&queues[0]["name"], &queues[0]["exchange"]["type"]), (&json!("celery"), &json!("direct")));
    let conf = tell(&app, "conf", json!({})).await;
    assert_eq!((&conf["visibility_timeout"], &conf["broker_url"]), (&json!(60.0), &json!(app.url())));
    let report = tell(&app, "report", json!({})).await;
    assert!(report["ok"].as_str().unwrap().contains("visibility_timeout: 60.0"), "{report}");
    meter.gate.cancel();
    worker.stop().await;
}

async fn what_is_wrong_is_named(app: Celeriac) {
    let worker = running(&app, 1).await;
    for (method, arguments, named) in [
        ("no_such_command", json!({}), "unknown command \"no_such_command\""),
        ("rate_limit", json!({ "rate_limit": "1/s" }), "task_name: is missing"),
        ("rate_limit", json!({ "task_name": "control.add" }), "rate_limit: is missing"),
        ("rate_limit", json!({ "task_name": "control.add", "rate_limit": "x/y" }), "\"x/y\""),
        ("rate_limit", json!({ "task_name": "nobody's", "rate_limit": "1/s" }), "unknown task"),
        ("time_limit", json!({ "task_name": "control.add", "soft": -1 }), "soft: "),
        ("time_limit", json!({ "task_name": 3 }), "task_name: should be the name of a task"),
        ("pool_grow", json!({ "n": 0 }), "n: should be a number from 1, is 0"),
        ("pool_grow", json!({ "n": 1e9 as u64 }), "n: a worker has at most"),
        ("pool_shrink", json!({ "n": 1 }), "n: a worker keeps at least one slot"),
        ("add_consumer", json!({}), "queue: is missing"),
        ("add_consumer", json!({ "queue": "" }), "queue: a name has 1 to"),
        ("cancel_consumer", json!({ "queue": ["q"] }), "queue: should be the name"),
        ("query_task", json!({ "ids": "one" }), "ids: should be a list"),
        ("revoke", json!({}), "task_id: is missing"),
        ("revoke", json!({ "task_id": 5 }), "task_id: should be a task id, or a list of them"),
        ("revoke", json!({ "task_id": "x", "terminate": "maybe" }), "terminate: should be true or false"),
        ("revoke_by_stamped_headers", json!({ "headers": ["x"] }), "headers: should be name=value"),
        ("hello", json!({ "revoked": [] }), "from_node: is missing"),
        ("hello", json!({ "from_node": "x", "revoked": 5 }), "revoked"),
        ("active", json!({ "safe": "no" }), "safe: should be true or false"),
        ("registered", json!({ "taskinfoitems": 5 }), "taskinfoitems: should be a list"),
        ("enable_events", json!({ "foo": 1 }), "foo: is no argument"),
        ("report", json!({ "foo": 1 }), "foo: is no argument"),
        ("pool_restart", json!({}), "ValueError('Pool restarts not enabled')"),
        ("autoscale", json!({ "max": 3 }), "ValueError('Autoscale not enabled')"),
        ("objgraph", json!({}), "Rust"),
    ] {
        let answer = tell(&app, method, arguments).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(error.contains(named), "{method}: {answer}");
    }
    assert_eq!(tell(&app, "ping", json!({})).await, json!({ "ok": "pong" }), "and it lives on");
    assert!(matches!(
        app.control("", JsonMap::new(), None, PATIENCE).await,
        Err(Error::Invalid { what, .. }) if what == "method"
    ));
    worker.stop().await;
}

async fn the_pool_grows_and_shrinks(app: Celeriac) {
    let worker = running(&app, 1).await;
    let (first_name, first) = fresh();
    for _ in 0..3 {
        metered(first_name.clone()).delay(&app).await.unwrap();
    }
    until("one run", async || (first.running() == 1).then_some(())).await;
    assert_eq!(tell(&app, "pool_grow", json!({ "n": "2" })).await, json!({ "ok": "pool will grow" }));
    until("three runs", async || (first.running() == 3).then_some(())).await;
    card_that(&app, "a card of three slots", |card| card.concurrency == 3).await;

    // All three are in use: two go as they come free, and what waits runs one at a time.
    assert_eq!(tell(&app, "pool_shrink", json!({ "n": 2 })).await, json!({ "ok": "pool will shrink" }));
    let (then_name, then) = fresh();
    let results = app.publish_batch(&[(); 4].map(|()| metered(then_name.clone()))).await.unwrap();
    first.gate.cancel();
    until("a run", async || (then.running() > 0).then_some(())).await;
    card_that(&app, "a card of one slot", |card| card.concurrency == 1).await;
    for _ in 0..20 {
        assert_eq!(tell(&app, "ping", json!({})).await, json!({ "ok": "pong" }));
    }
    assert_eq!((first.most(), then.most()), (3, 1));
    then.gate.cancel();
    for result in results {
        assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 1);
    }
    assert_eq!(then.most(), 1);

    // An idle worker holds its free slots while it waits, and gives them up too.
    tell(&app, "pool_grow", json!({ "n": 3 })).await;
    tell(&app, "pool_shrink", json!({ "n": 3 })).await;
    let (name, idle) = fresh();
    let results = app.publish_batch(&[(); 3].map(|()| metered(name.clone()))).await.unwrap();
    until("a run", async || (idle.running() > 0).then_some(())).await;
    idle.gate.cancel();
    for result in results {
        result.get_timeout(PATIENCE).await.unwrap();
    }
    assert_eq!(worker.stop().await.succeeded, 10);
}

async fn consumers_are_added_and_cancelled(app: Celeriac) {
    let worker = running(&app, 1).await;
    let on = |queue: &str| CallOptions { queue: Some(queue.to_owned()), ..CallOptions::default() };
    let other = add(1, 2).apply_async(&app, on("other")).await.unwrap();
    add(0, 0).delay(&app).await.unwrap().get_timeout(PATIENCE).await.unwrap();
    assert_eq!(phase(&app, &other.id()).await, Phase::Queued);

    let queue = json!({ "queue": "other" });
    assert_eq!(tell(&app, "add_consumer", queue.clone()).await, json!({ "ok": "add consumer other" }));
    assert_eq!(other.get_timeout(PATIENCE).await.unwrap(), 3);
    assert_eq!(
        tell(&app, "add_consumer", queue.clone()).await,
        json!({ "ok": "already consuming from other" })
    );
    card_that(&app, "a card with both queues", |card| card.queues.len() == 2).await;

    let gone = json!({ "ok": "no longer consuming from other" });
    assert_eq!(tell(&app, "cancel_consumer", queue.clone()).await, gone);
    let left = add(3, 4).apply_async(&app, on("other")).await.unwrap();
    for n in 0..10 {
        assert_eq!(add(n, 1).delay(&app).await.unwrap().get_timeout(PATIENCE).await.unwrap(), n + 1);
    }
    until("the message left where it is", async || {
        (phase(&app, &left.id()).await == Phase::Queued).then_some(())
    })
    .await;
    assert_eq!(left.state().await.unwrap(), State::Pending);

    // With no queue at all it waits for one.
    tell(&app, "cancel_consumer", json!({ "queue": "celery" })).await;
    assert_eq!(tell(&app, "active_queues", json!({})).await, json!([]));
    tell(&app, "add_consumer", queue).await;
    assert_eq!(left.get_timeout(PATIENCE).await.unwrap(), 7);
    worker.stop().await;
}

async fn a_rate_limit_is_changed(app: Celeriac) {
    let worker = running(&app, 2).await;
    let set = async |limit: Value| {
        tell(&app, "rate_limit", json!({ "task_name": "control.add", "rate_limit": limit })).await
    };
    assert_eq!(set(json!("1/h")).await, json!({ "ok": "new rate limit set successfully" }));
    assert_eq!(tell(&app, "registered", json!({})).await[0], "control.add [rate_limit=1/h]");
    add(1, 2).delay(&app).await.unwrap().get_timeout(PATIENCE).await.unwrap();
    let later = add(1, 2).delay(&app).await.unwrap();
    until("a start put off", async || (phase(&app, &later.id()).await == Phase::Delayed).then_some(())).await;
    assert_eq!(set(json!(0)).await, json!({ "ok": "rate limit disabled successfully" }));
    for _ in 0..3 {
        add(1, 2).delay(&app).await.unwrap().get_timeout(PATIENCE).await.unwrap();
    }
    // What was promised at the old rate does not bind a new one.
    set(json!("1/h")).await;
    set(json!("1000/s")).await;
    add(1, 2).delay(&app).await.unwrap().get_timeout(PATIENCE).await.unwrap();
    worker.stop().await;
}

async fn a_time_limit_is_changed(app: Celeriac) {
    let worker = running(&app, 1).await;
    let limit = json!({ "task_name": "control.metered", "soft": 0.05, "hard": 0.1 });
    assert_eq!(tell(&app, "time_limit", limit).await, json!({ "ok": "time limits set successfully" }));
    let (name, _) = fresh();
    let stopped = metered(name).delay(&app).await.unwrap();
    let Error::Task(failure) = stopped.get_timeout(PATIENCE).await.unwrap_err() else {
        panic!("not a failure")
    };
    assert_eq!(failure.exception.unwrap().exc_type, "TimeLimitExceeded");
    let none = json!({ "task_name": "control.metered", "soft": null, "hard": null });
    tell(&app, "time_limit", none).await;
    let (name, meter) = fresh();
    let unlimited = metered(name).delay(&app).await.unwrap();
    events(&app, &unlimited.id(), "began", 1).await;
    meter.gate.cancel();
    assert_eq!(unlimited.get_timeout(PATIENCE).await.unwrap(), 1);
    worker.stop().await;
}

async fn a_worker_is_shut_down(app: Celeriac) {
    let worker = tokio::spawn(app.worker().concurrency(1).run(std::future::pending()));
    card_that(&app, "a worker", |_| true).await;
    let (name, meter) = fresh();
    let result = metered(name).delay(&app).await.unwrap();
    events(&app, &result.id(), "began", 1).await;
    assert_eq!(tell(&app, "shutdown", json!({})).await, json!({ "ok": "shutting down" }));
    card_that(&app, "a card that tells of the shutdown", |card| card.stopping).await;
    meter.gate.cancel();
    let report = tokio::time::timeout(PATIENCE, worker).await.expect("it ends by itself").unwrap().unwrap();
    assert_eq!((report.succeeded, report.handed_back), (1, 0), "what ran has finished");
    assert!(app.workers().await.unwrap().is_empty());
}

async fn only_those_named_answer(app: Celeriac) {
    let workers = ["a@h", "b@h"].map(|name| Running::start(app.worker().concurrency(1).name(name)));
    until("two workers", async || (app.workers().await.unwrap().len() == 2).then_some(())).await;
    let ask = async |destination: Option<&[&str]>| {
        let destination = destination.map(|names| names.iter().map(|name| Box::from(*name)).collect());
        let replies = app.control("ping", JsonMap::new(), destination, PATIENCE).await.unwrap();
        let nodes = replies.iter().map(|reply| reply.worker.as_str().split('/').next().unwrap().to_owned());
        nodes.collect::<Vec<_>>()
    };
    assert_eq!(ask(None).await, ["a@h", "b@h"]);
    assert_eq!(ask(Some(&["b@h"])).await, ["b@h"]);
    let incarnation = app.workers().await.unwrap()[0].worker.clone();
    assert_eq!(ask(Some(&[incarnation.as_str(), "nobody"])).await, ["a@h"]);
    assert!(ask(Some(&["nobody"])).await.is_empty());
    for worker in workers {
        worker.stop().await;
    }
}

/// A card holds for as long as it says, whatever became of its worker.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_not_heard_of_is_listed_no_more() {
    let clock = ManualClock::new();
    let mut config = config(LEASE);
    config.worker_heartbeat_interval = Duration::from_secs(3600);
    let builder = Celeriac::builder()
        .clock(clock.shared())
        .store(Store::of(MemoryStore::new(clock.shared())))
        .config(config);
    let app = with_tasks(builder.connect().await.unwrap());
    let worker = running(&app, 1).await;
    clock.advance(Duration::from_secs(3 * 3600));
    assert_eq!(app.workers().await.unwrap().len(), 1, "a beat may be late");
    clock.advance(Duration::from_secs(1));
    assert!(app.workers().await.unwrap().is_empty());
    // It is heard of again: the command finds it, though nobody who asks would count on its answer.
    let command = Command {
        ticket: "t".into(),
        method: "heartbeat".into(),
        arguments: Json::null(),
        destination: None,
        expires: clock.now() + Duration::from_secs(1),
    };
    app.store().control.send(&command).await.unwrap();
    card_that(&app, "the worker", |_| true).await;
    worker.stop().await;
}

/// A worker whose future is dropped reserves nothing more, drops what runs, and shows itself no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_worker_is_gone() {
    let app = with_tasks(Celeriac::connect("memory://").await.unwrap())
        .with_config(config(Duration::from_millis(300)));
    let worker = tokio::spawn(app.worker().concurrency(1).run(std::future::pending()));
    card_that(&app, "a worker", |_| true).await;
    let (name, meter) = fresh();
    let result = metered(name).delay(&app).await.unwrap();
    events(&app, &result.id(), "began", 1).await;
    worker.abort();
    until("the end of the run", async || (meter.running() == 0).then_some(())).await;
    until("the end of the card", async || app.workers().await.unwrap().is_empty().then_some(())).await;
    meter.gate.cancel();
    let heir = running(&app, 1).await;
    assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 2, "its lease has passed");
    heir.stop().await;
}

/// Tasks run though remote control and presence cannot be had; once they can, the worker shows itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_works_without_control() {
    let plan = FaultPlan::none();
    let store = Store::of(MemoryStore::new(SystemClock::shared()));
    let store = Store { control: Faulty::new(store.clone(), &plan).control, ..store };
    let app = with_tasks(Celeriac::builder().store(store).config(config(LEASE)).connect().await.unwrap());
    plan.set_outage(true);
    let worker = Running::start(app.worker().concurrency(1));
    assert_eq!(add(1, 2).delay(&app).await.unwrap().get_timeout(PATIENCE).await.unwrap(), 3);
    until("a try", async || (plan.hits() > 0).then_some(())).await;
    plan.set_outage(false);
    card_that(&app, "a worker", |_| true).await;
    assert_eq!(tell(&app, "ping", json!({})).await, json!({ "ok": "pong" }));
    plan.set_outage(true);
    assert_eq!(add(1, 2).delay(&app).await.unwrap().get_timeout(PATIENCE).await.unwrap(), 3);
    assert_eq!(worker.stop().await.succeeded, 2, "nor is it kept from ending");
}

/// Whichever call of presence and remote control goes wrong once, the worker is found and answers.
#[tokio::test(flavor = "multi_thread")]
async fn one_fault_is_made_up_for() {
    for method in ["commands_end", "beat", "commands", "reply", "leave"] {
        for fault in [Fault::Before, Fault::ReplyLost] {
            let plan = FaultPlan::nth_of(method, 1, fault);
            let store = Store::of(MemoryStore::new(SystemClock::shared()));
            let mut config = config(LEASE);
            config.worker_heartbeat_interval = Duration::from_millis(20);
            // The worker's calls alone go wrong.
            let build = async |store: Store| {
                with_tasks(Celeriac::builder().store(store).config(config.clone()).connect().await.unwrap())
            };
            let (asks, works) = (build(store.clone()).await, build(Faulty::new(store, &plan)).await);
            let worker = Running::start(works.worker().concurrency(1));
            card_that(&asks, "a worker", |_| true).await;
            assert_eq!(tell(&asks, "ping", json!({})).await, json!({ "ok": "pong" }), "{method} {fault:?}");
            worker.stop().await;
            assert_eq!((plan.hits(), plan.last_hit()), (1, Some(method)));
        }
    }
}

/// A task that never yields does not make its worker look dead, nor deaf.
#[test]
fn a_busy_worker_answers() {
    let (stop, stopped) = watch::channel(false);
    let asks = tokio::runtime::Runtime::new().unwrap();
    // One thread for everything that the worker runs, and a task that keeps it.
    let works = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let app = asks.block_on(async { with_tasks(Celeriac::connect("memory://").await.unwrap()) });
    let worker = works.spawn({
        let app = app.clone();
        async move { app.worker().concurrency(1).run(std::future::pending()).await }
    });
    asks.block_on(card_that(&app, "a worker", |_| true));
    let (begun, has_begun) = std::sync::mpsc::channel();
    works.spawn(async move {
        begun.send(()).unwrap();
        while !*stopped.borrow() {
            std::thread::yield_now();
        }
    });
    has_begun.recv().unwrap();
    assert_eq!(asks.block_on(tell(&app, "ping", json!({}))), json!({ "ok": "pong" }));
    stop.send(true).unwrap();
    worker.abort();
    works.shutdown_background();
}
