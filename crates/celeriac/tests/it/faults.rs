//! Every call that a workflow makes to its store fails once: before it happens, and with its reply lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use celeriac::clock::SystemClock;
use celeriac::memory::MemoryStore;
use celeriac::sqlite::{SqliteOptions, SqliteStore};
use celeriac::store::Store;
use celeriac::testing::{Fault, FaultPlan, Faulty};
use celeriac::{Celeriac, Context, Signature, TaskId, chord};
use tokio::task::JoinSet;

use super::support::{PATIENCE, Running, config, each_ended_once};

/// How often each task of each scenario ran, by id.
static RUNS: LazyLock<Mutex<BTreeMap<TaskId, u32>>> = LazyLock::new(Mutex::default);

fn ran(cx: &Context) {
    *RUNS.lock().unwrap().entry(cx.task_id().clone()).or_default() += 1;
}

fn runs(id: &TaskId) -> u32 {
    RUNS.lock().unwrap().get(id).copied().unwrap_or(0)
}

#[celeriac::task(name = "faults.add")]
async fn add(cx: Context, x: i64, y: i64) -> i64 {
    ran(&cx);
    x + y
}

#[celeriac::task(name = "faults.sum")]
async fn sum(cx: Context, values: Vec<i64>) -> i64 {
    ran(&cx);
    values.iter().sum()
}

#[celeriac::task(name = "faults.flaky", max_retries = 1, default_retry_delay = 0)]
async fn flaky(cx: Context, value: i64) -> Result<i64, String> {
    ran(&cx);
    if cx.retries() == 0 { Err("not yet".to_owned()) } else { Ok(value) }
}

#[celeriac::task(name = "faults.steps")]
async fn steps(cx: Context, value: i64) -> Result<i64, celeriac::task::StepError> {
    ran(&cx);
    let own = cx.clone();
    let value = cx
        .step("double", || async move {
            *RUNS.lock().unwrap().entry(TaskId::from(format!("{} step", own.task_id()))).or_default() += 1;
            Ok::<_, std::io::Error>(2 * value)
        })
        .await?;
    cx.token("half-way").await;
    cx.progress(1, 1).await;
    Ok(value)
}

fn memory(_folder: &Path) -> Store {
    Store::of(MemoryStore::new(SystemClock::shared()))
}

fn sqlite(folder: &Path) -> Store {
    let path = folder.join("celeriac.db");
    Store::of(SqliteStore::open(path, SqliteOptions::default(), SystemClock::shared()).unwrap())
}

async fn app(store: Store) -> Celeriac {
    // A lost reply of `reserve` costs the whole lease, and a lease too short is lost to a busy machine.
    let builder = Celeriac::builder().store(store).config(config(Duration::from_secs(3)));
    let app = builder.connect().await.unwrap();
    app.register(add).register(sum).register(flaky).register(steps)
}

/// A chord of a plain task, a chain of two and one that is retried, whose body has a step; `true` when no call of it failed.
async fn scenario(open: fn(&Path) -> Store, nth: u64, fault: Fault) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let sound = open(folder.path());
    let plan = FaultPlan::nth(nth, fault);
    let app_that_fails = app(Faulty::new(sound.clone(), &plan)).await;
    let sound = app(sound).await;
    let worker = Running::start(app_that_fails.worker().concurrency(2));

    let ids: Vec<TaskId> = (0..6).map(|_| TaskId::random()).collect();
    let [plain, first, second, retried, body, after] = &ids[..] else { unreachable!("six ids") };
    let header: [Signature; 3] = [
        add(1, 2).task_id(plain).into_dynamic(),
        add(3, 4).task_id(first).then(add::s(5).task_id(second)).into_dynamic(),
        flaky(6).task_id(retried).into_dynamic(),
    ];
    let workflow = chord(header, sum::s().task_id(body)).then(steps::s().task_id(after));
    let result = workflow.delay(&app_that_fails).await.unwrap();
    let what = format!("call {nth} ({:?}) {fault:?}", plan.last_hit());
    let value = result.get_timeout(PATIENCE).await;
    let what = format!("{what}, then {:?}", plan.last_hit());
    assert_eq!(value.unwrap_or_else(|error| panic!("{what}: {error}")), 42, "{what}");
    worker.stop().await;

    each_ended_once(&sound, &ids, "SUCCESS").await;
    for id in &ids {
        let expected = if id == retried { 2 } else { 1 };
        assert_eq!(runs(id), expected, "{what}: runs of {id}");
    }
    assert_eq!(runs(&TaskId::from(format!("{after} step"))), 1, "{what}: runs of the step");
    let queues = sound.store().broker.queues().await.unwrap();
    assert!(
        queues.iter().all(|queue| queue.ready + queue.delayed + queue.reserved == 0),
        "{what}: {queues:?}"
    );
    assert!(sound.store().backend.ready_chords(10).await.unwrap().is_empty(), "{what}");
    plan.hits() == 0
}

/// Scenarios that run at the same time: they mostly wait.
const AT_ONCE: usize = 12;
/// A sweep that goes on longer counts calls that a clock makes, not the workflow.
const CALLS_MAX: u64 = 400;

/// Strikes each call once, until the scenario has run untouched again and again: how many calls it makes varies.
async fn sweep(open: fn(&Path) -> Store, fault: Fault) {
    let mut next = 1;
    let mut untouched = 0;
    let mut running = JoinSet::new();
    while untouched < AT_ONCE || !running.is_empty() {
        while untouched < AT_ONCE && running.len() < AT_ONCE {
            running.spawn(scenario(open, next, fault));
            next += 1;
        }
        untouched += usize::from(running.join_next().await.expect("some run").expect("the scenario holds"));
        assert!(next <= CALLS_MAX, "the scenario never runs untouched");
    }
    assert!(next > 30, "the sweep struck nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_calls_that_fail() {
    sweep(memory, Fault::Before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_replies_that_are_lost() {
    sweep(memory, Fault::ReplyLost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_calls_that_fail() {
    sweep(sqlite, Fault::Before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_replies_that_are_lost() {
    sweep(sqlite, Fault::ReplyLost).await;
}
