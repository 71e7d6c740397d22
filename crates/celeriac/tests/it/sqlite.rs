//! The embedded store: the conformance suite on one file, and what only a file can do wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use celeriac::State;
use celeriac::backend::{Backend, LogRecord, Record, Watch};
use celeriac::broker::{Broker, Reserve, Revocation, Revoke, Routed};
use celeriac::clock::{Clock, SystemClock, Timestamp};
use celeriac::control::{Command, Control, Reply, Report, WorkerCard};
use celeriac::id::{QueueName, TaskId, WorkerName};
use celeriac::protocol::{Json, RawMessage, ResultMeta, ResultTuple};
use celeriac::sqlite::{SqliteOptions, SqliteStore};
use celeriac::state::Phase;
use celeriac::store::{Error, Outcome, Store, Then, Transact, Transaction};
use celeriac::store_suite;
use celeriac::testing::ManualClock;
use rusqlite::Connection;
use tempfile::TempDir;

mod processes;

store_suite!(one_store, |clock| {
    let directory = tempfile::tempdir().unwrap();
    let store =
        SqliteStore::open(directory.path().join("celeriac.db"), SqliteOptions::default(), clock).unwrap();
    (Store::of(store), directory)
});

// As two processes would: the broker of one open store, the backend of another, both on one file.
store_suite!(two_stores, |clock| {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let one = SqliteStore::open(&path, SqliteOptions::default(), clock.clone()).unwrap();
    let other = SqliteStore::open(&path, SqliteOptions::default(), clock).unwrap();
    let store = Store::of(one);
    (Store { backend: other, ..store }, directory)
});

const LEASE: Duration = Duration::from_secs(20);
const FOREVER: Duration = Duration::from_secs(3600);

fn open(path: &Path) -> Arc<SqliteStore> {
    SqliteStore::open(path, SqliteOptions::default(), SystemClock::shared()).unwrap()
}

fn refusal(path: &Path) -> Error {
    SqliteStore::open(path, SqliteOptions::default(), SystemClock::shared())
        .expect_err("this should be refused")
}

