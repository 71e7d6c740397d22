//! After many tasks and many clients that died, Redis holds what it held before.
//!
//! The sizes come from the environment: `CELERIAC_TEST_SOAK_TASKS` (1,000,000 for a long run) and
//! `CELERIAC_TEST_SOAK_CLIENTS` (1,000).

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use celeriac::clock::{Clock, SystemClock};
use celeriac::protocol::JsonMap;
use celeriac::testing::ManualClock;
use celeriac::{Celeriac, Config, Context, TaskId, chord};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::redis_server::RedisServer;
use crate::support::{PATIENCE, Running, config};

const STORE: &str = "CELERIAC_TEST_SOAK_STORE";
const CLIENTS: &str = "CELERIAC_TEST_SOAK_CLIENTS_HERE";
/// So many tasks are published at once; among them are chords and tasks with logs and steps.
const BATCH: usize = 1_000;
const CHATTY: usize = 50;
const CHORDS: usize = 2;
/// So many clients share a process, and die with it.
const CLIENTS_A_PROCESS: usize = 10;
/// Every time that is kept in Redis by our clock is over by then, but that of queues that nobody uses.
const LATER: Duration = Duration::from_secs(2 * 3600);

#[celeriac::task(name = "redis_soak.add")]
async fn add(x: i64, y: i64) -> i64 {
    x + y
}

#[celeriac::task(name = "redis_soak.sum")]
async fn sum(values: Vec<i64>) -> i64 {
    values.iter().sum()
}

/// Leaves whatever a task can leave.
#[celeriac::task(name = "redis_soak.chatty", max_retries = 1, default_retry_delay = 0)]
async fn chatty(cx: Context) -> Result<i64, String> {
    cx.progress(1, 2).await;
    cx.token("a word").await;
    let step = cx.step("step", || async { Ok::<i64, std::io::Error>(7) }).await;
    if cx.retries() == 0 { Err("once more".to_owned()) } else { step.map_err(|error| error.to_string()) }
}

fn size(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |size| size.parse().unwrap())
}

fn short() -> Config {
    let mut config = config(Duration::from_secs(20));
    // Longer than any of them is waited for.
    config.result_expires = Some(PATIENCE * 2);
    config.worker_concurrency = 64;
    config
}

async fn connect(url: &str) -> Celeriac {
    let app = Celeriac::builder().broker(url).config(short()).connect().await.unwrap();
    app.register(add).register(sum).register(chatty)
}

/// Clients that ask, wait and listen until they are killed. Run by the tests below, and nothing without them.
#[test]
fn child_clients() {
    let Ok(url) = std::env::var(STORE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut waiting = tokio::task::JoinSet::new();
        let mut apps = Vec::new();
        for _ in 0..size(CLIENTS, CLIENTS_A_PROCESS) {
            let app = connect(&url).await;
            apps.push(app.clone());
            // One that asks who is there, which takes questions to Python's workers; one that waits for answers of all; one
            // that waits for what never comes, and one that follows everything.
            waiting.spawn({
                let app = app.clone();
                async move {
                    app.workers().await.unwrap();
                    println!("\nasked");
                    loop {
                        app.control("ping", JsonMap::new(), None, Duration::from_millis(200)).await.unwrap();
                    }
                }
            });
            waiting.spawn({
                let app = app.clone();
                async move {
                    let _ = app.async_result::<i64>(TaskId::random()).get().await;
                }
            });
            waiting.spawn(async move {
                let broker = &app.store().broker;
                let worker = celeriac::id::WorkerName::from(TaskId::random().as_str());
                let _ = broker.interrupts(&worker, &[], Duration::from_secs(3600)).await;
            });
        }
        while waiting.join_next().await.is_some() {}
    });
}

async fn clients(url: &str, count: usize) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "redis_soak::child_clients", "--nocapture", "--test-threads=1"])
        .env(STORE, url)
        .env(CLIENTS, count.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut asked = 0;
    let all = async {
        while asked < count {
            let line = lines.next_line().await.unwrap().expect("the clients live until they are killed");
            asked += usize::from(line == "asked");
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the clients ask");
    child
}

/// Publishes a batch, and waits for the last of it.
async fn a_batch(app: &Celeriac) {
    let calls: Vec<_> = (0..BATCH - CHATTY - 5 * CHORDS).map(|n| add(n as i64, 1)).collect();
    let last = app.publish_batch(&calls).await.unwrap().pop().unwrap();
    let chatty: Vec<_> = (0..CHATTY).map(|_| chatty()).collect();
    let chatty = app.publish_batch(&chatty).await.unwrap();
    for _ in 0..CHORDS {
        let body = chord((0..4).map(|n| add(n, 1)), sum::s()).delay(app).await.unwrap();
        assert_eq!(body.get_timeout(PATIENCE).await.unwrap(), 10);
    }
    last.get_timeout(PATIENCE).await.unwrap();
    for result in chatty {
        assert_eq!(result.get_timeout(PATIENCE).await.unwrap(), 7);
    }
}

fn keys(server: &RedisServer) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut cursor = "0".to_owned();
    loop {
        let answer = server.command(&["SCAN", &cursor, "COUNT", "10000"]);
        let mut texts = answer.split("\r\n").filter(|line| !line.starts_with(['$', '*']) && !line.is_empty());
        cursor = texts.next().unwrap().to_owned();
        keys.extend(texts.map(str::to_owned));
        if cursor == "0" {
            return keys;
        }
    }
}

fn figure(server: &RedisServer, section: &str, name: &str) -> u64 {
    let info = server.command(&["INFO", section]);
    let found = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.parse().ok());
    found.unwrap_or_else(|| panic!("{name}: {info}"))
}

