//! What bounds a task, and what becomes of messages and values that are out of bounds.

use std::time::Duration;

use celeriac::broker::{Reserve, Routed};
use celeriac::clock::{Clock, SystemClock, Timestamp};
use celeriac::config::Route;
use celeriac::id::WorkerName;
use celeriac::protocol::{Exception, JsonMap, RawMessage};
use celeriac::state::Phase;
use celeriac::{
    AsyncResult, BlockingContext, CallOptions, Cancelled, Celeriac, Context, Error, GroupId, Json, QueueName,
    State, TaskId, group, signature,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::support::{PATIENCE, Running, config, count, each_ended_once, events, feed_until, sqlite_url};

#[celeriac::task(name = "limits.add")]
async fn add(cx: Context, x: i64, y: i64) -> i64 {
    cx.emit("began", &cx.deliveries()).await;
    x + y
}

#[celeriac::task(name = "limits.asks")]
async fn asks(cx: Context) -> Result<i64, Cancelled> {
    Err(cx.cancelled().await)
}

#[celeriac::task(name = "limits.asks_blocking")]
fn asks_blocking(cx: BlockingContext) -> Result<i64, Cancelled> {
    loop {
        cx.check()?;
        std::thread::yield_now();
    }
}

#[celeriac::task(name = "limits.cleans_up")]
async fn cleans_up(cx: Context) -> String {
    cx.cancelled().await.to_string()
}

#[celeriac::task(name = "limits.deaf")]
async fn deaf() -> i64 {
    std::future::pending().await
}

#[celeriac::task(name = "limits.deaf_blocking")]
fn deaf_blocking(cx: BlockingContext) -> i64 {
    // It hears of the limit, and goes on for as long as its end has not been written.
    let ended = |cx: &BlockingContext| {
        let (app, id) = (cx.context().app().clone(), cx.task_id().clone());
        let handle = tokio::runtime::Handle::current();
        handle.block_on(async move { app.async_result::<i64>(id).ready().await }).unwrap()
    };
    while !ended(&cx) {
        std::thread::yield_now();
    }
    1
}

#[celeriac::task(name = "limits.rated", rate_limit = "5/s")]
async fn rated(cx: Context) {
    cx.emit("began", &cx.deliveries()).await;
}

#[celeriac::task(name = "limits.panics")]
async fn panics() -> i64 {
    panic!("on purpose")
}

#[celeriac::task(name = "limits.panics_blocking", max_retries = 3)]
fn panics_blocking() -> i64 {
    panic!("on purpose")
}

#[celeriac::task(name = "limits.long")]
async fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

#[celeriac::task(name = "limits.quiet", ignore_result = true)]
async fn quiet() -> i64 {
    7
}

#[celeriac::task(name = "limits.parent")]
async fn parent(cx: Context) -> Result<Vec<String>, Error> {
    let first = add(1, 1).delay(cx.app()).await?;
    let second = group([add(2, 2), add(3, 3)]).delay(cx.app()).await?;
    Ok(vec![first.id().to_string(), second.id().to_string()])
}

#[celeriac::task(name = "limits.stranger")]
async fn stranger(cx: Context) -> u32 {
    cx.deliveries()
}

/// The stores that the tests below run on.
#[derive(Clone, Copy)]
enum Kind {
    Memory,
    Sqlite,
}

/// An application on a store of its own.
struct Bench {
    app: Celeriac,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = match kind {
            Kind::Memory => "memory://".to_owned(),
            Kind::Sqlite => sqlite_url(folder.path()),
        };
        let mut config = config(Duration::from_secs(60));
        config.task_body_bytes_max = 100_000;
        config.task_routes = vec![Route::to("limits.l*", "aside")];
        let app = Celeriac::connect(&url).await.unwrap().with_config(config);
        let app = app.register(add).register(asks).register(asks_blocking).register(cleans_up).register(deaf);
        let app = app.register(deaf_blocking).register(rated).register(panics).register(panics_blocking);
        let app = app.register(long).register(quiet).register(parent);
        Self { app, _folder: folder }
    }

    fn worker(&self) -> Running {
        Running::start(self.app.worker().concurrency(4))
    }

    /// With one slot, so that tasks begin in the order in which they are reserved.
    fn narrow_worker(&self) -> Running {
        Running::start(self.app.worker().concurrency(1))
    }
}

