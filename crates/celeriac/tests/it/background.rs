//! Background tasks of a web application: axum on a real socket.

mod processes;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use celeriac::background::{Background, BackgroundTasks, Error, Report};
use celeriac::state::Phase;
use celeriac::{AsyncResult, CallOptions, Celeriac, Config, Context, Retry, Revoked, State, TaskId};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, mpsc};
use tokio_util::sync::CancellationToken;

use super::support::{PATIENCE, config, count, each_ended_once, events, feed_until};

const LONG_LEASE: Duration = Duration::from_secs(60);

/// Opened by a test, awaited by its tasks.
fn opened(name: &str) -> CancellationToken {
    static OPENED: LazyLock<Mutex<HashMap<String, CancellationToken>>> = LazyLock::new(Mutex::default);
    OPENED.lock().unwrap().entry(name.to_owned()).or_default().clone()
}

fn fresh() -> (String, CancellationToken) {
    let name = TaskId::random().as_str().to_owned();
    (name.clone(), opened(&name))
}

#[celeriac::task(name = "background.quick")]
async fn quick(cx: Context) -> u32 {
    cx.emit("began", &cx.deliveries()).await;
    cx.deliveries()
}

#[celeriac::task(name = "background.waits")]
async fn waits(cx: Context, name: String) -> u32 {
    cx.emit("began", &cx.deliveries()).await;
    opened(&name).cancelled().await;
    cx.deliveries()
}

#[celeriac::task(name = "background.panics")]
async fn panics() {
    panic!("a task that panics");
}

#[celeriac::task(name = "background.fails", max_retries = 2)]
async fn fails(cx: Context, until: u32) -> Result<u32, Box<dyn std::error::Error + Send + Sync>> {
    if cx.retries() < until {
        return Err(Retry::new().countdown(Duration::ZERO).because("not yet").into());
    }
    Ok(cx.retries())
}

fn explode() {
    panic!("a closure that panics");
}

/// An `async fn` that does what it must not: it keeps its thread.
#[celeriac::task(name = "background.blocks")]
async fn blocks(name: String) {
    block_until(&name);
}

fn block_until(name: &str) {
    let opened = opened(name);
    while !opened.is_cancelled() {
        std::thread::yield_now();
    }
}

static MEETING: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(4));

#[celeriac::task(name = "background.meets")]
async fn meets() {
    MEETING.wait().await;
}

/// Stays in its first delivery for ever, and returns in the next one.
#[celeriac::task(name = "background.hold")]
async fn hold(cx: Context) -> u32 {
    cx.emit("began", &cx.deliveries()).await;
    if cx.deliveries() == 1 {
        std::future::pending::<()>().await;
    }
    cx.deliveries()
}

static TERMINATED: LazyLock<CancellationToken> = LazyLock::new(CancellationToken::new);

/// Returns after its process was told to stop.
#[celeriac::task(name = "background.outlasts")]
async fn outlasts(cx: Context) -> u32 {
    cx.emit("began", &cx.deliveries()).await;
    TERMINATED.cancelled().await;
    cx.deliveries()
}

fn with_tasks(app: Celeriac, config: Config) -> Celeriac {
    app.with_config(config)
        .register(quick)
        .register(waits)
        .register(panics)
        .register(fails)
        .register(blocks)
        .register(meets)
        .register(hold)
        .register(outlasts)
}

async fn memory() -> Celeriac {
    with_tasks(Celeriac::connect("memory://").await.unwrap(), config(LONG_LEASE))
}

/// Serves a router with the background's layer until it is told to stop.
async fn serve(router: Router, background: &Background, stop: CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = router.layer(background.layer());
    tokio::spawn(async move {
        axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await.unwrap();
    });
    address
}

async fn served(router: Router, background: &Background) -> SocketAddr {
    serve(router, background, CancellationToken::new()).await
}

/// Sends a request, and reads nothing.
async fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("{request} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// The whole response: status and body.
async fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let mut text = String::new();
    let mut stream = send(address, request).await;
    within(stream.read_to_string(&mut text)).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Reads a response until it holds `text`.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut read = Vec::new();
    loop {
        assert_ne!(within(stream.read_buf(&mut read)).await.unwrap(), 0, "the response ends without {text}");
        let so_far = String::from_utf8_lossy(&read);
        if so_far.contains(text) {
            return so_far.into_owned();
        }
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

/// Looks until it is so.
async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    within(async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A body that gives what is sent to it, and ends when the sender is dropped.
fn streaming(chunks: mpsc::UnboundedReceiver<&'static str>) -> Body {
    Body::from_stream(futures_util::stream::unfold(chunks, async |mut chunks| {
        let chunk = chunks.recv().await?;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(chunk.as_bytes())), chunks))
    }))
}

