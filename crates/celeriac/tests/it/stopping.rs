//! Runs that are stopped: by a shutdown, by a revocation, by a lost lease.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use celeriac::broker::Reserve;
use celeriac::clock::SystemClock;
use celeriac::id::WorkerName;
use celeriac::memory::MemoryStore;
use celeriac::state::Phase;
use celeriac::store::Store;
use celeriac::testing::{Fault, FaultPlan, Faulty};
use celeriac::{
    BlockingContext, CallOptions, Cancelled, Celeriac, Config, Context, Error, Revoked, State, TaskId,
};
use tokio_util::sync::CancellationToken;

use super::support::{PATIENCE, Running, config, count, each_ended_once, events, sqlite_url};

/// Opened by a test, awaited by its tasks.
fn gate(name: &str) -> CancellationToken {
    static GATES: LazyLock<Mutex<HashMap<String, CancellationToken>>> = LazyLock::new(Mutex::default);
    GATES.lock().unwrap().entry(name.to_owned()).or_default().clone()
}

/// A gate of one test.
fn fresh(name: &str) -> (String, CancellationToken) {
    let name = format!("{name} {}", TaskId::random());
    (name.clone(), gate(&name))
}

/// Opens a gate when it is dropped.
struct Opens(String);

impl Drop for Opens {
    fn drop(&mut self) {
        gate(&self.0).cancel();
    }
}

#[celeriac::task(name = "stopping.gated")]
async fn gated(cx: Context, name: String, dropped: String) -> u32 {
    let _dropped = Opens(dropped);
    cx.emit("began", &cx.deliveries()).await;
    gate(&name).cancelled().await;
    cx.deliveries()
}

#[celeriac::task(name = "stopping.obedient")]
fn obedient(cx: BlockingContext) -> Result<u32, Cancelled> {
    cx.emit("began", &1);
    loop {
        cx.check()?;
        std::thread::yield_now();
    }
}

#[celeriac::task(name = "stopping.stubborn")]
fn stubborn(cx: BlockingContext, name: String, left: String) -> u32 {
    let _left = Opens(left);
    cx.emit("began", &1);
    while !gate(&name).is_cancelled() {
        std::thread::yield_now();
    }
    1
}

#[celeriac::task(name = "stopping.short")]
async fn short(runs: String) -> bool {
    RUNS.lock().unwrap().entry(runs).or_default().fetch_add(1, Ordering::Relaxed);
    true
}

static RUNS: LazyLock<Mutex<HashMap<String, AtomicUsize>>> = LazyLock::new(Mutex::default);

async fn memory(config: Config) -> Celeriac {
    with_tasks(Celeriac::connect("memory://").await.unwrap().with_config(config))
}

fn with_tasks(app: Celeriac) -> Celeriac {
    app.register(gated).register(obedient).register(stubborn)
}

