//! A task's whole way on one store: published, run, settled.

use std::time::Duration;

use celeriac::{BlockingContext, CallOptions, Celeriac, Context, Error, State, chain, chord, group};
use tokio::sync::oneshot;

#[celeriac::task(name = "it.add")]
async fn add(x: i64, y: i64) -> i64 {
    x + y
}

#[celeriac::task(name = "it.xsum")]
fn xsum(values: Vec<i64>) -> i64 {
    values.iter().sum()
}

#[celeriac::task(name = "it.fail")]
async fn fail(message: String) -> Result<i64, std::io::Error> {
    Err(std::io::Error::other(message))
}

#[celeriac::task(name = "it.panics")]
async fn panics() -> i64 {
    panic!("as asked")
}

#[celeriac::task(name = "it.streams")]
fn streams(cx: BlockingContext) -> i64 {
    cx.progress(1, 2);
    cx.token("hello ");
    cx.token("world");
    let value = cx.step("one", || Ok::<_, std::io::Error>(41)).expect("the step works");
    value + 1
}

#[celeriac::task(name = "it.flaky", max_retries = 3, default_retry_delay = 0)]
async fn flaky(cx: Context, times: u32) -> Result<u32, String> {
    if cx.retries() < times { Err(format!("try {}", cx.retries())) } else { Ok(cx.retries()) }
}

/// Shows a state of its own, then fails, or returns what it found under its id.
#[celeriac::task(name = "it.shows")]
async fn shows(cx: Context, fails: bool) -> Result<serde_json::Value, celeriac::protocol::Exception> {
    cx.update_state("PROGRESS", &serde_json::json!({ "current": 1 })).await;
    cx.update_state("SUCCESS", &"too early").await;
    let meta = cx.app().async_result::<celeriac::Json>(cx.task_id()).info().await.expect("the store answers");
    let meta = meta.expect("a state is stored");
    if fails {
        return Err(celeriac::protocol::Exception::builtin("ValueError", meta.state.as_str()));
    }
    Ok(serde_json::json!([meta.state, meta.result]))
}

/// An application on a store of its own, and a worker for it.
struct Engine {
    app: Celeriac,
    stop: oneshot::Sender<()>,
    worker: tokio::task::JoinHandle<celeriac::Result<celeriac::worker::Report>>,
    _folder: tempfile::TempDir,
}

/// The stores that the tests below run on.
#[derive(Clone, Copy)]
enum Kind {
    Memory,
    Sqlite,
}

/// Each test on each store.
macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Kind::Memory).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Kind::Sqlite).await;
            })*
        }
    };
}

on_every_store!(
    a_task_runs_and_its_result_arrives,
    a_failure_tells_type_message_and_traceback,
    canvas,
    retries_and_streams,
    a_task_shows_states_of_its_own,
    what_waits_is_revoked_at_once,
);

impl Engine {
    async fn start(store: Kind) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the store");
        let url = match store {
            Kind::Memory => "memory://".to_owned(),
            Kind::Sqlite => format!("sqlite://{}/celeriac.db", folder.path().display()),
        };
        let app = Celeriac::connect(&url).await.expect("the store opens");
        let app = app
            .register(add)
            .register(xsum)
            .register(fail)
            .register(panics)
            .register(streams)
            .register(flaky)
            .register(shows);
        let (stop, stopped) = oneshot::channel();
        let worker = app.worker().concurrency(4);
        let worker = tokio::spawn(worker.run(async { drop(stopped.await) }));
        Self { app, stop, worker, _folder: folder }
    }

    async fn stop(self) -> celeriac::worker::Report {
        let _ = self.stop.send(());
        self.worker.await.expect("the worker does not panic").expect("the worker ran")
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

async fn a_task_runs_and_its_result_arrives(store: Kind) {
    let engine = Engine::start(store).await;
    let result = add(2, 3).delay(&engine.app).await.unwrap();
    assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 5);
    assert_eq!(result.state().await.unwrap(), State::Success);
    let report = engine.stop().await;
    assert_eq!(report.succeeded, 1);
}

async fn a_failure_tells_type_message_and_traceback(store: Kind) {
    let engine = Engine::start(store).await;
    let result = fail("no disk".to_owned()).delay(&engine.app).await.unwrap();
    let Error::Task(failure) = result.get_timeout(PATIENCE).await.unwrap_err() else {
        panic!("not a failure")
    };
    assert_eq!(failure.state, State::Failure);
    let exception = failure.exception.unwrap();
    assert_eq!((exception.exc_type.as_str(), exception.message().as_deref()), ("Error", Some("no disk")));
    assert!(failure.traceback.unwrap().contains("no disk"));
    let result = panics().delay(&engine.app).await.unwrap();
    let Error::Task(failure) = result.get_timeout(PATIENCE).await.unwrap_err() else {
        panic!("not a failure")
    };
    let exception = failure.exception.unwrap();
    assert_eq!((exception.exc_type.as_str(), exception.message().as_deref()), ("Panic", Some("as asked")));
    assert!(failure.traceback.unwrap().contains("engine.rs"));
    assert_eq!(add(1, 1).delay(&engine.app).await.unwrap().get_timeout(PATIENCE).await.unwrap(), 2);
    engine.stop().await;
}

