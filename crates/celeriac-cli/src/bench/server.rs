//! What the server does: how fast it answers while every slot of its worker burns a core, what a watcher of a stream
//! costs in memory, and how long a record takes to reach every watcher.
//!
//! The server is this program, started as a user would start it; this process is its only client, on the same machine.
//! Latencies are open-loop: a request is due at its time whether or not the one before it was answered, and counts from
//! then.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use celeriac::clock::{Clock, SystemClock};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{Figures, idle, pss};
use crate::args::Bench;
use crate::http;
use crate::output::{Exit, Output, Problem};

/// Requests of one measurement, and the time from one to the next.
const REQUESTS: u32 = 2_000;
const REQUEST_INTERVAL: Duration = Duration::from_millis(4);
/// Records that every watcher gets, and the time from one to the next.
const TICKS: u64 = 30;
const TICK_INTERVAL: f64 = 0.5;
/// Tasks that the watchers are spread over in the second scenario.
const SPREAD: usize = 100;
/// Watchers that connect at once.
const CONNECTING: usize = 200;
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) async fn run(args: &Bench, output: Output) -> Result<Exit, Problem> {
    let folder = tempfile::tempdir()?;
    let mut runs = Vec::new();
    for run in 0..args.runs {
        output.note(format_args!("run {} of {}", run + 1, args.runs));
        let path = folder.path().join(format!("{run}.db"));
        runs.push(one(args, &path).await?);
    }
    output.note(format_args!(
        "celeriac {} · {} cores, shared with the client · {} watchers · {REQUESTS} requests, one each {} ms",
        env!("CARGO_PKG_VERSION"),
        cores(),
        args.watchers,
        REQUEST_INTERVAL.as_millis(),
    ));
    super::print(output, &runs)
}

async fn one(args: &Bench, path: &Path) -> Result<Figures, Problem> {
    let mut figures = Figures::default();
    let server = Served::start(path, SPREAD.max(cores())).await?;
    figures.rows.push(("memory of the server when idle", "KiB PSS", server.pss()));
    let idle = server.answers().await?;
    push_quantiles(&mut figures, ["API when idle, p50", "API when idle, p99"], &idle);
    server.watch(args.watchers, 1, &mut figures, &NAMES_ONE).await?;
    server.watch(args.watchers, SPREAD, &mut figures, &NAMES_SPREAD).await?;
    server.stop().await;

    // As many slots as cores, and each burns one.
    let server = Served::start(&path.with_extension("burn.db"), cores()).await?;
    let seconds = f64::from(REQUESTS) * REQUEST_INTERVAL.as_secs_f64() + 5.0;
    for _ in 0..cores() {
        server.submit("celeriac.bench.burn", json!([seconds])).await?;
    }
    server.until_running(cores()).await?;
    let burning = server.answers().await?;
    push_quantiles(
        &mut figures,
        ["API while every slot burns, p50", "API while every slot burns, p99"],
        &burning,
    );
    server.kill().await;
    Ok(figures)
}

const NAMES_ONE: [&str; 4] = [
    "memory of a watcher",
    "delivery to all watchers of one task, p50",
    "delivery to all watchers of one task, p99",
    "delivery to all watchers of one task, max",
];
const NAMES_SPREAD: [&str; 4] = [
    "memory of a watcher, 100 tasks",
    "delivery to watchers of 100 tasks, p50",
    "delivery to watchers of 100 tasks, p99",
    "delivery to watchers of 100 tasks, max",
];