async fn failure<T: serde::de::DeserializeOwned + std::fmt::Debug>(result: &AsyncResult<T>) -> Exception {
    match result.get_timeout(PATIENCE).await.unwrap_err() {
        Error::Task(failure) => failure.exception.expect("a failure has an exception"),
        other => panic!("not the failure of a task: {other}"),
    }
}

macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Bench::new(super::Kind::Memory).await).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Bench::new(super::Kind::Sqlite).await).await;
            })*
        }
    };
}

on_every_store!(
    soft_limits_ask_and_hard_limits_stop,
    a_rate_limit_spaces_starts,
    what_has_expired_does_not_run,
    an_unknown_task_waits_for_a_worker_that_knows_it,
    what_cannot_be_read_is_kept_with_the_dead_letters,
    wrong_arguments_name_the_argument,
    panics_are_failures_and_not_retried,
    a_result_too_large_is_a_failure,
    an_ignored_result_keeps_the_state,
    one_key_is_one_run,
    priorities_are_kept,
    a_batch_is_sent_wholly_or_not_at_all,
    routes_name_queues,
    a_group_can_be_saved_and_restored,
    what_a_task_sends_is_its_child,
    a_reservation_that_waits_can_be_stopped,
    a_dead_letter_forgets_its_former_life,
);

async fn soft_limits_ask_and_hard_limits_stop(bench: Bench) {
    let (app, worker) = (&bench.app, bench.worker());
    let soon = Duration::from_millis(50);
    let soft = asks().soft_time_limit(soon).delay(app).await.unwrap();
    let soft_blocking = asks_blocking().soft_time_limit(soon).delay(app).await.unwrap();
    let cleaned = cleans_up().soft_time_limit(soon).delay(app).await.unwrap();
    assert_eq!(failure(&soft).await.exc_type, "SoftTimeLimitExceeded");
    assert_eq!(failure(&soft_blocking).await.exc_type, "SoftTimeLimitExceeded");
    assert_eq!(cleaned.get_timeout(PATIENCE).await.unwrap(), "told to stop: soft time limit");
    let hard = deaf().time_limit(soon).delay(app).await.unwrap();
    let hard_blocking = deaf_blocking().time_limit(soon).delay(app).await.unwrap();
    let both = deaf().soft_time_limit(soon).time_limit(2 * soon).delay(app).await.unwrap();
    for exception in [failure(&hard).await, failure(&hard_blocking).await, failure(&both).await] {
        assert_eq!(exception.exc_type, "TimeLimitExceeded");
    }
    let all = [soft.id(), soft_blocking.id(), hard.id(), hard_blocking.id(), both.id()];
    let report = worker.stop().await;
    assert_eq!((report.succeeded, report.failed, report.lost), (1, 5, 0));
    each_ended_once(app, &all, "FAILURE").await;
}

async fn a_rate_limit_spaces_starts(bench: Bench) {
    let app = &bench.app;
    let sent = SystemClock.now();
    let results = app.publish_batch(&[rated(), rated(), rated(), rated()]).await.unwrap();
    let worker = bench.worker();
    let records = feed_until(app, |records| count(records, None, "end") == 4).await;
    let mut starts: Vec<Timestamp> = records
        .iter()
        .filter(|record| &*record.entry.event == "began")
        .map(|record| record.entry.at)
        .collect();
    starts.sort();
    // The first start was after the sending, and each later one no sooner than a fifth of a second after the last.
    for (place, start) in (0_u32..).zip(&starts) {
        let since = Duration::try_from(start.duration_since(sent)).unwrap();
        assert!(
            since + Duration::from_millis(5) >= Duration::from_millis(200) * place,
            "start {place} after {since:?}"
        );
    }
    for record in records.iter().filter(|record| &*record.entry.event == "began") {
        assert_eq!(record.entry.data.as_str(), "1", "a hand-back for the rate is no delivery");
    }
    let ids: Vec<TaskId> = results.iter().map(AsyncResult::id).collect();
    each_ended_once(app, &ids, "SUCCESS").await;
    assert_eq!(worker.stop().await.succeeded, 4);
}