/// What is left within the keys that stay, one entry for each thing.
fn filled(server: &RedisServer) -> Vec<String> {
    let lengths = [
        ("celeriac:tasks", "XLEN"),
        ("celeriac:messages", "HLEN"),
        ("celeriac:leases", "ZCARD"),
        ("celeriac:groups", "ZCARD"),
        ("celeriac:ready", "ZCARD"),
        ("celeriac:marks", "HLEN"),
        ("celeriac:reply-queues", "ZCARD"),
        ("_kombu.binding.reply.celery.pidbox", "SCARD"),
    ];
    let within = lengths.into_iter().flat_map(|(key, command)| {
        // One is of the command that was sent to find out.
        let count = server.number(&[command, key]) - 1;
        (0..count).map(move |_| format!("within {key}"))
    });
    within.collect()
}

/// Waits until nothing is left but what `base` has and what Redis will drop by itself, and has it do so.
async fn back_to(server: &RedisServer, base: &BTreeSet<String>) {
    let later = ManualClock::at(SystemClock.now());
    later.advance(LATER);
    let broom = Celeriac::builder().broker(server.url()).config(short()).clock(later.shared());
    let broom = broom.connect().await.unwrap();
    let (mut fewest, mut since) = (usize::MAX, Instant::now());
    loop {
        // What waits for its time by our clock: tasks, queues for answers. The question of the round before is among them.
        later.advance(Duration::from_secs(300));
        while broom.store().backend.sweep(later.now(), 1_000).await.unwrap() > 0 {}
        broom.store().broker.restore().await.unwrap();
        let command = celeriac::control::Command {
            ticket: TaskId::random().as_str().into(),
            method: "ping".into(),
            arguments: JsonMap::new().to_json(),
            destination: Some(vec!["nobody".into()]),
            expires: later.now(),
        };
        broom.store().control.send(&command).await.unwrap();
        broom.store().control.replies(&command.ticket, 1, Duration::from_millis(1)).await.unwrap();
        // What waits for its time by the server's.
        for key in keys(server) {
            if server.number(&["PTTL", &key]) > 0 {
                server.number(&["PEXPIRE", &key, "1"]);
            }
        }
        let mut left: Vec<String> = keys(server).into_iter().filter(|key| !base.contains(key)).collect();
        left.extend(filled(server));
        if left.is_empty() {
            return;
        }
        let bytes = left.iter().map(String::len).sum();
        if bytes < fewest {
            (fewest, since) = (bytes, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "{} keys stay: {:?}", left.len(), &left[..left.len().min(20)]);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_and_go() {
    let tasks = size("CELERIAC_TEST_SOAK_TASKS", 5_000);
    let dead = size("CELERIAC_TEST_SOAK_CLIENTS", 50);
    let server = RedisServer::start().await;
    let url = server.url();
    let app = connect(&url).await;
    let worker = Running::start(connect(&url).await.worker());

    // What there is once everything has happened for the first time.
    a_batch(&app).await;
    let mut first = clients(&url, 1).await;
    first.kill().await.unwrap();
    let base: BTreeSet<String> = keys(&server).into_iter().filter(|key| is_of_the_store(key)).collect();
    back_to(&server, &base).await;
    let memory = figure(&server, "memory", "used_memory");
    println!("at first {} keys, {memory} bytes", base.len());

    let began = Instant::now();
    let dying = async {
        let mut left = dead;
        while left > 0 {
            let some = left.min(CLIENTS_A_PROCESS);
            clients(&url, some).await.kill().await.unwrap();
            left -= some;
        }
    };
    let working = async {
        for batch in 1..=tasks.div_ceil(BATCH) {
            a_batch(&app).await;
            if batch % 100 == 0 {
                let (keys, memory) = (server.number(&["DBSIZE"]), figure(&server, "memory", "used_memory"));
                println!("{} tasks, {:.0?}: {keys} keys, {memory} bytes", batch * BATCH, began.elapsed());
            }
        }
    };
    tokio::join!(dying, working);
    println!(
        "{tasks} tasks and {dead} dead clients in {:.1?}: {} keys, {} bytes at most",
        began.elapsed(),
        server.number(&["DBSIZE"]),
        figure(&server, "memory", "used_memory_peak"),
    );
    back_to(&server, &base).await;
    println!(
        "{:.1?}: {} keys, {} bytes, of which the feed {}, tracked keys {}, clients {}",
        began.elapsed(),
        server.number(&["DBSIZE"]),
        figure(&server, "memory", "used_memory"),
        server.number(&["MEMORY", "USAGE", "celeriac:feed", "SAMPLES", "0"]),
        figure(&server, "stats", "tracking_total_keys"),
        figure(&server, "clients", "connected_clients"),
    );
    worker.stop().await;
}

/// Those that there is one of, whatever is done.
fn is_of_the_store(key: &str) -> bool {
    let one = [
        "counter",
        "feed",
        "queues",
        "consumers",
        "tasks",
        "swept",
        "commands:last",
        "reply-queues",
        "workers",
    ];
    one.iter().any(|name| key == format!("celeriac:{name}")) || key.starts_with("_kombu.binding")
}
