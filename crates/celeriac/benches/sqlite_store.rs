//! How many tasks a second the embedded store takes and gives, and whether a long queue slows it.
//!
//! `cargo bench -p celeriac --bench sqlite_store [-- QUEUED]`: publishes `QUEUED` tasks (1,000,000 unless told) after a
//! short run with 1,000, and drains part of them in batches of 200, each settled with a result and a log record, with
//! every commit flushed to the disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use celeriac::State;
use celeriac::backend::LogRecord;
use celeriac::broker::{Broker, Reserve, Routed};
use celeriac::clock::SystemClock;
use celeriac::id::{QueueName, TaskId, WorkerName};
use celeriac::protocol::{Json, RawMessage, ResultMeta};
use celeriac::sqlite::{SqliteOptions, SqliteStore};
use celeriac::store::{Then, Transact, Transaction};
use tokio::time::Instant;

const BATCH: usize = 200;
const DRAINED: usize = 20_000;
const HEAD: &str = r#"{"content-type":"application/json","content-encoding":"utf-8","headers":{"lang":"py","task":"app.tasks.add","id":"","shadow":null,"eta":null,"expires":null,"group":null,"group_index":null,"retries":0,"timelimit":[null,null],"root_id":"","parent_id":null,"argsrepr":"(2, 3)","kwargsrepr":"{}","origin":"gen1@host","ignore_result":false,"replaced_task_nesting":0,"stamped_headers":null,"stamps":{}},"properties":{"correlation_id":"","reply_to":"","delivery_mode":2,"delivery_info":{"exchange":"","routing_key":"celery"},"priority":0,"body_encoding":"base64","delivery_tag":""}}"#;

fn message() -> Routed {
    Routed {
        task_id: TaskId::random(),
        task: "app.tasks.add".into(),
        queue: QueueName::from("celery"),
        priority: 0,
        due: None,
        unique: false,
        tags: Vec::new(),
        message: RawMessage {
            head: HEAD.into(),
            body: bytes::Bytes::from_static(
                b"[[2, 3], {}, {\"callbacks\": null, \"errbacks\": null, \"chain\": null, \"chord\": null}]",
            ),
        },
    }
}

fn open(path: &Path) -> Arc<SqliteStore> {
    SqliteStore::open(path, SqliteOptions::default(), SystemClock::shared())
        .expect("a store in a fresh directory")
}

/// How long something took, and how much processor time of this process, which a busy machine blurs less.
#[derive(Default)]
struct Took {
    wall: Duration,
    cpu: Duration,
}

struct Watch(Instant, Duration);

impl Watch {
    fn start() -> Self {
        Self(Instant::now(), cpu())
    }

    fn stop(self) -> Took {
        Took { wall: self.0.elapsed(), cpu: cpu().saturating_sub(self.1) }
    }
}

/// Processor time from /proc, in its unit of 10 ms; zero where there is none.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn report(what: &str, count: usize, took: &Took) {
    let rate = count as f64 / took.wall.as_secs_f64();
    let each = |took: Duration| took.as_secs_f64() * 1e6 / count as f64;
    let (wall, cpu) = (each(took.wall), each(took.cpu));
    println!(
        "{what:<40} {count:>9} tasks {rate:>8.0} /s {wall:>8.1} µs each, {cpu:>5.1} µs of processor time"
    );
}

async fn publish(store: &SqliteStore, count: usize) -> Took {
    let began = Watch::start();
    for _ in 0..count / BATCH {
        store.publish((0..BATCH).map(|_| message()).collect()).await.expect("publish");
    }
    began.stop()
}

/// Reserves and settles, as a worker does: the next batch is reserved while the last one is being settled.
async fn drain(store: &Arc<SqliteStore>, count: usize) -> Took {
    let request = Reserve {
        worker: WorkerName::from("bench@host:1"),
        queues: vec![QueueName::from("celery")],
        limit: BATCH,
        lease: Duration::from_secs(20),
        wait: Duration::ZERO,
        stop: tokio_util::sync::CancellationToken::new(),
    };
    let began = Watch::start();
    let mut settling: Option<tokio::task::JoinHandle<()>> = None;
    let mut drained = 0;
    while drained < count {
        let deliveries = store.reserve(&request).await.expect("reserve");
        assert!(!deliveries.is_empty(), "the queue holds enough");
        drained += deliveries.len();
        let transactions = deliveries.into_iter().map(|delivery| {
            let id = delivery.task_id;
            let mut settle = Transaction::fenced(delivery.tag, Then::Ack);
            settle.record.results.push(ResultMeta {
                task_id: id.clone(),
                state: State::Success,
                result: Json::parse("5").expect("JSON"),
                traceback: None,
                children: Some(Vec::new()),
                date_done: None,
                group_id: None,
                parent_id: None,
                extended: None,
            });
            let data = Json::parse(r#"{"state": "SUCCESS", "result": 5}"#).expect("JSON");
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
    began.stop()
}

/// From the call of publish to the delivery at a worker who waits.
async fn wakes(producer: &SqliteStore, at: &Arc<SqliteStore>, what: &str) {
    let mut waits = Vec::new();
    for _ in 0..200 {
        let worker = at.clone();
        let waiting = tokio::spawn(async move {
            let request = Reserve {
                worker: WorkerName::from("bench@host:1"),
                queues: vec![QueueName::from("celery")],
                limit: 1,
                lease: Duration::from_secs(20),
                wait: Duration::from_secs(20),
                stop: tokio_util::sync::CancellationToken::new(),
            };
            let deliveries = worker.reserve(&request).await.expect("reserve");
            let at = Instant::now();
            worker.ack(&[deliveries[0].tag.clone()]).await.expect("acknowledge");
            at
        });
        tokio::time::sleep(Duration::from_millis(3)).await;
        let began = Instant::now();
        producer.publish(vec![message()]).await.expect("publish");
        waits.push(waiting.await.expect("reserve") - began);
    }
    waits.sort();
    println!("{what:<40} {:>9} tasks, median {:?}, 90 % within {:?}", waits.len(), waits[100], waits[180]);
}

async fn lone(store: &SqliteStore, count: usize) -> Took {
    let began = Watch::start();
    for _ in 0..count {
        store.publish(vec![message()]).await.expect("publish");
    }
    began.stop()
}

#[tokio::main]
async fn main() {
    let queued = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(&directory.path().join("short.db"));
    report("publish one by one", 2_000, &lone(&store, 2_000).await);
    drain(&store, 2_000).await;
    let mut took = Took::default();
    for _ in 0..DRAINED / 1_000 {
        publish(&store, 1_000).await;
        let Took { wall, cpu } = drain(&store, 1_000).await;
        took = Took { wall: took.wall + wall, cpu: took.cpu + cpu };
    }
    report("reserve and settle, 1,000 queued", DRAINED, &took);
    wakes(&store, &store, "publish to delivery").await;
    wakes(&store, &open(store.path()), "publish to delivery, two open stores").await;
    drop(store);

    let store = open(&directory.path().join("long.db"));
    report("publish in batches", queued, &publish(&store, queued).await);
    report(&format!("reserve and settle, {queued} queued"), DRAINED, &drain(&store, DRAINED).await);
    let left = queued - DRAINED;
    report("reserve and settle, the rest", left, &drain(&store, left).await);
    println!("{:?}", store.stats().await.expect("stats"));
}