async fn what_has_expired_does_not_run(bench: Bench) {
    let app = &bench.app;
    let expired = add(1, 1).expires(SystemClock.now()).delay(app).await.unwrap();
    let fresh = add(1, 1).expires_in(Duration::from_secs(3600)).delay(app).await.unwrap();
    let worker = bench.worker();
    assert_eq!(fresh.get_timeout(PATIENCE).await.unwrap(), 2);
    let exception = failure(&expired).await;
    assert_eq!(
        (exception.exc_type.as_str(), exception.message().as_deref()),
        ("TaskRevokedError", Some("expired"))
    );
    assert_eq!(expired.state().await.unwrap(), State::Revoked);
    let records = feed_until(app, |_| true).await;
    assert_eq!(count(&records, Some(&expired.id()), "began"), 0);
    assert_eq!(worker.stop().await.revoked, 1);
}

async fn an_unknown_task_waits_for_a_worker_that_knows_it(bench: Bench) {
    let app = &bench.app;
    let ignorant = bench.worker();
    let result = stranger().delay(app).await.unwrap();
    // Behind it in the queue: when this has run, the stranger has been looked at.
    add(1, 1).delay(app).await.unwrap().get_timeout(PATIENCE).await.unwrap();
    assert_eq!(result.state().await.unwrap(), State::Pending);
    assert!(ignorant.stop().await.handed_back > 0);
    let place = result.place().await.unwrap().unwrap();
    assert!(matches!(place.phase, Phase::Delayed | Phase::Queued), "{place:?}");
    let knowing = Running::start(app.clone().register(stranger).worker().concurrency(1));
    assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 1, "it was not delivered in vain");
    knowing.stop().await;
}

async fn what_cannot_be_read_is_kept_with_the_dead_letters(bench: Bench) {
    let (app, worker) = (&bench.app, bench.worker());
    let id = TaskId::from("unreadable");
    let message =
        RawMessage { head: "{\"headers\": 7}".into(), body: bytes::Bytes::from_static(b"\xff\x00 not json") };
    let routed = Routed {
        task_id: id.clone(),
        task: "limits.add".into(),
        queue: QueueName::from("celery"),
        priority: 0,
        due: None,
        unique: false,
        tags: Vec::new(),
        message: message.clone(),
    };
    app.store().broker.publish(vec![routed]).await.unwrap();
    let exception = failure(&app.async_result::<i64>(id.clone())).await;
    assert_eq!(exception.exc_type, "DecodeError");
    let dead = app.store().broker.dead(0, 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!((&dead[0].task_id, &dead[0].message), (&id, &message));
    assert!(dead[0].reason.contains("cannot be decoded"), "{}", dead[0].reason);
    each_ended_once(app, &[id], "FAILURE").await;
    assert_eq!(worker.stop().await.failed, 1);
}

async fn wrong_arguments_name_the_argument(bench: Bench) {
    let (app, worker) = (&bench.app, bench.worker());
    let json = |text: &str| Json::from_value(text).unwrap();
    let wrong_type =
        signature("limits.add", vec![Json::from_value(&1).unwrap(), json("two")]).delay(app).await.unwrap();
    let exception = failure(&wrong_type).await;
    assert_eq!(exception.exc_type, "TypeError");
    assert!(exception.message().unwrap().contains("'y'"), "{exception}");
    let missing =
        app.send_task("limits.add", Vec::new(), JsonMap::new(), CallOptions::default()).await.unwrap();
    let exception = failure(&missing).await;
    assert_eq!(exception.exc_type, "TypeError");
    assert!(exception.message().unwrap().contains("'x'"), "{exception}");
    assert_eq!(worker.stop().await.failed, 2);
}

async fn panics_are_failures_and_not_retried(bench: Bench) {
    let (app, worker) = (&bench.app, bench.worker());
    let (future, thread) = (panics().delay(app).await.unwrap(), panics_blocking().delay(app).await.unwrap());
    for result in [future, thread] {
        let exception = failure(&result).await;
        assert_eq!(
            (exception.exc_type.as_str(), exception.message().as_deref()),
            ("Panic", Some("on purpose"))
        );
        let traceback = result.traceback().await.unwrap().unwrap();
        assert!(traceback.contains("limits.rs"), "{traceback}");
    }
    let report = worker.stop().await;
    assert_eq!((report.failed, report.retried), (2, 0));
}

async fn a_result_too_large_is_a_failure(bench: Bench) {
    let app = &bench.app;
    let worker = Running::start(app.worker().queues(["aside"]));
    assert_eq!(long(99_000).delay(app).await.unwrap().get_timeout(PATIENCE).await.unwrap().len(), 99_000);
    let exception = failure(&long(100_000).delay(app).await.unwrap()).await;
    assert_eq!(exception.exc_type, "EncodeError");
    let message = exception.message().unwrap();
    assert!(
        message.contains("100002 bytes") && message.contains("task_body_bytes_max is 100000"),
        "{message}"
    );
    worker.stop().await;
}

async fn an_ignored_result_keeps_the_state(bench: Bench) {
    let (app, worker) = (&bench.app, bench.worker());
    let by_task = quiet().delay(app).await.unwrap();
    let by_call = add(1, 1).ignore_result().delay(app).await.unwrap();
    let kept = quiet().set("ignore_result", &false).delay(app).await.unwrap();
    for id in [by_task.id(), by_call.id()] {
        let result = app.async_result::<Option<i64>>(id.clone());
        assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), None);
        each_ended_once(app, &[id], "SUCCESS").await;
    }
    assert_eq!(kept.get_timeout(PATIENCE).await.unwrap(), 7);
    worker.stop().await;
}