async fn canvas(store: Kind) {
    let engine = Engine::start(store).await;
    let app = &engine.app;
    let chained = add(1, 2).then(add::s(3)).then(add::s(4)).delay(app).await.unwrap();
    assert_eq!(chained.get_timeout(PATIENCE).await.unwrap(), 10);
    let grouped = group([add(1, 1), add(2, 2)]).delay(app).await.unwrap();
    assert_eq!(grouped.get_timeout(PATIENCE).await.unwrap(), [2, 4]);
    let summed = chord((0..10).map(|n| add(n, n)), xsum::s()).delay(app).await.unwrap();
    assert_eq!(summed.get_timeout(PATIENCE).await.unwrap(), 90);
    let nested = chain([add(1, 1)]).then(chord([add::s(1), add::s(2)], xsum::s())).then(add::s(100));
    assert_eq!(nested.delay(app).await.unwrap().get_timeout(PATIENCE).await.unwrap(), 107);
    let failing =
        chord([add(1, 1), fail("x".to_owned()).then(add::s(1))], xsum::s()).delay(app).await.unwrap();
    let Error::Task(failure) = failing.get_timeout(PATIENCE).await.unwrap_err() else {
        panic!("not a failure")
    };
    let exception = failure.exception.unwrap();
    assert_eq!(exception.exc_type, "ChordError");
    assert!(exception.message().unwrap().ends_with("raised Error('x')"), "{exception}");
    let mapped = celeriac::map(add::s(1), &[1, 2]);
    drop(mapped);
    let starmapped = celeriac::starmap(add(0, 0), &[(1, 2), (3, 4)]).delay(app).await.unwrap();
    assert_eq!(starmapped.get_timeout(PATIENCE).await.unwrap(), [3, 7]);
    engine.stop().await;
}

async fn retries_and_streams(store: Kind) {
    let engine = Engine::start(store).await;
    let app = &engine.app;
    assert_eq!(flaky(2).delay(app).await.unwrap().get_timeout(PATIENCE).await.unwrap(), 2);
    let hopeless = flaky(9).delay(app).await.unwrap();
    let Error::Task(failure) = hopeless.get_timeout(PATIENCE).await.unwrap_err() else {
        panic!("not a failure")
    };
    assert_eq!(failure.exception.unwrap().message().as_deref(), Some("try 3"));
    let streamed = streams().delay(app).await.unwrap();
    assert_eq!(streamed.get_timeout(PATIENCE).await.unwrap(), 42);
    let page = app.store().backend.log(&streamed.id(), 0, 100).await.unwrap().unwrap();
    let events: Vec<&str> = page.entries.iter().map(|entry| &*entry.event).collect();
    assert_eq!(events, ["state", "progress", "token", "step", "end"]);
    assert!(page.ended);
    engine.stop().await;
}

async fn a_task_shows_states_of_its_own(store: Kind) {
    let engine = Engine::start(store).await;
    let app = &engine.app;
    let shown = shows(false).delay(app).await.unwrap();
    let expected = serde_json::json!(["PROGRESS", { "current": 1 }]);
    assert_eq!(shown.get_timeout(PATIENCE).await.unwrap(), expected);
    let page = app.store().backend.log(&shown.id(), 0, 100).await.unwrap().unwrap();
    let states = page.entries.iter().filter(|entry| &*entry.event == "state");
    let states: Vec<serde_json::Value> = states.map(|entry| entry.data.to().unwrap()).collect();
    assert_eq!(
        (&states[0]["state"], &states[1]),
        (&"STARTED".into(), &serde_json::json!({ "state": "PROGRESS" }))
    );
    assert_eq!(states.len(), 2);
    // What a task says of its error is what its caller sees.
    let failed = shows(true).delay(app).await.unwrap();
    let Error::Task(failure) = failed.get_timeout(PATIENCE).await.unwrap_err() else {
        panic!("not a failure")
    };
    assert_eq!(failure.exception.unwrap(), celeriac::protocol::Exception::builtin("ValueError", "PROGRESS"));
    engine.stop().await;
}

async fn what_waits_is_revoked_at_once(store: Kind) {
    let engine = Engine::start(store).await;
    let app = &engine.app;
    let options = CallOptions { countdown: Some(Duration::from_secs(3600)), ..CallOptions::default() };
    let later = add(1, 1).apply_async(app, options).await.unwrap();
    assert_eq!(later.revoke(false).await.unwrap(), [celeriac::Revoked::Scheduled]);
    assert_eq!(later.wait(PATIENCE).await.unwrap(), State::Revoked);
    engine.stop().await;
}