const LONG_LEASE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_shutdown_lets_runs_finish_and_hands_back_the_rest() {
    for by_timeout in [true, false] {
        let mut config = config(LONG_LEASE);
        config.worker_shutdown_timeout = if by_timeout { Duration::from_secs(2) } else { LONG_LEASE };
        let app = memory(config).await;
        let (short_name, short_gate) = fresh("short");
        let (long_name, long_gate) = fresh("long");
        let dropped_name = format!("{long_name} dropped");
        let cold = CancellationToken::new();
        let worker = Running::start(app.worker().concurrency(2).cold_shutdown(cold.clone()));
        let short = gated(short_name, "unused".to_owned()).delay(&app).await.unwrap();
        let long = gated(long_name, dropped_name.clone()).delay(&app).await.unwrap();
        events(&app, &short.id(), "began", 1).await;
        events(&app, &long.id(), "began", 1).await;

        let report = worker.shut_down();
        short_gate.cancel();
        assert_eq!(short.get_timeout(PATIENCE).await.unwrap(), 1, "it may finish while the worker stops");
        if !by_timeout {
            cold.cancel();
        }
        let report = report.await;
        assert_eq!((report.succeeded, report.handed_back, report.lost), (1, 1, 0));
        assert!(gate(&dropped_name).is_cancelled(), "the future is gone");
        assert_eq!(long.place().await.unwrap().unwrap().phase, Phase::Queued, "at once, not after its lease");

        let heir = Running::start(app.worker().concurrency(1));
        long_gate.cancel();
        assert_eq!(long.get_timeout(PATIENCE).await.unwrap(), 1, "a hand-back does not count as a delivery");
        each_ended_once(&app, &[short.id(), long.id()], "SUCCESS").await;
        assert_eq!(heir.stop().await.succeeded, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_outlives_the_process_that_made_it() {
    let folder = tempfile::tempdir().unwrap();
    let open = async || {
        let app = Celeriac::connect(&sqlite_url(folder.path())).await.unwrap();
        with_tasks(app.with_config(config(LONG_LEASE)))
    };
    let (name, gate) = fresh("never");
    gate.cancel();
    let app = open().await;
    let queued = gated(name.clone(), String::new()).delay(&app).await.unwrap();
    let later = CallOptions { countdown: Some(LONG_LEASE), ..CallOptions::default() };
    let delayed = gated(name.clone(), String::new()).apply_async(&app, later).await.unwrap();
    let wanted = gated(name, String::new()).delay(&app).await.unwrap();
    let unknown = TaskId::from("never sent");
    let ids = [queued.id(), delayed.id(), unknown];
    assert_eq!(
        app.revoke(&ids, false).await.unwrap(),
        [Revoked::Queued, Revoked::Scheduled, Revoked::Unknown]
    );
    for result in [&queued, &delayed] {
        assert_eq!(result.state().await.unwrap(), State::Revoked, "no worker is needed for that");
    }
    drop(app);

    let app = open().await;
    let worker = Running::start(app.worker().concurrency(1));
    let wanted = app.async_result::<u32>(wanted.id());
    assert_eq!(wanted.get_timeout(PATIENCE).await.unwrap(), 1);
    assert_eq!(app.revoke(&[queued.id()], true).await.unwrap(), [Revoked::Finished]);
    let records = events(&app, &wanted.id(), "end", 1).await;
    assert_eq!(count(&records, None, "began"), 1, "only the one that is wanted has run");
    each_ended_once(&app, &ids[..2], "REVOKED").await;
    assert_eq!(worker.stop().await.succeeded, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn terminate_stops_a_future() {
    let app = memory(config(LONG_LEASE)).await;
    let worker = Running::start(app.worker().concurrency(1));
    let (name, _) = fresh("closed");
    let (dropped, is_dropped) = fresh("dropped");
    let result = gated(name, dropped).delay(&app).await.unwrap();
    events(&app, &result.id(), "began", 1).await;
    let Revoked::Running { terminate, .. } = &result.revoke(true).await.unwrap()[0] else {
        panic!("it runs")
    };
    assert!(terminate);
    assert_eq!(result.wait(PATIENCE).await.unwrap(), State::Revoked);
    assert!(is_dropped.is_cancelled());
    let Error::Task(failure) = result.get().await.unwrap_err() else { panic!("not the failure of a task") };
    let exception = failure.exception.unwrap();
    assert_eq!(
        (exception.exc_type.as_str(), exception.message().as_deref()),
        ("TaskRevokedError", Some("terminated"))
    );
    each_ended_once(&app, &[result.id()], "REVOKED").await;
    assert_eq!(worker.stop().await.revoked, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn terminate_stops_a_thread_or_lets_go_of_it() {
    let app = memory(config(LONG_LEASE)).await;
    let worker = Running::start(app.worker().concurrency(1));
    let result = obedient().delay(&app).await.unwrap();
    events(&app, &result.id(), "began", 1).await;
    result.revoke(true).await.unwrap();
    assert_eq!(result.wait(PATIENCE).await.unwrap(), State::Revoked);

    let (name, open) = fresh("closed");
    let (left, has_left) = fresh("left");
    let thread = stubborn(name, left).delay(&app).await.unwrap();
    events(&app, &thread.id(), "began", 1).await;
    thread.revoke(true).await.unwrap();
    assert_eq!(thread.wait(PATIENCE).await.unwrap(), State::Revoked, "before the thread has ended");
    assert!(!has_left.is_cancelled());
    let records = events(&app, &thread.id(), "end", 1).await;
    assert_eq!(count(&records, Some(&thread.id()), "log"), 1, "the log says that the thread goes on");
    // Its slot is taken for as long as it lives.
    let (name, next_gate) = fresh("next");
    next_gate.cancel();
    let next = gated(name, String::new()).delay(&app).await.unwrap();
    assert_eq!(next.place().await.unwrap().unwrap().phase, Phase::Queued);
    open.cancel();
    assert_eq!(next.get_timeout(PATIENCE).await.unwrap(), 1);
    assert!(has_left.is_cancelled());
    each_ended_once(&app, &[result.id(), thread.id()], "REVOKED").await;
    assert_eq!(worker.stop().await.revoked, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mere_revocation_lets_a_run_go_on_until_it_is_terminated() {
    let app = memory(config(LONG_LEASE)).await;
    let worker = Running::start(app.worker().concurrency(1));
    let (name, open) = fresh("closed");
    let result = gated(name, String::new()).delay(&app).await.unwrap();
    events(&app, &result.id(), "began", 1).await;
    assert!(matches!(result.revoke(false).await.unwrap()[..], [Revoked::Running { terminate: false, .. }]));
    open.cancel();
    assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 1);

    let (name, _) = fresh("closed");
    let result = gated(name, String::new()).delay(&app).await.unwrap();
    events(&app, &result.id(), "began", 1).await;
    result.revoke(false).await.unwrap();
    result.revoke(true).await.unwrap();
    assert_eq!(result.wait(PATIENCE).await.unwrap(), State::Revoked);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_stops_the_future() {
    let store = Store::of(MemoryStore::new(SystemClock::shared()));
    let plan = FaultPlan::none();
    let build = async |store: Store| {
        let builder = Celeriac::builder().store(store).config(config(Duration::from_secs(2)));
        with_tasks(builder.connect().await.unwrap())
    };
    let app = build(store.clone()).await;
    let cut_off = build(Faulty::new(store, &plan)).await;
    let first = Running::start(cut_off.worker().concurrency(1));
    let (name, open) = fresh("closed");
    let (dropped, is_dropped) = fresh("dropped");
    let result = gated(name, dropped).delay(&app).await.unwrap();
    events(&app, &result.id(), "began", 1).await;
    plan.set_outage(true);
    let second = Running::start(app.worker().concurrency(1));
    events(&app, &result.id(), "began", 2).await;
    assert!(!is_dropped.is_cancelled(), "it cannot know");
    plan.set_outage(false);
    tokio::time::timeout(PATIENCE, is_dropped.cancelled()).await.expect("the future is dropped");
    open.cancel();
    assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 2);
    let report = first.stop().await;
    assert_eq!((report.succeeded, report.lost), (0, 1));
    assert_eq!(second.stop().await.succeeded, 1);
    each_ended_once(&app, &[result.id()], "SUCCESS").await;
}

/// As when an orchestrator kills what does not stop in time.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopping_worker_holds_when_it_is_killed_begins_elsewhere_soon() {
    let store = Store::of(MemoryStore::new(SystemClock::shared()));
    let plan = FaultPlan::none();
    let build = async |store: Store| {
        with_tasks(Celeriac::builder().store(store).config(config(LONG_LEASE)).connect().await.unwrap())
    };
    let app = build(store.clone()).await;
    let first = build(Faulty::new(store, &plan)).await;
    let first = Running::start(first.worker().concurrency(1));
    let (name, open) = fresh("held");
    let result = gated(name, "unused".to_owned()).delay(&app).await.unwrap();
    events(&app, &result.id(), "began", 1).await;
    let renewed = plan.calls_of("extend");
    let report = first.shut_down();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while plan.calls_of("extend") < renewed + 2 {
        assert!(tokio::time::Instant::now() < deadline, "it goes on renewing its lease while it stops");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    plan.set_outage(true);
    let second = Running::start(app.worker().concurrency(1));
    // Within less than the lease that it began with.
    events(&app, &result.id(), "began", 2).await;
    plan.set_outage(false);
    open.cancel();
    assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 2);
    assert_eq!((report.await.lost, second.stop().await.succeeded), (1, 1));
}

/// What was reserved and has to wait until another is on its way is held as well.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_behind_another_of_its_batch_keeps_its_lease() {
    let store = Store::of(MemoryStore::new(SystemClock::shared()));
    // Whether one that comes again has ended is looked up, which takes its time.
    let plan = FaultPlan::nth_of("fetch", 1, Fault::Late { yields: 1_500_000 });
    let build = async |store: Store| {
        let builder = Celeriac::builder().store(store).config(config(Duration::from_secs(1)));
        with_tasks(builder.connect().await.unwrap())
    };
    let app = build(store.clone()).await;
    let slow = build(Faulty::new(store, &plan)).await;
    let (name, open) = fresh("open");
    open.cancel();
    let again = gated(name.clone(), String::new()).delay(&app).await.unwrap();
    let request = Reserve {
        worker: WorkerName::from("before"),
        queues: vec![app.config().task_default_queue.as_str().into()],
        limit: 1,
        lease: LONG_LEASE,
        wait: Duration::ZERO,
        stop: CancellationToken::new(),
    };
    let taken = app.store().broker.reserve(&request).await.unwrap();
    app.store().broker.requeue(&[taken[0].tag.clone()], None, true).await.unwrap();
    let behind = gated(name, String::new()).delay(&app).await.unwrap();

    let first = Running::start(slow.worker().concurrency(4));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while plan.calls_of("fetch") == 0 {
        assert!(tokio::time::Instant::now() < deadline, "it looks whether the first has ended");
        tokio::task::yield_now().await;
    }
    let second = Running::start(app.worker().concurrency(4));
    assert_eq!(behind.get_timeout(PATIENCE).await.unwrap(), 1, "nobody else has had it");
    again.get_timeout(PATIENCE).await.unwrap();
    first.stop().await;
    second.stop().await;
    each_ended_once(&app, &[again.id(), behind.id()], "SUCCESS").await;
}

/// A worker that stops in the midst of many has called for some that it has not heard of yet: they run, or go back.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_called_for_when_it_stopped_is_not_left_held() {
    const ALL: usize = 1_000;
    let name = TaskId::random().to_string();
    let runs = || RUNS.lock().unwrap().get(&name).map_or(0, |runs| runs.load(Ordering::Relaxed));
    // Whichever of the calls it is, be it one of two under way.
    for (round, late) in (1..=6).enumerate() {
        let store = Store::of(MemoryStore::new(SystemClock::shared()));
        let plan = FaultPlan::nth_of("reserve", late, Fault::ReplyLate { yields: 50_000 });
        let build = async |store: Store| {
            let builder = Celeriac::builder().store(store).config(config(LONG_LEASE));
            builder.connect().await.unwrap().register(short)
        };
        let app = build(store.clone()).await;
        let slow = build(Faulty::new(store, &plan)).await;
        let calls: Vec<_> = (0..ALL).map(|_| short(name.clone())).collect();
        let results = app.publish_batch(&calls).await.unwrap();
        let worker = Running::start(slow.worker().concurrency(256));
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while plan.hits() == 0 {
            assert!(tokio::time::Instant::now() < deadline, "call {late} is made");
            tokio::task::yield_now().await;
        }
        worker.stop().await;
        let queues = app.store().broker.queues().await.unwrap();
        assert_eq!(queues.iter().map(|queue| queue.reserved).sum::<u64>(), 0, "{queues:?}");
        let worker = Running::start(app.worker().concurrency(256));
        for result in &results {
            result.get_timeout(PATIENCE).await.unwrap();
        }
        worker.stop().await;
        assert_eq!(runs(), (round + 1) * ALL);
        let ids: Vec<TaskId> = results.iter().map(celeriac::AsyncResult::id).collect();
        each_ended_once(&app, &ids, "SUCCESS").await;
    }
}

/// However many wait: when a call brings some after the stop, no other one is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_reserves_no_more() {
    let store = Store::of(MemoryStore::new(SystemClock::shared()));
    // The second is the one beside that which waits.
    let plan = FaultPlan::nth_of("reserve", 2, Fault::ReplyLate { yields: 300_000 });
    let builder = Celeriac::builder().store(Faulty::new(store, &plan)).config(config(LONG_LEASE));
    let app = builder.connect().await.unwrap().register(short);
    let name = TaskId::random().to_string();
    let calls: Vec<_> = (0..20_000).map(|_| short(name.clone())).collect();
    app.publish_batch(&calls).await.unwrap();
    let worker = Running::start(app.worker().concurrency(256));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while plan.hits() == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the second call is made");
        tokio::task::yield_now().await;
    }
    let report = worker.shut_down();
    // Long enough for the call that waits to end, and not for the other's answer.
    for _ in 0..20_000 {
        tokio::task::yield_now().await;
    }
    let made = plan.calls_of("reserve");
    report.await;
    assert_eq!(plan.calls_of("reserve"), made);
}