async fn one_key_is_one_run(bench: Bench) {
    let (app, worker) = (&bench.app, bench.worker());
    let mut submits = JoinSet::new();
    for _ in 0..100 {
        let app = app.clone();
        submits.spawn(async move { add(1, 1).idempotency_key("once").delay(&app).await.unwrap().id() });
    }
    let mut ids = submits.join_all().await;
    ids.dedup();
    assert_eq!(ids.len(), 1);
    let other = add(1, 1).idempotency_key("another").delay(app).await.unwrap();
    assert_ne!(other.id(), ids[0]);
    assert_eq!(app.async_result::<i64>(ids[0].clone()).get_timeout(PATIENCE).await.unwrap(), 2);
    // Still, when it has finished.
    assert_eq!(add(1, 1).idempotency_key("once").delay(app).await.unwrap().id(), ids[0]);
    assert_eq!(other.get_timeout(PATIENCE).await.unwrap(), 2);
    let report = worker.stop().await;
    assert_eq!(report.succeeded, 2);
    each_ended_once(app, &ids, "SUCCESS").await;
}

async fn priorities_are_kept(bench: Bench) {
    let app = &bench.app;
    let mut expected = Vec::new();
    for priority in [9, 3, 0, 3, 6] {
        let id = add(1, 1).priority(priority).delay(app).await.unwrap().id();
        expected.push((priority, id));
    }
    // Lower first, and in the order of sending among equals: the sort is stable.
    expected.sort_by_key(|(priority, _)| *priority);
    let worker = bench.narrow_worker();
    let records = feed_until(app, |records| count(records, None, "end") == 5).await;
    let began: Vec<TaskId> = records
        .iter()
        .filter(|record| &*record.entry.event == "began")
        .map(|record| record.task_id.clone())
        .collect();
    assert_eq!(began, expected.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
    worker.stop().await;
}

async fn a_batch_is_sent_wholly_or_not_at_all(bench: Bench) {
    let app = &bench.app;
    let wrong = app.publish_batch(&[add(1, 1), add(2, 2).set("countdown", "soon")]).await.unwrap_err();
    assert!(wrong.to_string().contains("countdown"), "{wrong}");
    assert_eq!(app.store().broker.queues().await.unwrap(), [], "the good one was not sent either");
    let calls: Vec<_> = (0..1_000).map(|n| add(n, n)).collect();
    let results = app.publish_batch(&calls).await.unwrap();
    let worker = Running::start(app.worker().concurrency(64));
    for (number, result) in (0..).zip(&results) {
        assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 2 * number);
    }
    assert_eq!(worker.stop().await.succeeded, 1_000);
}

async fn routes_name_queues(bench: Bench) {
    let app = &bench.app;
    let routed = long(1).delay(app).await.unwrap();
    let plain = add(1, 1).delay(app).await.unwrap();
    let told = long(1).queue("told").delay(app).await.unwrap();
    for (id, queue) in [(routed.id(), "aside"), (plain.id(), "celery"), (told.id(), "told")] {
        let place = app.async_result::<Json>(id).place().await.unwrap().unwrap();
        assert_eq!(place.queue.as_str(), queue);
    }
    let worker = Running::start(app.worker().queues(["aside", "told"]));
    assert_eq!(routed.get_timeout(PATIENCE).await.unwrap(), "x");
    assert_eq!(told.get_timeout(PATIENCE).await.unwrap(), "x");
    assert_eq!(worker.stop().await.succeeded, 2);
    assert_eq!(plain.place().await.unwrap().unwrap().phase, Phase::Queued);
}