#[expect(clippy::cast_precision_loss, reason = "microseconds")]
fn push_quantiles(figures: &mut Figures, names: [&'static str; 2], latency: &Histogram<u64>) {
    for (name, quantile) in names.into_iter().zip([0.5, 0.99]) {
        figures.rows.push((name, "ms", latency.value_at_quantile(quantile) as f64 / 1e3));
    }
}

/// A server of this program, and a client to it.
struct Served {
    child: Child,
    url: String,
    client: reqwest::Client,
}

impl Served {
    async fn start(path: &Path, slots: usize) -> Result<Self, Problem> {
        // All watchers are one client here.
        let config = path.with_extension("toml");
        std::fs::write(&config, "[server]\nrate_limit = 0\n")?;
        let mut child = Command::new(idle::program(path.parent().unwrap_or(Path::new(".")))?)
            .args(["--json", "--quiet", "--broker", &format!("sqlite://{}", path.display())])
            .args(["serve", "--bind", "127.0.0.1:0", "--bench-tasks", "--concurrency", &slots.to_string()])
            .arg("--config")
            .arg(&config)
            .env_remove("CELERIAC_TOKEN")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout =
            child.stdout.take().ok_or_else(|| Problem::new(Exit::Failed, "the server has no output"))?;
        let line = BufReader::new(stdout).lines().next_line().await?.unwrap_or_default();
        let said: Value = serde_json::from_str(&line)
            .map_err(|error| Problem::new(Exit::Failed, format!("the server said {line:?}: {error}")))?;
        let url = said["url"].as_str().unwrap_or_default().to_owned();
        let client = http::client().no_proxy().build();
        let client = client.map_err(|error| Problem::new(Exit::Failed, error))?;
        Ok(Self { child, url, client })
    }

    fn pss(&self) -> f64 {
        self.child.id().map_or(0.0, |id| pss(&id.to_string()))
    }

    async fn submit(&self, task: &str, args: Value) -> Result<String, Problem> {
        let body = json!({ "task": task, "args": args }).to_string();
        let request = self.client.post(format!("{}/api/v1/tasks", self.url));
        let view = json_of(request.header("content-type", "application/json").body(body)).await?;
        view["id"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| Problem::new(Exit::Failed, format!("refused: {view}")))
    }

    /// Waits until so many tasks run.
    async fn until_running(&self, count: usize) -> Result<(), Problem> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let page = json_of(self.client.get(format!("{}/api/v1/tasks?state=STARTED", self.url))).await?;
            if page["items"].as_array().is_some_and(|items| items.len() >= count) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Problem::new(Exit::Failed, format!("{count} tasks should have been running by now")))
    }

    /// How long the list of tasks takes.
    async fn answers(&self) -> Result<Histogram<u64>, Problem> {
        let (sender, mut receiver) = mpsc::channel(REQUESTS as usize);
        let began = Instant::now() + Duration::from_millis(100);
        for n in 0..REQUESTS {
            let due = began + REQUEST_INTERVAL * n;
            let request = self.client.get(format!("{}/api/v1/tasks?limit=20", self.url));
            let sender = sender.clone();
            tokio::spawn(async move {
                sleep_until(due).await;
                let answered = json_of(request).await.map(|_| due.elapsed());
                let _ = sender.send(answered).await;
            });
        }
        drop(sender);
        let mut latency = super::histogram()?;
        while let Some(answered) = receiver.recv().await {
            latency.saturating_record(u64::try_from(answered?.as_micros()).unwrap_or(u64::MAX));
        }
        Ok(latency)
    }

    /// Watchers of `tasks` tasks, the memory that each costs the server, and how long records take to reach them.
    async fn watch(
        &self,
        watchers: usize,
        tasks: usize,
        figures: &mut Figures,
        names: &[&'static str; 4],
    ) -> Result<(), Problem> {
        let before = self.pss();
        // Nothing runs until all watchers are there.
        self.queue("pause").await?;
        let mut ids = Vec::new();
        for _ in 0..tasks {
            ids.push(self.submit("celeriac.bench.ticks", json!([TICKS, TICK_INTERVAL])).await?);
        }
        let ready = Arc::new(AtomicUsize::new(0));
        let connecting = Arc::new(tokio::sync::Semaphore::new(CONNECTING));
        let address = self.url.trim_start_matches("http://").to_owned();
        let mut watching = tokio::task::JoinSet::new();
        for n in 0..watchers {
            let (address, id) = (address.clone(), ids[n % tasks].clone());
            let (ready, connecting) = (Arc::clone(&ready), Arc::clone(&connecting));
            watching.spawn(async move {
                let permit = connecting.acquire_owned().await;
                let mut socket = TcpStream::connect(&address).await?;
                let head = format!("GET /api/v1/tasks/{id}/events HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n");
                socket.write_all(head.as_bytes()).await?;
                watch_one(socket, || {
                    ready.fetch_add(1, Ordering::Relaxed);
                    drop(permit);
                })
                .await
            });
        }
        let deadline = Instant::now() + PATIENCE;
        while ready.load(Ordering::Relaxed) < watchers {
            if Instant::now() > deadline {
                let there = ready.load(Ordering::Relaxed);
                return Err(Problem::new(
                    Exit::Failed,
                    format!("only {there} of {watchers} watchers could connect"),
                ));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        #[expect(clippy::cast_precision_loss, reason = "KiB a watcher")]
        figures.rows.push((names[0], "KiB PSS", (self.pss() - before) / watchers as f64));
        self.queue("resume").await?;
        let mut latency = super::histogram()?;
        let mut delivered = 0_u64;
        while let Some(ended) = watching.join_next().await {
            for nanoseconds in ended.map_err(|panic| Problem::new(Exit::Failed, panic))?? {
                delivered += 1;
                latency.saturating_record(nanoseconds / 1_000);
            }
        }
        let expected = TICKS * watchers as u64;
        if delivered != expected {
            return Err(Problem::new(
                Exit::Failed,
                format!("{delivered} records reached the watchers, not {expected}"),
            ));
        }
        #[expect(clippy::cast_precision_loss, reason = "microseconds")]
        for (name, quantile) in names[1..].iter().zip([0.5, 0.99, 1.0]) {
            figures.rows.push((name, "ms", latency.value_at_quantile(quantile) as f64 / 1e3));
        }
        Ok(())
    }

    async fn queue(&self, verb: &str) -> Result<(), Problem> {
        json_of(self.client.post(format!("{}/api/v1/queues/celery/{verb}", self.url))).await.map(drop)
    }

    async fn stop(mut self) {
        let pid =
            self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid
            && rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok()
        {
            let _ = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        }
    }

    async fn kill(mut self) {
        let _ = self.child.kill().await;
    }
}

/// Reads one stream to its end. Says when its first bytes are there; returns of each record how many nanoseconds it was on
/// its way. Nobody is told of a record while others are on theirs, since telling costs more than reading.
async fn watch_one(mut socket: TcpStream, connected: impl FnOnce()) -> Result<Vec<u64>, Problem> {
    const AT: &[u8] = b"\"at\": \"";
    let mut buffer = vec![0_u8; 2048];
    let mut kept = Vec::new();
    let mut delays = Vec::with_capacity(TICKS as usize);
    let mut connected = Some(connected);
    loop {
        let read = socket.read(&mut buffer).await?;
        if read == 0 {
            return Ok(delays);
        }
        let now = SystemClock.now().as_nanosecond();
        kept.extend_from_slice(&buffer[..read]);
        let mut done = 0;
        while let Some(length) = kept[done..].iter().position(|byte| *byte == b'\n') {
            let line = &kept[done..done + length];
            done += length + 1;
            if line.starts_with(b"retry:")
                && let Some(connected) = connected.take()
            {
                connected();
            }
            if line == b"event: end" {
                return Ok(delays);
            }
            let Some(place) = line.windows(AT.len()).position(|window| window == AT) else { continue };
            let digits = line[place + AT.len()..].split(|byte| *byte == b'"').next().unwrap_or_default();
            let at: Option<i128> = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
            if let Some(at) = at {
                delays.push(u64::try_from(now - at).unwrap_or(0));
            }
        }
        kept.drain(..done);
    }
}

async fn json_of(request: reqwest::RequestBuilder) -> Result<Value, Problem> {
    let failed = |error: reqwest::Error| Problem::new(Exit::Failed, error);
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    let bytes = response.bytes().await.map_err(failed)?;
    if !status.is_success() {
        return Err(Problem::new(Exit::Failed, format!("{status}: {}", String::from_utf8_lossy(&bytes))));
    }
    serde_json::from_slice(&bytes).map_err(|error| Problem::new(Exit::Failed, error))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