fn message(id: &str) -> Routed {
    Routed {
        task_id: TaskId::from(id),
        task: "t".into(),
        queue: QueueName::from("q"),
        priority: 0,
        due: None,
        unique: false,
        tags: Vec::new(),
        message: RawMessage {
            head: format!(r#"{{"headers":{{"id":"{id}"}}}}"#).into(),
            body: bytes::Bytes::from_static(b"[[],{},{}]"),
        },
    }
}

fn wanted(limit: usize, wait: Duration) -> Reserve {
    Reserve {
        worker: WorkerName::from("w"),
        queues: vec![QueueName::from("q")],
        limit,
        lease: LEASE,
        wait,
        stop: tokio_util::sync::CancellationToken::new(),
    }
}

fn success(id: &str) -> ResultMeta {
    ResultMeta {
        task_id: TaskId::from(id),
        state: State::Success,
        result: Json::parse("[1, 2]").unwrap(),
        traceback: None,
        children: None,
        date_done: None,
        group_id: None,
        parent_id: None,
        extended: None,
    }
}

fn end(id: &str) -> LogRecord {
    LogRecord { task_id: TaskId::from(id), event: "end".into(), data: Json::null() }
}

/// Reserves one message and settles it with a value.
async fn run_one(store: &SqliteStore) -> TaskId {
    let delivery = store.reserve(&wanted(1, FOREVER)).await.unwrap().remove(0);
    let id = delivery.task_id.clone();
    let mut settle = Transaction::fenced(delivery.tag, Then::Ack);
    settle.record.results.push(success(id.as_str()));
    settle.record.log.push(end(id.as_str()));
    assert!(store.commit(vec![settle]).await.unwrap()[0].is_committed());
    id
}

async fn assert_sound(store: &SqliteStore) {
    assert_eq!(store.check().await.unwrap(), Vec::<String>::new());
}

async fn soon<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), call).await.expect("nothing woke this call")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let store = open(&path);
    store.publish(vec![message("done"), message("held"), message("waits")]).await.unwrap();
    run_one(&store).await;
    let held = store.reserve(&wanted(1, FOREVER)).await.unwrap().remove(0);
    drop(store);

    let store = open(&path);
    let metas = store.fetch(&[TaskId::from("done")]).await.unwrap();
    assert_eq!(metas, [Some(success("done"))]);
    let places = store.locate(&["done", "held", "waits", "never"].map(TaskId::from)).await.unwrap();
    let phases: Vec<Option<Phase>> =
        places.iter().map(|place| place.as_ref().map(|place| place.phase)).collect();
    assert_eq!(phases, [Some(Phase::Settled), Some(Phase::Reserved), Some(Phase::Queued), None]);
    assert!(
        store.ack(&[held.tag]).await.unwrap().is_empty(),
        "a reservation outlives the process that made it"
    );
    assert_eq!(store.reserve(&wanted(9, Duration::ZERO)).await.unwrap()[0].message, message("waits").message);
    assert_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_out_of_date_leaves_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let clock = ManualClock::new();
    let store = SqliteStore::open(&path, SqliteOptions::default(), clock.shared()).unwrap();
    let rows = || {
        let file = Connection::open(&path).unwrap();
        let count = |table: &str| -> i64 {
            file.query_row(&format!("SELECT count(*) FROM {table}"), (), |row| row.get(0)).unwrap()
        };
        [count("worker"), count("command"), count("reply")]
    };
    let fill = async || {
        let expires = clock.now() + Duration::from_secs(1);
        let card = WorkerCard {
            worker: "w".into(),
            node: "w".into(),
            hostname: "h".into(),
            pid: 1,
            version: "v".into(),
            queues: Vec::new(),
            tasks: Vec::new(),
            concurrency: 1,
            running: 0,
            started: clock.now(),
            beat: clock.now(),
            expires,
            stopping: false,
            totals: Report::default(),
        };
        let command = Command {
            ticket: "t".into(),
            method: "m".into(),
            arguments: Json::null(),
            destination: None,
            expires,
        };
        store.beat(&card).await.unwrap();
        store.send(&command).await.unwrap();
        store.reply("t", &Reply { worker: "w".into(), content: Json::null() }).await.unwrap();
        card
    };
    let card = fill().await;
    assert_eq!(rows(), [1, 1, 1]);
    clock.advance(Duration::from_secs(90));
    store.beat(&WorkerCard { worker: "other".into(), ..card }).await.unwrap();
    assert_eq!(rows(), [1, 0, 0], "in passing");
    clock.advance(Duration::from_secs(90));
    fill().await;
    clock.advance(Duration::from_secs(90));
    store.sweep(clock.now(), 10).await.unwrap();
    assert_eq!(rows(), [0, 0, 0], "by the sweep");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abandoned_reserve_gives_its_messages_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("celeriac.db"));
    store.publish(vec![message("a")]).await.unwrap();
    let request = wanted(1, FOREVER);
    loop {
        // Asked once, the call has sent its wish to the writer; then nobody asks again.
        let mut call = pin!(store.reserve(&request));
        match std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await {
            Poll::Pending => {}
            // The writer was quicker than the call: not what is to be seen here.
            Poll::Ready(deliveries) => {
                store.requeue(&[deliveries.unwrap()[0].tag.clone()], None, false).await.unwrap();
                continue;
            }
        }
        let is_held = async || {
            let place = store.locate(&["a".into()]).await.unwrap().remove(0);
            place.unwrap().phase == Phase::Reserved
        };
        soon(async { while !is_held().await {} }).await;
        break;
    }
    let again = soon(store.reserve(&wanted(1, FOREVER))).await.unwrap();
    assert_eq!(again[0].deliveries, 1, "what nobody received is no delivery");
    assert_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_file_refuses_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let options = SqliteOptions { file_bytes_max: Some(512 * 1024), ..SqliteOptions::default() };
    let store = SqliteStore::open(&path, options, SystemClock::shared()).unwrap();
    let large = |n: usize| Routed {
        message: RawMessage { head: "{}".into(), body: vec![b'x'; 64 * 1024].into() },
        ..message(&format!("large-{n}"))
    };
    let mut kept = 0;
    let refused = loop {
        match store.publish(vec![large(kept)]).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 100, "the bound should have been met");
    };
    assert!(matches!(&refused, Error::Full { what } if what.ends_with("celeriac.db")), "{refused}");
    assert!(refused.is_transient());
    assert_eq!(store.locate(&[TaskId::from(format!("large-{kept}"))]).await.unwrap(), [None]);

    assert_eq!(store.purge(&"q".into()).await.unwrap().len(), kept);
    let ids: Vec<TaskId> = (0..kept).map(|n| TaskId::from(format!("large-{n}"))).collect();
    store.forget(&ids).await.unwrap();
    store.publish(vec![large(kept)]).await.unwrap();
    assert_eq!(run_one(&store).await.as_str(), format!("large-{kept}"));
    assert_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_trimmed_at_their_bound() {
    let directory = tempfile::tempdir().unwrap();
    let options = SqliteOptions { log_bound: 10, ..SqliteOptions::default() };
    let store =
        SqliteStore::open(directory.path().join("celeriac.db"), options, SystemClock::shared()).unwrap();
    store.publish(vec![message("a")]).await.unwrap();
    let log = (0..25).map(|_| end("a")).collect();
    store.record(vec![Record { log, ..Record::default() }]).await.unwrap();
    let page = store.log(&"a".into(), 0, 100).await.unwrap().unwrap();
    assert_eq!((page.first, page.last, page.entries.len(), page.ended), (16, 25, 10, false));
    assert_eq!(page.entries[0].position, 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_of_the_feed_never_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let store = open(&path);
    store.publish(vec![message("a")]).await.unwrap();
    run_one(&store).await;
    let newest = store.feed_end().await.unwrap();
    store.forget(&["a".into()]).await.unwrap();
    drop(store);
    let store = open(&path);
    store.publish(vec![message("b")]).await.unwrap();
    run_one(&store).await;
    assert_eq!(store.feed(newest, 10).await.unwrap().len(), 1, "who had read up to {newest} misses nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweeping_goes_on_where_it_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let store =
        SqliteStore::open(directory.path().join("x.db"), SqliteOptions::default(), clock.shared()).unwrap();
    store.publish((0..100).map(|n| message(&format!("task-{n}"))).collect()).await.unwrap();
    for _ in 0..99 {
        run_one(&store).await;
    }
    clock.advance(Duration::from_secs(60));
    let before = celeriac::clock::Clock::now(&clock);
    let mut swept = Vec::new();
    for _ in 0..5 {
        swept.push(store.sweep(before, 30).await.unwrap());
    }
    assert_eq!(swept, [30, 30, 30, 9, 0]);
    assert!(store.locate(&["task-99".into()]).await.unwrap()[0].is_some(), "what waits is not swept");
    assert_eq!(store.stats().await.unwrap().tasks, 1);
    assert_sound(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_a_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("celeriac.db"));
    let mut done = success("a");
    let child = ResultTuple { id: "b".into(), parent: None, children: None };
    done.children = Some(vec![child]);
    store.record(vec![Record { results: vec![done.clone()], ..Record::default() }]).await.unwrap();
    let copy = directory.path().join("copy.db");
    store.backup(&copy).await.unwrap();
    assert!(matches!(store.backup(&copy).await, Err(Error::Open { .. })), "a backup overwrites nothing");
    assert_eq!(open(&copy).fetch(&["a".into()]).await.unwrap(), [Some(done)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_finds_a_message_that_is_nowhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    let store = open(&path);
    store.publish(vec![message("a")]).await.unwrap();
    Connection::open(&path).unwrap().execute("DELETE FROM ready", ()).unwrap();
    let problems = store.check().await.unwrap().join("\n");
    assert!(problems.contains("task a has neither a message in any place nor a result"), "{problems}");
    assert!(problems.contains("queue q counts 1 ready and 0 delayed instead of 0 and 0"), "{problems}");
}

#[test]
fn a_newer_layout_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    drop(open(&path));
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let refused = refusal(&path);
    assert!(matches!(refused, Error::Newer { found: 99, known: 3, .. }), "{refused}");
}

#[test]
fn the_database_of_another_program_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE task (id); PRAGMA user_version = 3;")
        .unwrap();
    let before = std::fs::read(&path).unwrap();
    let refused = refusal(&path).to_string();
    assert!(refused.contains("other.db") && refused.contains("another program"), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(names(&directory), ["other.db"]);
}

#[test]
fn what_is_no_database_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    std::fs::write(&path, "not a database, and longer than its header would be\n".repeat(100)).unwrap();
    let before = std::fs::read(&path).unwrap();
    let refused = refusal(&path).to_string();
    assert!(refused.contains("notes.txt") && refused.contains("not a SQLite database"), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(names(&directory), ["notes.txt"]);
}

#[test]
fn a_damaged_layout_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    drop(open(&path));
    Connection::open(&path).unwrap().execute_batch("DROP TABLE lease").unwrap();
    let refused = refusal(&path);
    assert!(matches!(&refused, Error::Corrupt { why, .. } if why.contains("lease")), "{refused}");
}

#[test]
fn paths_that_cannot_be_a_store_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    for (path, expected) in [
        (Path::new(":memory:").to_owned(), "memory://"),
        (Path::new("").to_owned(), "name a file"),
        (directory.path().to_owned(), "is a directory"),
        (directory.path().join("absent/celeriac.db"), "make the directory first"),
    ] {
        let refused = refusal(&path);
        assert!(matches!(refused, Error::Open { .. }), "{refused}");
        assert!(refused.to_string().contains(expected), "{path:?}: {refused}");
    }
    assert!(names(&directory).is_empty());
}

#[test]
fn a_lock_file_that_cannot_be_made_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    std::fs::create_dir(directory.path().join("celeriac.db-lock")).unwrap();
    let refused = refusal(&path);
    assert!(matches!(&refused, Error::Open { what, .. } if what.ends_with("celeriac.db-lock")), "{refused}");
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read_is_named() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("celeriac.db");
    drop(open(&path));
    let locked_away = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(&path, locked_away).unwrap();
    if std::fs::File::open(&path).is_ok() {
        // The superuser may read anything; nothing can be refused to it this way.
        return;
    }
    let refused = refusal(&path);
    assert!(matches!(&refused, Error::Open { remedy, .. } if remedy.contains("permission")), "{refused}");
}

fn names(directory: &TempDir) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
