//! What the store in Redis costs the server: processor time a task, and memory a queued task.
//!
//! `cargo bench -p celeriac --bench redis_store [-- QUEUED]`: starts a `redis-server` of its own, publishes `QUEUED` tasks
//! (100,000 unless told) and drains them in batches of 100, each settled with a result and a log record. Redis runs
//! scripts on one core, so a million microseconds by its processor time a task is what one Redis can do in a second.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use celeriac::State;
use celeriac::backend::LogRecord;
use celeriac::broker::{Broker, Reserve, Routed};
use celeriac::clock::SystemClock;
use celeriac::id::{QueueName, TaskId, WorkerName};
use celeriac::protocol::{Body, Headers, Json, Message, Properties, ResultMeta};
use celeriac::redis::{RedisOptions, RedisStore};
use celeriac::store::{Then, Transact, Transaction};
use tokio::time::Instant;

const BATCH: usize = 100;

struct Server {
    process: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(folder: &std::path::Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(folder)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let server = Self { process, port };
        while server.info("server").is_empty() {
            std::thread::yield_now();
        }
        server
    }

    fn info(&self, section: &str) -> String {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
            stream.write_all(format!("INFO {section}\r\nQUIT\r\n").as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        };
        ask().unwrap_or_default()
    }

    fn number(&self, section: &str, name: &str) -> f64 {
        let info = self.info(section);
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(f64::NAN)
    }

    /// Seconds of processor time that the server has used.
    fn cpu(&self) -> f64 {
        self.number("cpu", "used_cpu_user") + self.number("cpu", "used_cpu_sys")
    }

    fn memory(&self) -> f64 {
        self.number("memory", "used_memory")
    }
}

/// A call of a task without arguments, as the client writes it.
fn message() -> Routed {
    let id = TaskId::random();
    let headers = Headers {
        lang: "rust".into(),
        task: "bench.noop".into(),
        id: id.to_string(),
        root_id: Some(id.to_string()),
        argsrepr: "()".into(),
        kwargsrepr: "{}".into(),
        origin: "gen12345@host".into(),
        ..Headers::default()
    };
    let message =
        Message { headers, properties: Properties::new(id.as_str(), "celery"), body: Body::default() };
    Routed {
        task_id: id,
        task: "bench.noop".into(),
        queue: QueueName::from("celery"),
        priority: 0,
        due: None,
        unique: false,
        tags: Vec::new(),
        message: message.encode().expect("it can be written"),
    }
}

fn report(what: &str, count: usize, wall: Duration, cpu: f64) {
    let each = cpu * 1e6 / count as f64;
    println!(
        "{what:<24} {count:>8} tasks {:>8.0} /s here, {each:>6.2} µs of the server each: {:>8.0} /s at most",
        count as f64 / wall.as_secs_f64(),
        1e6 / each
    );
}

/// Reserves and settles, as a worker does: the next batch is reserved while the last one is being settled.
async fn drain(store: &Arc<RedisStore>, count: usize) {
    let request = Reserve {
        worker: WorkerName::from("bench@host/1"),
        queues: vec![QueueName::from("celery")],
        limit: BATCH,
        lease: Duration::from_secs(20),
        wait: Duration::ZERO,
        stop: tokio_util::sync::CancellationToken::new(),
    };
    let mut settling: Option<tokio::task::JoinHandle<()>> = None;
    let mut drained = 0;
    while drained < count {
        let deliveries = store.reserve(&request).await.expect("reserve");
        assert!(!deliveries.is_empty(), "the queue holds enough");
        drained += deliveries.len();
        let transactions = deliveries.into_iter().map(|delivery| {
            let id = delivery.task_id;
            let mut settle = Transaction::fenced(delivery.tag, Then::Ack);
            let meta = ResultMeta {
                children: Some(Vec::new()),
                ..ResultMeta::new(id.clone(), State::Success, Json::null())
            };
            settle.record.results.push(meta);
            let data = Json::parse(r#"{"state": "SUCCESS", "result": null}"#).expect("JSON");
            settle.record.log.push(LogRecord { task_id: id, event: "end".into(), data });
            settle
        });
        let transactions: Vec<Transaction> = transactions.collect();
        if let Some(settling) = settling.take() {
            settling.await.expect("settle");
        }
        let store = store.clone();
        settling = Some(tokio::spawn(async move {
            let outcomes = store.commit(transactions).await.expect("commit");
            assert!(outcomes.iter().all(celeriac::store::Outcome::is_committed));
        }));
    }
    if let Some(settling) = settling {
        settling.await.expect("settle");
    }
}

#[tokio::main]
async fn main() {
    let queued = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(100_000);
    let folder = tempfile::tempdir().expect("a directory");
    let server = Server::start(folder.path());
    let url = format!("redis://127.0.0.1:{}/0", server.port);
    let store =
        RedisStore::connect(&url, RedisOptions::default(), SystemClock::shared()).await.expect("connect");
    // Scripts, connections and tables of keys that are there from the beginning.
    store.publish((0..1_000).map(|_| message()).collect()).await.expect("publish");
    drain(&store, 1_000).await;

    let before = server.memory();
    let (began, cpu) = (Instant::now(), server.cpu());
    for _ in 0..queued / BATCH {
        store.publish((0..BATCH).map(|_| message()).collect()).await.expect("publish");
    }
    report("publish", queued, began.elapsed(), server.cpu() - cpu);
    let envelope = message().message.to_envelope().expect("it can be written").len();
    println!(
        "{:.0} bytes of memory each; the envelope has {envelope} with all its headers",
        (server.memory() - before) / queued as f64
    );

    let (began, cpu) = (Instant::now(), server.cpu());
    drain(&store, queued).await;
    report("reserve and settle", queued, began.elapsed(), server.cpu() - cpu);
    println!("{:.0} bytes of memory each once finished", (server.memory() - before) / queued as f64);
    for line in server.info("commandstats").lines().filter(|line| line.starts_with("cmdstat_")) {
        if std::env::var_os("STATS").is_some() {
            println!("{line}");
        }
    }
}