async fn a_group_can_be_saved_and_restored(bench: Bench) {
    let (app, worker) = (&bench.app, bench.worker());
    let sent = group([add(1, 1), add(2, 2), add(3, 3)]).delay(app).await.unwrap();
    sent.save().await.unwrap();
    let id = GroupId::from(sent.id().as_str());
    let restored = app.restore_group::<i64>(&id).await.unwrap().unwrap();
    assert_eq!(restored.as_tuple(), sent.as_tuple());
    assert_eq!(restored.get_timeout(PATIENCE).await.unwrap(), [2, 4, 6]);
    assert_eq!(restored.completed_count().await.unwrap(), 3);
    assert!(app.restore_group::<i64>(&GroupId::from("never saved")).await.unwrap().is_none());
    restored.delete().await.unwrap();
    assert!(app.restore_group::<i64>(&id).await.unwrap().is_none());
    assert_eq!(sent.get_timeout(PATIENCE).await.unwrap(), [2, 4, 6]);
    let single = add(1, 1).delay(app).await.unwrap();
    assert!(single.delete().await.unwrap_err().to_string().contains("only a group"));
    assert!(single.save().await.unwrap_err().to_string().contains("only a group"));
    worker.stop().await;
}

async fn what_a_task_sends_is_its_child(bench: Bench) {
    let (app, worker) = (&bench.app, bench.worker());
    let result = parent().delay(app).await.unwrap();
    let sent = result.get_timeout(PATIENCE).await.unwrap();
    let children = result.children().await.unwrap();
    assert_eq!(children.iter().map(|child| child.id().to_string()).collect::<Vec<_>>(), sent);
    assert_eq!(children[0].get_timeout(PATIENCE).await.unwrap().as_str(), "2");
    assert_eq!(children[1].get_timeout(PATIENCE).await.unwrap().to::<Vec<i64>>().unwrap(), [4, 6]);
    let child = children[0].info().await.unwrap().unwrap();
    assert_eq!(child.parent_id, Some(result.id()));
    events(app, &children[0].id(), "end", 1).await;
    worker.stop().await;
}

async fn a_reservation_that_waits_can_be_stopped(bench: Bench) {
    let broker = bench.app.store().broker.clone();
    let stop = CancellationToken::new();
    let lease = Duration::from_secs(60);
    let request = Reserve { limit: 1, ..wanted(&stop, lease) };
    let waiting = tokio::spawn(async move { broker.reserve(&request).await });
    stop.cancel();
    // A store that does not listen waits for an hour, as asked.
    let found = tokio::time::timeout(PATIENCE, waiting).await.expect("it is told to stop").unwrap();
    assert!(found.unwrap().is_empty());
}

fn wanted(stop: &CancellationToken, lease: Duration) -> Reserve {
    Reserve {
        worker: WorkerName::from("bench"),
        queues: vec![QueueName::from("celery")],
        limit: 1,
        lease,
        wait: Duration::from_secs(3_600),
        stop: stop.clone(),
    }
}

async fn a_dead_letter_forgets_its_former_life(bench: Bench) {
    let (app, broker) = (&bench.app, &bench.app.store().broker);
    let result = add(1, 1).delay(app).await.unwrap();
    let request = wanted(&CancellationToken::new(), Duration::ZERO);
    // Begun, and lost; revoked in the next worker's hands, which buries it.
    let first = broker.reserve(&request).await.unwrap().pop().unwrap();
    broker.begin(&[first.tag]).await.unwrap();
    while broker.restore().await.unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    let second = broker
        .reserve(&Reserve { lease: Duration::from_secs(60), ..request.clone() })
        .await
        .unwrap()
        .pop()
        .unwrap();
    assert!(second.begun);
    result.revoke(false).await.unwrap();
    assert!(broker.bury(&second.tag, "as the test wants it").await.unwrap());
    assert_eq!(broker.revive(&[result.id()]).await.unwrap(), [result.id()]);
    let revived =
        broker.reserve(&Reserve { lease: Duration::from_secs(60), ..request }).await.unwrap().pop().unwrap();
    assert_eq!((revived.deliveries, revived.begun, revived.revoked), (1, false, false));
}
