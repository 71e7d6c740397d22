//! Servers and workers that are processes of their own: terminated, killed, side by side.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use celeriac::background::{Background, BackgroundTasks, Error};
use celeriac::state::Phase;
use celeriac::{Celeriac, Config, TaskId};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;

use super::super::support::{PATIENCE, config, count, each_ended_once, events, feed_until, sqlite_url};
use super::{
    TERMINATED, ask, hold, outlasts, quick, read_until, send, served, streaming, until, with_tasks, within,
};

const STORE: &str = "CELERIAC_TEST_BACKGROUND";
const MODE: &str = "CELERIAC_TEST_BACKGROUND_MODE";

fn short_lease() -> Config {
    let mut config = config(Duration::from_secs(1));
    config.task_max_deliveries = 100;
    config
}

async fn sqlite(folder: &Path, config: Config) -> Celeriac {
    with_tasks(Celeriac::connect(&sqlite_url(folder)).await.unwrap(), config)
}

/// The body of a server or worker process: this very test, run by name with the variables set. Without them it is no
/// test.
#[tokio::test(flavor = "multi_thread")]
async fn child_server() {
    let Ok(folder) = std::env::var(STORE) else { return };
    let app = sqlite(Path::new(&folder), short_lease()).await;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
    if std::env::var(MODE).unwrap() == "worker" {
        println!("\nready 127.0.0.1:0");
        app.worker().run(async { assert!(terminate.recv().await.is_some()) }).await.unwrap();
        return;
    }
    let background = Background::builder(app).concurrency(16).start().await.unwrap();
    let holds = async |tasks: BackgroundTasks| -> Result<String, Error> {
        Ok(tasks.add(hold()).await?.id().as_str().to_owned())
    };
    let open = async |tasks: BackgroundTasks| -> Result<Body, Error> {
        let id = tasks.add(quick()).await?.id().as_str().to_owned();
        let (chunks, stream) = mpsc::unbounded_channel();
        chunks.send(&*id.leak()).unwrap();
        // Its sender is never dropped: a response that does not end.
        std::mem::forget(chunks);
        Ok(streaming(stream))
    };
    let outlast = async |tasks: BackgroundTasks| -> Result<String, Error> {
        tasks.spawn("outlasts", async {
            TERMINATED.cancelled().await;
            println!("\nclosure finished");
        })?;
        Ok(tasks.add(outlasts()).await?.id().as_str().to_owned())
    };
    let router = Router::new()
        .route("/hold", post(holds))
        .route("/open", post(open))
        .route("/outlasts", post(outlast))
        .layer(background.layer());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("\nready {}", listener.local_addr().unwrap());
    let terminated = async move {
        terminate.recv().await;
        TERMINATED.cancel();
    };
    axum::serve(listener, router).with_graceful_shutdown(terminated).await.unwrap();
    let report = background.shutdown().await;
    println!(
        "\nsucceeded={} handed_back={} abandoned={}",
        report.tasks.succeeded, report.tasks.handed_back, report.stats.closures_abandoned
    );
}

/// A process. Dropping it kills it.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    address: SocketAddr,
}

impl Process {
    async fn start(folder: &Path, mode: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "background::processes::child_server", "--nocapture", "--test-threads=1"])
            .env(STORE, folder)
            .env(MODE, mode)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut process = Self { child, lines, address: ([127, 0, 0, 1], 0).into() };
        let ready = process.line_that(|line| line.starts_with("ready ")).await;
        process.address = ready["ready ".len()..].parse().unwrap();
        process
    }

    async fn line_that(&mut self, fits: impl Fn(&str) -> bool) -> String {
        within(async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if fits(&line) {
                    return line;
                }
            }
            panic!("the process ended without the line awaited");
        })
        .await
    }

    async fn ask(&self, request: &str) -> TaskId {
        let (status, id) = ask(self.address, request).await;
        assert_eq!(status, 200);
        TaskId::from(id)
    }

    async fn terminate(&self) {
        let pid = self.child.id().expect("the process lives").to_string();
        assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().await.unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_server_promised_is_kept_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let app = sqlite(folder.path(), short_lease()).await;
    let mut doomed = Process::start(folder.path(), "server").await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(doomed.ask("POST /hold").await);
    }
    feed_until(&app, |records| count(records, None, "began") == ids.len()).await;
    let held = ids.len();
    // One waits for a response that is not out, and of one the response is all there is.
    let mut client = send(doomed.address, "POST /open").await;
    let head = read_until(&mut client, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let queued = app.store().broker.queues().await.unwrap();
    assert_eq!(queued.iter().map(|queue| queue.ready + queue.reserved).sum::<u64>(), 9);
    doomed.child.kill().await.unwrap();
    drop(client);

    let heir = Process::start(folder.path(), "server").await;
    for id in &ids[..held] {
        assert_eq!(
            app.async_result::<u32>(id).get_timeout(PATIENCE).await.unwrap(),
            2,
            "in its second delivery"
        );
    }
    let records = feed_until(&app, |records| count(records, None, "end") == held + 1).await;
    ids.extend(records.iter().map(|record| record.task_id.clone()).find(|id| !ids.contains(id)));
    assert_eq!(ids.len(), held + 1);
    each_ended_once(&app, &ids, "SUCCESS").await;
    assert_eq!(count(&records, None, "began"), 2 * held + 1, "nothing ran more often than that");
    drop(heir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_terminated_drains() {
    let folder = tempfile::tempdir().unwrap();
    let app = sqlite(folder.path(), short_lease()).await;
    let mut server = Process::start(folder.path(), "server").await;
    let id = server.ask("POST /outlasts").await;
    events(&app, &id, "began", 1).await;
    assert!(!app.async_result::<u32>(&id).ready().await.unwrap());
    server.terminate().await;
    server.line_that(|line| line == "closure finished").await;
    let report = server.line_that(|line| line.starts_with("succeeded=")).await;
    assert_eq!(report, "succeeded=1 handed_back=0 abandoned=0");
    assert_eq!(app.async_result::<u32>(&id).get_timeout(PATIENCE).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_handlers_send_to_separate_workers() {
    let folder = tempfile::tempdir().unwrap();
    let app = sqlite(folder.path(), short_lease()).await;
    let background = Background::without_worker(app.clone()).start().await.unwrap();
    let handler = async |tasks: BackgroundTasks| -> Result<String, Error> {
        tasks.spawn("closure", async {})?;
        Ok(tasks.add(quick()).await?.id().as_str().to_owned())
    };
    let address = served(Router::new().route("/", post(handler)), &background).await;
    let (_, id) = ask(address, "POST /").await;
    until(async || background.stats().closures_finished == 1).await;
    let result = app.async_result::<u32>(&*id);
    assert_eq!(result.place().await.unwrap().unwrap().phase, Phase::Queued, "nobody here runs it");
    let worker = Process::start(folder.path(), "worker").await;
    assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 1);
    worker.terminate().await;
    let report = background.shutdown().await;
    assert_eq!((report.tasks, report.stats.tasks_added), (celeriac::worker::Report::default(), 1));
}