/// A route whose response is streamed by the test, and what its handler adds.
fn held_open<F>(add: impl Fn(BackgroundTasks) -> F + Clone + Send + Sync + 'static) -> (Router, Chunks)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::unbounded_channel();
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let handler = move |tasks: BackgroundTasks| {
        let (added, receiver) = (add(tasks), Arc::clone(&receiver));
        async move {
            added.await;
            streaming(receiver.lock().unwrap().take().expect("one request"))
        }
    };
    (Router::new().route("/", post(handler)), sender)
}

type Chunks = mpsc::UnboundedSender<&'static str>;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_starts_before_the_response_is_out() {
    let app = memory().await;
    let background = Background::builder(app.clone()).concurrency(1).threads(1).start().await.unwrap();
    let id = TaskId::from("behind the response");
    let (closure, has_run) = fresh();
    let (router, chunks) = held_open({
        let id = id.clone();
        move |tasks| {
            let (id, closure) = (id.clone(), closure.clone());
            async move {
                tasks.spawn("closure", async move { opened(&closure).cancel() }).unwrap();
                tasks.add(quick().task_id(&id)).await.unwrap();
            }
        }
    });
    let address = served(router, &background).await;
    let mut client = send(address, "POST /").await;
    chunks.send("first").unwrap();
    read_until(&mut client, "first").await;

    // The one slot goes to tasks that were sent later: what waits does not take it, and does not start.
    for _ in 0..3 {
        assert_eq!(quick().delay(&app).await.unwrap().get_timeout(PATIENCE).await.unwrap(), 1);
    }
    let (later, later_has_run) = fresh();
    background.tasks().spawn("later", async move { opened(&later).cancel() }).unwrap();
    within(later_has_run.cancelled()).await;
    let result = app.async_result::<u32>(&id);
    assert_eq!(result.place().await.unwrap().unwrap().phase, Phase::Reserved, "the worker has it in hand");
    let records = feed_until(&app, |_| true).await;
    assert_eq!(count(&records, Some(&id), "began"), 0);
    assert!(!has_run.is_cancelled());

    drop(chunks);
    assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 1);
    within(has_run.cancelled()).await;
    read_until(&mut client, "0\r\n\r\n").await;
    let report = background.shutdown().await;
    assert_eq!((report.tasks.succeeded, report.tasks.lost), (4, 0));
    assert_eq!((report.stats.tasks_added, report.stats.closures_finished), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_runs_alone_and_at_once() {
    let app = memory().await;
    let background = Background::builder(app.clone()).concurrency(4).start().await.unwrap();
    let handler = async |tasks: BackgroundTasks| -> Result<String, Error> {
        tasks.spawn("panics", async { explode() })?;
        tasks.spawn_blocking("panics on its thread", explode)?;
        tasks.spawn("fails", async { Err::<(), _>("no luck") })?;
        let panics = tasks.add(panics()).await?;
        // These four wait for each other.
        tasks.add(meets()).await?;
        tasks.add(meets()).await?;
        tasks.spawn("meets", async {
            MEETING.wait().await;
        })?;
        let runtime = tokio::runtime::Handle::current();
        tasks.spawn_blocking("meets on its thread", move || {
            runtime.block_on(MEETING.wait());
        })?;
        let last = tasks.add(quick()).await?;
        Ok(format!("{} {}", panics.id(), last.id()))
    };
    let address = served(Router::new().route("/", post(handler)), &background).await;
    let (status, ids) = ask(address, "POST /").await;
    assert_eq!(status, 200);
    let (panics, last) = ids.split_once(' ').unwrap();
    assert_eq!(app.async_result::<u32>(last).get_timeout(PATIENCE).await.unwrap(), 1);
    let failure = match app.async_result::<()>(panics).get_timeout(PATIENCE).await.unwrap_err() {
        celeriac::Error::Task(failure) => failure,
        other => panic!("not the failure of a task: {other}"),
    };
    assert_eq!(failure.exception.unwrap().message().as_deref(), Some("a task that panics"));
    assert!(failure.traceback.unwrap().contains("background.rs"), "it says where");

    let Report { tasks, stats, .. } = within(background.shutdown()).await;
    assert_eq!((tasks.succeeded, tasks.failed), (3, 1));
    assert_eq!((stats.closures_added, stats.closures_pending()), (5, 0));
    assert_eq!((stats.closures_finished, stats.closures_failed, stats.closures_panicked), (3, 1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_stored_and_tried_again() {
    let app = memory().await;
    let background = Background::builder(app.clone()).start().await.unwrap();
    let handler = async |tasks: BackgroundTasks| -> Result<String, Error> {
        let (in_time, never) = (tasks.add(fails(2)).await?, tasks.add(fails(100)).await?);
        Ok(format!("{} {}", in_time.id(), never.id()))
    };
    let address = served(Router::new().route("/", post(handler)), &background).await;
    let (_, ids) = ask(address, "POST /").await;
    let (in_time, never) = ids.split_once(' ').unwrap();
    assert_eq!(app.async_result::<u32>(in_time).get_timeout(PATIENCE).await.unwrap(), 2);
    let never = app.async_result::<u32>(never);
    assert_eq!(never.wait(PATIENCE).await.unwrap(), State::Failure);
    assert!(never.traceback().await.unwrap().is_some_and(|traceback| traceback.contains("not yet")));
    let report = background.shutdown().await;
    assert_eq!((report.tasks.succeeded, report.tasks.failed, report.tasks.retried), (1, 1, 4));
}

// One thread for the server: whatever runs on it stops the requests.
#[tokio::test]
async fn what_blocks_stops_no_request_and_is_noticed() {
    let app = memory().await;
    let background = Background::builder(app.clone())
        .concurrency(1)
        .threads(2)
        .stall_after(Duration::from_millis(50))
        .start()
        .await
        .unwrap();
    let (name, open) = fresh();
    let handler = {
        let name = name.clone();
        move |tasks: BackgroundTasks| {
            let name = name.clone();
            async move {
                let blocked = tasks.add(blocks(name.clone())).await?;
                let [a, b] = [name.clone(), name];
                tasks.spawn("blocks", async move { block_until(&a) })?;
                tasks.spawn_blocking("blocks as it should", move || block_until(&b))?;
                Ok::<_, Error>(blocked.id().as_str().to_owned())
            }
        }
    };
    let router = Router::new().route("/", post(handler)).route("/ping", get(async || "pong"));
    let address = served(router, &background).await;
    let (_, id) = ask(address, "POST /").await;
    // Both threads of the background are taken, each by one that is told of once.
    until(async || background.stats().stalls >= 2).await;
    for _ in 0..10 {
        assert_eq!(ask(address, "GET /ping").await, (200, "pong".to_owned()));
    }
    assert_eq!(background.stats().closures_finished, 0);
    open.cancel();
    app.async_result::<()>(id).get_timeout(PATIENCE).await.unwrap();
    let report = background.shutdown().await;
    assert_eq!((report.stats.closures_finished, report.stats.closures_abandoned), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_disconnects_changes_nothing() {
    let app = memory().await;
    let background = Background::builder(app.clone()).start().await.unwrap();
    async fn add(tasks: BackgroundTasks, id: &str) {
        tasks.spawn("closure", async {}).unwrap();
        tasks.add(quick().task_id(&TaskId::from(id))).await.unwrap();
    }
    let never = async |tasks: BackgroundTasks| {
        add(tasks, "before the response").await;
        std::future::pending::<&str>().await
    };
    let (router, chunks) = held_open(move |tasks| add(tasks, "in its midst"));
    let router = router.route("/never", post(never));
    let address = served(router, &background).await;

    let before = app.async_result::<u32>("before the response");
    let client = send(address, "POST /never").await;
    until(async || before.place().await.unwrap().is_some()).await;
    drop(client);
    assert_eq!(before.get_timeout(PATIENCE).await.unwrap(), 1);

    let mut client = send(address, "POST /").await;
    chunks.send("first").unwrap();
    read_until(&mut client, "first").await;
    drop(client);
    let midst = app.async_result::<u32>("in its midst");
    assert_eq!(midst.get_timeout(PATIENCE).await.unwrap(), 1);
    assert!(chunks.is_closed(), "the body was dropped");
    each_ended_once(&app, &[before.id(), midst.id()], "SUCCESS").await;
    assert_eq!(background.shutdown().await.stats.closures_finished, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_fails_changes_nothing() {
    let app = memory().await;
    let background = Background::builder(app.clone()).start().await.unwrap();
    let fails = async |tasks: BackgroundTasks| {
        tasks.spawn("closure", async {}).unwrap();
        tasks.add(quick().task_id(&TaskId::from("fails"))).await.unwrap();
        StatusCode::IM_A_TEAPOT
    };
    let panics = async |tasks: BackgroundTasks| -> () {
        tasks.spawn("closure", async {}).unwrap();
        tasks.add(quick().task_id(&TaskId::from("panics"))).await.unwrap();
        panic!("a handler that panics");
    };
    let router = Router::new().route("/fails", post(fails)).route("/panics", post(panics));
    let address = served(router, &background).await;
    assert_eq!(ask(address, "POST /fails").await.0, 418);
    let mut nothing = String::new();
    let _ = within(send(address, "POST /panics").await.read_to_string(&mut nothing)).await;
    assert_eq!(nothing, "", "the connection is closed without a response");
    for id in ["fails", "panics"] {
        assert_eq!(app.async_result::<u32>(id).get_timeout(PATIENCE).await.unwrap(), 1, "{id}");
    }
    assert_eq!(background.shutdown().await.stats.closures_finished, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_added_is_found_and_revoked_like_any_task() {
    let app = memory().await;
    let background = Background::builder(app.clone()).concurrency(2).start().await.unwrap();
    let ids = ["revoked", "terminated"].map(TaskId::from);
    let (router, chunks) = held_open({
        let ids = ids.clone();
        move |tasks| {
            let ids = ids.clone();
            async move {
                for id in &ids {
                    tasks.add(waits("never".to_owned()).task_id(id)).await.unwrap();
                }
            }
        }
    });
    let running = async |tasks: BackgroundTasks| -> Result<String, Error> {
        let options = CallOptions { tags: vec!["nightly".to_owned()], ..CallOptions::default() };
        Ok(tasks.add_with(waits("never".to_owned()), options).await?.id().as_str().to_owned())
    };
    let address = served(router.route("/running", post(running)), &background).await;
    let mut client = send(address, "POST /").await;
    chunks.send("first").unwrap();
    read_until(&mut client, "first").await;

    let [revoked, terminated]: [AsyncResult<u32>; 2] = ids.clone().map(|id| app.async_result(id));
    for (result, terminate) in [(&revoked, false), (&terminated, true)] {
        until(async || result.place().await.unwrap().is_some_and(|place| place.phase == Phase::Reserved))
            .await;
        assert_eq!(result.state().await.unwrap(), State::Pending);
        result.revoke(terminate).await.unwrap();
        assert_eq!(result.wait(PATIENCE).await.unwrap(), State::Revoked);
    }
    drop(chunks);
    let (_, id) = ask(address, "POST /running").await;
    let id = TaskId::from(id);
    let records = events(&app, &id, "began", 1).await;
    assert_eq!(count(&records, None, "began"), 1, "what was revoked behind the response has never begun");
    let running = app.async_result::<u32>(&id);
    assert!(matches!(running.revoke(true).await.unwrap()[..], [Revoked::Running { terminate: true, .. }]));
    assert_eq!(running.wait(PATIENCE).await.unwrap(), State::Revoked);
    each_ended_once(&app, &[ids.to_vec(), vec![id]].concat(), "REVOKED").await;
    assert_eq!(background.shutdown().await.tasks.revoked, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_drains_and_hands_back_the_rest() {
    for in_time in [true, false] {
        let mut config = config(LONG_LEASE);
        config.worker_shutdown_timeout = if in_time { LONG_LEASE } else { Duration::from_millis(50) };
        let app = memory().await.with_config(config);
        let background = Background::builder(app.clone()).start().await.unwrap();
        let (name, open) = fresh();
        let handler = {
            let name = name.clone();
            move |tasks: BackgroundTasks| {
                let (open, call) = (opened(&name), waits(name.clone()));
                async move {
                    tasks.spawn("waits", async move { open.cancelled().await })?;
                    Ok::<_, Error>(tasks.add(call).await?.id().as_str().to_owned())
                }
            }
        };
        let stop = CancellationToken::new();
        let router = Router::new().route("/", post(handler));
        let address = serve(router, &background, stop.clone()).await;
        let (_, id) = ask(address, "POST /").await;
        let id = TaskId::from(id);
        events(&app, &id, "began", 1).await;

        stop.cancel();
        let mut ending = std::pin::pin!(background.shutdown());
        assert_eq!(ending.as_mut().now_or_never(), None, "it waits for what runs");
        if in_time {
            open.cancel();
        }
        let report = within(ending).await;
        let (finished, abandoned) = (report.stats.closures_finished, report.stats.closures_abandoned);
        let late = background.tasks().spawn("late", async {});
        assert!(matches!(late, Err(Error::Closed)), "{late:?}");
        let result = app.async_result::<u32>(&id);
        if in_time {
            assert_eq!((report.tasks.succeeded, report.tasks.handed_back, finished, abandoned), (1, 0, 1, 0));
        } else {
            assert_eq!((report.tasks.succeeded, report.tasks.handed_back, finished, abandoned), (0, 1, 0, 1));
            assert_eq!(result.place().await.unwrap().unwrap().phase, Phase::Queued);
            // What is added now is for the next process as well.
            let late = background.tasks().add(quick()).await.unwrap();
            let next = Background::builder(app.clone()).start().await.unwrap();
            open.cancel();
            assert_eq!(late.get_timeout(PATIENCE).await.unwrap(), 1);
            assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 1);
            assert_eq!(next.shutdown().await.tasks.succeeded, 2);
        }
        assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bound_is_kept() {
    let app = memory().await;
    let background = Background::builder(app.clone()).tasks_max(1).closures_max(1).start().await.unwrap();
    let (router, chunks) = held_open(async |tasks: BackgroundTasks| {
        tasks.spawn("first", async {}).unwrap();
        tasks.add(quick().task_id(&TaskId::from("first"))).await.unwrap();
        let full = tasks.spawn("second", async {}).unwrap_err();
        assert!(full.to_string().contains("closures_max"), "{full}");
        assert_eq!(full.into_response().status(), StatusCode::SERVICE_UNAVAILABLE);
        let full = tasks.add(quick().task_id(&TaskId::from("second"))).await.unwrap_err();
        assert!(full.to_string().contains("tasks_max"), "{full}");
    });
    let address = served(router, &background).await;
    let mut client = send(address, "POST /").await;
    chunks.send("first").unwrap();
    read_until(&mut client, "first").await;
    assert!(app.async_result::<u32>("second").place().await.unwrap().is_none(), "nothing was sent");
    let wrong = Background::builder(app.clone()).threads(0).start().await.unwrap_err();
    assert!(wrong.to_string().contains("threads"), "{wrong}");
    let wrong = Background::builder(app.clone()).concurrency(0).start().await.unwrap_err();
    assert!(wrong.to_string().contains("concurrency"), "{wrong}");
    drop(chunks);
    assert_eq!(app.async_result::<u32>("first").get_timeout(PATIENCE).await.unwrap(), 1);
    assert_eq!(within(background.shutdown()).await.tasks.succeeded, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_does_not_end_is_not_waited_for_without_end() {
    let app = memory().await;
    let timeout = Duration::from_millis(10);
    let background = Background::builder(app.clone()).response_timeout(timeout).start().await.unwrap();
    let (router, chunks) = held_open(async |tasks: BackgroundTasks| {
        tasks.spawn("closure", async {}).unwrap();
        tasks.add(quick().task_id(&TaskId::from("task"))).await.unwrap();
    });
    let address = served(router, &background).await;
    let mut client = send(address, "POST /").await;
    chunks.send("first").unwrap();
    read_until(&mut client, "first").await;
    assert_eq!(app.async_result::<u32>("task").get_timeout(PATIENCE).await.unwrap(), 1);
    until(async || background.stats().closures_finished == 1).await;
    assert!(!chunks.is_closed(), "the response goes on");
    assert_eq!(within(background.shutdown()).await.tasks.succeeded, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_without_the_layer_says_so() {
    let router: Router = Router::new().route("/", post(async |_: BackgroundTasks| "unreachable"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let (status, text) = ask(address, "POST /").await;
    assert_eq!(status, 500);
    assert!(text.contains(".layer(background.layer())"), "{text}");
}
